#![allow(unsafe_code, reason = "a system call that rustix does not offer")]
//! The scheduling of threads.

/// The lowest real-time priority: enough to run before everything that has none (sched(7)).
const URGENT: i32 = 1;

/// How soon a thread runs when more of them want to than there are processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As others do.
    Usual,
    /// Before all others (SCHED_RR): for the way to a fence, and no longer.
    Urgent,
}

/// Sets the pace of the calling thread; threads and processes that it starts begin with the usual one. Where it may not
/// (neither `CAP_SYS_NICE` nor a limit `RTPRIO` of 1), it goes on as before.
pub fn set_pace(pace: Pace) {
    let (policy, priority) = match pace {
        Pace::Usual => (libc::SCHED_OTHER, 0),
        Pace::Urgent => (libc::SCHED_RR, URGENT),
    };
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: 0 means the calling thread; the parameters are read during the call only.
    unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            policy | libc::SCHED_RESET_ON_FORK,
            &raw const parameters,
        );
    }
}
