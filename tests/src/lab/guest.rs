//! The first process of a guest: builds its root, sets up its network, then collects ended children for ever.
//!
//! It speaks with the keeper over its standard streams, one word a line: it says `rooted`, hears `wired`, says `ready`.
//! Anything else it says is an error's text.

use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::process::WaitOptions;
use rustix::thread::CapabilitySet;

use super::network;
use super::plan::{Plan, Role};
use super::rootfs;
use super::sys::Signals;

pub(super) const ROOTED: &str = "rooted";
pub(super) const WIRED: &str = "wired";
pub(super) const READY: &str = "ready";

/// Be the first process of guest number `index` of the plan. Returns only when it could not become ready.
pub fn run(plan: &Path, index: usize) -> Result<()> {
    let outcome = become_guest(plan, index);
    if let Err(error) = &outcome {
        // The keeper reads one line.
        let text = format!("{error:#}").replace('\n', "; ");
        let _ = writeln!(std::io::stdout(), "{text}");
    }
    outcome
}

fn become_guest(plan: &Path, index: usize) -> Result<()> {
    let plan = Plan::read(plan)?;
    let guest = plan.guests.get(index).context("the plan has no such guest")?;
    rootfs::enter_new_root(&plan, guest)?;
    if guest.role == Role::Storage {
        // The gateway is no router, whatever the host's default says.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").context("cannot turn forwarding off")?;
    }
    say(ROOTED)?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    if line.trim() != WIRED {
        bail!("the keeper ended before the guest was connected");
    }
    network::configure(&plan, guest.role)?;
    if !plan.user_namespace {
        drop_host_powers()?;
    }
    let signals = Signals::block(&[libc::SIGCHLD])?;
    say(READY)?;
    loop {
        signals.next()?;
        reap();
    }
}

fn say(word: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{word}").and_then(|()| out.flush()).context("the keeper is gone")
}

/// Collect every ended child.
pub(super) fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// Give up what would reach past the guest into the host's kernel: its modules and its clock.
pub(super) fn drop_host_powers() -> Result<()> {
    for power in [
        CapabilitySet::SYS_MODULE,
        CapabilitySet::SYS_TIME,
        CapabilitySet::SYS_BOOT,
        CapabilitySet::SYS_RAWIO,
    ] {
        match rustix::thread::remove_capability_from_bounding_set(power) {
            // A container may have taken the right to drop more.
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error).context("cannot drop a capability"),
        }
    }
    Ok(())
}
