//! No guest: for trying a policy out.

use serde::Deserialize;

use super::{Action, Driver, Job};

/// Without settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DryRun {}

impl Driver for DryRun {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn programs(&self) -> Vec<String> {
        vec![]
    }

    fn restart(&self, job: &Job<'_>) -> Vec<Action> {
        vec![Action::Nothing { what: format!("guest {} would be restarted from its clean image", job.guest) }]
    }
}
