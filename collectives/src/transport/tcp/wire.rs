//! Elements between memory and wire: rounding what goes out, and combining what comes in, a cache-sized piece at a
//! time.

#![allow(unsafe_code)]

use super::passage::PassageBuffers;
use crate::element::DType;
use crate::reduce::{fold_narrow, narrow, widen};
use crate::schedule::Action;

/// Bytes that are combined at a time: with the range that they go to, they fit the second-level cache.
pub(super) const STAGE: usize = 64 << 10;

/// f32 elements that are rounded, or received rounded, at a time.
const ROUNDED: usize = STAGE / 4;

/// What has come of the range that is being received.
pub(super) struct Staging<'a> {
    memory: &'a mut Vec<u64>,
    /// Bytes of the range whose values are in place.
    pub(super) done: usize,
    /// Bytes after that, as they came, that wait to be combined.
    pending: usize,
}

impl<'a> Staging<'a> {
    pub(super) fn new(memory: &'a mut Vec<u64>) -> Staging<'a> {
        Staging { memory, done: 0, pending: 0 }
    }

    /// The stage, and behind it room for as many elements widened.
    fn stage(&mut self) -> *mut u8 {
        if self.memory.is_empty() {
            self.memory.resize(2 * STAGE / 8, 0);
        }
        self.memory.as_mut_ptr().cast()
    }

    /// Bytes on the wire of the piece that is combined next.
    fn piece(rest: usize, buffers: &PassageBuffers) -> usize {
        match buffers.compressed {
            false => rest.min(STAGE),
            true => (rest / DType::F32.size()).min(ROUNDED) * DType::BF16.size(),
        }
    }

    /// Where the next bytes go: straight to `target`, or to the stage.
    ///
    /// # Safety
    /// `target` has `rest` bytes of the range that is being received, and nothing else refers to them.
    pub(super) unsafe fn space(
        &mut self,
        target: *mut u8,
        rest: usize,
        action: Action,
        buffers: &PassageBuffers,
    ) -> &mut [u8] {
        if action == Action::Replace && !buffers.compressed {
            // SAFETY: the caller's promise.
            return unsafe { std::slice::from_raw_parts_mut(target, rest) };
        }
        let piece = Staging::piece(rest, buffers);
        let pending = self.pending;
        // SAFETY: the stage has STAGE bytes, a piece is no longer, and less than a piece is pending.
        unsafe { std::slice::from_raw_parts_mut(self.stage().add(pending), piece - pending) }
    }

    /// Takes `length` bytes that were read to the [`Staging::space`].
    ///
    /// # Safety
    /// As for it, with the same arguments.
    pub(super) unsafe fn take(
        &mut self,
        length: usize,
        target: *mut u8,
        rest: usize,
        action: Action,
        buffers: &PassageBuffers,
    ) {
        if action == Action::Replace && !buffers.compressed {
            self.done += length;
            return;
        }
        self.pending += length;
        let piece = Staging::piece(rest, buffers);
        if self.pending < piece {
            return;
        }
        self.pending = 0;
        let stage = self.stage();
        let count = piece / buffers.wire_size();
        let divisor = buffers.divisor.filter(|_| action == Action::Finish);
        // SAFETY: stage and target hold `count` elements: pieces are whole elements, since ranges, STAGE and ROUNDED
        // are. The widened elements lie behind the stage. All are disjoint, and nothing else refers to them.
        unsafe {
            let mut incoming = stage.cast_const();
            if buffers.compressed {
                let wide = stage.add(STAGE);
                widen(DType::BF16, stage, wide, count);
                incoming = wide;
            }
            match action {
                Action::Replace => std::ptr::copy_nonoverlapping(incoming, target, count * buffers.dtype.size()),
                Action::Reduce | Action::Finish => {
                    let sources = [target.cast_const(), incoming];
                    fold_narrow(buffers.dtype, buffers.op, divisor, &sources, &[target], count);
                }
            }
            if buffers.compressed && action == Action::Finish {
                // What the others get is rounded, so this rank's copy is as well.
                narrow(DType::BF16, target, stage, count);
                widen(DType::BF16, stage, target, count);
            }
        }
        self.done += count * buffers.dtype.size();
    }
}

/// A rounded piece on its way out.
pub(super) struct Outgoing<'a> {
    memory: &'a mut Vec<u64>,
    /// The piece's place among the bytes on the wire of its range.
    start: usize,
    length: usize,
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(memory: &'a mut Vec<u64>) -> Outgoing<'a> {
        Outgoing { memory, start: 0, length: 0 }
    }

    pub(super) fn clear(&mut self) {
        (self.start, self.length) = (0, 0);
    }

    /// What of the current piece is not sent yet, `sent` bytes of the range on the wire being sent; the next piece,
    /// if that is all.
    ///
    /// # Safety
    /// `values` are the `count` elements of the range from the one on that byte `sent` belongs to.
    pub(super) unsafe fn rounded(&mut self, values: *const f32, count: usize, sent: usize) -> &[u8] {
        if sent == self.start + self.length && count > 0 {
            self.memory.resize(ROUNDED * DType::BF16.size() / 8, 0);
            let piece = count.min(ROUNDED);
            // SAFETY: the caller's promise; the memory holds ROUNDED elements of bf16 and is nobody else's.
            unsafe { narrow(DType::BF16, values.cast(), self.memory.as_mut_ptr().cast(), piece) };
            (self.start, self.length) = (sent, piece * DType::BF16.size());
        }
        let unsent = sent - self.start..self.length;
        // SAFETY: the piece's bytes, of the memory that is borrowed.
        let bytes = unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast::<u8>(), self.length) };
        &bytes[unsent]
    }
}
