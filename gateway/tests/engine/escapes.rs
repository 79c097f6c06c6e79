//! Nothing outside the granted paths is reached, whatever moves while operations run.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use strongroom_contracts::Rights;
use strongroom_protocol::attr::Node;
use strongroom_protocol::op::{Op, RenameMode};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::*;

const CROSS: Outcome = Outcome::Failed(Failure::CrossGrant);

fn everything(path: &str) -> Vec<strongroom_contracts::Grant> {
    vec![grant(path, "/m", Rights::READ_WRITE)]
}

#[test]
fn symlinks_lead_nowhere() {
    let world = World::new();
    world.file("bob/secret", b"secret");
    world.dirs(&["a"]);
    symlink("../bob", world.path("a/bob")).unwrap();
    symlink("../bob/secret", world.path("a/secret")).unwrap();
    symlink(world.path("bob"), world.path("a/absolute")).unwrap();
    let guest = world.guest(everything("a"));
    let root = guest.root(0);
    for text in ["bob", "absolute"] {
        let link = entry(guest.lookup(root, text));
        assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(guest.lookup(link.node, "secret"), errno(libc::ENOTDIR));
        assert_eq!(guest.ask(&Op::Opendir { node: link.node }), errno(libc::ENOTDIR));
        assert_eq!(guest.create(link.node, "new", WRITE), errno(libc::ENOTDIR));
        let resolve = Op::Resolve { grant: 0, ino: 0 };
        let path = format!("{text}/secret");
        assert_eq!(guest.call(&resolve, path.as_bytes()).0, errno(libc::ENOTDIR));
    }
    let link = guest.node(0, "secret");
    assert_eq!(guest.open(link, READ), errno(libc::ELOOP));
    assert_eq!(guest.create(root, "secret", WRITE), errno(libc::ELOOP));
    assert_eq!(guest.truncate(link, 0), errno(libc::EINVAL));
    assert_eq!(world.bytes("bob/secret"), b"secret");
    // A grant whose own path leads through a symlink is no grant.
    let through = world.guest(everything("a/bob"));
    assert_eq!(through.try_root(0), errno(libc::ENOTDIR));
}

/// An administrator's process (or whoever gets at the disk) swaps a directory and a symlink as fast as it can, while a
/// guest reads and writes through the name.
#[test]
fn a_symlink_swapped_in_during_the_walk_is_never_followed() {
    let world = World::new();
    world.file("bob/f", b"secret");
    world.file("a/d/f", b"public");
    symlink("../bob", world.path("a/l")).unwrap();
    let guest = world.guest(everything("a"));
    let stop = AtomicBool::new(false);
    let (swaps, reads) = (AtomicU64::new(0), AtomicU64::new(0));
    let root = guest.root(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (d, l, t) = (world.path("a/d"), world.path("a/l"), world.path("a/t"));
            while !stop.load(Ordering::Relaxed) {
                std::fs::rename(&d, &t).unwrap();
                std::fs::rename(&l, &d).unwrap();
                std::fs::rename(&d, &l).unwrap();
                std::fs::rename(&t, &d).unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        });
        let end = Instant::now() + Duration::from_secs(60);
        while (reads.load(Ordering::Relaxed) < 200 || swaps.load(Ordering::Relaxed) < 200)
            && Instant::now() < end
        {
            let found = guest.call(&Op::Resolve { grant: 0, ino: 0 }, b"d/f").0;
            let Outcome::Entry(found) = found else { continue };
            if let Outcome::Opened(handle, _) = guest.open(found.node, BOTH) {
                if let Ok(bytes) = guest.read(handle, 0, 100) {
                    assert_eq!(bytes, b"public");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
                let _ = guest.write(handle, 0, b"public");
                guest.release(handle);
            }
            let Outcome::Entry(dir) = guest.lookup(root, "d") else { continue };
            if let Outcome::Created(handle, _) = guest.create(dir.node, "new", WRITE) {
                guest.release(handle);
                guest.unlink(dir.node, "new");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(reads.load(Ordering::Relaxed) > 0 && swaps.load(Ordering::Relaxed) > 0);
    assert_eq!(world.bytes("bob/f"), b"secret");
    assert!(!world.path("bob/new").exists());
}

/// Two guests: one swaps a directory and a file with names outside the other's grant, through the gateway.
#[test]
fn renames_by_another_guest_never_show_what_is_outside() {
    let world = World::new();
    world.file("all/in/d/f", b"public");
    world.file("all/out/d/f", b"secret");
    let (outer, inner) = (world.guest(everything("all")), world.guest(everything("all/in")));
    let (inside, outside) = (outer.node(0, "in"), outer.node(0, "out"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Moves its own directory out and back; what lies outside never gets in.
        scope.spawn(|| {
            for _ in 0..300 {
                assert_eq!(
                    outer.rename((inside, "d"), (outside, "moved"), RenameMode::NoReplace),
                    Outcome::Done
                );
                // From here on, what was moved is private.
                let f = entry(outer.lookup(outer.node(0, "out/moved"), "f")).node;
                let handle = opened(outer.open(f, WRITE));
                written(outer.write(handle, 0, b"secret"));
                written(outer.write(handle, 0, b"public"));
                outer.release(handle);
                assert_eq!(
                    outer.rename((outside, "moved"), (inside, "d"), RenameMode::NoReplace),
                    Outcome::Done
                );
            }
            stop.store(true, Ordering::Relaxed);
        });
        let mut reads = 0;
        while !stop.load(Ordering::Relaxed) || reads == 0 {
            let Outcome::Entry(found) = inner.call(&Op::Resolve { grant: 0, ino: 0 }, b"d/f").0 else {
                continue;
            };
            let Outcome::Opened(handle, _) = inner.open(found.node, READ) else { continue };
            for _ in 0..20 {
                if let Ok(bytes) = inner.read(handle, 0, 100) {
                    assert_eq!(bytes, b"public");
                    reads += 1;
                }
            }
            inner.release(handle);
        }
    });
}

#[test]
fn nodes_and_handles_belong_to_the_session_that_was_told_of_them() {
    let world = World::new();
    world.file("a/f", b"1");
    world.file("bob/secret", b"secret");
    let (one, two) = (world.guest(everything("a")), world.guest(everything("a")));
    let node = one.node(0, "f");
    let handle = opened(one.open(node, BOTH));
    two.root(0);
    assert_eq!(two.getattr(node), STALE);
    assert_eq!(two.open(node, READ), STALE);
    assert_eq!(two.read(handle, 0, 1), Err(Outcome::Failed(Failure::BadHandle)));
    assert_eq!(two.node(0, "f"), node);
    attr(two.getattr(node));
    // Numbers of what exists outside, and of the data root itself, are no more use than any.
    use std::os::unix::fs::MetadataExt;
    for path in ["bob/secret", "bob", "a/.."] {
        let ino = std::fs::metadata(world.path(path)).unwrap().ino();
        let node = Node { grant: 0, ino };
        assert_eq!(one.getattr(node), STALE);
        assert_eq!(one.lookup(node, "secret"), STALE);
        assert_eq!(one.create(node, "x", WRITE), STALE);
        let mixed = Op::Getattr { node, handle: Some(handle) };
        assert_eq!(one.ask(&mixed), Outcome::Failed(Failure::Malformed));
    }
    for grant in [1, u16::MAX] {
        let node = Node { grant, ..node };
        assert_eq!(one.getattr(node), STALE);
        assert_eq!(one.try_root(grant), Outcome::Failed(Failure::Malformed));
    }
}

#[test]
fn names_do_not_cross_grants() {
    let world = World::new();
    world.file("a/f", b"a");
    world.file("b/g", b"b");
    let guest = world.guest(vec![
        grant("a", "/a", Rights::READ_WRITE),
        grant("b", "/b", Rights::READ_WRITE),
        grant("a/sub", "/sub", Rights::READ_ONLY),
    ]);
    let (a, b) = (guest.root(0), guest.root(1));
    let (f, g) = (guest.node(0, "f"), guest.node(1, "g"));
    assert_eq!(guest.link(f, b, "f"), CROSS);
    assert_eq!(guest.rename((a, "f"), (b, "f"), RenameMode::Replace), CROSS);
    assert_eq!(guest.rename((a, "f"), (b, "g"), RenameMode::Exchange), CROSS);
    let (from, to) = (opened(guest.open(f, READ)), opened(guest.open(g, WRITE)));
    let copy = Op::CopyRange { from, from_offset: 0, to, to_offset: 0, length: 1 };
    assert_eq!(guest.ask(&copy), CROSS);
    // The same inode under another grant's number is not known by itself.
    assert_eq!(guest.getattr(Node { grant: 1, ..f }), STALE);
    assert_eq!(guest.link(Node { grant: 1, ..f }, b, "f"), STALE);
    assert_eq!((world.bytes("a/f"), world.bytes("b/g")), (b"a".to_vec(), b"b".to_vec()));
}

#[test]
fn rights_are_those_of_the_grant_through_which_one_came() {
    let world = World::new();
    world.file("all/sub/f", b"x");
    let guest = world
        .guest(vec![grant("all", "/all", Rights::READ_ONLY), grant("all/sub", "/sub", Rights::READ_WRITE)]);
    let (outer, inner) = (guest.node(0, "sub/f"), guest.node(1, "f"));
    assert_eq!(outer.ino, inner.ino);
    assert_eq!(guest.open(outer, WRITE), denied("append"));
    let handle = opened(guest.open(inner, WRITE));
    assert_eq!(written(guest.write(handle, 0, b"y")), (1, 1));
    assert_eq!(guest.unlink(guest.node(0, "sub"), "f"), denied("delete"));
    // A handle of the one grant lends nothing to nodes of the other.
    let cut = strongroom_protocol::attr::SetAttr { size: Some(0), ..Default::default() };
    assert_eq!(guest.setattr(outer, Some(handle), cut), Outcome::Failed(Failure::Malformed));
    let (made, _) = created(guest.create(guest.root(1), "new", WRITE));
    assert_eq!(guest.setattr(guest.node(0, "sub/new"), None, cut), denied("append"));
    guest.release(made);
    assert_eq!(guest.unlink(guest.root(1), "f"), Outcome::Done);
}

#[test]
fn what_another_guest_moves_out_is_out_of_reach_at_once() {
    let world = World::new();
    world.file("all/in/d/f", b"x");
    world.file("all/in/h", b"h");
    world.dirs(&["all/out"]);
    let (outer, inner) = (world.guest(everything("all")), world.guest(everything("all/in")));
    let (inside, outside) = (outer.node(0, "in"), outer.node(0, "out"));
    let (d, f) = (inner.node(0, "d"), inner.node(0, "d/f"));
    let handle = opened(inner.open(f, BOTH));
    let dir = opened(inner.ask(&Op::Opendir { node: d }));
    let readdir = Op::Readdir { handle: dir, cookie: 0, max_bytes: 4096, plus: true };
    let stale = errno(libc::ESTALE);

    assert_eq!(outer.rename((inside, "d"), (outside, "d"), RenameMode::Replace), Outcome::Done);
    for _ in 0..2 {
        assert_eq!(inner.read(handle, 0, 1), Err(stale.clone()));
        assert_eq!(inner.write(handle, 0, b"!"), stale);
        assert_eq!(inner.ask(&readdir), stale);
        assert_eq!(inner.getattr(f), STALE);
        assert_eq!(inner.ask(&Op::Getattr { node: f, handle: Some(handle) }), stale);
        assert_eq!(inner.lookup(d, "f"), STALE);
        assert_eq!(inner.create(d, "new", WRITE), STALE);
        assert_eq!(inner.open(f, READ), STALE);
        assert_eq!(inner.walk(0, "d"), errno(libc::ENOENT));
    }
    // Without a name it is still outside.
    let moved = outer.node(0, "out/d");
    assert_eq!(outer.unlink(moved, "f"), Outcome::Done);
    assert_eq!(inner.read(handle, 0, 1), Err(stale.clone()));
    // Let go of, all the same.
    assert_eq!(inner.release(handle), Outcome::Done);
    assert_eq!(inner.release(dir), Outcome::Done);
    // And back.
    assert_eq!(outer.rename((outside, "d"), (inside, "d"), RenameMode::Replace), Outcome::Done);
    assert_eq!(inner.node(0, "d"), d);
    let (_, new) = created(inner.create(d, "new", WRITE));

    // A file with a name on either side: gone from here with the name from here.
    entry(outer.link(outer.node(0, "in/h"), outside, "h"));
    let h = inner.node(0, "h");
    let handle = opened(inner.open(h, READ));
    assert_eq!(inner.read(handle, 0, 1).unwrap(), b"h");
    assert_eq!(outer.unlink(inside, "h"), Outcome::Done);
    assert_eq!(inner.read(handle, 0, 1), Err(stale.clone()));
    assert_eq!(inner.getattr(h), STALE);

    // The root of the grant is renamed away: the path leads nowhere, and what lay there is not the grant's.
    let kept = opened(inner.open(new.node, WRITE));
    assert_eq!(outer.rename((outer.root(0), "in"), (outside, "in"), RenameMode::Replace), Outcome::Done);
    assert_eq!(inner.try_root(0), errno(libc::ENOENT));
    assert_eq!(inner.write(kept, 0, b"!"), stale);
    assert_eq!(inner.getattr(d), errno(libc::ENOENT));
    // Another directory takes its place.
    entry(outer.mkdir(outer.root(0), "in"));
    assert_eq!(inner.names(inner.root(0), 4096, true), Vec::<String>::new());
    assert_eq!(inner.getattr(d), STALE);
    assert_eq!(inner.write(kept, 0, b"!"), stale);
}

#[test]
fn what_an_administrator_moves_out_is_out_of_reach_soon() {
    let world = World::new();
    world.file("a/d/e/f", b"x");
    world.dirs(&["bob"]);
    let guest = world.guest(everything("a"));
    let (d, f) = (guest.node(0, "d"), guest.node(0, "d/e/f"));
    let handle = opened(guest.open(f, BOTH));
    std::fs::rename(world.path("a/d"), world.path("bob/d")).unwrap();
    let gone = |outcome: Outcome| matches!(outcome, Outcome::Failed(Failure::Stale | Failure::Errno(_)));
    let end = Instant::now() + Duration::from_secs(60);
    let all_gone = || {
        gone(guest.getattr(f))
            && guest.read(handle, 0, 1).is_err()
            && gone(guest.lookup(d, "e"))
            && gone(guest.create(d, "new", WRITE))
    };
    while !all_gone() {
        assert!(Instant::now() < end, "still reachable");
        std::thread::sleep(Duration::from_millis(20));
        let _ = std::fs::remove_file(world.path("bob/d/new"));
    }
    // Moved back, it is found again.
    std::fs::rename(world.path("bob/d"), world.path("a/d")).unwrap();
    assert_eq!(guest.node(0, "d/e/f"), f);
}

#[test]
fn deep_trees_neither_overflow_nor_leak() {
    let world = World::new();
    world.dirs(&["a"]);
    let guest = world.guest(everything("a"));
    let mut at = guest.root(0);
    for _ in 0..3000 {
        at = entry(guest.mkdir(at, "d")).node;
    }
    let (handle, _) = created(guest.create(at, "f", BOTH));
    assert_eq!(written(guest.write(handle, 0, b"x")), (1, 1));
    assert!(guest.session.describe(&Op::Getattr { node: at, handle: None }).len() < 5000);
    let small = std::thread::Builder::new().stack_size(64 << 10);
    let session = guest.session.clone();
    drop(guest);
    small.spawn(move || session.close()).unwrap().join().unwrap();
    // The test's directory is taken away by something that does not recurse.
    let status = std::process::Command::new("rm").arg("-rf").arg(world.path("a")).status().unwrap();
    assert!(status.success());
}
