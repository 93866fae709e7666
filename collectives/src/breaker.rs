//! The one place where a communicator's end is decided: the first cause wins, is told to all other ranks, and wakes
//! every wait of this one.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

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
    links: Vec<Arc<ControlLink>>,
    region: Option<Arc<Region>>,
    recorder: Option<Arc<Recorder>>,
    /// Others that end with this one.
    bound: Vec<Arc<Breaker>>,
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

    /// All ranks are connected; from now on they are told over `links` and through `region`.
    pub(crate) fn attach(&self, links: Vec<Arc<ControlLink>>, region: Option<Arc<Region>>) -> Result<(), Error> {
        let mut state = self.lock();
        state.links = links;
        state.region = region;
        if let Some(recorder) = &state.recorder {
            recorder.connected();
        }
        match &state.error {
            None => Ok(()),
            Some(error) => {
                state.tell(error);
                Err(error.clone())
            }
        }
    }

    pub(crate) fn detach(&self) {
        let mut state = self.lock();
        state.links.clear();
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

impl State {
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
