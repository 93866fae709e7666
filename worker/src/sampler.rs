//! Which samples a rank sees, and when.
//!
//! The order of an epoch depends on the seed and the epoch alone. Every step takes the next `batch x world` samples
//! of it, one batch for each rank, so the ranks never overlap, and a run that goes on with another number of
//! ranks goes on where the last one stopped.

/// A small generator whose sequence never changes with a dependency: the order of a run is part of its result.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to below 1.
    pub fn next_share(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number of the normal distribution around 0 with standard deviation 1, by Box and Muller.
    pub fn next_normal(&mut self) -> f64 {
        // From above 0 up to 1, so that its logarithm is finite.
        let radius = (-2.0 * (1.0 - self.next_share()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.next_share()).cos()
    }

    /// A number below `bound`, without bias.
    pub fn below(&mut self, bound: u64) -> u64 {
        // Rejects the few values that would make the first remainders more likely.
        let zone = u64::MAX - u64::MAX % bound.max(1);
        loop {
            let value = self.next_u64();
            if value < zone {
                return value % bound.max(1);
            }
        }
    }
}

/// The order of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochOrder(Vec<i64>);

impl EpochOrder {
    pub fn new(samples: usize, seed: u64, epoch: u64) -> EpochOrder {
        let mut random = SplitMix64::new(seed ^ epoch.wrapping_mul(0xd134_2543_de82_ef95));
        let mut order: Vec<i64> = (0..samples as i64).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last as u64 + 1) as usize);
        }
        EpochOrder(order)
    }

    /// The samples of `rank` for the step that starts at `offset`; None when the epoch has not enough left for a
    /// whole step.
    pub fn batch(&self, offset: usize, batch: usize, rank: usize, world: usize) -> Option<&[i64]> {
        let end = offset.checked_add(batch.checked_mul(world)?)?;
        if end > self.0.len() {
            return None;
        }
        let start = offset + rank * batch;
        self.0.get(start..start + batch)
    }
}

/// The part of an evaluation set that a rank measures: contiguous, all parts together the whole set.
pub fn shard(samples: usize, rank: usize, world: usize) -> std::ops::Range<usize> {
    samples * rank / world..samples * (rank + 1) / world
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranks_see_every_sample_at_most_once(samples in 1..500usize, batch in 1..20usize, world in 1..6usize, seed: u64) {
            let order = EpochOrder::new(samples, seed, 3);
            let mut seen = BTreeSet::new();
            let mut offset = 0;
            while let Some(first) = order.batch(offset, batch, 0, world) {
                prop_assert_eq!(first.len(), batch);
                for rank in 0..world {
                    for sample in order.batch(offset, batch, rank, world).unwrap() {
                        prop_assert!((0..samples as i64).contains(sample));
                        prop_assert!(seen.insert(*sample), "sample {} twice", sample);
                    }
                }
                offset += batch * world;
            }
            prop_assert!(samples - seen.len() < batch * world, "more is left out than a step needs");
        }

        #[test]
        fn shards_make_the_whole(samples in 0..1000usize, world in 1..9usize) {
            let parts: Vec<usize> = (0..world).flat_map(|rank| shard(samples, rank, world)).collect();
            prop_assert_eq!(parts, (0..samples).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_order_is_that_of_seed_and_epoch() {
        assert_eq!(EpochOrder::new(100, 1, 0), EpochOrder::new(100, 1, 0));
        assert_ne!(EpochOrder::new(100, 1, 0), EpochOrder::new(100, 1, 1));
        assert_ne!(EpochOrder::new(100, 1, 0), EpochOrder::new(100, 2, 0));
        // Written down, so that a later version cannot change the order of a run that resumes.
        assert_eq!(EpochOrder::new(8, 1, 0).0, [4, 3, 2, 7, 5, 6, 0, 1]);
    }
}
