//! What is worth asking for before anybody does. Pure: it is told what is looked up, and says what to list next.
//!
//! A directory in which names must be asked for one after the other is listed whole, page by page for as long as somebody goes on
//! using it. Where several directories were, those below a listed one are listed too. What that may cost is bounded: by what was
//! looked up in a directory (a miss pays for [`PER_MISS`] entries), and by how many of those that were listed on suspicion turned out to
//! be of use.

use std::collections::{HashMap, VecDeque};

use strongroom_protocol::attr::Node;

use super::Survey;

/// Misses in a directory before it is listed for the first time.
const FIRST: u32 = 2;
/// Entries that one miss pays for, once a directory has been listed.
const PER_MISS: u32 = 4;
/// The most entries listed of one directory.
const MOST_ENTRIES: u32 = 16 * 1024;
/// Listings under way at the same time.
const MOST_UNDERWAY: usize = 4;
/// Directories that are remembered.
const MOST_DIRS: usize = 4096;
/// Directories that wait to be listed.
const MOST_WAITING: usize = 256;
/// What a directory that was listed because of its misses is good for: listings on suspicion.
const CREDIT_MISSED: u32 = 8;
/// The same for one listed on suspicion that was of use.
const CREDIT_USED: u32 = 2;
const MOST_CREDIT: u32 = 64;

/// A page to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToList {
    /// Of which directory.
    pub dir: Node,
    /// From where on; 0: from the start.
    pub cookie: u64,
}

#[derive(Debug, Default)]
struct Dir {
    misses: u32,
    /// Misses after which it is listed.
    due: u32,
    listing: Option<Listing>,
    /// It was listed on suspicion, and nobody has used that yet.
    suspected: bool,
}

#[derive(Debug)]
struct Listing {
    cookie: u64,
    entries: u32,
    /// A page is asked for; otherwise nobody has used the last one yet.
    underway: bool,
    /// Somebody has used it since the last page was asked for.
    used: bool,
    survey: Option<Survey>,
}

/// What was looked up, and what is being listed.
#[derive(Debug, Default)]
pub struct Ahead {
    dirs: HashMap<Node, Dir>,
    waiting: VecDeque<Node>,
    underway: usize,
    credit: u32,
}

impl Ahead {
    /// A name in a directory had to be asked for.
    pub fn missed(&mut self, dir: Node) -> Option<ToList> {
        if !self.dirs.contains_key(&dir) && self.dirs.len() >= MOST_DIRS {
            self.dirs.retain(|_, dir| dir.listing.as_ref().is_some_and(|listing| listing.underway));
        }
        let known = self.dirs.entry(dir).or_insert(Dir { due: FIRST, ..Dir::default() });
        known.misses += 1;
        match &mut known.listing {
            Some(listing) => {
                listing.used = true;
                self.go_on(dir)
            }
            None if known.misses >= known.due && self.underway < MOST_UNDERWAY => {
                self.credit = (self.credit + CREDIT_MISSED).min(MOST_CREDIT);
                Some(self.begin(dir, false))
            }
            None => None,
        }
    }

    /// A name in a directory was known.
    pub fn found(&mut self, dir: Node) -> Option<ToList> {
        let known = self.dirs.get_mut(&dir)?;
        if std::mem::take(&mut known.suspected) {
            self.credit = (self.credit + CREDIT_USED).min(MOST_CREDIT);
        }
        known.listing.as_mut()?.used = true;
        self.go_on(dir)
    }

    fn go_on(&mut self, dir: Node) -> Option<ToList> {
        let listing = self.dirs.get_mut(&dir)?.listing.as_mut()?;
        if listing.underway || self.underway >= MOST_UNDERWAY {
            return None;
        }
        listing.underway = true;
        listing.used = false;
        self.underway += 1;
        Some(ToList { dir, cookie: listing.cookie })
    }

    fn begin(&mut self, dir: Node, suspected: bool) -> ToList {
        self.underway += 1;
        let known = self.dirs.entry(dir).or_default();
        known.suspected = suspected;
        known.listing =
            Some(Listing { cookie: 0, entries: 0, underway: true, used: !suspected, survey: None });
        ToList { dir, cookie: 0 }
    }

    /// What the pages of a listing so far amount to; to be given back with [`Ahead::came`].
    pub fn survey(&mut self, dir: Node) -> Option<Survey> {
        self.dirs.get_mut(&dir)?.listing.as_mut()?.survey.take()
    }

    /// A page has come: so many entries, and the place after them; `None`: that was the end, or there is no going on.
    /// `below`: directories in it.
    pub fn came(&mut self, dir: Node, entries: u32, next: Option<(u64, Option<Survey>)>, below: &[Node]) {
        let Some(known) = self.dirs.get_mut(&dir) else { return };
        let Some(listing) = &mut known.listing else { return };
        if std::mem::take(&mut listing.underway) {
            self.underway = self.underway.saturating_sub(1);
        }
        listing.entries = listing.entries.saturating_add(entries);
        match next.filter(|_| listing.entries < MOST_ENTRIES) {
            Some((cookie, survey)) => (listing.cookie, listing.survey) = (cookie, survey),
            None => {
                known.due = (listing.entries / PER_MISS).max(FIRST);
                known.misses = 0;
                known.listing = None;
            }
        }
        if self.credit > 0 {
            let room = MOST_WAITING.saturating_sub(self.waiting.len());
            let new = below.iter().filter(|node| !self.dirs.contains_key(node));
            self.waiting.extend(new.take(room));
        }
    }

    /// What else to list now, if anything; to be asked after [`Ahead::came`] until there is nothing.
    pub fn next_turn(&mut self) -> Option<ToList> {
        if self.underway >= MOST_UNDERWAY {
            return None;
        }
        let goes_on = |(_, known): &(&Node, &Dir)| {
            known.listing.as_ref().is_some_and(|listing| !listing.underway && listing.used)
        };
        // Few: those with a listing that has not come to its end.
        let used = self.dirs.iter().find(goes_on).map(|(dir, _)| *dir);
        if let Some(dir) = used {
            return self.go_on(dir);
        }
        while self.credit > 0 {
            let dir = self.waiting.pop_front()?;
            if !self.dirs.contains_key(&dir) {
                self.credit -= 1;
                return Some(self.begin(dir, true));
            }
        }
        self.waiting.clear();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ino: u64) -> Node {
        Node { grant: 0, ino }
    }

    fn page(ino: u64, cookie: u64) -> ToList {
        ToList { dir: node(ino), cookie }
    }

    /// Two misses in a directory, which is then listed by one page.
    fn missed_and_listed(ahead: &mut Ahead, ino: u64, entries: u32, below: &[Node]) {
        assert_eq!(ahead.missed(node(ino)), None);
        assert_eq!(ahead.missed(node(ino)), Some(page(ino, 0)));
        ahead.came(node(ino), entries, None, below);
    }

    #[test]
    fn a_directory_is_listed_at_the_second_miss_for_as_long_as_it_is_used() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.missed(node(1)), None);
        assert_eq!(ahead.missed(node(1)), Some(page(1, 0)));
        assert_eq!(ahead.missed(node(1)), None, "it is under way");
        ahead.came(node(1), 400, Some((77, None)), &[]);
        assert_eq!(ahead.next_turn(), Some(page(1, 77)), "it was used meanwhile");
        ahead.came(node(1), 400, Some((78, None)), &[]);
        assert_eq!(ahead.next_turn(), None, "it was not");
        assert_eq!(ahead.found(node(1)), Some(page(1, 78)));
        assert_eq!(ahead.found(node(1)), None);
        ahead.came(node(1), 0, None, &[]);
        assert_eq!(ahead.next_turn(), None);
        assert_eq!(ahead.found(node(1)), None);
    }

    #[test]
    fn misses_pay_for_what_they_cause() {
        let mut ahead = Ahead::default();
        missed_and_listed(&mut ahead, 1, 4000, &[]);
        let misses = (1..).find(|_| ahead.missed(node(1)).is_some());
        assert_eq!(misses, Some(1000));
        for pages in 1.. {
            ahead.came(node(1), 4000, Some((pages, None)), &[]);
            ahead.found(node(1));
            if ahead.dirs[&node(1)].listing.is_none() {
                assert_eq!(pages, 5, "one directory is not listed without end");
                return;
            }
        }
    }

    #[test]
    fn directories_below_are_listed_until_it_proves_useless() {
        let mut ahead = Ahead::default();
        let below: Vec<Node> = (100..200).map(node).collect();
        missed_and_listed(&mut ahead, 1, 100, &below);
        let mut listed = 0;
        while let Some(turn) = ahead.next_turn() {
            ahead.came(turn.dir, 1, None, &[]);
            listed += 1;
        }
        assert_eq!(listed, CREDIT_MISSED, "nobody used them");
        let more: Vec<Node> = (200..400).map(node).collect();
        missed_and_listed(&mut ahead, 2, 100, &more);
        let mut listed = 0;
        while let Some(turn) = ahead.next_turn() {
            ahead.came(turn.dir, 1, None, &[]);
            ahead.found(turn.dir);
            listed += 1;
        }
        assert_eq!(listed, 200);
    }

    #[test]
    fn everything_is_bounded() {
        let mut ahead = Ahead::default();
        for ino in 0..100_000 {
            ahead.missed(node(ino));
            ahead.missed(node(ino));
        }
        assert_eq!(ahead.underway, MOST_UNDERWAY);
        assert!(ahead.dirs.len() <= MOST_DIRS);
        let below: Vec<Node> = (200_000..300_000).map(node).collect();
        ahead.came(node(0), 1, None, &below);
        assert!(ahead.waiting.len() <= MOST_WAITING);
        assert!(ahead.next_turn().is_some());
        assert_eq!(ahead.next_turn(), None);
    }
}
