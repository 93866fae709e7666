//! Ranks of one host: they meet in shared memory, stage private buffers through windows of it, and reduce buffers
//! that already lie in it where they are.
//!
//! Memory layout: a head, one slot a rank, then two sets of windows, one window a rank in each. A *turn* is one
//! passage through a set of windows; turns alternate between the two sets, so a rank may fill a window for the next
//! turn while a slower one still reads the last. A window is written again two turns later, when the meeting in
//! between has shown that everybody has left it.
//!
//! All words that ranks write at the same time are atomics. Windows and segments are plain memory: between two
//! meetings each byte is written by one rank only, and read by others only after the next meeting, whose counter
//! orders the accesses.

#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memmap2::MmapRaw;

use crate::breaker::{Breaker, GRACE};
use crate::call::{CALL_BYTES, Call, Location, odd_one};
use crate::element::{DType, DataMut};
use crate::error::{ENCODED_MAX, Error, LossCause};
use crate::reduce::{ReduceOp, fold, narrow, widen};
use crate::schedule::part;
use crate::segment::Segment;
use crate::transport::futex;

/// On a cache line of its own, with its neighbour line, which processors fetch along.
#[repr(C, align(128))]
struct Line<T>(T);

#[repr(C)]
struct Head {
    /// Ranks that have arrived at meetings, counted over all meetings.
    arrived: Line<AtomicU64>,
    /// Meetings that are complete.
    complete: Line<AtomicU64>,
    sleep: Line<Sleep>,
    abort: Line<AbortRecord>,
}

#[repr(C)]
struct Sleep {
    /// Changed whenever a sleeper may have a reason to go on.
    bell: AtomicU32,
    sleepers: AtomicU32,
}

#[repr(C)]
struct AbortRecord {
    /// 0: none, 1: being written, 2: readable.
    state: AtomicU32,
    length: AtomicU32,
    bytes: [AtomicU8; ENCODED_MAX],
}

/// Words of a call and a location: presence, segment and offset.
const CALL_WORDS: usize = CALL_BYTES / 8 + 3;

#[repr(C, align(128))]
struct Slot {
    /// Meetings that the rank has arrived at.
    progress: AtomicU64,
    left: AtomicU32,
    /// The rank's last two operations, by the parity of their number: nobody can be two behind.
    calls: [[AtomicU64; CALL_WORDS]; 2],
}

/// The mapped memory of one group.
pub(crate) struct Region {
    map: MmapRaw,
    ranks: usize,
    window: usize,
}

const PAGE: usize = 4096;

fn windows_start(ranks: usize) -> usize {
    (size_of::<Head>() + ranks * size_of::<Slot>()).next_multiple_of(PAGE)
}

impl Region {
    /// Bytes of the memory that `ranks` ranks with windows of `window` bytes need.
    pub(crate) fn length(ranks: usize, window: usize) -> usize {
        windows_start(ranks) + 2 * ranks * window
    }

    /// `map` has [`Region::length`] bytes that were zero when made.
    pub(crate) fn new(map: MmapRaw, ranks: usize, window: usize) -> Region {
        assert_eq!(map.len(), Region::length(ranks, window), "the memory has the region's size");
        Region { map, ranks, window }
    }

    fn head(&self) -> &Head {
        // SAFETY: the mapping is page-aligned, longer than a head, lives as long as self, and a head is made of
        // atomics, for which any bytes are valid and concurrent writes by others allowed.
        unsafe { &*self.map.as_ptr().cast::<Head>() }
    }

    fn slot(&self, rank: usize) -> &Slot {
        assert!(rank < self.ranks);
        // SAFETY: as for the head; slots follow it, `ranks` of them, and Head's size is a multiple of its alignment,
        // which is that of Slot.
        unsafe { &*self.map.as_ptr().add(size_of::<Head>()).cast::<Slot>().add(rank) }
    }

    fn window(&self, turn: u64, rank: usize) -> *mut u8 {
        assert!(rank < self.ranks);
        let index = (turn % 2) as usize * self.ranks + rank;
        // SAFETY: there are 2 * ranks windows of `window` bytes from there on.
        unsafe { self.map.as_mut_ptr().add(windows_start(self.ranks) + index * self.window) }
    }

    fn ring_bell(&self) {
        let sleep = &self.head().sleep.0;
        // A sleeper counts itself before it compares the bell in the kernel. If it is not counted here yet, its
        // comparison comes after this change, and it does not sleep.
        sleep.bell.fetch_add(1, Ordering::SeqCst);
        if sleep.sleepers.load(Ordering::SeqCst) > 0 {
            futex::wake_all(&sleep.bell);
        }
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

    fn abort(&self) -> Option<Error> {
        let record = &self.head().abort.0;
        if record.state.load(Ordering::Acquire) != 2 {
            return None;
        }
        let length = (record.length.load(Ordering::Relaxed) as usize).min(ENCODED_MAX);
        let bytes: Vec<u8> = record.bytes[..length].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        Some(Error::decode(&bytes).unwrap_or(Error::PeerLost { rank: 0, cause: LossCause::InvalidMessage }))
    }

    /// `rank` closes its communicator.
    pub(crate) fn leave(&self, rank: usize) {
        self.slot(rank).left.store(1, Ordering::Release);
        self.ring_bell();
    }
}

/// What all ranks of the group found when they compared their calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Placement {
    /// Every buffer lies at the same place of the same segment.
    Direct(Location),
    /// Some lie in a segment, some do not: those that have not staged theirs do so now.
    Mixed,
    /// None lies in a segment.
    Private,
}

/// One rank's place among the ranks of its host.
pub(crate) struct Group {
    region: Arc<Region>,
    me: usize,
    /// World ranks by place; the first leads.
    ranks: Vec<usize>,
    breaker: Arc<Breaker>,
    timeout: Duration,
    /// Whether there are other hosts.
    spans: bool,
    spins: u32,
    meetings: u64,
    turn: u64,
}

/// The work that the leader does between hosts while the others wait, on elements that lie in shared memory.
pub(crate) type Wide<'a> = &'a mut dyn FnMut(DataMut<'_>) -> Result<(), Error>;

/// Polls of the counter before a rank sleeps: about 20 microseconds.
const SPINS: u32 = 600;

impl Group {
    pub(crate) fn new(
        region: Arc<Region>,
        me: usize,
        ranks: Vec<usize>,
        breaker: Arc<Breaker>,
        timeout: Duration,
        spans: bool,
    ) -> Group {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // A rank that spins on the only core keeps the one it waits for from running.
        let spins = if ranks.len() <= cores { SPINS } else { 0 };
        Group { region, me, ranks, breaker, timeout, spans, spins, meetings: 0, turn: 0 }
    }

    pub(crate) fn size(&self) -> usize {
        self.ranks.len()
    }

    pub(crate) fn leads(&self) -> bool {
        self.me == 0
    }

    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    pub(crate) fn me(&self) -> usize {
        self.me
    }

    /// Waits until every rank of the group has come as far as this one.
    fn meet(&mut self, call: &Call) -> Result<(), Error> {
        self.meetings += 1;
        let meeting = self.meetings;
        let head = self.region.head();
        self.region.slot(self.me).progress.store(meeting, Ordering::Release);
        let last = head.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == meeting * self.ranks.len() as u64;
        if last {
            head.complete.0.store(meeting, Ordering::Release);
            self.region.ring_bell();
            return Ok(());
        }
        for _ in 0..self.spins {
            if head.complete.0.load(Ordering::Acquire) >= meeting {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        self.sleep_until(meeting, call)
    }

    #[cold]
    fn sleep_until(&self, meeting: u64, call: &Call) -> Result<(), Error> {
        let head = self.region.head();
        let sleep = &head.sleep.0;
        let start = Instant::now();
        // Members wait for a leader that may itself wait for other hosts.
        let limit = if self.spans && !self.leads() { self.timeout + GRACE } else { self.timeout };
        let mut silent = self.spans;
        loop {
            let bell = sleep.bell.load(Ordering::SeqCst);
            if head.complete.0.load(Ordering::Acquire) >= meeting {
                return Ok(());
            }
            let behind = |place: &usize| self.region.slot(*place).progress.load(Ordering::Acquire) < meeting;
            let has_left = |place: &usize| self.region.slot(*place).left.load(Ordering::Acquire) != 0;
            // Left is read before progress: a rank that has arrived and then left is not missed. And it is read
            // before the abort: a rank that has aborted and then left is named for the abort.
            let gone = (0..self.ranks.len()).filter(has_left).find(behind);
            self.breaker.check()?;
            if let Some(error) = self.region.abort() {
                return Err(self.breaker.trip(error));
            }
            if let Some(place) = gone {
                return Err(self.breaker.trip(Error::PeerLeft { rank: self.ranks[place] }));
            }
            let waited = start.elapsed();
            if waited >= limit {
                let Some(place) = (0..self.ranks.len()).find(behind) else { continue };
                return Err(self.breaker.trip(Error::timeout(self.ranks[place], call, waited)));
            }
            if silent && waited >= limit / 2 {
                silent = false;
                self.breaker.say_waiting();
            }
            sleep.sleepers.fetch_add(1, Ordering::SeqCst);
            futex::wait(&sleep.bell, bell, (limit - waited).min(limit / 4).min(Duration::from_millis(100)));
            sleep.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Publishes this rank's call, meets the others and compares. Nothing but this rank's own window has been
    /// written before.
    fn agree(&mut self, call: &Call, location: Option<Location>) -> Result<Placement, Error> {
        let parity = (call.sequence % 2) as usize;
        let words = &self.region.slot(self.me).calls[parity];
        let encoded = call.encode();
        let (chunks, _) = encoded.as_chunks::<8>();
        for (word, bytes) in words.iter().zip(chunks) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        let [.., present, segment, offset] = words;
        present.store(location.is_some().into(), Ordering::Relaxed);
        segment.store(location.map_or(0, |location| location.segment), Ordering::Relaxed);
        offset.store(location.map_or(0, |location| location.offset), Ordering::Relaxed);
        self.meet(call)?;
        let mut equal = true;
        let mut locations = Vec::with_capacity(self.ranks.len());
        let mut calls = Vec::with_capacity(self.ranks.len());
        for place in 0..self.ranks.len() {
            let words = &self.region.slot(place).calls[parity];
            let mut bytes = [0; CALL_BYTES];
            for (target, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *target = word.load(Ordering::Relaxed).to_le_bytes();
            }
            equal &= bytes == encoded;
            calls.push(bytes);
            let [.., present, segment, offset] = words;
            locations.push((present.load(Ordering::Relaxed) != 0).then(|| Location {
                segment: segment.load(Ordering::Relaxed),
                offset: offset.load(Ordering::Relaxed),
            }));
        }
        if !equal {
            return Err(self.breaker.trip(self.mismatch(&calls)));
        }
        Ok(match location {
            Some(location) if locations.iter().all(|other| *other == Some(location)) => Placement::Direct(location),
            None if locations.iter().all(Option::is_none) => Placement::Private,
            _ => Placement::Mixed,
        })
    }

    #[cold]
    fn mismatch(&self, calls: &[[u8; CALL_BYTES]]) -> Error {
        let calls: Vec<Option<Call>> = calls.iter().map(Call::decode).collect();
        let name = |call: Option<Call>| call.map_or("nothing known".to_owned(), |call| call.to_string());
        match odd_one(&calls) {
            Some((place, expected)) => {
                Error::Mismatch { rank: self.ranks[place], theirs: name(calls[place]), expected: name(expected) }
            }
            None => Error::PeerLost { rank: self.ranks[0], cause: LossCause::InvalidMessage },
        }
    }

    pub(crate) fn barrier(&mut self, call: &Call, wide: Option<Wide<'_>>) -> Result<(), Error> {
        self.agree(call, None)?;
        if let Some(wide) = wide {
            wide(DataMut::from(&mut [] as &mut [u8]))?;
        }
        if self.spans { self.meet(call) } else { Ok(()) }
    }

    /// Reduces `data` over the ranks of the group and, where there are others, over all hosts through the leaders'
    /// `wide`.
    ///
    /// 16-bit floats that go to other hosts travel as f32, so that they are rounded once, at the end.
    pub(crate) fn all_reduce(
        &mut self,
        call: &Call,
        mut data: DataMut<'_>,
        op: ReduceOp,
        divisor: Option<usize>,
        segment: Option<(&Arc<Segment>, Location)>,
        mut wide: Option<Wide<'_>>,
    ) -> Result<(), Error> {
        let (dtype, spans) = (data.dtype(), self.spans);
        let wire = if spans && dtype.is_half() { DType::F32 } else { dtype };
        let per_turn = self.region.window / wire.size();
        let count = data.count();
        let turns = count.div_ceil(per_turn).max(1);
        let turn_range = |index: usize| index * per_turn..((index + 1) * per_turn).min(count);
        // Between hosts the leader needs the elements in a window.
        let segment = segment.filter(|_| !spans);
        if segment.is_none() {
            self.stage(wire, &mut data, turn_range(0), self.me);
        }
        match self.agree(call, segment.map(|(_, location)| location))? {
            Placement::Direct(location) => {
                let (segment, _) = segment.expect("a direct placement is this rank's own");
                return self.reduce_in_place(call, &data, op, divisor, segment, location);
            }
            Placement::Mixed => {
                if segment.is_some() {
                    self.stage(wire, &mut data, turn_range(0), self.me);
                }
                self.meet(call)?;
            }
            Placement::Private => {}
        }
        for index in 0..turns {
            let range = turn_range(index);
            if index > 0 {
                self.stage(wire, &mut data, range.clone(), self.me);
                self.meet(call)?;
            }
            let slice = aligned_part(wire, range.len(), self.ranks.len(), self.me);
            let offset = slice.start * wire.size();
            // SAFETY: every window holds range.len() elements of the wire type, staged before the last meeting.
            // Until the next one nobody else touches this rank's slice of any window.
            unsafe {
                let windows: Vec<*const u8> = (0..self.ranks.len())
                    .map(|place| self.region.window(self.turn, place).add(offset).cast_const())
                    .collect();
                let target = self.region.window(self.turn, 0).add(offset);
                fold(wire, op, divisor.filter(|_| !spans), &windows, &[target], slice.len());
            }
            self.meet(call)?;
            if spans {
                if let Some(wide) = &mut wide {
                    // SAFETY: after the meeting the leader alone touches the first window, until the next.
                    wide(unsafe { DataMut::from_raw(wire, self.region.window(self.turn, 0), range.len()) })?;
                }
                self.meet(call)?;
            }
            self.unstage(wire, &mut data, range, 0);
            self.turn += 1;
        }
        Ok(())
    }

    fn reduce_in_place(
        &mut self,
        call: &Call,
        data: &DataMut<'_>,
        op: ReduceOp,
        divisor: Option<usize>,
        segment: &Segment,
        location: Location,
    ) -> Result<(), Error> {
        let dtype = data.dtype();
        let slice = aligned_part(dtype, data.count(), self.ranks.len(), self.me);
        let offset = location.offset as usize + slice.start * dtype.size();
        let (mut sources, mut targets) = (Vec::new(), Vec::new());
        for place in 0..self.ranks.len() {
            let buffer = segment.at(place, offset, slice.len() * dtype.size());
            sources.push(buffer.cast_const());
            targets.push(buffer);
        }
        // SAFETY: every rank has lent its buffer to this operation, at the same place of the segment, which
        // `Segment::at` has checked to hold it. Between the two meetings this rank alone touches this slice.
        unsafe { fold(dtype, op, divisor, &sources, &targets, slice.len()) };
        self.meet(call)
    }

    /// Copies from the rank at `root` to all others of the group.
    pub(crate) fn broadcast(
        &mut self,
        call: &Call,
        mut data: DataMut<'_>,
        root: usize,
        segment: Option<(&Arc<Segment>, Location)>,
    ) -> Result<(), Error> {
        // The root may use all windows of a set.
        let dtype = data.dtype();
        let per_turn = self.region.window * self.ranks.len() / dtype.size();
        let count = data.count();
        let turns = count.div_ceil(per_turn).max(1);
        let turn_range = |index: usize| index * per_turn..((index + 1) * per_turn).min(count);
        let sends = self.me == root;
        if sends && segment.is_none() {
            self.stage(dtype, &mut data, turn_range(0), 0);
        }
        match self.agree(call, segment.map(|(_, location)| location))? {
            Placement::Direct(location) => {
                let (segment, _) = segment.expect("a direct placement is this rank's own");
                let source = segment.at(root, location.offset as usize, data.byte_len());
                if !sends {
                    // SAFETY: the root has lent its buffer to this operation and does not write it before the next
                    // meeting; this rank's own buffer is another part of the segment.
                    unsafe { std::ptr::copy_nonoverlapping(source, data.pointer(), data.byte_len()) };
                }
                return self.meet(call);
            }
            Placement::Mixed => {
                if sends && segment.is_some() {
                    self.stage(dtype, &mut data, turn_range(0), 0);
                }
                self.meet(call)?;
            }
            Placement::Private => {}
        }
        for index in 0..turns {
            let range = turn_range(index);
            if index > 0 {
                if sends {
                    self.stage(dtype, &mut data, range.clone(), 0);
                }
                self.meet(call)?;
            }
            if !sends {
                self.unstage(dtype, &mut data, range, 0);
            }
            self.turn += 1;
        }
        Ok(())
    }

    /// Copies a range of `data` to the windows of this turn from that of `place` on.
    fn stage(&self, wire: DType, data: &mut DataMut<'_>, range: Range<usize>, place: usize) {
        let source = data.range(range.start, range.len());
        let window = self.region.window(self.turn, place);
        // SAFETY: a turn's range fits what the caller uses of the windows (one, or all of them from the first),
        // which this rank alone writes before the next meeting, and which everybody has left two turns ago.
        unsafe {
            if wire == source.dtype() {
                std::ptr::copy_nonoverlapping(source.pointer(), window, source.byte_len());
            } else {
                widen(source.dtype(), source.pointer(), window, source.count());
            }
        }
    }

    /// Copies the windows of this turn, from that of `place` on, to a range of `data`.
    fn unstage(&self, wire: DType, data: &mut DataMut<'_>, range: Range<usize>, place: usize) {
        let target = data.range(range.start, range.len());
        let window = self.region.window(self.turn, place);
        // SAFETY: as for staging; nobody writes the windows of a turn after its last meeting.
        unsafe {
            if wire == target.dtype() {
                std::ptr::copy_nonoverlapping(window, target.pointer(), target.byte_len());
            } else {
                narrow(target.dtype(), window, target.pointer(), target.count());
            }
        }
    }
}

/// Part `index` of `count` elements in whole cache lines, so that no two ranks write one line.
fn aligned_part(dtype: DType, count: usize, parts: usize, index: usize) -> Range<usize> {
    let line = 64 / dtype.size();
    let lines = part(count.div_ceil(line), parts, index);
    (lines.start * line).min(count)..(lines.end * line).min(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_parts_cover_everything_once() {
        for dtype in [DType::F64, DType::BF16, DType::U8] {
            for count in [0, 1, 63, 64, 65, 1000] {
                for parts in 1..6 {
                    let all: Vec<usize> =
                        (0..parts).flat_map(|index| aligned_part(dtype, count, parts, index)).collect();
                    assert_eq!(all, (0..count).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn the_first_abort_counts() {
        let fd = crate::transport::memory::create(Region::length(2, PAGE)).expect("memory");
        let map = crate::transport::memory::map(fd, Region::length(2, PAGE)).expect("mapping");
        let region = Region::new(map, 2, PAGE);
        assert_eq!(region.abort(), None);
        region.post_abort(&Error::PeerLeft { rank: 1 }.encode());
        region.post_abort(&Error::PeerLeft { rank: 0 }.encode());
        assert_eq!(region.abort(), Some(Error::PeerLeft { rank: 1 }));
    }
}
