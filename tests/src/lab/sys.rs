//! The system calls that no safe crate wraps: making a process in new namespaces, and hearing signals as a file.
//!
//! The only module of this crate with `unsafe`. It decides nothing.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions};

/// Namespaces for [`clone_exec`], as `clone(2)` flags.
pub(super) const NEW_USER: c_int = libc::CLONE_NEWUSER;
/// Mounts, processes, network, host name and System V IPC: what makes a guest.
pub(super) const NEW_MACHINE: c_int =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;

/// Start `argv` in the new namespaces `flags`, with the three given descriptors as its standard ones.
///
/// Unlike `unshare` and `fork`, this makes the process itself the first of its PID namespace, and is safe to call from
/// a process with several threads. Every other descriptor must be close-on-exec (Rust's are).
///
/// The child executes nothing before `prepare` has returned: a program begun without a user id in its namespace loses
/// its capabilities at execve (capabilities(7)), so the identity map must be there first. If `prepare` fails, the child
/// ends without having begun.
pub(super) fn clone_exec<E: From<io::Error>>(
    flags: c_int,
    argv: &[CString],
    environment: &[CString],
    stdio: [BorrowedFd<'_>; 3],
    prepare: impl FnOnce(Pid) -> Result<(), E>,
) -> Result<Pid, E> {
    // Copies above 2, so that no dup2 below overwrites one that is still needed.
    let copies = [
        fcntl_dupfd_cloexec(stdio[0], 3).map_err(io::Error::from)?,
        fcntl_dupfd_cloexec(stdio[1], 3).map_err(io::Error::from)?,
        fcntl_dupfd_cloexec(stdio[2], 3).map_err(io::Error::from)?,
    ];
    let raw = copies.each_ref().map(AsRawFd::as_raw_fd);
    let program = argv.first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "empty command"))?;
    let argv_pointers = null_terminated(argv);
    let environment_pointers = null_terminated(environment);
    let (prepared, go) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let gate = [prepared.as_raw_fd(), go.as_raw_fd()];

    // SAFETY: without CLONE_VM and with a null stack, clone is fork: the child has its own copy of memory. It may be a
    // copy of a process with threads, so until execve it calls async-signal-safe functions only and allocates nothing.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: as above; all pointers were made before the clone and are null-terminated.
        unsafe { become_program(program, &argv_pointers, &environment_pointers, raw, gate) }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error().into());
    }
    let pid = c_int::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("the kernel returned an impossible process id"))?;
    let begun =
        prepare(pid).and_then(|()| Ok(rustix::io::write(&go, b"g").map(drop).map_err(io::Error::from)?));
    if let Err(error) = begun {
        // Closing the pipe ends the child; it is collected here because the caller never learns of it.
        drop(go);
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        return Err(error);
    }
    Ok(pid)
}

fn null_terminated(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// # Safety
/// Only in a fresh child; the pointer arrays end in null.
unsafe fn become_program(
    program: &CStr,
    argv: &[*const c_char],
    environment: &[*const c_char],
    stdio: [c_int; 3],
    [prepared, go]: [c_int; 2],
) -> ! {
    // SAFETY: plain system calls on values owned by this process.
    unsafe {
        // The parent's end must be the only one left, or its death would not be noticed.
        libc::close(go);
        let mut byte = [0_u8; 1];
        if libc::read(prepared, byte.as_mut_ptr().cast(), 1) != 1 {
            libc::_exit(127);
        }
        for (target, source) in (0..).zip(stdio) {
            if libc::dup2(source, target) < 0 {
                libc::_exit(127);
            }
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::setsid();
        libc::execve(program.as_ptr(), argv.as_ptr(), environment.as_ptr());
        libc::_exit(127)
    }
}

/// Let `command` die with the process that starts it (`PR_SET_PDEATHSIG`), so that killing `lab exec` leaves nothing
/// running in the guest; and let it hear the signals that [`Signals::block`] keeps from this process.
pub(super) fn foreground_child(command: &mut Command) {
    // SAFETY: the closure makes async-signal-safe calls only and touches no memory but its own stack.
    unsafe {
        command.pre_exec(|| {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            if libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) == 0
                && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
            {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
}

/// Signals of this process, received through a descriptor instead of handlers.
pub(super) struct Signals(OwnedFd);

/// One received signal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// Its number, as in `signal(7)`.
    pub(super) number: c_int,
    /// Whether a terminal or the kernel raised it for the whole process group, rather than `kill(2)`.
    pub(super) from_kernel: bool,
}

impl Signals {
    /// Block `numbers` in this thread and receive them here from now on. Call before any other thread exists.
    pub(super) fn block(numbers: &[c_int]) -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before use and outlives the calls.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for number in numbers {
                libc::sigaddset(&raw mut set, *number);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd just returned this descriptor; nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wait for the next signal.
    pub(super) fn next(&self) -> io::Result<Received> {
        // The start of `struct signalfd_siginfo` (signalfd(2)): ssi_signo u32, ssi_errno i32, ssi_code i32.
        let mut buffer = [0_u8; size_of::<libc::signalfd_siginfo>()];
        loop {
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let field = |at: usize| {
            let bytes = buffer.get(at..at + 4).and_then(|b| b.try_into().ok()).unwrap_or([0; 4]);
            i32::from_ne_bytes(bytes)
        };
        Ok(Received { number: field(0), from_kernel: field(8) == libc::SI_KERNEL })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Make the mount at `path`, and every mount below it, read-only (`mount_setattr(2)`, Linux 5.12).
pub(super) fn make_tree_read_only(path: &CStr) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is null-terminated, the structure is valid for its stated size, both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Send `signal` to every other process of this PID namespace. Refused unless this process is its first: anywhere else
/// that would be every process of the machine.
pub(super) fn kill_everyone_else(signal: Signal) -> io::Result<()> {
    if rustix::process::getpid() != Pid::INIT {
        return Err(io::Error::other("not the first process of a PID namespace"));
    }
    // SAFETY: kill touches no memory of ours.
    if unsafe { libc::kill(-1, signal.as_raw()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The beginning of a file, mapped to be read.
pub(crate) struct Mapping(usize);

impl Mapping {
    /// What of a file is mapped, whatever its size.
    pub(crate) const LENGTH: usize = 16 * Mapping::PAGE;
    pub(crate) const PAGE: usize = 4096;

    /// Maps a file, shared with everybody who has it open, and touches every page.
    pub(crate) fn of(file: &std::fs::File) -> io::Result<Mapping> {
        // SAFETY: a mapping at an address of the kernel's choice replaces nothing, MAP_POPULATE reads it without this process
        // looking at it, and nobody gets a reference to it.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Mapping::LENGTH,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                std::os::fd::AsRawFd::as_raw_fd(file),
                0,
            )
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Mapping(mapped.addr())) }
    }

    /// The pages that are there, up to the first one that is not, asking nobody.
    pub(crate) fn pages(&self) -> Vec<Vec<u8>> {
        let page = |at| {
            let mut bytes = vec![0_u8; Mapping::PAGE];
            let to = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let from = libc::iovec {
                iov_base: std::ptr::without_provenance_mut(self.0 + at * Mapping::PAGE),
                iov_len: bytes.len(),
            };
            // SAFETY: the kernel writes at most the length of `bytes` into it. What it reads from is mapped; where nothing is behind a page,
            // which would be a signal for a load, it says EFAULT.
            let count = unsafe { libc::process_vm_readv(libc::getpid(), &to, 1, &from, 1, 0) };
            (count == Mapping::PAGE as isize).then_some(bytes)
        };
        (0..Mapping::LENGTH / Mapping::PAGE).map_while(page).collect()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `of`, and nobody has a reference to it.
        unsafe { libc::munmap(std::ptr::without_provenance_mut(self.0), Mapping::LENGTH) };
    }
}
