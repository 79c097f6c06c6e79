//! `contract history`: what happened to a path.

use clap::Args;
use serde_json::{Value, json};
use strongroom_contracts::DataPath;

use super::Context;
use crate::base::gateway_failure;
use crate::failure::Failure;
use crate::output::{Report, Table, tame};

/// Tell what happened to a path, as far as the undo log reaches
#[derive(Debug, Args)]
pub(super) struct History {
    /// From the data root, such as `users/alice/Mail/inbox`
    #[arg(value_name = "PATH")]
    path: DataPath,
}

impl History {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let base = context.base()?;
        let list = context.connect(&base)?.history(&self.path).map_err(gateway_failure)?;
        let mut table = Table::new(context.style, &["WHEN", "APP", "WHAT", "UNDO", "CONTRACT"]);
        for item in &list {
            table.row([
                context.clock.local(item.at_us / 1_000_000),
                tame(&item.application),
                tame(&item.what),
                if item.kept { "yes" } else { "no" }.to_owned(),
                item.contract.map(|contract| contract.to_string()).unwrap_or_default(),
            ]);
        }
        let human = if list.is_empty() {
            format!("the undo log tells nothing of {}\n", self.path)
        } else {
            table.render("")
        };
        let json: Vec<Value> = list
            .iter()
            .map(|item| {
                json!({
                    "at_us": item.at_us,
                    "application": item.application,
                    "contract": item.contract.map(|contract| contract.to_string()),
                    "what": item.what,
                    "kept": item.kept,
                })
            })
            .collect();
        Ok(Report::new(human, json!({ "path": self.path.as_str(), "history": json })))
    }
}
