//! Finding a name in a directory.

use strongroom_protocol::reply::Outcome;

use crate::gate::refusal::Checked;
use crate::gate::{InDir, Permit};

pub(crate) fn lookup(permit: &Permit<'_, InDir>, name: &[u8]) -> Checked<Outcome> {
    match permit.tree().lookup(permit.dir(), name) {
        Ok((node, stat)) => {
            permit.may_see(Some(&node))?;
            Ok(Outcome::Entry(permit.tell(&node, &stat)))
        }
        Err(refusal) => {
            // Whether it is missing is not told either.
            permit.may_see(None)?;
            Err(refusal)
        }
    }
}
