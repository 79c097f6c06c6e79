//! Every operation does what it says.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicUsize, Ordering};

use strongroom_contracts::{Ownership, Rights};
use strongroom_gateway::engine::{EngineOptions, SessionBounds, SpecialFiles};
use strongroom_protocol::attr::{Credentials, Node, OpenFlags, SetAttr, SetTime, Time};
use strongroom_protocol::codec;
use strongroom_protocol::op::{Meant, Op, RenameMode};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::*;

fn world() -> (World, Guest, Node) {
    let world = World::new();
    world.dirs(&["a"]);
    let guest = world.guest(vec![grant("a", "/a", Rights::READ_WRITE)]);
    let root = guest.root(0);
    (world, guest, root)
}

#[test]
fn files_are_made_written_read_and_cut() {
    let (world, guest, root) = world();
    let (handle, entry) = created(guest.create(root, "f", BOTH));
    assert_eq!(written(guest.write(handle, 0, b"hello world")), (11, 11));
    assert_eq!(written(guest.write(handle, 6, b"W")), (1, 11));
    assert_eq!(written(guest.write(handle, 20, b"!")), (1, 21));
    assert_eq!(guest.read(handle, 0, 100).unwrap(), b"hello World\0\0\0\0\0\0\0\0\0!");
    assert_eq!(guest.read(handle, 20, 100).unwrap(), b"!");
    assert_eq!(guest.read(handle, 21, 100).unwrap(), b"");
    assert_eq!(guest.read(handle, 1 << 40, 100).unwrap(), b"");
    assert_eq!(attr(guest.truncate(entry.node, 5)).size, 5);
    assert_eq!(world.bytes("a/f"), b"hello");
    assert_eq!(guest.ask(&Op::Fsync { handle, data_only: false }), Outcome::Done);
    assert_eq!(guest.ask(&Op::Fsync { handle, data_only: true }), Outcome::Done);
    assert_eq!(guest.ask(&Op::Flush { handle, lock_owner: 1 }), Outcome::Done);
    assert_eq!(guest.release(handle), Outcome::Done);
    assert_eq!(guest.read(handle, 0, 1), Err(Outcome::Failed(Failure::BadHandle)));
    let truncating = OpenFlags { truncate: true, ..WRITE };
    let handle = opened(guest.open(entry.node, truncating));
    assert_eq!(world.bytes("a/f"), b"");
    assert_eq!(guest.read(handle, 0, 1), Err(errno(libc::EBADF)));
    let counters = guest.session.counters();
    assert_eq!((counters.handles, counters.bytes_written), (1, 13));
}

#[test]
fn a_whole_mebibyte_goes_through_and_comes_back() {
    let (_world, guest, root) = world();
    let (handle, _) = created(guest.create(root, "f", BOTH));
    let data: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    assert_eq!(written(guest.write(handle, 0, &data)), (1 << 20, 1 << 20));
    assert_eq!(guest.read(handle, 0, u32::MAX).unwrap(), data);
    // Twice with the same buffer size, after a list in between: the buffer's two halves do not mix.
    assert_eq!(guest.names(root, 4096, true), ["f"]);
    assert_eq!(guest.read(handle, 3, 10).unwrap(), data[3..13]);
}

#[test]
fn appending_handles_write_to_the_end_whatever_offset_is_named() {
    let (world, guest, root) = world();
    world.file("a/f", b"one");
    let node = guest.node(0, "f");
    let handle = opened(guest.open(node, OpenFlags { append: true, ..READ }));
    assert_eq!(written(guest.write(handle, 0, b" two")), (4, 7));
    assert_eq!(guest.read(handle, 0, 10).unwrap(), b"one two");
    assert_eq!(created(guest.create(root, "f", READ)).1.node, node);
    assert_eq!(guest.create(root, "f", OpenFlags { exclusive: true, ..READ }), errno(libc::EEXIST));
}

#[test]
fn directories_are_read_in_pages_of_any_size() {
    let (world, guest, root) = world();
    let mut expected: Vec<String> =
        (0..300).map(|n| format!("file-{n:03}-{}", "x".repeat(n % 200))).collect();
    expected.iter().for_each(|name| world.file(&format!("a/{name}"), b""));
    expected.sort();
    for page in [1 << 20, 16 << 10, 1000] {
        assert_eq!(guest.names(root, page, false), expected);
        assert_eq!(guest.names(root, page, true), expected);
    }
    let handle = opened(guest.ask(&Op::Opendir { node: root }));
    let tiny = Op::Readdir { handle, cookie: 0, max_bytes: 10, plus: false };
    assert_eq!(guest.ask(&tiny), errno(libc::EINVAL));
}

#[test]
fn names_come_go_and_move() {
    let (world, guest, root) = world();
    let sub = entry(guest.mkdir(root, "sub")).node;
    assert_eq!(guest.mkdir(root, "sub"), errno(libc::EEXIST));
    let (handle, file) = created(guest.create(root, "f", BOTH));
    written(guest.write(handle, 0, b"data"));
    let linked = entry(guest.link(file.node, sub, "g"));
    assert_eq!((linked.node, linked.attr.nlink), (file.node, 2));
    assert_eq!(attr(guest.getattr(file.node)).nlink, 2);
    assert_eq!(guest.rename((root, "f"), (sub, "f"), RenameMode::NoReplace), Outcome::Done);
    assert_eq!(guest.rename((sub, "f"), (sub, "g"), RenameMode::NoReplace), errno(libc::EEXIST));
    // Two names of one file: nothing happens.
    assert_eq!(guest.rename((sub, "f"), (sub, "g"), RenameMode::Replace), Outcome::Done);
    assert_eq!(guest.names(sub, 4096, false), ["f", "g"]);
    assert_eq!(guest.unlink(sub, "g"), Outcome::Done);
    assert_eq!(attr(guest.getattr(file.node)).nlink, 1);
    assert_eq!(guest.rmdir(root, "sub"), errno(libc::ENOTEMPTY));
    assert_eq!(guest.unlink(root, "sub"), errno(libc::EISDIR));
    assert_eq!(guest.rmdir(sub, "f"), errno(libc::ENOTDIR));
    assert_eq!(guest.lookup(sub, "none"), errno(libc::ENOENT));
    assert_eq!(guest.lookup(file.node, "none"), errno(libc::ENOTDIR));
    assert_eq!(guest.rename((root, "sub"), (sub, "x"), RenameMode::Replace), errno(libc::EINVAL));
    let other = entry(guest.mkdir(root, "other")).node;
    assert_eq!(guest.rename((root, "sub"), (root, "other"), RenameMode::Exchange), Outcome::Done);
    assert_eq!((guest.node(0, "sub"), guest.node(0, "other")), (other, sub));
    assert_eq!(guest.node(0, "other/f"), file.node);
    assert_eq!(guest.rename((root, "sub"), (root, "none"), RenameMode::Exchange), errno(libc::ENOENT));
    // A directory replaces an empty one; what lay in it is found through it.
    assert_eq!(guest.rename((root, "other"), (root, "sub"), RenameMode::Replace), Outcome::Done);
    assert_eq!(guest.node(0, "sub/f"), file.node);
    assert_eq!(guest.getattr(other), STALE);
    assert_eq!(world.bytes("a/sub/f"), b"data");
    assert_eq!(guest.session.describe(&Op::Getattr { node: file.node, handle: None }), "/a/sub/f");
}

#[test]
fn another_directory_than_the_one_that_is_meant_keeps_its_name() {
    let (_world, guest, root) = world();
    let [one, two] = ["one", "two"].map(|name| entry(guest.mkdir(root, name)).node);
    let (_, file) = created(guest.create(root, "f", BOTH));
    let stale = Outcome::Failed(Failure::Stale);
    let rmdir = |text, directory| guest.ask(&Op::Rmdir { parent: root, name: name(text), directory });
    let rename = |from, to, directory| {
        let (from, to) = (name(from), name(to));
        let mode = RenameMode::Replace;
        guest.ask(&Op::Rename { parent: root, name: from, new_parent: root, new_name: to, mode, directory })
    };
    for other in [Meant::Nothing, Meant::Inode(two.ino), Meant::Inode(file.node.ino)] {
        assert_eq!(rmdir("one", other), stale);
        assert_eq!(rename("two", "one", other), stale);
        assert_eq!(guest.names(root, 4096, false), ["f", "one", "two"]);
    }
    // The rest is not about directories that are replaced: what it means says the system.
    assert_eq!(rmdir("f", Meant::Inode(file.node.ino)), errno(libc::ENOTDIR));
    assert_eq!(rmdir("nothing", Meant::Inode(one.ino)), errno(libc::ENOENT));
    assert_eq!(rename("f", "one", Meant::Nothing), errno(libc::EISDIR));
    assert_eq!(rename("one", "three", Meant::Nothing), Outcome::Done);
    assert_eq!(rename("two", "three", Meant::Inode(one.ino)), Outcome::Done);
    assert_eq!(rmdir("three", Meant::Inode(two.ino)), Outcome::Done);
    assert_eq!(guest.names(root, 4096, false), ["f"]);
}

#[test]
fn symlinks_are_text() {
    let (_world, guest, root) = world();
    let long = vec![b'x'; 4095];
    let link = entry(guest.symlink(root, "l", &long)).node;
    assert_eq!(guest.call(&Op::Readlink { node: link }, b""), (Outcome::Data, long));
    let up = entry(guest.symlink(root, "up", b"../../etc")).node;
    assert_eq!(guest.lookup(up, "passwd"), errno(libc::ENOTDIR));
    assert_eq!(guest.open(up, READ), errno(libc::ELOOP));
    assert_eq!(guest.symlink(root, "m", &[b'x'; 4096]), errno(libc::ENAMETOOLONG));
    assert_eq!(guest.symlink(root, "m", b""), errno(libc::ENOENT));
    assert_eq!(guest.ask(&Op::Readlink { node: root }), errno(libc::EINVAL));
    let times = SetAttr { mtime: Some(SetTime::At(Time { secs: 5, nanos: 7 })), ..SetAttr::default() };
    assert_eq!(attr(guest.setattr(link, None, times)).mtime, Time { secs: 5, nanos: 7 });
}

#[test]
fn attributes_are_set_one_by_one() {
    let (world, guest, root) = world();
    let (_, file) = created(guest.create(root, "f", WRITE));
    let time = |secs, nanos| Some(SetTime::At(Time { secs, nanos }));
    let set = SetAttr { mode: Some(0o640), atime: time(-1, 999_999_999), ..SetAttr::default() };
    let after = attr(guest.setattr(file.node, None, set));
    assert_eq!(after.mode & 0o7777, 0o640);
    assert_eq!(after.atime, Time { secs: -1, nanos: 999_999_999 });
    assert_eq!(after.mtime, file.attr.mtime);
    assert!(after.ctime >= file.attr.ctime);
    let now = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
    assert!(attr(guest.setattr(file.node, None, now)).mtime >= file.attr.mtime);
    let bad = SetAttr { mtime: time(0, 1_000_000_000), ..SetAttr::default() };
    assert_eq!(guest.setattr(file.node, None, bad), Outcome::Failed(Failure::Malformed));
    assert_eq!(guest.truncate(root, 0), errno(libc::EISDIR));
    assert_eq!(guest.truncate(file.node, 1 << 63), errno(libc::EFBIG));
    // Directories, fifos and what is open but nameless can be changed too.
    let set = SetAttr { mode: Some(0o700), ..SetAttr::default() };
    assert_eq!(attr(guest.setattr(root, None, set)).mode & 0o7777, 0o700);
    let fifo = Op::Mknod { parent: root, name: name("p"), mode: libc::S_IFIFO | 0o600, rdev: 0, by: BY };
    let fifo = entry(guest.ask(&fifo)).node;
    assert_eq!(attr(guest.setattr(fifo, None, set)).mode & 0o7777, 0o700);
    assert_eq!(guest.open(fifo, READ), errno(libc::ENXIO));
    assert_eq!(guest.unlink(root, "f"), Outcome::Done);
    assert_eq!(attr(guest.setattr(file.node, None, set)).mode & 0o7777, 0o700);
    assert_eq!(attr(guest.getattr(file.node)).nlink, 0);
    assert!(!world.path("a/f").exists());
}

#[test]
fn set_id_bits_and_devices_are_refused_unless_they_are_stored() {
    let make = |guest: &Guest, text: &str, mode: u32| {
        let root = guest.root(0);
        guest.ask(&Op::Mknod { parent: root, name: name(text), mode, rdev: 0x0103, by: BY })
    };
    let (world, guest, root) = world();
    assert_eq!(make(&guest, "dev", libc::S_IFCHR | 0o600), errno(libc::EPERM));
    let set_id = entry(make(&guest, "s", libc::S_IFREG | 0o6755));
    assert_eq!(set_id.attr.mode & 0o7777, 0o755);
    let set = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
    assert_eq!(attr(guest.setattr(set_id.node, None, set)).mode & 0o7777, 0o755);
    assert_eq!(std::fs::metadata(world.path("a/s")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(entry(make(&guest, "sock", libc::S_IFSOCK | 0o600)).attr.mode & libc::S_IFMT, libc::S_IFSOCK);
    assert_eq!(make(&guest, "link", libc::S_IFLNK | 0o600), errno(libc::EINVAL));
    assert_eq!(entry(guest.mkdir(root, "d")).attr.mode & 0o7777, 0o755);

    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::with(EngineOptions { special_files: SpecialFiles::Store, ..EngineOptions::default() });
    world.dirs(&["a"]);
    let keep = strongroom_contracts::Grant {
        ownership: Ownership::Preserve,
        ..grant("a", "/a", Rights::READ_WRITE)
    };
    let guest = world.guest(vec![keep]);
    assert_eq!(entry(make(&guest, "dev", libc::S_IFCHR | 0o600)).attr.rdev, 0x0103);
    let file = entry(make(&guest, "s", libc::S_IFREG | 0o6755));
    assert_eq!(file.attr.mode & 0o7777, 0o6755);
    assert_eq!(guest.open(guest.node(0, "dev"), READ), errno(libc::ENXIO));
    // Files are opened by way of an O_PATH descriptor here.
    let handle = opened(guest.open(file.node, BOTH));
    assert_eq!(written(guest.write(handle, 0, b"x")), (1, 1));
}

#[test]
fn owners_pass_through_or_do_not() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new();
    world.dirs(&["single", "kept"]);
    std::os::unix::fs::chown(world.path("single"), Some(1234), Some(1235)).unwrap();
    let kept = strongroom_contracts::Grant {
        ownership: Ownership::Preserve,
        ..grant("kept", "/kept", Rights::READ_WRITE)
    };
    let guest = world.guest(vec![grant("single", "/single", Rights::READ_WRITE), kept]);
    let by = Credentials { uid: 77, gid: 78 };
    for (number, on_disk, shown) in [(0, (1234, 1235), (0, 0)), (1, (77, 78), (77, 78))] {
        let parent = guest.root(number);
        let made = entry(guest.ask(&Op::Mkdir { parent, name: name("d"), mode: 0o700, by }));
        assert_eq!((made.attr.uid, made.attr.gid), shown);
        let path = world.path(["single/d", "kept/d"][usize::from(number)]);
        let meta = std::fs::metadata(path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), on_disk);
        // In a directory of mode 0700 of another user: the guest's kernel has checked modes.
        let other = Credentials { uid: 99, gid: 99 };
        let op = Op::Create { parent: made.node, name: name("f"), mode: 0o600, flags: WRITE, by: other };
        created(guest.ask(&op));
    }
    let set = SetAttr { uid: Some(5), gid: Some(6), ..SetAttr::default() };
    assert_eq!(guest.setattr(guest.node(0, "d"), None, set), errno(libc::EPERM));
    let after = attr(guest.setattr(guest.node(1, "d"), None, set));
    assert_eq!((after.uid, after.gid), (5, 6));
    // The thread is itself again.
    std::fs::write(world.path("kept/probe"), b"").unwrap();
    assert_eq!(std::fs::metadata(world.path("kept/probe")).unwrap().uid(), 0);
    // Set-gid directories hand on their group, as the kernel does it.
    std::fs::set_permissions(world.path("kept"), std::fs::Permissions::from_mode(0o2777)).unwrap();
    std::os::unix::fs::chown(world.path("kept"), None, Some(500)).unwrap();
    std::fs::set_permissions(world.path("kept"), std::fs::Permissions::from_mode(0o2777)).unwrap();
    let op = Op::Mkdir { parent: guest.root(1), name: name("g"), mode: 0o755, by };
    let made = entry(guest.ask(&op));
    assert_eq!((made.attr.uid, made.attr.gid, made.attr.mode & 0o7777), (77, 500, 0o2755));
}

#[test]
fn user_attributes_only() {
    let (_world, guest, root) = world();
    let (_, file) = created(guest.create(root, "f", WRITE));
    let node = file.node;
    let set = |text: &str, value: &[u8], flags: u32| {
        let data = [text.as_bytes(), value].concat();
        guest.call(&Op::Setxattr { node, name_length: text.len() as u16, flags }, &data).0
    };
    let get = |text: &str| guest.call(&Op::Getxattr { node }, text.as_bytes());
    assert_eq!(set("user.a", b"one", 0), Outcome::Done);
    assert_eq!(set("user.a", b"two", libc::XATTR_CREATE as u32), errno(libc::EEXIST));
    assert_eq!(set("user.b", b"two", libc::XATTR_REPLACE as u32), errno(libc::ENODATA));
    assert_eq!(get("user.a"), (Outcome::Data, b"one".to_vec()));
    assert_eq!(get("user.b").0, errno(libc::ENODATA));
    for foreign in ["security.capability", "trusted.x", "system.posix_acl_access", "a"] {
        assert_eq!(set(foreign, b"", 0), errno(libc::EOPNOTSUPP));
        assert_eq!(get(foreign).0, errno(libc::EOPNOTSUPP));
    }
    assert_eq!(guest.call(&Op::Listxattr { node }, b""), (Outcome::Data, b"user.a\0".to_vec()));
    assert_eq!(guest.call(&Op::Removexattr { node }, b"user.a").0, Outcome::Done);
    assert_eq!(guest.call(&Op::Removexattr { node }, b"user.a").0, errno(libc::ENODATA));
    assert_eq!(guest.call(&Op::Listxattr { node: root }, b""), (Outcome::Data, vec![]));
    let short = Op::Setxattr { node, name_length: 10, flags: 0 };
    assert_eq!(guest.call(&short, b"user.").0, Outcome::Failed(Failure::Malformed));
    let link = entry(guest.symlink(root, "l", b"f")).node;
    let name_length = 6;
    let on_link = Op::Setxattr { node: link, name_length, flags: 0 };
    assert_eq!(guest.call(&on_link, b"user.aX").0, errno(libc::EPERM));
}

#[test]
fn holes_allocation_and_copies() {
    let (_world, guest, root) = world();
    let (handle, _) = created(guest.create(root, "f", BOTH));
    written(guest.write(handle, 1 << 20, b"end"));
    let seek = |offset, hole| guest.ask(&Op::Seek { handle, offset, hole });
    assert_eq!(seek(0, true), Outcome::Offset(0));
    assert_eq!(seek(0, false), Outcome::Offset(1 << 20));
    assert_eq!(seek((1 << 20) + 3, false), errno(libc::ENXIO));
    let allocate =
        |mode: i32, offset, length| guest.ask(&Op::Fallocate { handle, mode: mode as u32, offset, length });
    assert_eq!(allocate(0, 0, 2 << 20), Outcome::Done);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(allocate(punch, 1 << 20, 4096), Outcome::Done);
    assert_eq!(guest.read(handle, 1 << 20, 3).unwrap(), [0; 3]);
    assert_eq!(allocate(0x4000, 0, 1), errno(libc::EOPNOTSUPP));
    assert_eq!(allocate(0, u64::MAX, 1), errno(libc::EFBIG));
    written(guest.write(handle, 0, b"copy me"));
    let (target, copy) = created(guest.create(root, "g", BOTH));
    let op = Op::CopyRange { from: handle, from_offset: 0, to: target, to_offset: 2, length: 7 };
    assert_eq!(written(guest.ask(&op)), (7, 9));
    assert_eq!(guest.read(target, 0, 100).unwrap(), b"\0\0copy me");
    assert_eq!(attr(guest.getattr(copy.node)).size, 9);
    let past = Op::CopyRange { from: handle, from_offset: 1 << 40, to: target, to_offset: 0, length: 7 };
    assert_eq!(written(guest.ask(&past)), (0, 9));
}

#[test]
fn a_file_without_names_lives_on_through_its_handles() {
    let (_world, guest, root) = world();
    let (handle, file) = created(guest.create(root, "f", BOTH));
    assert_eq!(guest.unlink(root, "f"), Outcome::Done);
    assert_eq!(written(guest.write(handle, 0, b"still")), (5, 5));
    assert_eq!(guest.read(handle, 0, 9).unwrap(), b"still");
    assert_eq!(attr(guest.getattr(file.node)).size, 5);
    // Its number may come back for another file, which is another node.
    let (other, again) = created(guest.create(root, "f", BOTH));
    assert_eq!(guest.read(other, 0, 9).unwrap(), b"");
    assert_eq!(guest.read(handle, 0, 9).unwrap(), b"still");
    assert_eq!(guest.release(handle), Outcome::Done);
    assert_eq!(attr(guest.getattr(again.node)).size, 0);
}

#[test]
fn who_has_found_a_file_gets_it_though_it_has_lost_its_name() {
    let (world, guest, _) = world();
    let other = world.guest(vec![grant("a", "/a", Rights::READ_WRITE)]);
    world.file("a/f", b"found");
    world.file("a/new", b"later");
    let file = guest.node(0, "f");
    let (from, to) = ((other.root(0), "new"), (other.root(0), "f"));
    assert_eq!(other.rename(from, to, RenameMode::Replace), Outcome::Done);
    let found = attr(guest.getattr(file));
    assert_eq!((found.ino, found.size, found.nlink), (file.ino, 5, 0));
    let handle = opened(guest.open(file, READ));
    assert_eq!(guest.read(handle, 0, 9).unwrap(), b"found");
    assert_eq!(guest.release(handle), Outcome::Done);
    // What is written there would be lost.
    assert_eq!(guest.open(file, BOTH), STALE);
    // Who has not found it by a name does not get it.
    assert_eq!(other.getattr(file), STALE);
    let list = codec::encode_list(&vec![file]).unwrap();
    assert_eq!(guest.call(&Op::Forget, &list).0, Outcome::Done);
    assert_eq!(guest.getattr(file), STALE);
    // What is only removed is not there any more.
    let file = guest.node(0, "f");
    assert_eq!(other.unlink(other.root(0), "f"), Outcome::Done);
    assert_eq!(guest.getattr(file), STALE);
}

#[test]
fn what_has_no_name_is_held_within_bounds() {
    let (world, guest, root) = world();
    let held = |file| guest.getattr(file) != STALE;
    let lose = |name: &str, length: usize| {
        world.file(&format!("a/{name}"), &vec![1; length]);
        let file = guest.node(0, name);
        world.file("a/new", b"");
        assert_eq!(guest.rename((root, "new"), (root, name), RenameMode::Replace), Outcome::Done);
        file
    };
    assert!(!held(lose("large", (8 << 20) + 4096)));
    // A number comes again once its file is not held any more.
    let count = |numbers: std::collections::BTreeSet<u64>| {
        numbers.into_iter().filter(|ino| held(Node { grant: 0, ino: *ino })).count()
    };
    assert_eq!(count((0..20).map(|n| lose(&format!("middle{n}"), 4 << 20).ino).collect()), 16, "64 MiB");
    assert_eq!(count((0..1100).map(|n| lose(&format!("small{n}"), 0).ino).collect()), 1024);
}

#[test]
fn tables_are_bounded() {
    let world = World::new();
    world.dirs(&["a"]);
    let bounds = SessionBounds { handles: 3, nodes: 64, locks: 2, ..SessionBounds::default() };
    let guest = world.bounded(vec![grant("a", "/a", Rights::READ_WRITE)], bounds, &[]);
    let root = guest.root(0);
    let handles: Vec<_> = (0..3).map(|n| created(guest.create(root, &n.to_string(), BOTH)).0).collect();
    assert_eq!(guest.create(root, "4", BOTH), Outcome::Failed(Failure::TooMany));
    assert!(!world.path("a/4").exists());
    assert_eq!(guest.open(guest.node(0, "0"), READ), Outcome::Failed(Failure::TooMany));
    assert_eq!(guest.ask(&Op::Opendir { node: root }), Outcome::Failed(Failure::TooMany));
    assert_eq!(guest.release(handles[0]), Outcome::Done);
    created(guest.create(root, "4", BOTH));
    for n in 0..1000 {
        entry(guest.mkdir(guest.root(0), &format!("d{n}")));
    }
    assert!(guest.session.counters().nodes <= 64);
    // Nothing is lost but the number: by path it is found again.
    let found = guest.call(&Op::Resolve { grant: 0, ino: 0 }, b"d0").0;
    let ino = entry(found).node.ino;
    assert_eq!(guest.call(&Op::Resolve { grant: 0, ino: ino + 1 }, b"d0").0, STALE);
    for bad in [&b"../a"[..], b"/", b"d0//", b"d0/..", b"d0/\0"] {
        let outcome = guest.call(&Op::Resolve { grant: 0, ino: 0 }, bad).0;
        assert_eq!(outcome, Outcome::Failed(Failure::Malformed), "{bad:?}");
    }
}

#[test]
fn forgotten_nodes_are_stale_and_closing_ends_everything() {
    let (_world, guest, root) = world();
    let (handle, file) = created(guest.create(root, "f", BOTH));
    let list = codec::encode_list(&vec![file.node]).unwrap();
    assert_eq!(guest.call(&Op::Forget, &list).0, Outcome::Done);
    assert_eq!(guest.getattr(file.node), STALE);
    assert_eq!(guest.call(&Op::Forget, b"x").0, Outcome::Failed(Failure::Malformed));
    assert_eq!(guest.node(0, "f"), file.node);
    let closed = guest.session.close();
    assert_eq!((closed.handles, closed.locks, closed.waiting), (1, 0, 0));
    assert_eq!(guest.getattr(root), STALE);
    assert_eq!(guest.read(handle, 0, 1), Err(Outcome::Failed(Failure::BadHandle)));
    assert_eq!(guest.session.close().handles, 0);
}

#[test]
fn a_grant_whose_path_is_missing_appears_when_it_does() {
    let world = World::new();
    let guest = world.guest(vec![grant("x/y", "/y", Rights::READ_WRITE)]);
    assert_eq!(guest.try_root(0), errno(libc::ENOENT));
    let admission = guest.turnstile.enter().unwrap();
    assert!(guest.session.grant_infos(&admission)[0].root.is_none());
    world.dirs(&["x/y"]);
    let root = guest.root(0);
    entry(guest.mkdir(root, "d"));
    let infos = guest.session.grant_infos(&admission);
    assert_eq!(infos[0].root.unwrap().ino, root.ino);
    assert_eq!(infos[0].mount.as_str(), "/y");
}

#[test]
fn who_would_make_a_file_is_never_told_that_there_is_none() {
    let world = World::new();
    world.dirs(&["a"]);
    let guest = || world.guest(vec![grant("a", "/a", Rights::READ_WRITE)]);
    let (remover, makers) = (guest(), [guest(), guest()]);
    let left = AtomicUsize::new(makers.len());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let root = remover.root(0);
            while left.load(Ordering::Relaxed) > 0 {
                let gone = remover.unlink(root, "f");
                assert!([Outcome::Done, errno(libc::ENOENT)].contains(&gone), "{gone:?}");
            }
        });
        for maker in &makers {
            let left = &left;
            scope.spawn(move || {
                let root = maker.root(0);
                let refused = (0..5000).find_map(|_| match maker.create(root, "f", BOTH) {
                    Outcome::Created(handle, _) => {
                        maker.release(handle);
                        None
                    }
                    refused => Some(refused),
                });
                left.fetch_sub(1, Ordering::Relaxed);
                assert_eq!(refused, None);
            });
        }
    });
}
