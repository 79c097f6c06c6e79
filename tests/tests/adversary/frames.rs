//! Frames that are too long, too short, nested, half-sent or meaningless; floods; and tables that are filled on purpose.

use std::net::Shutdown;
use std::time::Duration;

use strongroom_contracts::{Chain, ContractId, Rights, SecretKey, SessionLimits, Subject, Terms};
use strongroom_protocol::ALPN_NATIVE;
use strongroom_protocol::admin::AdminAnswer;
use strongroom_protocol::attr::{Lock, LockKind, Node, OpenFlags};
use strongroom_protocol::codec::{decode_header, encode_header};
use strongroom_protocol::frame::{MAX_DATA, MAX_HEADER};
use strongroom_protocol::hello::{Answer, Hello, RefusedCode};
use strongroom_protocol::op::{Op, Request, Slot};
use strongroom_protocol::reply::{Failure, FromGateway, Outcome};

use crate::raw::{RawTls, Show, frame_bytes};
use crate::support::LONG;
use crate::support::attacker::{Attacker, BOTH, Greeting, READ, Reply, WRITE, named, plain_hello};
use crate::support::gateway::{Gateway, grant};
use crate::support::wait_for;

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

fn contract(gateway: &Gateway, holder: &SecretKey) -> Chain {
    gateway.contract(
        "editor",
        &holder.public(),
        &[grant("users/alice/Documents", "/Documents", Rights::READ_WRITE)],
    )
}

fn hello_frame(chain: &Chain) -> Vec<u8> {
    let mut header = vec![];
    encode_header(&plain_hello(), &mut header).unwrap();
    frame_bytes(&header, &chain.to_bytes().unwrap())
}

/// A raw connection that has been welcomed.
fn welcomed(gateway: &Gateway, holder: &SecretKey) -> RawTls {
    let mut tls = RawTls::connect(gateway.address, Show::Own(holder), &[ALPN_NATIVE]).unwrap();
    tls.send(&hello_frame(&contract(gateway, holder))).unwrap();
    let (header, _) = tls.frame().expect("an answer");
    assert!(matches!(decode_header(&header), Ok(Answer::Welcome(_))));
    tls
}

fn request(id: u64, op: Op) -> Vec<u8> {
    let mut header = vec![];
    encode_header(&Request { id, slot: Slot::default(), op }, &mut header).unwrap();
    header
}

fn outcome(frame: Option<(Vec<u8>, Vec<u8>)>) -> Option<Outcome> {
    match decode_header(&frame?.0).expect("a frame of the gateway") {
        FromGateway::Reply { outcome, .. } => Some(outcome),
        other => panic!("{other:?}"),
    }
}

/// Refused: the connection ends, or the answer is a failure.
fn refused(tls: &mut RawTls) -> bool {
    outcome(tls.frame()).is_none_or(|outcome| matches!(outcome, Outcome::Failed(_)))
}

/// The gateway serves others as if nothing had happened.
#[track_caller]
fn still_serves(gateway: &mut Gateway) {
    assert!(gateway.is_running(), "the gateway has ended");
    let holder = key();
    let chain = contract(gateway, &holder);
    let mut session = gateway.enter(&holder, &chain);
    let report = session.find(0, "report");
    let handle = session.open(report, READ).handle();
    assert_eq!(session.read(handle, 0, 100).data(), b"a report\n");
    session.bye();
}

#[test]
fn lengths_out_of_bounds() {
    let mut gateway = Gateway::start();
    let lengths = [
        (0, 0),
        (0, 10),
        (MAX_HEADER as u32 + 1, 0),
        (u32::MAX, 0),
        (20, MAX_DATA as u32 + 1),
        (20, u32::MAX),
        (u32::MAX, u32::MAX),
        (1 << 31, 1 << 31),
    ];
    for (header, data) in lengths {
        let prefix = [header.to_le_bytes(), data.to_le_bytes()].concat();
        // After the welcome, and in the place of the hello.
        let mut tls = welcomed(&gateway, &key());
        tls.send(&prefix).unwrap();
        assert!(tls.ends(), "{header}/{data}");
        let mut tls = RawTls::connect(gateway.address, Show::Own(&key()), &[ALPN_NATIVE]).unwrap();
        tls.send(&prefix).unwrap();
        assert!(refused_hello(&mut tls), "{header}/{data}");
    }
    gateway.wait_audit(&[("event", "violation"), ("application", "editor")]);
    still_serves(&mut gateway);
}

fn refused_hello(tls: &mut RawTls) -> bool {
    match tls.frame() {
        None => true,
        Some((header, _)) => matches!(decode_header(&header), Ok(Answer::Refused(_))),
    }
}

#[test]
fn headers_at_the_bound_are_judged_by_what_they_say() {
    let mut gateway = Gateway::start();
    let mut tls = welcomed(&gateway, &key());
    // The longest header there may be, a request followed by zeroes.
    let mut header = request(1, Op::Ping);
    header.resize(MAX_HEADER, 0);
    tls.send(&frame_bytes(&header, &[])).unwrap();
    assert!(refused(&mut tls), "trailing bytes in a header were taken");
    // One byte too many or too few.
    let whole = request(7, Op::Lookup { parent: Node { grant: 0, ino: 1 }, name: named("report") });
    for bytes in
        [&whole[..whole.len() - 1], &[&whole[..], &[0]].concat(), &whole[..1], &whole[..8], &whole[..20]]
    {
        let mut tls = welcomed(&gateway, &key());
        tls.send(&frame_bytes(bytes, &[])).unwrap();
        assert!(refused(&mut tls), "{} bytes", bytes.len());
    }
    gateway.wait_audit(&[("event", "violation"), ("application", "editor")]);
    still_serves(&mut gateway);
}

#[test]
fn unknown_tags_and_absurd_lengths_inside() {
    let mut gateway = Gateway::start();
    let ping = request(1, Op::Ping);
    let tag = ping.len() - 4;
    let first_unknown = u32::try_from(crate::rights::KINDS).unwrap();
    for value in [first_unknown, first_unknown + 1, 100, 255, 65_536, u32::MAX] {
        let mut header = ping.clone();
        header[tag..].copy_from_slice(&value.to_le_bytes());
        let mut tls = welcomed(&gateway, &key());
        tls.send(&frame_bytes(&header, &[])).unwrap();
        assert!(refused(&mut tls), "tag {value}");
    }
    // A name that says it has 2^62 bytes; a bool of 7; an option tag of 9.
    let lookup = request(1, Op::Lookup { parent: Node { grant: 0, ino: 1 }, name: named("report") });
    let at = lookup.len() - 6 - 8;
    for length in [1u64 << 62, u64::MAX, 1 << 40, 7, 5] {
        let mut header = lookup.clone();
        header[at..at + 8].copy_from_slice(&length.to_le_bytes());
        let mut tls = welcomed(&gateway, &key());
        tls.send(&frame_bytes(&header, &[])).unwrap();
        assert!(refused(&mut tls), "a name of {length} bytes");
    }
    let open = request(1, Op::Open { node: Node { grant: 0, ino: 1 }, flags: OpenFlags::default() });
    let mut header = open.clone();
    *header.last_mut().unwrap() = 7;
    let mut tls = welcomed(&gateway, &key());
    tls.send(&frame_bytes(&header, &[])).unwrap();
    assert!(refused(&mut tls), "a bool of 7");
    still_serves(&mut gateway);
}

#[test]
fn frames_within_frames() {
    let mut gateway = Gateway::start();
    let holder = key();
    let chain = contract(&gateway, &holder);
    let mut session = gateway.enter(&holder, &chain);
    let root = session.root(0);
    // A whole frame as data of an operation that takes none, as a header, as contents of a file.
    let inner = frame_bytes(&request(99, Op::Unlink { parent: root, name: named("report") }), &[]);
    session.call_with(Op::Getattr { node: root, handle: None }, &inner).refused();
    let mut session = gateway.enter(&holder, &chain);
    session.call_raw(&inner, &[]).refused();
    let mut session = gateway.enter(&holder, &chain);
    let root = session.root(0);
    let handle = session.create(root, "frame", BOTH).handle();
    session.write(handle, 0, &inner).ok();
    assert_eq!(session.read(handle, 0, 4096).data(), inner);
    assert!(gateway.data("users/alice/Documents/report").exists(), "an inner frame was carried out");
    still_serves(&mut gateway);
}

#[test]
fn data_where_none_belongs_and_none_where_some_does() {
    let gateway = Gateway::start();
    let holder = key();
    let chain = contract(&gateway, &holder);
    let mut session = gateway.enter(&holder, &chain);
    let before = gateway.snapshot("");
    let root = session.root(0);
    let report = session.find(0, "report");
    let handle = session.open(report, BOTH).handle();
    let by = crate::support::attacker::CREDENTIALS;
    let without = |session: &mut Attacker, op: Op, data: &[u8]| {
        let what = op.name();
        let failure = session.call_with(op, data).failure();
        assert!(
            matches!(failure, Failure::Malformed | Failure::Errno(_)),
            "{what} with {} bytes of data: {failure:?}",
            data.len()
        );
    };
    for data in [&[0u8; 1][..], &vec![7; MAX_DATA]] {
        for op in [
            Op::Getattr { node: root, handle: None },
            Op::Lookup { parent: root, name: named("report") },
            Op::Open { node: report, flags: READ },
            Op::Read { handle, offset: 0, length: 10 },
            Op::Fsync { handle, data_only: true },
            Op::Mkdir { parent: root, name: named("d"), mode: 0o755, by },
            Op::Create { parent: root, name: named("f"), mode: 0o644, flags: WRITE, by },
            Op::Unlink { parent: root, name: named("report") },
            Op::Ping,
        ] {
            without(&mut session, op, data);
        }
    }
    without(&mut session, Op::Symlink { parent: root, name: named("l"), by }, b"");
    without(&mut session, Op::Getxattr { node: report }, b"");
    without(&mut session, Op::Setxattr { node: report, name_length: 0, flags: 0 }, b"user.a");
    without(&mut session, Op::Setxattr { node: report, name_length: 7, flags: 0 }, b"user.a");
    without(&mut session, Op::Setxattr { node: report, name_length: u16::MAX, flags: 0 }, b"user.a");
    without(&mut session, Op::Setxattr { node: report, name_length: 6, flags: 0xffff }, b"user.aB");
    without(&mut session, Op::Removexattr { node: report }, &vec![b'x'; MAX_DATA]);
    assert_eq!(gateway.snapshot(""), before);
    // Lengths and offsets at the ends of their types.
    for op in [
        Op::Read { handle, offset: u64::MAX, length: u32::MAX },
        Op::Read { handle, offset: i64::MAX as u64, length: 1 },
        Op::Fallocate { handle, mode: 0, offset: u64::MAX, length: u64::MAX },
        Op::Fallocate { handle, mode: 0, offset: 0, length: 0 },
        Op::Fallocate { handle, mode: u32::MAX, offset: 0, length: 1 },
        Op::Seek { handle, offset: u64::MAX, hole: true },
        Op::CopyRange { from: handle, from_offset: u64::MAX, to: handle, to_offset: 0, length: u64::MAX },
    ] {
        let what = format!("{op:?}");
        match session.call(op) {
            Reply::Ok(Outcome::Data, data) => assert!(data.is_empty(), "{what}: {} bytes", data.len()),
            Reply::Ok(Outcome::Written { count, .. }, _) => assert_eq!(count, 0, "{what}"),
            other => drop(other.failure()),
        }
    }
    session.write(handle, u64::MAX, b"x").failure();
    session.write(handle, i64::MAX as u64, b"x").failure();
    let whole = session.read(handle, 0, u32::MAX);
    assert!(matches!(&whole, Reply::Ok(_, data) if data == b"a report\n") || !whole.is_ok());
    assert_eq!(gateway.snapshot(""), before);
    // Forget has no reply, whatever it is given.
    for data in [&b""[..], b"x", &[0xff; 4096]] {
        let id = session.send(Slot::default(), Op::Forget, data);
        if id.is_err() || !session.is_alive() {
            session = gateway.enter(&holder, &chain);
        }
    }
}

#[test]
fn half_a_frame_and_then_nothing() {
    let mut gateway = Gateway::with("[limits]\nstall = \"1s\"");
    let whole = frame_bytes(&request(1, Op::Ping), &[]);
    for length in [1, 4, 8, 9, whole.len() - 1] {
        let mut tls = welcomed(&gateway, &key());
        tls.send(&whole[..length]).unwrap();
        assert!(tls.ends(), "half a frame of {length} bytes was answered");
    }
    // Data announced and never sent in full: 1 MiB less one.
    let mut header = request(1, Op::Ping);
    header.truncate(header.len());
    let mut tls = welcomed(&gateway, &key());
    let prefix = [(header.len() as u32).to_le_bytes(), (MAX_DATA as u32).to_le_bytes()].concat();
    tls.send(&[&prefix[..], &header, &vec![0; MAX_DATA - 1]].concat()).unwrap();
    assert!(tls.ends());
    // Closed in the middle.
    for length in [1, 8, whole.len() - 1] {
        let mut tls = welcomed(&gateway, &key());
        tls.send(&whole[..length]).unwrap();
        drop(tls);
    }
    still_serves(&mut gateway);
}

#[test]
fn noise_after_the_handshake() {
    let mut gateway = Gateway::start();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut noise = |length: usize| {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    };
    for round in 0..40 {
        // As bytes of the stream, and as headers and data of well-formed frames.
        let mut tls = welcomed(&gateway, &key());
        let bytes = noise(100 + round * 50);
        if tls.send(&bytes).is_ok() {
            assert!(tls.ends(), "noise was answered");
        }
        let mut tls = welcomed(&gateway, &key());
        let bytes = frame_bytes(&noise(1 + round * 97), &noise(round * 100));
        assert!(tls.send(&bytes).is_err() || refused(&mut tls));
    }
    still_serves(&mut gateway);
}

#[test]
fn out_of_turn() {
    let mut gateway = Gateway::start();
    let holder = key();
    let chain = contract(&gateway, &holder);
    // A request before the hello.
    let mut tls = RawTls::connect(gateway.address, Show::Own(&holder), &[ALPN_NATIVE]).unwrap();
    tls.send(&frame_bytes(&request(1, Op::Ping), &[])).unwrap();
    assert!(refused_hello(&mut tls));
    // A request in the same breath as a hello that is refused.
    let mut tls = RawTls::connect(gateway.address, Show::Own(&key()), &[ALPN_NATIVE]).unwrap();
    let root = Node { grant: 0, ino: 1 };
    let make = request(
        1,
        Op::Mkdir { parent: root, name: named("d"), mode: 0o755, by: crate::support::attacker::CREDENTIALS },
    );
    tls.send(&[hello_frame(&chain), frame_bytes(&make, &[])].concat()).unwrap();
    assert!(refused_hello(&mut tls) && tls.ends());
    // Hello twice: the second is no request.
    let mut tls = welcomed(&gateway, &holder);
    tls.send(&hello_frame(&chain)).unwrap();
    assert!(refused(&mut tls));
    // Another version of the protocol.
    for version in [0, 2, u16::MAX] {
        let refusal = gateway
            .dial(&holder)
            .hello(Hello { version, ..plain_hello() }, &chain.to_bytes().unwrap())
            .refused();
        assert_eq!(refusal.code, RefusedCode::Version);
    }
    assert!(!gateway.data("users/alice/Documents/d").exists());
    still_serves(&mut gateway);
}

#[test]
fn slots_out_of_range_and_out_of_sequence() {
    let gateway = Gateway::start();
    let holder = key();
    let mut session = gateway.enter(&holder, &contract(&gateway, &holder));
    let root = session.root(0);
    let make = |name: &str| Op::Mkdir {
        parent: root,
        name: named(name),
        mode: 0o755,
        by: crate::support::attacker::CREDENTIALS,
    };
    let slots = session.welcome.slots;
    let bad = [
        Slot { index: 0, sequence: 0 },
        Slot { index: 0, sequence: 2 },
        Slot { index: 0, sequence: u64::MAX },
        Slot { index: slots, sequence: 1 },
        Slot { index: u16::MAX, sequence: 1 },
    ];
    for slot in bad {
        assert_eq!(session.call_in(slot, make("bad"), &[]).failure(), Failure::BadSlot, "{slot:?}");
    }
    assert!(!gateway.data("users/alice/Documents/bad").exists());
    gateway.wait_audit(&[("event", "violation"), ("application", "editor")]);

    // The right one runs once, however often it is sent, also over another connection.
    let first = Slot { index: 3, sequence: 1 };
    let made = session.call_in(first, make("once"), &[]).entry();
    std::fs::remove_dir(gateway.data("users/alice/Documents/once")).unwrap();
    assert_eq!(session.call_in(first, make("once"), &[]).entry(), made);
    let mut second = gateway.join(&holder, session.welcome.session, 9);
    assert_eq!(second.call_in(first, make("once"), &[]).entry(), made);
    assert!(!gateway.data("users/alice/Documents/once").exists(), "a replay ran again");
    // The number of the last one with another request in it: the cached reply or a refusal, never an effect.
    let other = session.call_in(first, make("other"), &[]);
    assert!(!other.is_ok() || other.entry() == made);
    assert!(!gateway.data("users/alice/Documents/other").exists());
    assert_eq!(session.call_in(Slot { index: 3, sequence: 3 }, make("bad"), &[]).failure(), Failure::BadSlot);
    session.call_in(Slot { index: 3, sequence: 2 }, make("next"), &[]).entry();
    assert_eq!(session.call_in(first, make("late"), &[]).failure(), Failure::BadSlot);
    assert!(!gateway.data("users/alice/Documents/late").exists());
}

#[test]
fn ten_thousand_requests_without_reading_a_reply() {
    let mut gateway = Gateway::with("[limits]\nstall = \"2s\"");
    std::fs::write(gateway.data("users/alice/Documents/large"), vec![7; MAX_DATA]).unwrap();
    let holder = key();
    let mut session = gateway.enter(&holder, &contract(&gateway, &holder));
    let large = session.find(0, "large");
    let handle = session.open(large, READ).handle();
    still_serves(&mut gateway);
    let calm = gateway.peak_memory_kib();
    session.channel.sender.set_timeout(Some(LONG)).unwrap();
    let mut sent = 0;
    for _ in 0..10_000 {
        // 10 GiB of replies, of which none is read.
        match session.send(Slot::default(), Op::Read { handle, offset: 0, length: MAX_DATA as u32 }, &[]) {
            Ok(_) => sent += 1,
            Err(_) => break,
        }
        if sent == 100 {
            still_serves(&mut gateway);
        }
    }
    still_serves(&mut gateway);
    let grown = (gateway.peak_memory_kib() - calm) / 1024;
    // 64 requests in flight of 1 MiB each, and as much again for what is being encrypted and sent.
    assert!(
        grown < 160,
        "the gateway grew by {grown} MiB for one guest that does not read ({sent} requests sent)"
    );
}

#[test]
fn ten_thousand_large_writes_at_once() {
    let mut gateway = Gateway::start();
    let holder = key();
    let mut session = gateway.enter(&holder, &contract(&gateway, &holder));
    let root = session.root(0);
    let handle = session.create(root, "large", BOTH).handle();
    still_serves(&mut gateway);
    let calm = gateway.peak_memory_kib();
    let (slots, data) = (session.welcome.slots, vec![1; MAX_DATA]);
    let Attacker { channel, .. } = session;
    let sender = channel.sender.clone();
    let writing = std::thread::spawn(move || {
        let mut sent = 0u64;
        for n in 0..600u64 {
            let slot =
                Slot { index: (1 + n % u64::from(slots - 1)) as u16, sequence: 1 + n / u64::from(slots - 1) };
            let mut header = vec![];
            let op = Op::Write { handle, offset: (n % 4) * MAX_DATA as u64 };
            encode_header(&Request { id: 1000 + n, slot, op }, &mut header).unwrap();
            if sender.send(&header, &data).is_err() {
                break;
            }
            sent += 1;
        }
        sent
    });
    let mut receiver = channel.receiver;
    let mut frame = strongroom_channel::Frame::new();
    let mut answered = 0;
    while !writing.is_finished() && receiver.recv(&mut frame).is_ok_and(|more| more) {
        answered += 1;
    }
    assert!(writing.join().unwrap() > 0 && answered > 0);
    still_serves(&mut gateway);
    let grown = (gateway.peak_memory_kib() - calm) / 1024;
    assert!(grown < 160, "the gateway grew by {grown} MiB for one guest that writes");
}

#[test]
fn handles_without_end() {
    let mut gateway = Gateway::with("[limits]\nhandles = 100");
    let holder = key();
    let mut session = gateway.enter(&holder, &contract(&gateway, &holder));
    let report = session.find(0, "report");
    let root = session.root(0);
    let mut handles: Vec<_> = (0..100).map(|_| session.open(report, READ).handle()).collect();
    assert_eq!(session.open(report, READ).failure(), Failure::TooMany);
    assert_eq!(session.call(Op::Opendir { node: root }).failure(), Failure::TooMany);
    assert_eq!(session.create(root, "new", BOTH).failure(), Failure::TooMany);
    assert!(
        !gateway.data("users/alice/Documents/new").exists(),
        "a file was created without a handle for it"
    );
    still_serves(&mut gateway);
    let handle = handles.pop().unwrap();
    session.call(Op::Release { handle, lock_owner: None }).ok();
    session.open(report, READ).handle();

    // The contract may set fewer.
    let holder = key();
    let mut terms = gateway.terms("few", &holder.public(), &[grant("shared", "/shared", Rights::READ_WRITE)]);
    terms.limits = SessionLimits { open_handles: Some(3), ..SessionLimits::default() };
    let mut few = gateway.enter(&holder, &Chain::issue(&terms, &gateway.issuer).unwrap());
    let note = few.find(0, "note");
    for _ in 0..3 {
        few.open(note, READ).handle();
    }
    assert_eq!(few.open(note, READ).failure(), Failure::TooMany);
}

#[test]
fn locks_without_end() {
    let mut gateway = Gateway::start();
    let holder = key();
    let mut session = gateway.enter(&holder, &contract(&gateway, &holder));
    let report = session.find(0, "report");
    let handle = session.open(report, BOTH).handle();
    let calm = gateway.peak_memory_kib();
    let mut refused = None;
    // Every other byte, so that none joins its neighbour; by many owners.
    for n in 0..200_000u64 {
        let lock = Lock { owner: n % 7, pid: 1, start: 2 * n, end: 2 * n, kind: LockKind::Exclusive };
        match session.call(Op::SetLock { handle, lock, wait: false, reclaim: false }) {
            Reply::Ok(..) => {}
            Reply::Failed(failure) => {
                refused = Some(failure);
                break;
            }
            Reply::Gone => panic!("the connection was closed"),
        }
    }
    let bounded = |failure| failure == Failure::TooMany || failure == Failure::Errno(libc::ENOLCK as u16);
    assert!(refused.is_some_and(bounded), "{refused:?}");
    // One lock on everything, out of which every other byte is given up, makes as many; another connection of the
    // holder, so that the session is new.
    session.bye();
    let mut session = gateway.enter(&holder, &contract(&gateway, &holder));
    let report = session.find(0, "report");
    let handle = session.open(report, BOTH).handle();
    let all = Lock { owner: 1, pid: 1, start: 0, end: u64::MAX, kind: LockKind::Exclusive };
    session.call(Op::SetLock { handle, lock: all, wait: false, reclaim: false }).ok();
    let refused = (0..20_000u64).find_map(|n| {
        let lock = Lock { start: 2 * n + 1, end: 2 * n + 1, kind: LockKind::Unlock, ..all };
        match session.call(Op::SetLock { handle, lock, wait: false, reclaim: false }) {
            Reply::Ok(..) => None,
            other => Some(other.failure()),
        }
    });
    assert!(refused.is_some_and(bounded), "{refused:?}");
    // All of it can be given up.
    let none = Lock { kind: LockKind::Unlock, ..all };
    session.call(Op::SetLock { handle, lock: none, wait: false, reclaim: false }).ok();
    assert!(gateway.peak_memory_kib() - calm < 64 * 1024);
    still_serves(&mut gateway);
}

#[test]
fn nodes_without_end_stay_within_their_bound() {
    let gateway = Gateway::with("[limits]\nnodes = 64");
    let holder = key();
    for n in 0..200 {
        std::fs::write(gateway.data(&format!("users/alice/Documents/f{n}")), b"x").unwrap();
    }
    let mut session = gateway.enter(&holder, &contract(&gateway, &holder));
    let root = session.root(0);
    let find = |session: &mut Attacker, name: &str| match session.lookup(root, name) {
        // The root itself was forgotten to make room: it is found again as after a restart.
        Reply::Failed(Failure::Stale) => {
            session.call(Op::Resolve { grant: 0, ino: root.ino }).entry();
            session.lookup(root, name).entry()
        }
        other => other.entry(),
    };
    for n in 0..200 {
        find(&mut session, &format!("f{n}"));
    }
    let known =
        gateway.admin().sessions().into_iter().find(|info| info.session == session.welcome.session).unwrap();
    assert!(known.nodes <= 64, "{} nodes", known.nodes);
    find(&mut session, "f0");
}

#[test]
fn sessions_without_end() {
    let mut gateway = Gateway::with("[limits]\nsessions = 6\nsessions-per-holder = 4");
    let holder = key();
    let chain = contract(&gateway, &holder);
    let mut kept: Vec<_> = (0..4).map(|_| gateway.enter(&holder, &chain)).collect();
    let refusal = gateway.greet(&holder, &chain.to_bytes().unwrap()).refused();
    assert_eq!(refusal.code, RefusedCode::Busy);
    // One guest has not taken all.
    still_serves(&mut gateway);
    // All together are bounded too.
    let others: Vec<_> = (0..2)
        .map(|_| {
            let holder = key();
            gateway.enter(&holder, &contract(&gateway, &holder))
        })
        .collect();
    let late = key();
    let chain_late = contract(&gateway, &late);
    assert_eq!(gateway.greet(&late, &chain_late.to_bytes().unwrap()).refused().code, RefusedCode::Busy);
    // A session that ends makes room.
    kept.pop().unwrap().bye();
    wait_for("room for a session", || {
        matches!(gateway.greet(&late, &chain_late.to_bytes().unwrap()), Greeting::Welcome(_)).then_some(())
    });
    drop((kept, others));
}

#[test]
fn connections_of_a_session_without_end() {
    let gateway = Gateway::with("[limits]\nconnections-per-session = 3");
    let holder = key();
    let mut session = gateway.enter(&holder, &contract(&gateway, &holder));
    assert_eq!(session.welcome.connections, 3);
    let _joined: Vec<_> = (1..3).map(|slot| gateway.join(&holder, session.welcome.session, slot)).collect();
    let hello = Hello { resume: Some(session.welcome.session), ..plain_hello() };
    assert_eq!(gateway.dial(&holder).hello(hello, &[]).refused().code, RefusedCode::Busy);
    assert!(session.is_alive());
}

#[test]
fn hellos_that_wait_without_end() {
    let mut gateway = Gateway::with("[limits]\nwaiting = 3");
    let holders: Vec<_> = (0..5).map(|_| key()).collect();
    let terms: Vec<Terms> = holders
        .iter()
        .enumerate()
        .map(|(n, holder)| {
            gateway.terms(
                &format!("app{n}"),
                &holder.public(),
                &[grant("shared", "/shared", Rights::READ_WRITE)],
            )
        })
        .collect();
    let mut admin = gateway.admin();
    for (holder, terms) in holders.iter().zip(&terms) {
        let chain = Chain::issue(terms, &gateway.issuer).unwrap();
        gateway.enter(holder, &chain).bye();
        admin.deposit(&chain);
        admin.revoke(
            &gateway,
            Subject::Application { application: terms.application.clone(), below_generation: 2 },
        );
    }
    let wait = Hello { wait: true, ..plain_hello() };
    let park = |holder: &SecretKey| {
        let dialled = gateway.dial(holder);
        dialled.channel.receiver.set_timeout(Some(Duration::from_millis(300))).unwrap();
        dialled.send_hello(wait, &[]);
        dialled
    };
    let mut parked: Vec<_> = holders[..3].iter().map(park).collect();
    let mut frame = strongroom_channel::Frame::new();
    for waiting in &mut parked {
        let received = waiting.channel.receiver.recv(&mut frame);
        assert!(matches!(received, Err(strongroom_channel::ChannelError::TimedOut)), "not parked");
    }
    // No room for more.
    for holder in [&holders[3], &holders[4]] {
        let refusal = gateway.dial(holder).hello(wait, &[]).refused();
        assert!(matches!(refusal.code, RefusedCode::Busy | RefusedCode::Revoked), "{refusal:?}");
    }
    // A second one of the same holder takes the place of the first.
    let again = park(&holders[0]);
    let first = parked.remove(0);
    first.channel.receiver.set_timeout(Some(LONG)).unwrap();
    assert_eq!(first.answer().refused().code, RefusedCode::Busy);
    // Those that wait are welcomed by a new contract and nothing else.
    let last = parked.pop().unwrap();
    let renewed = Terms { generation: 2, id: ContractId::from_bytes([3; 16]), ..terms[2].clone() };
    let answer = gateway.admin().deposit(&Chain::issue(&renewed, &gateway.issuer).unwrap());
    assert!(matches!(answer, AdminAnswer::Deposited { .. }), "{answer:?}");
    last.channel.receiver.set_timeout(Some(LONG)).unwrap();
    assert_eq!(last.answer().welcome().welcome.contract, renewed.id);
    drop((again, parked));
    still_serves(&mut gateway);
}

#[test]
fn a_guest_that_closes_and_opens_connections_is_forgotten_each_time() {
    let mut gateway = Gateway::start();
    let descriptors =
        |gateway: &Gateway| std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count();
    let threads =
        |gateway: &Gateway| std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap().count();
    still_serves(&mut gateway);
    let (files_before, threads_before) = (descriptors(&gateway), threads(&gateway));
    for round in 0..60 {
        let mut socket = std::net::TcpStream::connect(gateway.address).unwrap();
        let _ = std::io::Write::write_all(&mut socket, b"\x16\x03\x01");
        let _ = socket.shutdown(Shutdown::Both);
        if round % 4 == 0 {
            drop(gateway.dial(&key()));
            still_serves(&mut gateway);
        }
    }
    wait_for("the descriptors and threads of closed connections to go", || {
        (descriptors(&gateway) <= files_before + 8 && threads(&gateway) <= threads_before + 8).then_some(())
    });
}
