//! What a contract is: rights, grants, keys, signing, attenuation, verification, armour, revocation statements.
//!
//! This crate is pure: no I/O, no clock, no threads. Time and randomness come in as arguments (only key generation and
//! signing reach `ring`'s random source). The bytes that are signed are defined by [`codec`] alone.
//!
//! Invariants: a signature is verified over the bytes as received before anything in them is decoded; an attenuation
//! can only remove; the only way to an [`Effective`] contract from foreign bytes is [`Chain::verify`].

pub mod armour;
pub mod chain;
pub mod codec;
pub mod detection;
pub mod grant;
pub mod id;
pub mod keys;
pub mod limits;
pub mod network;
pub mod path;
pub mod receipt;
pub mod revocation;
pub mod rights;
pub mod scope;
pub mod terms;
pub mod visible;

pub use chain::{Chain, Effective, VerifyContext, VerifyError};
pub use detection::{Detection, OnVerdict};
pub use grant::{Grant, Ownership};
pub use id::{ContractId, GatewayId, KeyId, PolicyDigest};
pub use keys::{KeyError, PublicKey, SecretKey};
pub use limits::SessionLimits;
pub use network::Network;
pub use path::{Application, DataPath, MountPath, NameError};
pub use receipt::{FenceReceipt, SignedReceipt};
pub use revocation::{Revocation, SignedRevocation, Subject};
pub use rights::{Right, Rights, UnknownRight};
pub use scope::{Quota, Region, Scope};
pub use terms::{Attenuation, Audit, Terms, TermsError, UndoFull, UndoSpace};
