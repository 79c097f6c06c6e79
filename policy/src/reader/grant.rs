//! The `[[grant]]` tables of a policy file.

use std::collections::BTreeMap;
use std::ops::Range;

use strongroom_contracts::{DataPath, Grant, MountPath, Ownership, Right, Rights};
use toml_edit::{Item, TableLike, Value};

use super::table::{Table, part_span, push_unit_error};
use super::{Errors, TOP_KEYS};
use crate::place::{Place, Setting};
use crate::policy::PolicyGrant;
use crate::suggest::did_you_mean;
use crate::units::{UnitError, parse_duration, parse_size};

pub(super) const KEYS: [&str; 8] =
    ["path", "mount", "rights", "quota", "files", "max-file", "undo", "ownership"];

pub(super) fn grants(errors: &mut Errors<'_>, top: &Table<'_>) -> Vec<PolicyGrant> {
    let mut mounts: Vec<(MountPath, Range<usize>)> = vec![];
    let mut grants = vec![];
    for (items, span) in tables(errors, top) {
        let table = Table::new("[[grant]]", items, span);
        table.check_keys(errors, &KEYS, |key| {
            TOP_KEYS.contains(&key).then(|| {
                format!("`{key}` belongs at the top of the file, before the first line in square brackets")
            })
        });
        let (grant, mount) = grant(errors, &table);
        if let Some((mount, span)) = mount {
            check_overlap(errors, &mounts, &mount, &span);
            mounts.push((mount, span));
        }
        grants.extend(grant);
    }
    grants
}

/// The grant tables, written `[[grant]]` or as an array of inline tables.
fn tables<'a>(errors: &mut Errors<'_>, top: &Table<'a>) -> Vec<(&'a dyn TableLike, Range<usize>)> {
    match top.item("grant") {
        None => vec![],
        Some(Item::ArrayOfTables(array)) => {
            let here = top.key_span("grant");
            let span = |span: Option<Range<usize>>| header(errors, span.unwrap_or_else(|| here.clone()));
            array.iter().map(|table| (table as &dyn TableLike, span(table.span()))).collect()
        }
        Some(Item::Value(Value::Array(array))) if array.iter().all(Value::is_inline_table) => {
            let span = |value: &Value| value.span().unwrap_or_else(|| top.value_span("grant"));
            let inline = |value: &'a Value| Some((value.as_inline_table()? as &dyn TableLike, span(value)));
            array.iter().filter_map(inline).collect()
        }
        Some(Item::Table(table)) if !table.is_dotted() => {
            let error = errors.at(top.key_span("grant"), "a grant is written [[grant]], with two brackets");
            errors.push(error.help("write `[[grant]]`; there may be several"));
            vec![]
        }
        Some(_) => {
            top.wrong_type(errors, "grant", "an array of tables, each written [[grant]]");
            vec![]
        }
    }
}

/// The span of a table cut to its header line.
fn header(errors: &Errors<'_>, span: Range<usize>) -> Range<usize> {
    let line = errors.source.text.get(span.clone()).and_then(|text| text.lines().next());
    line.map_or(span.clone(), |line| span.start..span.start + line.len())
}

fn check_overlap(
    errors: &mut Errors<'_>,
    mounts: &[(MountPath, Range<usize>)],
    mount: &MountPath,
    span: &Range<usize>,
) {
    let overlapping = mounts.iter().find(|(other, _)| other.contains(mount) || mount.contains(other));
    let Some((other, other_span)) = overlapping else { return };
    let message = if other == mount {
        format!("two grants appear at `{mount}`")
    } else {
        format!("the mount paths `{other}` and `{mount}` lie one in the other")
    };
    let error = errors.at(span.clone(), message).related(errors.source, other_span, "the other grant");
    errors.push(error.help("give each grant a mount path of its own, such as `/Mail` and `/Photos`"));
}

type Located<T> = Option<(T, Range<usize>)>;

fn grant(errors: &mut Errors<'_>, table: &Table<'_>) -> (Option<PolicyGrant>, Located<MountPath>) {
    let data = path::<DataPath>(errors, table, "path", "\"users/alice/Mail\"", |text| {
        text.strip_prefix('/').map(str::to_owned)
    });
    let mount = path::<MountPath>(errors, table, "mount", "\"/Mail\"", |text| Some(format!("/{text}")));
    let rights = rights(errors, table);
    let quota_bytes = size(errors, table, "quota");
    let max_file_bytes = size(errors, table, "max-file");
    let quota_files = count(errors, table, "files");
    let undo_secs = table.parsed(errors, "undo", "7d", parse_duration).map_or(0, |undo| undo.value);
    let ownership = table
        .parsed(errors, "ownership", "preserve", ownership)
        .unwrap_or(Setting::default_of(Ownership::Single));
    let key_places =
        KEYS.iter().filter(|key| table.has(key)).map(|key| (*key, table.place(errors, key))).collect();
    let grant = (|| {
        let (data, mount) = (data?.0, mount.clone()?.0);
        let (rights, right_places, rights_text) = rights?;
        let grant = Grant {
            data,
            mount,
            rights,
            quota_bytes,
            quota_files,
            max_file_bytes,
            undo_secs,
            ownership: ownership.value,
        };
        let place = errors.source.place(&table.span);
        Some(PolicyGrant { grant, rights_text, place, key_places, right_places })
    })();
    (grant, mount)
}

fn path<P: std::str::FromStr<Err: std::fmt::Display>>(
    errors: &mut Errors<'_>,
    table: &Table<'_>,
    key: &str,
    example: &str,
    repair: impl Fn(&str) -> Option<String>,
) -> Located<P> {
    let text = table.required_string(errors, key, example)?;
    match text.value.parse() {
        Ok(path) => Some((path, text.span)),
        Err(error) => {
            let repaired = repair(text.value.trim_end_matches('/')).filter(|text| text.parse::<P>().is_ok());
            let help = repaired.map(|text| format!("write \"{text}\""));
            let error: P::Err = error;
            let error = errors.at(text.span, error.to_string()).maybe_help(help);
            errors.push(error);
            None
        }
    }
}

/// The set, the place of the word that gives each right, and the text as written.
type ReadRights = (Rights, BTreeMap<Right, Place>, String);

fn rights(errors: &mut Errors<'_>, table: &Table<'_>) -> Option<ReadRights> {
    let example = "\"read-only\"";
    if !table.has("rights") {
        table.required_string(errors, "rights", example);
        return None;
    }
    let texts = table.strings(errors, "rights", "a string or an array of strings such as \"read-only\"")?;
    let written = table.value_span("rights");
    let written = errors.source.text.get(written).unwrap_or_default();
    let mut places = BTreeMap::new();
    let mut good = true;
    for text in &texts {
        for (word, part) in words_of(&text.value) {
            let span = part_span(errors, text, part);
            match word.parse::<Rights>() {
                Ok(rights) => {
                    let place = errors.source.place(&span);
                    rights.iter().for_each(|right| {
                        places.entry(right).or_insert_with(|| place.clone());
                    });
                }
                Err(_) => {
                    good = false;
                    unknown_right(errors, word, span);
                }
            }
        }
    }
    let no_word = texts.iter().all(|text| words_of(&text.value).next().is_none());
    if no_word && (!texts.is_empty() || table.is_empty_array("rights")) {
        let error = errors.at(table.value_span("rights"), "a grant without rights grants nothing");
        errors.push(error.help("write for instance `rights = \"read-only\"`"));
    }
    let set: Rights = places.keys().copied().collect();
    (good && !set.is_empty()).then(|| (set, places, written.split_whitespace().collect::<Vec<_>>().join(" ")))
}

fn unknown_right(errors: &mut Errors<'_>, word: &str, span: Range<usize>) {
    let bundles = Rights::BUNDLES.iter().map(|(name, _)| *name);
    let known: Vec<&str> = Right::ALL.iter().map(|right| right.name()).chain(bundles).collect();
    let help = did_you_mean(word, known.iter().copied())
        .unwrap_or_else(|| format!("rights and bundles are {}", known.join(", ")));
    let message = format!("`{}` is neither a right nor a bundle of rights", word.escape_debug());
    let error = errors.at(span, message).label("unknown right").help(help);
    errors.push(error);
}

/// The words of a text and their byte ranges.
fn words_of(text: &str) -> impl Iterator<Item = (&str, Range<usize>)> {
    let start = text.as_ptr() as usize;
    text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty()).map(move |word| {
        let at = word.as_ptr() as usize - start;
        (word, at..at + word.len())
    })
}

/// A size as a string with its unit, or as a whole number of bytes.
fn size(errors: &mut Errors<'_>, table: &Table<'_>, key: &'static str) -> Option<u64> {
    match table.item(key)? {
        Item::Value(Value::Integer(bytes)) => match u64::try_from(*bytes.value()) {
            Ok(bytes) => Some(bytes),
            Err(_) => {
                let error = errors.at(table.value_span(key), format!("`{key}` is below zero"));
                errors.push(error.help("remove the key for no limit"));
                None
            }
        },
        Item::Value(Value::String(text)) => match parse_size(text.value()) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                push_unit_error(errors, table.value_span(key), error);
                None
            }
        },
        _ => {
            table.wrong_type(errors, key, "a size such as \"20 GiB\", or a number of bytes");
            None
        }
    }
}

fn count(errors: &mut Errors<'_>, table: &Table<'_>, key: &'static str) -> Option<u64> {
    match table.item(key)? {
        Item::Value(Value::Integer(number)) if *number.value() >= 0 => u64::try_from(*number.value()).ok(),
        Item::Value(Value::Integer(_)) => {
            let error = errors.at(table.value_span(key), format!("`{key}` is below zero"));
            errors.push(error.help("remove the key for no limit"));
            None
        }
        _ => {
            table.wrong_type(errors, key, "a whole number of files without quotes");
            None
        }
    }
}

fn ownership(text: &str) -> Result<Ownership, UnitError> {
    let all = [Ownership::Single, Ownership::Preserve];
    all.into_iter().find(|ownership| ownership.name() == text).ok_or_else(|| UnitError {
        message: format!("`{text}` is not a kind of ownership"),
        help: did_you_mean(text, all.map(Ownership::name))
            .unwrap_or_else(|| "write \"single\" or \"preserve\"".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::words_of;

    #[test]
    fn words_know_their_ranges() {
        let text = " list, read\tappend";
        for (word, range) in words_of(text) {
            assert_eq!(&text[range], word);
        }
        assert_eq!(words_of(text).count(), 3);
        assert_eq!(words_of(" , ").count(), 0);
    }
}
