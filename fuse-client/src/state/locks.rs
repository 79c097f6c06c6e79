//! The locks that processes of this guest hold, so that they can be claimed again after the gateway restarted, and so that
//! closing a file costs no message where none was ever taken. The gateway's table decides; this one only remembers.

use std::collections::HashMap;

use strongroom_protocol::attr::{Lock, LockKind, Node};

/// A lock, and the open file through which it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// The open file.
    pub file: u64,
    /// The lock.
    pub lock: Lock,
}

#[derive(Debug, Default)]
struct Owned {
    held: Vec<HeldLock>,
}

/// Locks by node and owner.
#[derive(Debug, Default)]
pub struct Locks {
    owners: HashMap<(Node, u64), Owned>,
}

impl Locks {
    /// Notes that an owner asks for a lock: from now on, until its locks are dropped, closing must tell the gateway.
    pub fn asked(&mut self, node: Node, owner: u64) {
        self.owners.entry((node, owner)).or_default();
    }

    /// Whether an owner may have locks on a node.
    pub fn may_have(&self, node: Node, owner: u64) -> bool {
        self.owners.contains_key(&(node, owner))
    }

    /// Notes a lock had, changed or released (fcntl(2): the new kind replaces what the owner has in the range).
    pub fn set(&mut self, node: Node, file: u64, lock: Lock) {
        let owned = self.owners.entry((node, lock.owner)).or_default();
        let mut kept = Vec::with_capacity(owned.held.len() + 1);
        for held in owned.held.drain(..) {
            let old = held.lock;
            if old.end < lock.start || old.start > lock.end {
                kept.push(held);
                continue;
            }
            if old.start < lock.start {
                kept.push(HeldLock { lock: Lock { end: lock.start - 1, ..old }, ..held });
            }
            if old.end > lock.end {
                kept.push(HeldLock { lock: Lock { start: lock.end + 1, ..old }, ..held });
            }
        }
        if lock.kind != LockKind::Unlock {
            kept.push(HeldLock { file, lock });
        }
        owned.held = kept;
    }

    /// Drops all locks of an owner on a node (a file descriptor was closed).
    pub fn drop_owner(&mut self, node: Node, owner: u64) {
        self.owners.remove(&(node, owner));
    }

    /// The locks taken through an open file.
    pub fn through(&self, file: u64) -> Vec<Lock> {
        self.owners
            .values()
            .flat_map(|owned| owned.held.iter().filter(|held| held.file == file).map(|held| held.lock))
            .collect()
    }

    /// Drops the locks taken through an open file, which are lost or released; returns whether there were any.
    pub fn drop_through(&mut self, file: u64) -> bool {
        let mut any = false;
        for owned in self.owners.values_mut() {
            let before = owned.held.len();
            owned.held.retain(|held| held.file != file);
            any |= owned.held.len() < before;
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Node = Node { grant: 0, ino: 3 };

    fn lock(start: u64, end: u64, kind: LockKind) -> Lock {
        Lock { owner: 7, pid: 1, start, end, kind }
    }

    fn ranges(locks: &Locks) -> Vec<(u64, u64, LockKind)> {
        let mut all: Vec<_> = locks.through(1).iter().map(|lock| (lock.start, lock.end, lock.kind)).collect();
        all.sort_unstable_by_key(|(start, ..)| *start);
        all
    }

    #[test]
    fn ranges_split_and_change_kind() {
        use LockKind::{Exclusive, Shared, Unlock};
        let mut locks = Locks::default();
        locks.set(NODE, 1, lock(0, u64::MAX, Shared));
        locks.set(NODE, 1, lock(10, 19, Exclusive));
        assert_eq!(ranges(&locks), [(0, 9, Shared), (10, 19, Exclusive), (20, u64::MAX, Shared)]);
        locks.set(NODE, 1, lock(5, 14, Unlock));
        assert_eq!(ranges(&locks), [(0, 4, Shared), (15, 19, Exclusive), (20, u64::MAX, Shared)]);
        locks.set(NODE, 1, lock(0, u64::MAX, Unlock));
        assert_eq!(ranges(&locks), []);
        assert!(locks.may_have(NODE, 7), "until the owner closes");
        locks.drop_owner(NODE, 7);
        assert!(!locks.may_have(NODE, 7));
    }

    #[test]
    fn asking_is_enough_for_closing_to_tell_the_gateway() {
        let mut locks = Locks::default();
        assert!(!locks.may_have(NODE, 7));
        locks.asked(NODE, 7);
        assert!(locks.may_have(NODE, 7));
        assert!(!locks.drop_through(1));
        locks.set(NODE, 1, lock(0, 0, LockKind::Shared));
        assert!(locks.drop_through(1));
    }
}
