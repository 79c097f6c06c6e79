//! Attaching the file system to a directory, and detaching it: mount(2) with the privilege for it, `fusermount3` without.
//!
//! `fuser` is given the descriptor only: its own unmounting may hit what somebody else has mounted there since.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// The device by which the kernel speaks to file systems of users (fuse(4)).
const DEVICE: &str = "/dev/fuse";
/// The type of the mount, as mount(8) and /proc/mounts show it.
const TYPE: &str = "fuse.strongroom";
/// KiB that the kernel reads ahead, so that sequential reads come as the largest requests there are.
const READ_AHEAD_KIB: &str = "1024";

/// Why the file system cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory is not there.
    #[error("there is no directory `{}`; make it first: `mkdir -p {}`", .0.display(), .0.display())]
    Missing(PathBuf),
    /// Not a directory.
    #[error("`{}` is not a directory; give a directory to mount on", .0.display())]
    NotDirectory(PathBuf),
    /// Something is in it.
    #[error("`{}` is not empty; mount on an empty directory, or use `-o nonempty` to hide what is in it", .0.display())]
    NotEmpty(PathBuf),
    /// A contract is mounted there already.
    #[error("a contract is mounted on `{}` already; `umount {}` first", .0.display(), .0.display())]
    Busy(PathBuf),
    /// What is mounted there is dead.
    #[error("the mount on `{}` is dead (its client has ended); `umount {}` first", .0.display(), .0.display())]
    Dead(PathBuf),
    /// The directory cannot be used.
    #[error("cannot use `{}`: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel has no FUSE.
    #[error(
        "there is no {DEVICE}: load the module (`modprobe fuse`), or give this guest or container the device"
    )]
    NoDevice,
    /// The device may not be opened.
    #[error(
        "no permission to open {DEVICE}; mount as root, or make the device accessible (usually mode 0666)"
    )]
    DeviceDenied,
    /// The device cannot be opened.
    #[error("cannot open {DEVICE}: {0}")]
    Device(io::Error),
    /// mount(2) failed.
    #[error("cannot mount on `{}`: {source}", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The helper is missing.
    #[error(
        "cannot mount without privileges: fusermount3 is missing; install the package fuse3, or mount as root"
    )]
    NoHelper,
    /// The helper refused.
    #[error("fusermount3 refused: {0}")]
    Helper(String),
    /// Other users may not be let in.
    #[error(
        "letting other users in (allow_other) is not allowed to you; leave the option out, or have `user_allow_other` put into /etc/fuse.conf"
    )]
    AllowOther,
}

/// How to attach.
#[derive(Clone, Debug)]
pub struct Attach {
    /// Where; absolute.
    pub dir: PathBuf,
    /// What /proc/mounts shows as the source: the contract file, as in fstab.
    pub source: PathBuf,
    /// Flags of mount(2).
    pub flags: MountFlags,
    /// Whether other users are let in.
    pub allow_other: bool,
    /// Whether the directory may hold something.
    pub nonempty: bool,
}

/// The file system in its place.
#[derive(Debug)]
pub struct Attached {
    dir: PathBuf,
    /// Major and minor number of the device, as in mountinfo; how it is told from what others mount there.
    device: Option<String>,
    helper: bool,
}

/// Checks whether something can be mounted on a directory.
///
/// # Errors
/// [`MountError`] that names what stands in the way.
pub fn check_directory(dir: &Path, nonempty: bool) -> Result<(), MountError> {
    let path = || dir.to_owned();
    let metadata = std::fs::metadata(dir).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT) => MountError::Missing(path()),
        Some(libc::ENOTDIR) => MountError::NotDirectory(path()),
        Some(libc::ENOTCONN) => MountError::Dead(path()),
        _ => MountError::Directory { path: path(), source },
    })?;
    if !metadata.is_dir() {
        return Err(MountError::NotDirectory(path()));
    }
    if mount_entry(dir).is_some_and(|entry| entry.kind == TYPE) {
        return Err(MountError::Busy(path()));
    }
    if !nonempty {
        let failed = |source| MountError::Directory { path: path(), source };
        if std::fs::read_dir(dir).map_err(failed)?.next().is_some() {
            return Err(MountError::NotEmpty(path()));
        }
    }
    Ok(())
}

/// Opens the device.
///
/// # Errors
/// [`MountError`] if there is none or it may not be opened.
pub fn open_device() -> Result<OwnedFd, MountError> {
    let opened = File::options().read(true).write(true).open(DEVICE);
    opened.map(OwnedFd::from).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => MountError::NoDevice,
        Some(libc::EACCES | libc::EPERM) => MountError::DeviceDenied,
        _ => MountError::Device(error),
    })
}

/// Attaches a file system that is to be served on the descriptor returned.
///
/// # Errors
/// [`MountError`]; nothing is mounted then.
pub fn attach(attach: &Attach) -> Result<(OwnedFd, Attached), MountError> {
    check_directory(&attach.dir, attach.nonempty)?;
    let device = open_device()?;
    let failed = |source: io::Error| MountError::Mount { path: attach.dir.clone(), source };
    let metadata = std::fs::metadata(&attach.dir).map_err(failed)?;
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        metadata.mode() & libc::S_IFMT,
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if attach.allow_other {
        data.push_str(",allow_other");
    }
    let data = std::ffi::CString::new(data).map_err(|error| failed(error.into()))?;
    match rustix::mount::mount(&attach.source, &attach.dir, TYPE, attach.flags, data.as_c_str()) {
        Ok(()) => Ok((device, Attached::at(&attach.dir, false))),
        Err(Errno::PERM) => Ok((attach_by_helper(attach)?, Attached::at(&attach.dir, true))),
        Err(Errno::NODEV) => Err(MountError::NoDevice),
        Err(error) => Err(failed(error.into())),
    }
}

/// Has `fusermount3` mount, and receives the descriptor that it opened (unix(7), SCM_RIGHTS).
fn attach_by_helper(attach: &Attach) -> Result<OwnedFd, MountError> {
    let helper_failed = |error: io::Error| MountError::Helper(error.to_string());
    let (ours, theirs) = UnixStream::pair().map_err(helper_failed)?;
    // A comma or backslash in the name would be read as the border of an option.
    let source: String = attach
        .source
        .to_string_lossy()
        .chars()
        .map(|c| if matches!(c, ',' | '\\') { '_' } else { c })
        .collect();
    let mut options = format!("default_permissions,subtype=strongroom,fsname={source}");
    for (flag, name) in [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::NOEXEC, "noexec"),
        (MountFlags::NOATIME, "noatime"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
    ] {
        if attach.flags.contains(flag) {
            options.push(',');
            options.push_str(name);
        }
    }
    if attach.allow_other {
        options.push_str(",allow_other");
    }
    // The helper finds its end of the socket at the number in the environment; standard input needs no unsafe code.
    let child = Command::new("fusermount3")
        .args(["-o", &options, "--"])
        .arg(&attach.dir)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let child = match child {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(MountError::NoHelper),
        other => other.map_err(helper_failed)?,
    };
    // The parent's copy of the helper's end went with the command.
    let received = receive_descriptor(&ours);
    drop(ours);
    let output = child.wait_with_output().map_err(helper_failed)?;
    match received {
        Some(device) if output.status.success() => Ok(device),
        _ => {
            let text = String::from_utf8_lossy(&output.stderr);
            if text.contains("user_allow_other") {
                return Err(MountError::AllowOther);
            }
            Err(MountError::Helper(text.trim().trim_start_matches("fusermount3: ").to_owned()))
        }
    }
}

fn receive_descriptor(socket: &UnixStream) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    let mut buffers = [io::IoSliceMut::new(&mut byte)];
    loop {
        match rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(_) => return None,
            Ok(_) => break,
        }
    }
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

struct Entry {
    device: String,
    kind: String,
}

/// The topmost mount on a directory (proc(5), mountinfo).
fn mount_entry(dir: &Path) -> Option<Entry> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    find_entry(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, &dir)
}

/// Whether a mount of this program with this device is on a directory, given without links. Asks nothing of the mount itself.
pub fn is_at(dir: &Path, device: &str) -> bool {
    let Ok(mountinfo) = std::fs::read_to_string("/proc/self/mountinfo") else { return false };
    find_entry(&mountinfo, dir).is_some_and(|entry| entry.kind == TYPE && entry.device == device)
}

fn find_entry(mountinfo: &str, dir: &Path) -> Option<Entry> {
    mountinfo.lines().rev().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let device = fields.nth(2)?;
        let point = fields.nth(1)?;
        (unescape(point) == dir.as_os_str().as_bytes()).then(|| Entry {
            device: device.to_owned(),
            kind: kind.split(' ').next().unwrap_or_default().to_owned(),
        })
    })
}

/// Space, tab, newline and backslash are written as `\` and three octal digits there.
fn unescape(field: &str) -> Vec<u8> {
    let mut out = vec![];
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits =
            tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

impl Attached {
    fn at(dir: &Path, helper: bool) -> Attached {
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let device = mount_entry(&dir).filter(|entry| entry.kind == TYPE).map(|entry| entry.device);
        Attached { dir, device, helper }
    }

    /// The directory, without links.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Major and minor number of the device.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    fn still_there(&self) -> bool {
        mount_entry(&self.dir).is_some_and(|entry| Some(&entry.device) == self.device.as_ref())
    }

    /// Lets the kernel read ahead in the largest requests; without the privilege for it, reads are smaller.
    pub fn read_ahead(&self) {
        if let Some(device) = &self.device {
            let _ = std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KIB);
        }
    }

    /// Detaches, if it is still there: cleanly if nobody uses it, otherwise so that it vanishes from sight at once.
    pub fn detach(&self) {
        if !self.still_there() {
            return;
        }
        if !self.helper {
            // Writes what is dirty in mappings, which the lazy way would not wait for.
            match rustix::mount::unmount(&self.dir, UnmountFlags::empty()) {
                Ok(()) => return,
                Err(Errno::BUSY) => {
                    // Nothing more can be done if this fails; the kernel ends the mount with the process.
                    let _ = rustix::mount::unmount(&self.dir, UnmountFlags::DETACH);
                    return;
                }
                Err(_) => {}
            }
        }
        let by_helper = |switch: &str| {
            let status = Command::new("fusermount3")
                .args([switch, "--"])
                .arg(&self.dir)
                .stderr(Stdio::null())
                .status();
            status.is_ok_and(|status| status.success())
        };
        if !by_helper("-u") {
            by_helper("-uz");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_is_found_by_its_directory() {
        let info = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                    40 22 0:50 / /mnt/my\\040mail rw,nosuid - fuse.strongroom /etc/c rw\n\
                    41 22 0:51 / /mnt/my\\040mail rw shared:7 - tmpfs none rw\n";
        let entry = find_entry(info, Path::new("/mnt/my mail")).unwrap();
        assert_eq!((entry.device.as_str(), entry.kind.as_str()), ("0:51", "tmpfs"));
        assert!(find_entry(info, Path::new("/mnt")).is_none());
        assert_eq!(unescape("a\\134b\\0"), b"a\\b\\0");
    }

    #[test]
    fn what_is_wrong_with_a_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(check_directory(&dir.path().join("none"), false), Err(MountError::Missing(_))));
        assert!(matches!(check_directory(&file, false), Err(MountError::NotDirectory(_))));
        assert!(matches!(check_directory(dir.path(), false), Err(MountError::NotEmpty(_))));
        assert!(check_directory(dir.path(), true).is_ok());
        std::fs::remove_file(&file).unwrap();
        assert!(check_directory(dir.path(), false).is_ok());
    }
}
