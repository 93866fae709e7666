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

/// What the intervals of one operation have in common.
#[derive(Clone, Copy)]
struct Plan {
    wire: DType,
    op: ReduceOp,
    receives: bool,
    count: usize,
    per_chunk: usize,
    chunks: usize,
}

impl Plan {
    fn range(&self, chunk: usize) -> Range<usize> {
        chunk * self.per_chunk..((chunk + 1) * self.per_chunk).min(self.count)
    }
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
        let dtype = buffers.input.dtype();
        let wire = if dtype.is_half() { DType::F32 } else { dtype };
        let (count, per_chunk) = (buffers.input.count(), self.region.window_len() / wire.size());
        let chunks = count.div_ceil(per_chunk).max(1);
        let plan = Plan { wire, op, receives, count, per_chunk, chunks };
        match wide {
            None => self.intervals(call, buffers, plan, Between::Nobody),
            Some(mut wide) if chunks == 1 => self.intervals(call, buffers, plan, Between::Here(&mut wide)),
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
        plan: Plan,
        mut between: Between<'_, '_>,
    ) -> Result<(), Error> {
        let ReductionBuffers { input, mut output } = buffers;
        let Plan { wire, op, chunks, .. } = plan;
        self.show(wire, input, plan.range(0), self.turn);
        self.agree(call, None)?;
        for interval in 0..chunks + 2 {
            let turn = self.turn + interval as u64;
            let reduced = interval.checked_sub(1).filter(|chunk| *chunk < chunks);
            if let Some(chunk) = reduced {
                let count = plan.range(chunk).len();
                // In this interval the leader alone touches the reduced chunk, which lies in its window.
                let pointer = self.region.window(turn - 1, 0, 0, count * wire.size());
                between.begin(Chunk { dtype: wire, pointer, count })?;
            }
            if interval < chunks {
                let slice = aligned_part(wire, plan.range(interval).len(), self.ranks.len(), self.me);
                let (offset, length) = (slice.start * wire.size(), slice.len() * wire.size());
                let windows: Vec<*mut u8> =
                    (0..self.ranks.len()).map(|place| self.region.window(turn, place, offset, length)).collect();
                let sources: Vec<*const u8> = windows.iter().map(|window| window.cast_const()).collect();
                // SAFETY: every window holds the chunk in the wire type, staged before the last meeting. Until the
                // next one nobody else touches this rank's slice of any window.
                unsafe { fold(wire, op, None, &sources, &windows[..1], slice.len()) };
            }
            if interval + 1 < chunks {
                self.show(wire, input, plan.range(interval + 1), turn + 1);
            }
            if let Some(chunk) = interval.checked_sub(2)
                && plan.receives
            {
                self.take(wire, &mut output, plan.range(chunk), turn - 2);
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

    /// Copies a range of the input to this rank's window.
    fn show(&self, wire: DType, input: Data<'_>, range: Range<usize>, turn: u64) {
        let window = self.region.window(turn, self.me, 0, range.len() * wire.size());
        // SAFETY: the range lies within the input and, in the wire type, fits the window, which nobody reads now.
        unsafe {
            if wire == input.dtype() {
                copy(input.at(range.start), window, range.len() * wire.size());
            } else {
                widen(input.dtype(), input.at(range.start), window, range.len());
            }
        }
    }

    /// Copies a range of the result from the leader's window.
    fn take(&self, wire: DType, output: &mut DataMut<'_>, range: Range<usize>, turn: u64) {
        let window = self.region.window(turn, 0, 0, range.len() * wire.size()).cast_const();
        // SAFETY: as for showing; nobody writes the window in this interval.
        unsafe {
            if wire == output.dtype() {
                copy(window, output.at(range.start), range.len() * wire.size());
            } else {
                narrow(output.dtype(), window, output.at(range.start), range.len());
            }
        }
    }
}
