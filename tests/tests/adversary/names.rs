//! Names, symlinks, hard links and renames that try to lead elsewhere.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use strongroom_contracts::{Rights, SecretKey};
use strongroom_protocol::attr::{Node, OpenFlags};
use strongroom_protocol::name::{MAX_PATH, Name};
use strongroom_protocol::op::{Meant, Op, RenameMode};
use strongroom_protocol::reply::Failure;

use crate::forge::rename_in_header;
use crate::support::attacker::{Attacker, BOTH, CREDENTIALS, READ, Reply, WRITE, named};
use crate::support::gateway::{Gateway, SECRET, grant};

/// A session with two read-write grants: 0 alice's documents, 1 what is shared.
fn world() -> (Gateway, Attacker) {
    let gateway = Gateway::start();
    let holder = SecretKey::generate().unwrap();
    let grants = [
        grant("users/alice/Documents", "/Documents", Rights::READ_WRITE),
        grant("shared", "/shared", Rights::READ_WRITE),
    ];
    let chain = gateway.contract("editor", &holder.public(), &grants);
    let session = gateway.enter(&holder, &chain);
    (gateway, session)
}

/// Every operation that carries a name, with `PLACEHOLDER` where the bad one goes.
fn named_ops(root: Node, file: Node) -> Vec<(Op, &'static [u8])> {
    let bad = || named("PLACEHOLDER");
    let (good, by, mode) = (named("good"), CREDENTIALS, RenameMode::Replace);
    let rename = |name: Name, new_name: Name, mode| Op::Rename {
        parent: root,
        name,
        new_parent: root,
        new_name,
        mode,
        directory: Meant::Whichever,
    };
    vec![
        (Op::Lookup { parent: root, name: bad() }, b""),
        (Op::Create { parent: root, name: bad(), mode: 0o644, flags: BOTH, by }, b""),
        (
            Op::Create {
                parent: root,
                name: bad(),
                mode: 0o644,
                flags: OpenFlags { truncate: true, ..WRITE },
                by,
            },
            b"",
        ),
        (Op::Mkdir { parent: root, name: bad(), mode: 0o755, by }, b""),
        (Op::Mknod { parent: root, name: bad(), mode: libc::S_IFREG | 0o644, rdev: 0, by }, b""),
        (Op::Symlink { parent: root, name: bad(), by }, b"target"),
        (Op::Link { node: file, parent: root, name: bad() }, b""),
        (Op::Unlink { parent: root, name: bad() }, b""),
        (Op::Rmdir { parent: root, name: bad(), directory: Meant::Whichever }, b""),
        (rename(bad(), good.clone(), mode), b""),
        (rename(named("report"), bad(), mode), b""),
        (rename(bad(), named("report"), RenameMode::Exchange), b""),
        (rename(named("report"), bad(), RenameMode::NoReplace), b""),
    ]
}

#[test]
fn bad_names_are_refused_in_every_operation() {
    let gateway = Gateway::start();
    let holder = SecretKey::generate().unwrap();
    let chain = gateway.contract(
        "editor",
        &holder.public(),
        &[grant("users/alice/Documents", "/Documents", Rights::READ_WRITE)],
    );
    let long = vec![b'n'; 256];
    let longer = vec![b'n'; 3500];
    let names: &[&[u8]] = &[
        b"",
        b".",
        b"..",
        b"/",
        b"a/b",
        b"../secret",
        b"../../bob/secret",
        b"/etc/passwd",
        b"report/",
        b"report\0",
        b"\0",
        b"a\0../../bob",
        &long,
        &longer,
    ];
    let before = gateway.snapshot("");
    let mut session = gateway.enter(&holder, &chain);
    for name in names {
        for n in 0..named_ops(session.root(0), session.root(0)).len() {
            // A refusal may cost the connection.
            if !session.is_alive() {
                session = gateway.enter(&holder, &chain);
            }
            let root = session.root(0);
            let file = session.find(0, "report");
            let (op, data) = named_ops(root, file).swap_remove(n);
            let what = format!("{} {}", op.name(), name.escape_ascii());
            let header = rename_in_header(&session.header(op), b"PLACEHOLDER", name);
            let failure = session.call_raw(&header, data).refused();
            let right = matches!(failure, None | Some(Failure::Malformed))
                || matches!(failure, Some(Failure::Errno(number)) if [libc::EINVAL, libc::ENAMETOOLONG].contains(&i32::from(number)));
            assert!(right, "{what}: {failure:?}");
        }
    }
    assert_eq!(gateway.snapshot(""), before);
    gateway.wait_audit(&[("event", "violation"), ("application", "editor")]);
    assert!(gateway.enter(&holder, &chain).is_alive());
}

#[test]
fn names_of_4_kib_do_not_fit_a_header() {
    let (gateway, mut session) = world();
    let root = session.root(0);
    let header = rename_in_header(
        &session.header(Op::Lookup { parent: root, name: named("PLACEHOLDER") }),
        b"PLACEHOLDER",
        &[b'n'; 4096],
    );
    // Our own channel refuses to send it; `frames` sends headers that are too long by hand.
    assert!(session.channel.sender.send(&header, &[]).is_err());
    assert!(session.is_alive());
    drop(gateway);
}

#[test]
fn names_are_bytes() {
    let (gateway, mut session) = world();
    let root = session.root(0);
    for bytes in [&b"\xff\xfe"[..], b"...", b"-rf *", b"\n", b"a\\b", &[0x80; 255], "ä\u{202e}".as_bytes()] {
        let name = Name::new(bytes).unwrap();
        let created = session.call(Op::Create {
            parent: root,
            name: name.clone(),
            mode: 0o644,
            flags: BOTH,
            by: CREDENTIALS,
        });
        created.handle();
        let path = gateway.data("users/alice/Documents").join(std::ffi::OsStr::from_bytes(bytes));
        assert!(path.is_file(), "{name}");
        let listed = session.list(root).unwrap();
        assert!(listed.iter().any(|entry| entry.name == name), "{name}");
        session.call(Op::Unlink { parent: root, name }).ok();
        assert!(!path.exists());
    }
    // What such names do to the audit trail: nothing. Every line is an object.
    let text = std::fs::read_to_string(gateway.state().join("audit.jsonl")).unwrap();
    for line in text.lines().filter(|line| !line.is_empty()) {
        assert!(serde_json::from_str::<serde_json::Map<_, _>>(line).is_ok(), "{line}");
    }
}

#[test]
fn symlinks_are_text() {
    let (gateway, mut session) = world();
    let root = session.root(0);
    let secret = gateway.data("users/bob/secret");
    let targets: &[&[u8]] = &[
        b"../../bob/secret",
        b"/etc/passwd",
        secret.as_os_str().as_bytes(),
        b"..",
        b"/",
        b"report",
        b"loop",
        &[b't'; MAX_PATH - 1],
    ];
    let before = gateway.snapshot("users/bob");
    for target in targets {
        let link = session
            .call_with(Op::Symlink { parent: root, name: named("loop"), by: CREDENTIALS }, target)
            .entry();
        assert_eq!(session.call(Op::Readlink { node: link.node }).data(), *target);
        assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
        // Nothing goes through it.
        for flags in [READ, WRITE, BOTH, OpenFlags { truncate: true, ..WRITE }] {
            let errno = session.open(link.node, flags).errno();
            assert!([libc::ELOOP, libc::EINVAL].contains(&errno), "{errno}");
        }
        for name in ["secret", "passwd", "report"] {
            assert_eq!(session.lookup(link.node, name).errno(), libc::ENOTDIR);
            session.create(link.node, name, BOTH).failure();
            session.call(Op::Unlink { parent: link.node, name: named(name) }).failure();
        }
        assert_eq!(session.call(Op::Opendir { node: link.node }).errno(), libc::ENOTDIR);
        session.call(Op::Reopen { node: link.node, flags: READ, created: false, directory: false }).failure();
        // Creating "over" it neither follows nor replaces it.
        session.create(root, "loop", OpenFlags { truncate: true, ..BOTH }).failure();
        assert_eq!(session.create(root, "loop", OpenFlags { exclusive: true, ..BOTH }).errno(), libc::EEXIST);
        session.call(Op::Unlink { parent: root, name: named("loop") }).ok();
    }
    assert_eq!(gateway.snapshot("users/bob"), before);
    for bad in [&b""[..], &[b't'; MAX_PATH], &vec![b't'; 1 << 20], b"a\0b"] {
        session.call_with(Op::Symlink { parent: root, name: named("loop"), by: CREDENTIALS }, bad).refused();
        assert!(std::fs::symlink_metadata(gateway.data("users/alice/Documents/loop")).is_err());
    }
    assert!(session.is_alive());
}

#[test]
fn attributes_of_a_symlink_are_its_own() {
    let (gateway, mut session) = world();
    let root = session.root(0);
    let link = session
        .call_with(Op::Symlink { parent: root, name: named("out"), by: CREDENTIALS }, b"../../bob/secret")
        .entry();
    assert_eq!(link.attr.size, 16);
    let before = gateway.snapshot("users/bob");
    use strongroom_protocol::attr::{SetAttr, SetTime, Time};
    for set in [
        SetAttr { mode: Some(0o777), ..SetAttr::default() },
        SetAttr { size: Some(0), ..SetAttr::default() },
        SetAttr { mtime: Some(SetTime::At(Time { secs: 1, nanos: 0 })), ..SetAttr::default() },
        SetAttr { uid: Some(1000), gid: Some(1000), ..SetAttr::default() },
    ] {
        // It may apply to the link itself.
        let _ = session.call(Op::Setattr { node: link.node, handle: None, set, by: CREDENTIALS });
    }
    session.call_with(Op::Setxattr { node: link.node, name_length: 6, flags: 0 }, b"user.aB").failure();
    let linked = session.call(Op::Link { node: link.node, parent: root, name: named("again") });
    if linked.is_ok() {
        let meta = std::fs::symlink_metadata(gateway.data("users/alice/Documents/again")).unwrap();
        assert!(meta.is_symlink(), "a hard link to a symlink is the symlink");
    }
    assert_eq!(gateway.snapshot("users/bob"), before);
}

#[test]
fn nothing_crosses_grants() {
    let (gateway, mut session) = world();
    let (documents, shared) = (session.root(0), session.root(1));
    let (report, note) = (session.find(0, "report"), session.find(1, "note"));
    let before = gateway.snapshot("");
    assert_eq!(
        session.call(Op::Link { node: report, parent: shared, name: named("leak") }).failure(),
        Failure::CrossGrant
    );
    assert_eq!(
        session.call(Op::Link { node: note, parent: documents, name: named("leak") }).failure(),
        Failure::CrossGrant
    );
    for mode in [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange] {
        for (from, name, to, new_name) in [
            (documents, "report", shared, "note"),
            (shared, "note", documents, "report"),
            (documents, "report", shared, "leak"),
        ] {
            let op = Op::Rename {
                parent: from,
                name: named(name),
                new_parent: to,
                new_name: named(new_name),
                mode,
                directory: Meant::Whichever,
            };
            assert_eq!(session.call(op).failure(), Failure::CrossGrant);
        }
    }
    assert_eq!(gateway.snapshot(""), before);
}

#[test]
fn a_directory_is_not_moved_into_itself_or_above_the_grant() {
    let (gateway, mut session) = world();
    let root = session.root(0);
    let d =
        session.call(Op::Mkdir { parent: root, name: named("d"), mode: 0o755, by: CREDENTIALS }).entry().node;
    let e =
        session.call(Op::Mkdir { parent: d, name: named("e"), mode: 0o755, by: CREDENTIALS }).entry().node;
    let before = gateway.snapshot("");
    let op = |mode| Op::Rename {
        parent: root,
        name: named("d"),
        new_parent: e,
        new_name: named("d"),
        mode,
        directory: Meant::Whichever,
    };
    for mode in [RenameMode::Replace, RenameMode::NoReplace] {
        assert_eq!(session.call(op(mode)).errno(), libc::EINVAL);
    }
    session.call(op(RenameMode::Exchange)).failure();
    assert_eq!(
        session.call(Op::Rmdir { parent: root, name: named("d"), directory: Meant::Whichever }).errno(),
        libc::ENOTEMPTY
    );
    assert_eq!(gateway.snapshot(""), before);
}

#[test]
fn nothing_outside_the_grants_shows() {
    let (gateway, mut session) = world();
    let documents = session.root(0);
    // A name outside for a file inside, made by an administrator; alice's home gets many directories.
    std::fs::hard_link(gateway.data("users/alice/Documents/report"), gateway.data("users/bob/kept")).unwrap();
    for n in 0..5 {
        std::fs::create_dir(gateway.data(&format!("users/alice/d{n}"))).unwrap();
    }
    let names: Vec<_> =
        session.list(documents).unwrap().into_iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(names, ["report"]);
    let inodes =
        ["users", "users/alice", "users/bob", "users/bob/secret", "users/alice/Mail", "users/alice/Photos"]
            .map(|path| std::fs::metadata(gateway.data(path)).unwrap().ino());
    let entries = session.list(documents).unwrap();
    assert!(entries.iter().all(|entry| !inodes.contains(&entry.ino)));
    // There is no way up: `..` is no name, and no reply carries a parent's attributes.
    let header = rename_in_header(
        &session.header(Op::Lookup { parent: documents, name: named("PLACEHOLDER") }),
        b"PLACEHOLDER",
        b"..",
    );
    session.call_raw(&header, &[]).refused();
}

#[test]
fn the_secret_is_nowhere_in_what_a_guest_receives() {
    let (gateway, mut session) = world();
    std::os::unix::fs::symlink("../../bob/secret", gateway.data("users/alice/Documents/planted")).unwrap();
    std::os::unix::fs::symlink("../../bob", gateway.data("users/alice/Documents/planted-dir")).unwrap();
    let root = session.root(0);
    let mut received = vec![];
    for name in ["planted", "planted-dir"] {
        let Reply::Ok(outcome, _) = session.lookup(root, name) else { continue };
        let strongroom_protocol::reply::Outcome::Entry(entry) = outcome else { panic!("{outcome:?}") };
        assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFLNK);
        for op in [
            Op::Open { node: entry.node, flags: READ },
            Op::Opendir { node: entry.node },
            Op::Lookup { parent: entry.node, name: named("secret") },
            Op::Reopen { node: entry.node, flags: READ, created: false, directory: false },
            Op::Reopen { node: entry.node, flags: READ, created: false, directory: true },
        ] {
            session.call(op).failure();
        }
        received.extend(session.call(Op::Readlink { node: entry.node }).data());
    }
    assert!(!received.windows(SECRET.len()).any(|window| window == SECRET));
    assert_eq!(received, b"../../bob/secret../../bob");
}

#[test]
fn a_refused_exchange_changes_neither_side() {
    let gateway = Gateway::start();
    let holder = SecretKey::generate().unwrap();
    // Delete without create, create without delete.
    for rights in ["list read create append write attr", "list read append write delete attr"] {
        let rights: Rights = rights.parse().unwrap();
        let chain =
            gateway.contract("editor", &holder.public(), &[grant("users/alice/Mail", "/Mail", rights)]);
        let mut session = gateway.enter(&holder, &chain);
        std::fs::write(gateway.data("users/alice/Mail/a"), b"a").unwrap();
        std::fs::write(gateway.data("users/alice/Mail/b"), b"b").unwrap();
        let before = gateway.snapshot("");
        let root = session.root(0);
        for mode in [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange] {
            for new_name in ["b", "c"] {
                let op = Op::Rename {
                    parent: root,
                    name: named("a"),
                    new_parent: root,
                    new_name: named(new_name),
                    mode,
                    directory: Meant::Whichever,
                };
                assert!(matches!(session.call(op).failure(), Failure::Denied { .. } | Failure::Errno(_)));
            }
        }
        assert_eq!(gateway.snapshot(""), before);
        session.bye();
    }
}
