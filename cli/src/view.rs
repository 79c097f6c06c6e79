//! A contract as it is shown, verified or merely claimed.

use serde_json::{Value, json};
use strongroom_contracts::armour::rfc3339;
use strongroom_contracts::chain::Quota;
use strongroom_contracts::terms::Narrowed;
use strongroom_contracts::{
    Application, Audit, Chain, ContractId, DataPath, Detection, Effective, GatewayId, MountPath, Network,
    OnVerdict, Ownership, PolicyDigest, PublicKey, Rights, SessionLimits, UndoFull, UndoSpace, VerifyError,
};

use crate::output::{Clock, Style, Table, bytes, span};

/// What a contract permits, for people. Decisions are made on [`Effective`] only.
#[derive(Clone, Debug)]
pub struct View {
    /// All blocks, first to last.
    pub ids: Vec<ContractId>,
    /// Whose.
    pub application: Application,
    /// Generation of the first block.
    pub generation: u64,
    /// Who may exercise it.
    pub holder: PublicKey,
    /// Where.
    pub gateway: GatewayId,
    /// Valid from, Unix seconds.
    pub not_before: u64,
    /// Valid until, Unix seconds.
    pub expires: u64,
    /// What it grants.
    pub grants: Vec<GrantView>,
    limits: SessionLimits,
    networks: Option<Vec<Network>>,
    audit: Audit,
    undo: UndoSpace,
    detection: Detection,
    policy: PolicyDigest,
}

/// One grant.
#[derive(Clone, Debug)]
pub struct GrantView {
    /// The subtree of the data root.
    pub data: DataPath,
    /// Where it appears.
    pub mount: MountPath,
    /// What may be done.
    pub rights: Rights,
    quotas: Vec<Quota>,
    max_file_bytes: Option<u64>,
    undo_secs: u64,
    ownership: Ownership,
}

impl View {
    /// Of a chain whose signatures were verified.
    pub fn verified(effective: &Effective, gateway: GatewayId) -> View {
        let grants = effective.grants.iter().map(|grant| GrantView {
            data: grant.data.clone(),
            mount: grant.mount.clone(),
            rights: grant.rights,
            quotas: grant.quotas.clone(),
            max_file_bytes: grant.max_file_bytes,
            undo_secs: grant.undo_secs,
            ownership: grant.ownership,
        });
        View {
            ids: effective.ids.clone(),
            application: effective.application.clone(),
            generation: effective.generation,
            holder: effective.holder,
            gateway,
            not_before: effective.not_before,
            expires: effective.expires,
            grants: grants.collect(),
            limits: effective.limits,
            networks: effective.networks.clone(),
            audit: effective.audit,
            undo: effective.undo,
            detection: effective.detection,
            policy: effective.policy,
        }
    }

    /// Of a chain whose issuer is not known here: what it says, if one believes it.
    ///
    /// # Errors
    /// [`VerifyError`] if a block is not readable.
    pub fn claimed(chain: &Chain) -> Result<View, VerifyError> {
        let terms = chain.claimed_terms()?;
        let grants = terms.grants.iter().map(|grant| GrantView {
            data: grant.data.clone(),
            mount: grant.mount.clone(),
            rights: grant.rights,
            quotas: quota(&grant.data, grant.quota_bytes, grant.quota_files),
            max_file_bytes: grant.max_file_bytes,
            undo_secs: grant.undo_secs,
            ownership: grant.ownership,
        });
        let mut view = View {
            ids: vec![terms.id],
            application: terms.application.clone(),
            generation: terms.generation,
            holder: terms.holder,
            gateway: terms.gateway,
            not_before: terms.not_before,
            expires: terms.expires,
            grants: grants.collect(),
            limits: terms.limits,
            networks: terms.networks.clone(),
            audit: terms.audit,
            undo: terms.undo,
            detection: terms.detection,
            policy: terms.policy,
        };
        for block in chain.claimed_attenuations()? {
            view.ids.push(block.id);
            view.holder = block.holder;
            view.not_before = view.not_before.max(block.not_before);
            view.expires = view.expires.min(block.expires);
            view.limits = view.limits.meet(block.limits);
            view.networks = block.networks.or(view.networks);
            view.grants = view
                .grants
                .iter()
                .flat_map(|grant| block.grants.iter().filter_map(|kept| grant.narrowed(kept)))
                .collect();
        }
        Ok(view)
    }

    /// The number of the last block.
    pub fn id(&self) -> ContractId {
        self.ids.last().copied().unwrap_or(ContractId::from_bytes([0; 16]))
    }

    /// `valid`, `not yet valid` or `expired`.
    pub fn time_word(&self, now: u64) -> &'static str {
        if now < self.not_before {
            "not yet valid"
        } else if now >= self.expires {
            "expired"
        } else {
            "valid"
        }
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let grant = |grant: &GrantView| {
            json!({
                "data": grant.data.as_str(),
                "mount": grant.mount.as_str(),
                "rights": grant.rights.iter().map(|right| right.name()).collect::<Vec<_>>(),
                "quotas": grant.quotas.iter().map(|quota| json!({
                    "path": quota.path.as_str(), "bytes": quota.bytes, "files": quota.files,
                })).collect::<Vec<_>>(),
                "max_file_bytes": grant.max_file_bytes,
                "undo_secs": grant.undo_secs,
                "ownership": grant.ownership.name(),
            })
        };
        json!({
            "contract": self.id().to_string(),
            "blocks": self.ids.iter().map(ContractId::to_string).collect::<Vec<_>>(),
            "application": self.application.as_str(),
            "generation": self.generation,
            "holder": self.holder.to_string(),
            "gateway": self.gateway.to_string(),
            "not_before": self.not_before,
            "not_before_at": rfc3339(self.not_before),
            "expires": self.expires,
            "expires_at": rfc3339(self.expires),
            "grants": self.grants.iter().map(grant).collect::<Vec<_>>(),
            "limits": {
                "read_rate": self.limits.read_rate,
                "write_rate": self.limits.write_rate,
                "op_rate": self.limits.op_rate,
                "in_flight": self.limits.in_flight,
                "open_handles": self.limits.open_handles,
            },
            "networks": self.networks.as_ref().map(|list| list.iter().map(Network::to_string).collect::<Vec<_>>()),
            "audit": self.audit.name(),
            "detection": {
                "verdict": self.detection.verdict.name(), "burst": self.detection.burst,
                "slow": self.detection.slow, "removed": self.detection.removed,
                "churn": self.detection.churn, "denied": self.detection.denied, "decoys": self.detection.decoys,
            },
            "undo": { "space_bytes": self.undo.bytes, "full": self.undo.full.name() },
            "policy": self.policy.to_string(),
        })
    }

    /// For people: names and values, then the grants.
    pub fn render(&self, clock: &Clock, style: Style) -> String {
        let mut table = Table::bare();
        let mut line = |name: &str, value: String| table.row([style.dim(name), value]);
        line("contract", self.id().to_string());
        if let Some((_, before)) = self.ids.split_last().filter(|(_, before)| !before.is_empty()) {
            let before: Vec<_> = before.iter().map(ContractId::to_string).collect();
            line("narrowed from", before.join(" → "));
        }
        line("application", format!("{}, generation {}", self.application, self.generation));
        line("holder", self.holder.to_string());
        line("gateway", self.gateway.to_string());
        if clock.now() < self.not_before {
            line("valid from", clock.show(self.not_before));
        }
        let until = clock.show(self.expires);
        let expired = clock.now() >= self.expires;
        line("valid until", if expired { style.red(&format!("{until}: expired")) } else { until });
        if let Some(networks) = &self.networks {
            let list: Vec<_> = networks.iter().map(Network::to_string).collect();
            line("from addresses", if list.is_empty() { "none".to_owned() } else { list.join(", ") });
        }
        let limits = self.limit_words();
        if !limits.is_empty() {
            line("limits", limits.join(", "));
        }
        if let Some(space) = self.undo.bytes {
            line("undo", format!("at most {} are kept to take changes back", bytes(space)));
        }
        match self.detection.verdict {
            OnVerdict::Alert => {}
            OnVerdict::Fence => {
                line("detection", "changes that look like ransomware fence it at once".to_owned())
            }
            OnVerdict::Off => line("detection", "changes are not watched".to_owned()),
        }
        if let Some(churn) = self.detection.churn {
            line("detection", format!("it changes at most {churn} files of others within a minute"));
        }
        if self.undo.full == UndoFull::Forget {
            line("undo", "the oldest changes are forgotten when its space is used up".to_owned());
        }
        if self.audit == Audit::Strict {
            line("audit", "strict: every operation is on record before it is answered".to_owned());
        }
        format!("{}{}", table.render(""), self.render_grants(style))
    }

    fn render_grants(&self, style: Style) -> String {
        let mut table = Table::new(style, &["MOUNT", "RIGHTS", "DATA", "LIMITS"]);
        for grant in &self.grants {
            table.row([
                grant.mount.to_string(),
                grant.rights.to_string(),
                grant.data.to_string(),
                grant.limit_words().join(", "),
            ]);
        }
        table.render("  ")
    }

    fn limit_words(&self) -> Vec<String> {
        let limits = &self.limits;
        let rate = |name: &str, rate: Option<u64>| rate.map(|rate| format!("{name} {}/s", bytes(rate)));
        let plain = |name: &str, count: Option<u64>| count.map(|count| format!("{count} {name}"));
        [
            rate("read", limits.read_rate),
            rate("write", limits.write_rate),
            plain("operations/s", limits.op_rate),
            plain("in flight", limits.in_flight.map(u64::from)),
            plain("open handles", limits.open_handles.map(u64::from)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl GrantView {
    fn narrowed(&self, kept: &Narrowed) -> Option<GrantView> {
        let deeper = if self.data.contains(&kept.data) {
            (kept.data.clone(), kept.mount.clone())
        } else if kept.data.contains(&self.data) {
            (self.data.clone(), self.mount.clone())
        } else {
            return None;
        };
        let rights = self.rights.meet(kept.rights);
        let mut quotas = self.quotas.clone();
        quotas.extend(quota(&kept.data, kept.quota_bytes, kept.quota_files));
        let max_file_bytes = [self.max_file_bytes, kept.max_file_bytes].into_iter().flatten().min();
        let (data, mount) = deeper;
        (!rights.is_empty()).then(|| GrantView {
            data,
            mount,
            rights,
            quotas,
            max_file_bytes,
            ..self.clone()
        })
    }

    fn limit_words(&self) -> Vec<String> {
        let mut words = vec![];
        for quota in &self.quotas {
            let place = if quota.path == self.data { String::new() } else { format!(" on {}", quota.path) };
            words.extend(quota.bytes.map(|count| format!("quota {}{place}", bytes(count))));
            words.extend(quota.files.map(|count| format!("{count} files{place}")));
        }
        words.extend(self.max_file_bytes.map(|count| format!("files up to {}", bytes(count))));
        if self.undo_secs > 0 {
            words.push(format!("undo {}", span(self.undo_secs)));
        }
        if self.ownership == Ownership::Preserve {
            words.push("ownership preserve".to_owned());
        }
        words
    }
}

fn quota(data: &DataPath, bytes: Option<u64>, files: Option<u64>) -> Vec<Quota> {
    match (bytes, files) {
        (None, None) => vec![],
        (bytes, files) => vec![Quota { path: data.clone(), bytes, files }],
    }
}
