//! The gateway as a whole: what the doors share.

use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use strongroom_contracts::keys::Domain;
use strongroom_contracts::{GatewayId, PublicKey, SecretKey, keys};
use strongroom_protocol::hello::SessionId;
use strongroom_protocol::reply::Event;

use crate::alerts::Alerts;
use crate::audit::{Audit, AuditError, Record};
use crate::clock::Clock;
use crate::config::Limits;
use crate::engine::{Engine, EngineError, EngineOptions, LeaseOptions, SpecialFiles};
use crate::former;
use crate::ledger::{Ledger, LedgerError};
use crate::session::lock_grace::LockGrace;
use crate::session::parked::Parked;
use crate::session::registry::Registry;
use crate::session::{Link, Session};
use crate::threads::Threads;
use crate::undo::UndoOptions;

/// How long a fenced connection stays, so that its client hears why.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long clients keep what they have leases on without asking again.
const WATCHED: Duration = Duration::from_secs(4 * 3600);
/// The same where nobody notices what an administrator changes.
const BLIND: Duration = Duration::from_secs(1);
/// How often the housekeeping looks around, at least.
const TICK: Duration = Duration::from_secs(1);
/// How long a stop waits for operations under way.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process has the state directory.
    #[error("another gateway runs on the state directory {0}; stop it first")]
    Running(String),
    /// A file in the state directory.
    #[error("the state directory {path} cannot be used: {source}")]
    State {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The audit trail.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The data.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The system's random source.
    #[error(transparent)]
    Key(#[from] keys::KeyError),
}

/// What a gateway is started with.
pub struct Start<'a> {
    /// Its key.
    pub key: SecretKey,
    /// The issuer that it believes.
    pub issuer: PublicKey,
    /// The data root.
    pub data: &'a Path,
    /// The state directory.
    pub state: &'a Path,
    /// Bounds.
    pub limits: Limits,
    /// Special files.
    pub special_files: SpecialFiles,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The undo log; `None`: nothing can be taken back.
    pub undo: Option<crate::config::Undo>,
}

/// A running gateway.
pub struct Gateway {
    /// Its key.
    pub(crate) key: SecretKey,
    /// Its identity.
    pub id: GatewayId,
    /// The issuer that it believes.
    pub issuer: PublicKey,
    /// Bounds.
    pub limits: Limits,
    /// Changes when the process does.
    pub boot: u64,
    /// When it started, Unix seconds.
    pub started: u64,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The audit trail.
    pub audit: Audit,
    /// Alerts for recovery.
    pub alerts: Alerts,
    /// The ledger.
    pub ledger: Ledger,
    /// What carries out operations.
    pub engine: Engine,
    /// Threads.
    pub threads: Threads,
    pub(crate) registry: Mutex<Registry>,
    pub(crate) parked: Parked,
    /// `/proc/sys/kernel/random/boot_id`.
    pub(crate) machine: String,
    /// Where ledger, audit trail and sessions are.
    pub(crate) state: PathBuf,
    pub(crate) sessions_dir: PathBuf,
    /// Connections that are to be closed at some time.
    closing: Mutex<Vec<(Instant, Arc<dyn Link>)>>,
    chores: Mutex<bool>,
    chore: Condvar,
    stopping: AtomicBool,
    pub(crate) lock_grace: Mutex<Option<LockGrace>>,
    /// Held for as long as the process lives: one gateway for each state directory.
    _lock: std::fs::File,
}

impl Gateway {
    /// Opens everything, finds the sessions of a former process again, and starts the housekeeping.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(start: Start<'_>) -> Result<Arc<Gateway>, StartError> {
        let state = start.state;
        let lock = lock(state)?;
        let id = start.key.public().gateway_id();
        let (now, start_us) = (start.clock.now(), start.clock.now_us());
        let audit =
            Audit::open(state, start.limits.audit_bytes, start.limits.audit_files, start.clock.clone())?;
        let ledger = Ledger::open(&state.join("ledger.redb"), &id, now)?;
        let leases = LeaseOptions { recall: start.limits.recall, keep: start.limits.keep.unwrap_or(BLIND) };
        let decoys = start.key.sign(Domain::Decoys, id.as_bytes()).to_bytes();
        let options = EngineOptions {
            leases,
            special_files: start.special_files,
            decoys: Some(decoys),
            ..EngineOptions::default()
        };
        let engine = match start.undo {
            None => Engine::open(start.data, options)?,
            Some(undo) => {
                let kept = UndoOptions {
                    vault: undo.vault,
                    space: undo.space,
                    ..UndoOptions::new(start.clock.clone())
                };
                Engine::with_undo(start.data, options, &kept)?
            }
        };
        let alerts = Alerts::open(state.join("alerts"), start_us).map_err(|source| StartError::State {
            path: state.join("alerts").display().to_string(),
            source,
        })?;
        let sessions_dir = state.join("sessions");
        make_directory(&sessions_dir)?;
        let machine = read_machine_boot();
        let gateway = Arc::new(Gateway {
            key: start.key,
            id,
            issuer: start.issuer,
            limits: start.limits,
            boot: u64::from_le_bytes(keys::random()?),
            started: now,
            clock: start.clock,
            audit,
            alerts,
            ledger,
            engine,
            threads: Threads::new(start.limits.connections + 2 * start.limits.workers + 64),
            registry: Mutex::default(),
            parked: Parked::new(start.limits.waiting),
            machine,
            state: state.to_owned(),
            sessions_dir,
            closing: Mutex::default(),
            chores: Mutex::default(),
            chore: Condvar::new(),
            stopping: AtomicBool::new(false),
            lock_grace: Mutex::new(None),
            _lock: lock,
        });
        gateway.audit.note(Record {
            text: Some(format!("{} boot {:016x}", env!("CARGO_PKG_VERSION"), gateway.boot)),
            ..Record { event: "start", ..Record::default() }
        });
        let had_locks = gateway.find_sessions()?;
        gateway.watch_outside();
        let lessees = gateway.sessions_where(|session| session.slots.leases_taken());
        gateway.engine.begin_lease_grace(lessees.iter().map(|session| &session.engine));
        gateway.begin_lock_grace(had_locks);
        gateway.keep_undo()?;
        let own = Arc::downgrade(&gateway);
        std::thread::Builder::new()
            .name("housekeeping".into())
            .spawn(move || {
                while let Some(gateway) = own.upgrade() {
                    if gateway.is_stopping() {
                        break;
                    }
                    gateway.keep_house();
                }
            })
            .map_err(|source| StartError::State { path: "housekeeping thread".into(), source })?;
        Ok(gateway)
    }

    /// Leases are long if it is noticed what others than the gateway change.
    fn watch_outside(&self) {
        if self.limits.keep.is_some_and(|keep| keep <= BLIND) {
            // As short as it is without: not worth hearing of every change in the file system.
            return;
        }
        let keep = self.limits.keep.unwrap_or(WATCHED);
        if let Err(error) = self.engine.watch_outside(keep) {
            let kept = self.limits.keep.unwrap_or(BLIND);
            let text = format!(
                "changes of the data behind the gateway's back are not noticed (fanotify: {error}; it needs CAP_SYS_ADMIN): \
                 clients ask again after {} ms; set `keep` in [leases] if nobody else changes the data",
                kept.as_millis()
            );
            self.audit.note(Record { event: "leases", text: Some(text), ..Record::default() });
        }
    }

    /// The gateway's public key.
    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Whether it is about to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Tells every client, ends all connections, waits for operations under way, and writes the audit trail out.
    /// Sessions stay resumable.
    pub fn stop(&self) {
        if self.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        self.wake_housekeeping();
        self.alerts.stop();
        self.parked.call_all();
        let sessions = self.sessions();
        for link in sessions.iter().flat_map(|session| session.links()) {
            // A client that does not read must not hold the others up.
            let farewell = move || {
                link.tell(&Event::Stopping);
                link.close();
            };
            let _ = self.threads.run(Box::new(move |_| farewell()));
        }
        let until = Instant::now() + STOP_WAIT;
        for session in &sessions {
            while (session.turnstile.inside() > 0 || !session.links().is_empty()) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        for link in sessions.iter().flat_map(|session| session.links()) {
            link.close();
        }
        self.audit.note(Record { event: "stop", ..Record::default() });
        self.audit.stop();
    }

    /// Closes a connection after a while, so that what was just sent to it can be read.
    pub(crate) fn close_soon(&self, link: Arc<dyn Link>) {
        self.close_at(Instant::now() + FAREWELL, link);
    }

    /// Closes a connection at a time, unless [`Gateway::keep_open`] takes it back.
    pub(crate) fn close_at(&self, when: Instant, link: Arc<dyn Link>) {
        self.closing.lock().push((when, link));
    }

    /// Takes a connection back from being closed.
    pub(crate) fn keep_open(&self, link: &Arc<dyn Link>) {
        self.closing.lock().retain(|(_, other)| !Arc::ptr_eq(other, link));
    }

    /// Lets the housekeeping look around now.
    pub(crate) fn wake_housekeeping(&self) {
        *self.chores.lock() = true;
        self.chore.notify_all();
    }

    fn keep_house(self: &Arc<Self>) {
        let next = self.next_expiry().saturating_sub(self.clock.now());
        {
            let mut asked = self.chores.lock();
            if !*asked {
                self.chore.wait_for(&mut asked, TICK.min(Duration::from_secs(next)).max(TICK / 20));
            }
            *asked = false;
        }
        let now = Instant::now();
        let mut due = vec![];
        self.closing.lock().retain(|(when, link)| {
            let keep = *when > now;
            if !keep {
                due.push(link.clone());
            }
            keep
        });
        due.iter().for_each(|link| link.close());
        self.end_sessions();
        self.time_lock_grace(now);
    }

    /// All live sessions.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.registry.lock().sessions.values().cloned().collect()
    }

    /// The file of a session's slots.
    pub(crate) fn slot_file(&self, id: &SessionId) -> PathBuf {
        self.sessions_dir.join(id.to_string())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.audit.stop();
    }
}

/// Makes sure that no other process uses the state directory.
fn lock(state: &Path) -> Result<std::fs::File, StartError> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = state.join("lock");
    let error = |source| StartError::State { path: path.display().to_string(), source };
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(error)?;
    let held = |refused: &TryLockError| matches!(refused, TryLockError::WouldBlock);
    match former::outwait(held, || file.try_lock()) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::Running(state.display().to_string())),
        Err(TryLockError::Error(source)) => Err(error(source)),
    }
}

fn make_directory(path: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(StartError::State { path: path.display().to_string(), source })
        }
        _ => Ok(()),
    }
}

/// The boot id of the machine; empty where the kernel does not tell, and then sessions do not outlive the process.
fn read_machine_boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
