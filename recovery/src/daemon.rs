//! The daemon as a whole: one for each base directory, whatever started it.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use strongroom_base::admin::AdminClient;
use strongroom_base::control::Told;
use strongroom_base::incident::{self, Cause, Entry, Phase, Standing};
use strongroom_base::{Base, Exit, Failure};
use strongroom_contracts::{Application, SecretKey};
use strongroom_policy::{Policy, Step};

use crate::config::Config;
use crate::incident::Open;
use crate::journal::{Journal, make_dir, now_us};
use crate::log::{Noise, say};
use crate::policies::Policies;
use crate::{control, enrol, incident as running, source};

/// Where the process ends as if it were killed; for tests of what survives that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortAt {
    /// In which phase.
    pub phase: Phase,
    /// When the phase has done its work and this is not on record yet; otherwise when it was just entered.
    pub done: bool,
}

/// How the daemon is to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// End when no incident is under way, and listen to people only.
    pub until_idle: bool,
    /// See [`AbortAt`].
    pub abort_at: Option<AbortAt>,
}

/// What is known about the last incident of an application.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recent {
    /// Its number.
    pub number: u64,
    /// The fence, by the gateway's clock.
    pub fenced_gateway_us: u64,
    /// Since when the guest is clean (or the application fenced, where no guest was restarted), by ours.
    pub clean_us: u64,
}

/// What became of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It began an incident, or is kept with one under way.
    Incident,
    /// The policy does not want an incident for it.
    Unwanted,
    /// A former incident has dealt with it.
    Late {
        /// Its number.
        incident: u64,
    },
}

#[derive(Default)]
struct Desk {
    open: BTreeMap<Application, Arc<Open>>,
    recent: BTreeMap<Application, Recent>,
    /// When alerts began incidents in the last hour.
    begun: BTreeMap<Application, Vec<u64>>,
    working: usize,
    /// Orders that came in, so that one that ends when idle does not end before the first.
    asked: bool,
}

/// A running daemon.
pub struct Daemon {
    /// The base directory.
    pub base: Base,
    /// The configuration.
    pub config: Config,
    /// The policies.
    pub policies: Policies,
    /// How it is to run.
    pub options: Options,
    /// Lines that may come in numbers.
    pub noise: Noise,
    /// The key of the enrolment listener.
    pub enrol_key: Option<SecretKey>,
    desk: Mutex<Desk>,
    changed: Condvar,
    stopping: AtomicBool,
    _lock: File,
}

const HOUR_US: u64 = 3_600_000_000;
/// How long one that ends when idle waits for its first order.
const FIRST_ORDER: Duration = Duration::from_secs(30);
/// How long a start waits for the end of a former daemon that was killed and keeps its lock until its last thread is gone.
const LOCK_MAX: Duration = Duration::from_secs(3);
const LOCK_PACE: Duration = Duration::from_millis(5);

impl Daemon {
    /// Starts: finds the incidents that are not over and goes on with them, then listens.
    ///
    /// # Errors
    /// [`Exit::Refused`] if another one runs on the same base directory; anything that is wrong with the configuration.
    pub fn start(base: Base, options: Options) -> Result<Arc<Daemon>, Failure> {
        let config = Config::load(&base)?;
        let dir = base.recovery_dir();
        make_dir(&dir)
            .map_err(|error| Failure::other(format!("cannot make `{}`: {error}", dir.display())))?;
        let lock = lock(&base)?;
        let enrol_key = config.enrol.as_ref().map(|_| enrol::key(&base)).transpose()?;
        let daemon = Arc::new(Daemon {
            policies: Policies::new(&base),
            base,
            config,
            options,
            noise: Noise::default(),
            enrol_key,
            desk: Mutex::default(),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            _lock: lock,
        });
        daemon.warn();
        let enrolment = enrol::listen(&daemon)?;
        daemon.find_incidents()?;
        if let Some(enrolment) = enrolment {
            enrolment.serve()?;
        }
        control::start(&daemon)?;
        if !options.until_idle {
            source::start(&daemon)?;
        }
        Ok(daemon)
    }

    /// Whether it is about to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends it: steps under way are waited for a while; they are safe to be cut off, and go on at the next start.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let until = Instant::now() + Duration::from_secs(20);
        let mut desk = self.desk.lock();
        desk.open.values().for_each(|open| open.wake());
        self.changed.notify_all();
        while desk.working > 0 && !self.changed.wait_until(&mut desk, until).timed_out() {}
        drop(desk);
        let _ = std::fs::remove_file(self.base.control_path());
    }

    /// Waits until no incident is under way.
    pub fn wait_idle(&self) {
        let until = Instant::now() + FIRST_ORDER;
        let mut desk = self.desk.lock();
        while !self.is_stopping() && (desk.working > 0 || (!desk.asked && Instant::now() < until)) {
            self.changed.wait_for(&mut desk, Duration::from_millis(200));
        }
    }

    /// Sleeps, unless the daemon stops.
    pub fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut desk = self.desk.lock();
        while !self.is_stopping() && !self.changed.wait_until(&mut desk, until).timed_out() {}
    }

    /// Connects to the gateway.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub fn connect(&self) -> Result<AdminClient, Failure> {
        self.base.connect(self.config.limits.gateway_timeout.0)
    }

    /// What is missing on this machine, said when it starts: later it would be found in an emergency.
    fn warn(&self) {
        for (name, guest) in &self.config.guest {
            for program in guest.missing() {
                say(&format!(
                    "guest {name}: there is no program `{program}` on this machine; it cannot be restarted"
                ));
            }
        }
        if self.options.until_idle {
            return;
        }
        for (application, policy) in self.policies.now().iter() {
            let restarts = policy
                .recovery
                .as_ref()
                .is_some_and(|recovery| recovery.steps.iter().any(|step| step.value == Step::Restart));
            let guest = guest_of(policy);
            if restarts && !self.config.guest.contains_key(&guest) {
                say(&format!(
                    "policy of {application}: recovery.toml has no [guest.{guest}]; its step `restart` will fail"
                ));
            }
        }
    }

    fn find_incidents(self: &Arc<Self>) -> Result<(), Failure> {
        let (list, warnings) = incident::all(&self.base.incidents_dir())?;
        warnings.iter().for_each(|warning| say(warning));
        let hour_ago = now_us().saturating_sub(HOUR_US);
        // Of those that ended, as far as no other came after them.
        let mut again = BTreeMap::new();
        for found in list {
            again.remove(&found.application);
            if let (false, Some(cause)) = (found.is_open(), &found.again) {
                again.insert(found.application.clone(), cause.clone());
            }
            let mut desk = self.desk.lock();
            desk.recent.insert(found.application.clone(), recent(&found));
            if found.cause.source != "person" && found.opened_us > hour_ago {
                desk.begun.entry(found.application.clone()).or_default().push(found.opened_us);
            }
            drop(desk);
            if !found.is_open() {
                continue;
            }
            let open = Open::new(Journal::open(&found.dir)?)?;
            say(&format!("incident {} of {} goes on", found.number, found.application));
            let mut desk = self.desk.lock();
            desk.open.insert(found.application.clone(), open.clone());
            if found.standing == Standing::Running {
                self.spawn(&mut desk, open)?;
            }
        }
        for (application, cause) in again {
            self.begin_again(&mut self.desk.lock(), &application, cause);
        }
        Ok(())
    }

    fn spawn(self: &Arc<Self>, desk: &mut Desk, open: Arc<Open>) -> Result<(), Failure> {
        let daemon = self.clone();
        desk.working += 1;
        desk.asked = true;
        let work = move || {
            running::run(&daemon, &open);
            let mut desk = daemon.desk.lock();
            let now = open.incident();
            desk.recent.insert(now.application.clone(), recent(&now));
            if !now.is_open() {
                desk.open.remove(&now.application);
                if let Some(cause) = now.again {
                    daemon.begin_again(&mut desk, &now.application, cause);
                }
            }
            desk.working -= 1;
            daemon.changed.notify_all();
        };
        std::thread::Builder::new().name("incident".into()).spawn(work).map(drop).map_err(|error| {
            desk.working -= 1;
            Failure::other(format!("no thread for an incident: {error}"))
        })
    }

    /// The incident of an application that is not over.
    pub fn open_incident(&self, application: &Application) -> Option<Arc<Open>> {
        self.desk.lock().open.get(application).cloned()
    }

    /// An alert about an application: is kept with the incident under way, or begins one if the policy wants that and the last one has not
    /// dealt with it. What comes after the fence of the one under way begins the next. All of it is decided at one moment, as
    /// the incident under way may be about to end.
    ///
    /// # Errors
    /// If it cannot be put on record.
    pub fn alert(
        self: &Arc<Self>,
        policy: &Policy,
        cause: Cause,
        wanted: bool,
        dealt_with: impl FnOnce(&Recent) -> bool,
    ) -> Result<Taken, Failure> {
        let mut desk = self.desk.lock();
        if let Some(open) = desk.open.get(&policy.application).cloned() {
            let now = open.incident();
            if wanted && now.again.is_none() && is_fenced_and_clean(&now) && !dealt_with(&recent(&now)) {
                open.put(Entry::Again { cause: cause.clone() })?;
            }
            drop(desk);
            open.fold(&cause);
            return Ok(Taken::Incident);
        }
        if !wanted {
            return Ok(Taken::Unwanted);
        }
        if let Some(recent) = desk.recent.get(&policy.application)
            && dealt_with(recent)
        {
            return Ok(Taken::Late { incident: recent.number });
        }
        self.begin_for_alert(&mut desk, policy, cause)?;
        Ok(Taken::Incident)
    }

    fn begin_for_alert(
        self: &Arc<Self>,
        desk: &mut Desk,
        policy: &Policy,
        cause: Cause,
    ) -> Result<(), Failure> {
        let steps: Vec<Step> = policy.recovery.iter().flat_map(|r| &r.steps).map(|step| step.value).collect();
        let now = now_us();
        let begun = desk.begun.entry(policy.application.clone()).or_default();
        begun.retain(|at| *at > now.saturating_sub(HOUR_US));
        let most = self.config.limits.incidents_per_hour as usize;
        let held = (begun.len() >= most).then(|| {
            format!(
                "alerts have begun {} incidents of {} within an hour already",
                begun.len(),
                policy.application
            )
        });
        begun.push(now);
        self.begin(desk, &policy.application, Some(policy), &steps, cause, held).map(drop)
    }

    /// An incident has ended that an alert came after.
    fn begin_again(self: &Arc<Self>, desk: &mut Desk, application: &Application, cause: Cause) {
        let policies = self.policies.now();
        let Some(policy) = policies.get(application).filter(|policy| policy.recovery.is_some()) else {
            return say(&format!("no policy in force recovers `{application}` any more: {}", cause.text));
        };
        if let Err(failure) = self.begin_for_alert(desk, policy, cause) {
            say(&format!("the next incident of {application} could not begin: {failure}"));
        }
    }

    /// A person's order.
    ///
    /// # Errors
    /// If there are no steps to take.
    pub fn order(
        self: &Arc<Self>,
        application: &Application,
        why: &str,
        by: &str,
        steps: Option<&[Step]>,
    ) -> Result<Told, Failure> {
        let policies = self.policies.now();
        let policy = policies.get(application);
        let mut desk = self.desk.lock();
        desk.asked = true;
        if let Some(open) = desk.open.get(application).cloned() {
            if !matches!(open.incident().standing, Standing::Stuck(_)) {
                return Ok(Told::Running { incident: open.number });
            }
            open.put(Entry::Resumed { by: by.to_owned() })?;
            let incident = open.number;
            self.spawn(&mut desk, open)?;
            return Ok(Told::Resumed { incident });
        }
        let of_policy: Vec<Step> = policy
            .and_then(|policy| policy.recovery.as_ref())
            .map_or(vec![], |recovery| recovery.steps.iter().map(|step| step.value).collect());
        let steps = steps.map_or(of_policy, <[Step]>::to_vec);
        if steps.is_empty() {
            return Err(match policy {
                None => Failure::not_found(format!("no policy in force names `{application}`"))
                    .hint("see: contract policy check"),
                Some(_) => Failure::bad(format!("the policy of `{application}` has no steps of recovery")),
            }
            .hint("say which: --steps 'fence, restart, reissue'")
            .hint(format!("to cut it off now: contract revoke {application}")));
        }
        let text = if why.is_empty() { format!("asked by {by}") } else { format!("asked by {by}: {why}") };
        let cause = Cause {
            source: "person".into(),
            kind: "asked".into(),
            at_us: now_us(),
            severity: None,
            whose: None,
            text,
            count: 1,
        };
        self.begin(&mut desk, application, policy, &steps, cause, None)
    }

    fn begin(
        self: &Arc<Self>,
        desk: &mut Desk,
        application: &Application,
        policy: Option<&Policy>,
        steps: &[Step],
        cause: Cause,
        held: Option<String>,
    ) -> Result<Told, Failure> {
        let undo_secs = steps.iter().find_map(|step| match step {
            Step::Undo { secs } => Some(*secs),
            _ => None,
        });
        let opened = |number| Entry::Opened {
            number,
            application: application.clone(),
            guest: policy.map(guest_of),
            phases: phases(steps),
            undo_secs,
            ask: steps.contains(&Step::Confirm),
            cause: cause.clone(),
            held: held.clone(),
        };
        // The fence is entered with the same write: nothing stands between an alert and it.
        let first = [Entry::Entered { phase: Phase::Fence, attempt: 1 }];
        let journal = Journal::begin(&self.base.incidents_dir(), opened, &first)?;
        let open = Open::new(journal)?;
        open.keep_alert(&cause);
        let incident = open.number;
        say(&format!("incident {incident} of {application} begins: {} ({})", cause.text, cause.source));
        desk.open.insert(application.clone(), open.clone());
        self.spawn(desk, open)?;
        Ok(Told::Begun { incident })
    }

    /// How it is, for people and programs.
    pub fn status(&self) -> serde_json::Value {
        let desk = self.desk.lock();
        serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "open": desk.open.values().map(|open| open.number).collect::<Vec<_>>(),
            "counts": self.noise.totals(),
        })
    }
}

/// The guest of an application: what `recovery.toml` calls it.
pub fn guest_of(policy: &Policy) -> String {
    policy.guest.as_ref().map_or_else(|| policy.application.to_string(), |guest| guest.value.clone())
}

/// What an incident with these steps does. Fencing and keeping evidence come always; what comes back is looked at.
pub fn phases(steps: &[Step]) -> Vec<Phase> {
    let has = |step: fn(&Step) -> bool| steps.iter().any(step);
    let reissues = has(|step| *step == Step::Reissue);
    let mut phases = vec![Phase::Fence, Phase::Preserve];
    if has(|step| matches!(step, Step::Undo { .. })) {
        phases.push(Phase::Undo);
    }
    if has(|step| *step == Step::Restart) {
        phases.push(Phase::Restart);
    }
    if reissues {
        phases.push(Phase::Reissue);
    }
    if reissues || has(|step| *step == Step::Confirm) {
        phases.push(Phase::Confirm);
    }
    phases
}

/// Whether nothing of before can give rise to alerts any more.
fn is_fenced_and_clean(now: &incident::Incident) -> bool {
    [Phase::Fence, Phase::Restart].iter().all(|phase| !now.phases.contains(phase) || now.is_done(*phase))
}

fn recent(found: &incident::Incident) -> Recent {
    let done = |phase| found.spans.iter().find(|span| span.phase == phase).and_then(|span| span.ended_us);
    Recent {
        number: found.number,
        fenced_gateway_us: found.fact(Phase::Fence, "fenced_at_us").and_then(|us| us.as_u64()).unwrap_or(0),
        clean_us: done(Phase::Restart).or(done(Phase::Fence)).unwrap_or(0),
    }
}

fn lock(base: &Base) -> Result<File, Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = base.recovery_dir().join("lock");
    let failed = |error: std::io::Error| Failure::other(format!("cannot lock `{}`: {error}", path.display()));
    let file =
        File::options().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
    let until = Instant::now() + LOCK_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(LOCK_PACE);
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Failure::new(
                    Exit::Refused,
                    format!("another strongroom-recovery runs on `{}`", base.recovery_dir().display()),
                ));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}
