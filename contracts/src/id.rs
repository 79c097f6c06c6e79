//! Identifiers: fixed-size digests and numbers that are never confused with each other.
//!
//! Each is shown as lower-case hexadecimal with a prefix that tells its kind (`c-`, `gw-`, `key-`, `policy-`).

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};

/// Text that is not an identifier of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct IdError {
    text: String,
    expected: &'static str,
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    let mut out = [0u8; N];
    for (n, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some(out)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $prefix:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
        pub struct $name([u8; $len]);

        impl $name {
            /// The identifier with these bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes of the identifier.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                text.strip_prefix($prefix)
                    .and_then(from_hex)
                    .map(Self)
                    .ok_or_else(|| IdError { text: text.to_owned(), expected: $expected })
            }
        }
    };
}

id!(
    /// The 128-bit random number of a contract or of an attenuation block.
    ContractId, 16, "c-", "a contract id (`c-` and 32 hexadecimal digits)"
);
id!(
    /// The gateway's identity: SHA-256 of its public key under a domain tag.
    GatewayId, 32, "gw-", "a gateway id (`gw-` and 64 hexadecimal digits)"
);
id!(
    /// A short name for a public key: the first 16 bytes of its SHA-256 under a domain tag.
    KeyId, 16, "key-", "a key id (`key-` and 32 hexadecimal digits)"
);
id!(
    /// SHA-256 of the policy text that a contract was issued from.
    PolicyDigest, 32, "policy-", "a policy digest (`policy-` and 64 hexadecimal digits)"
);
