//! Files of others that go, with nothing in their place.
//!
//! Who expires mails or logs removes many of one kind in one place; who wipes goes through everything. So removals of one
//! kind in one directory count only up to a number. Who compresses or moves makes a copy of each that says what it is.

use std::collections::HashMap;

use super::sample::Look;
use super::tally::Tally;

/// Seconds after which half is forgotten.
const HALF_LIFE: f64 = 10.0;
/// How many of one kind in one directory count.
const ALIKE: f64 = 10.0;
/// Kinds and directories that are told apart; the table is cleared when it is full.
const MAX_GROUPS: usize = 1024;
/// See [`ALIKE`]; not over a place for long, but over an expiry of thousands.
const ALIKE_HALF_LIFE: f64 = 60.0;

/// Of one application.
pub(super) struct Removals {
    total: Tally,
    groups: HashMap<(String, Look), Tally>,
    /// Copies made that are of a known compressed format.
    packed: Tally,
    /// Copies made of each other kind.
    copies: HashMap<Look, Tally>,
}

impl Default for Removals {
    fn default() -> Removals {
        let total = Tally::with_half_life(HALF_LIFE);
        Removals {
            total,
            groups: HashMap::new(),
            packed: Tally::with_half_life(HALF_LIFE),
            copies: HashMap::new(),
        }
    }
}

impl Removals {
    /// A new file came to look like this.
    pub(super) fn copied(&mut self, look: Look, now: f64) {
        if look.is_packed() {
            self.packed.add(now, 1.0);
        } else {
            // At most one entry for each format.
            self.copies.entry(look).or_insert(Tally::with_half_life(HALF_LIFE)).add(now, 1.0);
        }
    }

    /// A file that looked like this goes. Returns whether it counts.
    pub(super) fn gone(&mut self, place: &str, look: Look, now: f64) -> bool {
        let copies = self.copies.get_mut(&look).filter(|copies| copies.at(now) >= 0.5);
        if let Some(copies) = copies {
            copies.add(now, -1.0);
            return false;
        }
        if self.packed.at(now) >= 0.5 {
            self.packed.add(now, -1.0);
            return false;
        }
        if self.groups.len() >= MAX_GROUPS {
            self.groups.clear();
        }
        let group =
            self.groups.entry((place.to_owned(), look)).or_insert(Tally::with_half_life(ALIKE_HALF_LIFE));
        // A little less than the number, as it fades while it is counted; those that do not count keep it full.
        let full = group.at(now) > ALIKE - 1.0;
        if full {
            let missing = (ALIKE - group.at(now)).max(0.0);
            group.add(now, missing);
            return false;
        }
        group.add(now, 1.0);
        self.total.add(now, 1.0);
        true
    }

    /// Something came to where a file was emptied.
    pub(super) fn came_back(&mut self, now: f64) {
        self.total.add(now, -1.0);
    }

    pub(super) fn at(&self, now: f64) -> f64 {
        self.total.at(now)
    }

    pub(super) fn clear(&mut self) {
        self.total.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_alike_in_one_place_are_few_and_copies_make_up_for_them() {
        let mut removals = Removals::default();
        for _ in 0..500 {
            removals.gone("mail/cur", Look::Text, 1.0);
        }
        assert!(removals.at(1.0) <= ALIKE);
        for place in 0..10 {
            assert!(removals.gone(&format!("d{place}"), Look::Structured, 1.0));
        }
        assert!(removals.at(1.0) > 19.0);
        removals.copied(Look::Structured, 1.0);
        assert!(!removals.gone("else", Look::Structured, 1.0));
        assert!(removals.gone("else", Look::Structured, 1.0));
    }

    #[test]
    fn groups_stay_bounded() {
        let mut removals = Removals::default();
        for n in 0..MAX_GROUPS * 2 {
            removals.gone(&n.to_string(), Look::Text, 1.0);
        }
        assert!(removals.groups.len() <= MAX_GROUPS);
    }
}
