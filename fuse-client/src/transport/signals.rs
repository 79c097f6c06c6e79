//! Whether a thread that waits for an answer is being killed. `fuser` 0.18 answers FUSE_INTERRUPT with "not supported", so the
//! kernel tells nobody; `/proc/PID/status` does (proc(5)).

/// The signal masks of a thread, a bit for each signal, signal 1 lowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Masks {
    pending: u64,
    blocked: u64,
    ignored: u64,
}

/// Bit of SIGKILL; a default action that ends a process reaches its threads as this one (signal(7)).
const KILL: u64 = 1 << (libc::SIGKILL - 1);

impl Masks {
    /// The masks of a thread; `None` if it is gone or not to be seen.
    pub(super) fn of(thread: u32) -> Option<Masks> {
        Masks::parse(&std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?)
    }

    fn parse(status: &str) -> Option<Masks> {
        let mut masks = Masks::default();
        for line in status.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let bits = || u64::from_str_radix(value.trim(), 16).ok();
            match key {
                "SigPnd" | "ShdPnd" => masks.pending |= bits()?,
                "SigBlk" => masks.blocked = bits()?,
                "SigIgn" => masks.ignored = bits()?,
                _ => {}
            }
        }
        Some(masks)
    }

    /// Whether the thread is being killed.
    pub(super) fn killed(self) -> bool {
        self.pending & KILL != 0
    }

    /// Whether a signal is there that would interrupt a system call.
    pub(super) fn interrupted(self) -> bool {
        self.killed() || self.pending & !self.blocked & !self.ignored != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(pending: &str, shared: &str, blocked: &str, ignored: &str) -> Masks {
        let text = format!(
            "Name:\tcat\nPid:\t7\nSigQ:\t0/63\nSigPnd:\t{pending}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t0\n"
        );
        Masks::parse(&text).unwrap()
    }

    #[test]
    fn a_killed_thread_is_known_by_sigkill() {
        assert!(masks("0000000000000100", "0", "0", "0").killed());
        assert!(!masks("0", "0000000000000002", "0", "0").killed());
    }

    #[test]
    fn blocked_and_ignored_signals_interrupt_nothing() {
        assert!(masks("0", "2", "0", "0").interrupted());
        assert!(!masks("0", "2", "2", "0").interrupted());
        assert!(!masks("0", "2", "0", "2").interrupted());
        assert!(masks("100", "0", "fffffffffffffeff", "0").interrupted());
    }

    #[test]
    fn this_thread_can_be_read() {
        assert!(!Masks::of(std::process::id()).unwrap().killed());
        assert_eq!(Masks::of(u32::MAX), None);
    }
}
