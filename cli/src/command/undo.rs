//! `contract undo`: takes back what an application changed.

use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use strongroom_base::incident::{Incident, dir_of};
use strongroom_contracts::{Application, ContractId, DataPath};
use strongroom_protocol::admin::{UndoItem, UndoProgress, UndoRequest, UndoVerdict};

use super::Context;
use crate::admin::AdminClient;
use crate::base::gateway_failure;
use crate::failure::{Exit, Failure};
use crate::narrowing::duration;
use crate::output::{Report, Table, count, tame};

/// How often it is asked how far the undo is.
const POLL: Duration = Duration::from_millis(100);
/// Restored paths that are listed; all are in `--json`.
const MOST_LISTED: usize = 40;

/// Take back what an application changed, newest first; what others changed since is kept
#[derive(Debug, Args)]
#[command(
    after_help = "What was restored, kept or is gone is told for each path. An undo can be undone: --undo ID."
)]
pub(super) struct Undo {
    /// Whose changes
    #[arg(value_name = "APP")]
    application: Application,
    /// Those of the last so long, such as `15m`; with --incident, since so long before its alert
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<u64>,
    /// Only those under this contract
    #[arg(long, value_name = "ID")]
    contract: Option<ContractId>,
    /// Not the application's changes, but what this undo did to them
    #[arg(long, value_name = "ID", conflicts_with = "contract")]
    undo: Option<ContractId>,
    /// Only those under the contracts that this incident made void, since so long before its alert as its policy said
    #[arg(long, value_name = "N", conflicts_with_all = ["contract", "undo"])]
    incident: Option<u64>,
    /// Only at or below this path, from the data root
    #[arg(long, value_name = "PATH")]
    path: Option<DataPath>,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Undo {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        if self.since.is_none() && self.contract.is_none() && self.undo.is_none() && self.incident.is_none() {
            return Err(Failure::bad("how far back is not said")
                .hint("the last quarter of an hour: --since 15m")
                .hint("everything under one contract: --contract ID (`contract list` shows them)")
                .hint("what an incident was about: --incident N (`contract incidents` shows them)"));
        }
        let base = context.base()?;
        let incident =
            self.incident.map(|number| self.of_incident(&base.incidents_dir(), number)).transpose()?;
        let mut client = context.connect(&base)?;
        // The gateway's clock tells when changes were made.
        let now = client.status().map_err(gateway_failure)?.now;
        let request = UndoRequest {
            application: self.application.clone(),
            contract: self.contract,
            undo: self.undo,
            below: incident.map(|(below, _)| below),
            since: match (incident, self.since) {
                (Some((_, since)), _) => since,
                (None, Some(secs)) => now.saturating_sub(secs),
                (None, None) => 0,
            },
            path: self.path.clone(),
            dry_run: self.dry_run,
        };
        let run = client.undo(request).map_err(gateway_failure)?;
        let progress = wait(context, &mut client, run)?;
        if let Some(why) = &progress.failed {
            let exit =
                if why.contains("cannot be taken back any more") { Exit::NotFound } else { Exit::Other };
            return Err(Failure::new(exit, tame(why)).fact("undo", run.to_string()));
        }
        let items = client.undo_items(run).map_err(gateway_failure)?;
        Ok(self.render(context, run, &progress, &items))
    }

    /// The generation below which an incident made contracts void, and since when it goes back, Unix seconds.
    fn of_incident(&self, dir: &Path, number: u64) -> Result<(u64, u64), Failure> {
        let path = dir_of(dir, number);
        if !path.exists() {
            return Err(Failure::not_found(format!("there is no incident {number}"))
                .hint("those that there are: contract incidents"));
        }
        let found = Incident::read(&path)?;
        if found.application != self.application {
            return Err(Failure::bad(format!(
                "incident {number} is about `{}`, not about `{}`",
                found.application, self.application
            ))
            .hint(format!("contract undo {} --incident {number}", found.application)));
        }
        let below = found.fenced_below().ok_or_else(|| {
            Failure::bad(format!("incident {number} has fenced nothing yet"))
                .hint(format!("how it stands: contract incidents {number}"))
        })?;
        let secs = self.since.or(found.undo_secs).ok_or_else(|| {
            Failure::bad(format!("incident {number} does not say how far back: its steps had no `undo`"))
                .hint("since a quarter of an hour before its alert: --since 15m")
        })?;
        Ok((below, found.reach(secs)))
    }

    fn render(
        &self,
        context: &Context,
        run: ContractId,
        progress: &UndoProgress,
        items: &[UndoItem],
    ) -> Report {
        let of = |verdict| items.iter().filter(move |item| item.verdict == verdict);
        let number = |verdict| of(verdict).count();
        let (restored, kept) = (number(UndoVerdict::Restored), number(UndoVerdict::Kept));
        let (expired, failed) = (number(UndoVerdict::Expired), number(UndoVerdict::Failed));
        let mut table = Table::new(context.style, &["", "PATH", "NOTE"]);
        let mut row = |item: &UndoItem| {
            let beside = item.beside.as_ref().map(|path| format!("the old version is {}", text(path)));
            let why = Some(tame(&item.why)).filter(|why| !why.is_empty());
            let note = [why, beside].into_iter().flatten().collect::<Vec<_>>().join("; ");
            table.row([word(item.verdict).to_owned(), text(&item.path), note]);
        };
        of(UndoVerdict::Failed)
            .chain(of(UndoVerdict::Expired))
            .chain(of(UndoVerdict::Kept))
            .for_each(&mut row);
        of(UndoVerdict::Restored).take(MOST_LISTED).for_each(&mut row);
        let mut human = if items.is_empty() { String::new() } else { table.render("") };
        if restored > MOST_LISTED {
            human += &format!("restored … and {} more (all with --json)\n", restored - MOST_LISTED);
        }
        human += &if items.is_empty() && progress.expired {
            format!("what {} changed there cannot be taken back any more\n", self.application)
        } else if items.is_empty() {
            format!("{} changed nothing there that is still to be taken back\n", self.application)
        } else {
            let would = if self.dry_run { "would be " } else { "" };
            format!(
                "{} {would}restored, {kept} kept, {expired} expired, {failed} failed\n",
                count(restored as u64, "path", "paths")
            )
        };
        let json: Vec<Value> = items
            .iter()
            .map(|item| {
                json!({
                    "path": text(&item.path),
                    "verdict": word(item.verdict),
                    "beside": item.beside.as_ref().map(|path| text(path)),
                    "why": item.why,
                })
            })
            .collect();
        let mut report = Report::new(
            human,
            json!({
                "undo": run.to_string(),
                "application": self.application.as_str(),
                "since": progress.since,
                "dry_run": self.dry_run,
                "complete": !progress.expired,
                "restored": restored, "kept": kept, "expired": expired, "failed": failed,
                "paths": json,
            }),
        );
        if progress.expired {
            report =
                report.warn("older changes of that time are forgotten: the undo log does not reach that far");
        }
        if !self.dry_run && !items.is_empty() {
            report =
                report.note(format!("to take this back: contract undo {} --undo {run}", self.application));
        }
        let none_left = progress.expired && expired == items.len();
        report.exit(match (failed, none_left) {
            (0, false) => Exit::Done,
            (0, true) => Exit::NotFound,
            _ => Exit::Other,
        })
    }
}

/// Waits for the end, and shows how far it is on a terminal.
fn wait(context: &Context, client: &mut AdminClient, run: ContractId) -> Result<UndoProgress, Failure> {
    let bar =
        if stderr().is_terminal() && !context.json { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("undoing {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    loop {
        let (progress, _) = client.undo_progress(run, u64::MAX).map_err(gateway_failure)?;
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        if progress.finished {
            bar.finish_and_clear();
            return Ok(progress);
        }
        std::thread::sleep(POLL);
    }
}

fn text(path: &[u8]) -> String {
    tame(&String::from_utf8_lossy(path))
}

fn word(verdict: UndoVerdict) -> &'static str {
    match verdict {
        UndoVerdict::Restored => "restored",
        UndoVerdict::Kept => "kept",
        UndoVerdict::Expired => "expired",
        UndoVerdict::Failed => "failed",
    }
}
