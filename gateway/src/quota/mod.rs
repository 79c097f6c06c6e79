//! Quotas: what lies below a path, counted once and kept up to date with every change.
//!
//! A [`Meter`] counts one subtree for all sessions: the sizes of regular files (a file with several names once) and the
//! number of names. The limits belong to grants. Room is taken before a change and given back if the change does not
//! happen ([`Reservation`]), so that concurrent writers never exceed a limit together.

mod count;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use strongroom_protocol::reply::Failure;

use crate::gate::refusal::{Checked, Refusal};
use crate::tree::{Node, Tree};

/// How long one waits for another's count before looking whether a fence waits.
const PATIENCE: Duration = Duration::from_millis(5);

/// Counts one subtree.
pub(crate) struct Meter {
    /// Its root, which is not counted itself.
    node: Arc<Node>,
    bytes: AtomicU64,
    entries: AtomicU64,
    counted: AtomicBool,
    counting: Mutex<()>,
    /// Files with several names anywhere: how many of them are in the subtree.
    shared: Mutex<HashMap<u64, u32>>,
}

/// The meters that a change concerns.
#[derive(Clone, Default)]
pub(crate) struct MeterSet(Option<Arc<[Arc<Meter>]>>);

/// A limit on a subtree.
#[derive(Clone)]
pub(crate) struct Limit {
    pub(crate) meter: Arc<Meter>,
    pub(crate) bytes: Option<u64>,
    pub(crate) files: Option<u64>,
}

/// What a subtree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// Room taken for a change that is about to happen; given back unless kept.
#[must_use]
pub(crate) struct Reservation {
    set: MeterSet,
    usage: Usage,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meter({:?}, {:?})", self.node, self.usage())
    }
}

impl Meter {
    /// A meter that has still to count.
    pub(crate) fn new(node: &Arc<Node>) -> Meter {
        Meter {
            node: Arc::clone(node),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            counted: AtomicBool::new(false),
            counting: Mutex::default(),
            shared: Mutex::default(),
        }
    }

    /// What the subtree holds at present.
    pub(crate) fn usage(&self) -> Usage {
        Usage { bytes: self.bytes.load(Ordering::SeqCst), entries: self.entries.load(Ordering::SeqCst) }
    }

    /// Whether it counts what lies below this directory.
    pub(crate) fn counts(&self, node: &Node) -> bool {
        self.node.id == node.id
    }

    /// Whether the count is made.
    pub(crate) fn is_counted(&self) -> bool {
        self.counted.load(Ordering::SeqCst)
    }

    /// Counts the subtree unless that was done. Changes below wait meanwhile: they ask [`Meter::is_counted`] before
    /// they begin. Must not be called inside a section. A large tree takes long, and whoever asks for it is inside a
    /// turnstile: `over` says whether to leave at once, for a fence.
    ///
    /// # Errors
    /// `Fenced` if that was so; those of reading directories.
    pub(crate) fn ensure_counted(&self, tree: &Tree, over: &dyn Fn() -> bool) -> Checked<()> {
        let _one = loop {
            if let Some(one) = self.counting.try_lock_for(PATIENCE) {
                break one;
            }
            if over() {
                return Err(Failure::Fenced.into());
            }
        };
        if self.is_counted() {
            return Ok(());
        }
        // Changes that began before the meter was attached do not report to it.
        tree.sections.settle();
        let (usage, shared) = count::count(tree, &self.node, over)?;
        self.bytes.store(usage.bytes, Ordering::SeqCst);
        self.entries.store(usage.entries, Ordering::SeqCst);
        *self.shared.lock() = shared;
        self.counted.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Whether a file with several names has one in the subtree.
    pub(crate) fn has_shared(&self, ino: u64) -> bool {
        self.shared.lock().contains_key(&ino)
    }

    /// Notes a further name of a file in the subtree; returns whether it is the first there. `one_more`: the file had
    /// one name until now, and it was here.
    fn share(&self, ino: u64, had_one_here: bool) -> bool {
        let mut shared = self.shared.lock();
        let names = shared.entry(ino).or_insert(u32::from(had_one_here));
        *names += 1;
        *names == 1
    }

    /// Notes that a name of a file with several is gone; returns whether it was the last in the subtree.
    fn unshare(&self, ino: u64) -> bool {
        let mut shared = self.shared.lock();
        let Some(names) = shared.get_mut(&ino) else { return false };
        *names = names.saturating_sub(1);
        let last = *names == 0;
        if last {
            shared.remove(&ino);
        }
        last
    }

    fn take(&self, usage: Usage, limits: &[Limit]) -> Checked<()> {
        let limit = limits.iter().find(|limit| std::ptr::eq(&*limit.meter, self));
        let most_bytes = limit.and_then(|limit| limit.bytes).unwrap_or(u64::MAX);
        let most_entries = limit.and_then(|limit| limit.files).unwrap_or(u64::MAX);
        add_up_to(&self.entries, usage.entries, most_entries)?;
        let bytes = add_up_to(&self.bytes, usage.bytes, most_bytes);
        if bytes.is_err() {
            subtract(&self.entries, usage.entries);
        }
        bytes
    }

    fn give_back(&self, usage: Usage) {
        subtract(&self.bytes, usage.bytes);
        subtract(&self.entries, usage.entries);
    }
}

fn add_up_to(counter: &AtomicU64, more: u64, most: u64) -> Checked<()> {
    if more == 0 {
        return Ok(());
    }
    let add = |now: u64| now.checked_add(more).filter(|sum| *sum <= most);
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).map(|_| ()).map_err(|_| Refusal::QUOTA)
}

fn subtract(counter: &AtomicU64, less: u64) {
    // Saturating: what an administrator removed by hand may be counted twice.
    let result =
        counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| Some(now.saturating_sub(less)));
    debug_assert!(result.is_ok());
}

impl FromIterator<Arc<Meter>> for MeterSet {
    fn from_iter<I: IntoIterator<Item = Arc<Meter>>>(meters: I) -> Self {
        let list: Vec<_> = meters.into_iter().collect();
        MeterSet((!list.is_empty()).then(|| list.into()))
    }
}

impl MeterSet {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Meter>> {
        self.0.iter().flat_map(|list| list.iter())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn has(&self, meter: &Arc<Meter>) -> bool {
        self.iter().any(|other| Arc::ptr_eq(other, meter))
    }

    /// Those that are not in the other set.
    pub(crate) fn without(&self, other: &MeterSet) -> MeterSet {
        self.iter().filter(|meter| !other.has(meter)).cloned().collect()
    }

    /// Whether both hold the same meters.
    pub(crate) fn same(&self, other: &MeterSet) -> bool {
        self.iter().all(|meter| other.has(meter)) && other.iter().all(|meter| self.has(meter))
    }

    /// Makes sure that all are counted, before a change begins.
    ///
    /// # Errors
    /// [`Refusal::Count`] with one that is not.
    pub(crate) fn ready(&self) -> Checked<()> {
        match self.iter().find(|meter| !meter.is_counted()) {
            Some(meter) => Err(Refusal::Count(Arc::clone(meter))),
            None => Ok(()),
        }
    }

    /// Takes room in all of them, or in none.
    ///
    /// # Errors
    /// `Quota` if a limit would be exceeded, [`Refusal::Count`] if one is not counted yet.
    pub(crate) fn reserve(&self, limits: &[Limit], bytes: u64, entries: u64) -> Checked<Reservation> {
        self.ready()?;
        let usage = Usage { bytes, entries };
        for (n, meter) in self.iter().enumerate() {
            if let Err(full) = meter.take(usage, limits) {
                self.iter().take(n).for_each(|meter| meter.give_back(usage));
                return Err(full);
            }
        }
        Ok(Reservation { set: self.clone(), usage })
    }

    /// Gives room back after something was removed or cut.
    pub(crate) fn release(&self, bytes: u64, entries: u64) {
        self.iter().for_each(|meter| meter.give_back(Usage { bytes, entries }));
    }

    /// Notes another name of a file in these subtrees. `before`: the meters of its only name until now, if it had one.
    pub(crate) fn linked(&self, ino: u64, before: Option<&MeterSet>) {
        for meter in before.iter().flat_map(|set| set.iter()).filter(|meter| !self.has(meter)) {
            meter.shared.lock().insert(ino, 1);
        }
        for meter in self.iter() {
            meter.share(ino, before.is_some_and(|set| set.has(meter)));
        }
    }

    /// Notes that one of several names of a file is gone from these subtrees; returns the meters that it has left.
    pub(crate) fn unlinked(&self, ino: u64) -> MeterSet {
        self.iter().filter(|meter| meter.unshare(ino)).cloned().collect()
    }

    /// Notes that a file has one name left, which counts like any other.
    pub(crate) fn alone(&self, ino: u64) {
        self.iter().for_each(|meter| {
            meter.shared.lock().remove(&ino);
        });
    }
}

impl Reservation {
    /// The change has happened.
    pub(crate) fn keep(mut self) {
        self.set = MeterSet::default();
    }

    /// The change has happened, with fewer bytes.
    pub(crate) fn keep_bytes(mut self, bytes: u64) {
        self.usage = Usage { bytes: self.usage.bytes.saturating_sub(bytes), entries: 0 };
        // The rest is given back by the drop.
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.set.is_empty() && self.usage != Usage::default() {
            self.set.release(self.usage.bytes, self.usage.entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::mpsc;

    use super::*;

    fn tree() -> (tempfile::TempDir, Arc<Tree>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        (0..100).for_each(|n| std::fs::write(dir.path().join(format!("d/{n}")), b"xy").unwrap());
        let tree = Tree::open(dir.path(), 16, false).unwrap();
        (dir, tree)
    }

    fn is_fenced(result: Checked<()>) -> bool {
        matches!(result, Err(Refusal::Failed(Failure::Fenced)))
    }

    #[test]
    fn a_fence_ends_a_count_and_another_begins_anew() {
        let (_dir, tree) = tree();
        let meter = Meter::new(&tree.resolve([].into_iter()).unwrap().0);
        let names = Cell::new(0);
        let over = || names.replace(names.get() + 1) == 50;
        assert!(is_fenced(meter.ensure_counted(&tree, &over)));
        assert_eq!(names.get(), 51, "it is asked at every name");
        assert!(!meter.is_counted());
        meter.ensure_counted(&tree, &|| false).unwrap();
        assert_eq!(meter.usage(), Usage { bytes: 200, entries: 101 });
    }

    #[test]
    fn a_fence_does_not_wait_for_the_count_of_another_session() {
        let (_dir, tree) = tree();
        let meter = Arc::new(Meter::new(&tree.resolve([].into_iter()).unwrap().0));
        let ((begun, has_begun), (go, may_go)) = (mpsc::channel(), mpsc::channel::<()>());
        let other = {
            let (tree, meter) = (Arc::clone(&tree), Arc::clone(&meter));
            std::thread::spawn(move || {
                let over = || {
                    // The first time only; then nobody listens, or waits, any more.
                    if begun.send(()).is_ok() {
                        let _ = may_go.recv();
                    }
                    false
                };
                meter.ensure_counted(&tree, &over).is_ok()
            })
        };
        has_begun.recv().unwrap();
        assert!(is_fenced(meter.ensure_counted(&tree, &|| true)));
        assert!(!meter.is_counted());
        drop((has_begun, go));
        assert!(other.join().unwrap());
        assert!(meter.is_counted());
    }
}
