//! Guests that are driven by commands of one's own.

use serde::Deserialize;

use super::{Action, Driver, Job, check_words, fill, two_minutes};
use crate::config::Span;

/// Settings. Words may hold `{guest}`, `{application}`, `{incident}`, `{evidence}` (a directory) and `{secret}` (a file;
/// empty if there is none).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Command {
    /// Stops the guest; must succeed if it is stopped already.
    stop: Option<Vec<String>>,
    /// Puts aside what the guest changed; must succeed if that was done already.
    keep: Option<Vec<String>>,
    /// Starts the guest from its clean image and hands the secret over.
    start: Vec<String>,
    #[serde(default = "two_minutes")]
    timeout: Span,
}

const KNOWN: [&str; 5] = ["guest", "application", "incident", "evidence", "secret"];

impl Command {
    fn all(&self) -> impl Iterator<Item = (&'static str, &Vec<String>)> {
        let stop = self.stop.iter().map(|words| ("stop", words));
        let keep = self.keep.iter().map(|words| ("keep", words));
        stop.chain(keep).chain([("start", &self.start)])
    }
}

impl Driver for Command {
    fn check(&self) -> Result<(), String> {
        self.all().try_for_each(|(what, words)| check_words(what, words, &KNOWN))
    }

    fn programs(&self) -> Vec<String> {
        self.all().filter_map(|(_, words)| words.first().cloned()).collect()
    }

    fn restart(&self, job: &Job<'_>) -> Vec<Action> {
        let values = [
            ("guest", job.guest.to_owned()),
            ("application", job.application.to_string()),
            ("incident", job.incident.to_string()),
            ("evidence", job.evidence.display().to_string()),
            ("secret", job.secret.map_or(String::new(), |path| path.display().to_string())),
        ];
        let run = |(_, words): (_, &Vec<String>)| Action::Run {
            argv: fill(words, &values),
            timeout: self.timeout.0,
            may_fail: false,
        };
        self.all().map(run).collect()
    }
}
