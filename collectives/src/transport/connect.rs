//! Dialing until the other end is there, and accepting until all expected ends are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::breaker::Breaker;
use crate::config::Secret;
use crate::error::Error;
use crate::transport::handshake::{self, Hello, Purpose, Refusal};
use crate::transport::stream::{Interruption, Stream, pause, wait};

/// What this rank is, for handshakes, and how long it may take.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) rank: u32,
    pub(crate) world: u32,
    pub(crate) epoch: u64,
    pub(crate) secret: Secret,
    pub(crate) deadline: Instant,
    pub(crate) breaker: Arc<Breaker>,
}

impl Identity {
    pub(crate) fn system(&self, what: &str, error: impl std::fmt::Display) -> Error {
        Error::System { rank: self.rank as usize, cause: format!("{what}: {error}") }
    }
}

/// Connects to rank `to` for `purpose`, again and again until it answers as expected or the deadline has passed.
pub(crate) fn dial(
    identity: &Identity,
    to: u32,
    purpose: Purpose,
    mut open: impl FnMut(Duration) -> io::Result<Stream>,
) -> Result<Stream, Error> {
    let Identity { rank, world, epoch, secret, deadline, breaker } = identity;
    let hello = Hello { purpose, epoch: *epoch, world: *world, from: *rank, to };
    let mut delay = Duration::from_millis(1);
    loop {
        breaker.check()?;
        let remaining = deadline.saturating_duration_since(Instant::now());
        // An attempt is cut short so that an abort is noticed meanwhile.
        let attempt = open(remaining.clamp(Duration::from_millis(1), Duration::from_secs(1)))
            .map_err(|error| Refusal::Interrupted(Interruption::Failed(error)))
            .and_then(|stream| {
                handshake::dial(&stream, &hello, secret, *deadline, breaker)?;
                Ok(stream)
            });
        let refusal = match attempt {
            Ok(stream) => return Ok(stream),
            Err(Refusal::Interrupted(Interruption::Tripped(error))) => return Err(error),
            Err(Refusal::Epoch(theirs)) if theirs > *epoch => {
                return Err(Error::StaleEpoch { rank: to as usize, ours: *epoch, theirs });
            }
            Err(refusal) => refusal,
        };
        if Instant::now() + delay >= *deadline {
            return Err(Error::Connect { rank: to as usize, cause: refusal.to_string() });
        }
        pause(delay, breaker)?;
        delay = (delay * 2).min(Duration::from_millis(20));
    }
}

/// How long a stranger may take for its handshake, at most.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Accepts connections until every one of `expected` has come. Each handshake runs in a thread of its own, so
/// strangers that say nothing hold nobody up; where there are very many of them, the oldest give way.
pub(crate) fn accept(
    identity: &Identity,
    listener: BorrowedFd<'_>,
    mut next: impl FnMut() -> io::Result<Stream>,
    mut expected: BTreeSet<(u32, Purpose)>,
) -> Result<BTreeMap<(u32, Purpose), Stream>, Error> {
    let limit = 64 + 2 * expected.len();
    let mut streams = BTreeMap::new();
    let finished = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| identity.system("eventfd", errno))?;
    let finished = Arc::new(finished);
    let (sender, receiver) = mpsc::channel();
    let mut running = VecDeque::<Weak<Stream>>::new();
    while !expected.is_empty() {
        let ready = wait(
            &[(listener, PollFlags::POLLIN), (finished.as_fd(), PollFlags::POLLIN)],
            identity.deadline,
            &identity.breaker,
        );
        match ready {
            Ok(()) => {}
            Err(Interruption::Tripped(error)) => return Err(error),
            Err(Interruption::Failed(error)) => return Err(identity.system("poll", error)),
            Err(Interruption::Deadline) => {
                let rank = expected.first().map_or(0, |(rank, _)| *rank as usize);
                return Err(Error::Connect { rank, cause: "it has not connected in time".to_owned() });
            }
        }
        // Reading resets the counter; an empty one means nothing has finished yet.
        let _ = finished.read();
        while let Ok(result) = receiver.try_recv() {
            match result {
                // A rank that has given up and dials again replaces its first connection.
                Ok((hello, stream)) => {
                    let Hello { from, purpose, .. } = hello;
                    if expected.remove(&(from, purpose)) || streams.contains_key(&(from, purpose)) {
                        streams.insert((from, purpose), stream);
                    }
                }
                Err((Some(Hello { from, .. }), Refusal::Epoch(theirs))) if theirs > identity.epoch => {
                    return Err(Error::StaleEpoch { rank: from as usize, ours: identity.epoch, theirs });
                }
                Err(_) => {}
            }
        }
        match next() {
            Ok(stream) => {
                let stream = Arc::new(stream);
                running.retain(|stream| stream.strong_count() > 0);
                if running.len() >= limit
                    && let Some(oldest) = running.pop_front().and_then(|stream| stream.upgrade())
                {
                    oldest.shut_down();
                }
                running.push_back(Arc::downgrade(&stream));
                let (own, sender, finished) = (identity.clone(), sender.clone(), Arc::clone(&finished));
                let handshake = move || {
                    let result = shake(&own, stream);
                    // The receiver may have what it needs and be gone.
                    let _ = sender.send(result);
                    let _ = finished.write(1);
                };
                let thread = std::thread::Builder::new().name("handshake".to_owned()).spawn(handshake);
                thread.map_err(|error| identity.system("thread", error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // A connection that failed before it was accepted says nothing about the listener.
            Err(_) => pause(Duration::from_millis(1), &identity.breaker)?,
        }
    }
    Ok(streams)
}

fn shake(identity: &Identity, stream: Arc<Stream>) -> Result<(Hello, Stream), (Option<Hello>, Refusal)> {
    let Identity { rank, world, epoch, secret, deadline, breaker } = identity;
    let deadline = (*deadline).min(Instant::now() + HANDSHAKE);
    let hello = handshake::accept(&stream, *epoch, *world, *rank, secret, deadline, breaker)?;
    // Only the acceptor could hold it as well, while it shuts it down.
    Ok((hello, Arc::into_inner(stream).ok_or((None, Refusal::Stranger))?))
}
