//! What lies where in the recorder's memory, and how a rank writes it.
//!
//! The memory is an array of 64-bit words: a head of one page, then a ring of records, each on a cache line of its
//! own. A record's first word holds the number of the operation and its state. It says "being written" before
//! anything else of the record changes and is set anew after that, so a reader that finds the same word before and
//! after it took the rest has a record in one piece; what it took in between of any other record it throws away.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::MmapRaw;

use crate::call::{CALL_BYTES, Call, Kind};
use crate::config::{Config, Secret};
use crate::error::Error;
use crate::ticks::{self, Moment};
use crate::transport::handshake;
use crate::transport::memory;

/// The name that the memory shows in `/proc/PID/fd`.
pub(super) const NAME: &std::ffi::CStr = c"muster-flight";
pub(super) const MAGIC: u64 = u64::from_ne_bytes(*b"MUSTERFR");
/// Raised with every change of the layout, and of the meaning of a call's words.
pub(super) const LAYOUT: u64 = 1;

/// Operations that are kept.
pub(super) const CAPACITY: usize = 256;
pub(super) const HEAD_WORDS: usize = 512;
pub(super) const RECORD_WORDS: usize = 8;
pub(super) const WORDS: usize = HEAD_WORDS + CAPACITY * RECORD_WORDS;
pub(super) const BYTES: usize = WORDS * 8;

pub(super) const LABEL_WORDS: usize = 8;
pub(super) const HOST_WORDS: usize = 32;
pub(super) const ERROR_WORDS: usize = 32;

/// Words of the head.
pub(super) mod head {
    use super::{ERROR_WORDS, HOST_WORDS, LABEL_WORDS};

    /// Set last: before it there is no record.
    pub(in crate::flight) const MAGIC: usize = 0;
    pub(in crate::flight) const LAYOUT: usize = 1;
    /// The number of records above that of a record's words.
    pub(in crate::flight) const SIZES: usize = 2;
    pub(in crate::flight) const PID: usize = 3;
    pub(in crate::flight) const RANK: usize = 4;
    pub(in crate::flight) const WORLD: usize = 5;
    pub(in crate::flight) const EPOCH: usize = 6;
    pub(in crate::flight) const IDENTITY: usize = 7;
    /// How many ranks of the world are on this rank's host, itself counted.
    pub(in crate::flight) const NEIGHBOURS: usize = 8;
    /// The moment of the recorder's making, by both clocks.
    pub(in crate::flight) const TICKS: usize = 9;
    pub(in crate::flight) const NANOSECONDS: usize = 10;
    pub(in crate::flight) const LABEL_LENGTH: usize = 11;
    pub(in crate::flight) const LABEL: usize = 12;
    pub(in crate::flight) const HOST_LENGTH: usize = LABEL + LABEL_WORDS;
    pub(in crate::flight) const HOST: usize = HOST_LENGTH + 1;
    /// 0: none, 1: being written, 2: readable.
    pub(in crate::flight) const ERROR: usize = HOST + HOST_WORDS;
    pub(in crate::flight) const ERROR_TICKS: usize = ERROR + 1;
    /// The rank that the error is about, and one more; 0 for none.
    pub(in crate::flight) const ERROR_RANK: usize = ERROR + 2;
    pub(in crate::flight) const ERROR_LENGTH: usize = ERROR + 3;
    pub(in crate::flight) const ERROR_TEXT: usize = ERROR + 4;
    /// The ticks at which all ranks were connected; 0 before.
    pub(in crate::flight) const CONNECTED: usize = ERROR_TEXT + ERROR_WORDS;
    const END: usize = CONNECTED + 1;

    /// Operations that have begun. These two change with every operation and share a cache line.
    pub(in crate::flight) const BEGUN: usize = 256;
    /// The sequence of the last operation of all ranks that has begun, and one more. It may have left the ring
    /// already, where messages followed it.
    pub(in crate::flight) const COLLECTIVE: usize = 257;
    const _: () = assert!(END <= BEGUN && COLLECTIVE < super::HEAD_WORDS);
}

/// Words of a record.
pub(super) mod word {
    pub(in crate::flight) const STATE: usize = 0;
    pub(in crate::flight) const CALL: usize = 1;
    pub(in crate::flight) const ISSUED: usize = 4;
    pub(in crate::flight) const STARTED: usize = 5;
    /// Meaningless until the operation has ended.
    pub(in crate::flight) const ENDED: usize = 6;
    /// The other rank of a message, and one more; 0 where all ranks take part.
    pub(in crate::flight) const PEER: usize = 7;
    const _: () = assert!(CALL + super::CALL_BYTES / 8 == ISSUED && PEER < super::RECORD_WORDS);
}

/// The low bits of a record's first word; above them is the operation's number, counted from 1.
pub(super) const STATE_BITS: u32 = 2;
pub(super) const WRITING: u64 = 0;
pub(super) const RUNNING: u64 = 1;
pub(super) const DONE: u64 = 2;
pub(super) const FAILED: u64 = 3;

pub(super) const ERROR_READABLE: u64 = 2;
const ERROR_WRITING: u64 = 1;

pub(super) const SIZES: u64 = (CAPACITY as u64) << 32 | RECORD_WORDS as u64;

/// Whose operations are recorded.
pub(crate) struct Seat<'a> {
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) epoch: u64,
    pub(crate) label: &'a str,
    pub(crate) host: &'a str,
    /// Ranks of the world on this rank's host, itself counted.
    pub(crate) neighbours: usize,
    pub(crate) secret: &'a Secret,
}

impl<'a> Seat<'a> {
    /// `config` is valid.
    pub(crate) fn of(config: &'a Config) -> Seat<'a> {
        let host = &config.peers[config.rank].host;
        Seat {
            rank: config.rank,
            world: config.world,
            epoch: config.epoch,
            label: &config.label,
            host,
            neighbours: config.peers.iter().filter(|peer| peer.host == *host).count(),
            secret: &config.secret,
        }
    }

    /// Tells groups apart whose labels are equal. It follows from what all ranks know and no other job does, and
    /// does not show the secret.
    fn identity(&self) -> u64 {
        let world = self.world as u64;
        let tag = handshake::tag(self.secret, &[b"flight", &self.epoch.to_le_bytes(), &world.to_le_bytes()]);
        tag.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

/// A rank's side of the record. It is gone when this is dropped, or its process ends.
pub(crate) struct Recorder {
    map: MmapRaw,
    /// Nobody here reads it: it is what other processes find.
    _fd: OwnedFd,
}

/// An operation that has begun.
#[derive(Clone, Copy)]
#[must_use = "an operation that has begun also ends"]
pub(crate) struct Slot(u64);

impl Recorder {
    pub(crate) fn new(seat: &Seat<'_>) -> io::Result<Recorder> {
        let fd = memory::create_named(NAME, BYTES)?;
        let map = memory::map(fd.as_fd().try_clone_to_owned()?, BYTES)?;
        let recorder = Recorder { map, _fd: fd };
        let words = recorder.words();
        // Every page is there before the first operation is timed.
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let moment = Moment::now();
        let set = |index: usize, value: u64| words[index].store(value, Ordering::Relaxed);
        set(head::LAYOUT, LAYOUT);
        set(head::SIZES, SIZES);
        set(head::PID, std::process::id().into());
        set(head::RANK, seat.rank as u64);
        set(head::WORLD, seat.world as u64);
        set(head::EPOCH, seat.epoch);
        set(head::IDENTITY, seat.identity());
        set(head::NEIGHBOURS, seat.neighbours as u64);
        set(head::TICKS, moment.ticks);
        set(head::NANOSECONDS, moment.nanoseconds);
        set(head::LABEL_LENGTH, store_text(&words[head::LABEL..][..LABEL_WORDS], seat.label));
        set(head::HOST_LENGTH, store_text(&words[head::HOST..][..HOST_WORDS], seat.host));
        words[head::MAGIC].store(MAGIC, Ordering::Release);
        Ok(recorder)
    }

    #[inline]
    fn words(&self) -> &[AtomicU64; WORDS] {
        // SAFETY: the mapping is page-aligned, BYTES long and lives as long as self; any bytes are valid atomics,
        // and other processes may read them at any time.
        unsafe { &*self.map.as_ptr().cast::<[AtomicU64; WORDS]>() }
    }

    #[inline]
    fn record(&self, number: u64) -> &[AtomicU64; RECORD_WORDS] {
        let (records, _) = self.words()[HEAD_WORDS..].as_chunks::<RECORD_WORDS>();
        &records[number as usize % CAPACITY]
    }

    /// All ranks are there.
    pub(crate) fn connected(&self) {
        self.words()[head::CONNECTED].store(ticks::now().max(1), Ordering::Relaxed);
    }

    /// An operation begins. `issued` is the count of [`ticks::now`] when it was asked for, where that was earlier;
    /// `peer` the other rank, where only one takes part.
    #[inline]
    pub(crate) fn begin(&self, call: &Call, issued: Option<u64>, peer: Option<u32>) -> Slot {
        let words = self.words();
        let number = words[head::BEGUN].fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let record = self.record(number);
        record[word::STATE].store(number << STATE_BITS | WRITING, Ordering::Relaxed);
        fence(Ordering::Release);
        for (target, value) in record[word::CALL..word::ISSUED].iter().zip(call.words()) {
            target.store(value, Ordering::Relaxed);
        }
        record[word::PEER].store(peer.map_or(0, |peer| u64::from(peer) + 1), Ordering::Relaxed);
        let started = ticks::now();
        record[word::ISSUED].store(issued.unwrap_or(started), Ordering::Relaxed);
        record[word::STARTED].store(started, Ordering::Relaxed);
        record[word::STATE].store(number << STATE_BITS | RUNNING, Ordering::Release);
        if !matches!(call.kind, Kind::Message { .. }) {
            words[head::COLLECTIVE].store(call.sequence.wrapping_add(1), Ordering::Relaxed);
        }
        Slot(number)
    }

    /// The operation has ended, well or not.
    #[inline]
    pub(crate) fn end(&self, slot: Slot, ok: bool) {
        let Slot(number) = slot;
        let record = self.record(number);
        // It may have been overtaken by a whole ring of others.
        if record[word::STATE].load(Ordering::Relaxed) != number << STATE_BITS | RUNNING {
            return;
        }
        record[word::ENDED].store(ticks::now(), Ordering::Relaxed);
        let state = if ok { DONE } else { FAILED };
        record[word::STATE].store(number << STATE_BITS | state, Ordering::Release);
    }

    /// The call of operation `sequence` of all ranks, if it has begun and is not long over.
    pub(crate) fn call(&self, sequence: u64) -> Option<Call> {
        let last = self.words()[head::BEGUN].load(Ordering::Relaxed);
        let numbers = (1..=last).rev().take(CAPACITY);
        numbers.map(|number| self.begun(number)).find_map(|call| call.filter(|call| call.sequence == sequence))
    }

    /// The call of the `number`-th operation, where all ranks take part in it.
    fn begun(&self, number: u64) -> Option<Call> {
        let record = self.record(number);
        let state = record[word::STATE].load(Ordering::Acquire);
        if state >> STATE_BITS != number || state & ((1 << STATE_BITS) - 1) == WRITING {
            return None;
        }
        let words = std::array::from_fn(|index| record[word::CALL + index].load(Ordering::Relaxed));
        let alone = record[word::PEER].load(Ordering::Relaxed) == 0;
        // It may have been written over meanwhile.
        fence(Ordering::Acquire);
        let whole = record[word::STATE].load(Ordering::Relaxed) >> STATE_BITS == number;
        Call::from_words(words).filter(|_| alone && whole)
    }

    /// The communicator has ended with `error`. The first one counts.
    pub(crate) fn fail(&self, error: &Error) {
        let words = self.words();
        let state = &words[head::ERROR];
        if state.compare_exchange(0, ERROR_WRITING, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        let set = |index: usize, value: u64| words[index].store(value, Ordering::Relaxed);
        set(head::ERROR_TICKS, ticks::now());
        set(head::ERROR_RANK, error.rank().map_or(0, |rank| rank as u64 + 1));
        set(head::ERROR_LENGTH, store_text(&words[head::ERROR_TEXT..][..ERROR_WORDS], &error.to_string()));
        state.store(ERROR_READABLE, Ordering::Release);
    }

    /// Where the bytes are, for a reader in this process.
    #[cfg(test)]
    pub(super) fn file(&self) -> std::fs::File {
        self._fd.try_clone().expect("another descriptor").into()
    }
}

/// Writes as much of `text` as there is room for, and gives its length.
fn store_text(words: &[AtomicU64], text: &str) -> u64 {
    let text = &text[..text.floor_char_boundary(words.len() * 8)];
    for (target, chunk) in words.iter().zip(text.as_bytes().chunks(8)) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        target.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }
    text.len() as u64
}
