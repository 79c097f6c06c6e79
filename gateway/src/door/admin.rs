//! The admin door: one request, one answer, in turn, for those whose key the configuration lists.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use strongroom_channel::{Channel, ChannelError, Closer, Frame, Sender, ServerTls, Socket};
use strongroom_contracts::PublicKey;
use strongroom_protocol::ALPN_ADMIN;
use strongroom_protocol::admin::{
    AdminAnswer, AdminFailure, AdminRequest, ContractInfo, MAX_ALERT_WAIT_MS, SessionInfo, Status,
};
use strongroom_protocol::codec;
use strongroom_protocol::frame::MAX_DATA;
use strongroom_protocol::hello::RefusedCode;

use super::seats::{self, Seat, Seats};
use crate::audit::Record;
use crate::fence::{RevokeError, Revoked};
use crate::gateway::Gateway;
use crate::ledger::LedgerError;
use crate::session::Session;
use crate::sys::{Pace, set_pace};
use crate::trail;

/// Alerts in one answer: with the longest evidence they fill half a frame.
const MAX_ALERTS: usize = 400;
/// The nice value of administrators' threads.
const PRIORITY: i32 = -10;
/// Connections of which each second so many are accepted and authenticated before anything else is done. Whoever knocks
/// more often, and is perhaps no administrator, takes no more from the guests than that.
const URGENT_PER_SECOND: u32 = 20;
/// Entries of a list in one answer; a session takes less than 1 KiB, so that they fit.
const PAGE: usize = 512;
/// How often it is looked whether who waits for an alert is still there.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// How long an administrator's connection may be quiet.
const IDLE: Duration = Duration::from_secs(600);

/// The admin door.
pub struct AdminDoor {
    gateway: Arc<Gateway>,
    tls: ServerTls,
    keys: Vec<PublicKey>,
    seats: Seats,
    urgent: Mutex<Ration>,
}

/// What is left of something that comes at a rate, and is kept for a second.
struct Ration {
    left: f64,
    at: Instant,
}

impl Ration {
    fn new() -> Ration {
        Ration { left: f64::from(URGENT_PER_SECOND), at: Instant::now() }
    }

    /// Takes one, if one is there.
    fn take(&mut self, now: Instant) -> bool {
        let rate = f64::from(URGENT_PER_SECOND);
        let come = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.left = (self.left + come).min(rate);
        self.at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

/// Of a connection, what waiting for an alert needs: its seat may be given away meanwhile, and its peer may go.
struct Waiting<'a> {
    seat: &'a Seat,
    closer: &'a Closer,
}

/// An answer, its data, and what is left to do once it is sent.
struct Answered {
    answer: AdminAnswer,
    data: Vec<u8>,
    receipt: Option<Revoked>,
}

impl Answered {
    fn plain(answer: AdminAnswer) -> Answered {
        Answered { answer, data: vec![], receipt: None }
    }

    fn failed(kind: AdminFailure, text: impl Into<String>) -> Answered {
        Answered::plain(AdminAnswer::Failed { kind, text: text.into() })
    }
}

impl AdminDoor {
    /// A door for these keys.
    ///
    /// # Errors
    /// [`ChannelError`] if the gateway's key cannot be used.
    pub fn new(gateway: Arc<Gateway>, keys: Vec<PublicKey>) -> Result<Arc<AdminDoor>, ChannelError> {
        let tls = ServerTls::new(&gateway.key, &[ALPN_ADMIN])?;
        Ok(Arc::new(AdminDoor {
            gateway,
            tls,
            keys,
            seats: Seats::default(),
            urgent: Mutex::new(Ration::new()),
        }))
    }

    /// Prepares the thread that accepts connections: a revocation must not queue behind the guests that it is about.
    pub fn hurry(&self) {
        hurry(Pace::Urgent);
    }

    /// Takes an accepted connection. Each has a thread of its own: revocations must not wait for a thread.
    pub fn take(self: &Arc<Self>, socket: Socket, from: Option<SocketAddr>) {
        // Of the accepting thread, until the next connection.
        let pace = if self.urgent.lock().take(Instant::now()) { Pace::Urgent } else { Pace::Usual };
        hurry(pace);
        let Some(seat) = self.seats.take(from.map(|from| from.ip())) else { return };
        let door = self.clone();
        let run = move || {
            let _ = rustix::process::setpriority_process(None, PRIORITY);
            hurry(pace);
            door.serve(socket, from, &seat);
        };
        if let Err(error) = std::thread::Builder::new().name("admin".into()).spawn(run) {
            self.note("lost", None, from, format!("no thread for an administrator: {error}"));
        }
    }

    fn note(&self, event: &'static str, key: Option<PublicKey>, from: Option<SocketAddr>, text: String) {
        self.gateway.audit.count(Record {
            event,
            key: key.map(|key| key.to_string()),
            address: from.map(|from| from.ip().to_string()),
            outcome: Some("admin".into()),
            text: Some(text),
            ..Record::default()
        });
    }

    fn serve(&self, socket: Socket, from: Option<SocketAddr>, seat: &Seat) {
        let stall = self.gateway.limits.stall;
        let channel = match self.tls.accept(socket, stall) {
            Ok(channel) => channel,
            Err(error) => return self.note("violation", None, from, error.to_string()),
        };
        let Channel { sender, mut receiver, closer, peer, .. } = channel;
        if !self.keys.contains(&peer) {
            self.note("refused", Some(peer), from, "the key is not among admin-keys".into());
            let text = format!("the gateway does not list {peer} in admin-keys");
            let _ = send(&sender, &Answered::failed(AdminFailure::Refused, text));
            return;
        }
        if sender.set_timeout(Some(stall)).and_then(|()| receiver.set_timeout(Some(IDLE))).is_err() {
            return;
        }
        if !seat.sit_down(&closer) {
            let text = format!("{} administrators are being served; try again", seats::MOST);
            let _ = send(&sender, &Answered::failed(AdminFailure::Failed, text));
            return;
        }
        let mut frame = Frame::new();
        let mut past = super::undo::Past::default();
        let waiting = Waiting { seat, closer: &closer };
        loop {
            // While it waits, and while it fences: not to list what there is.
            hurry(Pace::Urgent);
            seat.quiet();
            let Ok(true) = receiver.recv(&mut frame) else { break };
            let asked = Instant::now();
            seat.busy();
            let answered = match codec::decode_header(frame.header()) {
                Ok(request) => {
                    if !is_urgent(&request) {
                        hurry(Pace::Usual);
                    }
                    self.answer(request, frame.data(), asked, &waiting, &mut past)
                }
                Err(error) => {
                    self.note("violation", Some(peer), from, error.to_string());
                    Answered::failed(AdminFailure::Refused, error.to_string())
                }
            };
            let sent = send(&sender, &answered);
            hurry(Pace::Usual);
            if let Some(revoked) = &answered.receipt {
                self.gateway.keep_receipt(revoked);
            }
            if sent.is_err() {
                break;
            }
        }
        closer.close();
    }

    fn answer(
        &self,
        request: AdminRequest,
        data: &[u8],
        asked: Instant,
        waiting: &Waiting,
        past: &mut super::undo::Past,
    ) -> Answered {
        let gateway = &self.gateway;
        match request {
            AdminRequest::Status => self.status().map_or_else(broken, Answered::plain),
            AdminRequest::Deposit => match gateway.deposit(data) {
                Ok((contract, renewed)) => {
                    Answered::plain(AdminAnswer::Deposited { contract: contract.effective.id(), renewed })
                }
                Err(refusal) => {
                    let kind = match refusal.code {
                        RefusedCode::Busy => AdminFailure::Failed,
                        _ => AdminFailure::Refused,
                    };
                    Answered::failed(kind, refusal.text)
                }
            },
            AdminRequest::Revoke => match gateway.revoke(data, asked) {
                Ok(revoked) => Answered {
                    answer: AdminAnswer::Fenced { sessions: revoked.cut.sessions, took_us: micros(asked) },
                    data: revoked.receipt.clone(),
                    receipt: Some(revoked),
                },
                Err(error) => {
                    let kind = match error {
                        RevokeError::Refused(_) => AdminFailure::Refused,
                        _ => AdminFailure::Failed,
                    };
                    Answered::failed(kind, error.to_string())
                }
            },
            AdminRequest::FenceLocally { application } => match gateway.fence_locally(&application) {
                Ok(cut) => {
                    Answered::plain(AdminAnswer::Fenced { sessions: cut.sessions, took_us: micros(asked) })
                }
                Err(error) => broken(error),
            },
            AdminRequest::Sessions { after } => {
                let mut list = gateway.sessions();
                list.retain(|session| after.is_none_or(|after| session.id > after));
                list.sort_by_key(|session| session.id);
                let next = list.get(PAGE).and_then(|_| list.get(PAGE - 1)).map(|session| session.id);
                list.truncate(PAGE);
                let page: Vec<_> = list.iter().map(|session| session_info(session)).collect();
                listed(page, next, |info| info.session, |next| AdminAnswer::Sessions { next })
            }
            AdminRequest::Contracts { after } => match self.contracts(after.as_ref()) {
                Ok((page, next)) => {
                    listed(page, next, |info| info.holder, |next| AdminAnswer::Contracts { next })
                }
                Err(error) => broken(error),
            },
            AdminRequest::Undo(_)
            | AdminRequest::UndoProgress { .. }
            | AdminRequest::Blast { .. }
            | AdminRequest::History { .. }
            | AdminRequest::FileAt { .. } => {
                let (answer, data) = super::undo::answer(gateway, request, past);
                Answered { answer, data, receipt: None }
            }
            AdminRequest::Generation { application } => {
                let of = gateway.ledger.generations(&application);
                Answered::plain(AdminAnswer::Generation { lowest: of.lowest, highest: of.highest })
            }
            AdminRequest::Alerts { boot, after, wait_ms } => self.alerts(boot, after, wait_ms, waiting),
            AdminRequest::AuditLines { application, since_us, from } => {
                match trail::page(&gateway.state, &application, since_us, from, MAX_DATA) {
                    Ok(page) => Answered {
                        answer: AdminAnswer::AuditLines { next: page.next, more: page.more },
                        data: page.lines,
                        receipt: None,
                    },
                    Err(error) => {
                        let text = format!("the audit trail cannot be read: {error}");
                        Answered::failed(AdminFailure::Failed, text)
                    }
                }
            }
        }
    }

    fn alerts(&self, boot: u64, after: u64, wait_ms: u32, waiting: &Waiting) -> Answered {
        let gateway = &self.gateway;
        let after = if boot == gateway.boot { after } else { 0 };
        let until = Instant::now() + Duration::from_millis(wait_ms.min(MAX_ALERT_WAIT_MS).into());
        waiting.seat.quiet();
        let found = loop {
            let begun = Instant::now();
            let wait = until.saturating_duration_since(begun).min(LOOK_AFTER);
            let found = gateway.alerts.after(after, MAX_ALERTS, wait);
            // Sooner than asked with nothing: the gateway ends. A killed daemon must not hold its place among few.
            let over = begun.elapsed() < wait || Instant::now() >= until;
            if found.newest > after || over || waiting.closer.peer_is_gone() {
                break found;
            }
        };
        waiting.seat.busy();
        let answer = AdminAnswer::Alerts { boot: gateway.boot, newest: found.newest, missed: found.missed };
        match codec::encode_list(&found.list) {
            Ok(data) => Answered { answer, data, receipt: None },
            Err(error) => Answered::failed(AdminFailure::Failed, error.to_string()),
        }
    }

    fn status(&self) -> Result<AdminAnswer, LedgerError> {
        let gateway = &self.gateway;
        let (contracts, revocations) = gateway.ledger.counts()?;
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(AdminAnswer::Status(Status {
            gateway: gateway.id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: gateway.boot,
            now: gateway.clock.now(),
            started: gateway.started,
            sessions: count(gateway.sessions().len() as u64),
            contracts: count(contracts),
            revocations: count(revocations),
        }))
    }

    /// A page of the contracts that are kept, and after which holder the next one begins.
    fn contracts(
        &self,
        after: Option<&PublicKey>,
    ) -> Result<(Vec<ContractInfo>, Option<PublicKey>), LedgerError> {
        let gateway = &self.gateway;
        let mut list = vec![];
        let page = gateway.ledger.kept_after(after, PAGE)?;
        let next = page.get(PAGE - 1).map(|kept| kept.holder);
        for kept in page {
            // Signed by the issuer when it was kept; one that was signed by a former issuer is not shown.
            let chain = strongroom_contracts::Chain::from_bytes(&kept.chain);
            let Ok(effective) =
                chain.map_err(Into::into).and_then(|chain| chain.verify_signed(&gateway.issuer))
            else {
                continue;
            };
            let live = !gateway.sessions_where(|session| session.holder == kept.holder).is_empty();
            list.push(ContractInfo {
                contract: effective.id(),
                generation: effective.generation,
                holder: kept.holder,
                expires: effective.expires,
                void: gateway.ledger.verdict(&effective).is_err(),
                last_used: if live { gateway.clock.now() } else { kept.last_used },
                application: effective.application,
            });
        }
        Ok((list, next))
    }
}

/// Without the privilege it stays as it is: a revocation then takes its turn.
fn hurry(pace: Pace) {
    let _ = set_pace(pace);
}

/// Whether a request is part of a revocation.
fn is_urgent(request: &AdminRequest) -> bool {
    match request {
        // Alerts are mostly waited for, and come before a fence.
        AdminRequest::Revoke
        | AdminRequest::FenceLocally { .. }
        | AdminRequest::Generation { .. }
        | AdminRequest::Alerts { .. } => true,
        AdminRequest::Status
        | AdminRequest::Deposit
        | AdminRequest::Sessions { .. }
        | AdminRequest::Contracts { .. }
        | AdminRequest::AuditLines { .. }
        | AdminRequest::Undo(_)
        | AdminRequest::UndoProgress { .. }
        | AdminRequest::Blast { .. }
        | AdminRequest::History { .. }
        | AdminRequest::FileAt { .. } => false,
    }
}

fn session_info(session: &Session) -> SessionInfo {
    let contract = session.contract();
    let counters = session.engine.counters();
    SessionInfo {
        session: session.id,
        application: session.application.clone(),
        contract: contract.effective.id(),
        generation: contract.effective.generation,
        holder: session.holder,
        addresses: session
            .links()
            .iter()
            .filter_map(|link| link.address())
            .map(|address| address.to_string())
            .collect(),
        since: session.since,
        expires: contract.effective.expires,
        handles: counters.handles,
        nodes: counters.nodes,
        operations: counters.operations,
        denied: counters.denied,
        bytes_read: counters.bytes_read,
        bytes_written: counters.bytes_written,
    }
}

fn broken(error: LedgerError) -> Answered {
    Answered::failed(AdminFailure::Failed, error.to_string())
}

/// A page; what does not fit into the frame goes to the next one.
fn listed<T: bincode::Encode, Place>(
    mut page: Vec<T>,
    mut next: Option<Place>,
    place: impl Fn(&T) -> Place,
    answer: impl Fn(Option<Place>) -> AdminAnswer,
) -> Answered {
    loop {
        match codec::encode_list(&page) {
            Ok(data) => return Answered { answer: answer(next), data, receipt: None },
            Err(error) if page.len() < 2 => {
                return Answered::failed(AdminFailure::Failed, error.to_string());
            }
            Err(_) => {
                page.truncate(page.len() / 2);
                next = page.last().map(&place);
            }
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn send(sender: &Sender, answered: &Answered) -> Result<(), ChannelError> {
    let mut header = vec![];
    if codec::encode_header(&answered.answer, &mut header).is_err() {
        return Err(ChannelError::TooLong { header: header.len(), data: answered.data.len() });
    }
    sender.send(&header, &answered.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_knocks_too_often_is_not_urgent_any_more() {
        let start = Instant::now();
        let mut ration = Ration { left: f64::from(URGENT_PER_SECOND), at: start };
        let taken = (0..1000).filter(|_| ration.take(start)).count();
        assert_eq!(taken, URGENT_PER_SECOND as usize);
        assert!(!ration.take(start + Duration::from_millis(10)));
        assert!(ration.take(start + Duration::from_millis(60)));
        assert!(!ration.take(start + Duration::from_millis(60)));
        let later = start + Duration::from_secs(3600);
        let taken = (0..1000).filter(|_| ration.take(later)).count();
        assert_eq!(taken, URGENT_PER_SECOND as usize, "no more is kept than comes in a second");
    }

    #[test]
    fn what_does_not_fit_goes_to_the_next_page() {
        let entry = |n: u32| (n, vec![0_u8; 3000]);
        let all: Vec<_> = (0..1000).map(entry).collect();
        let (mut from, mut seen) = (0, vec![]);
        loop {
            let page: Vec<_> = all.iter().skip(from).take(PAGE).cloned().collect();
            let whole = (from + page.len() < all.len()).then(|| (from + page.len()) as u64);
            let contract =
                |next: Option<u64>| AdminAnswer::Generation { lowest: next.unwrap_or(0), highest: 0 };
            let answered = listed(page, whole, |(n, _)| u64::from(n + 1), contract);
            let page: Vec<(u32, Vec<u8>)> = codec::decode_list(&answered.data).unwrap();
            seen.extend(page.into_iter().map(|(n, _)| n));
            match answered.answer {
                AdminAnswer::Generation { lowest: 0, .. } => break,
                AdminAnswer::Generation { lowest, .. } => from = lowest as usize,
                other => panic!("{other:?}"),
            }
        }
        assert!(seen.into_iter().eq(0..1000));
    }
}
