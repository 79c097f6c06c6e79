//! Snort 2's `alert_fast` (Snort users manual, 2.6.2):
//!
//! ```text
//! 11/22-22:30:35.123456  [**] [1:2024217:3] ET EXPLOIT x [**] [Classification: y] [Priority: 1] {TCP} 10.0.0.1:4 -> 10.0.0.2:80
//! ```
//!
//! The time is local and has a year only with `-y` (`11/22/26-…`).

use std::net::IpAddr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::{IdsAlert, LineOf};

/// A moment further ahead than this is one of last year: a day.
const DAY_US: u64 = 86_400_000_000;

pub(super) fn parse(line: &[u8], now_us: u64) -> LineOf {
    let text = String::from_utf8_lossy(line);
    match read(text.trim(), now_us) {
        Ok(alert) => LineOf::Alert(alert),
        Err(what) => LineOf::Malformed(what.to_owned()),
    }
}

fn read(line: &str, now_us: u64) -> Result<IdsAlert, &'static str> {
    let mut parts = line.split("[**]");
    let (time, message, rest) = match (parts.next(), parts.next(), parts.next()) {
        (Some(time), Some(message), Some(rest)) => (time.trim(), message.trim(), rest),
        _ => return Err("no message between [**] and [**]"),
    };
    let priority = rest.split("[Priority:").nth(1).and_then(|rest| rest.split(']').next());
    let severity = priority.and_then(|digits| digits.trim().parse::<u64>().ok()).filter(|number| *number > 0);
    let ends = rest.split('}').nth(1).ok_or("no protocol in braces")?;
    let ported =
        rest.split('{').nth(1).is_some_and(|rest| rest.starts_with("TCP") || rest.starts_with("UDP"));
    let (from, to) = ends.split_once("->").ok_or("no two addresses")?;
    let addresses: Vec<IpAddr> =
        [from, to].into_iter().filter_map(|end| address(end.trim(), ported)).collect();
    if addresses.is_empty() {
        return Err("no addresses");
    }
    Ok(IdsAlert {
        at_us: moment(time, now_us),
        severity: severity
            .map_or(Err("no priority"), |number| Ok(u8::try_from(number).unwrap_or(u8::MAX)))?,
        text: message.to_owned(),
        addresses,
    })
}

/// `10.0.0.1:80`, `10.0.0.1`, `fe80::1:80` (a port after an IPv6 address is not set apart), `fe80::1`.
fn address(text: &str, ported: bool) -> Option<IpAddr> {
    let bare = || text.parse::<IpAddr>().ok();
    let with_port = || text.rsplit_once(':').and_then(|(address, _)| address.parse::<IpAddr>().ok());
    let found = if ported { with_port().or_else(bare) } else { bare().or_else(with_port) };
    found.map(|address| address.to_canonical())
}

fn moment(text: &str, now_us: u64) -> Option<u64> {
    let zone = TimeZone::system();
    let now = Timestamp::from_microsecond(i64::try_from(now_us).ok()?).ok()?.to_zoned(zone.clone());
    let (date, time) = text.split_once('-')?;
    let with_year = match date.split('/').collect::<Vec<_>>().as_slice() {
        [month, day] => format!("{}/{month}/{day}", now.year()),
        [month, day, year] => format!("20{year}/{month}/{day}"),
        _ => return None,
    };
    let local = DateTime::strptime("%Y/%m/%d-%H:%M:%S%.f", format!("{with_year}-{time}")).ok()?;
    let in_us =
        |local: DateTime| u64::try_from(local.to_zoned(zone.clone()).ok()?.timestamp().as_microsecond()).ok();
    let found = in_us(local)?;
    if found > now_us.saturating_add(DAY_US) && date.matches('/').count() == 1 {
        return in_us(local.with().year(now.year() - 1).build().ok()?);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALERT: &str = "11/22-22:30:35.123456  [**] [1:2024217:3] ET EXPLOIT x [**] [Classification: Attempted x] [Priority: 1] {TCP} 10.77.1.1:4444 -> 203.0.113.9:80";

    /// 2026-11-22 23:00 of the system's zone.
    fn now() -> u64 {
        let zoned = jiff::civil::date(2026, 11, 22).at(23, 0, 0, 0).to_zoned(TimeZone::system()).unwrap();
        u64::try_from(zoned.timestamp().as_microsecond()).unwrap()
    }

    fn alert(line: &str) -> IdsAlert {
        match parse(line.as_bytes(), now()) {
            LineOf::Alert(alert) => alert,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn alerts_are_read() {
        let found = alert(ALERT);
        assert_eq!((found.severity, found.text.as_str()), (1, "[1:2024217:3] ET EXPLOIT x"));
        let addresses: Vec<_> = found.addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(addresses, ["10.77.1.1", "203.0.113.9"]);
        let before = now() - found.at_us.unwrap();
        assert_eq!(before, (29 * 60 + 24) * 1_000_000 + 876_544);
        assert_eq!(alert(&ALERT.replace("11/22-", "11/22/26-")).at_us, found.at_us);
        let last_year = alert(&ALERT.replace("11/22-", "12/31-")).at_us.unwrap();
        assert!(last_year < now());
        assert_eq!(alert(&ALERT.replace("11/22-", "when-")).at_us, None);
        let ping = ALERT.replace("{TCP} 10.77.1.1:4444 -> 203.0.113.9:80", "{ICMP} fe80::1 -> fe80::2");
        assert_eq!(alert(&ping).addresses[0].to_string(), "fe80::1");
        let six = ALERT.replace("10.77.1.1:4444", "fd00::7:4444");
        assert_eq!(alert(&six).addresses[0].to_string(), "fd00::7");
    }

    #[test]
    fn what_is_no_alert_is_counted() {
        for bad in [
            "",
            "junk",
            "[**] [**] [**]",
            &ALERT[..60],
            &ALERT[..100],
            &ALERT.replace("Priority: 1", "Priority: 0"),
            &ALERT.replace("Priority: 1", "Priority: x"),
            &ALERT.replace("->", "to"),
            &ALERT.replace("10.77.1.1:4444 -> 203.0.113.9:80", "a -> b"),
        ] {
            assert!(matches!(parse(bad.as_bytes(), now()), LineOf::Malformed(_)), "{bad}");
        }
    }
}
