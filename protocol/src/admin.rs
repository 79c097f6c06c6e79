//! Frames between `contract` and the admin door: one request, one answer, in turn. Lists travel as the frame's data
//! ([`crate::codec::encode_list`]), in pages that fit.

use bincode::{Decode, Encode};
use strongroom_contracts::{Application, ContractId, GatewayId, PublicKey};

use crate::hello::SessionId;

/// A request of an administrator.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AdminRequest {
    /// Who are you, how are you. Answer: `Status`.
    Status,
    /// Keep this contract for its holder and hand it over. Data: the chain's bytes. Answer: `Deposited`.
    Deposit,
    /// Carry out a revocation. Data: a `SignedRevocation`, encoded by the contracts' codec. Answer: `Fenced`, when it holds.
    Revoke,
    /// Fence all sessions of an application without a statement of the issuer (the gateway's operator; lasts until the
    /// next deposit for the application). Answer: `Fenced`.
    FenceLocally {
        /// Whose.
        application: Application,
    },
    /// Live sessions, by number. Answer: `Sessions`.
    Sessions {
        /// From the one that follows this; `None`: from the first.
        after: Option<SessionId>,
    },
    /// Contracts that the gateway keeps, by holder. Answer: `Contracts`.
    Contracts {
        /// From the one that follows this; `None`: from the first.
        after: Option<PublicKey>,
    },
    /// Lowest valid generation of an application. Answer: `Generation`.
    Generation {
        /// Whose.
        application: Application,
    },
}

/// The answer to an administrator.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AdminAnswer {
    /// How the gateway is.
    Status(Status),
    /// The contract is kept; live sessions of the holder were renewed or will reconnect.
    Deposited {
        /// Its number.
        contract: ContractId,
        /// Sessions that went on under it at once.
        renewed: u32,
    },
    /// It is fenced. Data: the `SignedReceipt`, encoded by the contracts' codec (`Revoke`), or nothing (`FenceLocally`).
    Fenced {
        /// Sessions that were cut.
        sessions: u32,
        /// Microseconds from the receipt of the request until it held.
        took_us: u64,
    },
    /// A page. Data: a list of [`SessionInfo`].
    Sessions {
        /// What to name as `after` for the next page; `None`: this was the last.
        next: Option<SessionId>,
    },
    /// A page. Data: a list of [`ContractInfo`]; it may be empty before the last.
    Contracts {
        /// What to name as `after` for the next page; `None`: this was the last.
        next: Option<PublicKey>,
    },
    /// Lowest valid generation (1 if none was ever voided), and highest seen (0 if none).
    Generation {
        /// Contracts below are void.
        lowest: u64,
        /// Highest in a contract that the gateway accepted.
        highest: u64,
    },
    /// Refused or failed, and why.
    Failed {
        /// What kind.
        kind: AdminFailure,
        /// One sentence for people.
        text: String,
    },
}

/// Kinds of failure at the admin door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AdminFailure {
    /// The signature, audience or form is wrong, or the contract is void.
    Refused,
    /// There is no such thing.
    NotFound,
    /// The gateway could not (its disk, for instance).
    Failed,
}

/// How the gateway is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Status {
    /// Its identity.
    pub gateway: GatewayId,
    /// The version of the program.
    pub version: String,
    /// Changes when its process does.
    pub boot: u64,
    /// Its clock, Unix seconds.
    pub now: u64,
    /// When the process started, Unix seconds.
    pub started: u64,
    /// Live sessions.
    pub sessions: u32,
    /// Contracts kept.
    pub contracts: u32,
    /// Revocations on record.
    pub revocations: u32,
}

/// A live session.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SessionInfo {
    /// Its number.
    pub session: SessionId,
    /// Whose.
    pub application: Application,
    /// Under which contract.
    pub contract: ContractId,
    /// Generation of the contract.
    pub generation: u64,
    /// The holder's key.
    pub holder: PublicKey,
    /// The addresses of its connections, as text.
    pub addresses: Vec<String>,
    /// Since when, Unix seconds.
    pub since: u64,
    /// End of the contract, Unix seconds.
    pub expires: u64,
    /// Open handles.
    pub handles: u32,
    /// Nodes known.
    pub nodes: u32,
    /// Operations let through.
    pub operations: u64,
    /// Operations denied.
    pub denied: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
}

/// A contract that the gateway keeps.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ContractInfo {
    /// Its number (the last block's).
    pub contract: ContractId,
    /// Whose.
    pub application: Application,
    /// Its generation.
    pub generation: u64,
    /// The holder's key.
    pub holder: PublicKey,
    /// Its end, Unix seconds.
    pub expires: u64,
    /// Whether it is void (revoked or superseded).
    pub void: bool,
    /// The last use, Unix seconds; 0: never.
    pub last_used: u64,
}
