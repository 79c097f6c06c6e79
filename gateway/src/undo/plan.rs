//! What an undo is about: the records of one application or contract, what they concern, and what others did since.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rustix::io::Errno;
use strongroom_contracts::armour::rfc3339;

use super::place::Places;
use super::record::{Object, Record, Sides, What};
use super::{INTERVAL_US, OWN_NAME, Undo};
use crate::tree::Tree;

/// More records than this are not taken into memory at once.
const MOST_RECORDS: usize = 8_000_000;

/// What is to be undone.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Filter {
    /// Whose changes.
    pub application: String,
    /// Only those under this contract (any block of its chain), or of this undo.
    pub contract: Option<[u8; 16]>,
    /// Only those under contracts of generations below this one.
    pub below: Option<u64>,
    /// From here on, in microseconds since the Unix epoch; the beginning of an interval of ten seconds.
    pub since_us: u64,
    /// To here.
    pub until_us: u64,
    /// Only at or below this path, from the data root.
    pub path: Option<Vec<u8>>,
}

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It is as it was.
    Restored,
    /// What it was is not there any more.
    Expired,
    /// Somebody else changed it since: theirs is kept.
    Kept,
    /// It could not be brought back; the cause is told.
    Failed,
}

/// Why nothing is undone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UndoError {
    /// There is no undo log.
    #[error("this gateway keeps no undo log; switch it on in its configuration (`[undo]`)")]
    Off,
    /// No log of it.
    #[error("`{0}` has changed nothing that could be undone: there is no undo log of it")]
    Unknown(String),
    /// All of it is forgotten.
    #[error(
        "the changes of `{application}` from that time cannot be taken back any more: its log begins at {}",
        rfc3339(.begins_us / 1_000_000)
    )]
    Expired {
        /// Whose.
        application: String,
        /// When what is left begins, in microseconds since the Unix epoch.
        begins_us: u64,
    },
    /// Too much.
    #[error("more than {MOST_RECORDS} records; name a path or a shorter time")]
    TooMany,
    /// The disk.
    #[error("the undo log cannot be read: {0}")]
    Io(std::io::ErrorKind),
}

impl From<Errno> for UndoError {
    fn from(errno: Errno) -> UndoError {
        UndoError::Io(errno.kind())
    }
}

/// The numbers of a contract, outermost first.
type Ids = Arc<[[u8; 16]]>;

/// A record with what its log says of it.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) application: Arc<str>,
    /// The contract's numbers.
    pub(super) ids: Ids,
    /// The contract's generation.
    pub(super) generation: u64,
    pub(super) record: Record,
}

/// All that matters of all logs since a time, in its order.
pub(super) struct Story {
    pub(super) all: Vec<Told>,
    pub(super) places: Places,
    pub(super) void: HashSet<u64>,
    /// What attempts to make something have made.
    pub(super) made: HashMap<u64, Object>,
    /// Which application each undo was about.
    origins: HashMap<[u8; 16], (String, Option<[u8; 16]>)>,
}

impl Story {
    /// Reads it.
    ///
    /// # Errors
    /// [`UndoError::TooMany`], [`UndoError::Io`].
    pub(super) fn read(undo: &Undo, since: u64) -> Result<Story, UndoError> {
        let mut all = vec![];
        let mut origins = HashMap::new();
        for log in undo.all_logs() {
            let application: Arc<str> = log.application.as_str().into();
            let nobody: Ids = Arc::new([]);
            let mut contracts: HashMap<u32, (Ids, u64)> = HashMap::new();
            let mut segment = None;
            // Undos are few, and each may be about another's.
            let from = if log.application == OWN_NAME { 0 } else { since };
            for (record, of_segment) in log.since(from)? {
                if of_segment != segment {
                    contracts.clear();
                    segment = of_segment;
                }
                if let What::Contract { index, ids, generation } = &record.what {
                    contracts.insert(*index, (ids.as_slice().into(), *generation));
                    continue;
                }
                let known = contracts.get(&record.contract);
                let (ids, generation) = known.map_or((&nobody, 0), |(ids, generation)| (ids, *generation));
                if let (What::Undone { application, contract, .. }, Some(run)) = (&record.what, ids.first()) {
                    origins.insert(*run, (application.clone(), *contract));
                }
                if record.seq < since {
                    continue;
                }
                if all.len() >= MOST_RECORDS {
                    return Err(UndoError::TooMany);
                }
                all.push(Told {
                    application: Arc::clone(&application),
                    ids: Arc::clone(ids),
                    generation,
                    record,
                });
            }
        }
        all.sort_by_key(|told| told.record.seq);
        let mut story =
            Story { all, places: Places::default(), void: HashSet::new(), made: HashMap::new(), origins };
        for told in &story.all {
            match &told.record.what {
                What::Void { record } => {
                    story.void.insert(*record);
                }
                What::Made { making, object } => {
                    story.made.insert(*making, *object);
                }
                What::Returned { object, .. } => {
                    story.made.insert(told.record.seq, *object);
                }
                _ => {}
            }
        }
        for told in story.all.iter().filter(|told| !story.void.contains(&told.record.seq)) {
            story.places.follow(&told.application, told.record.seq, &told.record.what);
        }
        Ok(story)
    }

    /// Whose changes a record takes part in: an undo acts for the application whose changes it took back.
    fn origin<'a>(&'a self, told: &'a Told) -> &'a str {
        let mut application: &str = &told.application;
        let mut run = told.ids.first().copied();
        // An undo of an undo of an undo …
        for _ in 0..64 {
            if application != OWN_NAME {
                break;
            }
            match run.and_then(|run| self.origins.get(&run)) {
                Some((of, contract)) => (application, run) = (of, *contract),
                None => break,
            }
        }
        application
    }

    /// The records whose changes were taken back: by this run (before it was interrupted), and by others that were not
    /// taken back themselves.
    fn done(&self, run: [u8; 16]) -> (HashSet<u64>, HashSet<u64>) {
        let void: HashSet<[u8; 16]> = self
            .origins
            .iter()
            .filter(|(by, (application, _))| application == OWN_NAME && **by != run)
            .filter_map(|(_, (_, of))| *of)
            .collect();
        let (mut done, mut undone) = (HashSet::new(), HashSet::new());
        for told in self.all.iter().filter(|told| *told.application == *OWN_NAME) {
            let (What::Done { record }, Some(by)) = (&told.record.what, told.ids.first()) else { continue };
            if *by == run {
                done.insert(*record);
            } else if !void.contains(by) {
                undone.insert(*record);
            }
        }
        (done, undone)
    }

    fn origin_of_run(&self, run: [u8; 16]) -> String {
        let mut run = Some(run);
        let mut application = OWN_NAME.to_owned();
        for _ in 0..64 {
            match run.and_then(|run| self.origins.get(&run)) {
                Some((of, contract)) => (application, run) = (of.clone(), *contract),
                None => break,
            }
            if application != OWN_NAME {
                break;
            }
        }
        application
    }
}

/// What an undo has to do.
pub(super) struct Plan {
    pub(super) story: Story,
    /// Places in `story.all`, newest first.
    pub(super) steps: Vec<usize>,
    /// What others changed after the first of these changes, and who was the last.
    pub(super) conflicts: HashMap<Object, (Sides, String)>,
    /// Objects that were made and are gone again, all by what is undone.
    pub(super) passing: HashSet<Object>,
    /// Steps that this undo took before it was interrupted.
    pub(super) done: HashSet<u64>,
    /// What was changed in that time, and nothing of it is kept any more: places in `story.all`.
    pub(super) gone: Vec<usize>,
    /// Log segments from before are gone.
    pub(super) expired: bool,
}

impl Filter {
    /// The beginning of the interval in which changes are kept as one.
    pub fn rounded(self) -> Filter {
        Filter { since_us: self.since_us - self.since_us % INTERVAL_US, ..self }
    }

    fn selects(&self, told: &Told) -> bool {
        told.record.window > 0 && self.is_about(told)
    }

    fn is_about(&self, told: &Told) -> bool {
        *self.application == *told.application
            && (self.since_us..=self.until_us).contains(&told.record.seq)
            && self.contract.is_none_or(|id| told.ids.contains(&id))
            && self.below.is_none_or(|below| told.generation < below)
    }
}

/// Makes a plan.
///
/// # Errors
/// [`UndoError`].
pub(super) fn plan(undo: &Undo, tree: &Tree, filter: &Filter, run: [u8; 16]) -> Result<Plan, UndoError> {
    let logs = undo.all_logs();
    let log = logs.iter().find(|log| log.application == filter.application);
    let log = log.ok_or_else(|| UndoError::Unknown(filter.application.clone()))?;
    let forgotten = log.forgotten.load(std::sync::atomic::Ordering::Relaxed);
    let story = Story::read(undo, filter.since_us)?;
    let (done, undone) = story.done(run);
    let concerns = |told: &Told| {
        !story.void.contains(&told.record.seq) && filter.is_about(told) && within(&story, tree, filter, told)
    };
    let all = story.all.iter().enumerate().rev().filter(|(_, told)| concerns(told));
    let (concerned, stripped): (Vec<_>, Vec<_>) = all.partition(|(_, told)| told.record.window > 0);
    let places = |list: Vec<(usize, &Told)>| list.into_iter().map(|(place, _)| place).collect::<Vec<_>>();
    let (concerned, mut gone) = (places(concerned), places(stripped));
    let is_open =
        |place: &usize| story.all.get(*place).is_some_and(|told| !undone.contains(&told.record.seq));
    // Later ones are of grants without a window: nothing was ever kept of those.
    gone.retain(|place| {
        is_open(place) && story.all.get(*place).is_some_and(|told| told.record.seq <= forgotten)
    });
    let steps: Vec<usize> = concerned.iter().copied().filter(is_open).collect();
    let expired = forgotten >= filter.since_us && forgotten > 0;
    if steps.is_empty() && expired && filter.until_us <= forgotten {
        return Err(UndoError::Expired { application: filter.application.clone(), begins_us: forgotten + 1 });
    }
    let conflicts = conflicts(&story, filter, &steps);
    let mut passing = passing(&story, &concerned, &conflicts);
    // A former undo may have brought some back.
    passing.retain(|object| story.places.find(tree, *object).is_err());
    Ok(Plan { story, steps, conflicts, passing, done, gone, expired })
}

/// Whether a record is about something at or below the path that is asked for.
fn within(story: &Story, tree: &Tree, filter: &Filter, told: &Told) -> bool {
    let Some(wanted) = &filter.path else { return true };
    let below = |path: &[u8]| {
        path.strip_prefix(wanted.as_slice())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || wanted.is_empty())
    };
    let at = |at| below(&story.places.path(tree, at));
    match &told.record.what {
        What::Making { at: place, .. }
        | What::Returned { at: place, .. }
        | What::Linked { at: place, .. }
        | What::Removed { at: place, .. } => at(place),
        What::Renamed { from, to, .. } | What::Exchanged { from, to, .. } => at(from) || at(to),
        What::Changed { object, .. } | What::Xattr { object, .. } => {
            story.places.object_path(tree, *object).is_some_and(|path| below(&path))
        }
        _ => false,
    }
}

fn sides_of(what: &What) -> Option<(Object, Sides)> {
    match what {
        What::Changed { object, sides, .. } => Some((*object, *sides)),
        What::Xattr { object, .. } => Some((*object, Sides::XATTRS)),
        _ => None,
    }
}

fn conflicts(story: &Story, filter: &Filter, steps: &[usize]) -> HashMap<Object, (Sides, String)> {
    let mut first: HashMap<Object, [Option<u64>; 5]> = HashMap::new();
    let chosen: HashSet<usize> = steps.iter().copied().collect();
    for told in steps.iter().filter_map(|place| story.all.get(*place)) {
        let touched = match &told.record.what {
            What::Making { .. } | What::Returned { .. } => {
                story.made.get(&told.record.seq).map(|object| (*object, Sides::ALL))
            }
            other => sides_of(other),
        };
        let Some((object, sides)) = touched else { continue };
        for (n, first) in first.entry(object).or_default().iter_mut().enumerate() {
            if sides.0 >> n & 1 == 1 {
                // Steps come newest first.
                *first = Some(told.record.seq);
            }
        }
    }
    let own_origin = match filter.contract.filter(|_| filter.application == OWN_NAME) {
        Some(run) => story.origin_of_run(run),
        None => filter.application.clone(),
    };
    let mut found: HashMap<Object, (Sides, String)> = HashMap::new();
    for (place, told) in story.all.iter().enumerate() {
        let Some((object, mut sides)) = sides_of(&told.record.what) else { continue };
        if sides.has(Sides::CONTENT) || sides.has(Sides::ENTRIES) {
            // Whoever changes these changes the time of change: it is theirs, too.
            sides = sides.with(Sides::TIMES);
        }
        if chosen.contains(&place) || story.void.contains(&told.record.seq) {
            continue;
        }
        // What an undo did for the same application is no change by somebody else.
        if *told.application == *OWN_NAME && story.origin(told) == own_origin {
            continue;
        }
        // Outside the path that is asked for, and still the same one's.
        if filter.selects(told) {
            continue;
        }
        let Some(first) = first.get(&object) else { continue };
        for (n, first) in first.iter().enumerate() {
            if sides.0 >> n & 1 == 1 && first.is_some_and(|first| first < told.record.seq) {
                let entry = found.entry(object).or_insert_with(|| (Sides::default(), String::new()));
                *entry = (entry.0.with(Sides(1 << n)), told.application.to_string());
            }
        }
    }
    found
}

/// Objects that the steps made and took away again: nothing of them need be brought back to be taken away, unless somebody
/// else's work went with them.
fn passing(story: &Story, steps: &[usize], conflicts: &HashMap<Object, (Sides, String)>) -> HashSet<Object> {
    let mut names: HashMap<Object, i64> = HashMap::new();
    let mut made = HashSet::new();
    for told in steps.iter().filter_map(|place| story.all.get(*place)) {
        match &told.record.what {
            What::Making { .. } | What::Returned { .. } => {
                if let Some(object) = story.made.get(&told.record.seq) {
                    made.insert(*object);
                    *names.entry(*object).or_default() += 1;
                }
            }
            What::Linked { object, .. } => *names.entry(*object).or_default() += 1,
            What::Removed { object, kept: true, .. } => *names.entry(*object).or_default() -= 1,
            What::Renamed { replaced: Some(object), kept: true, .. } => {
                *names.entry(*object).or_default() -= 1
            }
            _ => {}
        }
    }
    let foreign = |object: &Object| conflicts.get(object).is_some_and(|(sides, _)| sides.has(Sides::CONTENT));
    let mut passing: HashSet<Object> =
        made.into_iter().filter(|object| names.get(object) == Some(&0) && !foreign(object)).collect();
    // Not if something that stays was exchanged with it, or was in it.
    loop {
        let before = passing.len();
        for told in steps.iter().filter_map(|place| story.all.get(*place)) {
            let (object, dirs) = match &told.record.what {
                What::Exchanged { one, from, other, to } => {
                    for object in [one, other, &from.dir, &to.dir] {
                        passing.remove(object);
                    }
                    continue;
                }
                What::Making { at, .. } | What::Returned { at, .. } => {
                    (story.made.get(&told.record.seq), [Some(at), None])
                }
                What::Linked { object, at } | What::Removed { object, at, .. } => {
                    (Some(object), [Some(at), None])
                }
                What::Renamed { object, from, to, replaced, .. } => {
                    if replaced.is_some_and(|replaced| !passing.contains(&replaced)) {
                        passing.remove(&to.dir);
                    }
                    (Some(object), [Some(from), Some(to)])
                }
                _ => continue,
            };
            if object.is_none_or(|object| !passing.contains(object)) {
                for at in dirs.into_iter().flatten() {
                    passing.remove(&at.dir);
                }
            }
        }
        if passing.len() == before {
            return passing;
        }
    }
}
