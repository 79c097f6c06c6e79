//! Append-only: what is there stays; what a session makes it may write until the handle is released.

use strongroom_contracts::{Grant, Rights};
use strongroom_gateway::engine::{ClaimChange, SessionBounds};
use strongroom_protocol::attr::{OpenFlags, SetAttr, SetTime, Time};
use strongroom_protocol::op::{Op, RenameMode};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::*;

fn append_only() -> Vec<Grant> {
    vec![grant("a", "/a", Rights::APPEND_ONLY)]
}

#[test]
fn existing_files_only_grow() {
    let world = World::new();
    world.file("a/f", b"0123456789");
    let guest = world.guest(append_only());
    let node = guest.node(0, "f");
    let handle = opened(guest.open(node, BOTH));
    for offset in [0, 9] {
        assert_eq!(guest.write(handle, offset, b"x"), denied("write"));
    }
    assert_eq!(written(guest.write(handle, 10, b"abc")), (3, 13));
    assert_eq!(guest.write(handle, 12, b"x"), denied("write"));
    assert_eq!(attr(guest.truncate(node, 15)).size, 15);
    assert_eq!(guest.truncate(node, 14), denied("write"));
    assert_eq!(guest.open(node, OpenFlags { truncate: true, ..WRITE }), denied("write"));
    let root = guest.root(0);
    assert_eq!(guest.unlink(root, "f"), denied("delete"));
    assert_eq!(guest.rename((root, "f"), (root, "g"), RenameMode::Replace), denied("delete"));
    assert_eq!(world.bytes("a/f"), b"0123456789abc\0\0");
    // An empty file loses nothing by being cut.
    world.file("a/empty", b"");
    opened(guest.open(guest.node(0, "empty"), OpenFlags { truncate: true, ..WRITE }));
}

#[test]
fn writers_that_append_at_the_same_time_keep_each_others_bytes() {
    let world = World::new();
    world.file("a/log", b"");
    std::thread::scope(|scope| {
        for n in 0..4_u8 {
            let world = &world;
            scope.spawn(move || {
                let guest = world.guest(append_only());
                let append = OpenFlags { append: true, ..READ };
                let handle = opened(guest.open(guest.node(0, "log"), append));
                for _ in 0..200 {
                    assert_eq!(written(guest.write(handle, 0, &[b'a' + n; 7])).0, 7);
                }
            });
        }
    });
    let bytes = world.bytes("a/log");
    assert_eq!(bytes.len(), 4 * 200 * 7);
    for piece in bytes.chunks(7) {
        assert!(piece.iter().all(|byte| *byte == piece[0]), "{piece:?}");
    }
}

#[test]
fn the_handle_that_created_a_file_writes_it_freely_until_it_is_released() {
    let world = World::new();
    world.dirs(&["a"]);
    let guest = world.guest(append_only());
    let root = guest.root(0);
    let (handle, file) = created(guest.create(root, "f", BOTH));
    written(guest.write(handle, 0, b"0123456789"));
    assert_eq!(written(guest.write(handle, 3, b"xyz")), (3, 10));
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    let op = Op::Fallocate { handle, mode: punch, offset: 0, length: 1 };
    assert_eq!(guest.ask(&op), Outcome::Done);
    // As `cp -p` and `tar` do: by node, while the handle is open.
    let set = SetAttr {
        mode: Some(0o600),
        mtime: Some(SetTime::At(Time { secs: 1, nanos: 2 })),
        ..SetAttr::default()
    };
    assert_eq!(attr(guest.setattr(file.node, None, set)).mtime, Time { secs: 1, nanos: 2 });
    assert_eq!(attr(guest.truncate(file.node, 4)).size, 4);
    // Another handle of the same session has no such rights, nor has another session.
    let second = opened(guest.open(file.node, WRITE));
    assert_eq!(guest.write(second, 0, b"!"), denied("write"));
    let other = world.guest(append_only());
    let theirs = other.node(0, "f");
    assert_eq!(other.setattr(theirs, None, set), denied("attr"));
    assert_eq!(other.truncate(theirs, 0), denied("write"));
    assert_eq!(other.write(handle, 0, b"!"), Outcome::Failed(Failure::BadHandle));
    assert_eq!(guest.release(handle), Outcome::Done);
    assert_eq!(guest.setattr(file.node, None, set), denied("attr"));
    assert_eq!(guest.truncate(file.node, 0), denied("write"));
    assert_eq!(guest.write(second, 4, b"ok"), Outcome::Written { count: 2, size: 6 });
    assert_eq!(world.bytes("a/f"), b"\0\x312xok".map(|byte| byte));
}

#[test]
fn the_creators_rights_survive_a_restart_only_as_recorded() {
    let mut world = World::new();
    world.dirs(&["a"]);
    let guest = world.guest(append_only());
    let root = guest.root(0);
    let op = |text: &str| Op::Create { parent: root, name: name(text), mode: 0o644, flags: WRITE, by: BY };
    let (done, _) = guest.done(&op("f"), b"");
    let (handle, file) = created(done.outcome);
    written(guest.write(handle, 0, b"0123456789"));
    let Some(ClaimChange::Made(claim)) = done.claim else { panic!("no claim") };
    assert_eq!((claim.grant, claim.ino), (0, file.attr.ino));
    let (done, _) = guest.done(&op("g"), b"");
    let (released, other) = created(done.outcome);
    let Some(ClaimChange::Made(gone)) = done.claim else { panic!("no claim") };
    let (done, _) = guest.done(&Op::Release { handle: released, lock_owner: None }, b"");
    assert_eq!(done.claim, Some(ClaimChange::Released(gone)));
    drop(guest);

    world.restart();
    let guest = world.bounded(append_only(), SessionBounds::default(), &[claim]);
    guest.root(0);
    let resolve = |path: &str, ino| entry(guest.call(&Op::Resolve { grant: 0, ino }, path.as_bytes()).0).node;
    let node = resolve("f", file.attr.ino);
    let reopen = |node, created| Op::Reopen { node, flags: WRITE, created, directory: false };
    let plain = opened(guest.ask(&reopen(node, false)));
    assert_eq!(guest.write(plain, 0, b"!"), denied("write"));
    let again = opened(guest.ask(&reopen(node, true)));
    assert_eq!(written(guest.write(again, 0, b"!")), (1, 10));
    let other = resolve("g", other.attr.ino);
    assert_eq!(guest.ask(&reopen(other, true)), Outcome::Failed(Failure::BadHandle));
    // The claim ends with the handle, as ever.
    assert_eq!(guest.release(again), Outcome::Done);
    assert_eq!(guest.ask(&reopen(node, true)), Outcome::Failed(Failure::BadHandle));
}

#[test]
fn the_largest_size_of_a_file_holds_for_every_way_to_grow() {
    let world = World::new();
    world.dirs(&["a"]);
    let guest =
        world.guest(vec![Grant { max_file_bytes: Some(100), ..grant("a", "/a", Rights::READ_WRITE) }]);
    let (handle, file) = created(guest.create(guest.root(0), "f", BOTH));
    assert_eq!(written(guest.write(handle, 0, &[1; 100])), (100, 100));
    let too_big = errno(libc::EFBIG);
    assert_eq!(guest.write(handle, 100, b"x"), too_big);
    assert_eq!(guest.write(handle, 99, b"xy"), too_big);
    assert_eq!(guest.write(handle, u64::MAX, b"xy"), too_big);
    assert_eq!(guest.truncate(file.node, 101), too_big);
    let allocate =
        |mode: i32, offset, length| guest.ask(&Op::Fallocate { handle, mode: mode as u32, offset, length });
    assert_eq!(allocate(0, 0, 101), too_big);
    assert_eq!(allocate(libc::FALLOC_FL_KEEP_SIZE, 0, 101), too_big);
    let copy = Op::CopyRange { from: handle, from_offset: 0, to: handle, to_offset: 100, length: 10 };
    assert_eq!(guest.ask(&copy), too_big);
    assert_eq!(attr(guest.getattr(file.node)).size, 100);
    // What is too long already may be changed and cut, not grown.
    world.file("a/long", &[0; 200]);
    let node = guest.node(0, "long");
    let long = opened(guest.open(node, WRITE));
    assert_eq!(written(guest.write(long, 150, b"x")), (1, 200));
    assert_eq!(guest.write(long, 200, b"x"), too_big);
    assert_eq!(attr(guest.truncate(node, 150)).size, 150);
}
