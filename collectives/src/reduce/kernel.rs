//! The loops. Each is written once over blocks of a fixed length, which the compiler turns into vectors, and compiled
//! for every [`Level`](super::level::Level).

use half::{bf16, f16};

use super::ReduceOp;
use crate::element::{DType, Element};

/// What to fold; see [`super::fold`].
pub(super) struct Work<'a> {
    pub(super) op: ReduceOp,
    pub(super) divisor: Option<usize>,
    pub(super) sources: &'a [*const u8],
    pub(super) targets: &'a [*mut u8],
    pub(super) count: usize,
    /// Whether the sources may be in no cache of this processor.
    pub(super) far: bool,
}

/// Bytes of partial results that are held in registers at a time.
const HELD: usize = 256;

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
    f16, f32, f16_to_f32, f16_from_f32;
    bf16, f32, bf16_to_f32, bf16_from_f32;
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

// Conversions without branches, so that they become vectors; those of the `half` crate decide element by element.

#[inline(always)]
pub(super) fn bf16_to_f32(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// To nearest even; a NaN stays one.
#[inline(always)]
fn bf16_from_f32(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16;
    let nan = (bits >> 16) as u16 | 0x40;
    bf16::from_bits(if bits & 0x7FFF_FFFF > 0x7F80_0000 { nan } else { rounded })
}

/// By the scale of the exponent: an f16's bits, moved to an f32's places, are its value times 2^-112, also where it is
/// subnormal.
#[inline(always)]
fn f16_to_f32(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let magnitude = (bits & 0x7FFF) << 13;
    let finite = (f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23)).to_bits();
    // Infinity and NaN keep their fraction under a full exponent. A NaN is made quiet, as conversions do.
    let quiet = if bits & 0x3FF != 0 { 0x40_0000 } else { 0 };
    let full = magnitude | 0x7F80_0000 | quiet;
    let magnitude = if bits & 0x7C00 == 0x7C00 { full } else { finite };
    f32::from_bits(magnitude | (bits & 0x8000) << 16)
}

/// To nearest even; too large becomes infinity, a NaN stays one.
#[inline(always)]
fn f16_from_f32(value: f32) -> f16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16) & 0x8000, bits & 0x7FFF_FFFF);
    // Normal results: the exponent moved, the fraction rounded; a carry runs into the exponent, at last to infinity.
    let moved = magnitude.wrapping_sub(112 << 23);
    let normal = moved.wrapping_add(0xFFF + ((moved >> 13) & 1)) >> 13;
    // Subnormal results: adding one half puts the fraction's unit at 2^-24, where the addition itself rounds.
    let half = f32::from_bits(126 << 23);
    let subnormal = (f32::from_bits(magnitude) + half).to_bits().wrapping_sub(126 << 23);
    let nan = 0x7E00 | ((magnitude >> 13) & 0x3FF);
    let finite = if magnitude < 113 << 23 { subnormal } else { normal };
    let limited = if magnitude >= 0x4780_0000 { 0x7C00 } else { finite };
    let result = if magnitude > 0x7F80_0000 { nan } else { limited };
    f16::from_bits((sign | result) as u16)
}

/// # Safety
/// As [`super::fold`].
pub(super) unsafe fn fold_base(dtype: DType, work: &Work<'_>) {
    // SAFETY: the caller's promise.
    unsafe { fold_dtype(dtype, work) }
}

/// # Safety
/// As [`super::fold`], and the processor has AVX2, F16C and BMI 1 and 2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c,bmi1,bmi2")]
pub(super) unsafe fn fold_avx2(dtype: DType, work: &Work<'_>) {
    // SAFETY: the caller's promise.
    unsafe { fold_dtype(dtype, work) }
}

/// # Safety
/// As [`super::fold`], and the processor has AVX-512 F, BW, DQ and VL, AVX2 and BMI 1 and 2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2")]
pub(super) unsafe fn fold_avx512(dtype: DType, work: &Work<'_>) {
    // SAFETY: the caller's promise.
    unsafe { fold_dtype(dtype, work) }
}

/// # Safety
/// As [`super::fold`].
#[inline(always)]
unsafe fn fold_dtype(dtype: DType, work: &Work<'_>) {
    // SAFETY: the caller's promise, passed on, with the type that belongs to the dtype. The second number is that of
    // elements whose partials fill `HELD`.
    unsafe {
        match dtype {
            DType::F64 => fold_op::<f64, { HELD / 8 }>(work),
            DType::F32 => fold_op::<f32, { HELD / 4 }>(work),
            DType::F16 => fold_op::<f16, { HELD / 4 }>(work),
            DType::BF16 => fold_op::<bf16, { HELD / 4 }>(work),
            DType::I8 => fold_op::<i8, HELD>(work),
            DType::I16 => fold_op::<i16, { HELD / 2 }>(work),
            DType::I32 => fold_op::<i32, { HELD / 4 }>(work),
            DType::I64 => fold_op::<i64, { HELD / 8 }>(work),
            DType::U8 => fold_op::<u8, HELD>(work),
        }
    }
}

/// # Safety
/// As [`super::fold`], and `T` is the elements' type.
#[inline(always)]
unsafe fn fold_op<T: Arithmetic, const BLOCK: usize>(work: &Work<'_>) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match work.op {
            ReduceOp::Sum | ReduceOp::Mean => fold_blocks::<T, BLOCK>(T::add, work),
            ReduceOp::Product => fold_blocks::<T, BLOCK>(T::multiply, work),
            ReduceOp::Min => fold_blocks::<T, BLOCK>(T::minimum, work),
            ReduceOp::Max => fold_blocks::<T, BLOCK>(T::maximum, work),
        }
    }
}

/// How far ahead of the block lines are asked for.
const AHEAD: usize = 1024;

/// How far ahead lines are asked for where much is read or written once: further than within a page, beyond which the
/// processor asks for none by itself.
const FAR: usize = 2048;

/// Asks for a line to read.
#[inline(always)]
fn ask(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch(line.cast(), std::arch::x86_64::_MM_HINT_T0);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Asks for a line to write to. Where another processor's cache holds it changed, one passage brings both the data
/// and the right to change them; a plain read would bring the data, and the write would ask again.
#[inline(always)]
pub(super) fn claim(line: *mut u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint that never faults, wherever it points, and changes nothing that a program sees; processors
    // without it take it for one that does nothing.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = line;
}

/// Copies to where lines are not in this processor's cache, from where they may not be either: both are asked for.
///
/// # Safety
/// As [`super::copy`].
pub(super) unsafe fn copy_far(source: *const u8, target: *mut u8, length: usize) {
    const LINE: usize = 64;
    let whole = length - length % LINE;
    // SAFETY: the caller's promise; what is asked for beyond the ends never faults.
    unsafe {
        for start in (0..whole).step_by(LINE) {
            ask(source.wrapping_add(start + FAR));
            claim(target.wrapping_add(start + FAR));
            let line = source.add(start).cast::<[u64; LINE / 8]>().read_unaligned();
            target.add(start).cast::<[u64; LINE / 8]>().write_unaligned(line);
        }
        super::copy(source.add(whole), target.add(whole), length - whole);
    }
}

/// # Safety
/// As [`fold_op`].
#[inline(always)]
unsafe fn fold_blocks<T: Arithmetic, const BLOCK: usize>(
    combine: impl Fn(T::Partial, T::Partial) -> T::Partial + Copy,
    work: &Work<'_>,
) {
    let Work { divisor, sources, targets, count, far, .. } = *work;
    let Some((first, others)) = sources.split_first() else { return };
    let whole = count - count % BLOCK;
    // A target that is read as well comes along with what is read. One that is not, and that others have read, is
    // asked for ahead: a store would ask when it is its turn.
    let unread = targets.iter().filter(|_| targets.len() > 1).find(|target| !sources.contains(&target.cast_const()));
    let ahead = AHEAD / size_of::<T>();
    let claim_lines = |from: usize, to: usize| {
        if let Some(target) = unread {
            for byte in (from * size_of::<T>()..to.min(whole) * size_of::<T>()).step_by(64) {
                claim(target.wrapping_add(byte));
            }
        }
    };
    claim_lines(0, ahead);
    let mut start = 0;
    while start < whole {
        claim_lines(start + ahead, start + ahead + BLOCK);
        if far {
            for source in sources {
                for byte in (0..BLOCK * size_of::<T>()).step_by(64) {
                    ask(source.wrapping_add(start * size_of::<T>() + FAR + byte));
                }
            }
        }
        // SAFETY: start + BLOCK <= count, and the caller vouches for so many elements behind every pointer. A block is
        // read from all sources before it is written, since a target may be a source.
        unsafe {
            let mut partials = first.cast::<T>().add(start).cast::<[T; BLOCK]>().read().map(T::widen);
            for source in others {
                let values = source.cast::<T>().add(start).cast::<[T; BLOCK]>().read();
                for (partial, value) in partials.iter_mut().zip(values) {
                    *partial = combine(*partial, value.widen());
                }
            }
            if let Some(ranks) = divisor {
                for partial in &mut partials {
                    *partial = T::divide(*partial, ranks);
                }
            }
            let values = partials.map(T::narrow);
            for target in targets {
                target.cast::<T>().add(start).cast::<[T; BLOCK]>().write(values);
            }
        }
        start += BLOCK;
    }
    for index in whole..count {
        // SAFETY: as for a block, with index < count.
        unsafe {
            let mut partial = first.cast::<T>().add(index).read().widen();
            for source in others {
                partial = combine(partial, source.cast::<T>().add(index).read().widen());
            }
            if let Some(ranks) = divisor {
                partial = T::divide(partial, ranks);
            }
            for target in targets {
                target.cast::<T>().add(index).write(T::narrow(partial));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bit_floats_are_converted_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (brain, half) = (bf16::from_bits(bits), f16::from_bits(bits));
            // A bf16's NaN is passed on as it is; the `half` crate makes it quiet, which rounding back does here.
            let quiet = if brain.is_nan() { 0x40_0000 } else { 0 };
            assert_eq!(bf16_to_f32(brain).to_bits() | quiet, brain.to_f32().to_bits(), "{bits:#x}");
            assert_eq!(f16_to_f32(half).to_bits(), half.to_f32().to_bits(), "{bits:#x}");
        }
        // Every exponent, with fractions around the halfway points of both types.
        for exponent in 0..=255u32 {
            for fraction in (0..1 << 23).step_by(0xFFF).chain((0..1 << 10).map(|f| (f << 13) + 0x1000)) {
                for sign in [0, 1 << 31] {
                    for bits in [fraction, fraction | 1].map(|fraction| sign | exponent << 23 | fraction) {
                        let value = f32::from_bits(bits);
                        assert_eq!(bf16_from_f32(value).to_bits(), bf16::from_f32(value).to_bits(), "{bits:#x}");
                        assert_eq!(f16_from_f32(value).to_bits(), f16::from_f32(value).to_bits(), "{bits:#x}");
                    }
                }
            }
        }
    }
}
