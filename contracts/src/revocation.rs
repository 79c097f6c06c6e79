//! Revocation statements: the issuer's signed word that contracts are void.

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::id::{ContractId, GatewayId, KeyId};
use crate::keys::{self, Domain, PublicKey, SecretKey, Signature};
use crate::path::Application;

/// The version of the structure; another one is refused.
pub const VERSION: u16 = 1;
/// The longest reason, in bytes.
pub const MAX_WHY_BYTES: usize = 512;

/// What is void.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Subject {
    /// The block with this number and all below it.
    Contract(ContractId),
    /// Every contract of the application with a generation below this one.
    Application {
        /// Whose.
        application: Application,
        /// The lowest generation that remains valid.
        below_generation: u64,
    },
}

/// A statement that something is void, for ever.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Revocation {
    /// [`VERSION`].
    pub version: u16,
    /// The key that signs.
    pub issuer: KeyId,
    /// The gateway that is told.
    pub gateway: GatewayId,
    /// What is void.
    pub subject: Subject,
    /// When it was signed, Unix seconds; information only.
    pub issued_at: u64,
    /// Why, for people; at most [`MAX_WHY_BYTES`].
    pub why: String,
}

/// A signed revocation statement, not verified.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SignedRevocation {
    payload: Vec<u8>,
    signature: Signature,
}

/// Why a revocation statement is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// Not decodable.
    #[error("the revocation is damaged: {0}")]
    Codec(#[from] CodecError),
    /// Not signed by the issuer.
    #[error("the revocation is not signed by the issuer")]
    Signature,
    /// For another gateway.
    #[error("the revocation is for another gateway ({0})")]
    Audience(GatewayId),
    /// Another version, another issuer, or a reason that is too long.
    #[error("the revocation is invalid: {0}")]
    Invalid(&'static str),
}

impl Revocation {
    /// Signs the statement.
    ///
    /// # Errors
    /// [`RevocationError::Invalid`] if the reason is too long, [`RevocationError::Codec`] if it cannot be encoded.
    pub fn sign(&self, issuer: &SecretKey) -> Result<SignedRevocation, RevocationError> {
        self.check(&issuer.public())?;
        let payload = codec::encode(self)?;
        let signature = issuer.sign(Domain::Revocation, &payload);
        Ok(SignedRevocation { payload, signature })
    }

    fn check(&self, issuer: &PublicKey) -> Result<(), RevocationError> {
        if self.version != VERSION {
            return Err(RevocationError::Invalid("unknown version"));
        }
        if self.why.len() > MAX_WHY_BYTES {
            return Err(RevocationError::Invalid("the reason is longer than 512 bytes"));
        }
        if self.issuer != issuer.id() {
            return Err(RevocationError::Invalid("it names another issuer"));
        }
        Ok(())
    }
}

impl SignedRevocation {
    /// Verifies the statement for a gateway.
    ///
    /// # Errors
    /// [`RevocationError`] if it is not the issuer's, or not for this gateway.
    pub fn verify(&self, issuer: &PublicKey, gateway: &GatewayId) -> Result<Revocation, RevocationError> {
        issuer
            .verify(Domain::Revocation, &self.payload, &self.signature)
            .map_err(|_| RevocationError::Signature)?;
        let revocation: Revocation = codec::decode(&self.payload)?;
        revocation.check(issuer)?;
        if revocation.gateway != *gateway {
            return Err(RevocationError::Audience(revocation.gateway));
        }
        Ok(revocation)
    }

    /// What a receipt refers to.
    pub fn digest(&self) -> [u8; 32] {
        keys::digest(
            b"strongroom revocation digest 1\0",
            &[&self.payload[..], &self.signature.0[..]].concat(),
        )
    }
}
