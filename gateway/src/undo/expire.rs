//! Forgetting: what is older than its window, in the background and slowly; or the oldest, when a log may not grow.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;

use super::log::{Closed, Log};
use super::{LEAST_WINDOW_SECS, Undo};

/// Objects destroyed in a row, and the pause after them, so that foreground work hardly notices.
const BATCH: usize = 64;
const PAUSE: Duration = Duration::from_millis(5);

impl Undo {
    /// Forgets what is over its window. `pause`: rests in between.
    ///
    /// # Errors
    /// Those of the vault's file system; what is left is forgotten the next time.
    pub(crate) fn expire(&self, pause: bool) -> Result<(), Errno> {
        let now = self.clock.now_us();
        let longest = self.longest_window.load(Ordering::Relaxed).max(LEAST_WINDOW_SECS);
        for log in self.all_logs() {
            log.rotate_old(now)?;
            while let Some(segment) = { log.overripe(now, false) } {
                let _one = self.forgetting.lock();
                self.strip(&log, &segment, pause)?;
            }
            // Conflicts are found by what others did within the longest window of anybody.
            let before = now.saturating_sub(longest.saturating_mul(1_000_000));
            while let Some(segment) = log.oldest(before, false) {
                let _one = self.forgetting.lock();
                log.forget(&segment)?;
            }
            if log.forgets.load(Ordering::Relaxed) == 1 {
                self.shrink(&log, self.space_of(&log))?;
            }
        }
        Ok(())
    }

    fn space_of(&self, log: &Log) -> u64 {
        match log.budget.load(Ordering::Relaxed) {
            0 => self.space,
            bytes => bytes,
        }
    }

    /// Forgets the oldest until a log takes at most so many bytes.
    pub(super) fn shrink(&self, log: &Arc<Log>, most: u64) -> Result<(), Errno> {
        // Whoever is undoing reads what would be forgotten; the log may run ahead meanwhile.
        let Some(_one) = self.forgetting.try_lock() else { return Ok(()) };
        while log.used() > most {
            if let Some(segment) = log.overripe(0, true) {
                self.strip(log, &segment, false)?;
            } else if let Some(segment) = log.oldest(0, true) {
                log.forget(&segment)?;
            } else if log.newest() > 0 && log.rotate()? {
                // What was being written can be forgotten now.
            } else {
                break;
            }
        }
        Ok(())
    }

    fn strip(&self, log: &Log, segment: &Closed, pause: bool) -> Result<(), Errno> {
        log.begin_forgetting(&self.vault, segment)?;
        let records = log.read(segment.first)?;
        for (n, record) in records.iter().filter(|record| record.keeps()).enumerate() {
            if let Some(ino) = self.vault.destroy(&log.application, record.seq)? {
                self.tree.vaulted.remove(ino);
            }
            if pause && n % BATCH == BATCH - 1 {
                std::thread::sleep(PAUSE);
            }
        }
        log.strip(&self.vault, segment, records)
    }

    /// Goes on with what a crash interrupted: an undo must not meet records of which only a part is still kept.
    pub(super) fn go_on_forgetting(&self, log: &Log) -> Result<(), Errno> {
        match log.half_forgotten(&self.vault) {
            Some(segment) => self.strip(log, &segment, false),
            None => Ok(()),
        }
    }
}
