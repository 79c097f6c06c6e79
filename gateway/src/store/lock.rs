//! Byte-range locks.

use strongroom_protocol::attr::Lock;
use strongroom_protocol::reply::{Failure, Outcome};

use crate::gate::refusal::Checked;
use crate::gate::{OnHandle, Permit};
use crate::locks::{Asked, How, Locks, Owner};

fn owner(permit: &Permit<'_, OnHandle>, lock: &Lock) -> Owner {
    Owner { session: permit.session().number, owner: lock.owner }
}

pub(crate) fn get(permit: &Permit<'_, OnHandle>, locks: &Locks, lock: &Lock) -> Checked<Outcome> {
    let node = permit.target().node.id;
    Ok(Outcome::Locked(locks.query(node, owner(permit, lock), lock)))
}

/// `None`: it waits.
pub(crate) fn set(
    permit: &Permit<'_, OnHandle>,
    locks: &Locks,
    lock: &Lock,
    how: How<'_>,
) -> Checked<Option<Outcome>> {
    match locks.set(permit.target().node.id, owner(permit, lock), lock, how) {
        Asked::Given => Ok(Some(Outcome::Done)),
        Asked::Waits => Ok(None),
        Asked::Refused(failure) => Err(Failure::into(failure)),
    }
}
