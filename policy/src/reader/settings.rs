//! Everything of a policy file that is not a grant.

use std::collections::BTreeMap;

use strongroom_contracts::detection::MAX_DECOYS;
use strongroom_contracts::terms::MAX_NETWORKS;
use strongroom_contracts::{Audit, Detection, Network, OnVerdict, SessionLimits, UndoFull};
use toml_edit::{Item, Value};

use super::Errors;
use super::table::{Table, Text, push_unit_error};
use crate::place::{Place, Setting};
use crate::recovery::{Recovery, Step, Trigger};
use crate::suggest::did_you_mean;
use crate::units::{UnitError, parse_byte_rate, parse_count_rate, parse_duration, parse_size, show_duration};

pub(super) const LIMIT_KEYS: [&str; 5] = ["read-rate", "write-rate", "op-rate", "in-flight", "open-handles"];
pub(super) const DETECTION_KEYS: [&str; 7] =
    ["verdict", "burst", "slow", "removed", "churn", "denied", "decoys"];
pub(super) const RECOVERY_KEYS: [&str; 3] = ["on", "steps", "addresses"];

/// Contracts are short-lived; a policy that asks for more than a year mistakes them for something else.
const MAX_LIFETIME_SECS: u64 = 366 * 86400;

pub(super) fn lifetime(text: &str) -> Result<u64, UnitError> {
    let secs = parse_duration(text)?;
    let refuse = |message: &str| UnitError {
        message: message.to_owned(),
        help: "contracts last for hours and are renewed; write for instance \"8h\"".to_owned(),
    };
    match secs {
        0 => Err(refuse("a lifetime of nothing allows no contract")),
        secs if secs > MAX_LIFETIME_SECS => Err(refuse(&format!(
            "a lifetime of {} is more than the {} allowed",
            show_duration(secs),
            show_duration(MAX_LIFETIME_SECS)
        ))),
        secs => Ok(secs),
    }
}

pub(super) fn audit(text: &str) -> Result<Audit, UnitError> {
    let all = [Audit::Normal, Audit::Strict];
    all.into_iter().find(|audit| audit.name() == text).ok_or_else(|| UnitError {
        message: format!("`{text}` is not a kind of audit"),
        help: did_you_mean(text, all.map(Audit::name))
            .unwrap_or_else(|| "write \"normal\" or \"strict\"".to_owned()),
    })
}

pub(super) fn undo_full(text: &str) -> Result<UndoFull, UnitError> {
    let all = [UndoFull::Fence, UndoFull::Forget];
    all.into_iter().find(|full| full.name() == text).ok_or_else(|| UnitError {
        message: format!("`{text}` is not something to do when the undo space is used up"),
        help: did_you_mean(text, all.map(UndoFull::name))
            .unwrap_or_else(|| "write \"fence\" or \"forget\"".to_owned()),
    })
}

pub(super) fn undo_space(text: &str) -> Result<u64, UnitError> {
    match parse_size(text)? {
        0 => Err(UnitError {
            message: "an undo log without space takes no change".to_owned(),
            help: "remove the key to leave it to the gateway, or leave `undo` out of the grants".to_owned(),
        }),
        bytes => Ok(bytes),
    }
}

/// A guest's name reaches the command line of a hypervisor's tool, so it is kept to plain characters.
pub(super) fn guest(errors: &mut Errors<'_>, top: &Table<'_>) -> Option<Setting<String>> {
    let text = top.string(errors, "guest", "a string such as \"mail-guest\"")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts = text.value.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts || !text.value.chars().all(plain) || text.value.len() > 64 {
        let message = format!("`{}` is not the name of a guest", text.value.escape_debug());
        errors.push(
            errors
                .at(text.span, message)
                .help("at most 64 letters, digits, `.`, `_`, `-`, starting with a letter or digit"),
        );
        return None;
    }
    Some(Setting { value: text.value, place: Some(top.place(errors, "guest")) })
}

pub(super) fn until(errors: &mut Errors<'_>, top: &Table<'_>) -> Option<Setting<u64>> {
    let wanted =
        "a date or a date and time in UTC, without quotes, such as 2027-01-31 or 2027-01-31T18:00:00Z";
    let Item::Value(Value::Datetime(moment)) = top.item("until")? else {
        top.wrong_type(errors, "until", wanted);
        return None;
    };
    match unix_secs(moment.value()) {
        Some(value) => Some(Setting { value, place: Some(top.place(errors, "until")) }),
        None => {
            let error = errors.at(top.value_span("until"), format!("`until` is {wanted}"));
            errors.push(error);
            None
        }
    }
}

/// Seconds since the Unix epoch; a date means its first moment in UTC, a time without an offset is refused.
fn unix_secs(moment: &toml_edit::Datetime) -> Option<u64> {
    let date = moment.date?;
    let (secs, offset_mins) = match (moment.time, moment.offset) {
        (None, None) => (0, 0),
        (Some(time), Some(offset)) => {
            let mins = match offset {
                toml_edit::Offset::Z => 0,
                toml_edit::Offset::Custom { minutes } => i64::from(minutes),
            };
            (
                i64::from(time.hour) * 3600
                    + i64::from(time.minute) * 60
                    + i64::from(time.second.unwrap_or_default()),
                mins,
            )
        }
        _ => return None,
    };
    let days = days_since_epoch(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    u64::try_from(days * 86400 + secs - offset_mins * 60).ok()
}

/// Days from 1970-01-01 in the Gregorian calendar; a year that starts in March puts the leap day last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + day_of_year - 719_468
}

pub(super) fn networks(errors: &mut Errors<'_>, top: &Table<'_>) -> Option<Setting<Vec<Network>>> {
    let texts = top.strings(errors, "networks", "an array of address ranges such as [\"10.77.0.0/24\"]")?;
    let count = texts.len();
    let mut list = vec![];
    for Text { value, span } in texts {
        match value.parse() {
            Ok(network) => list.push(network),
            Err(error) => errors.push(errors.at(span, format!("{error}"))),
        }
    }
    let span = top.value_span("networks");
    if top.is_empty_array("networks") {
        let error = errors.at(span.clone(), "an empty list of networks allows no address");
        errors.push(error.help("remove the key to allow any address"));
    }
    if count > MAX_NETWORKS {
        let message = format!("{count} networks are more than the {MAX_NETWORKS} that a contract can hold");
        errors.push(errors.at(span, message));
    }
    Some(Setting { value: list, place: Some(top.place(errors, "networks")) })
}

pub(super) fn limits(
    errors: &mut Errors<'_>,
    top: &Table<'_>,
) -> (SessionLimits, BTreeMap<&'static str, Place>) {
    let mut places = BTreeMap::new();
    let Some(table) = subtable(errors, top, "limits", "[limits]") else {
        return (SessionLimits::default(), places);
    };
    table.check_keys(errors, &LIMIT_KEYS, |_| None);
    let mut rate = |key: &'static str, example: &str, parse: fn(&str) -> Result<u64, UnitError>| {
        let rate = table.parsed(errors, key, example, |text| not_zero(parse(text)?))?;
        places.extend(rate.place.map(|place| (key, place)));
        Some(rate.value)
    };
    let (read_rate, write_rate) =
        (rate("read-rate", "50 MiB/s", parse_byte_rate), rate("write-rate", "50 MiB/s", parse_byte_rate));
    let op_rate = rate("op-rate", "1000/s", parse_count_rate);
    let mut count = |key: &'static str| {
        let value = table.item(key)?;
        let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
        let Some(number) = number.filter(|number| *number > 0) else {
            table.wrong_type_or_range(errors, key);
            return None;
        };
        places.insert(key, table.place(errors, key));
        Some(number)
    };
    let (in_flight, open_handles) = (count("in-flight"), count("open-handles"));
    (SessionLimits { read_rate, write_rate, op_rate, in_flight, open_handles }, places)
}

/// The `[detection]` table. Where recovery acts on ransomware, the gateway need not wait for it.
pub(super) fn detection(
    errors: &mut Errors<'_>,
    top: &Table<'_>,
    recovery: Option<&Recovery>,
) -> Setting<Detection> {
    let acts = recovery.is_some_and(|recovery| recovery.on.iter().any(|on| on.value == Trigger::Ransomware));
    let verdict = if acts { OnVerdict::Fence } else { OnVerdict::Alert };
    let mut detection = Detection { verdict, ..Detection::default() };
    let Some(table) = subtable(errors, top, "detection", "[detection]") else {
        return Setting::default_of(detection);
    };
    table.check_keys(errors, &DETECTION_KEYS, |_| None);
    if let Some(verdict) = table.parsed(errors, "verdict", "fence", on_verdict) {
        detection.verdict = verdict.value;
    }
    let mut churn = 0;
    let numbers = [
        ("burst", &mut detection.burst),
        ("slow", &mut detection.slow),
        ("removed", &mut detection.removed),
        ("churn", &mut churn),
        ("denied", &mut detection.denied),
    ];
    for (key, value) in numbers {
        let Some(item) = table.item(key) else { continue };
        match item.as_integer().and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0) {
            Some(number) => *value = number,
            None => table.wrong_type_or_range(errors, key),
        }
    }
    detection.churn = Some(churn).filter(|churn| *churn > 0);
    if let Some(item) = table.item("decoys") {
        let number = item.as_integer().and_then(|number| u8::try_from(number).ok());
        match number.filter(|number| *number <= MAX_DECOYS) {
            Some(number) => detection.decoys = number,
            None => {
                let message = format!("`decoys` is a whole number from 0 to {MAX_DECOYS}, without quotes");
                let error = errors.at(table.value_span("decoys"), message);
                errors.push(error.help("three are plenty: they lie at the top of each grant"));
            }
        }
    }
    Setting { value: detection, place: Some(errors.source.place(&table.span)) }
}

fn on_verdict(text: &str) -> Result<OnVerdict, UnitError> {
    OnVerdict::ALL.into_iter().find(|verdict| verdict.name() == text).ok_or_else(|| UnitError {
        message: format!("`{text}` is not something to do about ransomware"),
        help: did_you_mean(text, OnVerdict::ALL.map(OnVerdict::name))
            .unwrap_or_else(|| "write \"fence\", \"alert\" or \"off\"".to_owned()),
    })
}

impl Table<'_> {
    fn wrong_type_or_range(&self, errors: &mut Errors<'_>, key: &str) {
        if self.item(key).is_some_and(Item::is_integer) {
            let message = format!("`{key}` is out of range");
            let error = errors.at(self.value_span(key), message).help("write a number from 1 to 4294967295");
            errors.push(error);
        } else {
            self.wrong_type(errors, key, "a whole number without quotes");
        }
    }
}

fn not_zero(rate: u64) -> Result<u64, UnitError> {
    if rate > 0 {
        return Ok(rate);
    }
    Err(UnitError {
        message: "a rate of zero lets nothing through".to_owned(),
        help: "remove the key for no limit, or grant fewer rights".to_owned(),
    })
}

pub(super) fn recovery(errors: &mut Errors<'_>, top: &Table<'_>) -> Option<Recovery> {
    let table = subtable(errors, top, "recovery", "[recovery]")?;
    table.check_keys(errors, &RECOVERY_KEYS, |_| None);
    let on = words(errors, &table, "on", Trigger::parse);
    let steps = words(errors, &table, "steps", Step::parse);
    for (n, (step, span)) in steps.iter().enumerate() {
        let earlier = steps.iter().take(n).find(|(other, _)| other.value.rank() >= step.value.rank());
        let Some((other, other_span)) = earlier else { continue };
        let (word, before) = (step.value.word(), other.value.word());
        let message = if word == before {
            format!("the step `{word}` is there twice")
        } else {
            format!("the step `{word}` comes after `{before}`, and must come before it")
        };
        let error = errors.at(span.clone(), message).related(errors.source, other_span, "the other one");
        errors.push(error.help("steps run in the order fence, preserve, undo, restart, reissue, confirm"));
    }
    if !on.is_empty() && !table.has("steps") {
        let error = errors.at(table.key_span("on"), "alerts begin an incident that has no steps");
        errors.push(
            error.help("add for instance `steps = [\"fence\", \"undo 15m\", \"restart\", \"reissue\"]`"),
        );
    }
    let addresses = words(errors, &table, "addresses", |text| {
        text.parse::<Network>().map_err(|error| UnitError {
            message: error.to_string(),
            help: "write the guest's address, such as \"10.77.1.1\"".to_owned(),
        })
    });
    let place = errors.source.place(&table.span);
    Some(Recovery { on: settings(on), steps: settings(steps), addresses: settings(addresses), place })
}

fn settings<T>(words: Vec<Word<T>>) -> Vec<Setting<T>> {
    words.into_iter().map(|(setting, _)| setting).collect()
}

type Word<T> = (Setting<T>, std::ops::Range<usize>);

fn words<T>(
    errors: &mut Errors<'_>,
    table: &Table<'_>,
    key: &str,
    parse: fn(&str) -> Result<T, UnitError>,
) -> Vec<Word<T>> {
    let mut list = vec![];
    for Text { value, span } in table.strings(errors, key, "an array of strings").unwrap_or_default() {
        match parse(&value) {
            Ok(value) => {
                let place = Some(errors.source.place(&span));
                list.push((Setting { value, place }, span));
            }
            Err(error) => push_unit_error(errors, span, error),
        }
    }
    list
}

/// The table under a key, which may be a `[header]`, dotted keys or an inline table.
pub(super) fn subtable<'a>(
    errors: &mut Errors<'_>,
    top: &Table<'a>,
    key: &str,
    name: &'a str,
) -> Option<Table<'a>> {
    let item = top.item(key)?;
    match item.as_table_like() {
        Some(items) => Some(Table::new(name, items, top.key_span(key))),
        None => {
            top.wrong_type(errors, key, &format!("a table, written {name}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for ((year, month, day), days) in [
            ((1970, 1, 1), 0),
            ((1969, 12, 31), -1),
            ((2000, 2, 29), 11_016),
            ((2000, 3, 1), 11_017),
            ((2027, 1, 1), 20_819),
            ((2100, 3, 1), 47_541),
        ] {
            assert_eq!(days_since_epoch(year, month, day), days, "{year}-{month}-{day}");
        }
    }

    #[test]
    fn moments_need_an_offset() {
        let secs = |text: &str| unix_secs(&text.parse().unwrap());
        assert_eq!(secs("1970-01-02"), Some(86400));
        assert_eq!(secs("1970-01-02T01:00:00Z"), Some(90000));
        assert_eq!(secs("1970-01-02T01:00:00+01:00"), Some(86400));
        assert_eq!(secs("1970-01-02T01:00:00"), None);
        assert_eq!(secs("01:00:00"), None);
        assert_eq!(secs("1969-12-31"), None);
    }
}
