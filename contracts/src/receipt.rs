//! Fence receipts: the gateway's signed word that nothing of a contract reaches the data any more.

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::id::GatewayId;
use crate::keys::{Domain, PublicKey, SecretKey, Signature};
use crate::revocation::Subject;

/// The version of the structure; another one is refused.
pub const VERSION: u16 = 1;

/// What the gateway answers to a revocation, once it holds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FenceReceipt {
    /// [`VERSION`].
    pub version: u16,
    /// The gateway that fenced.
    pub gateway: GatewayId,
    /// The digest of the revocation that was carried out.
    pub revocation: [u8; 32],
    /// What is void.
    pub subject: Subject,
    /// The highest generation among the sessions that were cut; 0 if there was none.
    pub generation: u64,
    /// Sessions that were cut.
    pub sessions: u32,
    /// The gateway-wide number of the last operation that was let through for any of them; 0 if there was none.
    pub last_operation: u64,
    /// Operations that were in flight and were waited for.
    pub drained: u32,
    /// Handles that were closed.
    pub handles_closed: u32,
    /// When it held, in microseconds since the Unix epoch.
    pub fenced_at_us: u64,
    /// From the receipt of the revocation until it held, in microseconds.
    pub took_us: u64,
}

/// A signed fence receipt, not verified.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SignedReceipt {
    payload: Vec<u8>,
    signature: Signature,
}

/// Why a receipt is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// Not decodable.
    #[error("the receipt is damaged: {0}")]
    Codec(#[from] CodecError),
    /// Not signed by the gateway, or another gateway's.
    #[error("the receipt is not signed by the gateway")]
    Signature,
    /// Another version.
    #[error("version {0} of receipts is not supported (this program knows {VERSION})")]
    Version(u16),
}

impl FenceReceipt {
    /// Signs the receipt.
    ///
    /// # Errors
    /// [`CodecError`] if it cannot be encoded.
    pub fn sign(&self, gateway: &SecretKey) -> Result<SignedReceipt, CodecError> {
        let payload = codec::encode(self)?;
        let signature = gateway.sign(Domain::Receipt, &payload);
        Ok(SignedReceipt { payload, signature })
    }
}

impl SignedReceipt {
    /// Verifies the receipt with the gateway's key.
    ///
    /// # Errors
    /// [`ReceiptError`] if it is not that gateway's.
    pub fn verify(&self, gateway: &PublicKey) -> Result<FenceReceipt, ReceiptError> {
        gateway
            .verify(Domain::Receipt, &self.payload, &self.signature)
            .map_err(|_| ReceiptError::Signature)?;
        let receipt: FenceReceipt = codec::decode(&self.payload)?;
        if receipt.version != VERSION {
            return Err(ReceiptError::Version(receipt.version));
        }
        if receipt.gateway == gateway.gateway_id() { Ok(receipt) } else { Err(ReceiptError::Signature) }
    }
}
