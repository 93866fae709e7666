//! The one place where a communicator's end is decided: the first cause wins, is told to all other ranks, and wakes
//! every wait of this one.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::call::{Call, Kind};
use crate::dispute::{Dispute, VOTES};
use crate::error::{Error, LossCause};
use crate::flight::Recorder;
use crate::monitor::ControlLink;
use crate::transport::shm::Region;

/// Ends a communicator from any thread: [`AbortHandle::abort`] makes every waiting and every later call fail, on all
/// ranks. A handle belongs to one [`Config`](crate::Config).
#[derive(Clone)]
pub struct AbortHandle(pub(crate) Arc<Breaker>);

impl AbortHandle {
    // Not `Default`: each handle is a thing of its own.
    #[allow(clippy::new_without_default)]
    pub fn new() -> AbortHandle {
        AbortHandle(Arc::new(Breaker {
            tripped: AtomicBool::new(false),
            event: std::sync::OnceLock::new(),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }))
    }

    /// Ends every waiting and every later call with [`Error::Aborted`]. Does nothing if they have ended before.
    pub fn abort(&self, reason: &str) {
        let rank = self.0.lock().rank;
        self.0.trip(Error::Aborted { rank, reason: reason.to_owned() });
    }
}

impl std::fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AbortHandle({:?})", self.0.error())
    }
}

pub(crate) struct Breaker {
    tripped: AtomicBool,
    /// Readable once tripped, for waits in `poll`. Made by `connect`, since it can fail.
    event: std::sync::OnceLock<EventFd>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    rank: usize,
    world: usize,
    error: Option<Error>,
    departed: BTreeSet<usize>,
    /// When a rank last said that it waits for others itself, and how often it has said so.
    excused: BTreeMap<usize, (Instant, u32)>,
    /// How often this rank has said so.
    said_waiting: u32,
    /// The call that a rank has said last that it waits in, and how often it has said such things.
    calls: BTreeMap<usize, (u32, Call)>,
    /// The call that this rank has waited in last for a moment.
    waits_in: Option<Call>,
    /// The call that this rank has said last that it waits in, and how often it has said such things.
    said_call: Option<Call>,
    said_calls: u32,
    /// Calls of an operation that differ.
    dispute: Option<Dispute>,
    ring: Ring,
    /// A rank has asked who is there.
    asked: bool,
    links: Vec<Arc<ControlLink>>,
    region: Option<Arc<Region>>,
    recorder: Option<Arc<Recorder>>,
    /// Others that end with this one.
    bound: Vec<Arc<Breaker>>,
}

/// How far the ring of control connections is. Rank 0 sends word both ways around it once it is connected to both
/// neighbours, and each rank hands that on once it is connected itself. Whom it has reached from both sides knows that
/// all are, and says so to all.
#[derive(Default)]
struct Ring {
    /// This rank is connected to both neighbours.
    connected: bool,
    /// All ranks on the way from rank 0 are, upwards and downwards.
    upwards: bool,
    downwards: bool,
    /// All are.
    complete: bool,
}

/// How much longer a rank waits for one that waits itself, and so knows better whom to blame.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

/// How long a failed connection waits for the control connections to tell the true cause. That takes a moment on an
/// idle machine, and some steps around the ring on a busy one; a death that nobody tells of is told by the closed
/// control connection.
const EXPLANATION: Duration = Duration::from_millis(500);

impl Breaker {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Prepares the breaker for `rank` of `world`; fails if it has tripped already.
    pub(crate) fn arm(&self, rank: usize, world: usize) -> Result<(), Error> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::System { rank, cause: format!("eventfd: {errno}") })?;
        let mut state = self.lock();
        if self.event.set(event).is_err() {
            return Err(Error::Config("the abort handle belongs to another communicator".to_owned()));
        }
        (state.rank, state.world) = (rank, world);
        // Who aborted before did not know its rank yet.
        state.error = state.error.take().map(|error| error.renamed(|_| rank));
        drop(state);
        self.check()
    }

    /// From now on people are told by `recorder`.
    pub(crate) fn record(&self, recorder: Arc<Recorder>) {
        self.lock().recorder = Some(recorder);
    }

    /// From now on others are told over this connection as well; at once, if the end has come already.
    pub(crate) fn attach_link(&self, link: &Arc<ControlLink>) -> Result<(), Error> {
        let mut state = self.lock();
        match &state.error {
            None => {
                state.links.push(Arc::clone(link));
                Ok(())
            }
            Some(error) => {
                link.send_abort(&error.encode());
                Err(error.clone())
            }
        }
    }

    /// From now on others are told through this memory as well.
    pub(crate) fn attach_region(&self, region: Arc<Region>) -> Result<(), Error> {
        let mut state = self.lock();
        match &state.error {
            None => {
                state.region = Some(region);
                Ok(())
            }
            Some(error) => {
                region.post_abort(&error.encode());
                Err(error.clone())
            }
        }
    }

    /// This rank is connected to both neighbours in the ring. Waits until all ranks are, until `deadline` at most;
    /// whether they are.
    pub(crate) fn close_ring(&self, deadline: Instant) -> Result<bool, Error> {
        let mut state = self.lock();
        state.ring.connected = true;
        if state.rank == 0 {
            (state.ring.upwards, state.ring.downwards) = (true, true);
        }
        state.hand_on(true, true);
        loop {
            // All have been there; what has come to an end since is told by the next operation.
            if state.ring.complete {
                return Ok(true);
            }
            if let Some(error) = &state.error {
                return Err(error.clone());
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Ok(false);
            }
            state = match self.changed.wait_timeout(state, remaining) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// All ranks on the way from rank 0 to the neighbour `from` are connected.
    pub(crate) fn hear_connected(&self, from: usize) {
        let mut state = self.lock();
        let (next, previous) = state.neighbours();
        // Of two ranks the other one is both. What comes back to rank 0 says nothing new.
        let upwards = from == previous && !state.ring.upwards;
        let downwards = from == next && !state.ring.downwards;
        state.ring.upwards |= upwards;
        state.ring.downwards |= downwards;
        state.hand_on(upwards, downwards);
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn hear_complete(&self) {
        let mut state = self.lock();
        state.complete_ring();
        drop(state);
        self.changed.notify_all();
    }

    /// This rank's time to connect is over: asks who is there, and names one that does not answer. Where all do, that
    /// is `rank`, for `cause`.
    pub(crate) fn overdue(&self, rank: usize, cause: &str) -> Error {
        let asked = Instant::now();
        self.lock().links.iter().for_each(|link| link.send_who());
        if let Some(error) = self.explanation() {
            return error;
        }
        let state = self.lock();
        let answered = |other: usize| state.excused.get(&other).is_some_and(|(said, _)| *said >= asked);
        let missing = (0..state.world).find(|other| *other != state.rank && !answered(*other));
        drop(state);
        let (rank, cause) = missing.map_or((rank, cause), |missing| (missing, "it has not connected in time"));
        self.trip(Error::Connect { rank, cause: cause.to_owned() })
    }

    /// A rank asks who is there: this one waits as well. Whether the others are still to be asked.
    pub(crate) fn hear_who(&self) -> bool {
        let news = !std::mem::replace(&mut self.lock().asked, true);
        if news {
            self.say_waiting();
        }
        news
    }

    /// All ranks are connected.
    pub(crate) fn connected(&self) {
        if let Some(recorder) = &self.lock().recorder {
            recorder.connected();
        }
    }

    pub(crate) fn detach(&self) {
        let mut state = self.lock();
        state.links.clear();
        state.ring = Ring::default();
        state.region = None;
        state.recorder = None;
    }

    #[inline]
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.tripped.load(Ordering::Acquire) { Err(self.error().unwrap_or_else(unknown)) } else { Ok(()) }
    }

    pub(crate) fn error(&self) -> Option<Error> {
        self.lock().error.clone()
    }

    /// Ends the communicator with `error`, or with the cause that came first; gives the one that counts.
    pub(crate) fn trip(&self, error: Error) -> Error {
        let mut state = self.lock();
        if let Some(first) = &state.error {
            return first.clone();
        }
        // The others are told under the lock, before anybody here can see the error and close the connections.
        state.tell(&error);
        state.error = Some(error.clone());
        self.tripped.store(true, Ordering::Release);
        if let Some(event) = self.event.get() {
            // An eventfd's counter cannot overflow by one write.
            let _ = event.write(1);
        }
        self.changed.notify_all();
        let bound = std::mem::take(&mut state.bound);
        drop(state);
        for other in bound {
            other.trip_quietly(error.clone());
        }
        error
    }

    /// Ends without telling the other ranks: they have heard of the cause elsewhere, by its name there.
    fn trip_quietly(&self, error: Error) {
        let mut state = self.lock();
        state.links.clear();
        state.region = None;
        drop(state);
        self.trip(error);
    }

    /// Lets `other` end with this one until it is released.
    pub(crate) fn bind(&self, other: &Arc<Breaker>) {
        let mut state = self.lock();
        match state.error.clone() {
            None => state.bound.push(Arc::clone(other)),
            Some(error) => {
                drop(state);
                other.trip_quietly(error);
            }
        }
    }

    pub(crate) fn release(&self, other: &Arc<Breaker>) {
        self.lock().bound.retain(|bound| !Arc::ptr_eq(bound, other));
    }

    /// `rank` has closed its communicator in an orderly way; whether that is news.
    pub(crate) fn depart(&self, rank: usize) -> bool {
        let news = self.lock().departed.insert(rank);
        self.changed.notify_all();
        news
    }

    pub(crate) fn has_departed(&self, rank: usize) -> bool {
        self.lock().departed.contains(&rank)
    }

    /// Tells the others that this rank has been waiting for long, and so is not the one to blame.
    pub(crate) fn say_waiting(&self) {
        let mut state = self.lock();
        state.said_waiting += 1;
        state.links.iter().for_each(|link| link.send_waiting(state.rank, state.said_waiting));
    }

    /// Tells the neighbours what this rank has been waiting in for a moment. Ranks that wait in the same operation, as
    /// they call it, but in different calls, may wait at different places for ever.
    pub(crate) fn tell_call(&self, call: &Call) {
        let mut state = self.lock();
        if state.waits_in == Some(*call) || matches!(call.kind, Kind::Message { .. }) {
            return;
        }
        state.waits_in = Some(*call);
        let bytes = call.encode();
        state.links.iter().for_each(|link| link.send_own_call(&bytes));
    }

    /// Tells all others, after longer: it costs as many messages as there are ranks, and finds what neighbours do not
    /// differ in.
    pub(crate) fn say_call(&self, call: &Call) {
        let mut state = self.lock();
        if state.said_call == Some(*call) || matches!(call.kind, Kind::Message { .. }) {
            return;
        }
        state.waits_in = Some(*call);
        state.say_call(call);
        let odd = state.calls.iter().find_map(|(rank, (_, theirs))| {
            let own = state.own_call(theirs.sequence)?;
            (own != *theirs).then_some((*rank, *theirs, own))
        });
        drop(state);
        if let Some((rank, theirs, own)) = odd {
            self.disagree(rank, &theirs, &own);
        }
    }

    /// `rank` has called `theirs` where this rank has called `own`. Waits until it is clear whom to name, and ends the
    /// communicator with that.
    pub(crate) fn disagree(&self, rank: usize, theirs: &Call, own: &Call) -> Error {
        // Twice: a dispute about an earlier operation may take this one's place.
        let deadline = Instant::now() + 2 * VOTES;
        let mut state = self.lock();
        state.disagree(rank, theirs, own);
        while state.error.is_none() {
            let now = Instant::now();
            if let Some(verdict) = state.verdict(now) {
                drop(state);
                return self.trip(verdict);
            }
            let end = state.dispute.as_ref().map(Dispute::end).filter(|end| *end > now);
            let left = end.unwrap_or(deadline).saturating_duration_since(now);
            if left.is_zero() {
                break;
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        drop(state);
        self.trip(Error::mismatch(rank, theirs, own))
    }

    /// A neighbour says that it waits in a call.
    pub(crate) fn hear_own_call(&self, rank: usize, call: &Call) {
        let mut state = self.lock();
        if let Some(own) = state.own_call(call.sequence)
            && own != *call
        {
            state.disagree(rank, call, &own);
            self.changed.notify_all();
        }
    }

    /// `rank` says, for the `count`-th time, that it waits in a call; whether that is news.
    pub(crate) fn hear_call(&self, rank: usize, count: u32, call: Call) -> bool {
        let mut state = self.lock();
        // What comes back around the ring goes no further.
        if rank == state.rank || state.calls.get(&rank).is_some_and(|(known, _)| *known >= count) {
            return false;
        }
        state.calls.insert(rank, (count, call));
        if let Some(dispute) = &mut state.dispute {
            dispute.hear(rank, call);
        }
        if let Some(own) = state.own_call(call.sequence)
            && own != call
        {
            state.disagree(rank, &call, &own);
        }
        self.changed.notify_all();
        true
    }

    /// Ends the communicator if calls differ and it is clear by now whose; otherwise gives the time by which it is.
    pub(crate) fn judge(&self) -> Option<Instant> {
        let (mut state, now) = (self.lock(), Instant::now());
        if state.error.is_some() {
            return None;
        }
        let end = state.dispute.as_ref()?.end();
        let Some(verdict) = state.verdict(now) else {
            if now < end {
                return Some(end);
            }
            // What ranks have said in the end does not differ after all.
            state.dispute = None;
            return None;
        };
        drop(state);
        self.trip(verdict);
        None
    }

    /// `rank` says that it waits, for the `count`-th time; whether that is news.
    pub(crate) fn excuse(&self, rank: usize, count: u32) -> bool {
        let mut state = self.lock();
        // What comes back around the ring goes no further.
        let news = rank != state.rank && state.excused.get(&rank).is_none_or(|(_, known)| *known < count);
        if news {
            state.excused.insert(rank, (Instant::now(), count));
        }
        news
    }

    /// Whether `rank` has said since `since` that it waits for others.
    pub(crate) fn is_excused(&self, rank: usize, since: Instant) -> bool {
        self.lock().excused.get(&rank).is_some_and(|(said, _)| *said >= since)
    }

    /// A connection of `rank` closed under an operation. If the rank has died or aborted, its control connection
    /// says so within a moment, and names the cause better than a closed connection can.
    pub(crate) fn lost(&self, rank: usize) -> Error {
        let deadline = Instant::now() + EXPLANATION;
        let mut state = self.lock();
        loop {
            if let Some(error) = &state.error {
                return error.clone();
            }
            let departed = state.departed.contains(&rank);
            let remaining = deadline.saturating_duration_since(Instant::now());
            if departed || remaining.is_zero() {
                drop(state);
                return self.trip(match departed {
                    true => Error::PeerLeft { rank },
                    false => Error::PeerLost { rank, cause: LossCause::ConnectionClosed },
                });
            }
            state = match self.changed.wait_timeout(state, remaining) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// What has ended the communicator, if that comes to light within the moment that news takes.
    pub(crate) fn explanation(&self) -> Option<Error> {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), EXPLANATION, |state| state.error.is_none())
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        state.error.clone()
    }

    /// How many ranks there are.
    pub(crate) fn world(&self) -> usize {
        self.lock().world
    }

    /// Readable once tripped.
    pub(crate) fn event(&self) -> Option<BorrowedFd<'_>> {
        self.event.get().map(|event| event.as_fd())
    }
}

impl State {
    fn say_call(&mut self, call: &Call) {
        self.said_call = Some(*call);
        self.said_calls += 1;
        let bytes = call.encode();
        self.links.iter().for_each(|link| link.send_call(self.rank, self.said_calls, &bytes));
    }

    /// What this rank calls operation `sequence`, if it has begun it.
    fn own_call(&self, sequence: u64) -> Option<Call> {
        let waits_in = self.waits_in.filter(|call| call.sequence == sequence);
        waits_in.or_else(|| self.recorder.as_ref()?.call(sequence))
    }

    /// `rank` has called `theirs` where this rank has called `own`: it says so to all, who then say what they call.
    /// The first operation that ranks differ in counts; others may follow from it.
    fn disagree(&mut self, rank: usize, theirs: &Call, own: &Call) {
        if self.dispute.as_ref().is_none_or(|dispute| own.sequence < dispute.sequence()) {
            let mut dispute = Dispute::new(own.sequence, Instant::now() + VOTES);
            dispute.hear(self.rank, *own);
            self.calls.iter().for_each(|(rank, (_, call))| dispute.hear(*rank, *call));
            self.dispute = Some(dispute);
            self.say_call(own);
        }
        if let Some(dispute) = &mut self.dispute {
            dispute.hear(rank, *theirs);
        }
    }

    fn verdict(&self, now: Instant) -> Option<Error> {
        self.dispute.as_ref()?.verdict(self.world, now)
    }

    /// The ranks after and before this one in the ring.
    fn neighbours(&self) -> (usize, usize) {
        ((self.rank + 1) % self.world, (self.rank + self.world - 1) % self.world)
    }

    /// Hands on what has come around the ring in these directions.
    fn hand_on(&mut self, upwards: bool, downwards: bool) {
        if !self.ring.connected {
            return;
        }
        if self.rank != 0 && self.ring.upwards && self.ring.downwards {
            self.complete_ring();
            return;
        }
        let (next, previous) = self.neighbours();
        let sends = [(upwards && self.ring.upwards, next), (downwards && self.ring.downwards, previous)];
        for (_, rank) in sends.into_iter().filter(|(sends, _)| *sends) {
            self.links.iter().filter(|link| link.rank == rank).for_each(|link| link.send_connected());
        }
    }

    fn complete_ring(&mut self) {
        if !self.ring.complete {
            self.ring.complete = true;
            self.links.iter().for_each(|link| link.send_complete());
        }
    }

    /// Writes that never block.
    fn tell(&self, error: &Error) {
        let bytes = error.encode();
        if let Some(recorder) = &self.recorder {
            recorder.fail(error);
        }
        if let Some(region) = &self.region {
            region.post_abort(&bytes);
        }
        for link in &self.links {
            link.send_abort(&bytes);
        }
    }
}

fn unknown() -> Error {
    Error::Aborted { rank: 0, reason: "unknown".to_owned() }
}
