//! Sessions: one holder's use of one contract, over one or more connections, of whatever door.
//!
//! A session outlives its connections for a grace, and the gateway's process by the ledger and its slot file. It ends
//! when its contract is void or over (fenced), when the client says so, or when the grace is over.

pub mod hello;
pub(crate) mod lock_grace;
pub mod parked;
pub mod perform;
pub mod rates;
pub mod registry;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use strongroom_contracts::{Application, Audit as AuditPolicy, Effective, PublicKey};
use strongroom_protocol::hello::SessionId;
use strongroom_protocol::reply::Event;

use crate::audit::Record;
use crate::engine::{Admission, EngineSession, Turnstile};
use crate::session::rates::Rates;
use crate::slots::Slots;

/// A verified contract and the bytes that it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    /// What it permits.
    pub effective: Effective,
    /// The chain's bytes.
    pub chain: Vec<u8>,
}

impl Contract {
    /// Orders contracts for one holder by age: generation first, then the beginning and the end of their terms.
    pub fn age(&self) -> (u64, u64, u64) {
        (self.effective.generation, self.effective.not_before, self.effective.expires)
    }

    /// Whether a session under this contract can go on under `other` without anything changing but its term.
    pub fn continues_as(&self, other: &Contract) -> bool {
        let (a, b) = (&self.effective, &other.effective);
        a.holder == b.holder
            && a.application == b.application
            && a.generation == b.generation
            && a.grants == b.grants
            && a.limits == b.limits
            && a.networks == b.networks
            && a.audit == b.audit
    }
}

/// A connection of a session, as its door sees it.
pub trait Link: Send + Sync {
    /// Tells the client something. May block for as long as the door lets a client stall.
    fn tell(&self, event: &Event);
    /// The same with data. A door without leases has no use for it.
    fn tell_data(&self, event: &Event, _data: &[u8]) {
        self.tell(event);
    }
    /// Ends the connection at once.
    fn close(&self);
    /// From where.
    fn address(&self) -> Option<IpAddr>;
}

#[derive(Default)]
struct Links {
    all: Vec<(u64, Arc<dyn Link>)>,
    /// Since when there is no connection; `None` while there is one.
    alone_since: Option<Instant>,
    in_flight: u32,
    /// Requests that go on after their connection was given to another thread.
    slow: usize,
    next: u64,
}

/// A session.
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// The holder's key.
    pub holder: PublicKey,
    /// The application.
    pub application: Application,
    /// Since when, Unix seconds.
    pub since: u64,
    /// What lets requests in, and stops them.
    pub turnstile: Arc<Turnstile>,
    /// What the engine knows of it.
    pub engine: EngineSession,
    /// The reply cache.
    pub slots: Slots,
    /// Whether every operation is recorded before it is answered.
    pub strict: bool,
    /// Requests that may be in flight.
    pub in_flight: u32,
    contract: RwLock<Arc<Contract>>,
    expires: AtomicU64,
    rates: Arc<Rates>,
    last_operation: AtomicU64,
    links: Mutex<Links>,
    changed: Condvar,
    /// Held while the session is being closed, so that a second fence returns only when the first one holds.
    pub(crate) closing: Mutex<bool>,
}

/// The gateway-wide count of operations let in.
static OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// What a session is made of.
pub struct Parts {
    /// Its number.
    pub id: SessionId,
    /// Since when, Unix seconds.
    pub since: u64,
    /// Its contract.
    pub contract: Contract,
    /// What the engine knows of it.
    pub engine: EngineSession,
    /// The reply cache.
    pub slots: Slots,
    /// The holder's token buckets.
    pub rates: Arc<Rates>,
    /// Requests that may be in flight, by the gateway's own bound.
    pub in_flight: u32,
}

impl Session {
    /// A session without connections.
    pub fn new(parts: Parts) -> Session {
        let effective = &parts.contract.effective;
        let in_flight = effective.limits.in_flight.unwrap_or(u32::MAX).min(parts.in_flight).max(1);
        Session {
            id: parts.id,
            holder: effective.holder,
            application: effective.application.clone(),
            since: parts.since,
            turnstile: Turnstile::new(),
            engine: parts.engine,
            slots: parts.slots,
            strict: effective.audit == AuditPolicy::Strict,
            in_flight,
            expires: AtomicU64::new(effective.expires),
            contract: RwLock::new(Arc::new(parts.contract)),
            rates: parts.rates,
            last_operation: AtomicU64::new(0),
            links: Mutex::new(Links { alone_since: Some(Instant::now()), ..Links::default() }),
            changed: Condvar::new(),
            closing: Mutex::new(false),
        }
    }

    /// The contract in force.
    pub fn contract(&self) -> Arc<Contract> {
        self.contract.read().clone()
    }

    /// The end of the contract, Unix seconds.
    pub fn expires(&self) -> u64 {
        self.expires.load(Ordering::Relaxed)
    }

    /// The gateway-wide number of the last operation let in; 0: none.
    pub fn last_operation(&self) -> u64 {
        self.last_operation.load(Ordering::Relaxed)
    }

    /// Lets an operation in, unless the session is fenced or its contract has expired.
    pub fn enter(&self, now: u64) -> Option<Admission> {
        if now >= self.expires() {
            return None;
        }
        let admission = self.turnstile.enter()?;
        let number = OPERATIONS.fetch_add(1, Ordering::Relaxed) + 1;
        self.last_operation.fetch_max(number, Ordering::Relaxed);
        Some(admission)
    }

    /// Goes on under a newer contract that this one [`Contract::continues_as`].
    pub(crate) fn rebind(&self, contract: Contract) -> bool {
        if !self.engine.rebind(&contract.effective) {
            return false;
        }
        self.expires.store(contract.effective.expires, Ordering::Relaxed);
        *self.contract.write() = Arc::new(contract);
        true
    }

    /// Lets nobody in any more, and wakes those who wait. Returns whether it was open until now.
    pub(crate) fn fence(&self) -> bool {
        let open = self.turnstile.fence();
        drop(self.links.lock());
        self.changed.notify_all();
        open
    }

    /// Adds a connection; `None` if there are `most` already, or the session is over.
    pub fn attach(&self, link: Arc<dyn Link>, most: usize) -> Option<u64> {
        let mut links = self.links.lock();
        if links.all.len() >= most || self.turnstile.is_fenced() {
            return None;
        }
        links.next += 1;
        let number = links.next;
        links.all.push((number, link));
        links.alone_since = None;
        Some(number)
    }

    /// Takes a connection away.
    pub fn detach(&self, number: u64) {
        let mut links = self.links.lock();
        links.all.retain(|(other, _)| *other != number);
        if links.all.is_empty() && links.alone_since.is_none() {
            links.alone_since = Some(Instant::now());
            // Before a new connection can come.
            self.engine.left_alone();
        } else {
            drop(links);
            self.engine.lost_a_link();
        }
    }

    /// The connections.
    pub fn links(&self) -> Vec<Arc<dyn Link>> {
        self.links.lock().all.iter().map(|(_, link)| link.clone()).collect()
    }

    /// Since when there is no connection.
    pub fn alone_since(&self) -> Option<Instant> {
        self.links.lock().alone_since
    }

    /// Counts a request in, once there is room: a door reads no further request of the session before. `false` if there
    /// was none in time.
    pub fn take_room(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut links = self.links.lock();
        while links.in_flight >= self.in_flight {
            if self.changed.wait_until(&mut links, until).timed_out() {
                return false;
            }
        }
        links.in_flight += 1;
        true
    }

    /// Counts a request out.
    pub fn give_room(&self) {
        let mut links = self.links.lock();
        links.in_flight = links.in_flight.saturating_sub(1);
        let was_full = links.in_flight + 1 >= self.in_flight;
        drop(links);
        if was_full {
            self.changed.notify_all();
        }
    }

    /// Counts a request that goes on beside its connection; `false` if there are `most` already.
    pub fn begin_slow(&self, most: usize) -> bool {
        let mut links = self.links.lock();
        let room = links.slow < most;
        links.slow += usize::from(room);
        room
    }

    /// The end of [`Session::begin_slow`].
    pub fn end_slow(&self) {
        let mut links = self.links.lock();
        links.slow = links.slow.saturating_sub(1);
    }

    /// The holder's token buckets.
    pub fn rates(&self) -> &Rates {
        &self.rates
    }

    /// Waits for some time, or until the session is fenced; `false` then.
    pub fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut links = self.links.lock();
        while !self.turnstile.is_fenced() {
            if self.changed.wait_until(&mut links, until).timed_out() {
                return !self.turnstile.is_fenced();
            }
        }
        false
    }

    /// An audit record about this session.
    pub fn record(&self, event: &'static str) -> Record {
        Record {
            event,
            session: Some(self.id.to_string()),
            application: Some(self.application.as_str().to_owned()),
            contract: Some(self.contract.read().effective.id().to_string()),
            ..Record::default()
        }
    }
}
