//! What it costs to verify a contract: a gateway does it once for each session that begins.
//!
//! `cargo bench -p strongroom-benches --bench verify`
#![allow(missing_docs, reason = "divan's macros make items of their own")]

use anyhow::{Context as _, Result};
use divan::{Bencher, black_box};
use strongroom_contracts::terms::{self, Narrowed};
use strongroom_contracts::{
    Attenuation, Audit, Chain, ContractId, DataPath, Detection, Effective, GatewayId, Grant, MountPath,
    Ownership, PolicyDigest, PublicKey, Rights, SecretKey, SessionLimits, Terms, UndoSpace, VerifyContext,
};

const NOW: u64 = 1_800_000_000;

fn main() {
    divan::main();
}

/// A contract as it arrives, and what it is verified with.
struct Arrival {
    bytes: Vec<u8>,
    issuer: PublicKey,
    gateway: GatewayId,
}

impl Arrival {
    /// A contract of three grants, as in the policy of the guide, with this many blocks.
    fn with_blocks(blocks: usize) -> Result<Arrival> {
        let (issuer, holder) = (SecretKey::generate()?, SecretKey::generate()?);
        let gateway = SecretKey::generate()?.public().gateway_id();
        let grants = [
            ("users/alice/Mail", "/Mail", Rights::READ_WRITE),
            ("users/alice/Photos", "/Photos", Rights::APPEND_ONLY),
            ("shared", "/shared", Rights::READ_ONLY),
        ];
        let grants: Vec<Grant> = grants
            .into_iter()
            .map(|(data, mount, rights)| grant(data, mount, rights))
            .collect::<Result<_>>()?;
        let terms = Terms {
            version: terms::VERSION,
            id: ContractId::from_bytes([1; 16]),
            issuer: issuer.public().id(),
            application: "mail".parse()?,
            holder: holder.public(),
            gateway,
            generation: 1,
            not_before: NOW - 1,
            expires: NOW + 3600,
            grants,
            limits: SessionLimits::default(),
            networks: Some(vec!["10.77.0.0/24".parse()?]),
            audit: Audit::Normal,
            undo: UndoSpace::default(),
            detection: Detection::default(),
            policy: PolicyDigest::of(""),
        };
        let mut chain = Chain::issue(&terms, &issuer)?;
        for _ in 1..blocks {
            chain = chain.attenuate(same(&terms), &holder)?;
        }
        let arrival = Arrival { bytes: chain.to_bytes()?, issuer: issuer.public(), gateway };
        arrival.verify().context("the benchmark's own contract")?;
        Ok(arrival)
    }

    fn verify(&self) -> Result<Effective> {
        let context = VerifyContext { issuer: &self.issuer, gateway: &self.gateway, now: NOW };
        Ok(Chain::from_bytes(&self.bytes)?.verify(context)?)
    }
}

fn grant(data: &str, mount: &str, rights: Rights) -> Result<Grant> {
    Ok(Grant {
        data: data.parse::<DataPath>()?,
        mount: mount.parse::<MountPath>()?,
        rights,
        quota_bytes: Some(20 << 30),
        quota_files: None,
        max_file_bytes: None,
        undo_secs: 86400,
        ownership: Ownership::Single,
    })
}

/// An attenuation for the same holder that keeps everything: the most work for the meet.
fn same(terms: &Terms) -> Attenuation {
    let kept = |grant: &Grant| Narrowed {
        data: grant.data.clone(),
        mount: grant.mount.clone(),
        rights: grant.rights,
        quota_bytes: grant.quota_bytes,
        quota_files: grant.quota_files,
        max_file_bytes: grant.max_file_bytes,
    };
    Attenuation {
        version: terms::VERSION,
        id: ContractId::from_bytes([2; 16]),
        parent: [0; 32],
        holder: terms.holder,
        not_before: terms.not_before,
        expires: terms.expires,
        grants: terms.grants.iter().map(kept).collect(),
        limits: terms.limits,
        networks: terms.networks.clone(),
    }
}

/// From the bytes of the first frame to what they permit.
#[divan::bench(args = [1, 5])]
fn contract_of_blocks(bencher: Bencher, blocks: usize) {
    // A benchmark has no way to report an error but to stop.
    #[allow(clippy::expect_used)]
    let arrival = Arrival::with_blocks(blocks).expect("a contract");
    bencher.bench(|| black_box(&arrival).verify().is_ok());
}
