//! Frames between a fresh guest and the base domain: a new key, proven by a one-time secret, for a new contract.
//!
//! The guest's key is the one that it proves in the TLS handshake. Guest: `Begin`; base domain: `Challenge`; guest:
//! `Prove`; base domain: `Issued` with the contract, or `Refused`. What proves what is in `strongroom-base`, `secret`.

use bincode::{Decode, Encode};
use strongroom_contracts::Application;

/// What a fresh guest says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum FromGuest {
    /// I have a secret of this incident. Answer: `Challenge`.
    Begin {
        /// The incident.
        incident: u64,
        /// The application.
        application: Application,
    },
    /// Here is the proof. Answer: `Issued`, when the contract is there.
    Prove {
        /// HMAC-SHA-256, see `strongroom-base`.
        proof: [u8; 32],
    },
}

/// What the base domain says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ToGuest {
    /// Prove the secret for this.
    Challenge {
        /// Random; good for this connection only.
        nonce: [u8; 32],
    },
    /// Data: the contract chain's bytes.
    Issued,
    /// Not yet: ask again later, with the same key.
    Later {
        /// After this time, in milliseconds.
        wait_ms: u32,
    },
    /// No.
    Refused {
        /// One sentence for people; tells nothing about the secret.
        text: String,
    },
}
