//! Ranks of one host: they meet in shared memory, and reduce what lies in it.
//!
//! A *meeting* is a point that no rank passes before all have come to it. Each rank posts the meeting's number in a
//! line of its own and looks at those of the others; an operation's first meeting carries its call along, so ranks
//! that disagree find out before any data is touched. Two lines a rank are enough: who posts meeting m + 2 has passed
//! m + 1, to which everybody came after having read the posts of m.
//!
//! Data moves in one of four ways:
//! - *at once* ([`small`]): every rank copies its data to its window, all meet, and each folds all windows for itself.
//!   One meeting, the least there can be.
//! - *in place* ([`direct`]): buffers that lie in shared memory are folded where they are; each rank folds its slice
//!   of all and writes it to all. Two meetings, no copies.
//! - *in chunks* ([`staged`], [`moved`]): private buffers pass through the windows, which stay in cache.
//! - *at its place* ([`read`]): much data that only moves is read where it lies, in one copy.
//!
//! With other hosts in it, a reduction goes through the windows to the leaders ([`wide`]).
//!
//! Messages between two ranks ([`message`]) go through buffers of their own and need no meeting.
//!
//! Windows and segments are plain memory: between two meetings each byte is written by one rank only, and read by
//! others only after the next meeting, whose posts order the accesses. Chunk after chunk and operation after operation
//! uses the next of [`SETS`](region::SETS) sets of windows. A rank that has passed a meeting is at most one meeting
//! ahead of any other, and what the others still read was written at most three turns before what it writes now; so
//! with four sets nobody writes what somebody reads.

#![allow(unsafe_code)]

mod direct;
mod life;
mod message;
mod moved;
pub(crate) mod options;
mod protocol;
mod read;
mod region;
mod silence;
mod small;
mod staged;
mod wide;

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::breaker::{Breaker, GRACE};
use crate::call::{Call, Location, odd_one};
use crate::element::{DType, DataMut};
use crate::error::{Error, LossCause};
use crate::schedule::part;
use crate::segment::Segments;

pub(crate) use life::Life;
pub(crate) use message::{Incoming, Outgoing};
use options::ShmOptions;
use protocol::WORDS;
use read::Reader;
pub(crate) use region::Region;
use silence::{Late, Verdict, Wait};
pub(crate) use staged::ReductionBuffers;

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

/// Who shares the memory of a region.
pub(crate) struct Seats {
    pub(crate) region: Arc<Region>,
    /// This rank's place.
    pub(crate) me: usize,
    /// World ranks by place.
    pub(crate) ranks: Vec<usize>,
    /// Whether there are other hosts.
    pub(crate) spans: bool,
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
    patience: Patience,
    meetings: u64,
    turn: u64,
    /// Chunks of messages that this rank has posted.
    sent: u64,
    segments: Arc<Segments>,
    reader: Reader,
}

/// The work that the leader does between hosts while the others wait, on elements that lie in shared memory.
pub(crate) type Wide<'a> = &'a mut (dyn FnMut(DataMut<'_>) -> Result<(), Error> + Send);

/// How a rank waits before it sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Patience {
    /// Every rank has a processor: looking is the fastest. After some 20 microseconds other threads of the process may
    /// have one between two looks.
    Look,
    /// Ranks share processors: each gives way to the others, a number of times.
    GiveWay,
}

const LOOKS: u32 = 1000;
const GIVE_WAYS: u32 = 40;

/// How long a rank with a processor of its own looks before it sleeps: to be woken takes longer than most ranks are
/// apart.
const LOOK_FOR: Duration = Duration::from_millis(2);

/// Where many others want the processor, giving way takes long: for no longer than that, since who gives way keeps the
/// others from it as well.
const GIVE_WAY_FOR: Duration = Duration::from_millis(1);

impl Group {
    pub(crate) fn new(
        seats: Seats,
        breaker: Arc<Breaker>,
        timeout: Duration,
        segments: Arc<Segments>,
        options: ShmOptions,
    ) -> Group {
        let Seats { region, me, ranks, spans } = seats;
        region.tell_processors(me);
        let reader = Reader::new(&region, me, options.reading);
        // Until the first meeting nobody knows where the others run.
        let patience = Patience::GiveWay;
        Group { region, me, ranks, breaker, timeout, spans, patience, meetings: 0, turn: 0, sent: 0, segments, reader }
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

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.me;
        (0..self.ranks.len()).filter(move |place| *place != me)
    }

    /// Waits until every rank of the group has come as far as this one.
    #[inline]
    fn meet(&mut self, call: &Call) -> Result<(), Error> {
        self.meetings += 1;
        self.region.post(self.me, self.meetings).come(self.meetings);
        self.wait_for_all(call)
    }

    /// Meets the others and compares calls and places with them.
    #[inline]
    fn agree(&mut self, call: &Call, location: Option<Location>) -> Result<Placement, Error> {
        self.meetings += 1;
        let meeting = self.meetings;
        let [first, second, third] = call.words();
        let (segment, offset) = location.map_or((0, 0), |location| (location.segment + 1, location.offset));
        let words: [u64; WORDS] = [first, second, third, segment, offset];
        let own = self.region.post(self.me, meeting);
        own.write(&words);
        own.come(meeting);
        self.wait_for_all(call)?;
        let (mut calls_equal, mut places_equal, mut nowhere) = (true, true, segment == 0);
        for place in self.others() {
            let theirs = self.region.post(place, meeting).words();
            calls_equal &= theirs[..3] == words[..3];
            places_equal &= theirs[3..] == words[3..];
            nowhere &= theirs[3] == 0;
        }
        if !calls_equal {
            return Err(self.mismatch(meeting));
        }
        Ok(match location {
            Some(location) if places_equal => Placement::Direct(location),
            _ if nowhere => Placement::Private,
            _ => Placement::Mixed,
        })
    }

    /// Whether the ranks have come to the last meeting, at which they agreed, with data in one segment.
    fn all_in_one_segment(&self) -> bool {
        let segment = |place: usize| self.region.post(place, self.meetings).words()[3];
        segment(self.me) != 0 && self.others().all(|place| segment(place) == segment(self.me))
    }

    #[inline]
    fn wait_for_all(&mut self, call: &Call) -> Result<(), Error> {
        let meeting = self.meetings;
        for place in self.others() {
            let post = self.region.post(place, meeting);
            let mut looks = 0;
            while !post.has_come(meeting) {
                if looks == LOOKS || self.patience == Patience::GiveWay {
                    return self.wait_long(meeting, call);
                }
                looks += 1;
                std::hint::spin_loop();
            }
        }
        self.region.head().complete(meeting);
        if meeting == 1 {
            self.settle();
        }
        Ok(())
    }

    /// After the first meeting it is known where all may run.
    #[cold]
    fn settle(&mut self) {
        if self.region.processors() >= self.ranks.len() {
            self.patience = Patience::Look;
        }
    }

    fn all_have_come(&self, meeting: u64) -> bool {
        self.others().all(|place| self.region.post(place, meeting).has_come(meeting))
    }

    #[cold]
    fn wait_long(&mut self, meeting: u64, call: &Call) -> Result<(), Error> {
        let start = Instant::now();
        let (times, limit) = match self.patience {
            Patience::Look => (u32::MAX, LOOK_FOR),
            Patience::GiveWay => (GIVE_WAYS, GIVE_WAY_FOR),
        };
        for _ in 0..times {
            if self.all_have_come(meeting) || self.has_ended() || start.elapsed() > limit {
                break;
            }
            std::thread::yield_now();
        }
        let behind = |place: usize| place != self.me && !self.region.post(place, meeting).has_come(meeting);
        self.sleep_until(call, start, &|| self.all_have_come(meeting), &behind)?;
        self.region.head().complete(meeting);
        if meeting == 1 {
            self.settle();
        }
        Ok(())
    }

    /// Whether anybody has ended the communicator, told in memory: who looks on would not hear of it otherwise.
    #[inline]
    fn has_ended(&self) -> bool {
        self.region.head().is_aborted()
    }

    /// Sleeps until `done`, which the ranks at the places that are `behind` have to bring about; they have been
    /// waited for since `start`. After too long one of them is named, as [`silence`] says.
    fn sleep_until(
        &self,
        call: &Call,
        start: Instant,
        done: &dyn Fn() -> bool,
        behind: &dyn Fn(usize) -> bool,
    ) -> Result<(), Error> {
        // Members wait for a leader that may itself wait for other hosts.
        let limit = if self.spans && !self.leads() { self.timeout + GRACE } else { self.timeout };
        let half = limit / 2;
        let mut told = !self.spans;
        // When somebody is named; and the pulses, with the time when they were felt.
        let (mut end, mut felt) = (limit, None);
        let feel = || (0..self.ranks.len()).map(|place| self.region.pulse(place)).collect::<Vec<u64>>();
        let mut look = || {
            if done() {
                return Ok(None);
            }
            self.region.beat(self.me);
            self.check_ends(done, behind)?;
            let waited = start.elapsed();
            // In time for who waits for this rank at another host, and no longer than its own limit.
            if !told && waited >= self.timeout / 2 {
                told = true;
                self.breaker.say_waiting();
            }
            if waited >= half {
                felt.get_or_insert_with(|| (waited, feel()));
            }
            if let Some((since, pulses)) = &felt
                && waited >= end
            {
                let late = self.others().filter(|place| behind(*place)).map(|place| Late {
                    place,
                    pulse: self.region.pulse(place) != pulses[place],
                    excused: self.breaker.is_excused(self.ranks[place], start),
                });
                let late: Vec<Late> = late.collect();
                let wait = Wait { limit, felt: waited - *since, spans: self.spans, overdue: end > limit };
                match silence::judge(&late, wait) {
                    Verdict::Nobody => return Ok(Some(Duration::ZERO)),
                    Verdict::Later(grace) => (end, felt) = (waited + grace, Some((waited, feel()))),
                    Verdict::Blame(place) => {
                        return Err(self.breaker.trip(Error::timeout(self.ranks[place], call, waited)));
                    }
                }
            }
            let next = [self.timeout / 2, half].into_iter().find(|next| waited < *next).unwrap_or(end);
            Ok(Some((next - waited).min(limit / 4).min(Duration::from_millis(100))))
        };
        self.region.head().sleep_until(|| match look() {
            Ok(None) => ControlFlow::Break(Ok(())),
            Ok(Some(limit)) => ControlFlow::Continue(limit),
            Err(error) => ControlFlow::Break(Err(error)),
        })
    }

    /// Fails if the communicator has ended, or one of those that are `behind` has left.
    fn check_ends(&self, done: &dyn Fn() -> bool, behind: &dyn Fn(usize) -> bool) -> Result<(), Error> {
        let has_left = |place: &usize| self.region.has_left(*place);
        // Left is read before the post: a rank that has come and then left is not missed. And it is read before
        // the abort: a rank that has aborted and then left is named for the abort.
        let gone = self.others().filter(has_left).find(|place| behind(*place) && !done());
        self.breaker.check()?;
        if let Some(error) = self.region.head().abort() {
            return Err(self.breaker.trip(error));
        }
        match gone {
            Some(place) => Err(self.breaker.trip(Error::PeerLeft { rank: self.ranks[place] })),
            None => Ok(()),
        }
    }

    #[cold]
    fn mismatch(&self, meeting: u64) -> Error {
        let calls: Vec<Option<Call>> = (0..self.ranks.len())
            .map(|place| {
                let [first, second, third, ..] = self.region.post(place, meeting).words();
                Call::from_words([first, second, third])
            })
            .collect();
        let name = |call: Option<Call>| call.map_or("nothing known".to_owned(), |call| call.to_string());
        // Whose call is unlike most is for the ranks of all hosts to say.
        if self.spans
            && let Some(own) = calls[self.me]
            && let Some((place, theirs)) = (0..).zip(&calls).find_map(|(place, call)| {
                Some(place).zip(call.filter(|call| call.sequence == own.sequence && *call != own))
            })
        {
            return self.breaker.disagree(self.ranks[place], &theirs, &own);
        }
        let error = match odd_one(&calls) {
            Some((place, expected)) => {
                Error::Mismatch { rank: self.ranks[place], theirs: name(calls[place]), expected: name(expected) }
            }
            None => Error::PeerLost { rank: self.ranks[0], cause: LossCause::InvalidMessage },
        };
        self.breaker.trip(error)
    }

    /// `wide` is carried out by the leader while all are here.
    pub(crate) fn barrier(&mut self, call: &Call, wide: Option<Wide<'_>>) -> Result<(), Error> {
        self.agree(call, None)?;
        if let Some(wide) = wide {
            wide(DataMut::from(&mut [] as &mut [u8]))?;
        }
        if self.spans { self.meet(call) } else { Ok(()) }
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
}
