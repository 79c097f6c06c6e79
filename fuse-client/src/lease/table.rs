//! The table: what is known under leases.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use strongroom_protocol::attr::{Attr, Node, Time};
use strongroom_protocol::lease::{Lease, LeaseTerms, Note};
use strongroom_protocol::name::Name;

use super::contents::{Contents, Shelf};
use super::names::{Names, To};

/// When a request was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// How many changes of this guest had ended by then.
    pub(super) seq: u64,
    /// The time.
    pub(super) at: Instant,
}

/// Where an answer comes from.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// When its request was made.
    pub asked: Asked,
    /// To which life of the table the connection belongs by which it came.
    pub life: u64,
    /// What it says about leases.
    pub note: Note,
}

/// A change of this guest that is under way.
#[derive(Debug)]
#[must_use = "a change that does not end keeps what it concerns unknown for ever"]
pub struct OwnChange {
    pub(super) asked: Asked,
    pub(super) nodes: Vec<Node>,
    life: u64,
}

impl OwnChange {
    /// When it was asked for.
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// Whether it was known from the start to be a change of this node.
    pub fn concerns(&self, node: Node) -> bool {
        self.nodes.contains(&node)
    }
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A node and its attributes.
    Node(Node, Attr),
    /// There is no such name.
    Absent,
    /// The gateway must be asked.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) attr: Attr,
    pub(super) until: Instant,
    /// When it was asked for.
    pub(super) asked: Asked,
}

/// What is known of a node.
#[derive(Debug)]
pub(super) struct Held {
    /// Tells apart files that had the number one after the other; 0: not known yet.
    generation: u64,
    pub(super) lease: Lease,
    pub(super) granted: u64,
    /// The highest stamp of a recall that ended the lease.
    pub(super) over: u64,
    /// The highest stamp of any recall of the node.
    pub(super) void: u64,
    /// The highest stamp of a recall that made the lease a shared one.
    pub(super) alone: u64,
    pub(super) attr: Option<Kept>,
    /// Changes of this guest under way.
    pub(super) changing: u32,
    /// The count of changes when the last one of this node ended.
    pub(super) changed: u64,
    /// Whether the kernel may have the attributes for longer than no time.
    pub(super) told: bool,
    /// What the kernel was last shown of a file: the time of change of its contents, and its size.
    pub(super) shown: Option<(Time, u64)>,
    /// Whether what the kernel may have of the contents (pages, the listing) is what the lease speaks of.
    pub(super) clean: bool,
    /// Whether the kernel knows the size: it had nothing of the file when the lease began, or was told since.
    sized: bool,
    /// What was last heard of the size while this guest was changing the file, and until which time of the session's clock an answer may be from
    /// before that.
    pub(super) heard: HeardSize,
    /// Never the same again when something has spoilt `clean`.
    pub(super) soiled: u64,
    /// Time of the last change of the attributes and size when the lease ended, if nothing can have the same and other
    /// contents.
    pub(super) last: Option<(Time, u64)>,
    pub(super) names: Option<Box<Names>>,
    pub(super) target: Option<Arc<[u8]>>,
    /// All bytes of the file, as of `attr`.
    pub(super) contents: Option<Box<Contents>>,
    pub(super) used: bool,
}

/// Whether the kernel may cache contents: of a file its pages, of a directory its listing.
fn has_contents(attr: &Attr) -> bool {
    matches!(attr.mode & S_IFMT, S_IFREG | S_IFDIR)
}

const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;

/// Two changes within this time may leave the same time of change (the coarse clock of a kernel; 10 ms at most).
const TICK: Duration = Duration::from_millis(100);

impl Held {
    fn new(changed: u64, floor: u64) -> Held {
        Held {
            generation: 0,
            lease: Lease::None,
            granted: 0,
            over: floor,
            void: floor,
            alone: floor,
            attr: None,
            changing: 0,
            changed,
            told: false,
            shown: None,
            clean: false,
            sized: false,
            heard: HeardSize::default(),
            soiled: 0,
            last: None,
            names: None,
            target: None,
            contents: None,
            used: true,
        }
    }

    pub(super) fn leased(&self) -> bool {
        self.lease != Lease::None
    }

    /// Whether an answer may be from before a change, by this guest or another one; `since`: of [`Table::attrs_since`].
    fn is_older(&self, heard: &Heard, since: u64) -> bool {
        self.changing > 0 || self.changed.max(since) > heard.asked.seq || heard.note.stamp < self.void
    }

    pub(super) fn soil(&mut self, mark: u64) {
        self.clean = false;
        self.soiled = mark;
    }

    /// The lease is exclusive no more.
    fn share(&mut self) {
        if self.lease == Lease::Exclusive {
            self.lease = Lease::Shared;
        }
    }

    /// All that was known, and the lease, may be of another file that had the number. What the kernel was told stays noted.
    fn forget(&mut self, mark: u64) {
        self.lease = Lease::None;
        self.attr = None;
        self.target = None;
        self.contents = None;
        self.last = None;
        if let Some(names) = &mut self.names {
            names.doubt_all();
        }
        self.soil(mark);
    }

    /// The lease is over, and all that was known with it.
    pub(super) fn end(&mut self, data: bool, mark: u64, now: Instant) {
        let settled = |kept: &Kept| {
            let whole = self.clean && !data && now.saturating_duration_since(kept.asked.at) > TICK;
            whole.then_some((kept.attr.ctime, kept.attr.size))
        };
        self.last = self.attr.as_ref().and_then(settled);
        self.lease = Lease::None;
        self.attr = None;
        self.names = None;
        self.target = None;
        self.contents = None;
        self.sized = false;
        self.soil(mark);
    }
}

/// All that is known.
#[derive(Debug)]
pub struct Table {
    /// Boxed, as the map is at most seven eighths full and at times less than half.
    pub(super) nodes: HashMap<Node, Box<Held>>,
    /// The roots of grants, as found by the mount path.
    pub(super) roots: HashMap<u16, Node>,
    pub(super) life: u64,
    /// Nothing from before this stamp is kept of nodes that are not in the table.
    pub(super) floor: u64,
    pub(super) seq: u64,
    /// The count of changes when the last one of a node ended that is not in the table.
    pub(super) changed_floor: u64,
    /// Attributes learnt when fewer changes had ended are not believed.
    pub(super) attrs_since: u64,
    keep: Option<Duration>,
    /// Counts what made contents doubtful.
    marks: u64,
    pub(super) most: usize,
    shelf: Shelf,
    /// Directories that are being listed, and how often.
    listings: HashMap<Node, u32>,
    pub(super) cuts: Cuts,
    /// Names that are being removed of which it is not known what they stand for.
    pub removals: u32,
}

impl Default for Table {
    fn default() -> Table {
        Table {
            nodes: HashMap::new(),
            roots: HashMap::new(),
            life: 1,
            floor: 0,
            seq: 0,
            changed_floor: 0,
            removals: 0,
            attrs_since: 0,
            keep: None,
            marks: 0,
            most: 0,
            shelf: Shelf::default(),
            listings: HashMap::new(),
            cuts: Cuts::default(),
        }
    }
}

/// The sizes of a file that were last heard.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeardSize {
    /// Until which time of the session's clock an answer may be from before; 0: nothing was heard.
    until: u64,
    /// What was heard with that time may have come in any order.
    least: u64,
    most: u64,
}

impl HeardSize {
    pub(super) fn note(&mut self, until: u64, size: u64) {
        if until > self.until {
            *self = HeardSize { until, least: size, most: size };
        } else if until == self.until {
            self.least = self.least.min(size);
            self.most = self.most.max(size);
        }
    }

    /// Whether the file may have another size than an answer from this time says.
    fn contradicts(&self, stamp: u64, size: u64) -> bool {
        self.until >= stamp.max(1) && (self.least, self.most) != (size, size)
    }
}

/// Files that have been cut lately. What was told before of how long they are may come later, as there are several connections: the kernel is
/// not made to believe it, but asks.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    /// By others, and when that was told on the session's clock.
    told: VecDeque<(Node, u64)>,
    /// Nothing is known of earlier ones.
    told_since: u64,
    /// By this guest. When that was on the session's clock nobody says.
    own: VecDeque<(Node, Instant)>,
    /// Any file may be among those.
    any_until: Option<Instant>,
}

impl Cuts {
    /// Of each kind.
    const MOST: usize = 256;
    /// What was told before an own cut has come by then, or the session has lost its leases.
    const OWN: Duration = Duration::from_secs(60);

    /// When a connection is lost: what was told and not answered is told again.
    pub(super) fn new_life() -> Cuts {
        Cuts { told_since: u64::MAX, ..Cuts::default() }
    }

    /// Leases are taken again, at this time of the session's clock.
    fn begin(&mut self, stamp: u64) {
        if self.told_since == u64::MAX {
            self.told_since = stamp;
        }
    }

    pub(super) fn told(&mut self, node: Node, stamp: u64) {
        self.told.push_back((node, stamp));
        if self.told.len() > Self::MOST
            && let Some((_, forgotten)) = self.told.pop_front()
        {
            self.told_since = self.told_since.max(forgotten);
        }
    }

    fn own(&mut self, node: Node, now: Instant) {
        self.own.retain(|(other, until)| *other != node && *until > now);
        self.own.push_back((node, now + Self::OWN));
        if self.own.len() > Self::MOST {
            self.any_until = self.own.pop_front().map(|(_, until)| until).max(self.any_until);
        }
    }

    fn may_have(&self, node: Node, stamp: u64, now: Instant) -> bool {
        stamp <= self.told_since
            || self.any_until.is_some_and(|until| until > now)
            || self.told.iter().any(|(cut, at)| *cut == node && *at >= stamp)
            || self.own.iter().any(|(cut, until)| *cut == node && *until > now)
    }
}

/// Leases that the client keeps at most, whatever the gateway offers.
const MOST: usize = 64 * 1024;

impl Table {
    /// The present life: answers of another one are worth nothing.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Takes over the gateway's terms.
    pub fn terms(&mut self, life: u64, stamp: u64, terms: &LeaseTerms) {
        if life == self.life {
            self.cuts.begin(stamp);
            self.keep = Some(Duration::from_millis(terms.keep_ms));
            self.most = (terms.most as usize).min(MOST);
        }
    }

    /// A request is made.
    pub fn ask(&self, now: Instant) -> Asked {
        Asked { seq: self.seq, at: now }
    }

    fn until(&self, asked: Asked) -> Option<Instant> {
        asked.at.checked_add(self.keep?)
    }

    pub(super) fn held(&mut self, node: Node) -> &mut Held {
        let (changed, floor) = (self.changed_floor, self.floor);
        self.nodes.entry(node).or_insert_with(|| Box::new(Held::new(changed, floor)))
    }

    /// A number that never comes again.
    pub(super) fn mark(&mut self) -> u64 {
        self.marks += 1;
        self.marks
    }

    fn void(&self, node: Node) -> u64 {
        self.nodes.get(&node).map_or(self.floor, |held| held.void)
    }

    /// Takes over the lease that an answer speaks of; `fresh` if the kernel has nothing of the node at present. Returns
    /// whether there is one.
    fn grant(&mut self, heard: &Heard, node: Node, lease: Lease, fresh: bool) -> bool {
        if heard.life != self.life {
            return false;
        }
        if lease == Lease::None || self.keep.is_none() {
            if let Some(held) = self.nodes.get_mut(&node) {
                held.share();
            }
            return false;
        }
        let stamp = heard.note.stamp;
        let mark = self.mark();
        let held = self.held(node);
        if stamp < held.over {
            return false;
        }
        let first = !held.leased();
        // Only a recall ends a lease. But an exclusive one may be that of a former file with the number, made and removed within one tick of the
        // clock from which generations are made.
        if lease == Lease::Exclusive && stamp >= held.alone {
            held.lease = Lease::Exclusive;
        } else if first {
            held.lease = Lease::Shared;
        } else {
            held.share();
        }
        held.granted = held.granted.max(stamp);
        held.used = true;
        if fresh {
            // Whatever comes into the kernel's cache from here on comes under the lease.
            held.clean = true;
            held.sized = true;
        } else if first {
            held.soil(mark);
            held.sized = false;
        }
        true
    }

    /// An answer tells of a node and, if there is one, of its lease. Returns whether the attributes are kept.
    pub fn learn(&mut self, heard: &Heard, node: Node, lease: Lease, attr: &Attr, fresh: bool) -> bool {
        if let Some(held) = self.nodes.get_mut(&node).filter(|held| held.changing > 0) {
            held.heard.note(heard.note.stamp, attr.size);
        }
        self.is_present(heard, node, attr.generation)
            && self.grant(heard, node, lease, fresh)
            && self.keep_attr(heard, node, attr)
    }

    /// Whether an answer that speaks of a file of this generation is of the present one that has the number. A file that has lost its last name
    /// by a change of this guest leaves its lease behind, and the next file with its number may be anybody's.
    fn is_present(&mut self, heard: &Heard, node: Node, generation: u64) -> bool {
        if heard.life != self.life {
            return false;
        }
        let (since, mark) = (self.attrs_since, self.mark());
        let Some(held) = self.nodes.get_mut(&node) else { return true };
        if held.generation == 0 || held.generation == generation {
            held.generation = generation;
            return true;
        }
        let old = held.is_older(heard, since);
        held.forget(mark);
        if !old {
            held.generation = generation;
        }
        !old
    }

    /// Attributes after a change, where a lease is held already.
    pub fn learn_after(&mut self, heard: &Heard, node: Node, attr: &Attr) {
        if heard.life == self.life && self.nodes.get(&node).is_some_and(|held| held.leased()) {
            self.keep_attr(heard, node, attr);
        }
    }

    /// Returns whether they are kept.
    fn keep_attr(&mut self, heard: &Heard, node: Node, attr: &Attr) -> bool {
        let Some(until) = self.until(heard.asked) else { return false };
        let since = self.attrs_since;
        let Some(held) = self.nodes.get_mut(&node) else { return false };
        if held.generation == 0 {
            held.generation = attr.generation;
        }
        let other = attr.ino != node.ino || attr.generation != held.generation;
        if other || held.is_older(heard, since) {
            return false;
        }
        if let Some((ctime, size)) = held.last.take()
            && (ctime, size) == (attr.ctime, attr.size)
        {
            // Nobody has changed it while there was no lease.
            held.clean = true;
        }
        held.attr = Some(Kept { attr: *attr, until, asked: heard.asked });
        true
    }

    /// An answer that nobody waits for tells all that is in a file, and its attributes.
    pub fn learn_contents(&mut self, heard: &Heard, node: Node, attr: &Attr, bytes: &[u8], fresh: bool) {
        let whole = attr.size == bytes.len() as u64;
        if !self.learn(heard, node, Lease::Shared, attr, fresh) || !whole {
            return;
        }
        let Some(until) = self.until(heard.asked) else { return };
        let contents = self.shelf.make(node, bytes, until, heard.asked);
        if let Some(held) = self.nodes.get_mut(&node) {
            held.contents = Some(Box::new(contents));
        }
        while let Some((node, number)) = self.shelf.too_many() {
            if let Some(held) = self.nodes.get_mut(&node) {
                held.contents.take_if(|contents| contents.is(number));
            }
        }
    }

    /// All that is in a file, if that came ahead and still holds.
    pub fn contents(&self, node: Node, now: Instant) -> Option<Arc<[u8]>> {
        let attr = self.attr(node, now)?;
        let contents = self.nodes.get(&node)?.contents.as_ref()?;
        let holds = contents.until > now
            && contents.asked.seq >= self.attrs_since
            && attr.size == contents.bytes.len() as u64;
        holds.then(|| contents.bytes.clone())
    }

    /// The kernel has read all that is in a file, and keeps it.
    pub fn contents_read(&mut self, node: Node) {
        if let Some(held) = self.nodes.get_mut(&node) {
            held.contents = None;
        }
    }

    /// Bytes of contents that came ahead and have not been read.
    pub fn contents_bytes(&self) -> usize {
        self.shelf.bytes()
    }

    /// The target of a symlink.
    pub fn learn_target(&mut self, heard: &Heard, node: Node, target: &[u8]) {
        if heard.life != self.life || heard.note.node == Lease::None {
            return;
        }
        if let Some(held) = self.nodes.get_mut(&node)
            && held.leased()
            && heard.note.stamp >= held.void
        {
            held.target = Some(target.into());
        }
    }

    /// An answer tells what a name stands for.
    pub fn learn_name(&mut self, heard: &Heard, dir: Node, name: &Name, to: Option<Node>) {
        let Some(until) = self.until(heard.asked).filter(|_| heard.note.names && heard.life == self.life)
        else {
            return;
        };
        let seq = self.seq;
        let Some(held) = self.nodes.get_mut(&dir) else { return };
        let old = held.changing > 0
            || held.changed > heard.asked.seq
            || heard.note.stamp < held.void
            || !held.leased();
        if !old {
            let names = held.names.get_or_insert_default();
            names.set(name, to.map_or(To::Absent, To::Node), until, seq);
        }
    }

    /// A directory was listed from its start to its end by pages of which the first was asked for then, and all names in
    /// them were learnt; `stamp` is that of the first.
    pub fn learn_all(&mut self, heard: &Heard, dir: Node, stamp: u64) {
        let Some(until) = self.until(heard.asked).filter(|_| heard.note.names && heard.life == self.life)
        else {
            return;
        };
        let seq = self.seq;
        let Some(held) = self.nodes.get_mut(&dir) else { return };
        if held.leased() && held.changing == 0 && held.changed <= heard.asked.seq && stamp >= held.void {
            let names = held.names.get_or_insert_default();
            if !names.partial {
                names.complete = Some(until);
                names.since = seq;
            }
        }
    }

    /// A directory was made by this guest and nobody else can have put anything into it.
    pub fn learn_empty(&mut self, heard: &Heard, dir: Node) {
        let (until, seq) = (self.until(heard.asked), self.seq);
        if let Some(held) = self.nodes.get_mut(&dir)
            && held.leased()
            && heard.note.node != Lease::None
            && heard.life == self.life
            && heard.note.stamp >= held.void
            && held.changing == 0
            && held.names.is_none()
        {
            let names = held.names.get_or_insert_default();
            names.complete = until;
            names.since = seq;
        }
    }

    /// The root of a grant was found by its mount path.
    pub fn learn_root(&mut self, heard: &Heard, grant: u16, node: Node) {
        let fine = heard.life == self.life
            && heard.note.node != Lease::None
            && heard.note.stamp >= self.void(node)
            && self.nodes.get(&node).is_some_and(|held| held.leased());
        if fine {
            self.roots.insert(grant, node);
        }
    }

    /// The root of a grant and its attributes.
    pub fn root(&self, grant: u16, now: Instant) -> Option<(Node, Attr)> {
        let node = *self.roots.get(&grant)?;
        Some((node, self.attr(node, now)?))
    }

    /// What was known of the root of a grant is not believed any more.
    pub fn forget_root(&mut self, grant: u16) {
        self.roots.remove(&grant);
    }

    /// The kernel is shown attributes.
    pub fn show(&mut self, node: Node, attr: &Attr) {
        if let Some(held) = self.nodes.get_mut(&node) {
            held.shown = Some((attr.mtime, attr.size));
        }
    }

    /// Whether the kernel may believe in a size from before the lease: other guests may have made the file longer since. Otherwise, for
    /// [`Table::told_size`].
    pub fn may_be_longer(&self, node: Node) -> Option<u64> {
        let held = self.nodes.get(&node).filter(|held| held.leased());
        match held {
            None => Some(0),
            Some(held) => (!held.sized).then_some(held.soiled),
        }
    }

    /// Whether a file may have been cut since what was told at this time of the session's clock.
    pub fn was_cut(&self, node: Node, stamp: u64, now: Instant) -> bool {
        self.cuts.may_have(node, stamp, now)
    }

    /// This guest has set a file's size.
    pub fn has_cut(&mut self, node: Node, now: Instant) {
        self.cuts.own(node, now);
    }

    /// Whether a file was said to be longer or shorter while this guest changed it than the answer of this time says, which may be from before that.
    pub fn was_resized(&self, node: Node, stamp: u64, size: u64) -> bool {
        self.nodes.get(&node).is_some_and(|held| held.heard.contradicts(stamp, size))
    }

    /// The kernel has been told of the size; `when`: what [`Table::may_be_longer`] said before.
    pub fn told_size(&mut self, node: Node, when: u64) {
        if let Some(held) = self.nodes.get_mut(&node).filter(|held| held.leased() && held.soiled == when) {
            held.sized = true;
        }
    }

    /// Whether attributes of a file show that its contents are not those that the kernel was shown last. It then drops what it
    /// has of them by itself.
    pub fn shows_change(&self, node: Node, attr: &Attr) -> bool {
        let shown = self.nodes.get(&node).and_then(|held| held.shown);
        attr.mode & S_IFMT == S_IFREG && shown != Some((attr.mtime, attr.size))
    }

    /// Whether nobody else holds anything of a node, so that writes may be answered early.
    pub fn is_exclusive(&self, node: Node) -> bool {
        self.nodes.get(&node).is_some_and(|held| held.lease == Lease::Exclusive)
    }

    /// An answer says that the locks of a file may be kept here: whether that still holds.
    pub fn may_keep_locks(&mut self, heard: &Heard, node: Node) -> bool {
        let stamp = heard.note.stamp;
        heard.note.node == Lease::Exclusive
            && self.grant(heard, node, Lease::Exclusive, false)
            && self
                .nodes
                .get(&node)
                .is_some_and(|held| held.lease == Lease::Exclusive && held.alone.max(held.over) <= stamp)
    }

    /// Whether a change of this guest was under way at any time since a request, so that its answer may be from before it.
    pub fn is_doubtful(&self, node: Node, asked: Asked) -> bool {
        let unknown = self.changed_floor > asked.seq;
        let changed =
            self.nodes.get(&node).map_or(unknown, |held| held.changing > 0 || held.changed > asked.seq);
        self.attrs_since > asked.seq || changed
    }

    /// A change of these nodes by this guest begins: from here to its end nothing is learnt of them.
    pub fn begin(&mut self, nodes: &[Node], now: Instant) -> OwnChange {
        let mut concerned: Vec<Node> = nodes.to_vec();
        concerned.sort_unstable();
        concerned.dedup();
        for node in &concerned {
            let held = self.held(*node);
            if held.changing == 0 {
                held.heard = HeardSize::default();
            }
            held.changing += 1;
        }
        let asked = self.ask(now);
        // What is learnt from here on is told apart from what was known before.
        self.seq += 1;
        OwnChange { asked, nodes: concerned, life: self.life }
    }

    /// The same for a write that is answered before the gateway has it: what is known of the node is not true any more.
    pub fn begin_early(&mut self, node: Node, now: Instant) -> OwnChange {
        let change = self.begin(&[node], now);
        self.held(node).attr = None;
        change
    }

    /// A change that has begun is sent only now: what has ended since it began did not touch the same at the same time.
    pub fn sent(&self, change: OwnChange, now: Instant) -> OwnChange {
        OwnChange { asked: self.ask(now), ..change }
    }

    /// A change ends, well or not. Attributes of what it concerned are unknown. Returns, for answers that tell the new state,
    /// when they count as asked for; and which nodes no other change of this guest has touched meanwhile.
    pub fn end(&mut self, change: &OwnChange) -> (Asked, Vec<Node>) {
        self.seq += 1;
        let seq = self.seq;
        let mut sole = vec![];
        for node in &change.nodes {
            let Some(held) = self.nodes.get_mut(node) else {
                // The table began another life meanwhile.
                self.changed_floor = seq;
                continue;
            };
            if change.life == self.life {
                held.changing = held.changing.saturating_sub(1);
            }
            // A change that touched something unknown meanwhile may have touched this.
            if held.changing == 0 && held.changed <= change.asked.seq && self.attrs_since <= change.asked.seq
            {
                sole.push(*node);
            }
            held.changed = seq;
            held.attr = None;
            // The number of a symlink that is removed may be another one's next.
            held.target = None;
            held.contents = None;
        }
        (Asked { seq, at: change.asked.at }, sole)
    }

    /// What this guest's change made of a name; `None`: that is not known.
    pub fn changed_name(&mut self, heard: Option<&Heard>, dir: Node, name: &Name, to: Option<Option<Node>>) {
        let until = heard.and_then(|heard| self.until(heard.asked));
        let (seq, life) = (self.seq, self.life);
        let Some(held) = self.nodes.get_mut(&dir) else { return };
        if !held.leased() {
            return;
        }
        let names = held.names.get_or_insert_default();
        match (heard, until, to) {
            (Some(heard), Some(until), Some(to))
                if heard.life == life
                    && heard.note.names
                    && heard.note.stamp >= held.void
                    && held.changing == 0 =>
            {
                names.set(name, to.map_or(To::Absent, To::Node), until, seq);
            }
            _ => names.doubt(name, seq),
        }
    }

    /// This guest has renamed something to a name, and the kernel takes along what it was told of the former one: for as long as it was told that, it
    /// believes the new name. Returns whether that is what the name stands for, and whoever changes it is going to be heard of.
    pub fn moved_to(&mut self, dir: Node, name: &Name) -> bool {
        let held = self.nodes.get_mut(&dir).filter(|held| held.leased());
        held.and_then(|held| held.names.as_mut()).is_some_and(|names| names.moved_to(name))
    }

    /// The node that a name stood for during the whole of a change, if that is certain.
    pub fn stood_for(&self, change: &OwnChange, dir: Node, name: &Name) -> Option<Node> {
        let held = self.nodes.get(&dir).filter(|held| held.leased() && change.life == self.life)?;
        let link = held.names.as_ref()?.get(name)?;
        match link.to {
            To::Node(node) if link.since <= change.asked.seq => Some(node),
            _ => None,
        }
    }

    /// Whether a name stood for nothing during the whole of a change, for certain.
    pub fn was_absent(&self, change: &OwnChange, dir: Node, name: &Name) -> bool {
        let Some(held) = self.nodes.get(&dir).filter(|held| held.leased() && change.life == self.life) else {
            return false;
        };
        let Some(names) = &held.names else { return false };
        match names.get(name) {
            Some(link) => link.to == To::Absent && link.since <= change.asked.seq,
            // A recall would have put the name into the map.
            None => names.complete.is_some() && names.since <= change.asked.seq,
        }
    }

    /// A change of this guest has touched a node that is not known: no attributes are believed any more.
    pub fn distrust(&mut self) {
        self.attrs_since = self.seq;
    }

    /// A change of this guest has touched this node as well.
    pub fn touched(&mut self, node: Node) {
        let seq = self.seq;
        if let Some(held) = self.nodes.get_mut(&node) {
            held.changed = seq;
            held.attr = None;
            held.target = None;
            held.contents = None;
        } else {
            self.changed_floor = seq;
        }
    }

    /// This guest has taken a name from a node: if that is a directory, it is gone, and somebody else may make one that gets its number.
    pub fn unnamed(&mut self, node: Node) {
        let mark = self.mark();
        if let Some(held) = self.nodes.get_mut(&node).filter(|held| held.names.is_some()) {
            held.forget(mark);
        }
    }

    /// What is known of a name.
    pub fn lookup(&mut self, dir: Node, name: &Name, now: Instant) -> Found {
        let Some(held) = self.nodes.get_mut(&dir).filter(|held| held.leased()) else { return Found::Unknown };
        held.used = true;
        let Some(names) = &held.names else { return Found::Unknown };
        match names.get(name) {
            Some(link) if link.until <= now || link.to == To::Unknown => Found::Unknown,
            Some(link) => match link.to {
                // Without names it is a former file that had the number: a listing tells names without saying of which file they are.
                To::Node(node) => self
                    .attr(node, now)
                    .filter(|attr| attr.nlink > 0)
                    .map_or(Found::Unknown, |attr| Found::Node(node, attr)),
                _ => Found::Absent,
            },
            None if names.complete.is_some_and(|until| until > now) => Found::Absent,
            None => Found::Unknown,
        }
    }

    /// Attributes, if they are known.
    pub fn attr(&self, node: Node, now: Instant) -> Option<Attr> {
        let held = self.nodes.get(&node).filter(|held| held.leased())?;
        let kept = held.attr.as_ref()?;
        (kept.until > now && kept.asked.seq >= self.attrs_since).then_some(kept.attr)
    }

    /// Whether a node may be opened without the gateway: none of its names is about to go, by a change of this guest.
    pub fn opens_lazily(&self, node: Node) -> bool {
        self.removals == 0 && self.nodes.get(&node).is_none_or(|held| held.changing == 0)
    }

    /// The target of a symlink, if it is known.
    pub fn target(&self, node: Node, now: Instant) -> Option<Arc<[u8]>> {
        self.attr(node, now)?;
        self.nodes.get(&node)?.target.clone()
    }

    /// Whether a lease is held on a node.
    pub fn leased(&self, node: Node) -> bool {
        self.nodes.get(&node).is_some_and(|held| held.leased())
    }

    /// Whether an exclusive lease is held on a node.
    pub fn exclusive(&self, node: Node) -> bool {
        self.nodes.get(&node).is_some_and(|held| held.lease == Lease::Exclusive)
    }

    /// Whether a change of a node by this guest is under way.
    pub fn is_changing(&self, node: Node) -> bool {
        self.nodes.get(&node).is_some_and(|held| held.changing > 0)
    }

    /// Whether what the kernel may have of a node's contents is what the lease speaks of.
    pub fn clean(&self, node: Node, now: Instant) -> bool {
        self.attr(node, now).is_some() && self.nodes.get(&node).is_some_and(|held| held.clean)
    }

    /// Notes that the kernel is told of attributes; returns for how long it may keep them. Not at all if they are not those that are
    /// known: the answer that they came with has been overtaken.
    pub fn tell_attr(&mut self, node: Node, attr: &Attr, now: Instant) -> Duration {
        if self.attr(node, now).is_none_or(|known| known != *attr) {
            return Duration::ZERO;
        }
        match self.nodes.get_mut(&node) {
            Some(held) if held.clean || held.attr.is_none_or(|kept| !has_contents(&kept.attr)) => {
                held.told = true;
                held.used = true;
                held.attr.map_or(Duration::ZERO, |kept| kept.until.saturating_duration_since(now))
            }
            _ => Duration::ZERO,
        }
    }

    /// Notes that the kernel is told what a name stands for; returns for how long it may keep that.
    pub fn tell_name(&mut self, dir: Node, name: &Name, to: Option<Node>, now: Instant) -> Duration {
        let seq = self.seq;
        let Some(held) = self.nodes.get_mut(&dir).filter(|held| held.leased() && held.changing == 0) else {
            return Duration::ZERO;
        };
        let Some(names) = held.names.as_mut() else { return Duration::ZERO };
        let until = match (names.get(name), to) {
            (Some(link), Some(node)) if link.to == To::Node(node) => Some(link.until),
            (Some(link), None) if link.to == To::Absent => Some(link.until),
            (None, None) => names.complete,
            _ => None,
        };
        match until.filter(|until| *until > now) {
            Some(until) if names.tell(name, until, seq) => until.saturating_duration_since(now),
            _ => Duration::ZERO,
        }
    }

    /// Before the kernel's pages of a node are dropped: `None` if they need not be, or if that would prove nothing because
    /// there is no lease.
    pub fn soiled(&self, node: Node) -> Option<u64> {
        let held = self.nodes.get(&node)?;
        let matters = held.attr.is_some_and(|kept| has_contents(&kept.attr));
        (held.leased() && !held.clean && matters).then_some(held.soiled)
    }

    /// Somebody lists a directory, until he closes it. Meanwhile an old page may be on its way into the kernel's cache, also after
    /// the kernel has dropped what it had.
    pub fn listing_begins(&mut self, dir: Node) {
        *self.listings.entry(dir).or_default() += 1;
    }

    /// A directory that was listed is closed.
    pub fn listing_ends(&mut self, dir: Node) {
        if let Some(count) = self.listings.get_mut(&dir) {
            *count -= 1;
            if *count == 0 {
                self.listings.remove(&dir);
            }
        }
    }

    /// The kernel's pages of a node have been dropped since [`Table::soiled`] gave this.
    pub fn cleaned(&mut self, node: Node, soiled: u64) {
        if self.listings.contains_key(&node) {
            return;
        }
        if let Some(held) = self.nodes.get_mut(&node)
            && held.leased()
            && held.soiled == soiled
        {
            held.clean = true;
        }
    }

    /// A node was made by this guest: what is known of another one that had its number is not known of it.
    pub fn born(&mut self, node: Node) {
        let mark = self.mark();
        if let Some(held) = self.nodes.get_mut(&node) {
            held.attr = None;
            held.target = None;
            held.contents = None;
            held.names = None;
            held.last = None;
            held.soil(mark);
        }
    }

    /// The kernel has nothing of a node at present, and is about to be told of it.
    pub fn fresh(&mut self, node: Node) {
        if let Some(held) = self.nodes.get_mut(&node)
            && held.leased()
        {
            held.clean = true;
            held.sized = true;
        }
    }

    /// The node that a name stands for, for all that is known.
    pub fn named(&self, dir: Node, name: &Name) -> Option<Node> {
        match self.nodes.get(&dir)?.names.as_ref()?.get(name)?.to {
            To::Node(node) => Some(node),
            _ => None,
        }
    }

    /// Whether there is room to learn of so many nodes that nobody has asked for.
    pub fn has_room(&self, nodes: usize) -> bool {
        self.nodes.len().saturating_add(nodes) <= self.most / 2
    }

    /// How many nodes are in the table.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many names are in the table.
    pub fn names(&self) -> usize {
        self.nodes.values().filter_map(|held| held.names.as_ref()).map(|names| names.len()).sum()
    }
}
