//! Waiting for the answers to recalls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::gate::Turnstile;
use crate::gate::turnstile::Rung;

/// An operation that waits for others to let go. It sleeps at its own session's turnstile, so that a fence wakes it.
pub(crate) struct Wait {
    left: AtomicUsize,
    turnstile: Arc<Turnstile>,
}

impl Wait {
    /// One that is not over before [`Wait::done`] was called once for itself.
    pub(crate) fn new(turnstile: &Arc<Turnstile>) -> Arc<Wait> {
        Arc::new(Wait { left: AtomicUsize::new(1), turnstile: Arc::clone(turnstile) })
    }

    /// One more answer is waited for.
    pub(crate) fn expect(&self) {
        self.left.fetch_add(1, Ordering::SeqCst);
    }

    /// One answer has come.
    pub(crate) fn done(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.turnstile.ring();
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    /// Sleeps until all answers have come, the own session is fenced, or it is too late.
    pub(crate) fn sleep(&self, until: Instant) -> Rung {
        self.turnstile.sleep(until, || self.is_over())
    }
}
