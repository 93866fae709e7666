//! The memory that the ranks of a host share: its layout, and what of it is not data.
//!
//! A head, one slot a rank, two buffers a rank for messages, then [`SETS`] sets of windows, one window a rank in each.

use memmap2::MmapRaw;

use crate::sync::{AtomicU32, AtomicU64, Ordering};

use super::protocol::{Head, Line, Outbox, Post};

/// Sets of windows. Chunk after chunk goes through one set after the other; see `Group` for why four are enough.
pub(super) const SETS: u64 = 4;

/// Bytes of a buffer for messages; each rank has two.
pub(super) const OUTBOX: usize = 64 << 10;

/// Processors beyond these are not told apart, which costs nothing but speed.
const PROCESSORS: usize = 1024;

#[repr(C, align(128))]
struct Slot {
    /// By the parity of the meeting: nobody can be two behind.
    posts: [Post; 2],
    outbox: Outbox,
    left: Line<AtomicU32>,
    door: DoorWords,
    /// The processors that the rank may run on, as bits.
    processors: [AtomicU64; PROCESSORS / 64],
    /// How many of them it may use at a time.
    parallelism: AtomicU32,
    /// The lock that the rank holds as long as it lives; see `Life`.
    life: std::sync::atomic::AtomicU32,
    /// Counts up as long as the rank waits for others.
    pulse: AtomicU64,
}

/// Where the others can read a rank's memory, and how it wants to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Door {
    pub(super) process: u64,
    /// Where its token lies in its own memory.
    pub(super) address: u64,
    pub(super) token: [u64; 2],
    /// See [`Reading::word`](super::options::Reading::word).
    pub(super) reading: u64,
}

#[repr(C, align(128))]
pub(super) struct DoorWords {
    words: [AtomicU64; 5],
    /// Whether the rank has found that it may read all others' memory.
    reads_all: AtomicU64,
}

impl DoorWords {
    /// Before anything else that others wait for.
    pub(super) fn open(&self, door: &Door) {
        let Door { process, address, token: [first, second], reading } = *door;
        for (word, value) in self.words.iter().zip([process, address, first, second, reading]) {
            word.store(value, Ordering::Relaxed);
        }
    }

    pub(super) fn look(&self) -> Door {
        let [process, address, first, second, reading] =
            std::array::from_fn(|index| self.words[index].load(Ordering::Relaxed));
        Door { process, address, token: [first, second], reading }
    }

    /// Says before a meeting whether the rank may read all others' memory.
    pub(super) fn tell(&self, may: bool) {
        self.reads_all.store(may.into(), Ordering::Relaxed);
    }

    /// Whether it has said so; after that meeting.
    pub(super) fn has_told(&self) -> bool {
        self.reads_all.load(Ordering::Relaxed) == 1
    }
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

    pub(super) fn ranks(&self) -> usize {
        self.ranks
    }

    pub(super) fn door(&self, place: usize) -> &DoorWords {
        &self.slot(place).door
    }

    /// Bytes of a window.
    pub(super) fn window_len(&self) -> usize {
        self.window
    }

    #[inline(always)]
    pub(super) fn head(&self) -> &Head {
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

    /// Ends all waits in this memory with an encoded error; the first one counts.
    pub(crate) fn post_abort(&self, error: &[u8]) {
        self.head().post_abort(error);
    }

    /// The rank at `place` closes its communicator.
    pub(crate) fn leave(&self, place: usize) {
        self.slot(place).left.0.store(1, Ordering::Release);
        self.head().ring_bell();
    }

    pub(super) fn has_left(&self, place: usize) -> bool {
        self.slot(place).left.0.load(Ordering::Acquire) != 0
    }

    pub(super) fn life(&self, place: usize) -> &std::sync::atomic::AtomicU32 {
        &self.slot(place).life
    }

    /// The rank at `place` still waits.
    pub(super) fn beat(&self, place: usize) {
        self.slot(place).pulse.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn pulse(&self, place: usize) -> u64 {
        self.slot(place).pulse.load(Ordering::Relaxed)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Error;

    fn region(ranks: usize) -> Region {
        let fd = crate::transport::memory::create(Region::length(ranks, PAGE)).expect("memory");
        let map = crate::transport::memory::map(fd, Region::length(ranks, PAGE)).expect("mapping");
        Region::new(map, ranks, PAGE)
    }

    #[test]
    fn the_first_abort_counts() {
        let region = region(2);
        assert_eq!(region.head().abort(), None);
        region.post_abort(&Error::PeerLeft { rank: 1 }.encode());
        region.post_abort(&Error::PeerLeft { rank: 0 }.encode());
        assert_eq!(region.head().abort(), Some(Error::PeerLeft { rank: 1 }));
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What another process writes to the memory that is not data may end the communicator, and nothing else.
        #[test]
        fn any_bytes_are_read_without_a_panic(seed in any::<u64>(), state in 0u8..4) {
            let region = region(3);
            let end = size_of::<Head>() + 3 * size_of::<Slot>();
            let mut word = seed | 1;
            for offset in (0..end).step_by(8) {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                // SAFETY: the head and the slots lie at the mapping's start, which is aligned for words.
                unsafe { region.map.as_mut_ptr().add(offset).cast::<u64>().write(word) };
            }
            // At times an abort that says it is readable: its record follows the line that sleepers use.
            let record = size_of::<Line<u8>>();
            // SAFETY: as above.
            unsafe { region.map.as_mut_ptr().add(record).cast::<[u8; 4]>().write([state, 0, 0, 0]) };
            let _ = region.head().abort();
            region.post_abort(&Error::PeerLeft { rank: 1 }.encode());
            region.leave(1);
            let _ = (region.has_left(0), region.processors());
            region.head().ring_for_sleepers();
            region.head().complete(seed);
            for place in 0..3 {
                for meeting in [seed, seed.wrapping_add(1)] {
                    let post = region.post(place, meeting);
                    let [first, second, third, ..] = post.words();
                    let call = crate::call::Call::from_words([first, second, third]);
                    let door = region.door(place).look();
                    let _ = (door, super::super::options::Reading::from_word(door.reading), region.door(place).has_told());
                    let _ = (post.has_come(meeting), call.map(|call| call.to_string()));
                }
                let outbox = region.outbox(place);
                let _ = (outbox.words(), outbox.offer(), outbox.has_room(seed), outbox.taken(), outbox.is_read(seed));
                for to in 0..3 {
                    if let Some(number) = outbox.next_for(to) {
                        region.outbox_buffer(place, number, OUTBOX);
                        outbox.take(number, seed % 2 == 0);
                    }
                }
            }
        }
    }
}
