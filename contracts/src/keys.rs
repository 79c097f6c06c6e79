//! Ed25519 keys (RFC 8032) and the digests derived from them. The only file of this crate that imports `ring`.
//!
//! A secret key is shown by nothing: its `Debug` is redacted and its text form leaves only through
//! [`SecretKey::to_file_text`].

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bincode::{Decode, Encode};
use ring::digest::{Context, SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::id::{GatewayId, KeyId, PolicyDigest};

/// The fixed start of an Ed25519 SubjectPublicKeyInfo (RFC 8410); the 32 bytes of the key follow.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const PUBLIC_PREFIX: &str = "ed25519:";
const SECRET_HEADER: &str = "STRONGROOM SECRET KEY 1";

/// What is wrong with a key or a signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the text form of a public key.
    #[error("`{0}` is not a public key (`ed25519:` and 43 characters)")]
    PublicText(String),
    /// Not a SubjectPublicKeyInfo of an Ed25519 key.
    #[error("not an Ed25519 raw public key")]
    Spki,
    /// Not the text of a secret key file.
    #[error("not a secret key file of Strongroom (its first line is `{SECRET_HEADER}`)")]
    SecretText,
    /// A secret key file whose key cannot be used.
    #[error("the secret key is damaged")]
    SecretDamaged,
    /// The signature is not of this key over these bytes.
    #[error("the signature does not match")]
    Signature,
    /// The system's random source failed.
    #[error("the system's random source failed")]
    Random,
}

/// What a signature is for; the domain goes in front of the signed bytes, so that no signature serves two purposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// The first block of a contract, signed by the issuer.
    Contract,
    /// A later block, signed by the holder of the block before.
    Attenuation,
    /// A revocation statement, signed by the issuer.
    Revocation,
    /// A fence receipt, signed by the gateway.
    Receipt,
    /// What the names of a gateway's decoys are drawn from; never leaves the gateway.
    Decoys,
}

impl Domain {
    const fn tag(self) -> &'static [u8] {
        match self {
            Domain::Contract => b"strongroom contract 1\0",
            Domain::Attenuation => b"strongroom attenuation 1\0",
            Domain::Revocation => b"strongroom revocation 1\0",
            Domain::Receipt => b"strongroom fence receipt 1\0",
            Domain::Decoys => b"strongroom decoys 1\0",
        }
    }

    fn message(self, bytes: &[u8]) -> Vec<u8> {
        [self.tag(), bytes].concat()
    }
}

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Signature(pub(crate) [u8; 64]);

impl Signature {
    /// The bytes.
    pub const fn to_bytes(self) -> [u8; 64] {
        self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(…)")
    }
}

/// SHA-256 over a domain tag and some bytes.
pub(crate) fn digest(tag: &[u8], bytes: &[u8]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(tag);
    context.update(bytes);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

impl PolicyDigest {
    /// The digest of a policy file: plain SHA-256 of its text, so that `sha256sum` gives the same digits.
    pub fn of(text: &str) -> PolicyDigest {
        PolicyDigest::from_bytes(digest(b"", text.as_bytes()))
    }
}

/// Fills an array from the system's random source.
///
/// # Errors
/// [`KeyError::Random`] if the source fails.
pub fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError::Random)?;
    Ok(bytes)
}

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these bytes (RFC 8032, 5.1.5). Bytes that are no point on the curve verify nothing.
    pub const fn from_bytes(bytes: [u8; 32]) -> PublicKey {
        PublicKey(bytes)
    }

    /// The bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key as a DER SubjectPublicKeyInfo, the form of a raw public key in TLS (RFC 7250).
    pub fn to_spki(&self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0[..]].concat()
    }

    /// Reads the key from a DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`KeyError::Spki`] if it is of another form or algorithm.
    pub fn from_spki(der: &[u8]) -> Result<PublicKey, KeyError> {
        let key = der.strip_prefix(&SPKI_PREFIX[..]).ok_or(KeyError::Spki)?;
        Ok(PublicKey(key.try_into().map_err(|_| KeyError::Spki)?))
    }

    /// The short name of the key.
    pub fn id(&self) -> KeyId {
        let mut id = [0; 16];
        id.copy_from_slice(&digest(b"strongroom key id 1\0", &self.0)[..16]);
        KeyId::from_bytes(id)
    }

    /// The id of the gateway that has this key.
    pub fn gateway_id(&self) -> GatewayId {
        GatewayId::from_bytes(digest(b"strongroom gateway id 1\0", &self.0))
    }

    /// Checks a signature over `bytes` in `domain`.
    ///
    /// # Errors
    /// [`KeyError::Signature`] if it does not match.
    pub fn verify(&self, domain: Domain, bytes: &[u8], signature: &Signature) -> Result<(), KeyError> {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(&domain.message(bytes), &signature.0)
            .map_err(|_| KeyError::Signature)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bad = || KeyError::PublicText(text.to_owned());
        let encoded = text.strip_prefix(PUBLIC_PREFIX).ok_or_else(bad)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| bad())?;
        Ok(PublicKey(bytes.try_into().map_err(|_| bad())?))
    }
}

/// An Ed25519 key pair. Never printed, never compared.
pub struct SecretKey {
    pkcs8: Vec<u8>,
    pair: Ed25519KeyPair,
}

impl SecretKey {
    /// A fresh key from the system's random source.
    ///
    /// # Errors
    /// [`KeyError::Random`] if the source fails.
    pub fn generate() -> Result<SecretKey, KeyError> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
        SecretKey::from_pkcs8(pkcs8.as_ref())
    }

    /// Reads a key from PKCS#8 (RFC 8410).
    ///
    /// # Errors
    /// [`KeyError::SecretDamaged`] if it cannot be used.
    pub fn from_pkcs8(der: &[u8]) -> Result<SecretKey, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| KeyError::SecretDamaged)?;
        Ok(SecretKey { pkcs8: der.to_vec(), pair })
    }

    /// The key as PKCS#8, the form that TLS wants. Secret.
    pub fn to_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The text of a secret key file. Secret: write it only to a file of mode 0600.
    pub fn to_file_text(&self) -> String {
        format!("{SECRET_HEADER}\n{}\n", STANDARD.encode(&self.pkcs8))
    }

    /// Reads the text of a secret key file.
    ///
    /// # Errors
    /// [`KeyError::SecretText`] if it is something else, [`KeyError::SecretDamaged`] if the key cannot be used.
    pub fn from_file_text(text: &str) -> Result<SecretKey, KeyError> {
        let mut lines = text.lines();
        if lines.next().map(str::trim_end) != Some(SECRET_HEADER) {
            return Err(KeyError::SecretText);
        }
        let encoded: String = lines.map(str::trim).collect();
        SecretKey::from_pkcs8(&STANDARD.decode(encoded).map_err(|_| KeyError::SecretDamaged)?)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs `bytes` in `domain`.
    pub fn sign(&self, domain: Domain, bytes: &[u8]) -> Signature {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(&domain.message(bytes)).as_ref());
        Signature(signature)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_serves_one_purpose() {
        let key = SecretKey::generate().unwrap();
        let signature = key.sign(Domain::Contract, b"bytes");
        assert!(key.public().verify(Domain::Contract, b"bytes", &signature).is_ok());
        assert_eq!(key.public().verify(Domain::Revocation, b"bytes", &signature), Err(KeyError::Signature));
        assert_eq!(key.public().verify(Domain::Contract, b"bytez", &signature), Err(KeyError::Signature));
    }

    #[test]
    fn text_forms_come_back() {
        let key = SecretKey::generate().unwrap();
        let again = SecretKey::from_file_text(&key.to_file_text()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
        assert_eq!(PublicKey::from_spki(&key.public().to_spki()), Ok(key.public()));
        assert!(!format!("{key:?}").contains(key.to_file_text().lines().nth(1).unwrap()));
    }

    #[test]
    fn damaged_key_files_are_refused() {
        let text = SecretKey::generate().unwrap().to_file_text();
        assert_eq!(SecretKey::from_file_text("").unwrap_err(), KeyError::SecretText);
        assert_eq!(SecretKey::from_file_text(&text[..60]).unwrap_err(), KeyError::SecretDamaged);
        assert_eq!(
            SecretKey::from_file_text(&text.replace("KEY 1", "KEY 9")).unwrap_err(),
            KeyError::SecretText
        );
    }
}
