//! `strongroom-gateway`: the daemon in the storage guest.
//!
//! Exit codes: 0 stopped as asked (or the configuration is right, with `--check`); 1 failed at work; 2 wrong use of the
//! command; 3 the configuration is refused; 4 another gateway runs on the same state directory.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use strongroom_channel::{Awake, one_arena};
use strongroom_gateway::clock::SystemClock;
use strongroom_gateway::config::Config;
use strongroom_gateway::config::check::Checked;
use strongroom_gateway::door::admin::AdminDoor;
use strongroom_gateway::door::listen::Listener;
use strongroom_gateway::door::native::NativeDoor;
use strongroom_gateway::gateway::{Gateway, Start, StartError};

/// Serves the files below one directory to the holders of signed contracts.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 stopped as asked, 1 failed at work, 2 wrong use, 3 configuration refused, \
                                 4 already running."
)]
struct Args {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/strongroom/gateway.toml")]
    config: PathBuf,
    /// Check the configuration, say what is wrong with it, and serve nothing.
    #[arg(long)]
    check: bool,
}

/// A reason to stop, and its exit code.
struct Failed(u8, String);

fn main() -> ExitCode {
    one_arena();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed(code, text)) => {
            eprintln!("strongroom-gateway: {text}");
            ExitCode::from(code)
        }
    }
}

fn run(args: &Args) -> Result<(), Failed> {
    let config = Config::load(&args.config).map_err(|error| Failed(3, error.to_string()))?;
    let checked = config.check().map_err(|error| Failed(3, error.to_string()))?;
    if args.check {
        println!("{}: the configuration is right", args.config.display());
        return Ok(());
    }
    // Modes of files are those that guests ask for.
    rustix::process::umask(rustix::fs::Mode::empty());
    raise_descriptors();
    // Before any thread is started, so that a signal that comes early is not lost.
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])
        .map_err(|error| Failed(1, format!("cannot wait for signals: {error}")))?;
    let stop = serve(&config, checked)?;
    // Without systemd there is nobody to notify.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    signals.forever().next();
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    stop();
    Ok(())
}

/// Starts everything; what is returned ends it.
fn serve(config: &Config, checked: Checked) -> Result<impl FnOnce() + use<>, Failed> {
    let work = |text: String| Failed(1, text);
    let listener = Listener::open(&config.native).map_err(work)?;
    let start = Start {
        key: checked.key,
        issuer: config.issuer,
        data: &checked.data,
        state: &checked.state,
        limits: config.limits,
        special_files: config.special_files,
        undo: config.undo.clone(),
        clock: Arc::new(SystemClock),
    };
    let gateway = Gateway::start(start).map_err(|error| match error {
        StartError::Running(_) => Failed(4, error.to_string()),
        other => work(other.to_string()),
    })?;
    // The state directory is locked now, so that a Unix socket found here is nobody's.
    let admin = config.admin.as_ref().map(Listener::open_admin).transpose().map_err(work)?;
    let mut stoppers = vec![listener.stopper().map_err(|error| work(error.to_string()))?];
    println!("gateway {} serves on {}", gateway.id, name(&listener));
    let awake = Awake::if_wanted(config.awake);
    let door = NativeDoor::new(gateway.clone(), awake).map_err(|error| work(error.to_string()))?;
    let native = door.clone();
    accept(&gateway, listener, || (), move |socket, from| native.take(socket, from))?;
    if let Some(listener) = admin {
        stoppers.push(listener.stopper().map_err(|error| work(error.to_string()))?);
        println!("administrators at {}", name(&listener));
        let admin = AdminDoor::new(gateway.clone(), config.admin_keys.clone())
            .map_err(|error| work(error.to_string()))?;
        let ready = admin.clone();
        accept(&gateway, listener, move || ready.hurry(), move |socket, from| admin.take(socket, from))?;
    }
    Ok(move || {
        gateway.stop();
        stoppers.iter().for_each(|stopper| stopper.stop());
        door.stop();
    })
}

fn accept(
    gateway: &Arc<Gateway>,
    listener: Listener,
    prepare: impl FnOnce() + Send + 'static,
    take: impl Fn(strongroom_channel::Socket, Option<std::net::SocketAddr>) + Send + 'static,
) -> Result<(), Failed> {
    let own = gateway.clone();
    std::thread::Builder::new()
        .name("accept".into())
        .spawn(move || {
            prepare();
            listener.run(|| own.is_stopping(), take);
        })
        .map(drop)
        .map_err(|error| Failed(1, format!("cannot start a thread: {error}")))
}

fn name(listener: &Listener) -> String {
    listener.address().map_or_else(|error| format!("(unknown: {error})"), |address| address.to_string())
}

/// Open files of guests are open files of this process: as many as the system allows.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    if now.current == now.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }) {
        eprintln!("strongroom-gateway: the limit of open files stays at {:?}: {error}", now.current);
    }
}
