//! Times for people: in the local zone, and how far away they are.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use strongroom_base::text::span;
use strongroom_contracts::armour::rfc3339;

/// The time at which the command runs, and the zone in which it speaks.
#[derive(Clone, Debug)]
pub struct Clock {
    now: u64,
    zone: TimeZone,
}

impl Clock {
    /// The system's clock and zone (`TZ`, `/etc/localtime`).
    pub fn system() -> Clock {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Clock { now: since.map_or(0, |since| since.as_secs()), zone: TimeZone::system() }
    }

    /// Now, in seconds since the Unix epoch.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// `2026-11-22 19:17:05 (in 7h 59m)`.
    pub fn show(&self, unix_secs: u64) -> String {
        format!("{} ({})", self.local(unix_secs), self.relative(unix_secs))
    }

    /// `2026-11-22 19:17:05`.
    pub fn local(&self, unix_secs: u64) -> String {
        let local = i64::try_from(unix_secs).ok().and_then(|secs| Timestamp::from_second(secs).ok());
        match local {
            Some(time) => time.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
            None => rfc3339(unix_secs),
        }
    }

    /// `in 7h 59m`, `3m 2s ago`, `now`.
    pub fn relative(&self, unix_secs: u64) -> String {
        match unix_secs {
            later if later > self.now => format!("in {}", span(later - self.now)),
            earlier if earlier < self.now => format!("{} ago", span(self.now - earlier)),
            _ => "now".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_local_and_relative() {
        let clock = Clock { now: 1_000_000_000, zone: TimeZone::UTC };
        assert_eq!(clock.show(1_000_000_000 + 28_740), "2001-09-09 09:45:40 (in 7h 59m)");
        assert_eq!(clock.relative(1_000_000_000), "now");
        assert_eq!(clock.relative(1_000_000_000 - 182), "3m 2s ago");
        assert_eq!(clock.relative(0), "11574d 1h ago");
        assert_eq!(clock.local(u64::MAX), format!("{} s after 1970", u64::MAX));
    }
}
