//! Where something stands in a policy file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

/// A place in a policy file, shown as `policy.d/mail.toml:7`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    /// The file, as it was named when it was read.
    #[serde(serialize_with = "as_text")]
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A value and the place that says it; no place means that it is the default.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it is said.
    pub place: Option<Place>,
}

impl<T> Setting<T> {
    /// A value that no line says.
    pub const fn default_of(value: T) -> Setting<T> {
        Setting { value, place: None }
    }
}

/// The text of one file, able to tell the place of a byte.
#[derive(Clone, Debug)]
pub(crate) struct SourceText {
    pub(crate) file: Arc<str>,
    pub(crate) text: Arc<str>,
    /// Byte offsets at which lines start.
    starts: Arc<[usize]>,
}

impl SourceText {
    pub(crate) fn new(file: &str, text: &str) -> SourceText {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        SourceText { file: file.into(), text: text.into(), starts }
    }

    pub(crate) fn place(&self, span: &Range<usize>) -> Place {
        let at = floor_boundary(&self.text, span.start);
        let line = self.starts.partition_point(|start| *start <= at).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(start..at).map_or(0, |before| before.chars().count()) + 1;
        Place { file: self.file.clone(), line, column }
    }

    /// The span cut to the text and to whole characters, which the renderer relies on.
    pub(crate) fn clamp(&self, span: &Range<usize>) -> Range<usize> {
        let start = floor_boundary(&self.text, span.start);
        let end = floor_boundary(&self.text, span.end);
        start..end.max(start)
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters() {
        let source = SourceText::new("a.toml", "ab\nüx = 1\n");
        let at = |offset: usize| {
            let place = source.place(&(offset..offset));
            (place.line, place.column)
        };
        assert_eq!(at(0), (1, 1));
        assert_eq!(at(2), (1, 3));
        assert_eq!(at(3), (2, 1));
        assert_eq!(at(5), (2, 2), "ü is two bytes and one column");
        assert_eq!(at(4), (2, 1), "the middle of a character is its start");
        assert_eq!(at(999), (3, 1));
        assert_eq!(source.clamp(&(4..999)), 3..11);
    }
}
