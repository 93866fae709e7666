//! The ranks of one epoch, and what they do together.

mod form;
mod inner;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use crate::background::Background;
use crate::breaker::AbortHandle;
use crate::call::Kind;
use crate::config::Config;
use crate::element::{DType, Data, DataMut, Element};
use crate::error::Error;
use crate::monitor::Monitor;
use crate::order::Ticket;
use crate::origin::{SEAT, Share};
use crate::pending::{OwnedBuffer, Pending};
use crate::reduce::ReduceOp;
use crate::segment::{Segment, SharedBuffer};
use crate::transport::shm::Life;
use inner::Inner;

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

impl Communicator {
    /// Connects to all ranks of the epoch; returns once they are all there.
    pub fn connect(config: Config) -> Result<Communicator, Error> {
        config.validate()?;
        let breaker = Arc::clone(&config.abort.0);
        breaker.arm(config.rank, config.world)?;
        form::connect(config, &breaker)
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
        self.inner.segments.add(&segment);
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
