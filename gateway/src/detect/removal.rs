//! Files of others that go, with nothing in their place.
//!
//! Who expires mails or logs removes many of one kind in one place; who wipes goes through everything. So removals of one
//! kind in one directory count only up to a number. Who compresses or moves makes a copy of each that says what it is.
//!
//! Who wipes slowly is found by breadth: a minute's removals of which only a few of each kind in each directory count, and no
//! more than some of each kind anywhere, so that an expiry in many folders is still one of mails.

use std::collections::HashMap;

use super::FADED;
use super::sample::Look;
use super::tally::Tally;

/// Seconds after which half is forgotten.
const HALF_LIFE: f64 = 10.0;
/// The same for what is told by breadth.
const BROAD_HALF_LIFE: f64 = 60.0;
/// How many of one kind in one directory count for breadth.
const FIRST: f64 = 3.0;
/// How many of one kind count for breadth, wherever they are.
const ONE_KIND: f64 = 10.0;
/// The share of the threshold that is enough when removals are broad.
const BROAD_SHARE: f64 = 0.8;
/// How many of one kind in one directory count.
const ALIKE: f64 = 10.0;
/// Kinds and directories that are told apart; the table is cleared when it is full.
const MAX_GROUPS: usize = 1024;
/// See [`ALIKE`]; not over a place for long, but over an expiry of thousands.
const ALIKE_HALF_LIFE: f64 = 60.0;

/// Of one application.
pub(super) struct Removals {
    total: Tally,
    broad: Tally,
    /// At most one entry for each format.
    kinds: HashMap<Look, Tally>,
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
            broad: Tally::with_half_life(BROAD_HALF_LIFE),
            kinds: HashMap::new(),
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
        let alike = group.at(now);
        let full = alike > ALIKE - 1.0;
        if full {
            let missing = (ALIKE - group.at(now)).max(0.0);
            group.add(now, missing);
            return false;
        }
        group.add(now, 1.0);
        self.total.add(now, 1.0);
        let kind = self.kinds.entry(look).or_insert(Tally::with_half_life(BROAD_HALF_LIFE));
        if alike < FIRST - FADED && kind.at(now) < ONE_KIND - FADED {
            kind.add(now, 1.0);
            self.broad.add(now, 1.0);
        }
        true
    }

    /// Something came to where a file was emptied, which was counted.
    pub(super) fn came_back(&mut self, place: &str, look: Look, now: f64) {
        self.total.add(now, -1.0);
        self.broad.add(now, -1.0);
        if let Some(group) = self.groups.get_mut(&(place.to_owned(), look)) {
            group.add(now, -1.0);
        }
        if let Some(kind) = self.kinds.get_mut(&look) {
            kind.add(now, -1.0);
        }
    }

    /// How many there are if it is too many, and in which words. Counting begins anew.
    pub(super) fn too_many(&mut self, most: u32, now: f64) -> Option<(u32, &'static str)> {
        let most = f64::from(most);
        let (count, what) = if self.total.at(now) >= most - FADED {
            (self.total.at(now), "files of others removed or emptied within seconds")
        } else if self.broad.at(now) >= most * BROAD_SHARE - FADED {
            (
                self.broad.at(now),
                "files of others, of several kinds and places, removed or emptied within a minute",
            )
        } else {
            return None;
        };
        self.total.clear();
        self.broad.clear();
        Some((count.round() as u32, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: u32 = 24;

    #[test]
    fn many_alike_in_one_place_are_few_and_copies_make_up_for_them() {
        let mut removals = Removals::default();
        for _ in 0..500 {
            removals.gone("mail/cur", Look::Text, 1.0);
        }
        assert!(removals.total.at(1.0) <= ALIKE && removals.broad.at(1.0) <= FIRST);
        for place in 0..10 {
            assert!(removals.gone(&format!("d{place}"), Look::Structured, 1.0));
        }
        assert!(removals.total.at(1.0) > 19.0);
        removals.copied(Look::Structured, 1.0);
        assert!(!removals.gone("else", Look::Structured, 1.0));
        assert!(removals.gone("else", Look::Structured, 1.0));
    }

    #[test]
    fn a_slow_wipe_is_told_by_its_breadth() {
        let mut removals = Removals::default();
        let kinds = [Look::Text, Look::Structured, Look::Format(0), Look::Format(1), Look::Format(2)];
        let told = (0..60_u32).find_map(|n| {
            let now = f64::from(n) / 2.0;
            removals.gone(&format!("d{}", n % 20), kinds[n as usize % 5], now);
            removals.too_many(MANY, now).map(|(_, what)| (n, what))
        });
        let (files, what) = told.unwrap();
        assert!(files < 25 && what.contains("several kinds"), "{files}: {what}");
    }

    #[test]
    fn an_expiry_in_many_folders_is_not_broad() {
        let mut removals = Removals::default();
        for n in 0..600_u32 {
            let now = f64::from(n);
            removals.gone(&format!("folder{}", n % 30), Look::Text, now);
            assert_eq!(removals.too_many(MANY, now), None);
        }
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
