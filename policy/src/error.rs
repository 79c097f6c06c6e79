//! Mistakes in policy files: what, where, and the way out.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use strongroom_contracts::Application;

use crate::place::{Place, SourceText};

/// One mistake in one policy file.
///
/// `Display` gives one line; [`PolicyError::render`] shows the file's text with the mistake underlined. Serialised, it
/// has the members `file`, `line`, `column`, `message`, `help` and `application`.
#[derive(Clone, Debug, thiserror::Error)]
pub struct PolicyError {
    source_text: SourceText,
    span: Range<usize>,
    /// Another place that the mistake has to do with, and what it is.
    related: Option<(SourceText, Range<usize>, String)>,
    message: String,
    label: Option<String>,
    help: Option<String>,
    application: Option<Application>,
}

impl PolicyError {
    pub(crate) fn new(source: &SourceText, span: Range<usize>, message: impl Into<String>) -> PolicyError {
        PolicyError {
            span: source.clamp(&span),
            source_text: source.clone(),
            related: None,
            message: message.into(),
            label: None,
            help: None,
            application: None,
        }
    }

    pub(crate) fn label(mut self, label: impl Into<String>) -> PolicyError {
        self.label = Some(label.into());
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> PolicyError {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn maybe_help(mut self, help: Option<String>) -> PolicyError {
        self.help = help.or(self.help);
        self
    }

    pub(crate) fn related(mut self, source: &SourceText, span: &Range<usize>, label: &str) -> PolicyError {
        self.related = Some((source.clone(), source.clamp(span), label.to_owned()));
        self
    }

    pub(crate) fn of_application(mut self, application: Option<&Application>) -> PolicyError {
        self.application = application.cloned();
        self
    }

    /// The file, line and column.
    pub fn place(&self) -> Place {
        self.source_text.place(&self.span)
    }

    /// The file, as it was named when it was read.
    pub fn file(&self) -> &str {
        &self.source_text.file
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The way out, where there is a good guess.
    pub fn help_text(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// The application that the file is for and that the mistake disables, if the file tells.
    pub fn application(&self) -> Option<&Application> {
        self.application.as_ref()
    }

    /// The other place that the mistake has to do with (the first of two that collide).
    pub fn related_place(&self) -> Option<Place> {
        self.related.as_ref().map(|(source, span, _)| source.place(span))
    }

    /// The message with the file's text around it and the mistake underlined, as compilers show it.
    pub fn render(&self, colour: bool) -> String {
        let mut main = Snippet::source(&*self.source_text.text).path(&*self.source_text.file).annotation(
            AnnotationKind::Primary.span(visible(&self.source_text, &self.span)).label(self.label.as_deref()),
        );
        let mut other = None;
        if let Some((source, span, label)) = &self.related {
            let annotation = AnnotationKind::Context.span(visible(source, span)).label(label.as_str());
            if source.file == self.source_text.file {
                main = main.annotation(annotation);
            } else {
                other = Some(Snippet::source(&*source.text).path(&*source.file).annotation(annotation));
            }
        }
        let mut group = Level::ERROR.primary_title(self.message.as_str()).element(main);
        if let Some(other) = other {
            group = group.element(other);
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }
}

/// A span with at least one character of its line to underline, where there is one.
fn visible(source: &SourceText, span: &Range<usize>) -> Range<usize> {
    let next = source.text.get(span.start..).and_then(|rest| rest.chars().next());
    match next {
        Some(next) if span.is_empty() && next != '\n' => span.start..span.start + next.len_utf8(),
        _ => span.clone(),
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place();
        write!(f, "{}:{}:{}: {}", place.file, place.line, place.column, self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

impl Serialize for PolicyError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = self.place();
        let mut out = serializer.serialize_struct("PolicyError", 6)?;
        out.serialize_field("file", &*place.file)?;
        out.serialize_field("line", &place.line)?;
        out.serialize_field("column", &place.column)?;
        out.serialize_field("message", &self.message)?;
        out.serialize_field("help", &self.help)?;
        out.serialize_field("application", &self.application.as_ref().map(Application::as_str))?;
        out.end()
    }
}
