//! Names and paths of contracts, as types that cannot hold anything that escapes.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};

/// Why a text is not a path or a name of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A data path starts with `/`.
    #[error(
        "data path `{0}` starts with `/`; write it relative to the data root, such as `users/alice/Mail`"
    )]
    Absolute(String),
    /// A mount path does not start with `/`.
    #[error("mount path `{0}` does not start with `/`; write it as seen in the mount, such as `/Mail`")]
    NotAbsolute(String),
    /// An empty path, or an empty component (`a//b`, `a/`).
    #[error("path `{0}` has an empty component")]
    EmptyComponent(String),
    /// A component is `.` or `..`.
    #[error("path `{0}` has a `.` or `..` component; write the path out")]
    Dots(String),
    /// A NUL or another control character.
    #[error("path `{}` has a control character", .0.escape_default())]
    Control(String),
    /// The whole is longer than the limit, or one component is longer than 255 bytes.
    #[error("path of {0} bytes is too long (at most {MAX_PATH_BYTES}, and 255 for each component)")]
    TooLong(usize),
    /// An application's name outside `[a-z0-9][a-z0-9._-]{0,63}`.
    #[error(
        "application name `{0}` is not lower-case letters, digits, `.`, `_`, `-` (at most 64, starting with a letter or digit)"
    )]
    Application(String),
}

/// The longest path of a grant, in bytes.
pub const MAX_PATH_BYTES: usize = 1024;

fn check_components(whole: &str, components: &str) -> Result<(), NameError> {
    if whole.len() > MAX_PATH_BYTES {
        return Err(NameError::TooLong(whole.len()));
    }
    if whole.chars().any(char::is_control) {
        return Err(NameError::Control(whole.to_owned()));
    }
    for component in components.split('/') {
        match component {
            "" => return Err(NameError::EmptyComponent(whole.to_owned())),
            "." | ".." => return Err(NameError::Dots(whole.to_owned())),
            long if long.len() > 255 => return Err(NameError::TooLong(whole.len())),
            _ => {}
        }
    }
    Ok(())
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The text as it is written in policies.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Encode for $name {
            fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
                self.0.encode(encoder)
            }
        }

        impl<Context> Decode<Context> for $name {
            fn decode<D: bincode::de::Decoder<Context = Context>>(
                decoder: &mut D,
            ) -> Result<Self, bincode::error::DecodeError> {
                // Decoding goes through the same checks as parsing: the wire cannot skip the constructor.
                String::decode(decoder)?
                    .parse()
                    .map_err(|_| bincode::error::DecodeError::Other(concat!("invalid ", stringify!($name))))
            }
        }
        bincode::impl_borrow_decode!($name);
    };
}

text_type!(
    /// A path below the gateway's data root: relative, `/`-separated, no empty, `.` or `..` component.
    DataPath
);
text_type!(
    /// Where a grant appears in the mount: absolute, same rules; `/` alone is not allowed, the root shows the grants.
    MountPath
);
text_type!(
    /// The name of an application: lower-case letters, digits, `.`, `_`, `-`; 1 to 64 bytes.
    Application
);

impl FromStr for DataPath {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.starts_with('/') {
            return Err(NameError::Absolute(text.to_owned()));
        }
        check_components(text, text)?;
        Ok(DataPath(text.to_owned()))
    }
}

impl DataPath {
    /// The components, from the data root downwards.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether `other` is this path or lies below it.
    pub fn contains(&self, other: &DataPath) -> bool {
        other.0.strip_prefix(&self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for MountPath {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some(relative) = text.strip_prefix('/') else {
            return Err(NameError::NotAbsolute(text.to_owned()));
        };
        check_components(text, relative)?;
        Ok(MountPath(text.to_owned()))
    }
}

impl MountPath {
    /// The components, from the root of the mount downwards.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').skip(1)
    }

    /// Whether `other` is this path or lies below it.
    pub fn contains(&self, other: &MountPath) -> bool {
        other.0.strip_prefix(&self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for Application {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let allowed = |b: u8| plain(b) || matches!(b, b'.' | b'_' | b'-');
        if !(1..=64).contains(&text.len())
            || !text.bytes().all(allowed)
            || !text.bytes().next().is_some_and(plain)
        {
            return Err(NameError::Application(text.to_owned()));
        }
        Ok(Application(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_escape_are_no_paths() {
        for bad in ["", "/", "/a", "a//b", "a/", "a/../b", "..", ".", "a/.", "a\0b", "a\nb"] {
            assert!(bad.parse::<DataPath>().is_err(), "{bad:?}");
        }
        for bad in ["", "/", "a", "/a/", "//a", "/a/..", "/."] {
            assert!(bad.parse::<MountPath>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(256).parse::<DataPath>().is_err());
        assert!("a".repeat(255).parse::<DataPath>().is_ok());
    }

    #[test]
    fn containment_respects_component_borders() {
        let mail: DataPath = "users/alice/Mail".parse().unwrap();
        assert!(mail.contains(&"users/alice/Mail/inbox".parse().unwrap()));
        assert!(mail.contains(&mail));
        assert!(!mail.contains(&"users/alice/Mailbox".parse().unwrap()));
        assert!(!mail.contains(&"users/alice".parse().unwrap()));
    }

    #[test]
    fn application_names() {
        for bad in ["", "Mail", "-mail", "ma il", "mäil", &"a".repeat(65)] {
            assert!(bad.parse::<Application>().is_err(), "{bad:?}");
        }
        for good in ["mail", "7zip", "org.gnome.gedit", "a"] {
            assert!(good.parse::<Application>().is_ok(), "{good:?}");
        }
    }
}
