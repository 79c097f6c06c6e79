//! The gateway's clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time that contracts are judged by.
pub trait Clock: Send + Sync {
    /// Microseconds since the Unix epoch; 0 before it.
    fn now_us(&self) -> u64;

    /// Seconds since the Unix epoch.
    fn now(&self) -> u64 {
        self.now_us() / 1_000_000
    }
}

/// The system's real-time clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_us(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}
