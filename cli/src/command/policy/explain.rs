//! `contract policy explain`: which line allows or denies what.

use std::path::PathBuf;

use clap::Args;
use strongroom_contracts::Application;
use strongroom_policy::explain;

use crate::base::{Base, mistakes, read_policies};
use crate::command::Context;
use crate::failure::Failure;
use crate::issuing;
use crate::narrowing::Wanted;
use crate::output::Report;

/// Explain what an application may do at a path, and which line of which file says so
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The application
    #[arg(value_name = "APP")]
    application: Application,
    /// A path from the data root (users/alice/Mail), or as seen in the mount (/Mail)
    #[arg(value_name = "PATH")]
    path: String,
    /// A policy directory, or one file [default: policy.d of the base directory]
    #[arg(long, value_name = "PATH")]
    policies: Option<PathBuf>,
}

impl Explain {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let path = self.policies.unwrap_or_else(|| Base::unchecked(context.dir()).policy_dir());
        let policies = read_policies(&path)?;
        let policy = issuing::policy_of(&policies, &self.application)?;
        let data = match Wanted::parse(&self.path)? {
            Wanted::Data(path) => path,
            Wanted::Mount(mount) => policy.data_path(&mount).ok_or_else(|| {
                let mounts: Vec<_> = policy.grants.iter().map(|one| one.grant.mount.as_str()).collect();
                Failure::not_found(format!("{}: no grant is mounted at {mount}", policy.file))
                    .hint(format!("mount paths of {}: {}", self.application, mounts.join(", ")))
                    .hint("or give the path from the data root, such as users/alice/Mail")
            })?,
        };
        let explanation = explain(&policies, &self.application, &data).map_err(Failure::not_found)?;
        let json = serde_json::to_value(&explanation).map_err(Failure::other)?;
        let mut report = Report::new(explanation.to_string(), json);
        report.warnings = mistakes(&policies);
        Ok(report)
    }
}
