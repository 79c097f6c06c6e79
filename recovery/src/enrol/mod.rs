//! The enrolment listener: a fresh guest shows its new key and the proof of its one-time secret, and gets its contract.
//!
//! Whoever reaches the address may try; a wrong proof is answered in the same words whatever is wrong, and an address
//! with several wrong ones is turned away for a while. It does not void the secret: another guest could bring that about.
//! The first key that is proven uses the secret up, durably, before anything is issued for it.

mod places;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use strongroom_base::archive::Archive;
use strongroom_base::files::Existing;
use strongroom_base::incident::{Entry, Incident, dir_of};
use strongroom_base::secret::ProofKey;
use strongroom_base::{Base, Failure, keys};
use strongroom_channel::{Channel, ChannelError, Frame, Sender, ServerTls, Socket};
use strongroom_contracts::{Application, PublicKey, SecretKey, keys::random};
use strongroom_protocol::ALPN_ENROL;
use strongroom_protocol::codec::{decode_header, encode_header};
use strongroom_protocol::enrol::{FromGuest, ToGuest};

use crate::daemon::Daemon;
use crate::incident::Open;
use crate::journal::now_us;
use crate::log::say;
use places::{Place, Places};

/// How long a guest may take for all that it has to say: handshake, beginning, proof.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a guest is kept waiting for its contract before it is told to ask again.
const ISSUE: Duration = Duration::from_secs(20);
/// Wrong proofs from one address within [`FORGET`], after which it is turned away.
const MAX_WRONG: u32 = 5;
/// How often it is seen to that nobody takes longer.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// How long wrong proofs count.
const FORGET: Duration = Duration::from_secs(600);
/// Addresses with wrong proofs that are told apart.
const MAX_ADDRESSES: usize = 4096;
const REFUSAL: &str = "the proof is not right, or the secret is not good any more";

/// The listener's key, made when it is first needed.
pub fn key(base: &Base) -> Result<SecretKey, Failure> {
    let path = base.recovery_dir().join("enrol.key");
    if !path.exists() {
        keys::write_pair(&SecretKey::generate().map_err(Failure::other)?, &path, Existing::Keep)?;
    }
    keys::read_secret(&path, "enrolment key")
}

struct Door {
    daemon: Arc<Daemon>,
    tls: ServerTls,
    places: Places,
    wrong: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

/// Listens, if that is configured; nobody is served before [`Listening::serve`].
///
/// # Errors
/// If the address is not there to listen on.
pub fn listen(daemon: &Arc<Daemon>) -> Result<Option<Listening>, Failure> {
    let (Some(enrol), Some(key)) = (&daemon.config.enrol, &daemon.enrol_key) else { return Ok(None) };
    let failed = |error: std::io::Error| cannot_listen(enrol.address, &error);
    let listener = TcpListener::bind(enrol.address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let tls = ServerTls::new(key, &[ALPN_ENROL]).map_err(Failure::other)?;
    let door =
        Arc::new(Door { daemon: daemon.clone(), tls, places: Places::default(), wrong: Mutex::default() });
    Ok(Some(Listening { address: enrol.address, listener, door }))
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> Failure {
    Failure::other(format!("cannot listen on {address} for enrolment: {error}"))
        .hint("[enrol] address of recovery.toml must be an address of this machine on the guests' network")
}

/// A listener with guests that may be waiting already.
pub struct Listening {
    address: SocketAddr,
    listener: TcpListener,
    door: Arc<Door>,
}

impl Listening {
    /// Serves guests from now on. To be called once the incidents are known that are not over: the right proof for one of
    /// them would be refused before that, and a refused guest does not ask again.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn serve(self) -> Result<(), Failure> {
        let Listening { address, listener, door } = self;
        let run = move || door.accept(&listener);
        std::thread::Builder::new()
            .name("enrol".into())
            .spawn(run)
            .map_err(|error| cannot_listen(address, &error))?;
        Ok(())
    }
}

impl Door {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !self.daemon.is_stopping() {
            let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&TICK));
            self.places.close_due(Instant::now());
            let Ok((stream, from)) = listener.accept() else { continue };
            let from = from.ip().to_canonical();
            if self.is_turned_away(from) {
                continue;
            }
            let Some(place) = self.places.take(from) else { continue };
            let door = self.clone();
            let serve = move || door.serve(stream, from, place);
            // Where no thread can be had, the closure goes, and its place with it.
            let _ = std::thread::Builder::new().name("enrol".into()).spawn(serve);
        }
    }

    fn serve(&self, stream: TcpStream, from: IpAddr, place: Place) {
        let until = Instant::now() + PATIENCE;
        let served = stream
            .set_nonblocking(false)
            .map_err(|error| ChannelError::Io { doing: "enrolment".into(), source: error })
            .and_then(|()| self.tls.accept(Socket::Tcp(stream), PATIENCE))
            .and_then(|channel| self.talk(channel, from, place, until));
        if let Err(error) = served {
            self.daemon.noise.say("enrolment broken off", || format!("from {from}: {error}"));
        }
    }

    /// `until`: when the guest must have said everything.
    fn talk(
        &self,
        channel: Channel,
        from: IpAddr,
        mut place: Place,
        until: Instant,
    ) -> Result<(), ChannelError> {
        let Channel { sender, mut receiver, closer, peer, .. } = channel;
        sender.set_timeout(Some(PATIENCE))?;
        receiver.set_timeout(Some(PATIENCE))?;
        place.close_at(until, &closer);
        let mut frame = Frame::new();
        let mut hear = || -> Result<Option<FromGuest>, ChannelError> {
            let there = receiver.recv(&mut frame)?;
            Ok(there.then(|| decode_header(frame.header()).ok()).flatten())
        };
        let Some(FromGuest::Begin { incident, application }) = hear()? else { return Ok(()) };
        let nonce = random()?;
        send(&sender, &ToGuest::Challenge { nonce }, &[])?;
        let Some(FromGuest::Prove { proof }) = hear()? else { return Ok(()) };
        // From here on it waits for us, and then has as long again to take the answer.
        place.close_at(Instant::now() + ISSUE + PATIENCE, &closer);
        match self.enrol(incident, &application, peer, &nonce, &proof, from) {
            Ok(Some(chain)) => send(&sender, &ToGuest::Issued, &chain),
            Ok(None) => send(&sender, &ToGuest::Later { wait_ms: 1000 }, &[]),
            Err(Refusal::Wrong) => {
                self.note_wrong(from);
                self.daemon.noise.say("enrolment refused", || {
                    format!("{from} for incident {incident} of {application}: {REFUSAL}")
                });
                send(&sender, &ToGuest::Refused { text: REFUSAL.into() }, &[])
            }
            Err(Refusal::Failed(failure)) => {
                say(&format!("enrolment for incident {incident}: {failure}"));
                send(&sender, &ToGuest::Later { wait_ms: 2000 }, &[])
            }
        }
    }

    /// The contract's bytes; `None`: it is not issued yet.
    fn enrol(
        &self,
        number: u64,
        application: &Application,
        peer: PublicKey,
        nonce: &[u8; 32],
        proof: &[u8; 32],
        from: IpAddr,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let is_right = |now: &Incident| {
            let (key, until_us) = now.secret.as_ref()?;
            let right = ProofKey::from_hex(key)?.check(number, application, &peer, nonce, proof);
            let mine = now.number == number && now.application == *application;
            let fresh = *until_us > now_us() && now.enrolled.is_none_or(|holder| holder == peer);
            (right && mine && fresh).then_some(())
        };
        let Some(open) = self.daemon.open_incident(application).filter(|open| open.number == number) else {
            // It is over; a guest whose answer was lost may still fetch what was issued for its key.
            let dir = dir_of(&self.daemon.base.incidents_dir(), number);
            let now = Incident::read(&dir).map_err(|_| Refusal::Wrong)?;
            is_right(&now).filter(|()| now.enrolled == Some(peer)).ok_or(Refusal::Wrong)?;
            return self.issued(&now, peer);
        };
        let accepted = open.put_if(|now| match is_right(now) {
            None => (None, false),
            Some(()) if now.enrolled.is_some() => (None, true),
            Some(()) => {
                let entry = Entry::Enrolled { holder: peer.to_string(), from: from.to_string() };
                (Some(entry), true)
            }
        })?;
        if !accepted {
            return Err(Refusal::Wrong);
        }
        self.wait_issued(&open, peer)
    }

    fn wait_issued(&self, open: &Arc<Open>, peer: PublicKey) -> Result<Option<Vec<u8>>, Refusal> {
        let until = Instant::now() + ISSUE;
        open.wait(&self.daemon, until, |now| {
            now.issued.iter().any(|(.., holder)| *holder == peer).then_some(())
        });
        self.issued(&open.incident(), peer)
    }

    fn issued(&self, now: &Incident, peer: PublicKey) -> Result<Option<Vec<u8>>, Refusal> {
        let Some((id, ..)) = now.issued.iter().rev().find(|(.., holder)| *holder == peer) else {
            return Ok(None);
        };
        let found = Archive::open(&self.daemon.base)?.find(&id.to_string())?;
        let issued = found.into_iter().next();
        let issued = issued.ok_or_else(|| Failure::other(format!("{id} is not in the archive")))?;
        Ok(Some(issued.chain.to_bytes().map_err(Failure::other)?))
    }

    fn is_turned_away(&self, from: IpAddr) -> bool {
        let mut wrong = self.wrong.lock();
        wrong.retain(|_, (since, _)| since.elapsed() < FORGET);
        wrong.get(&from).is_some_and(|(_, count)| *count >= MAX_WRONG)
    }

    fn note_wrong(&self, from: IpAddr) {
        let mut wrong = self.wrong.lock();
        if wrong.len() < MAX_ADDRESSES || wrong.contains_key(&from) {
            wrong.entry(from).or_insert((Instant::now(), 0)).1 += 1;
        }
    }
}

enum Refusal {
    /// The proof, the secret, the incident, or the application.
    Wrong,
    /// Ours.
    Failed(Failure),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal::Failed(failure)
    }
}

fn send(sender: &Sender, answer: &ToGuest, data: &[u8]) -> Result<(), ChannelError> {
    let mut header = vec![];
    if encode_header(answer, &mut header).is_err() {
        return Err(ChannelError::TooLong { header: header.len(), data: data.len() });
    }
    sender.send(&header, data)
}
