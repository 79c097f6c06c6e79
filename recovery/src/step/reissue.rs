//! Reissue: the application gets a contract of a generation that the fence left valid: for the fresh guest's new key, once
//! that has proven the secret; or for its former holders, where no guest was restarted with one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use strongroom_base::Failure;
use strongroom_base::archive::{Archive, Issued, Lock, Standing};
use strongroom_base::base::gateway_failure;
use strongroom_base::incident::{Entry, Incident, Phase};
use strongroom_base::issuing::{self, Counter, Issuer, Wish};
use strongroom_contracts::PublicKey;
use strongroom_policy::Policy;

use crate::daemon::Daemon;
use crate::incident::{Next, Open, StepError, StepResult};
use crate::journal::{facts, now_us};

pub(super) fn take(daemon: &Arc<Daemon>, open: &Arc<Open>) -> StepResult {
    let now = open.incident();
    let holder = match now.secret.is_some() && now.phases.contains(&Phase::Restart) {
        true => Some(enrolled(daemon, open, &now)?),
        false => None,
    };
    let policies = daemon.policies.now();
    let Some(policy) = policies.get(&now.application) else {
        let failure = Failure::not_found(format!("no policy in force names `{}`", now.application))
            .hint("nothing was issued; put its policy right (contract policy check) and go on");
        return Err(StepError::for_a_person(failure));
    };
    let (issuer, archive) = (Issuer::open(&daemon.base)?, Archive::open(&daemon.base)?);
    let mut counter = Counter::open(daemon.connect()?, &archive, &issuer, now_us() / 1_000_000)?;
    let lock = archive.lock()?;
    let below = now.fact(Phase::Fence, "below").and_then(Value::as_u64).unwrap_or(1);
    let made: Vec<_> = wishes(&archive, policy, holder)?
        .into_iter()
        .map(|wish| issue(open, &issuer, &archive, &lock, &mut counter, policy, &wish, below))
        .collect::<Result<_, StepError>>()?;
    Ok(facts([("contracts", made.into()), ("enrolled", holder.is_some().into())]))
}

/// The key for which the fresh guest proves its secret. Waits for it.
fn enrolled(daemon: &Daemon, open: &Open, now: &Incident) -> Result<PublicKey, StepError> {
    if let Some(holder) = now.enrolled {
        return Ok(holder);
    }
    let until_us = now.secret.as_ref().map_or(0, |(_, until_us)| *until_us);
    let left = until_us.saturating_sub(now_us());
    if left == 0 {
        // Only reached when a person goes on, or after the daemon was away for long.
        return Err(StepError {
            failure: Failure::other("the guest's secret is too old: the guest is started anew"),
            next: Next::Back(Phase::Restart),
        });
    }
    let until = Instant::now() + Duration::from_micros(left);
    if let Some(holder) = open.wait(daemon, until, |now| now.enrolled) {
        return Ok(holder);
    }
    if daemon.is_stopping() {
        return Err(StepError::stopping());
    }
    let failure = Failure::other("the fresh guest has not enrolled")
        .hint("look at its console: does it run `contract enroll` at its start, and reach the address of [enrol]?")
        .hint(format!("to start it once more: contract recover {}", now.application));
    Err(StepError::for_a_person(failure))
}

/// What is issued: what the last contract granted, or else all that the policy allows.
fn wishes(archive: &Archive, policy: &Policy, holder: Option<PublicKey>) -> Result<Vec<Wish>, StepError> {
    let last = issuing::last_of(archive, &policy.application);
    match (last, holder) {
        (Ok(last), None) => Ok(last.iter().map(|issued| Wish::again(issued, policy)).collect()),
        (Err(failure), None) => Err(StepError::for_a_person(failure)),
        (last, Some(holder)) => {
            let again = last.ok().and_then(|last| last.last().map(|issued| Wish::again(issued, policy)));
            let all = Wish { holder, lifetime_secs: None, narrow: vec![] };
            Ok(vec![again.map_or(all, |wish| Wish { holder, ..wish })])
        }
    }
}

/// Issues one contract, or hands over again what an earlier attempt issued.
#[expect(clippy::too_many_arguments, reason = "everything that an issue takes")]
fn issue(
    open: &Open,
    issuer: &Issuer,
    archive: &Archive,
    lock: &Lock,
    counter: &mut Counter,
    policy: &Policy,
    wish: &Wish,
    below: u64,
) -> Result<Value, StepError> {
    let terms = match issued_before(archive, policy, wish.holder, below)? {
        Some(issued) => {
            counter.client.deposit(&issued.chain).map_err(gateway_failure)?;
            issued.terms
        }
        None => {
            let generation =
                issuing::next_generation(archive, &policy.application, Some(counter))?.max(below);
            let terms =
                issuer.terms(policy, wish, generation, counter.now).map_err(StepError::for_a_person)?;
            issuing::make(issuer, archive, lock, terms, Some(counter))?.terms
        }
    };
    let id = terms.id.to_string();
    open.put_if(|now| {
        let known = now.issued.iter().any(|(contract, ..)| *contract == terms.id);
        let entry = Entry::Issued {
            contract: id.clone(),
            generation: terms.generation,
            holder: terms.holder.to_string(),
        };
        ((!known).then_some(entry), ())
    })?;
    Ok(id.into())
}

fn issued_before(
    archive: &Archive,
    policy: &Policy,
    holder: PublicKey,
    below: u64,
) -> Result<Option<Issued>, Failure> {
    let shelf = archive.shelf(Some(&policy.application))?;
    let fits = |(issued, standing): &(Issued, Standing)| {
        *standing == Standing::Newest && issued.terms.holder == holder && issued.terms.generation >= below
    };
    Ok(shelf.contracts.into_iter().find(fits).map(|(issued, _)| issued))
}
