//! This rank's connections to others, made when an operation first needs them, and how operations wait for them.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::frame;
use super::socket;
use super::table::{Key, Table};
use crate::breaker::GRACE;
use crate::call::Call;
use crate::error::Error;
use crate::transport::connect::{Identity, Undialed, dial};
use crate::transport::handshake::{Purpose, Refusal};
use crate::transport::stream::{Interruption, LOOKS_EVERY, Stream, wait};
use crate::transport::tls::Tls;

/// Who begins, where no connection is there yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Intent {
    /// Both ends need it now: the lower rank dials.
    Meet,
    /// The other end may not need it yet: this one dials.
    Send,
}

/// How long a rank waits to be dialed before it dials itself: the other end may be busy with something else.
const PATIENCE: Duration = Duration::from_millis(20);

/// Ranks listen for as long as they take part. One that has not for so long is gone, and if it has died or left, the
/// control connections have told by then.
const REFUSED: Duration = Duration::from_millis(200);

/// How long an operation waits before this rank tells its neighbours in which call.
const TELLS: Duration = Duration::from_millis(50);

/// How long before it tells all ranks, at most.
const SAYS: Duration = Duration::from_secs(1);

/// How long of its looking a rank keeps the processor.
const UNDISTURBED: Duration = Duration::from_micros(20);

/// The connections to one other rank.
pub(super) struct Channel {
    /// The first carries the headers and all small data.
    pub(super) lanes: Vec<Stream>,
    /// Passages begun in each direction; the other end counts the same.
    pub(super) sent: u64,
    pub(super) received: u64,
}

pub(super) struct Links {
    identity: Identity,
    addresses: Vec<SocketAddr>,
    tls: Option<Tls>,
    table: Arc<Table>,
    channels: Vec<Option<Channel>>,
    pub(super) timeout: Duration,
    /// How long to look again and again before sleeping.
    spin: Duration,
}

impl Links {
    pub(super) fn new(
        identity: &Identity,
        addresses: &[SocketAddr],
        tls: Option<Tls>,
        table: Arc<Table>,
        timeout: Duration,
        spin: Duration,
    ) -> Links {
        Links {
            identity: identity.clone(),
            addresses: addresses.to_vec(),
            tls,
            table,
            channels: addresses.iter().map(|_| None).collect(),
            timeout,
            spin,
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.identity.rank as usize
    }

    pub(super) fn world(&self) -> usize {
        self.addresses.len()
    }

    pub(super) fn same_address(&self, rank: usize) -> bool {
        self.addresses[rank].ip() == self.addresses[self.rank()].ip()
    }

    #[cfg(test)]
    pub(super) fn address(&self, rank: usize) -> SocketAddr {
        self.addresses[rank]
    }

    /// What [`Links::open`] has opened.
    pub(super) fn channel(&mut self, rank: usize) -> &mut Channel {
        self.channels[rank].as_mut().expect("a passage opens its channels before it uses them")
    }

    pub(super) fn lanes(&self, rank: usize) -> &[Stream] {
        &self.channels[rank].as_ref().expect("a passage waits for what it has opened").lanes
    }

    /// Makes sure that there are `lanes` connections to `rank`.
    pub(super) fn open(&mut self, rank: usize, lanes: usize, intent: Intent, call: &Call) -> Result<(), Error> {
        let have = self.channels[rank].as_ref().map_or(0, |channel| channel.lanes.len());
        for lane in have..lanes {
            let key = Key { rank, purpose: Purpose::Data, lane: lane as u8 };
            let stream = self.connect(key, intent, call)?;
            let tuned = socket::tune(&stream, self.same_address(rank));
            tuned.map_err(|errno| self.fail(self.identity.system("socket", errno)))?;
            let channel =
                self.channels[rank].get_or_insert_with(|| Channel { lanes: Vec::new(), sent: 0, received: 0 });
            channel.lanes.push(stream);
        }
        Ok(())
    }

    fn connect(&self, key: Key, intent: Intent, call: &Call) -> Result<Stream, Error> {
        let since = Instant::now();
        let dials = intent == Intent::Send || self.rank() < key.rank;
        if !dials && let Some(stream) = self.await_connection(key, since + PATIENCE)? {
            return Ok(stream);
        }
        if let Some(stream) = self.table.begin(key) {
            return Ok(stream);
        }
        let mut crossed = false;
        // In turns, as in any wait: see [`Links::wait`].
        for turn in 0..4 {
            match turn {
                0 => {}
                1 => self.identity.breaker.say_call(call),
                2 => self.identity.breaker.say_waiting(),
                _ if self.identity.breaker.is_excused(key.rank, since) => {}
                _ => break,
            }
            let limits = [self.says(), self.timeout / 2, self.timeout, self.timeout + 2 * GRACE];
            let deadline = since + limits[turn];
            if crossed {
                match self.await_connection(key, deadline)? {
                    Some(stream) => return Ok(stream),
                    None => continue,
                }
            }
            match self.dial(key, deadline, REFUSED) {
                Ok(stream) => {
                    self.table.connected(key);
                    return Ok(stream);
                }
                Err(Undialed::Ended(error)) => return Err(self.fail(error)),
                Err(Undialed::Crossed) => {
                    crossed = true;
                    if let Some(stream) = self.await_connection(key, deadline)? {
                        return Ok(stream);
                    }
                }
                Err(Undialed::Late(Refusal::Interrupted(Interruption::Failed(error)))) if turn > 1 => {
                    return Err(self.fail(Error::Connect { rank: key.rank, cause: error.to_string() }));
                }
                Err(Undialed::Late(_)) => {}
            }
        }
        Err(self.late(key.rank, call))
    }

    /// How long a rank waits before it tells all others in what.
    fn says(&self) -> Duration {
        (self.timeout / 4).min(SAYS)
    }

    /// Dials until `deadline`, or until nobody has listened at the rank's address for `refused`, or for [`REFUSED`] after
    /// somebody has.
    pub(super) fn dial(&self, key: Key, deadline: Instant, refused: Duration) -> Result<Stream, Undialed> {
        let identity = Identity { deadline, ..self.identity.clone() };
        let (address, breaker) = (&self.addresses[key.rank], &self.identity.breaker);
        let (mut since, mut listened) = (None, false);
        dial(&identity, key.rank as u32, key.purpose, key.lane, || {
            let stream = match socket::open(address, deadline, breaker) {
                Err(Interruption::Failed(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    let limit = if listened { REFUSED.min(refused) } else { refused };
                    if since.get_or_insert_with(Instant::now).elapsed() >= limit {
                        return Err(Interruption::Tripped(breaker.lost(key.rank)));
                    }
                    return Err(error.into());
                }
                other => other?,
            };
            (since, listened) = (None, true);
            Ok(match &self.tls {
                Some(tls) => stream.encrypted(tls.dial()?),
                None => stream,
            })
        })
    }

    /// Waits to be dialed, until `deadline`.
    pub(super) fn await_connection(&self, key: Key, deadline: Instant) -> Result<Option<Stream>, Error> {
        self.await_arrival(key, deadline, || self.table.take(key))
    }

    /// Waits for a control connection, until `deadline`; whether it has come.
    pub(super) fn await_control(&self, key: Key, deadline: Instant) -> Result<bool, Error> {
        let come = self.await_arrival(key, deadline, || self.table.is_taken(key).then_some(()));
        come.map(|come| come.is_some())
    }

    fn await_arrival<T>(&self, key: Key, deadline: Instant, look: impl Fn() -> Option<T>) -> Result<Option<T>, Error> {
        let breaker = &*self.identity.breaker;
        loop {
            // Before the look: what a rank has begun to say before it left has come, or is being put into the table.
            let departed = breaker.has_departed(key.rank);
            if let Some(found) = look() {
                return Ok(Some(found));
            }
            if departed {
                return Err(self.lost(key.rank));
            }
            let until = deadline.min(Instant::now() + LOOKS_EVERY);
            match wait(&[(self.table.arrived(), PollFlags::POLLIN)], until, breaker) {
                Ok(()) => {}
                Err(Interruption::Deadline) if Instant::now() < deadline => {}
                Err(Interruption::Deadline) => return Ok(None),
                Err(Interruption::Tripped(error)) => return Err(error),
                Err(Interruption::Failed(error)) => return Err(self.fail(self.identity.system("poll", error))),
            }
        }
    }

    pub(super) fn fail(&self, error: Error) -> Error {
        self.identity.breaker.trip(error)
    }

    /// `rank` has sent a header that is not the one expected.
    pub(super) fn complain(&self, rank: usize, received: &[u8; frame::HEADER], call: &Call) -> Error {
        match frame::difference(received, call) {
            Some(theirs) => self.identity.breaker.disagree(rank, &theirs, call),
            None => self.fail(frame::complaint(rank, received, call)),
        }
    }

    /// `rank` has not come in time. The time is the one that was set: ranks that find out for themselves at the same
    /// moment say the same.
    fn late(&self, rank: usize, call: &Call) -> Error {
        self.fail(Error::timeout(rank, call, self.timeout))
    }

    pub(super) fn lost(&self, rank: usize) -> Error {
        self.identity.breaker.lost(rank)
    }

    /// Waits for any of `fds`, after a wait that began at `since`. Returns early while it pays to look again at once.
    /// `rank` is to blame if nothing comes.
    pub(super) fn wait(
        &self,
        fds: &[(BorrowedFd<'_>, PollFlags)],
        rank: usize,
        since: Instant,
        call: &Call,
    ) -> Result<(), Error> {
        let breaker = &*self.identity.breaker;
        let waited = since.elapsed();
        if waited < self.spin {
            match waited < UNDISTURBED {
                true => std::hint::spin_loop(),
                // Other threads of the process may have the processor between two looks.
                false => std::thread::yield_now(),
            }
            return breaker.check();
        }
        let mut result = wait(fds, since + self.says().min(TELLS), breaker);
        if matches!(result, Err(Interruption::Deadline)) {
            breaker.tell_call(call);
            result = wait(fds, since + self.says(), breaker);
        }
        if matches!(result, Err(Interruption::Deadline)) {
            breaker.say_call(call);
            result = wait(fds, since + self.timeout / 2, breaker);
        }
        if matches!(result, Err(Interruption::Deadline)) {
            breaker.say_waiting();
            result = wait(fds, since + self.timeout, breaker);
        }
        if matches!(result, Err(Interruption::Deadline)) && breaker.is_excused(rank, since) {
            // Twice: it may be a member that waits for its leader, which it gives one.
            result = wait(fds, since + self.timeout + 2 * GRACE, breaker);
        }
        match result {
            Ok(()) => Ok(()),
            Err(Interruption::Tripped(error)) => Err(error),
            Err(Interruption::Deadline) => Err(self.late(rank, call)),
            Err(Interruption::Failed(error)) => Err(self.fail(self.identity.system("poll", error))),
        }
    }
}

impl Drop for Links {
    /// Whoever next expects something of this rank is told that it has left. Nobody is told after a failure: the
    /// cause has gone out, and it counts for more.
    fn drop(&mut self) {
        if self.identity.breaker.check().is_err() {
            return;
        }
        let goodbye = [IoSlice::new(&frame::GOODBYE)];
        for channel in self.channels.iter().flatten() {
            if let Some(lane) = channel.lanes.first() {
                // To one that has long stopped reading it will be a closed connection.
                let _ = lane.try_write(&goodbye);
            }
        }
        for (key, stream) in self.table.drain() {
            if key.purpose == Purpose::Data && key.lane == 0 {
                let _ = stream.try_write(&goodbye);
            }
        }
    }
}
