//! Colour, only where a person sees it.

use std::io::IsTerminal;

/// Whether a stream gets colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// For a stream: colour if it is a terminal that can show it and `NO_COLOR` (no-color.org) is not set.
    pub fn of(stream: &impl IsTerminal) -> Style {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Style { colour: stream.is_terminal() && !unwanted && !dumb }
    }

    /// Without colour.
    pub const PLAIN: Style = Style { colour: false };

    /// Whether there is colour.
    pub fn colour(self) -> bool {
        self.colour
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// For what matters.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// For what is well.
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// For what wants attention.
    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// For what is wrong.
    pub fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// For what may be overlooked.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}
