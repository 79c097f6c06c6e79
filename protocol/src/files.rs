//! Contents of many small files as they travel in a frame's data: packed one after the other, little-endian.
//!
//! `position u16 | length u32 | attributes | contents`. `position` is the file's place in the list that was asked for. On each of
//! them the session holds at least a shared lease from now on: others are left out.

use crate::attr::Attr;
use crate::codec::{self, CodecError};
use crate::readdir::attr_bytes;

/// The most files in one request.
pub const MOST: usize = 64;
const FIXED: usize = 2 + 4;
/// Bytes of a file beside its contents.
pub const OVERHEAD: usize = FIXED + attr_bytes();

/// One file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileContents<'a> {
    /// Its place in the list that was asked for.
    pub position: u16,
    /// Its attributes from before it was read.
    pub attr: Attr,
    /// All its bytes.
    pub contents: &'a [u8],
}

/// Appends all of a file but its contents, which are to follow: `length` bytes.
///
/// # Errors
/// [`CodecError`] only if attributes could not be encoded, which their fixed size excludes.
pub fn push_head(out: &mut Vec<u8>, position: u16, attr: &Attr, length: u32) -> Result<(), CodecError> {
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    codec::encode_header(attr, out)
}

/// Reads files until the data end.
pub struct Files<'a> {
    rest: &'a [u8],
}

/// Reads the files of a frame's data.
pub fn files(data: &[u8]) -> Files<'_> {
    Files { rest: data }
}

impl<'a> Files<'a> {
    fn take(&mut self) -> Result<FileContents<'a>, CodecError> {
        let short = || CodecError("file cut off".into());
        let (position, rest) = self.rest.split_first_chunk::<2>().ok_or_else(short)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let (attr, rest) = rest.split_at_checked(attr_bytes()).ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (contents, rest) = rest.split_at_checked(length).ok_or_else(short)?;
        self.rest = rest;
        let position = u16::from_le_bytes(*position);
        Ok(FileContents { position, attr: codec::decode_header(attr)?, contents })
    }
}

impl<'a> Iterator for Files<'a> {
    type Item = Result<FileContents<'a>, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let file = self.take();
        if file.is_err() {
            self.rest = &[];
        }
        Some(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Time;

    fn attr(size: u64) -> Attr {
        let time = Time { secs: 3, nanos: 4 };
        Attr {
            ino: 7,
            generation: 1,
            mode: 0o100_644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            size,
            blocks: 8,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
        }
    }

    fn packed() -> Vec<u8> {
        let mut data = vec![];
        for (position, contents) in [(0, &b"abc"[..]), (63, b""), (5, &[9; 300])] {
            push_head(&mut data, position, &attr(contents.len() as u64), contents.len() as u32).unwrap();
            data.extend_from_slice(contents);
        }
        data
    }

    #[test]
    fn files_come_back() {
        let data = packed();
        assert_eq!(data.len(), 3 * OVERHEAD + 303);
        let read: Vec<_> = files(&data).collect::<Result<_, _>>().unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0], FileContents { position: 0, attr: attr(3), contents: b"abc" });
        assert_eq!((read[1].position, read[1].contents), (63, &b""[..]));
        assert_eq!((read[2].position, read[2].contents), (5, &[9; 300][..]));
    }

    #[test]
    fn what_is_cut_off_is_an_error_and_the_end() {
        let data = packed();
        for length in 0..data.len() {
            let read: Vec<_> = files(&data[..length]).collect();
            let whole = [0, OVERHEAD + 3, 2 * OVERHEAD + 3].contains(&length);
            assert_eq!(read.last().is_some_and(Result::is_err), !whole, "{length}");
            assert!(read.len() <= 3);
        }
        assert!(files(&[0xff; 400]).all(|file| file.is_err()));
    }
}
