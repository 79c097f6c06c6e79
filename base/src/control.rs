//! What `contract` and `strongroom-recovery` tell each other, over a Unix socket in the base directory that only its owner
//! can reach (`recovery/control.sock`, mode 0600): one line of JSON there, one back.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strongroom_contracts::Application;

use crate::text::as_text;

/// The longest line, in bytes.
pub const MAX_LINE: u64 = 64 * 1024;

/// What is asked of the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// Begin an incident, or go on with one that is stuck.
    Recover {
        /// Whose.
        #[serde(with = "as_text")]
        application: Application,
        /// Why, for the record.
        why: String,
        /// Who asks.
        by: String,
        /// Instead of the policy's steps.
        steps: Option<Vec<String>>,
    },
    /// Go on with an incident that is stuck, without the step that it is stuck in.
    Skip {
        /// Whose.
        #[serde(with = "as_text")]
        application: Application,
        /// Who decides that.
        by: String,
    },
    /// Confirm an incident that waits for it.
    Confirm {
        /// Whose.
        #[serde(with = "as_text")]
        application: Application,
        /// Who confirms.
        by: String,
    },
    /// How the daemon is.
    Status,
}

/// What the daemon answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// An incident has begun.
    Begun {
        /// Its number.
        incident: u64,
    },
    /// One that was stuck goes on.
    Resumed {
        /// Its number.
        incident: u64,
    },
    /// One is under way already.
    Running {
        /// Its number.
        incident: u64,
    },
    /// It is confirmed.
    Confirmed {
        /// Its number.
        incident: u64,
    },
    /// How the daemon is.
    Status(Box<serde_json::Value>),
    /// It cannot be done.
    Refused {
        /// `bad-input`, `not-found` or `failed`, as the exit codes of `contract`.
        kind: String,
        /// Why.
        message: String,
        /// What to do about it.
        hints: Vec<String>,
    },
}

/// Asks the daemon; `None` if there is none.
///
/// # Errors
/// If it is there and does not answer in time, or not sensibly.
pub fn ask(socket: &Path, ask: &Ask, timeout: Duration) -> std::io::Result<Option<Told>> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        // A socket that a killed daemon left behind refuses.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut line = serde_json::to_vec(ask)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "it closed the connection"));
    }
    Ok(Some(serde_json::from_str(&answer)?))
}
