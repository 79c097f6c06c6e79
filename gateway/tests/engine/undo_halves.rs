//! What a kill in the middle of one operation leaves behind, made by hand: a start completes it or takes it back, so that
//! nobody sees half of an operation and an undo finds what its records tell.

use strongroom_gateway::undo::Filter;
use strongroom_protocol::op::RenameMode;
use strongroom_protocol::reply::Outcome;

use crate::support::*;
use crate::undo_support::*;

/// The only thing in the vault.
fn only_kept(world: &Vaulted) -> std::path::PathBuf {
    let mut found = vec![];
    for shard in std::fs::read_dir(world.vault().join("kept/mail")).unwrap() {
        let shard = shard.unwrap().path();
        found.extend(std::fs::read_dir(shard).unwrap().map(|entry| entry.unwrap().path()));
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn renamed(guest: &Guest, from: &str, to: &str) {
    let root = guest.root(0);
    assert_eq!(guest.rename((root, from), (root, to), RenameMode::Replace), Outcome::Done);
}

fn mail() -> Filter {
    Filter { application: "mail".into(), ..all() }
}

/// A directory takes the place of an empty one by an exchange, after which the other goes into the vault.
#[test]
fn a_directory_that_was_exchanged_and_not_yet_kept() {
    let mut world = Vaulted::new();
    world.file("users/from/inside", b"inside");
    std::fs::create_dir(world.path("users/to")).unwrap();
    let before = world.snapshot();
    let guest = world.guest("mail", 1, WINDOW);
    renamed(&guest, "from", "to");
    guest.session.close();
    let after = world.snapshot();
    std::fs::rename(only_kept(&world), world.path("users/from")).unwrap();
    world.restart();
    assert_eq!(names(&world), names_of(&after));
    only_kept(&world);
    let (run, items) = world.undo_by(mail(), false);
    assert_eq!(unrestored(&items), []);
    assert_eq!(world.snapshot(), before);
    let redo = Filter { application: "@undo".into(), contract: Some(*run.as_bytes()), ..all() };
    assert_eq!(unrestored(&world.undo_by(redo, false).1), []);
    assert_eq!(names(&world), names_of(&after));
}

/// A file that is replaced gets a name in the vault first, and loses its own by the rename.
#[test]
fn a_file_that_was_kept_and_not_yet_replaced() {
    let mut world = Vaulted::new();
    world.file("users/from", b"the new one");
    world.file("users/to", b"the old one");
    let before = world.snapshot();
    let guest = world.guest("mail", 1, WINDOW);
    renamed(&guest, "from", "to");
    guest.session.close();
    std::fs::rename(world.path("users/to"), world.path("users/from")).unwrap();
    std::fs::hard_link(only_kept(&world), world.path("users/to")).unwrap();
    world.restart();
    let guest = world.guest("mail", 1, WINDOW);
    assert_eq!(attr(guest.getattr(guest.node(0, "to"))).nlink, 1, "a name that nobody sees is counted");
    assert!(
        !world
            .vault()
            .join("kept/mail")
            .read_dir()
            .unwrap()
            .any(|shard| { shard.unwrap().path().read_dir().unwrap().next().is_some() })
    );
    guest.session.close();
    assert_eq!(unrestored(&world.undo_by(mail(), false).1), []);
    assert_eq!(names(&world), names_of(&before));
    assert_eq!(world.bytes("users/to"), b"the old one");
}

/// The bytes of the log of undos, and where its first record ends that has this text in it.
fn log_of_undos(world: &Vaulted, text: &[u8]) -> (std::path::PathBuf, u64) {
    let logs = std::fs::read_dir(world.vault().join("logs/@undo")).unwrap();
    let segments: Vec<_> = logs.map(|entry| entry.unwrap().path()).collect();
    let [segment] = &segments[..] else { panic!("{segments:?}") };
    let bytes = std::fs::read(segment).unwrap();
    // The header, then records of length, checksum and body (docs/adr/0013-undo-log.md, gateway/src/undo/record.rs).
    let mut at = 64;
    while let Some(length) = bytes.get(at..at + 4) {
        let body = at + 8..at + 8 + u32::from_le_bytes(length.try_into().unwrap()) as usize;
        at = body.end;
        if bytes[body].windows(text.len()).any(|part| part == text) {
            return (segment.clone(), at as u64);
        }
    }
    panic!("no record with {text:?}");
}

/// A kill after an undo has given a deleted file its name back, before any later record of it was written: an undo of that
/// undo takes the file away again. The same for an old version that was put beside.
#[test]
fn a_name_that_was_given_back_and_not_yet_noted() {
    for beside in [false, true] {
        let mut world = Vaulted::new();
        world.file("users/mine", b"the old one");
        let guest = world.guest("mail", 1, WINDOW);
        let root = guest.root(0);
        if beside {
            let file = opened(guest.open(guest.node(0, "mine"), WRITE));
            written(guest.write(file, 0, b"THE NEW"));
            guest.release(file);
            let other = world.guest("office", 2, WINDOW);
            let file = opened(other.open(other.node(0, "mine"), WRITE));
            written(other.write(file, 4, b"office"));
            other.release(file);
            other.session.close();
        } else {
            assert_eq!(guest.unlink(root, "mine"), Outcome::Done);
        }
        guest.session.close();
        let damaged = names(&world);
        let run = world.undo_by(mail(), false).0;
        let restored = names(&world);
        assert_ne!(restored, damaged);
        let name = if beside { &b"mine (before"[..] } else { b"mine" };
        let (segment, end) = log_of_undos(&world, name);
        std::fs::OpenOptions::new().write(true).open(segment).unwrap().set_len(end).unwrap();
        world.restart();
        assert_eq!(names(&world), restored);
        let redo = Filter { application: "@undo".into(), contract: Some(*run.as_bytes()), ..all() };
        assert_eq!(unrestored(&world.undo_by(redo, false).1), [], "beside: {beside}");
        assert_eq!(names(&world), damaged, "beside: {beside}");
    }
}

/// What only looks like half of an operation, and was done by later ones, stays as it is.
#[test]
fn what_was_done_later_is_no_half() {
    let mut world = Vaulted::new();
    world.file("users/from/inside", b"inside");
    std::fs::create_dir(world.path("users/to")).unwrap();
    let guest = world.guest("mail", 1, WINDOW);
    renamed(&guest, "from", "to");
    guest.session.close();
    assert_eq!(unrestored(&world.undo_by(mail(), false).1), []);
    // Both have their own names again; now somebody exchanges them.
    let other = world.guest("office", 2, WINDOW);
    let root = other.root(0);
    assert_eq!(other.rename((root, "from"), (root, "to"), RenameMode::Exchange), Outcome::Done);
    other.session.close();
    let after = world.snapshot();
    world.restart();
    assert_eq!(world.snapshot(), after);
}

fn names(world: &Vaulted) -> Vec<String> {
    names_of(&world.snapshot())
}

fn names_of(snapshot: &std::collections::BTreeMap<String, String>) -> Vec<String> {
    snapshot.keys().cloned().collect()
}
