//! A count that fades.

/// Halves every half-life.
pub(super) struct Tally {
    half_life: f64,
    value: f64,
    at: f64,
}

impl Tally {
    /// A count of nothing; the half-life in seconds.
    pub(super) const fn with_half_life(half_life: f64) -> Tally {
        Tally { half_life, value: 0.0, at: 0.0 }
    }

    /// The count at a moment, in seconds.
    pub(super) fn at(&self, now: f64) -> f64 {
        self.value * (-(now - self.at).max(0.0) / self.half_life).exp2()
    }

    /// Adds; never falls below nothing.
    pub(super) fn add(&mut self, now: f64, amount: f64) {
        self.value = (self.at(now) + amount).max(0.0);
        self.at = now;
    }

    /// Back to nothing.
    pub(super) fn clear(&mut self) {
        self.value = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_is_left_after_a_half_life() {
        let mut tally = Tally::with_half_life(10.0);
        tally.add(5.0, 8.0);
        assert!((tally.at(15.0) - 4.0).abs() < 1e-9 && (tally.at(25.0) - 2.0).abs() < 1e-9);
        tally.add(25.0, -5.0);
        assert!(tally.at(25.0) == 0.0);
    }
}
