//! No request waits behind a slow one.

use strongroom_protocol::attr::{Lock, LockKind};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Outcome;

use crate::support::{World, key};

#[test]
fn requests_are_answered_past_slow_ones() {
    let world = World::new();
    let holder = key();
    world.contract(&holder);
    let mut terms = world.terms(&holder);
    // A stall that the test controls: a write that waits for its rate for a very long time.
    terms.limits.write_rate = Some(1);
    let mut client = world.client(&holder, &world.issue(&terms));
    let root = client.root();
    let (handle, _) = client.create(root, "f");
    client.write(handle, 0, &[0; 3600]);
    let stalled: Vec<_> =
        (0..3).map(|slot| client.send_in(slot, Op::Write { handle, offset: 0 }, b"x")).collect();
    for _ in 0..100 {
        let id = client.send_in(9, Op::Getattr { node: root, handle: None }, &[]);
        let (answered, outcome) = client.reply();
        assert!(!stalled.contains(&answered), "the stalled request was answered");
        assert_eq!(answered, id);
        assert!(matches!(outcome, Outcome::Attr(_)));
    }
}

#[test]
fn answers_come_in_any_order_and_all_come() {
    let world = World::new();
    let holder = key();
    let mut client = world.client(&holder, &world.contract(&holder));
    let root = client.root();
    let (handle, _) = client.create(root, "f");
    let block = vec![5; 256 << 10];
    client.write(handle, 0, &block);
    let mut expected = std::collections::HashMap::new();
    let mut asked = 0;
    let mut answered = 0;
    while answered < 600 {
        while asked < 600 && expected.len() < 48 {
            let slot = u16::try_from(asked % 16).unwrap() + 1;
            let kind = asked % 4;
            // A slot is free once its last request was answered.
            if kind == 0 && expected.values().any(|(_, used)| *used == slot) {
                break;
            }
            let (op, data): (Op, &[u8]) = match kind {
                0 => (Op::Write { handle, offset: 0 }, &block),
                1 => (Op::Read { handle, offset: 0, length: 256 << 10 }, &[]),
                2 => (Op::Fsync { handle, data_only: true }, &[]),
                _ => (Op::Ping, &[]),
            };
            let id = client.send_in(slot, op, data);
            expected.insert(id, (kind, if kind == 0 { slot } else { 0 }));
            asked += 1;
        }
        let (id, outcome) = client.reply();
        let (kind, _) = expected.remove(&id).expect("an answer to an open request");
        match (kind, outcome) {
            (0, Outcome::Written { count, .. }) => assert_eq!(count, block.len() as u64),
            (1, Outcome::Data) => assert_eq!(client.frame.data(), block),
            (2 | 3, Outcome::Done) => {}
            other => panic!("{other:?}"),
        }
        answered += 1;
    }
    assert!(expected.is_empty());
}

#[test]
fn a_waiting_lock_is_had_or_cancelled() {
    let world = World::new();
    let holder = key();
    let chain = world.contract(&holder);
    let (mut a, mut b) = (world.client(&holder, &chain), world.client(&holder, &chain));
    let root = a.root();
    let (held, entry) = a.create(root, "f");
    b.lookup(root, "f");
    let (wanted, _) = b.open(entry.node);
    let lock = |kind| Lock { owner: 7, pid: 1, start: 0, end: 9, kind };
    let set = |handle, kind, wait| Op::SetLock { handle, lock: lock(kind), wait, reclaim: false };
    assert_eq!(a.call(set(held, LockKind::Exclusive, false), &[]), Outcome::Done);
    let first = b.send_in(0, set(wanted, LockKind::Shared, true), &[]);
    assert_eq!(b.call(Op::Ping, &[]), Outcome::Done);
    let cancel = b.send_in(0, Op::CancelLock { request: first }, &[]);
    let mut answers = [b.reply(), b.reply()];
    answers.sort_by_key(|(id, _)| *id);
    const EINTR: u16 = 4;
    let interrupted = Outcome::Failed(strongroom_protocol::reply::Failure::Errno(EINTR));
    assert_eq!(answers, [(first, interrupted), (cancel, Outcome::Done)]);
    let second = b.send_in(0, set(wanted, LockKind::Shared, true), &[]);
    assert_eq!(b.call(Op::Ping, &[]), Outcome::Done);
    // The end of a connection is not the end of the session: its locks stay until the client says good-bye.
    assert_eq!(a.call(set(held, LockKind::Unlock, false), &[]), Outcome::Done);
    assert_eq!(b.reply(), (second, Outcome::Done));
}
