//! What the memory can do: the same cores that run the ranks copy, and add in place, operands of the measured sizes.

use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::processors;

/// Bytes that each thread goes through, at least: several milliseconds, beside which it does not count that threads
/// do not start at one instant.
const WORK: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// Reads and writes: two streams of the operand.
    Memcpy,
    /// `d += s`: reads both, writes one.
    Add,
}

impl Limit {
    pub(super) const ALL: [Limit; 2] = [Limit::Memcpy, Limit::Add];

    pub(super) fn name(self) -> &'static str {
        match self {
            Limit::Memcpy => "memcpy",
            Limit::Add => "add",
        }
    }

    fn streams(self) -> usize {
        match self {
            Limit::Memcpy => 2,
            Limit::Add => 3,
        }
    }
}

/// Gigabytes a second that `threads` threads read and write together, each with operands of `size` bytes.
pub(super) fn measure(limit: Limit, size: usize, threads: usize, cores: &[usize]) -> Result<f64> {
    let elements = (size / size_of::<f32>()).max(1);
    let repetitions = (WORK / size.max(1)).max(4);
    let barrier = Barrier::new(threads);
    let spans = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let core = cores.get(thread % cores.len().max(1)).copied();
                let barrier = &barrier;
                scope.spawn(move || -> Result<(Instant, Instant)> {
                    let bound = core.map_or(Ok(()), processors::bind);
                    let (mut target, source) = (vec![0.0_f32; elements], vec![1.0_f32; elements]);
                    pass(limit, &mut target, &source);
                    barrier.wait();
                    let started = Instant::now();
                    for _ in 0..repetitions {
                        pass(limit, &mut target, &source);
                    }
                    let ended = Instant::now();
                    bound.map(|()| (started, ended))
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread of the calibration ended"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let started = spans.iter().map(|span| span.0).min();
    let ended = spans.iter().map(|span| span.1).max();
    let took = started.zip(ended).map_or(0.0, |(started, ended)| (ended - started).as_secs_f64());
    let bytes = threads * repetitions * elements * size_of::<f32>() * limit.streams();
    Ok(bytes as f64 / took / 1e9)
}

fn pass(limit: Limit, target: &mut [f32], source: &[f32]) {
    match limit {
        Limit::Memcpy => target.copy_from_slice(source),
        Limit::Add => target.iter_mut().zip(source).for_each(|(t, s)| *t += *s),
    }
    // What nobody reads would not be done.
    std::hint::black_box(target);
}
