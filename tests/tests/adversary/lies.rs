//! A guest that lies about what it has forgotten, how long things are and what time it is.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use strongroom_channel::{ChannelError, Frame};
use strongroom_contracts::{Rights, SecretKey};
use strongroom_protocol::attr::{Node, SetAttr, SetTime, Time};
use strongroom_protocol::codec::decode_header;
use strongroom_protocol::op::{Op, Slot};
use strongroom_protocol::reply::{Event, FromGateway, Outcome};

use crate::support::attacker::{Attacker, BOTH, CREDENTIALS, READ, Reply, named};
use crate::support::gateway::{Gateway, grant};
use crate::support::{LONG, wait_for};

fn enter(gateway: &Gateway, application: &str) -> Attacker {
    let holder = SecretKey::generate().unwrap();
    let grants = [grant("shared", "/shared", Rights::READ_WRITE)];
    gateway.enter(&holder, &gateway.contract(application, &holder.public(), &grants))
}

fn chmod(node: Node, mode: u32) -> Op {
    let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
    Op::Setattr { node, handle: None, set, by: CREDENTIALS }
}

/// Whether nothing has come for a moment.
fn is_silent(session: &mut Attacker) -> bool {
    session.channel.receiver.set_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut frame = Frame::new();
    let silent = matches!(session.channel.receiver.recv(&mut frame), Err(ChannelError::TimedOut));
    session.channel.receiver.set_timeout(Some(LONG)).unwrap();
    silent
}

/// The number of the next recall.
fn recalled(session: &mut Attacker) -> u64 {
    let mut frame = Frame::new();
    assert!(session.channel.receiver.recv(&mut frame).unwrap());
    match decode_header(frame.header()).unwrap() {
        FromGateway::Event(Event::Recall { id, .. }) => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_answers_for_another_what_that_one_was_asked_to_forget() {
    let gateway = Gateway::with("[leases]\nrecall = \"60s\"");
    let (mut keeper, mut liar, mut changer) =
        (enter(&gateway, "keeper"), enter(&gateway, "liar"), enter(&gateway, "changer"));
    for session in [&mut keeper, &mut liar] {
        session.call(Op::TakeLeases).ok();
    }
    let node = keeper.find(0, "note");
    keeper.call(Op::Getattr { node, handle: None }).ok();
    // What changes now waits for the keeper, whatever others say, and how often.
    let node = changer.find(0, "note");
    let op = chmod(node, 0o600);
    let slot = changer.next_slot(&op);
    let asked = changer.send(slot, op, &[]).unwrap();
    for id in (0..5000).chain(u64::MAX - 10..=u64::MAX) {
        liar.send(Slot::default(), Op::Recalled { id }, &[]).unwrap();
    }
    assert!(liar.is_alive());
    assert!(is_silent(&mut changer), "answered though the keeper has not forgotten");
    // The keeper answers what it was asked.
    let id = recalled(&mut keeper);
    keeper.send(Slot::default(), Op::Recalled { id }, &[]).unwrap();
    assert!(matches!(changer.reply_to(asked).ok().0, Outcome::Attr(_)));
    // Who says that it has forgotten and has not, harms itself only: others are told the truth.
    keeper.call(Op::Getattr { node, handle: None }).ok();
    let op = chmod(node, 0o640);
    let slot = changer.next_slot(&op);
    let asked = changer.send(slot, op, &[]).unwrap();
    let id = recalled(&mut keeper);
    keeper.send(Slot::default(), Op::Recalled { id }, &[]).unwrap();
    assert!(matches!(changer.reply_to(asked).ok().0, Outcome::Attr(_)));
    let node = liar.find(0, "note");
    assert_eq!(liar.call(Op::Getattr { node, handle: None }).attr().mode & 0o777, 0o640);
}

#[test]
fn absurd_offsets_and_lengths() {
    let gateway = Gateway::start();
    let mut session = enter(&gateway, "liar");
    let root = session.root(0);
    let handle = session.create(root, "file", BOTH).handle();
    let node = session.find(0, "file");
    session.write(handle, 0, b"twelve bytes").ok();
    let other = session.create(root, "other", BOTH).handle();
    const EDGES: [u64; 8] = [
        i64::MAX as u64 - 1,
        i64::MAX as u64,
        1 << 63,
        (1 << 63) + 1,
        u64::MAX - 4096,
        u64::MAX - 1,
        u64::MAX,
        1 << 62,
    ];
    for offset in EDGES {
        session.write(handle, offset, b"data").failure();
        for length in [1, 4096, u32::MAX] {
            // Nothing is there.
            if let Reply::Ok(_, data) = session.read(handle, offset, length) {
                assert!(data.is_empty(), "read at {offset}");
            }
        }
        for hole in [false, true] {
            session.call(Op::Seek { handle, offset, hole }).failure();
        }
        for length in [1, 1 << 20, i64::MAX as u64, u64::MAX - offset, u64::MAX] {
            for mode in [0, libc::FALLOC_FL_ZERO_RANGE] {
                session.call(Op::Fallocate { handle, mode: mode as u32, offset, length }).failure();
            }
            let there = Op::CopyRange { from: handle, from_offset: 0, to: other, to_offset: offset, length };
            let from = Op::CopyRange { from: handle, from_offset: offset, to: other, to_offset: 0, length };
            for copy in [there, from] {
                // The twelve bytes cannot be put there, and there is nothing to take.
                if let Reply::Ok(outcome, _) = session.call(copy) {
                    assert!(matches!(outcome, Outcome::Written { count: 0, .. }), "{offset}: {outcome:?}");
                }
            }
        }
        let size = SetAttr { size: Some(offset), ..SetAttr::default() };
        session.call(Op::Setattr { node, handle: None, set: size, by: CREDENTIALS }).failure();
    }
    // A read of more than there may be is a short one; so is a page of names.
    assert_eq!(session.read(handle, 0, u32::MAX).data(), b"twelve bytes");
    let Outcome::Opened(directory, _) = session.call(Op::Opendir { node: root }).ok().0 else { panic!() };
    for (cookie, max_bytes) in [(0, u32::MAX), (u64::MAX, 4096), (1 << 63, u32::MAX), (0, 0), (0, 1)] {
        // Refused, cut to what is usual, or nothing: never more, and never a hang.
        let _ = session.call(Op::Readdir { handle: directory, cookie, max_bytes, plus: true });
        let _ = session.call(Op::List { node: root, cookie, max_bytes, plus: true, ahead: false });
        assert!(session.is_alive());
    }
    for (longest, max_bytes) in [(u32::MAX, u32::MAX), (0, 0), (u32::MAX, 0)] {
        let list: Vec<u8> = (0..3u64).flat_map(|n| (node.ino + n).to_le_bytes()).collect();
        let _ = session.call_with(Op::ReadFiles { grant: 0, longest, max_bytes }, &list);
        assert!(session.is_alive());
    }
    let metadata = std::fs::metadata(gateway.data("shared/file")).unwrap();
    assert_eq!(metadata.len(), 12);
    assert_eq!(std::fs::read(gateway.data("shared/other")).unwrap(), b"");
    assert!(gateway.peak_memory_kib() < 300 << 10, "{} KiB", gateway.peak_memory_kib());
}

#[test]
fn absurd_times() {
    let gateway = Gateway::start();
    let (mut liar, mut honest) = (enter(&gateway, "liar"), enter(&gateway, "honest"));
    let root = liar.root(0);
    liar.create(root, "file", BOTH).handle();
    let node = liar.find(0, "file");
    let set = |mtime| {
        let set = SetAttr {
            mtime: Some(SetTime::At(mtime)),
            atime: Some(SetTime::At(mtime)),
            ..SetAttr::default()
        };
        Op::Setattr { node, handle: None, set, by: CREDENTIALS }
    };
    liar.call(set(Time { secs: 1_000, nanos: 999_999_999 })).ok();
    // No nanosecond: among them what utimensat(2) takes for "now" and "leave it".
    for nanos in [1_000_000_000, (1 << 30) - 1, (1 << 30) - 2, 1 << 31, u32::MAX] {
        liar.call(set(Time { secs: 2_000, nanos })).failure();
        let metadata = std::fs::metadata(gateway.data("shared/file")).unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_000, 999_999_999), "{nanos}");
    }
    // Years that no disk can hold end at the disk's last one, or are refused; nothing stumbles over them.
    for secs in [i64::MIN, i64::MIN + 1, -1, 1 << 33, 1 << 40, i64::MAX - 1, i64::MAX] {
        let _ = liar.call(set(Time { secs, nanos: 1 }));
        let seen = honest.lookup(root, "file").attr();
        let metadata = std::fs::metadata(gateway.data("shared/file")).unwrap();
        assert_eq!((seen.mtime.secs, i64::from(seen.mtime.nanos)), (metadata.mtime(), metadata.mtime_nsec()));
        assert!(honest.list(root).is_ok_and(|names| names.iter().any(|entry| entry.name == named("file"))));
        assert!(liar.is_alive());
    }
    // The record of it all can still be read.
    liar.open(node, READ).handle();
    wait_for("lines of the audit", || (!gateway.audit().is_empty()).then_some(()));
}
