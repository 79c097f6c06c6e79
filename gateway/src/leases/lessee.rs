//! A session's leases: how many there are, what was recalled and not answered yet, and when all are lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use strongroom_protocol::attr;
use strongroom_protocol::codec;
use strongroom_protocol::lease::{Lease, MAX_ITEMS, Recalled, What};
use strongroom_protocol::reply::Event;

use super::node::{Holder, Key, Wish, covers};
use super::wait::Wait;
use crate::gate::grant::GrantState;
use crate::locks::Locks;
use crate::tree::Node;

/// Leases that are given up at once where there is no room for more.
const BATCH: usize = 64;
/// Places of the table that are looked at for that.
const LOOKS: usize = 4 * BATCH;
/// Recalls that a session may leave unanswered; beyond, it loses its leases.
const MOST_PENDING: usize = 1024;
/// Recalls that are looked at for one that says the same already, and the most items in such a one.
const JOINED: usize = 16;
/// How long a client that did not answer in time gets no leases: the first time, the second, from the third on.
const PENALTIES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(10), Duration::from_secs(60)];
/// After this time without an offence, the next one is the first again.
const FORGIVEN: Duration = Duration::from_secs(600);

/// Reaches the client of a session.
pub trait Teller: Send + Sync {
    /// Sends an event with its data on one connection of the session, or on all. Must not wait for the client.
    fn tell(&self, event: Event, data: Vec<u8>, everywhere: bool);
}

/// How often the clients of one contract did not answer in time, whatever their sessions are called.
#[derive(Default)]
pub(crate) struct Offences(Mutex<(usize, Option<Instant>)>);

impl Offences {
    /// One more. Returns when there may be leases again.
    fn add(&self, now: Instant) -> Instant {
        let mut record = self.0.lock();
        let (count, last) = *record;
        let recent = last.is_some_and(|at| now.saturating_duration_since(at) < FORGIVEN);
        let count = if recent { count.saturating_add(1) } else { 1 };
        *record = (count, Some(now));
        now + penalty(count)
    }

    /// When there may be leases again; `None`: nothing is remembered.
    pub(super) fn until(&self) -> Option<Instant> {
        let (count, last) = *self.0.lock();
        last.filter(|at| at.elapsed() < FORGIVEN).map(|at| at + penalty(count))
    }
}

fn penalty(offences: usize) -> Duration {
    let [.., longest] = PENALTIES;
    PENALTIES.get(offences.saturating_sub(1)).copied().unwrap_or(longest)
}

/// Something to be recalled.
pub(crate) struct Need {
    pub(super) key: Key,
    pub(super) node: Arc<Node>,
    pub(super) what: What,
    /// It has no lease: see [`super::node::State::add_stray`] and [`super::node::State::add_opener`].
    stray: bool,
}

impl Need {
    /// What a lease stands in the way of.
    pub(super) fn of_lease(key: Key, node: &Arc<Node>, what: What) -> Need {
        Need { key, node: Arc::clone(node), what, stray: false }
    }

    /// What was given without a lease has changed.
    pub(super) fn of_stray(key: Key, node: &Arc<Node>) -> Need {
        let what = What::All { data: true, open: false };
        Need { key, node: Arc::clone(node), what, stray: true }
    }

    /// What is open without a lease has become longer or shorter.
    pub(super) fn of_opener(key: Key, node: &Arc<Node>, what: What) -> Need {
        Need { key, node: Arc::clone(node), what, stray: true }
    }
}

/// Of which lease an item is that is about none.
const NO_LEASE: u64 = 0;

struct Item {
    node: Arc<Node>,
    grant: u16,
    what: What,
    /// Which lease it was: the answer is not about one that was given later.
    since: u64,
}

/// A recall that the client has not answered.
struct Pending {
    items: Vec<Item>,
    waits: Vec<Arc<Wait>>,
    /// How many of them make room in the table.
    for_room: usize,
    message: (Event, Vec<u8>),
}

#[derive(Default)]
struct Recalls {
    /// Unanswered recalls by number.
    pending: BTreeMap<u64, Pending>,
    next: u64,
    /// All leases were lost, and the client has not said yet that it knows; the number that it is to say.
    lost: Option<u64>,
    /// Since when there is no connection.
    alone: Option<Instant>,
    /// Somebody has waited for it since then.
    awaited: bool,
    over: bool,
}

struct Slot {
    node: Option<Arc<Node>>,
    grant: u16,
}

/// Which leases there are, to find them from the session.
#[derive(Default)]
struct Table {
    open: bool,
    /// Not open before.
    from: Option<Instant>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    hand: usize,
    /// How many are being given up to make room.
    leaving: usize,
}

/// The session's side of its leases.
pub(crate) struct Lessee {
    pub(crate) number: u64,
    pub(crate) grants: Arc<[GrantState]>,
    most: usize,
    recall: Duration,
    takes: AtomicBool,
    /// It has a connection on which it has said so: what it is told that it may keep is not about to be over.
    present: AtomicBool,
    /// Operations that let nobody be given anything until they are done.
    barred: AtomicU32,
    clock: AtomicU64,
    given: AtomicU64,
    table: Mutex<Table>,
    recalls: Mutex<Recalls>,
    teller: OnceLock<Arc<dyn Teller>>,
    offences: Arc<Offences>,
    locks: Arc<Locks>,
}

/// What a lessee is made of.
pub(crate) struct LesseeParts {
    /// The session's number.
    pub(crate) number: u64,
    pub(crate) grants: Arc<[GrantState]>,
    /// The most leases.
    pub(crate) most: usize,
    /// How long a recall is waited for.
    pub(crate) recall: Duration,
    /// What is known of the contract's clients.
    pub(crate) offences: Arc<Offences>,
    /// The locks for which clients may answer.
    pub(crate) locks: Arc<Locks>,
}

impl Lessee {
    pub(crate) fn new(parts: LesseeParts) -> Arc<Lessee> {
        let LesseeParts { number, grants, most, recall, offences, locks } = parts;
        Arc::new(Lessee {
            number,
            grants,
            most: most.max(1),
            recall,
            offences,
            locks,
            takes: AtomicBool::new(false),
            present: AtomicBool::new(false),
            barred: AtomicU32::new(0),
            clock: AtomicU64::new(1),
            given: AtomicU64::new(0),
            table: Mutex::default(),
            recalls: Mutex::default(),
            teller: OnceLock::new(),
        })
    }

    /// Whether the client has ever said that it answers recalls.
    pub(crate) fn takes(&self) -> bool {
        self.takes.load(Ordering::Relaxed)
    }

    /// Whether the client may be told now that it may keep things.
    pub(super) fn may_keep(&self) -> bool {
        self.present.load(Ordering::SeqCst) && self.barred.load(Ordering::SeqCst) == 0
    }

    /// The present time of the session's clock, and the number of the last lease given.
    pub(crate) fn now(&self) -> (u64, u64) {
        (self.clock.load(Ordering::SeqCst), self.given.load(Ordering::SeqCst))
    }

    /// The number of a lease given now.
    pub(super) fn next(&self) -> u64 {
        self.given.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// How many leases there are.
    pub(crate) fn len(&self) -> usize {
        let table = self.table.lock();
        table.slots.len() - table.free.len()
    }

    /// How its client is reached; to be said once.
    pub(crate) fn set_teller(&self, teller: Arc<dyn Teller>) {
        // One is as good as the other.
        let _ = self.teller.set(teller);
    }

    /// The client answers recalls from now on. What it held before it lost its last connection is over.
    pub(crate) fn begin(&self) {
        let was_alone = {
            let mut recalls = self.recalls.lock();
            if recalls.over {
                return;
            }
            recalls.alone.take().is_some()
        };
        if was_alone {
            // What it read on its new connections before it says this, it has without a lease, and is still asked for that.
            self.void(Pending::is_of_strays, None);
            self.repeat();
            // Its client has told of them before it says this.
            self.locks.end_all_keeping(self.number).send();
        }
        self.takes.store(true, Ordering::Relaxed);
        let recalls = self.recalls.lock();
        if recalls.lost.is_none() && recalls.alone.is_none() && !recalls.over {
            let mut table = self.table.lock();
            table.open = true;
            table.from = self.offences.until();
            self.present.store(true, Ordering::SeqCst);
        }
    }

    /// The last connection is gone. Whose end of it was closed does not matter: what a client's kernel has is gone only when the client
    /// says so.
    pub(crate) fn leave_alone(&self) {
        if !self.takes() {
            return;
        }
        self.present.store(false, Ordering::SeqCst);
        {
            let mut recalls = self.recalls.lock();
            (recalls.alone, recalls.awaited) = (Some(Instant::now()), false);
        }
        self.table.lock().open = false;
    }

    /// The session is over.
    pub(crate) fn end(&self) {
        self.recalls.lock().over = true;
        self.void(|_| false, None);
    }

    /// Whether there are no leases because an answer did not come in time.
    fn is_punished(&self) -> bool {
        self.table.lock().is_barred()
    }

    /// Gives a lease on a node. The node's leases are looked at again with the table locked.
    pub(super) fn give(&self, node: &Arc<Node>, key: Key, wish: Wish) -> Lease {
        let mut table = self.table.lock();
        if !table.open || table.is_barred() {
            return Lease::None;
        }
        table.from = None;
        let Some(slot) = table.place(self.most) else {
            let leaving = table.choose_leaving(self);
            drop(table);
            self.make_room(leaving);
            return Lease::None;
        };
        let lease = {
            let mut state = node.leases.lock();
            let free = !state.changed_by_others(key)
                && state.exclusive_other(key).is_none()
                && state.get(key).is_none()
                && self.barred.load(Ordering::SeqCst) == 0;
            free.then(|| {
                let exclusive = state.may_be_exclusive(key, wish);
                let since = self.next();
                state.add(Holder {
                    key,
                    since,
                    slot,
                    exclusive: false,
                    used: true,
                    going: false,
                    sharing: false,
                    told: 0,
                });
                if exclusive && state.make_exclusive(since) { Lease::Exclusive } else { Lease::Shared }
            })
        };
        match (lease, table.slots.get_mut(slot as usize)) {
            (Some(lease), Some(place)) => {
                *place = Slot { node: Some(Arc::clone(node)), grant: key.grant() };
                let leaving =
                    if table.is_nearly_full(self.most) { table.choose_leaving(self) } else { vec![] };
                drop(table);
                self.make_room(leaving);
                lease
            }
            _ => {
                table.free.push(slot);
                Lease::None
            }
        }
    }

    /// Marks the lease on a node as one that is not used any more: the client has forgotten the node. The lease goes on: a
    /// reply that the client takes for a new one may be on its way.
    pub(crate) fn forget(&self, node: &Node, grant: u16) {
        if let Some(holder) = node.leases.lock().get(Key::new(self.number, grant)) {
            holder.used = false;
        }
    }

    fn make_room(&self, leaving: Vec<Need>) {
        if !leaving.is_empty() {
            let _ = self.recall_for(leaving, None, true);
        }
    }

    /// Asks the client to forget things that have changed already.
    pub(crate) fn inform(&self, needs: Vec<Need>) {
        let _ = self.recall_for(needs, None, false);
    }

    /// Asks the client to forget everything, as anything may have changed already.
    pub(crate) fn recall_everything(&self) {
        let mut needs = self.everything();
        needs.iter_mut().for_each(|need| need.what = What::All { data: true, open: false });
        self.inform(needs);
    }

    /// Asks the client to forget things; `wait` is told when it has. Returns until when it has time; `None`: there is
    /// nothing to wait for.
    pub(super) fn recall(&self, needs: Vec<Need>, wait: &Arc<Wait>) -> Option<Instant> {
        self.recall_for(needs, Some(wait), false)
    }

    fn recall_for(
        &self,
        mut needs: Vec<Need>,
        mut wait: Option<&Arc<Wait>>,
        for_room: bool,
    ) -> Option<Instant> {
        let asked = needs.len();
        let mut prepared = 0;
        let mut messages = vec![];
        let (until, too_many) = {
            let mut recalls = self.recalls.lock();
            let lost = recalls.lost.is_some();
            if lost {
                needs.retain(|need| need.stray);
            } else if !self.takes() {
                // Its client keeps nothing.
                needs.retain(|need| !need.stray);
            }
            if recalls.over || needs.is_empty() || lost && recalls.pending.len() >= MOST_PENDING {
                return None;
            }
            if needs.iter().all(|need| need.stray) && (lost || self.is_punished()) {
                // It has made others wait before. It is told, but has no lease that it could be made to give up before it is trusted again.
                wait = None;
            }
            // Without a connection it has had its time since it lost the last one.
            let now = Instant::now();
            let until = recalls.alone.unwrap_or(now) + self.recall;
            if until <= now && needs.iter().all(|need| need.stray) {
                // When it comes back it forgets its pages, and asks for the sizes of what it has open.
                return None;
            }
            recalls.awaited |= until > now && wait.is_some();
            let mut fresh = vec![];
            for need in needs {
                match (wait, recalls.same(&need)) {
                    (Some(wait), Some(pending)) => {
                        wait.expect();
                        pending.waits.push(Arc::clone(wait));
                    }
                    _ => fresh.push(need),
                }
            }
            let mut fresh = fresh.into_iter().peekable();
            while fresh.peek().is_some() {
                let items: Vec<Item> = fresh.by_ref().take(MAX_ITEMS).filter_map(Item::prepare).collect();
                prepared += items.len();
                if !items.is_empty() {
                    messages.push(self.enter(&mut recalls, items, wait, for_room));
                }
            }
            (until, recalls.pending.len() > MOST_PENDING)
        };
        if for_room && prepared < asked {
            let mut table = self.table.lock();
            table.leaving = table.leaving.saturating_sub(asked - prepared);
        }
        if let Some(teller) = self.teller.get() {
            messages.into_iter().for_each(|(event, data)| teller.tell(event, data, false));
        }
        if too_many {
            self.lose();
        }
        Some(until)
    }

    fn enter(
        &self,
        recalls: &mut Recalls,
        items: Vec<Item>,
        wait: Option<&Arc<Wait>>,
        for_room: bool,
    ) -> (Event, Vec<u8>) {
        recalls.next += 1;
        let id = recalls.next;
        // After the leases are marked as going: whatever begins from now on knows.
        let stamp = self.clock.fetch_add(1, Ordering::SeqCst) + 1;
        let list: Vec<Recalled> = items.iter().map(Item::told).collect();
        // The longest list fits (tested in the protocol).
        let data = codec::encode_list(&list).unwrap_or_default();
        let message = (Event::Recall { id, stamp }, data);
        if let Some(wait) = wait {
            wait.expect();
        }
        let for_room = if for_room { items.len() } else { 0 };
        let waits = wait.into_iter().cloned().collect();
        let pending = Pending { items, waits, for_room, message: message.clone() };
        recalls.pending.insert(id, pending);
        message
    }

    /// Sends what is not answered once more, on all connections: one of them may be broken.
    pub(crate) fn repeat(&self) {
        let messages: Vec<_> = {
            let recalls = self.recalls.lock();
            recalls.pending.values().map(|pending| pending.message.clone()).collect()
        };
        if let Some(teller) = self.teller.get() {
            messages.into_iter().for_each(|(event, data)| teller.tell(event, data, true));
        }
    }

    /// The client has answered a recall. `false`: there is none of this number.
    pub(crate) fn answered(&self, id: u64) -> bool {
        let pending = {
            let mut recalls = self.recalls.lock();
            if recalls.lost == Some(id) {
                // With the locks too; before there can be leases again.
                let due = self.locks.end_all_keeping(self.number);
                recalls.lost = None;
                if recalls.alone.is_none() && !recalls.over {
                    self.table.lock().open = true;
                }
                drop(recalls);
                due.send();
                return true;
            }
            recalls.pending.remove(&id)
        };
        let Some(pending) = pending else { return false };
        for item in &pending.items {
            let key = Key::new(self.number, item.grant);
            match &item.what {
                What::Name(_) | What::Longer(_) | What::Shorter(_) => {}
                What::Shared => self.share(&item.node, key, item.since),
                What::All { .. } => self.let_go(&item.node, key, item.since),
            }
        }
        if pending.for_room > 0 {
            let mut table = self.table.lock();
            table.leaving = table.leaving.saturating_sub(pending.for_room);
        }
        pending.waits.iter().for_each(|wait| wait.done());
        true
    }

    /// Makes an exclusive lease a shared one.
    fn share(&self, node: &Node, key: Key, since: u64) {
        let due = {
            let mut state = node.leases.lock();
            let shared = state.make_shared(key, since);
            shared.then(|| self.locks.end_keeping(node.id, key))
        };
        due.unwrap_or_default().send();
    }

    /// Takes a lease that is being recalled out of its node and out of the table.
    fn let_go(&self, node: &Arc<Node>, key: Key, since: u64) {
        let gone = {
            let mut state = node.leases.lock();
            match state.get(key) {
                Some(holder) if holder.going && holder.since == since => {
                    let due = self.locks.end_keeping(node.id, key);
                    state.remove(key).map(|holder| (holder.slot, due))
                }
                _ => None,
            }
        };
        let Some((slot, due)) = gone else { return };
        due.send();
        let mut table = self.table.lock();
        let Some(place) = table.slots.get_mut(slot as usize) else { return };
        // Meanwhile the place may be another's: then the node has a lease with this place again, or the place another node.
        let ours =
            place.grant == key.grant() && place.node.as_ref().is_some_and(|other| Arc::ptr_eq(other, node));
        let again = node.leases.lock().get(key).is_some_and(|holder| holder.slot == slot);
        if ours && !again {
            let old = place.node.take();
            table.free.push(slot);
            drop(table);
            drop(old);
        }
    }

    /// Whether an operation waits for an answer that has not come.
    pub(super) fn is_late(&self, wait: &Arc<Wait>) -> bool {
        let recalls = self.recalls.lock();
        recalls.pending.values().any(|pending| pending.waits.iter().any(|other| Arc::ptr_eq(other, wait)))
    }

    /// Takes all leases away at once because an answer did not come in time.
    pub(super) fn take_away(&self) {
        let (alone, awaited) = {
            let mut recalls = self.recalls.lock();
            (recalls.alone.is_some(), std::mem::take(&mut recalls.awaited))
        };
        if alone {
            // It has not been back in time either. Otherwise whoever cuts his connections again and again could hold others up.
            self.void(|_| false, awaited.then(|| self.offences.add(Instant::now())));
        } else {
            self.lose();
        }
    }

    /// All that the session holds, to be recalled.
    pub(super) fn everything(&self) -> Vec<Need> {
        let table = self.table.lock();
        let need = |slot: &Slot| {
            let what = What::All { data: false, open: false };
            Some(Need::of_lease(Key::new(self.number, slot.grant), slot.node.as_ref()?, what))
        };
        table.slots.iter().filter_map(need).collect()
    }

    /// Lets nobody be given anything until [`Lessee::unbar`].
    pub(super) fn bar(&self) {
        self.barred.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn unbar(&self) {
        self.barred.fetch_sub(1, Ordering::SeqCst);
    }

    /// All leases are over because the client did not answer, and it is told. It gets no new ones before it has answered.
    fn lose(&self) {
        let (pending, message) = {
            let mut recalls = self.recalls.lock();
            if recalls.lost.is_some() || recalls.over {
                return;
            }
            recalls.next += 1;
            let id = recalls.next;
            let stamp = self.clock.fetch_add(1, Ordering::SeqCst) + 1;
            recalls.lost = Some(id);
            (std::mem::take(&mut recalls.pending), Event::LeasesLost { id, stamp })
        };
        let from = self.offences.add(Instant::now());
        self.clear(pending, Some(from));
        if let Some(teller) = self.teller.get() {
            teller.tell(message, vec![], true);
        }
    }

    /// All leases are over, and the client knows, is gone, or has to say that it has forgotten all before it gets any. `stays`: recalls that
    /// it still answers; `from`: when there may be leases again.
    fn void(&self, stays: impl Fn(&Pending) -> bool, from: Option<Instant>) {
        let pending = {
            let mut recalls = self.recalls.lock();
            self.clock.fetch_add(1, Ordering::SeqCst);
            recalls.lost = None;
            let all = std::mem::take(&mut recalls.pending);
            let (kept, over) = all.into_iter().partition(|(_, pending)| stays(pending));
            recalls.pending = kept;
            over
        };
        self.clear(pending, from);
    }

    fn clear(&self, pending: BTreeMap<u64, Pending>, from: Option<Instant>) {
        let slots = {
            let mut table = self.table.lock();
            let from = from.or(table.from);
            std::mem::replace(&mut *table, Table { from, ..Table::default() }).slots
        };
        for slot in &slots {
            if let Some(node) = &slot.node {
                node.leases.lock().remove(Key::new(self.number, slot.grant));
            }
        }
        pending.values().flat_map(|pending| &pending.waits).for_each(|wait| wait.done());
    }
}

impl Pending {
    fn is_of_strays(&self) -> bool {
        self.items.iter().all(|item| item.since == NO_LEASE)
    }
}

impl Item {
    /// Marks the lease; `None` if there is none any more.
    fn prepare(need: Need) -> Option<Item> {
        let Need { key, node, what, stray } = need;
        let since = if stray {
            NO_LEASE
        } else {
            let mut state = node.leases.lock();
            let holder = state.get(key)?;
            match what {
                What::All { .. } => holder.going = true,
                What::Shared => holder.sharing = true,
                What::Name(_) | What::Longer(_) | What::Shorter(_) => {}
            }
            holder.since
        };
        Some(Item { node, grant: key.grant(), what, since })
    }

    fn told(&self) -> Recalled {
        let node = attr::Node { grant: self.grant, ino: self.node.ino };
        Recalled { node, what: self.what.clone() }
    }
}

impl Recalls {
    /// An unanswered recall that asks for the same or more. Not of a name: since then the client may have been told anew.
    fn same(&mut self, need: &Need) -> Option<&mut Pending> {
        if need.stray {
            // What was asked before may have been answered by what was read before.
            return None;
        }
        let since = {
            let mut state = need.node.leases.lock();
            let holder = state.get(need.key)?;
            let asked = holder.going || (holder.sharing && need.what == What::Shared);
            asked.then_some(holder.since)?
        };
        let same = |item: &Item| {
            item.grant == need.key.grant()
                && item.since == since
                && Arc::ptr_eq(&item.node, &need.node)
                && !matches!(item.what, What::Name(_))
                && covers(&item.what, &need.what)
        };
        let small = |pending: &&mut Pending| pending.items.len() <= JOINED && pending.items.iter().any(same);
        self.pending.values_mut().rev().take(JOINED).find(small)
    }
}

impl Table {
    /// Whether it is too early for leases.
    fn is_barred(&self) -> bool {
        self.from.is_some_and(|from| Instant::now() < from)
    }

    /// A free place.
    fn place(&mut self, most: usize) -> Option<u32> {
        if let Some(place) = self.free.pop() {
            return Some(place);
        }
        let place = u32::try_from(self.slots.len()).ok().filter(|_| self.slots.len() < most)?;
        self.slots.push(Slot { node: None, grant: 0 });
        Some(place)
    }

    fn is_nearly_full(&self, most: usize) -> bool {
        (self.slots.len() - self.free.len()).saturating_sub(self.leaving) > most - most / 16
    }

    /// Leases that were not used lately (the clock algorithm).
    fn choose_leaving(&mut self, lessee: &Lessee) -> Vec<Need> {
        let mut chosen = vec![];
        if self.leaving > lessee.most / 16 {
            return chosen;
        }
        // At most once round: what is used between two looks stays.
        for _ in 0..LOOKS.min(self.slots.len()) {
            if chosen.len() >= (lessee.most / 16).clamp(1, BATCH) {
                break;
            }
            let at = self.hand % self.slots.len();
            self.hand = at + 1;
            let Some(Slot { node: Some(node), grant }) = self.slots.get(at) else { continue };
            let key = Key::new(lessee.number, *grant);
            let mut state = node.leases.lock();
            match state.get(key) {
                Some(holder) if holder.going => {}
                Some(holder) if holder.used => holder.used = false,
                Some(holder) => {
                    holder.going = true;
                    // Lazily opened handles of it go on without the lease: they are opened when it is known that it goes.
                    let what = What::All { data: false, open: true };
                    chosen.push(Need::of_lease(key, node, what));
                }
                None => {}
            }
        }
        self.leaving += chosen.len();
        chosen
    }
}
