//! How the ranks of a host keep in step: posts at meetings, chunks of messages, sleeping and being woken, and the record
//! of an abort. Only atomics, and nothing of where they lie: `model` goes through all orders in which ranks can run.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::error::{ENCODED_MAX, Error, LossCause};
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use crate::transport::futex::Futex;

#[cfg(all(loom, test))]
mod model;

/// Words of a call and the place of its data: what ranks compare.
pub(super) const WORDS: usize = 5;

/// On a cache line of its own, with its neighbour line, which processors fetch along.
#[repr(C, align(128))]
pub(super) struct Line<T>(pub(super) T);

/// What a group has once.
#[repr(C)]
pub(super) struct Head {
    sleep: Line<Sleep>,
    abort: Line<AbortRecord>,
}

#[repr(C)]
struct Sleep {
    /// Changed whenever a sleeper may have a reason to go on.
    bell: Futex,
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
    /// Where all of it lies, if its receiver may read it there: then the first chunk is empty, and the only one if the
    /// receiver has.
    offer: [AtomicU64; OFFER_WORDS],
    taken: Line<Taken>,
}

#[repr(C)]
struct Taken {
    /// The number of the last chunk that its receiver has copied out.
    chunks: AtomicU64,
    /// That of the last chunk with which it has read all of a message. Written first.
    read: AtomicU64,
}

/// An address, a segment and an offset there.
pub(super) const OFFER_WORDS: usize = 3;

const CALL_WORDS: usize = crate::call::CALL_BYTES / 8;

/// Bits of a chunk's number; above them stands a place. Years of messages, and more ranks than a host has.
const NUMBER: u32 = 48;

impl Outbox {
    /// Says what comes next, and where it can be read, or zeros. All that was posted has been taken.
    pub(super) fn announce(&self, words: &[u64; CALL_WORDS], offer: &[u64; OFFER_WORDS]) {
        for (word, value) in self.words.iter().chain(&self.offer).zip(words.iter().chain(offer)) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    pub(super) fn offer(&self) -> [u64; OFFER_WORDS] {
        std::array::from_fn(|index| self.offer[index].load(Ordering::Relaxed))
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
        let taken = self.taken();
        (to == place as u64 && taken < number).then_some(taken)
    }

    /// Chunk `number` has been copied out, or all of the message that it offers has been read.
    pub(super) fn take(&self, number: u64, is_read: bool) {
        if is_read {
            self.taken.0.read.store(number + 1, Ordering::Relaxed);
        }
        self.taken.0.chunks.store(number + 1, Ordering::Release);
    }

    /// Whether all of the message has been read with the last of `sent` chunks, which has been taken.
    pub(super) fn is_read(&self, sent: u64) -> bool {
        self.taken.0.read.load(Ordering::Relaxed) == sent
    }

    /// Whether a buffer is free for the chunk after `sent` others.
    pub(super) fn has_room(&self, sent: u64) -> bool {
        // What is written there by anybody else than its receiver may be any number.
        sent.wrapping_sub(self.taken()) < 2
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.0.chunks.load(Ordering::Acquire)
    }
}

impl Head {
    /// Wakes whoever sleeps.
    pub(super) fn ring_bell(&self) {
        let sleep = &self.sleep.0;
        sleep.bell.increase();
        // As in `complete`; a sleeper that is not counted yet will see the bell as it is now.
        fence(Ordering::SeqCst);
        if sleep.sleepers.load(Ordering::Relaxed) > 0 {
            sleep.bell.wake_all();
        }
    }

    /// Called by a rank that has come to `meeting` and has seen that everybody has: wakes those who sleep until then.
    ///
    /// A sleeper counts itself before it looks at the posts for the last time. The fence orders this rank's own post
    /// before the look at that count; so of two ranks that do both, one sees the other.
    #[inline(always)]
    pub(super) fn complete(&self, meeting: u64) {
        let sleep = &self.sleep.0;
        fence(Ordering::SeqCst);
        if sleep.sleepers.load(Ordering::Relaxed) > 0 {
            self.wake(meeting);
        }
    }

    /// Called after a post that somebody may sleep for.
    pub(super) fn ring_for_sleepers(&self) {
        fence(Ordering::SeqCst);
        if self.sleep.0.sleepers.load(Ordering::Relaxed) > 0 {
            self.ring_bell();
        }
    }

    #[cold]
    fn wake(&self, meeting: u64) {
        if self.sleep.0.rung.fetch_max(meeting, Ordering::SeqCst) < meeting {
            self.ring_bell();
        }
    }

    /// Counts the caller among the sleepers, and gives the bell as it is. Whatever is looked at after it and is still
    /// missing rings the bell when it comes.
    fn lie_down(&self) -> Bed<'_> {
        let sleep = &self.sleep.0;
        sleep.sleepers.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Bed { sleep, bell: sleep.bell.load() }
    }

    /// Sleeps until `look` finds what it looks for; looks whenever the bell has rung, and when the time that it has
    /// given is over.
    pub(super) fn sleep_until<T>(&self, mut look: impl FnMut() -> ControlFlow<T, Duration>) -> T {
        loop {
            let bed = self.lie_down();
            match look() {
                ControlFlow::Break(found) => return found,
                ControlFlow::Continue(limit) => bed.sleep(limit),
            }
        }
    }

    /// Ends all waits in this memory with an encoded error; the first one counts.
    pub(super) fn post_abort(&self, error: &[u8]) {
        let record = &self.abort.0;
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

    /// Whether anybody ends the communicator, even if it has not said why yet.
    pub(super) fn is_ending(&self) -> bool {
        self.abort.0.state.load(Ordering::SeqCst) != 0
    }

    /// Whether there is an error to read.
    #[inline]
    pub(super) fn is_aborted(&self) -> bool {
        self.abort.0.state.load(Ordering::Acquire) == 2
    }

    pub(super) fn abort(&self) -> Option<Error> {
        let record = &self.abort.0;
        if !self.is_aborted() {
            return None;
        }
        let length = (record.length.load(Ordering::Relaxed) as usize).min(ENCODED_MAX);
        let bytes: Vec<u8> = record.bytes[..length].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        Some(Error::decode(&bytes).unwrap_or(Error::PeerLost { rank: 0, cause: LossCause::InvalidMessage }))
    }
}

/// The right to sleep until the bell rings.
struct Bed<'a> {
    sleep: &'a Sleep,
    bell: u32,
}

impl Bed<'_> {
    /// Sleeps until the bell rings, and not at all if it has rung since the count; no longer than `limit`.
    fn sleep(&self, limit: Duration) {
        self.sleep.bell.wait(self.bell, limit);
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        self.sleep.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(all(not(loom), test))]
mod tests {
    use super::*;

    #[test]
    fn a_post_is_one_cache_line() {
        assert!(std::mem::offset_of!(Post, words) + size_of::<[AtomicU64; WORDS]>() <= 64);
    }

    #[test]
    fn what_a_message_begins_with_is_one_cache_line() {
        assert!(std::mem::offset_of!(Outbox, offer) + size_of::<[AtomicU64; OFFER_WORDS]>() <= 64);
    }
}
