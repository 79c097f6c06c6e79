//! What the simulations stand on: dice, a mailbox for what the gateway says on its own, and a contract.

#![allow(dead_code, reason = "each simulation uses its part")]

use std::sync::Mutex;

use strongroom_contracts::chain::{Chain, Effective, VerifyContext};
use strongroom_contracts::{
    Audit, ContractId, Grant, Ownership, PolicyDigest, Rights, SecretKey, SessionLimits, Terms,
};
use strongroom_gateway::engine::Teller;
use strongroom_protocol::reply::Event;

/// A small generator with a whole period (xorshift64*).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.roll(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.roll(all.len())])
    }
}

/// What the gateway says on its own.
#[derive(Default)]
pub struct Outbox(pub Mutex<Vec<(Event, Vec<u8>, bool)>>);

impl Teller for Outbox {
    fn tell(&self, event: Event, data: Vec<u8>, everywhere: bool) {
        self.0.lock().unwrap().push((event, data, everywhere));
    }
}

/// A contract for all of `a`.
pub fn contract() -> Effective {
    let issuer = SecretKey::generate().unwrap();
    let gateway = SecretKey::generate().unwrap().public().gateway_id();
    let grant = Grant {
        data: "a".parse().unwrap(),
        mount: "/a".parse().unwrap(),
        rights: Rights::READ_WRITE,
        quota_bytes: None,
        quota_files: None,
        max_file_bytes: None,
        undo_secs: 0,
        ownership: Ownership::Single,
    };
    let terms = Terms {
        version: strongroom_contracts::terms::VERSION,
        id: ContractId::from_bytes(strongroom_contracts::keys::random().unwrap()),
        issuer: issuer.public().id(),
        application: "test".parse().unwrap(),
        holder: SecretKey::generate().unwrap().public(),
        gateway,
        generation: 1,
        not_before: 0,
        expires: 100,
        grants: vec![grant],
        limits: SessionLimits::default(),
        networks: None,
        audit: Audit::Normal,
        undo: strongroom_contracts::UndoSpace::default(),
        detection: strongroom_contracts::Detection::default(),
        policy: PolicyDigest::of(""),
    };
    let chain = Chain::issue(&terms, &issuer).unwrap();
    chain.verify(VerifyContext { issuer: &issuer.public(), gateway: &gateway, now: 50 }).unwrap()
}
