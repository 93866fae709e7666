//! Element types and the dtype-tagged buffers that operations take.
//!
//! A buffer is a pointer, a dtype and a count, borrowed from the caller for the length of the call. It holds no
//! memory of its own; memory that all ranks of a host can reach is [`SharedBuffer`](crate::SharedBuffer).

#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};

/// The type of a buffer's elements.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum DType {
    F64 = 1,
    F32 = 2,
    F16 = 3,
    BF16 = 4,
    I8 = 5,
    I16 = 6,
    I32 = 7,
    I64 = 8,
    U8 = 9,
}

impl DType {
    /// Every dtype, in the order of their codes.
    pub const ALL: [DType; 9] =
        [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I8, DType::I16, DType::I32, DType::I64, DType::U8];

    /// Bytes of one element, which is its alignment as well.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 | DType::I16 => 2,
            DType::I8 | DType::U8 => 1,
        }
    }

    /// Whether sums of this type are formed in f32.
    pub(crate) const fn is_half(self) -> bool {
        matches!(self, DType::F16 | DType::BF16)
    }

    pub(crate) fn from_code(code: u8) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| *dtype as u8 == code)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A type that collectives can carry. Every bit pattern of it is a value, and it has no padding.
pub trait Element: sealed::Sealed + Copy + Send + Sync + PartialEq + fmt::Debug + 'static {
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}

elements!(f64 => F64, f32 => F32, f16 => F16, bf16 => BF16, i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8);

/// Elements to read.
#[derive(Clone, Copy)]
pub struct Data<'a> {
    dtype: DType,
    pointer: *const u8,
    count: usize,
    borrow: PhantomData<&'a [u8]>,
}

/// Elements to read and write.
pub struct DataMut<'a> {
    dtype: DType,
    pointer: *mut u8,
    count: usize,
    borrow: PhantomData<&'a mut [u8]>,
}

/// Why bytes cannot be taken as elements of a dtype.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BufferError {
    #[error("{bytes} bytes are not a whole number of {dtype} elements")]
    Length { bytes: usize, dtype: DType },
    #[error("the buffer is not aligned for {dtype}")]
    Alignment { dtype: DType },
}

fn whole(dtype: DType, bytes: &[u8]) -> Result<usize, BufferError> {
    if !bytes.len().is_multiple_of(dtype.size()) {
        return Err(BufferError::Length { bytes: bytes.len(), dtype });
    }
    if !bytes.as_ptr().addr().is_multiple_of(dtype.size()) {
        return Err(BufferError::Alignment { dtype });
    }
    Ok(bytes.len() / dtype.size())
}

impl<'a> Data<'a> {
    /// Bytes whose dtype is known only at run time, as of a tensor.
    pub fn from_bytes(dtype: DType, bytes: &'a [u8]) -> Result<Self, BufferError> {
        Ok(Data { dtype, pointer: bytes.as_ptr(), count: whole(dtype, bytes)?, borrow: PhantomData })
    }

    /// No elements.
    pub(crate) fn none(dtype: DType) -> Self {
        Data { dtype, pointer: std::ptr::dangling::<u64>().cast(), count: 0, borrow: PhantomData }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn pointer(&self) -> *const u8 {
        self.pointer
    }

    pub(crate) fn byte_len(&self) -> usize {
        self.count * self.dtype.size()
    }

    pub(crate) fn range(&self, start: usize, count: usize) -> Data<'a> {
        Data { dtype: self.dtype, pointer: self.part(&(start..start + count)), count, borrow: PhantomData }
    }

    /// Where element `index` is, or the end.
    pub(crate) fn at(&self, index: usize) -> *const u8 {
        self.part(&(index..self.count.max(index)))
    }

    /// Where a range of elements is.
    pub(crate) fn part(&self, range: &Range<usize>) -> *const u8 {
        assert!(range.start <= range.end && range.end <= self.count, "a range lies within its buffer");
        // SAFETY: start <= self.count, so the pointer stays within the borrowed elements.
        unsafe { self.pointer.add(range.start * self.dtype.size()) }
    }
}

impl<'a> DataMut<'a> {
    /// Bytes whose dtype is known only at run time, as of a tensor.
    pub fn from_bytes(dtype: DType, bytes: &'a mut [u8]) -> Result<Self, BufferError> {
        let count = whole(dtype, bytes)?;
        Ok(DataMut { dtype, pointer: bytes.as_mut_ptr(), count, borrow: PhantomData })
    }

    /// Elements behind a raw pointer, as of a tensor's storage.
    ///
    /// # Safety
    /// `pointer` is aligned for `dtype`, and `count` elements behind it are valid to read and write, and touched by
    /// nobody else in this process, for as long as `'a`.
    pub unsafe fn from_raw(dtype: DType, pointer: *mut u8, count: usize) -> Self {
        DataMut { dtype, pointer, count, borrow: PhantomData }
    }

    /// No elements.
    pub(crate) fn none(dtype: DType) -> Self {
        DataMut { dtype, pointer: std::ptr::dangling_mut::<u64>().cast(), count: 0, borrow: PhantomData }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        self.pointer
    }

    pub(crate) fn byte_len(&self) -> usize {
        self.count * self.dtype.size()
    }

    /// Where element `index` is, or the end.
    pub(crate) fn at(&self, index: usize) -> *mut u8 {
        self.part(&(index..self.count.max(index)))
    }

    /// Where a range of elements is.
    pub(crate) fn part(&self, range: &Range<usize>) -> *mut u8 {
        assert!(range.start <= range.end && range.end <= self.count, "a range lies within its buffer");
        // SAFETY: start <= self.count, so the pointer stays within the borrowed elements.
        unsafe { self.pointer.add(range.start * self.dtype.size()) }
    }

    pub(crate) fn reborrow(&mut self) -> DataMut<'_> {
        DataMut { dtype: self.dtype, pointer: self.pointer, count: self.count, borrow: PhantomData }
    }

    pub(crate) fn into_range(self, start: usize, count: usize) -> DataMut<'a> {
        let pointer = self.part(&(start..start + count));
        DataMut { dtype: self.dtype, pointer, count, borrow: PhantomData }
    }

    /// `count` elements from element `start`.
    pub(crate) fn range(&mut self, start: usize, count: usize) -> DataMut<'_> {
        assert!(start.checked_add(count).is_some_and(|end| end <= self.count), "a range lies within its buffer");
        DataMut {
            dtype: self.dtype,
            // SAFETY: start + count <= self.count, so the pointer stays within the borrowed elements.
            pointer: unsafe { self.pointer.add(start * self.dtype.size()) },
            count,
            borrow: PhantomData,
        }
    }

    /// `count` elements in memory given as words, whose alignment suits every dtype.
    pub(crate) fn over(dtype: DType, words: &'a mut [u64], count: usize) -> Self {
        assert!(count * dtype.size() <= size_of_val(words), "the words have room for the elements");
        DataMut { dtype, pointer: words.as_mut_ptr().cast(), count, borrow: PhantomData }
    }

    pub(crate) fn as_data(&self) -> Data<'_> {
        Data { dtype: self.dtype, pointer: self.pointer, count: self.count, borrow: PhantomData }
    }

    /// Copies from another buffer, or from the same one.
    pub(crate) fn take_from(&mut self, source: &Data<'_>) {
        let all = 0..self.count;
        copy_range(*source, 0..source.count, self.reborrow(), all);
    }

    /// The same elements to read, beside those to write: for operations that know the two to be one buffer.
    pub(crate) fn and_data<'b>(self) -> (Data<'b>, DataMut<'b>)
    where
        'a: 'b,
    {
        let data = Data { dtype: self.dtype, pointer: self.pointer, count: self.count, borrow: PhantomData };
        (data, self)
    }
}

/// Copies a range of elements to one that is as long. The two may overlap.
pub(crate) fn copy_range(source: Data<'_>, from: Range<usize>, target: DataMut<'_>, to: Range<usize>) {
    assert_eq!((source.dtype, from.len()), (target.dtype, to.len()), "equal elements are copied");
    // SAFETY: both ranges lie within borrowed buffers, which `part` checks, and are as many bytes, since the dtypes are
    // equal. They may overlap.
    unsafe { std::ptr::copy(source.part(&from), target.part(&to), from.len() * source.dtype.size()) };
}

impl fmt::Debug for Data<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Data({} x {})", self.dtype, self.count)
    }
}

impl fmt::Debug for DataMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataMut({} x {})", self.dtype, self.count)
    }
}

impl<'a, T: Element> From<&'a [T]> for Data<'a> {
    fn from(elements: &'a [T]) -> Self {
        Data { dtype: T::DTYPE, pointer: elements.as_ptr().cast(), count: elements.len(), borrow: PhantomData }
    }
}

impl<'a, T: Element> From<&'a Vec<T>> for Data<'a> {
    fn from(elements: &'a Vec<T>) -> Self {
        elements.as_slice().into()
    }
}

impl<'a, T: Element> From<&'a mut [T]> for DataMut<'a> {
    fn from(elements: &'a mut [T]) -> Self {
        DataMut { dtype: T::DTYPE, pointer: elements.as_mut_ptr().cast(), count: elements.len(), borrow: PhantomData }
    }
}

impl<'a, T: Element> From<&'a mut Vec<T>> for DataMut<'a> {
    fn from(elements: &'a mut Vec<T>) -> Self {
        elements.as_mut_slice().into()
    }
}

impl<'a, T: Element, const N: usize> From<&'a mut [T; N]> for DataMut<'a> {
    fn from(elements: &'a mut [T; N]) -> Self {
        elements.as_mut_slice().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_be_whole_and_aligned_elements() {
        let mut words = [0u64; 2];
        // SAFETY: 16 initialised bytes of `words`.
        let bytes = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), 16) };
        assert_eq!(DataMut::from_bytes(DType::F32, bytes).map(|data| data.count()), Ok(4));
        assert_eq!(
            DataMut::from_bytes(DType::F32, &mut bytes[..7]).map(|_| ()),
            Err(BufferError::Length { bytes: 7, dtype: DType::F32 })
        );
        assert_eq!(
            Data::from_bytes(DType::F64, &bytes[4..12]).map(|_| ()),
            Err(BufferError::Alignment { dtype: DType::F64 })
        );
        assert_eq!(Data::from_bytes(DType::BF16, &bytes[2..]).map(|data| data.byte_len()), Ok(14));
    }

    #[test]
    fn codes_are_read_back() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_code(dtype as u8), Some(dtype));
        }
        assert_eq!(DType::from_code(0), None);
        assert_eq!(DType::from_code(10), None);
    }
}
