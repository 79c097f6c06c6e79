//! A data root with an undo log, a clock that is set by hand, and snapshots of trees.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use strongroom_contracts::{Effective, Rights, UndoSpace};
use strongroom_gateway::clock::Clock;
use strongroom_gateway::engine::{Engine, EngineOptions, EngineSession, SessionBounds, Turnstile};
use strongroom_gateway::undo::{Filter, Item, Progress, RunId, UndoOptions, Verdict};

use crate::support::*;

/// Starts with the system's time, which files are born by, and moves when told.
pub struct Hand(AtomicU64);

impl Hand {
    pub fn new() -> Arc<Hand> {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Arc::new(Hand(AtomicU64::new(u64::try_from(since.as_micros()).unwrap())))
    }

    pub fn forward(&self, secs: u64) {
        self.0.fetch_add(secs * 1_000_000, Ordering::SeqCst);
    }
}

impl Clock for Hand {
    fn now_us(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

pub struct Vaulted {
    root: PathBuf,
    _dir: Option<tempfile::TempDir>,
    pub engine: Engine,
    pub clock: Arc<Hand>,
    pub options: UndoOptions,
}

pub const WINDOW: u64 = 7 * 86_400;

impl Vaulted {
    pub fn new() -> Vaulted {
        let dir = tempfile::tempdir().unwrap();
        let mut world = Vaulted::at(dir.path());
        world._dir = Some(dir);
        world
    }

    /// In an existing directory.
    pub fn at(root: &Path) -> Vaulted {
        Vaulted::with(root, |_| {})
    }

    pub fn with(root: &Path, set: impl FnOnce(&mut UndoOptions)) -> Vaulted {
        let clock = Hand::new();
        let mut options = UndoOptions::new(clock.clone());
        set(&mut options);
        let engine = Engine::with_undo(root, EngineOptions::default(), &options).unwrap();
        Vaulted { root: root.to_owned(), _dir: None, engine, clock, options }
    }

    /// As after a kill of the process: nothing is written that was not written.
    pub fn restart(&mut self) {
        self.engine = Engine::with_undo(&self.root, EngineOptions::default(), &self.options).unwrap();
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub fn vault(&self) -> PathBuf {
        self.root.join(".strongroom-undo")
    }

    pub fn file(&self, path: &str, bytes: &[u8]) {
        std::fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        std::fs::write(self.path(path), bytes).unwrap();
    }

    pub fn bytes(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.path(path)).unwrap()
    }

    /// A guest of an application with the right to do everything below `users`.
    pub fn guest(&self, application: &str, id: u8, window: u64) -> Guest {
        self.guest_with(application, id, window, UndoSpace::default())
    }

    pub fn guest_with(&self, application: &str, id: u8, window: u64, space: UndoSpace) -> Guest {
        let mut one = grant("users", "/Files", Rights::READ_WRITE);
        one.undo_secs = window;
        self.guest_of(&contract_of(application, id, 1, space, vec![one]))
    }

    pub fn guest_of(&self, contract: &Effective) -> Guest {
        let session = EngineSession::new(&self.engine, contract, SessionBounds::default(), &[]);
        Guest { engine: self.engine.clone(), session: Arc::new(session), turnstile: Turnstile::new() }
    }

    /// The present, apart from what was done before.
    pub fn now(&self) -> u64 {
        self.clock.forward(20);
        self.clock.now_us()
    }

    pub fn undo(&self, application: &str, since_us: u64) -> Vec<Item> {
        self.undo_by(Filter { application: application.into(), since_us, ..all() }, false).1
    }

    pub fn undo_by(&self, filter: Filter, dry: bool) -> (RunId, Vec<Item>) {
        let run = self.engine.begin_undo(filter, dry).unwrap();
        self.engine.carry_undo(run);
        let (progress, items) = self.progress(run);
        assert!(progress.finished && progress.failed.is_none(), "{progress:?}");
        assert_eq!(progress.done, progress.total);
        (run, items)
    }

    pub fn progress(&self, run: RunId) -> (Progress, Vec<Item>) {
        self.engine.undo_progress(run, 0, usize::MAX).unwrap()
    }

    pub fn snapshot(&self) -> BTreeMap<String, String> {
        let mut out = BTreeMap::new();
        let mut names = BTreeMap::new();
        snapshot(&self.path("users"), "", &mut out, &mut names);
        // Those that can be seen: what is in the vault has names that nobody sees.
        out.values_mut().for_each(|text| {
            if let Some((head, ino)) = text.rsplit_once(" #") {
                *text = format!("{head} names {}", names[ino]);
            }
        });
        out
    }
}

/// Everything, by anybody, up to now.
pub fn all() -> Filter {
    Filter { until_us: u64::MAX, ..Filter::default() }
}

/// The items with a verdict other than restored, by path.
pub fn unrestored(items: &[Item]) -> Vec<(String, Verdict)> {
    let told = items.iter().filter(|item| item.verdict != Verdict::Restored);
    told.map(|item| (String::from_utf8_lossy(&item.path).into_owned(), item.verdict)).collect()
}

/// All that an undo must bring back: contents, modes, owners, times, links, extended attributes, names.
fn snapshot(path: &Path, below: &str, out: &mut BTreeMap<String, String>, names: &mut BTreeMap<String, u32>) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    let kind = meta.file_type();
    let content = if kind.is_symlink() {
        format!("-> {}", std::fs::read_link(path).unwrap().display())
    } else if kind.is_file() {
        let bytes = std::fs::read(path).unwrap();
        if bytes.len() > 64 {
            let sum =
                bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            format!("{} bytes {sum:x}", bytes.len())
        } else {
            bytes.escape_ascii().to_string()
        }
    } else {
        String::new()
    };
    *names.entry(meta.ino().to_string()).or_default() += 1;
    out.insert(
        below.to_owned(),
        format!(
            "{:o} {}:{} {}.{:09} xattrs {:?} {content} #{}",
            meta.permissions().mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            xattrs(path),
            meta.ino(),
        ),
    );
    if kind.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            let name = entry.unwrap().file_name();
            let name = name.to_str().unwrap();
            snapshot(&path.join(name), &format!("{below}/{name}"), out, names);
        }
    }
}

fn xattrs(path: &Path) -> Vec<(String, String)> {
    let mut names = vec![0; 4096];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names[..]) else { return vec![] };
    names.truncate(length);
    let mut all: Vec<(String, String)> = names
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let mut value = vec![0; 70_000];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.escape_ascii().to_string(), value[..length].escape_ascii().to_string())
        })
        .collect();
    all.sort();
    all
}
