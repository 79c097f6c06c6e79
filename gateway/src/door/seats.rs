//! The seats of the admin door: few, and never all taken by those who only wait. A revocation must get in whatever
//! other administrators, killed daemons and strangers have left behind.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use strongroom_channel::Closer;

/// Connections of administrators at a time.
pub(super) const MOST: usize = 32;
/// Connections at a time that have not yet shown a listed key.
const MOST_STRANGERS: usize = 32;
/// Of these, connections with one address.
const MOST_STRANGERS_OF_ADDRESS: usize = 16;

/// All seats. Clones are the same seats.
#[derive(Clone, Default)]
pub(super) struct Seats {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    next: u64,
    strangers: HashMap<u64, Option<IpAddr>>,
    administrators: HashMap<u64, Administrator>,
}

struct Administrator {
    closer: Closer,
    /// Since when nothing is done for it; `None`: a request is carried out.
    quiet_since: Option<Instant>,
}

/// A seat that is taken; free again when dropped, also by a panic.
pub(super) struct Seat {
    seats: Seats,
    number: u64,
}

impl Seats {
    /// A seat for a connection that has not said who it is; `None` if strangers, or those of this address, have all of theirs.
    pub(super) fn take(&self, address: Option<IpAddr>) -> Option<Seat> {
        let mut shared = self.shared.lock();
        let of_address = shared.strangers.values().filter(|other| **other == address).count();
        // A Unix socket has no address; its directory's mode says who may knock.
        let too_many = address.is_some() && of_address >= MOST_STRANGERS_OF_ADDRESS;
        if too_many || shared.strangers.len() >= MOST_STRANGERS {
            return None;
        }
        shared.next += 1;
        let number = shared.next;
        shared.strangers.insert(number, address);
        Some(Seat { seats: self.clone(), number })
    }
}

impl Seat {
    /// Makes it the seat of an administrator. If all are taken, the one that has been quiet for longest is closed; if
    /// something is done for every one of them, nothing changes and the answer is `false`.
    pub(super) fn sit_down(&self, closer: &Closer) -> bool {
        let mut shared = self.seats.shared.lock();
        if shared.administrators.len() >= MOST {
            let quiet =
                |(number, other): (&u64, &Administrator)| other.quiet_since.map(|since| (since, *number));
            let Some((_, longest)) = shared.administrators.iter().filter_map(quiet).min() else {
                return false;
            };
            if let Some(given_up) = shared.administrators.remove(&longest) {
                given_up.closer.close();
            }
        }
        shared.strangers.remove(&self.number);
        let administrator = Administrator { closer: closer.clone(), quiet_since: Some(Instant::now()) };
        shared.administrators.insert(self.number, administrator);
        true
    }

    /// From now on a request is carried out: the seat is kept.
    pub(super) fn busy(&self) {
        self.set(None);
    }

    /// From now on nothing is done but waiting: for a request, or for something to tell.
    pub(super) fn quiet(&self) {
        self.set(Some(Instant::now()));
    }

    fn set(&self, quiet_since: Option<Instant>) {
        // One that was given up for another has no entry any more, and learns it from its connection.
        if let Some(mine) = self.seats.shared.lock().administrators.get_mut(&self.number) {
            mine.quiet_since = quiet_since;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut shared = self.seats.shared.lock();
        shared.strangers.remove(&self.number);
        shared.administrators.remove(&self.number);
    }
}
