//! Nodes and handles that were never given to this session.

use std::os::unix::fs::MetadataExt;

use strongroom_contracts::{Rights, SecretKey};
use strongroom_protocol::attr::{Credentials, Handle, Lock, LockKind, Node, SetAttr};
use strongroom_protocol::op::{Meant, Op, RenameMode};
use strongroom_protocol::reply::Failure;

use crate::support::attacker::{Attacker, BOTH, CREDENTIALS, READ, Reply, named};
use crate::support::gateway::{Gateway, SECRET, grant};

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

/// A session of `application` with these read-write grants.
fn session(gateway: &Gateway, application: &str, paths: &[(&str, &str)]) -> (Attacker, SecretKey) {
    let holder = key();
    let grants: Vec<_> = paths.iter().map(|(data, mount)| grant(data, mount, Rights::READ_WRITE)).collect();
    let chain = gateway.contract(application, &holder.public(), &grants);
    (gateway.enter(&holder, &chain), holder)
}

fn ino(gateway: &Gateway, path: &str) -> u64 {
    std::fs::metadata(gateway.data(path)).unwrap().ino()
}

const LOCK: Lock = Lock { owner: 1, pid: 1, start: 0, end: 9, kind: LockKind::Exclusive };

/// Everything that can be asked of a handle.
fn handle_ops(handle: Handle, own: Handle, own_node: Node) -> Vec<(Op, &'static [u8])> {
    vec![
        (Op::Read { handle, offset: 0, length: 4096 }, b""),
        (Op::Write { handle, offset: 0 }, b"overwritten"),
        (Op::Flush { handle, lock_owner: 1 }, b""),
        (Op::Fsync { handle, data_only: false }, b""),
        (Op::Readdir { handle, cookie: 0, max_bytes: 4096, plus: true }, b""),
        (Op::Fallocate { handle, mode: 0, offset: 0, length: 4096 }, b""),
        (Op::Seek { handle, offset: 0, hole: false }, b""),
        (Op::CopyRange { from: handle, from_offset: 0, to: own, to_offset: 0, length: 10 }, b""),
        (Op::CopyRange { from: own, from_offset: 0, to: handle, to_offset: 0, length: 10 }, b""),
        (Op::GetLock { handle, lock: LOCK }, b""),
        (Op::SetLock { handle, lock: LOCK, wait: false, reclaim: false }, b""),
        (Op::Release { handle, lock_owner: None }, b""),
        (Op::Getattr { node: own_node, handle: Some(handle) }, b""),
        (
            Op::Setattr {
                node: own_node,
                handle: Some(handle),
                set: SetAttr { size: Some(0), ..SetAttr::default() },
                by: CREDENTIALS,
            },
            b"",
        ),
    ]
}

/// Everything that can be asked of a node, without changing `own`.
fn node_ops(node: Node, own: Node) -> Vec<(Op, &'static [u8])> {
    let name = || named("x");
    let by: Credentials = CREDENTIALS;
    vec![
        (Op::Lookup { parent: node, name: named("secret") }, b""),
        (Op::Getattr { node, handle: None }, b""),
        (
            Op::Setattr { node, handle: None, set: SetAttr { mode: Some(0o777), ..SetAttr::default() }, by },
            b"",
        ),
        (Op::Readlink { node }, b""),
        (Op::Open { node, flags: READ }, b""),
        (Op::Open { node, flags: BOTH }, b""),
        (Op::Opendir { node }, b""),
        (Op::Create { parent: node, name: name(), mode: 0o644, flags: BOTH, by }, b""),
        (Op::Mkdir { parent: node, name: name(), mode: 0o755, by }, b""),
        (Op::Mknod { parent: node, name: name(), mode: libc::S_IFREG | 0o644, rdev: 0, by }, b""),
        (Op::Symlink { parent: node, name: name(), by }, b"target"),
        (Op::Link { node, parent: own, name: name() }, b""),
        (Op::Unlink { parent: node, name: named("secret") }, b""),
        (Op::Rmdir { parent: node, name: named("secret"), directory: Meant::Whichever }, b""),
        (
            Op::Rename {
                parent: node,
                name: named("secret"),
                new_parent: own,
                new_name: name(),
                mode: RenameMode::Replace,
                directory: Meant::Whichever,
            },
            b"",
        ),
        (
            Op::Rename {
                parent: own,
                name: named("report"),
                new_parent: node,
                new_name: name(),
                mode: RenameMode::Replace,
                directory: Meant::Whichever,
            },
            b"",
        ),
        (
            Op::Rename {
                parent: node,
                name: named("secret"),
                new_parent: own,
                new_name: named("report"),
                mode: RenameMode::Exchange,
                directory: Meant::Whichever,
            },
            b"",
        ),
        (Op::Statfs { node }, b""),
        (Op::Getxattr { node }, b"user.a"),
        (Op::Listxattr { node }, b""),
        (Op::Setxattr { node, name_length: 6, flags: 0 }, b"user.aB"),
        (Op::Removexattr { node }, b"user.a"),
        (Op::Reopen { node, flags: BOTH, created: true, directory: false }, b""),
        (Op::Reopen { node, flags: READ, created: false, directory: true }, b""),
    ]
}

#[track_caller]
fn bad_handle(what: &str, reply: Reply) {
    let failure = reply.refused();
    let expected = matches!(failure, Some(Failure::BadHandle | Failure::Stale))
        || failure == Some(Failure::Errno(libc::EBADF as u16));
    assert!(expected, "{what}: {failure:?}");
}

#[track_caller]
fn unknown_node(what: &str, reply: Reply) {
    let failure = reply.refused();
    assert!(
        matches!(
            failure,
            Some(Failure::Stale | Failure::Malformed | Failure::Denied { .. } | Failure::CrossGrant)
        ),
        "{what}: {failure:?}"
    );
}

#[test]
fn handles_of_another_session_are_unknown() {
    let gateway = Gateway::start();
    let (mut owner, _) = session(&gateway, "mail", &[("users/alice/Mail", "/Mail")]);
    let (mut thief, _) = session(&gateway, "editor", &[("users/alice/Documents", "/Documents")]);
    let letter = owner.find(0, "inbox/1");
    let directory = owner.find(0, "inbox");
    let (file, listing) =
        (owner.open(letter, BOTH).handle(), owner.call(Op::Opendir { node: directory }).handle());
    let report = thief.find(0, "report");
    let own = thief.open(report, BOTH).handle();
    let before = gateway.snapshot("users");
    for handle in [file, listing] {
        // The numbers may be equal by chance; then they must mean the thief's own file, which `before` shows.
        if handle == own {
            continue;
        }
        for (op, data) in handle_ops(handle, own, report) {
            let what = format!("{op:?}");
            bad_handle(&what, thief.call_with(op, data));
        }
    }
    assert_eq!(gateway.snapshot("users"), before);
    assert_eq!(owner.read(file, 0, 100).data(), b"a letter\n", "the owner's handle still works");
    gateway.wait_audit(&[("event", "denied"), ("application", "editor"), ("outcome", "unknown handle")]);
}

#[test]
fn guessed_and_released_handles_are_unknown() {
    let gateway = Gateway::start();
    let (mut thief, _) = session(&gateway, "editor", &[("users/alice/Documents", "/Documents")]);
    let report = thief.find(0, "report");
    let own = thief.open(report, BOTH).handle();
    let released = thief.open(report, BOTH).handle();
    thief.call(Op::Release { handle: released, lock_owner: None }).ok();
    let before = gateway.snapshot("users");
    let guesses = (0..64).chain((0..63).map(|bit| 1 << bit)).chain([u64::MAX, u64::MAX - 1]);
    for guess in guesses.map(Handle).filter(|handle| *handle != own) {
        bad_handle(&format!("{guess:?}"), thief.read(guess, 0, 10));
        bad_handle(&format!("{guess:?}"), thief.write(guess, 0, b"overwritten"));
    }
    for (op, data) in handle_ops(released, own, report) {
        let what = format!("{op:?}");
        bad_handle(&what, thief.call_with(op, data));
    }
    assert_eq!(gateway.snapshot("users"), before);
    assert!(thief.is_alive());
}

#[test]
fn a_handle_of_another_kind_or_file_does_not_help() {
    let gateway = Gateway::start();
    let (mut thief, _) = session(&gateway, "editor", &[("users/alice/Documents", "/Documents")]);
    let root = thief.root(0);
    let report = thief.find(0, "report");
    let directory = thief.call(Op::Opendir { node: root }).handle();
    let file = thief.open(report, READ).handle();
    for reply in [
        thief.read(directory, 0, 10),
        thief.write(directory, 0, b"x"),
        thief.call(Op::Readdir { handle: file, cookie: 0, max_bytes: 4096, plus: false }),
        thief.write(file, 0, b"written through a handle for reading"),
        thief.call(Op::Fallocate { handle: file, mode: 0, offset: 0, length: 100 }),
    ] {
        reply.failure();
    }
    assert_eq!(std::fs::read(gateway.data("users/alice/Documents/report")).unwrap(), b"a report\n");
}

#[test]
fn nodes_outside_are_unknown_however_they_are_named() {
    let gateway = Gateway::start();
    let (mut owner, _) = session(&gateway, "mail", &[("users/alice/Mail", "/Mail"), ("shared", "/shared")]);
    let (mut thief, _) =
        session(&gateway, "editor", &[("users/alice/Documents", "/Documents"), ("shared", "/shared")]);
    // The owner has made the gateway know all of its nodes.
    let letter = owner.find(0, "inbox/1");
    owner.find(1, "note");
    let own = thief.root(0);
    thief.lookup(own, "report").entry();
    let before = gateway.snapshot("");

    let mut inodes: Vec<u64> = [
        "",
        "users",
        "users/bob",
        "users/bob/secret",
        "users/alice",
        "users/alice/Mail",
        "users/alice/Mail/inbox",
    ]
    .iter()
    .map(|path| ino(&gateway, path))
    .collect();
    inodes.push(letter.ino);
    for inode in inodes {
        for grant in [0, 1] {
            let node = Node { grant, ino: inode };
            for (op, data) in node_ops(node, own) {
                let what = format!("{op:?}");
                unknown_node(&what, thief.call_with(op, data));
            }
        }
    }
    assert_eq!(gateway.snapshot(""), before);
    gateway.wait_audit(&[("event", "denied"), ("application", "editor"), ("outcome", "unknown node")]);
    assert!(thief.is_alive() && owner.is_alive());
}

#[test]
fn a_node_of_one_grant_does_not_serve_in_another() {
    let gateway = Gateway::start();
    let holder = key();
    let grants = [
        grant("users/alice/Documents", "/Documents", Rights::READ_ONLY),
        grant("shared", "/shared", Rights::READ_WRITE),
    ];
    let chain = gateway.contract("editor", &holder.public(), &grants);
    let mut thief = gateway.enter(&holder, &chain);
    let report = thief.find(0, "report");
    let own = thief.root(1);
    let before = gateway.snapshot("");
    // The read-only node, asked for under the grant that may write.
    for (op, data) in node_ops(Node { grant: 1, ..report }, own) {
        let what = format!("{op:?}");
        unknown_node(&what, thief.call_with(op, data));
    }
    for (op, data) in node_ops(Node { grant: 1, ino: thief.root(0).ino }, own) {
        let what = format!("{op:?}");
        unknown_node(&what, thief.call_with(op, data));
    }
    for grant in [2, 3, 63, 64, 255, u16::MAX] {
        for ino in [report.ino, own.ino, 0, 1, u64::MAX] {
            for (op, data) in node_ops(Node { grant, ino }, own) {
                let what = format!("{op:?}");
                unknown_node(&what, thief.call_with(op, data));
            }
        }
        thief.call(Op::Resolve { grant, ino: report.ino }).refused();
    }
    assert_eq!(gateway.snapshot(""), before);
}

#[test]
fn small_and_neighbouring_inode_numbers_are_unknown() {
    let gateway = Gateway::start();
    let (mut thief, _) = session(&gateway, "editor", &[("users/alice/Documents", "/Documents")]);
    let root = thief.root(0);
    let report = thief.find(0, "report");
    let near = |n: u64| n.saturating_sub(300)..n + 300;
    for ino in (0..1000).chain(near(root.ino)).chain(near(ino(&gateway, "users/bob/secret"))) {
        if ino != root.ino && ino != report.ino {
            unknown_node("getattr", thief.call(Op::Getattr { node: Node { grant: 0, ino }, handle: None }));
        }
    }
    assert!(thief.is_alive());
}

#[test]
fn resolve_finds_nothing_outside_and_nothing_else() {
    let gateway = Gateway::start();
    let (mut thief, _) = session(&gateway, "editor", &[("users/alice/Documents", "/Documents")]);
    std::fs::create_dir(gateway.data("users/alice/Documents/d")).unwrap();
    std::os::unix::fs::symlink("../../bob", gateway.data("users/alice/Documents/out")).unwrap();
    std::os::unix::fs::symlink("d", gateway.data("users/alice/Documents/in")).unwrap();
    std::fs::write(gateway.data("users/alice/Documents/d/f"), b"f").unwrap();
    let (bob, secret) = (ino(&gateway, "users/bob"), ino(&gateway, "users/bob/secret"));
    let f = ino(&gateway, "users/alice/Documents/d/f");
    let deep = vec![b'a'; 5000];
    let deep_path = [&b"d/".repeat(2100)[..], b"f"].concat();
    let long_name = [b"d/".as_slice(), &[b'x'; 256]].concat();
    let paths: &[&[u8]] = &[
        b"..",
        b"../../bob/secret",
        b"d/../../../bob/secret",
        b"d/..",
        b"./d/f",
        b"d/./f",
        b"/d/f",
        b"//d/f",
        b"/etc/passwd",
        b"d//f",
        b"d/f/",
        b"d\0/f",
        b"\0",
        b"out",
        b"out/secret",
        b"in/f",
        &deep,
        &deep_path,
        &long_name,
        b"users/bob/secret",
        b"report/secret",
    ];
    let root = thief.root(0);
    for path in paths {
        for ino in [bob, secret, f, root.ino] {
            let reply = thief.call_with(Op::Resolve { grant: 0, ino }, path);
            let failure = reply.refused();
            assert!(failure.is_some(), "{}: the connection was closed", path.escape_ascii());
        }
    }
    // The right path with another inode number; the right one.
    assert_eq!(thief.call_with(Op::Resolve { grant: 0, ino: secret }, b"d/f").failure(), Failure::Stale);
    assert_eq!(
        thief.call_with(Op::Resolve { grant: 0, ino: f }, b"d/f").entry().node,
        Node { grant: 0, ino: f }
    );
    assert_eq!(thief.call(Op::Resolve { grant: 0, ino: root.ino }).entry().node, root);
    thief.call_with(Op::Resolve { grant: 0, ino: root.ino }, &vec![b'/'; 1 << 20]).refused();
    assert!(thief.is_alive());
}

#[test]
fn handles_and_nodes_do_not_outlive_the_session() {
    let gateway = Gateway::start();
    let holder = key();
    let chain = gateway.contract(
        "editor",
        &holder.public(),
        &[grant("users/alice/Documents", "/Documents", Rights::READ_WRITE)],
    );
    let mut first = gateway.enter(&holder, &chain);
    let root = first.root(0);
    let report = first.find(0, "report");
    let handle = first.open(report, BOTH).handle();
    first.bye();
    // The same holder, the same contract, a new session.
    let mut second = gateway.enter(&holder, &chain);
    assert!(!second.welcome.resumed);
    bad_handle("read", second.read(handle, 0, 10));
    bad_handle("write", second.write(handle, 0, b"overwritten"));
    unknown_node("getattr", second.call(Op::Getattr { node: report, handle: None }));
    assert!(
        second.call(Op::Getattr { node: root, handle: None }).is_ok(),
        "the root is known from the welcome"
    );
    assert_eq!(std::fs::read(gateway.data("users/alice/Documents/report")).unwrap(), b"a report\n");
}

#[test]
fn a_claim_to_have_created_a_file_is_checked() {
    let gateway = Gateway::start();
    let holder = key();
    let chain = gateway.contract(
        "editor",
        &holder.public(),
        &[grant("users/alice/Documents", "/Documents", Rights::APPEND_ONLY)],
    );
    let mut thief = gateway.enter(&holder, &chain);
    let report = thief.find(0, "report");
    let reopened = thief.call(Op::Reopen { node: report, flags: BOTH, created: true, directory: false });
    if let Reply::Ok(..) = reopened {
        let handle = reopened.handle();
        thief.write(handle, 0, b"A").failure();
    } else {
        reopened.failure();
    }
    assert_eq!(std::fs::read(gateway.data("users/alice/Documents/report")).unwrap(), b"a report\n");
}

#[test]
fn a_file_moved_out_of_the_grant_is_gone_for_it() {
    let gateway = Gateway::start();
    let (mut narrow, _) = session(&gateway, "editor", &[("users/alice/Documents", "/Documents")]);
    let (mut wide, _) = session(&gateway, "keeper", &[("users", "/users")]);
    std::fs::create_dir(gateway.data("users/alice/Documents/d")).unwrap();
    std::fs::write(gateway.data("users/alice/Documents/d/f"), b"inside").unwrap();
    let (directory, file) = (narrow.find(0, "d"), narrow.find(0, "d/f"));
    let handle = narrow.open(file, BOTH).handle();
    let listing = narrow.call(Op::Opendir { node: directory }).handle();
    let (from, to) = (wide.find(0, "alice/Documents"), wide.find(0, "bob"));
    let moved = Op::Rename {
        parent: from,
        name: named("d"),
        new_parent: to,
        new_name: named("d"),
        mode: RenameMode::NoReplace,
        directory: Meant::Whichever,
    };
    wide.call(moved).ok();
    std::fs::write(gateway.data("users/bob/d/new"), SECRET).unwrap();
    std::fs::write(gateway.data("users/bob/d/f"), SECRET).unwrap();
    let before = gateway.snapshot("users");

    let root = narrow.root(0);
    for (op, data) in node_ops(directory, root).into_iter().chain(node_ops(file, root)) {
        let what = format!("{op:?}");
        narrow.call_with(op, data).refused().unwrap_or_else(|| panic!("{what}: the connection was closed"));
    }
    for reply in [
        narrow.read(handle, 0, 100),
        narrow.write(handle, 0, b"overwritten"),
        narrow.call(Op::Getattr { node: file, handle: Some(handle) }),
        narrow.call(Op::Readdir { handle: listing, cookie: 0, max_bytes: 4096, plus: true }),
    ] {
        reply.refused();
    }
    assert_eq!(gateway.snapshot("users"), before);
}
