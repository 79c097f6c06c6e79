//! Medians, percentiles and spreads of measured samples.

/// The middle of the samples; of an even number, the mean of the two in the middle. Nothing of no samples.
#[must_use]
pub fn median(samples: &[f64]) -> Option<f64> {
    let sorted = sorted(samples);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

/// The smallest sample that at least `share` (0 to 1) of all samples do not exceed. Nothing of no samples.
#[must_use]
pub fn percentile(samples: &[f64], share: f64) -> Option<f64> {
    let sorted = sorted(samples);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of samples are small and positive"
    )]
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Half the distance between the smallest and the largest sample, as a share of the median: 0.1 reads "± 10 %".
/// Nothing of fewer than two samples.
#[must_use]
pub fn spread(samples: &[f64]) -> Option<f64> {
    let sorted = sorted(samples);
    let (least, most) = (sorted.first()?, sorted.last()?);
    let middle = median(samples)?;
    (sorted.len() > 1 && middle != 0.0).then(|| (most - least) / 2.0 / middle)
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn percentiles_are_samples() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), Some(50.0));
        assert_eq!(percentile(&hundred, 0.99), Some(99.0));
        assert_eq!(percentile(&hundred, 1.0), Some(100.0));
        assert_eq!(percentile(&hundred, 0.0), Some(1.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn one_sample_says_nothing_of_spread() {
        assert_eq!(spread(&[3.0]), None);
        assert_eq!(spread(&[8.0, 12.0, 10.0]), Some(0.2));
    }
}
