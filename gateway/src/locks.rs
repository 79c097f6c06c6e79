//! Byte-range locks between guests: one table for fcntl(2) and flock(2), with POSIX rules.
//!
//! An owner is a lock owner of a guest's kernel within a session. A lock set over parts of the same owner's locks splits,
//! changes or joins them; waiting is first come, first served among those that could be served; a wait that would close
//! a circle of owners waiting for each other is refused (`EDEADLK`).
//!
//! A session may *keep* the locks of a file: its client answers for them itself ([ADR 18](../../docs/adr/0018-locks-kept.md)). To
//! everybody else that is a lock on the whole file, which lasts until the client has told what there is, or its session ends.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use rustix::io::Errno;
use strongroom_protocol::attr::{Lock, LockKind};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::engine::LockReply;
use crate::leases::Key;

/// Most locks held on one file. The table is searched from end to end, for all sessions under one mutex, and a fence must
/// get at it too: what one file can cost is bounded here. Who may lock a file can keep others from it in any case.
const MOST_HELD: usize = 4096;
/// Most locks waited for on one file, for the same reason.
const MOST_WAITING: usize = 256;
/// Room for what a client which answers for locks itself has to tell (`MOST_KEPT` in the client), and for what that replaces.
const KEPT_ROOM: usize = 768;
/// Most owners that are looked at in search of a circle; a longer one is not noticed (fcntl(2) promises no more).
const MOST_IN_CIRCLE: usize = 64;

/// Who holds or wants a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner {
    /// The session's number in this process.
    pub(crate) session: u64,
    /// The lock owner within it.
    pub(crate) owner: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    owner: Owner,
    /// The session and the grant through which it was asked for.
    by: Key,
    pid: u32,
    start: u64,
    /// Inclusive.
    end: u64,
    exclusive: bool,
}

struct Waiting {
    wanted: Held,
    request: u64,
    reply: LockReply,
}

#[derive(Default)]
struct FileLocks {
    held: Vec<Held>,
    waiting: Vec<Waiting>,
    /// Whose client answers for the locks.
    keeper: Option<Key>,
}

#[derive(Default)]
struct Table {
    /// By node id.
    files: HashMap<u64, FileLocks>,
    /// Locks held and waited for, by session.
    counts: HashMap<u64, usize>,
    /// The files of which a session keeps the locks.
    kept: HashMap<u64, HashSet<u64>>,
    grace: bool,
}

/// All locks.
#[derive(Default)]
pub(crate) struct Locks {
    table: Mutex<Table>,
}

/// Replies that became due; they are to be sent when nothing is locked any more.
#[derive(Default)]
#[must_use = "somebody waits for these"]
pub(crate) struct Due(Vec<(LockReply, Outcome)>);

impl Due {
    fn push(&mut self, reply: (LockReply, Outcome)) {
        self.0.push(reply);
    }

    /// Sends them.
    pub(crate) fn send(self) {
        for (reply, outcome) in self.0 {
            reply(outcome);
        }
    }
}

impl Held {
    fn of(owner: Owner, by: Key, lock: &Lock) -> Held {
        Held {
            owner,
            by,
            pid: lock.pid,
            start: lock.start,
            end: lock.end,
            exclusive: lock.kind == LockKind::Exclusive,
        }
    }

    fn overlaps(&self, other: &Held) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    fn conflicts(&self, other: &Held) -> bool {
        self.owner != other.owner && (self.exclusive || other.exclusive) && self.overlaps(other)
    }
}

impl FileLocks {
    fn blocker(&self, wanted: &Held) -> Option<&Held> {
        self.held.iter().filter(|held| held.conflicts(wanted)).min_by_key(|held| (held.start, held.owner))
    }

    /// Whether somebody else answers for the locks.
    fn kept_from(&self, by: Key) -> bool {
        self.keeper.is_some_and(|keeper| keeper != by)
    }

    /// Takes a range away from an owner; what sticks out on either side stays.
    fn cut(&mut self, owner: Owner, start: u64, end: u64) {
        let mut rest = vec![];
        self.held.retain(|held| {
            if held.owner != owner || held.start > end || held.end < start {
                return true;
            }
            if held.start < start {
                rest.push(Held { end: start - 1, ..*held });
            }
            if held.end > end {
                rest.push(Held { start: end + 1, ..*held });
            }
            false
        });
        self.held.append(&mut rest);
    }

    /// Gives a lock that nothing stands against; joins neighbours of the same kind.
    fn give(&mut self, mut wanted: Held) {
        self.cut(wanted.owner, wanted.start, wanted.end);
        self.held.retain(|held| {
            let touches = held.end.checked_add(1) == Some(wanted.start)
                || wanted.end.checked_add(1) == Some(held.start);
            let alike = held.by == wanted.by && held.exclusive == wanted.exclusive;
            let joins = held.owner == wanted.owner && alike && touches;
            if joins {
                wanted.start = wanted.start.min(held.start);
                wanted.end = wanted.end.max(held.end);
            }
            !joins
        });
        self.held.push(wanted);
    }

    /// Whether taking this range away would leave more locks than there were.
    fn splits(&self, owner: Owner, start: u64, end: u64) -> bool {
        self.held.iter().any(|held| held.owner == owner && held.start < start && held.end > end)
    }

    fn count(&self, session: u64) -> usize {
        self.held.iter().filter(|held| held.owner.session == session).count()
            + self.waiting.iter().filter(|waiting| waiting.wanted.owner.session == session).count()
    }

    /// Serves those who wait, first come first served.
    fn serve(&mut self, due: &mut Due) {
        let mut n = 0;
        while let Some(waiting) = self.waiting.get(n) {
            if self.kept_from(waiting.wanted.by) || self.blocker(&waiting.wanted).is_some() {
                n += 1;
                continue;
            }
            let Waiting { wanted, reply, .. } = self.waiting.remove(n);
            let gives_up =
                |held: &Held| held.owner == wanted.owner && held.exclusive && held.overlaps(&wanted);
            let downgrade = !wanted.exclusive && self.held.iter().any(gives_up);
            self.give(wanted);
            due.push((reply, Outcome::Done));
            if downgrade {
                // It may have let in somebody before.
                n = 0;
            }
        }
    }
}

impl Table {
    /// Does something with the locks of a node and keeps the counts right.
    fn with<T>(&mut self, node: u64, due: &mut Due, act: impl FnOnce(&mut FileLocks) -> T) -> T {
        let file = self.files.entry(node).or_default();
        let sessions = |file: &FileLocks| -> HashSet<u64> {
            let held = file.held.iter().map(|held| held.owner.session);
            held.chain(file.waiting.iter().map(|waiting| waiting.wanted.owner.session)).collect()
        };
        let mut all = sessions(file);
        let before: HashMap<u64, usize> =
            all.iter().map(|session| (*session, file.count(*session))).collect();
        let result = act(file);
        file.serve(due);
        all.extend(sessions(file));
        for session in all {
            let (old, new) = (before.get(&session).copied().unwrap_or(0), file.count(session));
            let count = self.counts.entry(session).or_default();
            *count = (*count + new).saturating_sub(old);
            if *count == 0 {
                self.counts.remove(&session);
            }
        }
        self.forget_unused(node);
        result
    }

    fn forget_unused(&mut self, node: u64) {
        let unused =
            |file: &FileLocks| file.held.is_empty() && file.waiting.is_empty() && file.keeper.is_none();
        if self.files.get(&node).is_some_and(unused) {
            self.files.remove(&node);
        }
    }

    /// Lets a client answer for the locks of a file, if all that there are were asked for by it and nobody waits.
    fn keep(&mut self, node: u64, by: Key, most: usize) -> bool {
        let count = self.counts.get(&by.session()).copied().unwrap_or(0);
        let kept = self.kept.get(&by.session()).map_or(0, HashSet::len);
        let Some(file) = self.files.get_mut(&node) else { return false };
        let alone = file.waiting.is_empty() && file.held.iter().all(|held| held.by == by);
        // What it may answer itself must find room when it tells.
        if self.grace || !alone || kept >= most || count.saturating_add(KEPT_ROOM) > most {
            return false;
        }
        file.keeper = Some(by);
        self.kept.entry(by.session()).or_default().insert(node);
        true
    }

    /// The client does not answer for the locks of a file any more; it has told what there is.
    fn end_keeping(&mut self, node: u64, by: Key, due: &mut Due) {
        if self.files.get(&node).is_none_or(|file| file.keeper != Some(by)) {
            return;
        }
        if let Some(kept) = self.kept.get_mut(&by.session()) {
            kept.remove(&node);
            if kept.is_empty() {
                self.kept.remove(&by.session());
            }
        }
        self.with(node, due, |file| file.keeper = None);
    }

    fn end_keeping_of(&mut self, node: u64, session: u64, due: &mut Due) {
        let keeper = self.files.get(&node).and_then(|file| file.keeper);
        if let Some(by) = keeper.filter(|keeper| keeper.session() == session) {
            self.end_keeping(node, by, due);
        }
    }

    fn set(&mut self, node: u64, owner: Owner, lock: &Lock, how: How<'_>, due: &mut Due) -> Asked {
        let wanted = Held::of(owner, how.by, lock);
        if !how.reclaim {
            // What its client asks for without answering for the locks, it asks for as anybody.
            self.end_keeping(node, how.by, due);
        }
        let own = self.counts.get(&owner.session).copied().unwrap_or(0);
        let file = self.files.get(&node);
        let full = own >= how.most || file.is_some_and(|file| file.held.len() >= MOST_HELD);
        if lock.kind == LockKind::Unlock {
            if full && file.is_some_and(|file| file.splits(owner, lock.start, lock.end)) {
                return Asked::Refused(errno(Errno::NOLCK));
            }
            self.with(node, due, |file| file.cut(owner, lock.start, lock.end));
            return Asked::Given;
        }
        if self.grace && !how.reclaim {
            return Asked::Refused(Failure::Grace);
        }
        if full {
            return Asked::Refused(Failure::TooMany);
        }
        // What a client tells that answers for all of them need not fit what it told before: the rest is still to come.
        let told = how.reclaim && file.is_some_and(|file| file.keeper == Some(how.by));
        if told || file.is_none_or(|file| !file.kept_from(how.by) && file.blocker(&wanted).is_none()) {
            self.with(node, due, |file| file.give(wanted));
            let kept = how.may_keep && !how.reclaim && self.keep(node, how.by, how.most);
            return if kept { Asked::Kept } else { Asked::Given };
        }
        let Some((request, later)) = how.wait else { return Asked::Refused(errno(Errno::AGAIN)) };
        if file.is_some_and(|file| file.waiting.len() >= MOST_WAITING) {
            return Asked::Refused(Failure::TooMany);
        }
        if self.would_deadlock(node, &wanted) {
            return Asked::Refused(errno(Errno::DEADLK));
        }
        let waiting = Waiting { wanted, request, reply: later() };
        self.with(node, due, |file| file.waiting.push(waiting));
        Asked::Waits
    }

    /// Whether `owner`, waiting for `blockers`, would wait for itself.
    fn would_deadlock(&self, node: u64, wanted: &Held) -> bool {
        let blockers = |node: u64, wanted: &Held| -> Vec<Owner> {
            let held = self.files.get(&node).into_iter().flat_map(|file| &file.held);
            held.filter(|held| held.conflicts(wanted)).map(|held| held.owner).collect()
        };
        let mut todo = blockers(node, wanted);
        let mut seen = HashSet::new();
        while let Some(owner) = todo.pop() {
            if owner == wanted.owner {
                return true;
            }
            if seen.len() >= MOST_IN_CIRCLE {
                return false;
            }
            if !seen.insert(owner) {
                continue;
            }
            for (node, file) in &self.files {
                for waiting in file.waiting.iter().filter(|waiting| waiting.wanted.owner == owner) {
                    todo.extend(blockers(*node, &waiting.wanted));
                }
            }
        }
        false
    }
}

/// What became of a lock that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It is had (or given up).
    Given,
    /// It is had, and the client may answer for the locks of the file itself from now on.
    Kept,
    /// It is waited for.
    Waits,
    /// Not possible.
    Refused(Failure),
}

fn errno(errno: Errno) -> Failure {
    // Linux error numbers are below 4096.
    Failure::Errno(errno.raw_os_error() as u16)
}

impl Locks {
    /// While on, only reclaimed locks are given.
    pub(crate) fn set_grace(&self, on: bool) {
        self.table.lock().grace = on;
    }

    /// The lock that stands against this one, if any.
    pub(crate) fn query(&self, node: u64, owner: Owner, by: Key, lock: &Lock) -> Option<Lock> {
        let wanted = Held::of(owner, by, lock);
        let table = self.table.lock();
        let file = table.files.get(&node)?;
        if file.kept_from(by) {
            // Who answers for them has not told in time; whatever there is, it may be this.
            return Some(Lock { owner: 0, pid: 0, start: 0, end: u64::MAX, kind: LockKind::Exclusive });
        }
        let held = file.blocker(&wanted)?;
        // Another session's process number and owner mean nothing here, and are not this session's to know.
        let same = held.owner.session == owner.session;
        Some(Lock {
            owner: if same { held.owner.owner } else { 0 },
            pid: if same { held.pid } else { 0 },
            start: held.start,
            end: held.end,
            kind: if held.exclusive { LockKind::Exclusive } else { LockKind::Shared },
        })
    }

    /// Sets or gives up a lock. `later` makes the reply if it must be waited for and `wait` is set.
    pub(crate) fn set(&self, node: u64, owner: Owner, lock: &Lock, how: How<'_>) -> (Asked, Due) {
        let mut due = Due::default();
        if lock.start > lock.end {
            return (Asked::Refused(errno(Errno::INVAL)), due);
        }
        let asked = self.table.lock().set(node, owner, lock, how, &mut due);
        (asked, due)
    }

    /// A client has told what locks there are on a file.
    pub(crate) fn end_keeping(&self, node: u64, by: Key) -> Due {
        let mut due = Due::default();
        self.table.lock().end_keeping(node, by, &mut due);
        due
    }

    /// A client has told what locks there are on all files.
    pub(crate) fn end_all_keeping(&self, session: u64) -> Due {
        let mut due = Due::default();
        let mut table = self.table.lock();
        let kept: Vec<u64> = table.kept.get(&session).into_iter().flatten().copied().collect();
        for node in kept {
            if let Some(by) = table.files.get(&node).and_then(|file| file.keeper) {
                table.end_keeping(node, by, &mut due);
            }
        }
        drop(table);
        due
    }

    /// Ends a wait: its reply is `EINTR`. Returns whether there was one.
    pub(crate) fn cancel(&self, session: u64, request: u64) -> bool {
        let mut due = Due::default();
        let mut table = self.table.lock();
        let mine = |waiting: &Waiting| waiting.wanted.owner.session == session && waiting.request == request;
        let node = table.files.iter().find(|(_, file)| file.waiting.iter().any(mine)).map(|(node, _)| *node);
        if let Some(node) = node {
            let ended = table.with(node, &mut due, |file| {
                let at = file.waiting.iter().position(mine);
                at.map(|at| file.waiting.remove(at))
            });
            if let Some(waiting) = ended {
                due.push((waiting.reply, Outcome::Failed(errno(Errno::INTR))));
            }
        }
        drop(table);
        due.send();
        node.is_some()
    }

    /// Gives up all locks of an owner on a node.
    pub(crate) fn release_owner(&self, node: u64, owner: Owner) {
        let mut due = Due::default();
        let mut table = self.table.lock();
        if table.files.contains_key(&node) {
            table.with(node, &mut due, |file| file.cut(owner, 0, u64::MAX));
        }
        drop(table);
        due.send();
    }

    /// Gives up all locks of a session on a node, and ends its waits there.
    pub(crate) fn release_node(&self, node: u64, session: u64) -> Due {
        let mut due = Due::default();
        let mut table = self.table.lock();
        table.end_keeping_of(node, session, &mut due);
        if table.files.contains_key(&node) {
            table.with(node, &mut due, |file| file.drop_session(session)).0.into_iter().for_each(|waiting| {
                due.push((waiting.reply, Outcome::Failed(errno(Errno::INTR))));
            });
        }
        due
    }

    /// Gives up all locks of a session; its waits are answered with `Fenced`. Returns how many were held, and waited for.
    pub(crate) fn release_session(&self, session: u64) -> (usize, usize) {
        let mut due = Due::default();
        let (mut held, mut waited) = (0, 0);
        let mut table = self.table.lock();
        let kept: Vec<u64> = table.kept.get(&session).into_iter().flatten().copied().collect();
        kept.into_iter().for_each(|node| table.end_keeping_of(node, session, &mut due));
        let nodes: Vec<u64> =
            table.files.iter().filter(|(_, file)| file.count(session) > 0).map(|(node, _)| *node).collect();
        for node in nodes {
            let (waiting, count) = table.with(node, &mut due, |file| file.drop_session(session));
            held += count;
            waited += waiting.len();
            let fenced = |waiting: Waiting| (waiting.reply, Outcome::Failed(Failure::Fenced));
            waiting.into_iter().map(fenced).for_each(|reply| due.push(reply));
        }
        drop(table);
        due.send();
        (held, waited)
    }

    /// Locks held and waited for by a session.
    pub(crate) fn count(&self, session: u64) -> usize {
        self.table.lock().counts.get(&session).copied().unwrap_or(0)
    }
}

impl FileLocks {
    fn drop_session(&mut self, session: u64) -> (Vec<Waiting>, usize) {
        let before = self.held.len();
        self.held.retain(|held| held.owner.session != session);
        let ended = self.waiting.extract_if(.., |waiting| waiting.wanted.owner.session == session).collect();
        (ended, before - self.held.len())
    }
}

/// How a lock is asked for.
pub(crate) struct How<'a> {
    /// If it must be waited for: the request, and what makes its reply.
    pub(crate) wait: Option<(u64, &'a dyn Fn() -> LockReply)>,
    /// It was had before the gateway restarted.
    pub(crate) reclaim: bool,
    /// Most locks of the session.
    pub(crate) most: usize,
    /// The session and the grant through which it is asked for.
    pub(crate) by: Key,
    /// The client may be let to answer for the locks of the file.
    pub(crate) may_keep: bool,
}
