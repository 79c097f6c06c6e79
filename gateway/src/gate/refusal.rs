//! Why an operation is not carried out, inside the engine.

use std::sync::Arc;

use rustix::io::Errno;
use strongroom_contracts::{Right, Rights};
use strongroom_protocol::reply::Failure;

use crate::quota::Meter;

/// Why not.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// Tell the client.
    Failed(Failure),
    /// Not told: the usage of this subtree must be counted first; then the operation is tried again.
    Count(Arc<Meter>),
    /// Not told: others must let go of leases first (which ones, the operation's [`crate::leases::Deal`] knows); then the
    /// operation is tried again.
    Recall,
    /// Not told: it would block and may not; the operation is tried again where it may.
    WouldBlock,
}

/// What the engine's functions return.
pub(crate) type Checked<T> = Result<T, Refusal>;

impl Refusal {
    /// As the client is told, where nothing has to be counted and waiting is allowed.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Refusal::Failed(failure) => *failure,
            Refusal::Count(_) | Refusal::Recall | Refusal::WouldBlock => Failure::Errno(libc::EAGAIN as u16),
        }
    }

    /// A system error.
    pub(crate) fn errno(errno: Errno) -> Refusal {
        // Linux error numbers are 1 to 4095.
        Refusal::Failed(Failure::Errno(u16::try_from(errno.raw_os_error()).unwrap_or(libc::EIO as u16)))
    }

    /// The contract lacks rights.
    pub(crate) fn denied(missing: Rights) -> Refusal {
        Refusal::Failed(Failure::Denied { missing })
    }

    /// The contract lacks a right.
    pub(crate) fn lacks(right: Right) -> Refusal {
        Refusal::denied(Rights::only(right))
    }

    /// The session does not know the node.
    pub(crate) const STALE: Refusal = Refusal::Failed(Failure::Stale);
    /// The session does not know the handle.
    pub(crate) const BAD_HANDLE: Refusal = Refusal::Failed(Failure::BadHandle);
    /// The request makes no sense.
    pub(crate) const MALFORMED: Refusal = Refusal::Failed(Failure::Malformed);
    /// The quota is full.
    pub(crate) const QUOTA: Refusal = Refusal::Failed(Failure::Quota);

    /// Whether it is this system error.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        matches!(self, Refusal::Failed(Failure::Errno(number)) if i32::from(*number) == errno.raw_os_error())
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        match errno {
            // Only calls with RWF_NOWAIT or RESOLVE_CACHED say so: regular files and directories never do otherwise.
            Errno::AGAIN => Refusal::WouldBlock,
            other => Refusal::errno(other),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal::Failed(failure)
    }
}
