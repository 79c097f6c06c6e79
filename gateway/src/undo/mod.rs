//! The undo log: what changes are about to destroy is kept first, so that the effects of one contract since a time can be
//! taken back without touching what others wrote.
//!
//! Every function of the store that changes something tells the [`Capture`] of its permit before it does. Rooms:
//! [`log`] (records, by application), [`vault`] (what is kept), [`marks`] (what is saved already), [`capture`],
//! [`plan`], [`carry`], [`names`], [`contents`], [`attributes`], [`beside`] and [`authority`] (undoing), [`halves`] (after a kill), [`expire`] (forgetting), [`past`] (history, old versions, who read what).
//!
//! What is promised: a change that reached the data has its record and its pre-image, whatever becomes of the process;
//! after a loss of power, a change that a guest has synced has them (`docs/adr/0013-undo-log.md`).

mod attributes;
mod authority;
mod beside;
pub(crate) mod capture;
pub(crate) mod carry;
mod contents;
mod crc;
mod expire;
mod halves;
mod log;
mod marks;
mod names;
mod past;
mod place;
pub(crate) mod plan;
mod record;
mod runs;
mod vault;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;
use strongroom_contracts::{Effective, UndoFull};

pub(crate) use capture::Capture;
pub(crate) use log::Writer;
pub use past::{BlastItem, FileAtError, HistoryItem};
pub use plan::{Filter, UndoError, Verdict};
pub(crate) use record::Sides;
pub use runs::{Item, Progress, RunId};

use crate::clock::Clock;
use crate::gate::refusal::{Checked, Refusal};
use crate::tree::Tree;
use log::Log;
use marks::Marks;
use record::{Record, What};
use vault::Vault;

/// Changes of one object within this time are kept as one, in microseconds: an undo goes back to the beginning of such an
/// interval.
pub(crate) const INTERVAL_US: u64 = 10_000_000;
/// Under this name the undo itself is logged; no application can have it.
pub(crate) const OWN_NAME: &str = "@undo";
/// Records of applications without a window are kept for this long at least, in seconds.
const LEAST_WINDOW_SECS: u64 = 3600;
/// Marks a writer's number where it has no window.
const UNKEPT: u32 = 1 << 31;
/// How far a log that forgets may run ahead of the one who forgets: this part of its space.
const SLACK_PARTS: u64 = 8;

/// Settings of the undo log.
#[derive(Clone)]
pub struct UndoOptions {
    /// The vault; `None`: a directory inside the data root that nobody can name.
    pub vault: Option<PathBuf>,
    /// The space of an application whose contracts do not say, in bytes.
    pub space: u64,
    /// Objects whose last changes are remembered, to save nothing twice.
    pub marks: usize,
    /// Tells the time of records.
    pub clock: Arc<dyn Clock>,
}

impl UndoOptions {
    /// The usual ones.
    pub fn new(clock: Arc<dyn Clock>) -> UndoOptions {
        UndoOptions { vault: None, space: 10 << 30, marks: 1 << 18, clock }
    }
}

/// That an application has outrun its undo space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overrun {
    /// Whose log.
    pub application: String,
    /// Bytes that it takes.
    pub used: u64,
    /// Bytes that it may take.
    pub space: u64,
}

type OnOverrun = Box<dyn Fn(Overrun) + Send + Sync>;

/// The undo log of one data root.
pub(crate) struct Undo {
    tree: Arc<Tree>,
    vault: Vault,
    clock: Arc<dyn Clock>,
    space: u64,
    logs: RwLock<HashMap<String, Arc<Log>>>,
    writers: RwLock<Vec<Arc<Writer>>>,
    marks: Marks,
    seq: AtomicU64,
    /// Intervals that were begun before their time.
    begun: AtomicU64,
    /// Somebody has, or had, an undo window.
    any: AtomicBool,
    longest_window: AtomicU64,
    overrun: OnceLock<OnOverrun>,
    runs: runs::Runs,
    /// Held by whoever forgets.
    forgetting: Mutex<()>,
}

/// One contract as a writer of the log.
pub(crate) struct Actor {
    writer: Arc<Writer>,
    number: u32,
    log: OnceLock<Arc<Log>>,
    space: u64,
    forgets: bool,
}

impl Undo {
    /// Opens the log beside the data.
    ///
    /// # Errors
    /// Those of the file system; `EXDEV` if the vault is not on that of the data, `EINVAL` if it is something else.
    pub(crate) fn open(tree: &Arc<Tree>, data_root: &Path, options: &UndoOptions) -> Result<Undo, Errno> {
        let path = options.vault.clone().unwrap_or_else(|| data_root.join(vault::DEFAULT_NAME));
        let vault = Vault::open(&path, tree.mount())?;
        tree.hide(vault.ino);
        let (shared, applications) = vault.shared()?;
        shared.into_iter().for_each(|ino| tree.vaulted.add(ino));
        let undo = Undo {
            tree: Arc::clone(tree),
            vault,
            clock: Arc::clone(&options.clock),
            space: options.space,
            logs: RwLock::default(),
            writers: RwLock::default(),
            marks: Marks::new(options.marks),
            seq: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            any: AtomicBool::new(!applications.is_empty()),
            longest_window: AtomicU64::new(LEAST_WINDOW_SECS),
            overrun: OnceLock::new(),
            runs: runs::Runs::default(),
            forgetting: Mutex::default(),
        };
        for application in applications {
            let log = undo.log(&application)?;
            undo.go_on_forgetting(&log)?;
            undo.seq.fetch_max(log.newest().max(log.forgotten.load(Ordering::Relaxed)), Ordering::SeqCst);
        }
        undo.mend_halves()?;
        undo.all_logs().iter().try_for_each(|log| log.close_former())?;
        Ok(undo)
    }

    /// Calls this when an application outruns its space; it must not wait for the operation that did.
    pub(crate) fn on_overrun(&self, call: OnOverrun) {
        // The first one stays.
        let _ = self.overrun.set(call);
    }

    /// The log of an application.
    fn log(&self, application: &str) -> Result<Arc<Log>, Errno> {
        if let Some(log) = self.logs.read().get(application) {
            return Ok(Arc::clone(log));
        }
        let mut logs = self.logs.write();
        if let Some(log) = logs.get(application) {
            return Ok(Arc::clone(log));
        }
        let log = Arc::new(Log::open(&self.vault, application)?);
        logs.insert(application.to_owned(), Arc::clone(&log));
        Ok(log)
    }

    fn all_logs(&self) -> Vec<Arc<Log>> {
        self.logs.read().values().cloned().collect()
    }

    /// The next number of a record.
    fn stamp(&self) -> u64 {
        let now = self.clock.now_us();
        let next = |last: u64| Some(now.max(last.saturating_add(1)));
        let last = self.seq.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        now.max(last.unwrap_or_default().saturating_add(1))
    }

    /// The present interval.
    fn interval(&self) -> u64 {
        (self.clock.now_us() / INTERVAL_US) << 16 | self.begun.load(Ordering::Relaxed) & 0xffff
    }

    /// Begins an interval now: what is changed from here on is kept apart from what was changed before.
    fn begin_interval(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
    }

    /// The writer of a contract.
    fn writer(&self, writer: Writer) -> (u32, Arc<Writer>) {
        let mut writers = self.writers.write();
        if let Some(place) = writers.iter().position(|other| **other == writer) {
            // 0 is nobody.
            return (place as u32 + 1, Arc::clone(&writers[place]));
        }
        let writer = Arc::new(writer);
        writers.push(Arc::clone(&writer));
        (writers.len() as u32, writer)
    }

    fn writer_of(&self, number: u32) -> Option<Arc<Writer>> {
        self.writers.read().get(((number & !UNKEPT) as usize).checked_sub(1)?).cloned()
    }

    /// The actor of a contract's session.
    pub(crate) fn actor(&self, contract: &Effective) -> Actor {
        let window = contract.grants.iter().map(|grant| grant.undo_secs).max().unwrap_or(0);
        if window > 0 {
            self.any.store(true, Ordering::SeqCst);
            self.longest_window.fetch_max(window, Ordering::Relaxed);
        }
        self.act(
            Writer {
                application: contract.application.as_str().to_owned(),
                ids: contract.ids.iter().map(|id| *id.as_bytes()).collect(),
                generation: contract.generation,
            },
            contract.undo.bytes.unwrap_or(self.space),
            contract.undo.full == UndoFull::Forget,
        )
    }

    fn act(&self, writer: Writer, space: u64, forgets: bool) -> Actor {
        let (number, writer) = self.writer(writer);
        Actor { writer, number, log: OnceLock::new(), space, forgets }
    }

    fn log_of<'a>(&self, actor: &'a Actor) -> Result<&'a Arc<Log>, Errno> {
        if let Some(log) = actor.log.get() {
            return Ok(log);
        }
        let log = self.log(&actor.writer.application)?;
        log.budget.store(actor.space, Ordering::Relaxed);
        log.forgets.store(u8::from(actor.forgets), Ordering::Relaxed);
        Ok(actor.log.get_or_init(|| log))
    }

    fn append(&self, actor: &Actor, records: impl IntoIterator<Item = Record>) -> Result<(), Errno> {
        self.log_of(actor)?.append(actor.number, &actor.writer, records)
    }

    fn later(&self, actor: &Actor, what: What) {
        if let Some(log) = actor.log.get() {
            log.later(
                actor.number,
                &actor.writer,
                Record { seq: self.stamp(), contract: 0, window: 0, cost: 0, what },
            );
        }
    }

    /// Makes sure that an application has room for so many bytes.
    ///
    /// # Errors
    /// `Fenced` if it has not, and is to be fenced rather than forget.
    fn room(&self, actor: &Actor, bytes: u64) -> Checked<()> {
        let log = self.log_of(actor)?;
        let space = actor.space;
        let wanted = log.used().saturating_add(bytes);
        if wanted <= space {
            return Ok(());
        }
        if actor.forgets {
            if wanted > space.saturating_add(space / SLACK_PARTS) {
                self.shrink(log, space.saturating_sub(bytes))?;
            }
            return Ok(());
        }
        let overrun = Overrun { application: log.application.clone(), used: wanted, space };
        if let Some(call) = self.overrun.get() {
            call(overrun);
        }
        Err(Refusal::Failed(strongroom_protocol::reply::Failure::Fenced))
    }

    /// Brings pre-images and their records to the disk, before a guest is told that its data are there.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        if !self.any.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.all_logs().iter().try_for_each(|log| log.sync(&self.vault))
    }

    /// What is to be done every now and then, quickly.
    pub(crate) fn tick(&self) {
        for log in self.all_logs() {
            // What fails here fails again where it matters: at the next record, or at a guest's fsync.
            let _ = log.flush();
        }
    }
}
