//! Notices requests that take long, so that their connection is read on by another thread.
//!
//! A thread that carries out a request first marks its place with the present tick. One watching thread looks over the
//! marks every millisecond while there are any: a mark that is older than a tick belongs to a slow request. The usual fast
//! request costs two stores, and no thread is woken for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How often marks are looked over. A slow request holds up those behind it for at most twice this time.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a mark after which the watcher sleeps until it is woken.
const QUIET: u32 = 50;

/// The marks.
pub struct Watch {
    marks: Box<[AtomicU64]>,
    /// Places at and above have never been used.
    high: AtomicUsize,
    free: Mutex<Vec<usize>>,
    tick: AtomicU64,
    asleep: AtomicBool,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Watch {
    /// Room for `places` connections.
    pub fn new(places: usize) -> Arc<Watch> {
        Arc::new(Watch {
            marks: (0..places).map(|_| AtomicU64::new(0)).collect(),
            high: AtomicUsize::new(0),
            free: Mutex::default(),
            tick: AtomicU64::new(1),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        })
    }

    /// A place for a connection; `None` if all are taken.
    pub fn enter(&self) -> Option<usize> {
        let mut free = self.free.lock();
        if let Some(place) = free.pop() {
            return Some(place);
        }
        let place = self.high.load(Ordering::Relaxed);
        (place < self.marks.len()).then(|| {
            self.high.store(place + 1, Ordering::Release);
            place
        })
    }

    /// Gives a place back.
    pub fn leave(&self, place: usize) {
        self.end(place);
        self.free.lock().push(place);
    }

    /// A request begins.
    pub fn begin(&self, place: usize) {
        let Some(mark) = self.marks.get(place) else { return };
        mark.store(self.tick.load(Ordering::Relaxed), Ordering::SeqCst);
        // The watcher first says that it sleeps and then looks once more: one of the two sees the other.
        if self.asleep.load(Ordering::SeqCst) {
            drop(self.lock.lock());
            self.wake.notify_all();
        }
    }

    /// The request is finished.
    pub fn end(&self, place: usize) {
        if let Some(mark) = self.marks.get(place) {
            mark.store(0, Ordering::Release);
        }
    }

    /// Ends [`Watch::run`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(self.lock.lock());
        self.wake.notify_all();
    }

    /// Watches until [`Watch::stop`]. `slow` is called with the place of each slow request; if it returns `false`, nothing
    /// could be done, and it is called again.
    pub fn run(&self, slow: impl Fn(usize) -> bool) {
        let mut quiet = 0;
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
            let now = self.tick.fetch_add(1, Ordering::Relaxed) + 1;
            quiet = if self.look(now, &slow) { 0 } else { quiet + 1 };
            if quiet >= QUIET {
                self.sleep();
                quiet = 0;
            }
        }
    }

    /// Whether there are marks.
    fn look(&self, now: u64, slow: impl Fn(usize) -> bool) -> bool {
        let mut any = false;
        let used = self.high.load(Ordering::Acquire);
        for (place, mark) in self.marks.iter().enumerate().take(used) {
            let since = mark.load(Ordering::SeqCst);
            if since == 0 {
                continue;
            }
            any = true;
            // At least one whole tick.
            if now.wrapping_sub(since) >= 2 && slow(place) {
                // A request that has begun meanwhile keeps its mark.
                let _ = mark.compare_exchange(since, 0, Ordering::SeqCst, Ordering::SeqCst);
            }
        }
        any
    }

    fn sleep(&self) {
        let mut guard = self.lock.lock();
        self.asleep.store(true, Ordering::SeqCst);
        let used = self.high.load(Ordering::Acquire);
        let busy = self.marks.iter().take(used).any(|mark| mark.load(Ordering::SeqCst) != 0);
        if !busy && !self.stop.load(Ordering::SeqCst) {
            self.wake.wait(&mut guard);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn slow_requests_are_noticed_also_after_a_quiet_time() {
        let watch = Watch::new(2);
        let (told, slow) = mpsc::channel();
        let own = watch.clone();
        let watcher = std::thread::spawn(move || own.run(|place| told.send(place).is_ok()));
        let place = watch.enter().unwrap();
        for _ in 0..3 {
            while !watch.asleep.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            watch.begin(place);
            assert_eq!(slow.recv_timeout(Duration::from_secs(30)), Ok(place));
            watch.end(place);
        }
        assert_eq!(watch.enter(), Some(1));
        assert_eq!(watch.enter(), None);
        watch.leave(place);
        assert_eq!(watch.enter(), Some(place));
        watch.stop();
        watcher.join().unwrap();
    }
}
