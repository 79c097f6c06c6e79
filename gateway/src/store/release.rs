//! Closing a handle, and what the closing of a guest's descriptor brings with it.

use strongroom_protocol::attr::Handle;
use strongroom_protocol::reply::Outcome;

use crate::engine::{Claim, ClaimChange};
use crate::gate::refusal::Checked;
use crate::gate::{Letting, Permit};

/// A descriptor of the guest was closed: its owner's locks go.
pub(crate) fn flush(permit: &Permit<'_, Letting>, lock_owner: u64) -> Outcome {
    permit.release_locks(lock_owner);
    Outcome::Done
}

/// The handle is closed.
pub(crate) fn release(
    permit: &Permit<'_, Letting>,
    handle: Handle,
    lock_owner: Option<u64>,
) -> Checked<(Outcome, Option<ClaimChange>)> {
    if let Some(owner) = lock_owner {
        permit.release_locks(owner);
    }
    let released = permit.close(handle)?;
    let open = &released.open;
    let claim = released.last_claim.then_some(Claim {
        grant: open.grant,
        ino: open.node.ino,
        generation: open.node.generation,
    });
    if let Some(claim) = &claim {
        permit.session().claims.lock().remove(claim);
    }
    Ok((Outcome::Done, claim.map(ClaimChange::Released)))
}
