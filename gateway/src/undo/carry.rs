//! Carrying an undo out: newest first, each step looked at before it is taken, so that running it again does no harm.
//!
//! It works with the gateway's own authority, through the tree like everything else: beneath the data root, following no
//! link, on objects whose identity is compared. What it changes is logged under its own name, so that it can be undone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{ftruncate, ioctl_ficlone};
use rustix::io::Errno;

use super::attributes::Former;
use super::authority::Authority;
use super::contents::Contents;
use super::place::Places;
use super::plan::{Filter, Plan, UndoError, Verdict, plan};
use super::record::{At, Object, Record, Sides, What};
use super::runs::{self, Item, Run, RunId};
use super::vault::copy_all;
use super::{OWN_NAME, Undo};
use crate::engine::Shared;
use crate::gate::refusal::Refusal;
use crate::tree::{Stat, Tree};

/// One undo under way.
pub(super) struct Carry<'a> {
    pub(super) authority: Authority<'a>,
    pub(super) filter: &'a Filter,
    pub(super) dry: bool,
    pub(super) plan: &'a Plan,
    /// Where things are, as the log tells it and as the undo itself moves them.
    pub(super) places: Places,
    /// What a dry run would have changed.
    pub(super) pretended: HashMap<At, Option<Object>>,
    items: BTreeMap<Vec<u8>, Item>,
    /// The attributes of changed objects as they were.
    pub(super) attributes: HashMap<Object, Former>,
    /// Objects whose content was changed by others since: the time of the oldest change.
    pub(super) beside: BTreeMap<Object, u64>,
    /// Objects that were put beside by an earlier try of this undo.
    pub(super) beside_before: HashSet<Object>,
    /// Contents that are about to be put back.
    pub(super) contents: Contents<'a>,
    /// Objects that were looked at and are not there.
    pub(super) missing: HashSet<Object>,
}

impl Undo {
    /// Notes an undo that is asked for; [`Undo::carry`] carries it out.
    ///
    /// # Errors
    /// [`UndoError::Unknown`] if the application has no log.
    pub(crate) fn begin(&self, filter: Filter, dry: bool) -> Result<RunId, UndoError> {
        if !self.logs.read().contains_key(&filter.application) {
            return Err(UndoError::Unknown(filter.application));
        }
        let id = runs::new_id().map_err(|_| UndoError::Io(std::io::ErrorKind::Other))?;
        self.runs.add(&Run::new(id, filter.rounded(), dry, false));
        Ok(id)
    }

    /// The undos that a crash interrupted, ready to be carried out.
    ///
    /// # Errors
    /// Those of the vault's file system.
    pub(crate) fn interrupted(&self) -> Result<Vec<RunId>, UndoError> {
        let runs = runs::interrupted(&self.vault)?;
        runs.iter().for_each(|run| self.runs.add(run));
        Ok(runs.iter().map(|run| run.id).collect())
    }

    /// An undo that was begun in this process.
    pub(crate) fn run(&self, id: RunId) -> Option<Arc<Run>> {
        self.runs.get(id)
    }

    /// Carries an undo out, from its beginning to its end. Undos run one after the other.
    pub(crate) fn carry(&self, engine: &Shared, id: RunId) {
        let Some(run) = self.run(id) else { return };
        let _one = self.runs.carrying.lock();
        let _kept = self.forgetting.lock();
        let result = self.carry_run(engine, &run);
        run.finish(result);
    }

    fn carry_run(&self, engine: &Shared, run: &Arc<Run>) -> Result<Vec<Item>, UndoError> {
        let tree = &self.tree;
        // Whatever is changed from here on is no part of it, and is recorded anew.
        self.begin_interval();
        let now = self.stamp();
        let mut filter = run.filter.clone();
        if !run.resumed {
            filter.until_us = filter.until_us.min(now);
        }
        let mut plan = plan(self, tree, &filter, *run.id.as_bytes())?;
        run.update(|progress| {
            progress.total = plan.steps.len() as u64;
            progress.expired = plan.expired;
        });
        let run = Arc::new(Noted { run: Arc::clone(run), filter });
        let authority = Authority::new(engine, self, run.run.id);
        if !run.run.dry {
            if !run.run.resumed {
                runs::note(&self.vault, &Run::new(run.run.id, run.filter.clone(), false, true))?;
            }
            let Filter { application, contract, since_us, until_us, .. } = run.filter.clone();
            let what = What::Undone { application, contract, since: since_us, until: until_us };
            let record = Record { seq: self.stamp(), contract: 0, window: 0, cost: 0, what };
            self.append(&authority.actor, [record])?;
        }
        let own = *run.run.id.as_bytes();
        let places = std::mem::take(&mut plan.story.places);
        let beside_before = plan.story.all.iter().filter(|told| told.ids.first() == Some(&own));
        let beside_before = beside_before.filter_map(|told| match &told.record.what {
            What::Beside { of, .. } => Some(*of),
            _ => None,
        });
        let mut carry = Carry {
            beside_before: beside_before.collect(),
            authority,
            filter: &run.filter,
            dry: run.run.dry,
            plan: &plan,
            places,
            pretended: HashMap::new(),
            items: BTreeMap::new(),
            attributes: HashMap::new(),
            beside: BTreeMap::new(),
            contents: Contents::new(engine, self, run.run.id),
            missing: HashSet::new(),
        };
        for (n, place) in plan.steps.iter().enumerate() {
            carry.step(*place);
            if n % 64 == 0 {
                run.run.update(|progress| progress.done = n as u64);
            }
        }
        carry.put_contents();
        carry.put_beside();
        carry.set_attributes();
        plan.gone.iter().for_each(|place| carry.tell_gone(*place));
        let items = carry.items.into_values().collect();
        if !run.run.dry {
            // Which steps were taken is on record before the journal ends.
            self.all_logs().iter().try_for_each(|log| log.flush())?;
            self.sync()?;
            self.vault.sync_all()?;
            runs::done(&self.vault, &run.run)?;
        }
        run.run.update(|progress| progress.done = plan.steps.len() as u64);
        Ok(items)
    }
}

/// A run with the filter that holds for it.
struct Noted {
    run: Arc<Run>,
    filter: Filter,
}

impl Carry<'_> {
    pub(super) fn undo(&self) -> &Undo {
        self.authority.undo
    }

    pub(super) fn tree(&self) -> &Arc<Tree> {
        self.authority.tree
    }

    pub(super) fn path(&self, at: &At) -> Vec<u8> {
        self.places.path(self.tree(), at)
    }

    pub(super) fn object_path(&self, object: Object) -> Vec<u8> {
        let path = self.places.object_path(self.tree(), object);
        path.unwrap_or_else(|| format!("(inode {})", object.ino).into_bytes())
    }

    /// Notes what became of a path; the worse of several verdicts stays.
    pub(super) fn tell(
        &mut self,
        path: Vec<u8>,
        verdict: Verdict,
        beside: Option<Vec<u8>>,
        why: impl Into<String>,
    ) {
        let item = Item { path: path.clone(), verdict, beside, why: why.into() };
        match self.items.get_mut(&path) {
            Some(old) if old.verdict >= verdict => {}
            _ => {
                self.items.insert(path, item);
            }
        }
    }

    /// What was moved out of somebody's grant, or into it, must be noticed by operations under way.
    pub(super) fn changed(&self, settle: bool) {
        if settle {
            self.tree().sections.settle();
        }
    }

    fn step(&mut self, place: usize) {
        let plan = self.plan;
        let Some(told) = plan.story.all.get(place) else { return };
        let seq = told.record.seq;
        if let What::Changed { object, sides, before, .. } = &told.record.what {
            let former = self.attributes.entry(*object).or_default();
            former.sides = former.sides.with(*sides);
            // Steps come newest first: the oldest stays.
            former.before = before.or(former.before);
        }
        if plan.done.contains(&seq) {
            // Before this undo was interrupted.
            return;
        }
        if let What::Changed { object, sides, before, saved } = &told.record.what {
            if plan.passing.contains(object) {
                self.step_done(seq);
            } else if sides.has(Sides::CONTENT) {
                let size = before.map(|before| before.size);
                self.restore(&told.application, seq, *object, size, saved);
            } else {
                self.attributes.entry(*object).or_default().steps.push(seq);
            }
            return;
        }
        let tells_only = !matches!(
            told.record.what,
            What::Making { .. }
                | What::Returned { .. }
                | What::Linked { .. }
                | What::Removed { .. }
                | What::Renamed { .. }
                | What::Exchanged { .. }
                | What::Xattr { .. }
        );
        if tells_only {
            return;
        }
        // This can move what contents go to.
        self.put_contents();
        let (path, result) = match &told.record.what {
            What::Making { at, after } => (self.path(at), self.unmake(seq, at, *after)),
            What::Returned { object, at } => (self.path(at), self.unmake(seq, at, object.generation)),
            What::Linked { object, at } => (self.path(at), self.unname(*object, at)),
            What::Removed { object, .. } | What::Xattr { object, .. } if plan.passing.contains(object) => {
                (vec![], Ok(()))
            }
            What::Removed { object, at, kept: true, .. } => {
                (self.path(at), self.bring_back(&told.application, seq, *object, at))
            }
            What::Renamed { object, from, to, replaced, kept, .. } => {
                let result = self.move_back(seq, *object, from, to).and_then(|()| match replaced {
                    Some(old) if *kept && !plan.passing.contains(old) => {
                        self.bring_back(&told.application, seq, *old, to)
                    }
                    _ => Ok(()),
                });
                (self.path(from), result)
            }
            What::Exchanged { one, from, other, to } => {
                (self.path(from), self.exchange_back((*one, from), (*other, to)))
            }
            What::Xattr { object, name, old } => {
                (self.object_path(*object), self.restore_xattr(*object, name, old.as_deref()))
            }
            _ => return,
        };
        match result {
            Ok(()) if !self.dry => self.undo().later(&self.authority.actor, What::Done { record: seq }),
            Ok(()) => {}
            Err(refusal) => self.tell(path, Verdict::Failed, None, words(&refusal)),
        }
    }

    /// Tells of a change of which nothing is kept any more.
    fn tell_gone(&mut self, place: usize) {
        let plan = self.plan;
        let Some(told) = plan.story.all.get(place) else { return };
        let paths = match &told.record.what {
            What::Making { at, .. }
            | What::Returned { at, .. }
            | What::Linked { at, .. }
            | What::Removed { at, .. }
            | What::Renamed { from: at, .. } => vec![self.path(at)],
            What::Exchanged { from, to, .. } => vec![self.path(from), self.path(to)],
            What::Changed { object, sides, .. } if *sides != Sides::ENTRIES => {
                vec![self.object_path(*object)]
            }
            What::Xattr { object, .. } => vec![self.object_path(*object)],
            _ => return,
        };
        for path in paths {
            self.tell(path, Verdict::Expired, None, "what was kept of it is forgotten");
        }
    }

    /// What somebody else changed of an object: before the plan was made, or since.
    pub(super) fn conflict(&self, object: Object) -> Option<(Sides, String)> {
        if let Some((sides, who)) = self.plan.conflicts.get(&object) {
            return Some((*sides, who.clone()));
        }
        let (writer, last) = self.undo().marks.last(object)?;
        let writer = self.undo().writer_of(writer)?;
        (last > self.filter.until_us && writer.application != OWN_NAME)
            .then(|| (Sides::ALL, writer.application.clone()))
    }
}

/// Makes a file's content that of another.
pub(super) fn replace_all(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let size = Stat::of(from)?.size();
    match ioctl_ficlone(to, from) {
        Ok(()) => {}
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::XDEV | Errno::TXTBSY) => copy_all(from, 0, to, 0, size)?,
        Err(other) => return Err(other),
    }
    if Stat::of(to)?.size() == size { Ok(()) } else { ftruncate(to, size) }
}

pub(super) fn words(refusal: &Refusal) -> String {
    match refusal.failure() {
        strongroom_protocol::reply::Failure::Errno(number) => {
            std::io::Error::from_raw_os_error(i32::from(number)).to_string()
        }
        strongroom_protocol::reply::Failure::Stale => "its place cannot be found".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}
