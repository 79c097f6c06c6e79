//! The audit trail: one JSON object a line, `audit.jsonl` in the state directory, rotated by size.
//!
//! One thread writes. Records of contracts with `audit = "strict"` are on stable storage before [`Audit::strict`] returns;
//! callers that wait at the same time share one fdatasync(2). Other records are queued and never hold an operation up.
//! Denials are counted: a guest that is denied a thousand times in a second makes one line at once and one line with the
//! count, so that it cannot fill the disk.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use crate::clock::Clock;

/// Lines that may wait to be written; more are dropped and counted, except strict ones.
const MAX_QUEUED: usize = 16_384;
/// Denials that are counted apart; more share one line.
const MAX_COUNTED: usize = 4096;
/// How long denials of one kind are counted before their line is written.
const COUNT_FOR: Duration = Duration::from_secs(1);

/// One record. Members that do not apply are left out of the line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Record {
    /// When, microseconds since the Unix epoch. Filled in by the audit.
    pub time_us: u64,
    /// What happened: `open`, `resume`, `close`, `refused`, `renewed`, `fenced`, `deposit`, `revoke`, `fence`, `denied`,
    /// `violation`, `alert`, `operation`, `start`, `stop`, `lost`.
    pub event: &'static str,
    /// Session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
    /// Contract.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contract: Option<String>,
    /// Key of the peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Address of the peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<&'static str>,
    /// Path as the guest sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How it ended: `ok`, an error, the rights that are missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Anything else, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// How often, if more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// The audit trail could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit trail cannot be written: {0}")]
pub struct AuditError(String);

/// What is told apart when denials are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    session: Option<String>,
    /// Not the key: a guest has as many keys as it likes.
    address: Option<String>,
    op: Option<&'static str>,
    outcome: Option<String>,
    event: &'static str,
}

struct Counted {
    since: Instant,
    count: u64,
    last: Record,
}

#[derive(Default)]
struct Queue {
    lines: Vec<u8>,
    queued: usize,
    dropped: u64,
    /// Number of the last strict record in `lines`.
    strict: u64,
    /// Strict records up to this number are on stable storage, or have failed.
    settled: u64,
    /// The last batch with strict records that failed, and how.
    failed: Option<(u64, AuditError)>,
    stop: bool,
}

struct Shared {
    clock: Arc<dyn Clock>,
    queue: Mutex<Queue>,
    work: Condvar,
    settled: Condvar,
    counted: Mutex<HashMap<Kind, Counted>>,
    /// Whether the last write failed: strict operations are refused before they run.
    broken: AtomicBool,
    lost: AtomicU64,
}

/// The audit trail.
pub struct Audit {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// Opens the trail in a directory.
    ///
    /// # Errors
    /// [`AuditError`] if the file cannot be opened, or the writer not started.
    pub fn open(
        directory: &Path,
        max_bytes: u64,
        keep: u32,
        clock: Arc<dyn Clock>,
    ) -> Result<Audit, AuditError> {
        let error = |error: std::io::Error| AuditError(error.to_string());
        let sink = Sink::open(directory.join("audit.jsonl"), max_bytes, keep).map_err(error)?;
        let shared = Arc::new(Shared {
            clock,
            queue: Mutex::default(),
            work: Condvar::new(),
            settled: Condvar::new(),
            counted: Mutex::default(),
            broken: AtomicBool::new(false),
            lost: AtomicU64::new(0),
        });
        let own = shared.clone();
        let writer =
            std::thread::Builder::new().name("audit".into()).spawn(move || own.write(sink)).map_err(error)?;
        Ok(Audit { shared, writer: Mutex::new(Some(writer)) })
    }

    /// Queues a record.
    pub fn note(&self, record: Record) {
        self.shared.queue(record, false);
    }

    /// Queues a record of something that a guest can repeat at will: equal ones are counted.
    pub fn count(&self, record: Record) {
        let kind = Kind {
            session: record.session.clone(),
            address: record.address.clone(),
            op: record.op,
            outcome: record.outcome.clone(),
            event: record.event,
        };
        let mut counted = self.shared.counted.lock();
        let crowded = counted.len() >= MAX_COUNTED;
        match counted.entry(kind) {
            Entry::Occupied(mut entry) => {
                let entry = entry.get_mut();
                entry.count += 1;
                entry.last = record;
            }
            Entry::Vacant(_) if crowded => {
                self.shared.lost.fetch_add(1, Ordering::Relaxed);
            }
            Entry::Vacant(entry) => {
                entry.insert(Counted { since: Instant::now(), count: 0, last: record.clone() });
                drop(counted);
                self.shared.queue(record, false);
            }
        }
    }

    /// Writes a record, and returns when it is on stable storage.
    ///
    /// # Errors
    /// [`AuditError`] if it is not.
    pub fn strict(&self, record: Record) -> Result<(), AuditError> {
        let number = self.shared.queue(record, true);
        let mut queue = self.shared.queue.lock();
        while queue.settled < number {
            if queue.stop {
                return Err(AuditError("the gateway is stopping".into()));
            }
            self.shared.settled.wait(&mut queue);
        }
        match &queue.failed {
            Some((first, error)) if *first <= number => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Whether strict records can be written at present, as far as is known.
    pub fn healthy(&self) -> bool {
        !self.shared.broken.load(Ordering::Relaxed)
    }

    /// Writes what is queued, and ends.
    pub fn stop(&self) {
        self.shared.flush_counted(true);
        self.shared.queue.lock().stop = true;
        self.shared.work.notify_all();
        if let Some(writer) = self.writer.lock().take() {
            // A writer that panicked has nothing more to write.
            let _ = writer.join();
        }
        self.shared.settled.notify_all();
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn queue(&self, mut record: Record, strict: bool) -> u64 {
        record.time_us = self.clock.now_us();
        let mut queue = self.queue.lock();
        if strict {
            queue.strict += 1;
        } else if queue.queued >= MAX_QUEUED {
            queue.dropped += 1;
            return 0;
        }
        let start = queue.lines.len();
        if serde_json::to_writer(&mut queue.lines, &record).is_err() {
            // Strings and numbers always serialise; were it otherwise, half a line must not stay.
            queue.lines.truncate(start);
        }
        queue.lines.push(b'\n');
        queue.queued += 1;
        let number = queue.strict;
        drop(queue);
        self.work.notify_one();
        number
    }

    fn flush_counted(&self, all: bool) {
        let now = Instant::now();
        let mut due = vec![];
        self.counted.lock().retain(|_, counted| {
            if !all && now.duration_since(counted.since) < COUNT_FOR {
                return true;
            }
            if counted.count == 0 {
                return false;
            }
            let mut record = counted.last.clone();
            record.count = Some(counted.count);
            due.push(record);
            // Counted further without a line at once, for as long as it goes on.
            counted.since = now;
            counted.count = 0;
            true
        });
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            due.push(Record { event: "lost", count: Some(lost), ..Record::default() });
        }
        for record in due {
            self.queue(record, false);
        }
    }

    fn write(&self, mut sink: Sink) {
        let mut batch = vec![];
        let mut stopping = false;
        while !stopping {
            let strict = {
                let mut queue = self.queue.lock();
                if queue.lines.is_empty() && !queue.stop {
                    self.work.wait_for(&mut queue, COUNT_FOR);
                }
                stopping = queue.stop;
                let dropped = std::mem::take(&mut queue.dropped);
                if dropped > 0 {
                    self.lost.fetch_add(dropped, Ordering::Relaxed);
                }
                batch.clear();
                std::mem::swap(&mut batch, &mut queue.lines);
                queue.queued = 0;
                (queue.settled < queue.strict).then_some((queue.settled + 1, queue.strict))
            };
            let written = sink.write(&batch, strict.is_some());
            self.broken.store(written.is_err(), Ordering::Relaxed);
            if let Some((first, last)) = strict {
                let mut queue = self.queue.lock();
                queue.settled = last;
                queue.failed = written.err().map(|error| (first, AuditError(error.to_string())));
                drop(queue);
                self.settled.notify_all();
            }
            if !stopping {
                self.flush_counted(false);
            }
        }
    }
}

/// The file, rotated by size.
struct Sink {
    path: PathBuf,
    file: File,
    size: u64,
    max: u64,
    keep: u32,
}

impl Sink {
    fn open(path: PathBuf, max: u64, keep: u32) -> std::io::Result<Sink> {
        let file = append(&path)?;
        let size = file.metadata()?.len();
        let mut sink = Sink { path, file, size, max, keep };
        // A crash may have cut the last line off; the next one begins a new line.
        if sink.size > 0 {
            sink.write(b"\n", false)?;
        }
        Ok(sink)
    }

    fn write(&mut self, lines: &[u8], sync: bool) -> std::io::Result<()> {
        if self.size > 0 && self.size + lines.len() as u64 > self.max {
            self.rotate()?;
        }
        let mut rest = lines;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.size += count as u64;
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if sync { self.file.sync_data() } else { Ok(()) }
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        self.file.sync_data()?;
        let numbered = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        for n in (1..self.keep).rev() {
            match std::fs::rename(numbered(n), numbered(n + 1)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, numbered(1))?;
        self.file = append(&self.path)?;
        self.size = 0;
        // The names must be as safe as the lines are.
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn open(dir: &Path, max: u64, keep: u32) -> Audit {
        Audit::open(dir, max, keep, Arc::new(SystemClock)).unwrap()
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // What another thread is just writing ends without a line's end.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn record(text: &str) -> Record {
        Record { event: "operation", text: Some(text.into()), ..Record::default() }
    }

    #[test]
    fn a_strict_record_is_in_the_file_when_it_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let audit = open(dir.path(), 1 << 20, 2);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (audit, dir) = (&audit, dir.path());
                scope.spawn(move || {
                    for n in 0..20 {
                        let text = format!("{thread}-{n}");
                        audit.strict(record(&text)).unwrap();
                        let there = lines(&dir.join("audit.jsonl"));
                        assert!(there.iter().any(|line| line["text"] == *text));
                    }
                });
            }
        });
        assert!(audit.healthy());
    }

    #[test]
    fn a_trail_that_cannot_be_written_fails_strict_records_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let audit = open(dir.path(), 1 << 20, 2);
        audit.note(record("not strict: nobody waits"));
        assert!(audit.strict(record("a")).is_err());
        assert!(!audit.healthy());
        assert!(audit.strict(record("b")).is_err());
    }

    #[test]
    fn it_is_rotated_by_size_and_old_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let audit = open(dir.path(), 4096, 2);
        for n in 0..200 {
            audit.strict(record(&format!("{n} {}", "x".repeat(100)))).unwrap();
        }
        audit.stop();
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]);
        let all: Vec<_> = ["audit.jsonl.2", "audit.jsonl.1", "audit.jsonl"]
            .iter()
            .flat_map(|name| lines(&dir.path().join(name)))
            .map(|line| line["text"].as_str().unwrap().split(' ').next().unwrap().parse::<u32>().unwrap())
            .collect();
        assert_eq!(*all.last().unwrap(), 199);
        assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1), "in order and without a gap: {all:?}");
        for name in names {
            assert!(std::fs::metadata(dir.path().join(name)).unwrap().len() <= 4096);
        }
    }

    #[test]
    fn what_is_repeated_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let audit = open(dir.path(), 1 << 20, 2);
        for _ in 0..1000 {
            audit.count(Record { op: Some("read"), ..record("same") });
        }
        audit.count(Record { op: Some("write"), ..record("other") });
        audit.stop();
        let mut counts: Vec<_> = lines(&dir.path().join("audit.jsonl"))
            .iter()
            .map(|line| (line["op"].as_str().unwrap().to_owned(), line["count"].as_u64().unwrap_or(1)))
            .collect();
        counts.sort();
        let total: u64 = counts.iter().filter(|(op, _)| op == "read").map(|(_, count)| count).sum();
        assert_eq!(total, 1000);
        assert!(counts.len() <= 6, "{counts:?}");
    }

    #[test]
    fn half_a_line_left_by_a_crash_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        std::fs::write(&path, b"{\"time_us\":1,\"ev").unwrap();
        let audit = open(dir.path(), 1 << 20, 2);
        audit.strict(record("next")).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["text"], "next");
    }
}
