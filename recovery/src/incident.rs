//! One incident under way: its phases one after the other, tried again where that may help, and left for a person where
//! it does not. Whatever fails after the fence leaves the application fenced.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::{Map, Value};
use strongroom_base::incident::{Cause, Entry, Incident, Phase, Standing};
use strongroom_base::sys::{Pace, set_pace};
use strongroom_base::{Exit, Failure};

use crate::daemon::Daemon;
use crate::journal::Journal;
use crate::log::say;
use crate::notify::notify;
use crate::step;

/// Alerts that are kept word for word; more are counted.
const MAX_ALERTS_KEPT: u64 = 1000;
/// How often the number of folded alerts goes to the journal.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// The first wait after a failure; doubled with each.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest wait after a failure.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The longest wait between attempts to fence, and while the gateway is away.
const LONGEST_PATIENT_WAIT: Duration = Duration::from_secs(1);
/// How many times as often those are made.
const PATIENCE: u32 = 10;

/// Why a step did not do its work.
#[derive(Debug)]
pub struct StepError {
    /// What to tell.
    pub failure: Failure,
    /// What next.
    pub next: Next,
}

/// What may follow a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another attempt.
    Again,
    /// A person must look at it.
    Person,
    /// An earlier phase must be done anew.
    Back(Phase),
    /// The daemon is stopping: nothing failed.
    Stop,
}

impl From<Failure> for StepError {
    fn from(failure: Failure) -> StepError {
        StepError { failure, next: Next::Again }
    }
}

impl StepError {
    /// One that another attempt would not change.
    pub fn for_a_person(failure: Failure) -> StepError {
        StepError { failure, next: Next::Person }
    }

    /// The daemon is stopping.
    pub fn stopping() -> StepError {
        StepError { failure: Failure::other("the daemon is stopping"), next: Next::Stop }
    }
}

/// What a step came to.
pub type StepResult = Result<Map<String, Value>, StepError>;

struct Alerts {
    file: Option<std::fs::File>,
    kept: u64,
    count: u64,
    noted: Instant,
}

/// An incident that is not over.
pub struct Open {
    /// Its number.
    pub number: u64,
    journal: Mutex<Journal>,
    changed: Condvar,
    alerts: Mutex<Alerts>,
}

impl Open {
    /// Takes an incident on.
    ///
    /// # Errors
    /// If the file of its alerts cannot be opened.
    pub fn new(journal: Journal) -> Result<Arc<Open>, Failure> {
        let path = journal.dir().join("alerts.jsonl");
        let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file =
            file.map_err(|error| Failure::other(format!("cannot open `{}`: {error}", path.display())))?;
        let known = journal.incident().alerts;
        Ok(Arc::new(Open {
            number: journal.incident().number,
            journal: Mutex::new(journal),
            changed: Condvar::new(),
            alerts: Mutex::new(Alerts {
                file: Some(file),
                kept: known.min(MAX_ALERTS_KEPT),
                count: known,
                noted: Instant::now(),
            }),
        }))
    }

    /// How it stands.
    pub fn incident(&self) -> Incident {
        self.journal.lock().incident().clone()
    }

    /// Puts a line on record, and wakes those who wait for it.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn put(&self, entry: Entry) -> Result<(), Failure> {
        let put = self.journal.lock().put(entry);
        self.changed.notify_all();
        put
    }

    /// Decides something under the journal's lock: `decide` sees how it stands and says what goes on record.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn put_if<T>(&self, decide: impl FnOnce(&Incident) -> (Option<Entry>, T)) -> Result<T, Failure> {
        let mut journal = self.journal.lock();
        let (entry, value) = decide(journal.incident());
        if let Some(entry) = entry {
            journal.put(entry)?;
        }
        drop(journal);
        self.changed.notify_all();
        Ok(value)
    }

    /// Waits until `look` finds something, the time is over, or the daemon stops.
    pub fn wait<T>(
        &self,
        daemon: &Daemon,
        until: Instant,
        look: impl Fn(&Incident) -> Option<T>,
    ) -> Option<T> {
        let mut journal = self.journal.lock();
        loop {
            if let Some(found) = look(journal.incident()) {
                return Some(found);
            }
            if daemon.is_stopping() || self.changed.wait_until(&mut journal, until).timed_out() {
                return look(journal.incident());
            }
        }
    }

    /// Lets those who wait look again.
    pub fn wake(&self) {
        drop(self.journal.lock());
        self.changed.notify_all();
    }

    /// Counts an alert about the same application, and keeps it as evidence.
    pub fn fold(&self, cause: &Cause) {
        self.keep_alert(cause);
        let mut alerts = self.alerts.lock();
        alerts.count = alerts.count.saturating_add(cause.count);
        if alerts.noted.elapsed() < COUNT_EVERY {
            return;
        }
        alerts.noted = Instant::now();
        let count = alerts.count;
        drop(alerts);
        if let Err(failure) = self.put(Entry::Alerts { count }) {
            say(&format!("incident {}: {failure}", self.number));
        }
    }

    /// Keeps an alert as evidence.
    pub fn keep_alert(&self, cause: &Cause) {
        let mut alerts = self.alerts.lock();
        if alerts.kept >= MAX_ALERTS_KEPT {
            return;
        }
        alerts.kept += 1;
        let Ok(mut line) = serde_json::to_vec(cause) else { return };
        line.push(b'\n');
        let written = alerts.file.as_mut().map(|file| file.write_all(&line));
        if let Some(Err(error)) = written {
            alerts.file = None;
            say(&format!("incident {}: its alerts cannot be kept any more: {error}", self.number));
        }
    }

    /// Puts the number of alerts on record, if it is not.
    fn settle_alerts(&self) -> Result<(), Failure> {
        let count = self.alerts.lock().count;
        self.put_if(|now| ((now.alerts != count).then_some(Entry::Alerts { count }), ()))
    }
}

/// Runs an incident until it is over, stuck, or the daemon stops.
pub fn run(daemon: &Arc<Daemon>, open: &Arc<Open>) {
    if !open.incident().is_done(Phase::Fence) {
        // The fence must not queue behind what it is about. Without the privilege it does.
        set_pace(Pace::Urgent);
    }
    if let Err(failure) = run_phases(daemon, open) {
        // The journal cannot be written: the incident stays open, and is found at the next start.
        say(&format!("incident {} halts where it is: {failure}", open.number));
        notify(daemon.config.notify.as_ref(), "halted", &open.incident());
    }
}

fn run_phases(daemon: &Arc<Daemon>, open: &Arc<Open>) -> Result<(), Failure> {
    notify(daemon.config.notify.as_ref(), "begun", &open.incident());
    while !daemon.is_stopping() {
        let now = open.incident();
        let Some(phase) = now.next() else { return close(daemon, open) };
        if let Some(held) = now.held.as_ref().filter(|_| phase > Phase::Preserve) {
            let failure = Failure::other(format!("{held}: it stays fenced until a person has looked at it"));
            return stuck(daemon, open, phase, &failure);
        }
        match run_phase(daemon, open, phase)? {
            Came::Done => {
                if phase == Phase::Fence {
                    set_pace(Pace::Usual);
                    notify(daemon.config.notify.as_ref(), "fenced", &open.incident());
                }
            }
            Came::Back(to) => open.put(Entry::Entered { phase: to, attempt: 1 })?,
            Came::Stuck(failure) => return stuck(daemon, open, phase, &failure),
            Came::Stopped => return Ok(()),
        }
    }
    Ok(())
}

enum Came {
    Done,
    Back(Phase),
    Stuck(Failure),
    Stopped,
}

fn run_phase(daemon: &Arc<Daemon>, open: &Arc<Open>, phase: Phase) -> Result<Came, Failure> {
    let attempts = daemon.config.limits.attempts;
    let (mut wait, mut tried, mut waited) = (FIRST_WAIT, 0u32, 0u32);
    loop {
        let attempt = enter(open, phase)?;
        abort(daemon, phase, false);
        let result = step::take(daemon, open, phase);
        let longest = match result {
            Ok(facts) => {
                abort(daemon, phase, true);
                open.put(Entry::Done { phase, facts })?;
                return Ok(Came::Done);
            }
            Err(StepError { next: Next::Stop, .. }) => return Ok(Came::Stopped),
            Err(StepError { failure, next }) => {
                // A gateway that is away comes back: it is started again, or its guest is. Nothing goes on without it.
                let patient = phase == Phase::Fence || failure.exit() == Exit::Unreachable;
                let (count, most, longest) = match patient {
                    true => (&mut waited, attempts.saturating_mul(PATIENCE), LONGEST_PATIENT_WAIT),
                    false => (&mut tried, attempts, LONGEST_WAIT),
                };
                *count = count.saturating_add(1);
                let again = next == Next::Again && *count < most;
                wait = wait.min(longest);
                let retry_in_ms = again.then(|| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
                say(&format!("incident {}, {phase}, attempt {attempt}: {failure}", open.number));
                // Whoever waits is in no hurry any more.
                set_pace(Pace::Usual);
                open.put(Entry::Failed {
                    phase,
                    attempt,
                    error: failure.message().to_owned(),
                    hints: failure.hints().to_vec(),
                    retry_in_ms,
                })?;
                match next {
                    Next::Back(to) => return Ok(Came::Back(to)),
                    _ if !again => return Ok(Came::Stuck(failure)),
                    _ => longest,
                }
            }
        };
        daemon.pause(wait);
        if daemon.is_stopping() {
            return Ok(Came::Stopped);
        }
        wait = (wait * 2).min(longest);
    }
}

/// Puts on record that a phase is entered, unless that was done with the incident's first line. Returns the attempt.
fn enter(open: &Open, phase: Phase) -> Result<u32, Failure> {
    open.put_if(|now| {
        let span = now.spans.iter().find(|span| span.phase == phase);
        let fresh = now.spans.len() == 1
            && span.is_some_and(|span| {
                span.attempts == 1
                    && span.error.is_none()
                    && now.last_us == span.began_us
                    && now.decided.is_empty()
            });
        let attempt = span.map_or(0, |span| span.attempts) + u32::from(!fresh);
        ((!fresh).then_some(Entry::Entered { phase, attempt }), attempt)
    })
}

fn stuck(daemon: &Daemon, open: &Open, phase: Phase, failure: &Failure) -> Result<(), Failure> {
    open.settle_alerts()?;
    let fenced = open.incident().is_done(Phase::Fence);
    let state =
        if fenced { "the application is fenced" } else { "the application is NOT known to be fenced" };
    let error = format!("{phase}: {failure} ({state})");
    say(&format!("incident {} is stuck: {error}", open.number));
    open.put(Entry::Stuck { phase, error })?;
    notify(daemon.config.notify.as_ref(), "stuck", &open.incident());
    Ok(())
}

fn close(daemon: &Daemon, open: &Open) -> Result<(), Failure> {
    open.settle_alerts()?;
    let now = open.incident();
    let outcome = match now.issued.last() {
        _ if now.again.is_some() => {
            format!("{} was attacked again: another incident begins", now.application)
        }
        Some((_, generation, _)) => format!("{} works again, under generation {generation}", now.application),
        None => format!("{0} is fenced; to let it work again: contract reissue {0}", now.application),
    };
    if !matches!(now.standing, Standing::Closed(_)) {
        open.put(Entry::Closed { outcome: outcome.clone() })?;
    }
    say(&format!("incident {} is closed: {outcome}", open.number));
    notify(daemon.config.notify.as_ref(), "closed", &open.incident());
    Ok(())
}

/// For tests: ends the process as a kill would.
fn abort(daemon: &Daemon, phase: Phase, done: bool) {
    if daemon.options.abort_at.is_some_and(|at| at.phase == phase && at.done == done) {
        std::process::abort();
    }
}
