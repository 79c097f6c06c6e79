//! `strongroom-recovery`: the daemon in the base domain.
//!
//! Exit codes: 0 stopped as asked (or the configuration is right, with `--check`); 1 failed at work; 2 wrong use of the
//! command; 3 the configuration is refused; 4 another daemon runs on the same base directory.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use strongroom_base::{Base, Exit, Failure};
use strongroom_contracts::Application;
use strongroom_recovery::config::Config;
use strongroom_recovery::{AbortAt, Daemon, Options, plan};

/// Hears of attacks and recovers the applications: fence, evidence, undo, restart, reissue.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 stopped as asked, 1 failed at work, 2 wrong use, 3 configuration refused, 4 already running."
)]
struct Args {
    /// The base directory [default: $STRONGROOM_DIR, or /etc/strongroom]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Check the configuration, say what is wrong with it or missing on this machine, and do nothing
    #[arg(long)]
    check: bool,
    /// Listen to people only, and end when no incident is under way
    #[arg(long)]
    until_idle: bool,
    /// Show as JSON what recovering this application would do, and do nothing
    #[arg(long, value_name = "APP")]
    plan: Option<Application>,
    /// With --plan: these steps instead of the policy's
    #[arg(long, value_name = "STEPS", value_delimiter = ',', requires = "plan")]
    steps: Option<Vec<String>>,
    /// End as if killed, when this phase was entered (`fence`) or its work is done and not on record (`fence:done`)
    #[arg(long, value_name = "PHASE[:done]", hide = true, value_parser = abort_at)]
    abort_at: Option<AbortAt>,
}

fn abort_at(text: &str) -> Result<AbortAt, String> {
    let (phase, done) = match text.split_once(':') {
        None => (text, false),
        Some((phase, "done")) => (phase, true),
        Some(_) => return Err("write PHASE or PHASE:done".to_owned()),
    };
    Ok(AbortAt { phase: phase.parse()?, done })
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("strongroom-recovery: {failure}");
            for hint in failure.hints() {
                eprintln!("  {hint}");
            }
            ExitCode::from(match failure.exit() {
                Exit::BadInput | Exit::NotFound => 3,
                Exit::Refused => 4,
                _ => 1,
            })
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    let from_environment =
        || std::env::var_os("STRONGROOM_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let dir = args.dir.or_else(from_environment).unwrap_or_else(|| "/etc/strongroom".into());
    let base = Base::open(&dir)?;
    if let Some(application) = &args.plan {
        println!("{:#}", plan(&base, application, args.steps.as_deref())?);
        return Ok(());
    }
    if args.check {
        return check(&base);
    }
    // Before any thread is started, so that a signal that comes early is not lost.
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])
        .map_err(|error| Failure::other(format!("cannot wait for signals: {error}")))?;
    let options = Options { until_idle: args.until_idle, abort_at: args.abort_at };
    let daemon = Daemon::start(base, options)?;
    // Without systemd there is nobody to notify.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    if args.until_idle {
        let handle = signals.handle();
        let idle = daemon.clone();
        let wait = move || {
            idle.wait_idle();
            handle.close();
        };
        std::thread::Builder::new()
            .name("idle".into())
            .spawn(wait)
            .map_err(|error| Failure::other(format!("cannot start a thread: {error}")))?;
    }
    signals.forever().next();
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    daemon.stop();
    Ok(())
}

fn check(base: &Base) -> Result<(), Failure> {
    let config = Config::load(base)?;
    let path = base.recovery_config_path();
    let mut lacking = vec![];
    for (name, guest) in &config.guest {
        lacking.extend(
            guest.missing().into_iter().map(|program| format!("guest {name}: no program `{program}`")),
        );
        let key = config.enrol.as_ref().and_then(|_| guest.driver().lacks_for_secret());
        lacking.extend(key.map(|key| format!("guest {name}: no {key}, and [enrol] hands it a secret")));
    }
    if lacking.is_empty() {
        println!("{}: the configuration is right", path.display());
        return Ok(());
    }
    Err(Failure::bad(format!("`{}`: {}", path.display(), lacking.join("; "))))
}
