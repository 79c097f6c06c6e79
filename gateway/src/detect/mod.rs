//! Detection: whether what an application does to files that were there before it looks like ransomware.
//!
//! Streaming and bounded: each change is looked at once, before it is applied, by a sample of at most 4 KiB of what is there
//! and what comes. Each file counts once, as much as it was harmed; the counts fade. A verdict names what was seen.
//! (The signals are those of ShieldFS, ACSAC 2016, and UNVEIL, USENIX Security 2016: content that becomes even, types that
//! change, renames with one suffix, removals after even copies.)
//!
//! What the application made itself does not count: builds, caches, repacking and journals are its own business.

mod churn;
pub(crate) mod decoy;
mod removal;
mod sample;
mod tally;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use strongroom_contracts::{Application, Detection, OnVerdict};

use churn::Churn;
use decoy::Decoys;
use removal::Removals;
pub(crate) use sample::{Look, SAMPLE};
use tally::Tally;

/// Files whose history is kept for each application; the oldest are forgotten.
const MAX_FILES: usize = 4096;
/// Files that an application is remembered to have made.
const MAX_MADE: usize = 65_536;
/// Suffixes that are counted.
const MAX_SUFFIXES: usize = 64;
/// The longest suffix that is looked at, in bytes.
const MAX_SUFFIX: usize = 32;
/// Pieces of a file that are all compared; of more, one in [`SELDOM`], so that a few honest pieces first are no cover.
const PIECES: u32 = 4;
/// See [`PIECES`].
const SELDOM: u32 = 16;
/// How much more harm counts while an application changes far more files than it ever did.
const UNUSUAL: f64 = 1.5;
/// Paths that a verdict names.
const NAMED: usize = 5;
/// What a whole number of files may have faded by while they were counted.
const FADED: f64 = 0.5;

/// A file: inode number and generation.
pub(crate) type FileId = (u64, u64);

/// That an application does harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What was seen, for people.
    pub evidence: String,
    /// Files that it rests on.
    pub files: u32,
}

/// The watches of all applications: a new session does not begin from nothing.
#[derive(Default)]
pub(crate) struct Watches {
    all: Mutex<HashMap<Application, Arc<Watch>>>,
    /// Whoever planted them, they are nobody's to change.
    pub(crate) decoys: Arc<Decoys>,
}

/// Applications that are remembered; there are as many as policy files.
const MAX_APPLICATIONS: usize = 4096;

impl Watches {
    /// The watch of an application, unless its contract asks for none.
    pub(crate) fn of(&self, application: &Application, terms: Detection) -> Option<Arc<Watch>> {
        if terms.verdict == OnVerdict::Off {
            return None;
        }
        let mut all = self.all.lock();
        if all.len() >= MAX_APPLICATIONS && !all.contains_key(application) {
            all.clear();
        }
        let watch = all
            .entry(application.clone())
            .or_insert_with(|| Arc::new(Watch::new(terms, Arc::clone(&self.decoys))));
        watch.state.lock().terms = terms;
        Some(Arc::clone(watch))
    }
}

/// Watches one application, whatever its sessions.
pub(crate) struct Watch {
    began: Instant,
    /// There is a verdict to be taken.
    judged: AtomicBool,
    decoys: Arc<Decoys>,
    state: Mutex<State>,
}

/// What is known of one file.
#[derive(Default)]
struct File {
    /// What its beginning looked like before the application first changed it.
    before: Option<Look>,
    /// It was cut to nothing, and what comes is still to be seen.
    emptied: bool,
    /// That it was cut was counted as a removal.
    missed: bool,
    /// Pieces written.
    pieces: u32,
    /// What its beginning looks like since.
    after: Option<Look>,
    /// How much harm was counted, 0 to 1.
    harm: f64,
}

struct State {
    /// How much is too much.
    terms: Detection,
    files: HashMap<FileId, File>,
    order: VecDeque<FileId>,
    made: HashSet<FileId>,
    made_order: VecDeque<FileId>,
    burst: Tally,
    slow: Tally,
    removed: Removals,
    churn: Churn,
    /// New files that look even: copies, perhaps, of what is removed next.
    even_copies: Tally,
    suffixes: HashMap<Vec<u8>, u32>,
    named: VecDeque<String>,
    harmed: u32,
    verdict: Option<Verdict>,
}

/// A change that is about to be made to an existing file. The closures cost something and are called only if needed.
pub(crate) struct About<'a> {
    pub(crate) file: FileId,
    /// Reads from the file as it is now: offset, buffer; returns how many bytes there were.
    pub(crate) read: &'a dyn Fn(u64, &mut [u8]) -> usize,
    /// The path, as the application sees it.
    pub(crate) path: &'a dyn Fn() -> String,
}

impl About<'_> {
    fn look(&self, offset: u64, most: usize) -> Look {
        let mut buffer = [0; SAMPLE];
        let room = buffer.get_mut(..most.min(SAMPLE)).unwrap_or_default();
        let count = (self.read)(offset, room);
        Look::at(room.get(..count).unwrap_or_default(), offset == 0)
    }
}

impl Watch {
    pub(crate) fn new(terms: Detection, decoys: Arc<Decoys>) -> Watch {
        Watch {
            began: Instant::now(),
            judged: AtomicBool::new(false),
            decoys,
            state: Mutex::new(State {
                terms,
                files: HashMap::new(),
                order: VecDeque::new(),
                made: HashSet::new(),
                made_order: VecDeque::new(),
                burst: Tally::with_half_life(60.0),
                slow: Tally::with_half_life(3.0 * 3600.0),
                removed: Removals::default(),
                churn: Churn::default(),
                even_copies: Tally::with_half_life(60.0),
                suffixes: HashMap::new(),
                named: VecDeque::new(),
                harmed: 0,
                verdict: None,
            }),
        }
    }

    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// The verdict, once.
    pub(crate) fn take_verdict(&self) -> Option<Verdict> {
        if !self.judged.load(Ordering::Relaxed) {
            return None;
        }
        self.judged.store(false, Ordering::Relaxed);
        self.state.lock().verdict.take()
    }

    /// A file was made by the application.
    pub(crate) fn makes(&self, file: FileId) {
        let mut state = self.state.lock();
        if state.made.insert(file) {
            state.made_order.push_back(file);
        }
        if state.made_order.len() > MAX_MADE
            && let Some(oldest) = state.made_order.pop_front()
        {
            state.made.remove(&oldest);
        }
        // An inode number that is used again is another file.
        state.files.remove(&file);
    }

    /// Bytes are about to be written; `size`: the file's, before that.
    pub(crate) fn writes(&self, about: &About<'_>, offset: u64, data: &[u8], size: u64) {
        let mut state = self.state.lock();
        let made = state.made.contains(&about.file);
        if made {
            let file = state.file(about.file);
            if offset == 0 && file.after.is_none() {
                let look = Look::at(data, true);
                file.after = Some(look);
                let now = self.now();
                match look {
                    Look::Even => state.even_copies.add(now, 1.0),
                    look => state.removed.copied(look, now),
                }
            }
            return;
        }
        let emptied = state.file(about.file).emptied;
        if offset >= size && !emptied {
            return;
        }
        self.churns(&mut state, about);
        self.is_decoy(&mut state, about, "overwritten");
        let now = self.now();
        let file = state.file(about.file);
        file.pieces = file.pieces.saturating_add(1);
        if file.pieces > PIECES && !file.pieces.is_multiple_of(SELDOM) && !emptied {
            return;
        }
        file.emptied = false;
        let missed = std::mem::take(&mut file.missed);
        let before = match file.before.filter(|_| emptied || size == 0) {
            Some(before) => before,
            None => about.look(offset, data.len()),
        };
        let after = Look::at(data, offset == 0);
        if missed {
            state.removed.came_back(place(&(about.path)()), before, now);
        }
        let file = state.file(about.file);
        if offset == 0 {
            file.before.get_or_insert(before);
            file.after = Some(after);
        }
        self.harm(&mut state, about, turned(before, after));
    }

    /// A file is about to lose what it held: to be cut, or to have a hole punched.
    pub(crate) fn empties(&self, about: &About<'_>) {
        let mut state = self.state.lock();
        if state.made.contains(&about.file) {
            return;
        }
        self.churns(&mut state, about);
        self.is_decoy(&mut state, about, "emptied");
        let file = state.file(about.file);
        let look = *file.before.get_or_insert_with(|| about.look(0, SAMPLE));
        if !std::mem::replace(&mut file.emptied, true) && look.matters() {
            let missed = self.goes(&mut state, about, look, "emptied");
            state.file(about.file).missed = missed;
        }
    }

    /// The last name of a file is about to go.
    pub(crate) fn removes(&self, about: &About<'_>) {
        let mut state = self.state.lock();
        if state.made.contains(&about.file) {
            return;
        }
        self.churns(&mut state, about);
        self.is_decoy(&mut state, about, "removed");
        let file = state.file(about.file);
        let look = *file.before.get_or_insert_with(|| about.look(0, SAMPLE));
        let counted = file.harm > 0.0 || file.emptied;
        if !look.matters() || counted {
            return;
        }
        let now = self.now();
        if state.even_copies.at(now) >= 0.9 {
            state.even_copies.add(now, -1.0);
            return self.harm(&mut state, about, Some((1.0, "replaced by an even copy")));
        }
        self.goes(&mut state, about, look, "removed");
    }

    /// One file is about to take the place of another, which goes.
    pub(crate) fn replaces(&self, by: &About<'_>, victim: &About<'_>) {
        let mut state = self.state.lock();
        if state.made.contains(&victim.file) {
            return;
        }
        self.churns(&mut state, victim);
        self.is_decoy(&mut state, victim, "replaced");
        let after = state.files.get(&by.file).and_then(|file| file.after);
        let after = after.unwrap_or_else(|| by.look(0, SAMPLE));
        let file = state.file(victim.file);
        let before = *file.before.get_or_insert_with(|| victim.look(0, SAMPLE));
        self.harm(&mut state, victim, turned(before, after));
        // What replaces another's file stands for it from now on.
        state.made.remove(&by.file);
    }

    /// A file gets another name.
    pub(crate) fn renames(&self, about: &About<'_>, from: &[u8], to: &[u8]) {
        if self.decoys.has(about.file) {
            self.is_decoy(&mut self.state.lock(), about, "renamed");
        }
        let Some(suffix) = new_suffix(from, to) else { return };
        let mut state = self.state.lock();
        if state.made.contains(&about.file) {
            return;
        }
        if state.suffixes.len() >= MAX_SUFFIXES && !state.suffixes.contains_key(suffix) {
            state.suffixes.clear();
        }
        let count = state.suffixes.entry(suffix.to_vec()).or_default();
        *count += 1;
        // The first few may be a person's.
        if *count > 3 {
            self.harm(&mut state, about, Some((0.7, "renamed with one new suffix")));
        }
    }

    /// What there was goes, and nothing is known to come instead. Returns whether it counts.
    fn goes(&self, state: &mut State, about: &About<'_>, look: Look, how: &str) -> bool {
        let now = self.now();
        if !state.removed.gone(place(&(about.path)()), look, now) {
            return false;
        }
        state.name(about, how);
        if let Some((number, what)) = state.removed.too_many(state.terms.removed, now) {
            self.convict(state, number, what);
        }
        true
    }

    /// Counts that a file of others is changed, whatever it becomes.
    fn churns(&self, state: &mut State, about: &About<'_>) {
        let now = self.now();
        let Some(number) = state.churn.changes(about.file, now) else { return };
        if state.terms.churn == Some(number.saturating_sub(1)) {
            state.name(about, "changed");
            let what = format!("files of others changed within a minute, and its policy says {}", number - 1);
            self.convict(state, number, &what);
        }
    }

    /// One change of a decoy is enough.
    fn is_decoy(&self, state: &mut State, about: &About<'_>, how: &str) {
        if self.decoys.has(about.file) {
            state.name(about, how);
            self.convict(state, 1, "decoy changed, which no honest work does");
        }
    }

    fn convict(&self, state: &mut State, files: u32, what: &str) {
        let named: Vec<String> = state.named.drain(..).collect();
        let evidence = format!("{files} {what}; the last: {}", named.join(", "));
        state.verdict = Some(Verdict { evidence, files });
        self.judged.store(true, Ordering::Relaxed);
    }

    fn harm(&self, state: &mut State, about: &About<'_>, harm: Option<(f64, &str)>) {
        let Some((amount, how)) = harm else { return };
        let amount = match state.churn.is_unusual(self.now()) {
            true => (amount * UNUSUAL).min(1.0),
            false => amount,
        };
        let file = state.file(about.file);
        let more = (amount - file.harm).max(0.0);
        if more == 0.0 {
            return;
        }
        let first = file.harm == 0.0;
        file.harm += more;
        if first {
            state.harmed = state.harmed.saturating_add(1);
            state.name(about, how);
        }
        let now = self.now();
        state.burst.add(now, more);
        state.slow.add(now, more);
        if state.burst.at(now) >= f64::from(state.terms.burst) - FADED {
            let number = state.burst.at(now).round() as u32;
            self.convict(state, number, "files of others harmed within a minute");
            state.burst.clear();
        } else if state.slow.at(now) >= f64::from(state.terms.slow) - FADED {
            let number = state.slow.at(now).round() as u32;
            self.convict(state, number, "files of others harmed within hours");
            state.slow.clear();
        }
    }
}

impl State {
    fn file(&mut self, id: FileId) -> &mut File {
        if !self.files.contains_key(&id) {
            self.order.push_back(id);
            if self.order.len() > MAX_FILES
                && let Some(oldest) = self.order.pop_front()
            {
                self.files.remove(&oldest);
            }
        }
        self.files.entry(id).or_default()
    }

    fn name(&mut self, about: &About<'_>, how: &str) {
        if self.named.len() >= NAMED {
            self.named.pop_front();
        }
        self.named.push_back(format!("{} ({how})", (about.path)()));
    }
}

/// The directory of a path.
fn place(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(place, _)| place)
}

/// How much harm it is that contents become others, and in which words.
fn turned(before: Look, after: Look) -> Option<(f64, &'static str)> {
    match (before, after) {
        (before, Look::Even) if before.matters() => Some((1.0, "contents became even, as if encrypted")),
        (Look::Format(before), Look::Format(after)) if before != after => Some((0.5, "type changed")),
        (before @ Look::Format(_), Look::Text) if before.matters() => Some((0.3, "became text")),
        (Look::Text, after @ Look::Format(_)) if after.is_packed() => Some((0.3, "became packed")),
        _ => None,
    }
}

/// The suffix that a new name has in addition to, or instead of, the old one's.
fn new_suffix<'a>(from: &[u8], to: &'a [u8]) -> Option<&'a [u8]> {
    let extension = |name: &[u8]| name.iter().rposition(|byte| *byte == b'.').filter(|at| *at > 0);
    let at = extension(to)?;
    let (stem, suffix) = to.split_at_checked(at)?;
    let old_stem = extension(from).and_then(|at| from.get(..at)).unwrap_or(from);
    let added = stem == from;
    let exchanged = stem == old_stem && from.get(at..) != Some(suffix);
    let old = extension(from).and_then(|at| from.get(at..)).unwrap_or_default();
    (suffix.len() <= MAX_SUFFIX && (added || exchanged) && !is_usual(old, suffix)).then_some(suffix)
}

/// Whether people and programs give files this suffix every day: another case, a copy that is kept, flags of a mail (maildir(5)).
fn is_usual(old: &[u8], new: &[u8]) -> bool {
    const KEPT: [&[u8]; 4] = [b".bak", b".old", b".orig", b".tmp"];
    let flags = |suffix: &[u8]| suffix.windows(3).any(|bytes| bytes == b":2,");
    old.eq_ignore_ascii_case(new) || new.ends_with(b"~") || KEPT.contains(&new) || flags(old) && flags(new)
}

#[cfg(test)]
mod tests;
