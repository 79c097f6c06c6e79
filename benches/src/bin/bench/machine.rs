//! What ran the benchmark, and how much of it was free: figures mean nothing without.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::usage::machine_seconds;

/// The machine, and how busy it was.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Seconds since 1970 at the beginning.
    pub(crate) started: u64,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_mib: u64,
    /// Processes wanting to run, averaged over the minute before the run: what others had in hand.
    pub(crate) load_before: f64,
    /// Share of processor time that the hypervisor gave to others while the bench ran; set at the end.
    pub(crate) stolen_share: Option<f64>,
    pub(crate) versions: Vec<String>,
    #[serde(skip)]
    counters: Option<(f64, f64)>,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = field(&cpuinfo, "model name").unwrap_or("unknown").to_owned();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib =
            field(&meminfo, "MemTotal").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let uname = rustix::system::uname();
        Self {
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
            kernel: uname.release().to_string_lossy().into_owned(),
            processor,
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib.unwrap_or(0) / 1024,
            load_before: load.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
            stolen_share: None,
            versions: versions(),
            counters: machine_seconds(),
        }
    }

    /// Note how the run went.
    pub(crate) fn finish(&mut self) {
        if let (Some((busy, stolen)), Some((busy_now, stolen_now))) = (self.counters, machine_seconds()) {
            let (busy, stolen) = (busy_now - busy, stolen_now - stolen);
            self.stolen_share = (busy + stolen > 0.0).then(|| stolen / (busy + stolen));
        }
    }
}

/// The value of a `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

/// First lines of what the peers and programs call themselves.
fn versions() -> Vec<String> {
    [
        ["sshfs", "--version"],
        ["ssh", "-V"],
        ["bindfs", "--version"],
        ["git", "--version"],
        ["sqlite3", "--version"],
    ]
    .iter()
    .filter_map(|[program, option]| {
        let output = Command::new(program).arg(option).output().ok()?;
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().next()?.trim().to_owned();
        Some(if line.to_lowercase().contains(program) { line } else { format!("{program} {line}") })
    })
    .collect()
}
