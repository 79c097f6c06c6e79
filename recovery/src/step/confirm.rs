//! Confirm: the application is seen at work under its new contract; then, if the policy asks for it, a person confirms. An attack that
//! comes meanwhile ends the wait, as it is the next incident's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use strongroom_base::Failure;
use strongroom_base::base::gateway_failure;
use strongroom_base::incident::{Entry, Incident, Phase};

use crate::daemon::Daemon;
use crate::incident::{Open, StepError, StepResult};
use crate::journal::facts;

/// How often the gateway is asked, at first and later.
const ASK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How long "at first" is.
const AT_FIRST: Duration = Duration::from_secs(10);

pub(super) fn take(daemon: &Arc<Daemon>, open: &Arc<Open>) -> StepResult {
    let now = open.incident();
    let mut found = Map::new();
    if now.phases.contains(&Phase::Reissue) {
        found = seen_at_work(daemon, open, &now)?;
    }
    if now.ask && now.confirmed.is_none() {
        let text = format!("waits for a person: contract recover {} --confirm", now.application);
        open.put(Entry::Note { phase: Phase::Confirm, text })?;
        // There is no end to a person's time.
        let confirmed = loop {
            let until = Instant::now() + Duration::from_secs(3600);
            let over = |now: &Incident| {
                (now.confirmed.is_some() || now.again.is_some()).then(|| now.confirmed.clone())
            };
            if let Some(by) = open.wait(daemon, until, over) {
                break by;
            }
            if daemon.is_stopping() {
                return Err(StepError::stopping());
            }
        };
        found.extend(confirmed.map(|by| ("confirmed_by".to_owned(), by.into())));
    }
    Ok(found)
}

fn seen_at_work(daemon: &Daemon, open: &Open, now: &Incident) -> StepResult {
    let below = now.fact(Phase::Fence, "below").and_then(Value::as_u64).unwrap_or(1);
    let begun = Instant::now();
    let mut client = daemon.connect()?;
    loop {
        let sessions = client.sessions().map_err(gateway_failure)?;
        let seen = sessions.iter().find(|session| {
            session.application == now.application
                && session.generation >= below
                && !session.addresses.is_empty()
        });
        if let Some(session) = seen {
            return Ok(facts([
                ("session", session.session.to_string().into()),
                ("contract", session.contract.to_string().into()),
                ("generation", session.generation.into()),
            ]));
        }
        // It was at work, and may have been fenced since.
        if open.incident().again.is_some() {
            return Ok(Map::new());
        }
        if begun.elapsed() > daemon.config.limits.confirm_within.0 {
            let failure =
                Failure::other("the application has its new contract and has not been seen at work since")
                    .hint("look at the guest: is the contract mounted (mount.strongroom)?")
                    .hint(format!("to look again: contract recover {}", now.application));
            return Err(StepError::for_a_person(failure));
        }
        if daemon.is_stopping() {
            return Err(StepError::stopping());
        }
        daemon.pause(if begun.elapsed() < AT_FIRST { ASK.0 } else { ASK.1 });
    }
}
