//! The nodes that one session knows: those it was told of and has not forgotten.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use strongroom_protocol::attr;

use crate::tree::Node;

const SHARDS: usize = 16;
/// Most own creations that are remembered; they matter only where there is no `list` right.
const MAX_OWN: usize = 65_536;
/// No state of the tree.
pub(crate) const NEVER: u64 = u64::MAX;

/// A node as a session knows it.
pub(crate) struct Known {
    pub(crate) node: Arc<Node>,
    /// The state of the tree in which the node was found inside its grant.
    pub(crate) seen: u64,
}

struct Slot {
    key: attr::Node,
    known: Option<Known>,
    used: bool,
}

#[derive(Default)]
struct Shard {
    places: HashMap<attr::Node, usize>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    hand: usize,
}

/// What one session knows.
pub(crate) struct Nodes {
    shards: [Mutex<Shard>; SHARDS],
    most_in_shard: usize,
    count: AtomicUsize,
    own: Mutex<Own>,
}

#[derive(Default)]
struct Own {
    set: HashSet<(attr::Node, u64)>,
    order: VecDeque<(attr::Node, u64)>,
}

impl Nodes {
    /// An empty table for at most about `most` nodes.
    pub(crate) fn new(most: usize) -> Nodes {
        Nodes {
            shards: Default::default(),
            most_in_shard: most.div_ceil(SHARDS).max(1),
            count: AtomicUsize::new(0),
            own: Mutex::default(),
        }
    }

    fn shard(&self, key: attr::Node) -> &Mutex<Shard> {
        &self.shards[(key.ino % SHARDS as u64) as usize]
    }

    /// The node, if the session knows it, and when it was last found inside its grant.
    pub(crate) fn get(&self, key: attr::Node) -> Option<Known> {
        let mut shard = self.shard(key).lock();
        let place = *shard.places.get(&key)?;
        let slot = shard.slots.get_mut(place)?;
        slot.used = true;
        slot.known.as_ref().map(|known| Known { node: Arc::clone(&known.node), seen: known.seen })
    }

    /// Makes a node known. `seen`: the state of the tree in which it was found inside its grant; `None`: to be looked at.
    pub(crate) fn learn(&self, key: attr::Node, node: &Arc<Node>, seen: Option<u64>) {
        let mut shard = self.shard(key).lock();
        let known = Known { node: Arc::clone(node), seen: seen.unwrap_or(NEVER) };
        if let Some(place) = shard.places.get(&key).copied() {
            if let Some(slot) = shard.slots.get_mut(place) {
                slot.used = true;
                match &mut slot.known {
                    Some(old) if old.node.id == node.id => old.seen = seen.unwrap_or(old.seen),
                    other => *other = Some(known),
                }
            }
            return;
        }
        let place = self.place(&mut shard);
        if let Some(slot) = shard.slots.get_mut(place) {
            *slot = Slot { key, known: Some(known), used: true };
        }
        shard.places.insert(key, place);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// A free slot; the least recently used node is dropped if there is none (the clock algorithm).
    fn place(&self, shard: &mut Shard) -> usize {
        if let Some(place) = shard.free.pop() {
            return place;
        }
        if shard.slots.len() < self.most_in_shard {
            let key = attr::Node { grant: 0, ino: 0 };
            shard.slots.push(Slot { key, known: None, used: false });
            return shard.slots.len() - 1;
        }
        loop {
            let place = shard.hand % shard.slots.len();
            shard.hand = place + 1;
            let Some(slot) = shard.slots.get_mut(place) else { continue };
            if std::mem::take(&mut slot.used) {
                continue;
            }
            if slot.known.take().is_some() {
                let key = slot.key;
                shard.places.remove(&key);
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
            return place;
        }
    }

    /// Forgets a node.
    pub(crate) fn forget(&self, key: attr::Node) {
        let mut shard = self.shard(key).lock();
        let Some(place) = shard.places.remove(&key) else { return };
        let known = shard.slots.get_mut(place).and_then(|slot| slot.known.take());
        shard.free.push(place);
        self.count.fetch_sub(1, Ordering::Relaxed);
        drop(shard);
        drop(known);
    }

    /// Forgets all.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let old = std::mem::take(&mut *shard.lock());
            self.count.fetch_sub(old.places.len(), Ordering::Relaxed);
        }
        *self.own.lock() = Own::default();
    }

    /// Number of nodes known.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Notes that the session made this object.
    pub(crate) fn made(&self, key: attr::Node, generation: u64) {
        let mut own = self.own.lock();
        if own.set.insert((key, generation)) {
            own.order.push_back((key, generation));
        }
        if own.order.len() > MAX_OWN
            && let Some(oldest) = own.order.pop_front()
        {
            own.set.remove(&oldest);
        }
    }

    /// Whether the session made this object.
    pub(crate) fn is_own(&self, key: attr::Node, generation: u64) -> bool {
        self.own.lock().set.contains(&(key, generation))
    }
}
