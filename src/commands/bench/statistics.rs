//! What is told of many times.

/// The least value that at least `percent` of the values do not exceed (the nearest rank). 0 where there are none.
pub(super) fn percentile(sorted: &[u64], percent: f64) -> u64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0)
}

/// Of an even number of values, the lower of the two in the middle, as [`percentile`].
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!([10.0, 50.0, 99.0, 100.0].map(|p| percentile(&hundred, p)), [10, 50, 99, 100]);
        let three = [5, 7, 90];
        assert_eq!([10.0, 50.0, 99.0].map(|p| percentile(&three, p)), [5, 7, 90]);
        assert_eq!(percentile(&[4], 50.0), 4);
        assert_eq!(percentile(&[], 50.0), 0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.0);
    }
}
