//! Putting contents back: bytes that were overwritten or cut off, and the cutting of what was added.
//!
//! Steps that follow each other and are about contents only are taken together, each object by one of a few threads and
//! newest first: what goes to one object does not touch another.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{OFlags, ftruncate};
use rustix::io::Errno;

use super::authority::Authority;
use super::carry::{Carry, replace_all, words};
use super::place::Spot;
use super::plan::Verdict;
use super::record::{Object, Saved, Sides, What};
use super::runs::RunId;
use super::vault::{copy_all, write_at};
use super::{OWN_NAME, Undo};
use crate::engine::Shared;
use crate::gate::refusal::Checked;
use crate::leases::Change;
use crate::store::Reach;
use crate::tree::{Node, Stat};

/// Objects that are taken together; as many files are open.
const MOST_OBJECTS: usize = 128;
/// Steps that are taken together.
const MOST_STEPS: usize = 4096;
/// Threads that put contents back.
const MOST_THREADS: usize = 4;
/// Fewer objects than this are not worth a thread.
const LEAST_OBJECTS: usize = 4;

/// Contents that are about to be put back.
pub(super) struct Contents<'a> {
    /// What the other threads act by.
    others: Vec<Authority<'a>>,
    waiting: Vec<Target<'a>>,
    steps: usize,
}

/// An object whose contents are put back.
struct Target<'a> {
    object: Object,
    path: Vec<u8>,
    node: Arc<Node>,
    file: OwnedFd,
    pieces: Vec<Piece<'a>>,
}

/// What one record has kept.
struct Piece<'a> {
    application: &'a str,
    seq: u64,
    size: Option<u64>,
    saved: &'a Saved,
}

impl<'a> Contents<'a> {
    pub(super) fn new(engine: &'a Shared, undo: &'a Undo, run: RunId) -> Contents<'a> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let others = (1..threads.min(MOST_THREADS)).map(|_| Authority::new(engine, undo, run)).collect();
        Contents { others, waiting: vec![], steps: 0 }
    }
}

impl<'a> Carry<'a> {
    /// Puts what a record has kept of an object's contents back, now or with those that follow.
    pub(super) fn restore(
        &mut self,
        application: &'a str,
        seq: u64,
        object: Object,
        size: Option<u64>,
        saved: &'a Saved,
    ) {
        if self.missing.contains(&object) {
            self.step_done(seq);
            return;
        }
        if let Some((sides, _)) = self.conflict(object)
            && sides.has(Sides::CONTENT)
        {
            let first = self.beside.entry(object).or_insert(seq);
            *first = (*first).min(seq);
            self.step_done(seq);
            return;
        }
        if self.dry {
            let there = match saved {
                Saved::Range { .. } | Saved::Clone => self.undo().vault.stat(application, seq).is_ok(),
                Saved::Nothing | Saved::Bytes { .. } => true,
            };
            self.tell_contents(self.object_path(object), there);
            return;
        }
        let piece = Piece { application, seq, size, saved };
        // What follows is mostly about the last one.
        let known = self.contents.waiting.iter().rposition(|target| target.object == object);
        if let Some(target) = known.and_then(|place| self.contents.waiting.get_mut(place)) {
            target.pieces.push(piece);
        } else {
            let path = self.object_path(object);
            match self.reach(object, OFlags::RDWR) {
                Ok(Some((node, file))) => {
                    let target = Target { object, path, node, file, pieces: vec![piece] };
                    self.contents.waiting.push(target);
                }
                Ok(None) => {
                    self.missing.insert(object);
                    if !self.is_taken_away(object) {
                        self.tell(path, Verdict::Kept, None, "somebody else deleted it since");
                    }
                    self.step_done(seq);
                    return;
                }
                Err(refusal) => {
                    self.tell(path, Verdict::Failed, None, words(&refusal));
                    return;
                }
            }
        }
        self.contents.steps += 1;
        if self.contents.waiting.len() >= MOST_OBJECTS || self.contents.steps >= MOST_STEPS {
            self.put_contents();
        }
    }

    pub(super) fn step_done(&self, seq: u64) {
        if !self.dry {
            self.undo().later(&self.authority.actor, What::Done { record: seq });
        }
    }

    fn tell_contents(&mut self, path: Vec<u8>, kept: bool) {
        if kept {
            self.tell(path, Verdict::Restored, None, "");
        } else {
            self.tell(path, Verdict::Expired, None, "what was kept of it is forgotten");
        }
    }

    /// Puts back what waits.
    pub(super) fn put_contents(&mut self) {
        let targets = std::mem::take(&mut self.contents.waiting);
        self.contents.steps = 0;
        if targets.is_empty() {
            return;
        }
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Vec<Checked<bool>>>> = targets.iter().map(|_| Mutex::default()).collect();
        let work = |authority: &Authority<'_>| {
            while let Some((target, results)) = {
                let place = next.fetch_add(1, Ordering::Relaxed);
                targets.get(place).zip(results.get(place))
            } {
                // In the order of the steps: the oldest comes last, and stays.
                *results.lock() = target.pieces.iter().map(|piece| authority.put(target, piece)).collect();
            }
        };
        std::thread::scope(|scope| {
            if targets.len() >= LEAST_OBJECTS {
                for other in &mut self.contents.others {
                    let work = &work;
                    // Without it, the work is done by those that are there.
                    let _ = std::thread::Builder::new()
                        .name("undo-contents".into())
                        .spawn_scoped(scope, move || work(other));
                }
            }
            work(&self.authority);
        });
        for (target, results) in targets.iter().zip(results) {
            for (piece, result) in target.pieces.iter().zip(results.into_inner()) {
                match result {
                    Ok(kept) => {
                        self.step_done(piece.seq);
                        self.tell_contents(target.path.clone(), kept);
                    }
                    Err(refusal) => {
                        self.tell(target.path.clone(), Verdict::Failed, None, words(&refusal));
                    }
                }
            }
        }
        self.changed(false);
    }

    /// Opens an object, by its name or in the vault: it may have been changed after it was deleted, by a handle.
    pub(super) fn reach(&self, object: Object, flags: OFlags) -> Checked<Option<(Arc<Node>, OwnedFd)>> {
        if let Ok(node) = self.places.find(self.tree(), object) {
            let (file, _) = self.tree().open_node(&node, flags)?;
            return Ok(Some((node, file)));
        }
        for spot in self.places.of(object) {
            let Spot::Kept(application, seq) = spot else { continue };
            let former = **application == *OWN_NAME && *seq <= self.filter.until_us;
            if former && self.filter.application != OWN_NAME {
                // What a former undo has taken away stays as it is.
                continue;
            }
            match self.undo().vault.open_kept(application, *seq, flags) {
                Ok(file) => {
                    let stat = Stat::of(&file)?;
                    if Object::told(&stat) == object {
                        return Ok(Some((self.tree().known_or_detached(&stat), file)));
                    }
                }
                Err(Errno::NOENT | Errno::ISDIR | Errno::LOOP | Errno::NXIO) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Ok(None)
    }
}

impl Authority<'_> {
    /// Whether the bytes were still kept.
    fn put(&self, target: &Target<'_>, piece: &Piece<'_>) -> Checked<bool> {
        self.again(|| self.put_once(target, piece))
    }

    fn put_once(&self, target: &Target<'_>, piece: &Piece<'_>) -> Checked<bool> {
        let Target { node, file, .. } = target;
        let Piece { application, seq, size, saved } = *piece;
        let capture = Reach::undo(self);
        let _size = node.size.lock();
        self.changing(&[(node, Change::All { data: true, open: false })])?;
        let stat = Stat::of(file)?;
        let open_kept = || match self.undo.vault.open_kept(application, seq, OFlags::RDONLY) {
            Err(Errno::NOENT) => Ok(None),
            other => other.map(Some),
        };
        match saved {
            Saved::Nothing => {}
            Saved::Bytes { offset, bytes } => {
                capture.content(node, file, &stat, *offset, offset + bytes.len() as u64)?;
                write_at(file, bytes, *offset)?;
            }
            Saved::Range { offset, length } => {
                let Some(kept) = open_kept()? else { return Ok(false) };
                capture.content(node, file, &stat, *offset, offset + length)?;
                copy_all(&kept, 0, file, *offset, *length)?;
            }
            Saved::Clone => {
                let Some(kept) = open_kept()? else { return Ok(false) };
                capture.content(node, file, &stat, 0, u64::MAX)?;
                replace_all(&kept, file)?;
            }
        }
        let now = Stat::of(file)?;
        if let Some(size) = size.filter(|size| *size != now.size()) {
            capture.resize(node, file, &now, size)?;
            ftruncate(file, size)?;
        }
        let after = Stat::of(file)?.size();
        self.resized(node, stat.size(), after);
        let meters = self.tree().meters_of(node, &stat);
        if after > stat.size() {
            meters.reserve(&[], after - stat.size(), 0)?.keep();
        } else {
            meters.release(stat.size() - after, 0);
        }
        Ok(true)
    }
}
