//! What a contract permits, as a lattice: the one place that computes a meet.
//!
//! A [`Scope`] is a set of regions, limits, networks and a time. The meet of two scopes permits what both permit; it is
//! associative, commutative and idempotent, and never permits more than either.
//!
//! INVARIANT: the mount paths of a scope's regions do not contain each other, its regions are sorted by mount path,
//! its quotas by path, and its networks hold no range that lies in another. Equal permissions are equal values.

use crate::grant::tighter;
use crate::limits::SessionLimits;
use crate::network::Network;
use crate::path::{DataPath, MountPath};
use crate::rights::Rights;

/// A quota that holds for a subtree: the sum of what lies below `path`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quota {
    /// The subtree that is counted.
    pub path: DataPath,
    /// Most bytes.
    pub bytes: Option<u64>,
    /// Most files.
    pub files: Option<u64>,
}

/// A subtree, where it appears, and what may be done there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// The subtree of the data root.
    pub data: DataPath,
    /// Where it appears in the mount.
    pub mount: MountPath,
    /// What may be done there.
    pub rights: Rights,
    /// Quotas on this subtree and on subtrees around it, sorted by path, each path once.
    pub quotas: Vec<Quota>,
    /// Largest size of one file, in bytes.
    pub max_file_bytes: Option<u64>,
}

/// Everything that two contracts can have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// What may be done where.
    pub regions: Vec<Region>,
    /// How much of the gateway may be taken.
    pub limits: SessionLimits,
    /// From which addresses; `None`: from any; an empty list: from none.
    pub networks: Option<Vec<Network>>,
    /// Valid from, Unix seconds.
    pub not_before: u64,
    /// Valid until (exclusive), Unix seconds.
    pub expires: u64,
}

impl Scope {
    /// What both scopes permit.
    #[must_use]
    pub fn meet(&self, other: &Scope) -> Scope {
        let pairs = self.regions.iter().flat_map(|a| other.regions.iter().filter_map(|b| a.meet(b)));
        let mut regions: Vec<Region> = pairs.collect();
        regions.sort_by(|a, b| a.mount.cmp(&b.mount));
        Scope {
            regions,
            limits: self.limits.meet(other.limits),
            networks: meet_networks(self.networks.as_deref(), other.networks.as_deref()),
            not_before: self.not_before.max(other.not_before),
            expires: self.expires.min(other.expires),
        }
    }

    /// The scope in its one form: sorted, without what is there twice.
    #[must_use]
    pub fn normal(mut self) -> Scope {
        self.regions.sort_by(|a, b| a.mount.cmp(&b.mount));
        self.networks = self.networks.map(normal_networks);
        self
    }
}

impl Region {
    /// What both regions permit, if they have a subtree in common at the same place of the mount and a right on it.
    pub fn meet(&self, other: &Region) -> Option<Region> {
        let inner = if self.data.contains(&other.data) { other } else { self };
        let outer = if std::ptr::eq(inner, self) { other } else { self };
        // Both paths must agree: the same tail below the outer region in the data and in the mount.
        let data_tail = inner.data.as_str().strip_prefix(outer.data.as_str())?;
        let mount_tail = inner.mount.as_str().strip_prefix(outer.mount.as_str())?;
        let rights = self.rights.meet(other.rights);
        if !outer.data.contains(&inner.data) || data_tail != mount_tail || rights.is_empty() {
            return None;
        }
        Some(Region {
            data: inner.data.clone(),
            mount: inner.mount.clone(),
            rights,
            quotas: meet_quotas(&self.quotas, &other.quotas),
            max_file_bytes: tighter(self.max_file_bytes, other.max_file_bytes),
        })
    }
}

/// The quota on one subtree as a list; without limits there is none.
pub(crate) fn quotas(path: &DataPath, bytes: Option<u64>, files: Option<u64>) -> Vec<Quota> {
    if bytes.is_none() && files.is_none() { vec![] } else { vec![Quota { path: path.clone(), bytes, files }] }
}

fn meet_quotas(a: &[Quota], b: &[Quota]) -> Vec<Quota> {
    let mut met = a.to_vec();
    for quota in b {
        match met.iter_mut().find(|other| other.path == quota.path) {
            Some(other) => {
                other.bytes = tighter(other.bytes, quota.bytes);
                other.files = tighter(other.files, quota.files);
            }
            None => met.push(quota.clone()),
        }
    }
    met.sort();
    met
}

/// Sorted, without ranges that lie in others, so that equal sets are equal lists.
pub(crate) fn normal_networks(mut list: Vec<Network>) -> Vec<Network> {
    list.sort();
    list.dedup();
    let inner = |network: &Network| {
        list.iter().any(|other| other != network && other.meet(*network) == Some(*network))
    };
    list.iter().filter(|network| !inner(network)).copied().collect()
}

fn meet_networks(a: Option<&[Network]>, b: Option<&[Network]>) -> Option<Vec<Network>> {
    match (a, b) {
        (Some(a), Some(b)) => {
            let pairs = a.iter().flat_map(|x| b.iter().filter_map(|y| x.meet(*y)));
            Some(normal_networks(pairs.collect()))
        }
        (list, None) | (None, list) => list.map(<[Network]>::to_vec),
    }
}
