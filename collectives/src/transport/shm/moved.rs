//! Operations that only move data: what one rank puts into its window, others copy from there, one meeting a chunk; or
//! they read it where it lies, see `read`.

use crate::call::{Call, Location};
use crate::element::{Data, DataMut};
use crate::error::Error;
use crate::reduce::{copy_out, copy_through};
use crate::segment::Segment;

use std::ops::Range;
use std::sync::Arc;

use super::{Group, Placement};

/// A range of a buffer for each place, in elements.
pub(crate) type Ranges<'a> = &'a dyn Fn(usize) -> Range<usize>;

/// What of a range goes with a chunk of `per_chunk` elements.
fn piece(range: &Range<usize>, chunk: usize, per_chunk: usize) -> Range<usize> {
    let start = range.start.saturating_add(chunk.saturating_mul(per_chunk)).min(range.end);
    start..start.saturating_add(per_chunk).min(range.end)
}

/// Copies what a rank sends to itself. The buffers are disjoint or, in place, the two ranges one and the same.
fn copy_own(input: &Data<'_>, from: &Range<usize>, output: &DataMut<'_>, to: &Range<usize>) {
    assert_eq!(from.len(), to.len(), "a rank receives from itself what it sends to itself");
    let (source, target) = (input.part(from), output.part(to));
    if source != target.cast_const() {
        // SAFETY: both ranges lie within their buffers, which `part` checks, and do not overlap.
        unsafe { copy_out(source, target, from.len() * input.dtype().size(), output.byte_len()) };
    }
}

impl Group {
    /// Copies from the rank at `root` to all others of the group.
    pub(crate) fn broadcast(
        &mut self,
        call: &Call,
        data: DataMut<'_>,
        root: usize,
        segment: Option<(&Arc<Segment>, Location)>,
    ) -> Result<(), Error> {
        // The root uses all windows of a set, which lie one after the other.
        let size = data.dtype().size();
        let (_, room) = self.region.windows(self.turn);
        let per_chunk = room / size;
        let count = data.count();
        let chunks = count.div_ceil(per_chunk).max(1);
        let show = |group: &Group, chunk: usize| {
            let piece = piece(&(0..count), chunk, per_chunk);
            let (windows, _) = group.region.windows(group.turn + chunk as u64);
            // SAFETY: the piece lies within the data and fits the set, which only the root writes, and which was last
            // read at least two meetings ago.
            unsafe { copy_through(data.at(piece.start).cast_const(), windows, piece.len() * size) };
        };
        let sends = self.me == root;
        let is_read = self.reads_broadcast(data.byte_len());
        let send = |_: usize| if sends { 0..count } else { 0..0 };
        match is_read {
            true if sends => self.show_places(data.as_data(), &send),
            false if sends && segment.is_none() => show(self, 0),
            _ => {}
        }
        match self.agree(call, segment.map(|(_, location)| location))? {
            Placement::Direct(location) => {
                let (segment, _) = segment.expect("a direct placement is this rank's own");
                return self.broadcast_in_place(call, &data, root, (segment, location));
            }
            _ if is_read => {
                let receive = |from: usize| if from == root { 0..count } else { 0..0 };
                return self.take_places(call, &data, &receive);
            }
            Placement::Mixed => {
                if sends && segment.is_some() {
                    show(self, 0);
                }
                self.meet(call)?;
            }
            Placement::Private => {}
        }
        for chunk in 0..chunks {
            if chunk > 0 {
                self.meet(call)?;
            }
            if sends && chunk + 1 < chunks {
                show(self, chunk + 1);
            }
            if !sends {
                let piece = piece(&(0..count), chunk, per_chunk);
                let (windows, _) = self.region.windows(self.turn + chunk as u64);
                // SAFETY: as above; the root has filled this set before the last meeting.
                unsafe { copy_out(windows.cast_const(), data.at(piece.start), piece.len() * size, data.byte_len()) };
            }
        }
        self.turn += chunks as u64;
        Ok(())
    }

    /// Moves ranges between ranks: `send(to)` of this rank's input goes to the rank at `to`, into the range that it
    /// names by `receive(from)` of its own output. Both ends name ranges of one length; `longest` is the longest of
    /// all, the same number on all ranks. What a rank sends to itself is copied.
    pub(crate) fn exchange(
        &mut self,
        call: &Call,
        input: Data<'_>,
        send: Ranges<'_>,
        output: DataMut<'_>,
        receive: Ranges<'_>,
        longest: usize,
    ) -> Result<(), Error> {
        let size = input.dtype().size();
        let (per_chunk, ranks) = (self.per_part(input.dtype()), self.ranks.len());
        let chunks = longest.div_ceil(per_chunk).max(1);
        let show = |group: &Group, chunk: usize| {
            for to in group.others() {
                let piece = piece(&send(to), chunk, per_chunk);
                let (offset, length) = (to * per_chunk * size, piece.len() * size);
                if length > 0 {
                    let window = group.region.window(group.turn + chunk as u64, group.me, offset, length);
                    // SAFETY: the piece lies within the input, which `at` checks, and fits its place in this rank's
                    // window, which nobody reads now.
                    unsafe { copy_through(input.part(&piece), window, length) };
                }
            }
        };
        let is_read = self.show_or_stage(call, longest * size, input, send, &|group| show(group, 0))?;
        let (own, mine) = (send(self.me), receive(self.me));
        copy_own(&input, &own, &output, &mine);
        if is_read {
            return self.take_places(call, &output, receive);
        }
        for chunk in 0..chunks {
            if chunk > 0 {
                self.meet(call)?;
            }
            if chunk + 1 < chunks {
                show(self, chunk + 1);
            }
            for from in (0..ranks).filter(|from| *from != self.me) {
                let piece = piece(&receive(from), chunk, per_chunk);
                let (offset, length) = (self.me * per_chunk * size, piece.len() * size);
                if length > 0 {
                    let window = self.region.window(self.turn + chunk as u64, from, offset, length);
                    // SAFETY: as above, with the roles swapped: the sender has filled it before the last meeting.
                    unsafe { copy_out(window.cast_const(), output.part(&piece), length, output.byte_len()) };
                }
            }
        }
        self.turn += chunks as u64;
        Ok(())
    }

    /// Puts the equally long inputs of all ranks one after the other.
    pub(crate) fn all_gather(
        &mut self,
        call: &Call,
        input: Data<'_>,
        output: DataMut<'_>,
        receives: bool,
    ) -> Result<(), Error> {
        let (size, count) = (input.dtype().size(), input.count());
        let per_chunk = self.region.window_len() / size;
        let chunks = count.div_ceil(per_chunk).max(1);
        let show = |group: &Group, chunk: usize| {
            let piece = piece(&(0..count), chunk, per_chunk);
            let length = piece.len() * size;
            let window = group.region.window(group.turn + chunk as u64, group.me, 0, length);
            // SAFETY: as for an exchange.
            unsafe { copy_through(input.part(&piece), window, length) };
        };
        let send = |_: usize| 0..count;
        let is_read = self.show_or_stage(call, count * size, input, &send, &|group| show(group, 0))?;
        if receives {
            let own = self.me * count..(self.me + 1) * count;
            copy_own(&input, &(0..count), &output, &own);
        }
        if is_read {
            let receive = |from: usize| if receives { from * count..(from + 1) * count } else { 0..0 };
            return self.take_places(call, &output, &receive);
        }
        for chunk in 0..chunks {
            if chunk > 0 {
                self.meet(call)?;
            }
            if chunk + 1 < chunks {
                show(self, chunk + 1);
            }
            for from in self.others().filter(|_| receives) {
                let piece = piece(&(from * count..(from + 1) * count), chunk, per_chunk);
                let length = piece.len() * size;
                let window = self.region.window(self.turn + chunk as u64, from, 0, length);
                // SAFETY: as for an exchange.
                unsafe { copy_out(window.cast_const(), output.part(&piece), length, output.byte_len()) };
            }
        }
        self.turn += chunks as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_range_cover_it_once() {
        for (range, per_chunk) in [(3..10, 4), (5..5, 3), (0..8, 4), (2..3, 100)] {
            let all: Vec<usize> = (0..5).flat_map(|chunk| piece(&range, chunk, per_chunk)).collect();
            assert_eq!(all, range.collect::<Vec<_>>());
        }
    }
}
