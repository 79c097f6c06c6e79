//! `contract policy diff`: what changes in effective capabilities.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use strongroom_policy::{Direction, diff};

use crate::base::{mistakes, read_policies};
use crate::command::Context;
use crate::failure::Failure;
use crate::output::Report;

/// Compare two versions of policy files by what they permit, never by their text
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// The old policy directory, or one file
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The new policy directory, or one file
    #[arg(value_name = "NEW")]
    new: PathBuf,
}

impl Diff {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let (old, new) = (read_policies(&self.old)?, read_policies(&self.new)?);
        let changes = diff(&old, &new);
        let style = context.style;
        let mut human = String::new();
        for change in &changes {
            let mark = match change.direction {
                Direction::Wider => style.red("+"),
                Direction::Narrower => style.green("-"),
                Direction::Sideways => style.yellow("~"),
            };
            let place = change.place.as_ref().map_or(String::new(), |place| style.dim(&format!("  {place}")));
            human.push_str(&format!("{mark} {change}{place}\n"));
        }
        if changes.is_empty() {
            human.push_str("no change in what is permitted\n");
        }
        let wider = changes.iter().any(|change| change.direction == Direction::Wider);
        let mut report = Report::new(human, json!({ "changes": changes, "wider": wider }));
        report.warnings = mistakes(&old);
        report.warnings.extend(mistakes(&new));
        Ok(report)
    }
}
