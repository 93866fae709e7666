//! The data: what each element of each rank holds before an operation, and how many are wrong after it.
//!
//! A value is made of the element's index, the rank and a seed, fresh for each iteration, so that a result that is
//! late, of another rank or of another place is found. Values that are reduced are chosen so that the result is exact
//! in whatever order they are combined: fixed-point numbers of 16 bits in floating point of 32 and 64 bits, a 32nd of
//! an integer's range (some libraries saturate where others wrap), small whole numbers in 16-bit floating point, and
//! powers of two to multiply. That holds for up to 32 ranks. `benches/rivals/data.c` makes the same values.

use half::{bf16, f16};
use muster_collectives::{DType, ReduceOp};

/// Values made and compared at a time: they stay in the first-level cache.
const BLOCK: usize = 1024;

/// What values are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Any bits: they are carried, not combined.
    Raw,
    Reduced(ReduceOp),
}

/// Of one iteration: what the values of all ranks depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recipe {
    pub(super) dtype: DType,
    pub(super) content: Content,
    pub(super) seed: u64,
}

/// Calls a generic function with the type that a dtype stands for.
macro_rules! with_type {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            DType::F64 => $function::<f64>($($argument),*),
            DType::F32 => $function::<f32>($($argument),*),
            DType::F16 => $function::<f16>($($argument),*),
            DType::BF16 => $function::<bf16>($($argument),*),
            DType::I8 => $function::<i8>($($argument),*),
            DType::I16 => $function::<i16>($($argument),*),
            DType::I32 => $function::<i32>($($argument),*),
            DType::I64 => $function::<i64>($($argument),*),
            DType::U8 => $function::<u8>($($argument),*),
        }
    };
}

impl Recipe {
    /// Writes what `rank` gives, from its element `first`.
    pub(super) fn fill(self, to: &mut [u8], first: usize, rank: usize) {
        with_type!(self.dtype, fill(to, self.content, first, key(self.seed, rank)));
    }

    /// How many elements differ from what `rank` gave.
    pub(super) fn wrong_copied(self, from: &[u8], first: usize, rank: usize) -> usize {
        with_type!(self.dtype, wrong_copied(from, self.content, first, key(self.seed, rank)))
    }

    /// How many elements differ from what the ranks gave, combined.
    pub(super) fn wrong_reduced(self, from: &[u8], first: usize, world: usize) -> usize {
        with_type!(self.dtype, wrong_reduced(from, self.content, first, self.seed, world))
    }
}

fn key(seed: u64, rank: usize) -> u32 {
    let rank = (rank as u64).wrapping_mul(0xD1B5_4A32_D192_ED03);
    let mut z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(rank);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 32) as u32
}

#[inline(always)]
fn hash(key: u32, index: u32) -> u32 {
    let mut x = key.wrapping_add(index.wrapping_mul(0x9E37_79B1));
    x ^= x >> 15;
    x = x.wrapping_mul(0x2C1B_3C6D);
    x ^ (x >> 12)
}

trait Value: Copy + Default + PartialEq {
    fn read(bytes: &[u8]) -> Self;
    fn write(self, to: &mut [u8]);
    fn raw(x: u32) -> Self;
    /// To add and compare.
    fn plain(x: u32) -> Self;
    /// To multiply.
    fn factor(x: u32) -> Self;
    fn same_bits(self, other: Self) -> bool;
    fn add(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    fn divide(self, ranks: usize) -> Self;
}

#[inline(always)]
fn word(x: u32) -> u64 {
    u64::from(x).wrapping_mul(0x1_0000_0001)
}

/// 1, -1, 2 or 0.5.
#[inline(always)]
fn power_of_two(x: u32) -> f32 {
    match x >> 30 {
        0 => 1.0,
        1 => -1.0,
        2 => 2.0,
        _ => 0.5,
    }
}

macro_rules! bytes {
    ($type:ty) => {
        #[inline(always)]
        fn read(bytes: &[u8]) -> Self {
            let mut own = [0; size_of::<$type>()];
            own.copy_from_slice(bytes);
            <$type>::from_ne_bytes(own)
        }
        #[inline(always)]
        fn write(self, to: &mut [u8]) {
            to.copy_from_slice(&self.to_ne_bytes());
        }
    };
}

macro_rules! floats {
    ($($type:ty, $bits:ty, $partial:ty, $plain:expr, $narrow:expr, $widen:expr;)*) => {$(
        impl Value for $type {
            bytes!($type);
            #[inline(always)]
            fn raw(x: u32) -> Self { <$type>::from_bits(word(x) as $bits) }
            #[inline(always)]
            fn plain(x: u32) -> Self { $narrow($plain(x)) }
            #[inline(always)]
            fn factor(x: u32) -> Self { $narrow(<$partial>::from(power_of_two(x))) }
            #[inline(always)]
            fn same_bits(self, other: Self) -> bool { self.to_bits() == other.to_bits() }
            #[inline(always)]
            fn add(self, other: Self) -> Self { $narrow($widen(self) + $widen(other)) }
            #[inline(always)]
            fn multiply(self, other: Self) -> Self { $narrow($widen(self) * $widen(other)) }
            #[inline(always)]
            fn divide(self, ranks: usize) -> Self { $narrow($widen(self) / ranks as $partial) }
        }
    )*};
}

floats! {
    f64, u64, f64, |x: u32| f64::from((x >> 16) as i16) / 256.0, |value| value, |value| value;
    f32, u32, f32, |x: u32| f32::from((x >> 16) as i16) / 256.0, |value| value, |value| value;
    f16, u16, f32, small, f16::from_f32, f16::to_f32;
    bf16, u16, f32, small, bf16::from_f32, bf16::to_f32;
}

/// A whole number from -4 to 3.
#[inline(always)]
fn small(x: u32) -> f32 {
    f32::from((x >> 29) as i8 - 4)
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Value for $type {
            bytes!($type);
            #[inline(always)]
            fn raw(x: u32) -> Self { word(x) as $type }
            #[inline(always)]
            fn plain(x: u32) -> Self { word(x) as $type >> 5 }
            #[inline(always)]
            fn factor(x: u32) -> Self { word(x) as $type }
            #[inline(always)]
            fn same_bits(self, other: Self) -> bool { self == other }
            #[inline(always)]
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            #[inline(always)]
            fn multiply(self, other: Self) -> Self { self.wrapping_mul(other) }
            #[inline(always)]
            fn divide(self, ranks: usize) -> Self { self / ranks as $type }
        }
    )*};
}

integers!(i8, i16, i32, i64, u8);

#[inline(always)]
fn make<T: Value>(content: Content, x: u32) -> T {
    match content {
        Content::Raw => T::raw(x),
        Content::Reduced(ReduceOp::Product) => T::factor(x),
        Content::Reduced(_) => T::plain(x),
    }
}

fn fill<T: Value>(to: &mut [u8], content: Content, first: usize, key: u32) {
    for (index, element) in (first as u32..).zip(to.chunks_exact_mut(size_of::<T>())) {
        make::<T>(content, hash(key, index)).write(element);
    }
}

/// The values from element `first`.
fn values<T: Value>(to: &mut [T], content: Content, first: usize, key: u32) {
    for (index, value) in (first as u32..).zip(to) {
        *value = make(content, hash(key, index));
    }
}

fn wrong_copied<T: Value>(from: &[u8], content: Content, first: usize, key: u32) -> usize {
    let mut want = [T::default(); BLOCK];
    let mut wrong = 0;
    for (block, got) in from.chunks(BLOCK * size_of::<T>()).enumerate() {
        let want = &mut want[..got.len() / size_of::<T>()];
        values(want, content, first + block * BLOCK, key);
        wrong += differ(got, want, T::same_bits);
    }
    wrong
}

fn wrong_reduced<T: Value + PartialOrd>(from: &[u8], content: Content, first: usize, seed: u64, world: usize) -> usize {
    let (mut want, mut given) = ([T::default(); BLOCK], [T::default(); BLOCK]);
    let mut wrong = 0;
    for (block, got) in from.chunks(BLOCK * size_of::<T>()).enumerate() {
        let count = got.len() / size_of::<T>();
        let (want, given) = (&mut want[..count], &mut given[..count]);
        let first = first + block * BLOCK;
        values(want, content, first, key(seed, 0));
        for rank in 1..world {
            values(given, content, first, key(seed, rank));
            combine(want, given, content);
        }
        if content == Content::Reduced(ReduceOp::Mean) {
            want.iter_mut().for_each(|value| *value = value.divide(world));
        }
        // By value: a zero may have either sign.
        wrong += differ(got, want, |a, b| a == b);
    }
    wrong
}

fn combine<T: Value + PartialOrd>(into: &mut [T], from: &[T], content: Content) {
    let pairs = into.iter_mut().zip(from);
    match content {
        Content::Reduced(ReduceOp::Product) => pairs.for_each(|(a, b)| *a = a.multiply(*b)),
        Content::Reduced(ReduceOp::Min) => pairs.for_each(|(a, b)| *a = if *b < *a { *b } else { *a }),
        Content::Reduced(ReduceOp::Max) => pairs.for_each(|(a, b)| *a = if *b > *a { *b } else { *a }),
        _ => pairs.for_each(|(a, b)| *a = a.add(*b)),
    }
}

#[inline(always)]
fn differ<T: Value>(got: &[u8], want: &[T], same: impl Fn(T, T) -> bool) -> usize {
    let got = got.chunks_exact(size_of::<T>()).map(T::read);
    got.zip(want).map(|(got, want)| u32::from(!same(got, *want))).sum::<u32>() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORLD: usize = 3;
    const ELEMENTS: usize = 2500;

    /// What an all-reduce over `WORLD` ranks leaves, by way of the element type's own arithmetic in f64 or i128.
    fn reduced(recipe: Recipe) -> Vec<u8> {
        let size = recipe.dtype.size();
        let given: Vec<Vec<u8>> = (0..WORLD)
            .map(|rank| {
                let mut bytes = vec![0; ELEMENTS * size];
                recipe.fill(&mut bytes, 0, rank);
                bytes
            })
            .collect();
        let Content::Reduced(op) = recipe.content else { panic!("not a reduction") };
        let mut result = Vec::new();
        for element in (0..ELEMENTS).map(|index| index * size..(index + 1) * size) {
            let values: Vec<f64> = given.iter().map(|bytes| decode(recipe.dtype, &bytes[element.clone()])).collect();
            let folded = match op {
                ReduceOp::Sum => values.iter().sum(),
                ReduceOp::Mean => values.iter().sum::<f64>() / WORLD as f64,
                ReduceOp::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
                ReduceOp::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                ReduceOp::Product => values.iter().product(),
            };
            result.extend(encode(recipe.dtype, folded));
        }
        result
    }

    fn decode(dtype: DType, bytes: &[u8]) -> f64 {
        match dtype {
            DType::F64 => f64::read(bytes),
            DType::F32 => f32::read(bytes).into(),
            DType::F16 => f16::read(bytes).into(),
            DType::BF16 => bf16::read(bytes).into(),
            DType::I8 => i8::read(bytes).into(),
            DType::I16 => i16::read(bytes).into(),
            DType::I32 => i32::read(bytes).into(),
            DType::U8 => u8::read(bytes).into(),
            DType::I64 => panic!("has no f64"),
        }
    }

    fn encode(dtype: DType, value: f64) -> Vec<u8> {
        match dtype {
            DType::F64 => value.to_ne_bytes().to_vec(),
            DType::F32 => (value as f32).to_ne_bytes().to_vec(),
            DType::F16 => f16::from_f64(value).to_ne_bytes().to_vec(),
            DType::BF16 => bf16::from_f64(value).to_ne_bytes().to_vec(),
            DType::I8 => (value as i8).to_ne_bytes().to_vec(),
            DType::I16 => (value as i16).to_ne_bytes().to_vec(),
            DType::I32 => (value as i32).to_ne_bytes().to_vec(),
            DType::U8 => (value as u8).to_ne_bytes().to_vec(),
            DType::I64 => panic!("has no f64"),
        }
    }

    #[test]
    fn right_reductions_have_no_wrong_elements_and_each_changed_one_is_counted() {
        for dtype in DType::ALL.into_iter().filter(|dtype| *dtype != DType::I64) {
            for op in ReduceOp::ALL {
                let integer = !matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
                if integer && op == ReduceOp::Product {
                    continue;
                }
                let recipe = Recipe { dtype, content: Content::Reduced(op), seed: 7 };
                let mut result = reduced(recipe);
                assert_eq!(recipe.wrong_reduced(&result, 0, WORLD), 0, "{op} of {dtype}");
                let (size, part) = (dtype.size(), 1000);
                assert_eq!(recipe.wrong_reduced(&result[part * size..], part, WORLD), 0, "{op} of {dtype} from {part}");
                for index in [0, 1023, 1024, ELEMENTS - 1] {
                    // The sign, and with it the value.
                    result[(index + 1) * size - 1] ^= 0xC0;
                }
                assert_eq!(recipe.wrong_reduced(&result, 0, WORLD), 4, "{op} of {dtype}, corrupted");
            }
        }
    }

    #[test]
    fn results_of_another_iteration_rank_or_place_are_wrong() {
        let recipe = Recipe { dtype: DType::F32, content: Content::Raw, seed: 7 };
        let mut bytes = vec![0; 4 * ELEMENTS];
        recipe.fill(&mut bytes, 0, 1);
        assert_eq!(recipe.wrong_copied(&bytes, 0, 1), 0);
        assert_eq!(recipe.wrong_copied(&bytes[4000..], 1000, 1), 0);
        assert_eq!(recipe.wrong_copied(&bytes, 0, 2), ELEMENTS, "of another rank");
        assert_eq!(recipe.wrong_copied(&bytes, 1, 1), ELEMENTS, "of another place");
        assert_eq!(Recipe { seed: 8, ..recipe }.wrong_copied(&bytes, 0, 1), ELEMENTS, "of another iteration");
        bytes[4 * 1500] ^= 1;
        assert_eq!(recipe.wrong_copied(&bytes, 0, 1), 1);
    }

    #[test]
    fn the_values_are_those_that_the_rivals_make() {
        // Computed by benches/rivals/data.c.
        let recipe = Recipe { dtype: DType::F32, content: Content::Reduced(ReduceOp::Sum), seed: 42 };
        let mut bytes = vec![0; 16];
        recipe.fill(&mut bytes, 5, 3);
        let values: Vec<f32> = bytes.chunks_exact(4).map(f32::read).collect();
        assert_eq!(values, RIVALS);
    }

    const RIVALS: [f32; 4] = [6.398_437_5, 71.667_97, -13.738_281, 35.171_875];
}
