//! Undo: the gateway takes back what the application changed before it was fenced. What it touched, and what became of
//! each path, is kept as evidence.
//!
//! The undo's number is on record before it is waited for: a repetition goes on with the same one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use strongroom_base::Failure;
use strongroom_base::admin::{AdminClient, AdminError};
use strongroom_base::base::gateway_failure;
use strongroom_base::files::{self, Existing, SECRET};
use strongroom_base::incident::{Entry, Incident, Phase};
use strongroom_contracts::ContractId;
use strongroom_protocol::admin::{BlastInfo, UndoItem, UndoProgress, UndoRequest, UndoVerdict};

use crate::daemon::Daemon;
use crate::incident::{Open, StepError, StepResult};
use crate::journal::facts;

/// How often the gateway is asked how far it is.
const ASK: Duration = Duration::from_millis(20);

pub(super) fn take(daemon: &Arc<Daemon>, open: &Arc<Open>) -> StepResult {
    let now = open.incident();
    let mut client = daemon.connect()?;
    let since = now.reach(now.undo_secs.unwrap_or(0));
    keep_blast(&mut client, &now, since)?;
    let Some((run, mut progress)) = begin(open, &now, &mut client, since)? else {
        return Ok(facts([("restored", 0.into()), ("since", since.into())]));
    };
    while !progress.finished {
        if daemon.is_stopping() {
            return Err(StepError::stopping());
        }
        daemon.pause(ASK);
        progress = client.undo_progress(run, 0).map_err(gateway_failure)?.0;
    }
    if let Some(why) = &progress.failed {
        return Err(Failure::other(format!("the gateway could not take everything back: {why}")).into());
    }
    let items = client.undo_items(run).map_err(gateway_failure)?;
    keep_items(&now.dir.join("evidence/undo.json"), run, &progress, &items)?;
    let number = |verdict| items.iter().filter(|item| item.verdict == verdict).count();
    let failed = number(UndoVerdict::Failed);
    if failed > 0 {
        let failure = Failure::other(format!("{failed} paths could not be brought back"))
            .hint(format!("which, and why: {}", now.dir.join("evidence/undo.json").display()))
            .hint(format!("to go on all the same: contract recover {} --skip", now.application));
        return Err(StepError::for_a_person(failure));
    }
    Ok(facts([
        ("undo", run.to_string().into()),
        ("since", progress.since.into()),
        ("complete", (!progress.expired).into()),
        ("restored", number(UndoVerdict::Restored).into()),
        ("kept", number(UndoVerdict::Kept).into()),
        ("expired", number(UndoVerdict::Expired).into()),
    ]))
}

/// Begins the undo, or finds the one that was begun; `None`: there is nothing to take back.
fn begin(
    open: &Open,
    now: &Incident,
    client: &mut AdminClient,
    since: u64,
) -> Result<Option<(ContractId, UndoProgress)>, StepError> {
    let known = now.fact(Phase::Undo, "undo").and_then(Value::as_str).and_then(|text| text.parse().ok());
    if let Some(run) = known {
        match client.undo_progress(run, 0) {
            // One that failed is begun anew.
            Ok((progress, _)) if progress.failed.is_none() => return Ok(Some((run, progress))),
            Ok(_) | Err(AdminError::NotFound(_)) => {}
            Err(error) => return Err(gateway_failure(error).into()),
        }
    }
    let request = UndoRequest {
        application: now.application.clone(),
        contract: None,
        undo: None,
        below: now.fenced_below(),
        since,
        path: None,
        dry_run: false,
    };
    let run = match client.undo(request) {
        Ok(run) => run,
        Err(AdminError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(gateway_failure(error).into()),
    };
    let decided: Map<String, Value> = facts([("undo", run.to_string().into())]);
    open.put(Entry::Decided { phase: Phase::Undo, facts: decided })?;
    let progress = client.undo_progress(run, 0).map_err(gateway_failure)?.0;
    Ok(Some((run, progress)))
}

/// What it touched, and who has read that since; as it was before anything is taken back.
fn keep_blast(client: &mut AdminClient, now: &Incident, since: u64) -> Result<(), Failure> {
    let path = now.dir.join("evidence/blast.json");
    if path.exists() {
        return Ok(());
    }
    let list = match client.blast(&now.application, since) {
        Ok(list) => list,
        Err(AdminError::NotFound(_)) => vec![],
        Err(error) => return Err(gateway_failure(error)),
    };
    let readers = |list: &[(String, u64)]| -> Vec<Value> {
        list.iter().map(|(who, when)| json!({ "application": who, "first": when })).collect()
    };
    let one = |one: &BlastInfo| {
        json!({
            "path": text(&one.path),
            "what": one.what,
            "last": one.last,
            "readers": readers(&one.readers),
            "sent_ahead": readers(&one.sent_ahead),
        })
    };
    let json = json!({ "since": since, "paths": list.iter().map(one).collect::<Vec<_>>() });
    files::write(&path, &format!("{json:#}\n"), SECRET, Existing::Replace)
}

fn keep_items(
    path: &Path,
    run: ContractId,
    progress: &UndoProgress,
    items: &[UndoItem],
) -> Result<(), Failure> {
    let one = |item: &UndoItem| {
        json!({
            "path": text(&item.path),
            "verdict": match item.verdict {
                UndoVerdict::Restored => "restored",
                UndoVerdict::Kept => "kept",
                UndoVerdict::Expired => "expired",
                UndoVerdict::Failed => "failed",
            },
            "beside": item.beside.as_ref().map(|path| text(path)),
            "why": item.why,
        })
    };
    let paths: Vec<Value> = items.iter().map(one).collect();
    let json = json!({ "undo": run.to_string(), "since": progress.since, "complete": !progress.expired, "paths": paths });
    files::write(path, &format!("{json:#}\n"), SECRET, Existing::Replace)
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
