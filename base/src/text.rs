//! Words for people that more than one program needs.

use strongroom_contracts::visible::visible;

/// Text from elsewhere with hidden characters written out, so that it cannot steer a terminal or read as something else.
pub fn tame(text: &str) -> String {
    visible(text).into_owned()
}

/// A span of time in its two largest units.
pub fn span(secs: u64) -> String {
    let (days, hours, minutes, seconds) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60, secs % 60);
    let two = |a: u64, a_unit: &str, b: u64, b_unit: &str| match b {
        0 => format!("{a}{a_unit}"),
        b => format!("{a}{a_unit} {b}{b_unit}"),
    };
    if days > 0 {
        two(days, "d", hours, "h")
    } else if hours > 0 {
        two(hours, "h", minutes, "m")
    } else if minutes > 0 {
        two(minutes, "m", seconds, "s")
    } else {
        format!("{seconds}s")
    }
}

/// For serde: a value as its text, checked by its own rules when it is read (`#[serde(with = "as_text")]`).
pub mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the text.
    pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    /// Reads the text.
    pub fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(tame("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(tame("10.77.0.2:40000 ü"), "10.77.0.2:40000 ü");
    }

    #[test]
    fn spans_have_their_two_largest_units() {
        assert_eq!(span(90_000), "1d 1h");
        assert_eq!(span(59), "59s");
    }
}
