//! Locks for which a client answers itself: given only where nobody else could notice, and told before anybody else is answered.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use strongroom_contracts::Rights;
use strongroom_gateway::engine::{Call, LockReply, ReplyBuf, Served};
use strongroom_protocol::attr::{Handle, Lock, LockKind};
use strongroom_protocol::lease::{Lease, What};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Event, Outcome};

use crate::leases::{LONG, Taker, taker, taker_of, world};
use crate::support::*;

use LockKind::{Exclusive, Shared, Unlock};

fn lock(owner: u64, kind: LockKind, start: u64, end: u64) -> Lock {
    Lock { owner, pid: 7, start, end, kind }
}

fn set(handle: Handle, lock: Lock, reclaim: bool) -> Op {
    Op::SetLock { handle, lock, wait: false, reclaim }
}

struct Player {
    taker: Taker,
    handle: Handle,
}

impl std::ops::Deref for Player {
    type Target = Taker;

    fn deref(&self) -> &Taker {
        &self.taker
    }
}

fn player(taker: Taker) -> Player {
    let handle = opened(taker.open(taker.node(0, "f"), BOTH));
    Player { taker, handle }
}

/// Another one, which looks at what the first may have alone.
fn player_beside(world: &World, one: &Player) -> Player {
    let taker = taker(world);
    let guest = taker.guest_copy();
    let opening = std::thread::spawn(move || opened(guest.open(guest.node(0, "f"), BOTH)));
    while !opening.is_finished() {
        one.answer_all();
        std::thread::sleep(Duration::from_millis(1));
    }
    Player { taker, handle: opening.join().unwrap() }
}

impl Player {
    /// Takes a lock; returns whether the client may answer for those of the file from now on.
    fn lock(&self, lock: Lock) -> bool {
        let (outcome, note) = self.noted(&set(self.handle, lock, false));
        assert_eq!(outcome, Outcome::Done);
        note.node == Lease::Exclusive
    }

    /// Tells what the client has answered for itself.
    fn tell(&self, lock: Lock) {
        let (outcome, note) = self.noted(&set(self.handle, lock, true));
        assert_eq!((outcome, note.node), (Outcome::Done, Lease::None));
    }

    fn try_lock(&self, lock: Lock) -> Outcome {
        self.ask(&set(self.handle, lock, false))
    }
}

/// Writes as the first, with everybody answering: then it has the file alone.
fn take_alone(one: &Player, others: &[&Player]) {
    let (guest, handle) = (one.guest_copy(), one.handle);
    let writing = std::thread::spawn(move || guest.write(handle, 0, b"x"));
    while !writing.is_finished() {
        others.iter().for_each(|other| other.answer_all());
        one.answer_all();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(written(writing.join().unwrap()).0, 1);
    others.iter().for_each(|other| other.answer_all());
    one.answer_all();
}

/// Asks on another thread, as the answer may have to wait for others; through the channel also if the lock is waited for.
fn lock_later(guest: Guest, handle: Handle, lock: Lock, wait: bool) -> Receiver<Outcome> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let later = || -> LockReply {
            let sender = sender.clone();
            Box::new(move |outcome| sender.send(outcome).unwrap())
        };
        let admission = guest.turnstile.enter().unwrap();
        let op = Op::SetLock { handle, lock, wait, reclaim: false };
        let call = Call { id: 1, op: &op, data: b"", later: &later, waits: &|| {} };
        match guest.engine.serve(&guest.session, &admission, call, &mut ReplyBuf::new()) {
            Served::Done(done) => sender.send(done.outcome).unwrap(),
            Served::Later => {}
        }
    });
    receiver
}

#[test]
fn only_who_has_the_file_alone_answers_for_its_locks() {
    let world = world(LONG);
    let plain = world.guest(vec![grant("a", "/a", Rights::READ_WRITE)]);
    let handle = opened(plain.open(plain.node(0, "f"), BOTH));
    let (done, _) = plain.done(&set(handle, lock(1, Shared, 0, 0), false), b"");
    assert_eq!((done.outcome, done.note.node), (Outcome::Done, Lease::None), "it takes no leases");
    let one = player(taker(&world));
    assert!(!one.lock(lock(1, Shared, 0, 9)), "another has a lock");
    plain.ask(&set(handle, lock(1, Unlock, 0, 0), false));
    assert!(one.lock(lock(1, Shared, 0, 9)));
    assert!(one.lock(lock(2, Shared, 5, 9)), "its own are no hindrance");
    // Two grants of one session: what is locked through one is another's lock to who answers for the other's.
    let two = [grant("a", "/a", Rights::READ_WRITE), grant("a", "/b", Rights::READ_WRITE)];
    let both = taker_of(&world, two.to_vec(), 1000);
    assert_eq!(one.inbox.try_iter().count(), 0);
    drop(both);
}

#[test]
fn a_lock_of_another_waits_until_it_is_told_what_there_is() {
    let world = world(LONG);
    let one = player(taker(&world));
    let two = player_beside(&world, &one);
    take_alone(&one, &[&two]);
    assert!(one.lock(lock(1, Exclusive, 0, 9)));
    // By itself it has let 0 to 9 go meanwhile, and taken 20 to 29.
    let theirs = lock_later(two.taker.guest_copy(), two.handle, lock(1, Exclusive, 0, 9), false);
    let (id, items) = one.recall();
    assert!(items.iter().all(|item| item.what == What::Shared), "{items:?}");
    assert!(theirs.recv_timeout(Duration::from_millis(50)).is_err());
    one.tell(lock(1, Exclusive, 20, 29));
    one.tell(lock(1, Unlock, 0, 19));
    assert!(theirs.recv_timeout(Duration::from_millis(50)).is_err(), "it may have more to tell");
    one.answer(id);
    assert_eq!(theirs.recv_timeout(LONG).unwrap(), Outcome::Done);
    assert_eq!(two.try_lock(lock(1, Exclusive, 20, 20)), errno(libc::EAGAIN));
    assert!(!one.lock(lock(2, Shared, 50, 50)), "both look at it");
}

#[test]
fn what_is_told_may_come_in_any_order() {
    let world = world(LONG);
    let one = player(taker(&world));
    assert!(one.lock(lock(1, Exclusive, 0, 9)));
    // By itself it has given 0 to 4 from the first owner to the second, and lets both read the rest.
    one.tell(lock(2, Exclusive, 0, 4));
    one.tell(lock(2, Shared, 5, 9));
    one.tell(lock(1, Shared, 5, 9));
    one.tell(lock(1, Unlock, 0, 4));
    assert_eq!(one.try_lock(lock(9, Unlock, u64::MAX, u64::MAX)), Outcome::Done);
    assert_eq!(one.try_lock(lock(3, Shared, 5, 9)), Outcome::Done);
    assert_eq!(one.try_lock(lock(1, Shared, 4, 4)), errno(libc::EAGAIN));
}

#[test]
fn who_does_not_tell_in_time_has_it_all_until_it_does() {
    let world = world(Duration::from_millis(50));
    let one = player(taker(&world));
    let two = player_beside(&world, &one);
    take_alone(&one, &[&two]);
    assert!(one.lock(lock(1, Shared, 0, 9)));
    // Not even what it has told stands in the way, and yet nobody knows what it has answered.
    assert_eq!(two.try_lock(lock(1, Shared, 100, 100)), errno(libc::EAGAIN));
    let asked = Op::GetLock { handle: two.handle, lock: lock(1, Shared, 100, 100) };
    assert!(matches!(two.ask(&asked), Outcome::Locked(Some(_))));
    let waits = lock_later(two.taker.guest_copy(), two.handle, lock(1, Shared, 100, 100), true);
    let far = lock_later(two.taker.guest_copy(), two.handle, lock(2, Exclusive, 20, 20), true);
    assert!(waits.recv_timeout(Duration::from_millis(200)).is_err());
    one.tell(lock(1, Exclusive, 20, 29));
    let lost = one.inbox.try_iter().find_map(|(event, _)| match event {
        Event::LeasesLost { id, .. } => Some(id),
        _ => None,
    });
    one.answer(lost.expect("it was late"));
    assert_eq!(waits.recv_timeout(LONG).unwrap(), Outcome::Done);
    assert!(far.recv_timeout(Duration::from_millis(50)).is_err(), "that one is really held");
    assert_eq!(one.try_lock(lock(1, Unlock, 0, 100)), Outcome::Done);
    assert_eq!(far.recv_timeout(LONG).unwrap(), Outcome::Done);
}

#[test]
fn what_was_answered_for_ends_with_the_session_and_with_being_asked_plainly() {
    let pair = |world: &World| {
        let one = player(taker(world));
        let two = player_beside(world, &one);
        (one, two)
    };
    let alone = |one: &Player, two: &Player| {
        take_alone(one, &[two]);
        assert!(one.lock(lock(1, Shared, 0, 9)));
    };
    let first = world(Duration::from_millis(50));
    let (one, two) = pair(&first);
    alone(&one, &two);
    // Gives it back: from now on everything is at the gateway, and late answers do no harm to locks.
    assert_eq!(one.try_lock(lock(9, Unlock, u64::MAX, u64::MAX)), Outcome::Done);
    assert_eq!(two.try_lock(lock(1, Shared, 100, 100)), Outcome::Done);
    assert_eq!(two.try_lock(lock(1, Unlock, 0, u64::MAX)), Outcome::Done);
    one.taker.answer_all();
    alone(&one, &two);
    // Without a connection it has it all as well, until it has been back or its session is over.
    one.guest().session.left_alone();
    assert_eq!(two.try_lock(lock(1, Shared, 100, 100)), errno(libc::EAGAIN));
    let waits = lock_later(two.taker.guest_copy(), two.handle, lock(1, Shared, 100, 100), true);
    assert!(waits.recv_timeout(Duration::from_millis(100)).is_err());
    assert!(matches!(one.ask(&Op::TakeLeases), Outcome::Terms(_)));
    assert_eq!(waits.recv_timeout(LONG).unwrap(), Outcome::Done);
    // In another world, as this one has had others wait before.
    let second = world(Duration::from_millis(50));
    let (one, two) = pair(&second);
    alone(&one, &two);
    one.guest().session.left_alone();
    let waits = lock_later(two.taker.guest_copy(), two.handle, lock(1, Exclusive, 0, 100), true);
    assert!(waits.recv_timeout(Duration::from_millis(100)).is_err());
    one.guest().session.close();
    assert_eq!(waits.recv_timeout(LONG).unwrap(), Outcome::Done);
}
