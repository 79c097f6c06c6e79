//! Replies and events: what the gateway sends after [`crate::hello::Welcome`].

use bincode::{Decode, Encode};
use strongroom_contracts::Rights;

use crate::attr::{Attr, Handle, Lock, Node};
use crate::lease::{LeaseTerms, Note};

/// The header of every frame from the gateway to the client after the welcome.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum FromGateway {
    /// The answer to a request.
    Reply {
        /// The request's id.
        id: u64,
        /// The answer; some carry data.
        outcome: Outcome,
    },
    /// Something that the client did not ask for.
    Event(Event),
    /// The answer to a request of a session that takes leases.
    Leased {
        /// The request's id.
        id: u64,
        /// The answer; some carry data.
        outcome: Outcome,
        /// What may be kept of it.
        note: Note,
    },
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// Done, with nothing to tell.
    Done,
    /// A node and its attributes.
    Entry(Entry),
    /// Attributes.
    Attr(Attr),
    /// A handle and the attributes of what was opened.
    Opened(Handle, Attr),
    /// A new (or found) file, open.
    Created(Handle, Entry),
    /// The frame's data are the answer.
    Data,
    /// Bytes written or copied, and the file's size afterwards.
    Written {
        /// Bytes.
        count: u64,
        /// Size of the file afterwards, in bytes.
        size: u64,
    },
    /// A file offset.
    Offset(u64),
    /// Space and files.
    Statfs(Statfs),
    /// The lock that stands in the way; `None`: none does.
    Locked(Option<Lock>),
    /// Refused or failed.
    Failed(Failure),
    /// What leases the session gets.
    Terms(LeaseTerms),
}

/// A node as found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// The node.
    pub node: Node,
    /// Its attributes.
    pub attr: Attr,
}

/// Space and files (statvfs(3)), blocks in bytes of `block_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Statfs {
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub free: u64,
    /// Files possible.
    pub files: u64,
    /// Files still possible.
    pub files_free: u64,
    /// Longest name.
    pub name_max: u32,
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Failure {
    /// The system refused: a Linux error number (errno(3)).
    Errno(u16),
    /// The contract lacks these rights there. EACCES at the client.
    Denied {
        /// The rights that are missing.
        missing: Rights,
    },
    /// The contract is void or has expired; the session is over. EACCES at the client.
    Fenced,
    /// The quota is full. EDQUOT at the client.
    Quota,
    /// Source and target lie in different grants. EXDEV at the client.
    CrossGrant,
    /// The gateway does not know this node (restarted, or forgot it): resolve it by path and ask again.
    Stale,
    /// The gateway does not know this handle (restarted): reopen and ask again. EBADF if that is no use.
    BadHandle,
    /// A bound of the session is reached (open handles, nodes, locks). ENFILE at the client.
    TooMany,
    /// The gateway has just restarted and waits for locks to be reclaimed: ask again soon.
    Grace,
    /// A sequence number that is neither the slot's last nor its next, or a slot that does not exist.
    BadSlot,
    /// The request makes no sense (data missing or too long, for instance). EINVAL at the client.
    Malformed,
}

/// What the gateway tells on its own.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Event {
    /// The session is over: the contract was revoked, superseded by a higher generation, or has expired. No request of
    /// it will be carried out any more. A new hello may find a newer contract.
    Fenced(FenceReason),
    /// The session goes on under a newer contract of the same generation, valid until then (Unix seconds).
    Renewed {
        /// The end of the new term.
        expires: u64,
    },
    /// The gateway is about to stop; connect again.
    Stopping,
    /// Forget what the data list ([`crate::lease::Recalled`]), then answer with [`crate::op::Op::Recalled`].
    Recall {
        /// The recall's number, for the answer.
        id: u64,
        /// The session's clock, just raised.
        stamp: u64,
    },
    /// All leases of the session are over, because a recall was not answered in time. Answer with
    /// [`crate::op::Op::Recalled`]; until then there are no new ones.
    LeasesLost {
        /// The recall's number, for the answer.
        id: u64,
        /// The session's clock, just raised.
        stamp: u64,
    },
}

/// Why a session was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum FenceReason {
    /// Revoked by the issuer, or fenced by the gateway's operator.
    Revoked,
    /// Its time is over.
    Expired,
    /// A newer contract with other grants took its place: connect again.
    Superseded,
}
