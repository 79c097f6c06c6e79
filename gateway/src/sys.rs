#![allow(unsafe_code, reason = "system calls that rustix does not offer; each with its reason")]
//! System calls that need `libc`: the file-system identity of a thread, chmod of an O_PATH descriptor, the umask, the
//! scheduling of a thread, fanotify and file handles.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// `CAP_DAC_OVERRIDE`, `CAP_DAC_READ_SEARCH`, `CAP_MKNOD` (capabilities(7)): setfsuid takes them away from a thread, and
/// the guest's kernel has already checked modes with what it knows of the caller's groups.
const KEPT_CAPABILITIES: u32 = 1 << 1 | 1 << 2 | 1 << 27;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const SYS_FCHMODAT2: libc::c_long = 452;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets the umask of the process to 0: the guests' kernels have applied theirs.
pub(crate) fn clear_umask() {
    // SAFETY: umask(2) takes a number and cannot fail.
    unsafe { libc::umask(0) };
}

/// The thread's file-system user and group, until dropped. Not `Send`: it belongs to the thread that made it.
pub(crate) struct Identity {
    changed: bool,
    _thread: std::marker::PhantomData<*const ()>,
}

fn set_fsids(uid: u32, gid: u32) {
    // SAFETY: both take numbers, act on the calling thread and report nothing but the former value.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}

/// The present file-system ids; a value that is no id changes nothing (setfsuid(2)).
fn fsids() -> (u32, u32) {
    // SAFETY: as above.
    let (uid, gid) = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    (uid.cast_unsigned(), gid.cast_unsigned())
}

fn keep_capabilities() -> Result<(), Errno> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 of capget(2) reads a header and writes two data structures, which these are.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } != 0 {
        return Err(last_error());
    }
    data[0].effective |= data[0].permitted & KEPT_CAPABILITIES;
    // SAFETY: version 3 of capset(2) reads a header and two data structures, which these are.
    if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) } != 0 {
        return Err(last_error());
    }
    Ok(())
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

impl Identity {
    /// The gateway's own identity: changes nothing.
    pub(crate) fn own() -> Identity {
        Identity { changed: false, _thread: std::marker::PhantomData }
    }

    /// Makes new files of this thread belong to `uid` and `gid`.
    ///
    /// # Errors
    /// `EPERM` if the process may not (it is not root).
    pub(crate) fn become_user(uid: u32, gid: u32) -> Result<Identity, Errno> {
        if (uid, gid) == (0, 0) {
            return Ok(Identity::own());
        }
        let identity = Identity { changed: true, _thread: std::marker::PhantomData };
        set_fsids(uid, gid);
        if fsids() != (uid, gid) {
            return Err(Errno::PERM);
        }
        if uid != 0 {
            keep_capabilities()?;
        }
        Ok(identity)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if self.changed {
            set_fsids(0, 0);
        }
    }
}

/// Begins to write a file's dirty pages to the disk, without waiting for them (sync_file_range(2)).
pub(crate) fn begin_writeback(file: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: takes an open descriptor and numbers; touches no memory of ours.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// Sets the mode of what a descriptor refers to, also of an O_PATH descriptor (fchmodat2(2), Linux 6.6).
///
/// # Errors
/// `ENOSYS` from an older kernel, and those of chmod(2).
pub(crate) fn chmod_fd(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for the length of the call, the path is a constant with its NUL.
    let result = unsafe {
        libc::syscall(SYS_FCHMODAT2, fd.as_raw_fd(), c"".as_ptr(), mode & 0o7777, libc::AT_EMPTY_PATH)
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// The lowest real-time priority: enough to run before everything that has none (sched(7)).
const URGENT: i32 = 1;

/// How soon a thread runs when more of them want to than there are processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As others do.
    Usual,
    /// Before all others (SCHED_RR), where the process may: by `CAP_SYS_NICE` or a limit `RTPRIO` of 1.
    Urgent,
}

/// Sets the pace of the calling thread. Threads that it starts have the usual one.
///
/// # Errors
/// `EPERM` where the process may not; the thread goes on as before.
pub(crate) fn set_pace(pace: Pace) -> Result<(), Errno> {
    let (policy, priority) = match pace {
        Pace::Usual => (libc::SCHED_OTHER, 0),
        Pace::Urgent => (libc::SCHED_RR, URGENT),
    };
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: 0 means the calling thread; the parameters are read during the call only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            policy | libc::SCHED_RESET_ON_FORK,
            &raw const parameters,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Watches all changes in the file system that a directory is on (fanotify(7)). The descriptor does not block.
///
/// # Errors
/// Those of fanotify_init(2) and fanotify_mark(2); `EPERM` without CAP_SYS_ADMIN.
pub(crate) fn watch_file_system(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::FAN_CLASS_NOTIF
        | libc::FAN_CLOEXEC
        | libc::FAN_NONBLOCK
        | libc::FAN_REPORT_DFID_NAME
        | libc::FAN_REPORT_FID
        | libc::FAN_REPORT_TARGET_FID;
    // SAFETY: fanotify_init(2) takes numbers and returns a descriptor or an error.
    let fd = unsafe { libc::fanotify_init(flags, 0) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let events = unsafe { OwnedFd::from_raw_fd(fd) };
    let mask = libc::FAN_MODIFY
        | libc::FAN_ATTRIB
        | libc::FAN_CREATE
        | libc::FAN_DELETE
        | libc::FAN_MOVED_FROM
        | libc::FAN_MOVED_TO
        | libc::FAN_ONDIR;
    let how = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    // SAFETY: both descriptors are open for the length of the call, the path is a constant with its NUL.
    let result =
        unsafe { libc::fanotify_mark(events.as_raw_fd(), how, mask, root.as_raw_fd(), c".".as_ptr()) };
    if result == 0 { Ok(events) } else { Err(last_error()) }
}

/// The longest file handle (`MAX_HANDLE_SZ`, fcntl.h).
const MAX_HANDLE: usize = 128;

#[repr(C)]
struct FileHandle {
    length: u32,
    kind: i32,
    bytes: [u8; MAX_HANDLE],
}

/// An O_PATH descriptor of the object with this handle, in the file system that `mount` is on (open_by_handle_at(2)).
///
/// # Errors
/// `ESTALE` if there is no such object; `EPERM` without CAP_DAC_READ_SEARCH; `EINVAL` for a handle that is too long.
pub(crate) fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, bytes: &[u8]) -> Result<OwnedFd, Errno> {
    let mut handle = FileHandle { length: 0, kind, bytes: [0; MAX_HANDLE] };
    let Some(room) = handle.bytes.get_mut(..bytes.len()) else { return Err(Errno::INVAL) };
    room.copy_from_slice(bytes);
    // At most MAX_HANDLE.
    handle.length = bytes.len() as u32;
    let flags = libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: the structure has the layout of `struct file_handle` with its bytes behind it, and is only read.
    let fd =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const handle, flags) };
    match i32::try_from(fd) {
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_error()),
    }
}
