//! Restart: the guest starts from its clean image, with a one-time secret if it is to enrol.

use std::path::PathBuf;
use std::sync::Arc;

use strongroom_base::Failure;
use strongroom_base::files::{self, Existing, SECRET};
use strongroom_base::incident::{Entry, Incident, Phase};
use strongroom_base::secret::Enrolment;

use crate::daemon::Daemon;
use crate::guest::{Action, Driver, Job, perform};
use crate::incident::{Open, StepError, StepResult};
use crate::journal::{facts, make_dir, now_us};

pub(super) fn take(daemon: &Arc<Daemon>, open: &Arc<Open>) -> StepResult {
    let now = open.incident();
    let name = now.guest.clone().unwrap_or_else(|| now.application.to_string());
    let Some(guest) = daemon.config.guest.get(&name) else {
        let path = daemon.base.recovery_config_path();
        let failure =
            Failure::not_found(format!("`{}` does not say how to drive guest {name}", path.display())).hint(
                format!(
                    "add [guest.{name}], restart strongroom-recovery, and go on: contract recover {}",
                    now.application
                ),
            );
        return Err(StepError::for_a_person(failure));
    };
    let missing = guest.missing();
    if !missing.is_empty() {
        let failure = Failure::not_found(format!("not on this machine: {}", missing.join(", ")))
            .hint("nothing was done to the guest; install it and go on");
        return Err(StepError::for_a_person(failure));
    }
    let secret = secret(daemon, open, &now, (&name, guest.driver()))?;
    let evidence = now.dir.join("evidence");
    let job = Job {
        guest: &name,
        application: &now.application,
        incident: now.number,
        evidence: &evidence,
        secret: secret.as_ref().map(|secret| secret.0.as_path()),
    };
    let actions = guest.driver().restart(&job);
    for (n, action) in actions.iter().enumerate() {
        if daemon.is_stopping() {
            return Err(StepError::stopping());
        }
        act(open, &now, n, action)?;
    }
    Ok(facts([
        ("guest", name.into()),
        ("actions", actions.len().into()),
        ("secret", secret.is_some().into()),
    ]))
}

fn act(open: &Open, now: &Incident, n: usize, action: &Action) -> Result<(), StepError> {
    let begun = now_us();
    let done = perform(action);
    let took_ms = now_us().saturating_sub(begun) / 1000;
    let (said, line) = match &done {
        Ok(said) => (said.clone(), format!("{action}: {took_ms} ms")),
        Err(error) => (
            format!("{}\n\n{}", error.why, error.output),
            format!("failed after {took_ms} ms: {}", told(action, &error.why)),
        ),
    };
    let said = said.trim();
    if !said.is_empty() {
        let attempt =
            now.spans.iter().find(|span| span.phase == Phase::Restart).map_or(0, |span| span.attempts);
        let log = now.dir.join(format!("commands/{attempt:02}-{n:02}.log"));
        files::write(&log, &format!("{action}\n\n{said}\n"), SECRET, Existing::Replace)?;
    }
    open.put(Entry::Note { phase: Phase::Restart, text: line })?;
    done.map(drop).map_err(|error| {
        let failure = Failure::other(told(action, &error.why));
        if error.permanent { StepError::for_a_person(failure) } else { failure.into() }
    })
}

/// Why an action failed. A program's words name its command already, which may be long.
fn told(action: &Action, why: &str) -> String {
    match action {
        Action::Run { .. } | Action::Await { .. } => why.to_owned(),
        _ => format!("{action}: {why}"),
    }
}

/// The file with the secret on its way; it is gone when the guest has been started.
struct Handed(PathBuf);

impl Drop for Handed {
    fn drop(&mut self) {
        // A crash leaves it; it is void then, because the next attempt makes another.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Makes a new secret and puts on record what proves it, if the guest is to enrol.
fn secret(
    daemon: &Daemon,
    open: &Open,
    now: &Incident,
    (guest, driver): (&str, &dyn Driver),
) -> Result<Option<Handed>, StepError> {
    let wanted = now.phases.contains(&Phase::Reissue);
    let (Some(key), Some(enrol), true) = (&daemon.enrol_key, &daemon.config.enrol, wanted) else {
        return Ok(None);
    };
    if let Some(key) = driver.lacks_for_secret() {
        let path = daemon.base.recovery_config_path();
        let failure = Failure::bad(format!(
            "`{}`: [guest.{guest}] has no {key}, so that the secret with which it is to enrol would not reach it",
            path.display()
        ))
        .hint("nothing was done to the guest; add it, restart strongroom-recovery, and go on");
        return Err(StepError::for_a_person(failure));
    }
    let dir = secrets_dir(daemon);
    make_dir(&dir).map_err(|error| Failure::other(format!("cannot make `{}`: {error}", dir.display())))?;
    let enrolment = Enrolment::new(now.number, now.application.clone(), key.public())?;
    let lifetime = u64::try_from(enrol.lifetime.0.as_micros()).unwrap_or(u64::MAX);
    open.put(Entry::Secret {
        proof_key: enrolment.proof_key().to_hex(),
        until_us: now_us().saturating_add(lifetime),
    })?;
    let path = dir.join(format!("{:06}", now.number));
    files::write(&path, &enrolment.to_text(), SECRET, Existing::Replace)?;
    Ok(Some(Handed(path)))
}

/// A directory in memory, where the system has one.
fn secrets_dir(daemon: &Daemon) -> PathBuf {
    daemon.config.secrets.clone().unwrap_or_else(|| PathBuf::from("/run/strongroom-recovery"))
}
