//! Numbers that look random and are the same in every run, so that every target gets the same work.

/// `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub(super) const fn below(&mut self, bound: u64) -> u64 {
        // The remainder's bias is far below what any measurement shows.
        self.next() % bound
    }

    /// Between 0 and 1.
    pub(super) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Normally distributed, mean 0 and deviation 1 (the sum of twelve uniform numbers).
    pub(super) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.share()).sum::<f64>() - 6.0
    }

    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            for (byte, source) in chunk.iter_mut().zip(word) {
                *byte = source;
            }
        }
    }

    /// The first `count` of the numbers below `bound` in a random order: none comes twice.
    pub(super) fn distinct(&mut self, bound: u64, count: u64) -> Vec<u64> {
        let mut all: Vec<u64> = (0..bound).collect();
        let count = count.min(bound);
        for at in 0..count {
            let other = at + self.below(bound - at);
            #[allow(clippy::cast_possible_truncation, reason = "both index a vector")]
            all.swap(at as usize, other as usize);
        }
        #[allow(clippy::cast_possible_truncation, reason = "not above the vector's length")]
        all.truncate(count as usize);
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn distinct_numbers_are_distinct_and_in_bounds() {
        let numbers = Random::new(1).distinct(1000, 400);
        assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), 400);
        assert!(numbers.iter().all(|n| *n < 1000));
        assert!(!numbers.is_sorted());
        assert_eq!(Random::new(1).distinct(3, 10).len(), 3);
    }

    #[test]
    fn normal_numbers_have_their_mean_and_deviation() {
        let mut random = Random::new(7);
        let sample: Vec<f64> = (0..20_000).map(|_| random.normal()).collect();
        let mean = sample.iter().sum::<f64>() / 20_000.0;
        let variance = sample.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
