//! Styles of attack, and honest work that resembles them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::*;

/// A file system of contents, and an application on it.
struct World {
    watch: Watch,
    files: RefCell<BTreeMap<u64, Vec<u8>>>,
    next: u64,
    seed: u64,
}

impl World {
    /// `number` files that were there before: texts, tables and pictures in turn.
    fn with(number: u64) -> World {
        let mut world = World {
            watch: Watch::new(Detection::default(), Arc::default()),
            files: RefCell::default(),
            next: number,
            seed: 42,
        };
        for ino in 0..number {
            let contents = match ino % 3 {
                0 => format!("Letter {ino}. Dear reader, ").repeat(200).into_bytes(),
                1 => (0..3000_u32).flat_map(|n| (n * (ino as u32 + 3)).to_le_bytes()).collect(),
                _ => [b"\xff\xd8\xff\xe0".to_vec(), world.even(8000)].concat(),
            };
            world.files.get_mut().insert(ino, contents);
        }
        world
    }

    fn even(&mut self, length: usize) -> Vec<u8> {
        (0..length)
            .map(|_| {
                self.seed ^= self.seed >> 12;
                self.seed ^= self.seed << 25;
                self.seed ^= self.seed >> 27;
                (self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
            })
            .collect()
    }

    fn about<T>(&self, ino: u64, act: impl FnOnce(&About<'_>) -> T) -> T {
        let read = |offset: u64, buffer: &mut [u8]| {
            let files = self.files.borrow();
            let rest = files.get(&ino).and_then(|file| file.get(offset as usize..)).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            count
        };
        act(&About { file: (ino, 0), read: &read, path: &|| format!("Documents/{ino}") })
    }

    fn write(&mut self, ino: u64, offset: u64, data: &[u8]) {
        let size = self.files.borrow()[&ino].len() as u64;
        self.about(ino, |about| self.watch.writes(about, offset, data, size));
        let file = self.files.get_mut().get_mut(&ino).unwrap();
        let end = offset as usize + data.len();
        file.resize(file.len().max(end), 0);
        file[offset as usize..end].copy_from_slice(data);
    }

    fn empty(&mut self, ino: u64) {
        self.about(ino, |about| self.watch.empties(about));
        self.files.get_mut().get_mut(&ino).unwrap().clear();
    }

    fn create(&mut self, data: &[u8]) -> u64 {
        self.next += 1;
        self.watch.makes((self.next, 0));
        self.files.get_mut().insert(self.next, vec![]);
        self.write(self.next, 0, data);
        self.next
    }

    fn remove(&mut self, ino: u64) {
        self.about(ino, |about| self.watch.removes(about));
        self.files.get_mut().remove(&ino);
    }

    fn replace(&mut self, by: u64, victim: u64) {
        self.about(by, |by| self.about(victim, |victim| self.watch.replaces(by, victim)));
        self.files.get_mut().remove(&victim);
    }

    fn rename(&self, ino: u64, from: &str, to: &str) {
        self.about(ino, |about| self.watch.renames(about, from.as_bytes(), to.as_bytes()));
    }
}

/// How many files an attack gets through before the verdict.
fn until_verdict(mut attack: impl FnMut(&mut World, u64)) -> u64 {
    let mut world = World::with(200);
    for ino in 0..200 {
        attack(&mut world, ino);
        if let Some(verdict) = world.watch.take_verdict() {
            assert!(verdict.evidence.contains("Documents/"), "{}", verdict.evidence);
            return ino + 1;
        }
    }
    panic!("200 files, and no verdict");
}

#[test]
fn every_style_is_noticed_within_a_few_files() {
    type Style = fn(&mut World, u64);
    let styles: [(&str, Style); 8] = [
        ("overwrite in place", |world, ino| {
            let data = world.even(6000);
            world.write(ino, 0, &data);
        }),
        ("overwrite and rename", |world, ino| {
            let data = world.even(6000);
            world.write(ino, 0, &data);
            world.rename(ino, "letter.txt", "letter.txt.locked");
        }),
        ("copy and delete", |world, ino| {
            let data = world.even(6000);
            world.create(&data);
            world.remove(ino);
        }),
        ("replace by rename", |world, ino| {
            let data = world.even(6000);
            let copy = world.create(&data);
            world.replace(copy, ino);
        }),
        ("truncate and rewrite", |world, ino| {
            world.empty(ino);
            let data = world.even(6000);
            world.write(ino, 0, &data);
        }),
        ("pages of a mapping", |world, ino| {
            for page in [0, 4096] {
                let data = world.even(4096);
                world.write(ino, page, &data);
            }
        }),
        ("every other block", |world, ino| {
            for block in [0, 2048, 4096] {
                let data = world.even(1024);
                world.write(ino, block, &data);
            }
        }),
        ("rename only", |world, ino| world.rename(ino, &format!("a{ino}.txt"), &format!("a{ino}.txt.crypt"))),
    ];
    for (style, attack) in styles {
        let files = until_verdict(attack);
        assert!(files <= 16, "{style}: {files} files");
        if style != "rename only" {
            assert!(files <= 9, "{style}: {files} files");
        }
    }
    let files = until_verdict(|world, ino| world.remove(ino));
    assert!(files <= 25, "delete only: {files} files");
}

/// Suffixes that are nobody's mark ([`is_usual`]) excuse the name, never the contents.
#[test]
fn usual_suffixes_are_no_cover() {
    type Style = fn(&mut World, u64, &str);
    let styles: [(&str, Style); 5] = [
        ("overwritten and renamed", |world, ino, to| {
            let data = world.even(6000);
            world.write(ino, 0, &data);
            world.rename(ino, "letter.txt", to);
        }),
        ("renamed and overwritten", |world, ino, to| {
            world.rename(ino, "letter.txt", to);
            let data = world.even(6000);
            world.write(ino, 0, &data);
        }),
        ("kept, written anew, and removed", |world, ino, to| {
            world.rename(ino, "letter.txt", to);
            let data = world.even(6000);
            world.create(&data);
            world.remove(ino);
        }),
        ("replaced by what had the name", |world, ino, to| {
            let data = world.even(6000);
            let copy = world.create(&data);
            world.rename(copy, "letter", to);
            world.replace(copy, ino);
        }),
        ("renamed and emptied, then filled", |world, ino, to| {
            world.rename(ino, "letter.txt", to);
            world.empty(ino);
            let data = world.even(6000);
            world.write(ino, 0, &data);
        }),
    ];
    for to in ["letter.txt~", "letter.txt.bak", "letter.txt.old", "letter.TXT", "17.host:2,ST"] {
        for (style, attack) in styles {
            let files = until_verdict(|world, ino| attack(world, ino, to));
            assert!(files <= 9, "{style} to {to}: {files} files");
        }
    }
}

/// Nothing of this may be taken for an attack.
fn is_honest(work: impl FnOnce(&mut World)) {
    let mut world = World::with(300);
    work(&mut world);
    assert_eq!(world.watch.take_verdict(), None);
}

#[test]
fn honest_work_is_left_alone() {
    // An editor that saves: truncate and rewrite, and replace by rename.
    is_honest(|world| {
        for ino in (0..300).step_by(3) {
            world.empty(ino);
            world.write(ino, 0, "Another version of the letter. ".repeat(200).as_bytes());
        }
        for ino in (0..300).step_by(3) {
            let copy = world.create("And one more. ".repeat(200).as_bytes());
            world.replace(copy, ino);
        }
    });
    // Names of another case, kept copies, flags of mails.
    for (from, to) in [("a.JPG", "a.jpg"), ("a.txt", "a.txt~"), ("17.host:2,S", "17.host:2,ST")] {
        is_honest(|world| (0..300).for_each(|ino| world.rename(ino, from, to)));
    }
    // Compressing: the copy says what it is.
    is_honest(|world| {
        for ino in 0..20 {
            let copy = [b"\x1f\x8b\x08".to_vec(), world.even(2000)].concat();
            world.create(&copy);
            world.remove(ino);
        }
    });
    // An encrypted backup leaves what it saves alone.
    is_honest(|world| {
        for _ in 0..300 {
            let data = world.even(8000);
            world.create(&data);
        }
    });
    // A repository is packed: its own kind of files goes.
    is_honest(|world| {
        for ino in 1000..1300 {
            let object = [b"\x78\x01".to_vec(), world.even(300)].concat();
            world.files.get_mut().insert(ino, object);
        }
        let pack = [b"PACK\0\0\0\x02".to_vec(), world.even(9000)].concat();
        world.create(&pack);
        (1000..1300).for_each(|ino| world.remove(ino));
    });
    // A build overwrites and removes what it made.
    is_honest(|world| {
        let made: Vec<u64> = (0..200).map(|_| world.create(b"\x7fELF and so on")).collect();
        for ino in made {
            let data = world.even(500);
            world.write(ino, 0, &data);
            world.remove(ino);
        }
    });
    // One file with much of everything, for long: a database that holds pictures.
    is_honest(|world| {
        for page in 0..2000 {
            let data = world.even(4096);
            world.write(1, page * 4096 % 12_000, &data);
        }
    });
}

#[test]
fn a_declared_churn_is_held_to() {
    let mut world = World::with(100);
    world.watch.state.lock().terms.churn = Some(30);
    for ino in (0..90).step_by(3).chain(0..1) {
        world.write(ino, 0, b"Another letter, quite harmless in itself, and a little longer.");
    }
    assert_eq!(world.watch.take_verdict(), None);
    world.write(93, 0, b"Another letter, quite harmless in itself, and a little longer.");
    let verdict = world.watch.take_verdict().unwrap();
    assert!(verdict.evidence.starts_with("31 files") && verdict.evidence.contains("says 30"), "{verdict:?}");
}

#[test]
fn emptying_is_removing_unless_something_comes() {
    let mut world = World::with(200);
    let verdict = (0..200).find_map(|ino| {
        world.empty(ino);
        world.watch.take_verdict()
    });
    assert!(verdict.is_some_and(|verdict| verdict.evidence.contains("emptied")));
}

/// Rewriting one file over and over makes up for no removal.
#[test]
fn saving_is_no_cover_for_removing() {
    let files = until_verdict(|world, ino| {
        for _ in 0..3 {
            world.empty(199);
            world.write(199, 0, "The same letter as before. ".repeat(50).as_bytes());
        }
        if ino < 199 {
            world.remove(ino);
        }
    });
    assert!(files <= 25, "{files} files");
}

#[test]
fn honest_pieces_first_are_no_cover() {
    let files = until_verdict(|world, ino| {
        for piece in 0..4 {
            let same = world.files.borrow()[&ino][piece * 100..piece * 100 + 100].to_vec();
            world.write(ino, piece as u64 * 100, &same);
        }
        for piece in 0..14 {
            let data = world.even(400);
            world.write(ino, piece * 400, &data);
        }
    });
    assert!(files <= 12, "{files} files");
}

#[test]
fn an_expiry_of_one_kind_in_one_place_is_not_a_wipe() {
    let mut world = World::with(300);
    for ino in (0..300).step_by(3) {
        world.remove(ino);
    }
    assert_eq!(world.watch.take_verdict(), None);
}

/// What looking costs, per operation: `cargo test --release -p strongroom-gateway --lib cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost() {
    type Act<'a> = Box<dyn FnMut(&mut World, u64) + 'a>;
    let mut world = World::with(3000);
    let data = "Another version. ".repeat(300).into_bytes();
    let mut time = |what: &str, times: u64, mut act: Act<'_>| {
        let began = std::time::Instant::now();
        (0..times).for_each(|n| act(&mut world, n));
        println!("{what}: {} ns", began.elapsed().as_nanos() / u128::from(times));
    };
    let tell = |world: &World, ino: u64, offset: u64, data: &[u8]| {
        world.about(ino, |about| world.watch.writes(about, offset, data, 6000));
    };
    time("first write to a file of others", 3000, Box::new(|world, n| tell(world, n, 0, &data)));
    time("one of many writes to it", 1_000_000, Box::new(|world, n| tell(world, n % 100, 0, &data)));
    time("a write beyond its end", 1_000_000, Box::new(|world, n| tell(world, n % 100, 6000, &data)));
    time("making a file", 60_000, Box::new(|world, n| world.watch.makes((10_000 + n, 0))));
    time(
        "a write to a file of its own",
        1_000_000,
        Box::new(|world, n| tell(world, 10_000 + n % 100, 4096, &data)),
    );
}

#[test]
fn suffixes_are_told_from_new_names() {
    assert_eq!(new_suffix(b"a.txt", b"a.txt.locked"), Some(&b".locked"[..]));
    assert_eq!(new_suffix(b"a.txt", b"a.locked"), Some(&b".locked"[..]));
    assert_eq!(new_suffix(b"a.txt", b"b.txt"), None);
    assert_eq!(new_suffix(b"a.txt", b"a.txt"), None);
    assert_eq!(new_suffix(b"a", b"a.b"), Some(&b".b"[..]));
    assert_eq!(new_suffix(b"a", b".a"), None);
    assert_eq!(new_suffix(b"a", b"b"), None);
    assert_eq!(new_suffix(b"a.JPG", b"a.jpg"), None);
    assert_eq!(new_suffix(b"a.txt", b"a.txt~"), None);
    assert_eq!(new_suffix(b"a.txt", b"a.txt.bak"), None);
    assert_eq!(new_suffix(b"17.M1P1.host:2,S", b"17.M1P1.host:2,ST"), None);
    assert_eq!(new_suffix(b"17.M1P1.host:2,S", b"17.M1P1.locked"), Some(&b".locked"[..]));
}

#[test]
fn tables_stay_bounded() {
    let mut world = World::with(0);
    for _ in 0..MAX_MADE + 10 {
        world.next += 1;
        world.watch.makes((world.next, 0));
    }
    let state = world.watch.state.lock();
    assert!(state.made.len() <= MAX_MADE && state.made_order.len() <= MAX_MADE);
}
