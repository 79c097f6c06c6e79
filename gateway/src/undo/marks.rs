//! What is known of objects that were changed lately: who changed them last, and what of them is saved already.
//!
//! A bounded memory, empty after a start. What is forgotten costs a needless record, never a missing one: an object
//! without a mark counts as changed by somebody else.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::record::{Object, Sides};

const SHARDS: usize = 32;
/// Most ranges of one object that are remembered as saved.
const MOST_RANGES: usize = 64;
/// Most readers of one object that are told.
const MOST_READERS: usize = 32;

/// What is known of one object. All of it is about the present interval and the last writer.
#[derive(Default)]
pub(super) struct Mark {
    /// The number of the writer ([`super::Writer`]).
    pub(super) writer: u32,
    pub(super) interval: u64,
    /// The segment in which its place was told.
    pub(super) segment: u32,
    pub(super) sides: Sides,
    /// Its size when the interval began; what lies behind is the writer's own.
    pub(super) base: u64,
    /// A clone of it was saved.
    pub(super) cloned: bool,
    saved: Vec<(u64, u64)>,
    /// Who has read it, and who was only sent it ahead.
    readers: Vec<(u32, bool)>,
    /// The number of the last record about it.
    pub(super) last: u64,
}

/// The marks.
pub(super) struct Marks {
    shards: [Mutex<HashMap<Object, Mark>>; SHARDS],
    most_in_shard: usize,
}

impl Marks {
    pub(super) fn new(most: usize) -> Marks {
        Marks { shards: Default::default(), most_in_shard: most.div_ceil(SHARDS).max(4) }
    }

    fn shard(&self, object: Object) -> &Mutex<HashMap<Object, Mark>> {
        &self.shards[(object.ino % SHARDS as u64) as usize]
    }

    /// Works on the mark of an object for a writer in an interval; begins anew if it is another's or older.
    pub(super) fn of<T>(
        &self,
        object: Object,
        writer: u32,
        interval: u64,
        work: impl FnOnce(&mut Mark) -> T,
    ) -> T {
        let mut shard = self.shard(object).lock();
        if shard.len() >= self.most_in_shard && !shard.contains_key(&object) {
            evict(&mut shard, interval);
        }
        let mark = shard.entry(object).or_default();
        if mark.writer != writer || mark.interval != interval {
            *mark = Mark { writer, interval, base: u64::MAX, last: mark.last, ..Mark::default() };
        }
        work(mark)
    }

    /// Notes that somebody reads an object, or is sent it ahead. Returns the writer if it is another and this, or more, was
    /// not noted before.
    pub(super) fn read(&self, object: Object, reader: u32, ahead: bool) -> Option<u32> {
        let mut shard = self.shard(object).lock();
        let mark = shard.get_mut(&object)?;
        let news = mark.writer != reader
            && mark.sides.has(Sides::CONTENT)
            && mark.readers.len() < MOST_READERS
            && !mark.readers.contains(&(reader, false))
            && !(ahead && mark.readers.contains(&(reader, true)));
        if news {
            mark.readers.push((reader, ahead));
        }
        news.then_some(mark.writer)
    }

    /// Whether an object was made by this writer in this interval, and nobody else has changed it.
    pub(super) fn is_own(&self, object: Object, writer: u32, interval: u64) -> bool {
        self.shard(object).lock().get(&object).is_some_and(|mark| {
            (mark.writer, mark.interval, mark.base) == (writer, interval, 0) && mark.sides.has(Sides::ALL)
        })
    }

    /// Who changed an object last, and the number of the last record about it.
    pub(super) fn last(&self, object: Object) -> Option<(u32, u64)> {
        self.shard(object).lock().get(&object).map(|mark| (mark.writer, mark.last))
    }

    /// Forgets what is known: whatever was to be saved was not.
    pub(super) fn forget(&self, object: Object) {
        self.shard(object).lock().remove(&object);
    }
}

/// Makes room: half of the marks of former intervals, or else half of all.
fn evict(shard: &mut HashMap<Object, Mark>, interval: u64) {
    let before = shard.len();
    let mut every_other = false;
    shard.retain(|_, mark| {
        every_other = !every_other;
        mark.interval == interval || every_other
    });
    if shard.len() > before * 3 / 4 {
        shard.retain(|_, _| {
            every_other = !every_other;
            every_other
        });
    }
}

impl Mark {
    /// The parts of a range that are not saved yet, of what was there when the interval began.
    pub(super) fn unsaved(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let end = end.min(self.base);
        if self.cloned || start >= end {
            return vec![];
        }
        let mut parts = vec![];
        let mut at = start;
        for (from, to) in self.saved.iter().filter(|(from, to)| *to > start && *from < end) {
            if *from > at {
                parts.push((at, *from));
            }
            at = at.max(*to);
        }
        if at < end {
            parts.push((at, end));
        }
        parts
    }

    /// Notes that a range is saved. Of too many ranges some are forgotten.
    pub(super) fn save(&mut self, start: u64, end: u64) {
        let first = self.saved.partition_point(|(_, to)| *to < start);
        let last = self.saved.partition_point(|(from, _)| *from <= end);
        let merged = self
            .saved
            .get(first..last)
            .unwrap_or_default()
            .iter()
            .fold((start, end), |(a, b), (from, to)| (a.min(*from), b.max(*to)));
        self.saved.splice(first..last.max(first), [merged]);
        if self.saved.len() > MOST_RANGES {
            self.saved.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: Object = Object { ino: 1, generation: 1 };

    proptest! {
        /// Against a set of bytes: what is told as unsaved is exactly what no one saved, below the old size.
        #[test]
        fn ranges(saves in prop::collection::vec((0u64..200, 1u64..40), 0..40), ask in (0u64..200, 1u64..100), base in 0u64..220) {
            let mut mark = Mark { base, ..Mark::default() };
            let mut model = std::collections::BTreeSet::new();
            for (start, length) in saves {
                mark.save(start, start + length);
                model.extend(start..start + length);
            }
            let told: Vec<u64> = mark.unsaved(ask.0, ask.0 + ask.1).into_iter().flat_map(|(a, b)| a..b).collect();
            let wanted: Vec<u64> = (ask.0..(ask.0 + ask.1).min(base)).filter(|at| !model.contains(at)).collect();
            prop_assert_eq!(told, wanted);
        }
    }

    #[test]
    fn the_memory_is_bounded_and_begins_anew() {
        let marks = Marks::new(128);
        for ino in 0..100_000 {
            marks.of(Object { ino, generation: 0 }, 1, ino / 1000, |mark| mark.sides = Sides::CONTENT);
        }
        let all: usize = marks.shards.iter().map(|shard| shard.lock().len()).sum();
        assert!(all <= 128 + SHARDS, "{all}");
        marks.of(ONE, 1, 7, |mark| mark.sides = Sides::CONTENT);
        assert!(marks.of(ONE, 1, 7, |mark| mark.sides.has(Sides::CONTENT)));
        assert!(!marks.of(ONE, 1, 8, |mark| mark.sides.has(Sides::CONTENT)));
        marks.of(ONE, 1, 8, |mark| mark.sides = Sides::CONTENT);
        assert!(!marks.of(ONE, 2, 8, |mark| mark.sides.has(Sides::CONTENT)));
    }

    #[test]
    fn each_reader_is_told_once() {
        let marks = Marks::new(128);
        assert_eq!(marks.read(ONE, 2, false), None);
        marks.of(ONE, 1, 1, |mark| mark.sides = Sides::CONTENT);
        assert_eq!(marks.read(ONE, 1, false), None);
        assert_eq!(marks.read(ONE, 2, false), Some(1));
        assert_eq!(marks.read(ONE, 2, false), None);
        assert_eq!(marks.read(ONE, 2, true), None);
        assert_eq!(marks.read(ONE, 3, true), Some(1));
        assert_eq!(marks.read(ONE, 3, true), None);
        assert_eq!(marks.read(ONE, 3, false), Some(1));
        assert_eq!(marks.read(ONE, 3, false), None);
    }
}
