//! Which small files are worth reading before anybody does. Pure: it is told what directories hold and what is read, and says
//! what to read next.
//!
//! Where files of a directory are read one after the other, in the order of its listing or of their names, the next ones are read
//! ahead, in batches that grow as long as they are of use. Where that was so in several directories, it begins in another one with
//! its first file. What proves useless is paid for out of a credit, which what was of use fills up.

use std::collections::HashMap;

use strongroom_protocol::attr::Node;
use strongroom_protocol::files::{MOST, OVERHEAD};
use strongroom_protocol::frame::MAX_DATA;
use strongroom_protocol::name::Name;

/// The longest file that is read ahead, in bytes.
pub const LONGEST: u64 = 64 * 1024;
/// Files of the first batch in a directory.
const FIRST: usize = 16;
/// How far the next file may lie from the last one in some order.
const STRIDE: usize = 4;
/// The most files remembered, in all directories.
const MOST_FILES: usize = 32 * 1024;
const MOST_CREDIT: u32 = 16;

/// A file of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHint {
    /// Its name.
    pub name: Name,
    /// Its inode number.
    pub ino: u64,
    /// Its size, in bytes.
    pub size: u64,
}

/// Files to read ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// In which directory.
    pub dir: Node,
    /// Their inode numbers.
    pub files: Vec<u64>,
    /// Room that they need in a reply, in bytes.
    pub bytes: u32,
}

#[derive(Debug, Default)]
struct Files {
    order: Vec<FileHint>,
    by_name: bool,
    /// Places in `order`; made when it is first asked for.
    index: HashMap<u64, usize>,
    /// The file that was read last.
    last: Option<u64>,
    /// Files read one after the other.
    streak: u32,
    /// What comes next has been asked for up to here.
    cursor: usize,
    batch: usize,
    underway: bool,
    /// A batch was asked for on suspicion, or its use has not been seen yet.
    unproven: bool,
}

/// What directories hold, and what is being read.
#[derive(Debug, Default)]
pub struct Reading {
    dirs: HashMap<Node, Files>,
    count: usize,
    credit: u32,
    /// The gateway does not read ahead.
    off: bool,
}

impl Reading {
    /// A page of a directory was seen: these are its files. `first`: it is the first page.
    pub fn listed(&mut self, dir: Node, first: bool, files: impl Iterator<Item = FileHint>) {
        if self.off {
            return;
        }
        if first && let Some(old) = self.dirs.remove(&dir) {
            self.count -= old.order.len();
        }
        if self.count >= MOST_FILES {
            self.dirs.retain(|_, files| files.underway);
            self.count = self.dirs.values().map(|files| files.order.len()).sum();
        }
        let known = self.dirs.entry(dir).or_default();
        // Nothing is asked for an empty file when it is read.
        let useful = files.filter(|file| (1..=LONGEST).contains(&file.size));
        let before = known.order.len();
        known.order.extend(useful.take(MOST_FILES.saturating_sub(self.count)));
        (known.by_name, known.index) = (false, HashMap::new());
        self.count += known.order.len() - before;
    }

    /// A file had to be read.
    pub fn missed(&mut self, dir: Node, ino: u64) -> Option<Batch> {
        if self.off {
            return None;
        }
        let known = self.dirs.get_mut(&dir)?;
        let at = known.arrive(ino)?;
        if known.underway {
            return None;
        }
        if known.streak == 0 {
            if self.credit == 0 {
                return None;
            }
            self.credit -= 1;
        }
        if !(at..at + 4 * MOST).contains(&known.cursor) {
            known.cursor = at + 1;
        }
        known.batch(dir)
    }

    /// A file that was read ahead was read.
    pub fn found(&mut self, dir: Node, ino: u64) -> Option<Batch> {
        let known = self.dirs.get_mut(&dir)?;
        let at = known.arrive(ino)?;
        if std::mem::take(&mut known.unproven) {
            self.credit = (self.credit + 2).min(MOST_CREDIT);
        }
        if known.underway || known.cursor > at + MOST {
            return None;
        }
        known.batch(dir)
    }

    /// A batch has come, or has failed.
    pub fn came(&mut self, dir: Node) {
        if let Some(known) = self.dirs.get_mut(&dir) {
            known.underway = false;
        }
    }

    /// Nothing is read ahead any more.
    pub fn give_up(&mut self) {
        *self = Reading { off: true, ..Reading::default() };
    }
}

impl Files {
    /// A file is read: where it stands, in the order in which files seem to be read.
    fn arrive(&mut self, ino: u64) -> Option<usize> {
        if self.index.is_empty() {
            self.make_index();
        }
        let mut at = *self.index.get(&ino)?;
        if let Some(last) = self.last.replace(ino)
            && last != ino
        {
            let mut follows = self.follows(last, at);
            if !follows && !self.by_name {
                self.order.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                (self.by_name, self.cursor) = (true, 0);
                self.make_index();
                at = *self.index.get(&ino)?;
                follows = self.follows(last, at);
            }
            self.streak = if follows { self.streak + 1 } else { 0 };
        }
        Some(at)
    }

    fn follows(&self, last: u64, at: usize) -> bool {
        self.index.get(&last).is_some_and(|last| (last + 1..=last + STRIDE).contains(&at))
    }

    fn make_index(&mut self) {
        self.index = self.order.iter().enumerate().map(|(at, file)| (file.ino, at)).collect();
    }

    fn batch(&mut self, dir: Node) -> Option<Batch> {
        self.batch = (self.batch * 2).clamp(FIRST, MOST);
        let (mut files, mut bytes) = (vec![], 0);
        while let Some(file) = self.order.get(self.cursor).filter(|_| files.len() < self.batch) {
            let needs = OVERHEAD + file.size as usize;
            if bytes + needs > MAX_DATA {
                break;
            }
            bytes += needs;
            files.push(file.ino);
            self.cursor += 1;
        }
        if files.is_empty() {
            return None;
        }
        (self.underway, self.unproven) = (true, true);
        // At most 1 MiB.
        Some(Batch { dir, files, bytes: bytes as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: Node = Node { grant: 0, ino: 1 };

    fn hint(ino: u64, size: u64) -> FileHint {
        FileHint { name: Name::new(format!("f{ino:06}").as_bytes()).unwrap(), ino, size }
    }

    fn listed(order: impl Iterator<Item = u64>) -> Reading {
        let mut reading = Reading::default();
        reading.listed(DIR, true, order.map(|ino| hint(ino, 1000)));
        reading
    }

    #[test]
    fn what_follows_in_the_listing_is_read_ahead_in_growing_batches() {
        let mut reading = listed((0..1000).map(|n| n * 7919 % 1000));
        assert_eq!(reading.missed(DIR, 0), None);
        let batch = reading.missed(DIR, 7919 % 1000).unwrap();
        assert_eq!(batch.files, (2..18).map(|n| n * 7919 % 1000).collect::<Vec<_>>());
        assert_eq!(batch.bytes as usize, 16 * (1000 + OVERHEAD));
        assert_eq!(reading.found(DIR, 2 * 7919 % 1000), None, "one at a time");
        reading.came(DIR);
        assert_eq!(reading.found(DIR, 3 * 7919 % 1000).unwrap().files.len(), 32);
        reading.came(DIR);
        assert_eq!(reading.found(DIR, 4 * 7919 % 1000).unwrap().files.len(), 64);
        reading.came(DIR);
        assert_eq!(reading.found(DIR, 5 * 7919 % 1000), None, "far enough ahead");
    }

    #[test]
    fn the_order_of_names_is_as_good() {
        let mut reading = listed((0..1000).map(|n| n * 7919 % 1000));
        assert_eq!(reading.missed(DIR, 10), None);
        assert_eq!(reading.missed(DIR, 11).unwrap().files, (12..28).collect::<Vec<_>>());
    }

    #[test]
    fn files_read_at_random_cost_nothing() {
        let mut reading = listed(0..1000);
        for n in 0..200 {
            assert_eq!(reading.missed(DIR, n * 577 % 1000), None);
        }
    }

    #[test]
    fn credit_is_earned_and_spent() {
        let mut reading = Reading::default();
        let dir = |ino| Node { grant: 0, ino };
        for ino in 1..=100 {
            reading.listed(dir(ino), true, (0..50).map(|n| hint(1000 * ino + n, 10)));
        }
        reading.missed(dir(1), 1000);
        assert!(reading.missed(dir(1), 1001).is_some());
        reading.came(dir(1));
        reading.found(dir(1), 1002);
        let batches = (2..=100).filter(|ino| reading.missed(dir(*ino), 1000 * ino).is_some()).count();
        assert_eq!(batches, 2, "of no use");
    }

    #[test]
    fn everything_is_bounded() {
        let mut reading = Reading::default();
        for ino in 0..100 {
            let files = (0..1000).map(|n| hint(n, 10));
            reading.listed(Node { grant: 0, ino: 10_000 + ino }, true, files);
            assert!(reading.count <= MOST_FILES);
        }
        reading.listed(DIR, true, (0..100_000).map(|n| hint(n, LONGEST)));
        assert!(reading.count <= MOST_FILES);
        let mut reading = Reading::default();
        reading.listed(DIR, true, (0..100).map(|n| hint(n, LONGEST)));
        reading.missed(DIR, 0);
        let batch = reading.missed(DIR, 1).unwrap();
        assert_eq!(batch.files.len(), 15);
        assert!(batch.bytes as usize <= MAX_DATA);
        reading.listed(DIR, true, [hint(1, 0), hint(2, LONGEST + 1)].into_iter());
        assert_eq!(reading.count, 0, "neither empty nor long");
        reading.give_up();
        reading.listed(DIR, true, (0..10).map(|n| hint(n, 5)));
        assert_eq!((reading.missed(DIR, 0), reading.missed(DIR, 1)), (None, None));
    }
}
