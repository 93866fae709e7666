//! Dialing until the other end is there, and accepting until all expected ends are.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use crate::breaker::Breaker;
use crate::config::Secret;
use crate::error::Error;
use crate::transport::handshake::{self, Acceptance, Hello, Progress, Purpose, Refusal};
use crate::transport::stream::{Interruption, Stream, pause, timeout};

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

/// Why dialing ended without a connection.
#[derive(Debug)]
pub(crate) enum Undialed {
    /// The communicator has ended, or has to.
    Ended(Error),
    /// The deadline passed; what the last attempt met.
    Late(Refusal),
    /// The other end dials this rank and will not be dialed.
    Crossed,
}

/// Connects to rank `to` for `purpose`, again and again until it answers as expected or the identity's deadline has
/// passed.
pub(crate) fn dial(
    identity: &Identity,
    to: u32,
    purpose: Purpose,
    lane: u8,
    mut open: impl FnMut() -> Result<Stream, Interruption>,
) -> Result<Stream, Undialed> {
    let Identity { rank, world, epoch, secret, deadline, breaker } = identity;
    let hello = Hello { purpose, lane, epoch: *epoch, world: *world, from: *rank, to };
    let mut delay = Duration::from_millis(1);
    loop {
        breaker.check().map_err(Undialed::Ended)?;
        let attempt = open().map_err(Refusal::Interrupted).and_then(|stream| {
            handshake::dial(&stream, &hello, secret, *deadline, breaker)?;
            Ok(stream)
        });
        let refusal = match attempt {
            Ok(stream) => return Ok(stream),
            Err(Refusal::Interrupted(Interruption::Tripped(error))) => return Err(Undialed::Ended(error)),
            Err(Refusal::Epoch(theirs)) if theirs > *epoch => {
                return Err(Undialed::Ended(Error::StaleEpoch { rank: to as usize, ours: *epoch, theirs }));
            }
            Err(Refusal::Crossed) => return Err(Undialed::Crossed),
            Err(refusal) => refusal,
        };
        if Instant::now() + delay >= *deadline {
            return Err(Undialed::Late(refusal));
        }
        pause(delay, breaker).map_err(Undialed::Ended)?;
        delay = (delay * 2).min(Duration::from_millis(20));
    }
}

impl Undialed {
    pub(crate) fn into_error(self, to: u32) -> Error {
        match self {
            Undialed::Ended(error) => error,
            Undialed::Late(refusal) => Error::Connect { rank: to as usize, cause: refusal.to_string() },
            Undialed::Crossed => Error::Connect { rank: to as usize, cause: Refusal::Crossed.to_string() },
        }
    }
}

/// How long a stranger may take for its handshake, at most.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes under way at the accepting end, all served by the thread that calls [`Reception::turn`]. Strangers that
/// say nothing hold nobody up; where there are very many of them, the oldest give way.
pub(crate) struct Reception {
    secret: Secret,
    limit: usize,
    waiting: VecDeque<Acceptance>,
    /// Nothing is accepted until then.
    resting: Option<Instant>,
}

/// How long nothing is accepted where the system has no resources for it.
const REST: Duration = Duration::from_millis(10);

impl Reception {
    pub(crate) fn new(secret: Secret, limit: usize) -> Reception {
        Reception { secret, limit, waiting: VecDeque::new(), resting: None }
    }

    /// Waits until a connection comes or a handshake goes on, `until` at most, or until one of `others` is readable;
    /// takes it on from there. Dialers that have proved themselves are given to `receive`.
    pub(crate) fn turn(
        &mut self,
        listener: BorrowedFd<'_>,
        others: &[BorrowedFd<'_>],
        until: Option<Instant>,
        mut next: impl FnMut() -> io::Result<Stream>,
        mut receive: impl FnMut(Hello, Acceptance),
    ) -> io::Result<()> {
        let now = Instant::now();
        self.resting = self.resting.filter(|until| *until > now);
        self.waiting.retain(|acceptance| acceptance.deadline() > now);
        let fds = [listener].into_iter().chain(others.iter().copied());
        let fds = fds.chain(self.waiting.iter().map(|acceptance| acceptance.stream().as_fd()));
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if self.resting.is_some() {
            fds[0].set_events(PollFlags::empty());
        }
        let until = self.waiting.iter().map(Acceptance::deadline).chain(until).chain(self.resting).min();
        match poll(&mut fds, timeout(until.map(|until| until.saturating_duration_since(now)))) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> =
            fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).skip(1 + others.len()).collect();
        for ready in ready {
            let Some(mut acceptance) = self.waiting.pop_front() else { break };
            match if ready { acceptance.advance(&self.secret) } else { Progress::Pending } {
                Progress::Pending => self.waiting.push_back(acceptance),
                Progress::Proved(hello) => receive(hello, acceptance),
                Progress::Over => {}
            }
        }
        // As many as there are, but not for ever: those that have come want to be served.
        let most = if self.resting.is_some() { 0 } else { self.limit };
        for _ in 0..most {
            match next() {
                Ok(stream) => {
                    if self.waiting.len() >= self.limit {
                        self.waiting.pop_front();
                    }
                    self.waiting.push_back(Acceptance::new(stream, now + HANDSHAKE));
                }
                Err(error) => {
                    // A connection that failed before it was accepted says nothing about the listener. A lack of
                    // descriptors or memory may last, and who waits in the queue meanwhile would keep it readable.
                    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
                    {
                        self.resting = Some(now + REST);
                    }
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Accepts connections until every one of `expected` has come; gives each to `arrived`, which may end it. A rank that has
/// given up and dials again comes once more.
pub(crate) fn accept(
    identity: &Identity,
    listener: BorrowedFd<'_>,
    mut next: impl FnMut() -> io::Result<Stream>,
    expected: BTreeSet<(u32, Purpose)>,
    mut arrived: impl FnMut(u32, Purpose, Stream) -> Result<(), Error>,
) -> Result<(), Error> {
    let Identity { rank, world, epoch, secret, deadline, breaker } = identity;
    let mut reception = Reception::new(secret.clone(), 64 + 2 * expected.len());
    let event: Vec<BorrowedFd<'_>> = breaker.event().into_iter().collect();
    let mut missing = expected.clone();
    while !missing.is_empty() {
        breaker.check()?;
        if Instant::now() >= *deadline {
            let rank = missing.first().map_or(0, |(rank, _)| *rank as usize);
            return Err(Error::Connect { rank, cause: "it has not connected in time".to_owned() });
        }
        let (mut admitted, mut stale) = (Vec::new(), None);
        let turn = reception.turn(listener, &event, Some(*deadline), &mut next, |hello, acceptance| {
            let Hello { from, purpose, .. } = hello;
            match handshake::judge(&hello, *epoch, *world, *rank) {
                Ok(()) if expected.contains(&(from, purpose)) => {
                    admitted.extend(acceptance.admit(*epoch).map(|stream| (from, purpose, stream)));
                }
                Ok(()) => acceptance.refuse(&Refusal::Unexpected, *epoch),
                Err(refusal) => {
                    if let Refusal::Epoch(theirs) = refusal
                        && theirs > *epoch
                    {
                        stale = Some(Error::StaleEpoch { rank: from as usize, ours: *epoch, theirs });
                    }
                    acceptance.refuse(&refusal, *epoch);
                }
            }
        });
        turn.map_err(|error| identity.system("poll", error))?;
        if let Some(error) = stale {
            return Err(error);
        }
        for (from, purpose, stream) in admitted {
            missing.remove(&(from, purpose));
            arrived(from, purpose, stream)?;
        }
    }
    Ok(())
}
