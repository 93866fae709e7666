//! Reductions over several hosts: chunk by chunk they are staged, reduced on each host, reduced between the hosts'
//! leaders and collected. Every chunk is in another set of windows, so all four go on at once for different chunks;
//! the leader's part between hosts, the longest of them as a rule, has a thread of its own.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::call::Call;
use crate::element::{DType, Data, DataMut};
use crate::error::Error;
use crate::reduce::{ReduceOp, copy, fold, narrow, widen};

use super::staged::ReductionBuffers;
use super::{Group, Wide, aligned_part};

/// A chunk that the hosts' leaders reduce: elements of a window.
struct Chunk {
    dtype: DType,
    pointer: *mut u8,
    count: usize,
}

// SAFETY: whoever holds a chunk is the only one to touch its elements; see where it is made.
unsafe impl Send for Chunk {}

impl Chunk {
    fn data(&mut self) -> DataMut<'_> {
        // SAFETY: the window outlives the operation, holds the elements, and is touched by nobody else meanwhile.
        unsafe { DataMut::from_raw(self.dtype, self.pointer, self.count) }
    }
}

/// Reduces chunks between hosts, beside its caller or, where there is one chunk only, in its place.
enum Between<'a, 'b> {
    /// A rank that does not lead.
    Nobody,
    Here(&'a mut Wide<'b>),
    Beside {
        chunks: SyncSender<Chunk>,
        results: Receiver<Result<(), Error>>,
    },
}

impl Between<'_, '_> {
    fn begin(&mut self, mut chunk: Chunk) -> Result<(), Error> {
        match self {
            Between::Nobody => Ok(()),
            Between::Here(wide) => wide(chunk.data()),
            Between::Beside { chunks, .. } => {
                chunks.send(chunk).expect("the thread ends after its caller");
                Ok(())
            }
        }
    }

    fn finish(&mut self) -> Result<(), Error> {
        match self {
            Between::Nobody | Between::Here(_) => Ok(()),
            Between::Beside { results, .. } => results.recv().expect("each chunk has a result"),
        }
    }
}

/// Which elements of the buffers a chunk is made of.
#[derive(Clone, Copy)]
enum Cut<'a> {
    /// A range of both buffers, of `count` elements; not everybody receives.
    Range { count: usize, per_chunk: usize, receives: bool },
    /// A slice of every rank's part of the input, of `count` elements a part, in the `order` given; the output is the
    /// part at place `own` of it.
    Slices { order: &'a [usize], own: usize, count: usize, per_slice: usize },
}

impl Cut<'_> {
    fn chunks(&self) -> usize {
        match *self {
            Cut::Range { count, per_chunk, .. } => count.div_ceil(per_chunk).max(1),
            Cut::Slices { count, per_slice, .. } => count.div_ceil(per_slice).max(1),
        }
    }

    /// Elements of a chunk.
    fn len(&self, chunk: usize) -> usize {
        self.slice(chunk).len() * self.pieces()
    }

    /// The range of the buffer, or of each part.
    fn slice(&self, chunk: usize) -> Range<usize> {
        let (Cut::Range { count, per_chunk: most, .. } | Cut::Slices { count, per_slice: most, .. }) = *self;
        chunk * most..((chunk + 1) * most).min(count)
    }

    fn pieces(&self) -> usize {
        match self {
            Cut::Range { .. } => 1,
            Cut::Slices { order, .. } => order.len(),
        }
    }

    /// Ranges of the input, which lie one after the other in a chunk.
    fn given(&self, chunk: usize) -> impl Iterator<Item = Range<usize>> {
        let (slice, cut) = (self.slice(chunk), *self);
        (0..self.pieces()).map(move |piece| match cut {
            Cut::Range { .. } => slice.clone(),
            Cut::Slices { order, count, .. } => order[piece] * count + slice.start..order[piece] * count + slice.end,
        })
    }

    /// What of a chunk this rank receives: from which element of it on, and into which range of the output.
    fn got(&self, chunk: usize) -> Option<(usize, Range<usize>)> {
        let slice = self.slice(chunk);
        match *self {
            Cut::Range { receives, .. } => receives.then_some((0, slice)),
            Cut::Slices { own, .. } => Some((own * slice.len(), slice)),
        }
    }
}

/// What the intervals of one operation have in common.
#[derive(Clone, Copy)]
struct Plan<'a> {
    wire: DType,
    op: ReduceOp,
    cut: Cut<'a>,
}

impl Group {
    /// Reduces over the ranks of this host and, through the leaders' `wide`, over all hosts. With a `receives` that
    /// is not true for all, the others' outputs stay as they are.
    ///
    /// 16-bit floats go through the windows as f32, so that they are rounded once, at the end.
    pub(crate) fn reduce_wide(
        &mut self,
        call: &Call,
        buffers: ReductionBuffers<'_>,
        op: ReduceOp,
        receives: bool,
        wide: Option<Wide<'_>>,
    ) -> Result<(), Error> {
        let wire = wire_type(buffers.input.dtype());
        let (count, per_chunk) = (buffers.input.count(), self.region.window_len() / wire.size());
        let plan = Plan { wire, op, cut: Cut::Range { count, per_chunk, receives } };
        self.go_wide(call, buffers, plan, wide)
    }

    /// The same for inputs with a part for each rank of the world, of which each rank gets its own. The leaders get
    /// `per_slice` elements of every part at a time, in the `order` of ranks given, and each of them has to complete
    /// those of its host; `own` is this rank's place in the order. The output may be this rank's part of the input.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn reduce_scatter_wide(
        &mut self,
        call: &Call,
        buffers: ReductionBuffers<'_>,
        op: ReduceOp,
        order: &[usize],
        own: usize,
        per_slice: usize,
        wide: Option<Wide<'_>>,
    ) -> Result<(), Error> {
        let wire = wire_type(buffers.input.dtype());
        let cut = Cut::Slices { order, own, count: buffers.output.count(), per_slice };
        self.go_wide(call, buffers, Plan { wire, op, cut }, wide)
    }

    fn go_wide(
        &mut self,
        call: &Call,
        buffers: ReductionBuffers<'_>,
        plan: Plan<'_>,
        wide: Option<Wide<'_>>,
    ) -> Result<(), Error> {
        match wide {
            None => self.intervals(call, buffers, plan, Between::Nobody),
            Some(mut wide) if plan.cut.chunks() == 1 => self.intervals(call, buffers, plan, Between::Here(&mut wide)),
            Some(wide) => std::thread::scope(|scope| {
                let (chunks, asked) = sync_channel::<Chunk>(1);
                let (answer, results) = sync_channel(1);
                let between = move || {
                    for mut chunk in asked {
                        // The caller may have failed, and be gone.
                        let _ = answer.send(wide(chunk.data()));
                    }
                };
                std::thread::Builder::new().name("collectives-net".to_owned()).spawn_scoped(scope, between).map_err(
                    |error| {
                        let rank = self.ranks[self.me];
                        self.breaker.trip(Error::System { rank, cause: format!("thread: {error}") })
                    },
                )?;
                self.intervals(call, buffers, plan, Between::Beside { chunks, results })
            }),
        }
    }

    fn intervals(
        &mut self,
        call: &Call,
        buffers: ReductionBuffers<'_>,
        plan: Plan<'_>,
        mut between: Between<'_, '_>,
    ) -> Result<(), Error> {
        let ReductionBuffers { input, mut output } = buffers;
        let Plan { wire, op, cut } = plan;
        let chunks = cut.chunks();
        self.show(&plan, input, 0, self.turn);
        self.agree(call, None)?;
        for interval in 0..chunks + 2 {
            let turn = self.turn + interval as u64;
            let reduced = interval.checked_sub(1).filter(|chunk| *chunk < chunks);
            if let Some(chunk) = reduced {
                let count = cut.len(chunk);
                // In this interval the leader alone touches the reduced chunk, which lies in its window.
                let pointer = self.region.window(turn - 1, 0, 0, count * wire.size());
                between.begin(Chunk { dtype: wire, pointer, count })?;
            }
            if interval < chunks {
                let slice = aligned_part(wire, cut.len(interval), self.ranks.len(), self.me);
                let (offset, length) = (slice.start * wire.size(), slice.len() * wire.size());
                let windows: Vec<*mut u8> =
                    (0..self.ranks.len()).map(|place| self.region.window(turn, place, offset, length)).collect();
                let sources: Vec<*const u8> = windows.iter().map(|window| window.cast_const()).collect();
                // SAFETY: every window holds the chunk in the wire type, staged before the last meeting. Until the
                // next one nobody else touches this rank's slice of any window.
                unsafe { fold(wire, op, None, &sources, &windows[..1], slice.len()) };
            }
            if interval + 1 < chunks {
                self.show(&plan, input, interval + 1, turn + 1);
            }
            if let Some(chunk) = interval.checked_sub(2) {
                self.take(&plan, &mut output, chunk, turn - 2);
            }
            if reduced.is_some() {
                between.finish()?;
            }
            if interval < chunks + 1 {
                self.meet(call)?;
            }
        }
        self.turn += chunks as u64;
        Ok(())
    }

    /// Copies a chunk of the input to this rank's window.
    fn show(&self, plan: &Plan<'_>, input: Data<'_>, chunk: usize, turn: u64) {
        let wire = plan.wire;
        let mut shown = 0;
        for range in plan.cut.given(chunk) {
            let length = range.len() * wire.size();
            let window = self.region.window(turn, self.me, shown, length);
            shown += length;
            // SAFETY: the range lies within the input and, in the wire type, fits the window, which nobody reads now.
            unsafe {
                if wire == input.dtype() {
                    copy(input.part(&range), window, length);
                } else {
                    widen(input.dtype(), input.part(&range), window, range.len());
                }
            }
        }
    }

    /// Copies what this rank gets of a chunk of the result from the leader's window.
    fn take(&self, plan: &Plan<'_>, output: &mut DataMut<'_>, chunk: usize, turn: u64) {
        let wire = plan.wire;
        let Some((start, range)) = plan.cut.got(chunk) else { return };
        let length = range.len() * wire.size();
        let window = self.region.window(turn, 0, start * wire.size(), length).cast_const();
        // SAFETY: as for showing; nobody writes the window in this interval.
        unsafe {
            if wire == output.dtype() {
                copy(window, output.part(&range), length);
            } else {
                narrow(output.dtype(), window, output.part(&range), range.len());
            }
        }
    }
}

/// What elements are in the windows.
fn wire_type(dtype: DType) -> DType {
    if dtype.is_half() { DType::F32 } else { dtype }
}
