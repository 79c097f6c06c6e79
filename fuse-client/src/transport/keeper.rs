//! The keeper thread: makes connections, restores the session after the gateway restarted, begins another one when it is lost,
//! and brings a fenced mount back to life as soon as there is a valid contract.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use strongroom_channel::Channel;
use strongroom_protocol::attr::LockKind;
use strongroom_protocol::hello::{GrantInfo, Refused, RefusedCode, SessionId, Welcome};
use strongroom_protocol::op::Op;
use strongroom_protocol::reply::Outcome;

use super::call::{Call, Payload};
use super::heal::reopen;
use super::knock::{self, Knock, KnockError};
use super::pending::{Link, Pending, Phase, Prepared, Session};
use super::taking::take_leases;
use super::{Nudge, Shared, Source, finish};
use crate::errno::{Ended, errno};
use crate::lease::Drop;
use crate::opening;
use crate::state::{OpenFile, Wire};
use crate::telling;

/// Pauses between attempts to connect: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// Between attempts that the gateway refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);
/// How often the contract file is looked at while there is no valid contract.
const FILE_PACE: Duration = Duration::from_millis(500);
/// How long the last answers of a superseded session may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a send may be stuck before the connection counts as lost.
const SEND_MAX: Duration = Duration::from_secs(20);

/// Why there is no session to be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The gateway refused.
    #[error("the gateway refused: {}", .0.text)]
    Refused(Refused),
    /// The gateway could not be reached or understood.
    #[error(transparent)]
    Knock(#[from] KnockError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A session that the gateway has welcomed.
type Welcomed = (Box<Welcome>, Vec<GrantInfo>, Box<Channel>);

/// What has to be done.
enum Need {
    Nothing,
    /// The session has no connection.
    Connection,
    /// The session has fewer connections than it may.
    Another,
    /// The gateway has not seen the contract that is in the file now.
    Offer,
    /// The session was ended in favour of another; its last answers are still coming.
    Farewell,
    /// There is no session, because there is no valid contract.
    Contract,
    End,
}

/// What a new connection is to a session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// There is none.
    Only,
    /// There are others.
    Another,
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    nudged: mpsc::Receiver<Nudge>,
    pause: Duration,
    /// The session may not have more connections than this.
    most: usize,
    trouble: Option<String>,
    /// The contract file was replaced, and the gateway has not seen what is in it now.
    offer: bool,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, nudged: mpsc::Receiver<Nudge>) -> Keeper {
        Keeper { shared, nudged, pause: FIRST_PAUSE, most: 1, trouble: None, offer: false }
    }

    /// Opens the first session. `Keeper` has not been moved to its thread yet.
    pub(super) fn first(&mut self) -> Result<(), OpenError> {
        let (welcome, grants, channel) = self.begin()?;
        self.most = self.adopt(&welcome, grants, channel, true)?;
        Ok(())
    }

    pub(super) fn run(mut self) {
        loop {
            let wait = match self.need() {
                Need::End => return,
                Need::Nothing => None,
                Need::Connection => self.reconnect(),
                Need::Another => self.add_connection(),
                Need::Offer => self.offer(),
                Need::Farewell => self.farewell(),
                Need::Contract => self.revive(),
            };
            let nudge = match wait {
                None => self.nudged.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(pause) if pause.is_zero() => continue,
                Some(pause) => self.nudged.recv_timeout(pause),
            };
            match nudge {
                Ok(Nudge::Broken) => self.abandon(),
                Ok(Nudge::File) => {
                    let settings = &self.shared.settings;
                    self.offer |= settings.contract.reload(&settings.journal);
                }
                Ok(Nudge::Look) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn need(&self) -> Need {
        let core = self.shared.core.lock();
        let live = core.live_links();
        match core.phase {
            Phase::Closed => Need::End,
            Phase::Void => Need::Contract,
            _ if live == 0 => Need::Connection,
            _ if core.superseded => Need::Farewell,
            Phase::Up if self.offer => Need::Offer,
            Phase::Up if live < core.links.len().min(self.most) => Need::Another,
            Phase::Away | Phase::Up => Need::Nothing,
        }
    }

    /// The gateway closes the connections when it has answered what was under way; it is not waited for without end.
    fn farewell(&self) -> Option<Duration> {
        let until = Instant::now() + FAREWELL;
        while Instant::now() < until {
            let core = self.shared.core.lock();
            if core.live_links() == 0 || core.phase != Phase::Away {
                return Some(Duration::ZERO);
            }
            drop(core);
            std::thread::sleep(FIRST_PAUSE);
        }
        self.abandon();
        Some(FIRST_PAUSE)
    }

    /// Gives the session up, so that another is begun.
    fn abandon(&self) {
        let links: Vec<_> = {
            let mut core = self.shared.core.lock();
            core.session = None;
            core.links.iter().flatten().map(|link| link.closer.clone()).collect()
        };
        for closer in links {
            closer.close();
        }
    }

    fn knock(&self, resume: Option<SessionId>, wait: bool, chain: &[u8]) -> Result<Knock, KnockError> {
        let settings = &self.shared.settings;
        knock::knock(&settings.tls, &settings.gateway, resume, wait, chain, &|closer| {
            *self.shared.knocking.lock() = closer;
        })
    }

    /// Opens a session with the contract file, or with what the gateway keeps if the file's contract is of no use any more.
    fn begin(&self) -> Result<Welcomed, OpenError> {
        let settings = &self.shared.settings;
        let chain = settings.contract.chain();
        let refused = match self.knock(None, false, &chain)? {
            Knock::Welcome(welcome, grants, channel) => return Ok((welcome, grants, channel)),
            Knock::Refused(refused) => refused,
        };
        let newer =
            matches!(refused.code, RefusedCode::Revoked | RefusedCode::Expired | RefusedCode::Contract);
        if settings.fetch
            && newer
            && let Knock::Welcome(welcome, grants, channel) = self.knock(None, false, &[])?
        {
            settings.journal.note("the gateway had a newer contract than the file");
            return Ok((welcome, grants, channel));
        }
        Err(OpenError::Refused(refused))
    }

    /// All connections are gone: goes on with the session, or begins another.
    fn reconnect(&mut self) -> Option<Duration> {
        let session = self.shared.core.lock().session;
        let outcome = match session {
            Some(session) => match self.knock(Some(session.id), false, &self.offered()) {
                Ok(Knock::Refused(Refused { code: RefusedCode::NoSession, .. })) => {
                    self.shared.settings.journal.note("the gateway has lost the session: beginning another");
                    self.shared.core.lock().session = None;
                    self.begin()
                }
                Ok(Knock::Welcome(welcome, grants, channel)) => Ok((welcome, grants, channel)),
                Ok(Knock::Refused(refused)) => Err(OpenError::Refused(refused)),
                Err(error) => Err(error.into()),
            },
            None => self.begin(),
        };
        match outcome.and_then(|(welcome, grants, channel)| {
            let fresh = !welcome.resumed;
            self.adopt(&welcome, grants, channel, fresh)
        }) {
            Ok(most) => {
                self.most = most;
                self.offer = false;
                self.settled();
                Some(Duration::ZERO)
            }
            Err(OpenError::Refused(refused)) if refused.code != RefusedCode::Busy => {
                self.shared.void(&format!("the gateway refused: {}", refused.text), None);
                Some(Duration::ZERO)
            }
            Err(error) => Some(self.later(&error)),
        }
    }

    fn settled(&mut self) {
        self.pause = FIRST_PAUSE;
        if self.trouble.take().is_some() {
            self.shared.settings.journal.note("connected again");
        }
    }

    fn later(&mut self, error: &OpenError) -> Duration {
        let text = error.to_string();
        // Once for each kind of trouble, not for each attempt.
        if self.trouble.as_ref() != Some(&text) {
            self.shared.settings.journal.note(&format!("no connection to the gateway, trying on: {text}"));
            self.trouble = Some(text);
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LAST_PAUSE);
        pause
    }

    /// The chain that the gateway has not seen, if there is one.
    fn offered(&self) -> Vec<u8> {
        if self.offer { self.shared.settings.contract.chain() } else { vec![] }
    }

    /// Presents the contract that is in the file now, with the session that is to go on under it. If the session cannot, the
    /// gateway ends it in favour of another; if the contract is no better than the one in force, nothing changes.
    fn offer(&mut self) -> Option<Duration> {
        let Some(session) = self.shared.core.lock().session else { return Some(FIRST_PAUSE) };
        match self.knock(Some(session.id), false, &self.offered()) {
            Ok(Knock::Welcome(welcome, _, channel)) => {
                self.offer = false;
                note(
                    &self.shared,
                    &format!("the contract file was replaced; in force is the contract {}", welcome.contract),
                );
                self.status(&welcome);
                if welcome.boot == session.boot && welcome.resumed {
                    // One connection more, if there is room; closed if not.
                    let _ = self.install_further(*channel);
                }
                Some(Duration::ZERO)
            }
            // It has seen the contract by then: the session has all its connections, or is over.
            Ok(Knock::Refused(_)) => {
                self.offer = false;
                Some(FIRST_PAUSE)
            }
            Err(_) => Some(LAST_PAUSE),
        }
    }

    fn add_connection(&mut self) -> Option<Duration> {
        let Some(session) = self.shared.core.lock().session else { return Some(FIRST_PAUSE) };
        match self.knock(Some(session.id), false, &[]) {
            Ok(Knock::Welcome(welcome, _, channel)) if welcome.boot == session.boot && welcome.resumed => {
                let added = self.install_further(*channel);
                Some(if added.is_ok() { Duration::ZERO } else { LAST_PAUSE })
            }
            // The gateway restarted in between; the first connection will notice.
            Ok(Knock::Welcome(..)) => Some(LAST_PAUSE),
            Ok(Knock::Refused(Refused { code: RefusedCode::Busy, .. })) => {
                self.most = self.shared.core.lock().live_links().max(1);
                None
            }
            Ok(Knock::Refused(_)) | Err(_) => Some(LAST_PAUSE),
        }
    }

    /// There is no valid contract: waits for one at the gateway, and for the file to be replaced.
    fn revive(&mut self) -> Option<Duration> {
        // Pages and attributes that the kernel keeps were granted by a contract that is void now.
        self.shared.state.drop_caches();
        let settings = &self.shared.settings;
        let changed = settings.contract.reload(&settings.journal);
        let attempt = if settings.fetch && !changed {
            self.watch_file_while(|| self.knock(None, true, &[]))
        } else {
            self.knock(None, false, &settings.contract.chain())
        };
        let outcome = match attempt {
            Ok(Knock::Welcome(welcome, grants, channel)) => self.adopt(&welcome, grants, channel, true),
            Ok(Knock::Refused(refused)) => Err(OpenError::Refused(refused)),
            Err(error) => Err(error.into()),
        };
        match outcome {
            Ok(most) => {
                self.most = most;
                self.settled();
                note(&self.shared, "there is a valid contract again");
                Some(Duration::ZERO)
            }
            Err(error) => {
                let refused = matches!(error, OpenError::Refused(_));
                let pause = self.later(&error);
                self.wait_for_file(if refused { REFUSED_PAUSE } else { pause });
                Some(Duration::ZERO)
            }
        }
    }

    /// Sleeps, at most until the contract file changes or the mount ends.
    fn wait_for_file(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until
            && !self.shared.settings.contract.changed()
            && self.shared.core.lock().phase == Phase::Void
        {
            std::thread::sleep(FILE_PACE.min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// Does `work`, which may wait long for the gateway; ends it when the contract file is replaced.
    fn watch_file_while(
        &self,
        work: impl FnOnce() -> Result<Knock, KnockError>,
    ) -> Result<Knock, KnockError> {
        let (done, ended) = mpsc::channel::<()>();
        let shared = &self.shared;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while matches!(ended.recv_timeout(FILE_PACE), Err(mpsc::RecvTimeoutError::Timeout)) {
                    if shared.settings.contract.changed()
                        && let Some(closer) = shared.knocking.lock().take()
                    {
                        closer.close();
                    }
                }
            });
            let result = work();
            drop(done);
            result
        })
    }

    /// Takes over a session that the gateway has welcomed. Returns how many connections it may have.
    fn adopt(
        &self,
        welcome: &Welcome,
        grants: Vec<GrantInfo>,
        channel: Box<Channel>,
        fresh: bool,
    ) -> Result<usize, OpenError> {
        let (lost, restarted) = {
            let mut core = self.shared.core.lock();
            if core.phase == Phase::Closed {
                return Ok(1);
            }
            let restarted = fresh || core.session.is_none_or(|session| session.boot != welcome.boot);
            let lost = if fresh {
                core.fresh(welcome.slots);
                core.settle(&self.shared.state)
            } else {
                vec![]
            };
            if restarted {
                core.epoch += 1;
            }
            core.session = Some(Session { id: welcome.session, boot: welcome.boot });
            core.superseded = false;
            core.set_room(welcome.in_flight);
            core.phase = Phase::Away;
            (lost, restarted)
        };
        for pending in lost {
            finish(pending, Err(Ended::Lost));
        }
        self.shared.state.welcome(grants);
        // The skeleton may be another one.
        self.shared.state.take_back(&Drop { all_entries: true, ..Drop::default() });
        if restarted {
            // It is told of all that is held, or has ended it.
            self.shared.state.locks.lock().keep_none();
        }
        let serial = self.install(*channel, Role::Only)?;
        if restarted {
            self.open_all_again(serial, fresh);
        }
        {
            let mut core = self.shared.core.lock();
            if core.phase == Phase::Away && core.live_links() > 0 {
                core.phase = Phase::Up;
            }
            self.shared.sendable.notify_one();
        }
        self.status(welcome);
        Ok(usize::from(welcome.connections).max(1))
    }

    fn status(&self, welcome: &Welcome) {
        let until = strongroom_contracts::armour::rfc3339(welcome.expires);
        let line = format!("{}: contract {} until {until}", welcome.application, welcome.contract);
        self.shared.settings.journal.status(&line);
    }

    /// Adds a connection to those of the session.
    fn install_further(&self, channel: Channel) -> Result<(), OpenError> {
        if !self.has_company() {
            // The session is taken up again with the next one.
            channel.closer.close();
            return Ok(());
        }
        self.install(channel, Role::Another).map(drop)
    }

    /// Adds a connection to the session and starts its reader.
    fn install(&self, channel: Channel, role: Role) -> Result<u64, OpenError> {
        // A gateway that takes nothing any more is as good as gone.
        channel.sender.set_timeout(Some(SEND_MAX)).map_err(KnockError::from)?;
        // What was answered early is with the gateway before the leases end under which it was; and so are locks that are kept, and what is
        // open, of which the kernel then hears how long it is by now.
        let alone = role == Role::Only;
        let state = &self.shared.state;
        let kept = if alone { state.locks.lock().kept() } else { vec![] };
        let late = alone && (state.behind.any() || !kept.is_empty() || !state.handles.lock().is_empty());
        if alone && !late {
            self.shared.let_forget();
        }
        let (waits, number) = {
            let mut taking = self.shared.taking.lock();
            if alone {
                self.shared.core.lock().without_leases = late;
            }
            match role {
                Role::Only if late => (true, taking.begin(channel.sender.clone())),
                Role::Only => {
                    taking.none();
                    (false, 0)
                }
                Role::Another => (taking.further(&channel.sender), 0),
            }
        };
        if !waits && take_leases(&channel.sender).is_err() {
            channel.closer.close();
        }
        let (serial, epoch, life) = {
            let mut core = self.shared.core.lock();
            let serial = core.new_serial();
            let epoch = core.epoch;
            let life = self.shared.state.leases.table().life();
            let link = Link {
                serial,
                sender: channel.sender,
                closer: channel.closer.clone(),
                heard: Instant::now(),
                pinged: false,
            };
            let closed = core.phase == Phase::Closed || !alone && core.live_links() == 0;
            match core.links.iter_mut().find(|place| place.is_none()) {
                Some(place) if !closed => *place = Some(link),
                _ => {
                    channel.closer.close();
                    return Ok(serial);
                }
            }
            (serial, epoch, life)
        };
        let receiver = channel.receiver;
        let reader = self.shared.clone();
        let started = std::thread::Builder::new()
            .name(format!("reader-{serial}"))
            .spawn(move || reader.read(Source { serial, epoch, life }, receiver));
        if let Err(error) = started {
            channel.closer.close();
            self.shared.link_down(serial);
            return Err(error.into());
        }
        if late {
            let (shared, asker) = (self.shared.clone(), self.shared.clone());
            let submit: opening::Submit = Arc::new(move |call| asker.enqueue(Pending::first(call)));
            let next = submit.clone();
            self.shared.state.behind.wait_for_all(Box::new(move || {
                telling::tell_all(&submit, &shared.state.clone(), kept, false, move || {
                    opening::tell_sizes(&next, &shared.state.clone(), move || {
                        // Readers never send. The thread is gone only when the mount ends.
                        let _ = shared.recalls.send(super::recall::Task::TakeLeases { number });
                    });
                });
            }));
        }
        Ok(serial)
    }

    /// Whether there was a connection all the time. The gateway ends all leases with the last one, and may know of its end before this side does: what is
    /// not known to be one there is none here either.
    fn has_company(&self) -> bool {
        loop {
            let Some((serial, closer)) = self.shared.any_link() else { return false };
            if self.ask(serial, Op::Ping, vec![]).is_ok() {
                return true;
            }
            closer.close();
            self.shared.link_down(serial);
        }
    }

    /// Asks over one connection and waits for the answer, while other requests wait.
    fn ask(&self, serial: u64, op: Op, data: Vec<u8>) -> Result<(Outcome, u64), Ended> {
        let (answer, answered) = mpsc::sync_channel(1);
        let mut pending = Pending::new(Call {
            op,
            data: Payload::from(data),
            pid: 0,
            done: Box::new(move |result| {
                // The asker waits for exactly this.
                let _ = answer.send(result.map(|answer| (answer.outcome, answer.epoch)));
            }),
            keep: None,
        });
        pending.direct = true;
        let ready = {
            let mut core = self.shared.core.lock();
            if !core.links.iter().flatten().any(|link| link.serial == serial) {
                return Err(Ended::Lost);
            }
            let id = core.insert(pending);
            match core.prepare(id, &self.shared.state) {
                Prepared::Send(ready) => ready,
                Prepared::Wait => {
                    core.remove(id);
                    return Err(Ended::Lost);
                }
                Prepared::Fail(ended) => {
                    core.remove(id);
                    return Err(ended);
                }
            }
        };
        self.shared.transmit(&ready);
        answered.recv().unwrap_or(Err(Ended::Lost))
    }

    /// Opens again what was open, and claims the locks that were held.
    fn open_all_again(&self, serial: u64, fresh: bool) {
        let all = self.shared.state.handles.lock().all();
        for (number, file) in all {
            if file.closing() || !file.at_gateway() {
                continue;
            }
            // Without its session a lock is lost, and others may have changed what it protected.
            let lost = fresh && self.shared.state.locks.lock().drop_through(number);
            let opened = if lost { Err(Ended::Lost) } else { self.open_again(serial, &file, fresh) };
            let claimed = opened.and_then(|()| self.claim_locks(serial, number));
            match claimed {
                Ok(()) => {}
                // The connection broke: everything is done again with the next one.
                Err(Ended::Lost) if !lost => return,
                Err(ended) => {
                    file.wire.lock().dead = Some(errno(ended));
                    note(&self.shared, &format!("an open file could not be opened again: {ended:?}"));
                }
            }
        }
        if !fresh {
            // Others wait for that; if it is lost, they wait a little longer.
            let _ = self.ask(serial, Op::Reclaimed, vec![]);
        }
    }

    fn open_again(&self, serial: u64, file: &OpenFile, fresh: bool) -> Result<(), Ended> {
        let path = self.shared.state.path(file.node).map_err(|errno| {
            Ended::Failed(strongroom_protocol::reply::Failure::Errno(errno.code() as u16))
        })?;
        self.ask(serial, Op::Resolve { grant: file.node.grant, ino: file.node.ino }, path)?;
        let claims = file.created && !fresh;
        let opened = match self.ask(serial, reopen(file, claims), vec![]) {
            Err(Ended::Failed(_)) if claims => self.ask(serial, reopen(file, false), vec![]),
            other => other,
        };
        match opened? {
            (Outcome::Opened(handle, _), epoch) => {
                *file.wire.lock() = Wire { epoch, handle, dead: None };
                Ok(())
            }
            _ => Err(Ended::Protocol),
        }
    }

    fn claim_locks(&self, serial: u64, number: u64) -> Result<(), Ended> {
        let locks = self.shared.state.locks.lock().through(number);
        for lock in locks {
            debug_assert_ne!(lock.kind, LockKind::Unlock);
            let handle = strongroom_protocol::attr::Handle(number);
            self.ask(serial, Op::SetLock { handle, lock, wait: false, reclaim: true }, vec![])?;
        }
        Ok(())
    }
}

fn note(shared: &Shared, text: &str) {
    shared.settings.journal.note(text);
}
