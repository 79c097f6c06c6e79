//! Frames between `contract` and the admin door: one request, one answer, in turn. Lists travel as the frame's data
//! ([`crate::codec::encode_list`]), in pages that fit.

use bincode::{Decode, Encode};
use strongroom_contracts::{Application, ContractId, DataPath, GatewayId, PublicKey};

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
    /// Take changes back. Answer: `UndoBegun`, at once; how it goes on is told by `UndoProgress`.
    Undo(UndoRequest),
    /// How far an undo is. Answer: `UndoProgress`.
    UndoProgress {
        /// Which.
        run: ContractId,
        /// Paths from this one on (they are told when it has come to its end).
        from: u64,
    },
    /// What an application touched, and who has read that since. Answer: `Blast`.
    Blast {
        /// Whose.
        application: Application,
        /// Since when, Unix seconds.
        since: u64,
        /// Paths from this one on.
        from: u64,
    },
    /// What happened to a path. Answer: `History`.
    History {
        /// From the data root.
        path: DataPath,
        /// Items from this one on.
        from: u64,
    },
    /// A part of a file as it was. Answer: `FileAt`.
    FileAt {
        /// From the data root.
        path: DataPath,
        /// When, Unix seconds.
        at: u64,
        /// From this byte on.
        offset: u64,
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

/// What is to be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UndoRequest {
    /// Whose changes.
    pub application: Application,
    /// Only those under this contract (any block of its chain).
    pub contract: Option<ContractId>,
    /// Not the application's changes, but those of this undo.
    pub undo: Option<ContractId>,
    /// Only those under contracts of generations below this one.
    pub below: Option<u64>,
    /// From when on, Unix seconds.
    pub since: u64,
    /// Only at or below this path, from the data root.
    pub path: Option<DataPath>,
    /// Only tell what would be done.
    pub dry_run: bool,
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
    /// An undo has begun.
    UndoBegun {
        /// Its number; to take it back, name it as `undo`.
        run: ContractId,
    },
    /// How far it is. Data: a list of [`UndoItem`], if it has come to its end.
    UndoProgress(UndoProgress),
    /// Data: a list of [`BlastInfo`].
    Blast {
        /// How many there are in all.
        total: u64,
    },
    /// Data: a list of [`HistoryInfo`].
    History {
        /// How many there are in all.
        total: u64,
    },
    /// Data: bytes of the file.
    FileAt {
        /// Its size.
        size: u64,
        /// All of it is as it was; not so if parts are forgotten or were written by somebody of whom nothing is kept.
        whole: bool,
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
/// How far an undo is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UndoProgress {
    /// Steps done.
    pub done: u64,
    /// Steps in all; 0: not known yet.
    pub total: u64,
    /// It has come to its end.
    pub finished: bool,
    /// Why it came to its end too early.
    pub failed: Option<String>,
    /// Changes from before could not be looked at: they are forgotten.
    pub expired: bool,
    /// From when on changes were taken back, Unix seconds.
    pub since: u64,
    /// Paths that it tells of.
    pub items: u64,
}

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum UndoVerdict {
    /// It is as it was.
    Restored,
    /// Somebody else changed it since: theirs is kept.
    Kept,
    /// What it was is forgotten.
    Expired,
    /// It could not be brought back.
    Failed,
}

/// What became of one path.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UndoItem {
    /// From the data root.
    pub path: Vec<u8>,
    /// What.
    pub verdict: UndoVerdict,
    /// Where the old version is, if it is not at the path.
    pub beside: Option<Vec<u8>>,
    /// Why, in words; may be empty.
    pub why: String,
}

/// What an application did to a path.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BlastInfo {
    /// From the data root.
    pub path: Vec<u8>,
    /// What, in words.
    pub what: Vec<String>,
    /// When last, Unix seconds.
    pub last: u64,
    /// Who has read it since, and when first (Unix seconds).
    pub readers: Vec<(String, u64)>,
    /// Who was only sent it ahead of its users, and when first: they may have read it.
    pub sent_ahead: Vec<(String, u64)>,
}

/// One thing that happened to a path.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HistoryInfo {
    /// When, in microseconds since the Unix epoch.
    pub at_us: u64,
    /// By whom.
    pub application: String,
    /// Under which contract (or undo), if that is known.
    pub contract: Option<ContractId>,
    /// What, in words.
    pub what: String,
    /// It can be taken back.
    pub kept: bool,
}
