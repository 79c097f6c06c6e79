//! A grant: a path below the data root, where it appears in the mount, the rights on it, its limits.

use bincode::{Decode, Encode};

use crate::path::{DataPath, MountPath};
use crate::rights::Rights;

/// Whose the files of a grant are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Default)]
pub enum Ownership {
    /// Files belong to one user on the storage side and appear as the mounting user's.
    #[default]
    Single,
    /// User and group ids pass through; the guest's kernel checks modes.
    Preserve,
}

impl Ownership {
    /// The word used in policy files.
    pub const fn name(self) -> &'static str {
        match self {
            Ownership::Single => "single",
            Ownership::Preserve => "preserve",
        }
    }
}

/// One grant of a contract.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Grant {
    /// The subtree of the data root that the grant covers.
    pub data: DataPath,
    /// Where the subtree appears in the mount.
    pub mount: MountPath,
    /// What may be done there.
    pub rights: Rights,
    /// Most bytes that the subtree may hold (sum of file sizes); `None`: no limit.
    pub quota_bytes: Option<u64>,
    /// Most files, directories and links that the subtree may hold; `None`: no limit.
    pub quota_files: Option<u64>,
    /// Largest size of one file, in bytes; `None`: no limit.
    pub max_file_bytes: Option<u64>,
    /// For how long changes can be taken back, in seconds; 0: not at all.
    pub undo_secs: u64,
    /// Whose the files are.
    pub ownership: Ownership,
}

/// The smaller of two limits, where `None` is "no limit".
pub(crate) fn tighter<T: Ord + Copy>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (limit, None) | (None, limit) => limit,
    }
}

impl Grant {
    /// Whether this grant permits nothing that `other` does not permit.
    ///
    /// Ownership and the undo window are no authority and must be equal, so that a narrower contract cannot, for
    /// instance, switch off the undo log.
    pub fn within(&self, other: &Grant) -> bool {
        other.data.contains(&self.data)
            && other.rights.covers(self.rights)
            && tighter(self.quota_bytes, other.quota_bytes) == self.quota_bytes
            && tighter(self.quota_files, other.quota_files) == self.quota_files
            && tighter(self.max_file_bytes, other.max_file_bytes) == self.max_file_bytes
            && self.undo_secs == other.undo_secs
            && self.ownership == other.ownership
    }
}
