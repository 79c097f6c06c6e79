//! Frames between `contract` and the admin door: one request, one answer, in turn. Lists travel as the frame's data
//! ([`crate::codec::encode_list`]), in pages that fit.

use bincode::{Decode, Encode};
use strongroom_contracts::{Application, ContractId, GatewayId, PublicKey};

use crate::hello::SessionId;

/// The longest wait of [`AdminRequest::Alerts`], in milliseconds.
pub const MAX_ALERT_WAIT_MS: u32 = 60_000;
/// The longest [`Alert::evidence`], in bytes.
pub const MAX_EVIDENCE_BYTES: usize = 1024;

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
    /// The alerts after one, oldest first; waits for the next if there is none yet. Answer: `Alerts`.
    Alerts {
        /// The gateway's process whose alerts are counted, from the last answer; 0: none was seen yet. Alerts of another
        /// process count from its first.
        boot: u64,
        /// The number of the last alert that was seen; 0: none.
        after: u64,
        /// How long to wait, in milliseconds; at most [`MAX_ALERT_WAIT_MS`].
        wait_ms: u32,
    },
    /// A page of the audit trail about one application. Answer: `AuditLines`.
    AuditLines {
        /// Whose.
        application: Application,
        /// Records before this moment are left out, microseconds since the Unix epoch.
        since_us: u64,
        /// Where the last page ended.
        from: AuditPlace,
    },
}

/// A place in the audit trail, between two lines. The default: the beginning of what is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct AuditPlace {
    /// The file, by its inode; 0: the oldest that is kept.
    pub file: u64,
    /// Bytes from its beginning.
    pub offset: u64,
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
    /// Data: a list of [`Alert`].
    Alerts {
        /// Changes when the gateway's process does; alerts are numbered from 1 in each.
        boot: u64,
        /// The number of the newest alert; that of the last in the list, unless there are more than fit.
        newest: u64,
        /// Alerts after the one asked for that are not kept any more.
        missed: u64,
    },
    /// Data: whole lines of the audit trail, each a JSON object.
    AuditLines {
        /// Where the next page begins.
        next: AuditPlace,
        /// Whether there may be more.
        more: bool,
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

/// What the gateway noticed about an application, for recovery to act on.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Alert {
    /// Its number; rises by one with each alert of the gateway's process.
    pub number: u64,
    /// When, microseconds since the Unix epoch, by the gateway's clock.
    pub at_us: u64,
    /// What kind.
    pub kind: AlertKind,
    /// Whose.
    pub application: Application,
    /// Under which contract.
    pub contract: Option<ContractId>,
    /// In which session.
    pub session: Option<SessionId>,
    /// What was seen, in words; at most [`MAX_EVIDENCE_BYTES`]. Holds text that comes from a guest.
    pub evidence: String,
    /// How many equal ones it stands for.
    pub count: u32,
}

/// Kinds of alerts, as policies name them (`[recovery] on`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum AlertKind {
    /// The application tries what its contract does not allow, or breaks the protocol.
    Violation,
    /// Changes that look like ransomware.
    Ransomware,
    /// The contract has outrun its undo space.
    UndoSpace,
}

impl AlertKind {
    /// The word of policies.
    pub const fn word(self) -> &'static str {
        match self {
            AlertKind::Violation => "violation",
            AlertKind::Ransomware => "ransomware",
            AlertKind::UndoSpace => "undo-space",
        }
    }
}
