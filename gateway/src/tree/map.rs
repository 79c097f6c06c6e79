//! Which nodes there are, by inode number.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use super::node::Node;

// Arrays have `Default` up to 32 members.
const SHARDS: usize = 32;

/// With the node's own number: at its end a node may not be where the reference points any more.
type Shard = HashMap<u64, (u64, Weak<Node>)>;

/// All nodes that anybody knows. Holds none alive: a node lives as long as a session, a handle or a child needs it.
#[derive(Default)]
pub(crate) struct NodeMap {
    shards: [Mutex<Shard>; SHARDS],
}

impl NodeMap {
    fn shard(&self, ino: u64) -> MutexGuard<'_, Shard> {
        // Neighbouring files have neighbouring numbers, so the low bits spread well.
        self.shards[(ino % SHARDS as u64) as usize].lock()
    }

    /// The node of an object if there is one.
    pub(crate) fn get(&self, ino: u64, generation: u64) -> Option<Arc<Node>> {
        let node = self.shard(ino).get(&ino).and_then(|(_, node)| node.upgrade());
        node.filter(|node| node.generation == generation)
    }

    /// The node of an object, made by `make` if there is none. A node of a former object with the same number is
    /// replaced: it stays with those who hold it.
    pub(crate) fn get_or_insert(
        &self,
        ino: u64,
        generation: u64,
        make: impl FnOnce() -> Arc<Node>,
    ) -> (Arc<Node>, bool) {
        let mut shard = self.shard(ino);
        let old = shard.get(&ino).and_then(|(_, node)| node.upgrade());
        match old {
            Some(node) if node.generation == generation && !node.is_gone() => (node, false),
            other => {
                let node = make();
                shard.insert(ino, (node.id, Arc::downgrade(&node)));
                // Its own end takes this lock.
                drop(shard);
                drop(other);
                (node, true)
            }
        }
    }

    /// Takes out a node that has come to its end.
    pub(super) fn forget(&self, node: &Node) {
        let mut shard = self.shard(node.ino);
        if shard.get(&node.ino).is_some_and(|(id, _)| *id == node.id) {
            shard.remove(&node.ino);
        }
    }

    /// Number of nodes.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}
