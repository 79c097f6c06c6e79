//! The undo log in the house: the thread that keeps it, what happens when an application outruns its space, and undos
//! that administrators ask for.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use strongroom_contracts::Application;
use strongroom_protocol::admin::{Alert, AlertKind};

use crate::audit::Record;
use crate::gateway::{Gateway, StartError};
use crate::undo::{Filter, Overrun, RunId, UndoError};

/// How often what lags behind is written: so much of what was made may have to be told by its time of birth after a kill.
const TICK: Duration = Duration::from_millis(50);
/// How often pre-images are brought to the disk, asked or not. The kernel writes changed data out after seconds.
const SYNC: Duration = Duration::from_secs(1);
/// How often what is over its window is looked for.
const EXPIRE: Duration = Duration::from_secs(60);

impl Gateway {
    /// Starts what keeps the undo log: its thread, the fence of those who outrun it, and undos that a crash interrupted.
    pub(crate) fn keep_undo(self: &Arc<Self>) -> Result<(), StartError> {
        if !self.engine.keeps_undo() {
            return Ok(());
        }
        let own = Arc::downgrade(self);
        let fencing: Arc<Mutex<HashSet<String>>> = Arc::default();
        self.engine.on_overrun(move |over| {
            if let Some(gateway) = own.upgrade() {
                gateway.fence_overrun(over, &fencing);
            }
        });
        match self.engine.interrupted_undos() {
            Ok(runs) => runs.into_iter().for_each(|run| self.carry_on(run, "goes on after a crash")),
            Err(error) => self.note_undo("undo-lost", None, error.to_string()),
        }
        let own = Arc::downgrade(self);
        spawn("undo-log", move || keep(&own))
    }

    /// The operation that outran its space holds its admission: the fence must not wait for it here.
    fn fence_overrun(self: &Arc<Self>, over: Overrun, fencing: &Arc<Mutex<HashSet<String>>>) {
        if !fencing.lock().insert(over.application.clone()) {
            return;
        }
        let Ok(application) = over.application.parse::<Application>() else { return };
        let (gateway, fencing) = (self.clone(), fencing.clone());
        let fence = move || {
            let text = format!(
                "{} bytes of undo space are used up by {}: fenced until a new contract is deposited",
                over.space, over.used
            );
            gateway.alerts.raise(Alert {
                number: 0,
                at_us: gateway.clock.now_us(),
                kind: AlertKind::UndoSpace,
                application: application.clone(),
                contract: None,
                session: None,
                evidence: text.clone(),
                count: 1,
            });
            gateway.note_undo("undo-full", Some(&over.application), text);
            if let Err(error) = gateway.fence_locally(&application) {
                gateway.note_undo(
                    "undo-full",
                    Some(&over.application),
                    format!("the fence is not durable: {error}"),
                );
            }
            fencing.lock().remove(&over.application);
        };
        if let Err(StartError::State { source, .. }) = spawn("undo-fence", fence) {
            self.note_undo("undo-full", None, format!("no thread for the fence: {source}"));
        }
    }

    fn note_undo(&self, event: &'static str, application: Option<&str>, text: String) {
        self.audit.note(Record {
            event,
            application: application.map(str::to_owned),
            text: Some(text),
            ..Record::default()
        });
    }

    /// Begins an undo, which goes on by itself.
    ///
    /// # Errors
    /// [`UndoError`].
    pub fn undo(self: &Arc<Self>, filter: Filter, dry: bool) -> Result<RunId, UndoError> {
        let application = filter.application.clone();
        let run = self.engine.begin_undo(filter, dry)?;
        if !dry {
            self.note_undo("undo", Some(&application), format!("undo {run} begins"));
        }
        self.carry_on(run, &application);
        Ok(run)
    }

    fn carry_on(self: &Arc<Self>, run: RunId, what: &str) {
        let (gateway, what) = (self.clone(), what.to_owned());
        let carry = move || {
            gateway.engine.carry_undo(run);
            if let Some((progress, _)) = gateway.engine.undo_progress(run, 0, 0) {
                let end = progress.failed.map_or_else(|| "done".to_owned(), |error| error.to_string());
                gateway.note_undo(
                    "undo",
                    None,
                    format!("undo {run} ({what}): {} steps, {end}", progress.total),
                );
            }
        };
        if let Err(StartError::State { source, .. }) = spawn("undo", carry) {
            self.note_undo("undo-lost", None, format!("undo {run} has no thread: {source}"));
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(run);
    spawned.map(drop).map_err(|source| StartError::State { path: format!("{name} thread"), source })
}

fn keep(own: &Weak<Gateway>) {
    let (mut synced, mut expired) = (Instant::now(), Instant::now());
    let mut trouble = false;
    while let Some(gateway) = own.upgrade().filter(|gateway| !gateway.is_stopping()) {
        gateway.engine.tick_undo();
        let mut kept = Ok(());
        if synced.elapsed() >= SYNC {
            kept = gateway.engine.sync_undo();
            synced = Instant::now();
        }
        if expired.elapsed() >= EXPIRE {
            kept = kept.and(gateway.engine.expire_undo());
            expired = Instant::now();
        }
        match (kept, trouble) {
            (Err(error), false) => {
                trouble = true;
                gateway.note_undo("undo-lost", None, format!("the undo log cannot be kept: {error}"));
            }
            (Ok(()), _) => trouble = false,
            _ => {}
        }
        drop(gateway);
        std::thread::sleep(TICK);
    }
}
