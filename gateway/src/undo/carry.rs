//! Carrying an undo out: newest first, each step looked at before it is taken, so that running it again does no harm.
//!
//! It works with the gateway's own authority, through the tree like everything else: beneath the data root, following no
//! link, on objects whose identity is compared. What it changes is logged under its own name, so that it can be undone.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fremovexattr,
    fsetxattr, ftruncate, ioctl_ficlone, linkat, utimensat,
};
use rustix::io::Errno;
use strongroom_contracts::armour::rfc3339;
use strongroom_protocol::op::RenameMode;

use super::contents::Contents;
use super::place::{Places, Spot};
use super::plan::{Filter, Plan, UndoError, Verdict, plan};
use super::record::{At, Attributes, Object, Sides, What};
use super::runs::{self, Item, Run, RunId};
use super::vault::copy_all;
use super::{Actor, Capture, OWN_NAME, Undo, Writer};
use crate::engine::Shared;
use crate::gate::Turnstile;
use crate::gate::refusal::{Checked, Refusal};
use crate::leases::{Change, Deal, Deed, Lessee, LesseeParts, Mode};
use crate::quota::Limit;
use crate::store::{self, Reach};
use crate::tree::{Node, Stat, Tree};

/// How often a step is tried that met somebody else's change under way.
const ATTEMPTS: usize = 1024;
/// The longest name.
const NAME_MAX: usize = 255;

/// What an undo acts by: no permit of a contract, but an administrator's word.
pub(super) struct Authority<'a> {
    engine: &'a Shared,
    pub(super) undo: &'a Undo,
    tree: &'a Arc<Tree>,
    pub(super) actor: Actor,
    window: u64,
    /// Holds no leases itself; whoever holds some must let go before something is changed.
    lessee: Arc<Lessee>,
    turnstile: Arc<Turnstile>,
    /// That of the change under way.
    deal: RefCell<Deal>,
}

impl Reach for Authority<'_> {
    fn tree(&self) -> &Arc<Tree> {
        self.tree
    }

    fn undo(&self) -> Capture<'_> {
        Capture::new(Some(self.undo), Some(&self.actor), self.tree, self.window)
    }

    /// Nobody's quota keeps what was there from coming back.
    fn watch(&self) -> Option<&crate::detect::Watch> {
        None
    }

    fn limits(&self) -> Checked<Arc<[Limit]>> {
        Ok(Arc::new([]))
    }

    fn changing(&self, changes: &[(&Arc<Node>, Change<'_>)]) -> Checked<()> {
        let deal = self.deal.borrow();
        deal.in_time(&self.engine.grace, Deed::Change)?;
        deal.changing(0, changes)
    }

    fn moving(&self, ends: (&Arc<Node>, &Arc<Node>), crosses: bool, moved: &[&Arc<Node>]) -> Checked<()> {
        crate::gate::lease::moving(self.engine, &self.deal.borrow(), ends, crosses, moved)
    }

    fn changed_names(&self, _: &Arc<Node>) {}

    fn moved_names(&self, _: &Arc<Node>, _: &Arc<Node>) {}
}

impl<'a> Authority<'a> {
    pub(super) fn new(engine: &'a Shared, undo: &'a Undo, run: RunId) -> Authority<'a> {
        let writer = Writer { application: OWN_NAME.to_owned(), ids: vec![*run.as_bytes()], generation: 0 };
        let lessee = Lessee::new(LesseeParts {
            number: engine.next_session(),
            grants: Arc::new([]),
            most: 1,
            recall: engine.options.leases.recall,
            offences: Arc::default(),
            locks: Arc::clone(&engine.locks),
        });
        Authority {
            engine,
            undo,
            tree: &undo.tree,
            actor: undo.act(writer, undo.space, true),
            window: undo.longest_window.load(std::sync::atomic::Ordering::Relaxed),
            deal: RefCell::new(Deal::new(&lessee, Mode::Client)),
            lessee,
            turnstile: Turnstile::new(),
        }
    }

    /// Does something until nothing must be counted or waited for first, and nobody holds what it changes.
    pub(super) fn again<T>(&self, mut act: impl FnMut() -> Checked<T>) -> Checked<T> {
        let result = self.attempts(&mut act);
        // Its marks end here: others may be given leases again.
        self.deal.replace(Deal::new(&self.lessee, Mode::Client));
        result
    }

    fn attempts<T>(&self, act: &mut impl FnMut() -> Checked<T>) -> Checked<T> {
        for _ in 0..ATTEMPTS {
            self.deal.borrow().begin();
            match act() {
                Err(Refusal::Count(meter)) => meter.ensure_counted(self.tree, &|| false)?,
                Err(Refusal::WouldBlock) => std::thread::yield_now(),
                Err(Refusal::Recall) => {
                    self.deal.borrow().ask(self.engine, &self.turnstile)?.sleep(self.engine)?;
                }
                other => return other,
            }
        }
        Err(Refusal::errno(Errno::BUSY))
    }
}

/// One undo under way.
pub(super) struct Carry<'a> {
    pub(super) authority: Authority<'a>,
    pub(super) filter: &'a Filter,
    pub(super) dry: bool,
    pub(super) plan: &'a Plan,
    /// Where things are, as the log tells it and as the undo itself moves them.
    pub(super) places: Places,
    /// What a dry run would have changed.
    pretended: HashMap<At, Option<Object>>,
    items: BTreeMap<Vec<u8>, Item>,
    /// The oldest attributes of changed objects, with the sides that were changed.
    attributes: HashMap<Object, (Sides, Option<Attributes>)>,
    /// Objects whose content was changed by others since: the time of the oldest change.
    pub(super) beside: BTreeMap<Object, u64>,
    /// Objects that were put beside by an earlier try of this undo.
    beside_before: HashSet<Object>,
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
            let record = super::record::Record { seq: self.stamp(), contract: 0, window: 0, cost: 0, what };
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

    fn path(&self, at: &At) -> Vec<u8> {
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
            let entry = self.attributes.entry(*object).or_default();
            entry.0 = entry.0.with(*sides);
            // Steps come newest first: the oldest stays.
            entry.1 = before.or(entry.1);
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
            }
            return;
        }
        let tells_only = !matches!(
            told.record.what,
            What::Making { .. }
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

    /// What has a name at present.
    fn look(&self, at: &At) -> Option<Object> {
        if let Some(pretended) = self.pretended.get(at) {
            return *pretended;
        }
        let dir = self.places.find(self.tree(), at.dir).ok()?;
        let (node, _) = self.tree().lookup(&dir, &at.name).ok()?;
        Some(Object::of(&node))
    }

    fn find_dir(&self, dir: Object) -> Checked<Arc<Node>> {
        let node = self.places.find(self.tree(), dir)?;
        if node.is_dir() { Ok(node) } else { Err(Refusal::errno(Errno::NOTDIR)) }
    }

    /// Takes away what was made.
    fn unmake(&mut self, seq: u64, at: &At, after: u64) -> Checked<()> {
        let made = self.plan.story.made.get(&seq).copied();
        let Some(now) = self.look(at) else {
            // The steps before this one have taken back what the same one did to it.
            let moved = |object: &Object| {
                !self.plan.passing.contains(object) && self.places.find(self.tree(), *object).is_ok()
            };
            if let Some(object) = made.filter(moved) {
                self.tell(self.object_path(object), Verdict::Kept, None, "somebody else moved it since");
            }
            return Ok(());
        };
        let object = match made {
            Some(object) => object,
            // The process died before it could tell. What was born since, and is nobody else's, is what it made.
            None if now.generation >= after && !self.is_known(now) => now,
            None => return Ok(()),
        };
        if self.plan.passing.contains(&object) {
            return Ok(());
        }
        self.take_away(object, now, at)
    }

    fn is_known(&self, object: Object) -> bool {
        self.plan.story.made.values().any(|made| *made == object)
    }

    fn unname(&mut self, object: Object, at: &At) -> Checked<()> {
        match self.look(at) {
            Some(now) => self.take_away(object, now, at),
            None => Ok(()),
        }
    }

    fn take_away(&mut self, object: Object, now: Object, at: &At) -> Checked<()> {
        let path = self.path(at);
        if now != object {
            self.tell(path, Verdict::Kept, None, "something else has its name since");
            return Ok(());
        }
        if let Some((sides, who)) = self.conflict(object)
            && (sides.has(Sides::CONTENT) || sides.has(Sides::XATTRS) || sides.has(Sides::MODE))
        {
            self.tell(path, Verdict::Kept, None, format!("{who} changed it since"));
            return Ok(());
        }
        if self.dry {
            if self.has_foreign_entries(object) {
                self.tell(path, Verdict::Kept, None, "others put something into it since");
                return Ok(());
            }
            self.pretended.insert(at.clone(), None);
            self.tell(path, Verdict::Restored, None, "");
            return Ok(());
        }
        let dir = self.find_dir(at.dir)?;
        let (node, _) = self.tree().lookup(&dir, &at.name)?;
        let how = if node.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        drop(node);
        match self.authority.again(|| store::unlink::remove(&self.authority, &dir, &at.name, how)) {
            Ok((_, settle)) => {
                self.changed(settle);
                // Undos run one after the other: the newest record of their log is that of the removal.
                let kept = self.authority.actor.log.get().map_or(0, |log| log.newest());
                self.places.lose(object, at);
                self.places.add(object, Spot::Kept(OWN_NAME.into(), kept));
                self.tell(path, Verdict::Restored, None, "");
                Ok(())
            }
            Err(refusal) if refusal.is(Errno::NOTEMPTY) => {
                self.tell(path, Verdict::Kept, None, "others put something into it since");
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    /// In a dry run: whether a directory holds what would not be taken away.
    fn has_foreign_entries(&self, object: Object) -> bool {
        let entries = || {
            let node = self.places.find(self.tree(), object).ok().filter(|node| node.is_dir())?;
            let fd = self.tree().open_node(&node, OFlags::RDONLY | OFlags::DIRECTORY).ok()?.0;
            super::vault::list(&fd).ok()
        };
        entries().into_iter().flatten().any(|(name, _)| {
            let at = At { dir: object, name };
            !matches!(self.pretended.get(&at), Some(None))
        })
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

    /// Puts what is in the vault back to its name.
    fn bring_back(&mut self, application: &str, seq: u64, object: Object, at: &At) -> Checked<()> {
        let path = self.path(at);
        let there = self.look(at);
        if there == Some(object) {
            // Done before.
            self.tell(path, Verdict::Restored, None, "");
            return Ok(());
        }
        let kept = match self.undo().vault.stat(application, seq) {
            Ok(stat) if Object::told(&stat) == object => stat,
            Ok(_) | Err(Errno::NOENT) => {
                if self.places.find(self.tree(), object).is_ok() {
                    self.tell(path, Verdict::Kept, None, "it has another name by now");
                } else {
                    self.tell(path, Verdict::Expired, None, "what was kept of it is forgotten");
                }
                return Ok(());
            }
            Err(other) => return Err(other.into()),
        };
        if self.dry {
            match there {
                None => {
                    self.pretended.insert(at.clone(), Some(object));
                    self.places.pretend(object, at);
                    self.tell(path, Verdict::Restored, None, "");
                }
                Some(_) => {
                    let beside = [&path[..], self.suffix(seq).as_bytes()].concat();
                    self.tell(path, Verdict::Kept, Some(beside), "something else has its name since");
                }
            }
            return Ok(());
        }
        // Where its directory is gone, the nearest one above that is left.
        let (mut dir_object, mut why) = (at.dir, "");
        let dir = loop {
            match self.find_dir(dir_object) {
                Ok(dir) => break dir,
                Err(refusal) => {
                    let above = self.places.name_of(dir_object).map(|at| at.dir);
                    dir_object = above.filter(|above| *above != dir_object).ok_or(refusal)?;
                    why = "its directory is gone";
                }
            }
        };
        if there.is_some() {
            why = "something else has its name since";
        }
        let mut name = if why.is_empty() { at.name.clone() } else { self.beside_name(&at.name, seq, 0) };
        for n in 1..100 {
            match self.authority.again(|| self.put_back(application, seq, &kept, &dir, &name)) {
                Ok(()) => {
                    self.places.add(object, Spot::At(At { dir: dir_object, name: name.clone() }));
                    break;
                }
                Err(refusal) if refusal.is(Errno::EXIST) => {
                    why = "something else has its name since";
                    name = self.beside_name(&at.name, seq, n);
                }
                Err(other) => return Err(other),
            }
        }
        if why.is_empty() {
            self.tell(path, Verdict::Restored, None, "");
        } else {
            let beside = self.path(&At { dir: dir_object, name });
            self.tell(path, Verdict::Kept, Some(beside), why);
        }
        Ok(())
    }

    fn put_back(
        &self,
        application: &str,
        seq: u64,
        kept: &Stat,
        dir: &Arc<Node>,
        name: &[u8],
    ) -> Checked<()> {
        let tree = self.tree();
        let fd = tree.fd_of(dir)?;
        let change = tree.change(dir, None)?;
        match tree.stat_at(&fd, name) {
            Err(refusal) if refusal.is(Errno::NOENT) => {}
            Err(other) => return Err(other),
            Ok(_) => return Err(Refusal::errno(Errno::EXIST)),
        }
        let links = tree.links(kept);
        let links = if kept.nlink() == 1 { 0 } else { links };
        let size = if kept.kind() == FileType::RegularFile { kept.size() } else { 0 };
        let new = tree.meters_at(dir);
        let names = new.reserve(&[], 0, 1)?;
        let old = match tree.known(kept) {
            Some(node) if links > 0 => tree.meters_of(&node, kept),
            _ => crate::quota::MeterSet::default(),
        };
        let bytes = if links == 0 { new.clone() } else { new.without(&old) }.reserve(&[], size, 0)?;
        self.authority.changing(&[(dir, Change::Name(name))])?;
        let making = self.authority.undo().making(dir, &fd, name)?;
        self.undo().vault.restore(application, seq, &fd, name)?;
        names.keep();
        bytes.keep();
        tree.vaulted.remove(kept.ino());
        let stat = tree.stat_at(&fd, name)?;
        if let Some(making) = making {
            making.made(&stat);
        }
        // What it made is only the name: the object's content is no new one of its own.
        self.undo().marks.forget(Object::told(&stat));
        tree.returned(dir, name, &stat);
        if links > 0 {
            new.linked(stat.ino(), (links == 1).then_some(&old));
        }
        drop(change);
        self.changed(true);
        Ok(())
    }

    /// Gives a renamed object its former name.
    fn move_back(&mut self, seq: u64, object: Object, from: &At, to: &At) -> Checked<()> {
        if self.plan.passing.contains(&object) {
            return Ok(());
        }
        let path = self.path(from);
        let (old, new) = (self.look(from), self.look(to));
        if old == Some(object) {
            self.tell(path, Verdict::Restored, None, "");
            return Ok(());
        }
        if new != Some(object) {
            if self.is_taken_away(object) {
                return Ok(());
            }
            self.tell(path, Verdict::Kept, None, "somebody else moved or deleted it since");
            return Ok(());
        }
        if self.dry {
            self.pretended.insert(to.clone(), None);
            if old.is_none() {
                self.pretended.insert(from.clone(), Some(object));
                self.places.pretend(object, from);
                self.tell(path, Verdict::Restored, None, "");
            } else {
                self.tell(path, Verdict::Kept, None, "something else has its name since");
            }
            return Ok(());
        }
        let target = self.find_dir(to.dir)?;
        let Ok(source) = self.find_dir(from.dir) else {
            self.tell(path, Verdict::Kept, None, "its former directory is gone");
            return Ok(());
        };
        let mut name = from.name.clone();
        for n in 0..100 {
            let mode = RenameMode::NoReplace;
            match self.authority.again(|| {
                store::rename::rename_in(&self.authority, (&target, &to.name), (&source, &name), mode)
            }) {
                Ok((_, settle)) => {
                    self.changed(settle);
                    self.places.lose(object, to);
                    self.places.add(object, Spot::At(At { dir: from.dir, name: name.clone() }));
                    break;
                }
                Err(refusal) if refusal.is(Errno::EXIST) => name = self.beside_name(&from.name, seq, n),
                Err(other) => return Err(other),
            }
        }
        if name == from.name {
            self.tell(path, Verdict::Restored, None, "");
        } else {
            let beside = self.path(&At { dir: from.dir, name });
            self.tell(path, Verdict::Kept, Some(beside), "something else has its name since");
        }
        Ok(())
    }

    /// Whether an undo has taken the object away before.
    pub(super) fn is_taken_away(&self, object: Object) -> bool {
        matches!(self.places.of(object).next(), Some(Spot::Kept(application, _)) if **application == *OWN_NAME)
    }

    fn exchange_back(&mut self, (one, from): (Object, &At), (other, to): (Object, &At)) -> Checked<()> {
        let paths = [self.path(from), self.path(to)];
        let (old, new) = (self.look(from), self.look(to));
        let verdict = if (old, new) == (Some(one), Some(other)) {
            Verdict::Restored
        } else if (old, new) == (Some(other), Some(one)) {
            if self.dry {
                self.pretended.insert(from.clone(), Some(one));
                self.pretended.insert(to.clone(), Some(other));
                self.places.pretend(one, from);
                self.places.pretend(other, to);
            } else {
                let (source, target) = (self.find_dir(from.dir)?, self.find_dir(to.dir)?);
                let mode = RenameMode::Exchange;
                let (_, settle) = self.authority.again(|| {
                    store::rename::rename_in(
                        &self.authority,
                        (&source, &from.name),
                        (&target, &to.name),
                        mode,
                    )
                })?;
                self.changed(settle);
                self.places.lose(one, to);
                self.places.lose(other, from);
                self.places.add(one, Spot::At(from.clone()));
                self.places.add(other, Spot::At(to.clone()));
            }
            Verdict::Restored
        } else {
            Verdict::Kept
        };
        let why =
            if verdict == Verdict::Kept { "somebody else moved or deleted one of them since" } else { "" };
        paths.into_iter().for_each(|path| self.tell(path, verdict, None, why));
        Ok(())
    }

    fn restore_xattr(&mut self, object: Object, name: &[u8], old: Option<&[u8]>) -> Checked<()> {
        let path = self.object_path(object);
        if let Some((sides, who)) = self.conflict(object)
            && sides.has(Sides::XATTRS)
        {
            self.tell(path, Verdict::Kept, None, format!("{who} changed its extended attributes since"));
            return Ok(());
        }
        let Ok(node) = self.places.find(self.tree(), object) else {
            self.tell(path, Verdict::Kept, None, "somebody else deleted it since");
            return Ok(());
        };
        if !self.dry {
            let (file, _) = self.tree().open_node(&node, OFlags::RDONLY)?;
            self.authority.again(|| {
                let _size = node.size.lock();
                self.authority.changing(&[(&node, Change::All { data: false, open: false })])?;
                self.authority.undo().xattr(&node, &file, name)?;
                match old {
                    Some(value) => fsetxattr(&file, name, value, XattrFlags::empty())?,
                    None => match fremovexattr(&file, name) {
                        Ok(()) | Err(Errno::NODATA) => {}
                        Err(other) => return Err(other.into()),
                    },
                }
                Ok(())
            })?;
            self.changed(false);
        }
        let entry = self.attributes.entry(object).or_default();
        entry.0 = entry.0.with(Sides::XATTRS);
        self.tell(path, Verdict::Restored, None, "");
        Ok(())
    }

    /// Puts the old versions of what others changed since beside it.
    fn put_beside(&mut self) {
        for (object, first) in std::mem::take(&mut self.beside) {
            let path = self.object_path(object);
            let who = self.conflict(object).map(|(_, who)| who).unwrap_or_default();
            let why = format!("{who} changed it since");
            if self.dry {
                let beside = [&path[..], self.suffix(first).as_bytes()].concat();
                self.tell(path, Verdict::Kept, Some(beside), why);
                continue;
            }
            if self.beside_before.contains(&object) {
                self.tell(path, Verdict::Kept, None, why);
                continue;
            }
            match self.put_one_beside(object, first) {
                Ok(beside) => self.tell(path, Verdict::Kept, beside, why),
                Err(refusal) => self.tell(path, Verdict::Failed, None, words(&refusal)),
            }
        }
    }

    fn put_one_beside(&mut self, object: Object, first: u64) -> Checked<Option<Vec<u8>>> {
        let Ok(node) = self.places.find(self.tree(), object) else { return Ok(None) };
        let (dir, own_name) = node.any_link().ok_or(Refusal::STALE)?;
        let (old, rewound) = self.undo().version(self.tree(), &self.plan.story, &node, first)?;
        if rewound.forgotten {
            return Ok(None);
        }
        if let Some((_, Some(before))) = self.attributes.get(&object) {
            set_attributes(self.tree(), &old, Sides::ALL, before)?;
        }
        let mut name = vec![];
        for n in 0..100 {
            name = self.beside_name(own_name.as_bytes(), first, n);
            match self.authority.again(|| self.link_beside(&old, object, &dir, &name)) {
                Ok(()) => break,
                Err(refusal) if refusal.is(Errno::EXIST) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(Some(self.path(&At { dir: Object::of(&dir), name })))
    }

    fn link_beside(&self, old: &OwnedFd, of: Object, dir: &Arc<Node>, name: &[u8]) -> Checked<()> {
        let tree = self.tree();
        let fd = tree.fd_of(dir)?;
        let change = tree.change(dir, None)?;
        let stat = Stat::of(old)?;
        let room = tree.meters_at(dir).reserve(&[], stat.size(), 1)?;
        self.authority.changing(&[(dir, Change::Name(name))])?;
        let making = self.authority.undo().making(dir, &fd, name)?;
        let at = At { dir: Object::of(dir), name: name.to_vec() };
        let what = What::Beside { object: Object::told(&stat), at, of };
        let undo = self.undo();
        let record = super::record::Record { seq: undo.stamp(), contract: 0, window: 0, cost: 0, what };
        undo.append(&self.authority.actor, [record])?;
        let path = format!("/proc/self/fd/{}", old.as_raw_fd());
        linkat(CWD, &*path, &*fd, name, AtFlags::SYMLINK_FOLLOW)?;
        room.keep();
        let stat = tree.stat_at(&fd, name)?;
        if let Some(making) = making {
            making.made(&stat);
        }
        tree.note(dir, name, &stat);
        drop(change);
        self.changed(false);
        Ok(())
    }

    fn suffix(&self, seq: u64) -> String {
        let time = rfc3339(seq / 1_000_000);
        let application = self.filter.application.trim_start_matches('@');
        format!(
            " (before {application} {} {})",
            time.get(..10).unwrap_or_default(),
            time.get(11..16).unwrap_or_default()
        )
    }

    /// A name for the old version of what has this name.
    fn beside_name(&self, name: &[u8], seq: u64, n: usize) -> Vec<u8> {
        let suffix = self.suffix(seq);
        let suffix = if n == 0 { suffix } else { format!("{suffix} {}", n + 1) };
        let most = NAME_MAX.saturating_sub(suffix.len());
        [name.get(..name.len().min(most)).unwrap_or_default(), suffix.as_bytes()].concat()
    }

    /// Sets modes, owners and times as they were.
    fn set_attributes(&mut self) {
        for (object, (sides, before)) in std::mem::take(&mut self.attributes) {
            let Some(before) = before else { continue };
            let theirs = self.conflict(object);
            let taken = |side: Sides| theirs.as_ref().is_some_and(|(theirs, _)| theirs.has(side));
            let mode = sides.has(Sides::MODE) && !taken(Sides::MODE);
            let changes_times =
                [Sides::CONTENT, Sides::TIMES, Sides::ENTRIES].into_iter().filter(|side| sides.has(*side));
            let times = changes_times.clone().count() > 0
                && !changes_times.clone().any(taken)
                && !taken(Sides::TIMES);
            let wanted = if mode { Sides::MODE } else { Sides::default() };
            let wanted = wanted.with(if times { Sides::TIMES } else { Sides::default() });
            let path = self.object_path(object);
            if sides.has(Sides::MODE) && !mode {
                let who = theirs.map(|(_, who)| who).unwrap_or_default();
                self.tell(
                    path.clone(),
                    Verdict::Kept,
                    None,
                    format!("{who} changed its mode or owner since"),
                );
            }
            if sides.has(Sides::MODE) || sides.has(Sides::TIMES) {
                self.tell(path.clone(), Verdict::Restored, None, "");
            }
            if self.dry || wanted == Sides::default() {
                continue;
            }
            let set = || -> Checked<()> {
                let Some((node, fd)) = self.reach(object, OFlags::PATH)? else { return Ok(()) };
                let _size = node.size.lock();
                self.authority.changing(&[(&node, Change::All { data: false, open: false })])?;
                self.authority.undo().attributes(&node, wanted, || Ok(Stat::of(&fd)?))?;
                set_attributes(self.tree(), &fd, wanted, &before)
            };
            match self.authority.again(set) {
                Ok(()) => self.changed(false),
                Err(refusal) => self.tell(path, Verdict::Failed, None, words(&refusal)),
            }
        }
    }
}

fn set_attributes(tree: &Tree, fd: &OwnedFd, sides: Sides, before: &Attributes) -> Checked<()> {
    if sides.has(Sides::MODE) {
        let now = Attributes::of(&Stat::of(fd)?);
        if now.owner != before.owner {
            let (uid, gid) = before.owner;
            chownat(fd, c"", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
        }
        if FileType::from_raw_mode(before.mode) != FileType::Symlink {
            tree.chmod(fd, before.mode & 0o7777)?;
        }
    }
    if sides.has(Sides::TIMES) {
        let time = |(secs, nanos): (i64, u32)| Timespec { tv_sec: secs, tv_nsec: nanos.into() };
        let times = Timestamps { last_access: time(before.atime), last_modification: time(before.mtime) };
        utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
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
