//! Every set of rights, every operation: what the contract lacks is denied, by name, and has no effect.

use std::collections::BTreeSet;

use strongroom_contracts::{Right, Rights};
use strongroom_protocol::attr::{Handle, Lock, LockKind, Node, OpenFlags, SetAttr, SetTime, Time};
use strongroom_protocol::op::{Meant, Op, RenameMode};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::*;

const CONTENTS: &[u8] = b"0123456789";
const KINDS: usize = 43;

/// The number of an operation; the match names each, so that a new one cannot be forgotten here.
fn kind(op: &Op) -> usize {
    match op {
        Op::Lookup { .. } => 0,
        Op::Resolve { .. } => 1,
        Op::Forget => 2,
        Op::Getattr { .. } => 3,
        Op::Setattr { .. } => 4,
        Op::Readlink { .. } => 5,
        Op::Open { .. } => 6,
        Op::Opendir { .. } => 7,
        Op::Create { .. } => 8,
        Op::Read { .. } => 9,
        Op::Write { .. } => 10,
        Op::Flush { .. } => 11,
        Op::Fsync { .. } => 12,
        Op::Release { .. } => 13,
        Op::Reopen { .. } => 14,
        Op::Readdir { .. } => 15,
        Op::Mkdir { .. } => 16,
        Op::Mknod { .. } => 17,
        Op::Symlink { .. } => 18,
        Op::Link { .. } => 19,
        Op::Unlink { .. } => 20,
        Op::Rmdir { .. } => 21,
        Op::Rename { .. } => 22,
        Op::Fallocate { .. } => 23,
        Op::Seek { .. } => 24,
        Op::CopyRange { .. } => 25,
        Op::Statfs { .. } => 26,
        Op::Getxattr { .. } => 27,
        Op::Listxattr { .. } => 28,
        Op::Setxattr { .. } => 29,
        Op::Removexattr { .. } => 30,
        Op::GetLock { .. } => 31,
        Op::SetLock { .. } => 32,
        Op::CancelLock { .. } => 33,
        Op::Ping => 34,
        Op::Bye => 35,
        Op::Reclaimed => 36,
        Op::TakeLeases => 37,
        Op::Recalled { .. } => 38,
        Op::OpenRead { .. } => 39,
        Op::List { .. } => 40,
        Op::ReadFiles { .. } => 41,
        Op::Measure { .. } => 42,
    }
}

/// What the contract must hold for an operation, written down apart from the gate's own table.
#[derive(Clone, Copy, Debug)]
enum Wants {
    Nothing,
    All(&'static str),
    Any(&'static str),
}

fn expected(wants: Wants, held: Rights) -> Option<Outcome> {
    match wants {
        Wants::Nothing => None,
        Wants::All(words) => {
            let missing = rights(words).without(held);
            (!missing.is_empty()).then_some(Outcome::Failed(Failure::Denied { missing }))
        }
        Wants::Any(words) if rights(words).meet(held).is_empty() => {
            let missing = rights(words).iter().take(1).collect();
            Some(Outcome::Failed(Failure::Denied { missing }))
        }
        Wants::Any(_) => None,
    }
}

struct Stage {
    world: World,
    guest: Guest,
    held: Rights,
    root: Node,
    covered: BTreeSet<usize>,
}

/// Objects that a session with these rights can get hold of.
struct Props {
    file: Node,
    dir: Node,
    link: Node,
}

impl Stage {
    fn new(held: Rights) -> Stage {
        let world = World::new();
        world.file("a/file", CONTENTS);
        world.file("a/victim", CONTENTS);
        world.dirs(&["a/dir", "a/empty"]);
        std::os::unix::fs::symlink("text", world.path("a/link")).unwrap();
        let guest = world.guest(vec![grant("a", "/a", held)]);
        let root = guest.root(0);
        Stage { world, guest, held, root, covered: BTreeSet::new() }
    }

    fn has(&self, right: Right) -> bool {
        self.held.has(right)
    }

    /// Nodes that the session sees, or made itself.
    fn props(&self) -> Option<Props> {
        if self.has(Right::List) {
            let node = |name| entry(self.guest.lookup(self.root, name)).node;
            return Some(Props { file: node("file"), dir: node("dir"), link: node("link") });
        }
        self.has(Right::Create).then(|| {
            let (handle, file) = created(self.guest.create(self.root, "own-file", WRITE));
            written(self.guest.write(handle, 0, CONTENTS));
            assert_eq!(self.guest.release(handle), Outcome::Done);
            let dir = entry(self.guest.mkdir(self.root, "own-dir")).node;
            let link = entry(self.guest.symlink(self.root, "own-link", b"text")).node;
            Props { file: file.node, dir, link }
        })
    }

    fn check(&mut self, op: Op, data: &[u8], wants: Wants) {
        self.covered.insert(kind(&op));
        let before = self.tree();
        let outcome = self.guest.call(&op, data).0;
        match expected(wants, self.held) {
            Some(denied) => {
                assert_eq!(outcome, denied, "{op:?} with {}", self.held);
                assert_eq!(self.tree(), before, "{op:?} was denied and had an effect");
            }
            None => {
                let denied = matches!(outcome, Outcome::Failed(Failure::Denied { .. }));
                assert!(!denied, "{op:?} with {}: {outcome:?}", self.held);
            }
        }
    }

    /// Names, sizes and contents below the root.
    fn tree(&self) -> Vec<(String, Option<Vec<u8>>)> {
        let mut all = vec![];
        let mut todo = vec![self.world.path("a")];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    todo.push(entry.path());
                }
                let bytes = kind.is_file().then(|| std::fs::read(entry.path()).unwrap());
                all.push((entry.path().display().to_string(), bytes));
            }
        }
        all.sort();
        all
    }
}

fn on_nodes(stage: &mut Stage, props: &Props) {
    let Props { file, dir, link } = *props;
    let own = !stage.has(Right::List);
    let sees = if own { Wants::Nothing } else { Wants::All("list") };
    stage.check(Op::Getattr { node: file, handle: None }, b"", sees);
    stage.check(Op::Measure { node: file, handle: None }, b"", sees);
    let mut set = |set, wants| {
        stage.check(Op::Setattr { node: file, handle: None, set, by: BY }, b"", wants);
    };
    let time = Some(SetTime::At(Time::default()));
    set(SetAttr::default(), sees);
    set(SetAttr { mode: Some(0o600), ..SetAttr::default() }, Wants::All("attr"));
    set(SetAttr { mtime: time, ..SetAttr::default() }, Wants::All("attr"));
    set(SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() }, Wants::Any("append write attr"));
    set(SetAttr { size: Some(1 << 16), ..SetAttr::default() }, Wants::Any("append write"));
    let cut = SetAttr { size: Some(3), ..SetAttr::default() };
    let cuts =
        |held: Rights| if held.has(Right::Append) { Wants::All("write") } else { Wants::Any("append write") };
    let wants = cuts(stage.held);
    stage.check(Op::Setattr { node: file, handle: None, set: cut, by: BY }, b"", wants);
    stage.check(Op::Readlink { node: link }, b"", Wants::All("read"));
    stage.check(Op::Open { node: file, flags: READ }, b"", Wants::All("read"));
    stage.check(Op::Open { node: file, flags: OpenFlags { read: false, ..READ } }, b"", Wants::All("read"));
    let open_read = |flags| Op::OpenRead { node: file, flags, offset: 0, length: 10 };
    stage.check(open_read(READ), b"", Wants::All("read"));
    stage.check(Op::Open { node: file, flags: WRITE }, b"", Wants::Any("append write"));
    let appending = OpenFlags { append: true, read: false, ..READ };
    stage.check(Op::Open { node: file, flags: appending }, b"", Wants::Any("append write"));
    let cutting = OpenFlags { truncate: true, ..WRITE };
    stage.check(Op::Open { node: file, flags: cutting }, b"", wants);
    let reopen = |flags, created, directory| Op::Reopen { node: file, flags, created, directory };
    stage.check(reopen(READ, false, false), b"", Wants::All("read"));
    stage.check(reopen(WRITE, false, false), b"", Wants::Any("append write"));
    stage.check(
        Op::Reopen { node: dir, flags: READ, created: false, directory: true },
        b"",
        Wants::All("list"),
    );
    stage.check(Op::Opendir { node: dir }, b"", Wants::All("list"));
    stage.check(
        Op::List { node: dir, cookie: 0, max_bytes: 4096, plus: true, ahead: true },
        b"",
        Wants::All("list"),
    );
    let many = Op::ReadFiles { grant: 0, longest: 100, max_bytes: 4096 };
    stage.check(many, &file.ino.to_le_bytes(), Wants::All("read"));
    stage.check(Op::Statfs { node: dir }, b"", Wants::All("list"));
    stage.check(Op::Getxattr { node: file }, b"user.a", Wants::All("read"));
    stage.check(Op::Listxattr { node: file }, b"", Wants::All("read"));
    stage.check(Op::Setxattr { node: file, name_length: 6, flags: 0 }, b"user.av", Wants::All("attr"));
    stage.check(Op::Removexattr { node: file }, b"user.a", Wants::All("attr"));
    let parent = stage.root;
    stage.check(Op::Link { node: file, parent, name: name("linked") }, b"", Wants::All("create"));
}

fn on_names(stage: &mut Stage) {
    let parent = stage.root;
    let made = |name_: &str| name(name_);
    stage.check(Op::Mkdir { parent, name: made("d"), mode: 0o755, by: BY }, b"", Wants::All("create"));
    let fifo = Op::Mknod { parent, name: made("p"), mode: libc::S_IFIFO | 0o600, rdev: 0, by: BY };
    stage.check(fifo, b"", Wants::All("create"));
    stage.check(Op::Symlink { parent, name: made("s"), by: BY }, b"x", Wants::All("create"));
    let create = |text: &str, flags| Op::Create { parent, name: name(text), mode: 0o644, flags, by: BY };
    stage.check(create("new", WRITE), b"", Wants::All("create"));
    let with_read = if stage.has(Right::Create) { Wants::All("create read") } else { Wants::All("create") };
    stage.check(create("new2", BOTH), b"", with_read);
    stage.check(Op::Unlink { parent, name: made("victim") }, b"", Wants::All("delete"));
    stage.check(
        Op::Rmdir { parent, name: made("empty"), directory: Meant::Whichever },
        b"",
        Wants::All("delete"),
    );
    // What is there already: opened if that is allowed, and not told of where names are not seen.
    let op = create("file", WRITE);
    stage.covered.insert(kind(&op));
    let before = stage.tree();
    let outcome = stage.guest.ask(&op);
    if !stage.has(Right::List) {
        let exists = errno(libc::EEXIST);
        assert_eq!(outcome, exists, "with {}", stage.held);
    } else if let Some(denied) = expected(Wants::Any("append write"), stage.held) {
        assert_eq!(outcome, denied, "with {}", stage.held);
    } else {
        created(outcome);
    }
    assert_eq!(stage.tree(), before);
    for mode in [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange] {
        let (name, new_name) = (made("file"), made("dir"));
        let op = Op::Rename { parent, name, new_parent: parent, new_name, mode, directory: Meant::Whichever };
        stage.check(op, b"", Wants::All("create delete"));
    }
}

fn on_names_seen(stage: &mut Stage) {
    let hidden = if stage.has(Right::Create) { errno(libc::ENOENT) } else { denied("list") };
    for text in ["victim", "none"] {
        let looked = Op::Lookup { parent: stage.root, name: name(text) };
        let resolved = Op::Resolve { grant: 0, ino: 0 };
        stage.covered.extend([kind(&looked), kind(&resolved)]);
        let outcomes = [stage.guest.ask(&looked), stage.guest.call(&resolved, text.as_bytes()).0];
        for outcome in outcomes {
            match stage.has(Right::List) {
                false => assert_eq!(outcome, hidden, "with {}", stage.held),
                true if text == "none" => assert_eq!(outcome, errno(libc::ENOENT)),
                true => assert_eq!(entry(outcome).attr.size, 10),
            }
        }
    }
}

/// Operations on handles, as far as the session can get one.
fn on_handles(stage: &mut Stage, file: Node) {
    let open = |stage: &Stage, flags| match stage.guest.open(file, flags) {
        Outcome::Opened(handle, _) => Some(handle),
        _ => None,
    };
    let lock = Lock { owner: 1, pid: 1, start: 0, end: u64::MAX, kind: LockKind::Shared };
    let cuts = if stage.has(Right::Append) { Wants::All("write") } else { Wants::Any("append write") };
    let any = open(stage, READ).or_else(|| open(stage, WRITE));
    if let Some(handle) = any {
        stage.check(Op::Read { handle, offset: 0, length: 4 }, b"", Wants::All("read"));
        stage.check(Op::Seek { handle, offset: 0, hole: true }, b"", Wants::All("read"));
        stage.check(Op::Fsync { handle, data_only: true }, b"", Wants::Nothing);
        stage.check(Op::GetLock { handle, lock }, b"", Wants::Nothing);
        stage.check(Op::SetLock { handle, lock, wait: false, reclaim: false }, b"", Wants::Nothing);
        let copy = Op::CopyRange { from: handle, from_offset: 0, to: handle, to_offset: 0, length: 1 };
        stage.check(copy, b"", Wants::All("read"));
    }
    if let Some(handle) = open(stage, READ) {
        // Opened for reading, used for writing: without the rights they are missing, with them it is the wrong handle.
        stage.check(Op::Write { handle, offset: 0 }, b"x", Wants::Any("append write"));
        stage.check(Op::Fallocate { handle, mode: 0, offset: 0, length: 1 }, b"", Wants::Any("append write"));
        let copied =
            |to: Handle, to_offset| Op::CopyRange { from: handle, from_offset: 0, to, to_offset, length: 2 };
        if let Some(to) = open(stage, WRITE) {
            stage.check(copied(to, 0), b"", cuts);
            stage.check(copied(to, 4096), b"", Wants::Any("append write"));
        }
    }
    if let Some(handle) = open(stage, WRITE) {
        stage.check(Op::Write { handle, offset: 0 }, b"x", cuts);
        stage.check(Op::Write { handle, offset: 8192 }, b"x", Wants::Any("append write"));
        let allocate = |mode: i32, offset| Op::Fallocate { handle, mode: mode as u32, offset, length: 5 };
        stage.check(allocate(0, 0), b"", cuts);
        stage.check(allocate(0, 16_384), b"", Wants::Any("append write"));
        stage.check(allocate(libc::FALLOC_FL_KEEP_SIZE, 20_000), b"", Wants::Any("append write"));
        for mode in [
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            libc::FALLOC_FL_ZERO_RANGE,
            libc::FALLOC_FL_COLLAPSE_RANGE,
            libc::FALLOC_FL_INSERT_RANGE,
        ] {
            stage.check(allocate(mode, 0), b"", cuts);
            stage.check(allocate(mode, 32_768), b"", cuts);
        }
    }
    if let Some(handle) = any {
        stage.check(Op::Flush { handle, lock_owner: 1 }, b"", Wants::Nothing);
        stage.check(Op::Release { handle, lock_owner: Some(1) }, b"", Wants::Nothing);
    }
}

#[test]
fn each_operation_needs_its_rights_and_no_more() {
    let mut covered = BTreeSet::new();
    for bits in 1..=Rights::READ_WRITE.bits() {
        let held = Rights::from_bits(bits).unwrap();
        let mut stage = Stage::new(held);
        on_names_seen(&mut stage);
        let root = stage.root;
        stage.check(Op::Opendir { node: root }, b"", Wants::All("list"));
        stage.check(Op::Getattr { node: root, handle: None }, b"", Wants::Nothing);
        if stage.has(Right::List) {
            let handle = opened(stage.guest.ask(&Op::Opendir { node: root }));
            stage.check(
                Op::Readdir { handle, cookie: 0, max_bytes: 4096, plus: true },
                b"",
                Wants::All("list"),
            );
        }
        if let Some(props) = stage.props() {
            on_handles(&mut stage, props.file);
            on_nodes(&mut stage, &props);
        }
        on_names(&mut stage);
        stage.check(Op::CancelLock { request: 9 }, b"", Wants::Nothing);
        stage.check(Op::Ping, b"", Wants::Nothing);
        stage.check(Op::TakeLeases, b"", Wants::Nothing);
        stage.check(Op::Recalled { id: 9 }, b"", Wants::Nothing);
        let nothing = strongroom_protocol::codec::encode_list(&Vec::<Node>::new()).unwrap();
        stage.check(Op::Forget, &nothing, Wants::Nothing);
        stage.check(Op::Bye, b"", Wants::Nothing);
        stage.check(Op::Reclaimed, b"", Wants::Nothing);
        covered.extend(stage.covered);
    }
    assert_eq!(covered, (0..KINDS).collect());
}

#[test]
fn denials_are_counted_apart() {
    let stage = Stage::new(Rights::READ_ONLY);
    let before = stage.guest.session.counters();
    assert_eq!(stage.guest.mkdir(stage.root, "d"), denied("create"));
    assert_eq!(stage.guest.unlink(stage.root, "file"), denied("delete"));
    let after = stage.guest.session.counters();
    assert_eq!((after.denied - before.denied, after.operations), (2, before.operations));
}
