//! The file system over a carrier that answers from a script: no kernel, no mount, no gateway.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod behind;
mod locks;

use std::collections::VecDeque;
use std::sync::mpsc;

use fuser::{FopenFlags, RenameFlags};
use parking_lot::Mutex;
use strongroom_contracts::Rights;
use strongroom_protocol::attr::{Lock, LockKind, SetTime, Time};
use strongroom_protocol::hello::GrantInfo;
use strongroom_protocol::lease::{Lease, LeaseTerms, Note, What};
use strongroom_protocol::op::Meant;
use strongroom_protocol::readdir::{self, DirEntry};
use strongroom_protocol::reply::Failure;

use super::*;
use crate::lease::Drop;

const ME: Caller = Caller { uid: 1000, gid: 1000, pid: 1 };
const SHOWN: Owner = Owner { uid: 1000, gid: 100 };

/// An answer: the outcome, and the frame's data.
type Script = Result<(Outcome, Vec<u8>), Ended>;

#[derive(Default)]
struct Scripted {
    answers: Mutex<VecDeque<Script>>,
    asked: Mutex<Vec<(Op, Vec<u8>)>>,
    barred: Mutex<Option<Ended>>,
    /// What every answer says about leases.
    note: Mutex<Note>,
    /// What was asked ahead, and is not answered yet.
    ahead: Mutex<VecDeque<Call>>,
    /// Requests that are not answered yet, while that is wanted.
    parked: Mutex<Option<VecDeque<Call>>>,
}

impl Carrier for Scripted {
    fn submit(&self, call: Call) {
        if call.pid == 0 && matches!(call.op, Op::List { .. } | Op::ReadFiles { .. }) {
            return self.ahead.lock().push_back(call);
        }
        self.asked.lock().push((call.op.clone(), call.data.bytes().to_vec()));
        if let Some(parked) = &mut *self.parked.lock() {
            return parked.push_back(call);
        }
        let answer = self.answers.lock().pop_front().expect("asked more than the script answers");
        self.give(call, answer);
    }

    fn is_up(&self) -> bool {
        true
    }

    fn barred(&self) -> Option<Ended> {
        *self.barred.lock()
    }
}

impl Scripted {
    fn give(&self, call: Call, answer: Script) {
        let note = *self.note.lock();
        match answer {
            Ok((outcome, data)) => (call.done)(Ok(Answer { outcome, data: &data, epoch: 1, note, life: 1 })),
            Err(ended) => (call.done)(Err(ended)),
        }
    }
}

struct Bench {
    carrier: Arc<Scripted>,
    state: Arc<State>,
    fs: Fs,
}

fn grant(mount: &str, ownership: Ownership) -> GrantInfo {
    let root = Some(attr(100, libc::S_IFDIR | 0o755));
    let rights = Rights::READ_WRITE;
    GrantInfo { mount: mount.parse().unwrap(), rights, ownership, max_file_bytes: None, root }
}

impl Bench {
    /// `/Mail` (single) and `/home/Photos` (preserve).
    fn new() -> Bench {
        let carrier = Arc::new(Scripted::default());
        let state = Arc::new(State::default());
        state.welcome(vec![grant("/Mail", Ownership::Single), grant("/home/Photos", Ownership::Preserve)]);
        let fs = Fs::new(carrier.clone(), state.clone(), SHOWN);
        Bench { carrier, state, fs }
    }

    /// The same, where every answer comes with a lease.
    fn leased() -> Bench {
        let bench = Bench::new();
        let terms = LeaseTerms { keep_ms: 3_600_000, recall_ms: 1000, most: 10_000 };
        bench.state.leases.table().terms(1, 0, &terms);
        bench.note(1, Lease::Shared);
        bench
    }

    fn note(&self, stamp: u64, node: Lease) {
        *self.carrier.note.lock() = Note { stamp, node, names: node != Lease::None, after: None };
    }

    fn recall(&self, stamp: u64, ino: u64, what: What) -> Drop {
        let mut drop = Drop::default();
        let node = Node { grant: 0, ino };
        self.state.leases.table().recall(stamp, node, &what, Instant::now(), &mut drop);
        drop
    }

    fn getattr(&self, number: u64) -> Result<Attrs, Errno> {
        wait(|done| self.fs.getattr(ME, number, None, done))
    }

    fn open_known(&self, number: u64) -> u64 {
        wait(|done| self.fs.open(ME, number, libc::O_RDONLY, done)).unwrap().file
    }

    fn read(&self, file: u64) -> Result<Vec<u8>, Errno> {
        wait(|done| self.fs.read(ME, file, 0, 100, move |data| done(data.map(<[u8]>::to_vec))))
    }

    fn answer(&self, script: impl IntoIterator<Item = Script>) {
        self.carrier.answers.lock().extend(script);
    }

    fn outcome(&self, outcome: Outcome) {
        self.answer([Ok((outcome, vec![]))]);
    }

    fn last_asked(&self) -> Op {
        self.carrier.asked.lock().last().expect("nothing was asked").0.clone()
    }

    fn asked(&self) -> usize {
        self.carrier.asked.lock().len()
    }

    /// Looks up a grant's root.
    fn root(&self, grant: u16) -> u64 {
        self.outcome(Outcome::Entry(entry_of(grant, 100, libc::S_IFDIR | 0o755)));
        let (parent, name) = match grant {
            0 => (ROOT, &b"Mail"[..]),
            _ => (self.lookup(ROOT, b"home").unwrap().attr.ino.0, &b"Photos"[..]),
        };
        self.lookup(parent, name).unwrap().attr.ino.0
    }

    fn root_again(&self) -> u64 {
        self.lookup(ROOT, b"Mail").unwrap().attr.ino.0
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Told, Errno> {
        wait(|done| self.fs.lookup(ME, parent, name, done))
    }

    fn file(&self, root: u64, ino: u64, name: &[u8]) -> u64 {
        self.outcome(Outcome::Entry(entry_of(0, ino, libc::S_IFREG | 0o644)));
        self.lookup(root, name).unwrap().attr.ino.0
    }

    fn open(&self, number: u64, flags: i32) -> Opened {
        self.outcome(Outcome::Opened(Handle(70), attr(number & 0xffff, libc::S_IFREG | 0o644)));
        wait(|done| self.fs.open(ME, number, flags, done)).unwrap()
    }
}

/// Runs an operation whose `done` gets something that can be sent; it must have been called by now.
fn wait<T: Send + 'static>(run: impl FnOnce(Box<dyn FnOnce(T) + Send>)) -> T {
    let (tell, told) = mpsc::channel();
    run(Box::new(move |result| tell.send(result).unwrap()));
    told.try_recv().expect("`done` was not called")
}

fn attr(ino: u64, mode: u32) -> Attr {
    let time = Time { secs: 5, nanos: 0 };
    Attr {
        ino,
        generation: 3,
        mode,
        nlink: 1,
        uid: 7,
        gid: 8,
        rdev: 0,
        blksize: 4096,
        size: 10,
        blocks: 8,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    }
}

fn entry_of(grant: u16, ino: u64, mode: u32) -> Entry {
    Entry { node: Node { grant, ino }, attr: attr(ino, mode) }
}

#[derive(Default)]
struct Page {
    entries: Vec<(u64, u64, Vec<u8>)>,
    result: Option<Result<(), Errno>>,
}

struct Collect<const WITH: bool> {
    page: Page,
    room: usize,
    tell: mpsc::Sender<Page>,
}

impl<const WITH: bool> Sink for Collect<WITH> {
    const PLUS: bool = WITH;

    fn add(&mut self, entry: &DirOut<'_>) -> bool {
        if self.page.entries.len() == self.room {
            return true;
        }
        self.page.entries.push((entry.number, entry.offset, entry.name.to_vec()));
        false
    }

    fn finish(mut self, result: Result<(), Errno>) {
        self.page.result = Some(result);
        self.tell.send(self.page).unwrap();
    }
}

fn list<const WITH: bool>(bench: &Bench, number: u64, file: u64, offset: u64, room: usize) -> Page {
    let (tell, told) = mpsc::channel();
    let sink = Collect::<WITH> { page: Page::default(), room, tell };
    bench.fs.readdir(ME, number, file, offset, sink);
    told.try_recv().expect("the listing was not finished")
}

fn names(page: &Page) -> Vec<String> {
    page.entries.iter().map(|(.., name)| String::from_utf8(name.clone()).unwrap()).collect()
}

#[test]
fn the_skeleton_needs_no_gateway_and_takes_no_changes() {
    let bench = Bench::new();
    let home = bench.lookup(ROOT, b"home").unwrap();
    assert_eq!((home.attr.perm, home.attr.kind, home.attr.uid), (0o555, FileType::Directory, 1000));
    assert_eq!(bench.lookup(ROOT, b"other"), Err(Errno::ENOENT));
    assert_eq!(bench.lookup(home.attr.ino.0, b"Mail"), Err(Errno::ENOENT));
    let denied = [
        wait(|done| bench.fs.mkdir(ME, ROOT, b"x", 0o755, done)).err(),
        wait(|done| bench.fs.unlink(ME, ROOT, b"Mail", done)).err(),
        wait(|done| bench.fs.rmdir(ME, ROOT, b"home", done)).err(),
        wait(|done| bench.fs.symlink(ME, home.attr.ino.0, b"x", b"y", done)).err(),
        wait(|done| bench.fs.create(ME, (ROOT, b"x"), 0o644, libc::O_RDWR, done)).err(),
        wait(|done| {
            bench.fs.setattr(ME, ROOT, None, Change { mode: Some(0o777), ..Change::default() }, done)
        })
        .err(),
        wait(|done| bench.fs.rename(ME, (ROOT, b"Mail"), (ROOT, b"m"), RenameFlags::empty(), done)).err(),
    ];
    assert_eq!(denied, [Some(Errno::EACCES); 7]);
    assert_eq!(bench.asked(), 0);
}

#[test]
fn listing_the_skeleton_can_be_taken_up_anywhere() {
    let bench = Bench::new();
    let all = list::<false>(&bench, ROOT, 0, 0, 99);
    assert_eq!(names(&all), [".", "..", "Mail", "home"]);
    for (position, (_, offset, _)) in all.entries.iter().enumerate() {
        let rest = list::<false>(&bench, ROOT, 0, *offset, 99);
        assert_eq!(names(&rest), &names(&all)[position + 1..]);
    }
    assert_eq!(names(&list::<false>(&bench, ROOT, 0, u64::MAX, 99)), [""; 0]);
}

#[test]
fn a_void_contract_shows_no_names_but_keeps_directories_alive() {
    let bench = Bench::new();
    *bench.carrier.barred.lock() = Some(Ended::Void);
    assert_eq!(bench.lookup(ROOT, b"home"), Err(Errno::EACCES));
    assert_eq!(wait(|done| bench.fs.opendir(ME, ROOT, done)), Err(Errno::EACCES));
    assert_eq!(list::<false>(&bench, ROOT, 0, 0, 9).result, Some(Err(Errno::EACCES)));
    assert!(wait(|done| bench.fs.getattr(ME, ROOT, None, done)).is_ok());
}

#[test]
fn the_root_of_a_grant_is_asked_for_whatever_it_is_now() {
    let bench = Bench::new();
    let number = bench.root(1);
    assert_eq!(bench.last_asked(), Op::Resolve { grant: 1, ino: 0 });
    assert_eq!(number, 2 << 48 | 100);
    bench.answer([Err(Ended::Failed(Failure::Errno(libc::ENOENT as u16)))]);
    assert_eq!(bench.lookup(ROOT, b"Mail"), Err(Errno::ENOENT));
}

#[test]
fn owners_are_shown_as_the_grant_says() {
    let bench = Bench::new();
    let single = bench.root(0);
    let preserve = bench.root(1);
    bench.outcome(Outcome::Attr(attr(100, libc::S_IFDIR | 0o755)));
    assert_eq!(wait(|done| bench.fs.getattr(ME, single, None, done)).unwrap().attr.uid, 1000);
    bench.outcome(Outcome::Attr(attr(100, libc::S_IFDIR | 0o755)));
    assert_eq!(wait(|done| bench.fs.getattr(ME, preserve, None, done)).unwrap().attr.uid, 7);
}

#[test]
fn giving_a_file_to_its_shown_owner_is_no_change() {
    let bench = Bench::new();
    let root = bench.root(0);
    let file = bench.file(root, 5, b"f");
    bench.outcome(Outcome::Attr(attr(5, libc::S_IFREG | 0o644)));
    let change = Change { uid: Some(1000), gid: Some(100), ..Change::default() };
    wait(|done| bench.fs.setattr(ME, file, None, change, done)).unwrap();
    assert!(matches!(bench.last_asked(), Op::Getattr { .. }));
    bench.outcome(Outcome::Attr(attr(5, libc::S_IFREG | 0o644)));
    let change = Change { uid: Some(1001), ..Change::default() };
    wait(|done| bench.fs.setattr(ME, file, None, change, done)).unwrap();
    assert!(matches!(bench.last_asked(), Op::Setattr { set: SetAttr { uid: Some(1001), .. }, .. }));
}

#[test]
fn failures_become_error_numbers() {
    let bench = Bench::new();
    let root = bench.root(0);
    for (failure, errno) in [
        (Failure::Denied { missing: Rights::READ_ONLY }, Errno::EACCES),
        (Failure::Quota, Errno::EDQUOT),
        (Failure::CrossGrant, Errno::EXDEV),
        (Failure::Stale, Errno::ESTALE),
        (Failure::TooMany, Errno::ENFILE),
    ] {
        bench.answer([Err(Ended::Failed(failure))]);
        assert_eq!(bench.lookup(root, b"x"), Err(errno));
    }
    assert_eq!(bench.lookup(root, &[b'a'; 256]), Err(Errno::ENAMETOOLONG));
    bench.outcome(Outcome::Done);
    assert_eq!(bench.lookup(root, b"x"), Err(Errno::EIO), "an answer to another question");
}

#[test]
fn grants_are_different_file_systems() {
    let bench = Bench::new();
    let (mail, photos) = (bench.root(0), bench.root(1));
    let file = bench.file(mail, 5, b"f");
    let before = bench.asked();
    let moved = wait(|done| bench.fs.rename(ME, (mail, b"f"), (photos, b"f"), RenameFlags::empty(), done));
    assert_eq!(moved, Err(Errno::EXDEV));
    assert_eq!(wait(|done| bench.fs.link(ME, file, photos, b"f", done)).err(), Some(Errno::EXDEV));
    let flags = RenameFlags::RENAME_WHITEOUT;
    assert_eq!(wait(|done| bench.fs.rename(ME, (mail, b"f"), (mail, b"g"), flags, done)), Err(Errno::EINVAL));
    assert_eq!(bench.asked(), before);
}

#[test]
fn paths_follow_what_is_done() {
    let bench = Bench::new();
    let root = bench.root(0);
    let file = bench.file(root, 5, b"f");
    let node = bench.state.nodes.lock().node(file).unwrap();
    bench.outcome(Outcome::Done);
    wait(|done| bench.fs.rename(ME, (root, b"f"), (root, b"g"), RenameFlags::empty(), done)).unwrap();
    assert_eq!(bench.state.path(node).unwrap(), b"g");
    bench.answer([Err(Ended::Failed(Failure::Errno(libc::EACCES as u16)))]);
    wait(|done| bench.fs.unlink(ME, root, b"g", done)).unwrap_err();
    assert_eq!(bench.state.path(node).unwrap(), b"g", "it is still there");
    bench.outcome(Outcome::Done);
    wait(|done| bench.fs.unlink(ME, root, b"g", done)).unwrap();
    assert_eq!(bench.state.path(node), Err(Errno::ESTALE));
}

#[test]
fn a_directory_that_is_to_lose_its_name_is_the_one_that_the_kernel_was_told_of_last() {
    let bench = Bench::new();
    let root = bench.root(0);
    let rmdir = |name: &'static [u8]| wait(|done| bench.fs.rmdir(ME, root, name, done));
    let rename = |from: &'static [u8], to: &'static [u8]| {
        wait(|done| bench.fs.rename(ME, (root, from), (root, to), RenameFlags::empty(), done))
    };
    for ino in [5, 6, 5] {
        bench.outcome(Outcome::Entry(entry_of(0, ino, libc::S_IFDIR | 0o755)));
        bench.lookup(root, b"d").unwrap();
        bench.answer([Err(Ended::Failed(Failure::Stale)), Err(Ended::Failed(Failure::Stale))]);
        assert_eq!((rmdir(b"d"), rename(b"other", b"d")), (Err(Errno::ESTALE), Err(Errno::ESTALE)));
        let asked: Vec<Op> =
            bench.carrier.asked.lock().iter().rev().take(2).map(|(op, _)| op.clone()).collect();
        let meant = Meant::Inode(ino);
        assert!(
            matches!(&asked[..], [Op::Rename { directory: one, .. }, Op::Rmdir { directory: other, .. }] if [one, other] == [&meant; 2]),
            "{asked:?}"
        );
    }
    let before = bench.asked();
    assert_eq!(rmdir(b"never told"), Err(Errno::ESTALE));
    assert_eq!(rename(b"d", b"d"), Err(Errno::ESTALE), "two nodes by one name");
    assert_eq!(bench.asked(), before);
    bench.outcome(Outcome::Done);
    rename(b"d", b"free").unwrap();
    assert!(matches!(bench.last_asked(), Op::Rename { directory: Meant::Nothing, .. }));
}

#[test]
fn appending_handles_bypass_the_page_cache() {
    let bench = Bench::new();
    let root = bench.root(0);
    let file = bench.file(root, 5, b"f");
    assert_eq!(bench.open(file, libc::O_RDWR).flags, FopenFlags::empty());
    assert_eq!(bench.open(file, libc::O_WRONLY | libc::O_APPEND).flags, FopenFlags::FOPEN_DIRECT_IO);
    assert_eq!(bench.open(file, libc::O_RDONLY | libc::O_APPEND).flags, FopenFlags::empty());
}

#[test]
fn a_file_without_a_name_is_reached_through_its_handle() {
    let bench = Bench::new();
    let root = bench.root(0);
    let file = bench.file(root, 5, b"f");
    let open = bench.open(file, libc::O_RDONLY);
    bench.outcome(Outcome::Attr(attr(5, libc::S_IFREG | 0o644)));
    wait(|done| bench.fs.getattr(ME, file, None, done)).unwrap();
    assert!(
        matches!(bench.last_asked(), Op::Getattr { handle: Some(Handle(handle)), .. } if handle == open.file)
    );
    bench.outcome(Outcome::Done);
    wait(|done| bench.fs.release(ME, open.file, None, done)).unwrap();
    bench.outcome(Outcome::Attr(attr(5, libc::S_IFREG | 0o644)));
    wait(|done| bench.fs.getattr(ME, file, None, done)).unwrap();
    assert!(matches!(bench.last_asked(), Op::Getattr { handle: None, .. }));
}

#[test]
fn the_handle_that_created_a_file_vouches_for_its_attributes() {
    let bench = Bench::new();
    let root = bench.root(0);
    bench.outcome(Outcome::Created(Handle(9), entry_of(0, 6, libc::S_IFREG | 0o600)));
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    let (told, opened) =
        wait(|done| bench.fs.create(ME, (root, b"new"), libc::S_IFREG | 0o600, flags, done)).unwrap();
    bench.outcome(Outcome::Attr(attr(6, libc::S_IFREG | 0o644)));
    let change = Change { mode: Some(libc::S_IFREG | 0o644), ..Change::default() };
    wait(|done| bench.fs.setattr(ME, told.attr.ino.0, None, change, done)).unwrap();
    let Op::Setattr { handle, set, .. } = bench.last_asked() else { panic!("not asked") };
    assert_eq!((handle, set.mode), (Some(Handle(opened.file)), Some(0o644)));
}

#[test]
fn reads_hand_the_bytes_on_and_writes_carry_them() {
    let bench = Bench::new();
    let root = bench.root(0);
    let number = bench.file(root, 5, b"f");
    let file = bench.open(number, libc::O_RDWR).file;
    bench.answer([Ok((Outcome::Data, b"bytes".to_vec()))]);
    let read = wait(|done| bench.fs.read(ME, file, 3, u32::MAX, move |data| done(data.map(<[u8]>::to_vec))));
    assert_eq!(read.unwrap(), b"bytes");
    assert!(matches!(bench.last_asked(), Op::Read { offset: 3, length: 1_048_576, .. }));
    bench.outcome(Outcome::Written { count: 4, size: 4 });
    assert_eq!(wait(|done| bench.fs.write(ME, file, 0, b"four", done)), Ok(4));
    assert_eq!(bench.carrier.asked.lock().last().unwrap().1, b"four");
}

#[test]
fn closing_costs_no_message_unless_there_are_locks() {
    let bench = Bench::new();
    let root = bench.root(0);
    let number = bench.file(root, 5, b"f");
    let file = bench.open(number, libc::O_RDWR).file;
    let before = bench.asked();
    wait(|done| bench.fs.flush(ME, file, 44, done)).unwrap();
    assert_eq!(bench.asked(), before);
    let range = LockRange { start: 0, end: i64::MAX as u64, kind: libc::F_WRLCK, pid: 9 };
    bench.answer([Err(Ended::Interrupted)]);
    wait(|done| bench.fs.setlk(ME, file, 44, range, true, done)).unwrap_err();
    bench.outcome(Outcome::Done);
    wait(|done| bench.fs.flush(ME, file, 44, done)).unwrap();
    assert!(
        matches!(bench.last_asked(), Op::Flush { lock_owner: 44, .. }),
        "the gateway may have granted it"
    );
    wait(|done| bench.fs.flush(ME, file, 44, done)).unwrap();
    assert_eq!(bench.asked(), before + 2);
}

#[test]
fn locks_reach_to_the_end_of_the_file_in_both_worlds() {
    let bench = Bench::new();
    let root = bench.root(0);
    let number = bench.file(root, 5, b"f");
    let file = bench.open(number, libc::O_RDWR).file;
    let range = LockRange { start: 5, end: i64::MAX as u64, kind: libc::F_WRLCK, pid: 9 };
    bench.outcome(Outcome::Done);
    wait(|done| bench.fs.setlk(ME, file, 1, range, false, done)).unwrap();
    let Op::SetLock { lock, wait: false, reclaim: false, .. } = bench.last_asked() else {
        panic!("not a lock")
    };
    assert_eq!((lock.start, lock.end, lock.kind), (5, u64::MAX, LockKind::Exclusive));
    assert_eq!(bench.state.locks.lock().through(file), [lock]);
    bench.outcome(Outcome::Locked(Some(lock)));
    let found = wait(|done| bench.fs.getlk(ME, file, 2, range, done)).unwrap();
    assert_eq!(found, range);
    bench.outcome(Outcome::Locked(None));
    assert_eq!(wait(|done| bench.fs.getlk(ME, file, 1, range, done)).unwrap().kind, libc::F_UNLCK);
    let before = bench.asked();
    let unlock = LockRange { kind: libc::F_UNLCK, ..range };
    wait(|done| bench.fs.setlk(ME, file, 77, unlock, false, done)).unwrap();
    assert_eq!(bench.asked(), before, "this owner never asked for a lock");
    let backwards = LockRange { start: 6, end: 5, ..range };
    assert_eq!(wait(|done| bench.fs.setlk(ME, file, 1, backwards, false, done)), Err(Errno::EINVAL));
}

#[test]
fn attributes_that_are_not_the_users_stay_here() {
    let bench = Bench::new();
    let root = bench.root(0);
    let before = bench.asked();
    let get = |name: &'static [u8]| {
        wait(|done| bench.fs.getxattr(ME, root, name, move |data| done(data.map(<[u8]>::to_vec))))
    };
    assert_eq!(get(b"security.capability"), Err(Errno::ENODATA));
    assert_eq!(get(b"system.posix_acl_access"), Err(Errno::EOPNOTSUPP));
    assert_eq!(
        wait(|done| bench.fs.setxattr(ME, root, (b"trusted.x", b"v"), 0, done)),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(wait(|done| bench.fs.removexattr(ME, root, b"security.x", done)), Err(Errno::EOPNOTSUPP));
    assert_eq!(bench.asked(), before);
    bench.outcome(Outcome::Done);
    wait(|done| bench.fs.setxattr(ME, root, (b"user.n", b"value"), 1, done)).unwrap();
    assert!(matches!(bench.last_asked(), Op::Setxattr { name_length: 6, flags: 1, .. }));
    assert_eq!(bench.carrier.asked.lock().last().unwrap().1, b"user.nvalue");
}

fn page(range: std::ops::Range<u64>, with: bool) -> Script {
    let mut data = vec![];
    for n in range {
        let entry = DirEntry {
            ino: 1000 + n,
            cookie: n + 1,
            kind: 8,
            name: Name::new(format!("f{n}").as_bytes()).unwrap(),
            attr: with.then(|| attr(1000 + n, libc::S_IFREG | 0o644)),
            leased: true,
        };
        readdir::push(&mut data, &entry).unwrap();
    }
    Ok((Outcome::Data, data))
}

fn opendir(bench: &Bench, number: u64) -> u64 {
    // Now, or when it is listed.
    bench.outcome(Outcome::Opened(Handle(1), attr(100, libc::S_IFDIR | 0o755)));
    wait(|done| bench.fs.opendir(ME, number, done)).unwrap().file
}

#[test]
fn a_page_of_entries_is_used_up_before_another_is_asked_for() {
    let bench = Bench::new();
    let root = bench.root(0);
    let file = opendir(&bench, root);
    bench.answer([page(0..5, true)]);
    let mut seen = vec![];
    let mut offset = 0;
    loop {
        let page = list::<true>(&bench, root, file, offset, 3);
        let Some((_, last, _)) = page.entries.last() else { break };
        offset = *last;
        seen.extend(names(&page));
    }
    assert_eq!(seen, [".", "..", "f0", "f1", "f2", "f3", "f4"]);
    assert!(bench.carrier.answers.lock().is_empty());
    // All of them, and only they, are known to the kernel now.
    let told: Vec<u64> = (1000..1005)
        .filter(|ino| bench.state.nodes.lock().get(Node { grant: 0, ino: *ino }).is_some())
        .collect();
    assert_eq!(told.len(), 5);
}

#[test]
fn a_listing_can_be_taken_up_after_the_dots_and_anywhere() {
    let bench = Bench::new();
    let root = bench.root(0);
    let file = opendir(&bench, root);
    bench.answer([page(0..3, false)]);
    let all = list::<false>(&bench, root, file, 0, 99);
    assert_eq!(names(&all), [".", "..", "f0", "f1", "f2"]);
    assert_eq!(all.entries[0].0, root);
    assert_eq!(all.entries[1].0, ROOT);
    bench.answer([page(0..3, false)]);
    assert_eq!(names(&list::<false>(&bench, root, file, all.entries[0].1, 99)), ["..", "f0", "f1", "f2"]);
    bench.answer([page(0..3, false)]);
    assert_eq!(names(&list::<false>(&bench, root, file, all.entries[1].1, 99)), ["f0", "f1", "f2"]);
    bench.answer([page(2..3, false)]);
    assert_eq!(names(&list::<false>(&bench, root, file, all.entries[3].1, 99)), ["f2"]);
    assert!(matches!(bench.last_asked(), Op::Readdir { cookie: 2, plus: false, .. }));
}

#[test]
fn entries_that_vanished_do_not_end_a_listing() {
    let bench = Bench::new();
    let root = bench.root(0);
    let file = opendir(&bench, root);
    // With attributes asked for, and none given: first in a page that is not the last one.
    let (many, vanished) = vanished_page();
    bench.answer([Ok((Outcome::Data, vanished)), page(many..many + 2, true)]);
    let after_dots = 0x7fff_ffff_ffff_fff2;
    let listed = names(&list::<true>(&bench, root, file, after_dots, 99));
    assert_eq!(listed, [format!("f{many}"), format!("f{}", many + 1)]);
}

/// A first page that is nearly full of entries without attributes, and how many there are.
fn vanished_page() -> (u64, Vec<u8>) {
    let (mut data, mut count) = (vec![], 0);
    while data.len() < 12 << 10 {
        let name = Name::new(format!("{count:0250}").as_bytes()).unwrap();
        let entry = DirEntry { ino: count, cookie: count + 1, kind: 8, name, attr: None, leased: false };
        readdir::push(&mut data, &entry).unwrap();
        count += 1;
    }
    (count, data)
}

#[test]
fn a_page_with_little_room_left_is_not_the_last() {
    let bench = Bench::new();
    let root = bench.root(0);
    let file = opendir(&bench, root);
    let size = match page(0..1, true) {
        Ok((_, data)) => data.len() as u64,
        Err(_) => 0,
    };
    // The first page has room for 14 KiB, the next one for 28 KiB.
    let many = (14 << 10) / size - 10;
    bench.answer([page(0..many, true), page(many..many + 3, true)]);
    let first = list::<true>(&bench, root, file, 0, 999);
    assert_eq!(first.entries.len() as u64, many + 2);
    let rest = list::<true>(&bench, root, file, first.entries.last().unwrap().1, 999);
    assert!(matches!(bench.last_asked(), Op::Readdir { max_bytes: 28_672, .. }), "{:?}", bench.last_asked());
    let end = list::<true>(&bench, root, file, rest.entries.last().unwrap().1, 999);
    assert_eq!((rest.entries.len(), end.entries.len()), (3, 0));
}

#[test]
fn what_is_leased_is_listed_without_being_opened() {
    let bench = Bench::leased();
    let root = bench.root(0);
    let file = wait(|done| bench.fs.opendir(ME, root, done)).unwrap().file;
    let asked = bench.asked();
    bench.answer([page(0..3, true)]);
    let listed = list::<true>(&bench, root, file, 0, 99);
    assert_eq!(listed.entries.len(), 5);
    assert!(matches!(bench.last_asked(), Op::List { plus: true, ahead: false, cookie: 0, .. }));
    assert!(list::<true>(&bench, root, file, listed.entries.last().unwrap().1, 99).entries.is_empty());
    wait(|done| bench.fs.releasedir(ME, file, done)).unwrap();
    assert_eq!(bench.asked(), asked + 1);
}

#[test]
fn rewinding_asks_again() {
    let bench = Bench::new();
    let root = bench.root(0);
    let file = opendir(&bench, root);
    bench.answer([page(0..4, false), page(0..1, false)]);
    assert_eq!(names(&list::<false>(&bench, root, file, 0, 3)), [".", "..", "f0"]);
    assert_eq!(names(&list::<false>(&bench, root, file, 0, 99)), [".", "..", "f0"]);
    assert!(bench.carrier.answers.lock().is_empty());
}

#[test]
fn space_above_the_grants_is_that_of_the_first() {
    let bench = Bench::new();
    let statfs = Statfs { blocks: 77, ..NO_SPACE };
    bench.outcome(Outcome::Entry(entry_of(0, 100, libc::S_IFDIR | 0o755)));
    bench.outcome(Outcome::Statfs(statfs));
    assert_eq!(wait(|done| bench.fs.statfs(ME, ROOT, done)), Ok(statfs));
    assert_eq!(bench.last_asked(), Op::Statfs { node: Node { grant: 0, ino: 100 } });
}

#[test]
fn what_is_leased_is_asked_for_once() {
    let bench = Bench::leased();
    let root = bench.root(0);
    let file = bench.file(root, 5, b"f");
    bench.answer([Err(Ended::Failed(Failure::Errno(libc::ENOENT as u16)))]);
    assert_eq!(bench.lookup(root, b"g"), Err(Errno::ENOENT));
    let asked = bench.asked();
    assert_eq!(bench.root_again(), root);
    assert_eq!(bench.lookup(root, b"f").unwrap().attr.ino.0, file);
    assert_eq!(bench.getattr(file).unwrap().attr.size, 10);
    let open = bench.open_known(file);
    wait(|done| bench.fs.flush(ME, open, 0, done)).unwrap();
    wait(|done| bench.fs.release(ME, open, None, done)).unwrap();
    let listing = wait(|done| bench.fs.opendir(ME, root, done)).unwrap().file;
    wait(|done| bench.fs.releasedir(ME, listing, done)).unwrap();
    assert_eq!(bench.asked(), asked);
    assert!(bench.state.handles.lock().is_empty());
}

#[test]
fn what_is_recalled_is_asked_for_again() {
    let bench = Bench::leased();
    let root = bench.root(0);
    let file = bench.file(root, 5, b"f");
    let asked = bench.asked();
    bench.recall(2, 5, What::All { data: true, open: false });
    // An answer that the change has overtaken is shown to whoever asked, and not kept.
    bench.outcome(Outcome::Attr(attr(5, libc::S_IFREG | 0o644)));
    bench.getattr(file).unwrap();
    bench.note(2, Lease::Shared);
    bench.outcome(Outcome::Attr(attr(5, libc::S_IFREG | 0o600)));
    assert_eq!(bench.getattr(file).unwrap().attr.perm, 0o600);
    assert_eq!(bench.getattr(file).unwrap().attr.perm, 0o600);
    assert_eq!(bench.asked(), asked + 2);
}

#[test]
fn the_gateway_hears_of_an_open_file_with_its_first_read() {
    let bench = Bench::leased();
    let root = bench.root(0);
    let number = bench.file(root, 5, b"f");
    let file = bench.open_known(number);
    let opened = Outcome::Opened(Handle(70), attr(5, libc::S_IFREG | 0o644));
    bench.answer([Ok((opened, b"0123456789".to_vec())), Ok((Outcome::Data, b"more".to_vec()))]);
    assert_eq!(bench.read(file).unwrap(), b"0123456789");
    assert!(matches!(bench.last_asked(), Op::OpenRead { offset: 0, length: 100, .. }));
    assert_eq!(bench.read(file).unwrap(), b"more");
    assert!(matches!(bench.last_asked(), Op::Read { .. }));
    // A request that was sent again is answered without the data.
    let file = bench.open_known(number);
    let opened = Outcome::Opened(Handle(71), attr(5, libc::S_IFREG | 0o644));
    bench.answer([Ok((opened, vec![])), Ok((Outcome::Data, b"0123456789".to_vec()))]);
    assert_eq!(bench.read(file).unwrap(), b"0123456789");
    bench.answer([Err(Ended::Failed(Failure::Stale))]);
    let file = bench.open_known(number);
    assert_eq!(bench.read(file), Err(Errno::ESTALE));
}

#[test]
fn what_is_open_here_only_is_opened_at_the_gateway_before_its_name_goes() {
    let bench = Bench::leased();
    let root = bench.root(0);
    let number = bench.file(root, 5, b"f");
    let file = bench.open_known(number);
    bench.outcome(Outcome::Opened(Handle(70), attr(5, libc::S_IFREG | 0o644)));
    bench.outcome(Outcome::Done);
    wait(|done| bench.fs.unlink(ME, root, b"f", done)).unwrap();
    let asked: Vec<Op> = bench.carrier.asked.lock().iter().rev().take(2).map(|(op, _)| op.clone()).collect();
    assert!(matches!(asked[..], [Op::Unlink { .. }, Op::Open { .. }]), "{asked:?}");
    assert_eq!(bench.lookup(root, b"f"), Err(Errno::ENOENT), "known without asking");
    bench.answer([Ok((Outcome::Data, b"kept".to_vec()))]);
    assert_eq!(bench.read(file).unwrap(), b"kept");
    // By somebody else: the recall names it.
    let number = bench.file(root, 6, b"g");
    bench.open_known(number);
    let node = Node { grant: 0, ino: 6 };
    assert_eq!(bench.recall(2, 6, What::All { data: false, open: true }).open, [node]);
    assert!(bench.state.handles.lock().lazy_of(node));
}

#[test]
fn a_directory_that_was_listed_or_made_answers_for_its_names() {
    let bench = Bench::leased();
    let root = bench.root(0);
    let file = wait(|done| bench.fs.opendir(ME, root, done)).unwrap().file;
    bench.answer([page(0..3, true)]);
    let listed = list::<true>(&bench, root, file, 0, 99);
    let (_, last, _) = listed.entries.last().unwrap();
    assert_eq!(names(&list::<true>(&bench, root, file, *last, 99)), [""; 0]);
    let asked = bench.asked();
    assert_eq!(bench.lookup(root, b"nothing"), Err(Errno::ENOENT));
    assert_eq!(bench.asked(), asked);
    bench.outcome(Outcome::Entry(entry_of(0, 50, libc::S_IFDIR | 0o755)));
    let made = wait(|done| bench.fs.mkdir(ME, root, b"new", 0o755, done)).unwrap().attr.ino.0;
    assert_eq!(bench.lookup(made, b"nothing"), Err(Errno::ENOENT));
    assert_eq!(bench.lookup(root, b"new").unwrap().attr.ino.0, made);
    assert_eq!(bench.asked(), asked + 1);
}

#[test]
fn a_change_whose_caller_is_gone_leaves_nothing_known() {
    let bench = Bench::leased();
    let root = bench.root(0);
    let number = bench.file(root, 5, b"f");
    bench.answer([Err(Ended::Interrupted)]);
    let change = Change { mode: Some(0o600), ..Change::default() };
    wait(|done| bench.fs.setattr(ME, number, None, change, done)).unwrap_err();
    bench.outcome(Outcome::Attr(attr(5, libc::S_IFREG | 0o600)));
    assert_eq!(bench.getattr(number).unwrap().attr.perm, 0o600, "it was carried out all the same");
}

impl Bench {
    /// What was asked ahead first and is not answered yet.
    fn next_ahead(&self) -> Option<Op> {
        self.carrier.ahead.lock().front().map(|call| call.op.clone())
    }

    /// Answers that, as of a time of the session's clock.
    fn answer_ahead(&self, stamp: u64, result: Result<&[u8], Ended>) {
        let call = self.carrier.ahead.lock().pop_front().expect("nothing was asked ahead");
        let note = Note { stamp, node: Lease::Shared, names: true, after: None };
        (call.done)(result.map(|data| Answer { outcome: Outcome::Data, data, epoch: 1, note, life: 1 }));
    }
}

/// A page of a directory as it is listed ahead.
fn leased_page(files: std::ops::Range<u64>) -> Vec<u8> {
    let mut data = vec![];
    for n in files {
        let entry = DirEntry {
            ino: 1000 + n,
            cookie: n + 1,
            kind: 8,
            name: Name::new(format!("f{n}").as_bytes()).unwrap(),
            attr: Some(attr(1000 + n, libc::S_IFREG | 0o644)),
            leased: true,
        };
        readdir::push(&mut data, &entry).unwrap();
    }
    data
}

fn contents_of(files: &[(u16, u64)]) -> Vec<u8> {
    let mut data = vec![];
    for (position, ino) in files {
        let attr = attr(*ino, libc::S_IFREG | 0o644);
        strongroom_protocol::files::push_head(&mut data, *position, &attr, 10).unwrap();
        data.extend_from_slice(format!("{ino:010}").as_bytes());
    }
    data
}

#[test]
fn the_second_name_that_must_be_asked_for_has_the_directory_listed() {
    let bench = Bench::leased();
    let root = bench.root(0);
    bench.file(root, 1001, b"f1");
    assert_eq!(bench.next_ahead(), None);
    bench.file(root, 1002, b"f2");
    let dir = Node { grant: 0, ino: 100 };
    assert_eq!(
        bench.next_ahead(),
        Some(Op::List { node: dir, cookie: 0, max_bytes: 65_536, plus: true, ahead: true })
    );
    // Nothing waits for it.
    bench.file(root, 1003, b"f3");
    let asked = bench.asked();
    bench.answer_ahead(1, Ok(&leased_page(0..460)));
    assert_eq!(
        bench.next_ahead(),
        Some(Op::List { node: dir, cookie: 460, max_bytes: 65_536, plus: true, ahead: true }),
        "it is used"
    );
    for n in 0..50 {
        assert_eq!(bench.lookup(root, format!("f{n}").as_bytes()).unwrap().attr.size, 10);
    }
    bench.answer_ahead(1, Ok(&[]));
    assert_eq!(bench.lookup(root, b"none"), Err(Errno::ENOENT), "all names are known");
    assert_eq!((bench.asked(), bench.next_ahead()), (asked, None));
}

#[test]
fn a_recall_that_has_overtaken_what_was_asked_ahead_wins() {
    let bench = Bench::leased();
    let root = bench.root(0);
    bench.file(root, 5, b"a");
    bench.file(root, 6, b"b");
    bench.recall(2, 100, What::Name(Name::new(b"f1").unwrap()));
    bench.recall(3, 1002, What::All { data: true, open: false });
    bench.answer_ahead(1, Ok(&leased_page(0..3)));
    let asked = bench.asked();
    for name in [b"f0", b"f1", b"f2"] {
        bench.answer([Err(Ended::Failed(Failure::Errno(libc::ENOENT as u16)))]);
        assert_eq!(bench.lookup(root, name), Err(Errno::ENOENT));
    }
    assert_eq!(bench.asked(), asked + 3);
}

#[test]
fn small_files_that_follow_are_read_ahead_and_cost_no_message() {
    let bench = Bench::leased();
    let root = bench.root(0);
    bench.file(root, 5, b"a");
    bench.file(root, 6, b"b");
    bench.answer_ahead(1, Ok(&leased_page(0..40)));
    let read = |n: u64| {
        let number = bench.lookup(root, format!("f{n}").as_bytes()).unwrap().attr.ino.0;
        let file = bench.open_known(number);
        let data = bench.read(file);
        wait(|done| bench.fs.release(ME, file, None, done)).unwrap();
        data
    };
    for n in 0..2 {
        let opened = Outcome::Opened(Handle(70 + n), attr(1000 + n, libc::S_IFREG | 0o644));
        bench.answer([Ok((opened, b"0123456789".to_vec())), Ok((Outcome::Done, vec![]))]);
        assert_eq!(read(n).unwrap(), b"0123456789");
    }
    let op = bench.next_ahead().unwrap();
    assert!(matches!(op, Op::ReadFiles { grant: 0, .. }), "{op:?}");
    let list: Vec<u8> = (1002..1018_u64).flat_map(u64::to_le_bytes).collect();
    assert_eq!(bench.carrier.ahead.lock()[0].data.bytes(), list);
    // One of them is recalled meanwhile, and one afterwards.
    bench.recall(2, 1004, What::All { data: true, open: false });
    let files: Vec<(u16, u64)> = (0..16).map(|n| (n, 1002 + u64::from(n))).collect();
    bench.answer_ahead(1, Ok(&contents_of(&files)));
    bench.recall(3, 1005, What::All { data: true, open: false });
    let asked = bench.asked();
    assert_eq!(read(2).unwrap(), b"0000001002");
    assert_eq!(read(3).unwrap(), b"0000001003");
    assert_eq!(bench.asked(), asked, "neither open, nor read, nor closed at the gateway");
    assert!(bench.state.handles.lock().is_empty());
    let mut table = bench.state.leases.table();
    let known = |table: &Table, ino| table.contents(Node { grant: 0, ino }, Instant::now()).is_some();
    assert!(!known(&table, 1002), "the kernel has it");
    assert!(!known(&table, 1004) && !known(&table, 1005) && known(&table, 1006));
    // What this guest changes itself is not known either.
    let change = table.begin(&[Node { grant: 0, ino: 1006 }], Instant::now());
    table.end(&change);
    assert!(!known(&table, 1006));
}

#[test]
fn where_every_read_must_be_on_record_none_is_ahead() {
    let bench = Bench::leased();
    let root = bench.root(0);
    bench.file(root, 5, b"a");
    bench.file(root, 6, b"b");
    bench.answer_ahead(1, Ok(&leased_page(0..40)));
    for n in 0..4 {
        let number = bench.lookup(root, format!("f{n}").as_bytes()).unwrap().attr.ino.0;
        let opened = Outcome::Opened(Handle(70 + n), attr(1000 + n, libc::S_IFREG | 0o644));
        bench.answer([Ok((opened, b"0123456789".to_vec()))]);
        let file = bench.open_known(number);
        bench.read(file).unwrap();
        if n == 1 {
            bench.answer_ahead(1, Err(Ended::Failed(Failure::Errno(libc::EOPNOTSUPP as u16))));
        }
    }
    assert_eq!(bench.next_ahead(), None);
}

#[test]
fn what_the_kernel_has_of_a_directory_is_doubtful_until_a_listing_that_was_overtaken_is_over() {
    let bench = Bench::leased();
    let root = bench.root(0);
    let node = Node { grant: 0, ino: 100 };
    let file = wait(|done| bench.fs.opendir(ME, root, done)).unwrap().file;
    bench.answer([page(0..3, true)]);
    list::<true>(&bench, root, file, 0, 99);
    bench.recall(2, 100, What::Name(Name::new(b"f9").unwrap()));
    bench.note(2, Lease::Shared);
    bench.outcome(Outcome::Attr(attr(100, libc::S_IFDIR | 0o755)));
    bench.getattr(root).unwrap();
    let scrub = || {
        let mut table = bench.state.leases.table();
        let soiled = table.soiled(node).expect("it is doubtful");
        table.cleaned(node, soiled);
        table.soiled(node).is_none()
    };
    assert!(!scrub(), "the page may come into the cache after this");
    wait(|done| bench.fs.releasedir(ME, file, done)).unwrap();
    assert!(scrub());
}

/// Bare names, as the second page of a directory.
fn bare(files: std::ops::Range<u64>) -> Vec<u8> {
    match page(files, false) {
        Ok((_, data)) => data,
        Err(ended) => panic!("{ended:?}"),
    }
}

#[test]
fn the_second_page_is_asked_for_ahead() {
    const MANY: u64 = 100;
    let bench = Bench::leased();
    let root = bench.root(0);
    let file = wait(|done| bench.fs.opendir(ME, root, done)).unwrap().file;
    let first = || {
        bench.answer([page(0..MANY, true)]);
        let listed = list::<true>(&bench, root, file, 0, 999);
        assert_eq!(listed.entries.len() as u64, MANY + 2);
        let ahead = bench.next_ahead().unwrap();
        assert!(matches!(ahead, Op::List { plus: false, cookie: MANY, ahead: true, .. }), "{ahead:?}");
    };
    let second = |answered: &dyn Fn()| {
        let (tell, told) = mpsc::channel();
        let sink = Collect::<false> { page: Page::default(), room: 999, tell };
        bench.fs.readdir(ME, root, file, MANY, sink);
        answered();
        names(&told.try_recv().unwrap())
    };
    let asked = bench.asked();

    // It has come when the kernel asks for it, or comes afterwards.
    first();
    bench.answer_ahead(1, Ok(&bare(MANY..MANY + 2)));
    assert_eq!(second(&|| {}), ["f100", "f101"]);
    assert!(list::<false>(&bench, root, file, MANY + 2, 999).entries.is_empty());
    first();
    assert_eq!(second(&|| bench.answer_ahead(1, Ok(&bare(MANY..MANY + 2)))), ["f100", "f101"]);
    assert_eq!(bench.asked(), asked + 2, "once for each first page");

    // From the start again: what was asked for before is no answer any more, come or not.
    first();
    bench.answer_ahead(1, Ok(&bare(MANY..MANY + 1)));
    first();
    assert_eq!(second(&|| bench.answer_ahead(1, Ok(&bare(MANY..MANY + 3)))), ["f100", "f101", "f102"]);
    first();
    let old = bench.carrier.ahead.lock().pop_front().unwrap();
    first();
    bench.carrier.ahead.lock().push_front(old);
    bench.answer_ahead(1, Ok(&bare(MANY..MANY + 1)));
    assert_eq!(second(&|| bench.answer_ahead(1, Ok(&bare(MANY..MANY + 3)))), ["f100", "f101", "f102"]);

    // Somebody looks at what is listed: attributes are asked for, and what comes without is not needed.
    first();
    bench.answer([page(MANY..MANY + 1, true)]);
    assert_eq!(names(&list::<true>(&bench, root, file, MANY, 999)), ["f100"]);
    bench.answer_ahead(1, Ok(&bare(MANY..MANY + 9)));
    assert!(list::<true>(&bench, root, file, MANY + 1, 999).entries.is_empty());

    // It cannot be had: who waits for it hears of that, and who does not asks by itself.
    let failed = || Err(Ended::Failed(Failure::Errno(5)));
    first();
    bench.answer_ahead(1, failed());
    bench.answer([page(MANY..MANY + 1, false)]);
    assert_eq!(second(&|| {}), ["f100"]);
    first();
    assert_eq!(second(&|| bench.answer_ahead(1, failed())), Vec::<String>::new());
}
