//! The steps of an incident, one file each. Every one is safe to repeat: what it is about to do is on record before it
//! does it, and it looks what is done already.

mod confirm;
mod fence;
mod preserve;
mod reissue;
mod restart;
mod undo;

use std::sync::Arc;

use serde_json::Map;
use strongroom_base::incident::Phase;

use crate::daemon::Daemon;
use crate::incident::{Open, StepResult};

/// Takes the step of a phase.
pub fn take(daemon: &Arc<Daemon>, open: &Arc<Open>, phase: Phase) -> StepResult {
    match phase {
        Phase::Alert => Ok(Map::new()),
        Phase::Fence => fence::take(daemon, open),
        Phase::Preserve => preserve::take(daemon, open),
        Phase::Undo => undo::take(daemon, open),
        Phase::Restart => restart::take(daemon, open),
        Phase::Reissue => reissue::take(daemon, open),
        Phase::Confirm => confirm::take(daemon, open),
    }
}
