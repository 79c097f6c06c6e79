//! Every request without each right that it needs, and what the bundles permit.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::atomic::{AtomicU32, Ordering};

use strongroom_contracts::{Right, Rights, SecretKey};
use strongroom_protocol::attr::{Handle, Lock, LockKind, Node, OpenFlags, SetAttr, SetTime, Time};
use strongroom_protocol::op::{Meant, Op, RenameMode, Slot};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::attacker::{APPEND, Attacker, BOTH, CREDENTIALS, READ, Reply, WRITE, named};
use crate::support::gateway::{Gateway, grant};

/// The last request of a case, or the refusal of one that it needs before.
type Prepared = Result<(Op, &'static [u8]), Reply>;

/// A request and the rights without which it must be refused.
struct Case {
    name: &'static str,
    /// Allowed if the contract covers one of these sets.
    needs: &'static [&'static str],
    /// Rights on which the design is silent for this request.
    open_question: &'static str,
    prepare: fn(&mut Attacker, Node) -> Prepared,
}

const fn case(
    name: &'static str,
    needs: &'static [&'static str],
    prepare: fn(&mut Attacker, Node) -> Prepared,
) -> Case {
    Case { name, needs, open_question: "", prepare }
}

const fn open_case(
    name: &'static str,
    needs: &'static [&'static str],
    open_question: &'static str,
    prepare: fn(&mut Attacker, Node) -> Prepared,
) -> Case {
    Case { name, needs, open_question, prepare }
}

fn node(session: &mut Attacker, root: Node, name: &str) -> Result<Node, Reply> {
    match session.lookup(root, name) {
        Reply::Ok(Outcome::Entry(entry), _) => Ok(entry.node),
        other => Err(other),
    }
}

fn open(session: &mut Attacker, root: Node, name: &str, flags: OpenFlags) -> Result<Handle, Reply> {
    let node = node(session, root, name)?;
    match session.open(node, flags) {
        Reply::Ok(Outcome::Opened(handle, _), _) => Ok(handle),
        other => Err(other),
    }
}

fn lock(kind: LockKind) -> Lock {
    Lock { owner: 1, pid: 1, start: 0, end: 9, kind }
}

fn setattr(session: &mut Attacker, root: Node, set: SetAttr) -> Prepared {
    let node = node(session, root, "file")?;
    Ok((Op::Setattr { node, handle: None, set, by: CREDENTIALS }, b""))
}

fn rename(root: Node, name: &str, new_name: &str, mode: RenameMode) -> Prepared {
    Ok((
        Op::Rename {
            parent: root,
            name: named(name),
            new_parent: root,
            new_name: named(new_name),
            mode,
            directory: Meant::Whichever,
        },
        b"",
    ))
}

const NOTHING: &[&str] = &[""];
const PUNCH: u32 = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
const LONG_AGO: SetTime = SetTime::At(Time { secs: 1000, nanos: 0 });

fn cases() -> Vec<Case> {
    let by = CREDENTIALS;
    let _ = by;
    vec![
        case("lookup", &["list"], |_, root| Ok((Op::Lookup { parent: root, name: named("file") }, b""))),
        case("resolve", &["list"], |_, root| Ok((Op::Resolve { grant: 0, ino: root.ino + 1 }, b""))),
        case("forget", NOTHING, |_, _| Ok((Op::Forget, b""))),
        case("getattr", &["list"], |s, root| {
            Ok((Op::Getattr { node: node(s, root, "file")?, handle: None }, b""))
        }),
        case("measure", &["list"], |s, root| {
            Ok((Op::Measure { node: node(s, root, "file")?, handle: None }, b""))
        }),
        case("chmod", &["list attr"], |s, root| {
            setattr(s, root, SetAttr { mode: Some(0o600), ..SetAttr::default() })
        }),
        case("utimens", &["list attr"], |s, root| {
            setattr(s, root, SetAttr { mtime: Some(LONG_AGO), atime: Some(LONG_AGO), ..SetAttr::default() })
        }),
        case("truncate", &["list write"], |s, root| {
            setattr(s, root, SetAttr { size: Some(2), ..SetAttr::default() })
        }),
        case("truncate to nothing", &["list write"], |s, root| {
            setattr(s, root, SetAttr { size: Some(0), ..SetAttr::default() })
        }),
        case("extend", &["list append", "list write"], |s, root| {
            setattr(s, root, SetAttr { size: Some(100), ..SetAttr::default() })
        }),
        case("chmod and cut in one", &["list write attr"], |s, root| {
            setattr(s, root, SetAttr { size: Some(2), mode: Some(0o600), ..SetAttr::default() })
        }),
        case("readlink", &["list read"], |s, root| Ok((Op::Readlink { node: node(s, root, "link")? }, b""))),
        case("open to read", &["list read"], |s, root| {
            Ok((Op::Open { node: node(s, root, "file")?, flags: READ }, b""))
        }),
        case("open to write", &["list write", "list append"], |s, root| {
            Ok((Op::Open { node: node(s, root, "file")?, flags: WRITE }, b""))
        }),
        case("open to append", &["list write", "list append"], |s, root| {
            Ok((Op::Open { node: node(s, root, "file")?, flags: APPEND }, b""))
        }),
        case("open to read and write", &["list read write", "list read append"], |s, root| {
            Ok((Op::Open { node: node(s, root, "file")?, flags: BOTH }, b""))
        }),
        case("open and cut", &["list write"], |s, root| {
            Ok((Op::Open { node: node(s, root, "file")?, flags: OpenFlags { truncate: true, ..WRITE } }, b""))
        }),
        case("opendir", &["list"], |_, root| Ok((Op::Opendir { node: root }, b""))),
        case("create", &["create"], |_, root| {
            let flags = OpenFlags { exclusive: true, ..WRITE };
            Ok((Op::Create { parent: root, name: named("new"), mode: 0o644, flags, by: CREDENTIALS }, b""))
        }),
        open_case("open by creating, to read", &["list read"], "list create", |_, root| {
            Ok((
                Op::Create { parent: root, name: named("file"), mode: 0o644, flags: READ, by: CREDENTIALS },
                b"",
            ))
        }),
        open_case("cut by creating", &["list write"], "list create", |_, root| {
            let flags = OpenFlags { truncate: true, ..WRITE };
            Ok((Op::Create { parent: root, name: named("file"), mode: 0o644, flags, by: CREDENTIALS }, b""))
        }),
        case("read", &["list read"], |s, root| {
            Ok((Op::Read { handle: open(s, root, "file", READ)?, offset: 0, length: 10 }, b""))
        }),
        case("overwrite", &["list write"], |s, root| {
            Ok((Op::Write { handle: open(s, root, "file", WRITE)?, offset: 0 }, b"XYZ"))
        }),
        case("overwrite and extend", &["list write"], |s, root| {
            Ok((Op::Write { handle: open(s, root, "file", WRITE)?, offset: 5 }, b"XYZ"))
        }),
        case("append", &["list write", "list append"], |s, root| {
            Ok((Op::Write { handle: open(s, root, "file", WRITE)?, offset: 7 }, b"more"))
        }),
        case("append with O_APPEND", &["list write", "list append"], |s, root| {
            Ok((Op::Write { handle: open(s, root, "file", APPEND)?, offset: 0 }, b"more"))
        }),
        case("flush", &["list read"], |s, root| {
            Ok((Op::Flush { handle: open(s, root, "file", READ)?, lock_owner: 1 }, b""))
        }),
        case("fsync", &["list read"], |s, root| {
            Ok((Op::Fsync { handle: open(s, root, "file", READ)?, data_only: false }, b""))
        }),
        case("release", &["list read"], |s, root| {
            Ok((Op::Release { handle: open(s, root, "file", READ)?, lock_owner: None }, b""))
        }),
        case("reopen to read", &["list read"], |s, root| {
            let node = node(s, root, "file")?;
            Ok((Op::Reopen { node, flags: READ, created: false, directory: false }, b""))
        }),
        case("reopen to write", &["list write", "list append"], |s, root| {
            let node = node(s, root, "file")?;
            Ok((Op::Reopen { node, flags: WRITE, created: false, directory: false }, b""))
        }),
        case("reopen a directory", &["list"], |_, root| {
            Ok((Op::Reopen { node: root, flags: READ, created: false, directory: true }, b""))
        }),
        case("readdir", &["list"], |s, root| match s.call(Op::Opendir { node: root }) {
            Reply::Ok(Outcome::Opened(handle, _), _) => {
                Ok((Op::Readdir { handle, cookie: 0, max_bytes: 4096, plus: true }, b""))
            }
            other => Err(other),
        }),
        case("mkdir", &["create"], |_, root| {
            Ok((Op::Mkdir { parent: root, name: named("new"), mode: 0o755, by: CREDENTIALS }, b""))
        }),
        case("mknod", &["create"], |_, root| {
            let mode = libc::S_IFREG | 0o644;
            Ok((Op::Mknod { parent: root, name: named("new"), mode, rdev: 0, by: CREDENTIALS }, b""))
        }),
        case("mkfifo", &["create"], |_, root| {
            let mode = libc::S_IFIFO | 0o644;
            Ok((Op::Mknod { parent: root, name: named("new"), mode, rdev: 0, by: CREDENTIALS }, b""))
        }),
        case("symlink", &["create"], |_, root| {
            Ok((Op::Symlink { parent: root, name: named("new"), by: CREDENTIALS }, b"file"))
        }),
        case("link", &["list create"], |s, root| {
            Ok((Op::Link { node: node(s, root, "file")?, parent: root, name: named("new") }, b""))
        }),
        open_case("unlink", &["delete"], "list", |_, root| {
            Ok((Op::Unlink { parent: root, name: named("file") }, b""))
        }),
        open_case("rmdir", &["delete"], "list", |_, root| {
            Ok((Op::Rmdir { parent: root, name: named("empty"), directory: Meant::Whichever }, b""))
        }),
        open_case("rename", &["create delete"], "list", |_, root| {
            rename(root, "file", "new", RenameMode::Replace)
        }),
        open_case("rename without replacing", &["create delete"], "list", |_, root| {
            rename(root, "file", "new", RenameMode::NoReplace)
        }),
        open_case("replace by rename", &["create delete"], "list", |_, root| {
            rename(root, "file", "other", RenameMode::Replace)
        }),
        open_case("exchange", &["delete"], "list create", |_, root| {
            rename(root, "file", "other", RenameMode::Exchange)
        }),
        case("preallocate", &["list write", "list append"], |s, root| {
            let handle = open(s, root, "file", WRITE)?;
            Ok((Op::Fallocate { handle, mode: 0, offset: 7, length: 4096 }, b""))
        }),
        case("punch a hole", &["list write"], |s, root| {
            let handle = open(s, root, "file", WRITE)?;
            Ok((Op::Fallocate { handle, mode: PUNCH, offset: 0, length: 4 }, b""))
        }),
        case("seek", &["list read"], |s, root| {
            Ok((Op::Seek { handle: open(s, root, "file", READ)?, offset: 0, hole: true }, b""))
        }),
        case("copy over", &["list read write"], |s, root| {
            let (from, to) = (open(s, root, "other", READ)?, open(s, root, "file", WRITE)?);
            Ok((Op::CopyRange { from, from_offset: 0, to, to_offset: 0, length: 5 }, b""))
        }),
        case("copy to the end", &["list read write", "list read append"], |s, root| {
            let (from, to) = (open(s, root, "other", READ)?, open(s, root, "file", WRITE)?);
            Ok((Op::CopyRange { from, from_offset: 0, to, to_offset: 7, length: 5 }, b""))
        }),
        open_case("statfs", NOTHING, "list", |_, root| Ok((Op::Statfs { node: root }, b""))),
        case("getxattr", &["list read"], |s, root| {
            Ok((Op::Getxattr { node: node(s, root, "file")? }, b"user.a"))
        }),
        open_case("listxattr", &["list"], "read", |s, root| {
            Ok((Op::Listxattr { node: node(s, root, "file")? }, b""))
        }),
        case("setxattr", &["list attr"], |s, root| {
            Ok((Op::Setxattr { node: node(s, root, "file")?, name_length: 6, flags: 0 }, b"user.bvalue"))
        }),
        case("removexattr", &["list attr"], |s, root| {
            Ok((Op::Removexattr { node: node(s, root, "file")? }, b"user.a"))
        }),
        case("getlock", &["list read"], |s, root| {
            Ok((Op::GetLock { handle: open(s, root, "file", READ)?, lock: lock(LockKind::Exclusive) }, b""))
        }),
        case("setlock", &["list read"], |s, root| {
            let handle = open(s, root, "file", READ)?;
            Ok((Op::SetLock { handle, lock: lock(LockKind::Shared), wait: false, reclaim: false }, b""))
        }),
        case("cancel-lock", NOTHING, |_, _| Ok((Op::CancelLock { request: 12_345 }, b""))),
        case("ping", NOTHING, |_, _| Ok((Op::Ping, b""))),
        case("bye", NOTHING, |_, _| Ok((Op::Bye, b""))),
        case("reclaimed", NOTHING, |_, _| Ok((Op::Reclaimed, b""))),
        case("take leases", NOTHING, |_, _| Ok((Op::TakeLeases, b""))),
        case("recalled", NOTHING, |_, _| Ok((Op::Recalled { id: 1 }, b""))),
        case("open and read", &["list read"], |s, root| {
            Ok((Op::OpenRead { node: node(s, root, "file")?, flags: READ, offset: 0, length: 10 }, b""))
        }),
        case("open to write, and read", &["list read write", "list read append"], |s, root| {
            Ok((Op::OpenRead { node: node(s, root, "file")?, flags: BOTH, offset: 0, length: 10 }, b""))
        }),
        case("list", &["list"], |_, root| {
            Ok((Op::List { node: root, cookie: 0, max_bytes: 4096, plus: true, ahead: true }, b""))
        }),
        case("read many files", &["list read"], |s, root| {
            let file = node(s, root, "file")?;
            // The test is over before many of these are made.
            let list: &'static [u8] = Box::leak(Box::new(file.ino.to_le_bytes()));
            Ok((Op::ReadFiles { grant: 0, longest: 100, max_bytes: 4096 }, list))
        }),
    ]
}

/// The kinds of requests, numbered. A new one does not compile until it is here, and the test below does not pass until
/// [`cases`] has it.
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
pub const KINDS: usize = 43;

/// A directory of its own for one try, which is the whole grant; returns its data path.
fn stage(gateway: &Gateway) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let path = format!("users/alice/Documents/s{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let base = gateway.data(&path);
    std::fs::create_dir(&base).unwrap();
    std::fs::write(base.join("file"), b"content").unwrap();
    std::fs::write(base.join("other"), b"other").unwrap();
    std::fs::create_dir(base.join("empty")).unwrap();
    symlink("file", base.join("link")).unwrap();
    rustix::fs::setxattr(base.join("file"), "user.a", b"b", rustix::fs::XattrFlags::empty())
        .expect("the directory for temporary files keeps user extended attributes");
    path
}

/// A session with these rights on a new stage. The root is known even if it is not told.
fn enter(gateway: &Gateway, rights: Rights) -> (Attacker, Node, String) {
    let (holder, path) = (SecretKey::generate().unwrap(), stage(gateway));
    let chain = gateway.contract("editor", &holder.public(), &[grant(&path, "/stage", rights)]);
    let session = gateway.enter(&holder, &chain);
    let ino = std::fs::metadata(gateway.data(&path)).unwrap().ino();
    (session, Node { grant: 0, ino }, path)
}

fn attempt(gateway: &Gateway, case: &Case, rights: Rights, kinds: &mut BTreeSet<usize>) {
    let (mut session, root, path) = enter(gateway, rights);
    let before = gateway.snapshot(&path);
    let allowed = case.needs.iter().any(|set| set.is_empty() || rights.covers(set.parse().unwrap()));
    let lacks_list = !rights.has(Right::List);
    let what = format!("{} with {rights}", case.name);
    let reply = match (case.prepare)(&mut session, root) {
        Err(refused) => refused,
        Ok((op, data)) => {
            kinds.insert(kind(&op));
            match op {
                Op::Forget => {
                    session.send(Slot::default(), Op::Forget, data).unwrap();
                    session.call(Op::Ping)
                }
                Op::Recalled { .. } => {
                    session.send(Slot::default(), op, data).unwrap();
                    session.call(Op::Ping)
                }
                Op::Resolve { grant, .. } => {
                    let ino = std::fs::metadata(gateway.data(&path).join("file")).unwrap().ino();
                    session.call_with(Op::Resolve { grant, ino }, b"file")
                }
                op => session.call_with(op, data),
            }
        }
    };
    if allowed {
        assert!(reply.is_ok(), "{what} should be carried out: {reply:?}");
    } else {
        let failure = reply.refused().unwrap_or_else(|| panic!("{what}: the connection was closed"));
        match failure {
            Failure::Denied { missing } => {
                assert!(!missing.is_empty(), "{what}: nothing is missing");
                assert!(missing.meet(rights).is_empty(), "{what}: {missing} is not missing");
            }
            // Without `list`, what is there and what is not must look alike.
            Failure::Stale => assert!(lacks_list, "{what}: {failure:?}"),
            Failure::Errno(number) => {
                assert!(lacks_list && i32::from(number) == libc::ENOENT, "{what}: {failure:?}");
            }
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(gateway.snapshot(&path), before, "{what} had an effect");
    }
    session.bye();
}

#[test]
fn every_request_without_each_right() {
    let gateway = Gateway::start();
    let mut kinds = BTreeSet::new();
    for case in cases() {
        attempt(&gateway, &case, Rights::READ_WRITE, &mut kinds);
        for missing in Right::ALL {
            if !case.open_question.split(' ').any(|name| name == missing.name()) {
                attempt(&gateway, &case, Rights::READ_WRITE.without(Rights::only(missing)), &mut kinds);
            }
        }
    }
    assert_eq!(kinds, (0..KINDS).collect(), "every kind of request has a case");
    gateway.wait_audit(&[
        ("event", "denied"),
        ("application", "editor"),
        ("op", "unlink"),
        ("outcome", "delete"),
    ]);
}

#[test]
fn every_request_under_the_bundles_and_with_one_right_only() {
    let gateway = Gateway::start();
    let bundles = [Rights::READ_ONLY, Rights::APPEND_ONLY, Rights::DROP_BOX];
    let sets: Vec<_> = bundles.into_iter().chain(Right::ALL.into_iter().map(Rights::only)).collect();
    for case in cases() {
        let open: Vec<_> = case.open_question.split(' ').collect();
        for rights in &sets {
            // Where the design is silent about a right that is missing here, either answer is right.
            if Right::ALL.iter().all(|right| rights.has(*right) || !open.contains(&right.name())) {
                attempt(&gateway, &case, *rights, &mut BTreeSet::new());
            }
        }
    }
}

#[test]
fn a_drop_box_takes_and_does_not_tell() {
    let gateway = Gateway::start();
    let (mut session, root, path) = enter(&gateway, Rights::DROP_BOX);
    // What is there and what is not look alike.
    let present = session.lookup(root, "file").failure();
    let absent = session.lookup(root, "no such file").failure();
    assert_eq!(present, absent);
    let ino = |name: &str| std::fs::symlink_metadata(gateway.data(&path).join(name)).unwrap().ino();
    let known = [ino("file"), ino("other"), ino("empty"), ino("link")];
    for (there, not) in [
        (
            Op::Getattr { node: Node { grant: 0, ino: known[0] }, handle: None },
            Op::Getattr { node: Node { grant: 0, ino: 1 << 40 }, handle: None },
        ),
        (
            Op::Open { node: Node { grant: 0, ino: known[0] }, flags: READ },
            Op::Open { node: Node { grant: 0, ino: 1 << 40 }, flags: READ },
        ),
        (Op::Resolve { grant: 0, ino: known[0] }, Op::Resolve { grant: 0, ino: 1 << 40 }),
        (
            Op::Unlink { parent: root, name: named("file") },
            Op::Unlink { parent: root, name: named("nothing") },
        ),
        (
            Op::Rmdir { parent: root, name: named("empty"), directory: Meant::Whichever },
            Op::Rmdir { parent: root, name: named("nothing"), directory: Meant::Whichever },
        ),
    ] {
        let what = there.name();
        let (there, not) = (session.call_with(there, b""), session.call_with(not, b""));
        assert_eq!(there.failure(), not.failure(), "{what}");
    }
    let (there, not) = (
        session.call_with(Op::Resolve { grant: 0, ino: known[0] }, b"file").failure(),
        session.call_with(Op::Resolve { grant: 0, ino: known[0] }, b"nothing").failure(),
    );
    assert_eq!(there, not);
    assert!(session.list(root).is_err());

    // Its own file may be written while it is open, and then only extended; it is never read back.
    let created = session.create(root, "mine", OpenFlags { exclusive: true, ..WRITE }).ok().0;
    let Outcome::Created(handle, entry) = created else { panic!("{created:?}") };
    session.write(handle, 0, b"first").ok();
    session.write(handle, 0, b"FIRST").ok();
    assert_eq!(session.call(Op::Getattr { node: entry.node, handle: Some(handle) }).attr().size, 5);
    session.read(handle, 0, 5).failure();
    session.call(Op::Release { handle, lock_owner: None }).ok();
    for flags in [READ, BOTH, OpenFlags { truncate: true, ..WRITE }] {
        assert!(matches!(session.open(entry.node, flags).failure(), Failure::Denied { .. }));
    }
    let again = session.open(entry.node, WRITE);
    if again.is_ok() {
        let handle = again.handle();
        assert!(matches!(session.write(handle, 0, b"xxxxx").failure(), Failure::Denied { .. }));
        session.write(handle, 5, b"+").ok();
    }
    assert!(std::fs::read(gateway.data(&path).join("mine")).unwrap().starts_with(b"FIRST"));
    for flags in [BOTH, READ] {
        let name = if flags.write { "rw" } else { "ro" };
        let created = session.create(root, name, flags);
        if created.is_ok() {
            let handle = created.handle();
            session.read(handle, 0, 10).failure();
        }
    }
    session.call(Op::Unlink { parent: root, name: named("mine") }).failure();
}

#[test]
fn append_only_never_changes_what_is_there() {
    let gateway = Gateway::start();
    let (mut session, root, path) = enter(&gateway, Rights::APPEND_ONLY);
    let file = session.lookup(root, "file").entry().node;
    let own = session.create(root, "own", OpenFlags { exclusive: true, ..BOTH }).handle();
    session.write(own, 0, b"own").ok();
    session.write(own, 1, b"WN").ok();

    // The creator's handle serves its own file only.
    let cut = SetAttr { size: Some(0), ..SetAttr::default() };
    session.call(Op::Setattr { node: file, handle: Some(own), set: cut, by: CREDENTIALS }).failure();
    let bits = SetAttr { mode: Some(0o777), ..SetAttr::default() };
    session.call(Op::Setattr { node: file, handle: Some(own), set: bits, by: CREDENTIALS }).failure();
    // A create that finds the file creates nothing.
    let found = session.create(root, "file", BOTH);
    if found.is_ok() {
        let handle = found.handle();
        assert!(matches!(session.write(handle, 0, b"X").failure(), Failure::Denied { .. }));
        let set = SetAttr { size: Some(1), ..SetAttr::default() };
        session.call(Op::Setattr { node: file, handle: Some(handle), set, by: CREDENTIALS }).failure();
    }
    session.create(root, "file", OpenFlags { truncate: true, ..WRITE }).failure();
    let handle = session.open(file, WRITE).handle();
    for offset in [0, 1, 6] {
        assert!(
            matches!(session.write(handle, offset, b"X").failure(), Failure::Denied { .. }),
            "offset {offset}"
        );
    }
    // Modes of fallocate(2) that change bytes: punch, zero, collapse, insert, unshare.
    for mode in [3, 0x10, 0x11, 0x08, 0x20, 0x40] {
        session.call(Op::Fallocate { handle, mode, offset: 0, length: 4096 }).failure();
    }
    let from = session.lookup(root, "other").entry().node;
    let from = session.open(from, READ).handle();
    session.call(Op::CopyRange { from, from_offset: 0, to: handle, to_offset: 2, length: 5 }).failure();
    // A second name for the file, made by this very session, does not help.
    let again = session.call(Op::Link { node: file, parent: root, name: named("again") });
    if again.is_ok() {
        let node = session.lookup(root, "again").entry().node;
        session.open(node, OpenFlags { truncate: true, ..WRITE }).failure();
        session
            .call(Op::Rename {
                parent: root,
                name: named("again"),
                new_parent: root,
                new_name: named("file"),
                mode: RenameMode::Replace,
                directory: Meant::Whichever,
            })
            .failure();
    }
    assert_eq!(std::fs::read(gateway.data(&path).join("file")).unwrap(), b"content");
    session.write(handle, 7, b" and more").ok();
    let appended = session.open(file, APPEND).handle();
    session.write(appended, 0, b"!").ok();
    assert_eq!(std::fs::read(gateway.data(&path).join("file")).unwrap(), b"content and more!");
    // Once released, the creator is like anyone else.
    session.call(Op::Release { handle: own, lock_owner: None }).ok();
    let own_node = session.lookup(root, "own").entry().node;
    let own = session.open(own_node, WRITE).handle();
    assert!(matches!(session.write(own, 0, b"X").failure(), Failure::Denied { .. }));
    assert_eq!(std::fs::read(gateway.data(&path).join("own")).unwrap(), b"oWN");
}

#[test]
fn the_creators_handle_does_not_follow_a_name() {
    let gateway = Gateway::start();
    // Create and delete, but not write: what may be overwritten is exactly what this handle made.
    let rights: Rights = "list read create delete".parse().unwrap();
    let (mut session, root, path) = enter(&gateway, rights);
    let own = session.create(root, "own", OpenFlags { exclusive: true, ..WRITE }).handle();
    let rename = |name: &str, new_name: &str| Op::Rename {
        parent: root,
        name: named(name),
        new_parent: root,
        new_name: named(new_name),
        mode: RenameMode::Exchange,
        directory: Meant::Whichever,
    };
    session.call(rename("own", "file")).ok();
    session.write(own, 0, b"written").ok();
    assert_eq!(
        std::fs::read(gateway.data(&path).join("own")).unwrap(),
        b"content",
        "the file that was there"
    );
    assert_eq!(std::fs::read(gateway.data(&path).join("file")).unwrap(), b"written");
    // By its new name, the file that was there is as closed as before.
    let node = session.lookup(root, "own").entry().node;
    assert!(matches!(session.open(node, WRITE).failure(), Failure::Denied { .. }));
    let reopened = session.call(Op::Reopen { node, flags: WRITE, created: true, directory: false });
    reopened.failure();
    // Removed and made again by an administrator: a new file, whatever its inode number.
    session.call(Op::Unlink { parent: root, name: named("file") }).ok();
    std::fs::write(gateway.data(&path).join("file"), b"another").unwrap();
    let _ = session.write(own, 0, b"WRITTEN");
    let node = session.lookup(root, "file").entry().node;
    session.call(Op::Reopen { node, flags: WRITE, created: true, directory: false }).failure();
    assert_eq!(std::fs::read(gateway.data(&path).join("file")).unwrap(), b"another");
}
