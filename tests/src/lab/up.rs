//! Bringing a lab up and down, and running commands in it.

use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal};

use super::guest::READY;
use super::keeper::{DETACH, GO};
use super::needs::{self, Privilege};
use super::network;
use super::place::{LabName, Lock, Place, known_names};
use super::plan::{Bind, GuestPlan, Plan, Role};
use super::record::{AppRecord, GuestRecord, LabStatus, ProcessId, Record, is_mounted, status_of};
use super::services::{self, StopHow};
use super::{data, rootfs, sys};

/// What kind of lab to bring up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name; two labs of one user differ in it.
    pub name: LabName,
    /// A directory of policy files, one app guest for each; the sample policies when not given.
    pub policy: Option<PathBuf>,
    /// The data root; a small made-up one, removed with the lab, when not given.
    pub data: Option<PathBuf>,
    /// Only initialise the installation and start the gateway: no contracts, no mounts.
    pub bare: bool,
    /// Only the guests and the network: no programs under test at all.
    pub empty: bool,
    /// Ports of the storage guest that app guests reach besides the native door, for comparing with other servers.
    pub open_ports: Vec<u16>,
    /// More host directories that every guest sees, read-only.
    pub shares: Vec<PathBuf>,
    /// The program `lab`, which plays the keeper and the guests' first processes. Found by itself when not given.
    pub lab_program: Option<PathBuf>,
    /// Whether the lab outlives this process. Otherwise it ends with the [`Lab`] or the process, whichever is first.
    pub detached: bool,
}

impl Options {
    /// The default lab under `name`, ending with its [`Lab`].
    #[must_use]
    pub fn named(name: LabName) -> Self {
        Self {
            name,
            policy: None,
            data: None,
            bare: false,
            empty: false,
            open_ports: Vec::new(),
            shares: Vec::new(),
            lab_program: None,
            detached: false,
        }
    }

    /// The default lab for a test, under a name of its own.
    #[must_use]
    pub fn for_test(purpose: &str) -> Self {
        Self::named(LabName::unique(purpose))
    }
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    name: LabName,
    program: PathBuf,
    place: PathBuf,
    data: PathBuf,
    /// The hold on the keeper; a lab that only was looked up has none, and stays when this value goes.
    hold: Option<Hold>,
}

/// The write end of the keeper's standard input, and the keeper as a child to collect.
#[derive(Debug)]
struct Hold {
    _pipe: fs::File,
}

impl Lab {
    /// Bring a lab up and return when every app guest has its mount, or is known not to get one (see [`Lab::status`]).
    pub fn up(options: &Options) -> Result<Self> {
        let program = lab_program(options.lab_program.as_deref())?;
        let programs = program_directory(&program);
        let privilege = needs::check(&programs, options.empty)?;
        let place = Place::of(&options.name)?;
        let apps = applications(options)?;
        claim(&place, &programs, options)?;
        let made = Self::make(options, &place, &program, &programs, privilege, &apps);
        if made.is_err() {
            // The claim is ours: nothing of a failed start stays.
            let _ = down(&options.name);
        }
        made
    }

    fn make(
        options: &Options,
        place: &Place,
        program: &Path,
        programs: &Path,
        privilege: Privilege,
        apps: &[String],
    ) -> Result<Self> {
        let plan = make_plan(options, place, programs, privilege, apps)?;
        plan.write(&place.plan())?;
        let mut record = Record::read(place)?.context("the lab's record is gone")?;
        let (mut pipe, keeper, pids) = start_keeper(place, program, privilege, &mut record)?;
        record.keeper = Some(keeper);
        record.guests = plan
            .guests
            .iter()
            .zip(&pids)
            .map(|(guest, pid)| GuestRecord { name: guest.name.clone(), role: guest.role, pid: *pid })
            .collect();
        record.apps = apps.iter().map(|app| AppRecord { app: app.clone(), problem: None }).collect();
        record.write(place)?;

        let mut lab = Self {
            name: options.name.clone(),
            program: program.to_owned(),
            place: place.disk.clone(),
            data: record.data.clone(),
            hold: None,
        };
        if !options.empty {
            services::initialise(&lab, place, options.policy.as_deref())?;
            services::start_gateway(&lab)?;
        }
        if !options.empty && !options.bare {
            for app in &mut record.apps {
                app.problem =
                    services::connect(&lab, place, &app.app).err().map(|error| format!("{error:#}"));
            }
            record.write(place)?;
        }
        if options.detached {
            pipe.write_all(&[DETACH]).context("the lab's keeper is gone")?;
        } else {
            lab.hold = Some(Hold { _pipe: pipe });
        }
        Ok(lab)
    }

    /// A lab that runs already.
    pub fn find(name: &LabName) -> Result<Self> {
        let record = Record::running(name)?;
        let place = Place::of(name)?;
        Ok(Self {
            name: name.clone(),
            program: lab_program(None)?,
            place: place.disk,
            data: record.data,
            hold: None,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// The data root, on the host.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A file of the guest `name` (`base`, `storage` or an application) below its `/etc/strongroom`, as the host sees it.
    #[must_use]
    pub fn etc(&self, name: &str) -> PathBuf {
        self.guest_directory(name).join("strongroom")
    }

    /// The guest's `/var/log/strongroom`, as the host sees it.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.guest_directory(name).join("log")
    }

    fn guest_directory(&self, name: &str) -> PathBuf {
        let own = if matches!(name, "base" | "storage") { name.to_owned() } else { services::app_disk(name) };
        self.place.join("guests").join(own)
    }

    /// A command in an app guest; it starts in `/mnt`.
    pub fn app<'a>(&self, app: &str, command: impl IntoIterator<Item = &'a str>) -> GuestCommand {
        self.guest("exec", Some(app), command)
    }

    /// A command in the storage guest.
    pub fn storage<'a>(&self, command: impl IntoIterator<Item = &'a str>) -> GuestCommand {
        self.guest("storage", None, command)
    }

    /// A command in the base domain; `contract` finds its directory by itself.
    pub fn base<'a>(&self, command: impl IntoIterator<Item = &'a str>) -> GuestCommand {
        self.guest("base", None, command)
    }

    fn guest<'a>(
        &self,
        verb: &str,
        app: Option<&str>,
        command: impl IntoIterator<Item = &'a str>,
    ) -> GuestCommand {
        GuestCommand {
            program: self.program.clone(),
            lab: self.name.clone(),
            verb: verb.to_owned(),
            app: app.map(str::to_owned),
            options: Vec::new(),
            command: command.into_iter().map(str::to_owned).collect(),
        }
    }

    /// Mount an application's contract again, after its mount was taken away.
    pub fn remount(&self, app: &str) -> Result<()> {
        let record = Record::running(&self.name)?;
        if is_mounted(&record, record.guest(app)?)? {
            return Ok(());
        }
        services::mount(self, app)
    }

    /// Start the gateway if it does not run, and wait until it serves.
    pub fn start_gateway(&self) -> Result<()> {
        services::start_gateway(self)
    }

    /// End the gateway and wait until it has ended.
    pub fn stop_gateway(&self, how: StopHow) -> Result<()> {
        services::stop_gateway(self, how)
    }

    /// How the lab is.
    pub fn status(&self) -> Result<LabStatus> {
        status_of(&self.name)?.with_context(|| format!("there is no lab `{}`", self.name))
    }

    /// Its applications, in the order of the policy files.
    pub fn applications(&self) -> Result<Vec<String>> {
        services::applications(&self.name)
    }

    /// End the lab and say what could not be cleared away; dropping it does the same without a word.
    pub fn down(mut self) -> Result<()> {
        let done = down(&self.name);
        self.hold = None;
        done
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.hold.is_some()
            && let Err(error) = down(&self.name)
        {
            eprintln!("lab `{}`: {error:#}", self.name);
        }
    }
}

/// A command to run in a guest.
#[derive(Clone, Debug)]
pub struct GuestCommand {
    program: PathBuf,
    lab: LabName,
    verb: String,
    app: Option<String>,
    options: Vec<String>,
    command: Vec<String>,
}

impl GuestCommand {
    /// Start in `dir` of the guest instead of its usual place.
    #[must_use]
    pub fn cwd(mut self, dir: &str) -> Self {
        self.options.extend(["--cwd".to_owned(), dir.to_owned()]);
        self
    }

    /// Run as a service; the command returns when it is ready.
    pub(super) fn with_service_log(mut self, log: &str) -> Self {
        self.options.extend(["--service-log".to_owned(), log.to_owned()]);
        self
    }

    /// As a person would type it.
    #[must_use]
    pub fn shown(&self) -> String {
        let mut words = vec!["lab".to_owned(), self.verb.clone()];
        words.extend(self.app.clone());
        words.push("--".to_owned());
        words.extend(self.command.clone());
        words.join(" ")
    }

    /// The process to start on the host. Its streams, signals and exit status are the command's.
    #[must_use]
    pub fn into_command(self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(&self.verb).args(["--name", self.lab.as_str()]).args(&self.options);
        command.args(&self.app).arg("--").args(&self.command);
        command
    }

    /// Run it to its end and return what it printed.
    ///
    /// # Errors
    /// When it cannot be started or fails; the error holds what it said.
    pub fn run(self) -> Result<String> {
        let shown = self.shown();
        let output = self.into_command().output().with_context(|| format!("cannot start `{shown}`"))?;
        if !output.status.success() {
            bail!(
                "`{shown}`: {}\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Run it to its end, whatever that is.
    pub fn output(self) -> Result<std::process::Output> {
        let shown = self.shown();
        self.into_command().output().with_context(|| format!("cannot start `{shown}`"))
    }
}

fn lab_program(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let me = std::env::current_exe().context("cannot find this program's own file")?;
    // A test program is one directory below the programs: target/PROFILE/deps.
    let beside = me.parent().map(|dir| dir.join("lab"));
    let above = me.parent().and_then(Path::parent).map(|dir| dir.join("lab"));
    beside.into_iter().chain(above).find(|path| path.is_file()).with_context(|| {
        format!("there is no program `lab` beside `{}`: build it with `make lab`", me.display())
    })
}

fn program_directory(lab_program: &Path) -> PathBuf {
    std::env::var_os("STRONGROOM_BIN_DIR").map_or_else(
        || lab_program.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned),
        PathBuf::from,
    )
}

fn applications(options: &Options) -> Result<Vec<String>> {
    let Some(dir) = &options.policy else {
        return Ok(vec!["mail".to_owned(), "editor".to_owned()]);
    };
    let mut apps = Vec::new();
    for file in services::policy_files(dir)? {
        let app = services::application_of(&file)?;
        // Used as a directory and a host name.
        if app.is_empty() || app.len() > 60 || app.starts_with('.') || app.contains(['/', '\0', '\n']) {
            bail!("`{}` is about `{app}`, which cannot name a guest", file.display());
        }
        if matches!(app.as_str(), "base" | "storage") || apps.contains(&app) {
            bail!("`{}` is about `{app}`, a name that another guest has", file.display());
        }
        apps.push(app);
    }
    if apps.is_empty() {
        bail!("`{}` holds no policy file (NAME.toml)", dir.display());
    }
    if apps.len() > network::MAX_APPS {
        bail!("`{}` holds {} policies: a lab has room for {}", dir.display(), apps.len(), network::MAX_APPS);
    }
    Ok(apps)
}

/// Make the name ours, clearing away what an ended lab of that name left.
fn claim(place: &Place, programs: &Path, options: &Options) -> Result<()> {
    let _lock = Lock::take()?;
    if let Some(record) = Record::read(place)? {
        if record.is_alive() {
            bail!(
                "the lab `{name}` is up already: `lab down --name {name}` ends it, `--name` takes another",
                name = place.name
            );
        }
        // One that was killed may still be ending.
        stop(&place.name, &record)?;
    }
    place.remove()?;
    place.make()?;
    let data = match &options.data {
        Some(dir) => {
            dir.canonicalize().with_context(|| format!("cannot use `{}` as the data root", dir.display()))?
        }
        None => place.disk.join("data"),
    };
    let me = i32::try_from(std::process::id())?;
    let record = Record {
        name: place.name.to_string(),
        owner: ProcessId::of(me)?,
        keeper: None,
        user_namespace: !rustix::process::geteuid().is_root(),
        programs: programs.to_owned(),
        data,
        guests: Vec::new(),
        apps: Vec::new(),
    };
    record.write(place)
}

fn make_plan(
    options: &Options,
    place: &Place,
    programs: &Path,
    privilege: Privilege,
    apps: &[String],
) -> Result<Plan> {
    let data = match &options.data {
        Some(dir) => dir.canonicalize()?,
        None => {
            let dir = place.disk.join("data");
            data::make_default(&dir)?;
            dir
        }
    };
    let mut shares = vec![programs.to_owned()];
    // The conformance suites, where `tools/setup.sh` puts them.
    if let Some(tools) = programs.parent().map(|dir| dir.join("tools/bin")).filter(|dir| dir.is_dir()) {
        shares.push(tools);
    }
    for share in &options.shares {
        shares.push(share.canonicalize().with_context(|| format!("cannot share `{}`", share.display()))?);
    }
    refuse_visible_data(&data, &shares)?;
    let mut guests = vec![
        guest(place, "base", "base", Role::Base, &[])?,
        guest(
            place,
            "storage",
            "storage",
            Role::Storage,
            &[(data, services::DATA_IN_GUEST), (place.disk.join("state"), services::STATE_IN_GUEST)],
        )?,
    ];
    for (index, app) in apps.iter().enumerate() {
        let port = u16::try_from(index)?;
        let role = Role::App { address: network::app_address(port), port };
        guests.push(guest(place, app, &services::app_disk(app), role, &[])?);
    }
    Ok(Plan {
        place: place.clone(),
        user_namespace: privilege == Privilege::UserNamespace,
        programs: programs.to_owned(),
        shares,
        open_ports: options.open_ports.clone(),
        guests,
    })
}

fn guest(place: &Place, name: &str, disk: &str, role: Role, more: &[(PathBuf, &str)]) -> Result<GuestPlan> {
    let own = place.guest_disk(disk);
    let mut binds = vec![
        Bind { from: own.join("strongroom"), to: services::ETC_IN_GUEST.into() },
        Bind { from: own.join("log"), to: services::LOG_IN_GUEST.into() },
    ];
    binds.extend(more.iter().map(|(from, to)| Bind { from: from.clone(), to: (*to).into() }));
    for bind in &binds {
        fs::create_dir_all(&bind.from).with_context(|| format!("cannot make `{}`", bind.from.display()))?;
    }
    Ok(GuestPlan { name: name.to_owned(), role, binds })
}

/// Every guest sees the system's directories and the shares: data in one of them would reach every guest around the
/// gateway.
fn refuse_visible_data(data: &Path, shares: &[PathBuf]) -> Result<()> {
    let system = rootfs::SYSTEM.iter().map(|dir| Path::new("/").join(dir));
    if let Some(seen) = system.chain(shares.iter().cloned()).find(|dir| data.starts_with(dir)) {
        bail!(
            "the data root `{}` is below `{}`, which every guest sees: put the data elsewhere",
            data.display(),
            seen.display()
        );
    }
    Ok(())
}

/// Start the keeper and wait until all guests are ready. Returns the hold on it, its identity and the guests' first
/// processes.
fn start_keeper(
    place: &Place,
    program: &Path,
    privilege: Privilege,
    record: &mut Record,
) -> Result<(fs::File, ProcessId, Vec<i32>)> {
    let (keeper_in, tell) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let (hear, keeper_out) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let log = fs::File::create(place.keeper_log()).context("cannot make the keeper's log")?;
    let argv = [
        CString::new(program.as_os_str().as_bytes())?,
        c"keeper".to_owned(),
        CString::new(place.plan().as_os_str().as_bytes())?,
    ];
    let environment = keeper_environment()?;
    let flags = match privilege {
        Privilege::Root => sys::NEW_MACHINE,
        Privilege::UserNamespace => sys::NEW_MACHINE | sys::NEW_USER,
    };
    let pid = sys::clone_exec(
        flags,
        &argv,
        &environment,
        [keeper_in.as_fd(), keeper_out.as_fd(), log.as_fd()],
    )
    .context(
        "the kernel refuses new namespaces (in a container: it needs CAP_SYS_ADMIN and CAP_NET_ADMIN)",
    )?;
    drop((keeper_in, keeper_out));
    let keeper = ProcessId::of(pid.as_raw_nonzero().get())?;
    // Recorded at once: from here on a crash of this process leaves something that `down` can find.
    record.keeper = Some(keeper.clone());
    record.write(place)?;
    if privilege == Privilege::UserNamespace {
        map_identity(pid)?;
    }
    let mut tell = fs::File::from(tell);
    tell.write_all(&[GO]).context("the lab's keeper did not start")?;
    let mut line = String::new();
    BufReader::new(fs::File::from(hear)).read_line(&mut line).context("cannot hear the keeper")?;
    let Some(pids) = line.trim().strip_prefix(READY) else {
        let log = fs::read_to_string(place.keeper_log()).unwrap_or_default();
        let said = if line.trim().is_empty() { log.trim() } else { line.trim() };
        bail!("the lab did not start: {said}");
    };
    let pids = pids.split_whitespace().map(str::parse).collect::<Result<Vec<i32>, _>>()?;
    Ok((tell, keeper, pids))
}

fn keeper_environment() -> Result<Vec<CString>> {
    ["PATH", "RUST_BACKTRACE"]
        .into_iter()
        .filter_map(|key| std::env::var_os(key).map(|value| (key, value)))
        .map(|(key, value)| {
            let mut pair = key.as_bytes().to_vec();
            pair.push(b'=');
            pair.extend_from_slice(value.as_bytes());
            Ok(CString::new(pair)?)
        })
        .collect()
}

/// Be root in the new user namespace and nobody else: user_namespaces(7).
fn map_identity(pid: Pid) -> Result<()> {
    let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let write = |file: &str, text: String| {
        fs::write(proc.join(file), text).with_context(|| format!("the kernel refuses the lab's {file}"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {} 1", rustix::process::geteuid().as_raw()))?;
    write("gid_map", format!("0 {} 1", rustix::process::getegid().as_raw()))
}

/// End the lab `name`, in whatever state it is, and remove all that it left. One that does not exist is no error.
pub fn down(name: &LabName) -> Result<()> {
    let place = Place::of(name)?;
    let record = Record::read(&place).unwrap_or_else(|error| {
        // A record that cannot be read must not keep the lab for ever.
        eprintln!("lab: {error:#}; clearing it away");
        None
    });
    if let Some(record) = &record {
        stop(name, record)?;
    }
    let _lock = Lock::take()?;
    // Somebody else may have cleared it away and brought up a new one of the same name meanwhile.
    let now = Record::read(&place).unwrap_or(None);
    if now
        .is_some_and(|now| now.is_alive() && now.owner.pid != i32::try_from(std::process::id()).unwrap_or(0))
    {
        bail!("the lab `{name}` is being brought up by another process");
    }
    place.remove()
}

fn stop(name: &LabName, record: &Record) -> Result<()> {
    let Some(keeper) = record.keeper.as_ref() else { return Ok(()) };
    let Some(process) = keeper.open() else {
        collect(keeper);
        return Ok(());
    };
    // The gateway closes its ledger in peace if it can; the data are a person's own where `--data` was given.
    if keeper.is_alive()
        && let Ok(lab) = Lab::find(name)
    {
        let _ = lab.stop_gateway(StopHow::Clean);
    }
    // Asked, then made to: SIGKILL always reaches the first process of a namespace from outside.
    let _ = pidfd_send_signal(&process, Signal::TERM);
    if !ended(&process, Duration::from_secs(5))? {
        let _ = pidfd_send_signal(&process, Signal::KILL);
        if !ended(&process, Duration::from_secs(60))? {
            bail!("the keeper of the lab `{name}` (process {}) does not end", keeper.pid);
        }
    }
    collect(keeper);
    Ok(())
}

fn ended(process: &impl AsFd, within: Duration) -> Result<bool> {
    let begun = Instant::now();
    loop {
        let left = within.saturating_sub(begun.elapsed());
        let timeout =
            Timespec { tv_sec: i64::try_from(left.as_secs())?, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut waiting = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut waiting, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the keeper"),
        }
    }
}

/// Collect the keeper if it is this process's child.
fn collect(keeper: &ProcessId) {
    if let Some(pid) = Pid::from_raw(keeper.pid) {
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// End every lab of this user; the names of those that were there.
pub fn down_all() -> Result<Vec<LabName>> {
    let names = {
        let _lock = Lock::take()?;
        known_names()?
    };
    for name in &names {
        down(name)?;
    }
    Ok(names)
}
