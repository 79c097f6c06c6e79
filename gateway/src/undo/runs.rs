//! Undos that were asked for: how far they are, what became of each path, and which were interrupted by a crash.

use std::collections::VecDeque;
use std::sync::Arc;

use bincode::{Decode, Encode};
use parking_lot::Mutex;
use strongroom_contracts::{ContractId, keys};

use super::plan::{Filter, UndoError, Verdict};
use super::vault::Vault;

/// Undos that are remembered.
const MOST_RUNS: usize = 16;

/// The number of an undo; to undo it, it takes the place of a contract's.
pub type RunId = ContractId;

/// What became of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// From the data root.
    pub path: Vec<u8>,
    /// What.
    pub verdict: Verdict,
    /// Where the old version is, if it is not at the path.
    pub beside: Option<Vec<u8>>,
    /// Why, in words; empty if there is nothing to say.
    pub why: String,
}

/// How far an undo is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Steps done.
    pub done: u64,
    /// Steps in all; 0: not known yet.
    pub total: u64,
    /// It came to its end.
    pub finished: bool,
    /// Why it came to its end too early.
    pub failed: Option<UndoError>,
    /// Paths that it tells of.
    pub items: u64,
    /// Records from before could not be looked at: they are forgotten.
    pub expired: bool,
    /// From when on changes were taken back, microseconds since the Unix epoch.
    pub since_us: u64,
}

/// An undo.
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(super) filter: Filter,
    pub(super) dry: bool,
    pub(super) resumed: bool,
    state: Mutex<(Progress, Vec<Item>)>,
}

impl Run {
    pub(super) fn new(id: RunId, filter: Filter, dry: bool, resumed: bool) -> Arc<Run> {
        let progress = Progress { since_us: filter.since_us, ..Progress::default() };
        Arc::new(Run { id, filter, dry, resumed, state: Mutex::new((progress, vec![])) })
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.state.lock().0);
    }

    pub(super) fn finish(&self, result: Result<Vec<Item>, UndoError>) {
        let mut state = self.state.lock();
        match result {
            Ok(items) => state.1 = items,
            Err(error) => state.0.failed = Some(error),
        }
        state.0.items = state.1.len() as u64;
        state.0.finished = true;
    }

    /// How far it is, and some of its items.
    pub(crate) fn look(&self, from: usize, most: usize) -> (Progress, Vec<Item>) {
        let state = self.state.lock();
        (state.0.clone(), state.1.iter().skip(from).take(most).cloned().collect())
    }
}

/// The undos of this process.
#[derive(Default)]
pub(crate) struct Runs {
    all: Mutex<VecDeque<Arc<Run>>>,
    /// Held by the one that is carried out.
    pub(super) carrying: Mutex<()>,
}

impl Runs {
    pub(super) fn add(&self, run: &Arc<Run>) {
        let mut all = self.all.lock();
        if all.len() >= MOST_RUNS {
            let finished = all.iter().position(|run| run.look(0, 0).0.finished);
            all.remove(finished.unwrap_or(0));
        }
        all.push_back(Arc::clone(run));
    }

    pub(super) fn get(&self, id: RunId) -> Option<Arc<Run>> {
        self.all.lock().iter().find(|run| run.id == id).cloned()
    }
}

pub(super) fn new_id() -> Result<RunId, keys::KeyError> {
    Ok(ContractId::from_bytes(keys::random()?))
}

#[derive(Encode, Decode)]
struct Journal {
    application: String,
    contract: Option<[u8; 16]>,
    since_us: u64,
    until_us: u64,
    path: Option<Vec<u8>>,
    below: Option<u64>,
}

fn path(id: RunId) -> String {
    format!("runs/{id}")
}

/// Notes durably that an undo begins.
pub(super) fn note(vault: &Vault, run: &Run) -> Result<(), UndoError> {
    let Filter { application, contract, since_us, until_us, path: only, below } = run.filter.clone();
    let journal = Journal { application, contract, since_us, until_us, path: only, below };
    let bytes = bincode::encode_to_vec(journal, bincode::config::standard())
        .map_err(|_| UndoError::Io(std::io::ErrorKind::InvalidData))?;
    Ok(vault.write(&path(run.id), &bytes)?)
}

/// Notes that it has come to its end.
pub(super) fn done(vault: &Vault, run: &Run) -> Result<(), UndoError> {
    Ok(vault.remove(&path(run.id))?)
}

/// The undos that a crash interrupted.
pub(super) fn interrupted(vault: &Vault) -> Result<Vec<Arc<Run>>, UndoError> {
    let mut found = vec![];
    for (name, _) in super::vault::list(&vault.sub("runs")?)? {
        let Some(id) = std::str::from_utf8(&name).ok().and_then(|name| name.parse::<RunId>().ok()) else {
            continue;
        };
        let bytes = vault.read(&path(id))?;
        let config = bincode::config::standard().with_limit::<{ 1 << 20 }>();
        let Ok((journal, _)) = bincode::decode_from_slice::<Journal, _>(&bytes, config) else { continue };
        let Journal { application, contract, since_us, until_us, path, below } = journal;
        let filter = Filter { application, contract, since_us, until_us, path, below };
        found.push(Run::new(id, filter, false, true));
    }
    Ok(found)
}
