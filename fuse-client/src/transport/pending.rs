//! The requests under way and those that wait for a connection, a slot or room. Pure bookkeeping: nothing is sent here and no
//! answer is given here; both happen when the table's lock is no longer held.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use strongroom_channel::{Closer, Sender};
use strongroom_protocol::attr::Handle;
use strongroom_protocol::codec;
use strongroom_protocol::hello::SessionId;
use strongroom_protocol::op::{Op, Request, Slot};

use super::call::{Call, Done, Payload};
use super::slots::Slots;
use super::translate::{self, Part};
use crate::errno::Ended;
use crate::lease::Underway;
use crate::state::State;

/// Requests above this many bytes, or for this many, go by the connection for bulk, so that small ones need not wait.
const BULK: usize = 16 * 1024;
/// Room left for requests that free others (cancelling, reopening), in requests.
const RESERVE: usize = 4;

/// Where the client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Requests are sent.
    Up,
    /// Requests wait: no connection, or what was open is being opened again.
    Away,
    /// The contract is void: requests end at once.
    Void,
    /// The mount ends.
    Closed,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Queued,
    /// To be queued then.
    Later(Instant),
    /// Sent by the connection with this number.
    OnWire(u64),
}

/// A request.
pub(super) struct Pending {
    pub(super) op: Op,
    pub(super) data: Payload,
    pub(super) pid: u32,
    /// `None`: whoever asked has been answered already; the gateway's answer is still awaited.
    pub(super) done: Option<Done>,
    pub(super) since: Instant,
    pub(super) place: Place,
    pub(super) slot: Option<Slot>,
    /// Of which session the slot is ([`Core::fresh`]); worthless in another.
    slot_life: u64,
    /// Whether it has been sent in this session.
    pub(super) sent: bool,
    /// How often it was asked again after something had to be found or opened again.
    pub(super) tries: u8,
    /// Already in the terms of the wire; worthless in another epoch.
    pub(super) raw: bool,
    /// Belongs to the restoring of a session over this one connection: fails with it, does not wait.
    pub(super) direct: bool,
    pub(super) cancelled: bool,
    /// Goes before leases are taken again.
    first: bool,
    /// [`Call::keep`].
    keep: Option<Arc<Underway>>,
}

impl Pending {
    pub(super) fn new(call: Call) -> Pending {
        Pending {
            op: call.op,
            data: call.data,
            pid: call.pid,
            done: Some(call.done),
            since: Instant::now(),
            place: Place::Queued,
            slot: None,
            slot_life: 0,
            sent: false,
            tries: 0,
            raw: false,
            direct: false,
            cancelled: false,
            first: false,
            keep: call.keep,
        }
    }

    /// What must be done before leases are taken again.
    pub(super) fn first(call: Call) -> Pending {
        Pending { first: true, ..Pending::new(call) }
    }

    /// Whether it may go before leases are taken again. Until then the gateway takes what comes for what was answered before the
    /// connections were lost, and other guests may still keep what they had: nothing that an application waits for goes, but for opening
    /// what is open here already, which others may wait for that must go.
    fn precedes_leases(&self) -> bool {
        let harmless = match self.op {
            Op::Open { flags, .. } | Op::OpenRead { flags, .. } | Op::Reopen { flags, .. } => !flags.truncate,
            Op::Opendir { .. } | Op::Resolve { .. } | Op::Recalled { .. } | Op::TakeLeases => true,
            // By which the kernel hears how long a file is, before leases are taken.
            Op::Measure { .. } => true,
            // Locks are not leases'.
            Op::SetLock { wait, .. } => !wait,
            _ => false,
        };
        self.first || harmless || self.urgent() || self.keep.as_ref().is_some_and(|change| change.is_early())
    }

    fn waits_for_lock(&self) -> bool {
        matches!(self.op, Op::SetLock { wait: true, .. })
    }

    /// Sent whatever the room, because others may depend on it.
    fn urgent(&self) -> bool {
        let urgent =
            matches!(self.op, Op::CancelLock { .. } | Op::Ping | Op::Bye | Op::SetLock { reclaim: true, .. });
        self.direct || urgent
    }

    fn bulk(&self) -> bool {
        match self.op {
            Op::Read { length, .. } | Op::OpenRead { length, .. } => length as usize > BULK,
            // Nobody waits for them.
            Op::List { .. } | Op::ReadFiles { .. } => true,
            _ => self.data.bytes().len() > BULK,
        }
    }
}

/// A connection of the session.
pub(super) struct Link {
    /// Never used again for another.
    pub(super) serial: u64,
    pub(super) sender: Sender,
    pub(super) closer: Closer,
    pub(super) heard: Instant,
    pub(super) pinged: bool,
}

/// A frame ready to be sent.
pub(super) struct Ready {
    pub(super) serial: u64,
    pub(super) sender: Sender,
    pub(super) header: Vec<u8>,
    pub(super) data: Payload,
}

/// What became of an attempt to send a request.
pub(super) enum Prepared {
    Send(Ready),
    /// It must wait.
    Wait,
    /// It cannot be sent at all.
    Fail(Ended),
}

/// The session as the gateway described it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) boot: u64,
}

/// All that changes with each request, under one lock.
pub(super) struct Core {
    pub(super) phase: Phase,
    pub(super) epoch: u64,
    pub(super) session: Option<Session>,
    /// The session was ended in favour of another contract; what it did not carry out waits for the next session.
    pub(super) superseded: bool,
    /// Leases are not taken again yet: see [`Pending::precedes_leases`].
    pub(super) without_leases: bool,
    pub(super) links: Vec<Option<Link>>,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) queue: VecDeque<u64>,
    slots: Slots,
    slots_life: u64,
    on_wire: usize,
    lock_waits: usize,
    room: usize,
    last_id: u64,
    last_serial: u64,
}

impl Core {
    pub(super) fn new(connections: usize) -> Core {
        Core {
            phase: Phase::Away,
            epoch: 0,
            session: None,
            superseded: false,
            without_leases: false,
            links: (0..connections.max(1)).map(|_| None).collect(),
            pending: BTreeMap::new(),
            queue: VecDeque::new(),
            slots: Slots::default(),
            slots_life: 0,
            on_wire: 0,
            lock_waits: 0,
            room: 0,
            last_id: 0,
            last_serial: 0,
        }
    }

    /// Starts the bookkeeping of a new session.
    pub(super) fn fresh(&mut self, slots: u16) {
        self.slots = Slots::new(slots);
        self.slots_life += 1;
    }

    /// Sets how many requests may be under way.
    pub(super) fn set_room(&mut self, in_flight: u32) {
        self.room = (in_flight as usize).saturating_sub(RESERVE).max(1);
    }

    pub(super) fn new_serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    /// Adds a request to the table, not to the queue.
    pub(super) fn insert(&mut self, pending: Pending) -> u64 {
        self.last_id += 1;
        self.pending.insert(self.last_id, pending);
        self.last_id
    }

    /// Whether a request that has just come may go before those that wait: those wait for what it does not need.
    pub(super) fn may_overtake(&self, pending: &Pending) -> bool {
        self.queue.is_empty() || !pending.op.needs_slot()
    }

    /// Whether a request has to wait until leases are taken again.
    pub(super) fn is_held(&self, pending: &Pending) -> bool {
        self.without_leases && !pending.precedes_leases()
    }

    /// Whether a connection is one of the present session.
    pub(super) fn has_link(&self, serial: u64) -> bool {
        self.links.iter().flatten().any(|link| link.serial == serial)
    }

    pub(super) fn live_links(&self) -> usize {
        self.links.iter().flatten().count()
    }

    fn pick(links: &[Option<Link>], pending: &Pending) -> Option<(u64, Sender)> {
        let live = || links.iter().flatten();
        let mut order = live();
        // The first connection is for small requests, the last ones for bulk; any will do.
        let link = if pending.bulk() {
            let bulk: Vec<&Link> = links.iter().skip(1).flatten().collect();
            let spread = match pending.op {
                Op::Read { handle, .. } | Op::Write { handle, .. } => handle.0 as usize,
                _ => 0,
            };
            bulk.get(spread % bulk.len().max(1)).copied().or_else(|| live().next())
        } else {
            order.next()
        }?;
        Some((link.serial, link.sender.clone()))
    }

    /// Gives a waiting request what it needs to go out now, and marks it as sent.
    pub(super) fn prepare(&mut self, id: u64, state: &State) -> Prepared {
        let Some(pending) = self.pending.get_mut(&id) else { return Prepared::Wait };
        if !pending.urgent() && self.on_wire >= self.room {
            return Prepared::Wait;
        }
        if pending.waits_for_lock() && self.lock_waits >= (self.room / 2).max(1) {
            return Prepared::Wait;
        }
        let Some((serial, sender)) = Self::pick(&self.links, pending) else { return Prepared::Wait };
        let op = match wire_op(pending, state, self.epoch) {
            Ok(op) => op,
            Err(ended) => return Prepared::Fail(ended),
        };
        if pending.slot_life != self.slots_life {
            pending.slot = None;
        }
        if pending.op.needs_slot() && pending.slot.is_none() {
            pending.slot = self.slots.take();
            pending.slot_life = self.slots_life;
            if pending.slot.is_none() {
                return Prepared::Wait;
            }
        }
        let request = Request { id, slot: pending.slot.unwrap_or_default(), op };
        let mut header = Vec::with_capacity(192);
        if codec::encode_header(&request, &mut header).is_err() {
            return Prepared::Fail(Ended::Protocol);
        }
        pending.place = Place::OnWire(serial);
        pending.sent = true;
        self.on_wire += 1;
        if pending.waits_for_lock() {
            self.lock_waits += 1;
        }
        Prepared::Send(Ready { serial, sender, header, data: pending.data.clone() })
    }

    fn off_wire(&mut self, pending: &Pending) {
        if matches!(pending.place, Place::OnWire(_)) {
            self.on_wire = self.on_wire.saturating_sub(1);
            if pending.waits_for_lock() {
                self.lock_waits = self.lock_waits.saturating_sub(1);
            }
        }
    }

    /// Takes out a request that was answered. Its slot is free again, unless `again`: the answer did not use its number
    /// up, and it will be asked again under it, so that the gateway knows it for the request that a crash cut off.
    pub(super) fn answered(&mut self, id: u64, again: bool) -> Option<Pending> {
        let mut pending = self.pending.remove(&id)?;
        self.off_wire(&pending);
        if !again || pending.done.is_none() {
            self.give_back(&mut pending);
        }
        Some(pending)
    }

    /// Frees the slot of a request that is answered, or will not be asked again.
    pub(super) fn give_back(&mut self, pending: &mut Pending) {
        if let Some(slot) = pending.slot.take().filter(|_| pending.slot_life == self.slots_life) {
            self.slots.give(slot);
        }
    }

    /// Takes out a request that will not be sent. Its slot, if it has one, stays taken: the gateway may have seen it.
    pub(super) fn remove(&mut self, id: u64) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        self.off_wire(&pending);
        self.queue.retain(|other| *other != id);
        Some(pending)
    }

    /// A connection is gone: what was sent by it waits again, before everything else. Returns what fails with it.
    pub(super) fn link_down(&mut self, serial: u64) -> Vec<Pending> {
        for slot in &mut self.links {
            if slot.as_ref().is_some_and(|link| link.serial == serial) {
                *slot = None;
            }
        }
        if self.live_links() == 0 && self.phase == Phase::Up {
            self.phase = Phase::Away;
        }
        let mut lost = vec![];
        let back: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.place == Place::OnWire(serial))
            .map(|(id, _)| *id)
            .collect();
        for id in back.into_iter().rev() {
            let Some(mut pending) = self.pending.remove(&id) else { continue };
            self.off_wire(&pending);
            pending.place = Place::Queued;
            let needless = pending.done.is_none() && pending.slot.is_none() && !pending.waits_for_lock();
            if pending.direct || needless || matches!(pending.op, Op::Ping | Op::CancelLock { .. }) {
                lost.push(pending);
            } else {
                self.pending.insert(id, pending);
                self.queue.push_front(id);
            }
        }
        lost
    }

    /// A new session begins and the former is lost. Returns what was sent to that one and cannot be sent again.
    pub(super) fn settle(&mut self, state: &State) -> Vec<Pending> {
        let appends =
            |handle: Handle| state.handles.lock().get(handle.0).is_some_and(|file| file.flags.append);
        let gone: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| {
                pending.raw
                    || pending.done.is_none()
                    || (pending.sent && !translate::repeatable(&pending.op, &appends))
            })
            .map(|(id, _)| *id)
            .collect();
        let lost = gone.into_iter().filter_map(|id| self.remove(id)).collect();
        for pending in self.pending.values_mut() {
            pending.slot = None;
            pending.sent = false;
        }
        lost
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self) -> Vec<Pending> {
        self.queue.clear();
        self.on_wire = 0;
        self.lock_waits = 0;
        std::mem::take(&mut self.pending).into_values().collect()
    }
}

/// The request in the terms of the wire.
fn wire_op(pending: &Pending, state: &State, epoch: u64) -> Result<Op, Ended> {
    let mut op = pending.op.clone();
    if pending.raw {
        return Ok(op);
    }
    // A request that may have been carried out is sent again under its number, even if what it speaks of is unknown by
    // now: the gateway answers from its cache.
    let lenient = pending.slot.is_some();
    translate::visit(&mut op, &mut |part| match part {
        Part::Node(node) => {
            let found = state.grants.read().to_wire(*node);
            match found {
                Some(known) => *node = known,
                None if lenient => {}
                None => return Err(Ended::Void),
            }
            Ok(())
        }
        Part::Handle(handle) => {
            let file = state.handles.lock().get(handle.0);
            let wire = file.map(|file| *file.wire.lock());
            match wire {
                Some(wire) if lenient || (wire.epoch == epoch && wire.dead.is_none()) => {
                    *handle = wire.handle
                }
                Some(wire) => {
                    let errno = wire.dead.map_or(libc::EBADF, fuser::Errno::code);
                    return Err(Ended::Failed(strongroom_protocol::reply::Failure::Errno(errno as u16)));
                }
                None if lenient => {}
                None => return Err(Ended::Failed(strongroom_protocol::reply::Failure::BadHandle)),
            }
            Ok(())
        }
    })?;
    Ok(op)
}
