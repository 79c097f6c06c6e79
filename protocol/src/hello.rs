//! The opening of a connection to the native door.
//!
//! The client's first frame is a [`Hello`] with the contract chain as its data (none: the newest contract that the gateway
//! keeps for the holder key proven in the handshake). The gateway answers with an [`Answer`]; after a welcome, requests
//! and replies follow.

use bincode::{Decode, Encode};
use strongroom_contracts::{ContractId, MountPath, Ownership, Rights};

use crate::attr::Attr;

/// A session's number; 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct SessionId(pub [u8; 16]);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s-")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// The client's first frame. Data: the chain's bytes, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// [`crate::VERSION`].
    pub version: u16,
    /// The session to go on with, or to add this connection to.
    pub resume: Option<SessionId>,
    /// If there is no valid contract now: keep the connection and answer once there is one (the gateway may still refuse
    /// after a while; ask again).
    pub wait: bool,
}

/// The gateway's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// Come in. Data: a list of [`GrantInfo`] ([`crate::codec::decode_list`]).
    Welcome(Welcome),
    /// Stay out.
    Refused(Refused),
}

/// The terms of a session.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// The session.
    pub session: SessionId,
    /// Changes when the gateway's process does: nodes and handles of another boot are unknown now.
    pub boot: u64,
    /// Whether the session existed before: its slots go on. If false, sequence numbers start at 1.
    pub resumed: bool,
    /// Slots of the reply cache.
    pub slots: u16,
    /// Requests that may be in flight in the session.
    pub in_flight: u32,
    /// Connections that the session may have.
    pub connections: u16,
    /// The contract in force.
    pub contract: ContractId,
    /// Its generation.
    pub generation: u64,
    /// Its application.
    pub application: String,
    /// Its end, Unix seconds.
    pub expires: u64,
    /// The gateway's clock, Unix seconds.
    pub now: u64,
}

/// A grant as the client needs to know it. The position in the list is the grant's number.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GrantInfo {
    /// Where it appears.
    pub mount: MountPath,
    /// What may be done; the gateway decides, this is for information and early answers.
    pub rights: Rights,
    /// Whose the files are.
    pub ownership: Ownership,
    /// The longest that a file may become, in bytes; for early answers, as the rights are.
    pub max_file_bytes: Option<u64>,
    /// Attributes of the subtree's root; `None` if it does not exist at present, or may not be seen.
    pub root: Option<Attr>,
}

/// Why the gateway does not welcome.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Refused {
    /// What kind of refusal.
    pub code: RefusedCode,
    /// One sentence for people; at most 512 bytes.
    pub text: String,
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RefusedCode {
    /// Another version of the protocol.
    Version,
    /// The contract is damaged, forged, for another gateway, another holder, another network.
    Contract,
    /// No valid contract now: revoked, superseded.
    Revoked,
    /// No valid contract now: its time is over.
    Expired,
    /// The contract is not valid yet.
    NotYet,
    /// The gateway keeps no contract for this holder key.
    NoContract,
    /// A bound of the gateway is reached (sessions, connections, waiting).
    Busy,
    /// The session to resume does not exist (any more); open a new one.
    NoSession,
}
