//! Keeps processors from halting while requests follow each other closely.
//!
//! A request that crosses from guest to guest wakes several threads, one after the other, mostly on processors that have
//! nothing else to do. A virtual processor that has halted is woken through the hypervisor, which takes longer than all
//! that the request itself needs. While requests come thick the wait is therefore spent awake: whoever holds
//! `/dev/cpu_dma_latency` may say how long a wake-up may take, and with 0 us the kernel's idle loop polls (PM QoS,
//! Documentation/power/pm_qos_interface.rst). Programs that want a processor get it as before, and nothing polls for longer
//! than a moment after the last request of a burst. Where the hypervisor has too few processors for its guests, polling
//! would take them from others: time that it has stolen (proc(5), /proc/stat) ends it for a while.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

const DEVICE: &str = "/dev/cpu_dma_latency";
/// What the kernel takes for "no wish" (PM_QOS_CPU_LATENCY_DEFAULT_VALUE), in microseconds.
const ANY: i32 = 2_000_000_000;
/// The span in which requests are counted.
const SPAN: Duration = Duration::from_millis(4);
/// Requests within a span, after its first, that make a burst: five hundred a second.
const THICK: u64 = 2;
/// How many spans of a burst go by before stolen time is looked at again.
const SPANS: u32 = 25;
/// The part of the processors' time, in percent, that may be stolen.
const STOLEN: u64 = 5;
/// How long processors may halt again after too much was stolen.
const REST: Duration = Duration::from_secs(10);

/// Counts requests, and keeps processors awake during bursts.
#[derive(Debug)]
pub struct Awake {
    /// `None`: processors may always halt.
    keeper: Option<(Arc<Count>, Thread)>,
}

#[derive(Debug)]
struct Count {
    begun: Instant,
    requests: AtomicU64,
    /// When the span began in which requests are counted, in microseconds since `begun`.
    span: AtomicU64,
    /// Requests before it.
    before: AtomicU64,
    /// No burst begins before, in microseconds since `begun`.
    rests_until: AtomicU64,
    burst: AtomicBool,
    ended: AtomicBool,
}

impl Awake {
    /// Lets processors halt at any time.
    pub const fn never() -> Awake {
        Awake { keeper: None }
    }

    /// Keeps them awake during bursts if that is wanted, and possible: it takes root, the device and a thread. Without these it is
    /// slower, not wrong, so that nobody is told.
    pub fn if_wanted(wanted: bool) -> Awake {
        if !wanted {
            return Awake::never();
        }
        let device = OpenOptions::new().write(true).open(DEVICE);
        device.and_then(Awake::with).unwrap_or_else(|_| Awake::never())
    }

    fn with(device: File) -> io::Result<Awake> {
        let count = Arc::new(Count::new());
        let own = count.clone();
        let watcher = std::thread::Builder::new().name("awake".into()).spawn(move || {
            // Without the device there is nothing to be done, and nothing is lost but time.
            let _ = keep(&own, device);
        })?;
        Ok(Awake { keeper: Some((count, watcher.thread().clone())) })
    }

    /// Counts a request.
    pub fn request(&self) {
        if let Some((count, watcher)) = &self.keeper
            && count.begins_burst()
        {
            watcher.unpark();
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        if let Some((count, watcher)) = &self.keeper {
            count.ended.store(true, Ordering::Relaxed);
            watcher.unpark();
        }
    }
}

impl Count {
    fn new() -> Count {
        Count {
            begun: Instant::now(),
            requests: AtomicU64::new(0),
            span: AtomicU64::new(0),
            before: AtomicU64::new(0),
            rests_until: AtomicU64::new(0),
            burst: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Counts a request; whether a burst begins with it. Counts of threads that come at once may be off by some, which does
    /// no harm.
    fn begins_burst(&self) -> bool {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if self.burst.load(Ordering::Relaxed) {
            return false;
        }
        let now = self.now();
        if now.saturating_sub(self.span.load(Ordering::Relaxed)) > SPAN.as_micros() as u64 {
            self.span.store(now, Ordering::Relaxed);
            self.before.store(requests, Ordering::Relaxed);
            return false;
        }
        requests.saturating_sub(self.before.load(Ordering::Relaxed)) >= THICK
            && now >= self.rests_until.load(Ordering::Relaxed)
            && !self.burst.swap(true, Ordering::Relaxed)
    }
}

/// Waits for bursts, and keeps processors awake during each.
fn keep(count: &Count, mut device: File) -> io::Result<()> {
    while !count.ended.load(Ordering::Relaxed) {
        if !count.burst.load(Ordering::Relaxed) {
            std::thread::park();
            continue;
        }
        device.write_all(&0_i32.to_ne_bytes())?;
        if last(count) {
            let until = count.now() + REST.as_micros() as u64;
            count.rests_until.store(until, Ordering::Relaxed);
        }
        device.write_all(&ANY.to_ne_bytes())?;
        count.burst.store(false, Ordering::Relaxed);
    }
    Ok(())
}

/// Sleeps until the burst is over; whether that is because the hypervisor wants the processors.
fn last(count: &Count) -> bool {
    let mut times = Times::now();
    loop {
        for _ in 0..SPANS {
            let seen = count.requests.load(Ordering::Relaxed);
            std::thread::sleep(SPAN);
            let came = count.requests.load(Ordering::Relaxed) - seen;
            if came < THICK || count.ended.load(Ordering::Relaxed) {
                return false;
            }
        }
        let now = Times::now();
        if let (Some(before), Some(now)) = (times, now)
            && now.stolen_since(before) > STOLEN
        {
            return true;
        }
        times = now;
    }
}

/// Time of all processors since the system started, in ticks.
#[derive(Clone, Copy)]
struct Times {
    all: u64,
    stolen: u64,
}

impl Times {
    fn now() -> Option<Times> {
        Times::read(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// The line `cpu user nice system idle iowait irq softirq steal guest guest_nice`; the last two are in the first two.
    fn read(stat: &str) -> Option<Times> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
        Some(Times { all: ticks.iter().sum(), stolen: *ticks.get(7)? })
    }

    /// In percent.
    fn stolen_since(self, before: Times) -> u64 {
        let all = self.all.saturating_sub(before.all).max(1);
        self.stolen.saturating_sub(before.stolen) * 100 / all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(device: &std::path::Path) -> Vec<i32> {
        let bytes = std::fs::read(device).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|bytes| i32::from_ne_bytes(*bytes)).collect()
    }

    #[test]
    fn a_burst_begins_with_thick_requests_and_ends_without() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let awake = Awake::with(file.reopen().unwrap()).unwrap();
        assert_eq!(written(file.path()), [0; 0]);
        while written(file.path()).is_empty() {
            for _ in 0..THICK * 2 {
                awake.request();
            }
        }
        assert_eq!(written(file.path())[0], 0);
        while !written(file.path()).len().is_multiple_of(2) {
            std::thread::yield_now();
        }
        assert_eq!(*written(file.path()).last().unwrap(), ANY);
    }

    #[test]
    fn single_requests_are_no_burst() {
        let count = Count::new();
        for _ in 0..100 {
            // As if the last one had been long ago.
            count.span.store(0, Ordering::Relaxed);
            while count.now() <= SPAN.as_micros() as u64 {
                std::thread::yield_now();
            }
            assert!(!count.begins_burst());
        }
    }

    #[test]
    fn no_burst_begins_during_a_rest() {
        let count = Count::new();
        count.rests_until.store(u64::MAX, Ordering::Relaxed);
        assert!((0..1000).all(|_| !count.begins_burst()));
        count.rests_until.store(0, Ordering::Relaxed);
        while !count.begins_burst() {}
        assert!(!count.begins_burst(), "it has begun");
    }

    #[test]
    fn stolen_time_is_read() {
        let stat = |stolen: u64| format!("cpu  100 0 50 {} 0 0 0 {stolen} 7 0\ncpu0 1 2 3\n", 850 - stolen);
        let (before, after) = (Times::read(&stat(10)).unwrap(), Times::read(&stat(110)).unwrap());
        assert_eq!((before.all, before.stolen), (1000, 10));
        assert_eq!(after.stolen_since(Times { all: 0, stolen: 10 }), 10);
        assert_eq!(after.stolen_since(after), 0);
        assert!(Times::read("intr 5\n").is_none());
        assert!(Times::read("cpu 1 2 3\n").is_none(), "no kernel that tells of it");
        assert!(Times::now().is_some());
    }
}
