//! Byte-range locks between guests, against a naive model.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;
use strongroom_contracts::Rights;
use strongroom_gateway::engine::{Call, LockReply, ReplyBuf, Served, SessionBounds};
use strongroom_protocol::attr::{Handle, Lock, LockKind};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::*;

const AGAIN: i32 = libc::EAGAIN;

struct Player {
    guest: Guest,
    handle: Handle,
}

fn player(world: &World, text: &str) -> Player {
    let guest = world.guest(vec![grant("a", "/a", Rights::READ_WRITE)]);
    let handle = opened(guest.open(guest.node(0, text), BOTH));
    Player { guest, handle }
}

fn lock(owner: u64, kind: LockKind, start: u64, end: u64) -> Lock {
    Lock { owner, pid: 7, start, end, kind }
}

use LockKind::{Exclusive, Shared, Unlock};

impl Player {
    fn set(&self, lock: Lock) -> Outcome {
        self.guest.ask(&Op::SetLock { handle: self.handle, lock, wait: false, reclaim: false })
    }

    /// Asks and waits; the reply comes through the channel, also if it comes at once.
    fn wait(&self, id: u64, lock: Lock) -> Receiver<Outcome> {
        let (sender, receiver) = channel();
        let later = || -> LockReply {
            let sender = sender.clone();
            Box::new(move |outcome| sender.send(outcome).unwrap())
        };
        let admission = self.guest.turnstile.enter().unwrap();
        let op = Op::SetLock { handle: self.handle, lock, wait: true, reclaim: false };
        let call = Call { id, op: &op, data: b"", later: &later, waits: &|| {} };
        let mut out = ReplyBuf::new();
        match self.guest.engine.serve(&self.guest.session, &admission, call, &mut out) {
            Served::Done(done) => sender.send(done.outcome).unwrap(),
            Served::Later => {}
        }
        receiver
    }

    fn query(&self, lock: Lock) -> Option<Lock> {
        match self.guest.ask(&Op::GetLock { handle: self.handle, lock }) {
            Outcome::Locked(lock) => lock,
            other => panic!("no answer: {other:?}"),
        }
    }
}

fn world() -> World {
    let world = World::new();
    world.file("a/f", b"");
    world.file("a/g", b"");
    world
}

#[test]
fn locks_hold_between_guests_and_within_one() {
    let world = world();
    let (one, two) = (player(&world, "f"), player(&world, "f"));
    assert_eq!(one.set(lock(1, Exclusive, 10, 19)), Outcome::Done);
    assert_eq!(two.set(lock(1, Shared, 19, 30)), errno(AGAIN));
    assert_eq!(one.set(lock(2, Shared, 0, 10)), errno(AGAIN));
    assert_eq!(two.set(lock(1, Shared, 20, u64::MAX)), Outcome::Done);
    // Its own session is told who stands in the way, another one only where.
    let blocked = lock(2, Exclusive, 0, u64::MAX);
    assert_eq!(one.query(blocked), Some(Lock { pid: 7, ..lock(1, Exclusive, 10, 19) }));
    let told = two.query(lock(2, Exclusive, 0, 15)).unwrap();
    assert_eq!((told.owner, told.pid, told.start, told.end), (0, 0, 10, 19));
    assert_eq!(two.query(lock(1, Exclusive, 30, 40)), None);
    // Another file is another matter.
    assert_eq!(player(&world, "g").set(lock(9, Exclusive, 0, u64::MAX)), Outcome::Done);
    assert_eq!(one.set(lock(1, Shared, 5, 4)), errno(libc::EINVAL));
    assert_eq!(one.guest.session.counters().locks, 1);
}

#[test]
fn waiting_is_first_come_first_served_and_can_be_cancelled() {
    let world = world();
    let (one, two, three) = (player(&world, "f"), player(&world, "f"), player(&world, "f"));
    let all = |kind| lock(1, kind, 0, u64::MAX);
    assert_eq!(one.set(all(Exclusive)), Outcome::Done);
    let second = two.wait(5, all(Exclusive));
    let third = three.wait(5, all(Shared));
    let fourth = three.wait(6, lock(2, Shared, 0, 9));
    assert!(second.try_recv().is_err() && third.try_recv().is_err());
    assert_eq!(one.set(all(Unlock)), Outcome::Done);
    assert_eq!(second.recv().unwrap(), Outcome::Done);
    assert!(third.try_recv().is_err());
    // Numbers of requests are a session's own.
    assert_eq!(two.guest.ask(&Op::CancelLock { request: 6 }), Outcome::Done);
    assert!(fourth.try_recv().is_err());
    assert_eq!(three.guest.ask(&Op::CancelLock { request: 6 }), Outcome::Done);
    assert_eq!(fourth.recv().unwrap(), errno(libc::EINTR));
    // Down to shared: the next may join.
    assert_eq!(two.set(all(Shared)), Outcome::Done);
    assert_eq!(third.recv().unwrap(), Outcome::Done);
}

#[test]
fn circles_of_waiting_are_refused() {
    let world = world();
    let (one, two, three) = (player(&world, "f"), player(&world, "f"), player(&world, "g"));
    let in_f = player(&world, "f");
    assert_eq!(one.set(lock(1, Exclusive, 0, 0)), Outcome::Done);
    assert_eq!(two.set(lock(1, Exclusive, 1, 1)), Outcome::Done);
    assert_eq!(three.set(lock(1, Exclusive, 0, 0)), Outcome::Done);
    let waits = one.wait(1, lock(1, Exclusive, 1, 1));
    assert_eq!(two.wait(1, lock(1, Exclusive, 0, 0)).recv().unwrap(), errno(libc::EDEADLK));
    // Another owner of the same guest, and a wait that leads nowhere, are no circle.
    let other = two.wait(2, lock(2, Exclusive, 0, 0));
    assert!(other.try_recv().is_err());
    assert_eq!(in_f.set(lock(5, Exclusive, 9, 9)), Outcome::Done);
    assert_eq!(two.set(lock(1, Unlock, 1, 1)), Outcome::Done);
    assert_eq!(waits.recv().unwrap(), Outcome::Done);
    assert_eq!(two.guest.ask(&Op::CancelLock { request: 2 }), Outcome::Done);
    assert_eq!(other.recv().unwrap(), errno(libc::EINTR));
}

#[test]
fn locks_end_with_descriptors_handles_and_sessions() {
    let world = world();
    let (one, two) = (player(&world, "f"), player(&world, "f"));
    let free = || two.query(lock(9, Exclusive, 0, u64::MAX)).is_none();
    let handle = one.handle;
    one.set(lock(1, Exclusive, 0, 9));
    one.set(lock(2, Exclusive, 10, 19));
    assert_eq!(one.guest.ask(&Op::Flush { handle, lock_owner: 1 }), Outcome::Done);
    assert_eq!(two.query(lock(9, Exclusive, 0, u64::MAX)).unwrap().start, 10);
    let second = opened(one.guest.open(one.guest.node(0, "f"), READ));
    assert_eq!(one.guest.ask(&Op::Release { handle, lock_owner: None }), Outcome::Done);
    assert!(!free());
    // With the last handle of the session on the file, whatever is left goes.
    assert_eq!(one.guest.release(second), Outcome::Done);
    assert!(free());

    let one = player(&world, "f");
    one.set(lock(1, Exclusive, 0, 9));
    let waits = one.wait(3, lock(7, Exclusive, 5, 5));
    let theirs = two.wait(3, lock(1, Shared, 0, 0));
    let closed = one.guest.session.close();
    assert_eq!((closed.handles, closed.locks, closed.waiting), (1, 1, 1));
    assert_eq!(waits.recv().unwrap(), Outcome::Failed(Failure::Fenced));
    assert_eq!(theirs.recv().unwrap(), Outcome::Done);
}

/// Closing the last handle takes all locks of the session on the file. One that was taken through another handle, opened meanwhile, is
/// not among them; and one that was asked for through a handle is not had once that is closed.
#[test]
fn closing_takes_no_lock_of_what_is_opened_meanwhile_and_leaves_none_behind() {
    let world = world();
    let (one, two) = (player(&world, "f"), player(&world, "f"));
    one.guest.release(one.handle);
    let node = one.guest.node(0, "f");
    let whole = lock(1, Exclusive, 0, u64::MAX);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                one.guest.release(opened(one.guest.open(node, BOTH)));
            }
        });
        let lost = (0..20_000).find(|_| {
            let handle = opened(one.guest.open(node, BOTH));
            let op = Op::SetLock { handle, lock: whole, wait: false, reclaim: false };
            assert_eq!(one.guest.ask(&op), Outcome::Done);
            let theirs = two.query(lock(9, Exclusive, 0, u64::MAX));
            one.guest.release(handle);
            theirs.is_none()
        });
        ended.store(true, Ordering::Relaxed);
        assert_eq!(lost, None);
    });
    for round in 0..5_000 {
        let handle = opened(one.guest.open(node, BOTH));
        std::thread::scope(|scope| {
            scope.spawn(|| one.guest.release(handle));
            one.guest.ask(&Op::SetLock { handle, lock: whole, wait: false, reclaim: false });
        });
        assert_eq!(two.query(lock(9, Exclusive, 0, u64::MAX)), None, "round {round}");
    }
}

#[test]
fn the_grace_after_a_restart_and_the_bound_of_a_session() {
    let world = world();
    let one = player(&world, "f");
    world.engine.set_lock_grace(true);
    assert_eq!(one.set(lock(1, Shared, 0, 0)), Outcome::Failed(Failure::Grace));
    let reclaim = Op::SetLock { handle: one.handle, lock: lock(1, Shared, 0, 0), wait: false, reclaim: true };
    assert_eq!(one.guest.ask(&reclaim), Outcome::Done);
    assert_eq!(one.set(lock(1, Unlock, 0, 0)), Outcome::Done);
    world.engine.set_lock_grace(false);
    let bounds = SessionBounds { locks: 3, ..SessionBounds::default() };
    let guest = world.bounded(vec![grant("a", "/a", Rights::READ_WRITE)], bounds, &[]);
    let handle = opened(guest.open(guest.node(0, "f"), BOTH));
    let two = Player { guest, handle };
    for n in 0..3 {
        assert_eq!(two.set(lock(1, Exclusive, 10 * n, 10 * n)), Outcome::Done);
    }
    assert_eq!(two.set(lock(1, Exclusive, 100, 100)), Outcome::Failed(Failure::TooMany));
    assert_eq!(two.set(lock(1, Unlock, 10, 10)), Outcome::Done);
    assert_eq!(two.set(lock(1, Exclusive, 100, 100)), Outcome::Done);
}

/// The model: for each of a few bytes, who holds it and how.
#[derive(Default)]
struct Model {
    bytes: [BTreeMap<(usize, u64), bool>; 16],
}

impl Model {
    fn range(lock: &Lock) -> std::ops::RangeInclusive<usize> {
        lock.start as usize..=lock.end.min(15) as usize
    }

    fn set(&mut self, owner: (usize, u64), lock: &Lock) -> bool {
        let blocked = lock.kind != Unlock
            && Model::range(lock).any(|n| {
                let others = self.bytes[n].iter().filter(|(other, _)| **other != owner);
                others.into_iter().any(|(_, exclusive)| *exclusive || lock.kind == Exclusive)
            });
        if !blocked {
            for n in Model::range(lock) {
                self.bytes[n].remove(&owner);
                if lock.kind != Unlock {
                    self.bytes[n].insert(owner, lock.kind == Exclusive);
                }
            }
        }
        !blocked
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Splitting, changing and joining come to the same as one lock for each byte.
    #[test]
    fn ranges_behave_like_bytes(
        steps in prop::collection::vec((0..2_usize, 0..2_u64, 0..3_u8, 0..16_u64, 0..16_u64), 1..80)
    ) {
        let world = world();
        let players = [player(&world, "f"), player(&world, "f")];
        let mut model = Model::default();
        for (who, owner, kind, start, length) in steps {
            let kind = [Shared, Exclusive, Unlock][usize::from(kind)];
            // The last byte stands for all that follow.
            let end = if start + length >= 15 { u64::MAX } else { start + length };
            let asked = lock(owner, kind, start, end);
            let outcome = players[who].set(asked);
            let expected = if model.set((who, owner), &asked) { Outcome::Done } else { errno(AGAIN) };
            prop_assert_eq!(outcome, expected);
            for n in 0..16 {
                for exclusive in [false, true] {
                    let probe = lock(99, if exclusive { Exclusive } else { Shared }, n, n);
                    let free = players[0].query(probe).is_none();
                    let held = &model.bytes[n as usize];
                    prop_assert_eq!(free, held.is_empty() || (!exclusive && !held.values().any(|x| *x)));
                }
            }
        }
    }
}
