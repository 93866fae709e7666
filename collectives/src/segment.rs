//! Buffers that a caller allocates through the communicator: they lie in memory that all ranks of the host map, so
//! an operation on them copies nothing.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use memmap2::MmapRaw;
use nix::sys::mman::{MRemapFlags, MapFlags, ProtFlags, mmap_anonymous, mremap, munmap};

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
    /// Bytes of a part that are used.
    len: usize,
    /// Bytes from one rank's part to the next.
    stride: usize,
}

impl Segment {
    pub(crate) fn stride(bytes: usize) -> Option<usize> {
        bytes.max(1).checked_next_multiple_of(PAGE)
    }

    /// Parts of `len` bytes, [`Segment::stride`] apart.
    pub(crate) fn new(map: MmapRaw, id: u64, me: usize, len: usize, stride: usize) -> Segment {
        assert!(len <= stride && (me + 1) * stride <= map.len(), "the memory holds a part for each rank");
        Segment { map, id, me, len, stride }
    }

    /// Whether the rank at `place` has `bytes` bytes from `offset` of its part.
    pub(crate) fn holds(&self, place: usize, offset: usize, bytes: usize) -> bool {
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.stride);
        fits && (place + 1) * self.stride <= self.map.len()
    }

    /// `bytes` bytes from `offset` of the part of the rank at `place`.
    pub(crate) fn at(&self, place: usize, offset: usize, bytes: usize) -> *mut u8 {
        assert!(self.holds(place, offset, bytes), "the range lies within the rank's part");
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

    /// Makes `bytes` bytes of this rank's part its own: what is there stays, but other ranks can no longer write to it.
    /// That holds for whole pages, and for the end of the last one where the range ends with the part; the rest of a
    /// page belongs to elements that are in other hands.
    pub(crate) fn withdraw(&self, location: Location, bytes: usize) -> nix::Result<()> {
        let start = location.offset as usize;
        let end = if start + bytes >= self.len { self.stride } else { (start + bytes) / PAGE * PAGE };
        let start = start.next_multiple_of(PAGE);
        let Some(length) = end.checked_sub(start).and_then(NonZeroUsize::new) else { return Ok(()) };
        let shared = self.at(self.me, start, length.get());
        // SAFETY: new memory, of which nobody knows yet. It takes the place of pages of this mapping at once, and is
        // unmapped with them; both are of `length` bytes. Whoever holds the range, exclusively, waits for this.
        unsafe {
            let own =
                mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)?;
            std::ptr::copy_nonoverlapping(shared, own.as_ptr().cast(), length.get());
            let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
            if let Err(errno) = mremap(own, length.get(), length.get(), flags, NonNull::new(shared.cast())) {
                munmap(own, length.get())?;
                return Err(errno);
            }
        }
        Ok(())
    }
}

/// The segments of a communicator whose buffers are still in use here.
#[derive(Default)]
pub(crate) struct Segments {
    list: Mutex<Vec<Weak<Segment>>>,
    /// How many there may be, readable without the lock.
    count: AtomicUsize,
}

impl Segments {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Segment>>> {
        self.list.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn add(&self, segment: &Arc<Segment>) {
        let mut list = self.lock();
        list.retain(|segment| segment.strong_count() > 0);
        list.push(Arc::downgrade(segment));
        self.count.store(list.len(), Ordering::Release);
    }

    fn search<T>(&self, found: impl Fn(&Segment) -> Option<T>) -> Option<(Arc<Segment>, T)> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.lock().iter().filter_map(Weak::upgrade).find_map(|segment| {
            let found = found(&segment)?;
            Some((segment, found))
        })
    }

    /// The segment that holds `bytes` bytes from `pointer`, if they were allocated here.
    #[inline]
    pub(crate) fn locate(&self, pointer: *const u8, bytes: usize) -> Option<(Arc<Segment>, Location)> {
        self.search(|segment| segment.locate(pointer, bytes))
    }

    pub(crate) fn find(&self, id: u64) -> Option<Arc<Segment>> {
        self.search(|segment| (segment.id == id).then_some(())).map(|(segment, ())| segment)
    }
}

/// A zeroed buffer of `T` in memory that all ranks of the host share. It derefs to a slice.
///
/// Operations on it, or on the same part of it on every rank, work in place. The other ranks write to it within such
/// operations only. It may outlive its communicator. After an operation on it has failed it holds anything, but it is
/// this rank's own: a rank that was held up, and goes on, does not write to it any more. (Of a part of it that was
/// given to the operation that holds for whole pages of 4 KiB; and nothing of it where there is no memory for a copy.)
/// The next communicator allocates another.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::memory;

    const PAGES: usize = 3;

    /// Two ranks' parts, as each of them maps them.
    fn segments(len: usize) -> [Segment; 2] {
        let stride = Segment::stride(len).expect("a size");
        let fd = memory::create(2 * stride).expect("memory");
        [0, 1].map(|me| {
            let map = memory::map(fd.try_clone().expect("a descriptor"), 2 * stride).expect("a mapping");
            Segment::new(map, 7, me, len, stride)
        })
    }

    /// What rank 0 sees of its part after it has withdrawn a range, in which rank 1 then writes twos over ones.
    fn seen(len: usize, offset: usize, bytes: usize) -> Vec<u8> {
        let [own, other] = segments(len);
        // SAFETY: the first part of both mappings, of `len` bytes, one access after the other.
        unsafe {
            own.at(0, 0, len).write_bytes(1, len);
            own.withdraw(Location { segment: 7, offset: offset as u64 }, bytes).expect("memory");
            other.at(0, 0, len).write_bytes(2, len);
            std::slice::from_raw_parts(own.at(0, 0, len), len).to_vec()
        }
    }

    #[test]
    fn what_was_withdrawn_is_not_written_by_others() {
        for len in [1, PAGE - 1, PAGE, PAGES * PAGE - 8, PAGES * PAGE] {
            assert_eq!(seen(len, 0, len), vec![1; len], "{len}");
        }
        // Whole pages of a range within the part: no byte of what others of this process hold.
        let seen = seen(PAGES * PAGE, 8, 2 * PAGE);
        assert!(seen.iter().enumerate().all(|(byte, value)| *value == if byte / PAGE == 1 { 1 } else { 2 }));
    }

    #[test]
    fn a_withdrawn_part_can_be_written_and_others_stay() {
        let [own, other] = segments(PAGE);
        own.withdraw(Location { segment: 7, offset: 0 }, PAGE).expect("memory");
        // SAFETY: bytes of the two parts, one access after the other.
        unsafe {
            own.at(0, 0, 1).write(3);
            other.at(1, 0, 1).write(4);
            assert_eq!((own.at(0, 0, 1).read(), other.at(0, 0, 1).read(), own.at(1, 0, 1).read()), (3, 0, 4));
        }
    }
}
