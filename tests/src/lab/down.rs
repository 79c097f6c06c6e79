//! Taking labs down, in whatever state they are.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal};

use super::handle::Lab;
use super::place::{LabName, Lock, Place, known_names};
use super::record::{ProcessId, Record};
use super::services::StopHow;

/// End the lab `name`, in whatever state it is, and remove all that it left. One that does not exist is no error.
pub fn down(name: &LabName) -> Result<()> {
    let place = Place::of(name)?;
    let record = Record::read(&place).unwrap_or_else(|error| {
        // A record that cannot be read must not keep the lab for ever.
        eprintln!("lab: {error:#}; clearing it away");
        None
    });
    if let Some(record) = &record {
        stop(name, record)?;
    }
    let _lock = Lock::take()?;
    // Somebody else may have cleared it away and brought up a new one of the same name meanwhile.
    let now = Record::read(&place).unwrap_or(None);
    if now
        .is_some_and(|now| now.is_alive() && now.owner.pid != i32::try_from(std::process::id()).unwrap_or(0))
    {
        bail!("the lab `{name}` is being brought up by another process");
    }
    place.remove()
}

pub(super) fn stop(name: &LabName, record: &Record) -> Result<()> {
    let Some(keeper) = record.keeper.as_ref() else { return Ok(()) };
    let Some(process) = keeper.open() else {
        collect(keeper);
        return Ok(());
    };
    // The gateway closes its ledger in peace if it can; the data are a person's own where `--data` was given.
    if keeper.is_alive()
        && let Ok(lab) = Lab::find(name)
    {
        let _ = lab.stop_gateway(StopHow::Clean);
    }
    // Asked, then made to: SIGKILL always reaches the first process of a namespace from outside.
    let _ = pidfd_send_signal(&process, Signal::TERM);
    if !ended(&process, Duration::from_secs(5))? {
        let _ = pidfd_send_signal(&process, Signal::KILL);
        if !ended(&process, Duration::from_secs(60))? {
            bail!("the keeper of the lab `{name}` (process {}) does not end", keeper.pid);
        }
    }
    collect(keeper);
    Ok(())
}

fn ended(process: &impl AsFd, within: Duration) -> Result<bool> {
    let begun = Instant::now();
    loop {
        let left = within.saturating_sub(begun.elapsed());
        let timeout =
            Timespec { tv_sec: i64::try_from(left.as_secs())?, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut waiting = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut waiting, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the keeper"),
        }
    }
}

/// Collect the keeper if it is this process's child.
fn collect(keeper: &ProcessId) {
    if let Some(pid) = Pid::from_raw(keeper.pid) {
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// End every lab of this user; the names of those that were there.
pub fn down_all() -> Result<Vec<LabName>> {
    let names = {
        let _lock = Lock::take()?;
        known_names()?
    };
    for name in &names {
        down(name)?;
    }
    Ok(names)
}
