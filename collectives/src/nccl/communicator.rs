//! Operations between GPUs, each on a stream and device memory of the caller's.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::element::DType;
use crate::nccl::RawStream;
use crate::nccl::abi::{RawComm, RawConfig, SPLIT_NOCOLOR, data_type, reduction};
use crate::nccl::device::{Context, Stream};
use crate::nccl::error::Error;
use crate::nccl::group::{in_turn, is_open};
use crate::nccl::handle::{AbortHandle, Handle};
use crate::nccl::library::{Library, UniqueId};
use crate::reduce::ReduceOp;

/// Everything [`Communicator::connect`] needs.
#[derive(Debug)]
pub struct Config {
    pub rank: usize,
    pub world: usize,
    pub id: UniqueId,
    /// How long `connect` waits for the other ranks.
    pub connect_timeout: Duration,
    /// How long a call may take to put its work on a stream: the first ones connect the GPUs.
    pub timeout: Duration,
    /// How long a drop waits for the other ranks, or for the end of an abort; after that NCCL is left to end alone.
    pub close_timeout: Duration,
    /// Ends `connect` and every later call from another thread.
    pub abort: AbortHandle,
}

impl Config {
    /// A configuration with default timeouts.
    pub fn new(rank: usize, world: usize, id: UniqueId) -> Config {
        Config {
            rank,
            world,
            id,
            connect_timeout: Duration::from_secs(60),
            timeout: Duration::from_secs(60),
            close_timeout: Duration::from_secs(10),
            abort: AbortHandle::new(),
        }
    }

    fn validate(&self) -> Result<(c_int, c_int), Error> {
        let refuse = |text: String| Err(Error::Argument(text));
        if self.rank >= self.world {
            return refuse(format!("rank {} is not below world {}", self.rank, self.world));
        }
        if is_open() {
            return refuse("a communicator is formed outside of groups".to_owned());
        }
        match (c_int::try_from(self.rank), c_int::try_from(self.world)) {
            (Ok(rank), Ok(world)) => Ok((rank, world)),
            _ => refuse(format!("a world of {} is too large", self.world)),
        }
    }
}

/// How many elements of which type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elements {
    pub dtype: DType,
    pub count: usize,
}

impl Elements {
    pub fn new(dtype: DType, count: usize) -> Elements {
        Elements { dtype, count }
    }

    fn raw(self) -> Result<c_int, Error> {
        data_type(self.dtype).ok_or_else(|| Error::Argument(format!("NCCL has no {}", self.dtype)))
    }
}

/// One rank's place among GPUs.
///
/// Calls return when their work has been put on the stream; [`Communicator::wait`] waits for it. Every error but
/// [`Error::Argument`] and [`Error::Absent`] ends the communicator: this rank's work on the GPU is aborted and later
/// calls fail likewise. Other ranks notice by their own deadlines, unless they are told to abort.
///
/// # Safety of operations
/// What each operation asks of its caller:
/// - pointers are to memory that the communicator's device can reach, of as many elements as are said there;
/// - the memory is valid, and nothing else touches it, until the stream has passed the operation;
/// - the stream is one of the communicator's device, and valid during the call (in a group: until its end).
///
/// Source and target may be the same memory where that is said, and do not overlap otherwise.
pub struct Communicator {
    library: Library,
    context: Context,
    handle: Arc<Handle>,
    rank: usize,
    world: usize,
    timeout: Duration,
    close_timeout: Duration,
}

/// One operation: in its turn, or in this thread's open group.
macro_rules! operation {
    ($self:ident, $name:literal, $function:ident, $($argument:expr),*; $stream:ident) => {
        in_turn(
            &$self.handle,
            || $self.handle.turn($name, $self.timeout),
            // SAFETY: the pointers and the stream are good by the caller's word; the communicator by its turn.
            |turn| turn.call($name, |library, comm| unsafe {
                (library.functions().$function)($($argument,)* comm, $stream)
            }),
        )
    };
}

impl Communicator {
    /// Joins the other ranks; returns once all are there. Each rank has a device of its own.
    pub fn connect(library: &Library, context: &Context, config: Config) -> Result<Communicator, Error> {
        let (rank, world) = config.validate()?;
        let handle = Arc::clone(&config.abort.0);
        handle.arm()?;
        context.make_current().map_err(|error| handle.fail(error.into()))?;
        let mut comm: RawComm = std::ptr::null_mut();
        let mut raw_config = RawConfig::nonblocking();
        let functions = library.functions();
        // SAFETY: the configuration has its marks, and the function keeps nothing of it. In nonblocking mode it
        // writes the communicator before it returns.
        let code = unsafe {
            (functions.comm_init_rank_config)(&raw mut comm, world, config.id.raw(), rank, &raw mut raw_config)
        };
        if comm.is_null() {
            let error = library.failed("ncclCommInitRankConfig", code);
            // Where CUDA refuses, NCCL leaves the group open that it works in, and later calls of this thread would
            // wait in it for ever.
            // SAFETY: this thread has no group of its own open; outside of any, the call is refused.
            unsafe { (functions.group_end)() };
            return Err(handle.fail(error));
        }
        handle.attach(library, comm)?;
        let communicator = Communicator {
            library: library.clone(),
            context: context.clone(),
            handle,
            rank: config.rank,
            world: config.world,
            timeout: config.timeout,
            close_timeout: config.close_timeout,
        };
        communicator.handle.turn("ncclCommInitRankConfig", config.connect_timeout)?.settle()?;
        Ok(communicator)
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn world(&self) -> usize {
        self.world
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Ends every waiting and every later call of this rank, and its work on the GPU.
    pub fn abort(&self, reason: &str) {
        self.abort_handle().abort(reason);
    }

    /// For threads that shall be able to abort without holding the communicator.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle(Arc::clone(&self.handle))
    }

    /// Asks whether the communicator has failed, as by the loss of another rank: errors of work that was put on a
    /// stream appear here, not at the call.
    pub fn check(&self) -> Result<(), Error> {
        self.handle.ask().map(drop)
    }

    /// Waits until all work on the stream is done, the communicator has failed, or `limit` has passed. In the latter
    /// two cases the work is aborted.
    pub fn wait(&self, stream: &Stream, limit: Duration) -> Result<(), Error> {
        self.handle.wait_for("the work on a stream", limit, || Ok(stream.is_done()?))
    }

    /// Closes the communicator and says how that went: all ranks call it, or drop theirs, after their last operation.
    pub fn close(self) -> Result<(), Error> {
        self.handle.close(self.close_timeout)
    }

    /// Combines the sources of all ranks, element by element, into the targets of all. May be in place. A mean of
    /// integers is rounded as NCCL does it.
    ///
    /// # Safety
    /// See [the contract](Communicator#safety-of-operations).
    pub unsafe fn all_reduce(
        &self,
        source: *const c_void,
        target: *mut c_void,
        of: Elements,
        op: ReduceOp,
        stream: RawStream,
    ) -> Result<(), Error> {
        let dtype = of.raw()?;
        operation!(self, "ncclAllReduce", all_reduce, source, target, of.count, dtype, reduction(op); stream)
    }

    /// As [`Communicator::all_reduce`], but only rank `root` gets the result; the others' targets are not used.
    ///
    /// # Safety
    /// See [the contract](Communicator#safety-of-operations).
    pub unsafe fn reduce(
        &self,
        source: *const c_void,
        target: *mut c_void,
        of: Elements,
        op: ReduceOp,
        root: usize,
        stream: RawStream,
    ) -> Result<(), Error> {
        let (dtype, root) = (of.raw()?, self.peer(root)?);
        operation!(self, "ncclReduce", reduce, source, target, of.count, dtype, reduction(op), root; stream)
    }

    /// Copies the source of rank `root` to the targets of all; other sources are not used. May be in place.
    ///
    /// # Safety
    /// See [the contract](Communicator#safety-of-operations).
    pub unsafe fn broadcast(
        &self,
        source: *const c_void,
        target: *mut c_void,
        of: Elements,
        root: usize,
        stream: RawStream,
    ) -> Result<(), Error> {
        let (dtype, root) = (of.raw()?, self.peer(root)?);
        operation!(self, "ncclBroadcast", broadcast, source, target, of.count, dtype, root; stream)
    }

    /// Combines the sources of all ranks, each of `of.count` elements a rank, and gives each rank its part. In place
    /// where the target is that part of the source.
    ///
    /// # Safety
    /// See [the contract](Communicator#safety-of-operations).
    pub unsafe fn reduce_scatter(
        &self,
        source: *const c_void,
        target: *mut c_void,
        of: Elements,
        op: ReduceOp,
        stream: RawStream,
    ) -> Result<(), Error> {
        let dtype = of.raw()?;
        operation!(self, "ncclReduceScatter", reduce_scatter, source, target, of.count, dtype, reduction(op); stream)
    }

    /// Puts the sources of all ranks, each of `of.count` elements, one after the other. In place where the source is
    /// its part of the target.
    ///
    /// # Safety
    /// See [the contract](Communicator#safety-of-operations).
    pub unsafe fn all_gather(
        &self,
        source: *const c_void,
        target: *mut c_void,
        of: Elements,
        stream: RawStream,
    ) -> Result<(), Error> {
        let dtype = of.raw()?;
        operation!(self, "ncclAllGather", all_gather, source, target, of.count, dtype; stream)
    }

    /// Sends to a rank that receives as many elements of the same type. Sends and receives that need each other to
    /// end go into one [`Group`](crate::nccl::Group).
    ///
    /// # Safety
    /// See [the contract](Communicator#safety-of-operations).
    pub unsafe fn send(&self, source: *const c_void, of: Elements, to: usize, stream: RawStream) -> Result<(), Error> {
        let (dtype, to) = (of.raw()?, self.peer(to)?);
        operation!(self, "ncclSend", send, source, of.count, dtype, to; stream)
    }

    /// Receives from a rank that sends as many elements of the same type.
    ///
    /// # Safety
    /// See [the contract](Communicator#safety-of-operations).
    pub unsafe fn recv(&self, target: *mut c_void, of: Elements, from: usize, stream: RawStream) -> Result<(), Error> {
        let (dtype, from) = (of.raw()?, self.peer(from)?);
        operation!(self, "ncclRecv", recv, target, of.count, dtype, from; stream)
    }

    /// Forms communicators of the ranks of equal `color`, in each in the order of `key`. All ranks call it; one
    /// without a color is in none. The new communicator fails alone: an abort of this one does not reach it.
    pub fn split(&self, color: Option<u32>, key: i32) -> Result<Option<Communicator>, Error> {
        if is_open() {
            return Err(Error::Argument("a communicator is formed outside of groups".to_owned()));
        }
        let color = match color.map(c_int::try_from) {
            None => SPLIT_NOCOLOR,
            Some(Ok(color)) => color,
            Some(Err(_)) => return Err(Error::Argument(format!("colors are up to {}", c_int::MAX))),
        };
        // NCCL writes the new communicator when it is done with it, after the call has returned. If the split fails
        // that can come at any time, so the place for it is given up then, not freed.
        let place: &'static mut RawComm = Box::leak(Box::new(std::ptr::null_mut()));
        let place: *mut RawComm = place;
        let turn = self.handle.turn("ncclCommSplit", self.timeout)?;
        // SAFETY: the communicator has its turn, and the place stays. Without a configuration the new communicator
        // has that of this one.
        turn.call("ncclCommSplit", |library, comm| unsafe {
            (library.functions().comm_split)(comm, color, key, place, std::ptr::null_mut())
        })?;
        turn.settle()?;
        drop(turn);
        // SAFETY: the split is done, so NCCL has written the place and is done with it; it came from a box.
        let comm = *unsafe { Box::from_raw(place) };
        if comm.is_null() {
            return Ok(None);
        }
        let handle = AbortHandle::new().0;
        handle.arm()?;
        handle.attach(&self.library, comm)?;
        let mut communicator = Communicator {
            library: self.library.clone(),
            context: self.context.clone(),
            handle,
            rank: 0,
            world: 0,
            timeout: self.timeout,
            close_timeout: self.close_timeout,
        };
        communicator.ask_who()?;
        Ok(Some(communicator))
    }

    /// Learns its rank and world from NCCL.
    fn ask_who(&mut self) -> Result<(), Error> {
        let turn = self.handle.turn("ncclCommSplit", self.timeout)?;
        turn.settle()?;
        let (mut rank, mut world) = (0, 0);
        // SAFETY: the communicator has its turn; the functions write one int each.
        turn.call("ncclCommUserRank", |library, comm| unsafe {
            (library.functions().comm_user_rank)(comm, &raw mut rank)
        })?;
        // SAFETY: as above.
        turn.call("ncclCommCount", |library, comm| unsafe { (library.functions().comm_count)(comm, &raw mut world) })?;
        (self.rank, self.world) = (rank.try_into().unwrap_or(0), world.try_into().unwrap_or(0));
        Ok(())
    }

    /// Lets NCCL work on a buffer without copies, where the machine has what that takes.
    ///
    /// # Safety
    /// The memory is one allocation on the communicator's device, and valid as long as what is returned.
    pub unsafe fn register(&self, buffer: *mut c_void, bytes: usize) -> Result<RegisteredBuffer<'_>, Error> {
        let register = self.library.present(self.library.functions().comm_register, "ncclCommRegister")?;
        self.library.present(self.library.functions().comm_deregister, "ncclCommDeregister")?;
        let mut registration = std::ptr::null_mut();
        let turn = self.handle.turn("ncclCommRegister", self.timeout)?;
        // SAFETY: the buffer by the caller's word, the communicator by its turn. The function writes a handle.
        turn.call("ncclCommRegister", |_, comm| unsafe { register(comm, buffer, bytes, &raw mut registration) })?;
        turn.settle()?;
        Ok(RegisteredBuffer { communicator: self, registration })
    }

    fn peer(&self, rank: usize) -> Result<c_int, Error> {
        match c_int::try_from(rank) {
            Ok(raw) if rank < self.world => Ok(raw),
            _ => Err(Error::Argument(format!("rank {rank} is not below world {}", self.world))),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // An error has nobody left to go to; `close` gives it. A second close finds nothing to do.
        let _ = self.handle.close(self.close_timeout);
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nccl::Communicator(rank {} of {}, {:?})", self.rank, self.world, self.context)
    }
}

/// A buffer that a communicator knows, until dropped.
#[derive(Debug)]
pub struct RegisteredBuffer<'a> {
    communicator: &'a Communicator,
    registration: *mut c_void,
}

impl Drop for RegisteredBuffer<'_> {
    fn drop(&mut self) {
        let Communicator { library, handle, timeout, .. } = self.communicator;
        // A communicator that has failed forgets its registrations by itself.
        if let Some(deregister) = library.functions().comm_deregister
            && let Ok(turn) = handle.turn("ncclCommDeregister", *timeout)
        {
            // SAFETY: registered once with this communicator, deregistered once.
            let done = turn.call("ncclCommDeregister", |_, comm| unsafe { deregister(comm, self.registration) });
            let _ = done.and_then(|()| turn.settle());
        }
    }
}
