//! A contract as it travels: a chain of signed blocks, and the one way from its bytes to what it permits.
//!
//! INVARIANT: [`Effective`] is made by [`Chain::verify`] and nowhere else. Each block's signature is verified over the
//! bytes received before they are decoded; block n is verified with the holder key of block n-1 and names the digest
//! of that block, so blocks cannot be forged, exchanged or reordered. What the chain permits is the meet of its blocks.

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::detection::Detection;
use crate::grant::Ownership;
use crate::id::{ContractId, GatewayId, KeyId, PolicyDigest};
use crate::keys::{self, Domain, KeyError, PublicKey, SecretKey, Signature};
use crate::limits::SessionLimits;
use crate::network::Network;
use crate::path::{Application, DataPath, MountPath};
use crate::rights::Rights;
pub use crate::scope::Quota;
use crate::scope::{self, Region, Scope};
use crate::terms::{Attenuation, Audit, Narrowed, Terms, TermsError, UndoSpace};

/// Most attenuations after the first block.
pub const MAX_DEPTH: usize = 4;

/// A signed block.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Block {
    payload: Vec<u8>,
    signature: Signature,
}

impl Block {
    /// What the next block names as its parent.
    fn digest(&self) -> [u8; 32] {
        let signed = [&self.payload[..], &self.signature.0[..]].concat();
        keys::digest(b"strongroom block 1\0", &signed)
    }
}

/// A chain of signed blocks, not verified.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Chain {
    blocks: Vec<Block>,
}

/// Against what a chain is verified.
#[derive(Clone, Copy, Debug)]
pub struct VerifyContext<'a> {
    /// The one issuer that is believed.
    pub issuer: &'a PublicKey,
    /// The gateway at which the contract is to be used.
    pub gateway: &'a GatewayId,
    /// Seconds since the Unix epoch, by the gateway's clock.
    pub now: u64,
}

/// Why a chain is no contract here and now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The bytes are no chain.
    #[error("the contract is damaged: {0}")]
    Codec(#[from] CodecError),
    /// No block, or more than one and [`MAX_DEPTH`].
    #[error("the contract has {blocks} blocks; 1 to {most} are allowed", blocks = .0, most = MAX_DEPTH + 1)]
    Depth(usize),
    /// A block is not signed by whom it should be.
    #[error("block {block} of the contract is not signed by {}", if *.block == 0 { "the issuer" } else { "the holder of the block before" })]
    Signature {
        /// Which block, from 0.
        block: usize,
    },
    /// A block is rightly signed and makes no sense.
    #[error("block {block} of the contract is invalid: {reason}")]
    Terms {
        /// Which block, from 0.
        block: usize,
        /// What is wrong.
        reason: TermsError,
    },
    /// A block continues another block than the one before it.
    #[error("block {block} of the contract does not continue the block before it")]
    Order {
        /// Which block, from 0.
        block: usize,
    },
    /// The issuer named in the terms is not the one that signed.
    #[error("the contract names another issuer ({0})")]
    Issuer(KeyId),
    /// For another gateway.
    #[error("the contract is for another gateway ({0})")]
    Audience(GatewayId),
    /// Too early.
    #[error("the contract becomes valid in {} s (at {not_before}, it is {now}); if that is wrong, check the clocks", .not_before - .now)]
    NotYetValid {
        /// Valid from, Unix seconds.
        not_before: u64,
        /// The time of the check.
        now: u64,
    },
    /// Too late.
    #[error("the contract expired {} s ago (at {expires}, it is {now}); renew it, or check the clocks if that is wrong", .now - .expires)]
    Expired {
        /// Valid until, Unix seconds.
        expires: u64,
        /// The time of the check.
        now: u64,
    },
    /// The meet of the blocks permits nothing.
    #[error("the contract permits nothing: its blocks have no path in common")]
    Empty,
}

/// What one grant permits after the meet of all blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveGrant {
    /// The subtree of the data root.
    pub data: DataPath,
    /// Where it appears in the mount.
    pub mount: MountPath,
    /// What may be done there.
    pub rights: Rights,
    /// Quotas on this subtree and, from blocks before, on subtrees around it; sorted by path.
    pub quotas: Vec<Quota>,
    /// Largest size of one file, in bytes.
    pub max_file_bytes: Option<u64>,
    /// Undo window of the first block, in seconds.
    pub undo_secs: u64,
    /// Ownership of the first block.
    pub ownership: Ownership,
}

/// What a verified chain permits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The numbers of all blocks, first to last. Revoking any voids the contract.
    pub ids: Vec<ContractId>,
    /// For which application.
    pub application: Application,
    /// Generation of the first block.
    pub generation: u64,
    /// The key that may exercise it: the last block's holder.
    pub holder: PublicKey,
    /// Valid from, Unix seconds.
    pub not_before: u64,
    /// Valid until (exclusive), Unix seconds.
    pub expires: u64,
    /// What may be done where; mount paths do not contain each other.
    pub grants: Vec<EffectiveGrant>,
    /// How much of the gateway it may take.
    pub limits: SessionLimits,
    /// From which addresses; `None`: from any; an empty list: from none.
    pub networks: Option<Vec<Network>>,
    /// How it is recorded.
    pub audit: Audit,
    /// The room of its undo log.
    pub undo: UndoSpace,
    /// How its changes are watched.
    pub detection: Detection,
    /// The policy text it was issued from.
    pub policy: PolicyDigest,
}

impl Effective {
    /// The number of the last block: the contract as its holder knows it.
    pub fn id(&self) -> ContractId {
        // INVARIANT: Chain::verify makes at least one id.
        self.ids.last().copied().unwrap_or(ContractId::from_bytes([0; 16]))
    }

    /// Whether it may be used from `address`.
    pub fn allows_address(&self, address: std::net::IpAddr) -> bool {
        self.networks.as_ref().is_none_or(|list| list.iter().any(|network| network.contains(address)))
    }
}

impl Chain {
    /// Signs the terms of a new contract.
    ///
    /// # Errors
    /// [`VerifyError::Terms`] if the terms make no sense, [`VerifyError::Codec`] if they are too long.
    pub fn issue(terms: &Terms, issuer: &SecretKey) -> Result<Chain, VerifyError> {
        terms.check().map_err(|reason| VerifyError::Terms { block: 0, reason })?;
        let payload = codec::encode(terms)?;
        let signature = issuer.sign(Domain::Contract, &payload);
        Ok(Chain { blocks: vec![Block { payload, signature }] })
    }

    /// The chain with one more block, signed by the holder of the last; the parent is filled in here.
    ///
    /// # Errors
    /// [`VerifyError::Depth`] if the chain is at its longest, otherwise as [`Chain::issue`].
    pub fn attenuate(&self, mut block: Attenuation, holder: &SecretKey) -> Result<Chain, VerifyError> {
        let position = self.blocks.len();
        let Some(last) = self.blocks.last().filter(|_| position <= MAX_DEPTH) else {
            return Err(VerifyError::Depth(position + 1));
        };
        block.parent = last.digest();
        block.check().map_err(|reason| VerifyError::Terms { block: position, reason })?;
        let payload = codec::encode(&block)?;
        let signature = holder.sign(Domain::Attenuation, &payload);
        let mut blocks = self.blocks.clone();
        blocks.push(Block { payload, signature });
        Ok(Chain { blocks })
    }

    /// Reads a chain; nothing in it is verified or believed yet.
    ///
    /// # Errors
    /// [`CodecError`] if the bytes are no chain.
    pub fn from_bytes(bytes: &[u8]) -> Result<Chain, CodecError> {
        codec::decode(bytes)
    }

    /// The bytes of the chain.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] if they exceed the limit.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(self)
    }

    /// Verifies the chain for use at a gateway, now.
    ///
    /// Generation, revocation, holder and address are the caller's to compare: they depend on the ledger and the
    /// connection.
    ///
    /// # Errors
    /// The first [`VerifyError`] found.
    pub fn verify(&self, context: VerifyContext<'_>) -> Result<Effective, VerifyError> {
        let (effective, gateway) = self.verify_blocks(context.issuer)?;
        if gateway != *context.gateway {
            return Err(VerifyError::Audience(gateway));
        }
        if context.now < effective.not_before {
            return Err(VerifyError::NotYetValid { not_before: effective.not_before, now: context.now });
        }
        if context.now >= effective.expires {
            return Err(VerifyError::Expired { expires: effective.expires, now: context.now });
        }
        Ok(effective)
    }

    /// Verifies signatures, order and meaning, but neither audience nor time: for `contract show` and for the base
    /// domain. The gateway uses [`Chain::verify`].
    ///
    /// # Errors
    /// The first [`VerifyError`] found.
    pub fn verify_signed(&self, issuer: &PublicKey) -> Result<Effective, VerifyError> {
        Ok(self.verify_blocks(issuer)?.0)
    }

    /// What the chain permits, and at which gateway.
    fn verify_blocks(&self, issuer: &PublicKey) -> Result<(Effective, GatewayId), VerifyError> {
        let (terms, first) = self.first_block(issuer)?;
        let gateway = terms.gateway;
        let mut parent = first.digest();
        let mut effective = Effective::from_terms(terms);
        for (n, block) in self.blocks.iter().enumerate().skip(1) {
            effective
                .holder
                .verify(Domain::Attenuation, &block.payload, &block.signature)
                .map_err(|_: KeyError| VerifyError::Signature { block: n })?;
            let next: Attenuation = codec::decode(&block.payload)?;
            next.check().map_err(|reason| VerifyError::Terms { block: n, reason })?;
            if next.parent != parent {
                return Err(VerifyError::Order { block: n });
            }
            parent = block.digest();
            effective.narrow(next);
        }
        if effective.grants.is_empty() { Err(VerifyError::Empty) } else { Ok((effective, gateway)) }
    }

    fn first_block(&self, issuer: &PublicKey) -> Result<(Terms, &Block), VerifyError> {
        let first = self
            .blocks
            .first()
            .filter(|_| self.blocks.len() <= MAX_DEPTH + 1)
            .ok_or(VerifyError::Depth(self.blocks.len()))?;
        issuer
            .verify(Domain::Contract, &first.payload, &first.signature)
            .map_err(|_: KeyError| VerifyError::Signature { block: 0 })?;
        let terms: Terms = codec::decode(&first.payload)?;
        terms.check().map_err(|reason| VerifyError::Terms { block: 0, reason })?;
        if terms.issuer != issuer.id() {
            return Err(VerifyError::Issuer(terms.issuer));
        }
        Ok((terms, first))
    }

    /// What the first block says, without verifying anything: only to tell a person what a file claims, and for the
    /// client to find its gateway. Decisions are made on [`Chain::verify`].
    ///
    /// # Errors
    /// [`VerifyError::Depth`] or [`VerifyError::Codec`] if there is no readable first block.
    pub fn claimed_terms(&self) -> Result<Terms, VerifyError> {
        let first = self.blocks.first().ok_or(VerifyError::Depth(0))?;
        Ok(codec::decode(&first.payload)?)
    }

    /// The attenuations after the first block, unverified likewise.
    ///
    /// # Errors
    /// [`VerifyError::Codec`] if one is not readable.
    pub fn claimed_attenuations(&self) -> Result<Vec<Attenuation>, VerifyError> {
        self.blocks.iter().skip(1).map(|block| Ok(codec::decode(&block.payload)?)).collect()
    }
}

impl Effective {
    fn from_terms(terms: Terms) -> Effective {
        let grants = terms
            .grants
            .into_iter()
            .map(|grant| EffectiveGrant {
                quotas: scope::quotas(&grant.data, grant.quota_bytes, grant.quota_files),
                data: grant.data,
                mount: grant.mount,
                rights: grant.rights,
                max_file_bytes: grant.max_file_bytes,
                undo_secs: grant.undo_secs,
                ownership: grant.ownership,
            })
            .collect();
        Effective {
            ids: vec![terms.id],
            application: terms.application,
            generation: terms.generation,
            holder: terms.holder,
            not_before: terms.not_before,
            expires: terms.expires,
            grants,
            limits: terms.limits,
            networks: terms.networks.map(scope::normal_networks),
            audit: terms.audit,
            undo: terms.undo,
            detection: terms.detection,
            policy: terms.policy,
        }
    }

    /// The meet with an attenuation.
    fn narrow(&mut self, block: Attenuation) {
        let before = std::mem::take(&mut self.grants);
        let within = Scope {
            regions: before.iter().map(EffectiveGrant::region).collect(),
            limits: self.limits,
            networks: self.networks.take(),
            not_before: self.not_before,
            expires: self.expires,
        };
        let kept = Scope {
            regions: block.grants.iter().flat_map(|kept| clamped(kept, &before)).collect(),
            limits: block.limits,
            networks: block.networks.map(scope::normal_networks),
            not_before: block.not_before,
            expires: block.expires,
        };
        let met = within.meet(&kept);
        self.ids.push(block.id);
        self.holder = block.holder;
        self.not_before = met.not_before;
        self.expires = met.expires;
        self.limits = met.limits;
        self.networks = met.networks;
        self.grants = met.regions.into_iter().filter_map(|region| of_region(region, &before)).collect();
    }
}

impl EffectiveGrant {
    fn region(&self) -> Region {
        Region {
            data: self.data.clone(),
            mount: self.mount.clone(),
            rights: self.rights,
            quotas: self.quotas.clone(),
            max_file_bytes: self.max_file_bytes,
        }
    }
}

/// What an attenuation keeps, cut to the grants that its signer has.
///
/// The meet would do that for paths and rights; a quota, however, counts its whole subtree. A signer must not be able to
/// name a subtree around its grants and learn from a full quota how much others keep there.
fn clamped(kept: &Narrowed, before: &[EffectiveGrant]) -> Vec<Region> {
    let region = |data: &DataPath, mount: &MountPath| Region {
        data: data.clone(),
        mount: mount.clone(),
        rights: kept.rights,
        quotas: scope::quotas(data, kept.quota_bytes, kept.quota_files),
        max_file_bytes: kept.max_file_bytes,
    };
    let whole = region(&kept.data, &kept.mount);
    let met = before.iter().filter_map(|grant| grant.region().meet(&whole));
    met.map(|met| region(&met.data, &met.mount)).collect()
}

/// The grant that a met region is a part of gives it the undo window and the ownership.
fn of_region(region: Region, before: &[EffectiveGrant]) -> Option<EffectiveGrant> {
    // Mount paths of grants do not contain each other, so there is exactly one.
    let from = before.iter().find(|grant| grant.mount.contains(&region.mount))?;
    Some(EffectiveGrant {
        data: region.data,
        mount: region.mount,
        rights: region.rights,
        quotas: region.quotas,
        max_file_bytes: region.max_file_bytes,
        undo_secs: from.undo_secs,
        ownership: from.ownership,
    })
}
