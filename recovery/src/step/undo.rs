//! Undo: the gateway takes back what the application changed before it was fenced.

use std::sync::Arc;

use strongroom_base::{Exit, Failure};

use crate::daemon::Daemon;
use crate::incident::{Open, StepError, StepResult};

pub(super) fn take(_daemon: &Arc<Daemon>, open: &Arc<Open>) -> StepResult {
    let now = open.incident();
    let failure =
        Failure::new(Exit::Refused, format!("the gateway cannot undo what {} did", now.application))
            .hint("take `undo` out of the policy's steps, or put the files back from a backup, then go on")
            .hint(format!("to go on without it: contract recover {} --skip", now.application));
    Err(StepError::for_a_person(failure))
}
