//! What a policy file says, once it is understood.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use strongroom_contracts::{
    Application, Audit, DataPath, Detection, Grant, MountPath, Network, PolicyDigest, Right, SessionLimits,
    UndoFull,
};

use crate::place::{Place, Setting};
use crate::recovery::Recovery;

/// How long a contract lasts if the policy does not say: 8 hours.
pub const DEFAULT_LIFETIME_SECS: u64 = 8 * 3600;

/// The policy of one application: the ceiling for every contract issued to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whose policy.
    pub application: Application,
    /// The guest that runs it, by the name that the hypervisor knows.
    pub guest: Option<Setting<String>>,
    /// The longest life of one contract, in seconds.
    pub lifetime_secs: Setting<u64>,
    /// No contract is valid at or after this moment, in seconds since the Unix epoch.
    pub until_secs: Option<Setting<u64>>,
    /// What may be done where.
    pub grants: Vec<PolicyGrant>,
    /// How much of the gateway a session may take.
    pub limits: SessionLimits,
    /// Where each limit is said, by its key (`read-rate`, ...).
    pub limit_places: BTreeMap<&'static str, Place>,
    /// From which addresses; `None`: from any.
    pub networks: Option<Setting<Vec<Network>>>,
    /// How it is recorded.
    pub audit: Setting<Audit>,
    /// Most bytes that its undo log takes; `None`: the gateway's own bound.
    pub undo_space: Option<Setting<u64>>,
    /// What happens when they are used up.
    pub undo_full: Setting<UndoFull>,
    /// How its changes are watched.
    pub detection: Setting<Detection>,
    /// What is done after an attack.
    pub recovery: Option<Recovery>,
    /// SHA-256 of the file's text.
    pub digest: PolicyDigest,
    /// The file.
    pub file: Arc<str>,
    /// Where `application` is said.
    pub place: Place,
}

/// One `[[grant]]` of a policy and the lines that say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyGrant {
    /// What it permits.
    pub grant: Grant,
    /// The rights as they are written, for messages.
    pub rights_text: String,
    /// The `[[grant]]` line.
    pub place: Place,
    /// Where each key of the grant is said, by key (`path`, `rights`, `quota`, ...).
    pub key_places: BTreeMap<&'static str, Place>,
    /// The word that gives each right.
    pub right_places: BTreeMap<Right, Place>,
}

impl PolicyGrant {
    /// Where a key of the grant is said, or else where the grant starts.
    pub fn key_place(&self, key: &str) -> &Place {
        self.key_places.get(key).unwrap_or(&self.place)
    }
}

impl Policy {
    /// The grants whose subtree holds `path`, the deepest first.
    pub fn grants_over<'a>(&'a self, path: &DataPath) -> Vec<&'a PolicyGrant> {
        let mut found: Vec<_> = self.grants.iter().filter(|one| one.grant.data.contains(path)).collect();
        found.sort_by_key(|one| std::cmp::Reverse(one.grant.data.as_str().len()));
        found
    }

    /// The data path that appears at `mount` (`/Mail/inbox` -> `users/alice/Mail/inbox`), if a grant covers it.
    pub fn data_path(&self, mount: &MountPath) -> Option<DataPath> {
        let grant = &self.grants.iter().find(|one| one.grant.mount.contains(mount))?.grant;
        let tail = mount.as_str().strip_prefix(grant.mount.as_str())?;
        format!("{}{tail}", grant.data).parse().ok()
    }
}

impl fmt::Display for PolicyGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} at {}", self.grant.rights, self.grant.data, self.grant.mount)
    }
}
