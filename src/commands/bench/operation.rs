//! What can be measured: how much of a size each rank holds, where results stand, and how times become bandwidths.

use clap::ValueEnum;
use muster_collectives::{DType, ReduceOp};

use super::data::Content;
use crate::cli::{BufferKind, Operation, TransportChoice};

/// The rank that gives, or gets, where only one does.
pub(super) const ROOT: usize = 0;

impl Operation {
    /// As it stands in JSON, and in the commands to ranks.
    pub(super) fn name(self) -> &'static str {
        match self {
            Operation::AllReduce => "all_reduce",
            Operation::ReduceScatter => "reduce_scatter",
            Operation::AllGather => "all_gather",
            Operation::Broadcast => "broadcast",
            Operation::Reduce => "reduce",
            Operation::Gather => "gather",
            Operation::Scatter => "scatter",
            Operation::AllToAll => "all_to_all",
            Operation::SendRecv => "send_recv",
            Operation::Barrier => "barrier",
        }
    }

    pub(super) fn of_name(name: &str) -> Option<Operation> {
        Operation::value_variants().iter().copied().find(|operation| operation.name() == name)
    }

    pub(super) fn reduces(self) -> bool {
        matches!(self, Operation::AllReduce | Operation::ReduceScatter | Operation::Reduce)
    }

    /// What the ranks give is made for.
    pub(super) fn content(self, op: ReduceOp) -> Content {
        if self.reduces() { Content::Reduced(op) } else { Content::Raw }
    }

    /// Whether a size is made of a part for each rank.
    fn is_split(self) -> bool {
        use Operation::*;
        matches!(self, ReduceScatter | AllGather | Gather | Scatter | AllToAll)
    }

    /// The largest size up to `size` that the operation can have. A barrier has none.
    pub(super) fn fitting(self, size: usize, element: usize, ranks: usize) -> usize {
        let unit = if self.is_split() { element * ranks } else { element };
        if self == Operation::Barrier { 0 } else { size / unit * unit }
    }

    /// Bytes that a rank gives, of a whole of `size`.
    pub(super) fn given(self, size: usize, ranks: usize) -> usize {
        if matches!(self, Operation::AllGather | Operation::Gather) { size / ranks } else { size }
    }

    /// Bytes that a rank gets beside what it gave; 0 where the result takes the place of what was given.
    pub(super) fn got(self, size: usize, ranks: usize) -> usize {
        match self {
            Operation::AllReduce | Operation::Broadcast | Operation::Reduce | Operation::Barrier => 0,
            Operation::ReduceScatter | Operation::Scatter => size / ranks,
            Operation::AllGather | Operation::Gather | Operation::AllToAll | Operation::SendRecv => size,
        }
    }

    /// What the rate of bytes is multiplied by, so that operations and numbers of ranks can be compared to the rate of
    /// the links: the factors of nccl-tests.
    pub(super) fn bus_factor(self, ranks: usize) -> f64 {
        let ranks = ranks as f64;
        match self {
            Operation::AllReduce => 2.0 * (ranks - 1.0) / ranks,
            Operation::ReduceScatter | Operation::AllGather | Operation::AllToAll => (ranks - 1.0) / ranks,
            Operation::Gather | Operation::Scatter => (ranks - 1.0) / ranks,
            Operation::Broadcast | Operation::Reduce | Operation::SendRecv => 1.0,
            Operation::Barrier => 0.0,
        }
    }
}

impl BufferKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            BufferKind::Shared => "shared",
            BufferKind::Private => "private",
        }
    }

    pub(super) fn of_name(name: &str) -> Option<BufferKind> {
        BufferKind::value_variants().iter().copied().find(|kind| kind.name() == name)
    }
}

impl TransportChoice {
    /// As on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            TransportChoice::Auto => "auto",
            TransportChoice::Shm => "shm",
            TransportChoice::Tcp => "tcp",
        }
    }
}

pub(crate) fn parse_dtype(text: &str) -> Result<DType, String> {
    one_of(&DType::ALL, text)
}

pub(crate) fn parse_op(text: &str) -> Result<ReduceOp, String> {
    one_of(&ReduceOp::ALL, text)
}

fn one_of<T: Copy + ToString>(all: &[T], text: &str) -> Result<T, String> {
    all.iter().copied().find(|one| one.to_string() == text).ok_or_else(|| {
        let names: Vec<String> = all.iter().map(T::to_string).collect();
        format!("expected one of {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_bandwidth_has_the_factors_of_nccl_tests() {
        assert_eq!(Operation::AllReduce.bus_factor(2), 1.0);
        assert_eq!(Operation::AllReduce.bus_factor(4), 1.5);
        assert_eq!(Operation::ReduceScatter.bus_factor(4), 0.75);
        assert_eq!(Operation::AllGather.bus_factor(8), 0.875);
        assert_eq!(Operation::AllToAll.bus_factor(4), 0.75);
        for operation in [Operation::Broadcast, Operation::Reduce, Operation::SendRecv] {
            assert_eq!(operation.bus_factor(4), 1.0);
        }
    }

    #[test]
    fn a_size_is_made_of_whole_elements_and_equal_parts() {
        assert_eq!(Operation::AllReduce.fitting(4099, 4, 3), 4096);
        assert_eq!(Operation::AllGather.fitting(4096, 4, 3), 4092);
        assert_eq!(Operation::Barrier.fitting(4096, 4, 3), 0);
        assert_eq!(Operation::ReduceScatter.fitting(8, 4, 3), 0);
    }
}
