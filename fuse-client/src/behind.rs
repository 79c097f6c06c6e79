//! Writes, and changes of mode and times, that the application was told are done before the gateway has them. Only under an exclusive lease: nobody else
//! reads the file before the lease is recalled, and the recall is answered when nothing is under way any more.
//!
//! # Rules
//! - What is under way of one file does not overlap: the gateway may carry requests out in another order than they came.
//! - Whatever else concerns the file waits until nothing of it is under way ([`Behind::wait`]), in the order in which it came, and
//!   while something waits no further write is answered early.
//! - Bytes and requests under way are bounded; beyond, answers are held back, not requests, so that the pipe stays full.
//! - Only as much is answered early as there is certainly room for ([`Behind::spend`]): a full quota or file system is reported by the
//!   write itself. Other failures are reported by the next write, fsync or close of the file.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fuser::Errno;
use parking_lot::Mutex;
use strongroom_protocol::attr::{Attr, Credentials, Handle, Node, SetAttr, SetTime};

use crate::lease::OwnChange;

/// Bytes and requests under way beyond which answers are held back.
const MOST_BYTES: usize = 8 << 20;
const MOST: usize = 32;
/// Answers that are held back at most; beyond, nothing is answered early.
const MOST_HELD: usize = 64;
/// Room that is left to others who write under the same quota meanwhile, in bytes.
const MARGIN: u64 = 64 << 20;
/// All of a file: what is under way while its attributes are changed.
pub const WHOLE: Range<u64> = 0..u64::MAX;
/// How long it is believed how much room there is, and after how long it is asked for anew.
const BELIEVED: Duration = Duration::from_secs(2);
const ASKED_AFTER: Duration = Duration::from_millis(500);

/// What is done when nothing is under way any more, or the caller may wait no longer.
pub type Then = Box<dyn FnOnce(Result<(), Errno>) + Send>;
/// An answer that is held back, or something that waits for the end of all.
pub type Act = Box<dyn FnOnce() + Send>;

/// The writes under way.
#[derive(Default)]
pub struct Behind {
    /// How many there are; read without the lock.
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    files: HashMap<Node, File>,
    bytes: usize,
    count: usize,
    held: VecDeque<Act>,
    idle: Vec<Act>,
    rooms: HashMap<u16, Room>,
}

#[derive(Default)]
struct File {
    ranges: Vec<Range<u64>>,
    /// The attributes as they will be but for what the gateway's clock says, if they were known.
    attr: Option<Attr>,
    /// To be sent when nothing is under way any more, before whatever waits.
    setting: Option<Begun>,
    waiting: Vec<Waiting>,
}

/// A change of mode and times that was answered early.
#[derive(Clone, Debug)]
pub struct Setting {
    /// What changes.
    pub set: SetAttr,
    /// Through which open file.
    pub handle: Option<Handle>,
    /// Who changes it.
    pub by: Credentials,
}

impl Setting {
    /// Two, one after the other, as one.
    fn then(&mut self, later: Setting) {
        let SetAttr { mode, atime, mtime, .. } = later.set;
        self.set.mode = mode.or(self.set.mode);
        self.set.atime = atime.or(self.set.atime);
        self.set.mtime = mtime.or(self.set.mtime);
        self.handle = later.handle.or(self.handle);
        self.by = later.by;
    }

    fn foretell(&self, attr: &mut Attr) {
        if let Some(mode) = self.set.mode {
            attr.mode = attr.mode & libc::S_IFMT | mode;
        }
        if let Some(SetTime::At(time)) = self.set.atime {
            attr.atime = time;
        }
        if let Some(SetTime::At(time)) = self.set.mtime {
            attr.mtime = time;
        }
    }
}

/// A change of mode and times that was answered, as the table of leases knows it: from the answer on, not only when it is sent, so that no
/// attributes from before it are believed meanwhile.
#[derive(Debug)]
pub struct Begun {
    /// What is to be sent.
    pub setting: Setting,
    /// The table's.
    pub change: OwnChange,
}

struct Waiting {
    pid: u32,
    then: Then,
}

/// What a grant has room for.
struct Room {
    bytes: u64,
    known: Option<Instant>,
    asked: Option<Instant>,
}

/// Whether a write may be answered early for the room that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    /// It may.
    pub may: bool,
    /// How much room there is should be asked for; not asked again before that is answered or some time has passed.
    pub ask: bool,
}

impl Behind {
    /// Whether anything is under way.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Whether anything of this file is.
    pub fn busy(&self, node: Node) -> bool {
        self.any() && self.inner.lock().files.contains_key(&node)
    }

    /// A write begins that will be answered early; `false` if it must not be. `attr`: the file's attributes, if they are known.
    pub fn begin(&self, node: Node, range: &Range<u64>, attr: Option<Attr>) -> bool {
        let mut inner = self.inner.lock();
        // Who waits for the end of all must not wait for ever.
        if inner.held.len() >= MOST_HELD || !inner.idle.is_empty() {
            return false;
        }
        let file = inner.files.entry(node).or_default();
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        if !file.waiting.is_empty() || file.setting.is_some() || file.ranges.iter().any(overlaps) {
            return false;
        }
        if file.ranges.is_empty() {
            file.attr = attr;
        }
        if let Some(attr) = &mut file.attr {
            attr.size = attr.size.max(range.end);
        }
        file.ranges.push(range.clone());
        inner.bytes += length(range);
        inner.count += 1;
        self.count.store(inner.count, Ordering::SeqCst);
        true
    }

    /// A change of mode and times is to be answered early: returns the attributes to tell, and what is to be sent at once; the rest
    /// is for [`Behind::end`] to hand out. `None` if it must not be. `attr`: the file's attributes, if they are known. `begin` tells the table
    /// of leases, unless the change becomes a part of one that it knows.
    pub fn set(
        &self,
        node: Node,
        attr: Option<Attr>,
        setting: Setting,
        begin: impl FnOnce() -> OwnChange,
    ) -> Option<(Attr, Option<Begun>)> {
        let mut inner = self.inner.lock();
        if inner.held.len() >= MOST_HELD || !inner.idle.is_empty() {
            return None;
        }
        if let Some(file) = inner.files.get_mut(&node) {
            let foretold = file.attr.as_mut().filter(|_| file.waiting.is_empty())?;
            setting.foretell(foretold);
            let foretold = *foretold;
            match &mut file.setting {
                Some(before) => before.setting.then(setting),
                none => *none = Some(Begun { setting, change: begin() }),
            }
            return Some((foretold, None));
        }
        let mut attr = attr?;
        setting.foretell(&mut attr);
        let file = File { ranges: vec![WHOLE], attr: Some(attr), ..File::default() };
        inner.files.insert(node, file);
        inner.count += 1;
        self.count.store(inner.count, Ordering::SeqCst);
        Some((attr, Some(Begun { setting, change: begin() })))
    }

    /// The attributes of a file as they will be, while something of it is under way and nothing waits for that.
    pub fn foretold(&self, node: Node) -> Option<Attr> {
        let inner = self.inner.lock();
        inner.files.get(&node).filter(|file| file.waiting.is_empty())?.attr
    }

    /// Answers now if there is room, or else as soon as there is.
    pub fn answer(&self, answer: Act) {
        let now = {
            let mut inner = self.inner.lock();
            if inner.held.is_empty() && inner.has_room() || inner.count == 0 {
                Some(answer)
            } else {
                inner.held.push_back(answer);
                None
            }
        };
        if let Some(answer) = now {
            answer();
        }
    }

    /// A write, or a change of attributes ([`WHOLE`]), has ended, well or not. Calls those who waited for that; must be called with no
    /// lock held. Returns what is to be sent next; it is under way from now on.
    #[must_use]
    pub fn end(&self, node: Node, range: &Range<u64>) -> Option<Begun> {
        let (answers, waiting, idle, next) = {
            let mut inner = self.inner.lock();
            let file = inner.files.get_mut(&node)?;
            let at = file.ranges.iter().position(|other| other == range)?;
            file.ranges.swap_remove(at);
            let mut waiting = vec![];
            let next = file.setting.take_if(|_| file.ranges.is_empty());
            if next.is_some() {
                file.ranges.push(WHOLE);
            } else if file.ranges.is_empty() {
                waiting = inner.files.remove(&node).map(|file| file.waiting).unwrap_or_default();
            }
            inner.bytes -= length(range);
            inner.count -= usize::from(next.is_none());
            self.count.store(inner.count, Ordering::SeqCst);
            let mut answers = vec![];
            // All that fit now; each of them was counted when it began.
            while inner.has_room() || inner.count == 0 {
                let Some(answer) = inner.held.pop_front() else { break };
                answers.push(answer);
                if inner.count > 0 && answers.len() >= MOST / 4 {
                    break;
                }
            }
            let idle = if inner.count == 0 { std::mem::take(&mut inner.idle) } else { vec![] };
            (answers, waiting, idle, next)
        };
        answers.into_iter().for_each(|answer| answer());
        waiting.into_iter().for_each(|waiting| (waiting.then)(Ok(())));
        idle.into_iter().for_each(|act| act());
        next
    }

    /// Does `then` once nothing of the file is under way. `pid`: the thread that waits, as for a request.
    pub fn wait(&self, node: Node, pid: u32, then: Then) {
        let now = {
            let mut inner = self.inner.lock();
            match inner.files.get_mut(&node) {
                Some(file) => {
                    file.waiting.push(Waiting { pid, then });
                    None
                }
                None => Some(then),
            }
        };
        if let Some(then) = now {
            then(Ok(()));
        }
    }

    /// Does `act` once nothing at all is under way.
    pub fn wait_for_all(&self, act: Act) {
        let now = {
            let mut inner = self.inner.lock();
            if inner.count > 0 {
                inner.idle.push(act);
                None
            } else {
                Some(act)
            }
        };
        if let Some(act) = now {
            act();
        }
    }

    /// Ends the waiting of those whose threads are being killed.
    pub fn interrupt(&self, killed: impl Fn(u32) -> bool) {
        if !self.any() {
            return;
        }
        let mut ended = vec![];
        for file in self.inner.lock().files.values_mut() {
            let (go, stay) = file.waiting.drain(..).partition(|w: &Waiting| w.pid != 0 && killed(w.pid));
            file.waiting = stay;
            ended.extend::<Vec<Waiting>>(go);
        }
        ended.into_iter().for_each(|waiting| (waiting.then)(Err(Errno::EINTR)));
    }

    /// Takes room for a write in a grant.
    pub fn spend(&self, grant: u16, bytes: u64, now: Instant) -> Spent {
        let mut inner = self.inner.lock();
        let room = inner.rooms.entry(grant).or_insert(Room { bytes: 0, known: None, asked: None });
        let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let believed = age(room.known).is_some_and(|age| age < BELIEVED);
        let may = believed && room.bytes >= bytes.saturating_add(MARGIN);
        if may {
            room.bytes -= bytes;
        }
        let old = age(room.known).is_none_or(|age| age > ASKED_AFTER);
        let ask = old && age(room.asked).is_none_or(|age| age > ASKED_AFTER);
        if ask {
            room.asked = Some(now);
        }
        Spent { may, ask }
    }

    /// The gateway has told how much room there is in a grant; asked for at that time.
    pub fn learn_room(&self, grant: u16, free: u64, asked: Instant) {
        let mut inner = self.inner.lock();
        // What is under way may not have been counted yet.
        let free = free.saturating_sub(inner.bytes as u64);
        inner.rooms.insert(grant, Room { bytes: free, known: Some(asked), asked: Some(asked) });
    }

    /// Another contract may have other limits.
    pub fn forget_room(&self) {
        self.inner.lock().rooms.clear();
    }
}

impl Inner {
    fn has_room(&self) -> bool {
        self.bytes <= MOST_BYTES && self.count <= MOST
    }
}

fn length(range: &Range<u64>) -> usize {
    if *range == WHOLE {
        return 0;
    }
    // Never more than a frame holds.
    usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use strongroom_protocol::attr::Time;

    use super::*;

    const FILE: Node = Node { grant: 0, ino: 7 };

    fn attr(size: u64, permissions: u32) -> Attr {
        let time = Time { secs: 1, nanos: 0 };
        Attr {
            ino: 7,
            generation: 1,
            mode: libc::S_IFREG | permissions,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            size,
            blocks: 8,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
        }
    }

    fn note(said: &Arc<Mutex<Vec<u32>>>, what: u32) -> Act {
        let said = said.clone();
        Box::new(move || said.lock().push(what))
    }

    fn then(said: &Arc<Mutex<Vec<u32>>>, what: u32) -> Then {
        let act = note(said, what);
        Box::new(move |result| {
            if result.is_ok() {
                act()
            }
        })
    }

    #[test]
    fn nothing_overlaps_and_what_waits_keeps_others_from_going_first() {
        let (behind, said) = (Behind::default(), Arc::default());
        assert!(behind.begin(FILE, &(0..10), None) && behind.begin(FILE, &(10..20), None));
        assert!(!behind.begin(FILE, &(5..15), None) && !behind.begin(FILE, &(19..20), None));
        assert!(behind.begin(Node { grant: 1, ino: 7 }, &(5..15), None));
        behind.wait(FILE, 0, then(&said, 1));
        assert!(!behind.begin(FILE, &(30..40), None), "something waits");
        assert!(behind.end(FILE, &(0..10)).is_none());
        assert!(said.lock().is_empty() && behind.busy(FILE));
        assert!(behind.end(FILE, &(10..20)).is_none());
        assert_eq!(*said.lock(), [1]);
        assert!(behind.begin(FILE, &(30..40), None));
        behind.wait_for_all(note(&said, 3));
        assert!(!behind.begin(FILE, &(50..60), None), "the end of all comes");
        assert!(behind.end(FILE, &(30..40)).is_none());
        assert!(behind.end(Node { grant: 1, ino: 7 }, &(5..15)).is_none());
        assert_eq!(*said.lock(), [1, 3]);
        assert!(!behind.any());
        behind.wait(FILE, 0, then(&said, 4));
        assert_eq!(said.lock().last(), Some(&4), "at once");
    }

    #[test]
    fn answers_are_held_back_beyond_the_bounds() {
        let (behind, said) = (Behind::default(), Arc::default());
        let size = 1 << 20;
        let part = |n: u64| n * size..(n + 1) * size;
        for n in 0..12 {
            assert!(behind.begin(FILE, &part(n), None));
            behind.answer(note(&said, n as u32));
        }
        assert_eq!(*said.lock(), (0..8).collect::<Vec<u32>>());
        for n in 0..4 {
            assert!(behind.end(FILE, &part(n)).is_none());
        }
        // The last four are told as soon as what is under way is within the bounds.
        assert_eq!(said.lock().len(), 12);
        assert_eq!(*said.lock(), (0..12).collect::<Vec<u32>>(), "in their order");
    }

    #[test]
    fn who_is_killed_waits_no_longer() {
        let (behind, said) = (Behind::default(), Arc::new(Mutex::new(vec![])));
        assert!(behind.begin(FILE, &(0..10), None));
        let seen = said.clone();
        behind.wait(FILE, 5, Box::new(move |result| seen.lock().push(if result.is_err() { 5 } else { 0 })));
        behind.wait(FILE, 6, then(&said, 6));
        behind.interrupt(|pid| pid == 5);
        assert_eq!(*said.lock(), [5]);
        assert!(behind.end(FILE, &(0..10)).is_none());
        assert_eq!(*said.lock(), [5, 6]);
    }

    #[test]
    fn changes_of_attributes_come_after_what_was_written_and_before_what_waits() {
        let (behind, said) = (Behind::default(), Arc::default());
        let (before, time) = (attr(5, 0o600), Time { secs: 7, nanos: 9 });
        let begin = || crate::lease::Table::default().begin(&[FILE], Instant::now());
        let setting = |mode, mtime| Setting {
            set: SetAttr { mode, mtime, ..SetAttr::default() },
            handle: None,
            by: Credentials { uid: 0, gid: 0 },
        };
        assert!(
            behind.set(FILE, None, setting(Some(0o644), None), begin).is_none(),
            "who knows what to tell"
        );
        assert!(behind.begin(FILE, &(0..10), Some(before)));
        let (told, now) = behind.set(FILE, None, setting(Some(0o644), None), begin).unwrap();
        assert_eq!((told.size, told.mode), (10, libc::S_IFREG | 0o644));
        assert!(now.is_none(), "after the write");
        let (told, now) = behind.set(FILE, None, setting(None, Some(SetTime::At(time))), begin).unwrap();
        assert!(now.is_none());
        assert_eq!((told.mode, told.mtime), (libc::S_IFREG | 0o644, time));
        assert_eq!(behind.foretold(FILE), Some(told));
        assert!(!behind.begin(FILE, &(10..20), None), "it would be overtaken");
        behind.wait(FILE, 0, then(&said, 1));
        assert_eq!(behind.foretold(FILE), None, "something else waits");
        assert!(behind.set(FILE, None, setting(Some(0), None), begin).is_none());
        let next = behind.end(FILE, &(0..10)).expect("both as one");
        assert_eq!((next.setting.set.mode, next.setting.set.mtime), (Some(0o644), Some(SetTime::At(time))));
        assert!(behind.busy(FILE) && said.lock().is_empty());
        assert!(behind.end(FILE, &WHOLE).is_none());
        assert_eq!(*said.lock(), [1]);
        assert!(!behind.any());
        let (_, now) = behind.set(FILE, Some(before), setting(Some(0o644), None), begin).unwrap();
        assert!(now.is_some() && behind.busy(FILE), "at once");
        assert!(behind.end(FILE, &WHOLE).is_none());
        assert!(!behind.any());
    }

    #[test]
    fn only_what_there_is_room_for_is_answered_early() {
        let behind = Behind::default();
        let start = Instant::now();
        assert_eq!(behind.spend(0, 10, start), Spent { may: false, ask: true });
        assert_eq!(behind.spend(0, 10, start), Spent { may: false, ask: false }, "asked once");
        behind.learn_room(0, MARGIN + 25, start);
        assert_eq!(behind.spend(0, 10, start), Spent { may: true, ask: false });
        assert_eq!(behind.spend(0, 10, start), Spent { may: true, ask: false });
        assert_eq!(behind.spend(0, 10, start), Spent { may: false, ask: false });
        assert_eq!(behind.spend(0, 5, start + Duration::from_secs(1)), Spent { may: true, ask: true });
        assert!(!behind.spend(0, 0, start + BELIEVED).may, "too old");
    }
}
