//! The ranks of one epoch, as training needs them: sums, copies from one rank, memory that they share.

#![allow(unsafe_code)]

use std::ops::Range;

use muster_collectives::{Communicator, DType, DataMut, Error, ReduceOp, SharedBuffer};
use tch::{Device, Kind, Tensor};

#[derive(Debug)]
pub enum Group {
    /// One rank needs no communication.
    Alone,
    Joined(Communicator),
}

impl Group {
    pub fn rank(&self) -> usize {
        match self {
            Group::Alone => 0,
            Group::Joined(communicator) => communicator.rank(),
        }
    }

    pub fn world(&self) -> usize {
        match self {
            Group::Alone => 1,
            Group::Joined(communicator) => communicator.world(),
        }
    }

    /// Zeros in memory that the ranks of this machine share. None: there is nobody to share with.
    pub fn allocate(&self, len: usize) -> Result<Option<SharedBuffer<f32>>, Error> {
        match self {
            Group::Alone => Ok(None),
            Group::Joined(communicator) => communicator.allocate(len).map(Some),
        }
    }

    /// Copies a flat tensor of floats from one rank to all.
    pub fn broadcast(&self, flat: &Tensor, root: usize) -> Result<(), Error> {
        match self {
            Group::Alone => Ok(()),
            Group::Joined(communicator) => communicator.broadcast(elements(flat, 0..flat.numel()), root),
        }
    }

    pub fn broadcast_numbers(&self, numbers: &mut [i64], root: usize) -> Result<(), Error> {
        match self {
            Group::Alone => Ok(()),
            Group::Joined(communicator) => communicator.broadcast(numbers, root),
        }
    }

    pub fn sum_counts(&self, counts: &mut [i64]) -> Result<(), Error> {
        match self {
            Group::Alone => Ok(()),
            Group::Joined(communicator) => communicator.all_reduce(counts, ReduceOp::Sum),
        }
    }

    pub fn sum(&self, numbers: &mut [f64]) -> Result<(), Error> {
        match self {
            Group::Alone => Ok(()),
            Group::Joined(communicator) => communicator.all_reduce(numbers, ReduceOp::Sum),
        }
    }

    /// A flat tensor of floats becomes its mean over the ranks.
    pub fn mean(&self, flat: &Tensor) -> Result<(), Error> {
        match self {
            Group::Alone => Ok(()),
            Group::Joined(communicator) => communicator.all_reduce(elements(flat, 0..flat.numel()), ReduceOp::Mean),
        }
    }

    pub fn barrier(&self) -> Result<(), Error> {
        match self {
            Group::Alone => Ok(()),
            Group::Joined(communicator) => communicator.barrier(),
        }
    }
}

/// The memory of a range of a flat tensor. Its lifetime is that of the borrow of the tensor: while the collectives
/// use it, this thread waits for them, and no other thread computes with the tensor.
fn elements(flat: &Tensor, range: Range<usize>) -> DataMut<'_> {
    assert!(
        flat.kind() == Kind::Float && flat.device() == Device::Cpu && flat.dim() == 1 && flat.is_contiguous(),
        "only flat tensors of floats in main memory are shared"
    );
    assert!(range.start <= range.end && range.end <= flat.numel(), "the range lies inside the tensor");
    // SAFETY: a contiguous tensor of floats on the CPU has `numel` aligned f32 behind its pointer, and the range is
    // inside them. The borrow of the tensor keeps them alive.
    unsafe {
        let start = flat.data_ptr().cast::<f32>().add(range.start);
        DataMut::from_raw(DType::F32, start.cast(), range.len())
    }
}
