//! Writes that are answered before the gateway has them.

use std::sync::mpsc::Receiver;

use super::*;

const FREE: Outcome = Outcome::Statfs(Statfs {
    block_size: 4096,
    blocks: 1 << 20,
    free: 1 << 20,
    files: 0,
    files_free: 0,
    name_max: 255,
});

fn all_written(count: u64) -> Script {
    Ok((Outcome::Written { count, size: 100 }, vec![]))
}

/// What an operation answers, when it does.
pub(super) fn later<T: Send + 'static>(run: impl FnOnce(Box<dyn FnOnce(T) + Send>)) -> Receiver<T> {
    let (tell, told) = mpsc::channel();
    run(Box::new(move |result| tell.send(result).unwrap()));
    told
}

impl Bench {
    /// A file that is open to write, nobody else has anything of it, and there is room.
    fn alone() -> (Bench, u64, u64) {
        let bench = Bench::leased();
        bench.note(1, Lease::Exclusive);
        let root = bench.root(0);
        let number = bench.file(root, 5, b"f");
        let file = bench.open(number, libc::O_RDWR).file;
        // The first write asks how much room there is, and is not answered early.
        bench.answer([Ok((FREE, vec![])), all_written(4)]);
        assert_eq!(bench.write(file, 0).try_recv(), Ok(Ok(4)));
        *bench.carrier.parked.lock() = Some(VecDeque::new());
        (bench, number, file)
    }

    /// The same, with attributes that are known.
    fn alone_and_known() -> (Bench, u64, u64) {
        let (bench, number, file) = Bench::alone();
        let attrs = later(|done| bench.fs.getattr(ME, number, None, done));
        bench.let_go(Ok((Outcome::Attr(Attr { size: 100, ..attr(5, libc::S_IFREG | 0o644) }), vec![])));
        assert!(attrs.try_recv().unwrap().is_ok());
        (bench, number, file)
    }

    fn write(&self, file: u64, offset: u64) -> Receiver<Result<u32, Errno>> {
        later(|done| self.fs.write(ME, file, offset, b"more", done))
    }

    /// Answers the oldest request.
    pub(super) fn let_go(&self, script: Script) {
        let call = self.carrier.parked.lock().as_mut().unwrap().pop_front().expect("nothing was asked");
        self.carrier.give(call, script);
    }
}

#[test]
fn a_write_is_answered_before_it_is_carried_out_and_all_else_waits_for_it() {
    let (bench, number, file) = Bench::alone();
    assert_eq!(bench.write(file, 4).try_recv(), Ok(Ok(4)));
    assert_eq!(bench.write(file, 8).try_recv(), Ok(Ok(4)));
    let asked = bench.asked();
    let overlapping = bench.write(file, 6);
    let attrs = later(|done| bench.fs.getattr(ME, number, None, done));
    let read = later(|done| bench.fs.read(ME, file, 0, 100, move |data| done(data.map(<[u8]>::to_vec))));
    let synced = later(|done| bench.fs.fsync(ME, file, false, done));
    let closed = later(|done| bench.fs.flush(ME, file, 1, done));
    let behind = bench.write(file, 40);
    assert_eq!(bench.asked(), asked, "all of them wait");
    assert!(closed.try_recv().is_err() && behind.try_recv().is_err());
    bench.let_go(all_written(4));
    assert_eq!(bench.asked(), asked, "the other one is under way");
    bench.let_go(all_written(4));
    let went: Vec<Op> = bench.carrier.asked.lock()[asked..].iter().map(|(op, _)| op.clone()).collect();
    assert!(
        matches!(
            went[..],
            [
                Op::Write { offset: 6, .. },
                Op::Getattr { .. },
                Op::Read { .. },
                Op::Fsync { .. },
                Op::Write { offset: 40, .. }
            ]
        ),
        "in the order in which they came: {went:?}"
    );
    assert_eq!(closed.try_recv(), Ok(Ok(())), "nothing is to be told to the gateway");
    bench.let_go(all_written(4));
    assert_eq!(overlapping.try_recv(), Ok(Ok(4)));
    bench.let_go(Ok((Outcome::Attr(attr(5, libc::S_IFREG | 0o644)), vec![])));
    assert!(attrs.try_recv().unwrap().is_ok());
    bench.let_go(Ok((Outcome::Data, b"bytes".to_vec())));
    assert_eq!(read.try_recv(), Ok(Ok(b"bytes".to_vec())));
    bench.let_go(Ok((Outcome::Done, vec![])));
    assert_eq!(synced.try_recv(), Ok(Ok(())));
}

#[test]
fn what_could_not_be_written_is_told_once_by_what_comes_next() {
    for next in ["fsync", "close", "write"] {
        let (bench, _, file) = Bench::alone();
        assert_eq!(bench.write(file, 4).try_recv(), Ok(Ok(4)));
        bench.let_go(Ok((Outcome::Written { count: 1, size: 5 }, vec![])));
        let told = match next {
            "fsync" => later(|done| bench.fs.fsync(ME, file, false, done)).try_recv(),
            "close" => later(|done| bench.fs.flush(ME, file, 1, done)).try_recv(),
            _ => bench.write(file, 8).try_recv().map(|result| result.map(drop)),
        };
        assert_eq!(told, Ok(Err(Errno::ENOSPC)), "{next}");
        assert_eq!(later(|done| bench.fs.flush(ME, file, 1, done)).try_recv(), Ok(Ok(())), "{next}: once");
        assert_eq!(bench.write(file, 8).try_recv(), Ok(Ok(4)), "{next}: later operations work");
    }
}

#[test]
fn a_contract_that_ends_is_told_of_by_what_comes_next() {
    let (bench, _, file) = Bench::alone();
    assert_eq!(bench.write(file, 4).try_recv(), Ok(Ok(4)));
    let closed = later(|done| bench.fs.flush(ME, file, 1, done));
    bench.let_go(Err(Ended::Void));
    assert_eq!(closed.try_recv(), Ok(Err(Errno::EACCES)));
}

#[test]
fn without_an_exclusive_lease_nothing_is_answered_early() {
    let (bench, _, file) = Bench::alone();
    assert_eq!(bench.write(file, 4).try_recv(), Ok(Ok(4)));
    // Somebody else wants to read: what is under way is to be waited for, and nothing more is begun.
    let drop = bench.recall(9, 5, What::Shared);
    let node = Node { grant: 0, ino: 5 };
    assert_eq!(drop.write, [node]);
    assert!(bench.state.behind.busy(node));
    let next = bench.write(file, 8);
    bench.let_go(all_written(4));
    assert!(!bench.state.behind.busy(node));
    assert!(next.try_recv().is_err());
    bench.let_go(all_written(4));
    assert_eq!(next.try_recv(), Ok(Ok(4)));
}

#[test]
fn appends_synchronous_files_and_what_there_is_no_room_for_are_answered_when_they_are_written() {
    let (bench, number, file) = Bench::alone();
    *bench.carrier.parked.lock() = None;
    let others = [libc::O_APPEND, libc::O_DSYNC].map(|flag| bench.open(number, libc::O_RDWR | flag).file);
    *bench.carrier.parked.lock() = Some(VecDeque::new());
    for other in others {
        let written = bench.write(other, 4);
        assert!(written.try_recv().is_err());
        bench.let_go(all_written(4));
        assert_eq!(written.try_recv(), Ok(Ok(4)));
    }
    bench.state.behind.learn_room(0, 1 << 20, Instant::now());
    let written = bench.write(file, 4);
    assert!(written.try_recv().is_err(), "less than the margin is left");
    bench.let_go(all_written(4));
    assert_eq!(written.try_recv(), Ok(Ok(4)));
}

fn at(secs: u64) -> Option<fuser::TimeOrNow> {
    Some(fuser::TimeOrNow::SpecificTime(std::time::UNIX_EPOCH + std::time::Duration::from_secs(secs)))
}

#[test]
fn mode_and_times_of_what_is_being_written_are_changed_behind_it_in_one_request() {
    let (bench, number, file) = Bench::alone_and_known();
    let set = |change| later(|done| bench.fs.setattr(ME, number, None, change, done));
    assert_eq!(bench.write(file, 40).try_recv(), Ok(Ok(4)));
    let asked = bench.asked();
    let times = set(Change { mtime: at(77), ..Change::default() }).try_recv().unwrap().unwrap();
    assert_eq!((times.attr.size, times.ttl), (100, std::time::Duration::ZERO));
    assert_eq!(times.attr.mtime, std::time::UNIX_EPOCH + std::time::Duration::from_secs(77));
    let mode = set(Change { mode: Some(0o100640), ..Change::default() }).try_recv().unwrap().unwrap();
    assert_eq!(mode.attr.perm, 0o640);
    assert!(set(Change::default()).try_recv().unwrap().is_ok(), "to change nothing is not waited for either");
    assert_eq!(bench.asked(), asked, "after the write");
    let closed = later(|done| bench.fs.flush(ME, file, 1, done));
    let attrs = later(|done| bench.fs.getattr(ME, number, None, done));
    bench.let_go(all_written(4));
    let last = bench.carrier.asked.lock().last().map(|(op, _)| op.clone());
    let Some(Op::Setattr { set, .. }) = last else { panic!("{last:?}") };
    let time = SetTime::At(Time { secs: 77, nanos: 0 });
    assert_eq!((set.mode, set.mtime, set.atime), (Some(0o640), Some(time), None));
    assert!(attrs.try_recv().is_err(), "what is told is the gateway's");
    assert!(closed.try_recv().is_err(), "closing tells of a failure");
    bench.let_go(Ok((Outcome::Attr(attr(5, libc::S_IFREG | 0o640)), vec![])));
    assert_eq!(bench.asked(), asked + 1, "its answer has told them");
    assert_eq!(attrs.try_recv().unwrap().unwrap().attr.perm, 0o640);
    assert_eq!(closed.try_recv(), Ok(Ok(())));
}

#[test]
fn attributes_that_could_not_be_changed_are_told_of_by_what_comes_next() {
    let (bench, number, file) = Bench::alone_and_known();
    let change = Change { mode: Some(0o640), ..Change::default() };
    assert_eq!(bench.write(file, 4).try_recv(), Ok(Ok(4)));
    assert!(later(|done| bench.fs.setattr(ME, number, None, change, done)).try_recv().unwrap().is_ok());
    bench.let_go(all_written(4));
    bench.let_go(Ok((Outcome::Failed(Failure::Errno(libc::EIO as u16)), vec![])));
    let synced = later(|done| bench.fs.fsync(ME, file, false, done));
    assert_eq!(synced.try_recv(), Ok(Err(Errno::EIO)));
}

#[test]
fn owners_sizes_and_what_nobody_writes_are_changed_before_the_answer() {
    let (bench, number, file) = Bench::alone();
    assert_eq!(bench.write(file, 4).try_recv(), Ok(Ok(4)));
    for change in [
        Change { size: Some(1), ..Change::default() },
        Change { uid: Some(7), ..Change::default() },
        Change { mode: Some(0o104755), ..Change::default() },
    ] {
        assert!(later(|done| bench.fs.setattr(ME, number, None, change, done)).try_recv().is_err());
    }
    let (bench, number, file) = Bench::alone();
    assert_eq!(later(|done| bench.fs.flush(ME, file, 1, done)).try_recv(), Ok(Ok(())));
    let released = later(|done| bench.fs.release(ME, file, None, done));
    bench.let_go(Ok((Outcome::Done, vec![])));
    assert_eq!(released.try_recv(), Ok(Ok(())));
    let change = Change { mode: Some(0o640), ..Change::default() };
    assert!(later(|done| bench.fs.setattr(ME, number, None, change, done)).try_recv().is_err());
}

#[test]
fn what_is_losing_its_name_is_not_opened_without_the_gateway() {
    let bench = Bench::leased();
    bench.note(1, Lease::Shared);
    let root = bench.root(0);
    let (old, _) = (bench.file(root, 5, b"f"), bench.file(root, 6, b"g"));
    bench.open_known(old);
    for how in ["rename", "unlink"] {
        let (bench, asked) = (&bench, bench.asked());
        *bench.carrier.parked.lock() = Some(VecDeque::new());
        let gone = later(|done| match how {
            "rename" => bench.fs.rename(ME, (root, b"g"), (root, b"f"), RenameFlags::empty(), done),
            _ => bench.fs.unlink(ME, root, b"f", done),
        });
        // What is open of it is opened at the gateway first; after that it goes.
        while bench.carrier.parked.lock().as_ref().unwrap().len() == 1
            && matches!(bench.last_asked(), Op::Open { .. })
        {
            bench.let_go(Ok((Outcome::Opened(Handle(1), attr(5, libc::S_IFREG | 0o644)), vec![])));
        }
        assert!(bench.asked() > asked && gone.try_recv().is_err());
        let opened = later(|done| bench.fs.open(ME, old, libc::O_RDONLY, done));
        assert!(opened.try_recv().is_err(), "{how}: the gateway is asked");
        assert!(matches!(bench.last_asked(), Op::Open { .. }));
        // It comes too late, and nothing is removed.
        bench.let_go(Ok((Outcome::Failed(Failure::Errno(libc::EIO as u16)), vec![])));
        bench.let_go(Ok((Outcome::Failed(Failure::Errno(libc::EIO as u16)), vec![])));
        assert!(gone.try_recv().unwrap().is_err() && opened.try_recv().unwrap().is_err());
        *bench.carrier.parked.lock() = None;
        bench.outcome(Outcome::Attr(attr(5, libc::S_IFREG | 0o644)));
        bench.getattr(old).unwrap();
        let asked = bench.asked();
        bench.open_known(old);
        assert_eq!(bench.asked(), asked, "{how}: afterwards it is as before");
    }
}
