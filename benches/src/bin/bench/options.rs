//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};

use crate::rows::Row;
use crate::target::Target;

/// Measure the Strongroom mount beside sshfs, a local FUSE passthrough and the local directory.
///
/// Brings up a lab of its own, runs the same workloads on every target in turns, and prints the medians with ratios.
/// Leaves nothing behind. Needs root.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
pub(crate) struct Options {
    /// How often everything is measured; the table shows medians [default: 3, with --quick 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Less data and one round: to see that everything works, not to quote.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only this row (and what it needs to run before it); may be repeated.
    #[arg(long, value_name = "ROW")]
    only: Vec<Row>,
    /// Only these targets [default: strongroom, sshfs, passthrough, local].
    #[arg(long, value_name = "TARGET,…", value_delimiter = ',')]
    targets: Vec<Target>,
    /// Write everything that was measured to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a page with the table and plots to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Also measure GlusterFS, CephFS and MooseFS (their Debian packages are named if they are missing).
    #[arg(long)]
    peers: bool,
    /// Measure the mount with an undo window of seven days, to compare with a run without.
    #[arg(long)]
    pub(crate) undo: bool,
    /// Measure the mount with `verdict = "off"`, to compare with a run in which the gateway looks at each change.
    #[arg(long)]
    pub(crate) no_detection: bool,
    /// Measure the mount with processors that may always halt, to compare with a run in which it keeps them awake during
    /// bursts of requests.
    #[arg(long)]
    pub(crate) no_awake: bool,
    /// Have `perf` record beside each row, and tell where the processors' time goes; the rows themselves are slower then.
    #[arg(long)]
    pub(crate) profile: bool,
    /// Print the table as Markdown.
    #[arg(long)]
    pub(crate) markdown: bool,
    #[command(subcommand)]
    pub(crate) role: Option<Role>,
}

/// Parts that the bench plays inside guests.
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// Run workloads as told over the standard streams.
    #[command(hide = true)]
    Work,
    /// Answer the network's measurement.
    #[command(hide = true)]
    Echo,
    /// Measure the network.
    #[command(hide = true)]
    Call { seconds: u64 },
}

/// How much each workload does.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Sizes {
    /// The large file, MiB.
    pub(crate) file_mib: u64,
    /// 4 KiB reads at depth 1; four times as many at depth 16.
    pub(crate) random_reads: u64,
    pub(crate) random_writes: u64,
    /// Small files in one directory.
    pub(crate) files: u64,
    /// Files of the source tree.
    pub(crate) tree_files: u64,
    pub(crate) appends: u64,
    pub(crate) transactions: u64,
    /// A workload of many operations stops here and reports the rate until then, seconds.
    pub(crate) limit_seconds: u64,
}

impl Sizes {
    const FULL: Self = Self {
        file_mib: 256,
        random_reads: 4096,
        random_writes: 256,
        files: 1000,
        tree_files: 1000,
        appends: 200,
        transactions: 100,
        limit_seconds: 15,
    };
    const QUICK: Self = Self {
        file_mib: 64,
        random_reads: 1024,
        random_writes: 64,
        files: 300,
        tree_files: 300,
        appends: 50,
        transactions: 40,
        limit_seconds: 8,
    };
}

impl Options {
    pub(crate) fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    pub(crate) const fn sizes(&self) -> Sizes {
        if self.quick { Sizes::QUICK } else { Sizes::FULL }
    }

    /// The rows wanted, in the order of the table.
    pub(crate) fn rows(&self) -> Vec<Row> {
        Row::ALL.iter().copied().filter(|row| self.only.is_empty() || self.only.contains(row)).collect()
    }

    /// The targets wanted, in the order of the table.
    pub(crate) fn targets(&self) -> Vec<Target> {
        <Target as clap::ValueEnum>::value_variants()
            .iter()
            .copied()
            .filter(|target| match self.targets.as_slice() {
                [] => *target != Target::SshfsTuned && (self.peers || target.peer().is_none()),
                wanted => wanted.contains(target),
            })
            .collect()
    }
}
