//! Changes of names: what the tree learns when entries appear, vanish or move.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::node::{Dir, Link, Node};
use super::{Stat, Tree, climb};
use crate::gate::refusal::{Checked, Refusal};
use crate::quota::{Meter, MeterSet};

/// The exclusive use of one or two directories' names. While it lasts, no name looked up there meanwhile is noted.
pub(crate) struct Change<'a> {
    dirs: [Option<&'a Dir>; 2],
    _names: [Option<MutexGuard<'a, ()>>; 2],
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        for dir in self.dirs.iter().flatten() {
            let _commit = dir.commit.lock();
            dir.version.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Tree {
    /// Begins a change of names in one or two directories, which may be the same.
    pub(crate) fn change<'a>(&self, one: &'a Node, other: Option<&'a Node>) -> Checked<Change<'a>> {
        let not_a_dir = || Refusal::errno(rustix::io::Errno::NOTDIR);
        let (first, second) = match other.filter(|other| other.id != one.id) {
            Some(other) if other.id < one.id => (other, Some(one)),
            other => (one, other),
        };
        let first = first.dir().ok_or_else(not_a_dir)?;
        let second = second.map(|node| node.dir().ok_or_else(not_a_dir)).transpose()?;
        let dirs = [Some(first), second];
        let names = dirs.map(|dir| dir.map(|dir| dir.names.lock()));
        // As the kernel answers for a directory that was removed, which here may live on in the vault.
        if one.is_gone() || other.is_some_and(Node::is_gone) {
            return Err(Refusal::errno(rustix::io::Errno::NOENT));
        }
        for dir in dirs.iter().flatten() {
            let _commit = dir.commit.lock();
            dir.version.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Change { dirs, _names: names })
    }

    /// Begins a change of names in a directory that is not among those of another change under way; `None` if somebody
    /// else changes it at present.
    pub(crate) fn try_change<'a>(&self, one: &'a Node) -> Checked<Option<Change<'a>>> {
        let Some(dir) = one.dir() else { return Err(Refusal::errno(rustix::io::Errno::NOTDIR)) };
        let Some(names) = dir.names.try_lock() else { return Ok(None) };
        let _commit = dir.commit.lock();
        dir.version.fetch_add(1, Ordering::SeqCst);
        Ok(Some(Change { dirs: [Some(dir), None], _names: [Some(names), None] }))
    }

    /// Notes that an object without names has one again.
    pub(crate) fn returned(&self, parent: &Arc<Node>, name: &[u8], stat: &Stat) -> (Arc<Node>, bool) {
        let old = self.known(stat).filter(|node| node.is_gone());
        let Some(node) = old else { return (self.note(parent, name, stat), false) };
        let (charged, _kept) = {
            let mut place = node.place.write();
            place.gone = false;
            (place.orphan.take(), place.kept.take())
        };
        if let Some((meters, size)) = &charged {
            meters.release(*size, 0);
        }
        self.put(&node, vec![Link { parent: Arc::clone(parent), name: name.into() }]);
        (node, true)
    }

    /// Notes that `name` in `parent` is this object. The caller holds a [`Change`] of the directory, or its commit lock
    /// at an unchanged version.
    pub(crate) fn note(&self, parent: &Arc<Node>, name: &[u8], stat: &Stat) -> Arc<Node> {
        let link = Link { parent: Arc::clone(parent), name: name.into() };
        let (node, new) = self.map.get_or_insert(stat.ino(), stat.generation(), || {
            let map = Arc::downgrade(&self.map);
            Arc::new(Node::new(stat.ino(), stat.generation(), stat.kind(), Some(link.clone()), map))
        });
        if new {
            // As sure as the way to its parent is.
            node.confirmed.store(parent.confirmed.load(Ordering::Relaxed), Ordering::Relaxed);
        } else if node.is_dir() {
            if !node.has_link(parent, name) && node.id != self.root.id {
                // Somebody else than the gateway moved it.
                self.put(&node, vec![link]);
            }
        } else {
            let mut place = node.place.write();
            if !place.links.iter().any(|known| known.is(parent, name)) {
                place.links.push(link);
            }
        }
        node
    }

    fn put(&self, node: &Node, links: Vec<Link>) {
        let _shape = self.shape.write();
        let old = std::mem::replace(&mut node.place.write().links, links);
        node.moves.fetch_add(1, Ordering::SeqCst);
        if node.is_dir() {
            self.epoch.fetch_add(1, Ordering::SeqCst);
        }
        drop(_shape);
        drop(old);
    }

    /// Notes that a name is no more. `last`: it was the only one, so the object lives on through handles only.
    pub(crate) fn removed(&self, node: &Arc<Node>, parent: &Node, name: &[u8], last: bool) {
        let old = {
            let mut place = node.place.write();
            let at = place.links.iter().position(|link| link.is(parent, name));
            if last {
                // The last place decides about what handles may still do.
                let kept = at.map(|at| place.links.swap_remove(at));
                let rest = std::mem::replace(&mut place.links, kept.into_iter().collect());
                place.gone = true;
                rest
            } else {
                at.map(|at| place.links.swap_remove(at)).into_iter().collect()
            }
        };
        node.moves.fetch_add(1, Ordering::SeqCst);
        if let Some(dir) = node.dir() {
            self.epoch.fetch_add(1, Ordering::SeqCst);
            if last && dir.meter.get().is_some() {
                // An empty directory has nothing to count any more.
                self.meters.lock().retain(|meter| !meter.counts(node));
            }
        }
        drop(old);
    }

    /// Notes that a name does not lead to the node any more, through no doing of the gateway.
    pub(super) fn lose(&self, node: &Arc<Node>, parent: &Node, name: &[u8]) {
        self.removed(node, parent, name, false);
    }

    /// Notes a rename.
    pub(crate) fn moved(&self, node: &Arc<Node>, from: (&Node, &[u8]), to: (&Arc<Node>, &[u8])) {
        let link = Link { parent: Arc::clone(to.0), name: to.1.into() };
        let mut links = node.place.read().links.clone();
        if node.is_dir() {
            links.clear();
        } else {
            links.retain(|known| !known.is(from.0, from.1) && !known.is(to.0, to.1));
        }
        // In front: the name that is surely right.
        links.insert(0, link);
        self.put(node, links);
    }

    /// Whether moving a node from one directory to another takes it, or what lies below, out of a live grant or into one.
    pub(crate) fn crosses(&self, node: &Node, from: &Arc<Node>, to: &Arc<Node>) -> bool {
        let _shape = self.shape.read();
        if from.id != to.id {
            let roots = |dir: &Arc<Node>| -> Vec<u64> {
                let is_root = |at: &Arc<Node>| at.dir().is_some_and(|d| d.roots.load(Ordering::SeqCst) > 0);
                climb(dir).filter(is_root).map(|at| at.id).collect()
            };
            if roots(from) != roots(to) {
                return true;
            }
        }
        node.is_dir() && {
            let roots = self.roots.lock();
            roots.values().any(|(root, _)| climb(root).any(|at| at.id == node.id))
        }
    }

    /// The meters that count what lies in a directory.
    pub(crate) fn meters_at(&self, dir: &Arc<Node>) -> MeterSet {
        if self.metered.load(Ordering::SeqCst) == 0 {
            return MeterSet::default();
        }
        let epoch = self.epoch();
        let Some(cache) = dir.dir().map(|dir| &dir.meters) else { return MeterSet::default() };
        if let Some((at, meters)) = &*cache.read()
            && *at == epoch
        {
            return meters.clone();
        }
        let meters: MeterSet = {
            let _shape = self.shape.read();
            climb(dir).filter_map(|at| at.dir().and_then(|dir| dir.meter.get().cloned())).collect()
        };
        // An answer that is older than a move is not kept as a newer one: the epoch was read before.
        *cache.write() = Some((epoch, meters.clone()));
        meters
    }

    /// The meters that count a node: those of all its names, or what an open object without names is charged to.
    pub(crate) fn meters_of(&self, node: &Node, stat: &Stat) -> MeterSet {
        if self.metered.load(Ordering::SeqCst) == 0 {
            return MeterSet::default();
        }
        let parents: Vec<Arc<Node>> = {
            let place = node.place.read();
            if let Some((meters, _)) = &place.orphan {
                return meters.clone();
            }
            if place.gone {
                return MeterSet::default();
            }
            place.links.iter().map(|link| Arc::clone(&link.parent)).collect()
        };
        if self.links(stat) > 1 {
            // Names that nobody has asked for count too.
            let all: Vec<Arc<Meter>> = self.meters.lock().clone();
            return all.into_iter().filter(|meter| meter.has_shared(stat.ino())).collect();
        }
        parents.first().map(|parent| self.meters_at(parent)).unwrap_or_default()
    }

    /// All meters.
    pub(crate) fn all_meters(&self) -> MeterSet {
        if self.metered.load(Ordering::SeqCst) == 0 {
            return MeterSet::default();
        }
        self.meters.lock().iter().cloned().collect()
    }

    /// Begins to count what lies below a directory; the count itself is still to be made.
    pub(crate) fn attach_meter(&self, node: &Arc<Node>) -> Option<Arc<Meter>> {
        let dir = node.dir()?;
        let mut all = self.meters.lock();
        if let Some(meter) = dir.meter.get() {
            return Some(Arc::clone(meter));
        }
        let meter = Arc::clone(dir.meter.get_or_init(|| Arc::new(Meter::new(node))));
        all.push(Arc::clone(&meter));
        self.metered.store(all.len(), Ordering::SeqCst);
        // Answers of `meters_at` from before are void.
        self.epoch.fetch_add(1, Ordering::SeqCst);
        Some(meter)
    }
}
