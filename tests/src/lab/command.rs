//! A command to run in a guest, as the host starts it: through `lab exec`, whose streams, signals and exit status are the
//! command's.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::place::LabName;

/// A command to run in a guest.
#[derive(Clone, Debug)]
pub struct GuestCommand {
    pub(super) program: PathBuf,
    pub(super) lab: LabName,
    pub(super) verb: &'static str,
    pub(super) app: Option<String>,
    pub(super) options: Vec<String>,
    pub(super) command: Vec<String>,
}

impl GuestCommand {
    /// Start in `dir` of the guest instead of its usual place.
    #[must_use]
    pub fn cwd(mut self, dir: &str) -> Self {
        self.options.extend(["--cwd".to_owned(), dir.to_owned()]);
        self
    }

    /// Run as a service; the command returns when it is ready.
    pub(super) fn with_service_log(mut self, log: &str) -> Self {
        self.options.extend(["--service-log".to_owned(), log.to_owned()]);
        self
    }

    /// As a person would type it.
    #[must_use]
    pub fn shown(&self) -> String {
        let mut words = vec!["lab".to_owned(), self.verb.to_owned()];
        words.extend(self.app.clone());
        words.push("--".to_owned());
        words.extend(self.command.clone());
        words.join(" ")
    }

    /// The process to start on the host. Its streams, signals and exit status are the command's.
    #[must_use]
    pub fn into_command(self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(self.verb).args(["--name", self.lab.as_str()]).args(&self.options);
        command.args(&self.app).arg("--").args(&self.command);
        command
    }

    /// Run it to its end and return what it printed.
    ///
    /// # Errors
    /// When it cannot be started or fails; the error holds what it said.
    pub fn run(self) -> Result<String> {
        let shown = self.shown();
        let output = self.into_command().output().with_context(|| format!("cannot start `{shown}`"))?;
        if !output.status.success() {
            bail!(
                "`{shown}`: {}\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Run it to its end, whatever that is.
    pub fn output(self) -> Result<std::process::Output> {
        let shown = self.shown();
        self.into_command().output().with_context(|| format!("cannot start `{shown}`"))
    }
}
