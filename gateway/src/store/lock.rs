//! Byte-range locks.

use strongroom_protocol::attr::{Lock, LockKind};
use strongroom_protocol::reply::{Failure, Outcome};

use crate::engine::LockReply;
use crate::gate::refusal::Checked;
use crate::gate::{OnHandle, Permit};
use crate::locks::Asked;

pub(crate) fn get(permit: &Permit<'_, OnHandle>, lock: &Lock) -> Checked<Outcome> {
    permit.seeing_locks()?;
    Ok(Outcome::Locked(permit.query_lock(lock)))
}

/// `None`: it waits.
pub(crate) fn set(
    permit: &Permit<'_, OnHandle>,
    lock: &Lock,
    wait: Option<(u64, &dyn Fn() -> LockReply)>,
    reclaim: bool,
) -> Checked<Option<Outcome>> {
    // What is reclaimed, or told by the client that answers for the locks, others may wait for.
    if lock.kind != LockKind::Unlock && !reclaim {
        permit.locking()?;
    }
    match permit.set_lock(lock, wait, reclaim)? {
        Asked::Given | Asked::Kept => Ok(Some(Outcome::Done)),
        Asked::Waits => Ok(None),
        Asked::Refused(failure) => Err(Failure::into(failure)),
    }
}
