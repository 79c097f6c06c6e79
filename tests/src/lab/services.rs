//! What runs in the guests: setting up the base domain, the gateway's daemon, and each application's contract and mount.
//!
//! All of it goes through the same commands a person would type in the guests.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::enter::exit_code;
use super::handle::Lab;
use super::network::{
    ADMIN_ADDRESS, ADMIN_INTERFACE, ADMIN_NETWORK, APP_INTERFACE, APP_NETWORK, GATEWAY_ADDRESS,
};
use super::place::{LabName, Place};
use super::record::{GuestRecord, Record};

pub(super) const GATEWAY: &str = "strongroom-gateway";
const RECOVERY: &str = "strongroom-recovery";
pub(super) const DATA_IN_GUEST: &str = "/srv/strongroom/data";
pub(super) const STATE_IN_GUEST: &str = "/var/lib/strongroom";
pub(super) const ETC_IN_GUEST: &str = "/etc/strongroom";
pub(super) const LOG_IN_GUEST: &str = "/var/log/strongroom";

/// Only a guard against hanging for ever: every wait ends by its condition.
const HANG_GUARD: Duration = Duration::from_secs(120);

/// How to end the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopHow {
    /// SIGTERM: it finishes what it is doing.
    Clean,
    /// SIGKILL: as a crash.
    Kill,
}

/// Make the keys and files of a new installation, then carry the gateway's part to the storage guest as an
/// administrator would. The issuer's key stays behind.
pub(super) fn initialise(lab: &Lab, place: &Place, policy: Option<&Path>) -> Result<()> {
    run(lab.base([
        "contract",
        "init",
        ETC_IN_GUEST,
        "--address",
        GATEWAY_ADDRESS,
        "--admin",
        ADMIN_ADDRESS,
        "--interface",
        APP_INTERFACE,
        "--network",
        APP_NETWORK,
        "--admin-interface",
        ADMIN_INTERFACE,
        "--admin-network",
        ADMIN_NETWORK,
        "--data",
        DATA_IN_GUEST,
        "--state",
        STATE_IN_GUEST,
    ]))?;
    let base = place.guest_disk("base").join("strongroom");
    let storage = place.guest_disk("storage").join("strongroom");
    let from = base.join("gateway");
    for entry in
        fs::read_dir(&from).with_context(|| format!("`contract init` made no `{}`", from.display()))?
    {
        let entry = entry?;
        fs::rename(entry.path(), storage.join(entry.file_name()))
            .context("cannot move the gateway's files")?;
    }
    fs::remove_dir(&from)?;
    if let Some(policy) = policy {
        replace_policies(policy, &base.join("policy.d"))?;
    }
    Ok(())
}

fn replace_policies(from: &Path, to: &Path) -> Result<()> {
    for file in policy_files(to)? {
        fs::remove_file(file)?;
    }
    for file in policy_files(from)? {
        let name = file.file_name().context("a policy file has no name")?;
        fs::copy(&file, to.join(name)).with_context(|| format!("cannot copy `{}`", file.display()))?;
    }
    Ok(())
}

/// The policy files of a directory, in order.
pub(super) fn policy_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in
        fs::read_dir(dir).with_context(|| format!("cannot list the policies in `{}`", dir.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The application that a policy file is about. A file too broken to say falls back to its own name: the lab still has
/// the guest, and the guest has no contract.
pub(super) fn application_of(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let named = text
        .parse::<toml_edit::DocumentMut>()
        .ok()
        .and_then(|document| document.get("application").and_then(|item| item.as_str()).map(str::to_owned));
    let stem = || file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    named.or_else(stem).with_context(|| format!("`{}` names no application", file.display()))
}

/// Give an application its holder key and contract, and mount it.
pub(super) fn connect(lab: &Lab, place: &Place, app: &str) -> Result<()> {
    let key = run(lab.app(app, ["contract", "keygen", "--out", "/etc/strongroom/holder.key"]).cwd("/"))?;
    let key = key.trim();
    if !key.starts_with("ed25519:") {
        bail!("`contract keygen` printed no public key: `{key}`");
    }
    let issued = format!("/root/{app}.contract");
    run(lab.base(["contract", "grant", app, "--holder", key, "--out", &issued]))?;
    let contract = run(lab.base(["cat", &issued]))?;
    let target = place.guest_disk(&app_disk(app)).join("strongroom/contract");
    fs::write(&target, contract).with_context(|| format!("cannot write `{}`", target.display()))?;
    mount(lab, app, 0)
}

/// Mount an application's contract on `/mnt` of its guest; returns when it is usable. `wait`: seconds for a gateway that is
/// away.
pub(super) fn mount(lab: &Lab, app: &str, wait: u32) -> Result<()> {
    let options = format!(
        "key={ETC_IN_GUEST}/holder.key,gateway={GATEWAY_ADDRESS},allow_other,wait={wait},log={LOG_IN_GUEST}/mount.log"
    );
    run(lab.app(app, ["mount.strongroom", "/etc/strongroom/contract", "/mnt", "-o", &options]).cwd("/"))
        .map(drop)
}

/// The directory below `guests/` of an application: apart from `base` and `storage`, which are also valid names of
/// applications.
pub(super) fn app_disk(app: &str) -> String {
    format!("app-{app}")
}

/// Run a command in a guest; its standard output, or an error with what it said.
fn run(command: super::command::GuestCommand) -> Result<String> {
    let shown = command.shown();
    let output = command
        .into_command()
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Start the gateway of a running lab and wait until it serves.
pub fn start_gateway(lab: &Lab) -> Result<()> {
    let config = format!("{ETC_IN_GUEST}/gateway.toml");
    start_service(lab, "storage", &[GATEWAY, "--config", &config], &format!("{LOG_IN_GUEST}/gateway.log"))
}

/// End the gateway of a running lab and wait until it has ended.
pub fn stop_gateway(lab: &Lab, how: StopHow) -> Result<()> {
    stop_service(lab, "storage", GATEWAY, how)
}

/// Start the recovery daemon in the base domain and wait until it listens.
pub fn start_recovery(lab: &Lab, arguments: &[&str]) -> Result<()> {
    let command: Vec<&str> = [RECOVERY].iter().chain(arguments).copied().collect();
    start_service(lab, "base", &command, &format!("{LOG_IN_GUEST}/recovery.log"))
}

/// End the recovery daemon and wait until it has ended.
pub fn stop_recovery(lab: &Lab, how: StopHow) -> Result<()> {
    stop_service(lab, "base", RECOVERY, how)
}

/// Whether the recovery daemon runs.
pub fn recovery_runs(lab: &Lab) -> Result<bool> {
    let record = Record::running(lab.name())?;
    Ok(find_process(&record, record.guest("base")?, RECOVERY)?.is_some())
}

fn start_service(lab: &Lab, guest: &str, command: &[&str], log: &str) -> Result<()> {
    let record = Record::running(lab.name())?;
    let program = command.first().context("no command")?;
    if find_process(&record, record.guest(guest)?, program)?.is_some() {
        return Ok(());
    }
    run(in_guest(lab, guest, command).with_service_log(log)).map(drop)
}

fn in_guest(lab: &Lab, guest: &str, command: &[&str]) -> super::command::GuestCommand {
    match guest {
        "base" => lab.base(command.iter().copied()),
        _ => lab.storage(command.iter().copied()),
    }
}

fn stop_service(lab: &Lab, guest: &str, program: &str, how: StopHow) -> Result<()> {
    let record = Record::running(lab.name())?;
    let place = record.guest(guest)?;
    let Some(pid) = find_process(&record, place, program)? else { return Ok(()) };
    let signal = match how {
        StopHow::Clean => "TERM",
        StopHow::Kill => "KILL",
    };
    let kill = ["sh", "-c", "kill -s \"$0\" \"$1\"", signal, &pid.to_string()];
    // `kill` says so when the process ended by itself in between: the wait below decides.
    let _ = run(in_guest(lab, guest, &kill).cwd("/"));
    let begun = Instant::now();
    while find_process(&record, place, program)? == Some(pid) {
        if begun.elapsed() > HANG_GUARD {
            bail!("`{program}` did not end within {} s of SIG{signal}", HANG_GUARD.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The process id, within its guest, of the process that runs the program `name`.
pub(super) fn find_process(record: &Record, guest: &GuestRecord, name: &str) -> Result<Option<i32>> {
    let proc = record.proc_of(guest)?.join("root/proc");
    let entries = fs::read_dir(&proc).with_context(|| format!("guest `{}` has ended", guest.name))?;
    Ok(entries.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        // An ended process that was not collected yet has no program any more.
        let program = fs::read_link(entry.path().join("exe")).ok()?;
        // The kernel's mark of a program whose file was replaced since, as a build does (proc_pid_exe(5)).
        let file = program.file_name()?.to_str()?;
        (file.strip_suffix(" (deleted)").unwrap_or(file) == name).then_some(pid)
    }))
}

/// Inside a guest: start `command` as a service and wait until it reports that it is ready, by `sd_notify(3)`.
///
/// The service becomes a child of the guest's first process. Its standard input is a socket whose other end tells when
/// it has ended.
pub(super) fn run_until_ready(command: Command, program: &str, log: &Path) -> Result<u8> {
    let notify_path = format!("/run/lab-notify-{}", std::process::id());
    let notify = UnixDatagram::bind(&notify_path).with_context(|| format!("cannot bind `{notify_path}`"))?;
    let outcome = wait_for_ready(command, program, log, &notify, &notify_path);
    let _ = fs::remove_file(&notify_path);
    outcome
}

fn wait_for_ready(
    command: Command,
    program: &str,
    log: &Path,
    notify: &UnixDatagram,
    notify_path: &str,
) -> Result<u8> {
    let mut output = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .open(log)
        .with_context(|| format!("cannot open the log `{}`", log.display()))?;
    let log_start = output.seek(SeekFrom::End(0))?;
    let (alive, stdin) = UnixStream::pair()?;
    // A second fork inside the guest: a process whose parent is outside would, orphaned, go to the host's init.
    let mut forker = Command::new("setsid");
    forker.arg("--fork").arg(command.get_program()).args(command.get_args()).env_clear();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            forker.env(key, value);
        }
    }
    let status = forker
        .env("NOTIFY_SOCKET", notify_path)
        .stdin(std::os::fd::OwnedFd::from(stdin))
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .status()
        .context("cannot run `setsid` (Debian package util-linux)")?;
    // The descriptor of the service's end of the socket lives in `forker` until here.
    drop(forker);
    if !status.success() {
        return Ok(exit_code(status));
    }
    let ready = wait_for_word(notify, &alive)?;
    if ready {
        return Ok(0);
    }
    let mut said = String::new();
    output.seek(SeekFrom::Start(log_start))?;
    output.read_to_string(&mut said)?;
    let said = said.trim();
    eprintln!(
        "{}",
        if said.is_empty() { format!("`{program}` ended without a word") } else { said.to_owned() }
    );
    Ok(1)
}

/// True when the service said that it is ready, false when it ended first.
fn wait_for_word(notify: &UnixDatagram, alive: &UnixStream) -> Result<bool> {
    let begun = Instant::now();
    loop {
        let mut waiting = [PollFd::new(notify, PollFlags::IN), PollFd::new(alive, PollFlags::empty())];
        let left = HANG_GUARD.saturating_sub(begun.elapsed());
        if left.is_zero() {
            bail!("no word from the service within {} s", HANG_GUARD.as_secs());
        }
        let timeout = Timespec { tv_sec: i64::try_from(left.as_secs())? + 1, tv_nsec: 0 };
        match poll(&mut waiting, Some(&timeout)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("cannot wait for the service"),
        }
        let [word, end] = &waiting;
        if word.revents().contains(PollFlags::IN) {
            let mut buffer = [0; 4096];
            let length = notify.recv(&mut buffer)?;
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            if text.lines().any(|line| line == "READY=1") {
                return Ok(true);
            }
        } else if end.revents().contains(PollFlags::HUP) {
            return Ok(false);
        }
    }
}

/// The lab of `name`, for commands about one that runs already.
pub(super) fn applications(name: &LabName) -> Result<Vec<String>> {
    Ok(Record::running(name)?.apps.into_iter().map(|app| app.app).collect())
}
