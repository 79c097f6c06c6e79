//! A directory entry's name as it comes from a guest.

use std::fmt;

use bincode::{Decode, Encode};

/// The longest name, in bytes (`NAME_MAX`, limits.h).
pub const MAX_NAME: usize = 255;
/// The longest path or symlink target, in bytes (`PATH_MAX`, limits.h).
pub const MAX_PATH: usize = 4096;

/// One component of a path: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`. Not necessarily UTF-8.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Encode)]
pub struct Name(Box<[u8]>);

/// Bytes that are no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// More than [`MAX_NAME`] bytes.
    #[error("name longer than 255 bytes")]
    TooLong,
    /// Empty, `.`, `..`, or with a `/` or NUL.
    #[error("not a file name")]
    Invalid,
}

impl Name {
    /// Checks bytes and makes them a name.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn new(bytes: &[u8]) -> Result<Name, NameError> {
        check(bytes)?;
        Ok(Name(bytes.into()))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as the operating system takes it.
    pub fn as_os_str(&self) -> &std::ffi::OsStr {
        std::os::unix::ffi::OsStrExt::from_bytes(&self.0)
    }
}

fn check(bytes: &[u8]) -> Result<(), NameError> {
    if bytes.len() > MAX_NAME {
        return Err(NameError::TooLong);
    }
    if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(NameError::Invalid);
    }
    Ok(())
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.0).escape_debug())
    }
}

impl<Context> Decode<Context> for Name {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let bytes = Vec::<u8>::decode(decoder)?;
        check(&bytes).map_err(|_| bincode::error::DecodeError::Other("invalid name"))?;
        Ok(Name(bytes.into()))
    }
}
bincode::impl_borrow_decode!(Name);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_escape() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'a'; 256]] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b".a", b"\xff\xfe", &[b'a'; 255]] {
            let name = Name::new(good).unwrap();
            let mut bytes = vec![];
            crate::codec::encode_header(&name, &mut bytes).unwrap();
            assert_eq!(crate::codec::decode_header::<Name>(&bytes).unwrap(), name);
        }
        let mut bytes = vec![];
        crate::codec::encode_header(&b"..".to_vec(), &mut bytes).unwrap();
        assert!(crate::codec::decode_header::<Name>(&bytes).is_err());
    }
}
