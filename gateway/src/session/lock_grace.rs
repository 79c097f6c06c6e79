//! After a restart of the gateway's process: the time in which those who had locks claim them again, before anybody gets
//! a new one. It ends when the last of them has said so ([`strongroom_protocol::op::Op::Reclaimed`]) or is over, or by
//! the clock (the model is RFC 8881, 8.4.2 and 18.51).

use std::collections::HashSet;
use std::time::Instant;

use strongroom_protocol::hello::SessionId;

use crate::gateway::Gateway;

/// The grace, while there is one.
#[derive(Debug)]
pub(crate) struct LockGrace {
    until: Instant,
    /// Sessions that had locks and may have more to claim.
    awaited: HashSet<SessionId>,
}

impl Gateway {
    /// Begins the grace for sessions that had locks, if there are any.
    pub(crate) fn begin_lock_grace(&self, awaited: HashSet<SessionId>) {
        if !awaited.is_empty() {
            self.engine.set_lock_grace(true);
            let until = Instant::now() + self.limits.lock_grace;
            *self.lock_grace.lock() = Some(LockGrace { until, awaited });
        }
    }

    /// Sessions have claimed what they had, or are over: they are not waited for.
    pub(crate) fn reclaimed(&self, ids: &[SessionId]) {
        self.end_lock_grace(|grace| {
            grace.awaited.retain(|id| !ids.contains(id));
            grace.awaited.is_empty()
        });
    }

    /// Ends the grace if its time is over.
    pub(crate) fn time_lock_grace(&self, now: Instant) {
        self.end_lock_grace(|grace| grace.until <= now);
    }

    fn end_lock_grace(&self, is_over: impl FnOnce(&mut LockGrace) -> bool) {
        let mut grace = self.lock_grace.lock();
        if grace.as_mut().is_some_and(is_over) {
            *grace = None;
            self.engine.set_lock_grace(false);
        }
    }
}
