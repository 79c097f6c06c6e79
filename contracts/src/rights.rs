//! The rights lattice: sets of seven rights ordered by inclusion.
//!
//! Meet is intersection. There is no public operation that adds a right to a set that came from a contract:
//! sets are built from names (policy) and afterwards only intersected.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};

/// One right. The discriminant is its bit in the encoded set and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Right {
    /// See names and attributes below the path.
    List = 0,
    /// Read contents, symlinks and user extended attributes.
    Read = 1,
    /// Make new files, directories and links; the handle that created a file may write it until it is released.
    Create = 2,
    /// Extend files; never change or cut existing bytes.
    Append = 3,
    /// Change and truncate existing bytes.
    Write = 4,
    /// Unlink, rmdir, rename away, replace by rename.
    Delete = 5,
    /// chmod, utimens, user extended attributes.
    Attr = 6,
}

impl Right {
    /// All rights, in the order in which they are shown.
    pub const ALL: [Right; 7] =
        [Right::List, Right::Read, Right::Create, Right::Append, Right::Write, Right::Delete, Right::Attr];

    /// The name used in policy files, output and audit lines.
    pub const fn name(self) -> &'static str {
        match self {
            Right::List => "list",
            Right::Read => "read",
            Right::Create => "create",
            Right::Append => "append",
            Right::Write => "write",
            Right::Delete => "delete",
            Right::Attr => "attr",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of rights.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rights(u8);

impl Rights {
    /// No right at all.
    pub const NONE: Rights = Rights(0);
    /// `read-only`: list, read.
    pub const READ_ONLY: Rights = Rights(0b000_0011);
    /// `append-only`: list, read, create, append.
    pub const APPEND_ONLY: Rights = Rights(0b000_1111);
    /// `drop-box`: create, append; neither listing nor reading back.
    pub const DROP_BOX: Rights = Rights(0b000_1100);
    /// `read-write`: all seven.
    pub const READ_WRITE: Rights = Rights(0b111_1111);

    /// The bundles that policy files may name, with their sets.
    pub const BUNDLES: [(&'static str, Rights); 4] = [
        ("read-only", Rights::READ_ONLY),
        ("append-only", Rights::APPEND_ONLY),
        ("drop-box", Rights::DROP_BOX),
        ("read-write", Rights::READ_WRITE),
    ];

    /// The set that holds `right` only.
    pub const fn only(right: Right) -> Rights {
        Rights(1 << right as u8)
    }

    /// Whether `right` is in the set.
    pub const fn has(self, right: Right) -> bool {
        self.0 & (1 << right as u8) != 0
    }

    /// Whether every right of `needed` is in the set.
    pub const fn covers(self, needed: Rights) -> bool {
        self.0 & needed.0 == needed.0
    }

    /// The meet: the rights that both sets hold.
    #[must_use]
    pub const fn meet(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }

    /// The rights of `self` that `other` lacks.
    #[must_use]
    pub const fn without(self, other: Rights) -> Rights {
        Rights(self.0 & !other.0)
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The rights in the set, in display order.
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.has(*right))
    }

    /// The bundle's name if the set is exactly a bundle.
    pub fn bundle(self) -> Option<&'static str> {
        Self::BUNDLES.iter().find(|(_, set)| *set == self).map(|(name, _)| *name)
    }

    /// The encoded form: one bit for each right, the highest bit zero.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set with these bits, or `None` if a bit stands for no right.
    pub const fn from_bits(bits: u8) -> Option<Rights> {
        if bits & !Self::READ_WRITE.0 == 0 { Some(Rights(bits)) } else { None }
    }
}

/// Collects rights by name; used where policies and command lines are read.
impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        Rights(rights.into_iter().fold(0, |set, right| set | Rights::only(right).0))
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(bundle) = self.bundle() {
            return f.write_str(bundle);
        }
        if self.is_empty() {
            return f.write_str("none");
        }
        for (n, right) in self.iter().enumerate() {
            if n > 0 {
                f.write_str(" ")?;
            }
            f.write_str(right.name())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rights({self})")
    }
}

/// A word that names neither a right nor a bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{word}` is neither a right (list read create append write delete attr) nor a bundle (read-only append-only drop-box read-write)"
)]
pub struct UnknownRight {
    /// The word as it was given.
    pub word: String,
}

impl FromStr for Rights {
    type Err = UnknownRight;

    /// Reads a bundle's name, or rights' names separated by spaces or commas.
    fn from_str(text: &str) -> Result<Self, UnknownRight> {
        let mut set = Rights::NONE;
        let mut words = 0;
        for word in text.split([' ', ',']).filter(|word| !word.is_empty()) {
            words += 1;
            let bundle = Self::BUNDLES.iter().find(|(name, _)| *name == word).map(|(_, rights)| *rights);
            let single = Right::ALL.into_iter().find(|right| right.name() == word).map(Rights::only);
            match bundle.or(single) {
                Some(rights) => set = Rights(set.0 | rights.0),
                None => return Err(UnknownRight { word: word.to_owned() }),
            }
        }
        if words == 0 { Err(UnknownRight { word: text.to_owned() }) } else { Ok(set) }
    }
}

impl Encode for Rights {
    fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
        self.0.encode(encoder)
    }
}

impl<Context> Decode<Context> for Rights {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let bits = u8::decode(decoder)?;
        Rights::from_bits(bits).ok_or(bincode::error::DecodeError::Other("unknown right bit"))
    }
}
bincode::impl_borrow_decode!(Rights);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_are_the_sets_of_the_design() {
        assert_eq!("list read".parse(), Ok(Rights::READ_ONLY));
        assert_eq!("list read create append".parse(), Ok(Rights::APPEND_ONLY));
        assert_eq!("create,append".parse(), Ok(Rights::DROP_BOX));
        assert_eq!(Right::ALL.into_iter().collect::<Rights>(), Rights::READ_WRITE);
        for (name, set) in Rights::BUNDLES {
            assert_eq!(name.parse(), Ok(set));
            assert_eq!(set.to_string(), name);
        }
    }

    #[test]
    fn unknown_words_and_empty_text_are_refused() {
        assert_eq!("list raed".parse::<Rights>(), Err(UnknownRight { word: "raed".into() }));
        assert!("".parse::<Rights>().is_err());
        assert!(" , ".parse::<Rights>().is_err());
    }

    #[test]
    fn only_known_bits_make_a_set() {
        assert_eq!(Rights::from_bits(0x7f), Some(Rights::READ_WRITE));
        assert_eq!(Rights::from_bits(0x80), None);
    }
}
