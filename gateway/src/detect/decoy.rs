//! Decoys: files that lie at the top of a grant for no other purpose than to be changed by what changes everything.
//!
//! Names and contents are drawn from a secret of the gateway and the grant's path, so that the same ones are found again
//! after a restart, and nobody else can tell which they are from their names. One is known by its contents: a file of the
//! user's own that happens to have the name is left alone.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::FileId;

/// Decoys that are known; more are not planted.
const MAX_DECOYS: usize = 1 << 16;

/// What decoys are drawn from.
pub type Secret = [u8; 64];

/// Which files are decoys.
#[derive(Default)]
pub(crate) struct Decoys {
    any: AtomicBool,
    files: RwLock<HashSet<FileId>>,
}

impl Decoys {
    pub(crate) fn has(&self, file: FileId) -> bool {
        self.any.load(Ordering::Relaxed) && self.files.read().contains(&file)
    }

    pub(crate) fn add(&self, file: FileId) {
        let mut files = self.files.write();
        if files.len() < MAX_DECOYS {
            files.insert(file);
            self.any.store(true, Ordering::Relaxed);
        }
    }
}

/// One that is to be planted.
pub(crate) struct Drawn {
    pub(crate) name: String,
    pub(crate) contents: Vec<u8>,
    /// How old it is to look, in seconds.
    pub(crate) age_secs: i64,
}

const FIRST: [&str; 12] = [
    "accounts",
    "backup",
    "bank",
    "budget",
    "contacts",
    "insurance",
    "letters",
    "notes",
    "passwords",
    "private",
    "tax",
    "wallet",
];
const LAST: [&str; 8] = [".txt", ".csv", ".odt.txt", ".old.txt", ".ini", ".json.txt", ".xml.txt", ".bak.csv"];
const WORDS: [&str; 24] = [
    "account", "amount", "and", "april", "balance", "bank", "by", "card", "date", "due", "for", "from",
    "january", "number", "of", "owner", "paid", "rent", "see", "since", "the", "to", "total", "with",
];

/// The `number`th decoy of the grant at `path`.
pub(crate) fn draw(secret: &Secret, path: &str, number: u8) -> Drawn {
    let mut chance = Chance { secret, path, number, drawn: 0 };
    // Hidden, and early in a listing: what goes through names in order meets it first.
    let name = format!(".{}-{}{}", chance.of(&FIRST), 2000 + chance.below(26), chance.of(&LAST));
    let length = 2000 + chance.below(6000) as usize;
    let mut contents = String::with_capacity(length + 64);
    while contents.len() < length {
        for _ in 0..8 {
            contents.push_str(chance.of(&WORDS));
            contents.push(' ');
        }
        contents.push_str(&format!("{}\n", chance.below(100_000)));
    }
    let age_secs = (10 + chance.below(700)) as i64 * 86_400 + chance.below(86_400) as i64;
    Drawn { name, contents: contents.into_bytes(), age_secs }
}

struct Chance<'a> {
    secret: &'a Secret,
    path: &'a str,
    number: u8,
    drawn: u64,
}

impl Chance<'_> {
    fn below(&mut self, end: u64) -> u64 {
        self.drawn += 1;
        let mut hasher = DefaultHasher::new();
        (self.secret, self.path, self.number, self.drawn).hash(&mut hasher);
        hasher.finish() % end
    }

    fn of<'w>(&mut self, words: &[&'w str]) -> &'w str {
        let at = self.below(words.len() as u64);
        words.get(at as usize).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::sample::Look;

    #[test]
    fn the_same_is_drawn_again_and_looks_ordinary() {
        let (one, same) = (draw(&[7; 64], "users/alice", 0), draw(&[7; 64], "users/alice", 0));
        assert_eq!((&one.name, &one.contents), (&same.name, &same.contents));
        assert!(one.name.starts_with('.') && one.contents.len() >= 2000);
        assert_eq!(Look::at(&one.contents, true), Look::Text);
        let others = [
            draw(&[8; 64], "users/alice", 0),
            draw(&[7; 64], "users/bob", 0),
            draw(&[7; 64], "users/alice", 1),
        ];
        assert!(others.iter().all(|other| other.contents != one.contents));
    }
}
