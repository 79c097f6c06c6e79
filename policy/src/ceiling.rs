//! From policy to contract: the terms that a policy allows, and the refusal of everything above it.

use strongroom_contracts::terms::VERSION;
use strongroom_contracts::{
    ContractId, DataPath, GatewayId, Grant, KeyId, NameError, PublicKey, Rights, Terms, TermsError, UndoSpace,
};

use crate::place::{Place, Setting};
use crate::policy::{Policy, PolicyGrant};
use crate::units::show_duration;

/// What a person asks of a policy, and what the issuer adds.
#[derive(Clone, Debug)]
pub struct Issue {
    /// The number of the new contract.
    pub id: ContractId,
    /// The key that will sign.
    pub issuer: KeyId,
    /// Who may exercise the contract.
    pub holder: PublicKey,
    /// At which gateway.
    pub gateway: GatewayId,
    /// The application's current generation.
    pub generation: u64,
    /// The time of issue, in seconds since the Unix epoch; the contract is valid from then.
    pub now_secs: u64,
    /// The wanted life in seconds; `None`: as long as the policy allows.
    pub lifetime_secs: Option<u64>,
    /// What is wanted of the policy; empty: all of it. Several add up.
    pub narrow: Vec<Narrowing>,
}

/// A part of what a policy allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    /// Only this subtree; `None`: every grant.
    pub path: Option<DataPath>,
    /// Only these rights; `None`: those of the policy.
    pub rights: Option<Rights>,
}

/// A wish above the ceiling; the message says which line would have to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CeilingError {
    /// A right that the policy does not give there.
    #[error("{place}: rights = {written} lacks {missing} on {path}")]
    Rights {
        /// The line that would have to change.
        place: Place,
        /// The rights as the policy writes them.
        written: String,
        /// What is missing.
        missing: MissingRights,
        /// Where.
        path: DataPath,
    },
    /// Several grants together give the rights, none of them alone.
    #[error(
        "{place}: no single grant gives {wanted} on {path}; ask for less, or give the rights there in one [[grant]]"
    )]
    Spread {
        /// The deepest of the grants.
        place: Place,
        /// What is wanted.
        wanted: Rights,
        /// Where.
        path: DataPath,
    },
    /// No grant covers the path.
    #[error("{file}: no [[grant]] covers {path}{}", match below.as_slice() {
        [] => String::new(),
        list => format!("; those below it are {}", list.iter().map(DataPath::as_str).collect::<Vec<_>>().join(", ")),
    })]
    NoGrant {
        /// The policy file, to which a grant would have to be added.
        file: String,
        /// The path asked for.
        path: DataPath,
        /// Grants that lie below it and could be asked for.
        below: Vec<DataPath>,
    },
    /// A longer life than the policy allows.
    #[error("{}: lifetime = \"{}\"{} is less than the {} asked for",
        match place { Some(place) => place.to_string(), None => file.clone() },
        show_duration(*allowed_secs), if place.is_some() { "" } else { " (the default)" }, show_duration(*asked_secs))]
    Lifetime {
        /// The line that would have to change; `None`: the policy leaves the default.
        place: Option<Place>,
        /// The policy file.
        file: String,
        /// What the policy allows, in seconds.
        allowed_secs: u64,
        /// What was asked for, in seconds.
        asked_secs: u64,
    },
    /// A life of no seconds.
    #[error("a contract must last at least one second")]
    NoLifetime,
    /// The policy's `until` has passed.
    #[error("{place}: `until` has passed, so no contract may be issued any more")]
    Ended {
        /// The line that would have to change.
        place: Place,
    },
    /// Parts of one grant that has a quota: each part would get the whole quota.
    #[error(
        "{place}: the quota holds for all of {path}, so parts of it cannot be granted side by side; ask for one part, or for the whole"
    )]
    QuotaSplit {
        /// The quota's line.
        place: Place,
        /// The grant that was asked for in parts.
        path: DataPath,
    },
    /// The path below the grant's mount path makes no mount path (it is too long).
    #[error("{place}: {path} cannot appear in the mount: {reason}")]
    MountPath {
        /// The grant's `mount` line.
        place: Place,
        /// The path asked for.
        path: DataPath,
        /// Why not.
        reason: NameError,
    },
    /// The result is no contract.
    #[error("{file}: what was asked for is no contract: {reason}")]
    Terms {
        /// The policy file.
        file: String,
        /// Why not.
        reason: TermsError,
    },
}

/// Rights that are missing, shown as a list of names and never as a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingRights(pub Rights);

impl std::fmt::Display for MissingRights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.0.iter().map(|right| right.name()).collect();
        f.write_str(&names.join(" "))
    }
}

impl Policy {
    /// The terms of a new contract: what the policy allows, narrowed as asked.
    ///
    /// # Errors
    /// [`CeilingError`] if more is asked than the policy allows, naming the line that would have to change.
    pub fn terms(&self, issue: &Issue) -> Result<Terms, CeilingError> {
        let expires = self.expiry(issue)?;
        let terms = Terms {
            version: VERSION,
            id: issue.id,
            issuer: issue.issuer,
            application: self.application.clone(),
            holder: issue.holder,
            gateway: issue.gateway,
            generation: issue.generation,
            not_before: issue.now_secs,
            expires,
            grants: self.narrowed_grants(&issue.narrow)?,
            limits: self.limits,
            networks: self.networks.as_ref().map(|networks| networks.value.clone()),
            audit: self.audit.value,
            undo: UndoSpace {
                bytes: self.undo_space.as_ref().map(|space| space.value),
                full: self.undo_full.value,
            },
            detection: self.detection.value,
            policy: self.digest,
        };
        match terms.check() {
            Ok(()) => Ok(terms),
            Err(reason) => Err(CeilingError::Terms { file: self.file.to_string(), reason }),
        }
    }

    fn expiry(&self, issue: &Issue) -> Result<u64, CeilingError> {
        let allowed_secs = self.lifetime_secs.value;
        let asked_secs = issue.lifetime_secs.unwrap_or(allowed_secs);
        if asked_secs == 0 {
            return Err(CeilingError::NoLifetime);
        }
        if asked_secs > allowed_secs {
            return Err(CeilingError::Lifetime {
                place: self.lifetime_secs.place.clone(),
                file: self.file.to_string(),
                allowed_secs,
                asked_secs,
            });
        }
        let expires = issue.now_secs.saturating_add(asked_secs);
        match &self.until_secs {
            Some(Setting { value: until, place: Some(place) }) if issue.now_secs >= *until => {
                Err(CeilingError::Ended { place: place.clone() })
            }
            Some(until) => Ok(expires.min(until.value)),
            None => Ok(expires),
        }
    }

    fn narrowed_grants(&self, narrow: &[Narrowing]) -> Result<Vec<Grant>, CeilingError> {
        if narrow.is_empty() {
            return Ok(self.grants.iter().map(|one| one.grant.clone()).collect());
        }
        // Pairs of the policy's grant and what is kept of it.
        let mut kept: Vec<(&PolicyGrant, Grant)> = vec![];
        for one in narrow {
            let parts = match &one.path {
                Some(path) => vec![self.part(path, one.rights)?],
                None => {
                    let parts = self.grants.iter().map(|from| narrowed(from, &from.grant.data, one.rights));
                    parts.collect::<Result<_, _>>()?
                }
            };
            for (from, grant) in parts {
                // A part of what is kept already adds nothing; what contains an earlier part replaces it.
                if kept.iter().any(|(_, other)| adds_nothing(&grant, other)) {
                    continue;
                }
                kept.retain(|(_, other)| !adds_nothing(other, &grant));
                kept.push((from, grant));
            }
        }
        for (n, (from, _)) in kept.iter().enumerate() {
            let limited = from.grant.quota_bytes.is_some() || from.grant.quota_files.is_some();
            if limited && kept.iter().skip(n + 1).any(|(other, _)| std::ptr::eq(*other, *from)) {
                let key = if from.grant.quota_bytes.is_some() { "quota" } else { "files" };
                return Err(CeilingError::QuotaSplit {
                    place: from.key_place(key).clone(),
                    path: from.grant.data.clone(),
                });
            }
        }
        Ok(kept.into_iter().map(|(_, grant)| grant).collect())
    }

    fn part(&self, path: &DataPath, rights: Option<Rights>) -> Result<(&PolicyGrant, Grant), CeilingError> {
        let over = self.grants_over(path);
        let Some(deepest) = over.first() else {
            let below = self.grants.iter().map(|one| &one.grant.data).filter(|data| path.contains(data));
            return Err(CeilingError::NoGrant {
                file: self.file.to_string(),
                path: path.clone(),
                below: below.cloned().collect(),
            });
        };
        let Some(wanted) = rights else { return narrowed(deepest, path, None) };
        if let Some(enough) = over.iter().find(|one| one.grant.rights.covers(wanted)) {
            return narrowed(enough, path, rights);
        }
        let together: Rights = over.iter().flat_map(|one| one.grant.rights.iter()).collect();
        if together.covers(wanted) {
            return Err(CeilingError::Spread {
                place: deepest.key_place("rights").clone(),
                wanted,
                path: path.clone(),
            });
        }
        narrowed(deepest, path, rights)
    }
}

/// Whether `part` permits nothing that `whole` does not, at the same place of the mount.
fn adds_nothing(part: &Grant, whole: &Grant) -> bool {
    whole.mount.contains(&part.mount) && whole.data.contains(&part.data) && whole.rights.covers(part.rights)
}

fn narrowed<'a>(
    from: &'a PolicyGrant,
    path: &DataPath,
    rights: Option<Rights>,
) -> Result<(&'a PolicyGrant, Grant), CeilingError> {
    let wanted = rights.unwrap_or(from.grant.rights);
    let missing = wanted.without(from.grant.rights);
    if !missing.is_empty() {
        return Err(CeilingError::Rights {
            place: from.key_place("rights").clone(),
            written: from.rights_text.clone(),
            missing: MissingRights(missing),
            path: path.clone(),
        });
    }
    let tail = path.as_str().strip_prefix(from.grant.data.as_str()).unwrap_or_default();
    let mount = format!("{}{tail}", from.grant.mount);
    let mount = mount.parse().map_err(|reason| CeilingError::MountPath {
        place: from.key_place("mount").clone(),
        path: path.clone(),
        reason,
    })?;
    Ok((from, Grant { data: path.clone(), mount, rights: wanted, ..from.grant.clone() }))
}
