//! `lab exec`: run a command inside a guest, with this process's terminal, streams, signals and exit status.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::guest::drop_host_powers;
use super::place::LabName;
use super::plan::Role;
use super::record::{GuestRecord, Record};
use super::sys::{self, Signals};

/// Of the caller's environment, what also makes sense on another machine (as `ssh` does it).
const PASSED_ON: [&str; 8] =
    ["TERM", "COLORTERM", "NO_COLOR", "LANG", "LC_ALL", "LC_CTYPE", "RUST_BACKTRACE", "RUST_LOG"];

const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Signals handed on to the command when they were meant for this process alone.
const HANDED_ON: [i32; 7] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// What to run in which guest.
#[derive(Clone, Debug)]
pub struct EnterOptions {
    /// The lab.
    pub lab: LabName,
    /// The guest: `base`, `storage`, or an application's name.
    pub guest: String,
    /// Where the command starts; the guest's usual place when not given.
    pub cwd: Option<PathBuf>,
    /// Start the command detached, in a session of its own with its output in this file of the guest, and wait only
    /// until it says that it is ready (`sd_notify(3)`).
    pub service_log: Option<PathBuf>,
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// Run the command and return its exit code, or 128 plus the number of the signal that ended it.
///
/// Moves this process into the guest, so it must have one thread and nothing else to do.
pub fn enter(options: &EnterOptions) -> Result<u8> {
    let record = Record::running(&options.lab)?;
    let guest = record.guest(&options.guest)?;
    let Some((program, arguments)) = options.command.split_first() else {
        bail!("no command given: `lab exec {} -- COMMAND`", options.guest)
    };
    join(&record, guest)?;
    if !record.user_namespace {
        drop_host_powers()?;
    }
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(environment(&record, guest));
    match &options.service_log {
        Some(log) => {
            go_to(Path::new("/"))?;
            super::services::run_until_ready(command, program, log)
        }
        None => {
            start_place(guest, options.cwd.as_deref())?;
            run_in_foreground(command, program)
        }
    }
}

fn environment(record: &Record, guest: &GuestRecord) -> Vec<(String, String)> {
    let mut environment: Vec<(String, String)> = PASSED_ON
        .iter()
        .filter_map(|key| std::env::var(key).ok().map(|value| ((*key).to_owned(), value)))
        .collect();
    for (key, value) in [
        ("PATH", format!("{}:{SYSTEM_PATH}", record.programs.display())),
        ("HOME", "/root".to_owned()),
        ("USER", "root".to_owned()),
        ("LOGNAME", "root".to_owned()),
        ("SHELL", "/bin/sh".to_owned()),
    ] {
        environment.push((key.to_owned(), value));
    }
    if guest.role == Role::Base {
        environment.push(("STRONGROOM_DIR".to_owned(), "/etc/strongroom".to_owned()));
    }
    environment
}

/// Move into the guest's namespaces; the next child is in its PID namespace too.
fn join(record: &Record, guest: &GuestRecord) -> Result<()> {
    let proc = record.proc_of(guest)?;
    let mut kinds = Vec::new();
    if record.user_namespace {
        kinds.push(("user", LinkNameSpaceType::User));
    }
    kinds.extend([
        ("ipc", LinkNameSpaceType::InterProcessCommunication),
        ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
        ("net", LinkNameSpaceType::Network),
        ("pid", LinkNameSpaceType::ProcessID),
        ("mnt", LinkNameSpaceType::Mount),
    ]);
    // All are opened before the first is entered: afterwards the paths mean something else.
    let open = |file: &str| -> Result<OwnedFd> {
        let path = proc.join("ns").join(file);
        rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).with_context(|| {
            format!(
                "cannot reach guest `{}` through `{}`: it has ended, or belongs to another user",
                guest.name,
                path.display()
            )
        })
    };
    let opened =
        kinds.into_iter().map(|(file, kind)| Ok((open(file)?, file, kind))).collect::<Result<Vec<_>>>()?;
    for (fd, file, kind) in &opened {
        use std::os::fd::AsFd;
        move_into_link_name_space(fd.as_fd(), Some(*kind))
            .with_context(|| format!("cannot enter the {file} namespace of guest `{}`", guest.name))?;
    }
    Ok(())
}

fn start_place(guest: &GuestRecord, wanted: Option<&Path>) -> Result<()> {
    if let Some(dir) = wanted {
        return go_to(dir);
    }
    let usual = match guest.role {
        Role::Base => "/root",
        Role::Storage => "/srv/strongroom",
        Role::App { .. } => "/mnt",
    };
    if let Err(error) = std::env::set_current_dir(usual) {
        // A revoked mount refuses everything, and the command may be the one that looks into it.
        eprintln!("lab: `{usual}` in guest `{}`: {error}; starting in `/`", guest.name);
        go_to(Path::new("/"))?;
    }
    Ok(())
}

fn go_to(dir: &Path) -> Result<()> {
    std::env::set_current_dir(dir).with_context(|| format!("cannot start in `{}`", dir.display()))
}

fn run_in_foreground(mut command: Command, program: &str) -> Result<u8> {
    let mut heard = HANDED_ON.to_vec();
    heard.push(libc::SIGCHLD);
    let signals = Signals::block(&heard)?;
    sys::foreground_child(&mut command);
    // Inherited, but said: the command's streams are ours.
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("lab: cannot run `{program}`: {error}");
            // As a shell says it: 127 not found, 126 found but not runnable.
            return Ok(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("impossible process id")?;
    loop {
        let signal = signals.next()?;
        if signal.number == libc::SIGCHLD {
            if let Some((_, status)) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG)? {
                return Ok(exit_code(std::process::ExitStatus::from_raw(status.as_raw())));
            }
        } else if !signal.from_kernel {
            // What a terminal sends goes to the whole foreground group: the command has it already.
            if let Some(signal) = Signal::from_named_raw(signal.number) {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }
}

pub(super) fn exit_code(status: std::process::ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
