//! Bringing a lab up.

use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use super::down::{down, stop};
use super::guest::READY;
use super::handle::{Hold, Lab};
use super::keeper::{DETACH, GO};
use super::needs::Privilege;
use super::place::{Lock, Place};
use super::plan::{Bind, GuestPlan, Plan, Role};
use super::record::{AppRecord, GuestRecord, ProcessId, Record};
use super::wanted::{Options, Wanted};
use super::{data, network, services, sys};

impl Lab {
    /// Bring a lab up and return when every app guest has its mount, or is known not to get one (see [`Lab::status`]).
    ///
    /// # Errors
    /// Names all that this machine lacks, or what went wrong; then nothing of the lab stays.
    pub fn up(options: &Options) -> Result<Self> {
        let place = Place::of(&options.name)?;
        let wanted = Wanted::new(options, &place)?;
        let record = claim(&place, &wanted)?;
        let made = make(options, &place, &wanted, record);
        if made.is_err() {
            // The name is ours: nothing of a failed start stays.
            let _ = down(&options.name);
        }
        made
    }
}

fn make(options: &Options, place: &Place, wanted: &Wanted, mut record: Record) -> Result<Lab> {
    if options.data.is_none() {
        data::make_default(&wanted.data)?;
    }
    let plan = make_plan(options, place, wanted)?;
    plan.write(&place.plan())?;
    let (mut pipe, pids) = start_keeper(place, wanted, &mut record)?;
    record.guests = plan
        .guests
        .iter()
        .zip(&pids)
        .map(|(guest, pid)| GuestRecord { name: guest.name.clone(), role: guest.role, pid: *pid })
        .collect();
    record.apps = wanted.apps.iter().map(|app| AppRecord { app: app.clone(), problem: None }).collect();
    record.write(place)?;

    let mut lab = Lab {
        name: options.name.clone(),
        program: wanted.program.clone(),
        disk: place.disk.clone(),
        data: wanted.data.clone(),
        hold: None,
    };
    if !options.empty {
        services::initialise(&lab, place, options.policy.as_deref())?;
        services::start_gateway(&lab)?;
    }
    if !options.empty && !options.bare {
        for app in &mut record.apps {
            app.problem = services::connect(&lab, place, &app.app).err().map(|error| format!("{error:#}"));
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

/// Make the name ours, clearing away what an ended lab of that name left.
fn claim(place: &Place, wanted: &Wanted) -> Result<Record> {
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
    let record = Record {
        name: place.name.to_string(),
        owner: ProcessId::of(i32::try_from(std::process::id())?)?,
        keeper: None,
        user_namespace: wanted.privilege == Privilege::UserNamespace,
        programs: wanted.programs.clone(),
        data: wanted.data.clone(),
        guests: Vec::new(),
        apps: Vec::new(),
    };
    record.write(place)?;
    Ok(record)
}

fn make_plan(options: &Options, place: &Place, wanted: &Wanted) -> Result<Plan> {
    let state = (place.disk.join("state"), services::STATE_IN_GUEST);
    let data = (wanted.data.clone(), services::DATA_IN_GUEST);
    let mut guests = vec![
        guest(place, "base", "base", Role::Base, &[])?,
        guest(place, "storage", "storage", Role::Storage, &[data, state])?,
    ];
    for (index, app) in wanted.apps.iter().enumerate() {
        let port = u16::try_from(index)?;
        let role = Role::App { address: network::app_address(port), port };
        guests.push(guest(place, app, &services::app_disk(app), role, &[])?);
    }
    Ok(Plan {
        place: place.clone(),
        user_namespace: wanted.privilege == Privilege::UserNamespace,
        programs: wanted.programs.clone(),
        shares: wanted.shares.clone(),
        open_ports: options.open_ports.clone(),
        enrolment: options.enrolment,
        awake: options.awake,
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

/// Start the keeper and wait until all guests are ready. Returns the hold on it and the guests' first processes.
fn start_keeper(place: &Place, wanted: &Wanted, record: &mut Record) -> Result<(fs::File, Vec<i32>)> {
    let (keeper_in, tell) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let (hear, keeper_out) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let log = fs::File::create(place.keeper_log()).context("cannot make the keeper's log")?;
    let argv = [
        CString::new(wanted.program.as_os_str().as_bytes())?,
        c"keeper".to_owned(),
        CString::new(place.plan().as_os_str().as_bytes())?,
    ];
    let environment = keeper_environment()?;
    let flags = match wanted.privilege {
        Privilege::Root => sys::NEW_MACHINE,
        Privilege::UserNamespace => sys::NEW_MACHINE | sys::NEW_USER,
    };
    let pid = sys::clone_exec(
        flags,
        &argv,
        &environment,
        [keeper_in.as_fd(), keeper_out.as_fd(), log.as_fd()],
        |pid| match wanted.privilege {
            Privilege::Root => anyhow::Ok(()),
            Privilege::UserNamespace => map_identity(pid),
        },
    )
    .context(
        "the kernel refuses new namespaces (in a container: it needs CAP_SYS_ADMIN and CAP_NET_ADMIN)",
    )?;
    drop((keeper_in, keeper_out));
    // Recorded at once: from here on a crash of this process leaves something that `down` can find.
    record.keeper = Some(ProcessId::of(pid.as_raw_nonzero().get())?);
    record.write(place)?;
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
    Ok((tell, pids))
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
