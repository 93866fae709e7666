//! The ranks of one epoch, and what they do together.
//!
//! An operation is made of at most three parts: among the ranks of each host over shared memory, among the hosts'
//! leaders over TCP, and on the host again. A host with one rank takes part by that rank alone.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::breaker::{AbortHandle, Breaker};
use crate::call::{Call, Kind, Location};
use crate::config::{Config, Topology};
use crate::element::{DType, Data, DataMut, Element};
use crate::error::Error;
use crate::flight::{Recorder, Seat};
use crate::monitor::{ControlLink, Monitor};
use crate::pending::{OwnedBuffer, Pending};
use crate::reduce::ReduceOp;
use crate::schedule::part;
use crate::segment::{Segment, SharedBuffer};
use crate::ticks;
use crate::transport::connect::Identity;
use crate::transport::shm::{Group, Region};
use crate::transport::stream::{Interruption, Stream};
use crate::transport::tcp::{self, Ring};
use crate::transport::{memory, unix};

/// Bytes of a rank's window: small enough that the windows of a few ranks stay in cache, and larger where each turn
/// also costs a passage between hosts.
const WINDOW: usize = 256 << 10;
const WINDOW_BETWEEN_HOSTS: usize = 1 << 20;

/// The ranks of a job at one epoch.
///
/// Every rank calls the same operations in the same order; an operation returns when this rank's part is done. Calls
/// from several threads run in the order of their issue. After an error that [is fatal](Error::is_fatal) the
/// communicator is of no more use; form a new one at a higher epoch.
///
/// Dropping it tells the others that this rank has left; operations started before are carried out first.
pub struct Communicator {
    // First to go: it says good-bye before the connections for data close.
    _monitor: Option<Monitor>,
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
}

/// What only the operation whose turn it is may touch.
struct Engine {
    topology: Topology,
    /// This host's place among the hosts.
    host: usize,
    rank: usize,
    world: usize,
    group: Option<Group>,
    ring: Option<Ring>,
    /// For file descriptors: the leader's to its members, or a member's to its leader.
    memory: Vec<Stream>,
    breaker: Arc<Breaker>,
    timeout: Duration,
}

type Job = Box<dyn FnOnce() + Send>;

struct Background {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
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
        let call = Call { sequence: ticket, kind: Kind::Allocate, dtype: T::DTYPE, count: len as u64 };
        let segment = self.inner.in_order(&call, |engine| engine.allocate(&call, stride))?;
        let mut segments = self.inner.segments();
        segments.retain(|segment| segment.strong_count() > 0);
        segments.push(Arc::downgrade(&segment));
        Ok(SharedBuffer::new(segment, len))
    }

    /// Combines the buffers of all ranks, element by element; all get the result, bitwise equal.
    pub fn all_reduce<'a>(&self, data: impl Into<DataMut<'a>>, op: ReduceOp) -> Result<(), Error> {
        let ticket = self.inner.order.ticket();
        self.inner.all_reduce(ticket, data.into(), op)
    }

    /// Copies the buffer of rank `root` to all others.
    pub fn broadcast<'a>(&self, data: impl Into<DataMut<'a>>, root: usize) -> Result<(), Error> {
        let root = self.checked_root(root)?;
        let ticket = self.inner.order.ticket();
        self.inner.broadcast(ticket, data.into(), root)
    }

    /// Returns when every rank has called it.
    pub fn barrier(&self) -> Result<(), Error> {
        let ticket = self.inner.order.ticket();
        let call = Call { sequence: ticket, kind: Kind::Barrier, dtype: DType::U8, count: 0 };
        self.inner.in_order(&call, |engine| engine.barrier(&call))
    }

    /// Puts the equally long inputs of all ranks one after the other, in the order of ranks.
    pub fn all_gather<'a, 'b>(&self, input: impl Into<Data<'a>>, output: impl Into<DataMut<'b>>) -> Result<(), Error> {
        let (input, output) = (input.into(), output.into());
        self.check_pair("all_gather", input.dtype(), output.dtype(), input.count(), output.count())?;
        let ticket = self.inner.order.ticket();
        let kind = Kind::AllGather;
        let call = Call { sequence: ticket, kind, dtype: input.dtype(), count: input.count() as u64 };
        self.inner.in_order(&call, |engine| engine.all_gather(&call, input, output))
    }

    /// Combines the inputs of all ranks, each of as many parts as there are ranks, and gives each rank its part.
    pub fn reduce_scatter<'a, 'b>(
        &self,
        input: impl Into<Data<'a>>,
        output: impl Into<DataMut<'b>>,
        op: ReduceOp,
    ) -> Result<(), Error> {
        let (input, output) = (input.into(), output.into());
        self.check_pair("reduce_scatter", input.dtype(), output.dtype(), output.count(), input.count())?;
        let ticket = self.inner.order.ticket();
        let kind = Kind::ReduceScatter(op);
        let call = Call { sequence: ticket, kind, dtype: input.dtype(), count: output.count() as u64 };
        self.inner.in_order(&call, |engine| engine.reduce_scatter(&call, input, output, op))
    }

    /// [`Communicator::all_reduce`] beside the caller. The buffer comes back from [`Pending::wait`].
    pub fn start_all_reduce<B: OwnedBuffer>(&self, mut buffer: B, op: ReduceOp) -> Result<Pending<B>, Error> {
        self.start(move |inner, ticket| {
            let result = inner.all_reduce(ticket, buffer.data(), op);
            (buffer, result)
        })
    }

    /// [`Communicator::broadcast`] beside the caller.
    pub fn start_broadcast<B: OwnedBuffer>(&self, mut buffer: B, root: usize) -> Result<Pending<B>, Error> {
        let root = self.checked_root(root)?;
        self.start(move |inner, ticket| {
            let result = inner.broadcast(ticket, buffer.data(), root);
            (buffer, result)
        })
    }

    fn start<B: OwnedBuffer>(
        &self,
        operation: impl FnOnce(&Inner, u64) -> (B, Result<(), Error>) + Send + 'static,
    ) -> Result<Pending<B>, Error> {
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
            let (buffer, result) = operation(&inner, ticket);
            // Before the waiter wakes: it may be the one that drops the communicator.
            drop(inner);
            completion.complete(buffer, result);
        };
        if let Some(background) = background.as_ref() {
            // The thread ends with the channel only.
            let _ = background.jobs.send(Box::new(job));
        }
        Ok(pending)
    }

    fn checked_root(&self, root: usize) -> Result<u32, Error> {
        match u32::try_from(root) {
            Ok(root) if (root as usize) < self.inner.world => Ok(root),
            _ => Err(Error::Argument(format!("root {root} is not below world {}", self.inner.world))),
        }
    }

    fn check_pair(&self, name: &str, a: DType, b: DType, part: usize, whole: usize) -> Result<(), Error> {
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

impl Drop for Communicator {
    fn drop(&mut self) {
        let background = self.background.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(Background { jobs, thread }) = background.take() {
            drop(jobs);
            let _ = thread.join();
        }
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

impl Background {
    fn start() -> std::io::Result<Background> {
        let (jobs, receiver) = channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("collectives-run".to_owned())
            .spawn(move || receiver.into_iter().for_each(|job| job()))?;
        Ok(Background { jobs, thread })
    }
}

/// Lets operations run in the order in which they took their tickets.
#[derive(Default)]
struct Order {
    /// The next ticket, and the one whose turn it is.
    state: Mutex<(u64, u64)>,
    turn: Condvar,
}

impl Order {
    fn lock(&self) -> MutexGuard<'_, (u64, u64)> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn ticket(&self) -> u64 {
        let mut state = self.lock();
        state.0 += 1;
        state.0 - 1
    }

    /// Gives the ticks at which it came to wait, where it was not its turn yet.
    fn wait(&self, ticket: u64) -> Option<u64> {
        let mut state = self.lock();
        let since = (state.1 != ticket).then(ticks::now);
        while state.1 != ticket {
            state = self.turn.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        since
    }

    fn next(&self) {
        self.lock().1 += 1;
        self.turn.notify_all();
    }
}

/// Ends a ticket's turn, also when its operation panics.
struct Turn<'a>(&'a Order);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.next();
    }
}

impl Inner {
    fn segments(&self) -> MutexGuard<'_, Vec<Weak<Segment>>> {
        self.segments.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn in_order<R>(&self, call: &Call, run: impl FnOnce(&mut Engine) -> Result<R, Error>) -> Result<R, Error> {
        let issued = self.order.wait(call.sequence);
        let _turn = Turn(&self.order);
        self.breaker.check()?;
        let slot = self.recorder.begin(call, issued, None);
        let result = run(&mut self.engine.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        self.recorder.end(slot, result.is_ok());
        result
    }

    /// The segment that holds the buffer, if it was allocated here.
    fn locate(&self, data: &DataMut<'_>) -> Option<(Arc<Segment>, Location)> {
        self.segments().iter().filter_map(Weak::upgrade).find_map(|segment| {
            let location = segment.locate(data.pointer(), data.byte_len())?;
            Some((segment, location))
        })
    }

    fn all_reduce(&self, ticket: u64, data: DataMut<'_>, op: ReduceOp) -> Result<(), Error> {
        let kind = Kind::AllReduce(op);
        let call = Call { sequence: ticket, kind, dtype: data.dtype(), count: data.count() as u64 };
        let segment = self.locate(&data);
        self.in_order(&call, |engine| engine.all_reduce(&call, data, op, segment))
    }

    fn broadcast(&self, ticket: u64, data: DataMut<'_>, root: u32) -> Result<(), Error> {
        let kind = Kind::Broadcast { root };
        let call = Call { sequence: ticket, kind, dtype: data.dtype(), count: data.count() as u64 };
        let segment = self.locate(&data);
        self.in_order(&call, |engine| engine.broadcast(&call, data, root as usize, segment))
    }
}

impl Engine {
    fn all_reduce(
        &mut self,
        call: &Call,
        mut data: DataMut<'_>,
        op: ReduceOp,
        segment: Option<(Arc<Segment>, Location)>,
    ) -> Result<(), Error> {
        let divisor = (op == ReduceOp::Mean).then_some(self.world);
        let (group, ring) = (&mut self.group, &mut self.ring);
        if let Some(group) = group {
            let segment = segment.as_ref().map(|(segment, location)| (segment, *location));
            let mut wide = ring.as_mut().map(|ring| |data: DataMut<'_>| ring.all_reduce(call, data, op, divisor));
            let wide = wide.as_mut().map(|wide| wide as &mut dyn FnMut(DataMut<'_>) -> Result<(), Error>);
            return group.all_reduce(call, data, op, divisor, segment, wide);
        }
        let Some(ring) = ring else { return Ok(()) };
        // Where other hosts go turn by turn, so does this one.
        let wire = if data.dtype().is_half() { DType::F32 } else { data.dtype() };
        let per_turn =
            if self.topology.shares_memory() { WINDOW_BETWEEN_HOSTS / wire.size() } else { data.count().max(1) };
        for turn in 0..data.count().div_ceil(per_turn).max(1) {
            let start = turn * per_turn;
            let length = per_turn.min(data.count() - start);
            ring.all_reduce(call, data.range(start, length), op, divisor)?;
        }
        Ok(())
    }

    fn broadcast(
        &mut self,
        call: &Call,
        mut data: DataMut<'_>,
        root: usize,
        segment: Option<(Arc<Segment>, Location)>,
    ) -> Result<(), Error> {
        let (root_host, root_place) = self.topology.place(root);
        let segment = segment.as_ref().map(|(segment, location)| (segment, *location));
        if let Some(group) = &mut self.group
            && root_host == self.host
        {
            group.broadcast(call, data.reborrow(), root_place, segment)?;
        }
        if let Some(ring) = &mut self.ring {
            ring.broadcast(call, data.reborrow(), root_host)?;
        }
        if let Some(group) = &mut self.group
            && root_host != self.host
        {
            group.broadcast(call, data, 0, segment)?;
        }
        Ok(())
    }

    fn barrier(&mut self, call: &Call) -> Result<(), Error> {
        let mut wide = self.ring.as_mut().map(|ring| |_: DataMut<'_>| ring.barrier(call));
        match &mut self.group {
            Some(group) => {
                let wide = wide.as_mut().map(|wide| wide as &mut dyn FnMut(DataMut<'_>) -> Result<(), Error>);
                group.barrier(call, wide)
            }
            None => wide.map_or(Ok(()), |mut wide| wide(DataMut::from(&mut [] as &mut [u8]))),
        }
    }

    fn all_gather(&mut self, call: &Call, input: Data<'_>, mut output: DataMut<'_>) -> Result<(), Error> {
        let count = input.count();
        output.range(self.rank * count, count).copy_from(&input);
        for root in 0..self.world {
            self.broadcast(call, output.range(root * count, count), root, None)?;
        }
        Ok(())
    }

    fn reduce_scatter(
        &mut self,
        call: &Call,
        input: Data<'_>,
        mut output: DataMut<'_>,
        op: ReduceOp,
    ) -> Result<(), Error> {
        // Words of u64 are aligned for every dtype.
        let mut whole = vec![0u64; input.byte_len().div_ceil(8)];
        let mut whole = DataMut::over(input.dtype(), &mut whole, input.count());
        whole.copy_from(&input);
        self.all_reduce(call, whole.reborrow(), op, None)?;
        let range = part(whole.count(), self.world, self.rank);
        output.copy_from(&whole.range(range.start, range.len()).as_data());
        Ok(())
    }

    fn allocate(&mut self, call: &Call, stride: usize) -> Result<Arc<Segment>, Error> {
        let (rank, breaker) = (self.rank, Arc::clone(&self.breaker));
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            breaker.trip(Error::System { rank, cause: format!("{what}: {error}") })
        };
        let (ranks, me) = self.group.as_ref().map_or((1, 0), |group| (group.size(), group.me()));
        self.barrier(call)?;
        let deadline = Instant::now() + self.timeout;
        let fd = match &self.group {
            Some(group) if !group.leads() => {
                let leader = self.topology.groups[self.host][0];
                match self.memory.first().map(|stream| stream.receive_fd(deadline, &breaker)) {
                    Some(Ok(fd)) => fd,
                    Some(Err(Interruption::Tripped(error))) => return Err(error),
                    Some(Err(Interruption::Deadline)) => {
                        return Err(breaker.trip(Error::timeout(leader, call, self.timeout)));
                    }
                    _ => return Err(breaker.lost(leader)),
                }
            }
            _ => {
                let fd = memory::create(ranks * stride).map_err(|error| failed("shared memory", &error))?;
                for (stream, member) in self.memory.iter().zip(self.topology.groups[self.host].iter().skip(1)) {
                    use std::os::fd::AsFd;
                    match stream.send_fd(fd.as_fd(), deadline, &breaker) {
                        Ok(()) => {}
                        Err(Interruption::Tripped(error)) => return Err(error),
                        Err(_) => return Err(breaker.lost(*member)),
                    }
                }
                fd
            }
        };
        let map = memory::map(fd, ranks * stride).map_err(|error| failed("shared memory", &error))?;
        // A segment that one rank could not map is used by none.
        self.barrier(call)?;
        Ok(Arc::new(Segment::new(map, call.sequence, me, stride)))
    }
}

fn connect(config: Config, breaker: &Arc<Breaker>) -> Result<Communicator, Error> {
    let recorder = Recorder::new(&Seat::of(&config)).map(Arc::new);
    let Config {
        rank,
        world,
        epoch,
        label: _,
        peers,
        listener,
        secret,
        transports,
        connect_timeout,
        timeout,
        abort: _,
    } = config;
    let topology = Topology::new(&peers, transports);
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
    let mut ring = None;
    if spans && place == 0 {
        let leaders: Vec<_> = topology.groups.iter().map(|group| (group[0] as u32, peers[group[0]].address)).collect();
        let (connected, controls) = tcp::connect(&identity, &leaders, host, &listener, timeout)?;
        ring = Some(connected);
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
    breaker.attach(links, region.clone(), Arc::clone(&recorder))?;
    let members = members.clone();
    let group = region.map(|region| Group::new(region, place, members, Arc::clone(breaker), timeout, spans));
    let breaker = Arc::clone(breaker);
    let engine = Engine { topology, host, rank, world, group, ring, memory, breaker: Arc::clone(&breaker), timeout };
    let inner = Inner {
        rank,
        world,
        epoch,
        breaker,
        recorder,
        order: Order::default(),
        engine: Mutex::new(engine),
        segments: Mutex::default(),
    };
    Ok(Communicator { inner: Arc::new(inner), background: Mutex::new(None), _monitor: monitor })
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
