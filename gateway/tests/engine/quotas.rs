//! Quotas: never exceeded, counted alike from the disk and step by step.

use proptest::prelude::*;
use strongroom_contracts::{Grant, Rights};
use strongroom_protocol::attr::{Handle, OpenFlags};
use strongroom_protocol::op::{Op, RenameMode};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::support::*;

const FULL: Outcome = Outcome::Failed(Failure::Quota);
const BLOCK: u64 = 4096;

fn limited(path: &str, bytes: Option<u64>, files: Option<u64>) -> Grant {
    Grant { quota_bytes: bytes, quota_files: files, ..grant(path, "/q", Rights::READ_WRITE) }
}

/// Bytes and files in use, as statfs(2) of guests with large quotas tells them. It tells whole free blocks; the bytes
/// are found by shifting the quota until one block more is free.
fn usage(world: &World, path: &str) -> (u64, u64) {
    let (most, most_files) = (1 << 30, 10_000);
    let free = |bytes: u64| {
        let guest = world.guest(vec![limited(path, Some(bytes), Some(most_files))]);
        let Outcome::Statfs(statfs) = guest.ask(&Op::Statfs { node: guest.root(0) }) else {
            panic!("no statfs")
        };
        assert_eq!(u64::from(statfs.block_size), BLOCK);
        (statfs.free, statfs.files_free)
    };
    let (blocks, files) = free(most);
    let (mut low, mut high) = (0, BLOCK);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if free(most + middle).0 > blocks { high = middle } else { low = middle }
    }
    (most + high - (blocks + 1) * BLOCK, most_files - files)
}

#[test]
fn what_is_there_counts_and_every_way_to_grow_is_bounded() {
    let world = World::new();
    world.file("a/old", &[1; 60]);
    world.file("a/d/older", &[1; 10]);
    let guest = world.guest(vec![limited("a", Some(100), Some(5))]);
    let root = guest.root(0);
    let (handle, file) = created(guest.create(root, "f", BOTH));
    assert_eq!(written(guest.write(handle, 0, &[2; 30])), (30, 30));
    assert_eq!(guest.write(handle, 30, b"x"), FULL);
    assert_eq!(guest.write(handle, 1 << 40, b"x"), FULL);
    assert_eq!(guest.truncate(file.node, 31), FULL);
    let allocate =
        |mode: i32, offset, length| guest.ask(&Op::Fallocate { handle, mode: mode as u32, offset, length });
    assert_eq!(allocate(0, 0, 31), FULL);
    assert_eq!(allocate(libc::FALLOC_FL_KEEP_SIZE, 0, 31), errno(libc::EOPNOTSUPP));
    assert_eq!(allocate(libc::FALLOC_FL_ZERO_RANGE, 0, 31), FULL);
    let old = opened(guest.open(guest.node(0, "old"), BOTH));
    let copy = |length| Op::CopyRange { from: old, from_offset: 0, to: handle, to_offset: 30, length };
    assert_eq!(guest.ask(&copy(1)), FULL);
    // Changing is not growing, and cutting makes room.
    assert_eq!(written(guest.write(handle, 0, &[3; 30])), (30, 30));
    assert_eq!(attr(guest.truncate(guest.node(0, "old"), 50)).size, 50);
    assert_eq!(written(guest.ask(&copy(10))), (10, 40));
    assert_eq!(guest.write(old, 50, b"x"), FULL);
    opened(guest.open(guest.node(0, "old"), OpenFlags { truncate: true, ..WRITE }));
    assert_eq!(written(guest.write(handle, 40, &[4; 50])), (50, 90));

    // old, d, d/older, f: one more name.
    entry(guest.link(file.node, root, "g"));
    for outcome in [
        guest.mkdir(root, "x"),
        guest.create(root, "x", WRITE),
        guest.symlink(root, "x", b"t"),
        guest.link(file.node, root, "x"),
        guest.ask(&Op::Mknod { parent: root, name: name("x"), mode: libc::S_IFIFO, rdev: 0, by: BY }),
    ] {
        assert_eq!(outcome, FULL);
    }
    assert!(!world.path("a/x").exists());
    assert_eq!(guest.unlink(root, "g"), Outcome::Done);
    entry(guest.mkdir(root, "x"));
    let Outcome::Statfs(statfs) = guest.ask(&Op::Statfs { node: root }) else { panic!("no statfs") };
    assert_eq!((statfs.files, statfs.files_free, statfs.blocks), (5, 0, 0));
}

#[test]
fn other_guests_changes_count_too() {
    let world = World::new();
    world.file("all/q/f", &[0; 50]);
    world.file("all/out/h", &[0; 50]);
    let outer = world.guest(vec![grant("all", "/all", Rights::READ_WRITE)]);
    let inner = world.guest(vec![limited("all/q", Some(100), None)]);
    let root = inner.root(0);
    let (handle, _) = created(inner.create(root, "g", BOTH));
    assert_eq!(written(inner.write(handle, 0, &[0; 40])), (40, 40));
    // The other guest has no quota: it is let through, and counted.
    let theirs = opened(outer.open(outer.node(0, "q/f"), WRITE));
    assert_eq!(written(outer.write(theirs, 50, &[0; 70])), (70, 120));
    assert_eq!(inner.write(handle, 40, b"x"), FULL);
    let (q, out) = (outer.node(0, "q"), outer.node(0, "out"));
    assert_eq!(outer.rename((q, "f"), (out, "f"), RenameMode::Replace), Outcome::Done);
    assert_eq!(written(inner.write(handle, 40, &[0; 10])), (10, 50));
    // A link into the subtree brings the file's bytes, once.
    let h = outer.node(0, "out/h");
    entry(outer.link(h, q, "h1"));
    entry(outer.link(h, q, "h2"));
    assert_eq!(inner.write(handle, 50, b"x"), FULL);
    let theirs = opened(outer.open(h, WRITE));
    // Written through a name outside, it grows inside.
    assert_eq!(written(outer.write(theirs, 50, &[0; 9])), (9, 59));
    assert_eq!(outer.unlink(q, "h1"), Outcome::Done);
    assert_eq!(inner.write(handle, 50, b"x"), FULL);
    assert_eq!(outer.unlink(q, "h2"), Outcome::Done);
    assert_eq!(written(inner.write(handle, 50, &[0; 50])), (50, 100));
    // A directory does not cross the border: what it holds is not counted again on the way.
    entry(outer.mkdir(out, "dir"));
    assert_eq!(outer.rename((out, "dir"), (q, "dir"), RenameMode::Replace), errno(libc::EXDEV));
    assert_eq!(outer.rename((out, "f"), (q, "g"), RenameMode::Exchange), errno(libc::EXDEV));
}

#[test]
fn files_without_names_stay_charged_while_they_are_open() {
    let world = World::new();
    world.dirs(&["a"]);
    let guest = world.guest(vec![limited("a", Some(100), None)]);
    let root = guest.root(0);
    let (handle, _) = created(guest.create(root, "f", BOTH));
    written(guest.write(handle, 0, &[0; 60]));
    assert_eq!(guest.unlink(root, "f"), Outcome::Done);
    let (other, _) = created(guest.create(root, "f", BOTH));
    assert_eq!(guest.write(other, 0, &[0; 41]), FULL);
    written(guest.write(handle, 60, &[0; 20]));
    assert_eq!(guest.write(handle, 80, &[0; 21]), FULL);
    assert_eq!(guest.release(handle), Outcome::Done);
    assert_eq!(written(guest.write(other, 0, &[0; 100])), (100, 100));
    // Closing the session lets go of such files as well.
    assert_eq!(guest.unlink(root, "f"), Outcome::Done);
    guest.session.close();
    let next = world.guest(vec![limited("a", Some(100), None)]);
    let (handle, _) = created(next.create(next.root(0), "f", BOTH));
    assert_eq!(written(next.write(handle, 0, &[0; 100])), (100, 100));
}

#[test]
fn attenuated_quotas_hold_together() {
    use strongroom_contracts::chain::Quota;
    let world = World::new();
    world.file("a/other", &[0; 70]);
    world.dirs(&["a/b"]);
    let mut contract = contract(vec![limited("a/b", Some(50), None)]);
    let outer = Quota { path: "a".parse().unwrap(), bytes: Some(100), files: None };
    contract.grants[0].quotas.insert(0, outer);
    let session =
        strongroom_gateway::engine::EngineSession::new(&world.engine, &contract, Default::default(), &[]);
    let guest = Guest {
        engine: world.engine.clone(),
        session: session.into(),
        turnstile: strongroom_gateway::engine::Turnstile::new(),
    };
    let (handle, _) = created(guest.create(guest.root(0), "f", BOTH));
    assert_eq!(guest.write(handle, 0, &[0; 31]), FULL);
    assert_eq!(written(guest.write(handle, 0, &[0; 30])), (30, 30));
}

#[test]
fn writers_at_the_same_time_never_exceed_it_together() {
    let world = World::new();
    world.dirs(&["a"]);
    const MOST: u64 = 100_000;
    std::thread::scope(|scope| {
        for n in 0..4 {
            let world = &world;
            scope.spawn(move || {
                let guest = world.guest(vec![limited("a", Some(MOST), Some(12))]);
                let root = guest.root(0);
                let mut open: Vec<Handle> = vec![];
                let mut at = 0;
                for round in 0..400_u64 {
                    if let Outcome::Created(handle, _) = guest.create(root, &format!("{n}-{round}"), BOTH) {
                        open.push(handle);
                    }
                    for handle in &open {
                        if let Outcome::Written { count, .. } = guest.write(*handle, at, &[1; 977]) {
                            assert_eq!(count, 977);
                        }
                    }
                    at += 977;
                }
            });
        }
    });
    let (mut bytes, mut files) = (0, 0);
    for entry in std::fs::read_dir(world.path("a")).unwrap() {
        bytes += entry.unwrap().metadata().unwrap().len();
        files += 1;
    }
    assert_eq!(files, 12);
    assert!(bytes <= MOST, "{bytes}");
    assert!(bytes > MOST - 977 * 4, "{bytes}");
}

/// One step of the random history below; small numbers name files and directories.
#[derive(Clone, Debug)]
enum Step {
    Create(u8, u8),
    Mkdir(u8),
    Write(u8, u8, u16, u16),
    Truncate(u8, u8, u16),
    Link(u8, u8, u8, u8),
    Unlink(u8, u8),
    Rmdir(u8),
    Rename(u8, u8, u8, u8, bool),
    OpenAndUnlink(u8, u8),
    Allocate(u8, u8, u8, u16, u16),
}

fn step() -> impl Strategy<Value = Step> {
    let (dir, file) = (|| 0..4_u8, || 0..4_u8);
    prop_oneof![
        (dir(), file()).prop_map(|(d, f)| Step::Create(d, f)),
        dir().prop_map(Step::Mkdir),
        (dir(), file(), 0..9000_u16, 0..9000_u16).prop_map(|(d, f, o, l)| Step::Write(d, f, o, l)),
        (dir(), file(), 0..9000_u16).prop_map(|(d, f, s)| Step::Truncate(d, f, s)),
        (dir(), file(), dir(), file()).prop_map(|(d, f, e, g)| Step::Link(d, f, e, g)),
        (dir(), file()).prop_map(|(d, f)| Step::Unlink(d, f)),
        dir().prop_map(Step::Rmdir),
        (dir(), file(), dir(), file(), any::<bool>()).prop_map(|(d, f, e, g, x)| Step::Rename(d, f, e, g, x)),
        (dir(), file()).prop_map(|(d, f)| Step::OpenAndUnlink(d, f)),
        (dir(), file(), 0..5_u8, 0..3_u16, 1..3_u16)
            .prop_map(|(d, f, m, o, l)| Step::Allocate(d, f, m, o, l)),
    ]
}

/// Applies a step through a guest with everything below `all`. Directory 0 and 1 are counted (1 lies in 0).
fn apply(guest: &Guest, open: &mut Vec<Handle>, step: &Step) {
    let path = |dir: u8| ["q", "q/in", "out", "q/more"][usize::from(dir)];
    let node = |dir: u8| match guest.walk(0, path(dir)) {
        Outcome::Entry(entry) => Some(entry.node),
        _ => None,
    };
    let file = |dir: u8, file: u8| match guest.lookup(node(dir)?, &format!("f{file}")) {
        Outcome::Entry(entry) => Some(entry.node),
        _ => None,
    };
    let text = |file: u8| format!("f{file}");
    let mut run = || -> Option<()> {
        match *step {
            Step::Create(d, f) => {
                if let Outcome::Created(handle, _) = guest.create(node(d)?, &text(f), BOTH) {
                    guest.release(handle);
                }
            }
            Step::Mkdir(d) => {
                let (parent, name) = path(d).rsplit_once('/').unwrap_or(("", path(d)));
                let parent = if parent.is_empty() { Some(guest.root(0)) } else { node(0) };
                guest.mkdir(parent?, name);
            }
            Step::Write(d, f, offset, length) => {
                if let Outcome::Opened(handle, _) = guest.open(file(d, f)?, WRITE) {
                    guest.write(handle, offset.into(), &vec![7; length.into()]);
                    guest.release(handle);
                }
            }
            Step::Truncate(d, f, size) => {
                guest.truncate(file(d, f)?, size.into());
            }
            Step::Link(d, f, e, g) => {
                guest.link(file(d, f)?, node(e)?, &text(g));
            }
            Step::Unlink(d, f) => {
                guest.unlink(node(d)?, &text(f));
            }
            Step::Rmdir(d) => {
                let (parent, name) = path(d).rsplit_once('/').unwrap_or(("", path(d)));
                let parent = if parent.is_empty() { Some(guest.root(0)) } else { node(0) };
                // The counted directory itself stays, or there would be nothing to compare.
                (d != 0).then(|| parent.map(|parent| guest.rmdir(parent, name)));
            }
            Step::Rename(d, f, e, g, exchange) => {
                let mode = if exchange { RenameMode::Exchange } else { RenameMode::Replace };
                guest.rename((node(d)?, &text(f)), (node(e)?, &text(g)), mode);
            }
            Step::OpenAndUnlink(d, f) => {
                if let Outcome::Opened(handle, _) = guest.open(file(d, f)?, WRITE) {
                    guest.unlink(node(d)?, &text(f));
                    guest.write(handle, 100, &[7; 3000]);
                    open.push(handle);
                }
            }
            Step::Allocate(d, f, mode, offset, length) => {
                let mode = [
                    0,
                    libc::FALLOC_FL_ZERO_RANGE,
                    libc::FALLOC_FL_COLLAPSE_RANGE,
                    libc::FALLOC_FL_INSERT_RANGE,
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                ][usize::from(mode)];
                if let Outcome::Opened(handle, _) = guest.open(file(d, f)?, WRITE) {
                    let (offset, length) = (u64::from(offset) * BLOCK, u64::from(length) * BLOCK);
                    guest.ask(&Op::Fallocate { handle, mode: mode as u32, offset, length });
                    guest.release(handle);
                }
            }
        }
        Some(())
    };
    run();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// After any history, the running count equals a fresh one from the disk.
    #[test]
    fn the_running_count_equals_a_fresh_one(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        world.file("all/q/f0", &[1; 5000]);
        world.file("all/q/in/f1", &[1; 100]);
        world.file("all/out/f2", &[1; 7000]);
        std::fs::hard_link(world.path("all/q/f0"), world.path("all/out/f0")).unwrap();
        let guest = world.guest(vec![grant("all", "/all", Rights::READ_WRITE)]);
        // Counted from now on.
        usage(&world, "all/q");
        let mut open = vec![];
        for step in &steps {
            apply(&guest, &mut open, step);
        }
        open.into_iter().for_each(|handle| { guest.release(handle); });
        let running = usage(&world, "all/q");
        drop(guest);
        world.restart();
        prop_assert_eq!(running, usage(&world, "all/q"));
    }
}
