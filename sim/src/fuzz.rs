//! Many worlds, several at a time.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::world::{self, Outcome};

/// What became of the worlds of a range of seeds.
#[derive(Debug, Default)]
pub struct Report {
    pub worlds: u64,
    pub transactions: u64,
    /// Virtual time, all together.
    pub lasted: Duration,
    /// The lowest seed that breaks an invariant.
    pub broken: Option<(u64, Outcome)>,
}

/// Runs the worlds of `seeds`, until one breaks an invariant. Which one is told does not depend on the threads: every
/// lower seed has been run.
pub fn run(seeds: Range<u64>, threads: usize) -> Report {
    let (next, end) = (AtomicU64::new(seeds.start), AtomicU64::new(seeds.end));
    let report = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = world::run(seed);
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    report.worlds += 1;
                    report.transactions += outcome.transactions;
                    report.lasted += outcome.lasted;
                    if outcome.violation.is_some() && report.broken.as_ref().is_none_or(|(other, _)| seed < *other) {
                        end.fetch_min(seed, Ordering::Relaxed);
                        report.broken = Some((seed, outcome));
                    }
                }
            });
        }
    });
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}
