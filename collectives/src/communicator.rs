//! The ranks of one epoch, and what they do together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Instant;

use crate::background::Background;
use crate::breaker::{AbortHandle, Breaker};
use crate::call::{Call, Kind};
use crate::config::{Config, Topology};
use crate::element::{DType, Data, DataMut, Element};
use crate::engine::{Engine, Exchange, Located, WINDOW, WINDOW_BETWEEN_HOSTS};
use crate::error::Error;
use crate::flight::{Recorder, Seat};
use crate::monitor::{ControlLink, Monitor};
use crate::order::{Order, Ticket};
use crate::origin::{Origin, SEAT, Share};
use crate::pending::{OwnedBuffer, Pending};
use crate::reduce::ReduceOp;
use crate::segment::{Segment, SharedBuffer};
use crate::transport::connect::Identity;
use crate::transport::shm::{Group, Life, Region};
use crate::transport::stream::{Interruption, Stream};
use crate::transport::tcp::{Members, Network};
use crate::transport::{memory, unix};

/// The ranks of a job at one epoch.
///
/// Every rank calls the same operations in the same order; an operation returns when this rank's part is done. Calls
/// from several threads run in the order of their issue. Messages ([`send`](Communicator::send) and its kin) are
/// called by the two ranks alone that they concern. After an error that [is fatal](Error::is_fatal) the communicator
/// is of no more use; form a new one at a higher epoch.
///
/// Dropping it tells the others that this rank has left; operations started before are carried out first.
pub struct Communicator {
    // First to go: it says good-bye before the connections for data close.
    _monitor: Option<Monitor>,
    _life: Option<Life>,
    inner: Arc<Inner>,
    background: Mutex<Option<Background>>,
}

struct Inner {
    rank: usize,
    world: usize,
    epoch: u64,
    breaker: Arc<Breaker>,
    recorder: Arc<Recorder>,
    order: Order,
    engine: Mutex<Engine>,
    segments: Mutex<Vec<Weak<Segment>>>,
    /// How many segments there may be, readable without the lock.
    allocated: AtomicUsize,
    origin: Origin,
}

impl Communicator {
    /// Connects to all ranks of the epoch; returns once they are all there.
    pub fn connect(config: Config) -> Result<Communicator, Error> {
        config.validate()?;
        let breaker = Arc::clone(&config.abort.0);
        breaker.arm(config.rank)?;
        // Whatever goes wrong ends the breaker as well, so that nothing waits in the background.
        connect(config, &breaker).map_err(|error| breaker.trip(error))
    }

    pub fn rank(&self) -> usize {
        self.inner.rank
    }

    pub fn world(&self) -> usize {
        self.inner.world
    }

    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// Ends every waiting and every later call, on all ranks, with [`Error::Aborted`].
    pub fn abort(&self, reason: &str) {
        self.abort_handle().abort(reason);
    }

    /// For threads that shall be able to abort without holding the communicator.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle(Arc::clone(&self.inner.breaker))
    }

    /// The error that ended the communicator, if any did.
    pub fn failure(&self) -> Option<Error> {
        self.inner.breaker.error()
    }

    /// Allocates a zeroed buffer that operations reduce in place, without copies. Every rank of the communicator
    /// calls it, with the same length.
    pub fn allocate<T: Element>(&self, len: usize) -> Result<SharedBuffer<T>, Error> {
        let stride = len.checked_mul(size_of::<T>()).and_then(Segment::stride);
        let Some(stride) = stride.filter(|stride| stride.checked_mul(self.inner.world).is_some()) else {
            return Err(Error::Argument(format!("{len} elements of {} are too many", T::DTYPE)));
        };
        let ticket = self.inner.order.ticket();
        let segment =
            self.inner.run(ticket, Kind::Allocate, T::DTYPE, len, |engine, call| engine.allocate(call, stride))?;
        let mut segments = self.inner.segments();
        segments.retain(|segment| segment.strong_count() > 0);
        segments.push(Arc::downgrade(&segment));
        self.inner.allocated.store(segments.len(), Ordering::Release);
        Ok(SharedBuffer::new(segment, len))
    }

    /// Combines the buffers of all ranks, element by element; all get the result, bitwise equal.
    #[inline]
    pub fn all_reduce<'a>(&self, data: impl Into<DataMut<'a>>, op: ReduceOp) -> Result<(), Error> {
        let (input, output) = data.into().and_data();
        let ticket = self.inner.order.ticket();
        self.inner.all_reduce(ticket, input, output, op)
    }

    /// [`Communicator::all_reduce`] with a result that does not take the input's place.
    pub fn all_reduce_into<'a, 'b>(
        &self,
        input: impl Into<Data<'a>>,
        output: impl Into<DataMut<'b>>,
        op: ReduceOp,
    ) -> Result<(), Error> {
        let (input, output) = (input.into(), output.into());
        check_equal("all_reduce", &input, &output)?;
        let ticket = self.inner.order.ticket();
        self.inner.all_reduce(ticket, input, output, op)
    }

    /// Combines the buffers of all ranks into that of rank `root`; those of the others stay as they are.
    pub fn reduce<'a>(&self, data: impl Into<DataMut<'a>>, op: ReduceOp, root: usize) -> Result<(), Error> {
        let (input, output) = data.into().and_data();
        let root = self.checked_rank("root", root)?;
        let ticket = self.inner.order.ticket();
        self.inner.reduce(ticket, input, output, op, root)
    }

    /// [`Communicator::reduce`] with a result beside the input. Only the root's `output` is looked at.
    pub fn reduce_into<'a, 'b>(
        &self,
        input: impl Into<Data<'a>>,
        output: Option<impl Into<DataMut<'b>>>,
        op: ReduceOp,
        root: usize,
    ) -> Result<(), Error> {
        let input = input.into();
        let root = self.checked_rank("root", root)?;
        let ticket = || self.inner.order.ticket();
        if root as usize != self.inner.rank {
            return self.inner.reduce(ticket(), input, DataMut::none(input.dtype()), op, root);
        }
        let output = output.map(Into::into).ok_or_else(|| missing("reduce", "output"))?;
        check_equal("reduce", &input, &output)?;
        self.inner.reduce(ticket(), input, output, op, root)
    }

    /// Copies the buffer of rank `root` to all others.
    pub fn broadcast<'a>(&self, data: impl Into<DataMut<'a>>, root: usize) -> Result<(), Error> {
        let root = self.checked_rank("root", root)?;
        let ticket = self.inner.order.ticket();
        self.inner.broadcast(ticket, data.into(), root)
    }

    /// Returns when every rank has called it.
    pub fn barrier(&self) -> Result<(), Error> {
        let ticket = self.inner.order.ticket();
        self.inner.barrier(ticket)
    }

    /// Puts the equally long inputs of all ranks one after the other, in the order of ranks.
    pub fn all_gather<'a, 'b>(&self, input: impl Into<Data<'a>>, output: impl Into<DataMut<'b>>) -> Result<(), Error> {
        let (input, output) = (input.into(), output.into());
        self.check_parts("all_gather", input.dtype(), output.dtype(), input.count(), output.count())?;
        let ticket = self.inner.order.ticket();
        self.inner.all_gather(ticket, input, output)
    }

    /// [`Communicator::all_gather`] of a buffer with a part for each rank, of which this rank's is the input.
    pub fn all_gather_in_place<'a>(&self, data: impl Into<DataMut<'a>>) -> Result<(), Error> {
        let (input, output) = data.into().and_data();
        let count = self.part_of(input.count(), "all_gather")?;
        let ticket = self.inner.order.ticket();
        self.inner.all_gather(ticket, input.range(self.inner.rank * count, count), output)
    }

    /// Combines the inputs of all ranks, each of as many parts as there are ranks, and gives each rank its part.
    pub fn reduce_scatter<'a, 'b>(
        &self,
        input: impl Into<Data<'a>>,
        output: impl Into<DataMut<'b>>,
        op: ReduceOp,
    ) -> Result<(), Error> {
        let (input, output) = (input.into(), output.into());
        self.check_parts("reduce_scatter", input.dtype(), output.dtype(), output.count(), input.count())?;
        let ticket = self.inner.order.ticket();
        self.inner.reduce_scatter(ticket, input, output, op)
    }

    /// [`Communicator::reduce_scatter`] whose result takes the place of this rank's part of the input. The other
    /// parts stay as they are.
    pub fn reduce_scatter_in_place<'a>(&self, data: impl Into<DataMut<'a>>, op: ReduceOp) -> Result<(), Error> {
        let (input, output) = data.into().and_data();
        let count = self.part_of(input.count(), "reduce_scatter")?;
        let ticket = self.inner.order.ticket();
        self.inner.reduce_scatter(ticket, input, output.into_range(self.inner.rank * count, count), op)
    }

    /// Puts the equally long inputs of all ranks one after the other at rank `root`. Only the root's `output` is
    /// looked at; its own part may hold its input already, given as [`None`].
    pub fn gather<'a, 'b>(
        &self,
        input: impl Into<Data<'a>>,
        output: Option<impl Into<DataMut<'b>>>,
        root: usize,
    ) -> Result<(), Error> {
        let input = input.into();
        let root = self.checked_rank("root", root)?;
        if root as usize != self.inner.rank {
            return self.inner.gather(self.inner.order.ticket(), input, DataMut::none(input.dtype()), root);
        }
        let output = output.map(Into::into).ok_or_else(|| missing("gather", "output"))?;
        self.check_parts("gather", input.dtype(), output.dtype(), input.count(), output.count())?;
        self.inner.gather(self.inner.order.ticket(), input, output, root)
    }

    /// [`Communicator::gather`] at its root, where this rank's part of `data` is its input.
    pub fn gather_in_place<'a>(&self, data: impl Into<DataMut<'a>>) -> Result<(), Error> {
        let (input, output) = data.into().and_data();
        let (rank, count) = (self.inner.rank, self.part_of(input.count(), "gather")?);
        let root = self.checked_rank("root", rank)?;
        self.inner.gather(self.inner.order.ticket(), input.range(rank * count, count), output, root)
    }

    /// Gives each rank its part of the input of rank `root`. Only the root's `input` is looked at.
    pub fn scatter<'a, 'b>(
        &self,
        input: Option<impl Into<Data<'a>>>,
        output: impl Into<DataMut<'b>>,
        root: usize,
    ) -> Result<(), Error> {
        let output = output.into();
        let root = self.checked_rank("root", root)?;
        if root as usize != self.inner.rank {
            return self.inner.scatter(self.inner.order.ticket(), Data::none(output.dtype()), output, root);
        }
        let input = input.map(Into::into).ok_or_else(|| missing("scatter", "input"))?;
        self.check_parts("scatter", input.dtype(), output.dtype(), output.count(), input.count())?;
        self.inner.scatter(self.inner.order.ticket(), input, output, root)
    }

    /// [`Communicator::scatter`] at its root, whose own part stays where it is.
    pub fn scatter_in_place<'a>(&self, data: impl Into<DataMut<'a>>) -> Result<(), Error> {
        let (input, output) = data.into().and_data();
        let (rank, count) = (self.inner.rank, self.part_of(input.count(), "scatter")?);
        let root = self.checked_rank("root", rank)?;
        self.inner.scatter(self.inner.order.ticket(), input, output.into_range(rank * count, count), root)
    }

    /// Gives each rank its part of the inputs of all ranks, in the order of ranks. All parts are equally long.
    pub fn all_to_all<'a, 'b>(&self, input: impl Into<Data<'a>>, output: impl Into<DataMut<'b>>) -> Result<(), Error> {
        let (input, output) = (input.into(), output.into());
        check_equal("all_to_all", &input, &output)?;
        self.part_of(input.count(), "all_to_all")?;
        self.inner.all_to_all(self.inner.order.ticket(), input, output)
    }

    /// [`Communicator::all_to_all`] whose result takes the input's place.
    pub fn all_to_all_in_place<'a>(&self, data: impl Into<DataMut<'a>>) -> Result<(), Error> {
        let (input, output) = data.into().and_data();
        self.part_of(input.count(), "all_to_all")?;
        // What a rank sends is overwritten by what it gets, in no fixed order: the input is set aside.
        let mut aside = vec![0u64; input.byte_len().div_ceil(8)];
        let mut aside = DataMut::over(input.dtype(), &mut aside, input.count());
        aside.take_from(&input);
        self.inner.all_to_all(self.inner.order.ticket(), aside.as_data(), output)
    }

    /// [`Communicator::all_to_all`] with parts of any length: `sent[r]` elements of `input`, behind those of the ranks
    /// before, go to rank r, and `received[r]` elements of `output` come from it. What a rank sends to another is as
    /// long as what that one expects; a difference ends the communicator with [`Error::Mismatch`].
    pub fn all_to_all_uneven<'a, 'b>(
        &self,
        input: impl Into<Data<'a>>,
        sent: &[usize],
        output: impl Into<DataMut<'b>>,
        received: &[usize],
    ) -> Result<(), Error> {
        let (input, output) = (input.into(), output.into());
        if input.dtype() != output.dtype() {
            return Err(Error::Argument(format!("all_to_all from {} to {}", input.dtype(), output.dtype())));
        }
        for (counts, count, what) in [(sent, input.count(), "input"), (received, output.count(), "output")] {
            let sum = counts.iter().try_fold(0usize, |sum, count| sum.checked_add(*count));
            if counts.len() != self.inner.world || sum != Some(count) {
                let (world, given) = (self.inner.world, counts.len());
                return Err(Error::Argument(format!(
                    "all_to_all with {given} counts for {world} ranks and an {what} of {count} elements: there must be a count a rank, and they must add up"
                )));
            }
        }
        self.inner.all_to_all_uneven(self.inner.order.ticket(), input, sent, output, received)
    }

    /// Sends to rank `to`, which receives as many elements of the same dtype from this one. Returns when it has, or,
    /// to another host, when the data is on its way; a difference is an error at the receiver, and ends the
    /// communicator. The messages from one rank to another are received in the order in which they are sent.
    pub fn send<'a>(&self, data: impl Into<Data<'a>>, to: usize) -> Result<(), Error> {
        self.check_partner(to)?;
        let data = data.into();
        self.inner.message(self.inner.order.ticket(), Some((to, data)), None)
    }

    /// Receives from rank `from`.
    pub fn receive<'a>(&self, data: impl Into<DataMut<'a>>, from: usize) -> Result<(), Error> {
        self.check_partner(from)?;
        let data = data.into();
        self.inner.message(self.inner.order.ticket(), None, Some((from, data)))
    }

    /// Sends and receives at the same time, so that two ranks, or all ranks of a ring, may send to each other.
    pub fn send_receive<'a, 'b>(
        &self,
        sent: impl Into<Data<'a>>,
        to: usize,
        received: impl Into<DataMut<'b>>,
        from: usize,
    ) -> Result<(), Error> {
        self.check_partner(to)?;
        self.check_partner(from)?;
        let (sent, received) = (sent.into(), received.into());
        self.inner.message(self.inner.order.ticket(), Some((to, sent)), Some((from, received)))
    }

    /// [`Communicator::all_reduce`] beside the caller. The buffer comes back from [`Pending::wait`].
    pub fn start_all_reduce<B: OwnedBuffer>(&self, mut buffer: B, op: ReduceOp) -> Result<Pending<B>, Error> {
        self.start(move |inner, ticket| {
            let (input, output) = buffer.data().and_data();
            let result = inner.all_reduce(ticket, input, output, op);
            (buffer, result)
        })
    }

    /// [`Communicator::broadcast`] beside the caller.
    pub fn start_broadcast<B: OwnedBuffer>(&self, mut buffer: B, root: usize) -> Result<Pending<B>, Error> {
        let root = self.checked_rank("root", root)?;
        self.start(move |inner, ticket| {
            let result = inner.broadcast(ticket, buffer.data(), root);
            (buffer, result)
        })
    }

    /// [`Communicator::all_gather`] beside the caller: of the input and into the output that come back.
    pub fn start_all_gather<I: OwnedBuffer, O: OwnedBuffer>(
        &self,
        mut input: I,
        mut output: O,
    ) -> Result<Pending<(I, O)>, Error> {
        let (given, got) = (input.data(), output.data());
        self.check_parts("all_gather", given.dtype(), got.dtype(), given.count(), got.count())?;
        self.start(move |inner, ticket| {
            let result = inner.all_gather(ticket, input.data().as_data(), output.data());
            ((input, output), result)
        })
    }

    /// [`Communicator::reduce_scatter`] beside the caller.
    pub fn start_reduce_scatter<I: OwnedBuffer, O: OwnedBuffer>(
        &self,
        mut input: I,
        mut output: O,
        op: ReduceOp,
    ) -> Result<Pending<(I, O)>, Error> {
        let (given, got) = (input.data(), output.data());
        self.check_parts("reduce_scatter", given.dtype(), got.dtype(), got.count(), given.count())?;
        self.start(move |inner, ticket| {
            let result = inner.reduce_scatter(ticket, input.data().as_data(), output.data(), op);
            ((input, output), result)
        })
    }

    /// [`Communicator::barrier`] beside the caller.
    pub fn start_barrier(&self) -> Result<Pending<()>, Error> {
        self.start(|inner, ticket| ((), inner.barrier(ticket)))
    }

    /// [`Communicator::send`] beside the caller.
    pub fn start_send<B: OwnedBuffer>(&self, mut buffer: B, to: usize) -> Result<Pending<B>, Error> {
        self.check_partner(to)?;
        self.start(move |inner, ticket| {
            let result = inner.message(ticket, Some((to, buffer.data().as_data())), None);
            (buffer, result)
        })
    }

    /// [`Communicator::receive`] beside the caller.
    pub fn start_receive<B: OwnedBuffer>(&self, mut buffer: B, from: usize) -> Result<Pending<B>, Error> {
        self.check_partner(from)?;
        self.start(move |inner, ticket| {
            let result = inner.message(ticket, None, Some((from, buffer.data())));
            (buffer, result)
        })
    }

    /// Forms communicators of some of the ranks each: of those that give the same color, ranked by `key` and, where
    /// that is equal, by their rank here. Who gives no color gets none. Every rank calls it.
    ///
    /// A new communicator lives on its own: it has the epoch and the timeouts of this one, and its own end.
    pub fn split(&self, color: Option<u32>, key: i32) -> Result<Option<Communicator>, Error> {
        let ticket = self.inner.order.ticket();
        let (inner, rank) = (&self.inner, self.inner.rank);
        let (sequence, seats, listener) = inner.run(ticket, Kind::Split, DType::U8, 0, |engine, call| {
            let (listener, port) = inner.origin.listen(rank).map_err(|error| inner.breaker.trip(error))?;
            let own = Share { color, key, port };
            let mut seats = vec![0i64; SEAT * inner.world];
            engine.all_gather(call, (&own.encode()).into(), (&mut seats).into())?;
            Ok((call.sequence, seats, listener))
        })?;
        let Some(color) = color else { return Ok(None) };
        let (seats, _) = seats.as_chunks::<SEAT>();
        let mut members: Vec<(i32, usize, u16)> = seats
            .iter()
            .enumerate()
            .map(|(rank, seat)| (rank, Share::decode(seat)))
            .filter(|(_, seat)| seat.color == Some(color))
            .map(|(rank, seat)| (seat.key, rank, seat.port))
            .collect();
        members.sort_unstable();
        let config = inner.origin.part(rank, inner.epoch, sequence, color, &members, listener);
        let part = config.abort.clone();
        // Who ends meanwhile would be waited for as if it might still come.
        inner.breaker.bind(&part.0);
        let connected = Communicator::connect(config);
        inner.breaker.release(&part.0);
        connected.map(Some).map_err(|error| {
            let named = error.renamed(|rank| members.get(rank).map_or(rank, |(_, rank, _)| *rank));
            // Another may know already who has gone, and have closed its connections for that.
            inner.breaker.explanation().unwrap_or(named)
        })
    }

    fn start<R: Send + 'static>(
        &self,
        operation: impl FnOnce(&Inner, Ticket) -> (R, Result<(), Error>) + Send + 'static,
    ) -> Result<Pending<R>, Error> {
        let mut background = self.background.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if background.is_none() {
            *background = Some(
                Background::start()
                    .map_err(|error| Error::System { rank: self.inner.rank, cause: format!("thread: {error}") })?,
            );
        }
        let (pending, completion) = Pending::new();
        let inner = Arc::clone(&self.inner);
        // The ticket is taken under the lock: the thread gets its jobs in the order of their tickets.
        let ticket = inner.order.ticket();
        let job = move || {
            // A panic, as of a buffer that the caller has made, must not leave the operations behind it without a turn.
            let outcome = catch_unwind(AssertUnwindSafe(|| operation(&inner, ticket)));
            if outcome.is_err() {
                inner.breaker.trip(Error::System { rank: inner.rank, cause: "an operation panicked".to_owned() });
                inner.order.pass(ticket);
            }
            // Before the waiter wakes: it may be the one that drops the communicator.
            drop(inner);
            if let Ok((buffer, result)) = outcome {
                completion.complete(buffer, result);
            }
        };
        if let Some(background) = background.as_ref() {
            background.run(Box::new(job));
        }
        Ok(pending)
    }

    fn checked_rank(&self, what: &str, rank: usize) -> Result<u32, Error> {
        match u32::try_from(rank) {
            Ok(rank) if (rank as usize) < self.inner.world => Ok(rank),
            _ => Err(Error::Argument(format!("{what} {rank} is not below world {}", self.inner.world))),
        }
    }

    fn check_partner(&self, rank: usize) -> Result<(), Error> {
        self.checked_rank("rank", rank)?;
        match rank == self.inner.rank {
            true => Err(Error::Argument(format!("rank {rank} sends no message to itself"))),
            false => Ok(()),
        }
    }

    /// The length of a rank's part of a buffer with a part for each.
    fn part_of(&self, whole: usize, name: &str) -> Result<usize, Error> {
        let world = self.inner.world;
        match whole.is_multiple_of(world) {
            true => Ok(whole / world),
            false => {
                Err(Error::Argument(format!("{name} of {whole} elements, which {world} ranks cannot share equally")))
            }
        }
    }

    fn check_parts(&self, name: &str, a: DType, b: DType, part: usize, whole: usize) -> Result<(), Error> {
        if a != b {
            return Err(Error::Argument(format!("{name} from {a} to {b}")));
        }
        if part.checked_mul(self.inner.world) != Some(whole) {
            let world = self.inner.world;
            return Err(Error::Argument(format!("{name} of {part} elements a rank and {whole} of {world} ranks")));
        }
        Ok(())
    }
}

fn check_equal(name: &str, input: &Data<'_>, output: &DataMut<'_>) -> Result<(), Error> {
    if (input.dtype(), input.count()) == (output.dtype(), output.count()) {
        return Ok(());
    }
    let (from, to) = ((input.count(), input.dtype()), (output.count(), output.dtype()));
    Err(Error::Argument(format!("{name} from {} {} to {} {}", from.0, from.1, to.0, to.1)))
}

fn missing(name: &str, what: &str) -> Error {
    Error::Argument(format!("{name} without an {what} at its root"))
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let background = self.background.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Ends when all that was started has run.
        drop(background.take());
        let engine = self.inner.engine.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(group) = &engine.group {
            group.region().leave(group.me());
        }
        self.inner.breaker.detach();
    }
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Inner { rank, world, epoch, .. } = &*self.inner;
        write!(f, "Communicator(rank {rank} of {world}, epoch {epoch})")
    }
}

impl Inner {
    fn segments(&self) -> MutexGuard<'_, Vec<Weak<Segment>>> {
        self.segments.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    #[inline]
    fn in_order<R>(&self, ticket: Ticket, run: impl FnOnce(&mut Engine) -> Result<R, Error>) -> Result<R, Error> {
        let _turn = self.order.wait(ticket);
        self.breaker.check()?;
        run(&mut self.engine.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// An operation of the whole world.
    #[inline]
    fn run<R>(
        &self,
        ticket: Ticket,
        kind: Kind,
        dtype: DType,
        count: usize,
        run: impl FnOnce(&mut Engine, &Call) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.in_order(ticket, |engine| {
            let call = engine.call(kind, dtype, count);
            let slot = self.recorder.begin(&call, Some(ticket.issued), None);
            let result = run(engine, &call);
            self.recorder.end(slot, result.is_ok());
            result
        })
    }

    /// The segment that holds the buffer, if it was allocated here.
    #[inline]
    fn locate(&self, pointer: *const u8, bytes: usize) -> Located {
        if self.allocated.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.segments().iter().filter_map(Weak::upgrade).find_map(|segment| {
            let location = segment.locate(pointer, bytes)?;
            Some((segment, location))
        })
    }

    #[inline]
    fn all_reduce(&self, ticket: Ticket, input: Data<'_>, output: DataMut<'_>, op: ReduceOp) -> Result<(), Error> {
        self.run(ticket, Kind::AllReduce(op), input.dtype(), input.count(), |engine, call| {
            let located = self.locate_in_place(engine, &input, &output);
            engine.reduce(call, input, output, op, &located, None)
        })
    }

    /// Where a buffer lies that is input and output in one.
    #[inline]
    fn locate_in_place(&self, engine: &Engine, input: &Data<'_>, output: &DataMut<'_>) -> Located {
        let bytes = input.byte_len();
        if !engine.reduces_in_place(bytes) || input.pointer() != output.pointer().cast_const() {
            return None;
        }
        self.locate(input.pointer(), bytes)
    }

    fn reduce(
        &self,
        ticket: Ticket,
        input: Data<'_>,
        output: DataMut<'_>,
        op: ReduceOp,
        root: u32,
    ) -> Result<(), Error> {
        self.run(ticket, Kind::Reduce { op, root }, input.dtype(), input.count(), |engine, call| {
            let located = self.locate_in_place(engine, &input, &output);
            engine.reduce(call, input, output, op, &located, Some(root as usize))
        })
    }

    fn broadcast(&self, ticket: Ticket, data: DataMut<'_>, root: u32) -> Result<(), Error> {
        self.run(ticket, Kind::Broadcast { root }, data.dtype(), data.count(), |engine, call| {
            let located = self.locate(data.pointer(), data.byte_len());
            engine.broadcast(call, data, root as usize, &located)
        })
    }

    fn barrier(&self, ticket: Ticket) -> Result<(), Error> {
        self.run(ticket, Kind::Barrier, DType::U8, 0, |engine, call| engine.barrier(call))
    }

    fn all_gather(&self, ticket: Ticket, input: Data<'_>, output: DataMut<'_>) -> Result<(), Error> {
        self.run(ticket, Kind::AllGather, input.dtype(), input.count(), |engine, call| {
            engine.all_gather(call, input, output)
        })
    }

    fn reduce_scatter(&self, ticket: Ticket, input: Data<'_>, output: DataMut<'_>, op: ReduceOp) -> Result<(), Error> {
        self.run(ticket, Kind::ReduceScatter(op), input.dtype(), output.count(), |engine, call| {
            engine.reduce_scatter(call, input, output, op)
        })
    }

    fn gather(&self, ticket: Ticket, input: Data<'_>, output: DataMut<'_>, root: u32) -> Result<(), Error> {
        let (count, me) = (input.count(), self.rank);
        self.run(ticket, Kind::Gather { root }, input.dtype(), count, |engine, call| {
            let root = root as usize;
            let send = |to: usize| if to == root { 0..count } else { 0..0 };
            let receive = |from: usize| if me == root { from * count..(from + 1) * count } else { 0..0 };
            let talks = |rank: usize| me == root || rank == root;
            engine.exchange(call, Exchange { input, send: &send, output, receive: &receive, talks: &talks }, count)
        })
    }

    fn scatter(&self, ticket: Ticket, input: Data<'_>, output: DataMut<'_>, root: u32) -> Result<(), Error> {
        let (count, me) = (output.count(), self.rank);
        self.run(ticket, Kind::Scatter { root }, output.dtype(), count, |engine, call| {
            let root = root as usize;
            let send = |to: usize| if me == root { to * count..(to + 1) * count } else { 0..0 };
            let receive = |from: usize| if from == root { 0..count } else { 0..0 };
            let talks = |rank: usize| me == root || rank == root;
            engine.exchange(call, Exchange { input, send: &send, output, receive: &receive, talks: &talks }, count)
        })
    }

    fn all_to_all(&self, ticket: Ticket, input: Data<'_>, output: DataMut<'_>) -> Result<(), Error> {
        let count = input.count() / self.world;
        self.run(ticket, Kind::AllToAll { uneven: false }, input.dtype(), count, |engine, call| {
            let part = |rank: usize| rank * count..(rank + 1) * count;
            let exchange = Exchange { input, send: &part, output, receive: &part, talks: &|_| true };
            engine.exchange(call, exchange, count)
        })
    }

    fn all_to_all_uneven(
        &self,
        ticket: Ticket,
        input: Data<'_>,
        sent: &[usize],
        output: DataMut<'_>,
        received: &[usize],
    ) -> Result<(), Error> {
        let (world, me) = (self.world, self.rank);
        self.run(ticket, Kind::AllToAll { uneven: true }, input.dtype(), 0, |engine, call| {
            // First who sends how much to whom, by sender and then receiver.
            let own: Vec<i64> = sent.iter().map(|count| *count as i64).collect();
            let mut counts = vec![0i64; world * world];
            engine.all_gather(call, (&own).into(), (&mut counts).into())?;
            for (from, expected) in received.iter().enumerate() {
                let theirs = counts[from * world + me];
                if theirs != *expected as i64 {
                    return Err(self.breaker.trip(Error::Mismatch {
                        rank: from,
                        theirs: format!("all_to_all with {theirs} elements for rank {me}"),
                        expected: format!("all_to_all with {expected} elements from rank {from}"),
                    }));
                }
            }
            let longest = counts.iter().max().map_or(0, |count| *count as usize);
            let (from, to) = (Offsets::of(sent), Offsets::of(received));
            let (send, receive) = (|rank: usize| from.range(rank), |rank: usize| to.range(rank));
            let exchange = Exchange { input, send: &send, output, receive: &receive, talks: &|_| true };
            engine.exchange(call, exchange, longest)
        })
    }

    fn message(
        &self,
        ticket: Ticket,
        outgoing: Option<(usize, Data<'_>)>,
        incoming: Option<(usize, DataMut<'_>)>,
    ) -> Result<(), Error> {
        self.in_order(ticket, |engine| {
            let outgoing = outgoing.map(|(to, data)| engine.outgoing(to, data));
            let incoming = incoming.map(|(from, data)| engine.incoming(from, data));
            let begin = |call: &Call, peer: usize| self.recorder.begin(call, Some(ticket.issued), Some(peer as u32));
            let sent = outgoing.as_ref().map(|(to, call, _)| begin(call, *to));
            let received = incoming.as_ref().map(|(from, call, _)| begin(call, *from));
            let result = engine.message(outgoing, incoming);
            for slot in [sent, received].into_iter().flatten() {
                self.recorder.end(slot, result.is_ok());
            }
            result
        })
    }
}

/// Where the parts of a buffer begin and end.
struct Offsets(Vec<usize>);

impl Offsets {
    fn of(counts: &[usize]) -> Offsets {
        let ends = counts.iter().scan(0, |end, count| {
            *end += count;
            Some(*end)
        });
        Offsets(std::iter::once(0).chain(ends).collect())
    }

    fn range(&self, rank: usize) -> std::ops::Range<usize> {
        self.0[rank]..self.0[rank + 1]
    }
}

fn connect(config: Config, breaker: &Arc<Breaker>) -> Result<Communicator, Error> {
    let recorder = Recorder::new(&Seat::of(&config)).map(Arc::new);
    let Config {
        rank,
        world,
        epoch,
        label,
        peers,
        listener,
        secret,
        transports,
        tcp,
        connect_timeout,
        timeout,
        abort: _,
    } = config;
    let topology = Topology::new(&peers, transports);
    let origin = Origin {
        label,
        peers: peers.clone(),
        secret: secret.clone(),
        transports,
        tcp: tcp.clone(),
        connect_timeout,
        timeout,
    };
    let (host, place) = topology.place(rank);
    let members = &topology.groups[host];
    let identity = Identity {
        rank: rank as u32,
        world: world as u32,
        epoch,
        secret,
        deadline: Instant::now() + connect_timeout,
        breaker: Arc::clone(breaker),
    };
    let recorder = recorder.map_err(|error| identity.system("flight recorder", error))?;
    breaker.record(Arc::clone(&recorder));
    let spans = topology.spans_hosts();
    let mut links = Vec::new();
    let mut memory = Vec::new();
    let mut region = None;
    if members.len() > 1 {
        let window = if spans { WINDOW_BETWEEN_HOSTS } else { WINDOW };
        let scope = format!("{} {}", peers[members[0]].host, peers[members[0]].address);
        let connected = share(&identity, members, &scope, window)?;
        links.extend(connected.links);
        memory = connected.memory;
        region = Some(connected.region);
    }
    let leaders = (place == 0).then(|| Members { ranks: topology.leaders(), me: host });
    let mut network = None;
    if spans {
        let addresses: Vec<_> = peers.iter().map(|peer| peer.address).collect();
        let local_ranks = peers.iter().filter(|peer| peer.host == peers[rank].host).count();
        let (connected, controls) = Network::connect(&identity, &addresses, listener, local_ranks, &tcp, timeout)?;
        network = Some(connected);
        links.extend(controls);
    }
    let links: Vec<Arc<ControlLink>> = links.into_iter().map(Arc::new).collect();
    let monitor = match links.is_empty() {
        true => None,
        false => {
            let monitor = Monitor::start(links.clone(), Arc::clone(breaker));
            Some(monitor.map_err(|error| identity.system("thread", error))?)
        }
    };
    breaker.attach(links, region.clone())?;
    let members = members.clone();
    let life = match &region {
        None => None,
        Some(region) => {
            let life = Life::start(Arc::clone(region), place, members.clone(), Arc::clone(breaker));
            Some(life.map_err(|error| identity.system("thread", error))?)
        }
    };
    let group = region.map(|region| Group::new(region, place, members, Arc::clone(breaker), timeout, spans));
    let breaker = Arc::clone(breaker);
    let engine = Engine {
        topology,
        host,
        rank,
        world,
        group,
        network,
        leaders,
        everybody: Members { ranks: (0..world).collect(), me: rank },
        memory,
        breaker: Arc::clone(&breaker),
        timeout,
        operations: 0,
        messages: Default::default(),
    };
    let inner = Inner {
        rank,
        world,
        epoch,
        breaker,
        recorder,
        order: Order::default(),
        engine: Mutex::new(engine),
        segments: Mutex::default(),
        allocated: AtomicUsize::new(0),
        origin,
    };
    Ok(Communicator { inner: Arc::new(inner), background: Mutex::new(None), _monitor: monitor, _life: life })
}

/// What a rank holds of its host's group.
struct Shared {
    links: Vec<ControlLink>,
    memory: Vec<Stream>,
    region: Arc<Region>,
}

/// Connects the ranks of one host, and maps the memory that the first of them makes.
fn share(identity: &Identity, members: &[usize], scope: &str, window: usize) -> Result<Shared, Error> {
    use std::os::fd::AsFd;
    let Identity { rank, deadline, breaker, .. } = identity;
    let leader = members[0];
    let length = Region::length(members.len(), window);
    let interrupted = |peer: usize| {
        move |interruption: Interruption| match interruption {
            Interruption::Tripped(error) => error,
            other => Error::Connect { rank: peer, cause: other.to_string() },
        }
    };
    let (fd, peers) = if *rank as usize == leader {
        let others: Vec<u32> = members.iter().skip(1).map(|member| *member as u32).collect();
        let peers = unix::lead(identity, &others, scope)?;
        let fd = memory::create(length).map_err(|error| identity.system("shared memory", error))?;
        for peer in &peers {
            peer.memory.send_fd(fd.as_fd(), *deadline, breaker).map_err(interrupted(peer.control.rank))?;
        }
        (fd, peers)
    } else {
        let peer = unix::follow(identity, leader as u32, scope)?;
        let fd = peer.memory.receive_fd(*deadline, breaker).map_err(interrupted(leader))?;
        (fd, vec![peer])
    };
    let map = memory::map(fd, length).map_err(|error| identity.system("shared memory", error))?;
    let (links, memory) = peers.into_iter().map(|peer| (peer.control, peer.memory)).unzip();
    Ok(Shared { links, memory, region: Arc::new(Region::new(map, members.len(), window)) })
}
