//! Locks that are answered without asking the gateway.

use std::sync::mpsc::Receiver;

use super::behind::later;
use super::*;
use crate::telling;

fn range(start: u64, end: u64, kind: i32) -> LockRange {
    LockRange { start, end, kind, pid: 9 }
}

impl Bench {
    /// A file that is open to write, of which nobody else has anything.
    fn locking() -> (Bench, u64) {
        let bench = Bench::leased();
        bench.note(1, Lease::Exclusive);
        let root = bench.root(0);
        let number = bench.file(root, 5, b"f");
        let file = bench.open(number, libc::O_RDWR).file;
        (bench, file)
    }

    fn setlk(&self, file: u64, owner: u64, range: LockRange, wait: bool) -> Receiver<Result<(), Errno>> {
        later(|done| self.fs.setlk(ME, file, owner, range, wait, done))
    }

    fn went(&self, from: usize) -> Vec<Op> {
        self.carrier.asked.lock()[from..].iter().map(|(op, _)| op.clone()).collect()
    }

    fn tell(&self, last: bool) -> Receiver<Result<(), Errno>> {
        let carrier = self.carrier.clone();
        let submit: opening::Submit = Arc::new(move |call| carrier.submit(call));
        let node = Node { grant: 0, ino: 5 };
        later(|done| telling::tell(&submit, &self.state, (node, last), 0, done))
    }
}

#[test]
fn the_first_lock_is_the_gateways_and_the_rest_cost_nothing_until_it_must_know() {
    let (bench, file) = Bench::locking();
    bench.outcome(Outcome::Done);
    assert_eq!(bench.setlk(file, 1, range(0, 0, libc::F_RDLCK), false).try_recv(), Ok(Ok(())));
    let asked = bench.asked();
    assert_eq!(bench.setlk(file, 1, range(2, 9, libc::F_WRLCK), true).try_recv(), Ok(Ok(())));
    assert_eq!(bench.setlk(file, 1, range(0, 0, libc::F_UNLCK), false).try_recv(), Ok(Ok(())));
    assert_eq!(bench.setlk(file, 2, range(9, 9, libc::F_RDLCK), false).try_recv(), Ok(Err(Errno::EAGAIN)));
    let found = wait(|done| bench.fs.getlk(ME, file, 2, range(0, 20, libc::F_RDLCK), done)).unwrap();
    assert_eq!((found.start, found.end, found.kind), (2, 9, libc::F_WRLCK));
    assert_eq!(bench.setlk(file, 2, range(0, 1, libc::F_RDLCK), false).try_recv(), Ok(Ok(())));
    wait(|done| bench.fs.flush(ME, file, 2, done)).unwrap();
    assert_eq!(bench.asked(), asked, "all of that is answered here");
    // Whoever waits does so at the gateway, which is told first.
    *bench.carrier.parked.lock() = Some(VecDeque::new());
    let waits = bench.setlk(file, 2, range(9, 9, libc::F_WRLCK), true);
    let joins = bench.setlk(file, 3, range(50, 50, libc::F_WRLCK), false);
    for _ in 0..3 {
        assert!(waits.try_recv().is_err() && joins.try_recv().is_err());
        bench.let_go(Ok((Outcome::Done, vec![])));
    }
    let went = bench.went(asked);
    let told: Vec<_> = went
        .iter()
        .map(|op| match op {
            Op::SetLock { lock, wait, reclaim, .. } => {
                (lock.owner, lock.start, lock.end, lock.kind, *wait, *reclaim)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        told,
        [
            (1, 2, 9, LockKind::Exclusive, false, true),
            (1, 0, 1, LockKind::Unlock, false, true),
            (1, 10, u64::MAX, LockKind::Unlock, false, true),
            (2, 9, 9, LockKind::Exclusive, true, false),
            (3, 50, 50, LockKind::Exclusive, false, false),
        ]
    );
    bench.let_go(Ok((Outcome::Done, vec![])));
    bench.let_go(Ok((Outcome::Done, vec![])));
    assert_eq!((waits.try_recv(), joins.try_recv()), (Ok(Ok(())), Ok(Ok(()))));
    assert!(bench.state.locks.lock().kept().is_empty(), "nobody knows which of them was carried out last");
    *bench.carrier.parked.lock() = None;
    bench.outcome(Outcome::Done);
    assert_eq!(bench.setlk(file, 3, range(50, 50, libc::F_UNLCK), false).try_recv(), Ok(Ok(())));
    assert_eq!(bench.state.locks.lock().kept().len(), 1);
}

#[test]
fn an_answer_from_before_a_recall_lets_nothing_be_kept() {
    let (bench, file) = Bench::locking();
    *bench.carrier.parked.lock() = Some(VecDeque::new());
    let lock = bench.setlk(file, 1, range(0, 0, libc::F_WRLCK), false);
    bench.recall(2, 5, What::Shared);
    // An answer to something else, from after it: the lease is exclusive again.
    {
        let mut table = bench.state.leases.table();
        let note = Note { stamp: 3, node: Lease::Exclusive, names: true, after: None };
        let heard = Heard { asked: table.ask(Instant::now()), life: 1, note };
        let node = Node { grant: 0, ino: 5 };
        table.learn(&heard, node, Lease::Exclusive, &attr(5, libc::S_IFREG | 0o644), false);
        assert!(table.is_exclusive(node));
    }
    let mut parked = bench.carrier.parked.lock().take().unwrap();
    bench.note(1, Lease::Exclusive);
    bench.carrier.give(parked.pop_front().unwrap(), Ok((Outcome::Done, vec![])));
    assert_eq!(lock.try_recv(), Ok(Ok(())));
    assert!(bench.state.locks.lock().kept().is_empty());
    bench.note(4, Lease::Exclusive);
    bench.outcome(Outcome::Done);
    assert_eq!(bench.setlk(file, 1, range(5, 5, libc::F_WRLCK), false).try_recv(), Ok(Ok(())));
    assert_eq!(bench.state.locks.lock().kept().len(), 1);
}

#[test]
fn a_lock_that_the_gateway_will_not_have_is_lost_with_what_is_open() {
    let (bench, file) = Bench::locking();
    bench.outcome(Outcome::Done);
    bench.setlk(file, 1, range(0, 0, libc::F_RDLCK), false);
    bench.setlk(file, 1, range(5, 5, libc::F_WRLCK), false);
    let asked = bench.asked();
    bench.answer([
        Ok((Outcome::Done, vec![])),
        Err(Ended::Failed(Failure::Errno(libc::EAGAIN as u16))),
        Ok((Outcome::Done, vec![])),
        Ok((Outcome::Done, vec![])),
        Ok((Outcome::Done, vec![])),
    ]);
    assert_eq!(bench.tell(true).try_recv(), Ok(Ok(())));
    assert!(bench.asked() > asked);
    assert!(bench.state.locks.lock().through(file).is_empty());
    assert_eq!(bench.state.handles.lock().get(file).unwrap().wire.lock().dead, Some(Errno::EIO));
}

#[test]
fn with_the_last_descriptor_nothing_is_kept_and_what_is_idle_is_given_back() {
    let (bench, file) = Bench::locking();
    bench.outcome(Outcome::Done);
    bench.setlk(file, 1, range(0, 0, libc::F_RDLCK), false);
    let asked = bench.asked();
    bench.outcome(Outcome::Done);
    assert_eq!(bench.tell(true).try_recv(), Ok(Ok(())));
    // The gateway knows what there is, and hears that it is to answer.
    assert!(matches!(
        bench.went(asked)[..],
        [Op::SetLock { lock: Lock { kind: LockKind::Unlock, start: u64::MAX, .. }, reclaim: false, .. }]
    ));
    assert!(bench.state.locks.lock().kept().is_empty());
    bench.outcome(Outcome::Done);
    bench.setlk(file, 1, range(7, 7, libc::F_RDLCK), false);
    assert_eq!(bench.state.locks.lock().kept().len(), 1);
    let asked = bench.asked();
    wait(|done| bench.fs.flush(ME, file, 1, done)).unwrap();
    bench.outcome(Outcome::Done);
    bench.outcome(Outcome::Done);
    wait(|done| bench.fs.release(ME, file, None, done)).unwrap();
    // Of the lock that the gateway knows it is told first: somebody may be opening the file anew.
    let went = bench.went(asked);
    let [Op::SetLock { handle, lock, wait: false, reclaim: true }, Op::Release { handle: closed, .. }] =
        went[..]
    else {
        panic!("{went:?}")
    };
    assert_eq!((handle, closed), (Handle(file), Handle(file)));
    assert_eq!((lock.owner, lock.start, lock.end, lock.kind), (1, 0, u64::MAX, LockKind::Unlock));
    assert!(bench.state.locks.lock().kept().is_empty());
}
