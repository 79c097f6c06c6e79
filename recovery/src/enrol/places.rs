//! The listener's places: how many exchanges go on at a time, and how long each may last. A guest that says nothing, or
//! says it byte by byte, uses up its own address's places only, and not for long.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use strongroom_channel::Closer;

/// Exchanges at a time.
pub(super) const MOST: usize = 32;
/// Exchanges at a time with one address: a guest needs one, and one more while a lost connection is not noticed yet.
pub(super) const MOST_PER_ADDRESS: usize = 4;

/// All places. Clones are the same places.
#[derive(Clone, Default)]
pub(super) struct Places {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    taken: HashMap<IpAddr, usize>,
    /// Connections that are closed at a time unless they end before.
    curfews: HashMap<u64, (Instant, Closer)>,
    next: u64,
}

/// A place that is taken; free again when dropped, also by a panic.
pub(super) struct Place {
    places: Places,
    address: IpAddr,
    curfew: Option<u64>,
}

impl Places {
    /// Takes a place for an address, unless it has all of its own or there is none left.
    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        let mut shared = self.shared.lock();
        let mine = shared.taken.get(&address).copied().unwrap_or(0);
        if mine >= MOST_PER_ADDRESS || shared.taken.values().sum::<usize>() >= MOST {
            return None;
        }
        shared.taken.insert(address, mine + 1);
        Some(Place { places: self.clone(), address, curfew: None })
    }

    /// Closes what has had its time.
    pub(super) fn close_due(&self, now: Instant) {
        let mut due = vec![];
        self.shared.lock().curfews.retain(|_, (when, closer)| {
            let keep = *when > now;
            if !keep {
                due.push(closer.clone());
            }
            keep
        });
        due.iter().for_each(Closer::close);
    }
}

impl Place {
    /// The connection of this place is closed at this time, whatever it is doing; a later call sets another time.
    ///
    /// A time-out of the socket would begin anew with every byte.
    pub(super) fn close_at(&mut self, when: Instant, closer: &Closer) {
        let mut shared = self.places.shared.lock();
        let number = *self.curfew.get_or_insert_with(|| {
            shared.next += 1;
            shared.next
        });
        shared.curfews.insert(number, (when, closer.clone()));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut shared = self.places.shared.lock();
        if let Some(number) = self.curfew {
            shared.curfews.remove(&number);
        }
        if let Some(count) = shared.taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                shared.taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        [10, 77, 0, n].into()
    }

    #[test]
    fn places_are_bounded_for_each_address_and_in_all() {
        let places = Places::default();
        let mut held: Vec<Place> = (0..MOST_PER_ADDRESS).map(|_| places.take(address(1)).unwrap()).collect();
        assert!(places.take(address(1)).is_none());
        let others = 2..=u8::try_from(MOST / MOST_PER_ADDRESS).unwrap();
        held.extend(
            others
                .flat_map(|n| (0..MOST_PER_ADDRESS).map(move |_| n))
                .map(|n| places.take(address(n)).unwrap()),
        );
        assert_eq!(held.len(), MOST);
        assert!(places.take(address(99)).is_none(), "one more than there are");
        held.pop();
        assert!(places.take(address(99)).is_some());
        held.clear();
        assert!(places.shared.lock().taken.is_empty(), "addresses are forgotten");
    }

    #[test]
    fn a_panic_frees_the_place() {
        let places = Places::default();
        for _ in 0..=MOST_PER_ADDRESS {
            let place = places.take(address(1)).unwrap();
            let panicked = std::thread::spawn(move || {
                let _place = place;
                std::panic::resume_unwind(Box::new("on purpose"));
            });
            assert!(panicked.join().is_err());
        }
    }
}
