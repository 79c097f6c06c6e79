//! The one place that turns signed structures into bytes and back.
//!
//! `bincode` 2.0.1 with fixed-width little-endian integers and a byte limit. That profile is not canonical by itself
//! (trailing bytes, collections), so [`decode`] also insists on the exact length and on equal bytes when encoded again.
//! Structures are flat: no recursion, no maps, no floats, no zero-size elements.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::error::DecodeError;
use bincode::{Decode, Encode};

/// The longest encoding of any structure of this crate, in bytes; a contract of 64 grants fits several times.
pub const MAX_BYTES: usize = 256 * 1024;

// The limit of bincode counts memory taken, which is more than bytes read; the length is checked separately.
const CONFIG: Configuration<LittleEndian, Fixint, Limit<{ 4 * MAX_BYTES }>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit();

/// Bytes that are not the encoding of the wanted structure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More than [`MAX_BYTES`].
    #[error("{0} bytes are more than the limit of {MAX_BYTES}")]
    TooLong(usize),
    /// Not decodable.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Decodable, but not the one encoding of what it decodes to (trailing bytes, for instance).
    #[error("not in canonical form")]
    NotCanonical,
}

/// Encodes a structure of this crate.
///
/// # Errors
/// [`CodecError::TooLong`] if the result exceeds [`MAX_BYTES`].
pub fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes =
        bincode::encode_to_vec(value, CONFIG).map_err(|error| CodecError::Malformed(error.to_string()))?;
    if bytes.len() > MAX_BYTES { Err(CodecError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Decodes a structure of this crate from exactly `bytes`.
///
/// # Errors
/// [`CodecError`] if the bytes are too many, malformed, or not canonical.
pub fn decode<T: Encode + Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_BYTES {
        return Err(CodecError::TooLong(bytes.len()));
    }
    let (value, used) = bincode::decode_from_slice::<T, _>(bytes, CONFIG)
        .map_err(|error| CodecError::Malformed(describe(error)))?;
    if used != bytes.len() || encode(&value)? != bytes {
        return Err(CodecError::NotCanonical);
    }
    Ok(value)
}

/// The error in words; `bincode` shows its errors as Rust values.
fn describe(error: DecodeError) -> String {
    match error {
        DecodeError::Other(reason) => reason.to_owned(),
        DecodeError::OtherString(reason) => reason,
        DecodeError::UnexpectedEnd { .. } => "it ends too early".to_owned(),
        DecodeError::LimitExceeded => "a length in it is beyond the limit".to_owned(),
        other => format!("{other:?}"),
    }
}
