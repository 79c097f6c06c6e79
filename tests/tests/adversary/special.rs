//! Set-user-ID bits, device nodes, fifos, extended attributes, owners; quotas and what free space tells.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use strongroom_contracts::{Chain, Grant, Ownership, Rights, SecretKey};
use strongroom_protocol::attr::{Credentials, Handle, Node, OpenFlags, SetAttr};
use strongroom_protocol::op::{Meant, Op};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::attacker::{Attacker, BOTH, CREDENTIALS, READ, Reply, WRITE, named};
use crate::support::gateway::{Gateway, grant};

fn enter(gateway: &Gateway, change: impl FnOnce(&mut Grant)) -> Attacker {
    let holder = SecretKey::generate().unwrap();
    let mut one = grant("users/alice/Documents", "/Documents", Rights::READ_WRITE);
    change(&mut one);
    let terms = gateway.terms("editor", &holder.public(), &[one]);
    gateway.enter(&holder, &Chain::issue(&terms, &gateway.issuer).unwrap())
}

fn mode(gateway: &Gateway, name: &str) -> u32 {
    let path = gateway.data("users/alice/Documents").join(name);
    std::fs::symlink_metadata(path).unwrap().permissions().mode()
}

#[test]
fn set_id_bits_are_dropped() {
    let gateway = Gateway::start();
    for ownership in [Ownership::Single, Ownership::Preserve] {
        let mut session = enter(&gateway, |grant| grant.ownership = ownership);
        let root = session.root(0);
        let by = Credentials { uid: 0, gid: 0 };
        let create = Op::Create { parent: root, name: named("f"), mode: 0o6755, flags: BOTH, by };
        let created = session.call(create).ok().0;
        let Outcome::Created(handle, entry) = created else { panic!("{created:?}") };
        assert_eq!((mode(&gateway, "f") & 0o6000, entry.attr.mode & 0o6000), (0, 0), "create");
        session.call(Op::Mkdir { parent: root, name: named("d"), mode: 0o6755, by }).entry();
        assert_eq!(mode(&gateway, "d") & 0o6000, 0, "mkdir");
        let file = libc::S_IFREG | 0o6755;
        session.call(Op::Mknod { parent: root, name: named("n"), mode: file, rdev: 0, by }).entry();
        assert_eq!(mode(&gateway, "n") & 0o6000, 0, "mknod");
        for bits in [0o4755, 0o2755, 0o6777, 0o7777, 0o104_755, u32::MAX] {
            for handle in [None, Some(handle)] {
                let set = SetAttr { mode: Some(bits), ..SetAttr::default() };
                // Refused or dropped.
                let _ = session.call(Op::Setattr { node: entry.node, handle, set, by });
                let now = mode(&gateway, "f");
                assert_eq!(now & 0o6000, 0, "chmod {bits:o}");
                assert_eq!(now & libc::S_IFMT, libc::S_IFREG);
            }
        }
        for name in ["f", "n"] {
            session.call(Op::Unlink { parent: root, name: named(name) }).ok();
        }
        session.call(Op::Rmdir { parent: root, name: named("d"), directory: Meant::Whichever }).ok();
        session.bye();
    }
}

#[test]
fn devices_are_neither_made_nor_opened() {
    let gateway = Gateway::start();
    let mut session = enter(&gateway, |_| {});
    let root = session.root(0);
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        let node = Op::Mknod {
            parent: root,
            name: named("device"),
            mode: kind | 0o666,
            rdev: 0x0103,
            by: CREDENTIALS,
        };
        assert_eq!(session.call(node).errno(), libc::EPERM);
    }
    for kind in [libc::S_IFDIR, libc::S_IFLNK, 0o150_000, libc::S_IFMT] {
        let node =
            Op::Mknod { parent: root, name: named("device"), mode: kind | 0o666, rdev: 0, by: CREDENTIALS };
        session.call(node).failure();
    }
    let create = Op::Create {
        parent: root,
        name: named("device"),
        mode: libc::S_IFCHR | 0o666,
        flags: BOTH,
        by: CREDENTIALS,
    };
    if session.call(create).is_ok() {
        assert_eq!(mode(&gateway, "device") & libc::S_IFMT, libc::S_IFREG);
        session.call(Op::Unlink { parent: root, name: named("device") }).ok();
    }
    assert!(std::fs::symlink_metadata(gateway.data("users/alice/Documents/device")).is_err());
}

#[test]
fn fifos_and_sockets_are_inert() {
    let gateway = Gateway::start();
    let mut session = enter(&gateway, |_| {});
    let root = session.root(0);
    for (name, kind) in [("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK)] {
        let node =
            Op::Mknod { parent: root, name: named(name), mode: kind | 0o666, rdev: 0, by: CREDENTIALS };
        let entry = session.call(node).entry();
        let kept =
            std::fs::symlink_metadata(gateway.data("users/alice/Documents").join(name)).unwrap().file_type();
        assert!(kept.is_fifo() || kept.is_socket());
        // Opening one must not wait for a peer, nor make the gateway one.
        for flags in [READ, WRITE, BOTH, OpenFlags { truncate: true, ..WRITE }] {
            session.open(entry.node, flags).failure();
            session.create(root, name, flags).failure();
        }
        session.call(Op::Reopen { node: entry.node, flags: READ, created: true, directory: false }).failure();
        let cut = SetAttr { size: Some(0), ..SetAttr::default() };
        session.call(Op::Setattr { node: entry.node, handle: None, set: cut, by: CREDENTIALS }).failure();
    }
}

#[test]
fn what_an_administrator_planted_is_not_opened_either() {
    let gateway = Gateway::start();
    let base = gateway.data("users/alice/Documents");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        base.join("null"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from(0o666),
        rustix::fs::makedev(1, 3),
    );
    rustix::fs::mknodat(
        rustix::fs::CWD,
        base.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from(0o666),
        0,
    )
    .unwrap();
    let mut session = enter(&gateway, |_| {});
    let root = session.root(0);
    // Without the privilege to make a device there is none to refuse; the fifo is there in any case.
    let names: &[&str] = if made.is_ok() { &["null", "fifo"] } else { &["fifo"] };
    for name in names {
        let entry = session.lookup(root, name).entry();
        for flags in [READ, WRITE, BOTH] {
            session.open(entry.node, flags).failure();
            session.create(root, name, flags).failure();
        }
    }
}

#[test]
fn extended_attributes_are_the_users_only() {
    let gateway = Gateway::start();
    let mut session = enter(&gateway, |_| {});
    let report = session.find(0, "report");
    let path = gateway.data("users/alice/Documents/report");
    let set = |session: &mut Attacker, name: &[u8], value: &[u8]| {
        let data = [name, value].concat();
        session.call_with(Op::Setxattr { node: report, name_length: name.len() as u16, flags: 0 }, &data)
    };
    for name in [
        &b"security.capability"[..],
        b"security.selinux",
        b"trusted.overlay.opaque",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
        b"User.a",
        b"users.a",
        b"user",
    ] {
        let errno = set(&mut session, name, b"\x01\0\0\x02").errno();
        assert!([libc::EOPNOTSUPP, libc::EPERM].contains(&errno), "{}: {errno}", name.escape_ascii());
        let got = session.call_with(Op::Getxattr { node: report }, name);
        assert!(!got.is_ok());
        let removed = session.call_with(Op::Removexattr { node: report }, name);
        assert!(!removed.is_ok());
    }
    for name in [&b""[..], b"user.", b"user.a\0b", &[&b"user."[..], &[b'n'; 251]].concat()] {
        set(&mut session, name, b"v").failure();
    }
    set(&mut session, b"user.big", &vec![0; 65_537]).failure();
    let mut names = [0u8; 4096];
    assert_eq!(rustix::fs::listxattr(&path, &mut names[..]).unwrap(), 0, "something was set");

    // What an administrator set is not shown.
    if rustix::fs::setxattr(&path, "trusted.hidden", b"1", rustix::fs::XattrFlags::empty()).is_ok() {
        set(&mut session, b"user.shown", b"1").ok();
        assert_eq!(session.call(Op::Listxattr { node: report }).data(), b"user.shown\0");
        session.call_with(Op::Getxattr { node: report }, b"trusted.hidden").failure();
    }
}

#[test]
fn owners_are_the_storage_sides() {
    let gateway = Gateway::start();
    let mut session = enter(&gateway, |_| {});
    let root = session.root(0);
    let owner = std::fs::metadata(gateway.data("users/alice/Documents")).unwrap().uid();
    let by = Credentials { uid: 4242, gid: 4242 };
    let create = Op::Create { parent: root, name: named("f"), mode: 0o644, flags: BOTH, by };
    let entry = session.call(create).entry();
    assert_eq!((entry.attr.uid, entry.attr.gid), (0, 0), "the storage side's owners are not told");
    let path = gateway.data("users/alice/Documents/f");
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), owner);
    let set = SetAttr { uid: Some(4242), gid: Some(4242), ..SetAttr::default() };
    assert_eq!(session.call(Op::Setattr { node: entry.node, handle: None, set, by }).errno(), libc::EPERM);
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), owner);
}

fn size(gateway: &Gateway) -> u64 {
    let base = gateway.data("users/alice/Documents");
    std::fs::read_dir(base).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn a_quota_holds_however_a_file_grows() {
    const QUOTA: u64 = 10_000;
    let gateway = Gateway::start();
    let mut session = enter(&gateway, |grant| {
        (grant.quota_bytes, grant.quota_files) = (Some(QUOTA), Some(6));
    });
    let root = session.root(0);
    let handle = session.create(root, "f", BOTH).handle();
    let node = session.lookup(root, "f").entry().node;
    let grow = |session: &mut Attacker, handle: Handle, node: Node| {
        let sparse = SetAttr { size: Some(QUOTA), ..SetAttr::default() };
        let source = session.open(node, READ).handle();
        let mut replies = vec![
            session.write(handle, 0, &[1; QUOTA as usize]),
            session.write(handle, QUOTA - 1, b"x"),
            session.write(handle, 1 << 40, b"x"),
            session.call(Op::Setattr { node, handle: None, set: sparse, by: CREDENTIALS }),
            session.call(Op::Setattr { node, handle: Some(handle), set: sparse, by: CREDENTIALS }),
            session.call(Op::Fallocate { handle, mode: 0, offset: 0, length: QUOTA }),
            session.call(Op::Fallocate { handle, mode: 0, offset: QUOTA - 1, length: 1 }),
        ];
        session.write(handle, 0, &[2; 5000]).ok();
        replies.push(session.call(Op::CopyRange {
            from: source,
            from_offset: 0,
            to: handle,
            to_offset: 5000,
            length: 5000,
        }));
        let cut = SetAttr { size: Some(0), ..SetAttr::default() };
        session.call(Op::Setattr { node, handle: None, set: cut, by: CREDENTIALS }).ok();
        replies
    };
    // 9 bytes are taken by the report that was there.
    for reply in grow(&mut session, handle, node) {
        match reply {
            Reply::Ok(Outcome::Written { count, .. }, _) => {
                assert!(count < 5000, "more than the quota was copied")
            }
            other => assert_eq!(other.failure(), Failure::Quota),
        }
        assert!(size(&gateway) <= QUOTA, "{} bytes", size(&gateway));
    }
    // Space that is given back can be used again, to the byte.
    session.write(handle, 0, &vec![3; QUOTA as usize - 9]).ok();
    assert_eq!(session.write(handle, QUOTA - 9, b"x").failure(), Failure::Quota);
    assert_eq!(size(&gateway), QUOTA);

    // Files count too, of every kind: report and f are there.
    let mut made = 0;
    for n in 0..10 {
        let name = named(&format!("e{n}"));
        let reply = match n % 3 {
            0 => session.call(Op::Mkdir { parent: root, name, mode: 0o755, by: CREDENTIALS }),
            1 => session.call_with(Op::Symlink { parent: root, name, by: CREDENTIALS }, b"target"),
            _ => session.call(Op::Mknod {
                parent: root,
                name,
                mode: libc::S_IFIFO | 0o644,
                rdev: 0,
                by: CREDENTIALS,
            }),
        };
        match reply {
            Reply::Ok(..) => made += 1,
            other => assert_eq!(other.failure(), Failure::Quota),
        }
    }
    assert_eq!(made, 4);
    assert_eq!(session.create(root, "more", BOTH).failure(), Failure::Quota);
    assert!(!gateway.data("users/alice/Documents/more").exists());
}

#[test]
fn free_space_is_that_of_the_quota() {
    let gateway = Gateway::start();
    let mut session = enter(&gateway, |grant| {
        (grant.quota_bytes, grant.quota_files) = (Some(1 << 20), Some(100));
    });
    let root = session.root(0);
    let Outcome::Statfs(space) = session.call(Op::Statfs { node: root }).ok().0 else { panic!("no statfs") };
    let unit = u64::from(space.block_size);
    assert_eq!(space.blocks * unit, 1 << 20);
    assert!(space.free * unit < 1 << 20 && space.free * unit >= (1 << 20) - 9 - unit);
    assert_eq!((space.files, space.files_free), (100, 99));
}
