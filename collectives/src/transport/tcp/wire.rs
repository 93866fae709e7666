//! Elements between memory and wire: rounding what goes out, and combining what comes in, a cache-sized piece at a
//! time.

#![allow(unsafe_code)]

use super::passage::Buffers;
use crate::element::DType;
use crate::reduce::fold_narrow;
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
    fn piece(rest: usize, buffers: &Buffers) -> usize {
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
        buffers: &Buffers,
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
        buffers: &Buffers,
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
                widen(stage.cast(), wide.cast(), count);
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
                round(target.cast(), stage.cast(), count);
                widen(stage.cast(), target.cast(), count);
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
            unsafe { round(values, self.memory.as_mut_ptr().cast(), piece) };
            (self.start, self.length) = (sent, piece * DType::BF16.size());
        }
        let unsent = sent - self.start..self.length;
        // SAFETY: the piece's bytes, of the memory that is borrowed.
        let bytes = unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast::<u8>(), self.length) };
        &bytes[unsent]
    }
}

/// The upper half of an f32 is a bf16.
const HALF: u32 = 16;

/// Rounds f32 to bf16, to nearest even; a NaN stays one. Integer arithmetic that compilers vectorize.
///
/// # Safety
/// Both have `count` elements, aligned and disjoint.
unsafe fn round(values: *const f32, rounded: *mut u16, count: usize) {
    // SAFETY: the caller's promise. Any bits are a u32.
    let (values, rounded) = unsafe {
        (std::slice::from_raw_parts(values.cast::<u32>(), count), std::slice::from_raw_parts_mut(rounded, count))
    };
    for (rounded, bits) in rounded.iter_mut().zip(values) {
        let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
        let quiet = (bits >> HALF) | 0x40;
        // Half of what is cut off, less one, and one more where the last digit that stays is odd.
        let nearest = bits.wrapping_add(0x7fff + (bits >> HALF & 1)) >> HALF;
        *rounded = if is_nan { quiet } else { nearest } as u16;
    }
}

/// # Safety
/// Both have `count` elements, aligned and disjoint.
unsafe fn widen(rounded: *const u16, values: *mut f32, count: usize) {
    // SAFETY: the caller's promise. Any bits are an f32.
    let (rounded, values) = unsafe {
        (std::slice::from_raw_parts(rounded, count), std::slice::from_raw_parts_mut(values.cast::<u32>(), count))
    };
    for (value, rounded) in values.iter_mut().zip(rounded) {
        *value = u32::from(*rounded) << HALF;
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn values_are_rounded_as_bf16(bits in proptest::collection::vec(any::<u32>(), 0..100), special in 0u32..8) {
            let edges = [0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0x7f7f_ffff, 0x3f80_8000, 0x3f81_8000, 1, 0x8000_0000];
            let bits: Vec<u32> = bits.into_iter().chain([edges[special as usize]]).collect();
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let mut rounded = vec![0u16; values.len()];
            let mut wide = vec![0f32; values.len()];
            // SAFETY: three vectors of one length.
            unsafe {
                round(values.as_ptr(), rounded.as_mut_ptr(), values.len());
                widen(rounded.as_ptr(), wide.as_mut_ptr(), values.len());
            }
            for ((value, rounded), wide) in values.iter().zip(rounded).zip(wide) {
                let expected = bf16::from_f32(*value);
                prop_assert!(rounded == expected.to_bits() || (value.is_nan() && bf16::from_bits(rounded).is_nan()));
                prop_assert_eq!(wide.to_bits(), bf16::from_bits(rounded).to_f32().to_bits());
            }
        }
    }
}
