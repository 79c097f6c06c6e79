//! `contract grant`: a contract, within the policy.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use strongroom_contracts::{Application, ContractId, Grant as Granted, Terms};

use super::Context;
use crate::archive::{Archive, Issued, Standing};
use crate::base::{Base, mistakes};
use crate::failure::Failure;
use crate::files::{self, Existing, PUBLIC};
use crate::issuing::{self, Counter, Issuer, Made, Wish};
use crate::keys::KeyArgument;
use crate::narrowing::{self, NarrowArgs};
use crate::output::Report;
use crate::view::View;

/// Issue a contract for an application, within its policy
///
/// The contract is written to --out (or the standard output), archived in the base directory, and deposited at the
/// gateway, which hands it to the holder by itself. If the gateway cannot be reached nothing is issued: with --offline,
/// the contract is issued all the same, and the holder's copy of the file must be brought to the app guest.
#[derive(Debug, Args)]
pub(super) struct Grant {
    /// The application; its policy is the ceiling
    #[arg(value_name = "APP")]
    application: Application,
    /// The holder's public key, as `contract keygen` printed it, or its .pub file
    #[arg(long, value_name = "KEY")]
    holder: KeyArgument,
    /// Grant for this long [default: as long as the policy allows]
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::narrowing::duration)]
    lifetime: Option<u64>,
    #[command(flatten)]
    narrow: NarrowArgs,
    /// Write the contract to this file [default: the standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long, requires = "out")]
    force: bool,
    /// Do not deposit the contract at the gateway
    #[arg(long)]
    offline: bool,
}

impl Grant {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let base = context.base()?;
        let policies = base.policies()?;
        let policy = issuing::policy_of(&policies, &self.application)?;
        let wish = Wish {
            holder: self.holder.read("holder's public key")?,
            lifetime_secs: self.lifetime,
            narrow: narrowing::narrowings(policy, &self.narrow)?,
        };
        let issuer = Issuer::open(&base)?;
        let existing = if self.force { Existing::Replace } else { Existing::Keep };
        self.out.as_deref().map_or(Ok(()), |out| files::check_free(out, existing))?;
        // What the policy denies is denied before anyone else is asked.
        issuer.terms(policy, &wish, 1, context.clock.now())?;

        let archive = Archive::open(&base)?;
        let mut counter = match self.offline {
            true => None,
            false => Some(
                self.counter(context, &base, &archive, &issuer)
                    .map_err(|failure| failure.hint("nothing was issued"))?,
            ),
        };
        let lock = archive.lock()?;
        let generation = issuing::next_generation(&archive, &self.application, counter.as_mut())?;
        let now = counter.as_ref().map_or(context.clock.now(), |counter| counter.now);
        let terms = issuer.terms(policy, &wish, generation, now)?;
        let wider = still_wider(&archive, &terms, now)?;
        let made = issuing::make(&issuer, &archive, &lock, terms, counter.as_mut())?;
        let text = made.text()?;
        if let Some(out) = &self.out {
            files::write(out, &text, PUBLIC, existing).map_err(|failure| {
                failure.hint(format!("the contract is issued; copy it from {}", made.archived.display()))
            })?;
        }
        let mut warnings = mistakes(&policies);
        warnings.extend(counter.map_or(vec![], |counter| counter.warnings));
        warnings.extend(wider.into_iter().map(|id| {
            format!("an earlier contract of this holder allows more and is still valid; to make it void: contract revoke {id}, then grant again")
        }));
        self.report(context, &made, text, warnings)
    }

    fn counter(
        &self,
        context: &Context,
        base: &Base,
        archive: &Archive,
        issuer: &Issuer,
    ) -> Result<Counter, Failure> {
        let client = context.connect(base).map_err(|failure| {
            failure.hint("to issue without the gateway, and carry the file over: add --offline")
        })?;
        Counter::open(client, archive, issuer, context.clock.now())
    }

    fn report(
        &self,
        context: &Context,
        made: &Made,
        text: String,
        warnings: Vec<String>,
    ) -> Result<Report, Failure> {
        let view = View::claimed(&made.chain).map_err(Failure::other)?;
        let mut json = view.to_json();
        if let Value::Object(members) = &mut json {
            members.insert("archived".into(), made.archived.display().to_string().into());
            members.insert("file".into(), json!(self.out.as_ref().map(|out| out.display().to_string())));
            members.insert("deposited".into(), made.renewed.is_some().into());
            members.insert("sessions_renewed".into(), json!(made.renewed));
            if self.out.is_none() {
                members.insert("armour".into(), text.clone().into());
            }
        }
        let summary = view.render(&context.clock, context.style);
        let mut report = match &self.out {
            Some(out) => Report::new(summary, json).note(format!("wrote {}", out.display())),
            None => Report::new(text, json).note(summary.trim_end()),
        };
        report.warnings = warnings;
        Ok(match made.renewed {
            None => report.note("not at the gateway (--offline): bring the file to the app guest"),
            Some(_) => {
                report.note("deposited at the gateway: the holder can mount now, with or without the file")
            }
        })
    }
}

/// The newest contract of the same holder, if it has not expired and allows something that the new terms do not.
fn still_wider(archive: &Archive, terms: &Terms, now: u64) -> Result<Option<ContractId>, Failure> {
    let shelf = archive.shelf(Some(&terms.application))?;
    let covers =
        |kept: &Granted, grant: &Granted| kept.data.contains(&grant.data) && kept.rights.covers(grant.rights);
    let within = |grant: &Granted| terms.grants.iter().any(|kept| covers(kept, grant));
    let wider = |(issued, standing): &&(Issued, Standing)| {
        *standing == Standing::Newest
            && issued.terms.holder == terms.holder
            && issued.terms.expires > now
            && !issued.terms.grants.iter().all(within)
    };
    Ok(shelf.contracts.iter().find(wider).map(|(issued, _)| issued.terms.id))
}
