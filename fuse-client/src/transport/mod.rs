//! Connections to the gateway, and the requests on them.
//!
//! The thread that has a request encodes and sends it itself; one reader thread for each connection calls the request's
//! `done` with the answer. Readers never send: a reader that waited for room in a socket would keep the gateway from
//! making that room. What cannot be sent at once (no connection, no slot, to be asked again) is sent by one sender thread.
//! A keeper thread makes connections, restores the session after a restart of the gateway, and brings a fenced mount back
//! to life; a watcher thread ends calls that may wait no longer.
//!
//! INVARIANT: no `done` is called, nothing is sent and no table of [`State`] is locked for writing while the core is locked.

mod call;
mod heal;
mod keeper;
mod knock;
mod pending;
mod signals;
mod slots;
mod translate;
mod watcher;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use strongroom_channel::{Address, ClientTls, Closer, Frame, Receiver};
use strongroom_protocol::codec;
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::{Event, Failure, FenceReason, FromGateway, Outcome};

pub use call::{Answer, Call, Carrier, Done, Payload};
pub use keeper::OpenError;
pub use knock::KnockError;

use crate::contract::ContractFile;
use crate::errno::Ended;
use crate::journal::Journal;
use crate::state::State;
use pending::{Core, Pending, Phase, Place, Prepared, Ready};

/// How the transport is set up.
pub struct Settings {
    /// The client's end of TLS.
    pub tls: ClientTls,
    /// The gateway's native door.
    pub gateway: Address,
    /// The contract as the user gave it.
    pub contract: ContractFile,
    /// Whether a contract that the gateway keeps for the holder key may be used.
    pub fetch: bool,
    /// Connections to make.
    pub connections: usize,
    /// How long a call may wait while the gateway is away; `None`: for ever.
    pub deadline: Option<Duration>,
    /// Where notable events are written.
    pub journal: Journal,
}

/// What the keeper is woken by.
#[derive(Debug)]
enum Nudge {
    /// Something changed: look again.
    Look,
    /// The session cannot go on: begin another.
    Broken,
    /// The contract file was replaced.
    File,
}

struct Shared {
    settings: Settings,
    state: Arc<State>,
    core: Mutex<Core>,
    /// Woken when a waiting request might be sendable.
    sendable: Condvar,
    nudge: mpsc::Sender<Nudge>,
    /// The connection on which the keeper waits for an answer.
    knocking: Mutex<Option<Closer>>,
}

/// The connections of one mount.
pub struct Transport {
    shared: Arc<Shared>,
}

impl Carrier for Transport {
    fn submit(&self, call: Call) {
        self.shared.submit(Pending::new(call));
    }

    fn barred(&self) -> Option<Ended> {
        self.shared.barred()
    }
}

impl Transport {
    /// Connects, opens a session and starts the threads.
    ///
    /// # Errors
    /// [`OpenError`] if there is no session to be had now.
    pub fn open(settings: Settings, state: Arc<State>) -> Result<Transport, OpenError> {
        let (nudge, nudged) = mpsc::channel();
        let core = Mutex::new(Core::new(settings.connections));
        let shared = Arc::new(Shared {
            settings,
            state,
            core,
            sendable: Condvar::new(),
            nudge,
            knocking: Mutex::new(None),
        });
        let keeper = keeper::Keeper::new(shared.clone(), nudged);
        keeper.first()?;
        shared.thread("sender", Shared::send_waiting)?;
        shared.thread("watcher", watcher::watch)?;
        std::thread::Builder::new().name("keeper".into()).spawn(move || keeper.run())?;
        Ok(Transport { shared })
    }

    /// Ends the session and the threads; calls under way end with ENOTCONN.
    pub fn close(&self) {
        self.shared.close();
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn thread(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce(&Arc<Shared>) + Send + 'static,
    ) -> std::io::Result<()> {
        let shared = self.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || work(&shared)).map(drop)
    }

    fn barred(&self) -> Option<Ended> {
        bar(self.core.lock().phase)
    }

    /// Takes a request: sends it now if it can go, lets it wait if not.
    fn submit(self: &Arc<Self>, pending: Pending) {
        let mut core = self.core.lock();
        if let Some(ended) = bar(core.phase) {
            drop(core);
            finish(pending, Err(ended));
            return;
        }
        let now = core.phase == Phase::Up && core.may_overtake(&pending);
        let id = core.insert(pending);
        match if now { core.prepare(id, &self.state) } else { Prepared::Wait } {
            Prepared::Send(ready) => {
                drop(core);
                self.transmit(&ready);
            }
            Prepared::Wait => core.queue.push_back(id),
            Prepared::Fail(ended) => {
                let pending = core.remove(id);
                drop(core);
                if let Some(pending) = pending {
                    finish(pending, Err(ended));
                }
            }
        }
    }

    /// Puts a request in line; unlike [`Shared::submit`] this never sends, so that readers may use it.
    fn enqueue(&self, mut pending: Pending) {
        pending.place = match pending.place {
            later @ Place::Later(_) => later,
            _ => Place::Queued,
        };
        let mut core = self.core.lock();
        if let Some(ended) = bar(core.phase) {
            drop(core);
            finish(pending, Err(ended));
            return;
        }
        let queued = pending.place == Place::Queued;
        let id = core.insert(pending);
        if queued {
            core.queue.push_back(id);
            self.sendable.notify_one();
        }
    }

    fn transmit(&self, ready: &Ready) {
        if ready.sender.send(&ready.header, ready.data.bytes()).is_err() {
            self.cut(ready.serial);
        }
    }

    /// Ends a connection; its reader notices and does the rest.
    fn cut(&self, serial: u64) {
        let closer = {
            let core = self.core.lock();
            core.links.iter().flatten().find(|link| link.serial == serial).map(|link| link.closer.clone())
        };
        if let Some(closer) = closer {
            closer.close();
        }
    }

    /// The sender thread: sends what waits, whenever it can go.
    fn send_waiting(self: &Arc<Self>) {
        let mut core = self.core.lock();
        loop {
            if core.phase == Phase::Closed {
                return;
            }
            match self.next_waiting(&mut core) {
                Some(Ok(ready)) => {
                    drop(core);
                    self.transmit(&ready);
                    core = self.core.lock();
                }
                Some(Err((pending, ended))) => {
                    drop(core);
                    finish(*pending, Err(ended));
                    core = self.core.lock();
                }
                None => self.sendable.wait(&mut core),
            }
        }
    }

    fn next_waiting(&self, core: &mut Core) -> Option<Result<Ready, (Box<Pending>, Ended)>> {
        if core.phase != Phase::Up {
            return None;
        }
        let mut slots_out = false;
        for position in 0..core.queue.len() {
            let id = *core.queue.get(position)?;
            let Some(pending) = core.pending.get(&id) else {
                core.queue.remove(position);
                return self.next_waiting(core);
            };
            let needs_slot = pending.op.needs_slot() && pending.slot.is_none();
            if needs_slot && slots_out {
                continue;
            }
            match core.prepare(id, &self.state) {
                Prepared::Send(ready) => {
                    core.queue.remove(position);
                    return Some(Ok(ready));
                }
                Prepared::Fail(ended) => {
                    return core.remove(id).map(|pending| Err((Box::new(pending), ended)));
                }
                Prepared::Wait => slots_out |= needs_slot,
            }
        }
        None
    }

    /// The reader thread of one connection.
    fn read(self: &Arc<Self>, serial: u64, epoch: u64, mut receiver: Receiver) {
        let mut frame = Frame::new();
        while let Ok(true) = receiver.recv(&mut frame) {
            match codec::decode_header(frame.header()) {
                Ok(FromGateway::Reply { id, outcome }) => {
                    self.reply(serial, epoch, id, outcome, frame.data())
                }
                Ok(FromGateway::Event(event)) => self.event(event),
                Err(error) => {
                    self.settings
                        .journal
                        .note(&format!("the gateway sent what cannot be understood: {error}"));
                    break;
                }
            }
        }
        self.cut(serial);
        let lost = {
            let mut core = self.core.lock();
            let lost = core.link_down(serial);
            self.sendable.notify_one();
            lost
        };
        for pending in lost {
            finish(pending, Err(Ended::Lost));
        }
        self.look();
    }

    fn look(&self) {
        // The keeper is gone only when the mount ends.
        let _ = self.nudge.send(Nudge::Look);
    }

    fn reply(self: &Arc<Self>, serial: u64, epoch: u64, id: u64, outcome: Outcome, data: &[u8]) {
        let pending = {
            let mut core = self.core.lock();
            if let Some(link) = core.links.iter_mut().flatten().find(|link| link.serial == serial) {
                link.heard = Instant::now();
                link.pinged = false;
            }
            let pending = if matches!(outcome, Outcome::Failed(Failure::BadSlot)) {
                core.remove(id)
            } else {
                let again =
                    matches!(outcome, Outcome::Failed(Failure::Stale | Failure::BadHandle | Failure::Grace));
                core.answered(id, again)
            };
            if !core.queue.is_empty() {
                self.sendable.notify_one();
            }
            pending
        };
        let Some(pending) = pending else { return };
        match outcome {
            _ if pending.done.is_none() => self.undo_unwanted(&pending, &outcome),
            Outcome::Failed(failure) => self.failed(pending, failure),
            outcome => finish(pending, Ok(Answer { outcome, data, epoch })),
        }
    }

    /// The answer came after whoever asked was told to go: what it left at the gateway is put away.
    fn undo_unwanted(&self, pending: &Pending, outcome: &Outcome) {
        let op = match (outcome, &pending.op) {
            (Outcome::Opened(handle, _) | Outcome::Created(handle, _), _) => {
                Op::Release { handle: *handle, lock_owner: None }
            }
            _ => return,
        };
        let mut release = Pending::new(Call { op, data: Payload::default(), pid: 0, done: Box::new(|_| {}) });
        release.raw = true;
        self.enqueue(release);
    }

    fn event(&self, event: Event) {
        match event {
            Event::Fenced(FenceReason::Revoked) => {
                self.void("the contract was revoked: every call is refused until there is a new one");
            }
            Event::Fenced(FenceReason::Expired) => {
                self.void("the contract has expired: every call is refused until there is a new one");
            }
            Event::Fenced(FenceReason::Superseded) => {
                self.settings.journal.note("another contract takes the place of this one");
                self.supersede();
            }
            Event::Renewed { expires } => {
                self.settings.journal.note(&format!(
                    "the contract was renewed until {}",
                    strongroom_contracts::armour::rfc3339(expires)
                ));
            }
            Event::Stopping => self.settings.journal.note("the gateway is stopping"),
        }
    }

    /// The session is over, but there is another contract: calls wait for the session that the keeper begins under it.
    fn supersede(&self) {
        {
            let mut core = self.core.lock();
            if core.phase == Phase::Up || core.phase == Phase::Away {
                core.phase = Phase::Away;
                core.session = None;
                core.superseded = true;
            }
        }
        self.look();
    }

    /// The contract is void: everything ends at once with EACCES, now and until the keeper has found another.
    fn void(&self, why: &str) {
        let (ended, closers) = {
            let mut core = self.core.lock();
            // Each connection is told.
            if matches!(core.phase, Phase::Closed | Phase::Void) {
                return;
            }
            core.phase = Phase::Void;
            core.session = None;
            let closers: Vec<Closer> = core.links.iter().flatten().map(|link| link.closer.clone()).collect();
            core.links.iter_mut().for_each(|link| *link = None);
            (core.drain(), closers)
        };
        for pending in ended {
            finish(pending, Err(Ended::Void));
        }
        for closer in closers {
            closer.close();
        }
        self.settings.journal.note(why);
        self.look();
    }

    fn close(&self) {
        let (ended, links) = {
            let mut core = self.core.lock();
            if core.phase == Phase::Closed {
                return;
            }
            core.phase = Phase::Closed;
            let links: Vec<_> = core.links.iter_mut().filter_map(Option::take).collect();
            let ended = core.drain();
            self.sendable.notify_all();
            (ended, links)
        };
        for pending in ended {
            finish(pending, Err(Ended::Closing));
        }
        if let Some(link) = links.first() {
            let bye = strongroom_protocol::op::Request { id: 0, slot: Default::default(), op: Op::Bye };
            let mut header = vec![];
            // Without it the gateway closes the session when its grace is over.
            if codec::encode_header(&bye, &mut header).is_ok()
                && link.sender.set_timeout(Some(Duration::from_secs(1))).is_ok()
            {
                let _ = link.sender.send(&header, &[]);
            }
        }
        for link in links {
            link.closer.close();
        }
        if let Some(closer) = self.knocking.lock().take() {
            closer.close();
        }
        self.look();
    }
}

fn bar(phase: Phase) -> Option<Ended> {
    match phase {
        Phase::Up | Phase::Away => None,
        Phase::Void => Some(Ended::Void),
        Phase::Closed => Some(Ended::Closing),
    }
}

fn finish(mut pending: Pending, result: Result<Answer<'_>, Ended>) {
    if let Some(done) = pending.done.take() {
        done(result);
    }
}
