//! A change by this guest, from its sending to its answer.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use strongroom_protocol::attr::Node;

use super::table::OwnChange;
use crate::errno::Ended;
use crate::state::State;

/// Held by whoever waits for the answer and by the request itself: whoever asked may be gone long before the gateway has
/// carried the change out. When both have let go and nobody has taken the change, all that it concerns is forgotten.
pub struct Underway {
    state: Arc<State>,
    change: Mutex<Option<OwnChange>>,
    early: bool,
}

impl Underway {
    /// A change of these nodes begins.
    pub fn begin(state: &Arc<State>, nodes: &[Node]) -> Arc<Underway> {
        let change = Mutex::new(Some(state.leases.begin(nodes)));
        Arc::new(Underway { state: state.clone(), change, early: false })
    }

    /// A change that has begun and is answered before the gateway has it.
    pub fn early(state: &Arc<State>, change: OwnChange) -> Arc<Underway> {
        Arc::new(Underway { state: state.clone(), change: Mutex::new(Some(change)), early: true })
    }

    /// Whether it is answered before the gateway has it.
    pub fn is_early(&self) -> bool {
        self.early
    }

    /// The change, if the result of its request says that it has ended; once. Who stopped waiting knows nothing of that.
    pub fn ended_by<T>(&self, result: &Result<T, Ended>) -> Option<OwnChange> {
        match result {
            Err(Ended::Interrupted | Ended::Deadline) => None,
            _ => self.take(),
        }
    }

    /// The change, for its end to be told to the table; once.
    pub fn take(&self) -> Option<OwnChange> {
        self.change.lock().take()
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let Some(change) = self.take() else { return };
        let drop = self.state.leases.table().abandon(&change, Instant::now());
        if let Some(kernel) = self.state.leases.kernel() {
            let state = self.state.clone();
            kernel.aside(move || state.take_back(&drop));
        }
    }
}
