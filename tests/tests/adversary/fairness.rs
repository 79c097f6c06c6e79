//! One guest cannot deny service to another. Decided by what gets done, never by how long it takes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use strongroom_contracts::{Rights, SecretKey};
use strongroom_protocol::attr::{Lock, LockKind};
use strongroom_protocol::codec::encode_header;
use strongroom_protocol::frame::MAX_DATA;
use strongroom_protocol::op::{Op, Request, Slot};
use strongroom_protocol::reply::Failure;

use crate::support::LONG;
use crate::support::attacker::{BOTH, READ, named};
use crate::support::gateway::{Gateway, grant};

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

/// What an ordinary program does: 50 times make, write, read, list, remove.
fn ordinary_work(gateway: &Gateway) {
    let holder = key();
    let chain = gateway.contract(
        "quiet",
        &holder.public(),
        &[grant("users/alice/Mail", "/Mail", Rights::READ_WRITE)],
    );
    let mut session = gateway.enter(&holder, &chain);
    let root = session.root(0);
    for n in 0..50 {
        let name = format!("f{n}");
        let handle = session.create(root, &name, BOTH).handle();
        session.write(handle, 0, b"a line of text").ok();
        session.call(Op::Fsync { handle, data_only: false }).ok();
        assert_eq!(session.read(handle, 0, 100).data(), b"a line of text");
        session.call(Op::Release { handle, lock_owner: None }).ok();
        assert!(session.list(root).unwrap().len() >= 2);
        session.call(Op::Unlink { parent: root, name: named(&name) }).ok();
    }
    session.bye();
}

#[test]
fn a_flood_of_reads_and_writes_does_not_stop_another_session() {
    let gateway = Gateway::start();
    let stop = AtomicBool::new(false);
    let flooded = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for flood in 0..3 {
            let holder = key();
            let chain = gateway.contract(
                "loud",
                &holder.public(),
                &[grant("users/alice/Documents", "/Documents", Rights::READ_WRITE)],
            );
            let mut session = gateway.enter(&holder, &chain);
            let root = session.root(0);
            let handle = session.create(root, &format!("flood{flood}"), BOTH).handle();
            session.write(handle, 0, &vec![1; MAX_DATA]).ok();
            session.channel.sender.set_timeout(Some(LONG)).unwrap();
            let slots = u64::from(session.welcome.slots) - 1;
            let sender = session.channel.sender.clone();
            let (stop, flooded) = (&stop, &flooded);
            scope.spawn(move || {
                let data = vec![2; MAX_DATA];
                for n in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let (op, data) = match (flood, n % 2) {
                        (0, _) => (Op::Read { handle, offset: 0, length: MAX_DATA as u32 }, &[][..]),
                        (1, _) => (Op::Write { handle, offset: 0 }, &data[..]),
                        (_, 0) => (Op::Fsync { handle, data_only: false }, &[][..]),
                        _ => (Op::Lookup { parent: root, name: named("report") }, &[][..]),
                    };
                    let slot = if op.needs_slot() {
                        Slot { index: (1 + n % slots) as u16, sequence: 1 + n / slots }
                    } else {
                        Slot::default()
                    };
                    let mut header = vec![];
                    encode_header(&Request { id: 1_000_000 + n, slot, op }, &mut header).unwrap();
                    if sender.send(&header, data).is_err() {
                        break;
                    }
                    flooded.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut receiver = session.channel.receiver;
            scope.spawn(move || {
                let mut frame = strongroom_channel::Frame::new();
                while !stop.load(Ordering::Relaxed) && receiver.recv(&mut frame).is_ok_and(|more| more) {}
                session.channel.closer.close();
            });
        }
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let before = flooded.load(Ordering::Relaxed);
            ordinary_work(&gateway);
            assert!(flooded.load(Ordering::Relaxed) > before, "there was no flood");
        }));
        stop.store(true, Ordering::Relaxed);
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_guest_that_reads_no_replies_does_not_stop_another_session() {
    let gateway = Gateway::start();
    std::fs::write(gateway.data("users/alice/Documents/large"), vec![7; MAX_DATA]).unwrap();
    // Several connections, each with its replies stuck.
    let stuck: Vec<_> = (0..8)
        .map(|_| {
            let holder = key();
            let chain = gateway.contract(
                "stuck",
                &holder.public(),
                &[grant("users/alice/Documents", "/Documents", Rights::READ_WRITE)],
            );
            let mut session = gateway.enter(&holder, &chain);
            let large = session.find(0, "large");
            let handle = session.open(large, READ).handle();
            for _ in 0..64 {
                session
                    .send(Slot::default(), Op::Read { handle, offset: 0, length: MAX_DATA as u32 }, &[])
                    .unwrap();
            }
            session
        })
        .collect();
    ordinary_work(&gateway);
    drop(stuck);
}

#[test]
fn waiting_locks_do_not_stop_anybody() {
    let gateway = Gateway::start();
    let enter = || {
        let holder = key();
        let chain =
            gateway.contract("locks", &holder.public(), &[grant("shared", "/shared", Rights::READ_WRITE)]);
        gateway.enter(&holder, &chain)
    };
    let lock = |owner| Lock { owner, pid: 1, start: 0, end: u64::MAX, kind: LockKind::Exclusive };
    let mut holds = enter();
    let note = holds.find(0, "note");
    let held = holds.open(note, BOTH).handle();
    holds.call(Op::SetLock { handle: held, lock: lock(1), wait: false, reclaim: false }).ok();
    let mut waits = enter();
    let note = waits.find(0, "note");
    let handle = waits.open(note, BOTH).handle();
    let waiting: Vec<_> = (0..200)
        .map(|owner| {
            waits
                .send(
                    Slot::default(),
                    Op::SetLock { handle, lock: lock(owner), wait: true, reclaim: false },
                    &[],
                )
                .unwrap()
        })
        .collect();
    ordinary_work(&gateway);
    // The one that waits can still do other things: some of its requests may have been refused, none may hang.
    assert!(waits.call(Op::CancelLock { request: waiting[0] }).is_ok());
    // The one that holds ends; the lock goes to others, and they too are not stuck.
    holds.bye();
    let mut third = enter();
    let note = third.find(0, "note");
    third.open(note, READ).handle();
    waits.bye();
    let free = third.open(note, BOTH).handle();
    crate::support::wait_for("the lock to be free", || {
        match third.call(Op::SetLock { handle: free, lock: lock(1), wait: false, reclaim: false }) {
            crate::support::attacker::Reply::Ok(..) => Some(()),
            other => {
                assert_eq!(other.failure(), Failure::Errno(libc::EAGAIN as u16));
                None
            }
        }
    });
}

#[test]
fn a_directory_of_many_names_does_not_stop_another_session() {
    let gateway = Gateway::start();
    let crowded = gateway.data("users/alice/Documents/crowded");
    std::fs::create_dir(&crowded).unwrap();
    for n in 0..20_000 {
        std::fs::File::create(crowded.join(format!("a-rather-long-name-{n}"))).unwrap();
    }
    let holder = key();
    let chain = gateway.contract(
        "lister",
        &holder.public(),
        &[grant("users/alice/Documents", "/Documents", Rights::READ_WRITE)],
    );
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut session = gateway.enter(&holder, &chain);
        let stop = &stop;
        let listing = scope.spawn(move || {
            let node = session.find(0, "crowded");
            let mut most = 0;
            while !stop.load(Ordering::Relaxed) {
                most = session.list(node).unwrap().len();
            }
            most
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ordinary_work(&gateway)));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(listing.join().unwrap(), 20_000);
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
