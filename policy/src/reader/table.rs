//! One table of a policy file: known keys, types, places.

use std::ops::Range;

use toml_edit::{Item, TableLike, Value};

use super::Errors;
use crate::place::{Place, Setting};
use crate::suggest::did_you_mean;
use crate::units::UnitError;

/// A string of the file and its span, quotes included.
pub(super) struct Text {
    pub(super) value: String,
    pub(super) span: Range<usize>,
}

/// A table, the words by which messages call it, and where it starts.
pub(super) struct Table<'a> {
    name: &'a str,
    items: &'a dyn TableLike,
    pub(super) span: Range<usize>,
}

impl<'a> Table<'a> {
    pub(super) fn new(name: &'a str, items: &'a dyn TableLike, span: Range<usize>) -> Table<'a> {
        Table { name, items, span }
    }

    /// Reports keys that the table does not know; `elsewhere` tells where a key belongs that is known there.
    pub(super) fn check_keys(
        &self,
        errors: &mut Errors<'_>,
        known: &[&str],
        elsewhere: impl Fn(&str) -> Option<String>,
    ) {
        for (key, _) in self.items.iter() {
            if known.contains(&key) {
                continue;
            }
            let help = elsewhere(key)
                .or_else(|| did_you_mean(key, known.iter().copied()))
                .unwrap_or_else(|| format!("known keys are {}", known.join(", ")));
            let message = format!("`{}` is not a key of {}", key.escape_debug(), self.name);
            let error = errors.at(self.key_span(key), message).label("unknown key").help(help);
            errors.push(error);
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.items.contains_key(key)
    }

    pub(super) fn item(&self, key: &str) -> Option<&'a Item> {
        self.items.get(key)
    }

    /// Whether a key holds an empty array, as opposed to one of which nothing is of use.
    pub(super) fn is_empty_array(&self, key: &str) -> bool {
        self.item(key).and_then(Item::as_array).is_some_and(toml_edit::Array::is_empty)
    }

    /// Where the key itself stands, which is where messages about its table or value point by line.
    pub(super) fn key_span(&self, key: &str) -> Range<usize> {
        let key = self.items.key(key).and_then(|key| key.span());
        key.unwrap_or_else(|| self.span.clone())
    }

    pub(super) fn place(&self, errors: &Errors<'_>, key: &str) -> Place {
        errors.source.place(&self.key_span(key))
    }

    pub(super) fn value_span(&self, key: &str) -> Range<usize> {
        self.item(key).and_then(Item::span).unwrap_or_else(|| self.key_span(key))
    }

    /// Reports that a key has a value of another type.
    pub(super) fn wrong_type(&self, errors: &mut Errors<'_>, key: &str, wanted: &str) {
        let found = self.item(key).map_or("nothing", Item::type_name);
        let message = format!("`{key}` is {wanted}, not {}", with_article(found));
        let error = errors.at(self.value_span(key), message);
        errors.push(error);
    }

    pub(super) fn string(&self, errors: &mut Errors<'_>, key: &str, wanted: &str) -> Option<Text> {
        match self.item(key)? {
            Item::Value(Value::String(text)) => {
                Some(Text { value: text.value().clone(), span: self.value_span(key) })
            }
            _ => {
                self.wrong_type(errors, key, wanted);
                None
            }
        }
    }

    pub(super) fn required_string(&self, errors: &mut Errors<'_>, key: &str, example: &str) -> Option<Text> {
        if !self.has(key) {
            let message = format!("{} has no `{key}`", self.name);
            let error = errors.at(self.span.clone(), message).help(format!("add `{key} = {example}`"));
            errors.push(error);
        }
        self.string(errors, key, &format!("a string such as {example}"))
    }

    /// The value of a string key, read by `parse`.
    pub(super) fn parsed<T>(
        &self,
        errors: &mut Errors<'_>,
        key: &'static str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, UnitError>,
    ) -> Option<Setting<T>> {
        let text = self.string(errors, key, &format!("a string such as \"{example}\""))?;
        match parse(&text.value) {
            Ok(value) => Some(Setting { value, place: Some(self.place(errors, key)) }),
            Err(error) => {
                push_unit_error(errors, text.span, error);
                None
            }
        }
    }

    /// The strings of a key that holds a string or an array of them; what is no string is reported and left out.
    pub(super) fn strings(&self, errors: &mut Errors<'_>, key: &str, wanted: &str) -> Option<Vec<Text>> {
        let Item::Value(Value::Array(array)) = self.item(key)? else {
            return self.string(errors, key, wanted).map(|text| vec![text]);
        };
        let mut texts = vec![];
        for value in array {
            let span = value.span().unwrap_or_else(|| self.value_span(key));
            match value.as_str() {
                Some(text) => texts.push(Text { value: text.to_owned(), span }),
                None => {
                    let found = with_article(value.type_name());
                    let error = errors.at(span, format!("`{key}` is {wanted}, and this is {found}"));
                    errors.push(error);
                }
            }
        }
        Some(texts)
    }
}

pub(super) fn push_unit_error(errors: &mut Errors<'_>, span: Range<usize>, error: UnitError) {
    let error = errors.at(span, error.message).help(error.help);
    errors.push(error);
}

/// The span of a part of a string, if the file writes the string as it is (no escapes), or else that of the whole.
pub(super) fn part_span(errors: &Errors<'_>, text: &Text, part: Range<usize>) -> Range<usize> {
    let raw = errors.source.text.get(text.span.clone()).unwrap_or_default();
    match raw.get(1..raw.len().saturating_sub(1)) {
        Some(inner) if inner == text.value => {
            let start = text.span.start + 1;
            start + part.start..start + part.end
        }
        _ => text.span.clone(),
    }
}

fn with_article(type_name: &str) -> String {
    let article = if type_name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {type_name}")
}
