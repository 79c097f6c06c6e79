//! What the undo log records, and the bytes of it.
//!
//! A record on disk: length of the body (u32), CRC-32C of the body (u32), the body (a [`Record`] in bincode), all
//! little-endian. A record that is cut off or does not match its checksum ends the log: nothing behind it was written
//! before it.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

use super::crc::crc32c;
use crate::tree::{Node, Stat};

/// Most bytes of one record; pre-images that are longer are files in the vault.
pub(super) const MAX_BODY: usize = 160 * 1024;
const HEAD: usize = 8;
const CONFIG: Configuration<LittleEndian, Varint, Limit<{ 4 * MAX_BODY }>> =
    bincode::config::standard().with_limit();

/// An object on disk, as [`Stat`] tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct Object {
    pub(crate) ino: u64,
    pub(crate) generation: u64,
}

impl Object {
    pub(crate) fn of(node: &Node) -> Object {
        Object { ino: node.ino, generation: node.generation }
    }

    pub(crate) fn told(stat: &Stat) -> Object {
        Object { ino: stat.ino(), generation: stat.generation() }
    }
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub(crate) struct At {
    pub(crate) dir: Object,
    pub(crate) name: Vec<u8>,
}

/// Attributes before a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) size: u64,
    pub(crate) atime: (i64, u32),
    pub(crate) mtime: (i64, u32),
}

impl Attributes {
    pub(crate) fn of(stat: &Stat) -> Attributes {
        let attr = stat.attr();
        Attributes {
            mode: attr.mode,
            owner: (attr.uid, attr.gid),
            size: attr.size,
            atime: (attr.atime.secs, attr.atime.nanos),
            mtime: (attr.mtime.secs, attr.mtime.nanos),
        }
    }
}

/// Which side of an object is changed; a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub(crate) struct Sides(pub(crate) u8);

impl Sides {
    pub(crate) const CONTENT: Sides = Sides(1);
    /// Mode and owner.
    pub(crate) const MODE: Sides = Sides(2);
    pub(crate) const TIMES: Sides = Sides(4);
    pub(crate) const XATTRS: Sides = Sides(8);
    /// The names in a directory.
    pub(crate) const ENTRIES: Sides = Sides(16);
    pub(crate) const ALL: Sides = Sides(31);

    pub(crate) const fn has(self, other: Sides) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) const fn with(self, other: Sides) -> Sides {
        Sides(self.0 | other.0)
    }
}

/// Bytes as they were before a change.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Saved {
    /// Nothing had to be saved.
    Nothing,
    /// These bytes, at this offset.
    Bytes { offset: u64, bytes: Vec<u8> },
    /// The file in the vault with the record's number holds `length` bytes that were at `offset`.
    Range { offset: u64, length: u64 },
    /// The file in the vault with the record's number is a clone of the whole file.
    Clone,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum What {
    /// From here on, records with this index are of this contract (the chain's numbers, outermost first).
    Contract { index: u32, ids: Vec<[u8; 16]>, generation: u64 },
    /// Where an object is that others mention.
    Place { object: Object, at: At },
    /// An object is about to get a new name. What is made is told by a later `Made`, or the attempt is void.
    /// `after`: the kernel's time, in the form of a generation; it is born then or later.
    Making { at: At, after: u64 },
    /// What record `making` has made.
    Made { making: u64, object: Object },
    /// What this record announced did not happen.
    Void { record: u64 },
    /// Another name of an object.
    Linked { object: Object, at: At },
    /// A name was taken away; if `kept`, the object is in the vault under the record's number.
    Removed { object: Object, at: At, directory: bool, kept: bool },
    /// A name was moved. `replaced`: what had the new name before; if `kept`, it is in the vault.
    Renamed { object: Object, directory: bool, from: At, to: At, replaced: Option<Object>, kept: bool },
    /// Two names were exchanged.
    Exchanged { one: Object, from: At, other: Object, to: At },
    /// An object was changed. `before`: told once in an interval, before the first change.
    Changed { object: Object, sides: Sides, before: Option<Attributes>, saved: Saved },
    /// An extended attribute; `old` is its former value.
    Xattr { object: Object, name: Vec<u8>, old: Option<Vec<u8>> },
    /// An object that another application had changed was read.
    Read { object: Object, written_by: String },
    /// What was undone: by which run, since when.
    Undone { application: String, contract: Option<[u8; 16]>, since: u64, until: u64 },
    /// An undo has taken this record's change back.
    Done { record: u64 },
    /// An object that the undo put beside what had its name; the other is kept as it is.
    Beside { object: Object, at: At, of: Object },
    /// An undo is about to give an object that is there already this name: one from the vault, or an old version. Not a
    /// `Making`, which is told by a time of birth where a kill came before its `Made`.
    Returned { object: Object, at: At },
    /// An object that another application had changed was sent to a client that asks ahead of its users.
    Sent { object: Object, written_by: String },
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Record {
    /// Number and time: microseconds since the Unix epoch, made unique by counting on.
    pub(crate) seq: u64,
    /// The index of the contract in this segment.
    pub(crate) contract: u32,
    /// How long it can be taken back, in seconds; 0: not at all, it only tells what happened.
    pub(crate) window: u64,
    /// Bytes of the vault that it takes.
    pub(crate) cost: u64,
    pub(crate) what: What,
}

impl Record {
    /// Whether the vault keeps something under its number.
    pub(super) fn keeps(&self) -> bool {
        match &self.what {
            What::Removed { kept, .. } | What::Renamed { kept, .. } => *kept,
            What::Changed { saved: Saved::Range { .. } | Saved::Clone, .. } => true,
            _ => false,
        }
    }

    /// What remains of it when its change cannot be taken back any more.
    pub(super) fn stripped(self) -> Record {
        let what = match self.what {
            What::Removed { object, at, directory, .. } => {
                What::Removed { object, at, directory, kept: false }
            }
            What::Renamed { object, directory, from, to, replaced, .. } => {
                What::Renamed { object, directory, from, to, replaced, kept: false }
            }
            What::Changed { object, sides, .. } => {
                What::Changed { object, sides, before: None, saved: Saved::Nothing }
            }
            What::Xattr { object, name, .. } => What::Xattr { object, name, old: None },
            other => other,
        };
        Record { window: 0, cost: 0, what, ..self }
    }
}

/// Appends a record's bytes.
///
/// # Errors
/// The encoder's, if it is too long.
pub(super) fn encode(record: &Record, out: &mut Vec<u8>) -> Result<(), bincode::error::EncodeError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    if let Err(error) = bincode::encode_into_std_write(record, out, CONFIG) {
        out.truncate(start);
        return Err(error);
    }
    let length = out.len() - start - HEAD;
    let Some(body) = out.get(start + HEAD..).filter(|_| length <= MAX_BODY) else {
        out.truncate(start);
        return Err(bincode::error::EncodeError::Other("record too long"));
    };
    let crc = crc32c(body);
    // At most MAX_BODY.
    let head = [(length as u32).to_le_bytes(), crc.to_le_bytes()].concat();
    if let Some(place) = out.get_mut(start..start + HEAD) {
        place.copy_from_slice(&head);
    }
    Ok(())
}

/// The first record of some bytes and how many it takes; `None` if there is no whole one.
pub(super) fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let [a, b, c, d, e, f, g, h] = *head else { return None };
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let body = rest.get(..length).filter(|_| length > 0 && length <= MAX_BODY)?;
    if crc32c(body) != u32::from_le_bytes([e, f, g, h]) {
        return None;
    }
    let (record, used) = bincode::decode_from_slice(body, CONFIG).ok()?;
    (used == length).then_some((record, HEAD + length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(seq: u64, bytes: Vec<u8>) -> Record {
        let object = Object { ino: seq, generation: 7 };
        let saved = Saved::Bytes { offset: seq, bytes };
        Record {
            seq,
            contract: 1,
            window: 60,
            cost: 0,
            what: What::Changed { object, sides: Sides::CONTENT, before: None, saved },
        }
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written(seq: u64, bytes: Vec<u8>, cut: prop::sample::Index, flip: prop::sample::Index) {
            let one = record(seq, bytes);
            let mut out = vec![];
            encode(&one, &mut out).unwrap();
            prop_assert_eq!(decode(&out), Some((one.clone(), out.len())));
            prop_assert_eq!(decode(&out[..cut.index(out.len())]), None);
            let at = flip.index(out.len());
            out[at] ^= 0x10;
            prop_assert_eq!(decode(&out).filter(|(other, _)| *other == one), None);
        }

        #[test]
        fn no_bytes_break_the_reader(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let mut out = vec![1];
        assert!(encode(&record(1, vec![0; MAX_BODY + 1]), &mut out).is_err());
        assert_eq!(out, [1]);
    }
}
