//! The few system calls that no crate wraps safely: waiting for signals, writing what cannot be read, opening by handles.
#![allow(
    unsafe_code,
    reason = "sigwait(3), pthread_sigmask(3), open_by_handle_at(2), and writev(2) of bytes that are not there have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::asking::Called;

/// `struct file_handle` (open_by_handle_at(2)) as `fuse_encode_fh` of the kernel makes it.
#[repr(C)]
struct FileHandle {
    length: libc::c_uint,
    kind: libc::c_int,
    bytes: [u32; 3],
}

/// `FILEID_INO64_GEN`: the inode number in two halves, and the generation.
const NUMBER_AND_GENERATION: libc::c_int = 0x81;

/// An O_PATH descriptor of a file that the kernel knows, in the file system that `mount` was opened on. Nothing is asked for.
///
/// # Errors
/// `ESTALE` if the kernel does not know it; `EPERM` without CAP_DAC_READ_SEARCH.
pub fn open_by_handle(mount: &OwnedFd, file: Called) -> Result<OwnedFd, Errno> {
    let Called { number, generation } = file;
    let bytes = [(number >> 32) as u32, number as u32, generation as u32];
    let handle = FileHandle { length: size_of_val(&bytes) as u32, kind: NUMBER_AND_GENERATION, bytes };
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the structure has the layout of `struct file_handle` with its bytes behind it, and is only read.
    let fd =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const handle, flags) };
    match i32::try_from(fd) {
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// The signals that ask the mount to end.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Writes a message and one byte more, which is not there: whoever takes the message apart fails with EFAULT when it comes to that one.
pub fn write_unreadable(to: &OwnedFd, message: &[u8]) {
    let parts = [
        libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() },
        // The first page is never mapped (vm.mmap_min_addr), and nothing is ever read from there.
        libc::iovec { iov_base: std::ptr::without_provenance_mut(1), iov_len: 1 },
    ];
    // SAFETY: the kernel only reads, from a slice that outlives the call, and from an address that it checks itself. What it
    // answers is known beforehand.
    unsafe {
        libc::writev(to.as_raw_fd(), parts.as_ptr(), 2);
    }
}

/// The set of signals that end the mount, blocked in every thread started after [`EndSignals::block`].
pub struct EndSignals(libc::sigset_t);

impl EndSignals {
    /// Blocks the signals in this thread and those it starts from now on.
    ///
    /// # Errors
    /// The system's, which there should be none of.
    pub fn block() -> io::Result<EndSignals> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set that it is given, and the others take a set so initialised; no pointer
        // outlives the call.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in ENDING {
                libc::sigaddset(&mut set, signal);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) {
                0 => set,
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        };
        Ok(EndSignals(set))
    }

    /// Waits until one of them comes; returns which.
    pub fn wait(&self) -> libc::c_int {
        let mut signal = 0;
        // SAFETY: the set is initialised, and `signal` is a place for the number.
        // An error means a set without signals, which this is not; waiting again would spin.
        unsafe {
            libc::sigwait(&self.0, &mut signal);
        }
        signal
    }
}
