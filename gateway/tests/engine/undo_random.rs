//! The undo log under random operations, restarts and kills: what one contract did is taken back exactly, what others did
//! afterwards is kept.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use strongroom_gateway::undo::{Filter, Verdict};
use strongroom_protocol::attr::{OpenFlags, SetAttr, SetTime, Time};
use strongroom_protocol::op::{Op, RenameMode};
use strongroom_protocol::reply::Outcome;

use crate::support::*;
use crate::undo_support::*;

const PATHS: [&str; 9] = ["f", "g", "d", "d/f", "d/g", "d/e", "d/e/f", "h", "h/x"];

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u16, u8, u16),
    Rewrite(usize, u8, u16),
    Append(usize, u8),
    Truncate(usize, u16),
    Create(usize, u8),
    Mkdir(usize),
    Symlink(usize),
    Link(usize, usize),
    Unlink(usize),
    Rmdir(usize),
    Rename(usize, usize, u8),
    Chmod(usize, u8),
    Touch(usize, u8),
    Xattr(usize, u8),
    Shift(usize, u8),
    /// The clock goes on.
    Wait(u8),
    /// The process is killed and started again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let path = || 0..PATHS.len();
    prop_oneof![
        4 => (path(), 0u16..9000, any::<u8>(), 1u16..6000).prop_map(|(p, o, b, l)| Step::Write(p, o, b, l)),
        2 => (path(), any::<u8>(), 0u16..9000).prop_map(|(p, b, l)| Step::Rewrite(p, b, l)),
        2 => (path(), any::<u8>()).prop_map(|(p, b)| Step::Append(p, b)),
        2 => (path(), 0u16..12_000).prop_map(|(p, s)| Step::Truncate(p, s)),
        3 => (path(), any::<u8>()).prop_map(|(p, b)| Step::Create(p, b)),
        2 => path().prop_map(Step::Mkdir),
        1 => path().prop_map(Step::Symlink),
        2 => (path(), path()).prop_map(|(a, b)| Step::Link(a, b)),
        3 => path().prop_map(Step::Unlink),
        2 => path().prop_map(Step::Rmdir),
        4 => (path(), path(), 0u8..3).prop_map(|(a, b, m)| Step::Rename(a, b, m)),
        2 => (path(), any::<u8>()).prop_map(|(p, m)| Step::Chmod(p, m)),
        2 => (path(), any::<u8>()).prop_map(|(p, t)| Step::Touch(p, t)),
        2 => (path(), any::<u8>()).prop_map(|(p, v)| Step::Xattr(p, v)),
        1 => (path(), 0u8..4).prop_map(|(p, m)| Step::Shift(p, m)),
        2 => (1u8..15).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

fn split(guest: &Guest, path: usize) -> Option<(strongroom_protocol::attr::Node, &'static str)> {
    let path = PATHS[path];
    match path.rsplit_once('/') {
        None => Some((guest.root(0), path)),
        Some((dir, name)) => match guest.walk(0, dir) {
            Outcome::Entry(entry) => Some((entry.node, name)),
            _ => None,
        },
    }
}

fn opened_for(guest: &Guest, path: usize, flags: OpenFlags) -> Option<strongroom_protocol::attr::Handle> {
    let Outcome::Entry(entry) = guest.walk(0, PATHS[path]) else { return None };
    match guest.open(entry.node, flags) {
        Outcome::Opened(handle, _) => Some(handle),
        _ => None,
    }
}

/// Whatever comes of it: most of what is asked makes no sense at the moment.
fn perform(guest: &Guest, step: &Step) -> Option<()> {
    let node = |path: usize| match guest.walk(0, PATHS[path]) {
        Outcome::Entry(entry) => Some(entry.node),
        _ => None,
    };
    match *step {
        Step::Write(path, offset, byte, length) => {
            let handle = opened_for(guest, path, WRITE)?;
            guest.write(handle, u64::from(offset), &vec![byte; usize::from(length)]);
            guest.release(handle);
        }
        Step::Rewrite(path, byte, length) => {
            let handle = opened_for(guest, path, OpenFlags { truncate: true, ..WRITE })?;
            guest.write(handle, 0, &vec![byte; usize::from(length)]);
            guest.release(handle);
        }
        Step::Append(path, byte) => {
            let handle = opened_for(guest, path, OpenFlags { append: true, ..WRITE })?;
            guest.write(handle, 0, &[byte; 300]);
            guest.release(handle);
        }
        Step::Truncate(path, size) => {
            guest.truncate(node(path)?, u64::from(size));
        }
        Step::Create(path, byte) => {
            let (dir, name) = split(guest, path)?;
            if let Outcome::Created(handle, _) =
                guest.create(dir, name, OpenFlags { exclusive: true, ..BOTH })
            {
                guest.write(handle, 0, &[byte; 100]);
                guest.release(handle);
            }
        }
        Step::Mkdir(path) => {
            let (dir, name) = split(guest, path)?;
            guest.mkdir(dir, name);
        }
        Step::Symlink(path) => {
            let (dir, name) = split(guest, path)?;
            guest.symlink(dir, name, b"somewhere");
        }
        Step::Link(from, to) => {
            let source = node(from)?;
            let (dir, name) = split(guest, to)?;
            guest.link(source, dir, name);
        }
        Step::Unlink(path) => {
            let (dir, name) = split(guest, path)?;
            guest.unlink(dir, name);
        }
        Step::Rmdir(path) => {
            let (dir, name) = split(guest, path)?;
            guest.rmdir(dir, name);
        }
        Step::Rename(from, to, mode) => {
            let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][usize::from(mode)];
            guest.rename(split(guest, from)?, split(guest, to)?, mode);
        }
        Step::Chmod(path, mode) => {
            guest.setattr(
                node(path)?,
                None,
                SetAttr { mode: Some(0o700 | u32::from(mode) & 0o77), ..SetAttr::default() },
            );
        }
        Step::Touch(path, time) => {
            let at = SetTime::At(Time { secs: i64::from(time) * 1_000_000, nanos: 7 });
            guest.setattr(node(path)?, None, SetAttr { mtime: Some(at), ..SetAttr::default() });
        }
        Step::Xattr(path, value) => {
            let node = node(path)?;
            if value % 3 == 0 {
                guest.call(&Op::Removexattr { node }, b"user.a");
            } else {
                let op = Op::Setxattr { node, name_length: 6, flags: 0 };
                guest.call(&op, &[&b"user.a"[..], &[value; 9]].concat());
            }
        }
        Step::Shift(path, mode) => {
            let handle = opened_for(guest, path, BOTH)?;
            let mode = [
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                libc::FALLOC_FL_ZERO_RANGE,
                libc::FALLOC_FL_COLLAPSE_RANGE,
                libc::FALLOC_FL_INSERT_RANGE,
            ][usize::from(mode)];
            guest.ask(&Op::Fallocate { handle, mode: mode as u32, offset: 4096, length: 4096 });
            guest.release(handle);
        }
        Step::Wait(_) | Step::Restart => {}
    }
    Some(())
}

fn populate(world: &Vaulted) {
    world.file("users/f", &[b'f'; 8000]);
    world.file("users/d/f", b"in d");
    world.file("users/d/e/f", &[b'e'; 3000]);
    std::fs::create_dir(world.path("users/h")).unwrap();
}

fn run(world: &mut Vaulted, steps: &[Step]) {
    let mut guest = world.guest("mail", 1, WINDOW);
    for step in steps {
        match step {
            Step::Wait(secs) => world.clock.forward(u64::from(*secs)),
            Step::Restart => {
                world.restart();
                guest = world.guest("mail", 1, WINDOW);
            }
            other => {
                perform(&guest, other);
            }
        }
    }
    guest.session.close();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// One contract alone: after the undo nothing of it is left, after the undo of the undo everything is back.
    #[test]
    fn all_of_one_contract(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = Vaulted::new();
        populate(&world);
        let before = world.snapshot();
        let since = world.now();
        run(&mut world, &steps);
        let after = world.snapshot();
        let filter = Filter { application: "mail".into(), since_us: since, ..all() };
        if world.engine.begin_undo(filter.clone(), true).is_err() {
            prop_assert_eq!(before, after);
            return Ok(());
        }
        let (undo, items) = world.undo_by(filter, false);
        prop_assert_eq!(unrestored(&items), []);
        prop_assert_eq!(world.snapshot(), before);
        let redo = Filter { application: "@undo".into(), contract: Some(*undo.as_bytes()), ..all() };
        let (_, items) = world.undo_by(redo, false);
        prop_assert_eq!(unrestored(&items), []);
        prop_assert_eq!(world.snapshot(), after);
    }

    /// Another application writes to files in between and afterwards: what it wrote last is there after the undo, byte for
    /// byte, and is told as kept where the first had changed the same file before.
    #[test]
    fn the_work_of_others(
        first in prop::collection::vec(step(), 1..25),
        theirs in prop::collection::vec((0..PATHS.len(), any::<u8>()), 1..6),
        window in prop_oneof![Just(0), Just(WINDOW)],
    ) {
        let mut world = Vaulted::new();
        populate(&world);
        let since = world.now();
        let first: Vec<Step> = first.into_iter().filter(|step| !matches!(step, Step::Restart)).collect();
        run(&mut world, &first);
        let other = world.guest("office", 2, window);
        let mut wrote: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (path, byte) in &theirs {
            let Some(handle) = opened_for(&other, *path, WRITE) else { continue };
            written(other.write(handle, 0, &[*byte; 50]));
            other.release(handle);
            let path = world.path(&format!("users/{}", PATHS[*path]));
            wrote.insert(std::fs::metadata(&path).unwrap().ino(), std::fs::read(&path).unwrap());
        }
        let filter = Filter { application: "mail".into(), since_us: since, ..all() };
        if world.engine.begin_undo(filter.clone(), true).is_err() {
            return Ok(());
        }
        let (_, items) = world.undo_by(filter, false);
        prop_assert!(items.iter().all(|item| item.verdict != Verdict::Failed), "{:?}", items);
        let mut files = BTreeMap::new();
        collect(&world.path("users"), &mut files);
        for (ino, bytes) in wrote {
            prop_assert_eq!(files.get(&ino).map(|file| file.len()), Some(bytes.len()), "{:?}", items);
            prop_assert_eq!(files.get(&ino), Some(&bytes), "{:?}", items);
        }
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<u64, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            collect(&path, files);
        } else if meta.is_file() {
            files.insert(meta.ino(), std::fs::read(&path).unwrap());
        }
    }
}

/// What the killed process does; which part of it is told by its environment.
#[test]
#[ignore = "is run by the tests that kill it"]
fn child() {
    let Some(root) = std::env::var_os("UNDO_TEST_ROOT") else { return };
    let world = Vaulted::at(Path::new(&root));
    println!("ready");
    if std::env::var_os("UNDO_TEST_CARRY").is_some() {
        // As the gateway does: what was interrupted goes on first.
        let mut runs = world.engine.interrupted_undos().unwrap();
        if runs.is_empty() {
            let filter = Filter { application: "mail".into(), ..all() };
            runs.extend(world.engine.begin_undo(filter, false));
        }
        runs.into_iter().for_each(|run| world.engine.carry_undo(run));
        return;
    }
    if std::env::var_os("UNDO_TEST_EXPIRE").is_some() {
        loop {
            world.clock.forward(3600);
            world.engine.expire_undo().unwrap();
        }
    }
    let guest = world.guest("mail", 1, WINDOW);
    let seed: u64 = std::env::var("UNDO_TEST_SEED").unwrap().parse().unwrap();
    let mut random = Random(seed);
    loop {
        let path = random.below(PATHS.len() as u64) as usize;
        let other = random.below(PATHS.len() as u64) as usize;
        let byte = random.below(256) as u8;
        let step = match random.below(12) {
            0..3 => Step::Write(path, random.below(9000) as u16, byte, 1 + random.below(6000) as u16),
            3 => Step::Rewrite(path, byte, random.below(9000) as u16),
            4..6 => Step::Create(path, byte),
            6 => Step::Unlink(path),
            7..9 => Step::Rename(path, other, random.below(3) as u8),
            9 => Step::Mkdir(path),
            10 => Step::Rmdir(path),
            _ => Step::Chmod(path, byte),
        };
        perform(&guest, &step);
    }
}

struct Random(u64);

impl Random {
    /// xorshift64.
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// Runs the child and kills it after a while.
fn killed(root: &Path, set: &[(&str, String)], after: Duration) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["undo_random::child", "--exact", "--ignored", "--nocapture"])
        .env("UNDO_TEST_ROOT", root)
        .envs(set.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("ready") {}
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The process is killed while it changes things, and while it takes them back, again and again: in the end all is as it was.
#[test]
fn kills_while_changing_and_while_undoing() {
    kills(24, 0x5eed_1234_abcd);
}

/// `UNDO_TEST_SEED` and `UNDO_TEST_ROUNDS` ask for others. When exactly a kill comes is the machine's own dice: a seed makes a
/// failure likely again, not certain. With `UNDO_TEST_KEEP` what is left of a failed round is kept.
#[test]
#[ignore = "takes minutes; a part of `make soak`"]
fn hundreds_of_kills_while_changing_and_while_undoing() {
    kills(told("UNDO_TEST_ROUNDS").unwrap_or(500) as u32, told("UNDO_TEST_SEED").unwrap_or(0xc0ff_ee00_5eed));
}

fn told(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap())
}

fn kills(rounds: u32, seed: u64) {
    let mut random = Random(seed);
    for round in 0..rounds {
        let mut round = Round { seed, round, dir: Some(tempfile::tempdir().unwrap()), seen: vec![] };
        let dir = round.path();
        let before = {
            let world = Vaulted::at(&dir);
            populate(&world);
            world.snapshot()
        };
        let change = ("UNDO_TEST_SEED", (random.below(u64::MAX) | 1).to_string());
        let after = Duration::from_micros(500 + random.below(60_000));
        killed(&dir, &[change], after);
        round.look(&format!("changing for {after:?}"));
        for _ in 0..random.below(4) {
            let carry = ("UNDO_TEST_CARRY", "1".to_owned());
            let after = Duration::from_micros(random.below(12_000));
            killed(&dir, &[carry], after);
            round.look(&format!("undoing for {after:?}"));
        }
        let world = Vaulted::at(&dir);
        for run in world.engine.interrupted_undos().unwrap() {
            world.engine.carry_undo(run);
            let (progress, items) = world.progress(run);
            assert!(progress.failed.is_none(), "{round}: {progress:?}");
            assert!(items.iter().all(|item| item.verdict == Verdict::Restored), "{round}: {items:?}");
        }
        let filter = Filter { application: "mail".into(), ..all() };
        if world.engine.begin_undo(filter.clone(), true).is_ok() {
            let (_, items) = world.undo_by(filter, false);
            assert_eq!(unrestored(&items), [], "{round}");
        }
        assert_eq!(world.snapshot(), before, "{round}");
    }
}

/// One round of kills; what it leaves is kept if it fails.
struct Round {
    seed: u64,
    round: u32,
    dir: Option<tempfile::TempDir>,
    /// What was there after each kill.
    seen: Vec<String>,
}

impl Round {
    fn path(&self) -> std::path::PathBuf {
        self.dir.as_ref().unwrap().path().to_owned()
    }

    fn look(&mut self, what: &str) {
        let args = ["-printf", "  %i %y %s %T@ %P\\n"];
        let out = Command::new("find").arg(self.path().join("users")).args(args).output().unwrap();
        self.seen.push(format!("{what}:\n{}", String::from_utf8_lossy(&out.stdout)));
    }
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}, round {}, in {}", self.seed, self.round, self.path().display())
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("{}", self.seen.join(""));
            if std::env::var_os("UNDO_TEST_KEEP").is_some() {
                eprintln!("kept in {}", dir.keep().display());
            }
        }
    }
}

/// The process is killed while it forgets, again and again: what is forgotten is told so, nothing comes back half, what is
/// there stays, and the room is given back.
#[test]
fn kills_while_forgetting() {
    forgets(6, 0x0f0e_0d0c_0b0a);
}

#[test]
#[ignore = "takes minutes; a part of `make soak`"]
fn hundreds_of_kills_while_forgetting() {
    forgets(300, 0x7e57_0000_1234);
}

fn forgets(rounds: u32, seed: u64) {
    const FILES: usize = 150;
    let mut random = Random(seed);
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        let mut versions: Vec<Vec<Vec<u8>>> = vec![];
        {
            let world = Vaulted::at(dir.path());
            for n in 0..FILES {
                world.file(&format!("users/{n}"), &vec![b'0'; 100 + n]);
                versions.push(vec![vec![b'0'; 100 + n]]);
            }
            world.file("users/other", b"theirs");
            // Hours apart: several segments, each forgotten by itself.
            for hour in 0..4_u8 {
                let guest = world.guest("mail", 1, WINDOW);
                for (n, all) in versions.iter_mut().enumerate() {
                    let bytes = vec![b'a' + hour; 90 + n];
                    let Outcome::Entry(old) = guest.walk(0, &n.to_string()) else { panic!("{n}") };
                    if (n + usize::from(hour)) % 3 == 0 {
                        assert_eq!(guest.unlink(guest.root(0), &n.to_string()), Outcome::Done);
                        let (handle, _) = created(guest.create(guest.root(0), &n.to_string(), BOTH));
                        written(guest.write(handle, 0, &bytes));
                        guest.release(handle);
                    } else {
                        let handle = opened(guest.open(old.node, OpenFlags { truncate: true, ..WRITE }));
                        written(guest.write(handle, 0, &bytes));
                        guest.release(handle);
                    }
                    all.push(bytes);
                }
                guest.session.close();
                world.clock.forward(2 * 3600);
            }
        }
        for _ in 0..1 + random.below(3) {
            let expire = ("UNDO_TEST_EXPIRE", "1".to_owned());
            killed(dir.path(), &[expire], Duration::from_micros(random.below(60_000)));
        }
        let world = Vaulted::at(dir.path());
        // The present is nobody's to forget.
        for (n, all) in versions.iter().enumerate() {
            assert_eq!(Some(&world.bytes(&format!("users/{n}"))), all.last(), "round {round}");
        }
        // What can still be taken back comes back whole: each file is one of its versions; the rest is told.
        let filter = Filter { application: "mail".into(), ..all() };
        let run = world.engine.begin_undo(filter, false).unwrap();
        world.engine.carry_undo(run);
        let (progress, items) = world.progress(run);
        assert!(items.iter().all(|item| item.verdict != Verdict::Failed), "round {round}: {items:?}");
        let told_gone = progress.expired || progress.failed.is_some();
        for (n, all) in versions.iter().enumerate() {
            let name = format!("users/{n}");
            let now = std::fs::read(world.path(&name)).ok();
            let now = now.unwrap_or_else(|| panic!("round {round}: {name} is gone: {progress:?}"));
            assert!(all.contains(&now), "round {round}: {name} is none of its versions: {now:?}");
            assert!(now == all[0] || told_gone, "round {round}: {name}: {progress:?}");
        }
        assert_eq!(world.bytes("users/other"), b"theirs");
        // All of it forgotten: the vault is empty, whatever was killed before.
        world.clock.forward(3 * WINDOW);
        world.engine.expire_undo().unwrap();
        let kept = kept_below(&world.vault().join("kept"));
        assert_eq!(kept, 0, "round {round}");
    }
}

fn kept_below(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { kept_below(&path) } else { 1 })
        .sum()
}

/// A file system in a file, mounted; gone with the value.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new() -> Mounted {
        let mounted = Mounted { dir: tempfile::tempdir().unwrap() };
        let image = std::fs::File::create(mounted.dir.path().join("image")).unwrap();
        image.set_len(512 << 20).unwrap();
        std::fs::create_dir(mounted.root()).unwrap();
        mounted.run("mkfs.xfs", &["-q", "image"]);
        mounted.mount();
        mounted
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root")
    }

    fn run(&self, program: &str, args: &[&str]) {
        let done = Command::new(program).args(args).current_dir(self.dir.path()).status().unwrap();
        assert!(done.success(), "{program} {args:?}");
    }

    fn mount(&self) {
        self.run("mount", &["-o", "loop", "image", "root"]);
    }

    /// What is not on the disk is lost, and never comes there.
    fn lose_power(&self) {
        self.run("xfs_io", &["-x", "-c", "shutdown", "root"]);
        self.run("umount", &["root"]);
        self.mount();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", "root"]).current_dir(self.dir.path()).status();
    }
}

/// The power is lost right after a guest's fsync was answered: every change from before can be taken back. What may be left
/// are new names and appended bytes.
#[test]
#[ignore = "needs root, mkfs.xfs and xfs_io; a part of `make soak`"]
fn power_is_lost() {
    let mut random = Random(0x0dd5_eed5_0ff1);
    for round in 0..40 {
        let disk = Mounted::new();
        let root = disk.root();
        let before = {
            let world = Vaulted::at(&root);
            populate(&world);
            disk.run("sync", &["-f", "root"]);
            let mut files = BTreeMap::new();
            collect_names(&root.join("users"), &mut files);
            let guest = world.guest("mail", 1, WINDOW);
            let (handle, _) = created(guest.create(guest.root(0), "own", BOTH));
            for _ in 0..1 + random.below(30) {
                let path = random.below(PATHS.len() as u64) as usize;
                let other = random.below(PATHS.len() as u64) as usize;
                let byte = random.below(256) as u8;
                let step = match random.below(10) {
                    0..2 => Step::Write(path, random.below(6000) as u16, byte, 1 + random.below(3000) as u16),
                    2 => Step::Rewrite(path, byte, random.below(9000) as u16),
                    3 => Step::Create(path, byte),
                    4..6 => Step::Unlink(path),
                    6..8 => Step::Rename(path, other, random.below(3) as u8),
                    8 => Step::Rmdir(path),
                    _ => Step::Chmod(path, byte),
                };
                perform(&guest, &step);
            }
            written(guest.write(handle, 0, b"mine"));
            assert_eq!(guest.ask(&Op::Fsync { handle, data_only: false }), Outcome::Done);
            files
        };
        disk.lose_power();
        let world = Vaulted::at(&root);
        let filter = Filter { application: "mail".into(), ..all() };
        let (_, items) = world.undo_by(filter, false);
        let told = unrestored(&items);
        let mut after = BTreeMap::new();
        collect_names(&root.join("users"), &mut after);
        for (path, (mode, bytes)) in &before {
            let Some((mode_now, bytes_now)) = after.get(path) else {
                panic!("round {round}: {path} is lost: {told:?}, {:?}", after.keys())
            };
            assert_eq!(mode_now, mode, "round {round}: {path}");
            assert!(bytes_now.starts_with(bytes), "round {round}: {path}: {told:?}");
        }
    }
}

fn collect_names(dir: &Path, files: &mut BTreeMap<String, (u32, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let bytes = if meta.is_file() { std::fs::read(&path).unwrap() } else { vec![] };
        files.insert(path.to_string_lossy().into_owned(), (meta.mode(), bytes));
        if meta.is_dir() {
            collect_names(&path, files);
        }
    }
}
