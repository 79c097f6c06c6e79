//! Bringing a file or directory to stable storage.

use strongroom_protocol::reply::Outcome;

use crate::gate::refusal::Checked;
use crate::gate::{OnHandle, Permit};

pub(crate) fn fsync(permit: &Permit<'_, OnHandle>, data_only: bool) -> Checked<Outcome> {
    let file = permit.target().file()?;
    if data_only {
        rustix::fs::fdatasync(file)?
    } else {
        rustix::fs::fsync(file)?
    };
    Ok(Outcome::Done)
}
