//! The arithmetic: folds the same range of several buffers into one result, element by element.
//!
//! Inputs are combined in the order given, so equal inputs in equal order give equal bits. 16-bit floats are combined
//! in f32 and rounded once. Integer sums and products wrap. Minimum and maximum of floats keep a NaN, so that one
//! broken rank is seen by all.

#![allow(unsafe_code)]

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::element::{DType, Element};

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

/// Elements folded at a time: their accumulators stay in the first-level cache.
const BLOCK: usize = 1024;

trait Arithmetic: Element {
    /// What partial results are held in.
    type Partial: Copy + Default;
    fn widen(self) -> Self::Partial;
    fn narrow(partial: Self::Partial) -> Self;
    fn add(a: Self::Partial, b: Self::Partial) -> Self::Partial;
    fn multiply(a: Self::Partial, b: Self::Partial) -> Self::Partial;
    fn minimum(a: Self::Partial, b: Self::Partial) -> Self::Partial;
    fn maximum(a: Self::Partial, b: Self::Partial) -> Self::Partial;
    fn divide(a: Self::Partial, ranks: usize) -> Self::Partial;
}

macro_rules! float_arithmetic {
    ($($type:ty, $partial:ty, $widen:expr, $narrow:expr;)*) => {$(
        impl Arithmetic for $type {
            type Partial = $partial;
            #[inline(always)]
            fn widen(self) -> $partial { $widen(self) }
            #[inline(always)]
            fn narrow(partial: $partial) -> Self { $narrow(partial) }
            #[inline(always)]
            fn add(a: $partial, b: $partial) -> $partial { a + b }
            #[inline(always)]
            fn multiply(a: $partial, b: $partial) -> $partial { a * b }
            #[inline(always)]
            fn minimum(a: $partial, b: $partial) -> $partial { if a < b || a.is_nan() { a } else { b } }
            #[inline(always)]
            fn maximum(a: $partial, b: $partial) -> $partial { if a > b || a.is_nan() { a } else { b } }
            #[inline(always)]
            fn divide(a: $partial, ranks: usize) -> $partial { a / ranks as $partial }
        }
    )*};
}

float_arithmetic! {
    f64, f64, |value| value, |value| value;
    f32, f32, |value| value, |value| value;
    f16, f32, f16::to_f32, f16::from_f32;
    bf16, f32, bf16::to_f32, bf16::from_f32;
}

macro_rules! integer_arithmetic {
    ($($type:ty),*) => {$(
        impl Arithmetic for $type {
            type Partial = $type;
            #[inline(always)]
            fn widen(self) -> $type { self }
            #[inline(always)]
            fn narrow(partial: $type) -> Self { partial }
            #[inline(always)]
            fn add(a: $type, b: $type) -> $type { a.wrapping_add(b) }
            #[inline(always)]
            fn multiply(a: $type, b: $type) -> $type { a.wrapping_mul(b) }
            #[inline(always)]
            fn minimum(a: $type, b: $type) -> $type { a.min(b) }
            #[inline(always)]
            fn maximum(a: $type, b: $type) -> $type { a.max(b) }
            // In i128, since the number of ranks need not fit the element's type.
            #[inline(always)]
            fn divide(a: $type, ranks: usize) -> $type { (a as i128 / ranks as i128) as $type }
        }
    )*};
}

integer_arithmetic!(i8, i16, i32, i64, u8);

/// Folds `count` elements of every source, in order, and writes the result to every target. `divisor` divides the
/// folded value, for a mean.
///
/// # Safety
/// Every pointer is aligned for `dtype` and valid for `count` elements, to read for sources and to write for targets,
/// and nobody else touches them meanwhile. A target may be exactly a source; other overlaps are not allowed.
pub(crate) unsafe fn fold(
    dtype: DType,
    op: ReduceOp,
    divisor: Option<usize>,
    sources: &[*const u8],
    targets: &[*mut u8],
    count: usize,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match dtype {
            DType::F64 => fold_elements::<f64>(op, divisor, sources, targets, count),
            DType::F32 => fold_elements::<f32>(op, divisor, sources, targets, count),
            DType::F16 => fold_elements::<f16>(op, divisor, sources, targets, count),
            DType::BF16 => fold_elements::<bf16>(op, divisor, sources, targets, count),
            DType::I8 => fold_elements::<i8>(op, divisor, sources, targets, count),
            DType::I16 => fold_elements::<i16>(op, divisor, sources, targets, count),
            DType::I32 => fold_elements::<i32>(op, divisor, sources, targets, count),
            DType::I64 => fold_elements::<i64>(op, divisor, sources, targets, count),
            DType::U8 => fold_elements::<u8>(op, divisor, sources, targets, count),
        }
    }
}

unsafe fn fold_elements<T: Arithmetic>(
    op: ReduceOp,
    divisor: Option<usize>,
    sources: &[*const u8],
    targets: &[*mut u8],
    count: usize,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match op {
            ReduceOp::Sum | ReduceOp::Mean => fold_with::<T>(T::add, divisor, sources, targets, count),
            ReduceOp::Product => fold_with::<T>(T::multiply, divisor, sources, targets, count),
            ReduceOp::Min => fold_with::<T>(T::minimum, divisor, sources, targets, count),
            ReduceOp::Max => fold_with::<T>(T::maximum, divisor, sources, targets, count),
        }
    }
}

#[inline(always)]
unsafe fn fold_with<T: Arithmetic>(
    combine: impl Fn(T::Partial, T::Partial) -> T::Partial,
    divisor: Option<usize>,
    sources: &[*const u8],
    targets: &[*mut u8],
    count: usize,
) {
    let Some((first, others)) = sources.split_first() else { return };
    let mut partials = [T::Partial::default(); BLOCK];
    let mut start = 0;
    while start < count {
        let length = BLOCK.min(count - start);
        let partials = &mut partials[..length];
        // SAFETY: start + length <= count; the caller vouches for the pointers. The slices of one source live only
        // within their statement, so no target is written while a source is borrowed.
        unsafe {
            let values = std::slice::from_raw_parts(first.cast::<T>().add(start), length);
            for (partial, value) in partials.iter_mut().zip(values) {
                *partial = value.widen();
            }
            for source in others {
                let values = std::slice::from_raw_parts(source.cast::<T>().add(start), length);
                for (partial, value) in partials.iter_mut().zip(values) {
                    *partial = combine(*partial, value.widen());
                }
            }
            if let Some(ranks) = divisor {
                for partial in partials.iter_mut() {
                    *partial = T::divide(*partial, ranks);
                }
            }
            for target in targets {
                let values = std::slice::from_raw_parts_mut(target.cast::<T>().add(start), length);
                for (value, partial) in values.iter_mut().zip(partials.iter()) {
                    *value = T::narrow(*partial);
                }
            }
        }
        start += length;
    }
}

/// Converts 16-bit floats to f32.
///
/// # Safety
/// `source` holds `count` elements of `dtype`, a 16-bit float, and `target` has room for as many f32; both aligned,
/// disjoint and touched by nobody else.
pub(crate) unsafe fn widen(dtype: DType, source: *const u8, target: *mut u8, count: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let target = std::slice::from_raw_parts_mut(target.cast::<f32>(), count);
        match dtype {
            DType::F16 => std::slice::from_raw_parts(source.cast::<f16>(), count).convert_to_f32_slice(target),
            _ => std::slice::from_raw_parts(source.cast::<bf16>(), count).convert_to_f32_slice(target),
        }
    }
}

/// Rounds f32 to 16-bit floats, to nearest even.
///
/// # Safety
/// As [`widen`], with the roles of the types swapped.
pub(crate) unsafe fn narrow(dtype: DType, source: *const u8, target: *mut u8, count: usize) {
    // SAFETY: the caller's promise.
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
