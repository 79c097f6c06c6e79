//! How a command ends when it does not succeed: a kind (the exit code), one message, hints, and facts for `--json`.

use std::fmt;

use serde_json::{Map, Value, json};

/// Why a command ended; the number is the exit code of the process. `docs/contract-command.md` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// It is done.
    Done = 0,
    /// Something else failed: the disk, the random source, the gateway's disk.
    Other = 1,
    /// Wrong arguments, or a file that is damaged, foreign or unsafe.
    BadInput = 2,
    /// The policy or the contract does not allow it.
    Denied = 3,
    /// The application, contract or file named does not exist.
    NotFound = 4,
    /// The gateway did not answer, or another one did. After `revoke`: nothing is fenced.
    Unreachable = 5,
    /// The gateway answered and refused.
    Refused = 6,
}

impl Exit {
    /// The word used in `--json`.
    pub const fn word(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Other => "failed",
            Exit::BadInput => "bad-input",
            Exit::Denied => "denied",
            Exit::NotFound => "not-found",
            Exit::Unreachable => "gateway-unreachable",
            Exit::Refused => "gateway-refused",
        }
    }
}

/// A command that did not succeed.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    hints: Vec<String>,
    facts: Map<String, Value>,
}

impl Failure {
    /// A failure of a kind, with one sentence: lower case, no full stop, user input in backticks.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Failure {
        Failure { exit, message: message.to_string(), hints: vec![], facts: Map::new() }
    }

    /// Bad input.
    pub fn bad(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::BadInput, message)
    }

    /// A decision of the policy or the contract.
    pub fn denied(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::Denied, message)
    }

    /// Something that does not exist.
    pub fn not_found(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::NotFound, message)
    }

    /// Anything else that failed.
    pub fn other(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::Other, message)
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Failure {
        self.hints.push(hint.to_string());
        self
    }

    /// Adds a member to the `--json` form.
    #[must_use]
    pub fn fact(mut self, name: &str, value: impl Into<Value>) -> Failure {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    /// The kind.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do next.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// The `--json` form.
    pub fn to_json(&self) -> Value {
        let mut error = self.facts.clone();
        error.insert("kind".into(), self.exit.word().into());
        error.insert("code".into(), (self.exit as u8).into());
        error.insert("message".into(), self.message.clone().into());
        error.insert("hints".into(), self.hints.clone().into());
        json!({ "error": error })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
