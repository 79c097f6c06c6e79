//! The few system calls that no crate wraps safely: waiting for signals, and writing what cannot be read.
#![allow(
    unsafe_code,
    reason = "sigwait(3), pthread_sigmask(3), and writev(2) of bytes that are not there have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

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
