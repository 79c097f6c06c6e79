//! The one place that turns headers into bytes and back; the profile is that of the contracts' codec.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

use crate::frame::{MAX_DATA, MAX_HEADER};

// The limit counts memory taken, which is more than bytes read; lengths are checked separately.
const HEADER: Configuration<LittleEndian, Fixint, Limit<{ 8 * MAX_HEADER }>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit();
const LIST: Configuration<LittleEndian, Fixint, Limit<{ 8 * MAX_DATA }>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit();

/// Bytes that are not the encoding of the wanted structure, or a structure that is too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct CodecError(pub String);

/// Appends the encoding of a header to `out`.
///
/// # Errors
/// [`CodecError`] if it is longer than [`MAX_HEADER`].
pub fn encode_header<T: Encode>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    bincode::encode_into_std_write(value, out, HEADER).map_err(|error| CodecError(error.to_string()))?;
    if out.len() - start > MAX_HEADER {
        out.truncate(start);
        return Err(CodecError("header too long".into()));
    }
    Ok(())
}

/// Decodes a header from exactly `bytes`.
///
/// # Errors
/// [`CodecError`] if they are malformed, too many, or followed by others.
pub fn decode_header<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_HEADER {
        return Err(CodecError("header too long".into()));
    }
    exact(bincode::decode_from_slice(bytes, HEADER), bytes.len())
}

/// Encodes a list that travels as a frame's data (grants, admin answers).
///
/// # Errors
/// [`CodecError`] if it is longer than [`MAX_DATA`].
pub fn encode_list<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::encode_to_vec(value, LIST).map_err(|error| CodecError(error.to_string()))?;
    if bytes.len() > MAX_DATA { Err(CodecError("list too long".into())) } else { Ok(bytes) }
}

/// Decodes a list from exactly `bytes`.
///
/// # Errors
/// [`CodecError`] if they are malformed, too many, or followed by others.
pub fn decode_list<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_DATA {
        return Err(CodecError("list too long".into()));
    }
    exact(bincode::decode_from_slice(bytes, LIST), bytes.len())
}

fn exact<T>(
    decoded: Result<(T, usize), bincode::error::DecodeError>,
    length: usize,
) -> Result<T, CodecError> {
    match decoded {
        Ok((value, used)) if used == length => Ok(value),
        Ok(_) => Err(CodecError("trailing bytes".into())),
        Err(error) => Err(CodecError(error.to_string())),
    }
}
