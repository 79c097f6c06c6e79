//! `contract policy check`: every mistake of every file.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::base::{Base, read_policies};
use crate::command::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Report, count};

/// Check policy files and show every mistake
///
/// A file with a mistake disables its own application only. Exit code 2 if there is any.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// A policy directory, or one file [default: policy.d of the base directory]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
}

impl Check {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let path = self.path.unwrap_or_else(|| Base::unchecked(context.dir()).policy_dir());
        let policies = read_policies(&path)?;
        let errors = policies.errors();
        let good: Vec<_> = policies.policies().keys().map(|application| application.as_str()).collect();
        let disabled: Vec<_> = policies.disabled().into_iter().map(|one| one.as_str()).collect();
        let mut human = String::new();
        for error in errors {
            human.push_str(&error.render(context.style.colour()));
            human.push_str("\n\n");
        }
        let state = match good.as_slice() {
            [] => "no policy is in force".to_owned(),
            names => {
                format!("{} in force: {}", count(names.len() as u64, "policy", "policies"), names.join(", "))
            }
        };
        human.push_str(&format!("{state}\n"));
        if !disabled.is_empty() {
            human.push_str(&format!("disabled by mistakes: {}\n", disabled.join(", ")));
        }
        if !errors.is_empty() {
            let line = format!("{} in {}", count(errors.len() as u64, "mistake", "mistakes"), path.display());
            human.push_str(&format!("{}\n", context.style.red(&line)));
        }
        let json = json!({ "policies": good, "disabled": disabled, "mistakes": errors });
        Ok(Report::new(human, json).exit(if errors.is_empty() { Exit::Done } else { Exit::BadInput }))
    }
}
