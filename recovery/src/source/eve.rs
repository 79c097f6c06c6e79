//! Suricata's EVE JSON (Suricata user guide, "EVE JSON Format"): one object a line, of many types; only alerts count.

use std::net::IpAddr;

use serde::Deserialize;

use super::{IdsAlert, LineOf};

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    event_type: String,
    timestamp: Option<String>,
    src_ip: Option<String>,
    dest_ip: Option<String>,
    alert: Option<Alert>,
}

#[derive(Deserialize)]
struct Alert {
    signature: Option<String>,
    signature_id: Option<u64>,
    category: Option<String>,
    severity: Option<u64>,
}

pub(super) fn parse(line: &[u8]) -> LineOf {
    // Most lines of a busy sensor are flows and names: they are not parsed.
    if !line.windows(7).any(|part| part == b"\"alert\"") {
        return match line.trim_ascii_start().first() {
            Some(b'{') if line.trim_ascii_end().ends_with(b"}") => LineOf::Other,
            _ => LineOf::Malformed("not a JSON object".to_owned()),
        };
    }
    let event: Event = match serde_json::from_slice(line) {
        Ok(event) => event,
        Err(error) => return LineOf::Malformed(error.to_string()),
    };
    if event.event_type != "alert" {
        return LineOf::Other;
    }
    let Some(alert) = event.alert else { return LineOf::Malformed("an alert without `alert`".to_owned()) };
    let Some(severity) = alert.severity.filter(|severity| *severity > 0) else {
        return LineOf::Malformed("an alert without severity".to_owned());
    };
    let addresses: Vec<IpAddr> = [event.src_ip, event.dest_ip]
        .into_iter()
        .flatten()
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .map(|address| address.to_canonical())
        .collect();
    let mut text = alert.signature.unwrap_or_else(|| "(no signature)".to_owned());
    if let Some(id) = alert.signature_id {
        text.push_str(&format!(" [{id}]"));
    }
    if let Some(category) = alert.category.filter(|category| !category.is_empty()) {
        text.push_str(&format!(", {category}"));
    }
    LineOf::Alert(IdsAlert {
        at_us: event.timestamp.as_deref().and_then(moment),
        severity: u8::try_from(severity).unwrap_or(u8::MAX),
        text,
        addresses,
    })
}

/// `2026-11-22T22:30:35.123456+0000`, in microseconds since the Unix epoch.
fn moment(text: &str) -> Option<u64> {
    let time = jiff::fmt::strtime::parse("%Y-%m-%dT%H:%M:%S%.f%z", text).ok()?.to_timestamp().ok()?;
    u64::try_from(time.as_microsecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALERT: &str = r#"{"timestamp":"2026-11-22T22:30:35.123456+0100","flow_id":1,"event_type":"alert","src_ip":"10.77.1.1","src_port":4,"dest_ip":"203.0.113.9","proto":"TCP","alert":{"action":"allowed","gid":1,"signature_id":2024217,"rev":3,"signature":"ET EXPLOIT x","category":"Attempted Administrator Privilege Gain","severity":1}}"#;

    #[test]
    fn alerts_are_read() {
        let LineOf::Alert(alert) = parse(ALERT.as_bytes()) else { panic!() };
        assert_eq!(alert.at_us, Some(1_795_383_035_123_456));
        assert_eq!((alert.severity, alert.addresses.len()), (1, 2));
        assert_eq!(alert.text, "ET EXPLOIT x [2024217], Attempted Administrator Privilege Gain");
        let plain = ALERT.replace("2026-11-22T22:30:35.123456+0100", "yesterday");
        assert!(matches!(parse(plain.as_bytes()), LineOf::Alert(IdsAlert { at_us: None, .. })));
    }

    #[test]
    fn everything_else_is_passed_over_or_counted() {
        assert_eq!(parse(br#"{"event_type":"flow","src_ip":"10.0.0.1"}"#), LineOf::Other);
        assert_eq!(parse(br#"{"event_type":"dns","x":"\"alert\"","alert":null}"#), LineOf::Other);
        for bad in [
            &b"\xff\xfe"[..],
            b"{",
            b"null",
            br#"{"event_type":"alert"}"#,
            br#"{"event_type":"alert","alert":{}}"#,
            br#"{"event_type":"alert","alert":{"severity":0}}"#,
            br#"{"event_type":"alert","alert":{"severity":-1}}"#,
            br#"{"event_type":"alert","alert":{"severity":"x"}}"#,
            &ALERT.as_bytes()[..200],
            &ALERT.as_bytes()[20..],
        ] {
            assert!(matches!(parse(bad), LineOf::Malformed(_)), "{}", String::from_utf8_lossy(bad));
        }
        let deep = format!("{{\"alert\":{}", "[".repeat(100_000));
        assert!(matches!(parse(deep.as_bytes()), LineOf::Malformed(_)));
        let huge = ALERT.replace("\"severity\":1", "\"severity\":99999999999");
        assert!(matches!(parse(huge.as_bytes()), LineOf::Alert(IdsAlert { severity: 255, .. })));
    }
}
