//! Leases: which session may keep what it has read, and how it is told before that changes.
//!
//! A lease belongs to a session and one of its grants ([`Key`]) and lies in the node that it is about ([`NodeLeases`]), so
//! that it costs nothing where there is none. The session's side ([`Lessee`]) bounds how many there are, and keeps what was
//! recalled until the client answers. What one operation does is in its [`Deal`].
//!
//! # Why no client sees what a completed change has replaced
//! 1. Who reads is registered first: a lease is in the node before the state is read that may be kept under it.
//! 2. Who changes marks first: from the mark until the end of the operation nobody else is given a lease on the node, nor
//!    told that it may keep names. Then all other holders are asked, and only when all have answered (or have lost their
//!    leases) is the change applied.
//! 3. Replies and recalls are put in order by the session's clock: a reply carries the time from before it was carried out,
//!    a recall a later one, whichever comes first.
//!
//! Locks, in this order, after those of the tree: the lessee's table or its recalls, then one node's leases, then the session's table of
//! handles, then the table of locks. Nothing is
//! waited for with a lock held: an operation that must wait unwinds ([`crate::gate::refusal::Refusal::Recall`]), keeps its
//! marks, and is attempted anew.

mod deal;
mod grace;
mod lessee;
mod node;
mod wait;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use strongroom_contracts::ContractId;

pub(crate) use deal::{Deal, Held, Mode, Waiting};
pub(crate) use grace::{Deed, Grace};
pub use lessee::Teller;
pub(crate) use lessee::{Lessee, LesseeParts, Offences};
pub(crate) use node::{Change, Key, NodeLeases, Wish};

/// What the gateway offers its sessions.
#[derive(Clone, Copy, Debug)]
pub struct LeaseOptions {
    /// How long a recall is waited for.
    pub recall: Duration,
    /// The longest that anything may be kept without asking again.
    pub keep: Duration,
}

impl Default for LeaseOptions {
    fn default() -> Self {
        LeaseOptions { recall: Duration::from_secs(1), keep: Duration::from_secs(1) }
    }
}

const SHARDS: usize = 16;

/// Contracts whose offences are remembered before those that have none are forgotten.
const REMEMBERED: usize = 1024;

/// The sessions that take leases, by number. Looked at only where leases stand in the way of something.
#[derive(Default)]
pub(crate) struct Lessees {
    shards: [Mutex<HashMap<u64, Weak<Lessee>>>; SHARDS],
    /// By the first contract of the chain: of attenuated ones a holder can make any number.
    offences: Mutex<HashMap<ContractId, Arc<Offences>>>,
}

impl Lessees {
    fn shard(&self, number: u64) -> &Mutex<HashMap<u64, Weak<Lessee>>> {
        &self.shards[(number % SHARDS as u64) as usize]
    }

    /// The record of a contract.
    pub(crate) fn offences(&self, contract: ContractId) -> Arc<Offences> {
        let mut all = self.offences.lock();
        if all.len() > REMEMBERED {
            all.retain(|_, record| Arc::strong_count(record) > 1 || record.until().is_some());
        }
        Arc::clone(all.entry(contract).or_default())
    }

    pub(crate) fn add(&self, lessee: &Arc<Lessee>) {
        self.shard(lessee.number).lock().insert(lessee.number, Arc::downgrade(lessee));
    }

    pub(crate) fn remove(&self, number: u64) {
        self.shard(number).lock().remove(&number);
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<Lessee>> {
        self.shard(number).lock().get(&number).and_then(Weak::upgrade)
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Lessee>> {
        self.shards
            .iter()
            .flat_map(|shard| shard.lock().values().filter_map(Weak::upgrade).collect::<Vec<_>>())
            .collect()
    }
}
