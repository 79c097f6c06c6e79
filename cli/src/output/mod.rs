//! What people and programs see: reports, tables, times, colour.

mod report;
mod style;
mod table;
mod when;

pub use report::{Report, failure_json, print_failure};
pub use style::Style;
pub use table::Table;
pub use when::{Clock, span};

/// Text from elsewhere with control characters made visible, so that it cannot steer a terminal.
pub fn tame(text: &str) -> String {
    let plain = |c: char| !c.is_control();
    text.chars().flat_map(|c| if plain(c) { vec![c] } else { c.escape_default().collect() }).collect()
}

/// Bytes in a unit that keeps the number short: `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1 session`, `2 sessions`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
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
    fn sizes_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }
}
