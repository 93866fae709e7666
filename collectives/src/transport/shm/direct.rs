//! Buffers that lie in shared memory, at the same place of the same segment on every rank: nothing is copied.

use crate::call::{Call, Location};
use crate::element::DataMut;
use crate::error::Error;
use crate::reduce::{LONG, ReduceOp, copy_out, fold, fold_far};
use crate::segment::Segment;

use super::{Group, aligned_part};

/// Where a reduction's result goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum To {
    All,
    /// The rank at a place; the others' data stays as it is.
    One(usize),
}

impl Group {
    /// Folds this rank's slice of all buffers and writes it to all, or to one. The ranks have agreed before.
    pub(super) fn reduce_in_place(
        &mut self,
        call: &Call,
        data: &DataMut<'_>,
        op: ReduceOp,
        divisor: Option<usize>,
        (segment, location): (&Segment, Location),
        to: To,
    ) -> Result<(), Error> {
        let (dtype, ranks) = (data.dtype(), self.ranks.len());
        let slice = aligned_part(dtype, data.count(), ranks, self.me);
        let offset = location.offset as usize + slice.start * dtype.size();
        let buffer = |place: usize| segment.at(place, offset, slice.len() * dtype.size());
        let sources: Vec<*const u8> = (0..ranks).map(|place| buffer(place).cast_const()).collect();
        let targets: Vec<*mut u8> = match to {
            To::All => (0..ranks).map(buffer).collect(),
            To::One(place) => vec![buffer(place)],
        };
        // SAFETY: every rank has lent its buffer to this operation, at the same place of the segment, which
        // `Segment::at` has checked to hold it. Between the two meetings this rank alone touches this slice.
        unsafe {
            match data.byte_len() >= LONG {
                true => fold_far(dtype, op, divisor, &sources, &targets, slice.len()),
                false => fold(dtype, op, divisor, &sources, &targets, slice.len()),
            }
        }
        self.meet(call)
    }

    /// Copies from the buffer of the rank at `root`. The ranks have agreed before.
    pub(super) fn broadcast_in_place(
        &mut self,
        call: &Call,
        data: &DataMut<'_>,
        root: usize,
        (segment, location): (&Segment, Location),
    ) -> Result<(), Error> {
        let source = segment.at(root, location.offset as usize, data.byte_len());
        if self.me != root {
            // SAFETY: the root has lent its buffer to this operation and does not write it before the next meeting;
            // this rank's own buffer is another part of the segment.
            unsafe { copy_out(source, data.pointer(), data.byte_len(), data.byte_len()) };
        }
        self.meet(call)
    }
}
