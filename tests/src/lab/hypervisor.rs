//! What stands in for a hypervisor in a lab: it starts app guests anew, as the base domain asks.
//!
//! The base domain sees no other guest's processes. So its guest driver asks through a socket in its `/etc/strongroom`,
//! which the lab's owner serves from outside. A restarted guest keeps its namespaces and loses everything else: its
//! processes, its mount, its files; then it boots as a fresh guest does: enrol, mount.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::handle::Lab;
use super::network::ENROL_ADDRESS;
use super::place::LabName;
use super::services::{ETC_IN_GUEST, LOG_IN_GUEST, app_disk};

const SOCKET: &str = "hypervisor.sock";
/// Only a guard against hanging for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that a guest's restart takes away. `kill -1` spares its first process and the shell itself.
const STOP: &str = r#"
kill -KILL -1 2>/dev/null
while umount -l /mnt 2>/dev/null; do :; done
find /tmp /var/tmp /root /home /etc/strongroom -mindepth 1 -delete 2>/dev/null
true
"#;

#[derive(Serialize, Deserialize)]
struct Request {
    app: String,
    secret: Option<String>,
}

/// A lab's hypervisor; it ends when this value goes.
#[derive(Debug)]
pub struct Hypervisor {
    stop: Arc<AtomicBool>,
    restarts: Arc<AtomicUsize>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Hypervisor {
    /// Serves a running lab.
    pub fn start(lab: &Lab) -> Result<Self> {
        let path = lab.etc("base").join(SOCKET);
        let _ = std::fs::remove_file(&path);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot listen on `{}`", path.display()))?;
        listener.set_nonblocking(true)?;
        let (stop, restarts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (name, stopped, count) = (lab.name().clone(), stop.clone(), restarts.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                // The directory may go before this value does: nobody could knock then.
                let timeout = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
                let _ = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&timeout));
                let Ok((stream, _)) = listener.accept() else { continue };
                let name = name.clone();
                count.fetch_add(1, Ordering::AcqRel);
                std::thread::spawn(move || answer(&name, stream));
            }
        });
        Ok(Self { stop, restarts, path, thread: Some(thread) })
    }

    /// How many restarts were asked for.
    #[must_use]
    pub fn restarts(&self) -> usize {
        self.restarts.load(Ordering::Acquire)
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn answer(name: &LabName, mut stream: UnixStream) {
    let restarted = restart(name, &stream);
    let said = match &restarted {
        Ok(_) => "ok\n".to_owned(),
        Err(error) => format!("{}\n", format!("{error:#}").replace('\n', "; ")),
    };
    let _ = stream.write_all(said.as_bytes());
    drop(stream);
    // The guest boots by itself: whoever started it does not wait for it.
    if let Ok((lab, request)) = restarted
        && let Err(error) = boot(&lab, &request)
    {
        eprintln!("lab `{name}`: guest `{}` does not boot: {error:#}", request.app);
    }
}

fn restart(name: &LabName, stream: &UnixStream) -> Result<(Lab, Request)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(65_536)).read_line(&mut line)?;
    let request: Request = serde_json::from_str(&line).context("the request makes no sense")?;
    let lab = Lab::find(name)?;
    if !lab.applications()?.contains(&request.app) {
        bail!("there is no guest `{}`", request.app);
    }
    lab.app(&request.app, ["sh", "-c", STOP]).cwd("/").run()?;
    Ok((lab, request))
}

/// What a guest does when it starts.
fn boot(lab: &Lab, request: &Request) -> Result<()> {
    let app = &request.app;
    let Some(secret) = &request.secret else { return Ok(()) };
    let handed = lab.disk.join("guests").join(app_disk(app)).join("strongroom/enrolment");
    std::fs::write(&handed, secret).with_context(|| format!("cannot write `{}`", handed.display()))?;
    let secret = format!("{ETC_IN_GUEST}/enrolment");
    let enroll = ["contract", "enroll", "--secret", &secret, "--at", ENROL_ADDRESS, "--out", ETC_IN_GUEST];
    let enrolled = lab.app(app, enroll).cwd("/").output()?;
    if !enrolled.status.success() {
        let said = String::from_utf8_lossy(&enrolled.stderr).into_owned();
        let log = lab.log(app).join("boot.log");
        std::fs::write(&log, &said).with_context(|| format!("cannot write `{}`", log.display()))?;
        // Restarted again in the middle of its boot: the next boot counts.
        if enrolled.status.code() == Some(137) {
            return Ok(());
        }
        bail!("`contract enroll` in `{app}`: {said} (see {LOG_IN_GUEST}/boot.log)");
    }
    // As the unit of a guest's mount does.
    lab.mount_again(app, 300)
}

/// In the base domain: ask for the restart of a guest. Returns when it was started.
pub fn ask(app: &str, secret: Option<&Path>) -> Result<()> {
    let path = Path::new(ETC_IN_GUEST).join(SOCKET);
    let secret = match secret.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?)
        }
        None => None,
    };
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("nobody plays the hypervisor at `{}`", path.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = Request { app: app.to_owned(), secret };
    stream.write_all(format!("{}\n", serde_json::to_string(&request)?).as_bytes())?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    match said.trim() {
        "ok" => Ok(()),
        "" => bail!("the hypervisor is gone"),
        error => bail!("{error}"),
    }
}
