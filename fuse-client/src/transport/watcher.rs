//! The watcher thread: ends calls whose caller is being killed or whose deadline has passed, lets postponed requests go, tells
//! the gateway of forgotten nodes, and notices a gateway that has gone silent and a contract file that was replaced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::Errno;
use strongroom_protocol::codec;
use strongroom_protocol::op::Op;

use super::call::{Call, Payload};
use super::pending::{Pending, Phase, Place};
use super::signals::Masks;
use super::{Nudge, Shared, bar};
use crate::asking;
use crate::errno::Ended;

/// The pace while requests wait, and while none do.
const BUSY: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_secs(1);
/// A call younger than this is not looked at.
const PATIENCE: Duration = Duration::from_millis(200);
/// For this long the program itself waits for an answer, whatever the deadline: the mount is in use meanwhile.
const OWN_DEADLINE: Duration = Duration::from_secs(1);
/// A connection silent for this long is asked whether it lives, and given up after the same time again.
const SILENCE: Duration = Duration::from_secs(15);
/// Nodes in one message that tells the gateway to forget them; 10 bytes each.
const FORGET_MAX: usize = 16 * 1024;

pub(super) fn watch(shared: &Arc<Shared>) {
    let mut busy = false;
    let mut looked = Instant::now();
    loop {
        std::thread::sleep(if busy { BUSY } else { IDLE });
        if shared.core.lock().phase == Phase::Closed {
            return;
        }
        busy = shared.look_after_waiting(Instant::now());
        let killed = |pid| Masks::of(pid).is_some_and(|masks| masks.killed());
        shared.state.behind.interrupt(killed);
        let ended = shared.state.locks.lock().interrupted(killed);
        ended.into_iter().for_each(|then| then(Err(Errno::EINTR)));
        shared.tell_forgotten();
        shared.look_after_links(Instant::now());
        shared.look_at_file(Instant::now(), &mut looked);
    }
}

struct Waiting {
    id: u64,
    pid: u32,
    lock: bool,
    overdue: bool,
    on_wire: bool,
}

impl Shared {
    /// Returns whether anything waits.
    fn look_after_waiting(self: &Arc<Self>, now: Instant) -> bool {
        let (waiting, any) = self.waiting(now);
        for call in waiting {
            let masks = if call.pid == 0 { None } else { Masks::of(call.pid) };
            let go = masks.is_some_and(|masks| if call.lock { masks.interrupted() } else { masks.killed() });
            if go && call.lock && call.on_wire {
                self.cancel_lock(call.id);
            } else if go {
                self.end(call.id, Ended::Interrupted);
            } else if call.overdue {
                self.end(call.id, Ended::Deadline);
            }
        }
        any
    }

    fn waiting(&self, now: Instant) -> (Vec<Waiting>, bool) {
        let mut core = self.core.lock();
        let connected = core.live_links() > 0 && core.phase == Phase::Up;
        let mut due = vec![];
        let mut waiting = vec![];
        for (id, pending) in &mut core.pending {
            if let Place::Later(then) = pending.place
                && then <= now
            {
                pending.place = Place::Queued;
                due.push(*id);
            }
            let age = now.saturating_duration_since(pending.since);
            if pending.done.is_none() || pending.direct || age < PATIENCE {
                continue;
            }
            let lock = matches!(pending.op, Op::SetLock { wait: true, .. });
            let on_wire = matches!(pending.place, Place::OnWire(_));
            waiting.push(Waiting {
                id: *id,
                pid: pending.pid,
                lock,
                // A lock may rightly take for ever, as long as there is somebody who will grant it.
                overdue: self.settings.deadline.is_some_and(|deadline| age > deadline)
                    && !(lock && connected)
                    || asking::is_own(pending.pid) && age > OWN_DEADLINE,
                on_wire,
            });
        }
        let any = !core.pending.is_empty();
        if !due.is_empty() {
            core.queue.extend(due);
            self.sendable.notify_one();
        }
        (waiting, any)
    }

    /// Answers a caller that may wait no longer. The request itself stays in the table if the gateway may have seen it: its
    /// slot is not free before the answer.
    fn end(&self, id: u64, ended: Ended) {
        let done = {
            let mut core = self.core.lock();
            let Some(pending) = core.pending.get_mut(&id) else { return };
            let done = pending.done.take();
            if !pending.sent {
                core.remove(id);
            }
            done
        };
        if let Some(done) = done {
            done(Err(ended));
        }
    }

    /// A signal came for somebody who waits for a lock: the gateway is asked to end the waiting, and answers both.
    fn cancel_lock(self: &Arc<Self>, id: u64) {
        {
            let mut core = self.core.lock();
            let Some(pending) = core.pending.get_mut(&id) else { return };
            if std::mem::replace(&mut pending.cancelled, true) {
                return;
            }
        }
        self.submit(Pending::new(Call {
            op: Op::CancelLock { request: id },
            data: Payload::default(),
            pid: 0,
            done: Box::new(|_| {}),
            keep: None,
        }));
    }

    fn tell_forgotten(self: &Arc<Self>) {
        let mut forgotten = self.state.nodes.lock().take_forgotten();
        {
            // What is leased may be told to the kernel again without asking; it is forgotten when it is recalled.
            let table = self.state.leases.table();
            forgotten.retain(|node| !table.leased(*node));
        }
        if forgotten.is_empty() || bar(self.core.lock().phase).is_some() {
            return;
        }
        let nodes: Vec<_> = {
            let grants = self.state.grants.read();
            forgotten.into_iter().filter_map(|node| grants.to_wire(node)).collect()
        };
        for part in nodes.chunks(FORGET_MAX) {
            let Ok(data) = codec::encode_list(&part.to_vec()) else { continue };
            self.send_unanswered(Op::Forget, data);
        }
    }

    /// Sends a request that has no answer, if there is a connection; if not, the session that it is about is gone soon.
    pub(super) fn send_unanswered(&self, op: Op, data: Vec<u8>) {
        let senders: Vec<_> =
            self.core.lock().links.iter().flatten().map(|link| link.sender.clone()).collect();
        let mut header = vec![];
        let request = strongroom_protocol::op::Request { id: 0, slot: Default::default(), op };
        if codec::encode_header(&request, &mut header).is_err() {
            return;
        }
        for sender in senders {
            // A failure shows on the connection's reader as well.
            if sender.send(&header, &data).is_ok() {
                return;
            }
        }
    }

    /// Tells the keeper of a contract file that was replaced while the session lives; while it does not, the keeper looks.
    fn look_at_file(&self, now: Instant, looked: &mut Instant) {
        if now.saturating_duration_since(*looked) < IDLE || self.core.lock().phase != Phase::Up {
            return;
        }
        *looked = now;
        if self.settings.contract.changed() {
            // The keeper is gone only when the mount ends.
            let _ = self.nudge.send(Nudge::File);
        }
    }

    fn look_after_links(self: &Arc<Self>, now: Instant) {
        let mut ping = vec![];
        let mut dead = vec![];
        {
            let mut core = self.core.lock();
            for link in core.links.iter_mut().flatten() {
                let silent = now.saturating_duration_since(link.heard);
                if silent > 2 * SILENCE && link.pinged {
                    dead.push(link.serial);
                } else if silent > SILENCE && !link.pinged {
                    link.pinged = true;
                    ping.push(link.sender.clone());
                }
            }
        }
        for sender in ping {
            let request =
                strongroom_protocol::op::Request { id: u64::MAX, slot: Default::default(), op: Op::Ping };
            let mut header = vec![];
            if codec::encode_header(&request, &mut header).is_ok() {
                let _ = sender.send(&header, &[]);
            }
        }
        for serial in dead {
            self.settings.journal.note("the gateway does not answer: connecting again");
            self.cut(serial);
        }
    }
}
