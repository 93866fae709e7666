//! Little data: every rank shows all of it to all others, and each folds for itself. One meeting is all it takes.

use crate::call::Call;
use crate::element::{Data, DataMut};
use crate::error::Error;
use crate::reduce::{ReduceOp, fold};

use super::Group;

/// Up to this many bytes of all ranks together each reads all of them: reading the others' slices twice over would
/// cost less than a second meeting does.
const AT_ONCE: usize = 32 << 10;

/// The most ranks whose windows are folded without a list on the heap.
const FEW: usize = 16;

impl Group {
    pub(crate) fn is_small(&self, bytes: usize) -> bool {
        bytes * self.ranks.len() <= AT_ONCE && bytes <= self.region.window_len()
    }

    /// Folds the inputs of all ranks into `output`; all ranks in the same order, so their results are bitwise equal.
    #[inline]
    pub(super) fn all_reduce_small(
        &mut self,
        call: &Call,
        input: Data<'_>,
        output: DataMut<'_>,
        op: ReduceOp,
        divisor: Option<usize>,
    ) -> Result<(), Error> {
        let (dtype, bytes) = (input.dtype(), input.byte_len());
        let own = self.region.window(self.turn, self.me, 0, bytes);
        // SAFETY: the window has room for the bytes. Nobody reads it: what was read from this set lies four turns
        // back. Inputs do not overlap windows, which only this module knows.
        unsafe { std::ptr::copy_nonoverlapping(input.pointer(), own, bytes) };
        self.agree(call, None)?;
        let window = |place: usize| self.region.window(self.turn, place, 0, bytes).cast_const();
        let ranks = self.ranks.len();
        // SAFETY: after the meeting every window holds its rank's input, which nobody writes until this rank has come
        // to a meeting two turns later. The output is this rank's own.
        unsafe {
            if ranks <= FEW {
                let windows: [*const u8; FEW] = std::array::from_fn(|place| window(place.min(ranks - 1)));
                fold(dtype, op, divisor, &windows[..ranks], &[output.pointer()], output.count());
            } else {
                let windows: Vec<*const u8> = (0..ranks).map(window).collect();
                fold(dtype, op, divisor, &windows, &[output.pointer()], output.count());
            }
        }
        self.turn += 1;
        Ok(())
    }
}
