//! Notable events of a mount, for people: to a log file or to standard error, and as the unit's status to systemd.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Where notable events go. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    file: Option<Arc<Mutex<File>>>,
}

impl Journal {
    /// Writes to a file; what is in it stays.
    pub fn to_file(file: File) -> Journal {
        Journal { file: Some(Arc::new(Mutex::new(file))) }
    }

    /// Writes one event.
    pub fn note(&self, text: &str) {
        // A mount does not stop because its log cannot be written.
        let _ = match &self.file {
            Some(file) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                writeln!(file.lock(), "{} {text}", strongroom_contracts::armour::rfc3339(now))
            }
            None => writeln!(std::io::stderr(), "mount.strongroom: {text}"),
        };
    }

    /// Tells systemd how the mount stands (sd_notify(3)); nothing happens where it does not listen.
    pub fn status(&self, text: &str) {
        // As above.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(text)]);
    }
}
