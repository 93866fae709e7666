//! Which samples a rank sees, and when.
//!
//! The order of an epoch depends on the seed and the epoch alone, and a step takes the next samples of it, so a
//! position in the epoch is one number, the samples that are done. The ranks divide the samples of a step among them
//! without overlap, and their number is asked for anew at each step: a run that goes on with another number of ranks
//! goes on where the last one stopped, and over an epoch each sample is used once.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

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

    /// What `rank` does in the step that starts when `offset` samples are done. The last step of an epoch may have fewer
    /// samples than `batch`, the batch of all ranks together. None: the epoch is done.
    pub fn step(&self, offset: u64, batch: usize, rank: usize, world: usize) -> Option<Share<'_>> {
        let left = self.0.get(usize::try_from(offset).ok()?..)?;
        let samples = &left[..batch.max(1).min(left.len())];
        match samples.len() {
            0 => None,
            total => Some(Share { samples: &samples[shard(total, rank, world)], total, world }),
        }
    }

    /// The samples of `rank` in this step and all that follow.
    pub fn shares(
        self: Arc<Self>,
        mut offset: u64,
        batch: usize,
        rank: usize,
        world: usize,
    ) -> impl Iterator<Item = Vec<i64>> + Send + 'static {
        std::iter::from_fn(move || {
            let share = self.step(offset, batch, rank, world)?;
            offset += share.total as u64;
            Some(share.samples.to_vec())
        })
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A rank's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share<'a> {
    /// The numbers of the rank's samples. The ranks' counts differ by one at most; there may be none.
    pub samples: &'a [i64],
    /// The samples of all ranks.
    pub total: usize,
    pub world: usize,
}

impl Share<'_> {
    /// What the rank's mean over its samples counts for, so that the mean over the ranks is the mean over all samples:
    /// exactly 1 where the ranks have equally many, 0 for a rank without any.
    pub fn weight(&self) -> f64 {
        (self.samples.len() * self.world) as f64 / self.total as f64
    }
}

/// What becomes of the batch when the world changes its size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum BatchPolicy {
    /// All ranks together keep the batch that they began with.
    #[default]
    Global,
    /// Each rank keeps its batch.
    PerWorker,
}

/// The batch of a run: what the samples of a step follow from. It is part of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSize {
    pub policy: BatchPolicy,
    /// Samples of each rank in the world that the run began with.
    pub per_rank: u64,
    /// The size of that world.
    pub world: u64,
}

impl BatchSize {
    /// The samples of a step of all ranks together, in a world of `world`.
    pub fn total(self, world: usize) -> usize {
        let ranks = match self.policy {
            BatchPolicy::Global => self.world,
            BatchPolicy::PerWorker => world as u64,
        };
        usize::try_from(self.per_rank.saturating_mul(ranks)).unwrap_or(usize::MAX).max(1)
    }

    /// The batch with which a run goes on that was saved with this one, but is now asked for another: who changes the
    /// samples of a rank begins anew with the present world.
    pub fn resumed(self, asked: BatchSize) -> BatchSize {
        if self.per_rank == asked.per_rank && self.policy == asked.policy { self } else { asked }
    }
}

/// The seed of the random numbers that a rank draws within a step, as for dropout. Since they depend on nothing that
/// came before, they are the same whether or not the run was interrupted.
pub fn step_seed(seed: u64, step: u64, rank: usize) -> i64 {
    let mut random = SplitMix64::new(seed ^ step.wrapping_mul(0xd134_2543_de82_ef95));
    let step_seed = random.next_u64();
    SplitMix64::new(step_seed ^ (rank as u64).wrapping_mul(0xaf25_1af3_b0f0_25b5)).next_u64() as i64
}

/// The part of a rank of so many samples: contiguous, all parts together the whole, and none longer than another by
/// more than one.
pub fn shard(samples: usize, rank: usize, world: usize) -> std::ops::Range<usize> {
    samples * rank / world..samples * (rank + 1) / world
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What happens to a run.
    #[derive(Debug, Clone)]
    enum Event {
        /// So many steps of a world of this size, each done by all ranks.
        Steps { world: usize, steps: usize },
        /// A step in which a rank is lost: some of the ranks had begun with their shares, none has kept the step.
        Dropped { world: usize },
        /// All ranks are lost, and the run goes on from its last checkpoint.
        Killed,
        Saved,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            4 => (1..9usize, 1..12usize).prop_map(|(world, steps)| Event::Steps { world, steps }),
            1 => (1..9usize).prop_map(|world| Event::Dropped { world }),
            1 => Just(Event::Killed),
            1 => Just(Event::Saved),
        ];
        proptest::collection::vec(event, 0..30)
    }

    /// The state of a run, as far as the sampler goes, and which samples have gone into it, by epoch. What is undone
    /// by a return to a checkpoint has not gone into it.
    #[derive(Debug, Clone, Default)]
    struct Run {
        epoch: u64,
        offset: u64,
        used: Vec<Vec<i64>>,
    }

    impl Run {
        fn step(&mut self, samples: usize, seed: u64, batch: BatchSize, world: usize) {
            let order = EpochOrder::new(samples, seed, self.epoch);
            let shares: Vec<Share<'_>> =
                (0..world).map_while(|rank| order.step(self.offset, batch.total(world), rank, world)).collect();
            if shares.is_empty() {
                (self.epoch, self.offset) = (self.epoch + 1, 0);
                return;
            }
            assert_eq!(shares.len(), world, "an epoch ends for all ranks at once");
            let sizes = || shares.iter().map(|share| share.samples.len());
            assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
            assert!(shares.iter().all(|share| share.total == sizes().sum::<usize>()));
            let weights: f64 = shares.iter().map(Share::weight).sum();
            assert!((weights - world as f64).abs() < 1e-9);
            self.used.resize(self.epoch as usize + 1, Vec::new());
            self.used[self.epoch as usize].extend(shares.iter().flat_map(|share| share.samples));
            self.offset += shares[0].total as u64;
        }
    }

    proptest! {
        #[test]
        fn over_an_epoch_each_sample_is_used_once_whatever_happens(
            events in events(), samples in 1..400usize, per_rank in 1..20u64, began in 1..6u64, seed: u64, global: bool,
        ) {
            let policy = if global { BatchPolicy::Global } else { BatchPolicy::PerWorker };
            let batch = BatchSize { policy, per_rank, world: began };
            let (mut run, mut saved) = (Run::default(), Run::default());
            let mut world_at_end = 1;
            for event in events {
                match event {
                    Event::Steps { world, steps } => {
                        (0..steps).for_each(|_| run.step(samples, seed, batch, world));
                        world_at_end = world;
                    }
                    Event::Dropped { world } => run.clone().step(samples, seed, batch, world),
                    Event::Killed => run = saved.clone(),
                    Event::Saved => saved = run.clone(),
                }
            }
            let last = run.epoch;
            while run.epoch == last {
                run.step(samples, seed, batch, world_at_end);
            }
            let all: Vec<i64> = (0..samples as i64).collect();
            for used in &mut run.used {
                used.sort_unstable();
                prop_assert_eq!(&*used, &all);
            }
        }

        #[test]
        fn worlds_of_all_sizes_take_the_same_steps_through_a_global_batch(
            samples in 1..400usize, per_rank in 1..20u64, began in 1..6u64, world in 1..9usize, seed: u64,
        ) {
            let batch = BatchSize { policy: BatchPolicy::Global, per_rank, world: began };
            let order = EpochOrder::new(samples, seed, 1);
            let mut offset = 0;
            while let Some(whole) = order.step(offset, batch.total(1), 0, 1) {
                let share = |rank| order.step(offset, batch.total(world), rank, world).unwrap().samples;
                let together: Vec<i64> = (0..world).flat_map(share).copied().collect();
                prop_assert_eq!(whole.samples, &together[..]);
                offset += whole.total as u64;
            }
            prop_assert_eq!(offset, samples as u64);
        }

        #[test]
        fn no_position_is_too_far(offset: u64, batch: usize, world in 1..9usize) {
            let share = EpochOrder::new(10, 1, 0).step(offset, batch, world - 1, world).map(|share| share.total);
            prop_assert_eq!(share, (offset < 10).then(|| batch.clamp(1, 10 - offset.min(9) as usize)));
        }

        #[test]
        fn shards_make_the_whole(samples in 0..1000usize, world in 1..9usize) {
            let parts: Vec<usize> = (0..world).flat_map(|rank| shard(samples, rank, world)).collect();
            prop_assert_eq!(parts, (0..samples).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_tail_is_spread_over_the_ranks_and_weighted_by_samples() {
        let order = EpochOrder::new(11, 1, 0);
        let shares = |offset| (0..4).map(move |rank| (offset, rank));
        let counts = |offset| -> Vec<(usize, f64)> {
            let share = |(offset, rank)| order.step(offset, 8, rank, 4).unwrap();
            shares(offset).map(share).map(|share| (share.samples.len(), share.weight())).collect()
        };
        assert_eq!(counts(0), [(2, 1.0); 4]);
        assert_eq!(counts(8), [(0, 0.0), (1, 4.0 / 3.0), (1, 4.0 / 3.0), (1, 4.0 / 3.0)]);
        assert_eq!(order.step(11, 8, 0, 4), None);
    }

    #[test]
    fn the_policy_says_what_a_change_of_the_world_changes() {
        let begun = |policy| BatchSize { policy, per_rank: 8, world: 4 };
        assert_eq!([2, 4, 5].map(|world| begun(BatchPolicy::Global).total(world)), [32, 32, 32]);
        assert_eq!([2, 4, 5].map(|world| begun(BatchPolicy::PerWorker).total(world)), [16, 32, 40]);
        let asked = |per_rank| BatchSize { per_rank, world: 2, ..begun(BatchPolicy::Global) };
        assert_eq!(begun(BatchPolicy::Global).resumed(asked(8)).total(2), 32);
        assert_eq!(begun(BatchPolicy::Global).resumed(asked(10)).total(2), 20);
    }

    #[test]
    fn seeds_of_steps_differ_by_run_step_and_rank() {
        let seeds = (0..3).flat_map(|seed| (0..50).flat_map(move |step| (0..8).map(move |rank| step_seed(seed, step, rank))));
        assert_eq!(seeds.collect::<BTreeSet<_>>().len(), 3 * 50 * 8);
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
