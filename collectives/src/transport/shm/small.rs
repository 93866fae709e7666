//! Little data: every rank shows all of it to all others, and each folds for itself. One meeting is all it takes.

use crate::element::{Data, DataMut};
use crate::reduce::{ReduceOp, copy_to_read, fold};

use super::{Group, Patience};

/// Up to this many bytes of all ranks together each reads all of them: reading the others' slices twice over costs
/// less than a second meeting does.
const AT_ONCE: usize = 12 << 10;

/// The same where ranks share processors, which makes meetings dear.
const AT_ONCE_SHARING: usize = 64 << 10;

/// The most ranks whose windows are folded without a list on the heap.
const FEW: usize = 16;

impl Group {
    /// Whether data of each rank's `bytes` goes at once, if it is not in place already.
    pub(super) fn goes_at_once(&self, bytes: usize) -> bool {
        let limit = match self.patience {
            Patience::Look => AT_ONCE,
            Patience::GiveWay => AT_ONCE_SHARING,
        };
        bytes * self.ranks.len() <= limit && bytes <= self.region.window_len()
    }

    /// Whether it matters where data of each rank's `bytes` lies: a meeting more must be cheaper than two copies. The
    /// same on all ranks.
    pub(crate) fn reduces_in_place(&self, bytes: usize) -> bool {
        self.patience == Patience::Look || bytes * self.ranks.len() > AT_ONCE_SHARING / 4
    }

    /// Shows this rank's input to the others.
    #[inline]
    pub(super) fn show_all(&self, input: Data<'_>) {
        let bytes = input.byte_len();
        let own = self.region.window(self.turn, self.me, 0, bytes);
        // SAFETY: the window has room for the bytes. Nobody reads it: what was read from this set lies four turns
        // back. Inputs do not overlap windows, which only this module knows.
        unsafe { copy_to_read(input.pointer(), own, bytes) };
    }

    /// Folds the inputs that all ranks have shown into `output`; all ranks in the same order, so their results are
    /// bitwise equal.
    #[inline]
    pub(super) fn fold_all(&mut self, output: DataMut<'_>, op: ReduceOp, divisor: Option<usize>) {
        let (dtype, bytes) = (output.dtype(), output.byte_len());
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
    }
}
