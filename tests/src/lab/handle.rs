//! The handle on a lab that runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::command::GuestCommand;
use super::down::down;
use super::place::{LabName, Place};
use super::record::{LabStatus, Record, is_mounted, status_of};
use super::services::{self, StopHow};
use super::wanted;

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    pub(super) name: LabName,
    pub(super) program: PathBuf,
    /// Its directory on the disk.
    pub(super) disk: PathBuf,
    pub(super) data: PathBuf,
    /// The hold on the keeper; a lab that only was looked up has none, and stays when this value goes.
    pub(super) hold: Option<Hold>,
}

/// The write end of the keeper's standard input, and the keeper as a child to collect.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) _pipe: fs::File,
}

impl Lab {
    /// A lab that runs already.
    pub fn find(name: &LabName) -> Result<Self> {
        let record = Record::running(name)?;
        let place = Place::of(name)?;
        Ok(Self {
            name: name.clone(),
            program: wanted::lab_program(None)?,
            disk: place.disk,
            data: record.data,
            hold: None,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// The data root, on the host.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A file of the guest `name` (`base`, `storage` or an application) below its `/etc/strongroom`, as the host sees it.
    #[must_use]
    pub fn etc(&self, name: &str) -> PathBuf {
        self.guest_directory(name).join("strongroom")
    }

    /// The guest's `/var/log/strongroom`, as the host sees it.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.guest_directory(name).join("log")
    }

    fn guest_directory(&self, name: &str) -> PathBuf {
        let own = if matches!(name, "base" | "storage") { name.to_owned() } else { services::app_disk(name) };
        self.disk.join("guests").join(own)
    }

    /// A command in an app guest; it starts in `/mnt`.
    pub fn app<'a>(&self, app: &str, command: impl IntoIterator<Item = &'a str>) -> GuestCommand {
        self.guest("exec", Some(app), command)
    }

    /// A command in the storage guest.
    pub fn storage<'a>(&self, command: impl IntoIterator<Item = &'a str>) -> GuestCommand {
        self.guest("storage", None, command)
    }

    /// A command in the base domain; `contract` finds its directory by itself.
    pub fn base<'a>(&self, command: impl IntoIterator<Item = &'a str>) -> GuestCommand {
        self.guest("base", None, command)
    }

    fn guest<'a>(
        &self,
        verb: &'static str,
        app: Option<&str>,
        command: impl IntoIterator<Item = &'a str>,
    ) -> GuestCommand {
        GuestCommand {
            program: self.program.clone(),
            lab: self.name.clone(),
            verb,
            app: app.map(str::to_owned),
            options: Vec::new(),
            command: command.into_iter().map(str::to_owned).collect(),
        }
    }

    /// Mount an application's contract again, after its mount was taken away.
    pub fn remount(&self, app: &str) -> Result<()> {
        self.mount_again(app, 0)
    }

    /// The same; waits so many seconds for a gateway that is away.
    pub(super) fn mount_again(&self, app: &str, wait: u32) -> Result<()> {
        let record = Record::running(&self.name)?;
        if is_mounted(&record, record.guest(app)?)? {
            return Ok(());
        }
        services::mount(self, app, wait)
    }

    /// Start the gateway if it does not run, and wait until it serves.
    pub fn start_gateway(&self) -> Result<()> {
        services::start_gateway(self)
    }

    /// End the gateway and wait until it has ended.
    pub fn stop_gateway(&self, how: StopHow) -> Result<()> {
        services::stop_gateway(self, how)
    }

    /// Start the recovery daemon in the base domain, with arguments, and wait until it listens.
    pub fn start_recovery(&self, arguments: &[&str]) -> Result<()> {
        services::start_recovery(self, arguments)
    }

    /// End the recovery daemon and wait until it has ended.
    pub fn stop_recovery(&self, how: StopHow) -> Result<()> {
        services::stop_recovery(self, how)
    }

    /// Whether the recovery daemon runs.
    pub fn recovery_runs(&self) -> Result<bool> {
        services::recovery_runs(self)
    }

    /// How the lab is.
    pub fn status(&self) -> Result<LabStatus> {
        status_of(&self.name)?.with_context(|| format!("there is no lab `{}`", self.name))
    }

    /// Its applications, in the order of the policy files.
    pub fn applications(&self) -> Result<Vec<String>> {
        services::applications(&self.name)
    }

    /// End the lab and say what could not be cleared away; dropping it does the same without a word.
    pub fn down(mut self) -> Result<()> {
        let done = down(&self.name);
        self.hold = None;
        done
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.hold.is_some()
            && let Err(error) = down(&self.name)
        {
            eprintln!("lab `{}`: {error:#}", self.name);
        }
    }
}
