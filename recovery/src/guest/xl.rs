//! Guests of Xen, by `xl` in dom0. The guest is created paused, its secret is put into its own part of XenStore, which it
//! and dom0 alone can read, and then it runs.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Action, Driver, Job, absolute, argv, overlay, two_minutes};
use crate::config::Span;

/// Settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Xl {
    /// The domain; without it, the guest's name.
    domain: Option<String>,
    /// The domain's configuration file, which names the overlay as its disk.
    config: PathBuf,
    /// The clean image, in qcow2; without it, the domain's configuration must bring a clean disk about by itself.
    base: Option<PathBuf>,
    /// The overlay.
    overlay: Option<PathBuf>,
    #[serde(default = "two_minutes")]
    timeout: Span,
}

impl Driver for Xl {
    fn check(&self) -> Result<(), String> {
        absolute("config", &self.config)?;
        match (&self.base, &self.overlay) {
            (Some(base), Some(overlay)) => overlay::check(base, overlay),
            (None, None) => Ok(()),
            _ => Err("base, overlay: write both or neither".to_owned()),
        }
    }

    fn programs(&self) -> Vec<String> {
        let mut programs = argv(["xl"]);
        programs.extend(self.base.as_ref().map(|_| overlay::QEMU_IMG.to_owned()));
        programs
    }

    fn restart(&self, job: &Job<'_>) -> Vec<Action> {
        let domain = self.domain.as_deref().unwrap_or(job.guest);
        let timeout = self.timeout.0;
        let run = |argv: Vec<String>, may_fail| Action::Run { argv, timeout, may_fail };
        let config = self.config.display().to_string();
        let mut list = vec![];
        if let Some(overlay) = &self.overlay {
            let overlay = overlay.display().to_string();
            // Before anything is done to the guest: one that starts from another disk would not be clean, and what it did
            // would not be kept. `-N` creates nothing, and tells the configuration as JSON.
            list.push(Action::Insist {
                argv: argv(["xl", "-N", "create", &config]),
                otherwise: format!(
                    "{config} does not name {overlay} as a disk: nothing was done to the guest"
                ),
                word: overlay,
                timeout,
            });
        }
        list.push(run(argv(["xl", "destroy", domain]), true));
        list.push(Action::Await { argv: argv(["xl", "domid", domain]), says: None, timeout });
        if let (Some(base), Some(overlay)) = (&self.base, &self.overlay) {
            list.extend(overlay::renew(job, base, overlay));
        }
        list.push(run(argv(["xl", "create", "-p", "-q", &config]), false));
        if let Some(secret) = job.secret {
            list.push(Action::XenSecret { domain: domain.to_owned(), from: secret.to_owned(), timeout });
        }
        list.push(run(argv(["xl", "unpause", domain]), false));
        list
    }
}
