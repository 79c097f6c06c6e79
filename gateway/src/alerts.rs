//! Alerts for recovery: kept until they were asked for, numbered, bounded. Those that rest on what is forgotten with the process
//! (what was seen of an application's changes) are also on the disk before the change that gave rise to them is answered, and
//! told again by the next process; whoever hears them knows by their time what was dealt with.
//!
//! A kind of alert about one contract is kept at most once a second, with a count: a guest that breaks every rule ten
//! thousand times a second fills neither the list nor anyone's log, and does not push other applications' alerts out. By contract,
//! because the next one's is news: what the former gave rise to has been dealt with.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use strongroom_contracts::{Application, ContractId, Right, Rights};
use strongroom_protocol::admin::{Alert, AlertKind, MAX_EVIDENCE_BYTES};
use strongroom_protocol::codec;
use strongroom_protocol::hello::SessionId;
use strongroom_protocol::reply::Failure;

use crate::audit::Record;
use crate::gateway::Gateway;
use crate::session::Session;

/// Alerts that are kept.
const MAX_KEPT: usize = 4096;
/// How long equal alerts are counted before the next is kept.
const COUNT_FOR: Duration = Duration::from_secs(1);
/// Kinds of alerts and sessions with denials that are told apart; the table is cleared when it is full.
const MAX_TOLD_APART: usize = 4096;
/// How long denials of a session are counted. So many as its contract says make an alert: a program that does not know its
/// rights asks a few times and gives up; one that goes through everything it can name does not.
const DENIED_WITHIN: Duration = Duration::from_secs(10);

/// Alerts that are kept on the disk.
const MAX_WRITTEN: usize = 64;
/// How long they are told again, in microseconds: recovery takes older ones for no news.
const WRITTEN_FOR_US: u64 = 86_400_000_000;

/// The alerts of this process, and grave ones of the former.
#[derive(Default)]
pub struct Alerts {
    kept: Mutex<Kept>,
    raised: Condvar,
    /// Where grave ones are kept; held while they are written.
    file: Mutex<Option<PathBuf>>,
}

#[derive(Default)]
struct Kept {
    list: VecDeque<Alert>,
    newest: u64,
    stopped: bool,
    counted: HashMap<(Application, Option<ContractId>, AlertKind), Counted>,
    denied: HashMap<SessionId, Denied>,
}

struct Counted {
    since: Instant,
    more: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Denied {
    since: Instant,
    count: u32,
    /// Those that named a node or a handle that the session was never given, or another grant.
    probes: u32,
}

/// Alerts after one.
#[derive(Debug)]
pub struct After {
    /// Oldest first.
    pub list: Vec<Alert>,
    /// The number of the newest.
    pub newest: u64,
    /// Those that are not kept any more.
    pub missed: u64,
}

/// Whether it would be forgotten for good with the process.
fn is_grave(kind: AlertKind) -> bool {
    matches!(kind, AlertKind::Ransomware | AlertKind::UndoSpace)
}

impl Alerts {
    /// Goes on with the grave alerts of a former process. `now_us`: the time, Unix microseconds.
    ///
    /// # Errors
    /// The file is there and cannot be read. What it holds besides alerts is dropped.
    pub fn open(file: PathBuf, now_us: u64) -> io::Result<Alerts> {
        let written = match fs::read(&file) {
            Ok(bytes) => codec::decode_list::<Vec<Alert>>(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
            Err(error) => return Err(error),
        };
        let mut kept = Kept::default();
        for mut alert in written {
            if alert.at_us.saturating_add(WRITTEN_FOR_US) >= now_us {
                kept.newest += 1;
                alert.number = kept.newest;
                kept.list.push_back(alert);
            }
        }
        Ok(Alerts { kept: Mutex::new(kept), raised: Condvar::new(), file: Mutex::new(Some(file)) })
    }

    /// Brings the grave alerts to the disk.
    ///
    /// # Errors
    /// Those of the disk. They are still in memory.
    fn write(&self) -> io::Result<()> {
        let file = self.file.lock();
        let Some(path) = &*file else { return Ok(()) };
        let mut grave: Vec<Alert> = {
            let kept = self.kept.lock();
            kept.list.iter().rev().filter(|alert| is_grave(alert.kind)).take(MAX_WRITTEN).cloned().collect()
        };
        grave.reverse();
        let bytes = codec::encode_list(&grave).map_err(io::Error::other)?;
        let new = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let mut out = options.create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        out.write_all(&bytes)?;
        out.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    }

    /// Numbers an alert and keeps it, unless an equal one was kept a moment ago: then that is counted. Returns whether
    /// it was kept.
    pub fn raise(&self, mut alert: Alert) -> bool {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        if kept.counted.len() >= MAX_TOLD_APART {
            kept.counted.clear();
        }
        let key = (alert.application.clone(), alert.contract, alert.kind);
        let more = match kept.counted.get_mut(&key) {
            Some(counted) if now.duration_since(counted.since) < COUNT_FOR => {
                counted.more = counted.more.saturating_add(1);
                return false;
            }
            Some(counted) => std::mem::take(&mut counted.more),
            None => 0,
        };
        kept.counted.insert(key, Counted { since: now, more: 0 });
        kept.newest += 1;
        alert.number = kept.newest;
        alert.count = alert.count.max(1).saturating_add(more);
        cut(&mut alert.evidence, MAX_EVIDENCE_BYTES);
        if kept.list.len() >= MAX_KEPT {
            kept.list.pop_front();
        }
        let grave = is_grave(alert.kind);
        kept.list.push_back(alert);
        drop(kept);
        self.raised.notify_all();
        if grave {
            // Without the disk it is told from memory, and is on the audit trail.
            let _ = self.write();
        }
        true
    }

    /// At most `most` alerts after number `after`; waits for one for at most `wait`.
    pub fn after(&self, after: u64, most: usize, wait: Duration) -> After {
        let until = Instant::now() + wait;
        let mut kept = self.kept.lock();
        while kept.newest <= after && !kept.stopped {
            if self.raised.wait_until(&mut kept, until).timed_out() {
                break;
            }
        }
        let list: Vec<_> =
            kept.list.iter().filter(|alert| alert.number > after).take(most).cloned().collect();
        let first_kept = kept.list.front().map_or(kept.newest + 1, |alert| alert.number);
        let missed = first_kept.saturating_sub(after.saturating_add(1));
        After { list, newest: kept.newest, missed }
    }

    /// The sessions that alerts of ransomware are about.
    pub(crate) fn judged(&self) -> HashSet<SessionId> {
        let kept = self.kept.lock();
        let judged = kept.list.iter().filter(|alert| alert.kind == AlertKind::Ransomware);
        judged.filter_map(|alert| alert.session).collect()
    }

    /// Ends all waiting.
    pub fn stop(&self) {
        self.kept.lock().stopped = true;
        self.raised.notify_all();
    }

    /// Counts a denial; returns the number once it is more than a program that means no harm brings about.
    fn denied(&self, session: SessionId, most: u32, probe: bool) -> Option<Denied> {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        if kept.denied.len() >= MAX_TOLD_APART {
            kept.denied.retain(|_, denied| now.duration_since(denied.since) < DENIED_WITHIN);
        }
        if kept.denied.len() >= MAX_TOLD_APART {
            kept.denied.clear();
        }
        let denied = kept.denied.entry(session).or_insert(Denied::since(now));
        if now.duration_since(denied.since) >= DENIED_WITHIN {
            *denied = Denied::since(now);
        }
        denied.count += 1;
        denied.probes += u32::from(probe);
        if denied.count < most {
            return None;
        }
        Some(std::mem::replace(denied, Denied::since(now)))
    }
}

impl Denied {
    fn since(now: Instant) -> Denied {
        Denied { since: now, count: 0, probes: 0 }
    }
}

impl Gateway {
    /// Raises an alert about a session, and puts it on the audit trail.
    pub fn alert(&self, session: &Session, kind: AlertKind, evidence: String, count: u32) {
        let alert = Alert {
            number: 0,
            at_us: self.clock.now_us(),
            kind,
            application: session.application.clone(),
            contract: Some(session.contract().effective.id()),
            session: Some(session.id),
            evidence: evidence.clone(),
            count,
        };
        if self.alerts.raise(alert) {
            self.audit.note(Record {
                outcome: Some(kind.word().into()),
                text: Some(evidence),
                ..session.record("alert")
            });
        }
    }

    /// Looks at a failure that is one of authority or of protocol. `what`: the operation and its path.
    pub(crate) fn judge_failure(&self, session: &Session, failure: &Failure, what: impl FnOnce() -> String) {
        match failure {
            Failure::BadSlot | Failure::Malformed => {
                self.alert(session, AlertKind::Violation, format!("broke the protocol: {}", what()), 1);
            }
            // Copying programs ask for modes and times where they may not set them, once for each file.
            Failure::Denied { missing } if missing.without(Rights::only(Right::Attr)).is_empty() => {}
            Failure::Denied { .. } | Failure::Stale | Failure::BadHandle => {
                let most = session.contract().effective.detection.denied;
                let probe = !matches!(failure, Failure::Denied { .. });
                if let Some(Denied { count, probes, .. }) = self.alerts.denied(session.id, most, probe) {
                    let evidence = format!(
                        "{count} operations denied within {} s, {probes} of them on things it was never given or that are gone, the last: {}",
                        DENIED_WITHIN.as_secs(),
                        what()
                    );
                    self.alert(session, AlertKind::Violation, evidence, count);
                }
            }
            _ => {}
        }
    }
}

/// Cuts a text to at most `most` bytes.
fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(application: &str, kind: AlertKind) -> Alert {
        Alert {
            number: 0,
            at_us: 1,
            kind,
            application: application.parse().unwrap(),
            contract: None,
            session: None,
            evidence: "ü".repeat(MAX_EVIDENCE_BYTES),
            count: 1,
        }
    }

    #[test]
    fn alerts_are_numbered_and_equal_ones_counted() {
        let alerts = Alerts::default();
        assert!(alerts.raise(alert("mail", AlertKind::Violation)));
        assert!(!alerts.raise(alert("mail", AlertKind::Violation)));
        assert!(alerts.raise(alert("mail", AlertKind::Ransomware)));
        assert!(alerts.raise(alert("editor", AlertKind::Violation)));
        let next = ContractId::from_bytes([2; 16]);
        let again = Alerts::default();
        assert!(again.raise(alert("mail", AlertKind::Ransomware)));
        assert!(again.raise(Alert { contract: Some(next), ..alert("mail", AlertKind::Ransomware) }));
        let all = alerts.after(0, 10, Duration::ZERO);
        let numbers: Vec<u64> = all.list.iter().map(|alert| alert.number).collect();
        assert_eq!((numbers, all.newest, all.missed), (vec![1, 2, 3], 3, 0));
        assert!(all.list.iter().all(|alert| alert.evidence.len() <= MAX_EVIDENCE_BYTES));
        assert_eq!(alerts.after(2, 10, Duration::ZERO).list.len(), 1);
        assert_eq!(alerts.after(0, 2, Duration::ZERO).list.len(), 2);
    }

    #[test]
    fn grave_alerts_outlive_the_process_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let open = |now_us| Alerts::open(dir.path().join("alerts"), now_us).unwrap();
        {
            let alerts = open(2);
            assert!(alerts.raise(alert("mail", AlertKind::Violation)));
            assert!(alerts.raise(alert("mail", AlertKind::Ransomware)));
            assert!(alerts.raise(alert("editor", AlertKind::UndoSpace)));
            // Killed: nothing more is written.
            std::mem::forget(alerts);
        }
        let next = open(3);
        let all = next.after(0, 10, Duration::ZERO);
        let kinds: Vec<_> = all.list.iter().map(|alert| (alert.number, alert.kind)).collect();
        assert_eq!(kinds, [(1, AlertKind::Ransomware), (2, AlertKind::UndoSpace)]);
        assert!(next.raise(alert("mail", AlertKind::Ransomware)));
        assert_eq!(open(3).after(0, 10, Duration::ZERO).newest, 3);
        assert_eq!(open(2 + WRITTEN_FOR_US).after(0, 10, Duration::ZERO).newest, 0, "a day later");
        fs::write(dir.path().join("alerts"), b"damaged").unwrap();
        assert_eq!(open(3).after(0, 10, Duration::ZERO).newest, 0);
    }

    #[test]
    fn one_who_waits_is_woken() {
        let alerts = Alerts::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| alerts.after(0, 10, Duration::from_secs(60)));
            alerts.raise(alert("mail", AlertKind::UndoSpace));
            assert_eq!(waiting.join().unwrap().list.len(), 1);
            let waiting = scope.spawn(|| alerts.after(1, 10, Duration::from_secs(60)));
            alerts.stop();
            assert_eq!(waiting.join().unwrap().list.len(), 0);
        });
    }

    #[test]
    fn what_is_not_kept_is_missed_and_said_so() {
        let alerts = Alerts::default();
        for n in 0..MAX_KEPT + 5 {
            assert!(alerts.raise(alert(&format!("a{n}"), AlertKind::Violation)));
        }
        let all = alerts.after(0, usize::MAX, Duration::ZERO);
        assert_eq!((all.list.len(), all.missed), (MAX_KEPT, 5));
        assert_eq!(alerts.after(3, usize::MAX, Duration::ZERO).missed, 2);
        assert_eq!(alerts.after(100, usize::MAX, Duration::ZERO).missed, 0);
    }

    #[test]
    fn denials_are_an_alert_only_in_numbers() {
        let alerts = Alerts::default();
        let session = SessionId([7; 16]);
        for _ in 1..50 {
            assert_eq!(alerts.denied(session, 50, false), None);
        }
        let denied = alerts.denied(session, 50, true).unwrap();
        assert_eq!((denied.count, denied.probes), (50, 1));
        assert_eq!(alerts.denied(session, 50, false), None, "counted from the start again");
    }
}
