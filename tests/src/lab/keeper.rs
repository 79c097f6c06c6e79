//! The keeper: the first process of a lab, and its switch. When it ends, the lab has ended.
//!
//! Its standard input is the owner's hold on it: `g` lets it begin (an ordinary user's identity map is written first),
//! `d` lets it outlive its owner; if the owner ends before that, so does the lab, and the keeper clears its directories
//! away. Its standard output carries one line: `ready` with the guests' process ids, or what went wrong.

use std::ffi::CString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitOptions};

use super::guest::{READY, ROOTED, WIRED, reap};
use super::network;
use super::place::Place;
use super::plan::Plan;
use super::sys::{self, Signals};

pub(super) const GO: u8 = b'g';
pub(super) const DETACH: u8 = b'd';

/// Be the keeper of the lab with the plan in the file `plan`.
pub fn run(plan: &Path) -> Result<()> {
    let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD])?;
    let mut go = [0];
    let begin = std::io::stdin().read_exact(&mut go).context("the owner ended before the lab began");
    let plan = Plan::read(plan)?;
    match begin.and_then(|()| serve(&plan, &signals)) {
        Ok(End::Asked) => Ok(()),
        Ok(End::OwnerGone) => clear_away(&plan),
        Err(error) => {
            // The owner may be gone, and then nobody else would do it.
            clear_away(&plan)?;
            Err(error)
        }
    }
}

fn serve(plan: &Plan, signals: &Signals) -> Result<End> {
    let guests = match start(plan) {
        Ok(guests) => guests,
        Err(error) => {
            // The owner reads one line.
            let _ = writeln!(std::io::stdout(), "{}", format!("{error:#}").replace('\n', "; "));
            return Err(error);
        }
    };
    let pids: Vec<String> = guests.iter().map(|g| g.pid.to_string()).collect();
    writeln!(std::io::stdout(), "{READY} {}", pids.join(" ")).context("the owner is gone")?;
    keep(signals)
}

fn clear_away(plan: &Plan) -> Result<()> {
    end_everything();
    plan.place.remove()
}

/// A guest's first process and the pipes to it.
struct Guest {
    name: String,
    pid: i32,
    tell: std::fs::File,
    hear: BufReader<std::fs::File>,
}

fn start(plan: &Plan) -> Result<Vec<Guest>> {
    // What the host unmounts later must vanish here too, or the lab would keep it busy.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .context("cannot separate the mounts")?;
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None).context(
        "cannot mount /proc (a container that masks its own /proc forbids it: run the lab outside, or with an unmasked /proc)",
    )?;
    let mut guests = Vec::new();
    for (index, guest) in plan.guests.iter().enumerate() {
        guests.push(start_guest(&plan.place, index, &guest.name)?);
    }
    for guest in &mut guests {
        guest.expect(ROOTED)?;
    }
    let pids: Vec<i32> = guests.iter().map(|g| g.pid).collect();
    network::wire_up(plan, &pids)?;
    for guest in &mut guests {
        writeln!(guest.tell, "{WIRED}").with_context(|| format!("guest `{}` is gone", guest.name))?;
    }
    for guest in &mut guests {
        guest.expect(READY)?;
    }
    Ok(guests)
}

fn start_guest(place: &Place, index: usize, name: &str) -> Result<Guest> {
    let (child_in, tell) = pipe()?;
    let (hear, child_out) = pipe()?;
    let plan = place.plan();
    let argv = [
        c"/proc/self/exe".to_owned(),
        c"guest-init".to_owned(),
        c_string(&plan)?,
        CString::new(index.to_string())?,
    ];
    let environment = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    let pid = sys::clone_exec(
        sys::NEW_MACHINE,
        &argv,
        &environment,
        [child_in.as_fd(), child_out.as_fd(), std::io::stderr().as_fd()],
        |_| std::io::Result::Ok(()),
    )
    .with_context(|| format!("cannot make the namespaces of guest `{name}`"))?;
    Ok(Guest {
        name: name.to_owned(),
        pid: pid.as_raw_nonzero().get(),
        tell: tell.into(),
        hear: BufReader::new(hear.into()),
    })
}

impl Guest {
    fn expect(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.hear.read_line(&mut line).with_context(|| format!("guest `{}` is gone", self.name))?;
        match line.trim() {
            said if said == word => Ok(()),
            "" => bail!("guest `{}` ended before it was {word}", self.name),
            error => Err(anyhow!("guest `{}`: {error}", self.name)),
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")
}

fn c_string(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[derive(PartialEq, Eq)]
enum End {
    Asked,
    OwnerGone,
}

fn keep(signals: &Signals) -> Result<End> {
    let stdin = std::io::stdin();
    let mut detached = false;
    loop {
        let mut waiting = vec![PollFd::new(signals, PollFlags::IN)];
        if !detached {
            waiting.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut waiting, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait"),
        }
        let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.get(1) == Some(&true) {
            let mut byte = [0];
            match rustix::io::read(&stdin, &mut byte) {
                Ok(1..) => detached |= byte == [DETACH],
                Ok(0) => return Ok(End::OwnerGone),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot hear the owner"),
            }
        }
        if ready.first() == Some(&true) {
            match signals.next()?.number {
                libc::SIGCHLD => reap(),
                _ => return Ok(End::Asked),
            }
        }
    }
}

/// End every other process of the lab and wait until none is left, so that nothing writes to the directories any more.
fn end_everything() {
    // From the first process of a PID namespace, "everyone" is everyone in it but itself (kill(2)).
    let _ = sys::kill_everyone_else(Signal::KILL);
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::empty()) {}
}
