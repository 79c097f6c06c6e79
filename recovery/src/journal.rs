//! Writing the journal of an incident: every line is on the disk before what it announces is done.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use strongroom_base::Failure;
use strongroom_base::files::{parent, sync_dir};
use strongroom_base::incident::{Entry, Incident, Line, dir_of};

/// A journal stops growing here: an incident that has written so much goes round in circles.
const MAX_BYTES: u64 = 8 << 20;

/// Facts, from pairs.
pub fn facts<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Now, in microseconds since the Unix epoch.
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// The journal of an incident, and what it adds up to.
#[derive(Debug)]
pub struct Journal {
    file: File,
    bytes: u64,
    incident: Incident,
}

impl Journal {
    /// Begins an incident under the next free number. `opened` gets the number; it is followed by `first` at once.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn begin(
        incidents: &Path,
        opened: impl Fn(u64) -> Entry,
        first: &[Entry],
    ) -> Result<Journal, Failure> {
        let failed = |error: std::io::Error| {
            Failure::other(format!("cannot begin an incident in `{}`: {error}", incidents.display()))
        };
        make_dir(incidents).map_err(failed)?;
        let mut number = next_number(incidents).map_err(failed)?;
        // Whole or not at all: an incident without its first line would be no incident.
        let making = tempfile::Builder::new().prefix(".new-").tempdir_in(incidents).map_err(failed)?;
        for folder in ["evidence", "commands"] {
            DirBuilder::new().mode(0o700).create(making.path().join(folder)).map_err(failed)?;
        }
        let making = making.keep();
        let made = (|| {
            let at_us = now_us();
            loop {
                let mut text = vec![];
                for entry in [opened(number)].iter().chain(first) {
                    serde_json::to_writer(&mut text, &Line { at_us, entry: entry.clone() })?;
                    text.push(b'\n');
                }
                let mut file = OpenOptions::new()
                    .create(true)
                    .write(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(making.join("journal.jsonl"))?;
                file.write_all(&text)?;
                file.sync_all()?;
                sync_dir(&making)?;
                match std::fs::rename(&making, dir_of(incidents, number)) {
                    Ok(()) => {}
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists
                        ) =>
                    {
                        number += 1;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                return sync_dir(incidents);
            }
        })();
        if let Err(error) = made {
            // Nobody knows of it yet.
            let _ = std::fs::remove_dir_all(&making);
            return Err(failed(error));
        }
        Journal::open(&dir_of(incidents, number))
    }

    /// Goes on with an incident. A line that a crash cut off is removed.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    pub fn open(dir: &Path) -> Result<Journal, Failure> {
        let path = dir.join("journal.jsonl");
        let failed = |error: std::io::Error| Failure::other(format!("journal `{}`: {error}", path.display()));
        let incident = Incident::read(dir)?;
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        let mut text = vec![];
        file.read_to_end(&mut text).map_err(failed)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let bytes = u64::try_from(whole).unwrap_or(u64::MAX);
        if whole < text.len() {
            file.set_len(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        file.seek(SeekFrom::Start(bytes)).map_err(failed)?;
        Ok(Journal { file, bytes, incident })
    }

    /// What the journal adds up to.
    pub fn incident(&self) -> &Incident {
        &self.incident
    }

    /// Its directory.
    pub fn dir(&self) -> PathBuf {
        self.incident.dir.clone()
    }

    /// Puts a line on the disk.
    ///
    /// # Errors
    /// If that fails: what the line announces must not be done then.
    pub fn put(&mut self, entry: Entry) -> Result<(), Failure> {
        self.put_all(vec![entry])
    }

    /// Puts lines on the disk, all with one wait.
    ///
    /// # Errors
    /// As [`Journal::put`].
    pub fn put_all(&mut self, entries: Vec<Entry>) -> Result<(), Failure> {
        let path = self.incident.dir.join("journal.jsonl");
        let failed = |error: std::io::Error| {
            Failure::other(format!("cannot write the journal `{}`: {error}", path.display()))
        };
        let at_us = now_us().max(self.incident.last_us);
        let lines: Vec<Line> = entries.into_iter().map(|entry| Line { at_us, entry }).collect();
        let mut text = vec![];
        for line in &lines {
            serde_json::to_writer(&mut text, line).map_err(|error| failed(error.into()))?;
            text.push(b'\n');
        }
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        if self.bytes.saturating_add(length) > MAX_BYTES {
            return Err(Failure::other(format!("the journal `{}` is full", path.display()))
                .hint("close the incident by hand: contract grant, after a look at the guest"));
        }
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Half a line must not join the next one.
            let _ = self
                .file
                .set_len(self.bytes)
                .and_then(|()| self.file.seek(SeekFrom::Start(self.bytes)).map(drop));
            return Err(failed(error));
        }
        self.bytes += length;
        lines.iter().for_each(|line| self.incident.add(line));
        Ok(())
    }
}

/// Makes a directory that only its owner can look into.
pub fn make_dir(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    sync_dir(&parent(path))
}

fn next_number(incidents: &Path) -> std::io::Result<u64> {
    let mut highest = 0;
    for entry in std::fs::read_dir(incidents)? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
        highest = highest.max(number.unwrap_or(0));
    }
    Ok(highest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_base::incident::{Cause, Phase, Standing};

    fn opened(number: u64) -> Entry {
        Entry::Opened {
            number,
            application: "mail".parse().unwrap(),
            guest: None,
            phases: vec![Phase::Fence],
            undo_secs: None,
            ask: false,
            cause: Cause {
                source: "person".into(),
                kind: "asked".into(),
                at_us: 1,
                severity: None,
                whose: None,
                text: "\u{1b}[2J\n\"".into(),
                count: 1,
            },
            held: None,
        }
    }

    #[test]
    fn incidents_are_numbered_and_lines_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let incidents = dir.path().join("recovery/incidents");
        let first = [Entry::Entered { phase: Phase::Fence, attempt: 1 }];
        let one = Journal::begin(&incidents, opened, &first).unwrap();
        assert_eq!((one.incident().number, one.incident().spans.len()), (1, 1));
        let mut two = Journal::begin(&incidents, opened, &[]).unwrap();
        assert_eq!(two.incident().number, 2);
        two.put(Entry::Closed { outcome: "well".into() }).unwrap();
        let read = Incident::read(&two.dir()).unwrap();
        assert_eq!(
            (&read.standing, read.cause.text),
            (&Standing::Closed("well".into()), "\u{1b}[2J\n\"".into())
        );
        let names: Vec<_> =
            std::fs::read_dir(&incidents).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn half_a_line_left_by_a_crash_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), opened, &[]).unwrap();
        journal.put(Entry::Entered { phase: Phase::Fence, attempt: 1 }).unwrap();
        let path = journal.dir().join("journal.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"at_us\":1,\"entry\":\"clo").unwrap();
        let mut again = Journal::open(&journal.dir()).unwrap();
        again.put(Entry::Done { phase: Phase::Fence, facts: facts([("x", 1.into())]) }).unwrap();
        let read = Incident::read(&journal.dir()).unwrap();
        assert!(read.is_done(Phase::Fence));
        assert!(!std::fs::read_to_string(path).unwrap().contains("\"clo"));
    }
}
