//! Token buckets: what a holder may take in a second, over all its sessions.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use strongroom_contracts::SessionLimits;

/// A bucket that holds one second's worth. A request may overdraw it, and the next one waits until that is made good:
/// so a request larger than a second's worth passes too, at the same rate.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Tokens in millionths, below zero when overdrawn.
    level: i128,
    since: Instant,
}

impl Bucket {
    fn new(rate: u64) -> Bucket {
        let rate = rate.max(1);
        Bucket { rate, state: Mutex::new(State { level: full(rate), since: Instant::now() }) }
    }

    /// Takes tokens if the bucket is not overdrawn; otherwise how long to wait.
    fn take(&self, count: u64, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock();
        let passed = now.saturating_duration_since(state.since);
        let gained = i128::from(self.rate) * i128::try_from(passed.as_micros()).unwrap_or(i128::MAX >> 65);
        state.level = (state.level + gained).min(full(self.rate));
        state.since = state.since.max(now);
        if state.level >= 0 {
            state.level -= i128::from(count) * 1_000_000;
            return Ok(());
        }
        let micros = (-state.level).div_ceil_by(i128::from(self.rate));
        Err(Duration::from_micros(micros.clamp(1, 1_000_000)))
    }
}

trait DivCeil {
    fn div_ceil_by(self, divisor: Self) -> u64;
}

impl DivCeil for i128 {
    /// For a positive divisor.
    fn div_ceil_by(self, divisor: i128) -> u64 {
        u64::try_from((self + divisor - 1) / divisor).unwrap_or(u64::MAX)
    }
}

fn full(rate: u64) -> i128 {
    i128::from(rate) * 1_000_000
}

/// What a request takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes it reads at most.
    pub read: u64,
    /// Bytes it writes.
    pub write: u64,
}

/// The buckets of one holder.
#[derive(Debug, Default)]
pub struct Rates {
    read: Option<Bucket>,
    write: Option<Bucket>,
    ops: Option<Bucket>,
}

impl Rates {
    /// Full buckets.
    pub fn new(limits: &SessionLimits) -> Rates {
        Rates {
            read: limits.read_rate.map(Bucket::new),
            write: limits.write_rate.map(Bucket::new),
            ops: limits.op_rate.map(Bucket::new),
        }
    }

    /// Whether nothing is limited.
    pub fn is_free(&self) -> bool {
        self.read.is_none() && self.write.is_none() && self.ops.is_none()
    }

    /// Whether they are made for these limits.
    pub fn are_for(&self, limits: &SessionLimits) -> bool {
        let rate = |bucket: &Option<Bucket>| bucket.as_ref().map(|bucket| bucket.rate);
        let wanted = |limit: Option<u64>| limit.map(|rate| rate.max(1));
        rate(&self.read) == wanted(limits.read_rate)
            && rate(&self.write) == wanted(limits.write_rate)
            && rate(&self.ops) == wanted(limits.op_rate)
    }

    /// Takes what a request costs, calling `wait` for as long as there is none; `false` if `wait` gave up.
    pub fn take(&self, cost: Cost, mut wait: impl FnMut(Duration) -> bool) -> bool {
        let taken = [(&self.ops, 1), (&self.read, cost.read), (&self.write, cost.write)];
        for (bucket, count) in taken {
            let Some(bucket) = bucket.as_ref().filter(|_| count > 0) else { continue };
            while let Err(time) = bucket.take(count, Instant::now()) {
                if !wait(time) {
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate_and_one_second_ahead() {
        let bucket = Bucket::new(1000);
        let start = Instant::now();
        assert_eq!(bucket.take(1000, start), Ok(()));
        // Larger than a second's worth: passes, and is paid for afterwards.
        assert_eq!(bucket.take(2000, start), Ok(()));
        let wait = bucket.take(1, start).unwrap_err();
        assert!(wait > Duration::from_millis(900));
        assert!(bucket.take(1, start + Duration::from_millis(1900)).is_err());
        assert_eq!(bucket.take(1, start + Duration::from_secs(2)), Ok(()));
        // Idle time is saved for one second only.
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.take(1001, later), Ok(()));
        assert!(bucket.take(1, later).is_err());
    }

    #[test]
    fn waiting_can_be_given_up() {
        let rates = Rates::new(&SessionLimits { write_rate: Some(1), ..SessionLimits::default() });
        assert!(rates.take(Cost { write: 100, read: 0 }, |_| false));
        assert!(!rates.take(Cost { write: 1, read: 0 }, |_| false));
        assert!(rates.take(Cost { write: 0, read: 1 << 20 }, |_| false));
        assert!(Rates::default().is_free());
    }
}
