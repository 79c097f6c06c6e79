//! `contract policy`: what the policy files say.

mod check;
mod diff;
mod explain;

use clap::{Args, Subcommand};

use super::Context;
use crate::failure::Failure;
use crate::output::Report;

/// Check, explain and compare policy files
#[derive(Debug, Args)]
pub(super) struct Policy {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Check),
    Explain(explain::Explain),
    Diff(diff::Diff),
}

impl Policy {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        match self.command {
            Command::Check(args) => args.run(context),
            Command::Explain(args) => args.run(context),
            Command::Diff(args) => args.run(context),
        }
    }
}
