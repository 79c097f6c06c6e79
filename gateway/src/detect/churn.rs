//! How many files of others an application changes within a minute, beside what it usually does.

use std::collections::HashSet;

use super::FileId;

/// Seconds that are counted together.
const PERIOD_SECS: f64 = 60.0;
/// Files that are told apart within a period; more are not counted.
const MAX_FILES: usize = 65_536;
/// Periods with changes in them before an application has habits.
const HABIT: u32 = 10;
/// So many times its busiest period is unusual.
const FAR_MORE: usize = 4;
/// Fewer files than this are never unusual.
const FEW: usize = 30;

/// Of one application, for as long as the gateway runs.
#[derive(Default)]
pub(super) struct Churn {
    began: f64,
    now: HashSet<FileId>,
    /// Files in the busiest period before this one, and how many periods there were.
    busiest: usize,
    periods: u32,
}

impl Churn {
    /// A file is changed; returns how many there were in this period if it is a new one.
    pub(super) fn changes(&mut self, file: FileId, now: f64) -> Option<u32> {
        self.turn(now);
        if self.now.len() >= MAX_FILES || !self.now.insert(file) {
            return None;
        }
        u32::try_from(self.now.len()).ok()
    }

    /// Whether it changes far more than it ever did.
    pub(super) fn is_unusual(&mut self, now: f64) -> bool {
        self.turn(now);
        let files = self.now.len();
        self.periods >= HABIT && files >= FEW && files > self.busiest.saturating_mul(FAR_MORE)
    }

    fn turn(&mut self, now: f64) {
        if now - self.began < PERIOD_SECS {
            return;
        }
        if !self.now.is_empty() {
            self.busiest = self.busiest.max(self.now.len());
            self.periods = self.periods.saturating_add(1);
            self.now = HashSet::new();
        }
        self.began = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_more_than_ever_is_unusual_once_there_are_habits() {
        let mut churn = Churn::default();
        for minute in 0..10 {
            for file in 0..20 {
                churn.changes((file, 0), f64::from(minute) * 61.0);
            }
            assert!(!churn.is_unusual(f64::from(minute) * 61.0));
        }
        assert_eq!(churn.changes((1, 0), 700.0), Some(1));
        assert_eq!(churn.changes((1, 0), 700.0), None, "counted once");
        for file in 0..80 {
            churn.changes((file, 0), 700.0);
        }
        assert!(!churn.is_unusual(700.0));
        churn.changes((80, 0), 700.0);
        assert!(churn.is_unusual(700.0));
    }
}
