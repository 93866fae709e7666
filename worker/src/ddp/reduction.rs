//! Gradients become their mean over the ranks, bucket by bucket, while backward still computes those of earlier layers.
//!
//! A bucket is started once all of its gradients are there and the bucket before it has been started: the ranks'
//! backward passes finish gradients in different orders at times, and operations must be issued in the same order
//! everywhere.

#![allow(unsafe_code)]

use std::ops::Range;

use muster_collectives::{DType, DataMut, Error, Pending, RawBuffer, ReduceOp};

use super::group::Group;

/// Ranges of a flat memory that are reduced together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    /// One after the other from the memory's start, which has what backward finishes first.
    ranges: Vec<Range<usize>>,
    /// By leaf, the bucket that it is in.
    of: Vec<usize>,
}

impl Buckets {
    /// `ends` has, by leaf, the element behind its place; places follow each other without gaps, in any order. A
    /// bucket is closed once it holds `bytes`; the last one ends at `len`.
    pub fn cut(ends: &[usize], len: usize, bytes: usize) -> Buckets {
        let mut sorted = ends.to_vec();
        sorted.sort_unstable();
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut start = 0;
        for end in sorted {
            if (end - start) * size_of::<f32>() >= bytes {
                ranges.push(start..end);
                start = end;
            }
        }
        match ranges.last_mut() {
            // What is left holds no gradient.
            Some(last) if ends.iter().all(|end| *end <= start) => last.end = len,
            _ => ranges.push(start..len),
        }
        let of = ends.iter().map(|end| ranges.partition_point(|range| range.end < *end)).collect();
        Buckets { ranges, of }
    }

    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }
}

/// The reduction of one step's gradients.
pub struct Reduction<'a> {
    group: &'a Group,
    buckets: &'a Buckets,
    memory: *mut f32,
    /// By bucket, how many of its leaves have not come.
    missing: Vec<usize>,
    started: Vec<Pending<RawBuffer>>,
    error: Option<Error>,
}

// SAFETY: the memory is that of the gradients, which whoever made this has lent to it.
unsafe impl Send for Reduction<'_> {}

impl<'a> Reduction<'a> {
    /// # Safety
    /// `memory` holds all that `buckets` cover, stays valid and is touched by nobody else while this exists, but for
    /// the gradient of a leaf before it has been announced by [`Reduction::come`].
    pub unsafe fn new(group: &'a Group, buckets: &'a Buckets, memory: *mut f32) -> Reduction<'a> {
        let mut missing = vec![0; buckets.ranges.len()];
        buckets.of.iter().for_each(|bucket| missing[*bucket] += 1);
        Reduction { group, buckets, memory, missing, started: Vec::new(), error: None }
    }

    /// The gradient of a leaf is in its place. Starts what is complete.
    pub fn come(&mut self, leaf: usize) {
        self.missing[self.buckets.of[leaf]] -= 1;
        while self.error.is_none() && self.missing.get(self.started.len()) == Some(&0) {
            match self.start(self.started.len()) {
                Ok(Some(pending)) => self.started.push(pending),
                Ok(None) => return,
                Err(error) => self.error = Some(error),
            }
        }
    }

    fn start(&self, bucket: usize) -> Result<Option<Pending<RawBuffer>>, Error> {
        let Group::Joined(communicator) = self.group else { return Ok(None) };
        let range = &self.buckets.ranges[bucket];
        // SAFETY: the range lies within the memory, which is this reduction's, and `finish` or `drop` waits for the
        // operation.
        let buffer = unsafe { RawBuffer::new(DType::F32, self.memory.add(range.start).cast(), range.len()) };
        communicator.start_all_reduce(buffer, ReduceOp::Mean).map(Some)
    }

    /// Waits until all are means, or nothing of them is touched any more and the first error is told.
    pub fn finish(mut self) -> Result<(), Error> {
        self.wait();
        match self.error.take() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    fn wait(&mut self) {
        for pending in self.started.drain(..) {
            let (_, result) = pending.wait();
            if let Err(error) = result {
                self.error.get_or_insert(error);
            }
        }
    }
}

impl Drop for Reduction<'_> {
    fn drop(&mut self) {
        self.wait();
    }
}

/// All gradients at once, by this thread: where each rank has one core, nothing can run beside backward.
pub fn reduce(group: &Group, gradients: &mut [f32]) -> Result<(), Error> {
    match group {
        Group::Alone => Ok(()),
        Group::Joined(communicator) => communicator.all_reduce(DataMut::from(gradients), ReduceOp::Mean),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn buckets_cover_everything_and_leaves_lie_within_theirs(
            lengths in proptest::collection::vec(1..200usize, 1..20),
            bytes in 1..2000usize,
            reversed: bool,
        ) {
            let mut end = 0;
            let mut ends: Vec<usize> = lengths.iter().map(|length| { end += length; end }).collect();
            let len = end + 16;
            let mut lengths = lengths;
            if reversed {
                ends.reverse();
                lengths.reverse();
            }
            let buckets = Buckets::cut(&ends, len, bytes);
            prop_assert_eq!(buckets.ranges[0].start, 0);
            prop_assert_eq!(buckets.ranges.last().map(|last| last.end), Some(len));
            prop_assert!(buckets.ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            for (leaf, end) in ends.iter().enumerate() {
                let range = &buckets.ranges[buckets.of[leaf]];
                prop_assert!(range.start <= end - lengths[leaf] && *end <= range.end);
            }
            let (last, others) = buckets.ranges.split_last().expect("at least one");
            prop_assert!(others.iter().all(|range| range.len() * 4 >= bytes));
            prop_assert!(ends.iter().any(|end| last.contains(&(end - 1))), "no bucket is empty");
        }
    }

    #[test]
    fn sizes_at_the_ends() {
        assert_eq!(Buckets::cut(&[48, 32, 16], 64, 1).ranges, [0..16, 16..32, 32..64]);
        assert!(Buckets::cut(&[48, 32, 16], 64, 1 << 30).ranges.iter().eq([&(0..64)]));
    }
}
