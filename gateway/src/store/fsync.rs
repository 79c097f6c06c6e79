//! Bringing a file or directory to stable storage.

use std::sync::Arc;

use strongroom_protocol::reply::Outcome;

use crate::gate::refusal::Checked;
use crate::gate::{OnHandle, Permit};
use crate::handles::Open;
use crate::undo::Undo;

/// A sync that was let in and has not run.
///
/// The one thing that may go on without its permit: it brings to the disk what was written under other permits and
/// changes nothing that anybody could read. A fence that had to wait for the disk would be slow just when a guest writes
/// much.
pub(crate) struct Letin {
    open: Arc<Open>,
    data_only: bool,
    undo: Option<Arc<Undo>>,
}

pub(crate) fn fsync(permit: &Permit<'_, OnHandle>, data_only: bool) -> Checked<Outcome> {
    begin(permit, data_only).run()
}

pub(crate) fn begin(permit: &Permit<'_, OnHandle>, data_only: bool) -> Letin {
    Letin { open: Arc::clone(permit.target()), data_only, undo: permit.undo_log().cloned() }
}

impl Letin {
    pub(crate) fn run(&self) -> Checked<Outcome> {
        // What could bring the old bytes back is on the disk before the guest may believe that the new ones are.
        if let Some(undo) = &self.undo {
            undo.sync()?;
        }
        let file = self.open.file()?;
        if self.data_only {
            rustix::fs::fdatasync(file)?
        } else {
            rustix::fs::fsync(file)?
        };
        Ok(Outcome::Done)
    }
}
