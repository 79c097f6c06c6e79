//! What is known about a lab while it runs: the record in its run directory, and what the kernel says about it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use super::place::{LabName, Lock, Place, known_names};
use super::plan::Role;

/// Written when a lab is claimed, and again when it is up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    /// The process that is bringing the lab up.
    pub(super) owner: ProcessId,
    /// The keeper, once there is one.
    pub(super) keeper: Option<ProcessId>,
    pub(super) user_namespace: bool,
    /// Where the programs under test are.
    pub(super) programs: PathBuf,
    /// The data root, on the host.
    pub(super) data: PathBuf,
    pub(super) guests: Vec<GuestRecord>,
    pub(super) apps: Vec<AppRecord>,
}

/// A guest of a running lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestRecord {
    /// `base`, `storage`, or the application's name.
    pub name: String,
    pub(super) role: Role,
    /// Its first process, as the keeper numbers it.
    pub(super) pid: i32,
}

/// An application and its guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AppRecord {
    /// The application, which names its guest too.
    pub app: String,
    /// Why it has no contract or no mount, if something went wrong on the way up.
    pub problem: Option<String>,
}

/// A process that is never mistaken for a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    pub(super) pid: i32,
    /// Its start in clock ticks after boot: field 22 of `/proc/PID/stat`, proc(5).
    start: u64,
    boot: String,
}

impl ProcessId {
    pub(super) fn of(pid: i32) -> Result<Self> {
        let stat = stat(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, start: stat.start, boot: boot_id()? })
    }

    /// Whether it still runs. One that is ending, or has ended and was not collected, does not.
    pub(super) fn is_alive(&self) -> bool {
        self.stat().is_some_and(|stat| !stat.ending)
    }

    /// A descriptor of exactly this process, also while it is ending; nothing once it is gone.
    pub(super) fn open(&self) -> Option<rustix::fd::OwnedFd> {
        let fd = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Checked after opening: from here on the descriptor cannot change its meaning.
        self.stat().map(|_| fd)
    }

    fn stat(&self) -> Option<Stat> {
        let same_boot = boot_id().is_ok_and(|boot| boot == self.boot);
        stat(self.pid).ok().filter(|stat| same_boot && stat.start == self.start)
    }
}

/// What `/proc/PID/stat` says of a process, proc(5).
struct Stat {
    start: u64,
    ending: bool,
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))?.trim().to_owned())
}

fn stat(pid: i32) -> io::Result<Stat> {
    /// `PF_EXITING` of the kernel's `linux/sched.h`.
    const EXITING: u64 = 4;
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command name may hold anything, also spaces and parentheses: fields count from the last one, and the first
    // after it is field 3, the state.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
    let state = fields.first().copied();
    match (state, number(9), number(22)) {
        (Some(state), Some(flags), Some(start)) => {
            Ok(Stat { start, ending: matches!(state, "Z" | "X") || flags & EXITING != 0 })
        }
        _ => Err(io::Error::other("unexpected form of /proc/PID/stat")),
    }
}

impl Record {
    /// The record of `place`, or nothing when there is no such lab.
    pub(super) fn read(place: &Place) -> Result<Option<Self>> {
        let path = place.record();
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes).with_context(|| format!("`{}` is damaged", path.display()))?,
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
        }
    }

    /// Replace the record as a whole: a reader sees the old one or the new one.
    pub(super) fn write(&self, place: &Place) -> Result<()> {
        let path = place.record();
        let next = path.with_extension("new");
        fs::write(&next, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&next, &path))
            .with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// The record of a lab that runs now.
    pub(super) fn running(name: &LabName) -> Result<Self> {
        let place = Place::of(name)?;
        let Some(record) = Self::read(&place)? else {
            bail!("there is no lab `{name}`: bring it up with `lab up --name {name}`")
        };
        if !record.keeper.as_ref().is_some_and(ProcessId::is_alive) {
            if record.keeper.is_none() && record.owner.is_alive() {
                bail!("the lab `{name}` is still coming up");
            }
            bail!(
                "the lab `{name}` has ended: `lab down --name {name}` clears it away, `lab up --name {name}` starts anew"
            );
        }
        Ok(record)
    }

    pub(super) fn is_alive(&self) -> bool {
        self.keeper.as_ref().is_some_and(ProcessId::is_alive)
            || (self.keeper.is_none() && self.owner.is_alive())
    }

    pub(super) fn guest(&self, name: &str) -> Result<&GuestRecord> {
        self.guests.iter().find(|g| g.name == name).with_context(|| {
            let apps: Vec<_> = self.apps.iter().map(|a| a.app.as_str()).collect();
            format!("the lab `{}` has no guest `{name}`: its app guests are {}", self.name, apps.join(", "))
        })
    }

    /// The path under which the host sees the guest's `/proc/PID` of its first process, through the keeper's `/proc`.
    pub(super) fn proc_of(&self, guest: &GuestRecord) -> Result<PathBuf> {
        let keeper =
            self.keeper.as_ref().with_context(|| format!("the lab `{}` has no keeper", self.name))?;
        Ok(Path::new("/proc").join(keeper.pid.to_string()).join("root/proc").join(guest.pid.to_string()))
    }
}

/// A lab as `lab status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct LabStatus {
    /// The lab's name.
    pub name: String,
    /// `up`, `starting`, or `ended` when only leftovers are there.
    pub state: &'static str,
    /// The keeper's process id on the host.
    pub keeper: Option<i32>,
    /// The data root on the host.
    pub data: Option<PathBuf>,
    /// Where the programs under test are.
    pub programs: Option<PathBuf>,
    /// Every guest.
    pub guests: Vec<GuestState>,
}

/// A guest as `lab status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct GuestState {
    /// Its name.
    pub name: String,
    /// `base`, `storage` or `app`.
    pub role: &'static str,
    /// Its address on the network that it shares with the gateway or the base domain.
    pub address: String,
    /// For app guests: whether `/mnt` is a Strongroom mount.
    pub mounted: Option<bool>,
    /// For the storage guest: whether the gateway runs.
    pub gateway: Option<bool>,
    /// What went wrong on the way up.
    pub problem: Option<String>,
}

/// The status of one lab, or nothing when it does not exist.
pub fn status_of(name: &LabName) -> Result<Option<LabStatus>> {
    let place = Place::of(name)?;
    let Some(record) = Record::read(&place)? else {
        let left_over = place.run.exists() || place.disk.exists();
        return Ok(left_over.then(|| LabStatus {
            name: name.to_string(),
            state: "ended",
            keeper: None,
            data: None,
            programs: None,
            guests: Vec::new(),
        }));
    };
    let keeper = record.keeper.as_ref().filter(|k| k.is_alive());
    let state = match (keeper, record.owner.is_alive()) {
        (Some(_), _) => "up",
        (None, true) if record.keeper.is_none() => "starting",
        _ => "ended",
    };
    let guests = if keeper.is_some() { guest_states(&record)? } else { Vec::new() };
    Ok(Some(LabStatus {
        name: record.name.clone(),
        state,
        keeper: keeper.map(|k| k.pid),
        data: Some(record.data.clone()),
        programs: Some(record.programs.clone()),
        guests,
    }))
}

/// The status of every lab of this user.
pub fn statuses() -> Result<Vec<LabStatus>> {
    let _lock = Lock::take()?;
    known_names()?.iter().filter_map(|name| status_of(name).transpose()).collect()
}

fn guest_states(record: &Record) -> Result<Vec<GuestState>> {
    record.guests.iter().map(|guest| guest_state(record, guest)).collect()
}

fn guest_state(record: &Record, guest: &GuestRecord) -> Result<GuestState> {
    let problem = record.apps.iter().find(|a| a.app == guest.name).and_then(|a| a.problem.clone());
    let (role, address) = match guest.role {
        Role::Base => ("base", "10.78.0.2".to_owned()),
        Role::Storage => ("storage", super::network::GATEWAY_HOST.to_owned()),
        Role::App { address, .. } => ("app", address.to_string()),
    };
    Ok(GuestState {
        name: guest.name.clone(),
        role,
        address,
        mounted: if role == "app" { Some(is_mounted(record, guest)?) } else { None },
        gateway: if role == "storage" {
            Some(super::services::find_process(record, guest, "strongroom-gateway")?.is_some())
        } else {
            None
        },
        problem,
    })
}

/// Whether the guest has a FUSE mount on `/mnt`. Read from its mount table: asking the mount itself could wait for an
/// absent gateway.
pub(super) fn is_mounted(record: &Record, guest: &GuestRecord) -> Result<bool> {
    let path = record.proc_of(guest)?.join("mountinfo");
    let text = fs::read_to_string(&path).with_context(|| format!("guest `{}` has ended", guest.name))?;
    // proc(5): the fifth field is the mount point, the type follows the lone dash.
    Ok(text.lines().any(|line| {
        line.split(' ').nth(4) == Some("/mnt")
            && line.split_once(" - ").is_some_and(|(_, kind)| kind.starts_with("fuse"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_another_start_is_not() {
        let me = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        assert!(me.open().is_some());
        assert!(!ProcessId { start: me.start + 1, ..me.clone() }.is_alive());
        assert!(!ProcessId { boot: "another".into(), ..me }.is_alive());
    }
}
