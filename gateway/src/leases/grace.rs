//! The time after a start of the process in which clients of the former one may still keep what they had leases on.
//!
//! They have lost their connections with the process and forget what they hold as soon as they notice. Until every
//! session that had leases has said [`strongroom_protocol::op::Op::TakeLeases`] again or ended, or the time of a recall has
//! passed, nothing is changed that one of them might keep, and nothing is read that one of them might have written and
//! not sent. A session that has not said so yet may find and open its files again, and write what it had answered.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::wait::Wait;

#[derive(Default)]
pub(crate) struct Grace {
    active: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The sessions that have not come back, by number.
    missing: HashSet<u64>,
    until: Option<Instant>,
    /// Those who wait, by session.
    waits: Vec<(u64, Arc<Wait>)>,
}

/// What an operation would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Attributes and names are.
    Read,
    /// Contents are.
    ReadContents,
    ChangeContents,
    Change,
}

impl Grace {
    /// Begins, if there are any sessions to wait for.
    pub(crate) fn begin(&self, missing: HashSet<u64>, until: Instant) {
        let mut state = self.state.lock();
        self.active.store(!missing.is_empty(), Ordering::SeqCst);
        (state.missing, state.until) = (missing, Some(until));
    }

    /// Whether an operation of this session must wait.
    pub(crate) fn holds_up(&self, session: u64, deed: Deed) -> bool {
        self.active.load(Ordering::Relaxed) && {
            let state = self.state.lock();
            let itself = state.missing.contains(&session);
            let others = state.missing.len() > usize::from(itself);
            match deed {
                Deed::Read | Deed::ChangeContents => others && !itself,
                Deed::ReadContents | Deed::Change => others,
            }
        }
    }

    /// A session has come back or ended.
    pub(crate) fn back(&self, session: u64) {
        if !self.active.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state.lock();
        state.missing.remove(&session);
        match (state.missing.len(), state.missing.iter().next().copied()) {
            (0, _) => self.finish(&mut state),
            // Nobody waits for himself.
            (1, Some(last)) => {
                state.waits.extract_if(.., |(waiter, _)| *waiter == last).for_each(|(_, wait)| wait.done());
            }
            _ => {}
        }
    }

    /// It has lasted long enough.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.missing.clear();
        self.finish(&mut state);
    }

    fn finish(&self, state: &mut State) {
        self.active.store(false, Ordering::SeqCst);
        state.waits.drain(..).for_each(|(_, wait)| wait.done());
    }

    /// Lets an operation wait for the end, which comes then at the latest. `None`: it is over.
    pub(super) fn join(&self, session: u64, wait: &Arc<Wait>) -> Option<Instant> {
        let mut state = self.state.lock();
        if state.missing.iter().all(|missing| *missing == session) {
            return None;
        }
        wait.expect();
        state.waits.push((session, Arc::clone(wait)));
        state.until
    }
}
