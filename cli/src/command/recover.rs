//! `contract recover`: an incident by hand, and what goes on in it.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;
use strongroom_base::control::{self, Ask, Told};
use strongroom_base::incident::{Incident, Phase, Standing, dir_of};
use strongroom_contracts::Application;

use super::Context;
use super::incidents::{phase_line, timeline};
use crate::base::Base;
use crate::failure::{Exit, Failure};
use crate::output::{Report, tame};

/// How often the journal is looked at.
const LOOK: Duration = Duration::from_millis(30);
/// How often it is asked whether the daemon is still there.
const ASK_AGAIN: Duration = Duration::from_secs(2);
const DAEMON: &str = "strongroom-recovery";

/// Recover an application: fence, evidence, undo, restart, reissue, as its policy says
///
/// Begins an incident, or goes on with one that is stuck, and shows what happens until it is over. The work is
/// strongroom-recovery's: if it does not run, it is started for this incident alone. Interrupting this command does not
/// interrupt the recovery; to follow it again: contract incidents N
#[derive(Debug, Args)]
pub(super) struct Recover {
    /// The application
    #[arg(value_name = "APP")]
    application: Application,
    /// Say why, for the record
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
    /// Take these steps instead of the policy's, such as 'fence, restart, reissue'
    #[arg(long, value_name = "STEPS", value_delimiter = ',')]
    steps: Option<Vec<String>>,
    /// Show what would be done, and do nothing
    #[arg(long, conflicts_with_all = ["confirm", "skip", "detach"])]
    dry_run: bool,
    /// Confirm an incident whose policy asks a person for that
    #[arg(long, conflicts_with_all = ["skip", "steps"])]
    confirm: bool,
    /// Go on with an incident that is stuck, without the step that it is stuck in
    #[arg(long, conflicts_with = "steps")]
    skip: bool,
    /// Return as soon as the incident has begun
    #[arg(long)]
    detach: bool,
}

impl Recover {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let base = context.base()?;
        if self.dry_run {
            return self.show_plan(&base);
        }
        let (application, by) = (self.application.clone(), person());
        let ask = match (self.confirm, self.skip) {
            (true, _) => Ask::Confirm { application, by },
            (_, true) => Ask::Skip { application, by },
            _ => Ask::Recover { application, why: self.why.clone(), by, steps: self.steps.clone() },
        };
        let told = match control::ask(&base.control_path(), &ask, context.timeout()).map_err(unheard)? {
            Some(told) => told,
            None => ask_own(&base, &ask, context)?,
        };
        let (number, text) = match told {
            Told::Begun { incident } => (incident, format!("incident {incident} begins")),
            Told::Resumed { incident } => (incident, format!("incident {incident} goes on")),
            Told::Running { incident } => (incident, format!("incident {incident} is under way already")),
            Told::Confirmed { incident } => (incident, format!("incident {incident} is confirmed")),
            Told::Refused { kind, message, hints } => return Err(refused(&kind, &message, &hints)),
            Told::Status(_) => return Err(Failure::other("the daemon gave an answer to another question")),
        };
        if self.detach {
            let json = serde_json::json!({ "incident": number });
            return Ok(Report::new(format!("{text}\n"), json)
                .note(format!("to see how it goes: contract incidents {number}")));
        }
        context.progress(&text);
        follow(context, &base, number)
    }

    fn show_plan(&self, base: &Base) -> Result<Report, Failure> {
        let mut command = Command::new(daemon_program());
        command.arg("--dir").arg(base.dir()).args(["--plan", self.application.as_str()]);
        if let Some(steps) = &self.steps {
            command.args(["--steps", &steps.join(",")]);
        }
        let output = command.stdin(Stdio::null()).output().map_err(not_started)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let mut lines = said.lines().map(|line| tame(line.trim()));
            let first = lines.next().unwrap_or_default();
            let first = first.strip_prefix("strongroom-recovery: ").unwrap_or(&first).to_owned();
            return Err(lines.fold(Failure::bad(first), |failure, hint| failure.hint(hint)));
        }
        let json: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| Failure::other(format!("`{DAEMON} --plan` is not understood: {error}")))?;
        let mut human = format!("recovering {} would do this:\n", self.application);
        for phase in json["phases"].as_array().into_iter().flatten() {
            let word = phase["phase"].as_str().unwrap_or_default();
            for (n, line) in phase["does"].as_array().into_iter().flatten().enumerate() {
                let head = if n == 0 { word } else { "" };
                human.push_str(&format!("  {head:<9} {}\n", tame(line.as_str().unwrap_or_default())));
            }
        }
        Ok(Report::new(human, json).note("nothing was done (--dry-run)"))
    }
}

/// Shows what happens until it is over, stuck, or waits for a person.
fn follow(context: &Context, base: &Base, number: u64) -> Result<Report, Failure> {
    let dir = dir_of(&base.incidents_dir(), number);
    let mut shown: Vec<String> = vec![];
    let mut asked = Instant::now();
    loop {
        let now = Incident::read(&dir)?;
        for span in &now.spans {
            let line = phase_line(span);
            if span.ended_us.is_some() && !shown.contains(&line) {
                context.progress(&line);
                shown.push(line);
            } else if let Some(error) = &span.error {
                let line = format!("{:<9} attempt {}: {}", span.phase, span.attempts, tame(error));
                if span.ended_us.is_none() && !shown.contains(&line) {
                    context.progress(&line);
                    shown.push(line);
                }
            }
        }
        match &now.standing {
            Standing::Closed(_) => {
                return Ok(Report::new(timeline(context, &now), now.to_json()));
            }
            Standing::Stuck(why) => {
                let failure = Failure::other(format!("incident {number} is stuck: {}", tame(why)))
                    .fact("incident", number)
                    .fact("fenced", now.is_done(Phase::Fence));
                let failure = now.hints.iter().fold(failure, |failure, hint| failure.hint(tame(hint)));
                return Err(failure
                    .hint(format!("when the cause is gone, go on: contract recover {}", now.application))
                    .hint(format!("evidence and output of commands: {}", dir.display())));
            }
            Standing::Running => {}
        }
        if waits_for_a_person(&now) {
            let application = now.application.clone();
            return Ok(Report::new(timeline(context, &now), now.to_json())
                .note(format!("it waits for a person: contract recover {application} --confirm")));
        }
        if asked.elapsed() > ASK_AGAIN {
            asked = Instant::now();
            let there = control::ask(&base.control_path(), &Ask::Status, context.timeout());
            if !matches!(there, Ok(Some(_))) && Incident::read(&dir)?.standing == Standing::Running {
                return Err(Failure::other(format!(
                    "incident {number} halts: {DAEMON} does not run any more"
                ))
                .hint(format!("it goes on where it was: contract recover {}", now.application))
                .hint(format!("or: systemctl start {DAEMON}")));
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn waits_for_a_person(now: &Incident) -> bool {
    let noted =
        |span: &&strongroom_base::incident::Span| span.phase == Phase::Confirm && !span.notes.is_empty();
    now.ask && now.confirmed.is_none() && now.spans.iter().any(|span| noted(&span))
}

/// Starts a daemon for this incident alone, and asks it.
fn ask_own(base: &Base, ask: &Ask, context: &Context) -> Result<Told, Failure> {
    let log = base.recovery_dir().join("by-hand.log");
    let mut made = std::fs::DirBuilder::new();
    let failed = |error: std::io::Error| Failure::other(format!("cannot write `{}`: {error}", log.display()));
    // Two people at once may both be the first.
    made.recursive(true).mode(0o700).create(base.recovery_dir()).map_err(failed)?;
    let output = File::options().create(true).append(true).open(&log).map_err(failed)?;
    let before = output.metadata().map_err(failed)?.len();
    let mut child = Command::new(daemon_program())
        .arg("--dir")
        .arg(base.dir())
        .arg("--until-idle")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        // What interrupts this command must not interrupt the recovery.
        .process_group(0)
        .current_dir("/")
        .spawn()
        .map_err(not_started)?;
    let begun = Instant::now();
    loop {
        if let Some(told) = control::ask(&base.control_path(), ask, context.timeout()).map_err(unheard)? {
            return Ok(told);
        }
        if let Some(failure) = ended(&mut child, &log, before) {
            // Two people at once: the other one's daemon has the lock and will take this order too.
            if !matches!(failure.exit(), Exit::Refused) || begun.elapsed() > context.timeout() {
                return Err(failure);
            }
        }
        if begun.elapsed() > context.timeout() {
            return Err(Failure::other(format!("{DAEMON} does not answer"))
                .hint(format!("its output: {}", log.display())));
        }
        std::thread::sleep(LOOK);
    }
}

fn ended(child: &mut Child, log: &std::path::Path, before: u64) -> Option<Failure> {
    let status = child.try_wait().ok().flatten()?;
    let said = std::fs::read(log).unwrap_or_default();
    let said = said.get(usize::try_from(before).unwrap_or(0)..).unwrap_or_default();
    let said = String::from_utf8_lossy(said);
    let last = said.lines().next_back().unwrap_or("it said nothing").trim();
    let exit = if status.code() == Some(4) { Exit::Refused } else { Exit::Other };
    Some(
        Failure::new(exit, format!("{DAEMON} ended: {}", tame(last)))
            .hint(format!("its output: {}", log.display())),
    )
}

/// The daemon beside this program, or wherever it is found.
fn daemon_program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(DAEMON));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| DAEMON.into())
}

fn not_started(error: std::io::Error) -> Failure {
    Failure::other(format!("cannot start `{DAEMON}`: {error}"))
        .hint("install it beside `contract`: make install")
        .hint("to cut the application off now: contract revoke APP")
}

fn unheard(error: std::io::Error) -> Failure {
    Failure::other(format!("{DAEMON} does not answer: {error}"))
        .hint(format!("see how it is: systemctl status {DAEMON}"))
        .hint("to cut the application off now: contract revoke APP")
}

fn refused(kind: &str, message: &str, hints: &[String]) -> Failure {
    let all = [Exit::BadInput, Exit::Denied, Exit::NotFound, Exit::Unreachable, Exit::Refused];
    let exit = all.into_iter().find(|exit| exit.word() == kind).unwrap_or(Exit::Other);
    hints.iter().fold(Failure::new(exit, message), |failure, hint| failure.hint(hint))
}

/// Who asks, for the record: not authenticated, since whoever reaches the base directory may do anything.
fn person() -> String {
    let named = ["SUDO_USER", "LOGNAME", "USER"].iter().find_map(|name| std::env::var(name).ok());
    named
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}
