//! What is signed: the terms of a contract (first block) and an attenuation (each later block).

use bincode::{Decode, Encode};

use crate::detection::Detection;
use crate::grant::Grant;
use crate::id::{ContractId, GatewayId, KeyId, PolicyDigest};
use crate::keys::PublicKey;
use crate::limits::SessionLimits;
use crate::network::Network;
use crate::path::{Application, DataPath, MountPath};
use crate::rights::Rights;

/// The version of both structures; another one is refused.
pub const VERSION: u16 = 2;
/// Most grants in one block.
pub const MAX_GRANTS: usize = 64;
/// Most networks in one block.
pub const MAX_NETWORKS: usize = 32;

/// When the audit record of an operation must be safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Encode, Decode)]
pub enum Audit {
    /// Denials and the life of sessions are recorded; the record may lag behind the answer.
    #[default]
    Normal,
    /// Every operation is recorded, and none is answered before its record is on stable storage.
    Strict,
}

impl Audit {
    /// The word used in policy files.
    pub const fn name(self) -> &'static str {
        match self {
            Audit::Normal => "normal",
            Audit::Strict => "strict",
        }
    }
}

/// What happens when the undo log of a contract has no room for what is about to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Encode, Decode)]
pub enum UndoFull {
    /// The contract is fenced: nothing is destroyed that could not be brought back.
    #[default]
    Fence,
    /// The oldest changes are forgotten, and cannot be taken back any more.
    Forget,
}

impl UndoFull {
    /// The word used in policy files.
    pub const fn name(self) -> &'static str {
        match self {
            UndoFull::Fence => "fence",
            UndoFull::Forget => "forget",
        }
    }
}

/// The room of an application's undo log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct UndoSpace {
    /// Most bytes; `None`: the gateway's own bound.
    pub bytes: Option<u64>,
    /// What happens when they are used up.
    pub full: UndoFull,
}

/// The terms of a contract, signed by the issuer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Terms {
    /// [`VERSION`].
    pub version: u16,
    /// The contract's number.
    pub id: ContractId,
    /// The key that signs.
    pub issuer: KeyId,
    /// For which application.
    pub application: Application,
    /// Who may exercise it.
    pub holder: PublicKey,
    /// At which gateway.
    pub gateway: GatewayId,
    /// Rises with each reissue.
    pub generation: u64,
    /// Valid from, in seconds since the Unix epoch, by the gateway's clock.
    pub not_before: u64,
    /// Valid until (exclusive), likewise.
    pub expires: u64,
    /// What may be done where. Mount paths do not contain each other.
    pub grants: Vec<Grant>,
    /// How much of the gateway it may take.
    pub limits: SessionLimits,
    /// From which addresses; `None`: from any.
    pub networks: Option<Vec<Network>>,
    /// How it is recorded.
    pub audit: Audit,
    /// The room of its undo log. No authority, so attenuations leave it as it is.
    pub undo: UndoSpace,
    /// How its changes are watched. No authority either.
    pub detection: Detection,
    /// The policy text it was issued from.
    pub policy: PolicyDigest,
}

/// A grant as an attenuation states it: what it keeps of a grant of the block before.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Narrowed {
    /// The subtree kept: the data path of the grant or one below it.
    pub data: DataPath,
    /// The mount path that belongs to it: the grant's, with the same tail as `data`.
    pub mount: MountPath,
    /// The rights kept.
    pub rights: Rights,
    /// A tighter quota on the subtree, in bytes.
    pub quota_bytes: Option<u64>,
    /// A tighter quota on the subtree, in files.
    pub quota_files: Option<u64>,
    /// A tighter limit on the size of a file, in bytes.
    pub max_file_bytes: Option<u64>,
}

/// A narrowing of a contract for another key, signed by the holder of the block before.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attenuation {
    /// [`VERSION`].
    pub version: u16,
    /// The block's number; revoking it voids this block and all below.
    pub id: ContractId,
    /// SHA-256 of the signed block before, so that blocks cannot be exchanged or reordered.
    pub parent: [u8; 32],
    /// Who may exercise the narrower contract.
    pub holder: PublicKey,
    /// Not valid before, in seconds since the Unix epoch.
    pub not_before: u64,
    /// Valid until (exclusive), likewise.
    pub expires: u64,
    /// What it keeps.
    pub grants: Vec<Narrowed>,
    /// Tighter limits.
    pub limits: SessionLimits,
    /// Fewer networks; `None`: those of the block before.
    pub networks: Option<Vec<Network>>,
}

/// Terms or an attenuation that make no sense, signed or not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// Another version.
    #[error("version {0} is not supported (this program knows {VERSION})")]
    Version(u16),
    /// No grant.
    #[error("it grants nothing")]
    NoGrants,
    /// Too many grants or networks.
    #[error("it has {0} {1}, more than {2}")]
    TooMany(usize, &'static str, usize),
    /// A grant without rights.
    #[error("the grant at `{0}` has no rights")]
    NoRights(MountPath),
    /// Mount paths that are equal, or one below the other.
    #[error("the mount paths `{0}` and `{1}` overlap")]
    Overlap(MountPath, MountPath),
    /// It ends before it begins.
    #[error("it expires before it becomes valid")]
    Window,
    /// Its list of networks is there but empty.
    #[error("its list of networks is empty")]
    NoNetworks,
    /// Generation 0; the first is 1.
    #[error("generation 0 does not exist")]
    Generation,
}

fn check_common<'a>(
    version: u16,
    window: (u64, u64),
    grants: impl Iterator<Item = (&'a MountPath, Rights)> + Clone,
    networks: Option<&Vec<Network>>,
) -> Result<(), TermsError> {
    if version != VERSION {
        return Err(TermsError::Version(version));
    }
    let count = grants.clone().count();
    if count == 0 {
        return Err(TermsError::NoGrants);
    }
    if count > MAX_GRANTS {
        return Err(TermsError::TooMany(count, "grants", MAX_GRANTS));
    }
    for (n, (mount, rights)) in grants.clone().enumerate() {
        if rights.is_empty() {
            return Err(TermsError::NoRights(mount.clone()));
        }
        if let Some((other, _)) =
            grants.clone().take(n).find(|(other, _)| other.contains(mount) || mount.contains(other))
        {
            return Err(TermsError::Overlap(other.clone(), mount.clone()));
        }
    }
    match networks {
        Some(list) if list.is_empty() => return Err(TermsError::NoNetworks),
        Some(list) if list.len() > MAX_NETWORKS => {
            return Err(TermsError::TooMany(list.len(), "networks", MAX_NETWORKS));
        }
        _ => {}
    }
    if window.0 >= window.1 { Err(TermsError::Window) } else { Ok(()) }
}

impl Terms {
    /// Checks what no encoding can express.
    ///
    /// # Errors
    /// The first [`TermsError`] found.
    pub fn check(&self) -> Result<(), TermsError> {
        if self.generation == 0 {
            return Err(TermsError::Generation);
        }
        let grants = self.grants.iter().map(|grant| (&grant.mount, grant.rights));
        check_common(self.version, (self.not_before, self.expires), grants, self.networks.as_ref())
    }
}

impl Attenuation {
    /// Checks what no encoding can express.
    ///
    /// # Errors
    /// The first [`TermsError`] found.
    pub fn check(&self) -> Result<(), TermsError> {
        let grants = self.grants.iter().map(|grant| (&grant.mount, grant.rights));
        check_common(self.version, (self.not_before, self.expires), grants, self.networks.as_ref())
    }
}
