//! The arithmetic: folds the same range of several buffers into one result, element by element.
//!
//! Inputs are combined in the order given, so equal inputs in equal order give equal bits. 16-bit floats are combined
//! in f32 and rounded once. Integer sums and products wrap. Minimum and maximum of floats keep a NaN, so that one
//! broken rank is seen by all.

#![allow(unsafe_code)]

mod kernel;
mod level;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::element::DType;
use level::Level;

/// How values of different ranks are combined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum ReduceOp {
    Sum = 1,
    /// The sum divided by the number of ranks; integers round towards zero.
    Mean = 2,
    Min = 3,
    Max = 4,
    Product = 5,
}

impl ReduceOp {
    pub const ALL: [ReduceOp; 5] = [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Min, ReduceOp::Max, ReduceOp::Product];

    pub(crate) fn from_code(code: u8) -> Option<ReduceOp> {
        ReduceOp::ALL.into_iter().find(|op| *op as u8 == code)
    }
}

impl std::fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Mean => "mean",
            ReduceOp::Min => "min",
            ReduceOp::Max => "max",
            ReduceOp::Product => "product",
        })
    }
}

/// Folds `count` elements of every source, in order, and writes the result to every target. `divisor` divides the
/// folded value, for a mean.
///
/// # Safety
/// Every pointer is aligned for `dtype` and valid for `count` elements, to read for sources and to write for targets.
/// Meanwhile nobody else writes to the sources, which others may read as well, and nobody else touches the targets. A
/// target may be exactly a source; other overlaps are not allowed.
#[inline]
pub(crate) unsafe fn fold(
    dtype: DType,
    op: ReduceOp,
    divisor: Option<usize>,
    sources: &[*const u8],
    targets: &[*mut u8],
    count: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { fold_work(dtype, &kernel::Work { op, divisor, sources, targets, count, far: false }) };
}

/// The same where sources may lie in no cache of this processor, being long or another's.
///
/// # Safety
/// As [`fold`].
pub(crate) unsafe fn fold_far(
    dtype: DType,
    op: ReduceOp,
    divisor: Option<usize>,
    sources: &[*const u8],
    targets: &[*mut u8],
    count: usize,
) {
    let far = count * dtype.size() >= PASSED_ON;
    // SAFETY: the caller's promise.
    unsafe { fold_work(dtype, &kernel::Work { op, divisor, sources, targets, count, far }) };
}

#[inline]
unsafe fn fold_work(dtype: DType, work: &kernel::Work<'_>) {
    // SAFETY: the caller's promise, passed on; and a level is only ever one that the processor has.
    unsafe {
        match Level::best() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => kernel::fold_avx512(dtype, work),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => kernel::fold_avx2(dtype, work),
            Level::Base => kernel::fold_base(dtype, work),
        }
    }
}

/// [`fold`] between system calls that copy. Wide vectors make some processors lower their clock for about a millisecond,
/// and the kernel's copies are then slower by more than the narrow ones are here, which wait for memory anyway. 16-bit
/// floats have too much arithmetic for that. The bits are the same.
///
/// # Safety
/// As [`fold`].
pub(crate) unsafe fn fold_narrow(
    dtype: DType,
    op: ReduceOp,
    divisor: Option<usize>,
    sources: &[*const u8],
    targets: &[*mut u8],
    count: usize,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match dtype.is_half() {
            true => fold(dtype, op, divisor, sources, targets, count),
            false => kernel::fold_base(dtype, &kernel::Work { op, divisor, sources, targets, count, far: false }),
        }
    }
}

/// Copies bytes.
///
/// # Safety
/// `length` bytes can be read from `source` and written to `target`, and the two do not overlap. Meanwhile nobody else
/// writes to the source, which others may read as well, and nobody else touches the target.
#[inline]
pub(crate) unsafe fn copy(source: *const u8, target: *mut u8, length: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(source, target, length) };
}

/// Copies bytes to where another processor has just read: the right to change each line is asked for all at once, as
/// far as the processor can, instead of by one store after the other.
///
/// # Safety
/// As [`copy`].
#[inline]
pub(crate) unsafe fn copy_to_read(source: *const u8, target: *mut u8, length: usize) {
    for line in 0..length / 64 {
        kernel::claim(target.wrapping_add(64 * line));
    }
    // SAFETY: the caller's promise; whole lines lie within `length` bytes, and are read and written as bytes, which
    // need no alignment.
    unsafe {
        let whole = length - length % 64;
        for start in (0..whole).step_by(64) {
            let line = source.add(start).cast::<[u64; 8]>().read_unaligned();
            target.add(start).cast::<[u64; 8]>().write_unaligned(line);
        }
        copy(source.add(whole), target.add(whole), length - whole);
    }
}

/// Bytes of a buffer from which on it is not in a cache when an operation comes to it.
pub(crate) const LONG: usize = 4 << 20;

/// Bytes of a copy from which on it pays to ask for lines ahead, where they are in another processor's cache.
const PASSED_ON: usize = 16 << 10;

/// Copies a part of an output of `total` bytes.
///
/// # Safety
/// As [`copy`].
#[inline]
pub(crate) unsafe fn copy_out(source: *const u8, target: *mut u8, length: usize, total: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match total >= LONG {
            true => kernel::copy_far(source, target, length),
            false => copy(source, target, length),
        }
    }
}

/// Copies to or from a window, whose lines are in another processor's cache as well.
///
/// # Safety
/// As [`copy`].
#[inline]
pub(crate) unsafe fn copy_through(source: *const u8, target: *mut u8, length: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match length >= PASSED_ON {
            true => kernel::copy_far(source, target, length),
            false => copy(source, target, length),
        }
    }
}

/// Converts 16-bit floats to f32.
///
/// # Safety
/// `source` holds `count` elements of `dtype`, a 16-bit float, and `target` has room for as many f32; both are aligned,
/// and disjoint. Meanwhile nobody else writes to the source, which others may read as well, or touches the target.
pub(crate) unsafe fn widen(dtype: DType, source: *const u8, target: *mut u8, count: usize) {
    // SAFETY: the caller's promise. Any bits are values of these types.
    unsafe {
        let target = std::slice::from_raw_parts_mut(target.cast::<f32>(), count);
        match dtype {
            DType::F16 => std::slice::from_raw_parts(source.cast::<f16>(), count).convert_to_f32_slice(target),
            // The crate asks of each element whether it is a NaN, which takes twice as long.
            _ => {
                let source = std::slice::from_raw_parts(source.cast::<bf16>(), count);
                target.iter_mut().zip(source).for_each(|(target, source)| *target = kernel::bf16_to_f32(*source));
            }
        }
    }
}

/// Rounds f32 to 16-bit floats, to nearest even.
///
/// # Safety
/// As [`widen`], with the roles of the types swapped.
pub(crate) unsafe fn narrow(dtype: DType, source: *const u8, target: *mut u8, count: usize) {
    // SAFETY: the caller's promise. Any bits are values of these types.
    unsafe {
        let source = std::slice::from_raw_parts(source.cast::<f32>(), count);
        match dtype {
            DType::F16 => std::slice::from_raw_parts_mut(target.cast::<f16>(), count).convert_from_f32_slice(source),
            _ => std::slice::from_raw_parts_mut(target.cast::<bf16>(), count).convert_from_f32_slice(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Element;

    /// More than any kernel folds at a time.
    const BLOCK: usize = 1024;

    fn folded<T: Element>(op: ReduceOp, divisor: Option<usize>, inputs: &[Vec<T>]) -> Vec<T> {
        let mut result = inputs[0].clone();
        let sources: Vec<*const u8> = inputs.iter().map(|input| input.as_ptr().cast()).collect();
        // SAFETY: every vector has the length of the first.
        unsafe { fold(T::DTYPE, op, divisor, &sources, &[result.as_mut_ptr().cast()], result.len()) };
        result
    }

    #[test]
    fn halves_are_summed_in_f32_and_rounded_once() {
        // 2048 + 1 is not an f16: summed pairwise in f16 the ones would be lost.
        let inputs = vec![vec![f16::from_f32(2048.0)], vec![f16::ONE], vec![f16::ONE]];
        assert_eq!(folded(ReduceOp::Sum, None, &inputs), vec![f16::from_f32(2050.0)]);
    }

    #[test]
    fn copies_of_every_kind_are_whole_and_touch_nothing_else() {
        let source: Vec<u8> = (0..PASSED_ON + 300).map(|index| (index % 251) as u8).collect();
        for length in [0, 1, 63, 64, 65, 1000, PASSED_ON, PASSED_ON + 65] {
            for (from, to) in [(0, 0), (1, 0), (3, 7)] {
                for kind in 0..3 {
                    let mut target = vec![255u8; length + 20];
                    let (source, place) = (source[from..].as_ptr(), target[to..].as_mut_ptr());
                    // SAFETY: both vectors hold `length` bytes from there.
                    unsafe {
                        match kind {
                            0 => copy_out(source, place, length, LONG),
                            1 => copy_out(source, place, length, 0),
                            _ => copy_through(source, place, length),
                        }
                    }
                    assert!((0..length).all(|index| target[to + index] == ((from + index) % 251) as u8));
                    assert!(target[..to].iter().chain(&target[to + length..]).all(|byte| *byte == 255));
                }
            }
        }
    }

    #[test]
    fn ranges_of_halves_are_converted_as_the_half_crate_does() {
        fn check<T: Element>(values: &[f32], of: impl Fn(f32) -> T, to: impl Fn(T) -> f32) {
            let mut halves = vec![of(0.0); values.len()];
            let mut wide = vec![0f32; values.len()];
            // SAFETY: three vectors of one length.
            unsafe {
                narrow(T::DTYPE, values.as_ptr().cast(), halves.as_mut_ptr().cast(), values.len());
                widen(T::DTYPE, halves.as_ptr().cast(), wide.as_mut_ptr().cast(), values.len());
            }
            for ((value, half), wide) in values.iter().zip(halves).zip(wide) {
                if value.is_nan() {
                    assert!(to(half).is_nan() && wide.is_nan());
                } else {
                    assert_eq!((half, wide), (of(*value), to(half)), "{value:?}");
                }
            }
        }
        // Infinities, a NaN, the largest value, halfway points with an even and an odd neighbour, subnormal values.
        let edges = [0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0x7f7f_ffff, 0x3f80_8000, 0x3f81_8000, 1, 0x8000_0000u32];
        let others = (0..100u32).map(|number| number.wrapping_mul(0x9E37_79B9));
        let values: Vec<f32> = edges.into_iter().chain(others).map(f32::from_bits).collect();
        check(&values, bf16::from_f32, bf16::to_f32);
        check(&values, f16::from_f32, f16::to_f32);
        check(&values[..3], bf16::from_f32, bf16::to_f32);
        check(&[], f16::from_f32, f16::to_f32);
    }

    /// Whatever the processor has, the bits are those of the plain loop.
    #[test]
    fn every_level_gives_the_same_bits() {
        fn check<T: Element>(of: impl Fn(u64) -> T) {
            let mut state = 7u64;
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                state >> 20
            };
            for (ranks, count) in [(1, 3), (2, 0), (2, 1000), (3, 257), (5, 129)] {
                let inputs: Vec<Vec<T>> = (0..ranks).map(|_| (0..count).map(|_| of(next())).collect()).collect();
                let sources: Vec<*const u8> = inputs.iter().map(|input| input.as_ptr().cast()).collect();
                for (op, divisor) in ReduceOp::ALL.into_iter().map(|op| (op, (op == ReduceOp::Mean).then_some(ranks))) {
                    let mut results = Vec::new();
                    for (level, far) in Level::all().into_iter().flat_map(|level| [(level, false), (level, true)]) {
                        let mut result = vec![of(0); count];
                        let targets = [result.as_mut_ptr().cast()];
                        let work = kernel::Work { op, divisor, sources: &sources, targets: &targets, count, far };
                        // SAFETY: every vector has `count` elements, and the processor has the level.
                        unsafe {
                            match level {
                                #[cfg(target_arch = "x86_64")]
                                Level::Avx512 => kernel::fold_avx512(T::DTYPE, &work),
                                #[cfg(target_arch = "x86_64")]
                                Level::Avx2 => kernel::fold_avx2(T::DTYPE, &work),
                                Level::Base => kernel::fold_base(T::DTYPE, &work),
                            }
                        }
                        // Bits, since a NaN is not equal to itself.
                        // SAFETY: the vector's own bytes.
                        results.push(unsafe {
                            std::slice::from_raw_parts(result.as_ptr().cast::<u8>(), size_of_val(&result[..])).to_vec()
                        });
                    }
                    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{op} of {ranks} x {}", T::DTYPE);
                }
            }
        }
        check(|bits| (bits % 1000) as f32 / 7.0 - 50.0);
        check(|bits| (bits % 1000) as f64 / 7.0 - 50.0);
        // All finite 16-bit floats.
        check(|bits| f16::from_bits(bits as u16 & 0xBBFF));
        check(|bits| bf16::from_bits(bits as u16 & 0xBFFF));
        check(|bits| bits as i8);
        check(|bits| bits as i16);
        check(|bits| bits as i32);
        check(|bits| bits as i64);
        check(|bits| bits as u8);
    }

    #[test]
    fn integers_wrap_and_means_round_towards_zero() {
        assert_eq!(folded(ReduceOp::Sum, None, &[vec![i32::MAX], vec![1]]), vec![i32::MIN]);
        assert_eq!(folded(ReduceOp::Mean, Some(2), &[vec![-3i64], vec![0]]), vec![-1]);
        assert_eq!(folded(ReduceOp::Mean, Some(300), &[vec![100u8], vec![55]]), vec![0]);
    }

    #[test]
    fn a_nan_reaches_everybody() {
        for op in ReduceOp::ALL {
            for inputs in [[vec![f32::NAN], vec![1.0]], [vec![1.0], vec![f32::NAN]]] {
                assert!(folded(op, None, &inputs)[0].is_nan(), "{op}");
            }
        }
    }

    #[test]
    fn ranges_longer_than_a_block_are_folded_whole() {
        let count = 2 * BLOCK + 3;
        let inputs: Vec<Vec<f32>> = (0..3).map(|rank| (0..count).map(|i| (i * (rank + 1)) as f32).collect()).collect();
        let sum = folded(ReduceOp::Sum, None, &inputs);
        assert!(sum.iter().enumerate().all(|(i, value)| *value == (i * 6) as f32));
    }
}
