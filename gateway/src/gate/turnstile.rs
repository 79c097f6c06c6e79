//! The way in: what counts the requests inside a session, and what stops them.
//!
//! INVARIANT: an [`Admission`] is made by [`Turnstile::enter`] and nowhere else, never after [`Turnstile::fence`] has
//! returned; and [`Turnstile::drain`] returns only when none is left. As every `Permit` borrows an admission, nothing
//! reaches the data between the end of `drain` and the end of the world.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

const FENCED: u64 = 1 << 63;

/// Counts the requests of one session that are being carried out.
#[derive(Debug, Default)]
pub struct Turnstile {
    /// Requests inside; the highest bit says that no more may enter.
    inside: AtomicU64,
    emptied: Mutex<()>,
    wake: Condvar,
    /// Requests inside that wait for other sessions sleep here.
    waiting: Mutex<()>,
    bell: Condvar,
}

/// Why a request that slept goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rung {
    /// What it waited for has happened.
    Over,
    /// Its own session was fenced.
    Fenced,
    /// It is too late.
    Late,
}

/// Proof that a request was let in before any fence; to be dropped when the request has had its last effect.
#[derive(Debug)]
pub struct Admission {
    turnstile: Arc<Turnstile>,
}

impl Turnstile {
    /// An open turnstile.
    pub fn new() -> Arc<Turnstile> {
        Arc::default()
    }

    /// Lets a request in, unless the turnstile is fenced.
    pub fn enter(self: &Arc<Self>) -> Option<Admission> {
        // Counted first and looked at afterwards: a fence between the two sees the count and waits for it.
        let before = self.inside.fetch_add(1, Ordering::SeqCst);
        let admission = Admission { turnstile: Arc::clone(self) };
        // Dropping the admission takes the count back.
        (before & FENCED == 0).then_some(admission)
    }

    /// Lets nobody in any more. Returns whether it was open until now.
    pub fn fence(&self) -> bool {
        let open = self.inside.fetch_or(FENCED, Ordering::SeqCst) & FENCED == 0;
        self.ring();
        open
    }

    /// Wakes the requests inside that sleep, so that they look whether it is over.
    pub(crate) fn ring(&self) {
        // Whoever has looked and is about to sleep holds the lock.
        drop(self.waiting.lock());
        self.bell.notify_all();
    }

    /// Lets a request inside sleep until `over` holds, the turnstile is fenced, or until `deadline`.
    pub(crate) fn sleep(&self, deadline: Instant, over: impl Fn() -> bool) -> Rung {
        let mut lock = self.waiting.lock();
        loop {
            if self.is_fenced() {
                return Rung::Fenced;
            }
            if over() {
                return Rung::Over;
            }
            if self.bell.wait_until(&mut lock, deadline).timed_out() {
                return if self.is_fenced() {
                    Rung::Fenced
                } else if over() {
                    Rung::Over
                } else {
                    Rung::Late
                };
            }
        }
    }

    /// Whether nobody may enter any more.
    pub fn is_fenced(&self) -> bool {
        self.inside.load(Ordering::SeqCst) & FENCED != 0
    }

    /// Requests inside at this moment.
    pub fn inside(&self) -> u64 {
        self.inside.load(Ordering::SeqCst) & !FENCED
    }

    /// Waits until nobody is inside, or until `deadline`. Returns whether it is empty.
    pub fn drain(&self, deadline: Option<Instant>) -> bool {
        let mut lock = self.emptied.lock();
        while self.inside() > 0 {
            match deadline {
                None => self.wake.wait(&mut lock),
                Some(end) => {
                    if self.wake.wait_until(&mut lock, end).timed_out() {
                        return self.inside() == 0;
                    }
                }
            }
        }
        true
    }
}

impl Admission {
    /// Where it was let in.
    pub(crate) fn turnstile(&self) -> &Arc<Turnstile> {
        &self.turnstile
    }

    /// Whether a fence waits for the request: to leave early from what takes long and has no effect on the data.
    pub(crate) fn is_fenced(&self) -> bool {
        self.turnstile.is_fenced()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let before = self.turnstile.inside.fetch_sub(1, Ordering::SeqCst);
        // Only a fenced turnstile is drained. The lock makes sure that a drain which has seen the old count is asleep
        // by now, so that the signal is not lost.
        if before == FENCED | 1 {
            drop(self.turnstile.emptied.lock());
            self.turnstile.wake.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_enters_after_the_fence_and_drain_waits_for_all() {
        let turnstile = Turnstile::new();
        let inside = turnstile.enter().unwrap();
        assert!(turnstile.fence());
        assert!(!turnstile.fence());
        assert!(turnstile.enter().is_none());
        assert_eq!(turnstile.inside(), 1);
        assert!(!turnstile.drain(Some(Instant::now())));
        let other = Arc::clone(&turnstile);
        let drained = std::thread::spawn(move || other.drain(None));
        drop(inside);
        assert!(drained.join().unwrap());
        assert_eq!(turnstile.inside(), 0);
    }

    #[test]
    fn many_threads_never_leave_a_count_behind() {
        let turnstile = Turnstile::new();
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let turnstile = Arc::clone(&turnstile);
                std::thread::spawn(move || while turnstile.enter().is_some() {})
            })
            .collect();
        while turnstile.inside() == 0 {
            std::thread::yield_now();
        }
        turnstile.fence();
        assert!(turnstile.drain(None));
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(turnstile.inside(), 0);
    }
}
