#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::{Duration, Instant};

use strongroom_protocol::attr::{Attr, Node, Time};
use strongroom_protocol::lease::{Lease, LeaseTerms, Note, What};
use strongroom_protocol::name::Name;

use super::*;

const DIR: Node = Node { grant: 0, ino: 1 };
const FILE: Node = Node { grant: 0, ino: 2 };
const KEEP: Duration = Duration::from_secs(3600);

fn attr(node: Node, size: u64) -> Attr {
    let time = Time { secs: 5, nanos: size as u32 };
    let mode = if node == DIR { 0o040_755 } else { 0o100_644 };
    Attr {
        ino: node.ino,
        generation: 1,
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        size,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// A table and the time.
struct World {
    table: Table,
    now: Instant,
}

impl World {
    fn new() -> World {
        let mut table = Table::default();
        let terms = LeaseTerms { keep_ms: KEEP.as_millis() as u64, recall_ms: 1000, most: 4 };
        table.terms(table.life(), 0, &terms);
        World { table, now: Instant::now() }
    }

    /// A directory and a file in it, both leased and known.
    fn warm() -> World {
        let mut world = World::new();
        let heard = world.heard(1);
        world.table.learn(&heard, DIR, Lease::Shared, &attr(DIR, 0), true);
        world.found(&heard);
        world
    }

    fn heard(&self, stamp: u64) -> Heard {
        let note = Note { stamp, node: Lease::Shared, names: true, after: None };
        Heard { asked: self.table.ask(self.now), life: self.table.life(), note }
    }

    fn found(&mut self, heard: &Heard) {
        self.table.learn(heard, FILE, Lease::Shared, &attr(FILE, 7), true);
        self.table.learn_name(heard, DIR, &name("f"), Some(FILE));
    }

    fn look(&mut self, text: &str) -> Found {
        self.table.lookup(DIR, &name(text), self.now)
    }

    fn recall(&mut self, stamp: u64, node: Node, what: What) -> Drop {
        let mut drop = Drop::default();
        self.table.recall(stamp, node, &what, self.now, &mut drop);
        drop
    }
}

const ALL: What = What::All { data: true, open: false };

#[test]
fn what_is_learnt_under_a_lease_is_known_until_its_time_is_over() {
    let mut world = World::warm();
    assert_eq!(world.look("f"), Found::Node(FILE, attr(FILE, 7)));
    assert_eq!(world.look("g"), Found::Unknown);
    let heard = world.heard(1);
    world.table.learn_name(&heard, DIR, &name("g"), None);
    assert_eq!(world.look("g"), Found::Absent);
    world.now += KEEP;
    assert_eq!((world.look("f"), world.look("g")), (Found::Unknown, Found::Unknown));
}

#[test]
fn nothing_is_kept_without_a_lease_or_terms() {
    let mut world = World::new();
    let heard = world.heard(1);
    world.table.learn(&heard, FILE, Lease::None, &attr(FILE, 7), true);
    world.table.learn_name(&heard, DIR, &name("f"), Some(FILE));
    assert!(world.table.is_empty());
    world.table.end_life();
    let heard = world.heard(1);
    let mut table = Table::default();
    table.learn(&heard, FILE, Lease::Shared, &attr(FILE, 7), true);
    assert!(!table.leased(FILE));
}

#[test]
fn an_answer_older_than_a_recall_is_not_kept_whichever_comes_first() {
    let mut world = World::warm();
    let early = world.heard(4);
    world.recall(5, FILE, ALL);
    assert_eq!(world.look("f"), Found::Unknown);
    world.found(&early);
    assert_eq!(world.look("f"), Found::Unknown, "it told what was there before");
    let late = world.heard(5);
    world.found(&late);
    assert_eq!(world.look("f"), Found::Node(FILE, attr(FILE, 7)));
    // The other way round: the answer overtakes the recall, and the lease that it gave stays.
    world.found(&world.heard(6));
    world.recall(6, FILE, ALL);
    assert!(world.table.leased(FILE));
    assert_eq!(world.look("f"), Found::Unknown, "asked for again, to be safe");
}

#[test]
fn a_recall_of_an_unknown_node_is_remembered() {
    let mut world = World::new();
    let early = world.heard(1);
    world.recall(2, FILE, ALL);
    world.table.learn(&early, FILE, Lease::Shared, &attr(FILE, 7), true);
    assert!(!world.table.leased(FILE));
}

#[test]
fn a_name_is_recalled_alone() {
    let mut world = World::warm();
    let heard = world.heard(1);
    world.table.learn_name(&heard, DIR, &name("g"), None);
    world.table.tell_name(DIR, &name("f"), Some(FILE), world.now);
    let dropped = world.recall(2, DIR, What::Name(name("f")));
    assert_eq!(dropped.entries, [(DIR, name("f"))]);
    assert_eq!((world.look("f"), world.look("g")), (Found::Unknown, Found::Absent));
    assert!(world.table.attr(DIR, world.now).is_none(), "its times change");
    assert!(world.table.leased(DIR));
    world.table.learn_name(&heard, DIR, &name("f"), Some(FILE));
    assert_eq!(world.look("f"), Found::Unknown, "an answer from before");
}

#[test]
fn a_lease_that_a_removed_file_has_left_behind_is_not_that_of_the_next_one_with_its_number() {
    for (lease, file) in [(Lease::Shared, FILE), (Lease::None, FILE), (Lease::Shared, DIR)] {
        let mut world = World::warm();
        let heard = world.heard(1);
        world.table.learn(&heard, file, Lease::Exclusive, &attr(file, 7), false);
        if file == DIR {
            world.table.learn_all(&heard, DIR, 1);
            world.table.tell_name(DIR, &name("f"), Some(FILE), world.now);
            assert_eq!(world.look("g"), Found::Absent);
        }
        let change = world.table.begin(&[file], world.now);
        let older = world.heard(1);
        world.table.end(&change);
        // Nobody has recalled anything. Then somebody else makes a file, and is told of by an answer that holds, and by one that may not.
        let next = Attr { generation: 2, ..attr(file, 9) };
        for (heard, learnt) in [(older, false), (world.heard(1), true)] {
            world.table.learn(&heard, file, lease, &next, false);
            assert!(!world.table.is_exclusive(file));
            assert_eq!(world.table.leased(file), learnt && lease != Lease::None);
            assert_eq!(world.table.attr(file, world.now).is_some(), learnt && lease != Lease::None);
        }
        if file == DIR {
            assert_eq!((world.look("f"), world.look("g")), (Found::Unknown, Found::Unknown));
            assert_eq!(
                world.recall(2, DIR, What::Name(name("f"))).entries,
                [(DIR, name("f"))],
                "the kernel has it"
            );
        }
    }
}

#[test]
fn an_exclusive_lease_is_not_taken_for_that_of_another_file_made_at_the_same_time() {
    for lease in [Lease::Shared, Lease::None] {
        let mut world = World::warm();
        let heard = world.heard(1);
        world.table.learn(&heard, FILE, Lease::Exclusive, &attr(FILE, 7), false);
        let change = world.table.begin(&[FILE], world.now);
        world.table.end(&change);
        world.table.learn(&world.heard(1), FILE, lease, &attr(FILE, 9), false);
        assert!(!world.table.is_exclusive(FILE));
    }
    let mut world = World::warm();
    world.table.learn_all(&world.heard(1), DIR, 1);
    assert_eq!(world.look("g"), Found::Absent);
    world.table.unnamed(DIR);
    world.table.learn(&world.heard(1), DIR, Lease::Shared, &attr(DIR, 0), false);
    assert_eq!(world.look("g"), Found::Unknown, "removed and made again");
}

#[test]
fn the_kernel_is_told_for_no_longer_than_the_lease_may_last_and_never_twice_taken_back() {
    let mut world = World::warm();
    world.now += Duration::from_secs(600);
    let left = KEEP - Duration::from_secs(600);
    assert_eq!(world.table.tell_attr(FILE, &attr(FILE, 8), world.now), Duration::ZERO, "overtaken");
    assert_eq!(world.table.tell_attr(FILE, &attr(FILE, 7), world.now), left);
    assert_eq!(world.table.tell_name(DIR, &name("f"), Some(FILE), world.now), left);
    assert_eq!(world.table.tell_name(DIR, &name("f"), Some(DIR), world.now), Duration::ZERO);
    assert_eq!(world.table.tell_name(DIR, &name("g"), None, world.now), Duration::ZERO);
    assert_eq!(world.recall(2, FILE, ALL).attrs, [FILE]);
    assert_eq!(world.recall(3, FILE, ALL).attrs, []);
    assert_eq!(world.table.tell_attr(FILE, &attr(FILE, 7), world.now), Duration::ZERO);
}

#[test]
fn answers_that_crossed_a_change_of_this_guest_tell_nothing() {
    let mut world = World::warm();
    let before = world.heard(1);
    let change = world.table.begin(&[FILE], world.now);
    let during = world.heard(1);
    world.table.learn(&during, FILE, Lease::Shared, &attr(FILE, 8), false);
    assert_eq!(world.table.attr(FILE, world.now).unwrap().size, 7, "the old state, until it is done");
    let (asked, sole) = world.table.end(&change);
    assert_eq!(sole, [FILE]);
    assert_eq!(world.table.attr(FILE, world.now), None);
    for heard in [before, during] {
        world.table.learn(&heard, FILE, Lease::Shared, &attr(FILE, 8), false);
        assert_eq!(world.table.attr(FILE, world.now), None);
    }
    world.table.learn_after(&Heard { asked, ..world.heard(1) }, FILE, &attr(FILE, 9));
    assert_eq!(world.table.attr(FILE, world.now).unwrap().size, 9);
}

#[test]
fn of_two_changes_at_once_neither_answer_tells_the_state() {
    let mut world = World::warm();
    let first = world.table.begin(&[FILE], world.now);
    let second = world.table.begin(&[FILE, DIR], world.now);
    assert_eq!(world.table.end(&first).1, []);
    assert_eq!(world.table.end(&second).1, [DIR]);
}

#[test]
fn a_change_of_names_is_known_at_once() {
    let mut world = World::warm();
    let change = world.table.begin(&[DIR, FILE], world.now);
    assert_eq!(world.look("f"), Found::Node(FILE, attr(FILE, 7)));
    let (asked, _) = world.table.end(&change);
    assert_eq!(world.table.stood_for(&change, DIR, &name("f")), Some(FILE));
    let heard = Heard { asked, ..world.heard(1) };
    world.table.changed_name(Some(&heard), DIR, &name("f"), Some(None));
    assert_eq!(world.look("f"), Found::Absent);
    let change = world.table.begin(&[DIR], world.now);
    world.table.end(&change);
    world.table.changed_name(None, DIR, &name("f"), None);
    assert_eq!(world.look("f"), Found::Unknown, "a failure tells nothing");
}

#[test]
fn a_victim_that_is_not_certain_makes_all_attributes_doubtful() {
    let mut world = World::warm();
    let change = world.table.begin(&[DIR], world.now);
    world.recall(2, DIR, What::Name(name("f")));
    world.table.end(&change);
    assert_eq!(world.table.stood_for(&change, DIR, &name("f")), None);
    world.table.distrust();
    assert_eq!(world.table.attr(FILE, world.now), None);
    let again = world.heard(2);
    world.table.learn(&again, FILE, Lease::Shared, &attr(FILE, 9), false);
    assert_eq!(world.table.attr(FILE, world.now).unwrap().size, 9);
}

#[test]
fn names_and_roots_without_a_lease_are_doubted_not_forgotten() {
    let mut world = World::warm();
    let heard = world.heard(1);
    world.table.learn_root(&heard, 0, DIR);
    world.table.tell_name(DIR, &name("f"), Some(FILE), world.now);
    let dropped = world.recall(2, DIR, What::All { data: false, open: false });
    assert_eq!((dropped.doubted, dropped.roots), (vec![(DIR, name("f"))], vec![(0, DIR)]));
    assert_eq!((dropped.entries, dropped.all_entries), (vec![], false));
    assert!(world.table.root(0, world.now).is_none());
}

#[test]
fn a_whole_directory_answers_for_names_that_are_not_there() {
    let mut world = World::warm();
    let heard = world.heard(1);
    world.table.learn_all(&heard, DIR, 1);
    assert_eq!(world.look("g"), Found::Absent);
    assert!(!world.table.tell_name(DIR, &name("g"), None, world.now).is_zero());
    assert_eq!(world.recall(2, DIR, What::Name(name("g"))).entries, [(DIR, name("g"))]);
    assert_eq!((world.look("g"), world.look("h")), (Found::Unknown, Found::Absent));
    assert_eq!(world.recall(3, DIR, What::Name(name("h"))).entries, []);
    assert_eq!(world.look("h"), Found::Unknown);
    let mut world = World::warm();
    let heard = world.heard(1);
    world.recall(2, DIR, What::Name(name("x")));
    world.table.learn_all(&heard, DIR, 1);
    assert_eq!(world.look("g"), Found::Unknown, "something changed while it was listed");
}

#[test]
fn a_lease_that_became_shared_does_not_become_exclusive_by_an_old_answer() {
    let mut world = World::new();
    let heard = world.heard(1);
    world.table.learn(&heard, FILE, Lease::Exclusive, &attr(FILE, 7), true);
    assert!(world.table.exclusive(FILE));
    assert_eq!(world.recall(2, FILE, What::Shared).write, [FILE]);
    // The gateway says it once more: what was answered under the exclusive lease may still be on its way.
    assert_eq!(world.recall(2, FILE, What::Shared).write, [FILE]);
    world.table.learn(&heard, FILE, Lease::Exclusive, &attr(FILE, 7), false);
    assert!(!world.table.exclusive(FILE));
    assert!(world.table.attr(FILE, world.now).is_some(), "what is known stays");
    let heard = world.heard(2);
    world.table.learn(&heard, FILE, Lease::Exclusive, &attr(FILE, 7), false);
    assert!(world.table.exclusive(FILE));
    world.recall(3, FILE, What::Shared);
    assert_eq!(world.recall(4, FILE, ALL).write, [FILE]);
}

#[test]
fn contents_are_doubtful_from_a_recall_until_they_were_dropped_under_a_new_lease() {
    let mut world = World::warm();
    assert!(world.table.clean(FILE, world.now));
    world.recall(2, FILE, ALL);
    assert_eq!(world.table.soiled(FILE), None, "dropping them now would prove nothing");
    let heard = world.heard(2);
    world.table.learn(&heard, FILE, Lease::Shared, &attr(FILE, 8), false);
    let soiled = world.table.soiled(FILE).expect("they are doubtful");
    assert_eq!(world.table.tell_attr(FILE, &attr(FILE, 8), world.now), Duration::ZERO);
    world.recall(3, FILE, ALL);
    world.table.learn(&world.heard(3), FILE, Lease::Shared, &attr(FILE, 9), false);
    world.table.cleaned(FILE, soiled);
    assert!(!world.table.clean(FILE, world.now), "recalled again meanwhile");
    let soiled = world.table.soiled(FILE).unwrap();
    world.table.cleaned(FILE, soiled);
    assert!(world.table.clean(FILE, world.now));
}

#[test]
fn contents_stay_if_nothing_changed_while_there_was_no_lease() {
    for (size, same) in [(7, true), (8, false)] {
        let mut world = World::warm();
        world.now += Duration::from_secs(1);
        world.recall(2, FILE, What::All { data: false, open: false });
        world.table.learn(&world.heard(2), FILE, Lease::Shared, &attr(FILE, size), false);
        assert_eq!(world.table.clean(FILE, world.now), same);
    }
}

#[test]
fn answers_by_connections_of_another_life_count_for_nothing() {
    let mut world = World::warm();
    world.table.tell_attr(FILE, &attr(FILE, 7), world.now);
    let old = world.heard(9);
    let dropped = world.table.end_life();
    assert!(dropped.all_entries);
    assert_eq!(dropped.attrs, [FILE]);
    world.found(&old);
    assert!(world.table.is_empty());
}

#[test]
fn lost_leases_take_everything_and_later_ones_count() {
    let mut world = World::warm();
    let change = world.table.begin(&[FILE], world.now);
    let old = world.heard(4);
    world.table.lost(5, world.now);
    world.found(&old);
    assert!(!world.table.leased(FILE) && !world.table.leased(DIR));
    world.table.end(&change);
    world.found(&world.heard(5));
    assert!(world.table.leased(FILE));
}

#[test]
fn room_is_made_by_what_was_not_used() {
    let mut world = World::warm();
    for ino in 10..20 {
        let node = Node { grant: 0, ino };
        let heard = world.heard(1);
        world.table.learn(&heard, node, Lease::Shared, &attr(node, 1), true);
        world.table.tell_attr(node, &attr(node, 1), world.now);
    }
    assert_eq!(world.table.sweep(), Drop::default(), "all have been used");
    world.look("f");
    let dropped = world.table.sweep();
    assert_eq!(dropped.attrs.len(), 10);
    assert!(world.table.leased(DIR));
    assert!(world.table.len() <= 2);
}

#[test]
fn a_name_in_a_listing_is_not_that_of_a_former_file_with_the_number() {
    let mut world = World::warm();
    // Its last name is gone, and it is open: it is looked at through a handle.
    let heard = world.heard(2);
    let gone = Attr { nlink: 0, ..attr(FILE, 7) };
    assert!(world.table.learn(&heard, FILE, Lease::Shared, &gone, false));
    assert_eq!(world.table.attr(FILE, world.now), Some(gone));
    // It is closed, another guest makes a file that gets the number, and a listing tells its name and nothing else.
    let heard = Heard { note: Note { names: true, ..heard.note }, ..world.heard(3) };
    world.table.learn_name(&heard, DIR, &name("new"), Some(FILE));
    assert_eq!(world.table.lookup(DIR, &name("new"), world.now), Found::Unknown);
    let new = Attr { generation: 2, ..attr(FILE, 9) };
    let heard = world.heard(4);
    assert!(world.table.learn(&heard, FILE, Lease::Shared, &new, false));
    assert_eq!(world.table.lookup(DIR, &name("new"), world.now), Found::Node(FILE, new));
}
