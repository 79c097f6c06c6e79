//! Every mistake of syntax in a file: `toml_edit` stops at the first, its own parser knows them all.

use std::ops::Range;

use toml_parser::parser::{Event, EventKind, RecursionGuard, ValidateWhitespace, parse_document};
use toml_parser::{Expected, ParseError, Source};

/// As `toml_edit` does: arrays and tables nested deeper are refused, so that hostile text cannot exhaust the stack.
const MAX_DEPTH: u32 = 80;
/// A text that is not TOML at all has mistakes without end; so many are shown.
const MAX_MISTAKES: usize = 20;

/// The mistakes and where they are, at most one for each line, because one upsets what follows it.
pub(super) fn mistakes(text: &str) -> Vec<(Range<usize>, String)> {
    let mut found: Vec<(Range<usize>, String)> = vec![];
    let mut sink = |error: ParseError| {
        let span = error.unexpected().or(error.context());
        found.push((span.map_or(0..0, |span| span.start()..span.end()), describe(&error)));
    };
    let source = Source::new(text);
    let tokens = source.lex().into_vec();
    let mut events: Vec<Event> = Vec::with_capacity(tokens.len());
    let mut checked = ValidateWhitespace::new(&mut events, source);
    parse_document(&tokens, &mut RecursionGuard::new(&mut checked, MAX_DEPTH), &mut sink);
    for event in &events {
        let Some(raw) = source.get(event) else { continue };
        let mut decoded = std::borrow::Cow::Borrowed("");
        match event.kind() {
            EventKind::SimpleKey => raw.decode_key(&mut decoded, &mut sink),
            EventKind::Scalar => {
                let _ = raw.decode_scalar(&mut decoded, &mut sink);
            }
            _ => {}
        }
    }
    found.sort_by_key(|(span, _)| span.start);
    let line = |at: usize| text.get(..at.min(text.len())).map_or(0, |before| before.matches('\n').count());
    found.dedup_by_key(|(span, _)| line(span.start));
    found.truncate(MAX_MISTAKES);
    found
}

fn describe(error: &ParseError) -> String {
    let words = |expected: &Expected| match expected {
        Expected::Literal("\n") => "a new line".to_owned(),
        Expected::Literal(text) => format!("`{text}`"),
        Expected::Description(text) => (*text).to_owned(),
        _ => "something else".to_owned(),
    };
    match error.expected() {
        None | Some([]) => error.description().to_owned(),
        Some(list) => {
            format!(
                "{}, expected {}",
                error.description(),
                list.iter().map(words).collect::<Vec<_>>().join(" or ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_with_a_mistake_is_found_once() {
        let text = "a = \"open\nb = 1\nc = = 2\nd\ne = 1\nf = \"\\q\"\n[g\n";
        let lines: Vec<_> = mistakes(text)
            .into_iter()
            .map(|(span, _)| text[..span.start].matches('\n').count() + 1)
            .collect();
        assert_eq!(lines, [1, 3, 4, 6, 7]);
        assert_eq!(mistakes("a = 1\n"), []);
    }

    #[test]
    fn deep_nesting_and_floods_are_bounded() {
        assert!(!mistakes(&"[".repeat(200_000)).is_empty());
        assert_eq!(mistakes(&"= =\n".repeat(1000)).len(), MAX_MISTAKES);
    }
}
