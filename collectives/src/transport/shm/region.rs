//! The memory that the ranks of a host share: its layout, and what of it is not data.
//!
//! A head, one slot a rank, two buffers a rank for messages, then [`SETS`] sets of windows, one window a rank in each.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use memmap2::MmapRaw;

use crate::error::{ENCODED_MAX, Error, LossCause};
use crate::transport::futex;

/// Sets of windows. Chunk after chunk goes through one set after the other; see `Group` for why four are enough.
pub(super) const SETS: u64 = 4;

/// Words of a call and the place of its data: what ranks compare.
pub(super) const WORDS: usize = 5;

/// Bytes of a buffer for messages; each rank has two.
pub(super) const OUTBOX: usize = 64 << 10;

/// On a cache line of its own, with its neighbour line, which processors fetch along.
#[repr(C, align(128))]
pub(super) struct Line<T>(T);

#[repr(C)]
struct Head {
    sleep: Line<Sleep>,
    abort: Line<AbortRecord>,
}

#[repr(C)]
struct Sleep {
    /// Changed whenever a sleeper may have a reason to go on.
    bell: AtomicU32,
    sleepers: AtomicU32,
    /// The last meeting that the bell was rung for: once is enough.
    rung: AtomicU64,
}

#[repr(C)]
struct AbortRecord {
    /// 0: none, 1: being written, 2: readable.
    state: AtomicU32,
    length: AtomicU32,
    bytes: [AtomicU8; ENCODED_MAX],
}

/// What a rank shows at a meeting: one cache line, so that one transfer tells both that it is there and what it wants.
#[repr(C, align(128))]
pub(super) struct Post {
    /// The number of the meeting. Written last.
    meeting: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Post {
    /// Whether the rank has come to `meeting`; if so, what it has posted before is visible.
    #[inline(always)]
    pub(super) fn has_come(&self, meeting: u64) -> bool {
        self.meeting.load(Ordering::Acquire) >= meeting
    }

    #[inline(always)]
    pub(super) fn words(&self) -> [u64; WORDS] {
        std::array::from_fn(|index| self.words[index].load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(super) fn write(&self, words: &[u64; WORDS]) {
        for (word, value) in self.words.iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    pub(super) fn come(&self, meeting: u64) {
        self.meeting.store(meeting, Ordering::Release);
    }
}

/// What a rank has to say to one other: its messages, chunk by chunk.
#[repr(C, align(128))]
pub(super) struct Outbox {
    /// The number of the last chunk that was posted, and in the upper bits whom it is for.
    posted: AtomicU64,
    /// The call of the message that the chunks belong to.
    words: [AtomicU64; CALL_WORDS],
    /// The number of the last chunk that its receiver has copied out.
    taken: Line<AtomicU64>,
}

const CALL_WORDS: usize = crate::call::CALL_BYTES / 8;

/// Bits of a chunk's number; above them stands a place.
const NUMBER: u32 = 40;

impl Outbox {
    /// Says what comes next. All that was posted has been taken.
    pub(super) fn announce(&self, words: &[u64; CALL_WORDS]) {
        for (word, value) in self.words.iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    pub(super) fn words(&self) -> [u64; CALL_WORDS] {
        std::array::from_fn(|index| self.words[index].load(Ordering::Relaxed))
    }

    /// Shows chunk `number` to the rank at `to`.
    pub(super) fn post(&self, to: usize, number: u64) {
        self.posted.store((to as u64) << NUMBER | number, Ordering::Release);
    }

    /// The number of the chunk that the rank at `place` is to take next, if one is there.
    pub(super) fn next_for(&self, place: usize) -> Option<u64> {
        let posted = self.posted.load(Ordering::Acquire);
        let (to, number) = (posted >> NUMBER, posted & ((1 << NUMBER) - 1));
        // Who sees its own place here is the only one to take, until all is taken.
        let taken = self.taken.0.load(Ordering::Acquire);
        (to == place as u64 && taken < number).then_some(taken)
    }

    pub(super) fn take(&self, number: u64) {
        self.taken.0.store(number + 1, Ordering::Release);
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.0.load(Ordering::Acquire)
    }
}

/// Processors beyond these are not told apart, which costs nothing but speed.
const PROCESSORS: usize = 1024;

#[repr(C, align(128))]
struct Slot {
    /// By the parity of the meeting: nobody can be two behind.
    posts: [Post; 2],
    outbox: Outbox,
    left: Line<AtomicU32>,
    /// The processors that the rank may run on, as bits.
    processors: [AtomicU64; PROCESSORS / 64],
    /// How many of them it may use at a time.
    parallelism: AtomicU32,
}

/// The mapped memory of one group.
pub(crate) struct Region {
    map: MmapRaw,
    ranks: usize,
    window: usize,
}

const PAGE: usize = 4096;

fn outboxes_start(ranks: usize) -> usize {
    (size_of::<Head>() + ranks * size_of::<Slot>()).next_multiple_of(PAGE)
}

fn windows_start(ranks: usize) -> usize {
    outboxes_start(ranks) + 2 * ranks * OUTBOX
}

impl Region {
    /// Bytes of the memory that `ranks` ranks with windows of `window` bytes need.
    pub(crate) fn length(ranks: usize, window: usize) -> usize {
        windows_start(ranks) + SETS as usize * ranks * window
    }

    /// `map` has [`Region::length`] bytes that were zero when made.
    pub(crate) fn new(map: MmapRaw, ranks: usize, window: usize) -> Region {
        assert_eq!(map.len(), Region::length(ranks, window), "the memory has the region's size");
        Region { map, ranks, window }
    }

    /// Bytes of a window.
    pub(super) fn window_len(&self) -> usize {
        self.window
    }

    #[inline(always)]
    fn head(&self) -> &Head {
        // SAFETY: the mapping is page-aligned, longer than a head, lives as long as self, and a head is made of
        // atomics, for which any bytes are valid and concurrent writes by others allowed.
        unsafe { &*self.map.as_ptr().cast::<Head>() }
    }

    #[inline(always)]
    fn slot(&self, place: usize) -> &Slot {
        assert!(place < self.ranks);
        // SAFETY: as for the head; slots follow it, `ranks` of them, and Head's size is a multiple of its alignment,
        // which is that of Slot.
        unsafe { &*self.map.as_ptr().add(size_of::<Head>()).cast::<Slot>().add(place) }
    }

    /// What the rank at `place` shows at `meeting`.
    #[inline(always)]
    pub(super) fn post(&self, place: usize, meeting: u64) -> &Post {
        &self.slot(place).posts[(meeting % 2) as usize]
    }

    pub(super) fn outbox(&self, place: usize) -> &Outbox {
        &self.slot(place).outbox
    }

    /// Where `length` bytes of chunk `number` of the rank at `place` lie.
    pub(super) fn outbox_buffer(&self, place: usize, number: u64, length: usize) -> *mut u8 {
        assert!(place < self.ranks && length <= OUTBOX);
        let index = 2 * place + (number % 2) as usize;
        // SAFETY: there are two buffers a rank from there on, before the windows.
        unsafe { self.map.as_mut_ptr().add(outboxes_start(self.ranks) + index * OUTBOX) }
    }

    /// The window of the rank at `place` in the set of `turn`, from byte `offset`; `length` bytes lie within it.
    #[inline(always)]
    pub(super) fn window(&self, turn: u64, place: usize, offset: usize, length: usize) -> *mut u8 {
        assert!(place < self.ranks && offset <= self.window && length <= self.window - offset);
        let index = (turn % SETS) as usize * self.ranks + place;
        // SAFETY: there are SETS * ranks windows of `window` bytes from there on, and the offset lies within one.
        unsafe { self.map.as_mut_ptr().add(windows_start(self.ranks) + index * self.window + offset) }
    }

    /// All windows of a set, which lie one after the other, as one.
    pub(super) fn windows(&self, turn: u64) -> (*mut u8, usize) {
        (self.window(turn, 0, 0, 0), self.ranks * self.window)
    }

    /// Wakes whoever sleeps.
    pub(super) fn ring_bell(&self) {
        let sleep = &self.head().sleep.0;
        sleep.bell.fetch_add(1, Ordering::SeqCst);
        if sleep.sleepers.load(Ordering::SeqCst) > 0 {
            futex::wake_all(&sleep.bell);
        }
    }

    /// Called by a rank that has come to `meeting` and has seen that everybody has: wakes those who sleep until then.
    ///
    /// A sleeper counts itself before it looks at the posts for the last time. The fence orders this rank's own post
    /// before the look at that count; so of two ranks that do both, one sees the other.
    #[inline(always)]
    pub(super) fn complete(&self, meeting: u64) {
        let sleep = &self.head().sleep.0;
        fence(Ordering::SeqCst);
        if sleep.sleepers.load(Ordering::Relaxed) > 0 {
            self.wake(meeting);
        }
    }

    /// Called after a post that somebody may sleep for.
    pub(super) fn ring_for_sleepers(&self) {
        fence(Ordering::SeqCst);
        if self.head().sleep.0.sleepers.load(Ordering::Relaxed) > 0 {
            self.ring_bell();
        }
    }

    #[cold]
    fn wake(&self, meeting: u64) {
        if self.head().sleep.0.rung.fetch_max(meeting, Ordering::SeqCst) < meeting {
            self.ring_bell();
        }
    }

    /// Counts the caller among the sleepers, and gives the bell as it is. Whatever is looked at after it and is still
    /// missing rings the bell when it comes.
    pub(super) fn lie_down(&self) -> Bed<'_> {
        let sleep = &self.head().sleep.0;
        sleep.sleepers.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Bed { sleep, bell: sleep.bell.load(Ordering::SeqCst) }
    }

    /// Ends all waits in this memory with an encoded error; the first one counts.
    pub(crate) fn post_abort(&self, error: &[u8]) {
        let record = &self.head().abort.0;
        if error.len() > ENCODED_MAX
            || record.state.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return;
        }
        for (target, byte) in record.bytes.iter().zip(error) {
            target.store(*byte, Ordering::Relaxed);
        }
        record.length.store(error.len() as u32, Ordering::Relaxed);
        record.state.store(2, Ordering::Release);
        self.ring_bell();
    }

    pub(super) fn abort(&self) -> Option<Error> {
        let record = &self.head().abort.0;
        if record.state.load(Ordering::Acquire) != 2 {
            return None;
        }
        let length = (record.length.load(Ordering::Relaxed) as usize).min(ENCODED_MAX);
        let bytes: Vec<u8> = record.bytes[..length].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        Some(Error::decode(&bytes).unwrap_or(Error::PeerLost { rank: 0, cause: LossCause::InvalidMessage }))
    }

    /// The rank at `place` closes its communicator.
    pub(crate) fn leave(&self, place: usize) {
        self.slot(place).left.0.store(1, Ordering::Release);
        self.ring_bell();
    }

    pub(super) fn has_left(&self, place: usize) -> bool {
        self.slot(place).left.0.load(Ordering::Acquire) != 0
    }

    /// Says where the rank at `place`, this one, may run; before its first meeting.
    pub(super) fn tell_processors(&self, place: usize) {
        let slot = self.slot(place);
        let own = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
        for processor in 0..PROCESSORS {
            if own.as_ref().is_ok_and(|own| own.is_set(processor).unwrap_or(false)) {
                slot.processors[processor / 64].fetch_or(1 << (processor % 64), Ordering::Relaxed);
            }
        }
        let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
        slot.parallelism.store(parallelism as u32, Ordering::Relaxed);
    }

    /// How many processors the ranks have together; known after the first meeting.
    pub(super) fn processors(&self) -> usize {
        let slots = || (0..self.ranks).map(|place| self.slot(place));
        let all: u32 = (0..PROCESSORS / 64)
            .map(|word| slots().fold(0, |all, slot| all | slot.processors[word].load(Ordering::Relaxed)).count_ones())
            .sum();
        // A rank that may use fewer at a time than it may run on has a quota, and all of a container have the same.
        let quota = slots()
            .filter_map(|slot| {
                let own: u32 = slot.processors.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum();
                let parallelism = slot.parallelism.load(Ordering::Relaxed);
                (parallelism < own).then_some(parallelism)
            })
            .min();
        all.min(quota.unwrap_or(u32::MAX)) as usize
    }
}

/// The right to sleep until the bell rings.
pub(super) struct Bed<'a> {
    sleep: &'a Sleep,
    bell: u32,
}

impl Bed<'_> {
    /// Sleeps until the bell rings, and not at all if it has rung since the count; no longer than `limit`.
    pub(super) fn sleep(&self, limit: std::time::Duration) {
        futex::wait(&self.sleep.bell, self.bell, limit);
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        self.sleep.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(ranks: usize) -> Region {
        let fd = crate::transport::memory::create(Region::length(ranks, PAGE)).expect("memory");
        let map = crate::transport::memory::map(fd, Region::length(ranks, PAGE)).expect("mapping");
        Region::new(map, ranks, PAGE)
    }

    #[test]
    fn the_first_abort_counts() {
        let region = region(2);
        assert_eq!(region.abort(), None);
        region.post_abort(&Error::PeerLeft { rank: 1 }.encode());
        region.post_abort(&Error::PeerLeft { rank: 0 }.encode());
        assert_eq!(region.abort(), Some(Error::PeerLeft { rank: 1 }));
    }

    #[test]
    fn a_post_is_one_cache_line() {
        assert!(std::mem::offset_of!(Post, words) + size_of::<[AtomicU64; WORDS]>() <= 64);
    }

    #[test]
    fn processors_of_all_ranks_count_together() {
        let region = region(2);
        region.slot(0).processors[0].store(0b0110, Ordering::Relaxed);
        region.slot(0).parallelism.store(2, Ordering::Relaxed);
        region.slot(1).processors[1].store(0b1, Ordering::Relaxed);
        region.slot(1).parallelism.store(1, Ordering::Relaxed);
        assert_eq!(region.processors(), 3);
        region.slot(0).parallelism.store(1, Ordering::Relaxed);
        assert_eq!(region.processors(), 1, "a quota holds for all");
    }
}
