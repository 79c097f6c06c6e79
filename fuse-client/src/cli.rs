//! `mount.strongroom` from the command line to the end of the mount.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command as Process, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};
use strongroom_channel::{Awake, ChannelError, ClientTls, Peer};
use strongroom_protocol::hello::{Refused, RefusedCode};

use crate::asking::Asker;
use crate::attr::Owner;
use crate::contract::{ContractFile, FileError, read_key};
use crate::fs::Fs;
use crate::fuse::Bridge;
use crate::guard;
use crate::journal::Journal;
use crate::kernel::Kernel;
use crate::mount::{self, Attach, Attached, MountError};
use crate::options::{self, Command, Options};
use crate::state::State;
use crate::sys::EndSignals;
use crate::transport::{KnockError, OpenError, Settings, Transport};

/// Wrong usage (mount(8), exit status).
const USAGE: u8 = 1;
/// The system could not.
const SYSTEM: u8 = 2;
/// The mount failed.
const FAILED: u8 = 32;
/// Tells the program that it was started by itself to go to the background.
const CHILD: &str = "STRONGROOM_MOUNT_CHILD";
/// What the child says when the mount is usable.
const READY: &[u8] = b"ready\n";
/// How often a gateway that is away is asked for again, before there is a mount.
const ASK: Duration = Duration::from_millis(500);
/// Threads that take requests from the kernel: one suffices for one program, more keep several busy.
const THREADS: usize = 3;

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("{text}{hint}")]
    Open { text: String, hint: &'static str },
    #[error("cannot use the key: {0}")]
    Key(ChannelError),
    #[error("cannot open the log file `{path}`: {source}")]
    Log { path: String, source: std::io::Error },
    #[error("{doing}: {source}")]
    System { doing: &'static str, source: std::io::Error },
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::System { .. } => SYSTEM,
            _ => FAILED,
        }
    }
}

fn system(doing: &'static str) -> impl FnOnce(std::io::Error) -> Failure {
    move |source| Failure::System { doing, source }
}

/// Runs the program; the arguments come without its name.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    if guard::ran(&arguments) {
        return ExitCode::SUCCESS;
    }
    let directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let options = match options::parse(arguments.clone(), &directory) {
        Ok(Command::Mount(options)) => *options,
        Ok(Command::Help) => return print(options::HELP),
        Ok(Command::Version) => return print(concat!("mount.strongroom ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            complain(&error);
            return ExitCode::from(USAGE);
        }
    };
    let child = std::env::var_os(CHILD).is_some();
    let result = if options.fake {
        check(&options)
    } else if options.foreground || child {
        serve(&options, child)
    } else {
        return go_to_background(arguments);
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure);
            ExitCode::from(failure.code())
        }
    }
}

fn print(text: &str) -> ExitCode {
    // A reader that has gone away has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn complain(error: &dyn std::error::Error) {
    // There is nowhere else to say it.
    let _ = writeln!(std::io::stderr(), "mount.strongroom: {error}");
}

/// Starts the program again as a child that serves the mount, and waits until the mount is usable.
fn go_to_background(arguments: Vec<OsString>) -> ExitCode {
    let started = std::env::current_exe().and_then(|program| {
        Process::new(program)
            .args(arguments)
            .env(CHILD, "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
    });
    let mut child = match started {
        Ok(child) => child,
        Err(source) => {
            complain(&Failure::System { doing: "cannot start the background process", source });
            return ExitCode::from(SYSTEM);
        }
    };
    let mut said = vec![];
    if let Some(mut output) = child.stdout.take() {
        // Ends when the child is ready, or dead.
        let _ = output.read_to_end(&mut said);
    }
    if said == READY {
        return ExitCode::SUCCESS;
    }
    match child.wait().ok().and_then(|status| status.code()) {
        Some(code) if code != 0 => ExitCode::from(u8::try_from(code).unwrap_or(FAILED)),
        _ => {
            complain(&Failure::Open { text: "the background process ended unexpectedly".into(), hint: "" });
            ExitCode::from(FAILED)
        }
    }
}

fn journal(options: &Options) -> Result<Journal, Failure> {
    let Some(path) = &options.log else { return Ok(Journal::default()) };
    let opened = File::options().append(true).create(true).open(path);
    opened.map(Journal::to_file).map_err(|source| Failure::Log { path: path.display().to_string(), source })
}

/// Opens the session for which the mount is to be made; waits for a gateway that is away, if that is wanted.
fn connect(options: &Options, state: &Arc<State>, journal: &Journal) -> Result<Transport, Failure> {
    let begun = Instant::now();
    loop {
        match open(options, state, journal)? {
            Ok(transport) => return Ok(transport),
            Err(error) if is_away(&error) && begun.elapsed() < options.wait => std::thread::sleep(ASK),
            Err(error) => return Err(explain(error)),
        }
    }
}

/// Whether it may be another answer a moment later.
fn is_away(error: &OpenError) -> bool {
    match error {
        OpenError::Knock(KnockError::Channel(error)) => {
            matches!(error, ChannelError::Io { .. } | ChannelError::TimedOut | ChannelError::Closed)
        }
        // Killed while it was asked.
        OpenError::Knock(KnockError::Silent) => true,
        OpenError::Refused(Refused { code, .. }) => *code == RefusedCode::Busy,
        OpenError::Knock(KnockError::Answer(_)) | OpenError::Thread(_) => false,
    }
}

/// One attempt. Key and contract are read each time: a newer one may have come.
fn open(
    options: &Options,
    state: &Arc<State>,
    journal: &Journal,
) -> Result<Result<Transport, OpenError>, Failure> {
    let user = rustix::process::geteuid().as_raw();
    let key = read_key(&options.key, user)?;
    let contract = ContractFile::read(&options.contract, key.public(), &options.key)?;
    let tls = ClientTls::new(&key, Peer::Gateway(contract.gateway()), strongroom_protocol::ALPN_NATIVE)
        .map_err(Failure::Key)?;
    let settings = Settings {
        tls,
        gateway: options.gateway.clone(),
        contract,
        fetch: options.fetch,
        connections: options.connections,
        deadline: options.deadline,
        journal: journal.clone(),
    };
    Ok(Transport::open(settings, state.clone()))
}

/// What to do about it, where the error itself does not say.
fn explain(error: OpenError) -> Failure {
    let hint = match &error {
        OpenError::Refused(Refused { code, .. }) => match code {
            RefusedCode::Version => "; use the same version of Strongroom here and at the gateway",
            RefusedCode::Contract => "; have a contract issued for this key and this gateway",
            RefusedCode::Revoked => "; have a new contract issued (`contract reissue APP`)",
            RefusedCode::Expired => {
                "; have it renewed (`contract renew APP`), and check the clocks if that is wrong"
            }
            RefusedCode::NotYet => "; check the clocks of this guest and of the storage guest",
            RefusedCode::NoContract => "; have a contract issued for this key (`contract grant APP`)",
            RefusedCode::Busy => "; try again in a while",
            RefusedCode::NoSession => "",
        },
        OpenError::Knock(KnockError::Channel(ChannelError::Io { .. } | ChannelError::TimedOut)) => {
            "; check `gateway=`, that the gateway runs, and that this guest reaches it"
        }
        OpenError::Knock(KnockError::Channel(ChannelError::WrongPeer { .. })) => {
            "; the contract names the expected one: check `gateway=`, and that nobody sits in between"
        }
        OpenError::Knock(_) => "; is it a Strongroom gateway that listens there?",
        OpenError::Thread(_) => "",
    };
    Failure::Open { text: error.to_string(), hint }
}

/// All but mounting.
fn check(options: &Options) -> Result<(), Failure> {
    mount::check_directory(&options.dir, options.nonempty)?;
    mount::open_device()?;
    connect(options, &Arc::default(), &journal(options)?)?.close();
    Ok(())
}

/// Mounts, serves and returns when the mount has ended.
fn serve(options: &Options, child: bool) -> Result<(), Failure> {
    if child {
        // Away from the terminal and its signals. A new child leads no process group, so this does not fail.
        rustix::process::setsid().map_err(|error| system("cannot leave the terminal")(error.into()))?;
    }
    let signals = EndSignals::block().map_err(system("cannot prepare for signals"))?;
    let journal = journal(options)?;
    // What can be found out without the gateway comes first.
    mount::check_directory(&options.dir, options.nonempty)?;
    mount::open_device()?;
    let state = Arc::new(State::default());
    let transport = Arc::new(connect(options, &state, &journal)?);
    let owner = Owner {
        uid: options.uid.unwrap_or_else(|| rustix::process::getuid().as_raw()),
        gid: options.gid.unwrap_or_else(|| rustix::process::getgid().as_raw()),
    };
    let fs = Arc::new(Fs::new(transport.clone(), state.clone(), owner));
    let bridge = Bridge::new(fs, Awake::if_wanted(options.awake));
    let allow_other = options.allow_other.unwrap_or_else(|| rustix::process::geteuid().is_root());
    let attach = Attach {
        dir: options.dir.clone(),
        source: options.contract.clone(),
        flags: options.flags,
        allow_other,
        nonempty: options.nonempty,
    };
    let (device, attached) = mount::attach(&attach)?;
    let attached = Arc::new(attached);
    let notices = device.try_clone().map_err(system("cannot copy the descriptor of the mount"));
    let session = match notices.and_then(|notices| Ok((start(bridge, device)?, notices))) {
        Ok((session, notices)) => {
            let asker = attached.device().and_then(|device| Asker::new(attached.dir(), device));
            state.set_kernel(Kernel::new(notices, asker));
            session
        }
        Err(failure) => {
            attached.detach();
            return Err(failure);
        }
    };
    // Without one there is a mount all the same.
    let _guard = guard::start(&attached);
    let ended = run_session(session, attached.clone(), signals);
    let ended = match ended {
        Ok(ended) => ended,
        Err(failure) => {
            attached.detach();
            return Err(failure);
        }
    };
    attached.read_ahead();
    if let Err(failure) = ready(child) {
        attached.detach();
        return Err(failure);
    }
    let result = ended.recv();
    // As the mount is gone, so is everybody who might be waiting.
    transport.close();
    if let Ok(Err(source)) = result {
        attached.detach();
        journal.note(&format!("the mount ended: {source}"));
    }
    // As in `journal`.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

fn start(bridge: Bridge, device: std::os::fd::OwnedFd) -> Result<Session<Bridge>, Failure> {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    // Each thread then has a queue of its own; it takes opening the device again.
    config.clone_fd = mount::open_device().is_ok();
    config.acl = SessionACL::All;
    // The kernel lets others in or not; `fuser` would shut out root as well.
    Session::from_fd(bridge, device, SessionACL::All, config)
        .map_err(system("the kernel refused the file system"))
}

type Ended = std::sync::mpsc::Receiver<std::io::Result<()>>;

/// Serves in other threads; a signal that asks for the end detaches the mount, which ends the serving.
fn run_session(
    session: Session<Bridge>,
    attached: Arc<Attached>,
    signals: EndSignals,
) -> Result<Ended, Failure> {
    let (tell, ended) = std::sync::mpsc::channel();
    let tell_forced = tell.clone();
    std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || {
            // The receiver is gone only when the process ends.
            let _ = tell.send(session.run());
        })
        .map_err(system("cannot start a thread"))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            signals.wait();
            attached.detach();
            // Whoever still has files open is cut off when the process ends.
            let _ = tell_forced.send(Ok(()));
        })
        .map_err(system("cannot start a thread"))?;
    Ok(ended)
}

/// Tells whoever waits that the mount is usable, and lets go of the terminal.
fn ready(child: bool) -> Result<(), Failure> {
    // As in `journal`.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if !child {
        return Ok(());
    }
    let let_go = || -> std::io::Result<()> {
        std::env::set_current_dir("/")?;
        std::io::stdout().write_all(READY)?;
        std::io::stdout().flush()?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stderr(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(())
    };
    let_go().map_err(system("cannot go to the background"))
}
