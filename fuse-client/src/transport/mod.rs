//! Connections to the gateway, and the requests on them.
//!
//! The thread that has a request encodes and sends it itself; one reader thread for each connection calls the request's
//! `done` with the answer. Readers never send: a reader that waited for room in a socket would keep the gateway from
//! making that room. What cannot be sent at once (no connection, no slot, to be asked again) is sent by one sender thread.
//! A keeper thread makes connections, restores the session after a restart of the gateway, and brings a fenced mount back
//! to life; a watcher thread ends calls that may wait no longer; a recall thread gives up what others are about to change.
//!
//! INVARIANT: no `done` is called, nothing is sent and no table of [`State`] is locked for writing while the core is locked.

mod call;
mod heal;
mod keeper;
mod knock;
mod pending;
mod recall;
mod signals;
mod slots;
mod taking;
mod translate;
mod watcher;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use strongroom_channel::{Address, ClientTls, Closer, Frame, Receiver};
use strongroom_protocol::codec;
use strongroom_protocol::lease::{Note, Recalled};
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

/// The id of the request for leases on each connection; those of others are counted from 1.
const TAKING: u64 = u64::MAX - 1;

/// How long the end of the mount waits for writes under way.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// A connection as its reader knows it.
#[derive(Clone, Copy)]
struct Source {
    serial: u64,
    /// The count of gateway processes and sessions to which handles in its answers belong.
    epoch: u64,
    /// The life of the lease table to which its answers belong.
    life: u64,
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
    /// What the thread for recalls is to do.
    recalls: mpsc::Sender<recall::Task>,
    /// Connections on which no leases may be taken yet.
    taking: Mutex<taking::Taking>,
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

    fn is_up(&self) -> bool {
        self.shared.core.lock().phase == Phase::Up
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
        let (recalls, recalled) = mpsc::channel();
        let core = Mutex::new(Core::new(settings.connections));
        let shared = Arc::new(Shared {
            settings,
            state,
            core,
            sendable: Condvar::new(),
            nudge,
            recalls,
            taking: Mutex::default(),
            knocking: Mutex::new(None),
        });
        let mut keeper = keeper::Keeper::new(shared.clone(), nudged);
        shared.thread("recall", move |shared| recall::run(shared, &recalled))?;
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

impl std::ops::Drop for Transport {
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
        if READER.get() {
            return self.enqueue(pending);
        }
        let mut core = self.core.lock();
        if let Some(ended) = bar(core.phase) {
            drop(core);
            finish(pending, Err(ended));
            return;
        }
        let now = core.phase == Phase::Up && core.may_overtake(&pending) && !core.is_held(&pending);
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
        if ready.sender.send_soon(&ready.header, ready.data.bytes()).is_err() {
            self.cut(ready.serial);
        }
    }

    fn any_link(&self) -> Option<(u64, Closer)> {
        let core = self.core.lock();
        core.links.iter().flatten().next().map(|link| (link.serial, link.closer.clone()))
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
            if core.is_held(pending) || needs_slot && slots_out {
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
    fn read(self: &Arc<Self>, source: Source, mut receiver: Receiver) {
        READER.set(true);
        let mut frame = Frame::new();
        while let Ok(true) = receiver.recv(&mut frame) {
            match codec::decode_header(frame.header()) {
                Ok(FromGateway::Reply { id, outcome }) => {
                    self.reply(source, id, outcome, Note::default(), frame.data());
                }
                Ok(FromGateway::Leased { id: TAKING, outcome: Outcome::Terms(terms), note }) => {
                    self.state.leases.table().terms(source.life, note.stamp, &terms);
                }
                Ok(FromGateway::Leased { id, outcome, note }) => {
                    self.reply(source, id, outcome, note, frame.data());
                }
                Ok(FromGateway::Event(event)) => self.event(source, event, frame.data()),
                Err(error) => {
                    self.settings
                        .journal
                        .note(&format!("the gateway sent what cannot be understood: {error}"));
                    break;
                }
            }
        }
        self.cut(source.serial);
        self.link_down(source.serial);
        self.look();
    }

    /// A connection is gone. With the last one all leases are, before there can be another connection.
    fn link_down(&self, serial: u64) {
        let (lost, over) = {
            let mut core = self.core.lock();
            let lost = core.link_down(serial);
            self.sendable.notify_one();
            let over = core.live_links() == 0;
            if over {
                self.end_leases();
            }
            (lost, over)
        };
        for pending in lost {
            finish(pending, Err(Ended::Lost));
        }
        if over {
            self.forget_names();
        }
    }

    /// All leases are over. The thread for recalls has the kernel forget what it has, before it says on a new connection that there may be leases again.
    fn end_leases(&self) {
        let drop = self.state.leases.table().end_life();
        // The thread is gone only when the mount ends.
        let _ = self.recalls.send(recall::Task::Over(drop));
    }

    /// Waits until the kernel has forgotten what it had under leases that are over.
    fn let_forget(&self) {
        let (done, heard) = mpsc::channel();
        if self.recalls.send(recall::Task::Told(done)).is_ok() {
            // Nothing is sent: the thread drops its end when it comes to it.
            let _ = heard.recv();
        }
    }

    /// No name is believed from now on, whenever the rest comes.
    fn forget_names(&self) {
        self.state.leases.settle();
        if let Some(kernel) = self.state.leases.kernel() {
            kernel.forget_entries();
        }
    }

    fn look(&self) {
        // The keeper is gone only when the mount ends.
        let _ = self.nudge.send(Nudge::Look);
    }

    fn reply(self: &Arc<Self>, source: Source, id: u64, outcome: Outcome, note: Note, data: &[u8]) {
        let pending = {
            let mut core = self.core.lock();
            if let Some(link) = core.links.iter_mut().flatten().find(|link| link.serial == source.serial) {
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
            Outcome::Failed(failure) if !absent(&pending, failure, note) => self.failed(pending, failure),
            outcome => {
                let Source { epoch, life, .. } = source;
                finish(pending, Ok(Answer { outcome, data, epoch, note, life }));
            }
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
        let mut release =
            Pending::new(Call { op, data: Payload::default(), pid: 0, done: Box::new(|_| {}), keep: None });
        release.raw = true;
        self.enqueue(release);
    }

    fn event(&self, source: Source, event: Event, data: &[u8]) {
        match event {
            Event::Recall { id, stamp } => {
                let Ok(items) = codec::decode_list::<Vec<Recalled>>(data) else {
                    self.settings.journal.note("the gateway recalled what cannot be understood");
                    return self.cut(source.serial);
                };
                let task = recall::Task::Recall { life: source.life, id, stamp, items };
                // As in `take_back`.
                let _ = self.recalls.send(task);
            }
            Event::LeasesLost { id, stamp } => {
                let _ = self.recalls.send(recall::Task::Lost { life: source.life, id, stamp });
            }
            Event::Fenced(FenceReason::Revoked) => {
                let why = "the contract was revoked: every call is refused until there is a new one";
                self.void(why, Some(source.serial));
            }
            Event::Fenced(FenceReason::Expired) => {
                let why = "the contract has expired: every call is refused until there is a new one";
                self.void(why, Some(source.serial));
            }
            Event::Fenced(FenceReason::Superseded) => {
                self.settings.journal.note("another contract takes the place of this one");
                self.supersede(source.serial);
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
    fn supersede(&self, told_by: u64) {
        {
            let mut core = self.core.lock();
            if !core.has_link(told_by) {
                return;
            }
            if core.phase == Phase::Up || core.phase == Phase::Away {
                core.phase = Phase::Away;
                core.session = None;
                core.superseded = true;
            }
        }
        self.end_leases();
        self.forget_names();
        self.look();
    }

    /// The contract is void: everything ends at once with EACCES, now and until the keeper has found another. `told_by`: the
    /// connection on which that was said. Each is told, and the last may be heard when there is another session already.
    fn void(&self, why: &str, told_by: Option<u64>) {
        let (ended, closers) = {
            let mut core = self.core.lock();
            let over = told_by.is_some_and(|serial| !core.has_link(serial));
            if over || matches!(core.phase, Phase::Closed | Phase::Void) {
                return;
            }
            core.phase = Phase::Void;
            core.session = None;
            let closers: Vec<Closer> = core.links.iter().flatten().map(|link| link.closer.clone()).collect();
            core.links.iter_mut().for_each(|link| *link = None);
            self.end_leases();
            (core.drain(), closers)
        };
        self.forget_names();
        for pending in ended {
            finish(pending, Err(Ended::Void));
        }
        for closer in closers {
            closer.close();
        }
        self.settings.journal.note(why);
        self.look();
    }

    /// What the application was told is written arrives, if the gateway is there.
    fn let_writes_arrive(&self) {
        if self.core.lock().phase != Phase::Up {
            return;
        }
        let (done, ended) = mpsc::channel();
        self.state.behind.wait_for_all(Box::new(move || {
            // Gone if the wait was given up.
            let _ = done.send(());
        }));
        // Given up: then the mount ends without them, as it would without the gateway.
        let _ = ended.recv_timeout(LAST_WRITES);
    }

    fn close(&self) {
        self.let_writes_arrive();
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
        let _ = self.recalls.send(recall::Task::End);
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

thread_local! {
    /// Whether this thread reads from a connection, and so must not send.
    static READER: Cell<bool> = const { Cell::new(false) };
}

fn bar(phase: Phase) -> Option<Ended> {
    match phase {
        Phase::Up | Phase::Away => None,
        Phase::Void => Some(Ended::Void),
        Phase::Closed => Some(Ended::Closing),
    }
}

/// Whether a failure says that a name does not exist, and that this may be kept.
fn absent(pending: &Pending, failure: Failure, note: Note) -> bool {
    matches!(pending.op, Op::Lookup { .. }) && failure == Failure::Errno(libc::ENOENT as u16) && note.names
}

fn finish(mut pending: Pending, result: Result<Answer<'_>, Ended>) {
    if let Some(done) = pending.done.take() {
        done(result);
    }
}
