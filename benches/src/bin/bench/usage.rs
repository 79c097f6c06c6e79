//! Processor time and memory of a target's processes, from `/proc` (proc(5)).
//!
//! Processes are found by their network namespace and program name: pids differ between guests and host.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::target::Target;

/// What a target's processes have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) client: Side,
    pub(crate) server: Side,
}

/// The processes of one side, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Side {
    /// Processor seconds, user and system, since each process began.
    pub(crate) cpu_seconds: f64,
    /// The largest each has been, MiB.
    pub(crate) peak_mib: f64,
}

/// The network namespaces of the two sides, as `/proc/PID/ns/net` names them.
#[derive(Clone, Debug)]
pub(crate) struct Networks {
    pub(crate) client: String,
    pub(crate) server: String,
}

/// The kernel cuts command names to this length.
const COMM_LENGTH: usize = 15;

/// What the processes of `target` have used until now.
pub(crate) fn of(target: Target, networks: &Networks) -> Usage {
    let mut usage = Usage::default();
    let Ok(entries) = fs::read_dir("/proc") else { return usage };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
        // Processes end while we look: what cannot be read any more is not counted.
        let Ok(network) = fs::read_link(format!("/proc/{pid}/ns/net")) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some(stat) = Stat::parse(&stat) else { continue };
        for (side, programs, home) in [
            (&mut usage.client, target.client_programs(), &networks.client),
            (&mut usage.server, target.server_programs(), &networks.server),
        ] {
            if network.as_os_str() == home.as_str() && programs.iter().any(|p| stat.runs(p)) {
                side.cpu_seconds += stat.ticks as f64 / ticks_per_second();
                side.peak_mib += peak_mib(pid).unwrap_or(0.0);
            }
        }
    }
    usage
}

/// Processor seconds of this process.
pub(crate) fn own_cpu_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/stat").context("cannot read `/proc/self/stat`")?;
    let stat = Stat::parse(&text).context("unexpected form of `/proc/self/stat`")?;
    Ok(stat.ticks as f64 / ticks_per_second())
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

fn peak_mib(pid: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

/// The parts of `/proc/PID/stat` that matter here.
struct Stat<'a> {
    comm: &'a str,
    ticks: u64,
}

impl<'a> Stat<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (_, rest) = text.split_once('(')?;
        // The name may hold parentheses itself: fields count from the last one.
        let (comm, rest) = rest.rsplit_once(')')?;
        let mut fields = rest.split_whitespace().skip(11);
        let user: u64 = fields.next()?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        Some(Self { comm, ticks: user + system })
    }

    fn runs(&self, program: &str) -> bool {
        self.comm == program.get(..COMM_LENGTH).unwrap_or(program)
    }
}

/// How much of the machine others had: (busy, stolen) since boot in seconds of processor time.
pub(crate) fn machine_seconds() -> Option<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<f64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let [user, nice, system, _, _, irq, soft, steal, ..] = fields.as_slice() else { return None };
    let hz = ticks_per_second();
    Some(((user + nice + system + irq + soft) / hz, steal / hz))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn stat_is_read_whatever_the_name() {
        let text = "12 (a) b (c) S 1 1 1 0 -1 4194560 1 2 3 4 70 30 0 0 20 0 1 0 100 200 300";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.comm, stat.ticks), ("a) b (c", 100));
        assert!(Stat::parse("12 (x) S 1").is_none());
    }

    #[test]
    fn long_program_names_match_as_the_kernel_cuts_them() {
        let stat = Stat { comm: "strongroom-gate", ticks: 0 };
        assert!(stat.runs("strongroom-gateway"));
        assert!(!stat.runs("strongroom"));
        assert!(!Stat { comm: "ssh", ticks: 0 }.runs("sshd"));
    }

    #[test]
    fn own_time_counts_up() {
        let before = own_cpu_seconds().unwrap();
        let mut sum = 0_u64;
        while own_cpu_seconds().unwrap() <= before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(own_cpu_seconds().unwrap() > before);
    }
}
