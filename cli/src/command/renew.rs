//! `contract renew`: the next term of contracts, while the policy lasts.

use clap::Args;
use serde_json::{Value, json};
use strongroom_contracts::Application;
use strongroom_policy::PolicySet;

use super::Context;
use crate::archive::{Archive, Issued, Standing};
use crate::base::mistakes;
use crate::failure::{Exit, Failure};
use crate::issuing::{self, Counter, Issuer, Made, Wish};
use crate::output::{Report, Table, failure_json};

/// Issue the next term of contracts, of the same generation, while the policy lasts
///
/// Renews the newest contract of each holder, with the same grants and the same length, within the policy as it is now;
/// the gateway hands it over, and mounts go on. Contracts that the policy no longer allows are left to expire. Meant for
/// a systemd timer in the base domain: contract renew --all --within 4h
#[derive(Debug, Args)]
pub(super) struct Renew {
    /// The application
    #[arg(value_name = "APP", required_unless_present = "all")]
    application: Option<Application>,
    /// Renew the contracts of all applications
    #[arg(long, conflicts_with = "application")]
    all: bool,
    /// Renew only what expires within this time [default: whatever it is]
    #[arg(long, value_name = "DURATION", value_parser = crate::narrowing::duration)]
    within: Option<u64>,
}

/// What became of one contract.
enum Outcome {
    Renewed(Box<Made>),
    Skipped(Failure),
    NotDue,
}

impl Renew {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let base = context.base()?;
        let policies = base.policies()?;
        let (issuer, archive) = (Issuer::open(&base)?, Archive::open(&base)?);
        let shelf = archive.shelf(self.application.as_ref())?;
        let newest = shelf.contracts.into_iter().filter(|(_, standing)| *standing == Standing::Newest);
        let list: Vec<Issued> = newest.map(|(issued, _)| issued).collect();
        if let (Some(application), []) = (&self.application, list.as_slice()) {
            return Err(Failure::not_found(format!("there is no contract of `{application}` to renew")).hint(
                format!("issue one: contract grant {application} --holder KEY; after a revocation: contract reissue {application}"),
            ));
        }
        let opened = context
            .connect(&base)
            .and_then(|client| Counter::open(client, &archive, &issuer, context.clock.now()));
        let mut counter = opened.map_err(|failure| failure.hint("nothing was renewed"))?;
        let (mut outcomes, mut gone) = (vec![], None::<String>);
        for issued in list {
            let outcome = match &gone {
                Some(message) => Outcome::Skipped(Failure::new(Exit::Unreachable, message)),
                None => self.renew(&policies, &issuer, &archive, &mut counter, &issued),
            };
            if let Outcome::Skipped(failure) = &outcome
                && failure.exit() == Exit::Unreachable
            {
                // The others would only wait for the same.
                gone.get_or_insert_with(|| failure.message().to_owned());
            }
            outcomes.push((issued, outcome));
        }
        let mut report = self.report(context, &outcomes);
        report.warnings = mistakes(&policies);
        report.warnings.extend(shelf.warnings);
        report.warnings.append(&mut counter.warnings);
        Ok(report)
    }

    fn renew(
        &self,
        policies: &PolicySet,
        issuer: &Issuer,
        archive: &Archive,
        counter: &mut Counter,
        issued: &Issued,
    ) -> Outcome {
        let due = |within: u64| issued.terms.expires <= counter.now.saturating_add(within);
        if !self.within.is_none_or(due) {
            return Outcome::NotDue;
        }
        let mut attempt = || {
            let policy = issuing::policy_of(policies, &issued.terms.application)?;
            let wish = Wish::again(issued, policy);
            let terms = issuer.terms(policy, &wish, issued.terms.generation, counter.now)?;
            let lock = archive.lock()?;
            let made = issuing::make(issuer, archive, &lock, terms, Some(counter))?;
            archive.prune(&lock, &issued.terms.application, counter.now)?;
            Ok(made)
        };
        match attempt() {
            Ok(made) => Outcome::Renewed(Box::new(made)),
            Err(failure) => Outcome::Skipped(failure),
        }
    }

    fn report(&self, context: &Context, outcomes: &[(Issued, Outcome)]) -> Report {
        let style = context.style;
        let mut table = Table::new(style, &["APP", "CONTRACT", "RESULT", ""]);
        let mut worst = Exit::Done;
        let mut renewed = 0;
        let mut list: Vec<Value> = vec![];
        for (issued, outcome) in outcomes {
            let (application, old) = (issued.terms.application.to_string(), issued.terms.id.to_string());
            let mut json = json!({ "application": application, "old_contract": old });
            let (result, text) = match outcome {
                Outcome::Renewed(made) => {
                    renewed += 1;
                    json["contract"] = made.terms.id.to_string().into();
                    json["expires"] = made.terms.expires.into();
                    json["sessions_renewed"] = json!(made.renewed);
                    let until = context.clock.show(made.terms.expires);
                    table.row([
                        application,
                        made.terms.id.to_string(),
                        style.green("renewed"),
                        format!("until {until}"),
                    ]);
                    ("renewed", None)
                }
                Outcome::Skipped(failure) => {
                    // A policy that no longer allows a contract is a decision, and for --all not an error.
                    let decided = matches!(failure.exit(), Exit::Denied | Exit::NotFound);
                    if !(self.all && decided) {
                        worst = worst.max(failure.exit());
                    }
                    json["reason"] = failure_json(failure);
                    ("skipped", Some(failure.message().to_owned()))
                }
                Outcome::NotDue => {
                    json["expires"] = issued.terms.expires.into();
                    ("not due", Some(format!("until {}", context.clock.show(issued.terms.expires))))
                }
            };
            if let Some(text) = text {
                let old = issued.terms.id.to_string();
                table.row([issued.terms.application.to_string(), old, style.yellow(result), text]);
            }
            json["result"] = result.into();
            list.push(json);
        }
        let human = if outcomes.is_empty() { "nothing to renew\n".to_owned() } else { table.render("") };
        Report::new(human, json!({ "renewed": renewed, "contracts": list })).exit(worst)
    }
}
