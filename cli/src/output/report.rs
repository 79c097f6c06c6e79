//! The result of a command, in both forms, and how it reaches the person or the program.

use std::io::Write;

use serde_json::{Value, json};

use super::Style;
use super::calm::{calm, calm_json};
use crate::failure::{Exit, Failure};

/// What a command that came to its end has to say.
#[derive(Debug)]
pub struct Report {
    /// For people, on the standard output; ends in a line feed or is empty.
    pub human: String,
    /// For programs, on the standard output with `--json`.
    pub json: Value,
    /// For people, on the standard error: what was done beside the result, and what to do next.
    pub notes: Vec<String>,
    /// What is wrong although the command came to its end, likewise; in `--json` as `warnings`.
    pub warnings: Vec<String>,
    /// The exit code; not [`Exit::Done`] if part of the work was refused.
    pub exit: Exit,
}

impl Report {
    /// A success.
    pub fn new(human: impl Into<String>, json: Value) -> Report {
        Report { human: human.into(), json, notes: vec![], warnings: vec![], exit: Exit::Done }
    }

    /// Adds a note.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Report {
        self.notes.push(note.into());
        self
    }

    /// Adds a warning.
    #[must_use]
    pub fn warn(mut self, warning: impl Into<String>) -> Report {
        self.warnings.push(warning.into());
        self
    }

    /// Sets the exit code.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Report {
        self.exit = exit;
        self
    }

    /// Writes it out. A reader that went away (`| head`) is no error.
    pub fn print(mut self, as_json: bool, errors: Style) -> Exit {
        if as_json {
            if let Value::Object(members) = &mut self.json
                && !self.warnings.is_empty()
            {
                members.insert("warnings".into(), self.warnings.clone().into());
            }
            self.human = calm_json(&format!("{:#}\n", self.json));
            self.notes.clear();
        } else {
            self.human = calm(&self.human);
        }
        for warning in self.warnings.drain(..).filter(|_| !as_json) {
            eprintln_safe(&format!("{} {warning}", errors.yellow("warning:")));
        }
        let mut out = std::io::stdout().lock();
        match out.write_all(self.human.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                return print_failure(
                    &Failure::other(format!("cannot write to the standard output: {error}")),
                    as_json,
                    errors,
                );
            }
            _ => {}
        }
        for note in &self.notes {
            eprintln_safe(note);
        }
        self.exit
    }
}

/// Writes a failure to the standard error; with `--json` as one object.
pub fn print_failure(failure: &Failure, as_json: bool, errors: Style) -> Exit {
    if as_json {
        eprintln_safe(&calm_json(&format!("{:#}", failure.to_json())));
    } else {
        eprintln_safe(&format!("{} {}", errors.red("error:"), failure.message()));
        for hint in failure.hints() {
            eprintln_safe(&format!("  {} {hint}", errors.bold("→")));
        }
    }
    failure.exit()
}

fn eprintln_safe(line: &str) {
    // Nobody is left to be told if the standard error is gone.
    let _ = writeln!(std::io::stderr(), "{}", calm(line));
}

/// The `--json` form of a failure inside a list of results.
pub fn failure_json(failure: &Failure) -> Value {
    json!({ "kind": failure.exit().word(), "message": failure.message(), "hints": failure.hints() })
}
