//! Names that nobody can see: those of objects in the vault. They count as links on the disk and not for guests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

/// How many names of objects cannot be seen, by inode number. Only objects that somebody can still see are in it.
#[derive(Default)]
pub(crate) struct Vaulted {
    names: RwLock<HashMap<u64, u32>>,
    /// How many objects.
    objects: AtomicUsize,
}

impl Vaulted {
    /// Counts a name in.
    pub(crate) fn add(&self, ino: u64) {
        let mut names = self.names.write();
        *names.entry(ino).or_default() += 1;
        self.objects.store(names.len(), Ordering::Release);
    }

    /// Counts a name out.
    pub(crate) fn remove(&self, ino: u64) {
        if self.objects.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut names = self.names.write();
        if let Some(count) = names.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                names.remove(&ino);
            }
        }
        self.objects.store(names.len(), Ordering::Release);
    }

    /// Names of an object.
    pub(crate) fn count(&self, ino: u64) -> u32 {
        if self.objects.load(Ordering::Acquire) == 0 {
            return 0;
        }
        self.names.read().get(&ino).copied().unwrap_or(0)
    }
}
