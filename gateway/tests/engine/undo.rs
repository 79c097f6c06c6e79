//! The undo log: each kind of change is taken back, what others did is kept, nothing breaks by a crash.

use strongroom_contracts::{Rights, UndoFull, UndoSpace};
use strongroom_gateway::undo::{Filter, Item, UndoError, Verdict};
use strongroom_protocol::attr::{Handle, OpenFlags, SetAttr, SetTime, Time};
use strongroom_protocol::op::{Op, RenameMode};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::*;
use crate::undo_support::*;

fn populate(world: &Vaulted) {
    world.file("users/a/one", b"the first file");
    world.file("users/a/two", &[b'2'; 10_000]);
    world.file("users/a/big", &vec![b'B'; 700_000]);
    world.file("users/b/three", b"three");
    std::fs::create_dir(world.path("users/empty")).unwrap();
    std::os::unix::fs::symlink("a/one", world.path("users/link")).unwrap();
    std::fs::hard_link(world.path("users/a/one"), world.path("users/b/hard")).unwrap();
    rustix::fs::setxattr(world.path("users/a/two"), "user.tag", b"old", rustix::fs::XattrFlags::empty())
        .unwrap();
    for path in [
        "users/a/one",
        "users/a/two",
        "users/a/big",
        "users/b/three",
        "users/empty",
        "users/a",
        "users/b",
        "users",
    ] {
        let file = std::fs::File::open(world.path(path)).unwrap();
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
        file.set_modified(long_ago).unwrap();
    }
}

fn write_to(guest: &Guest, path: &str, offset: u64, data: &[u8]) {
    let handle = opened(guest.open(guest.node(0, path), WRITE));
    assert_eq!(written(guest.write(handle, offset, data)).0, data.len() as u64);
    guest.release(handle);
}

fn rewrite(guest: &Guest, path: &str, data: &[u8]) {
    let handle = opened(guest.open(guest.node(0, path), OpenFlags { truncate: true, ..WRITE }));
    written(guest.write(handle, 0, data));
    guest.release(handle);
}

fn make(guest: &Guest, dir: Option<&str>, name: &str, data: &[u8]) -> Handle {
    let parent = dir.map_or_else(|| guest.root(0), |dir| guest.node(0, dir));
    let (handle, _) = created(guest.create(parent, name, BOTH));
    if !data.is_empty() {
        written(guest.write(handle, 0, data));
    }
    handle
}

fn set(guest: &Guest, path: &str, set: SetAttr) {
    attr(guest.setattr(guest.node(0, path), None, set));
}

/// Does something under a contract and takes it back: the tree must be as before, and again after the undo of the undo.
fn taken_back(act: impl Fn(&Guest)) -> Vec<Item> {
    let world = Vaulted::new();
    populate(&world);
    let before = world.snapshot();
    let since = world.now();
    let guest = world.guest("mail", 1, WINDOW);
    act(&guest);
    guest.session.close();
    let after = world.snapshot();
    let dry = world.undo_by(Filter { application: "mail".into(), since_us: since, ..all() }, true).1;
    assert_eq!(world.snapshot(), after, "a dry run changes nothing");
    let (run, items) = world.undo_by(Filter { application: "mail".into(), since_us: since, ..all() }, false);
    assert_eq!(unrestored(&items), [], "{items:?}");
    assert_eq!(dry, items, "a dry run tells what will be");
    assert_eq!(world.snapshot(), before);
    // Once more: nothing happens.
    assert_eq!(unrestored(&world.undo("mail", since)), []);
    assert_eq!(world.snapshot(), before);
    // And the other way round, apart from the times of what only the undo touched.
    let redo = Filter { application: "@undo".into(), contract: Some(*run.as_bytes()), ..all() };
    assert_eq!(unrestored(&world.undo_by(redo, false).1), []);
    assert_eq!(world.snapshot(), after);
    items
}

#[test]
fn overwriting() {
    taken_back(|guest| {
        write_to(guest, "a/one", 4, b"FIRST");
        write_to(guest, "a/one", 2, b"more than it was before, and longer");
        write_to(guest, "a/big", 1000, &vec![b'x'; 300_000]);
        write_to(guest, "a/big", 100, &vec![b'y'; 100_000]);
    });
}

#[test]
fn appending_and_extending() {
    taken_back(|guest| {
        let handle = opened(guest.open(guest.node(0, "a/one"), OpenFlags { append: true, ..WRITE }));
        written(guest.write(handle, 0, b" and more"));
        written(guest.write(handle, 0, b" and more"));
        guest.release(handle);
        write_to(guest, "b/three", 5_000, b"far away");
        attr(guest.truncate(guest.node(0, "a/two"), 50_000));
    });
}

#[test]
fn cutting() {
    taken_back(|guest| {
        attr(guest.truncate(guest.node(0, "a/big"), 10));
        attr(guest.truncate(guest.node(0, "a/big"), 500_000));
        rewrite(guest, "a/two", b"all new");
        attr(guest.truncate(guest.node(0, "a/one"), 0));
    });
}

#[test]
fn making() {
    let items = taken_back(|guest| {
        let root = guest.root(0);
        guest.release(make(guest, None, "new", b"hello"));
        let dir = entry(guest.mkdir(root, "dir")).node;
        guest.release(make(guest, Some("dir"), "inside", b"hello"));
        entry(guest.symlink(dir, "link", b"to nowhere"));
        entry(guest.link(guest.node(0, "a/one"), dir, "hard"));
        let fifo =
            Op::Mknod { parent: dir, name: name("fifo"), mode: libc::S_IFIFO | 0o600, rdev: 0, by: BY };
        entry(guest.ask(&fifo));
        set(guest, "dir/inside", SetAttr { mode: Some(0o600), ..SetAttr::default() });
    });
    assert!(items.iter().any(|item| item.path == b"users/dir/inside"), "{items:?}");
}

#[test]
fn removing() {
    taken_back(|guest| {
        let (a, b) = (guest.node(0, "a"), guest.node(0, "b"));
        assert_eq!(guest.unlink(a, "one"), Outcome::Done);
        assert_eq!(guest.unlink(b, "hard"), Outcome::Done);
        assert_eq!(guest.unlink(a, "two"), Outcome::Done);
        assert_eq!(guest.unlink(a, "big"), Outcome::Done);
        assert_eq!(guest.rmdir(guest.root(0), "a"), Outcome::Done);
        assert_eq!(guest.rmdir(guest.root(0), "empty"), Outcome::Done);
        assert_eq!(guest.unlink(guest.root(0), "link"), Outcome::Done);
        assert_eq!(guest.rmdir(guest.root(0), "b"), errno(libc::ENOTEMPTY));
        assert_eq!(guest.rmdir(b, "three"), errno(libc::ENOTDIR));
        assert_eq!(guest.unlink(guest.root(0), "b"), errno(libc::EISDIR));
    });
}

#[test]
fn removing_what_was_changed_before() {
    taken_back(|guest| {
        write_to(guest, "a/one", 0, b"damaged");
        set(guest, "a/one", SetAttr { mode: Some(0o600), ..SetAttr::default() });
        let handle = opened(guest.open(guest.node(0, "a/two"), BOTH));
        assert_eq!(guest.unlink(guest.node(0, "a"), "two"), Outcome::Done);
        // Through the handle it lives on.
        written(guest.write(handle, 0, b"written after its end"));
        guest.release(handle);
        assert_eq!(guest.unlink(guest.node(0, "a"), "one"), Outcome::Done);
    });
}

#[test]
fn renaming() {
    taken_back(|guest| {
        let (root, a, b) = (guest.root(0), guest.node(0, "a"), guest.node(0, "b"));
        assert_eq!(guest.rename((a, "one"), (b, "moved"), RenameMode::Replace), Outcome::Done);
        assert_eq!(guest.rename((a, "two"), (b, "three"), RenameMode::Replace), Outcome::Done);
        assert_eq!(guest.rename((root, "b"), (a, "b"), RenameMode::NoReplace), Outcome::Done);
        assert_eq!(guest.rename((root, "a"), (root, "empty"), RenameMode::Replace), Outcome::Done);
        assert_eq!(guest.rename((root, "empty"), (root, "link"), RenameMode::Exchange), Outcome::Done);
        write_to(guest, "link/b/moved", 0, b"changed at its new place");
    });
}

#[test]
fn exchanging_files_and_directories() {
    taken_back(|guest| {
        let (root, a, b) = (guest.root(0), guest.node(0, "a"), guest.node(0, "b"));
        assert_eq!(guest.rename((a, "one"), (b, "three"), RenameMode::Exchange), Outcome::Done);
        write_to(guest, "a/one", 0, b"THREE");
        assert_eq!(guest.rename((a, "two"), (a, "big"), RenameMode::Exchange), Outcome::Done);
        assert_eq!(guest.rename((root, "a"), (root, "b"), RenameMode::Exchange), Outcome::Done);
        assert_eq!(guest.unlink(guest.node(0, "b"), "two"), Outcome::Done);
    });
}

#[test]
fn renaming_what_is_refused() {
    taken_back(|guest| {
        let (root, a, b) = (guest.root(0), guest.node(0, "a"), guest.node(0, "b"));
        assert_eq!(guest.rename((root, "a"), (root, "b"), RenameMode::Replace), errno(libc::ENOTEMPTY));
        assert_eq!(guest.rename((a, "one"), (root, "b"), RenameMode::Replace), errno(libc::EISDIR));
        assert_eq!(guest.rename((root, "a"), (b, "three"), RenameMode::Replace), errno(libc::ENOTDIR));
        assert_eq!(guest.rename((root, "a"), (a, "self"), RenameMode::Replace), errno(libc::EINVAL));
        assert_eq!(guest.rename((a, "one"), (a, "two"), RenameMode::NoReplace), errno(libc::EEXIST));
        assert_eq!(guest.rename((a, "one"), (b, "hard"), RenameMode::Replace), Outcome::Done);
    });
}

#[test]
fn saving_by_replacing() {
    // As editors do.
    taken_back(|guest| {
        let a = guest.node(0, "a");
        for n in 0..3 {
            guest.release(make(guest, Some("a"), ".one.tmp", format!("version {n}").as_bytes()));
            assert_eq!(guest.rename((a, ".one.tmp"), (a, "one"), RenameMode::Replace), Outcome::Done);
        }
        guest.release(make(guest, Some("a"), "passing", b"made and deleted"));
        assert_eq!(guest.unlink(a, "passing"), Outcome::Done);
    });
}

#[test]
fn attributes_and_times() {
    taken_back(|guest| {
        let at = SetTime::At(Time { secs: 1_500_000_000, nanos: 5 });
        set(guest, "a/one", SetAttr { mode: Some(0o640), ..SetAttr::default() });
        set(guest, "a/one", SetAttr { mode: Some(0o600), ..SetAttr::default() });
        set(guest, "a/two", SetAttr { mtime: Some(at), atime: Some(at), ..SetAttr::default() });
        set(guest, "b", SetAttr { mode: Some(0o700), mtime: Some(at), ..SetAttr::default() });
        set(guest, "link", SetAttr { mtime: Some(at), ..SetAttr::default() });
    });
}

#[test]
fn extended_attributes() {
    taken_back(|guest| {
        let put = |path: &str, name: &[u8], value: &[u8]| {
            let op = Op::Setxattr { node: guest.node(0, path), name_length: name.len() as u16, flags: 0 };
            assert_eq!(guest.call(&op, &[name, value].concat()).0, Outcome::Done);
        };
        put("a/two", b"user.tag", b"new");
        put("a/two", b"user.tag", b"newer");
        put("a/two", b"user.more", b"x");
        put("b", b"user.dir", b"y");
        let remove = Op::Removexattr { node: guest.node(0, "a/two") };
        assert_eq!(guest.call(&remove, b"user.tag").0, Outcome::Done);
    });
}

#[test]
fn allocating_punching_shifting() {
    taken_back(|guest| {
        let handle = opened(guest.open(guest.node(0, "a/big"), BOTH));
        let fallocate = |mode: i32, offset: u64, length: u64| {
            let op = Op::Fallocate { handle, mode: mode as u32, offset, length };
            let outcome = guest.ask(&op);
            // Not every file system can do everything; what this one can is to be done.
            let beside = tempfile::tempfile().unwrap();
            beside.set_len(700_000).unwrap();
            let flags = rustix::fs::FallocateFlags::from_bits_retain(mode as u32);
            let expected = match rustix::fs::fallocate(&beside, flags, offset, length) {
                Ok(()) => Outcome::Done,
                Err(error) => errno(error.raw_os_error()),
            };
            assert_eq!(outcome, expected, "{mode:#x}");
        };
        fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 5000, 20_000);
        fallocate(libc::FALLOC_FL_ZERO_RANGE, 100, 50);
        fallocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, 600_000, 300_000);
        fallocate(libc::FALLOC_FL_COLLAPSE_RANGE, 4096, 8192);
        fallocate(libc::FALLOC_FL_INSERT_RANGE, 8192, 4096);
        fallocate(0, 650_000, 200_000);
        written(guest.write(handle, 8192, b"after the shift"));
        guest.release(handle);
    });
}

#[test]
fn copying_ranges() {
    taken_back(|guest| {
        let from = opened(guest.open(guest.node(0, "a/big"), READ));
        let to = opened(guest.open(guest.node(0, "a/two"), BOTH));
        let op = Op::CopyRange { from, from_offset: 0, to, to_offset: 5_000, length: 200_000 };
        assert_eq!(written(guest.ask(&op)).0, 200_000);
        guest.release(from);
        guest.release(to);
    });
}

#[test]
fn everything_at_once_in_several_intervals() {
    let world = Vaulted::new();
    populate(&world);
    let before = world.snapshot();
    let since = world.now();
    let guest = world.guest("mail", 1, WINDOW);
    for n in 0..4_u8 {
        write_to(&guest, "a/one", u64::from(n), &[b'0' + n; 20]);
        guest.release(make(&guest, Some("b"), &format!("new{n}"), b"x"));
        rewrite(&guest, "a/big", &vec![n; 5_000 * usize::from(n)]);
        world.clock.forward(15);
    }
    let middle = world.snapshot();
    let later = world.now();
    rewrite(&guest, "a/one", b"in the end");
    assert_eq!(guest.unlink(guest.node(0, "b"), "new2"), Outcome::Done);
    // Back to the middle, then to the beginning.
    assert_eq!(unrestored(&world.undo("mail", later)), []);
    assert_eq!(world.snapshot(), middle);
    assert_eq!(unrestored(&world.undo("mail", since)), []);
    assert_eq!(world.snapshot(), before);
}

#[test]
fn what_others_changed_since_is_kept() {
    let world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let mail = world.guest("mail", 1, WINDOW);
    write_to(&mail, "a/one", 0, b"encrypted!");
    rewrite(&mail, "a/two", b"encrypted");
    rewrite(&mail, "b/three", b"encrypted");
    mail.release(make(&mail, Some("b"), "ransom", b"pay"));
    mail.release(make(&mail, Some("b"), "note", b"pay"));
    let a = mail.node(0, "a");
    assert_eq!(mail.unlink(a, "big"), Outcome::Done);
    set(&mail, "empty", SetAttr { mode: Some(0o700), ..SetAttr::default() });
    // Others, one with a window and one without.
    let office = world.guest("office", 2, WINDOW);
    let plain = world.guest("plain", 3, 0);
    write_to(&office, "a/one", 3, b"OFFICE");
    write_to(&plain, "b/note", 0, b"PLAIN");
    let op = Op::Open { node: plain.node(0, "b/three"), flags: OpenFlags { append: true, ..WRITE } };
    let handle = opened(plain.ask(&op));
    written(plain.write(handle, 0, b" PLAIN"));
    office.release(make(&office, Some("a"), "big", b"another one"));
    set(&plain, "empty", SetAttr { mode: Some(0o750), ..SetAttr::default() });

    let items = world.undo("mail", since);
    let kept = |path: &str| {
        let item = items
            .iter()
            .find(|item| item.path == path.as_bytes())
            .unwrap_or_else(|| panic!("{path}: {items:?}"));
        assert_eq!(item.verdict, Verdict::Kept, "{item:?}");
        item.beside.as_ref().map(|path| String::from_utf8(path.clone()).unwrap())
    };
    // Theirs is there, and the old version beside it.
    assert_eq!(world.bytes("users/a/one"), b"encOFFICE!file");
    assert_eq!(world.bytes(&kept("users/a/one").unwrap()), b"the first file");
    assert_eq!(world.bytes("users/b/three"), b"encrypted PLAIN");
    let beside = kept("users/b/three").unwrap();
    assert!(beside.starts_with("users/b/three (before mail 20"), "{beside}");
    assert_eq!(world.bytes(&beside), b"three");
    assert_eq!(world.bytes("users/a/big"), b"another one");
    assert_eq!(world.bytes(&kept("users/a/big").unwrap()), vec![b'B'; 700_000]);
    assert_eq!(kept("users/b/note"), None);
    assert_eq!(world.bytes("users/b/note"), b"PLAIN");
    kept("users/empty");
    let mode = std::fs::metadata(world.path("users/empty")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o7777, 0o750);
    // What nobody else touched is as it was.
    assert_eq!(world.bytes("users/a/two"), [b'2'; 10_000]);
    assert!(!world.path("users/b/ransom").exists());
    assert_eq!(unrestored(&items).len(), 5, "{items:?}");
}

#[test]
fn another_contract_of_the_same_application_is_somebody_else() {
    let world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let old = world.guest("mail", 1, WINDOW);
    write_to(&old, "a/one", 0, b"damaged");
    write_to(&old, "b/three", 0, b"DAMAG");
    let fresh = world.guest("mail", 2, WINDOW);
    write_to(&fresh, "a/one", 0, b"healed!");
    let filter = Filter { application: "mail".into(), contract: Some([1; 16]), since_us: since, ..all() };
    let (_, items) = world.undo_by(filter, false);
    assert_eq!(unrestored(&items), [("users/a/one".into(), Verdict::Kept)]);
    assert_eq!(world.bytes("users/a/one"), b"healed!st file");
    assert_eq!(world.bytes("users/b/three"), b"three");
}

#[test]
fn a_later_generation_is_somebody_else() {
    let mut world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let guest = |world: &Vaulted, id, generation| {
        let mut one = grant("users", "/Files", Rights::READ_WRITE);
        one.undo_secs = WINDOW;
        world.guest_of(&contract_of("mail", id, generation, UndoSpace::default(), vec![one]))
    };
    // Two contracts of the generation that was fenced, then one of the next.
    write_to(&guest(&world, 1, 4), "a/one", 0, b"damaged");
    write_to(&guest(&world, 2, 4), "b/three", 0, b"DAMAG");
    let fresh = guest(&world, 3, 5);
    write_to(&fresh, "a/one", 0, b"healed!");
    make(&fresh, Some("b"), "fresh", b"new");
    // Generations are on the disk.
    world.restart();
    let filter = Filter { application: "mail".into(), below: Some(5), since_us: since, ..all() };
    let dry = world.undo_by(filter.clone(), true).1;
    let (_, items) = world.undo_by(filter.clone(), false);
    assert_eq!(dry, items);
    assert_eq!(unrestored(&items), [("users/a/one".into(), Verdict::Kept)]);
    assert_eq!(world.bytes("users/a/one"), b"healed!st file");
    assert_eq!(world.bytes("users/b/three"), b"three");
    assert_eq!(world.bytes("users/b/fresh"), b"new");
    assert_eq!(world.undo_by(Filter { below: Some(4), ..filter }, false).1, []);
}

#[test]
fn only_below_a_path() {
    let world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let mail = world.guest("mail", 1, WINDOW);
    write_to(&mail, "a/one", 0, b"damaged");
    write_to(&mail, "b/three", 0, b"DAMAG");
    let filter =
        Filter { application: "mail".into(), path: Some(b"users/b".to_vec()), since_us: since, ..all() };
    let (_, items) = world.undo_by(filter, false);
    assert_eq!(items.iter().map(|item| item.path.clone()).collect::<Vec<_>>(), [b"users/b/three".to_vec()]);
    assert_eq!(world.bytes("users/a/one"), b"damagedst file");
    assert_eq!(world.bytes("users/b/three"), b"three");
}

#[test]
fn without_a_window_nothing_is_kept() {
    let world = Vaulted::new();
    populate(&world);
    let plain = world.guest("plain", 1, 0);
    let since = world.now();
    rewrite(&plain, "a/one", b"x");
    assert!(matches!(
        world.engine.begin_undo(Filter { application: "plain".into(), ..all() }, false),
        Err(UndoError::Unknown(_))
    ));
    let _mail = world.guest("mail", 2, WINDOW);
    rewrite(&plain, "a/two", b"x");
    assert_eq!(world.undo("plain", since), []);
    assert_eq!(world.bytes("users/a/two"), b"x");
    assert!(matches!(Vaulted::new().engine.begin_undo(Filter::default(), false), Err(UndoError::Unknown(_))));
    assert_eq!(World::new().engine.begin_undo(Filter::default(), false), Err(UndoError::Off));
}

#[test]
fn directories_that_others_renamed_are_found() {
    let world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let mail = world.guest("mail", 1, WINDOW);
    write_to(&mail, "a/one", 0, b"damaged");
    let a = mail.node(0, "a");
    assert_eq!(mail.unlink(a, "two"), Outcome::Done);
    let plain = world.guest("plain", 3, 0);
    let root = plain.root(0);
    assert_eq!(plain.rename((root, "a"), (root, "A"), RenameMode::Replace), Outcome::Done);
    let mut world = world;
    world.restart();
    let items = world.undo("mail", since);
    assert_eq!(unrestored(&items), []);
    assert_eq!(world.bytes("users/A/one"), b"the first file");
    assert_eq!(world.bytes("users/A/two"), [b'2'; 10_000]);
}

#[test]
fn the_vault_has_no_name() {
    let world = Vaulted::new();
    populate(&world);
    let vault = world.vault();
    assert!(vault.is_dir());
    let inside = std::fs::metadata(&vault).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&inside.permissions()) & 0o7777, 0o700);
    // Moved by an administrator to where a contract reaches: it still cannot be named there.
    std::fs::rename(&vault, world.path("users/vault")).unwrap();
    let guest = world.guest("mail", 1, WINDOW);
    let root = guest.root(0);
    assert_eq!(guest.lookup(root, "vault"), errno(libc::EACCES));
    assert_eq!(guest.rmdir(root, "vault"), errno(libc::EACCES));
    assert_eq!(guest.rename((root, "vault"), (root, "mine"), RenameMode::Replace), errno(libc::EACCES));
    assert_eq!(guest.rename((root, "a"), (root, "vault"), RenameMode::Exchange), errno(libc::EACCES));
    assert_eq!(guest.rename((root, "a"), (root, "vault"), RenameMode::Replace), errno(libc::EACCES));
    assert_eq!(guest.mkdir(root, "vault"), errno(libc::EEXIST));
    for plus in [false, true] {
        assert!(!guest.names(root, 4096, plus).contains(&"vault".to_owned()));
    }
}

#[test]
fn deleted_files_have_no_links() {
    let world = Vaulted::new();
    populate(&world);
    let guest = world.guest("mail", 1, WINDOW);
    let one = guest.node(0, "a/one");
    guest.node(0, "b/hard");
    let handle = opened(guest.open(one, BOTH));
    let links = || attr(guest.ask(&Op::Getattr { node: one, handle: Some(handle) })).nlink;
    assert_eq!(links(), 2);
    assert_eq!(guest.unlink(guest.node(0, "a"), "one"), Outcome::Done);
    assert_eq!(links(), 1);
    assert_eq!(attr(guest.getattr(guest.node(0, "b/hard"))).nlink, 1);
    assert_eq!(guest.unlink(guest.node(0, "b"), "hard"), Outcome::Done);
    assert_eq!(links(), 0);
    let items = world.undo("mail", 0);
    assert_eq!(unrestored(&items), []);
    assert_eq!(attr(guest.getattr(guest.node(0, "b/hard"))).nlink, 2);
    assert_eq!(links(), 2);
}

#[test]
fn a_removed_directory_takes_nothing_new() {
    let world = Vaulted::new();
    populate(&world);
    let guest = world.guest("mail", 1, WINDOW);
    let empty = guest.node(0, "empty");
    assert_eq!(guest.rmdir(guest.root(0), "empty"), Outcome::Done);
    let outcome = guest.create(empty, "late", BOTH);
    assert!(matches!(outcome, Outcome::Failed(Failure::Stale | Failure::Errno(_))), "{outcome:?}");
    assert_eq!(unrestored(&world.undo("mail", 0)), []);
    assert!(std::fs::read_dir(world.path("users/empty")).unwrap().next().is_none());
}

#[test]
fn outrunning_the_space_fences() {
    let world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let (told, overrun) = std::sync::mpsc::channel();
    let told = shared_sender(told);
    world.engine.on_overrun(told);
    let space = UndoSpace { bytes: Some(300_000), full: UndoFull::Fence };
    let guest = world.guest_with("mail", 1, WINDOW, space);
    write_to(&guest, "a/big", 0, &[0; 100_000]);
    let handle = opened(guest.open(guest.node(0, "a/big"), WRITE));
    assert_eq!(guest.write(handle, 100_000, &[0; 500_000]), Outcome::Failed(Failure::Fenced));
    assert_eq!(guest.unlink(guest.node(0, "a"), "big"), Outcome::Failed(Failure::Fenced));
    let over = overrun.try_recv().unwrap();
    assert_eq!((over.application.as_str(), over.space), ("mail", 300_000));
    assert_eq!(unrestored(&world.undo("mail", since)), []);
    assert_eq!(world.bytes("users/a/big"), vec![b'B'; 700_000]);
}

fn shared_sender<T: Send>(sender: std::sync::mpsc::Sender<T>) -> impl Fn(T) + Send + Sync {
    let sender = std::sync::Mutex::new(sender);
    move |value| drop(sender.lock().unwrap().send(value))
}

#[test]
fn forgetting_keeps_within_the_space() {
    let world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let space = UndoSpace { bytes: Some(1_000_000), full: UndoFull::Forget };
    let guest = world.guest_with("mail", 1, WINDOW, space);
    for n in 0..20_u8 {
        write_to(&guest, "a/big", 0, &vec![n; 200_000]);
        world.clock.forward(3600);
    }
    world.engine.expire_undo().unwrap();
    let kept = size_of(&world.vault().join("kept/mail"));
    assert!((200_000..1_200_000).contains(&kept), "{kept}");
    let run = world
        .engine
        .begin_undo(Filter { application: "mail".into(), since_us: since, ..all() }, false)
        .unwrap();
    world.engine.carry_undo(run);
    let (progress, _) = world.progress(run);
    assert!(progress.expired, "{progress:?}");
    // The oldest version that is left.
    let left = world.bytes("users/a/big");
    assert!(left[0] > 0 && left[0] < 20, "{}", left[0]);
}

fn size_of(path: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { size_of(&path) } else { path.metadata().unwrap().len() }).sum()
}

#[test]
fn what_is_over_its_window_is_forgotten() {
    let world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let guest = world.guest("mail", 1, 86_400);
    // What happened stays on record for as long as somebody may need it to find conflicts.
    world.guest("office", 2, WINDOW).session.close();
    rewrite(&guest, "a/big", b"short");
    assert_eq!(guest.unlink(guest.node(0, "a"), "two"), Outcome::Done);
    assert_eq!(guest.unlink(guest.node(0, "b"), "hard"), Outcome::Done);
    world.clock.forward(7200);
    let half = world.now();
    write_to(&guest, "b/three", 0, b"THREE");
    world.clock.forward(78_000);
    world.engine.expire_undo().unwrap();
    assert!(size_of(&world.vault().join("kept/mail")) > 700_000);
    world.clock.forward(3_000);
    world.engine.expire_undo().unwrap();
    assert_eq!(size_of(&world.vault().join("kept/mail")), 0);
    assert_eq!(std::fs::metadata(world.path("users/a/one")).unwrap().len(), 14);
    // What is younger can still be taken back; of the rest it is told for each path that it cannot.
    let dry = world.undo_by(Filter { application: "mail".into(), since_us: since, ..all() }, true).1;
    let items = world.undo("mail", since);
    assert_eq!(items, dry);
    let gone = |path: &str| (path.to_owned(), Verdict::Expired);
    let all_gone = [gone("users/a/big"), gone("users/a/two"), gone("users/b/hard")];
    assert_eq!(unrestored(&items), all_gone);
    assert_eq!(world.bytes("users/b/three"), b"three");
    assert_eq!(world.bytes("users/a/big"), b"short");
    let old = Filter { application: "mail".into(), since_us: since, until_us: half, ..all() };
    let run = world.engine.begin_undo(old, false).unwrap();
    world.engine.carry_undo(run);
    let (progress, items) = world.progress(run);
    assert!(progress.expired);
    assert_eq!(unrestored(&items), all_gone);
    world.clock.forward(8 * 86_400);
    world.engine.expire_undo().unwrap();
    let run = world.engine.begin_undo(Filter { application: "mail".into(), ..all() }, false).unwrap();
    world.engine.carry_undo(run);
    let (progress, items) = world.progress(run);
    assert!(progress.expired && progress.failed.is_none() && items.is_empty(), "{progress:?} {items:?}");
    assert!(size_of(&world.vault().join("logs/mail")) < 100);
}

#[test]
fn the_past_can_be_looked_at() {
    let world = Vaulted::new();
    populate(&world);
    let guest = world.guest("mail", 1, WINDOW);
    let first = world.now();
    world.clock.forward(20);
    write_to(&guest, "a/one", 0, b"THE");
    let second = world.now();
    world.clock.forward(20);
    rewrite(&guest, "a/one", b"new");
    let third = world.now();
    world.clock.forward(20);
    assert_eq!(guest.unlink(guest.node(0, "a"), "one"), Outcome::Done);
    let read = |at| {
        let (file, whole) = world.engine.file_at(b"users/a/one", at).unwrap();
        assert!(whole);
        let mut text = String::new();
        let mut file = std::fs::File::from(file);
        std::io::Seek::rewind(&mut file).unwrap();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        text
    };
    assert_eq!(read(first), "the first file");
    assert_eq!(read(second), "THE first file");
    assert_eq!(read(third), "new");
    assert!(world.engine.file_at(b"users/a/one", world.now()).is_err());
    assert!(world.engine.file_at(b"users/../etc/passwd", first).is_err());
    let history = world.engine.history(b"users/a/one").unwrap();
    let told: Vec<&str> = history.iter().map(|item| item.what.as_str()).collect();
    assert_eq!(told, ["written (14 bytes before)", "written (14 bytes before)", "deleted"]);
}

#[test]
fn who_read_what_was_written() {
    let world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let mail = world.guest("mail", 1, WINDOW);
    let office = world.guest("office", 2, 0);
    let read = |guest: &Guest, path: &str| {
        let handle = opened(guest.open(guest.node(0, path), READ));
        guest.read(handle, 0, 100).unwrap();
        guest.release(handle);
    };
    read(&office, "a/one");
    write_to(&mail, "a/one", 0, b"bad");
    mail.release(make(&mail, Some("b"), "bait", b"bad"));
    read(&mail, "a/one");
    read(&office, "a/one");
    read(&office, "a/one");
    read(&office, "b/bait");
    read(&office, "a/two");
    let blast = world.engine.blast("mail", since).unwrap();
    let told: Vec<(&[u8], Vec<&str>)> = blast
        .iter()
        .map(|item| (&item.path[..], item.readers.iter().map(|(reader, _)| reader.as_str()).collect()))
        .collect();
    assert_eq!(told, [(&b"users/a/one"[..], vec!["office"]), (&b"users/b/bait"[..], vec!["office"])]);
    assert_eq!(blast[1].what, ["created"]);
    assert!(blast.iter().all(|item| item.sent_ahead.is_empty()), "{blast:?}");
}

struct Deaf;

impl strongroom_gateway::engine::Teller for Deaf {
    fn tell(&self, _: strongroom_protocol::reply::Event, _: Vec<u8>, _: bool) {}
}

/// What a client asks for before anybody reads it is told apart from what was read; who has read it is not told as one who
/// only may have.
#[test]
fn what_was_sent_ahead_is_told_apart() {
    let world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let mail = world.guest("mail", 1, WINDOW);
    let office = world.guest("office", 2, 0);
    office.session.answer_to(std::sync::Arc::new(Deaf));
    assert!(matches!(office.ask(&Op::TakeLeases), Outcome::Terms(_)));
    write_to(&mail, "a/one", 0, b"bad");
    mail.release(make(&mail, Some("b"), "bait", b"bad"));
    mail.session.close();
    let ahead = |paths: &[&str]| {
        let list: Vec<u8> = paths.iter().flat_map(|path| office.node(0, path).ino.to_le_bytes()).collect();
        let op = Op::ReadFiles { grant: 0, longest: 1000, max_bytes: 1 << 20 };
        let (outcome, data) = office.call(&op, &list);
        assert_eq!(outcome, Outcome::Data);
        assert_eq!(strongroom_protocol::files::files(&data).count(), paths.len());
    };
    // Untouched files are nobody's concern, whoever is sent them.
    ahead(&["a/one", "b/bait", "b/three"]);
    let told = || {
        let names = |list: &[(String, u64)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let blast = world.engine.blast("mail", since).unwrap();
        let told = |item: &strongroom_gateway::undo::BlastItem| {
            let path = String::from_utf8(item.path.clone()).unwrap();
            (path, names(&item.readers), names(&item.sent_ahead))
        };
        blast.iter().map(told).collect::<Vec<_>>()
    };
    let (one, bait, office_only) =
        ("users/a/one".to_owned(), "users/b/bait".to_owned(), vec!["office".to_owned()]);
    assert_eq!(
        told(),
        [(one.clone(), vec![], office_only.clone()), (bait.clone(), vec![], office_only.clone())]
    );
    // Now somebody reads one of them.
    let handle = opened(office.open(office.node(0, "a/one"), READ));
    office.read(handle, 0, 100).unwrap();
    office.release(handle);
    assert_eq!(told(), [(one, office_only.clone(), vec![]), (bait, vec![], office_only)]);
    let history = world.engine.history(b"users/b/bait").unwrap();
    assert!(history.iter().any(|item| item.what == "sent ahead after mail wrote it"), "{history:?}");
}

/// What was taken back once is not taken back again: the times, modes and names that came since are others'.
#[test]
fn a_second_undo_leaves_what_the_first_has_done() {
    let world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let of = |generation, id| {
        let mut one = grant("users", "/Files", Rights::READ_WRITE);
        one.undo_secs = WINDOW;
        world.guest_of(&contract_of("mail", id, generation, UndoSpace::default(), vec![one]))
    };
    let at = SetTime::At(Time { secs: 1_500_000_000, nanos: 5 });
    let attacked = of(4, 1);
    set(&attacked, "a/one", SetAttr { mtime: Some(at), ..SetAttr::default() });
    set(&attacked, "b/three", SetAttr { mode: Some(0o600), ..SetAttr::default() });
    attacked.release(make(&attacked, Some("empty"), "ransom", b"pay"));
    world.clock.forward(15);
    write_to(&attacked, "a/two", 0, b"damaged");
    attacked.session.close();
    let filter = Filter { application: "mail".into(), below: Some(5), since_us: since, ..all() };
    let (_, items) = world.undo_by(filter.clone(), false);
    assert_eq!(unrestored(&items), []);
    assert_eq!(items.len(), 4, "{items:?}");
    // The user goes on, under the next contract.
    world.clock.forward(15);
    let healed = of(5, 2);
    write_to(&healed, "a/one", 0, b"THE");
    set(&healed, "a/two", SetAttr { mtime: Some(at), ..SetAttr::default() });
    healed.release(make(&healed, Some("empty"), "work", b"work"));
    healed.session.close();
    let now = world.snapshot();
    let (_, items) = world.undo_by(filter, false);
    assert_eq!(items, []);
    assert_eq!(world.snapshot(), now);
}

/// Who changes contents changes the time of change: it is theirs, also where only the time had been changed before.
#[test]
fn the_time_of_what_another_wrote_is_the_others() {
    let world = Vaulted::new();
    populate(&world);
    let since = world.now();
    let mail = world.guest("mail", 1, WINDOW);
    let at = SetTime::At(Time { secs: 1_500_000_000, nanos: 5 });
    set(&mail, "a/one", SetAttr { mtime: Some(at), ..SetAttr::default() });
    set(&mail, "b", SetAttr { mtime: Some(at), ..SetAttr::default() });
    set(&mail, "a", SetAttr { mtime: Some(at), ..SetAttr::default() });
    let office = world.guest("office", 2, WINDOW);
    write_to(&office, "a/one", 0, b"THE");
    office.release(make(&office, Some("b"), "work", b"work"));
    let before = std::fs::metadata(world.path("users")).unwrap().modified().unwrap();
    let now = world.snapshot();
    let dry = world.undo_by(Filter { application: "mail".into(), since_us: since, ..all() }, true).1;
    assert_eq!(world.undo("mail", since), dry);
    let after = world.snapshot();
    let changed: Vec<&String> =
        now.iter().filter(|(path, text)| after[*path] != **text).map(|(path, _)| path).collect();
    assert_eq!(changed, ["/a"], "only the time of what nobody else changed");
    assert_eq!(std::fs::metadata(world.path("users")).unwrap().modified().unwrap(), before);
}

/// Directories that were moved into each other in all ways, and are gone: looking for them comes to an end.
#[test]
fn places_in_circles() {
    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mut world = Vaulted::new();
    world.file("users/stays", b"stays");
    let before = world.snapshot();
    let guest = world.guest("mail", 1, WINDOW);
    let root = guest.root(0);
    for name in NAMES {
        entry(guest.mkdir(root, name));
    }
    for (name, other) in NAMES.iter().flat_map(|name| NAMES.iter().map(move |other| (*name, *other))) {
        if name != other {
            let inside = guest.node(0, other);
            assert_eq!(guest.rename((root, name), (inside, name), RenameMode::NoReplace), Outcome::Done);
            assert_eq!(guest.rename((inside, name), (root, name), RenameMode::NoReplace), Outcome::Done);
        }
    }
    for name in NAMES {
        assert_eq!(guest.rmdir(root, name), Outcome::Done);
    }
    guest.session.close();
    world.restart();
    let (done, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let items = world.undo("mail", 0);
        done.send((unrestored(&items), world.snapshot() == before)).unwrap();
    });
    assert_eq!(heard.recv_timeout(std::time::Duration::from_secs(120)), Ok((vec![], true)));
}

/// Figures for docs/recovery.md: `cargo test --release -p strongroom-gateway --test engine -- --ignored --nocapture figures`.
/// `TMPDIR` says on which file system.
#[test]
#[ignore = "measures; run it by hand"]
fn figures() {
    for window in [0, WINDOW] {
        let world = Vaulted::new();
        std::fs::create_dir_all(world.path("users/d")).unwrap();
        let watcher = world.guest("other", 9, WINDOW);
        let guest = world.guest("mail", 1, window);
        let dir = guest.node(0, "d");
        let timed = |what: &str, act: &mut dyn FnMut()| {
            let begin = std::time::Instant::now();
            act();
            println!("window {window}: {what}: {:?}", begin.elapsed());
        };
        timed("create and write 10,000 files of 4 KiB", &mut || {
            for n in 0..10_000 {
                let (handle, _) = created(guest.create(dir, &format!("f{n}"), BOTH));
                written(guest.write(handle, 0, &[7; 4096]));
                guest.release(handle);
            }
        });
        let (big, _) = created(guest.create(dir, "big", BOTH));
        let block = vec![1; 1 << 20];
        timed("write 1 GiB to a new file", &mut || {
            for n in 0..1024 {
                written(guest.write(big, n << 20, &block));
            }
        });
        world.clock.forward(20);
        timed("overwrite 1 GiB", &mut || {
            for n in 0..1024 {
                written(guest.write(big, n << 20, &block));
            }
        });
        world.clock.forward(20);
        timed("overwrite 10,000 x 4 KiB", &mut || {
            for n in 0..10_000_u64 {
                written(guest.write(big, (n * 7919 % 250_000) << 12, &block[..4096]));
            }
        });
        let since = world.now();
        timed("delete 10,000 files", &mut || {
            for n in 0..10_000 {
                assert_eq!(guest.unlink(dir, &format!("f{n}")), Outcome::Done);
            }
            assert_eq!(guest.unlink(dir, "big"), Outcome::Done);
        });
        if window > 0 {
            timed("take the deletion back", &mut || {
                assert_eq!(unrestored(&world.undo("mail", since)), []);
            });
        }
        watcher.session.close();
    }
}
