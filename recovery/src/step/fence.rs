//! Fence: every contract of the application is void, by the gateway's signed word.
//!
//! The generation below which contracts are void is on record before the gateway is told: a repetition says the same, and
//! does not void what a person may have issued since.

use std::sync::Arc;

use serde_json::json;
use strongroom_base::Failure;
use strongroom_base::admin::AdminClient;
use strongroom_base::archive::Archive;
use strongroom_base::base::gateway_failure;
use strongroom_base::files::{self, Existing, SECRET};
use strongroom_base::incident::{Entry, Incident, Phase};
use strongroom_base::issuing::Issuer;
use strongroom_base::revoking;

use crate::daemon::Daemon;
use crate::incident::{Open, StepResult};
use crate::journal::{facts, now_us};
use crate::log::say;

/// The longest reason that a revocation carries, in bytes, with room for the incident's number.
const MAX_WHY: usize = 400;

pub(super) fn take(daemon: &Arc<Daemon>, open: &Arc<Open>) -> StepResult {
    let now = open.incident();
    let issuer = Issuer::open(&daemon.base)?;
    let archive = Archive::open(&daemon.base)?;
    let mut client = match daemon.connect() {
        Ok(client) => client,
        Err(failure) => {
            keep_pending(open, &archive, &issuer, None);
            return Err(failure.into());
        }
    };
    keep_sessions(open, &now, &mut client);
    let below = below(open, &now, &archive, Some(&mut client))?;
    let statement =
        revoking::sign(&issuer, revoking::all_of(&now.application, below), &why(&now), now_us() / 1_000_000)?;
    let held = match revoking::send(&mut client, &issuer, &statement) {
        Ok(held) => held,
        Err(error) => {
            if error.again() {
                keep_pending(open, &archive, &issuer, Some(below));
            }
            return Err(error.failure().into());
        }
    };
    // The fence holds; what goes wrong with the archive is said, and must not look like a fence that does not hold.
    let settled = archive.lock().and_then(|lock| revoking::settle(&archive, &lock, &statement, &held));
    let receipt = match settled {
        Ok(path) => path.display().to_string(),
        Err(failure) => {
            say(&format!("incident {}: the fence holds, but is not in the archive: {failure}", open.number));
            String::new()
        }
    };
    // The gateway's own verdict may have been faster than this.
    let by_gateway = held.receipt.sessions == 0 && now.cause.whose.is_some();
    Ok(facts([
        ("below", below.into()),
        ("sessions", held.receipt.sessions.into()),
        ("over_before", by_gateway.into()),
        ("drained", held.receipt.drained.into()),
        ("handles_closed", held.receipt.handles_closed.into()),
        ("gateway_took_us", held.receipt.took_us.into()),
        ("fenced_at_us", held.receipt.fenced_at_us.into()),
        ("receipt", receipt.into()),
    ]))
}

/// The lowest generation that stays valid: decided once for each incident.
fn below(
    open: &Open,
    now: &Incident,
    archive: &Archive,
    client: Option<&mut AdminClient>,
) -> Result<u64, Failure> {
    if let Some(below) = now.fact(Phase::Fence, "below").and_then(|below| below.as_u64()) {
        return Ok(below);
    }
    // A question that is not answered must not hold the fence up: what this side knows is enough in all but rare cases.
    let known = client.and_then(|client| client.generations(&now.application).ok()).unwrap_or_default();
    let record = archive.record(&now.application).unwrap_or_else(|failure| {
        say(&format!("incident {}: the archive does not help: {failure}", open.number));
        None
    });
    let below = record.unwrap_or_default().above_all(known);
    open.put(Entry::Decided { phase: Phase::Fence, facts: facts([("below", below.into())]) })?;
    Ok(below)
}

fn why(now: &Incident) -> String {
    let mut why = format!("incident {}: {}", now.number, now.cause.text);
    let end = (0..=MAX_WHY.min(why.len())).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0);
    why.truncate(end);
    why
}

/// Who was there when it began. After the fence nobody is, and the gateway may have fenced by its own verdict already: the
/// session that the alert was about is kept all the same, and the records of the gateway tell its addresses.
fn keep_sessions(open: &Open, now: &Incident, client: &mut AdminClient) {
    let path = now.dir.join("evidence/sessions.json");
    if path.exists() {
        return;
    }
    let kept = client.sessions().map_err(gateway_failure).and_then(|sessions| {
        let mut list: Vec<_> = sessions
            .iter()
            .filter(|session| session.application == now.application)
            .map(|session| {
                json!({
                    "session": session.session.to_string(),
                    "contract": session.contract.to_string(),
                    "generation": session.generation,
                    "holder": session.holder.to_string(),
                    "addresses": session.addresses,
                    "since": session.since,
                    "operations": session.operations,
                    "denied": session.denied,
                    "bytes_read": session.bytes_read,
                    "bytes_written": session.bytes_written,
                })
            })
            .collect();
        if let Some((session, contract)) = &now.cause.whose
            && !list.iter().any(|one| one.get("session").is_some_and(|known| known == session))
        {
            list.push(json!({ "session": session, "contract": contract, "over": true }));
        }
        files::write(&path, &format!("{:#}\n", json!({ "sessions": list })), SECRET, Existing::Replace)
    });
    if let Err(failure) = kept {
        say(&format!("incident {}: its sessions are not kept: {failure}", open.number));
    }
}

/// A fence that is not known to hold is sent before anything else is issued, also by `contract`.
fn keep_pending(open: &Open, archive: &Archive, issuer: &Issuer, below: Option<u64>) {
    let now = open.incident();
    let attempt = || {
        let below = match below {
            Some(below) => below,
            None => self::below(open, &now, archive, None)?,
        };
        if now.decided.iter().any(|(_, facts)| facts.contains_key("pending")) {
            return Ok(());
        }
        let subject = revoking::all_of(&now.application, below);
        let statement = revoking::sign(issuer, subject, &why(&now), now_us() / 1_000_000)?;
        let path = revoking::keep_pending(archive, &archive.lock()?, &statement)?;
        let pending = facts([("pending", path.display().to_string().into())]);
        open.put(Entry::Decided { phase: Phase::Fence, facts: pending })
    };
    if let Err(failure) = attempt() {
        say(&format!("incident {}: the revocation could not be kept: {failure}", open.number));
    }
}
