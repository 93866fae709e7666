//! Who is measured when: in rounds, over the sizes, each case in its turn, so that what disturbs the machine for a
//! while disturbs all alike.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::calibration::{self, Limit};
use super::command::{Run, Times};
use super::contestant::{Contestant, Library};
use super::sizes::Bytes;
use crate::cli::{BenchArgs, BufferKind, Operation};
use crate::output::Lines;

/// Iterations of a turn, at most: the raw data of a run stays of some hundred kilobytes.
const MOST: usize = 1000;
/// The first iterations of a turn find the caches as the others have left them; they do not count.
const WARMUP: std::ops::RangeInclusive<usize> = 1..=50;

pub(super) struct Plan<'a> {
    pub(super) args: &'a BenchArgs,
    pub(super) sizes: &'a [usize],
    pub(super) cores: &'a [usize],
}

/// One library with one kind of buffers, at one size.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) library: Library,
    pub(super) buffer: BufferKind,
    pub(super) size: usize,
    /// Iterations of a turn that count.
    pub(super) iterations: usize,
    pub(super) wrong: u64,
    /// Of each round, the time of each iteration.
    pub(super) rounds: Vec<Vec<u64>>,
}

/// A calibration: what was reached in each round.
#[derive(Clone, Debug)]
pub(super) struct Calibration {
    pub(super) limit: Limit,
    pub(super) size: usize,
    pub(super) rounds: Vec<f64>,
}

#[derive(Clone, Debug)]
pub(super) struct Results {
    /// By size, in the order of the contestants.
    pub(super) cases: Vec<Case>,
    pub(super) calibrations: Vec<Calibration>,
}

impl Case {
    pub(super) fn new(library: Library, buffer: BufferKind, size: usize) -> Case {
        Case { library, buffer, size, iterations: 1, wrong: 0, rounds: Vec::new() }
    }
}

impl Plan<'_> {
    pub(super) fn carry_out(&self, contestants: &mut [Contestant<'_>], lines: &Lines) -> Result<Results> {
        let mut cases = self.cases(contestants);
        // Ranks that were given the same seed twice would find an old result right.
        let mut seeds = 1;
        for case in &mut cases {
            lines.status(&format!("warming up: {} {}", case.library.name(), Bytes(case.size)));
            self.size_turn(case, contestants, &mut seeds)?;
        }
        let measures_memory = self.args.operation != Operation::Barrier;
        let mut calibrations: Vec<Calibration> = self
            .sizes
            .iter()
            .filter(|_| measures_memory)
            .flat_map(|size| Limit::ALL.map(|limit| Calibration { limit, size: *size, rounds: Vec::new() }))
            .collect();
        let rounds = self.rounds();
        for round in 0..rounds {
            for size in self.sizes {
                lines.status(&format!("round {} of {rounds}: {}", round + 1, Bytes(*size)));
                let mut turns: Vec<&mut Case> = cases.iter_mut().filter(|case| case.size == *size).collect();
                // Nobody is always the one after the slowest.
                let first = round % turns.len().max(1);
                turns.rotate_left(first);
                for case in turns {
                    let iterations = case.iterations;
                    let times = self.turn(case, contestants, &mut seeds, iterations)?;
                    case.wrong += times.wrong;
                    case.rounds.push(times.nanoseconds);
                }
                for calibration in calibrations.iter_mut().filter(|calibration| calibration.size == *size) {
                    let threads = self.args.ranks as usize;
                    calibration.rounds.push(calibration::measure(calibration.limit, *size, threads, self.cores)?);
                }
            }
        }
        Ok(Results { cases, calibrations })
    }

    fn cases(&self, contestants: &[Contestant<'_>]) -> Vec<Case> {
        let mut cases = Vec::new();
        for size in self.sizes {
            for contestant in contestants {
                let kinds: &[BufferKind] = match (contestant.library, &self.args.buffer) {
                    // A barrier has no buffer, and a rival's are those of any program.
                    (Library::Muster, Some(kind)) => &[*kind],
                    (Library::Muster, None) if self.args.operation != Operation::Barrier => {
                        &[BufferKind::Shared, BufferKind::Private]
                    }
                    _ => &[BufferKind::Private],
                };
                cases.extend(kinds.iter().map(|kind| Case::new(contestant.library, *kind, *size)));
            }
        }
        cases
    }

    fn rounds(&self) -> usize {
        let rounds = self.args.rounds as usize;
        self.args.iterations.map_or(rounds, |iterations| rounds.min(iterations as usize))
    }

    /// Finds out how many iterations fill a turn of the case. Its memory is touched for the first time here.
    fn size_turn(&self, case: &mut Case, contestants: &mut [Contestant<'_>], seeds: &mut u64) -> Result<()> {
        let rounds = self.rounds();
        self.turn(case, contestants, seeds, 1)?;
        if let Some(iterations) = self.args.iterations {
            case.iterations = (iterations as usize).div_ceil(rounds);
            return Ok(());
        }
        let wanted = Duration::from_secs_f64(self.args.seconds / rounds as f64);
        let mut tried = 1;
        let took = loop {
            let started = Instant::now();
            self.turn(case, contestants, seeds, tried)?;
            let took = started.elapsed();
            if took * 4 >= wanted || tried >= MOST {
                break took;
            }
            tried = (tried * 8).min(MOST);
        };
        let each = took.as_secs_f64() / (tried + warmup(tried)) as f64;
        case.iterations = ((wanted.as_secs_f64() / each) as usize).clamp(2, MOST);
        Ok(())
    }

    fn turn(
        &self,
        case: &Case,
        contestants: &mut [Contestant<'_>],
        seeds: &mut u64,
        iterations: usize,
    ) -> Result<Times> {
        let warmup = warmup(iterations);
        let run = Run {
            operation: self.args.operation,
            dtype: self.args.dtype,
            op: self.args.op,
            buffer: case.buffer,
            size: case.size,
            warmup,
            iterations,
            seed: *seeds,
        };
        *seeds += (warmup + iterations) as u64;
        let mut times = Times::default();
        for contestant in contestants.iter_mut().filter(|contestant| contestant.library == case.library) {
            times = contestant.run(&run)?;
        }
        Ok(times)
    }
}

fn warmup(iterations: usize) -> usize {
    (iterations / 8).clamp(*WARMUP.start(), *WARMUP.end())
}
