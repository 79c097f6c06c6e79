//! The native door: TLS connections of app guests, frames in, frames out.
//!
//! The thread that reads a request carries it out and answers it: at depth one there is no change of threads. While it
//! works, the receiving half lies in the open; if the request turns out to be slow ([`super::watch`]), or is of a kind that
//! is, another thread takes the half and reads on. So no request waits behind a slow one, and the number of threads
//! follows the number of slow requests, which is bounded for each session and in all.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use strongroom_channel::{Awake, Channel, ChannelError, Closer, Frame, Receiver, Sender, ServerTls, Socket};
use strongroom_protocol::ALPN_NATIVE;
use strongroom_protocol::codec;
use strongroom_protocol::hello::{Answer, Hello, Refused, RefusedCode, Welcome};
use strongroom_protocol::lease::Note;
use strongroom_protocol::op::{Op, Request};
use strongroom_protocol::reply::{Event, Failure, FromGateway, Outcome};

use crate::audit::Record;
use crate::door::listen::{Pending, PendingOne};
use crate::door::watch::Watch;
use crate::engine::LockReply;
use crate::gateway::Gateway;
use crate::session::hello::{Caller, Greeted, Refusal};
use crate::session::parked::{LONGEST_WAIT, Waited};
use crate::session::perform::{Answer as PerformAnswer, Hooks};
use crate::session::{Link, Session};
use crate::threads::Buffers;

/// Data from which on a request is worth another thread if more are waiting behind it, in bytes.
const BULK: usize = 64 << 10;
/// The longest text of a refusal, in bytes.
const MAX_TEXT: usize = 512;

/// The native door.
pub struct NativeDoor {
    gateway: Arc<Gateway>,
    awake: Awake,
    tls: ServerTls,
    pending: Pending,
    open: AtomicUsize,
    slow: AtomicUsize,
    watch: Arc<Watch>,
    /// The connection at each place of the watch.
    places: Mutex<Vec<Option<Arc<Connection>>>>,
}

/// A welcomed connection.
struct Connection {
    door: Arc<NativeDoor>,
    session: Arc<Session>,
    sender: Sender,
    closer: Closer,
    address: Option<SocketAddr>,
    place: usize,
    /// Its number within the session.
    number: AtomicU64,
    /// The receiving half while its thread carries out a request.
    parked: Mutex<Option<Box<Receiver>>>,
    /// Held until the welcome is out: nothing comes before it.
    greeting: Mutex<()>,
    ended: AtomicBool,
    /// Its replies say what may be kept.
    leased: AtomicBool,
}

/// A connection before its welcome, for the time limit.
struct Unwelcomed {
    closer: Closer,
}

impl Link for Unwelcomed {
    fn tell(&self, _: &Event) {}

    fn close(&self) {
        self.closer.close();
    }

    fn address(&self) -> Option<IpAddr> {
        None
    }
}

/// Counts an open connection of the door.
struct Open(Arc<NativeDoor>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl NativeDoor {
    /// A door to a gateway.
    ///
    /// # Errors
    /// [`ChannelError`] if the gateway's key cannot be used; the system's if it gives no thread.
    pub fn new(gateway: Arc<Gateway>, awake: Awake) -> Result<Arc<NativeDoor>, ChannelError> {
        let watch = Watch::new(gateway.limits.connections);
        let door = Arc::new(NativeDoor {
            tls: ServerTls::new(&gateway.key, &[ALPN_NATIVE])?,
            gateway,
            awake,
            pending: Pending::default(),
            open: AtomicUsize::new(0),
            slow: AtomicUsize::new(0),
            watch: watch.clone(),
            places: Mutex::default(),
        });
        let own = Arc::downgrade(&door);
        let slow = move |place| own.upgrade().is_none_or(|door| door.relieve(place));
        std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || watch.run(slow))
            .map_err(|source| ChannelError::Io { doing: "cannot start a thread".into(), source })?;
        Ok(door)
    }

    /// Ends the watching.
    pub fn stop(&self) {
        self.watch.stop();
    }

    /// Takes an accepted connection.
    pub fn take(self: &Arc<Self>, socket: Socket, from: Option<SocketAddr>) {
        let Some(from) = from else { return };
        let limits = &self.gateway.limits;
        if self.open.fetch_add(1, Ordering::Relaxed) >= limits.connections {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.turn_away(from, "the gateway has all the connections that it may have");
            return;
        }
        let open = Open(self.clone());
        let Some(pending) = self.pending.enter(from.ip(), limits.pending_per_address) else {
            self.turn_away(from, "too many connections of this address have not said hello");
            return;
        };
        let door = self.clone();
        let job = move |buffers: &mut Buffers| {
            let open = open;
            door.receive(socket, from, pending, buffers);
            drop(open);
        };
        if self.gateway.threads.run(Box::new(job)).is_err() {
            self.turn_away(from, "the gateway has no thread left");
        }
    }

    fn turn_away(&self, from: SocketAddr, why: &str) {
        self.gateway.audit.count(Record {
            event: "refused",
            address: Some(from.ip().to_string()),
            outcome: Some("busy".into()),
            text: Some(why.to_owned()),
            ..Record::default()
        });
    }

    /// Handshake, hello, welcome; then leads the connection until its end or until another thread leads it.
    fn receive(
        self: &Arc<Self>,
        socket: Socket,
        from: SocketAddr,
        pending: PendingOne,
        buffers: &mut Buffers,
    ) {
        let gateway = &self.gateway;
        let stall = gateway.limits.stall;
        let violation = |text: String| {
            gateway.audit.count(Record {
                event: "violation",
                address: Some(from.ip().to_string()),
                outcome: Some("handshake".into()),
                text: Some(text),
                ..Record::default()
            });
        };
        let channel = match self.tls.accept(socket, stall) {
            Ok(channel) => channel,
            Err(error) => return violation(error.to_string()),
        };
        let Channel { sender, mut receiver, closer, peer, .. } = channel;
        let caller = Caller { key: peer, address: Some(from.ip()) };
        if sender.set_timeout(Some(stall)).and_then(|()| receiver.set_timeout(Some(stall))).is_err() {
            return;
        }
        // The time-out of a receive begins anew with every byte; this one does not.
        let limit: Arc<dyn Link> = Arc::new(Unwelcomed { closer: closer.clone() });
        gateway.close_at(Instant::now() + stall, limit.clone());
        let hello = receive_hello(&mut receiver, &mut buffers.frame);
        gateway.keep_open(&limit);
        let hello = match hello {
            Ok(hello) => hello,
            Err(text) => {
                violation(text.clone());
                let refused = Refused { code: RefusedCode::Contract, text: shorten(text) };
                let _ = send(&sender, &Answer::Refused(refused), &[]);
                return;
            }
        };
        let chain = buffers.frame.take_data();
        let greeted = self.greet(caller, &hello, &chain, pending);
        let connection = greeted.and_then(|greeted| {
            let connection = self.connection(greeted.session.clone(), &sender, &closer, from)?;
            Ok((connection, greeted.resumed))
        });
        match connection {
            Ok((connection, resumed)) => {
                if connection.welcome(resumed) {
                    connection.lead(Box::new(receiver), buffers);
                } else {
                    connection.end();
                }
            }
            Err(refusal) => {
                gateway.record_refused(caller, &refusal);
                let refused = Refused { code: refusal.code, text: shorten(refusal.text) };
                let _ = send(&sender, &Answer::Refused(refused), &[]);
            }
        }
    }

    /// Judges a hello; waits for a contract if the client wants that and may.
    fn greet(
        &self,
        caller: Caller,
        hello: &Hello,
        chain: &[u8],
        pending: PendingOne,
    ) -> Result<Greeted, Refusal> {
        let gateway = &self.gateway;
        let first = gateway.greet(caller, hello, chain);
        let can_wait = |refusal: &Refusal| {
            use RefusedCode::{Expired, NoContract, NotYet, Revoked};
            hello.wait && matches!(refusal.code, Revoked | Expired | NoContract | NotYet)
        };
        match first {
            Err(refusal) if can_wait(&refusal) && gateway.knows(&caller.key) => {
                // It has proven its key and is bounded by the room for those who wait.
                drop(pending);
                self.wait(caller, hello, chain, refusal)
            }
            other => other,
        }
    }

    fn wait(
        &self,
        caller: Caller,
        hello: &Hello,
        chain: &[u8],
        mut refusal: Refusal,
    ) -> Result<Greeted, Refusal> {
        let gateway = &self.gateway;
        let until = Instant::now() + LONGEST_WAIT;
        // A session that is over cannot be resumed under a new contract.
        let hello = Hello { resume: None, ..*hello };
        loop {
            let busy = |text: &str| Refusal { code: RefusedCode::Busy, text: text.to_owned() };
            let place = gateway
                .parked
                .enter(caller.key)
                .ok_or_else(|| busy("too many wait for a contract; try again later"))?;
            match gateway.greet(caller, &hello, chain) {
                Ok(greeted) => return Ok(greeted),
                Err(error) => refusal = Refusal { code: refusal.code, text: error.text },
            }
            if gateway.is_stopping() {
                return Err(busy("the gateway is stopping; connect again"));
            }
            match place.wait(until) {
                Waited::Called => {}
                Waited::TimedOut | Waited::Full => return Err(refusal),
                Waited::Displaced => return Err(busy("a newer connection of this key waits")),
            }
        }
    }

    fn connection(
        self: &Arc<Self>,
        session: Arc<Session>,
        sender: &Sender,
        closer: &Closer,
        from: SocketAddr,
    ) -> Result<Arc<Connection>, Refusal> {
        let busy = |text: &str| Refusal { code: RefusedCode::Busy, text: text.to_owned() };
        let place =
            self.watch.enter().ok_or_else(|| busy("the gateway has no room for another connection"))?;
        let connection = Arc::new(Connection {
            door: self.clone(),
            session,
            sender: sender.clone(),
            closer: closer.clone(),
            address: Some(from),
            place,
            number: AtomicU64::new(0),
            parked: Mutex::new(None),
            greeting: Mutex::new(()),
            ended: AtomicBool::new(false),
            leased: AtomicBool::new(false),
        });
        let mut places = self.places.lock();
        if places.len() <= place {
            places.resize(place + 1, None);
        }
        if let Some(entry) = places.get_mut(place) {
            *entry = Some(connection.clone());
        }
        Ok(connection)
    }

    /// Lets another thread read on where a request is slow; `false` if there is none to spare.
    fn relieve(&self, place: usize) -> bool {
        let connection = self.places.lock().get(place).cloned().flatten();
        connection.is_none_or(|connection| connection.relieve())
    }
}

/// A share of the extra threads, given up when dropped.
struct Relief {
    connection: Arc<Connection>,
    held: bool,
}

impl Drop for Relief {
    fn drop(&mut self) {
        if self.held {
            self.connection.session.end_slow();
            self.connection.door.slow.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Connection {
    /// Joins the session and says welcome. `false` if the session is over or full, or the client gone.
    fn welcome(self: &Arc<Self>, resumed: bool) -> bool {
        let greeting = self.greeting.lock();
        let (session, gateway) = (&self.session, &self.door.gateway);
        let refuse = |code, text: &str| {
            let refusal = Refusal { code, text: text.to_owned() };
            let caller = Caller { key: session.holder, address: self.address() };
            gateway.record_refused(caller, &refusal);
            let _ = send(&self.sender, &Answer::Refused(Refused { code, text: refusal.text }), &[]);
            false
        };
        let Some(number) = session.attach(self.clone(), gateway.limits.connections_per_session) else {
            return match session.turnstile.is_fenced() {
                true => refuse(RefusedCode::NoSession, "the session is over; open a new one"),
                false => refuse(RefusedCode::Busy, "the session has all the connections that it may have"),
            };
        };
        self.number.store(number, Ordering::Relaxed);
        let Some(admission) = session.enter(gateway.clock.now()) else {
            return refuse(RefusedCode::NoSession, "the session is over; open a new one");
        };
        let infos = session.engine.grant_infos(&admission);
        drop(admission);
        let contract = session.contract();
        let welcome = Welcome {
            session: session.id,
            boot: gateway.boot,
            resumed,
            slots: session.slots.count(),
            in_flight: session.in_flight,
            connections: u16::try_from(gateway.limits.connections_per_session).unwrap_or(u16::MAX),
            contract: contract.effective.id(),
            generation: contract.effective.generation,
            application: session.application.as_str().to_owned(),
            expires: contract.effective.expires,
            now: gateway.clock.now(),
        };
        let Ok(infos) = codec::encode_list(&infos) else { return false };
        let record = Record {
            address: self.address().map(|address| address.to_string()),
            key: Some(session.holder.to_string()),
            ..session.record(if resumed { "resume" } else { "open" })
        };
        match resumed {
            true => gateway.audit.count(record),
            false => gateway.audit.note(record),
        }
        let sent = send(&self.sender, &Answer::Welcome(welcome), &infos).is_ok();
        drop(greeting);
        sent
    }

    /// Reads requests and carries them out, until the connection ends or another thread reads on.
    fn lead(self: Arc<Self>, mut receiver: Box<Receiver>, buffers: &mut Buffers) {
        // Should carrying out a request panic, the connection is closed and leaves the session.
        let mut ending = Ending { connection: self.clone(), armed: true };
        loop {
            match receiver.recv(&mut buffers.frame) {
                Ok(true) => {}
                Err(ChannelError::TimedOut) if !receiver.mid_frame() => {
                    buffers.shrink();
                    continue;
                }
                Ok(false) => return,
                Err(error) => return self.broken(&error),
            }
            let request: Request = match codec::decode_header(buffers.frame.header()) {
                Ok(request) => request,
                Err(error) => match self.malformed(&buffers.frame, &error) {
                    true => continue,
                    false => return,
                },
            };
            if let Op::Recalled { id } = request.op {
                self.door.gateway.recalled(&self.session, id);
                continue;
            }
            while !self.session.take_room(Duration::from_secs(1)) {
                let _ = self.sender.flush();
                if self.ended.load(Ordering::Relaxed) {
                    return;
                }
            }
            let behind = receiver.has_buffered();
            *self.parked.lock() = Some(receiver);
            if is_slow(&request.op) || behind && is_bulk(&request.op, buffers.frame.data()) {
                let _ = self.sender.flush();
                self.relieve();
            } else {
                self.door.watch.begin(self.place);
            }
            self.carry_out(&request, behind, buffers);
            if matches!(request.op, Op::Bye) {
                self.door.gateway.close_session(&self.session, "the client said good-bye");
                self.closer.close();
            }
            let back = self.parked.lock().take();
            match back {
                Some(half) => receiver = half,
                None => {
                    // Another thread reads on, and this one is free for it in the count.
                    ending.armed = false;
                    drop(Relief { connection: self.clone(), held: true });
                    return;
                }
            }
            self.door.watch.end(self.place);
        }
    }

    /// Lets another thread take the receiving half; `false` if there is none to spare.
    fn relieve(self: &Arc<Self>) -> bool {
        let limits = &self.door.gateway.limits;
        self.relieve_up_to(limits.workers, limits.workers_per_session)
    }

    /// The same for a request that waits for leases: others may wait for what the client answers, so that more threads are
    /// worth it than for slow requests, up to all that the session may have in flight.
    fn relieve_waiting(self: &Arc<Self>) {
        let limits = &self.door.gateway.limits;
        if self.parked.lock().is_some() {
            self.relieve_up_to(
                2 * limits.workers,
                limits.workers_per_session + self.session.in_flight as usize,
            );
        }
    }

    fn relieve_up_to(self: &Arc<Self>, most: usize, most_of_session: usize) -> bool {
        let door = &self.door;
        if door.slow.fetch_add(1, Ordering::Relaxed) >= most {
            door.slow.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        if !self.session.begin_slow(most_of_session) {
            door.slow.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let mut relief = Relief { connection: self.clone(), held: true };
        let job = move |buffers: &mut Buffers| {
            let half = relief.connection.parked.lock().take();
            if let Some(half) = half {
                // The share is now that of the thread that was relieved: it gives it up when it has finished.
                relief.held = false;
                relief.connection.clone().lead(half, buffers);
            }
        };
        door.gateway.threads.run(Box::new(job)).is_ok()
    }

    /// `behind`: another request has been received already.
    fn carry_out(self: &Arc<Self>, request: &Request, behind: bool, buffers: &mut Buffers) {
        let Buffers { frame, out, header } = buffers;
        let later = || -> LockReply {
            let (connection, id) = (self.clone(), request.id);
            Box::new(move |outcome| {
                // Called by whoever gave the lock up, who must not wait for a client that does not read.
                let threads = connection.door.gateway.threads.clone();
                let closer = connection.closer.clone();
                let send = move || connection.reply(id, outcome.into(), &mut vec![]);
                if threads.run(Box::new(move |_| send())).is_err() {
                    closer.close();
                }
            })
        };
        let waits = || {
            let _ = self.sender.flush();
            self.relieve_waiting();
        };
        self.door.awake.request();
        let hooks = Hooks { later: &later, waits: &waits };
        if matches!(request.op, Op::TakeLeases) {
            self.leased.store(true, Ordering::Relaxed);
        }
        let answer = self.door.gateway.perform(&self.session, request, frame.data(), out, hooks);
        self.session.give_room();
        let Some(answer) = answer else { return };
        let PerformAnswer { outcome, note } = answer;
        let data = if matches!(outcome, Outcome::Data | Outcome::Opened(..)) { out.data() } else { &[] };
        if !self.encode(request.id, outcome, note, header) {
            return self.closer.close();
        }
        let alone = !behind || matches!(request.op, Op::Bye);
        if alone || !self.held(header, data) {
            self.send(header, data);
        }
    }

    /// Holds a reply back, to go with that of the next request, which has been received already; `false` if it is to be sent by
    /// itself. Only a thread that reads on itself may: whoever reads sends what is held back before it waits for the client.
    fn held(&self, header: &[u8], data: &[u8]) -> bool {
        let Some(half) = self.parked.lock().take() else { return false };
        let held = self.sender.hold(header, data);
        *self.parked.lock() = Some(half);
        held.unwrap_or_else(|_| {
            self.closer.close();
            true
        })
    }

    fn reply(&self, id: u64, answer: PerformAnswer, header: &mut Vec<u8>) {
        let PerformAnswer { outcome, note } = answer;
        match self.encode(id, outcome, note, header) {
            true => self.send(header, &[]),
            false => self.closer.close(),
        }
    }

    fn encode(&self, id: u64, outcome: Outcome, note: Note, header: &mut Vec<u8>) -> bool {
        header.clear();
        let reply = match self.leased.load(Ordering::Relaxed) {
            true => FromGateway::Leased { id, outcome, note },
            false => FromGateway::Reply { id, outcome },
        };
        codec::encode_header(&reply, header).is_ok()
    }

    fn send(&self, header: &[u8], data: &[u8]) {
        if self.sender.send(header, data).is_err() {
            self.closer.close();
        }
    }

    /// A request that cannot be decoded: refused if its number can be, the end of the connection otherwise.
    fn malformed(&self, frame: &Frame, error: &codec::CodecError) -> bool {
        self.door.gateway.judge_failure(&self.session, &Failure::Malformed, || error.to_string());
        self.door.gateway.audit.count(Record {
            outcome: Some("malformed".into()),
            text: Some(error.to_string()),
            address: self.address().map(|address| address.to_string()),
            ..self.session.record("violation")
        });
        let Some(id) = frame.header().first_chunk::<8>() else { return false };
        let failure = Outcome::Failed(Failure::Malformed);
        self.reply(u64::from_le_bytes(*id), failure.into(), &mut vec![]);
        true
    }

    fn broken(&self, error: &ChannelError) {
        let outcome = match error {
            ChannelError::Frame(_) => "frame",
            ChannelError::TimedOut => "stalled",
            ChannelError::Tls(_) => "tls",
            _ => return,
        };
        self.door.gateway.audit.count(Record {
            outcome: Some(outcome.into()),
            text: Some(error.to_string()),
            address: self.address().map(|address| address.to_string()),
            ..self.session.record("violation")
        });
    }

    /// Leaves the session, once.
    fn end(&self) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        self.closer.close();
        self.session.detach(self.number.load(Ordering::Relaxed));
        if let Some(entry) = self.door.places.lock().get_mut(self.place) {
            *entry = None;
        }
        self.door.watch.leave(self.place);
    }
}

impl Link for Connection {
    fn tell(&self, event: &Event) {
        self.tell_data(event, &[]);
    }

    fn tell_data(&self, event: &Event, data: &[u8]) {
        let greeting = self.greeting.lock();
        drop(greeting);
        if send(&self.sender, &FromGateway::Event(event.clone()), data).is_err() {
            self.closer.close();
        }
    }

    fn close(&self) {
        self.closer.close();
    }

    fn address(&self) -> Option<IpAddr> {
        self.address.map(|address| address.ip())
    }
}

/// Ends a connection when its leading thread leaves it, also by a panic.
struct Ending {
    connection: Arc<Connection>,
    armed: bool,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.armed {
            self.connection.end();
        }
    }
}

/// Operations that are worth another thread at once.
fn is_slow(op: &Op) -> bool {
    matches!(op, Op::Fsync { .. } | Op::CopyRange { .. } | Op::Fallocate { .. })
}

/// Operations that move much data.
fn is_bulk(op: &Op, data: &[u8]) -> bool {
    data.len() >= BULK || matches!(op, Op::Read { length, .. } if *length as usize >= BULK)
}

fn receive_hello(receiver: &mut Receiver, frame: &mut Frame) -> Result<Hello, String> {
    match receiver.recv(frame) {
        Ok(true) => {}
        Ok(false) => return Err("the client went away without a hello".into()),
        Err(error) => return Err(format!("no hello: {error}")),
    }
    codec::decode_header(frame.header()).map_err(|error| format!("no hello: {error}"))
}

fn send<T: bincode::Encode>(sender: &Sender, header: &T, data: &[u8]) -> Result<(), ChannelError> {
    let mut bytes = Vec::with_capacity(256);
    if codec::encode_header(header, &mut bytes).is_err() {
        return Err(ChannelError::TooLong { header: bytes.len(), data: data.len() });
    }
    sender.send(&bytes, data)
}

/// Cuts a text to what a refusal may have, between characters.
fn shorten(mut text: String) -> String {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(shorten("short".into()), "short");
        let long = "ä".repeat(400);
        assert_eq!(shorten(long).len(), 512);
        assert_eq!(shorten(format!("a{}", "ä".repeat(400))).len(), 511);
    }
}
