//! What the coordinator asks of ranks and what they answer, a line each. The rivals under `benches/rivals` read and
//! write the same lines.

use anyhow::{Context, Result, bail};
use muster_collectives::{DType, ReduceOp};

use super::operation::{parse_dtype, parse_op};
use crate::cli::{BufferKind, Operation};

/// The form of these lines; rivals that were built for another one are refused.
pub(super) const PROTOCOL: &str = "2";

/// Some iterations of one case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Run {
    pub(super) operation: Operation,
    pub(super) dtype: DType,
    pub(super) op: ReduceOp,
    pub(super) buffer: BufferKind,
    pub(super) size: usize,
    /// Iterations before those that are timed.
    pub(super) warmup: usize,
    pub(super) iterations: usize,
    /// Of the first iteration; each has its own.
    pub(super) seed: u64,
}

impl Run {
    pub(super) fn encode(&self) -> String {
        let Run { operation, dtype, op, buffer, size, warmup, iterations, seed } = self;
        format!("run {} {dtype} {op} {} {size} {warmup} {iterations} {seed}", operation.name(), buffer.name())
    }

    pub(super) fn decode(line: &str) -> Result<Run> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["run", operation, dtype, op, buffer, size, warmup, iterations, seed] = words[..] else {
            bail!("a command that is not understood: {line:?}");
        };
        Ok(Run {
            operation: Operation::of_name(operation).context("unknown operation")?,
            dtype: parse_dtype(dtype).map_err(anyhow::Error::msg)?,
            op: parse_op(op).map_err(anyhow::Error::msg)?,
            buffer: BufferKind::of_name(buffer).context("unknown kind of buffer")?,
            size: size.parse()?,
            warmup: warmup.parse()?,
            iterations: iterations.parse()?,
            seed: seed.parse()?,
        })
    }
}

/// What a rank measured in one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Times {
    /// Elements that were not as they should be, over all iterations.
    pub(super) wrong: u64,
    /// Of each iteration.
    pub(super) nanoseconds: Vec<u64>,
}

impl Times {
    pub(super) fn encode(&self) -> String {
        let mut line = format!("times {}", self.wrong);
        for time in &self.nanoseconds {
            line.push_str(&format!(" {time}"));
        }
        line
    }

    pub(super) fn decode(line: &str) -> Result<Times> {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "times" => {
                let mut numbers = rest.split_whitespace().map(str::parse::<u64>);
                let wrong = numbers.next().context("an answer without a count of wrong elements")??;
                Ok(Times { wrong, nanoseconds: numbers.collect::<Result<_, _>>()? })
            }
            "error" => bail!("{rest}"),
            _ => bail!("an answer that is not understood: {line:?}"),
        }
    }

    /// The times of all ranks as those of the slowest: an operation is done when every rank has its result.
    pub(super) fn slowest(ranks: &[Times]) -> Times {
        let mut slowest = Times::default();
        for times in ranks {
            slowest.wrong += times.wrong;
            slowest.nanoseconds.resize(slowest.nanoseconds.len().max(times.nanoseconds.len()), 0);
            for (all, one) in slowest.nanoseconds.iter_mut().zip(&times.nanoseconds) {
                *all = (*all).max(*one);
            }
        }
        slowest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_answers_are_read_back() {
        let run = Run {
            operation: Operation::ReduceScatter,
            dtype: DType::BF16,
            op: ReduceOp::Max,
            buffer: BufferKind::Private,
            size: 4096,
            warmup: 3,
            iterations: 20,
            seed: 1 << 60,
        };
        assert_eq!(Run::decode(&run.encode()).unwrap(), run);
        let times = Times { wrong: 2, nanoseconds: vec![900, 12] };
        assert_eq!(Times::decode(&times.encode()).unwrap(), times);
        assert_eq!(Times::decode("error no memory").unwrap_err().to_string(), "no memory");
        for wrong in ["", "times", "times x", "times 0 -1", "time 0 1"] {
            assert!(Times::decode(wrong).is_err(), "{wrong:?}");
        }
        assert!(Run::decode("run all_reduce f32 sum private 4096 1").is_err());
    }

    #[test]
    fn an_iteration_takes_as_long_as_its_slowest_rank() {
        let ranks = [Times { wrong: 1, nanoseconds: vec![5, 9, 7] }, Times { wrong: 2, nanoseconds: vec![6, 3, 8] }];
        assert_eq!(Times::slowest(&ranks), Times { wrong: 3, nanoseconds: vec![6, 9, 8] });
    }
}
