//! Batches that are prepared ahead, in the background.
//!
//! Each thread is a lane with its own queues, and batches are dealt to the lanes in turn: they are taken in the order of
//! the plan, whichever lane is faster. The training thread deals one for each that it takes, so as many as the depth
//! exist at a time. A batch is the same whoever prepares it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use tracing::debug;

use super::{Batch, DataError, Dataset};

/// How batches are prepared ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// 0: each batch is prepared when it is taken, by the thread that takes it.
    pub threads: usize,
    /// Batches that are ready or being prepared, at most; at least one for each thread.
    pub depth: usize,
    /// What they may take up together. One batch is always allowed.
    pub max_bytes: usize,
}

impl Prefetch {
    /// What is ahead may take up so much where nobody says otherwise.
    pub const MAX_BYTES: usize = 256 << 20;

    /// Where every core has a rank's computation on it, a thread of its own would only take turns with it, unless there
    /// is a disk to wait for.
    pub fn suited(data: &Dataset, spare_cores: usize) -> Prefetch {
        let threads = usize::from(spare_cores > 0 || data.is_mapped());
        Prefetch { threads, depth: 4, max_bytes: Prefetch::MAX_BYTES }
    }

    /// How many batches of this size are prepared ahead.
    fn batches(self, bytes: usize) -> usize {
        self.depth.max(self.threads).min(self.max_bytes / bytes.max(1)).max(1)
    }
}

/// The numbers of a batch's samples.
type Numbers = Vec<i64>;

struct Lane {
    /// None once it is told to end.
    todo: Option<Sender<Numbers>>,
    done: Receiver<Result<Batch, DataError>>,
    thread: Option<JoinHandle<()>>,
}

/// Gives the batches of a plan.
pub struct Loader {
    data: Arc<Dataset>,
    plan: Box<dyn Iterator<Item = Numbers> + Send>,
    lanes: Vec<Lane>,
    /// What has been dealt and not taken; the first of them to the lane `next`.
    dealt: VecDeque<Numbers>,
    next: usize,
}

impl Loader {
    /// `plan` has the samples of the batches, in the order in which they will be taken.
    pub fn new(
        data: Arc<Dataset>,
        plan: impl Iterator<Item = Vec<i64>> + Send + 'static,
        prefetch: Prefetch,
    ) -> Loader {
        let mut plan = plan.peekable();
        let lanes = (0..prefetch.threads).map_while(|number| start_lane(Arc::clone(&data), number)).collect();
        let bytes = plan.peek().map_or(1, |first| first.len() * data.sample_bytes());
        let mut loader = Loader { data, plan: Box::new(plan), lanes, dealt: VecDeque::new(), next: 0 };
        if !loader.lanes.is_empty() {
            (0..prefetch.batches(bytes)).for_each(|_| loader.deal());
        }
        loader
    }

    /// The batch of these samples. Where they are not those of the plan, they are taken all the same, and nothing is
    /// prepared ahead any more.
    pub fn take(&mut self, samples: &[i64]) -> Result<Batch, DataError> {
        if self.lanes.is_empty() {
            return self.data.batch(samples);
        }
        let prepared = self.dealt.pop_front().filter(|dealt| dealt == samples);
        let received = prepared.and_then(|_| self.lanes[self.next].done.recv().ok());
        let Some(batch) = received else {
            debug!("preparing no batches ahead any more: others are wanted than were planned, or a thread is gone");
            self.lanes.clear();
            return self.data.batch(samples);
        };
        self.next = (self.next + 1) % self.lanes.len();
        self.deal();
        batch
    }

    /// Gives a lane the next batch of the plan, where there is one.
    fn deal(&mut self) {
        let lane = (self.next + self.dealt.len()) % self.lanes.len();
        let Some(samples) = self.plan.next() else { return };
        if let Some(todo) = &self.lanes[lane].todo {
            // That a thread is gone is noticed by who waits for its batch.
            let _ = todo.send(samples.clone());
            self.dealt.push_back(samples);
        }
    }
}

/// None where the machine gives no more threads: then there are fewer, or none.
fn start_lane(data: Arc<Dataset>, number: usize) -> Option<Lane> {
    let (todo, orders) = channel::<Numbers>();
    let (batches, done) = channel();
    let work = move || {
        for samples in orders {
            // Nobody waits any more: this run of batches is over.
            if batches.send(data.batch(&samples)).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name(format!("data-{number}")).spawn(work).ok()?;
    Some(Lane { todo: Some(todo), done, thread: Some(thread) })
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.todo = None;
        // What it has still to do is dropped with the receiver of its results.
        let (_, nowhere) = channel();
        self.done = nowhere;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::tests::tokens;

    fn plan(batches: usize, size: usize) -> Vec<Vec<i64>> {
        (0..batches).map(|batch| (0..size).map(|sample| ((batch * 7 + sample * 3) % 20) as i64).collect()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn batches_come_in_the_order_of_the_plan(
            threads in 0..4usize, depth in 0..6usize, max_bytes in 0..2000usize, batches in 0..30usize, size in 0..5usize,
        ) {
            let data = Arc::new(tokens());
            let plan = plan(batches, size);
            let mut loader =
                Loader::new(Arc::clone(&data), plan.clone().into_iter(), Prefetch { threads, depth, max_bytes });
            for samples in &plan {
                let (have, want) = (loader.take(samples).unwrap(), data.batch(samples).unwrap());
                prop_assert!(have.inputs.equal(&want.inputs) && have.targets.equal(&want.targets));
                prop_assert_eq!(have.inputs.size()[0], size as i64);
            }
            // Also one that was never planned.
            prop_assert!(loader.take(&[3]).unwrap().inputs.equal(&data.batch(&[3]).unwrap().inputs));
        }
    }

    #[test]
    fn another_batch_than_planned_is_the_right_one() {
        let data = Arc::new(tokens());
        let prefetch = Prefetch { threads: 2, depth: 4, max_bytes: 1 << 20 };
        let mut loader = Loader::new(Arc::clone(&data), plan(8, 2).into_iter(), prefetch);
        for samples in [[0, 3], [5, 1], [0, 3]] {
            assert!(loader.take(&samples).unwrap().inputs.equal(&data.batch(&samples).unwrap().inputs));
        }
    }

    #[test]
    fn a_sample_that_cannot_be_taken_is_an_error_of_its_batch_alone() {
        let data = Arc::new(tokens());
        let prefetch = Prefetch { threads: 2, depth: 4, max_bytes: 1 << 20 };
        let plan = [vec![1], vec![1000], vec![2]];
        let mut loader = Loader::new(data, plan.clone().into_iter(), prefetch);
        let results = plan.map(|samples| loader.take(&samples).is_ok());
        assert_eq!(results, [true, false, true]);
    }

    #[test]
    fn what_is_ahead_is_bounded() {
        let prefetch = Prefetch { threads: 2, depth: 4, max_bytes: 1000 };
        assert_eq!([1, 300, 600, 2000].map(|bytes| prefetch.batches(bytes)), [4, 3, 1, 1]);
        let data = Arc::new(tokens());
        let counted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&counted);
        let plan = plan(100, 1).into_iter().inspect(move |_| {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let _loader = Loader::new(data, plan, Prefetch { threads: 1, depth: 3, max_bytes: 1 << 20 });
        assert_eq!(counted.load(std::sync::atomic::Ordering::Relaxed), 3);
    }
}
