//! What a run found out, and its form as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use strongroom_benches::statistics::{median, spread};

use crate::machine::Machine;
use crate::options::Sizes;
use crate::rows::{Row, Unit};
use crate::target::Target;
use crate::usage::Usage;
use crate::wire::Cost;

/// The machine's own limits.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Limits {
    /// One TCP stream between the guests.
    pub(crate) tcp_mib_per_second: f64,
    /// One connection of the channel: the same, encrypted, in frames of 1 MiB.
    pub(crate) channel_mib_per_second: f64,
    /// 128 bytes there and back, median.
    pub(crate) tcp_round_trip_us: f64,
    /// 4 KiB appended and synced on the disk below the data root.
    pub(crate) fsyncs_per_second: f64,
    /// One statfs(2) through the passthrough, median.
    pub(crate) fuse_request_us: Option<f64>,
}

/// Something that did not work.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failure {
    pub(crate) target: Target,
    pub(crate) round: u32,
    pub(crate) step: String,
    pub(crate) error: String,
}

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) sizes: Sizes,
    pub(crate) rounds: u32,
    pub(crate) targets: Vec<Target>,
    pub(crate) limits: Limits,
    pub(crate) failures: Vec<Failure>,
    samples: BTreeMap<(Row, Target), Vec<f64>>,
    costs: BTreeMap<(Row, Target), Vec<Cost>>,
    memory: BTreeMap<Target, Memory>,
}

/// The largest that each side's processes have been, MiB.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Memory {
    pub(crate) client_mib: f64,
    pub(crate) server_mib: f64,
}

impl Results {
    pub(crate) const fn new(
        machine: Machine,
        sizes: Sizes,
        rounds: u32,
        targets: Vec<Target>,
        limits: Limits,
    ) -> Self {
        Self {
            machine,
            sizes,
            rounds,
            targets,
            limits,
            failures: Vec::new(),
            samples: BTreeMap::new(),
            costs: BTreeMap::new(),
            memory: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, target: Target, row: Row, value: f64, cost: Option<Cost>) {
        self.samples.entry((row, target)).or_default().push(value);
        if let Some(cost) = cost {
            self.costs.entry((row, target)).or_default().push(cost);
        }
    }

    pub(crate) fn add_usage(&mut self, target: Target, usage: Usage) {
        let memory = self.memory.entry(target).or_default();
        memory.client_mib = memory.client_mib.max(usage.client.peak_mib);
        memory.server_mib = memory.server_mib.max(usage.server.peak_mib);
    }

    pub(crate) fn fail(&mut self, failure: Failure) {
        eprintln!("  {} failed: {}: {}", failure.target.title(), failure.step, failure.error);
        self.failures.push(failure);
    }

    /// The rows that have a value for any target, in the order of the table.
    pub(crate) fn rows(&self) -> Vec<Row> {
        Row::ALL
            .iter()
            .copied()
            .filter(|row| self.targets.iter().any(|target| self.samples.contains_key(&(*row, *target))))
            .collect()
    }

    pub(crate) fn median(&self, row: Row, target: Target) -> Option<f64> {
        median(self.samples.get(&(row, target))?)
    }

    /// What each round measured.
    pub(crate) fn samples(&self, row: Row, target: Target) -> &[f64] {
        self.samples.get(&(row, target)).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn spread(&self, row: Row, target: Target) -> Option<f64> {
        spread(self.samples.get(&(row, target))?)
    }

    /// How many times better our mount is than `other`: above 1 is always better.
    pub(crate) fn advantage(&self, row: Row, other: Target) -> Option<f64> {
        Some(row.unit().advantage(self.median(row, Target::Strongroom)?, self.median(row, other)?))
    }

    /// How many times better our mount is than the best of what a user could choose instead.
    pub(crate) fn advantage_over_best(&self, row: Row) -> Option<f64> {
        let peers = self.targets.iter().filter(|target| target.is_choice());
        peers.filter_map(|peer| self.advantage(row, *peer)).min_by(f64::total_cmp)
    }

    /// Rows on which our mount is behind `other`.
    pub(crate) fn behind(&self, other: Target) -> Vec<(Row, f64)> {
        let below =
            |row: Row| self.advantage(row, other).filter(|advantage| *advantage < 1.0).map(|a| (row, a));
        self.rows().into_iter().filter_map(below).collect()
    }

    /// Medians of what a row cost.
    pub(crate) fn cost(&self, row: Row, target: Target) -> Option<Cost> {
        let costs = self.costs.get(&(row, target))?;
        let middle = |part: fn(&Cost) -> f64| median(&costs.iter().map(part).collect::<Vec<_>>());
        Some(Cost {
            caller: middle(|c| c.caller)?,
            client: middle(|c| c.client)?,
            server: middle(|c| c.server)?,
        })
    }

    pub(crate) fn memory(&self, target: Target) -> Option<Memory> {
        self.memory.get(&target).copied()
    }

    /// Write everything to a file.
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make the directory `{}`", directory.display()))?;
        }
        let mut text = serde_json::to_vec_pretty(&self.document())?;
        text.push(b'\n');
        fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
    }

    fn document(&self) -> Document<'_> {
        let cell = |row: Row, target: Target| {
            let samples = self.samples.get(&(row, target))?;
            Some((target, Cell { median: median(samples)?, samples, cost: self.cost(row, target) }))
        };
        let line = |row: Row| Line {
            row,
            title: row.title(),
            unit: row.unit(),
            targets: self.targets.iter().filter_map(|target| cell(row, *target)).collect(),
            strongroom_better_than: self
                .targets
                .iter()
                .filter(|target| **target != Target::Strongroom)
                .filter_map(|target| Some((*target, self.advantage(row, *target)?)))
                .collect(),
        };
        Document {
            format: 1,
            machine: &self.machine,
            sizes: self.sizes,
            rounds: self.rounds,
            limits: self.limits,
            rows: self.rows().into_iter().map(line).collect(),
            peak_memory: &self.memory,
            failures: &self.failures,
        }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    format: u32,
    machine: &'a Machine,
    sizes: Sizes,
    rounds: u32,
    limits: Limits,
    rows: Vec<Line<'a>>,
    peak_memory: &'a BTreeMap<Target, Memory>,
    failures: &'a [Failure],
}

#[derive(Serialize)]
struct Line<'a> {
    row: Row,
    title: &'static str,
    unit: Unit,
    targets: BTreeMap<Target, Cell<'a>>,
    strongroom_better_than: BTreeMap<Target, f64>,
}

#[derive(Serialize)]
struct Cell<'a> {
    median: f64,
    samples: &'a [f64],
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<Cost>,
}
