//! The live sessions: opened, found again, renewed, ended.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Instant;

use strongroom_contracts::{Chain, Effective, OnVerdict, PublicKey, keys};
use strongroom_protocol::hello::SessionId;
use strongroom_protocol::reply::{Event, FenceReason};

use crate::audit::Record;
use crate::engine::{EngineSession, SessionBounds};
use crate::gateway::Gateway;
use crate::ledger::{Change, LedgerError, SessionRecord};
use crate::session::rates::Rates;
use crate::session::{Contract, Parts, Session};
use crate::slots::{Slots, SlotsError};

/// Live sessions.
#[derive(Default)]
pub(crate) struct Registry {
    pub sessions: HashMap<SessionId, Arc<Session>>,
    rates: HashMap<PublicKey, Weak<Rates>>,
    openings: HashMap<PublicKey, Openings>,
}

/// How many sessions a holder has opened lately. Each costs the ledger a write to the disk and the audit trail a line, so
/// that a guest that opens and closes them for nothing takes from all.
struct Openings {
    /// Sessions that it may open at once.
    left: f64,
    since: Instant,
}

/// New sessions of a holder in a second, in the long run.
const OPENINGS: f64 = 10.0;
/// New sessions of a holder beyond that at once, besides those that it may have.
const BURST: f64 = 500.0;
/// Holders whose openings are remembered before those that have been quiet are forgotten.
const REMEMBERED: usize = 10_000;

impl Registry {
    fn may_open(&mut self, holder: &PublicKey, most: usize, now: Instant) -> bool {
        let full = BURST + most as f64;
        let refilled = |of: &Openings| {
            (of.left + now.saturating_duration_since(of.since).as_secs_f64() * OPENINGS).min(full)
        };
        if self.openings.len() > REMEMBERED {
            self.openings.retain(|_, of| refilled(of) < full);
        }
        let of = self.openings.entry(*holder).or_insert(Openings { left: full, since: now });
        (of.left, of.since) = (refilled(of), now);
        let may = of.left >= 1.0;
        of.left -= if may { 1.0 } else { 0.0 };
        may
    }
}

/// A session that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A bound is reached.
    #[error("the gateway has no room for another session; try again later")]
    Full,
    /// Too many in too short a time.
    #[error("this key opens sessions too fast; resume one, or wait")]
    TooFast,
    /// The contract became void meanwhile.
    #[error(transparent)]
    Void(#[from] crate::ledger::Void),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The session's file.
    #[error(transparent)]
    Slots(#[from] SlotsError),
    /// The system's random source.
    #[error(transparent)]
    Key(#[from] keys::KeyError),
}

impl Gateway {
    /// Opens a session under a contract, and makes that durable together with `changes`.
    pub(crate) fn open_session(
        self: &Arc<Self>,
        contract: Contract,
        changes: &[Change<'_>],
    ) -> Result<Arc<Session>, OpenError> {
        let holder = contract.effective.holder;
        if !self.registry.lock().may_open(&holder, self.limits.sessions_per_holder, Instant::now()) {
            return Err(OpenError::TooFast);
        }
        self.make_room(&holder)?;
        let id = SessionId(keys::random()?);
        let since = self.clock.now();
        let record = SessionRecord {
            id,
            holder: contract.effective.holder,
            since,
            machine: self.machine.clone(),
            chain: contract.chain.clone(),
        };
        let slots = Slots::create(&self.slot_file(&id), self.limits.slots)?;
        let mut all = vec![Change::Session(&record)];
        all.extend_from_slice(changes);
        let opened = self.ledger.commit(&all).map_err(OpenError::from).and_then(|()| {
            let session = self.session(id, since, contract, slots);
            self.admit(session)
        });
        if opened.is_err() {
            self.forget(&[id]);
        }
        opened
    }

    /// Puts a session among the live ones, unless its contract became void or the room ran out meanwhile.
    fn admit(&self, session: Session) -> Result<Arc<Session>, OpenError> {
        // A revocation first marks the ledger and then looks through the registry, so that one of the two sees the other.
        let mut registry = self.registry.lock();
        self.ledger.verdict(&session.contract().effective)?;
        if registry.sessions.len() >= self.limits.sessions {
            return Err(OpenError::Full);
        }
        let session = Arc::new(session);
        registry.sessions.insert(session.id, session.clone());
        Ok(session)
    }

    fn session(&self, id: SessionId, since: u64, contract: Contract, slots: Slots) -> Session {
        let limits = &contract.effective.limits;
        let handles = limits.open_handles.map_or(usize::MAX, |most| most as usize);
        let bounds = SessionBounds {
            handles: handles.min(self.limits.handles),
            nodes: self.limits.nodes,
            leases: self.limits.leases,
            ..SessionBounds::default()
        };
        let claims = slots.claims();
        let engine = EngineSession::new(&self.engine, &contract.effective, bounds, &claims);
        let rates = self.rates_of(&contract.effective);
        Session::new(Parts { id, since, contract, engine, slots, rates, in_flight: self.limits.in_flight })
    }

    /// The buckets that all sessions of a holder share; fresh ones if the limits are others.
    fn rates_of(&self, contract: &Effective) -> Arc<Rates> {
        let mut registry = self.registry.lock();
        registry.rates.retain(|_, rates| rates.strong_count() > 0);
        let live = registry.rates.get(&contract.holder).and_then(Weak::upgrade);
        if let Some(rates) = live.filter(|rates| rates.are_for(&contract.limits)) {
            return rates;
        }
        let rates = Arc::new(Rates::new(&contract.limits));
        registry.rates.insert(contract.holder, Arc::downgrade(&rates));
        rates
    }

    /// Makes room for one more session, at the cost of a session of the same holder that has no connection.
    fn make_room(self: &Arc<Self>, holder: &PublicKey) -> Result<(), OpenError> {
        let (own, all) = {
            let registry = self.registry.lock();
            let own: Vec<_> =
                registry.sessions.values().filter(|session| session.holder == *holder).cloned().collect();
            (own, registry.sessions.len())
        };
        if own.len() < self.limits.sessions_per_holder && all < self.limits.sessions {
            return Ok(());
        }
        let alone = own
            .iter()
            .filter_map(|session| session.alone_since().map(|since| (since, session)))
            .min_by_key(|(since, _)| *since);
        match alone {
            Some((_, session)) => {
                self.close_session(session, "a newer session of the same holder needs its place");
                Ok(())
            }
            None => Err(OpenError::Full),
        }
    }

    /// A live session.
    pub fn find_session(&self, id: &SessionId) -> Option<Arc<Session>> {
        self.registry.lock().sessions.get(id).cloned()
    }

    /// Live sessions that a condition holds for.
    pub(crate) fn sessions_where(&self, wanted: impl Fn(&Session) -> bool) -> Vec<Arc<Session>> {
        self.registry.lock().sessions.values().filter(|session| wanted(session)).cloned().collect()
    }

    /// Forgets sessions that are closed: registry, ledger, files.
    pub(crate) fn forget(&self, ids: &[SessionId]) {
        if ids.is_empty() {
            return;
        }
        {
            let mut registry = self.registry.lock();
            ids.iter().for_each(|id| drop(registry.sessions.remove(id)));
        }
        self.reclaimed(ids);
        for id in ids {
            if let Err(error) = std::fs::remove_file(self.slot_file(id))
                && error.kind() != std::io::ErrorKind::NotFound
            {
                let text = format!("the file of {id} cannot be removed: {error}");
                self.audit.note(Record { event: "lost", text: Some(text), ..Record::default() });
            }
        }
        if let Err(error) = self.ledger.forget_sessions(ids) {
            self.audit.note(Record {
                event: "lost",
                text: Some(format!("closed sessions stay in the ledger: {error}")),
                ..Record::default()
            });
        }
    }

    /// Finds the sessions of a former process of this machine again. Returns those that had locks.
    pub(crate) fn find_sessions(self: &Arc<Self>) -> Result<HashSet<SessionId>, LedgerError> {
        let mut gone = vec![];
        let mut locks = HashSet::new();
        let mut known = HashSet::new();
        let judged = self.alerts.judged();
        for record in self.ledger.sessions()? {
            known.insert(record.id.to_string());
            if judged.contains(&record.id) {
                self.finish_fence(&record)?;
            }
            match self.find(&record) {
                Some(session) => {
                    if session.slots.locks_used() {
                        locks.insert(session.id);
                    }
                    self.registry.lock().sessions.insert(session.id, Arc::new(session));
                }
                None => gone.push(record.id),
            }
        }
        self.forget(&gone);
        // Files of sessions whose record never became durable.
        if let Ok(entries) = std::fs::read_dir(&self.sessions_dir) {
            for entry in
                entries.flatten().filter(|entry| !known.contains(&*entry.file_name().to_string_lossy()))
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(locks)
    }

    /// A session that a fence has ended is not in the ledger any more: this one's verdict was on the disk, and the process
    /// ended before its fence was.
    fn finish_fence(&self, record: &SessionRecord) -> Result<(), LedgerError> {
        let Ok(contract) = self.verified(&record.chain) else { return Ok(()) };
        let effective = &contract.effective;
        if effective.detection.verdict != OnVerdict::Fence || self.ledger.verdict(effective).is_err() {
            return Ok(());
        }
        self.ledger
            .commit(&[Change::Fence { application: &effective.application, at_us: self.clock.now_us() }])?;
        self.audit.note(Record {
            event: "fence",
            application: Some(effective.application.as_str().to_owned()),
            text: Some(format!("the verdict on {} was there, and its fence was not", record.id)),
            ..Record::default()
        });
        Ok(())
    }

    fn find(&self, record: &SessionRecord) -> Option<Session> {
        if record.machine != self.machine || self.machine.is_empty() {
            return None;
        }
        let contract = self.verified(&record.chain).ok()?;
        self.ledger.verdict(&contract.effective).ok()?;
        let slots = Slots::open(&self.slot_file(&record.id)).ok()?;
        (contract.effective.holder == record.holder)
            .then(|| self.session(record.id, record.since, contract, slots))
    }

    /// A chain that is valid here and now.
    pub(crate) fn verified(&self, chain: &[u8]) -> Result<Contract, strongroom_contracts::VerifyError> {
        let context = strongroom_contracts::VerifyContext {
            issuer: &self.issuer,
            gateway: &self.id,
            now: self.clock.now(),
        };
        let effective = Chain::from_bytes(chain)?.verify(context)?;
        Ok(Contract { effective, chain: chain.to_vec() })
    }

    /// Lets the live sessions of the contract's holder go on under it, and fences those that cannot. Returns how many go
    /// on.
    pub(crate) fn renew_sessions(self: &Arc<Self>, contract: &Contract) -> u32 {
        let effective = &contract.effective;
        let own = self.sessions_where(|session| session.holder == effective.holder);
        self.renew_these(own, contract)
    }

    /// The same for some sessions of the contract's holder.
    pub(crate) fn renew_these(self: &Arc<Self>, mut own: Vec<Arc<Session>>, contract: &Contract) -> u32 {
        let effective = &contract.effective;
        own.retain(|session| {
            session.application == effective.application
                && session.contract().effective.generation == effective.generation
        });
        let mut renewed = 0;
        let mut superseded = vec![];
        for session in own {
            let old = session.contract();
            if *old == *contract || old.age() > contract.age() {
                continue;
            }
            if old.continues_as(contract) && self.renew_session(&session, contract) {
                renewed += 1;
            } else {
                superseded.push(session);
            }
        }
        self.fence_sessions(&superseded, FenceReason::Superseded);
        renewed
    }

    fn renew_session(self: &Arc<Self>, session: &Arc<Session>, contract: &Contract) -> bool {
        let record = SessionRecord {
            id: session.id,
            holder: session.holder,
            since: session.since,
            machine: self.machine.clone(),
            chain: contract.chain.clone(),
        };
        if self.ledger.commit(&[Change::Session(&record)]).is_err() || !session.rebind(contract.clone()) {
            return false;
        }
        self.audit.note(session.record("renewed"));
        // A revocation of the newer contract that looked for its sessions before this one was bound to it.
        if self.ledger.verdict(&contract.effective).is_err() {
            self.fence_sessions(std::slice::from_ref(session), FenceReason::Revoked);
            return true;
        }
        self.tell(session, Event::Renewed { expires: contract.effective.expires });
        true
    }

    /// Tells all clients of a session something, without waiting for those that do not read.
    pub(crate) fn tell(&self, session: &Session, event: Event) {
        for link in session.links() {
            let event = event.clone();
            // Without a thread the client is not told; it finds out by itself.
            let _ = self.threads.run(Box::new(move |_| link.tell(&event)));
        }
    }

    /// When the next contract of a live session ends, Unix seconds.
    pub(crate) fn next_expiry(&self) -> u64 {
        let open = |session: &&Arc<Session>| !session.turnstile.is_fenced();
        let registry = self.registry.lock();
        registry.sessions.values().filter(open).map(|session| session.expires()).min().unwrap_or(u64::MAX)
    }

    /// Ends the sessions whose contract has expired, and those whose grace is over.
    pub(crate) fn end_sessions(self: &Arc<Self>) {
        let now = self.clock.now();
        // One that is fenced is being ended by somebody.
        let expired =
            self.sessions_where(|session| session.expires() <= now && !session.turnstile.is_fenced());
        if !expired.is_empty() {
            let gateway = self.clone();
            let list = expired.clone();
            let fence = move |_: &mut _| {
                gateway.fence_sessions(&list, FenceReason::Expired);
            };
            // Waiting for operations under way must not hold the housekeeping up.
            if self.threads.run(Box::new(fence)).is_err() {
                self.fence_sessions(&expired, FenceReason::Expired);
            }
        }
        let grace = self.limits.session_grace;
        let lonely =
            self.sessions_where(|session| session.alone_since().is_some_and(|at| at.elapsed() >= grace));
        for session in lonely {
            self.close_session(&session, "its client did not come back");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_opens_sessions_for_nothing_is_slowed_down() {
        let mut registry = Registry::default();
        let (greedy, other) = (PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32]));
        let start = Instant::now();
        let opened = (0..10_000).filter(|_| registry.may_open(&greedy, 16, start)).count();
        assert_eq!(opened, 516);
        assert!(registry.may_open(&other, 16, start));
        let later = start + Duration::from_secs(3);
        assert_eq!((0..100).filter(|_| registry.may_open(&greedy, 16, later)).count(), 30);
        let much_later = start + Duration::from_secs(86_400);
        assert_eq!((0..1000).filter(|_| registry.may_open(&greedy, 16, much_later)).count(), 516);
        for n in 0..=REMEMBERED as u64 {
            let mut key = [3; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            registry.may_open(&PublicKey::from_bytes(key), 16, start);
        }
        registry.may_open(&other, 16, much_later + Duration::from_secs(3600));
        assert!(registry.openings.len() < 3, "the quiet ones are forgotten");
    }
}
