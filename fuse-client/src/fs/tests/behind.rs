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
