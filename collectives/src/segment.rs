//! Buffers that a caller allocates through the communicator: they lie in memory that all ranks of the host map, so
//! an operation on them copies nothing.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::MmapRaw;

use crate::call::Location;
use crate::element::{Data, DataMut, Element};

const PAGE: usize = 4096;

/// One allocation: a part for each rank of the host.
pub(crate) struct Segment {
    map: MmapRaw,
    /// Equal on all ranks of the host.
    id: u64,
    /// This rank's place.
    me: usize,
    /// Bytes from one rank's part to the next.
    stride: usize,
}

impl Segment {
    pub(crate) fn stride(bytes: usize) -> Option<usize> {
        bytes.max(1).checked_next_multiple_of(PAGE)
    }

    pub(crate) fn new(map: MmapRaw, id: u64, me: usize, stride: usize) -> Segment {
        assert!((me + 1) * stride <= map.len(), "the memory holds a part for each rank");
        Segment { map, id, me, stride }
    }

    /// `bytes` bytes from `offset` of the part of the rank at `place`.
    pub(crate) fn at(&self, place: usize, offset: usize, bytes: usize) -> *mut u8 {
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.stride);
        assert!(fits && (place + 1) * self.stride <= self.map.len(), "the range lies within the rank's part");
        // SAFETY: just checked to lie within the mapping.
        unsafe { self.map.as_mut_ptr().add(place * self.stride + offset) }
    }

    /// Where `bytes` bytes from `pointer` lie, if in this rank's part.
    pub(crate) fn locate(&self, pointer: *const u8, bytes: usize) -> Option<Location> {
        let start = self.at(self.me, 0, 0).addr();
        let offset = pointer.addr().checked_sub(start)?;
        let fits = offset.checked_add(bytes)? <= self.stride;
        fits.then_some(Location { segment: self.id, offset: offset as u64 })
    }
}

/// A zeroed buffer of `T` in memory that all ranks of the host share. It derefs to a slice.
///
/// Operations on it, or on the same part of it on every rank, work in place. The other ranks write to it within such
/// operations only. It may outlive its communicator; but after an operation on it has failed, a rank that was held up
/// may still write to it, so what it holds is not to be relied on, and the next communicator allocates another.
pub struct SharedBuffer<T> {
    segment: Arc<Segment>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> SharedBuffer<T> {
    pub(crate) fn new(segment: Arc<Segment>, len: usize) -> SharedBuffer<T> {
        // Panics unless the part has room.
        segment.at(segment.me, 0, len * size_of::<T>());
        SharedBuffer { segment, len, element: PhantomData }
    }
}

impl<T: Element> Deref for SharedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let pointer = self.segment.at(self.segment.me, 0, self.len * size_of::<T>());
        // SAFETY: the part is page-aligned, holds `len` elements, is mapped as long as the segment lives, and any
        // bytes are valid elements. Other ranks write to it, through mappings of their own, within operations only,
        // which borrow it mutably here; one that was held up while such an operation failed may do so later, and then
        // what is read are some elements or others, as the type says.
        unsafe { std::slice::from_raw_parts(pointer.cast::<T>(), self.len) }
    }
}

impl<T: Element> DerefMut for SharedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let pointer = self.segment.at(self.segment.me, 0, self.len * size_of::<T>());
        // SAFETY: as above, and by `&mut self` nothing else refers to this mapping's part.
        unsafe { std::slice::from_raw_parts_mut(pointer.cast::<T>(), self.len) }
    }
}

impl<'a, T: Element> From<&'a SharedBuffer<T>> for Data<'a> {
    fn from(buffer: &'a SharedBuffer<T>) -> Self {
        (&**buffer).into()
    }
}

impl<'a, T: Element> From<&'a mut SharedBuffer<T>> for DataMut<'a> {
    fn from(buffer: &'a mut SharedBuffer<T>) -> Self {
        (&mut **buffer).into()
    }
}

impl<T: Element> std::fmt::Debug for SharedBuffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedBuffer({} x {})", T::DTYPE, self.len)
    }
}
