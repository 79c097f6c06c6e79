//! Durations and sizes as people write them.

use std::time::Duration;

/// Reads `90s`, `15 m`, `2h`, `1d`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no duration; write for instance `120s`, `15m` or `2h`");
    let (number, unit) = split(text).ok_or_else(bad)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    match number.checked_mul(millis) {
        Some(total) if total > 0 && total <= 366 * 86_400_000 => Ok(Duration::from_millis(total)),
        _ => Err(bad()),
    }
}

/// Reads `64 MiB`, `1GiB`, `512 KiB`.
pub fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is no size; write for instance `64 MiB` (at least 64 KiB)");
    let (number, unit) = split(text).ok_or_else(bad)?;
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).filter(|bytes| *bytes >= 64 << 10).ok_or_else(bad)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_write_them() {
        assert_eq!(duration("120s"), Ok(Duration::from_secs(120)));
        assert_eq!(duration(" 15 m "), Ok(Duration::from_secs(900)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(size("64 MiB"), Ok(64 << 20));
        for bad in ["", "s", "12", "0s", "9999999d", "1 fortnight", "-1s", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "1", "1 KiB", "64 MB", "99999999999 TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
