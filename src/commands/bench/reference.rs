//! What the rivals reach on an idle machine of two cores. Where they are much slower in a run, the machine was busy and
//! a comparison with them says nothing.

use muster_collectives::{DType, ReduceOp};

use super::contestant::Library;
use crate::cli::{Operation, TransportChoice};

/// How many times slower a rival may be before a run is void.
pub(super) const TOLERANCE: f64 = 1.5;

const SIZES: [usize; 5] = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 100_000_000];

/// Medians in microseconds, by size: all-reduce, f32, sum; gloo of PyTorch over the loopback, Open MPI 4.1.4 with CMA.
const GLOO: [(usize, [f64; 5]); 2] =
    [(2, [646.0, 722.0, 945.0, 12_207.0, 74_441.0]), (4, [6_337.0, 5_888.0, 6_321.0, 38_859.0, 208_622.0])];
const MPI: [(usize, [f64; 5]); 2] =
    [(2, [4.1, 23.0, 174.0, 6_643.0, 74_436.0]), (4, [37.0, 119.0, 1_117.0, 23_466.0, 173_809.0])];

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) library: Library,
    pub(super) operation: Operation,
    pub(super) dtype: DType,
    pub(super) op: ReduceOp,
    pub(super) transport: TransportChoice,
    pub(super) ranks: usize,
    pub(super) size: usize,
}

/// The median of an idle machine, where it is known.
pub(super) fn idle(point: Point) -> Option<f64> {
    let known = point.operation == Operation::AllReduce && point.dtype == DType::F32 && point.op == ReduceOp::Sum;
    let table = match point.library {
        Library::Gloo if known => &GLOO,
        Library::Mpi if known && point.transport != TransportChoice::Tcp => &MPI,
        _ => return None,
    };
    let (_, medians) = table.iter().find(|(ranks, _)| *ranks == point.ranks)?;
    let index = SIZES.iter().position(|size| *size == point.size)?;
    medians.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_measured_on_an_idle_machine_is_known() {
        let point = Point {
            library: Library::Mpi,
            operation: Operation::AllReduce,
            dtype: DType::F32,
            op: ReduceOp::Sum,
            transport: TransportChoice::Auto,
            ranks: 4,
            size: 1 << 20,
        };
        assert_eq!(idle(point), Some(1_117.0));
        assert_eq!(idle(Point { library: Library::Gloo, transport: TransportChoice::Tcp, ..point }), Some(6_321.0));
        let unknown = [
            Point { transport: TransportChoice::Tcp, ..point },
            Point { library: Library::Muster, ..point },
            Point { ranks: 3, ..point },
            Point { size: 1 << 21, ..point },
            Point { dtype: DType::F64, ..point },
            Point { operation: Operation::Broadcast, ..point },
        ];
        assert!(unknown.into_iter().all(|point| idle(point).is_none()));
    }
}
