//! `contract blast`: what an application touched, and who has read that since.

use clap::Args;
use serde_json::{Value, json};
use strongroom_contracts::Application;

use super::Context;
use crate::base::gateway_failure;
use crate::failure::Failure;
use crate::narrowing::duration;
use crate::output::{Report, Table, count, tame};

/// List what an application touched, and which others have read since what it wrote
#[derive(Debug, Args)]
pub(super) struct Blast {
    /// Whose
    #[arg(value_name = "APP")]
    application: Application,
    /// In the last so long, such as `15m`
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: u64,
}

impl Blast {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let base = context.base()?;
        let mut client = context.connect(&base)?;
        let now = client.status().map_err(gateway_failure)?.now;
        let since = now.saturating_sub(self.since);
        let list = client.blast(&self.application, since).map_err(gateway_failure)?;
        let text = |path: &[u8]| tame(&String::from_utf8_lossy(path));
        let names = |list: &[(String, u64)]| {
            let named =
                |(name, at): &(String, u64)| format!("{} ({})", tame(name), context.clock.relative(*at));
            list.iter().map(named).collect::<Vec<_>>().join(", ")
        };
        let mut table =
            Table::new(context.style, &["PATH", "WHAT", "LAST", "READ SINCE BY", "SENT AHEAD TO"]);
        for item in &list {
            table.row([
                text(&item.path),
                item.what.join(", "),
                context.clock.relative(item.last),
                names(&item.readers),
                names(&item.sent_ahead),
            ]);
        }
        let human = if list.is_empty() {
            format!("{} touched nothing in that time\n", self.application)
        } else {
            format!("{}{}\n", table.render(""), count(list.len() as u64, "path", "paths"))
        };
        let readers = |list: &[(String, u64)]| -> Vec<Value> {
            list.iter().map(|(name, at)| json!({ "application": name, "at": at })).collect()
        };
        let json: Vec<Value> = list
            .iter()
            .map(|item| {
                json!({
                    "path": text(&item.path),
                    "what": item.what,
                    "last": item.last,
                    "readers": readers(&item.readers),
                    "sent_ahead": readers(&item.sent_ahead),
                })
            })
            .collect();
        Ok(Report::new(
            human,
            json!({ "application": self.application.as_str(), "since": since, "paths": json }),
        ))
    }
}
