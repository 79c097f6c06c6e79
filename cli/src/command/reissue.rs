//! `contract reissue`: a new generation, which voids all older ones.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use strongroom_contracts::Application;

use super::Context;
use crate::archive::{Archive, Lock};
use crate::base::mistakes;
use crate::failure::Failure;
use crate::files::{self, Existing, PUBLIC};
use crate::issuing::{self, Counter, Issuer, Wish};
use crate::keys::KeyArgument;
use crate::output::Report;
use crate::revoking::{self, SendError};
use crate::statement::Statement;
use crate::view::View;

/// Issue a new generation of an application's contracts; older ones become void first
///
/// Each holder of the last generation gets a contract of the same grants and term, within the policy as it is now, and
/// the gateway hands it over: running mounts come back to life by themselves. A contract that was revoked by its number
/// is not issued again. If the policy denies one of them, nothing is changed.
#[derive(Debug, Args)]
pub(super) struct Reissue {
    /// The application
    #[arg(value_name = "APP")]
    application: Application,
    /// Issue to this holder instead of the last ones, with what the newest contract granted
    #[arg(long, value_name = "KEY")]
    holder: Option<KeyArgument>,
    /// Write the contract to this file too, if there is one holder
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long, requires = "out")]
    force: bool,
    /// Say why, for the audit log
    #[arg(long, value_name = "TEXT", default_value = "reissued")]
    why: String,
}

impl Reissue {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let base = context.base()?;
        let policies = base.policies()?;
        let policy = issuing::policy_of(&policies, &self.application)?;
        let (issuer, archive) = (Issuer::open(&base)?, Archive::open(&base)?);
        let existing = if self.force { Existing::Replace } else { Existing::Keep };
        self.out.as_deref().map_or(Ok(()), |out| files::check_free(out, existing))?;
        let mut wishes: Vec<Wish> = issuing::last_of(&archive, &self.application)?
            .iter()
            .map(|issued| Wish::again(issued, policy))
            .collect();
        if let Some(holder) = &self.holder {
            let holder = holder.read("holder's public key")?;
            wishes = wishes.into_iter().next_back().map(|wish| Wish { holder, ..wish }).into_iter().collect();
        }
        if self.out.is_some() && wishes.len() != 1 {
            return Err(Failure::bad(format!("--out: `{}` has {} holders", self.application, wishes.len()))
                .hint(
                    "leave --out away: the gateway hands the contracts over, and the archive has the files",
                ));
        }
        for wish in &wishes {
            issuer.terms(policy, wish, 1, context.clock.now()).map_err(|failure| {
                failure.hint(format!(
                    "nothing was changed; to cut it off: contract revoke {0}; then: contract grant {0} --holder {1}",
                    self.application, wish.holder
                ))
            })?;
        }

        let opened = context
            .connect(&base)
            .and_then(|client| Counter::open(client, &archive, &issuer, context.clock.now()));
        let mut counter = opened
            .map_err(|failure| failure.hint("nothing was issued, and older contracts are still valid"))?;
        let lock = archive.lock()?;
        let known = counter.generations(&self.application)?;
        let record = archive.record(&self.application)?.unwrap_or_default();
        let generation = record.above_all(known);
        let subject = revoking::all_of(&self.application, generation);
        let statement = revoking::sign(&issuer, subject, &self.why, context.clock.now())?;
        let sent = revoking::send(&mut counter.client, &issuer, &statement);
        let held = sent.map_err(|error| not_void(&archive, &lock, &statement, error))?;
        revoking::settle(&archive, &lock, &statement, &held)?;

        let (mut human, mut contracts, mut files) = (String::new(), vec![], vec![]);
        for wish in &wishes {
            let terms = issuer.terms(policy, wish, generation, counter.now)?;
            let made =
                issuing::make(&issuer, &archive, &lock, terms, Some(&mut counter)).map_err(|failure| {
                    failure.hint(format!(
                        "older contracts are void already; issue again: contract reissue {}",
                        self.application
                    ))
                })?;
            if let Some(out) = &self.out {
                files::write(out, &made.text()?, PUBLIC, existing)?;
            }
            let view = View::claimed(&made.chain).map_err(Failure::other)?;
            contracts.push(view.to_json());
            human.push_str(&view.render(&context.clock, context.style));
            files.push(made.archived.display().to_string());
        }
        let json = json!({
            "application": self.application.as_str(),
            "generation": generation,
            "sessions_cut": held.receipt.sessions,
            "contracts": contracts,
            "archived": files,
        });
        let mut report = Report::new(human, json).note(format!(
            "generation {generation}: older contracts of {} are void; the gateway hands the new ones to their holders",
            self.application
        ));
        report.warnings = mistakes(&policies);
        report.warnings.append(&mut counter.warnings);
        Ok(report)
    }
}

/// The revocation that goes before may or may not hold; it is kept, and sent before anything is issued.
fn not_void(archive: &Archive, lock: &Lock, statement: &Statement, error: SendError) -> Failure {
    let again = error.again();
    let failure = error.failure().hint("older contracts are not known to be void, and nothing was issued");
    if !again {
        return failure;
    }
    match revoking::keep_pending(archive, lock, statement) {
        Ok(path) => failure
            .hint(format!("the signed revocation is kept, and sent by the next attempt: {}", path.display())),
        Err(other) => failure.hint(format!("the revocation could not be kept either: {other}")),
    }
}
