//! `muster bench`, and the ranks that it starts.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use muster_collectives::{DType, ReduceOp};

use super::objects::Target;
use crate::commands::bench::{Sizes, parse_dtype, parse_op};

/// A collective operation that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Operation {
    /// Every rank gets the combination of what all gave
    #[value(name = "all_reduce", alias = "allreduce", alias = "all-reduce")]
    AllReduce,
    /// Every rank gets its part of the combination
    #[value(name = "reduce_scatter", alias = "reducescatter", alias = "reduce-scatter")]
    ReduceScatter,
    /// Every rank gets what all gave, one after the other
    #[value(name = "all_gather", alias = "allgather", alias = "all-gather")]
    AllGather,
    /// Every rank gets what rank 0 gave
    Broadcast,
    /// Rank 0 gets the combination of what all gave
    Reduce,
    /// Rank 0 gets what all gave, one after the other
    Gather,
    /// Every rank gets its part of what rank 0 gave
    Scatter,
    /// Every rank gets its part of what each gave
    #[value(name = "all_to_all", alias = "alltoall", alias = "all-to-all")]
    AllToAll,
    /// Every rank sends to the next and receives from the one before
    #[value(name = "send_recv", alias = "sendrecv", alias = "send-recv")]
    SendRecv,
    /// Nothing is given; returns when all have called it
    Barrier,
}

/// Where the memory of an operation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BufferKind {
    /// Allocated through the communicator, so that ranks reach each other's
    Shared,
    /// Any memory of the process
    Private,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportChoice {
    /// Shared memory between ranks of one host, TCP between hosts
    Auto,
    Shm,
    /// TCP over the loopback, also on one host
    Tcp,
}

/// A library to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rival {
    /// PyTorch's gloo
    Gloo,
    /// Open MPI
    Mpi,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  muster bench allreduce
  muster bench allreduce --ranks 4 --sizes 4KiB,1MiB,100MB --compare gloo,mpi --svg allreduce.svg
  muster bench all_gather --sizes 4KiB..100MB --dtype bf16 --transport tcp --json
  muster bench allreduce --job --workers 4

How it measures: the ranks are processes, each bound to a core where there are enough of them. All
libraries are started once and take turns in every round; who has no turn waits without using the
processor. Before each iteration the ranks make fresh random data and meet in a barrier. The time of
an iteration is that of its slowest rank. After it every element of every result is checked. p10, p50
and p99 are over the iterations of all rounds; the first iterations of a turn are checked but do not
count.

SIZE is, as in nccl-tests, that of the buffer that is reduced or sent, or of the parts of all ranks
together. ALGBW is size / p50; BUSBW is that times 2(n-1)/n for all_reduce, (n-1)/n for
reduce_scatter, all_gather, gather, scatter and all_to_all, 1 for the others. The memory's limits are measured in the same rounds:
what memcpy and an addition in place reach on all ranks' cores together, in bytes read and written.

`make rivals` installs gloo and Open MPI. Where one of them is over 1.5 times slower than it is on an
idle machine, the run is void and says so.")]
pub(crate) struct BenchArgs {
    /// The operation
    #[arg(value_enum)]
    pub(crate) operation: Operation,
    /// Number of processes that take part
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) ranks: u32,
    /// Sizes, behind commas; A..B are both and what lies between in powers of four
    #[arg(long, value_name = "SIZES", default_value = "4KiB,64KiB,1MiB,16MiB,100MB")]
    pub(crate) sizes: Sizes,
    /// Type of the elements: f64, f32, f16, bf16, i8, i16, i32, i64, u8
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = parse_dtype)]
    pub(crate) dtype: DType,
    /// How they are combined: sum, mean, min, max, product
    #[arg(long, value_name = "OP", default_value = "sum", value_parser = parse_op)]
    pub(crate) op: ReduceOp,
    /// How the ranks reach each other
    #[arg(long, value_name = "KIND", value_enum, default_value = "auto")]
    pub(crate) transport: TransportChoice,
    /// Only buffers of this kind [default: both]
    #[arg(long, value_name = "KIND", value_enum)]
    pub(crate) buffer: Option<BufferKind>,
    /// Libraries to measure as well, behind commas
    #[arg(long, value_name = "LIBRARIES", value_enum, value_delimiter = ',')]
    pub(crate) compare: Vec<Rival>,
    /// How often the libraries take turns
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Iterations of each case that are counted, over all rounds [default: as many as the seconds allow]
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) iterations: Option<u32>,
    /// How long each case is measured, over all rounds, with at most 1000 iterations a round
    #[arg(long, value_name = "S", default_value_t = 3.0, value_parser = parse_seconds)]
    pub(crate) seconds: f64,
    /// Print a JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw the times into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Write the time of every iteration into this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    pub(crate) raw: Option<PathBuf>,
    /// End with an error where the run is void or a result is wrong
    #[arg(long)]
    pub(crate) strict: bool,
    /// Run as a job: the ranks are a gang of pods, as with `muster run`
    #[arg(long, conflicts_with = "compare")]
    pub(crate) job: bool,
    /// Number of pods of the job [default: --ranks]
    #[arg(long, short = 'w', value_name = "N", requires = "job", conflicts_with = "ranks", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) workers: Option<u32>,
    /// This process is a rank of such a job
    #[arg(long, hide = true, conflicts_with = "job")]
    pub(crate) gang: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

/// What `muster bench` tells a rank that it starts.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchRankArgs {
    /// Where the pipes are
    #[arg(long)]
    pub(crate) folder: PathBuf,
    #[arg(long)]
    pub(crate) rank: usize,
    /// The core to be bound to
    #[arg(long)]
    pub(crate) core: Option<usize>,
    #[arg(long, value_enum)]
    pub(crate) transport: TransportChoice,
    /// The largest size that is to come
    #[arg(long)]
    pub(crate) bytes: usize,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(seconds),
        _ => Err("expected a number of seconds above 0, up to 3600".to_owned()),
    }
}
