//! The locks that processes of this guest hold: so that they can be claimed again after the gateway restarted, so that closing a
//! file costs no message where none was ever taken, and so that the client can answer for those of a file that nobody else
//! has anything of ([ADR 18](../../../docs/adr/0018-locks-kept.md)).
//!
//! # Rules
//! - The gateway's table decides, but for files whose locks are *kept* here: it has said so, and gives nobody else one before it
//!   has been told ([`crate::telling`]) what there is.
//! - Locks are kept from an answer on only if no other request about locks of the file was under way since this one was made:
//!   whatever the gateway does with its table afterwards, this one would not know of it.
//! - While the gateway is being told, nothing is answered for the file.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use strongroom_protocol::attr::{Lock, LockKind, Node};

use super::Then;

/// Most locks held in the mount with which locks are kept: they must find room at the gateway (`KEPT_ROOM` there).
const MOST_KEPT: usize = 256;

/// How long after the gateway was asked locks are kept that are in use. Then it is asked again: one that was restarted while the
/// connection was silent has forgotten, and waits for claims only so long (`lock-grace`, 10 s).
const LONGEST: Duration = Duration::from_secs(3);

/// A lock, and the open file through which it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// The open file.
    pub file: u64,
    /// The lock.
    pub lock: Lock,
}

/// Who answers for the locks of a file.
#[derive(Default)]
enum Stage {
    #[default]
    Gateway,
    Here(Kept),
    /// The gateway is being told; these wait for the end of that.
    Telling(Vec<Waiting>),
}

struct Kept {
    /// When the gateway was asked last.
    asked: Instant,
    /// Owners whose locks the gateway knows, as they were when it said that they may be kept.
    known: HashSet<u64>,
    /// Owners whose locks have changed since.
    changed: HashSet<u64>,
    /// Something was answered since the last look.
    used: bool,
    /// The last open file, which is being closed; 0: none is.
    closing: u64,
}

struct Waiting {
    pid: u32,
    then: Then,
}

#[derive(Default)]
struct FileLocks {
    owners: HashMap<u64, Vec<HeldLock>>,
    /// Requests about locks that the gateway has not answered.
    asked: usize,
    /// They were ever more than one since there was none.
    crowded: bool,
    stage: Stage,
}

/// Who answers a request about a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// It is done.
    Done,
    /// Another owner of this guest has a lock that stands against it.
    Conflict,
    /// The gateway, after it was told what there is.
    Tell,
    /// The gateway.
    Gateway,
}

/// Who answers the closing of a descriptor, or of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// For its locks it is done.
    Done,
    /// The gateway, after it was told what there is.
    Tell,
    /// The gateway; [`Locks::answered`] is to be called.
    Gateway,
}

/// What is to be done to tell the gateway.
pub enum Telling {
    /// Nothing; go on.
    Nothing(Then),
    /// Somebody tells it; it will be gone on with.
    Joined,
    /// Tell it this, then call [`Locks::told`].
    Begin(Vec<HeldLock>),
}

/// Locks by node and owner.
#[derive(Default)]
pub struct Locks {
    files: HashMap<Node, FileLocks>,
    held: usize,
}

impl FileLocks {
    fn begin(&mut self) {
        self.asked += 1;
        self.crowded |= self.asked > 1;
    }

    fn conflict(&self, lock: &Lock) -> Option<Lock> {
        let stands = |held: &&HeldLock| {
            let old = held.lock;
            let kinds = old.kind == LockKind::Exclusive || lock.kind == LockKind::Exclusive;
            old.owner != lock.owner && kinds && old.start <= lock.end && lock.start <= old.end
        };
        let all = self.owners.values().flatten();
        all.filter(stands).map(|held| held.lock).min_by_key(|old| (old.start, old.owner))
    }

    fn kept(&mut self) -> Option<&mut Kept> {
        match &mut self.stage {
            Stage::Here(kept) => Some(kept),
            _ => None,
        }
    }

    /// What the gateway must be told so that it knows what this one does. What is held is told before what is not, so that it
    /// is never missing there.
    fn steps(&self, kept: &Kept) -> Vec<HeldLock> {
        let mut steps = vec![];
        for owner in &kept.changed {
            let mut held = self.owners.get(owner).cloned().unwrap_or_default();
            held.sort_unstable_by_key(|held| held.lock.start);
            steps.extend(held.iter().copied());
            if !kept.known.contains(owner) {
                continue;
            }
            let mut from = Some(0);
            let free = |start, end| {
                let lock = Lock { owner: *owner, pid: 0, start, end, kind: LockKind::Unlock };
                HeldLock { file: kept.closing, lock }
            };
            for held in &held {
                let Some(start) = from else { break };
                if start < held.lock.start {
                    steps.push(free(start, held.lock.start - 1));
                }
                from = held.lock.end.checked_add(1);
            }
            steps.extend(from.map(|start| free(start, u64::MAX)));
        }
        steps
    }
}

impl Locks {
    /// Notes that the gateway is asked about locks of an owner: from now on, until its locks are dropped, closing must tell it.
    fn ask(&mut self, node: Node, owner: u64) {
        let file = self.files.entry(node).or_default();
        file.owners.entry(owner).or_default();
        file.begin();
    }

    /// The gateway has answered. If it never does (nobody waited any more), locks of the file are not kept again. Returns whether
    /// no other request was under way at any time meanwhile: only then is it known in which order they were carried out.
    pub fn answered(&mut self, node: Node) -> bool {
        let Some(file) = self.files.get_mut(&node) else { return false };
        file.asked = file.asked.saturating_sub(1);
        let alone = file.asked == 0 && !std::mem::replace(&mut file.crowded, file.asked > 0);
        self.forget_unused(node);
        alone
    }

    /// Whether an owner may have locks on a node.
    pub fn may_have(&self, node: Node, owner: u64) -> bool {
        self.files.get(&node).is_some_and(|file| file.owners.contains_key(&owner))
    }

    /// Notes a lock had, changed or released (fcntl(2): the new kind replaces what the owner has in the range).
    pub fn set(&mut self, node: Node, file: u64, lock: Lock) {
        let locks = self.files.entry(node).or_default();
        let owned = locks.owners.entry(lock.owner).or_default();
        self.held -= owned.len();
        let mut kept = Vec::with_capacity(owned.len() + 1);
        for held in owned.drain(..) {
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
        *owned = kept;
        self.held += owned.len();
    }

    /// Drops all locks of an owner on a node (a file descriptor was closed).
    pub fn drop_owner(&mut self, node: Node, owner: u64) {
        let Some(file) = self.files.get_mut(&node) else { return };
        if let Some(owned) = file.owners.remove(&owner) {
            self.held -= owned.len();
            match file.kept() {
                Some(kept) if kept.known.contains(&owner) => drop(kept.changed.insert(owner)),
                Some(kept) => drop(kept.changed.remove(&owner)),
                None => {}
            }
        }
        self.forget_unused(node);
    }

    /// The locks taken through an open file.
    pub fn through(&self, file: u64) -> Vec<Lock> {
        let all = self.files.values().flat_map(|locks| locks.owners.values().flatten());
        all.filter(|held| held.file == file).map(|held| held.lock).collect()
    }

    /// Drops the locks taken through an open file, which are lost or released; returns whether there were any.
    pub fn drop_through(&mut self, file: u64) -> bool {
        let before = self.held;
        for locks in self.files.values_mut() {
            for (owner, owned) in &mut locks.owners {
                let count = owned.len();
                owned.retain(|held| held.file != file);
                self.held -= count - owned.len();
                if let Stage::Here(kept) = &mut locks.stage
                    && owned.len() < count
                {
                    kept.changed.insert(*owner);
                }
            }
        }
        self.held < before
    }

    /// An open file is closed, and the locks of an owner go with it. `others`: the node is open otherwise, and `there`: also at the
    /// gateway. With the last one all locks are gone.
    pub fn release(
        &mut self,
        (node, file): (Node, u64),
        owner: Option<u64>,
        others: bool,
        there: bool,
    ) -> Closing {
        let Some(locks) = self.files.get_mut(&node) else { return Closing::Done };
        match &mut locks.stage {
            Stage::Telling(_) => return Closing::Tell,
            Stage::Here(kept) if !others => {
                self.held -= locks.owners.values().map(Vec::len).sum::<usize>();
                locks.owners.clear();
                if kept.known.is_empty() {
                    self.files.remove(&node);
                    return Closing::Done;
                }
                // This file need not be the last one at the gateway when that comes to closing it: somebody may be opening it anew, whose
                // handle would keep there what nobody has here.
                (kept.changed, kept.closing) = (kept.known.clone(), file);
                return Closing::Tell;
            }
            Stage::Here(_) if !there => return Closing::Tell,
            Stage::Here(_) | Stage::Gateway => locks.begin(),
        }
        if let Stage::Here(_) = locks.stage {
            self.drop_through(file);
            owner.into_iter().for_each(|owner| self.drop_owner(node, owner));
        }
        Closing::Gateway
    }

    fn forget_unused(&mut self, node: Node) {
        let unused = |file: &FileLocks| {
            file.owners.is_empty() && file.asked == 0 && matches!(file.stage, Stage::Gateway)
        };
        if self.files.get(&node).is_some_and(unused) {
            self.files.remove(&node);
        }
    }

    /// Sets or releases a lock if that can be answered here; not without `may`. If the gateway answers, [`Locks::answered`] is to
    /// be called.
    pub fn set_here(&mut self, (node, file): (Node, u64), lock: Lock, wait: bool, may: bool) -> Here {
        let full = self.held >= MOST_KEPT;
        let locks = self.files.entry(node).or_default();
        if let Stage::Gateway = locks.stage {
            self.ask(node, lock.owner);
            return Here::Gateway;
        }
        let conflict = lock.kind != LockKind::Unlock && locks.conflict(&lock).is_some();
        let Some(kept) = locks.kept().filter(|kept| may && kept.asked.elapsed() < LONGEST) else {
            return Here::Tell;
        };
        if conflict {
            // Who waits does so at the gateway, where circles are seen.
            return if wait { Here::Tell } else { Here::Conflict };
        }
        if full {
            // Also for an unlocking, which may leave two where there was one.
            return Here::Tell;
        }
        kept.changed.insert(lock.owner);
        kept.used = true;
        self.set(node, file, lock);
        Here::Done
    }

    /// The lock that stands against this one, if that can be answered here.
    ///
    /// # Errors
    /// Who answers instead.
    pub fn query_here(&mut self, node: Node, lock: &Lock, may: bool) -> Result<Option<Lock>, Here> {
        let Some(locks) = self.files.get_mut(&node) else { return Err(Here::Gateway) };
        match &mut locks.stage {
            Stage::Here(kept) if may && kept.asked.elapsed() < LONGEST => kept.used = true,
            Stage::Here(_) | Stage::Telling(_) => return Err(Here::Tell),
            Stage::Gateway => return Err(Here::Gateway),
        }
        Ok(locks.conflict(lock))
    }

    /// A descriptor is closed: the locks of its owner go.
    pub fn flush(&mut self, node: Node, owner: u64) -> Closing {
        if !self.may_have(node, owner) {
            return Closing::Done;
        }
        let Some(locks) = self.files.get_mut(&node) else { return Closing::Done };
        match &mut locks.stage {
            Stage::Here(kept) => kept.used = true,
            Stage::Telling(_) => return Closing::Tell,
            Stage::Gateway => {
                locks.begin();
                return Closing::Gateway;
            }
        }
        self.drop_owner(node, owner);
        Closing::Done
    }

    /// The gateway's answer to a request that was the only one under way ([`Locks::answered`]) says that the locks of a file may be kept here. To be called while the
    /// table of leases is locked and says that the file's is exclusive: a recall first takes that away, then tells. `asked`: when the
    /// request was made.
    pub fn keep(&mut self, node: Node, asked: Instant) {
        if self.held >= MOST_KEPT {
            return;
        }
        let Some(file) = self.files.get_mut(&node) else { return };
        if file.asked == 0 && matches!(file.stage, Stage::Gateway) {
            let owned = file.owners.iter().filter(|(_, owned)| !owned.is_empty());
            let known = owned.map(|(owner, _)| *owner).collect();
            file.stage = Stage::Here(Kept { asked, known, changed: HashSet::new(), used: true, closing: 0 });
        }
    }

    /// The gateway is to be told, and answers for the locks from then on. `pid`: the thread that waits for that; 0: none.
    pub fn tell(&mut self, node: Node, pid: u32, then: Then) -> Telling {
        let Some(file) = self.files.get_mut(&node) else { return Telling::Nothing(then) };
        match std::mem::take(&mut file.stage) {
            Stage::Gateway => Telling::Nothing(then),
            Stage::Telling(mut waiting) => {
                waiting.push(Waiting { pid, then });
                file.stage = Stage::Telling(waiting);
                Telling::Joined
            }
            Stage::Here(kept) => {
                file.stage = Stage::Telling(vec![Waiting { pid, then }]);
                Telling::Begin(file.steps(&kept))
            }
        }
    }

    /// The gateway has been told. Returns what waits for that.
    pub fn told(&mut self, node: Node) -> Vec<Then> {
        let Some(file) = self.files.get_mut(&node) else { return vec![] };
        let waiting = match std::mem::take(&mut file.stage) {
            Stage::Telling(waiting) => waiting.into_iter().map(|waiting| waiting.then).collect(),
            Stage::Gateway | Stage::Here(_) => vec![],
        };
        self.forget_unused(node);
        waiting
    }

    /// Takes out those who wait while the gateway is being told and whose threads are being killed.
    pub fn interrupted(&mut self, killed: impl Fn(u32) -> bool) -> Vec<Then> {
        let mut ended = vec![];
        for file in self.files.values_mut() {
            if let Stage::Telling(waiting) = &mut file.stage {
                let gone = waiting.extract_if(.., |waiting| waiting.pid != 0 && killed(waiting.pid));
                ended.extend(gone.map(|waiting| waiting.then));
            }
        }
        ended
    }

    /// The files whose locks are kept here, or of which the gateway is being told.
    pub fn kept(&self) -> Vec<Node> {
        let all = self.files.iter().filter(|(_, file)| !matches!(file.stage, Stage::Gateway));
        all.map(|(node, _)| *node).collect()
    }

    /// The files whose locks are kept here and have not been looked at since this was asked last.
    pub fn idle(&mut self) -> Vec<Node> {
        let idle =
            |file: &mut FileLocks| file.kept().is_some_and(|kept| !std::mem::replace(&mut kept.used, false));
        self.files.iter_mut().filter_map(|(node, file)| idle(file).then_some(*node)).collect()
    }

    /// The gateway is another one, which is told of all locks anyway.
    pub fn keep_none(&mut self) {
        for file in self.files.values_mut() {
            if matches!(file.stage, Stage::Here(_)) {
                file.stage = Stage::Gateway;
            }
        }
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
        assert!(!locks.may_have(NODE, 7) && locks.held == 0);
    }

    #[test]
    fn asking_is_enough_for_closing_to_tell_the_gateway() {
        let mut locks = Locks::default();
        assert!(!locks.may_have(NODE, 7));
        locks.ask(NODE, 7);
        assert!(locks.may_have(NODE, 7));
        assert!(!locks.drop_through(1));
        locks.set(NODE, 1, lock(0, 0, LockKind::Shared));
        assert!(locks.drop_through(1));
    }

    use LockKind::{Exclusive, Shared, Unlock};

    fn owned(owner: u64, start: u64, end: u64, kind: LockKind) -> Lock {
        Lock { owner, ..lock(start, end, kind) }
    }

    fn nothing() -> Then {
        Box::new(|_| {})
    }

    /// The gateway knows a lock of owner 7, and its answer let locks be kept.
    fn kept() -> Locks {
        let mut locks = Locks::default();
        assert_eq!(set(&mut locks, lock(0, 9, Shared)), Here::Gateway);
        locks.set(NODE, 1, lock(0, 9, Shared));
        locks.keep(NODE, Instant::now());
        assert_eq!(set(&mut locks, lock(20, 20, Shared)), Here::Gateway, "one is under way");
        locks.answered(NODE);
        locks.keep(NODE, Instant::now());
        assert!(locks.kept().is_empty(), "one is still");
        assert!(!locks.answered(NODE), "nobody knows which was carried out last");
        assert_eq!(set(&mut locks, lock(0, 9, Shared)), Here::Gateway);
        assert!(locks.answered(NODE));
        locks.keep(NODE, Instant::now());
        assert_eq!(locks.kept(), [NODE]);
        locks
    }

    fn set(locks: &mut Locks, lock: Lock) -> Here {
        locks.set_here((NODE, 1), lock, false, true)
    }

    fn told(locks: &mut Locks) -> Vec<(u64, u64, u64, LockKind)> {
        let Telling::Begin(steps) = locks.tell(NODE, 0, nothing()) else { panic!("nothing to tell") };
        assert!(matches!(locks.tell(NODE, 0, nothing()), Telling::Joined));
        assert_eq!(set(locks, lock(0, 0, Unlock)), Here::Tell, "it is being told");
        assert_eq!(locks.query_here(NODE, &lock(0, 0, Shared), true), Err(Here::Tell));
        assert_eq!(locks.release((NODE, 1), None, true, true), Closing::Tell);
        assert_eq!(locks.told(NODE).len(), 2);
        assert_eq!(set(locks, lock(0, 0, Unlock)), Here::Gateway);
        locks.answered(NODE);
        assert!(matches!(locks.tell(NODE, 0, nothing()), Telling::Nothing(_)));
        steps.iter().map(|HeldLock { lock, .. }| (lock.owner, lock.start, lock.end, lock.kind)).collect()
    }

    #[test]
    fn what_is_kept_is_answered_by_the_rules_of_locks() {
        let mut locks = kept();
        let second = (NODE, 2);
        assert_eq!(locks.set_here(second, owned(8, 5, 30, Shared), true, false), Here::Tell, "not now");
        assert_eq!(locks.set_here(second, owned(8, 5, 30, Shared), true, true), Here::Done);
        assert_eq!(locks.set_here(second, owned(8, 9, 30, Exclusive), false, true), Here::Conflict);
        assert_eq!(locks.set_here(second, owned(8, 9, 30, Exclusive), true, true), Here::Tell);
        assert_eq!(locks.set_here(second, owned(8, 10, 30, Exclusive), false, true), Here::Done);
        let blocks = locks.query_here(NODE, &lock(25, 40, Shared), true).unwrap().unwrap();
        assert_eq!((blocks.owner, blocks.start, blocks.end), (8, 10, 30));
        assert_eq!(locks.query_here(NODE, &lock(31, 40, Exclusive), true), Ok(None));
        assert_eq!(locks.query_here(NODE, &lock(31, 40, Exclusive), false), Err(Here::Tell));
        assert_eq!(locks.flush(NODE, 9), Closing::Done, "it has none");
        assert_eq!(locks.flush(NODE, 8), Closing::Done);
        assert_eq!(set(&mut locks, lock(0, 40, Exclusive)), Here::Done);
    }

    #[test]
    fn the_gateway_is_told_what_has_changed_and_what_is_held_before_what_is_not() {
        assert_eq!(told(&mut kept()), [], "it knows");
        let mut locks = kept();
        set(&mut locks, lock(4, 4, Unlock));
        set(&mut locks, lock(8, 20, Exclusive));
        assert_eq!(
            told(&mut locks),
            [
                (7, 0, 3, Shared),
                (7, 5, 7, Shared),
                (7, 8, 20, Exclusive),
                (7, 4, 4, Unlock),
                (7, 21, u64::MAX, Unlock)
            ]
        );
        let mut locks = kept();
        set(&mut locks, owned(8, 50, u64::MAX, Exclusive));
        locks.flush(NODE, 7);
        let mut all = told(&mut locks);
        all.sort_unstable_by_key(|(owner, ..)| *owner);
        // Of owner 8 it knows nothing.
        assert_eq!(all, [(7, 0, u64::MAX, Unlock), (8, 50, u64::MAX, Exclusive)]);
        let mut locks = kept();
        locks.drop_through(1);
        assert_eq!(told(&mut locks), [(7, 0, u64::MAX, Unlock)]);
    }

    #[test]
    fn what_nobody_looks_at_or_nobody_has_open_is_not_kept_for_long() {
        let mut locks = kept();
        assert_eq!(locks.idle(), []);
        assert_eq!(locks.idle(), [NODE]);
        assert_eq!(locks.query_here(NODE, &lock(0, 0, Shared), true), Ok(None));
        assert_eq!(locks.idle(), []);
        assert_eq!(locks.release((NODE, 1), None, true, false), Closing::Tell);
        // Of the last one's closing the gateway hears before, as somebody may be opening it anew; then it is closed.
        set(&mut locks, owned(8, 50, 50, Shared));
        assert_eq!(locks.release((NODE, 1), None, false, false), Closing::Tell);
        assert_eq!(locks.held, 0);
        let Telling::Begin(steps) = locks.tell(NODE, 0, nothing()) else { panic!("nothing to tell") };
        let whole = Lock { pid: 0, ..lock(0, u64::MAX, Unlock) };
        assert_eq!(steps, [HeldLock { file: 1, lock: whole }]);
        assert_eq!(locks.told(NODE).len(), 1);
        assert_eq!(locks.release((NODE, 1), None, false, false), Closing::Done);
        assert!(locks.kept().is_empty() && locks.files.is_empty());
        // It knows of none.
        let mut locks = kept();
        locks.keep_none();
        assert_eq!(set(&mut locks, lock(0, 9, Unlock)), Here::Gateway);
        locks.set(NODE, 1, lock(0, 9, Unlock));
        assert!(locks.answered(NODE));
        locks.keep(NODE, Instant::now());
        set(&mut locks, owned(8, 50, 50, Shared));
        assert_eq!(locks.release((NODE, 1), None, false, false), Closing::Done);
        assert!(locks.kept().is_empty() && locks.held == 0 && locks.files.is_empty());
        let mut locks = kept();
        locks.keep_none();
        assert!(locks.kept().is_empty() && locks.may_have(NODE, 7));
    }

    #[test]
    fn more_than_the_gateway_has_room_for_is_not_kept() {
        let mut locks = kept();
        for n in 1..MOST_KEPT as u64 {
            assert_eq!(set(&mut locks, lock(20 * n, 20 * n, Shared)), Here::Done);
        }
        assert_eq!(set(&mut locks, lock(7, 7, Unlock)), Here::Tell, "it would split one");
        assert_eq!(told(&mut locks).len(), 2 * MOST_KEPT, "and between and behind them nothing");
        locks.keep(NODE, Instant::now());
        assert!(locks.kept().is_empty());
    }

    #[test]
    fn nothing_is_answered_for_long_without_asking() {
        let mut locks = kept();
        locks.keep_none();
        let Some(long_ago) = Instant::now().checked_sub(LONGEST) else { return };
        locks.keep(NODE, long_ago);
        assert_eq!(locks.kept(), [NODE]);
        assert_eq!(set(&mut locks, lock(20, 20, Shared)), Here::Tell);
        assert_eq!(locks.query_here(NODE, &lock(20, 20, Shared), true), Err(Here::Tell));
    }

    #[test]
    fn who_is_killed_does_not_wait_for_the_telling() {
        let mut locks = kept();
        assert!(matches!(locks.tell(NODE, 5, nothing()), Telling::Begin(_)));
        assert!(matches!(locks.tell(NODE, 6, nothing()), Telling::Joined));
        assert_eq!(locks.interrupted(|pid| pid == 6).len(), 1);
        assert_eq!(locks.told(NODE).len(), 1);
    }
}
