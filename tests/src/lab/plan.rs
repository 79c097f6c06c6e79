//! What a lab is to be: written once by `up`, read by the keeper and by the first process of each guest.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::place::Place;

/// The whole lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) place: Place,
    /// Whether the lab has a user namespace: an ordinary user is root in there, and only there.
    pub(super) user_namespace: bool,
    /// Where the programs under test are; one of the shares.
    pub(super) programs: PathBuf,
    /// Host directories that every guest sees read-only at the same path: the programs under test.
    pub(super) shares: Vec<PathBuf>,
    /// Ports of the storage guest that app guests reach besides the native door.
    pub(super) open_ports: Vec<u16>,
    /// Whether app guests reach the enrolment address of the base domain.
    pub(super) enrolment: bool,
    /// Whether guests have `/dev/cpu_dma_latency`.
    pub(super) awake: bool,
    pub(super) guests: Vec<GuestPlan>,
}

/// One guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct GuestPlan {
    pub(super) name: String,
    pub(super) role: Role,
    /// Host directories of this guest's own, read-write, and where it sees them.
    pub(super) binds: Vec<Bind>,
}

/// A host directory seen by a guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Bind {
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
}

/// What a guest is for, which decides its place on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Role {
    Base,
    Storage,
    App { address: Ipv4Addr, port: u16 },
}

impl Plan {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes =
            fs::read(path).with_context(|| format!("cannot read the lab's plan `{}`", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("`{}` is not a lab's plan", path.display()))
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write the lab's plan `{}`", path.display()))
    }
}
