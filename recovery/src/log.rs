//! What the daemon says, on the standard error: the journal of systemd keeps it. What an attacker can repeat at will is
//! said at most once in a while, with a count.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use strongroom_base::text::tame;

/// How long lines of one kind are counted before the next is said.
const QUIET: Duration = Duration::from_secs(10);

/// Says a line.
pub fn say(text: &str) {
    // Nobody is left to be told if the standard error is gone.
    let _ = writeln!(std::io::stderr(), "strongroom-recovery: {}", tame(text));
}

/// Lines that may come in numbers.
#[derive(Default)]
pub struct Noise {
    kinds: Mutex<HashMap<&'static str, (Instant, u64)>>,
    totals: Mutex<HashMap<&'static str, u64>>,
}

impl Noise {
    /// Counts one of a kind, and says it unless one was said a moment ago.
    pub fn say(&self, kind: &'static str, text: impl FnOnce() -> String) {
        *self.totals.lock().entry(kind).or_default() += 1;
        let now = Instant::now();
        let mut kinds = self.kinds.lock();
        let unsaid = match kinds.get_mut(kind) {
            Some((said, unsaid)) if now.duration_since(*said) < QUIET => {
                *unsaid += 1;
                return;
            }
            Some((_, unsaid)) => *unsaid,
            None => 0,
        };
        kinds.insert(kind, (now, 0));
        drop(kinds);
        match unsaid {
            0 => say(&format!("{kind}: {}", text())),
            more => say(&format!("{kind}: {} (and {more} more since the last line)", text())),
        }
    }

    /// How many of each kind there were.
    pub fn totals(&self) -> serde_json::Map<String, serde_json::Value> {
        let totals = self.totals.lock();
        let mut list: Vec<_> =
            totals.iter().map(|(kind, count)| ((*kind).to_owned(), (*count).into())).collect();
        list.sort_by(|a: &(String, serde_json::Value), b| a.0.cmp(&b.0));
        list.into_iter().collect()
    }
}
