//! What the conductor and its workers say to each other: one JSON object a line over the worker's standard streams.

use serde::{Deserialize, Serialize};

use crate::options::Sizes;
use crate::rows::{Group, Row};
use crate::target::Work;
use crate::usage::Usage;

/// From the conductor to a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Order {
    /// First of all: the target, and how much to do.
    Begin { work: Work, sizes: Sizes },
    /// Mount, run the group's rows, clean up, unmount.
    Turn { group: Group, wanted: Vec<Row> },
    /// Mount, time a request that the mount answers itself, unmount.
    Probe,
    /// The answer to [`Word::AskUsage`].
    Usage(Usage),
}

/// From a worker to the conductor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Word {
    /// The network namespace that the worker is in, as `/proc/self/ns/net` names it.
    Ready { network: String },
    /// A step begins: the conductor's hang guard starts anew.
    Step { name: String },
    /// The worker waits for [`Order::Usage`].
    AskUsage,
    /// A row's value in its unit.
    Measured { row: Row, value: f64, cost: Option<Cost>, span: Span },
    /// A row, or what comes before it, did not work; the rows after it may be missing too.
    Failed { step: String, error: String },
    /// Median time of one statfs(2) in microseconds.
    Probed { micros: f64 },
    /// The turn is over, whatever came of it. Memory as it was before unmounting.
    TurnOver { usage: Usage },
}

/// When a row was measured, in seconds of the monotonic clock, which all guests share.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) begin: f64,
    pub(crate) end: f64,
}

/// Processor seconds for each GiB that a row moved.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// The workload itself: system calls, page cache.
    pub(crate) caller: f64,
    pub(crate) client: f64,
    pub(crate) server: f64,
}
