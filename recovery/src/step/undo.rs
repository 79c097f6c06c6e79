//! Undo: the gateway takes back what the application changed before it was fenced.
//!
//! Safe to repeat: the gateway goes on with an undo by itself, and what one has taken back is not taken back again.

use std::sync::Arc;
use std::time::Duration;

use strongroom_base::Failure;
use strongroom_base::admin::{AdminClient, AdminError};
use strongroom_base::base::gateway_failure;
use strongroom_contracts::ContractId;
use strongroom_protocol::admin::{UndoProgress, UndoRequest, UndoVerdict};

use crate::daemon::Daemon;
use crate::incident::{Open, StepError, StepResult};
use crate::journal::facts;

/// How often the gateway is asked how far it is.
const POLL: Duration = Duration::from_millis(20);

pub(super) fn take(daemon: &Arc<Daemon>, open: &Arc<Open>) -> StepResult {
    let now = open.incident();
    let back = now.undo_secs.unwrap_or(0);
    let since = (now.cause.at_us.min(now.opened_us) / 1_000_000).saturating_sub(back);
    let mut client = daemon.connect()?;
    let request = UndoRequest {
        application: now.application.clone(),
        contract: None,
        undo: None,
        since,
        path: None,
        dry_run: false,
    };
    let run = match client.undo(request) {
        Ok(run) => run,
        // Nothing was ever kept of it: it changed nothing under a grant with an undo window.
        Err(AdminError::NotFound(why)) => return Ok(facts([("undo", why.into()), ("restored", 0.into())])),
        Err(error @ AdminError::Refused(_)) => {
            let failure = gateway_failure(error)
                .hint(
                    "take `undo` out of the policy's steps, or put the files back from a backup, then go on",
                )
                .hint(format!("to go on without it: contract recover {} --skip", now.application));
            return Err(StepError::for_a_person(failure));
        }
        Err(error) => return Err(gateway_failure(error).into()),
    };
    let progress = wait(daemon, &mut client, run)?;
    if let Some(why) = progress.failed {
        let failure =
            Failure::other(format!("the gateway could not undo what {} did: {why}", now.application))
                .hint(format!("when it can: contract undo {} --since {back}s", now.application))
                .hint(format!("to go on without it: contract recover {} --skip", now.application));
        return Err(StepError::for_a_person(failure));
    }
    let items = client.undo_items(run).map_err(gateway_failure)?;
    let number = |verdict| items.iter().filter(|item| item.verdict == verdict).count();
    Ok(facts([
        ("undo", run.to_string().into()),
        ("since", progress.since.into()),
        ("restored", number(UndoVerdict::Restored).into()),
        ("kept", number(UndoVerdict::Kept).into()),
        ("expired", number(UndoVerdict::Expired).into()),
        ("failed", number(UndoVerdict::Failed).into()),
        ("complete", (!progress.expired).into()),
    ]))
}

fn wait(daemon: &Arc<Daemon>, client: &mut AdminClient, run: ContractId) -> Result<UndoProgress, StepError> {
    loop {
        let (progress, _) = client.undo_progress(run, u64::MAX).map_err(gateway_failure)?;
        if progress.finished {
            return Ok(progress);
        }
        if daemon.is_stopping() {
            return Err(StepError::stopping());
        }
        std::thread::sleep(POLL);
    }
}
