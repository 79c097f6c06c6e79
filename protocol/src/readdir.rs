//! Directory entries as they travel in a frame's data: packed one after the other, little-endian.
//!
//! `ino u64 | cookie u64 | kind u8 (d_type) | name length u8 | plus u8 | name | attributes if plus is 1 or 2`. If it is 2, the
//! session holds a lease on the entry's node. Names are 1 to 255 bytes; `.` and `..` are left out: the client makes them.

use crate::attr::Attr;
use crate::codec::{self, CodecError};
use crate::name::{Name, NameError};

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode number in the storage guest.
    pub ino: u64,
    /// Where to go on after this entry.
    pub cookie: u64,
    /// File type (`d_type` of readdir(3)).
    pub kind: u8,
    /// Name.
    pub name: Name,
    /// Attributes; absent if not asked for, or if the entry vanished meanwhile.
    pub attr: Option<Attr>,
    /// Whether the session holds a shared lease on the entry's node from now on; only with attributes.
    pub leased: bool,
}

const FIXED: usize = 8 + 8 + 3;
/// An upper bound of an entry's bytes beside its name: the fixed part and encoded attributes.
pub const OVERHEAD: usize = FIXED + 160;

/// A page that leaves so many of the bytes asked for unused is the last one of its directory.
pub const SPARE: usize = 8 << 10;

/// Appends an entry.
///
/// # Errors
/// [`CodecError`] only if attributes could not be encoded, which their fixed size excludes.
pub fn push(out: &mut Vec<u8>, entry: &DirEntry) -> Result<(), CodecError> {
    out.extend_from_slice(&entry.ino.to_le_bytes());
    out.extend_from_slice(&entry.cookie.to_le_bytes());
    // A name is at most 255 bytes.
    let plus = u8::from(entry.attr.is_some()) + u8::from(entry.attr.is_some() && entry.leased);
    out.extend_from_slice(&[entry.kind, entry.name.as_bytes().len() as u8, plus]);
    out.extend_from_slice(entry.name.as_bytes());
    entry.attr.as_ref().map_or(Ok(()), |attr| codec::encode_header(attr, out))
}

/// Reads entries until the data end.
pub struct Entries<'a> {
    rest: &'a [u8],
}

/// Reads the entries of a frame's data.
pub fn entries(data: &[u8]) -> Entries<'_> {
    Entries { rest: data }
}

impl<'a> Entries<'a> {
    /// The bytes not read yet.
    pub fn remaining(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self) -> Result<DirEntry, CodecError> {
        let short = || CodecError("directory entry cut off".into());
        let (fixed, rest) = self.rest.split_first_chunk::<FIXED>().ok_or_else(short)?;
        let (ino, tail) = fixed.split_first_chunk::<8>().ok_or_else(short)?;
        let (cookie, tail) = tail.split_first_chunk::<8>().ok_or_else(short)?;
        let [kind, length, plus] = tail else { return Err(short()) };
        let (name, rest) = rest.split_at_checked(usize::from(*length)).ok_or_else(short)?;
        let name = Name::new(name).map_err(|error: NameError| CodecError(error.to_string()))?;
        let (attr, rest) = match plus {
            0 => (None, rest),
            1 | 2 => {
                let (attr, rest) = rest.split_at_checked(attr_bytes()).ok_or_else(short)?;
                (Some(codec::decode_header(attr)?), rest)
            }
            _ => return Err(CodecError("invalid directory entry".into())),
        };
        self.rest = rest;
        Ok(DirEntry {
            ino: u64::from_le_bytes(*ino),
            cookie: u64::from_le_bytes(*cookie),
            kind: *kind,
            name,
            attr,
            leased: *plus == 2,
        })
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<DirEntry, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.take();
        if entry.is_err() {
            self.rest = &[];
        }
        Some(entry)
    }
}

/// Bytes of encoded attributes: all members have a fixed width.
pub(crate) const fn attr_bytes() -> usize {
    // ino, generation; mode, nlink, uid, gid, rdev, blksize; size, blocks; four times.
    2 * 8 + 6 * 4 + 2 * 8 + 4 * 12
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Time;

    fn attr() -> Attr {
        let time = Time { secs: -3, nanos: 999_999_999 };
        Attr {
            ino: 7,
            generation: 1,
            mode: 0o100_644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            size: 3,
            blocks: 8,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
        }
    }

    #[test]
    fn entries_come_back() {
        let one = DirEntry {
            ino: 7,
            cookie: 9,
            kind: 8,
            name: Name::new(b"a").unwrap(),
            attr: Some(attr()),
            leased: true,
        };
        let two =
            DirEntry { name: Name::new(&[0xff; 255]).unwrap(), attr: None, leased: false, ..one.clone() };
        let mut data = vec![];
        push(&mut data, &one).unwrap();
        assert_eq!(data.len(), FIXED + 1 + attr_bytes());
        assert!(data.len() <= OVERHEAD + 1);
        push(&mut data, &two).unwrap();
        assert_eq!(entries(&data).collect::<Result<Vec<_>, _>>().unwrap(), [one, two]);
    }

    #[test]
    fn cut_off_entries_are_an_error_and_the_end() {
        let mut data = vec![];
        let one = DirEntry {
            ino: 7,
            cookie: 9,
            kind: 8,
            name: Name::new(b"abc").unwrap(),
            attr: Some(attr()),
            leased: false,
        };
        push(&mut data, &one).unwrap();
        for length in 1..data.len() {
            let read: Vec<_> = entries(&data[..length]).collect();
            assert_eq!(read.len(), 1);
            assert!(read[0].is_err());
        }
    }
}
