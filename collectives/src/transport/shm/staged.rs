//! Private buffers: they pass through the windows in chunks that fit a cache.
//!
//! What becomes of a chunk takes two or three intervals between meetings; each interval works on as many chunks as
//! there are stages, so a chunk costs one meeting, not one a stage. In a reduction, with the chunks of one rank's
//! point of view:
//! ```text
//! interval   0         1         2         3
//! stage      chunk 1   chunk 2   chunk 3
//! reduce     chunk 0   chunk 1   chunk 2   chunk 3
//! collect              chunk 0   chunk 1   chunk 2
//! ```
//! A rank stages only what others reduce, reads its own slice from the caller's buffer, and leaves the result of its
//! slice in the place of its window that nobody needs: its own.

use std::ops::Range;
use std::sync::Arc;

use crate::call::{Call, Location};
use crate::element::{DType, Data, DataMut};
use crate::error::Error;
use crate::reduce::{ReduceOp, copy_through, fold_far};
use crate::segment::Segment;

use super::direct::To;
use super::{Group, Placement, aligned_part};

/// How the chunks of a buffer are cut into one slice a rank.
#[derive(Clone, Copy)]
enum Cut {
    /// Each chunk of the buffer is cut: slices lie one after the other.
    Chunks { count: usize, per_chunk: usize },
    /// The buffer has a part of `count` elements for each rank, and each part is cut into chunks.
    Parts { count: usize, per_chunk: usize },
}

impl Cut {
    fn chunks(self) -> usize {
        match self {
            Cut::Chunks { count, per_chunk } | Cut::Parts { count, per_chunk } => count.div_ceil(per_chunk).max(1),
        }
    }

    /// The slice of `place` in a chunk, in elements of the buffer, and where it begins in a window.
    fn slice(self, dtype: DType, ranks: usize, chunk: usize, place: usize) -> (Range<usize>, usize) {
        match self {
            Cut::Chunks { count, per_chunk } => {
                let start = chunk * per_chunk;
                let part = aligned_part(dtype, per_chunk.min(count - start), ranks, place);
                (start + part.start..start + part.end, part.start * dtype.size())
            }
            Cut::Parts { count, per_chunk } => {
                let (start, end) = (chunk * per_chunk, ((chunk + 1) * per_chunk).min(count));
                (place * count + start..place * count + end, place * per_chunk * dtype.size())
            }
        }
    }
}

/// The buffers of a reduction, which may be the same.
pub(crate) struct ReductionBuffers<'a> {
    pub(crate) input: Data<'a>,
    pub(crate) output: DataMut<'a>,
}

type Located<'a> = (&'a Arc<Segment>, Location);

impl Group {
    /// Elements that all windows together hold of every rank's part.
    pub(super) fn per_part(&self, dtype: DType) -> usize {
        let line = 64 / dtype.size();
        (self.region.window_len() / self.ranks.len() / 64 * line).max(line)
    }

    /// Reduces `input` over the ranks of the group into `output`, on all of them or one.
    pub(crate) fn reduce(
        &mut self,
        call: &Call,
        buffers: ReductionBuffers<'_>,
        op: ReduceOp,
        divisor: Option<usize>,
        segment: Option<Located<'_>>,
        root: Option<usize>,
    ) -> Result<(), Error> {
        let ReductionBuffers { input, mut output } = buffers;
        let dtype = input.dtype();
        let receives = root.is_none_or(|root| root == self.me);
        let cut = Cut::Chunks { count: input.count(), per_chunk: self.region.window_len() / dtype.size() };
        let at_once = self.goes_at_once(input.byte_len());
        let show = |group: &Group| if at_once { group.show_all(input) } else { group.stage(input, cut, 0) };
        if segment.is_none() {
            show(self);
        }
        match self.agree(call, segment.map(|(_, location)| location))? {
            Placement::Direct(location) => {
                let (segment, _) = segment.expect("a direct placement is this rank's own");
                let to = root.map_or(To::All, To::One);
                return self.reduce_in_place(call, &output, op, divisor, (segment, location), to);
            }
            Placement::Mixed => {
                if segment.is_some() {
                    show(self);
                }
                self.meet(call)?;
            }
            Placement::Private => {}
        }
        if at_once {
            if receives {
                self.fold_all(output, op, divisor);
            } else {
                self.turn += 1;
            }
            return Ok(());
        }
        let chunks = cut.chunks();
        for chunk in 0..chunks {
            let (slice, offset) = cut.slice(dtype, self.ranks.len(), chunk, self.me);
            let length = slice.len() * dtype.size();
            let own = self.region.window(self.turn + chunk as u64, self.me, offset, length);
            let buffers = ReductionBuffers { input, output: output.reborrow() };
            let targets = if receives { &[own, buffers.output.at(slice.start)][..] } else { &[own][..] };
            self.fold_slice(&buffers, cut, chunk, op, divisor, targets);
            if chunk + 1 < chunks {
                self.stage(input, cut, chunk + 1);
            }
            if chunk > 0 && receives {
                self.collect(&mut output, cut, chunk - 1);
            }
            self.meet(call)?;
        }
        if receives {
            self.collect(&mut output, cut, chunks - 1);
        }
        self.turn += chunks as u64;
        Ok(())
    }

    /// Reduces every rank's part of the inputs for that rank.
    pub(crate) fn reduce_scatter(
        &mut self,
        call: &Call,
        input: Data<'_>,
        mut output: DataMut<'_>,
        op: ReduceOp,
        divisor: Option<usize>,
    ) -> Result<(), Error> {
        let per_chunk = self.per_part(input.dtype());
        let cut = Cut::Parts { count: output.count(), per_chunk };
        let chunks = cut.chunks();
        self.stage(input, cut, 0);
        self.agree(call, None)?;
        for chunk in 0..chunks {
            if chunk > 0 {
                self.meet(call)?;
            }
            let target = output.at((chunk * per_chunk).min(output.count()));
            let buffers = ReductionBuffers { input, output: output.reborrow() };
            self.fold_slice(&buffers, cut, chunk, op, divisor, &[target]);
            if chunk + 1 < chunks {
                self.stage(input, cut, chunk + 1);
            }
        }
        self.turn += chunks as u64;
        Ok(())
    }

    /// Copies the slices that other ranks reduce to this rank's window.
    fn stage(&self, input: Data<'_>, cut: Cut, chunk: usize) {
        let dtype = input.dtype();
        for place in self.others() {
            let (slice, offset) = cut.slice(dtype, self.ranks.len(), chunk, place);
            let length = slice.len() * dtype.size();
            let window = self.region.window(self.turn + chunk as u64, self.me, offset, length);
            // SAFETY: the slice lies within the input, and in this rank's window there is room for it. Nobody reads
            // that window now: it was last read two intervals ago.
            unsafe { copy_through(input.at(slice.start), window, length) };
        }
    }

    /// Folds this rank's slice of a chunk, of which all others have staged theirs, in the order of ranks.
    fn fold_slice(
        &self,
        buffers: &ReductionBuffers<'_>,
        cut: Cut,
        chunk: usize,
        op: ReduceOp,
        divisor: Option<usize>,
        targets: &[*mut u8],
    ) {
        let dtype = buffers.input.dtype();
        let (slice, offset) = cut.slice(dtype, self.ranks.len(), chunk, self.me);
        let length = slice.len() * dtype.size();
        let turn = self.turn + chunk as u64;
        let sources: Vec<*const u8> = (0..self.ranks.len())
            .map(|place| match place == self.me {
                true => buffers.input.at(slice.start),
                false => self.region.window(turn, place, offset, length).cast_const(),
            })
            .collect();
        // SAFETY: the slice lies within the input and, where it is a target, within the output, at the same place if
        // the two are one buffer. The others' windows hold as much and are not written before the next meeting; of
        // this rank's window nobody reads its own slice before that.
        unsafe { fold_far(dtype, op, divisor, &sources, targets, slice.len()) };
    }

    /// Copies what the others have reduced of a chunk.
    fn collect(&self, output: &mut DataMut<'_>, cut: Cut, chunk: usize) {
        let dtype = output.dtype();
        for place in self.others() {
            let (slice, offset) = cut.slice(dtype, self.ranks.len(), chunk, place);
            let length = slice.len() * dtype.size();
            let window = self.region.window(self.turn + chunk as u64, place, offset, length);
            // SAFETY: the slice lies within the output; the rank at `place` has left its result there before the last
            // meeting and does not write it before everybody has come to the one after the next.
            unsafe { copy_through(window.cast_const(), output.at(slice.start), length) };
        }
    }
}
