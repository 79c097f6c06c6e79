//! Sizes, durations and rates as people write them: `20 GiB`, `1h30m`, `50 MiB/s`. Whole numbers only.

/// Text that is no size, duration or rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UnitError {
    /// What is wrong.
    pub message: String,
    /// The way out.
    pub help: String,
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];
const DURATION_UNITS: [(&str, u64); 5] = [("w", 7 * 86400), ("d", 86400), ("h", 3600), ("m", 60), ("s", 1)];

const SIZE_HELP: &str =
    "write a whole number and a unit (B kB MB GB TB, KiB MiB GiB TiB), such as \"20 GiB\"";
const DURATION_HELP: &str = "write whole numbers with units (w d h m s), such as \"8h\" or \"1h30m\"";
const BYTE_RATE_HELP: &str = "write a size for each second, such as \"50 MiB/s\"";
const COUNT_RATE_HELP: &str = "write a number for each second, such as \"1000/s\"";

/// Reads a size in bytes: `20 GiB`, `500 MB`, `4096`.
///
/// # Errors
/// [`UnitError`] if it is no size or exceeds 64 bits.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    size(text.trim(), text, SIZE_HELP)
}

fn size(trimmed: &str, given: &str, help: &str) -> Result<u64, UnitError> {
    let (number, unit) = split_number(trimmed);
    let number = whole(number, given, "a size", help)?;
    let unit = unit.trim_start();
    let factor = if unit.is_empty() {
        1
    } else {
        let known = SIZE_UNITS.iter().find(|(name, _)| *name == unit);
        known.map(|(_, factor)| *factor).ok_or_else(|| {
            let close = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
            UnitError {
                message: format!("`{unit}` is not a unit of size"),
                help: close.map_or(help.to_owned(), |(name, _)| format!("did you mean `{name}`?")),
            }
        })?
    };
    number.checked_mul(factor).ok_or_else(|| too_large(given, help))
}

/// Reads a duration in seconds: `8h`, `15m`, `7d`, `90s`, `1h30m`. Units go from large to small, each at most once.
///
/// # Errors
/// [`UnitError`] if it is no duration or exceeds 64 bits.
pub fn parse_duration(text: &str) -> Result<u64, UnitError> {
    let mut rest = text.trim();
    let mut total = 0u64;
    let mut units = &DURATION_UNITS[..];
    loop {
        let (number, after) = split_number(rest);
        let number = whole(number, text, "a duration", DURATION_HELP)?;
        let after = after.trim_start();
        let end = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let Some(position) = units.iter().position(|(name, _)| *name == unit) else {
            return Err(UnitError { message: duration_mistake(text, unit), help: DURATION_HELP.to_owned() });
        };
        let secs = number.checked_mul(units[position].1);
        total =
            secs.and_then(|secs| total.checked_add(secs)).ok_or_else(|| too_large(text, DURATION_HELP))?;
        units = &units[position + 1..];
        rest = after.trim_start();
        if rest.is_empty() {
            return Ok(total);
        }
    }
}

fn duration_mistake(text: &str, unit: &str) -> String {
    if unit.is_empty() {
        format!("`{text}` has no unit of time")
    } else if DURATION_UNITS.iter().any(|(name, _)| *name == unit) {
        format!("`{text}` has its units out of order")
    } else {
        format!("`{unit}` is not a unit of time")
    }
}

/// Reads bytes in a second: `50 MiB/s`.
///
/// # Errors
/// [`UnitError`] if it is no such rate.
pub fn parse_byte_rate(text: &str) -> Result<u64, UnitError> {
    size(before_second(text, BYTE_RATE_HELP)?, text, BYTE_RATE_HELP)
}

/// Reads a count in a second: `1000/s`.
///
/// # Errors
/// [`UnitError`] if it is no such rate.
pub fn parse_count_rate(text: &str) -> Result<u64, UnitError> {
    whole(before_second(text, COUNT_RATE_HELP)?, text, "a rate", COUNT_RATE_HELP)
}

fn before_second<'a>(text: &'a str, help: &str) -> Result<&'a str, UnitError> {
    let amount = text.trim().strip_suffix('s').map(str::trim_end).and_then(|rest| rest.strip_suffix('/'));
    amount
        .map(str::trim_end)
        .ok_or_else(|| UnitError { message: format!("`{text}` does not end in `/s`"), help: help.to_owned() })
}

fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len()))
}

fn whole(number: &str, given: &str, kind: &str, help: &str) -> Result<u64, UnitError> {
    let digits: String = number.chars().filter(|c| *c != '_').collect();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UnitError { message: format!("`{given}` is not {kind}"), help: help.to_owned() });
    }
    digits.parse().map_err(|_| too_large(given, help))
}

fn too_large(given: &str, help: &str) -> UnitError {
    UnitError { message: format!("`{given}` is too large for 64 bits"), help: help.to_owned() }
}

/// A duration in the shortest form that [`parse_duration`] reads back.
pub fn show_duration(secs: u64) -> String {
    if secs == 0 {
        return "0s".to_owned();
    }
    let mut rest = secs;
    let mut out = String::new();
    // Weeks are read but not shown: "14d" is plainer than "2w".
    for (name, factor) in &DURATION_UNITS[1..] {
        if rest >= *factor {
            out.push_str(&format!("{}{name}", rest / factor));
            rest %= factor;
        }
    }
    out
}

/// A size in the largest unit that expresses it exactly; [`parse_size`] reads it back.
pub fn show_size(bytes: u64) -> String {
    let exact = |(_, factor): &&(&str, u64)| bytes != 0 && bytes.is_multiple_of(*factor);
    // Prefer binary units, as in the examples; the last exact one of a row is its largest.
    let (binary, decimal) = (&SIZE_UNITS[5..], &SIZE_UNITS[..5]);
    let unit = binary.iter().rev().find(exact).or_else(|| decimal.iter().rev().find(exact));
    match unit {
        Some((name, factor)) => format!("{} {name}", bytes / factor),
        None => "0 B".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("20 GiB", 20 << 30),
            ("500 MB", 500_000_000),
            ("4096", 4096),
            (" 1KiB ", 1024),
            ("1_000 B", 1000),
            ("0", 0),
            ("16 TiB", 16 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.5 GiB", "20 GiBs", "1 2", "_", "99999999999999999999", "16777216 TiB"]
        {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_size("20 gib").unwrap_err().help, "did you mean `GiB`?");
        assert_eq!(parse_size("3 KB").unwrap_err().help, "did you mean `kB`?");
        assert!(parse_size("1.5 GiB").unwrap_err().message.contains("`.5 GiB` is not a unit"));
    }

    #[test]
    fn durations() {
        for (text, secs) in [
            ("8h", 28800),
            ("15m", 900),
            ("7d", 604_800),
            ("90s", 90),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("2w", 1_209_600),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(secs), "{text}");
        }
        let message = |text| parse_duration(text).unwrap_err().message;
        assert_eq!(message("8"), "`8` has no unit of time");
        assert_eq!(message("30m1h"), "`30m1h` has its units out of order");
        assert_eq!(message("1h1h"), "`1h1h` has its units out of order");
        assert_eq!(message("8 hours"), "`hours` is not a unit of time");
        assert_eq!(message(""), "`` is not a duration");
        assert_eq!(message("99999999999999999d"), "`99999999999999999d` is too large for 64 bits");
    }

    #[test]
    fn rates() {
        assert_eq!(parse_byte_rate("50 MiB/s"), Ok(50 << 20));
        assert_eq!(parse_byte_rate("50MiB / s"), Ok(50 << 20));
        assert_eq!(parse_count_rate("1000/s"), Ok(1000));
        for bad in ["50 MiB", "50 MiB/h", "/s", "s", "1000"] {
            assert!(parse_byte_rate(bad).is_err(), "{bad}");
        }
        assert!(parse_count_rate("1 MiB/s").is_err());
        assert!(parse_count_rate("1000").unwrap_err().help.contains("1000/s"));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(value: u64) {
            prop_assert_eq!(parse_duration(&show_duration(value)), Ok(value));
            prop_assert_eq!(parse_size(&show_size(value)), Ok(value));
            prop_assert_eq!(parse_byte_rate(&format!("{}/s", show_size(value))), Ok(value));
        }

        #[test]
        fn arbitrary_text_is_no_trouble(text: String) {
            let _ = (parse_size(&text), parse_duration(&text), parse_byte_rate(&text), parse_count_rate(&text));
        }
    }
}
