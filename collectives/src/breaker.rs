//! The one place where a communicator's end is decided: the first cause wins, is told to all other ranks, and wakes
//! every wait of this one.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::call::{Call, Kind};
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
    error: Option<Error>,
    departed: BTreeSet<usize>,
    /// When a rank last said that it waits for others itself, and how often it has said so.
    excused: BTreeMap<usize, (Instant, u32)>,
    /// How often this rank has said so.
    said_waiting: u32,
    /// The call that a rank has said last that it waits in, and how often it has said such things.
    calls: BTreeMap<usize, (u32, Call)>,
    /// The call that this rank has said last that it waits in, and how often it has said such things.
    own_call: Option<Call>,
    said_call: u32,
    ring: Ring,
    links: Vec<Arc<ControlLink>>,
    region: Option<Arc<Region>>,
    recorder: Option<Arc<Recorder>>,
    /// Others that end with this one.
    bound: Vec<Arc<Breaker>>,
}

/// How far the ring of control connections is. Rank 0 sends word around it that it is connected to both neighbours,
/// each rank hands it on once it is connected itself, and when it comes back all are; then rank 0 sends that around.
#[derive(Default)]
struct Ring {
    /// The connection to the next rank, once this rank has both.
    next: Option<Arc<ControlLink>>,
    /// The ranks before this one are connected.
    heard: bool,
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

    /// Prepares the breaker for `rank`; fails if it has tripped already.
    pub(crate) fn arm(&self, rank: usize) -> Result<(), Error> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::System { rank, cause: format!("eventfd: {errno}") })?;
        let mut state = self.lock();
        if self.event.set(event).is_err() {
            return Err(Error::Config("the abort handle belongs to another communicator".to_owned()));
        }
        state.rank = rank;
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
    pub(crate) fn close_ring(&self, next: Arc<ControlLink>, deadline: Instant) -> Result<bool, Error> {
        let mut state = self.lock();
        state.ring.next = Some(next);
        state.heard_of_ring();
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

    /// The ranks from 0 to the one before this are connected; of rank 0, all are.
    pub(crate) fn hear_connected(&self) {
        let mut state = self.lock();
        state.ring.heard = true;
        state.heard_of_ring();
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn hear_complete(&self) {
        let mut state = self.lock();
        state.complete_ring();
        drop(state);
        self.changed.notify_all();
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

    /// Tells the others what this rank has been waiting in for a while. Those that wait in the same operation, as they
    /// call it, but in different calls, may wait at different places for ever.
    pub(crate) fn say_call(&self, call: &Call) {
        let mut state = self.lock();
        if state.own_call == Some(*call) || matches!(call.kind, Kind::Message { .. }) {
            return;
        }
        state.own_call = Some(*call);
        state.said_call += 1;
        let bytes = call.encode();
        state.links.iter().for_each(|link| link.send_call(state.rank, state.said_call, &bytes));
        let odd = state.calls.iter().find_map(|(rank, (_, theirs))| contradiction(*rank, theirs, call));
        drop(state);
        if let Some(error) = odd {
            self.trip(error);
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
        let odd = state.own_call.and_then(|own| contradiction(rank, &call, &own));
        drop(state);
        if let Some(error) = odd {
            self.trip(error);
        }
        true
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

    /// Readable once tripped.
    pub(crate) fn event(&self) -> Option<BorrowedFd<'_>> {
        self.event.get().map(|event| event.as_fd())
    }
}

/// What is wrong where `rank` calls an operation otherwise than this one.
fn contradiction(rank: usize, theirs: &Call, own: &Call) -> Option<Error> {
    (theirs.sequence == own.sequence && theirs != own).then(|| Error::Mismatch {
        rank,
        theirs: theirs.to_string(),
        expected: own.to_string(),
    })
}

impl State {
    fn heard_of_ring(&mut self) {
        let Some(next) = &self.ring.next else { return };
        match (self.rank, self.ring.heard) {
            (0, true) => self.complete_ring(),
            (0, false) | (_, true) => next.send_connected(),
            (_, false) => {}
        }
    }

    fn complete_ring(&mut self) {
        if self.ring.complete {
            return;
        }
        self.ring.complete = true;
        if let Some(next) = &self.ring.next {
            next.send_complete();
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
