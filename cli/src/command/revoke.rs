//! `contract revoke`: make contracts void, and return when the fence holds.
//!
//! This is the button for emergencies: it takes as few steps as it can before the gateway is told, waits for no lock, and
//! does not care whether policies or the archive are in order. What is to be recorded is recorded afterwards.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use strongroom_contracts::{Application, ContractId, FenceReceipt, Subject, Terms};

use super::Context;
use crate::admin::{AdminClient, Generations};
use crate::archive::Archive;
use crate::base::{Base, gateway_failure};
use crate::failure::{Exit, Failure};
use crate::issuing::Issuer;
use crate::output::{Report, count};
use crate::revoking::{self, Held};
use crate::statement::{Statement, subject_words};
use crate::sys::{Pace, set_pace};

/// Make every contract of an application void, or one contract; return when the fence holds
///
/// When this returns with exit code 0, no operation under those contracts can reach the data any more: the gateway's
/// signed receipt says so. Any other exit code means: NOT fenced. If the gateway cannot be reached the signed revocation
/// is kept, and sent by the next command that reaches it.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// The application, or the number of a contract (`c-…`) or of a block of one
    #[arg(value_name = "APP|ID")]
    subject: String,
    /// Say why, for the audit log
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
}

/// What is to be void.
enum Target {
    Contract(ContractId),
    Application(Application),
}

impl Revoke {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let base = context.base()?;
        let issuer = Issuer::open(&base)?;
        let archive = Archive::open(&base)?;
        let target = self.target(&archive)?;
        let (mut client, mut sent) = match context.connect(&base) {
            Ok(client) => (Some(client), Sent::default()),
            Err(failure) => (None, Sent { held: vec![], failure: Some(failure), again: true }),
        };
        let mut warnings = vec![];
        let mut asked = Ok(None);
        let subject = match &target {
            Target::Contract(id) => Subject::Contract(*id),
            Target::Application(application) => {
                if let Some(client) = &mut client {
                    asked = client.generations(application).map(Some);
                }
                let known = asked.as_ref().ok().copied().flatten();
                revoking::all_of(application, below(&base, &archive, application, known, &mut warnings)?)
            }
        };
        let now = context.clock.now();
        let sign = |subject| revoking::sign(&issuer, subject, &self.why, now);
        let mut statements = vec![sign(subject)?];
        // Also after a question that was not answered: the fence matters more. But what went wrong first is what to tell.
        if let Some(client) = &mut client {
            sent.send(client, &issuer, &statements);
            if let (Some(failure), Err(first)) = (&mut sent.failure, asked) {
                *failure = gateway_failure(first);
                sent.again = true;
            }
        }
        if let Target::Contract(id) = target {
            // Looked for only now: reading the archive must not hold up the fence.
            let others = other_terms(&archive, id, now, &mut warnings);
            statements.extend(others.into_iter().map(sign).collect::<Result<Vec<_>, _>>()?);
            if let (Some(client), None) = (&mut client, &sent.failure) {
                sent.send(client, &issuer, &statements);
            }
        }
        let took = context.started.elapsed();
        // What is left is for the record.
        set_pace(Pace::Usual);
        let (done, rest) = statements.split_at(sent.held.len());
        if let Some(failure) = sent.failure {
            self.record(&archive, done, &sent.held).map_err(|other| {
                failure_of(rest, &failure).hint(format!("what was fenced is not on record here: {other}"))
            })?;
            return Err(self.not_fenced(&archive, rest, &failure, sent.again));
        }
        let mut report = report(context, done, &sent.held, took);
        report.warnings = warnings;
        // The fence holds whatever happens here; what goes wrong with the record must not look like a failed revocation.
        report = match self.record(&archive, done, &sent.held) {
            Ok(path) => report.note(format!("receipt, signed by the gateway: {}", path.display())),
            Err(failure) => report.warn(format!("the fence holds, but is not on record here: {failure}")),
        };
        Ok(match done.first().map(|statement| &statement.says.subject) {
            Some(Subject::Application { application, .. }) => {
                report.note(format!("when the guest is clean again: contract reissue {application}"))
            }
            _ => report,
        })
    }

    fn target(&self, archive: &Archive) -> Result<Target, Failure> {
        if let Ok(id) = self.subject.parse() {
            return Ok(Target::Contract(id));
        }
        if let Some(digits) = self.subject.strip_prefix("c-")
            && digits.len() >= 4
            && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
            && let Some(issued) = super::show::find_one(archive, &self.subject)?
        {
            return Ok(Target::Contract(issued.terms.id));
        }
        let application: Result<Application, _> = self.subject.parse();
        application.map(Target::Application).map_err(|error| {
            Failure::bad(error).hint("name an application, or a contract by its number (contract list)")
        })
    }

    /// Returns the file of the first receipt.
    fn record(&self, archive: &Archive, done: &[Statement], held: &[Held]) -> Result<PathBuf, Failure> {
        let lock = archive.lock()?;
        let mut paths = vec![];
        for (statement, held) in done.iter().zip(held) {
            paths.push(revoking::settle(archive, &lock, statement, held)?);
        }
        Ok(paths.into_iter().next().unwrap_or_default())
    }

    fn not_fenced(&self, archive: &Archive, rest: &[Statement], failure: &Failure, again: bool) -> Failure {
        let mut result = failure_of(rest, failure);
        if again {
            let kept = archive.lock().and_then(|lock| {
                let keep = |statement: &Statement| revoking::keep_pending(archive, &lock, statement);
                rest.iter().map(keep).collect::<Result<Vec<PathBuf>, Failure>>()
            });
            result = match kept {
                Ok(paths) => {
                    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                    result
                        .hint(format!("the signed revocation is kept: {}", paths.join(", ")))
                        .hint(format!(
                            "send it as soon as the gateway is back: contract revoke {}",
                            self.subject
                        ))
                        .fact("pending", paths)
                }
                Err(other) => result.hint(format!("the revocation could not be kept either: {other}")),
            };
        }
        if failure.exit() == Exit::Unreachable {
            result = result.hint(
                "to stop the guest now: pause it (virsh suspend GUEST, xl pause GUEST) or cut its network",
            );
        }
        failure.hints().iter().fold(result, |result, hint| result.hint(hint))
    }
}

/// How far the sending came: the first of the statements hold.
#[derive(Default)]
struct Sent {
    held: Vec<Held>,
    failure: Option<Failure>,
    /// Whether it may help to send the rest again.
    again: bool,
}

impl Sent {
    /// Sends the statements that do not hold yet.
    fn send(&mut self, client: &mut AdminClient, issuer: &Issuer, statements: &[Statement]) {
        for statement in statements.iter().skip(self.held.len()) {
            match revoking::send(client, issuer, statement) {
                Ok(one) => self.held.push(one),
                Err(error) => {
                    self.again = error.again();
                    self.failure = Some(error.failure());
                    return;
                }
            }
        }
    }
}

fn subjects_words(statements: &[Statement]) -> String {
    let words: Vec<_> = statements.iter().map(|statement| subject_words(&statement.says.subject)).collect();
    words.join(", ")
}

fn failure_of(rest: &[Statement], failure: &Failure) -> Failure {
    let subject = subjects_words(rest);
    Failure::new(failure.exit(), format!("NOT FENCED: {subject}: {}", failure.message()))
        .fact("fenced", false)
        .fact("subject", subject)
}

fn report(context: &Context, done: &[Statement], held: &[Held], took: Duration) -> Report {
    let subject = subjects_words(done);
    let sum = |part: fn(&FenceReceipt) -> u64| held.iter().map(|held| part(&held.receipt)).sum::<u64>();
    let most =
        |part: fn(&FenceReceipt) -> u64| held.iter().map(|held| part(&held.receipt)).max().unwrap_or(0);
    let (sessions, drained) = (sum(|receipt| receipt.sessions.into()), sum(|receipt| receipt.drained.into()));
    let handles = sum(|receipt| receipt.handles_closed.into());
    let (took_ms, gateway_us) = (took.as_secs_f64() * 1e3, sum(|receipt| receipt.took_us));
    let last_operation = most(|receipt| receipt.last_operation);
    let json = json!({
        "fenced": true,
        "subject": subject,
        "took_ms": took_ms,
        "gateway_took_us": gateway_us,
        "fenced_at_us": most(|receipt| receipt.fenced_at_us),
        "sessions": sessions,
        "drained": drained,
        "handles_closed": handles,
        "last_operation": last_operation,
        "generation": most(|receipt| receipt.generation),
        "gateway": held.first().map(|held| held.receipt.gateway.to_string()),
    });
    let human = format!(
        "{}\n  {took_ms:.1} ms from command to fence ({:.1} ms in the gateway)\n  {}, {}, {}{}\n",
        context.style.green(&format!("fenced: {subject}")),
        gateway_us as f64 / 1e3,
        count(sessions, "session cut", "sessions cut"),
        count(drained, "operation drained", "operations drained"),
        count(handles, "handle closed", "handles closed"),
        match last_operation {
            0 => String::new(),
            number => format!(", last operation let through: {number}"),
        },
    );
    Report::new(human, json)
}

/// Every other contract of the same holder that has not expired: to the person who revokes one, the terms of a renewed
/// contract are one thing, and the older ones would still open the door.
fn other_terms(archive: &Archive, id: ContractId, now: u64, warnings: &mut Vec<String>) -> Vec<Subject> {
    let found = archive.find(&id.to_string()).and_then(|found| match found.into_iter().next() {
        None => Ok(None),
        Some(named) => Ok(Some((archive.shelf(Some(&named.terms.application))?, named.terms))),
    });
    match found {
        Ok(Some((shelf, named))) => {
            let other =
                |terms: &&Terms| terms.id != id && terms.holder == named.holder && terms.expires > now;
            let terms = shelf.contracts.iter().map(|(issued, _)| &issued.terms);
            terms.filter(other).map(|terms| Subject::Contract(terms.id)).collect()
        }
        Ok(None) => {
            warnings.push(format!(
                "{id} is not in the archive: the contract or block of that number alone was made void"
            ));
            vec![]
        }
        Err(failure) => {
            warnings.push(format!(
                "other terms of the same contract, if there are any, are still valid: {failure}"
            ));
            vec![]
        }
    }
}

/// The lowest generation that stays valid: above everything issued, as far as this side and the gateway know.
fn below(
    base: &Base,
    archive: &Archive,
    application: &Application,
    known: Option<Generations>,
    warnings: &mut Vec<String>,
) -> Result<u64, Failure> {
    let record = archive.record(application).unwrap_or_else(|failure| {
        warnings.push(format!("the archive does not help: {failure}"));
        None
    });
    let at_gateway = known.is_some_and(|known| known != Generations { lowest: 1, highest: 0 });
    if record.is_none() && !at_gateway && !has_policy(base, application) {
        return Err(unknown(base, archive, application));
    }
    Ok(record.unwrap_or_default().above_all(known.unwrap_or_default()))
}

fn has_policy(base: &Base, application: &Application) -> bool {
    // Asked only if nothing else knows the application; a policy with mistakes counts.
    base.policies().is_ok_and(|policies| {
        policies.get(application).is_some() || policies.disabled().contains(&application)
    })
}

fn unknown(base: &Base, archive: &Archive, application: &Application) -> Failure {
    let policies = base.policies().unwrap_or_default();
    let mut names: Vec<String> = policies.policies().keys().map(Application::to_string).collect();
    names.extend(archive.applications().unwrap_or_default());
    names.sort();
    names.dedup();
    let failure =
        Failure::not_found(format!("no contract was ever issued to `{application}`, and no policy names it"))
            .fact("fenced", false);
    match strongroom_policy::closest(application.as_str(), names.iter().map(String::as_str)) {
        Some(meant) => failure.hint(format!("did you mean: contract revoke {meant}")),
        None if names.is_empty() => failure,
        None => failure.hint(format!("known applications: {}", names.join(", "))),
    }
}
