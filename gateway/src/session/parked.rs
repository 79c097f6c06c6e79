//! Hellos that wait for a contract: one for each holder key, woken by a deposit for that key.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use strongroom_contracts::PublicKey;

/// How long a hello may wait before the client is told to ask again.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Those who wait.
#[derive(Debug)]
pub struct Parked {
    most: usize,
    /// Each with the state of its waiting.
    waiting: Mutex<HashMap<PublicKey, Arc<Place>>>,
}

#[derive(Debug, Default)]
struct Place {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Waiting,
    Called,
    Displaced,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// There may be a contract now.
    Called,
    /// The time is over.
    TimedOut,
    /// A newer hello of the same key waits instead.
    Displaced,
    /// Too many wait already.
    Full,
}

impl Parked {
    /// Room for `most` at a time.
    pub fn new(most: usize) -> Parked {
        Parked { most, waiting: Mutex::default() }
    }

    /// Takes a place before looking whether there is a contract, so that a deposit in between is not missed.
    pub fn enter(&self, key: PublicKey) -> Option<Waiting<'_>> {
        let place = Arc::new(Place::default());
        let mut waiting = self.waiting.lock();
        if waiting.len() >= self.most && !waiting.contains_key(&key) {
            return None;
        }
        if let Some(old) = waiting.insert(key, place.clone()) {
            old.set(State::Displaced);
        }
        Some(Waiting { parked: self, key, place })
    }

    /// Calls the one that waits with this key.
    pub fn call(&self, key: &PublicKey) {
        if let Some(place) = self.waiting.lock().remove(key) {
            place.set(State::Called);
        }
    }

    /// Calls all.
    pub fn call_all(&self) {
        for (_, place) in self.waiting.lock().drain() {
            place.set(State::Called);
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Place {
    fn set(&self, state: State) {
        *self.state.lock() = state;
        self.changed.notify_all();
    }
}

/// A place among those who wait; given up when dropped.
#[derive(Debug)]
pub struct Waiting<'a> {
    parked: &'a Parked,
    key: PublicKey,
    place: Arc<Place>,
}

impl Waiting<'_> {
    /// Waits to be called.
    pub fn wait(&self, until: Instant) -> Waited {
        let mut state = self.place.state.lock();
        loop {
            match *state {
                State::Called => return Waited::Called,
                State::Displaced => return Waited::Displaced,
                State::Waiting => {}
            }
            if self.place.changed.wait_until(&mut state, until).timed_out() && *state == State::Waiting {
                return Waited::TimedOut;
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.parked.waiting.lock();
        if waiting.get(&self.key).is_some_and(|place| Arc::ptr_eq(place, &self.place)) {
            waiting.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_for_each_key_and_a_bound_for_all() {
        let (a, b, c) =
            (PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32]), PublicKey::from_bytes([3; 32]));
        let parked = Parked::new(2);
        let far = Instant::now() + Duration::from_secs(60);
        let first = parked.enter(a).unwrap();
        let _other = parked.enter(b).unwrap();
        assert!(parked.enter(c).is_none());
        let second = parked.enter(a).unwrap();
        assert_eq!(first.wait(far), Waited::Displaced);
        drop(first);
        assert_eq!(parked.len(), 2, "the displaced one does not take the other's place away");
        assert_eq!(second.wait(Instant::now()), Waited::TimedOut);
        parked.call(&a);
        assert_eq!(second.wait(far), Waited::Called);
        assert_eq!(parked.len(), 1);
    }
}
