//! Ends what waits for a mount whose client was killed.
//!
//! The kernel ends a connection when the last descriptor of it is closed, and a process closes its descriptors when its last thread has
//! ended. A thread that is telling the kernel of a name may be waiting for the directory's lock, which no signal ends; who
//! has the lock waits for an answer of the client. Killed then, the client never ends, and neither do the programs on the
//! mount. A second process, without a descriptor of the connection, hears of the death of the client's first thread
//! (prctl(2), PR_SET_PDEATHSIG) and aborts the connection (Documentation/filesystems/fuse/fuse.rst).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::mount::{self, Attached};
use crate::sys::EndSignals;

/// Tells the program that it was started by itself as a guard, and by which process.
const GUARD: &str = "STRONGROOM_MOUNT_GUARD";
/// Where the kernel shows its connections, if somebody has mounted that.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// How often it is looked whether a client that is ending has ended.
const PAUSE: Duration = Duration::from_millis(10);
/// How often at most.
const LOOKS: usize = 100;

/// Starts a guard of this process's mount. To be called by the first thread.
///
/// # Errors
/// Those of starting a process.
pub fn start(attached: &Attached) -> io::Result<Child> {
    let Some(device) = attached.device() else { return Err(io::ErrorKind::NotFound.into()) };
    Command::new(std::env::current_exe()?)
        .arg0("mount.strongroom-guard")
        .arg(attached.dir())
        .arg(device)
        .env(GUARD, std::process::id().to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Whether this process was started as a guard; if so, it has been one when this returns.
pub fn ran(arguments: &[OsString]) -> bool {
    let client = std::env::var_os(GUARD).and_then(|pid| pid.to_str()?.parse().ok());
    // A mount takes more arguments, and must not be mistaken for a guard because of a variable that somebody has set.
    let (Some(client), [dir, device]) = (client, arguments) else { return false };
    // There is nobody to tell.
    let _ = guard(Path::new(dir), &device.to_string_lossy(), client);
    true
}

fn guard(dir: &Path, device: &str, client: i32) -> io::Result<()> {
    let signals = EndSignals::block()?;
    // What a terminal sends is for the client.
    rustix::process::setsid()?;
    set_parent_process_death_signal(Some(Signal::HUP))?;
    let client = Pid::from_raw(client);
    // Between the start and the wish the client may have died.
    while getppid() == client && !(signals.wait() == libc::SIGHUP && is_dying(client)) {}
    abort(dir, device)
}

/// Whether the first thread of a process has ended, or is about to. (proc_pid_stat(5))
fn is_dying(process: Option<Pid>) -> bool {
    let Some(pid) = process else { return true };
    (0..LOOKS).any(|look| {
        if look > 0 {
            std::thread::sleep(PAUSE);
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        // The name before it may hold anything.
        !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some(state) if !"ZX".contains(state))
    })
}

fn abort(dir: &Path, device: &str) -> io::Result<()> {
    // Otherwise the number may be that of another mount by now.
    if !mount::is_at(dir, device) {
        return Ok(());
    }
    let number = device.rsplit(':').next().unwrap_or_default();
    let file = Path::new(CONNECTIONS).join(number).join("abort");
    if fs::write(file, "1").is_ok() {
        return Ok(());
    }
    // Where the connections are not shown, forced unmounting aborts before it unmounts (umount(2)). It must not come to that, as
    // programs would go on in the directory below: what is open here keeps the mount in use.
    let _used = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::mount::unmount(dir, UnmountFlags::FORCE) {
        Err(Errno::BUSY) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
