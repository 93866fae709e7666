//! What only the operation whose turn it is may touch, and how operations are made of their parts: among the ranks of
//! each host over shared memory, among the hosts' leaders over TCP, and on the host again. A host with one rank takes
//! part by that rank alone.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::breaker::Breaker;
use crate::call::{Call, Kind, Location};
use crate::config::Topology;
use crate::element::{DType, Data, DataMut, copy_range};
use crate::error::Error;
use crate::reduce::ReduceOp;
use crate::segment::Segment;
use crate::transport::memory;
use crate::transport::shm::{Buffers, Group, Incoming, Outgoing};
use crate::transport::stream::{Interruption, Stream};
use crate::transport::tcp::Ring;

/// Bytes of a rank's window: small enough that the windows of a few ranks stay in cache, and larger where each turn
/// also costs a passage between hosts.
pub(crate) const WINDOW: usize = 256 << 10;
pub(crate) const WINDOW_BETWEEN_HOSTS: usize = 1 << 20;

pub(crate) struct Engine {
    pub(crate) topology: Topology,
    /// This host's place among the hosts.
    pub(crate) host: usize,
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) group: Option<Group>,
    pub(crate) ring: Option<Ring>,
    /// For file descriptors: the leader's to its members, or a member's to its leader.
    pub(crate) memory: Vec<Stream>,
    pub(crate) breaker: Arc<Breaker>,
    pub(crate) timeout: Duration,
    /// Operations of the whole world so far.
    pub(crate) operations: u64,
    /// Messages so far, by sender and receiver.
    pub(crate) messages: BTreeMap<(usize, usize), u64>,
}

pub(crate) type Located = Option<(Arc<Segment>, Location)>;

impl Engine {
    /// The next operation of the whole world, as this rank calls it.
    pub(crate) fn call(&mut self, kind: Kind, dtype: DType, count: usize) -> Call {
        let sequence = self.operations;
        self.operations += 1;
        Call { sequence, kind, dtype, count: count as u64 }
    }

    fn message_call(&mut self, from: usize, to: usize, dtype: DType, count: usize) -> Call {
        let next = self.messages.entry((from, to)).or_default();
        let sequence = *next;
        *next += 1;
        Call { sequence, kind: Kind::Message { from: from as u32 }, dtype, count: count as u64 }
    }

    /// Whether an operation on this many bytes profits from where they lie.
    pub(crate) fn reduces_in_place(&self, bytes: usize) -> bool {
        self.group.as_ref().is_some_and(|group| !self.topology.spans_hosts() && group.reduces_in_place(bytes))
    }

    fn divisor(&self, op: ReduceOp) -> Option<usize> {
        (op == ReduceOp::Mean).then_some(self.world)
    }

    /// Reduces the inputs of all ranks into the outputs of all, or of one. Input and output may be one buffer.
    pub(crate) fn reduce(
        &mut self,
        call: &Call,
        input: Data<'_>,
        mut output: DataMut<'_>,
        op: ReduceOp,
        located: &Located,
        root: Option<usize>,
    ) -> Result<(), Error> {
        let divisor = self.divisor(op);
        let receives = root.is_none_or(|root| root == self.rank);
        let spans = self.topology.spans_hosts();
        let Some(group) = &mut self.group else {
            return self.reduce_alone(call, input, output, op, receives);
        };
        if !spans {
            let located = located.as_ref().map(|(segment, location)| (segment, *location));
            let root = root.map(|root| self.topology.place(root).1);
            return group.reduce(call, Buffers { input, output }, op, divisor, located, root);
        }
        let mut wide = self.ring.as_mut().map(|ring| |data: DataMut<'_>| ring.all_reduce(call, data, op, divisor));
        let wide = wide.as_mut().map(|wide| wide as &mut dyn FnMut(DataMut<'_>) -> Result<(), Error>);
        group.reduce_wide(call, input, output.reborrow(), op, receives, wide)
    }

    /// The part of a rank that is the only one of its host.
    fn reduce_alone(
        &mut self,
        call: &Call,
        input: Data<'_>,
        mut output: DataMut<'_>,
        op: ReduceOp,
        receives: bool,
    ) -> Result<(), Error> {
        let divisor = self.divisor(op);
        let mut scratch = Vec::new();
        let mut target = if receives {
            output.reborrow()
        } else {
            scratch.resize(input.byte_len().div_ceil(8), 0u64);
            DataMut::over(input.dtype(), &mut scratch, input.count())
        };
        target.take_from(&input);
        let Some(ring) = &mut self.ring else { return Ok(()) };
        // Where other hosts go turn by turn, so does this one.
        let wire = if input.dtype().is_half() { DType::F32 } else { input.dtype() };
        let per_turn =
            if self.topology.shares_memory() { WINDOW_BETWEEN_HOSTS / wire.size() } else { input.count().max(1) };
        for turn in 0..input.count().div_ceil(per_turn).max(1) {
            let start = turn * per_turn;
            let length = per_turn.min(input.count() - start);
            ring.all_reduce(call, target.range(start, length), op, divisor)?;
        }
        Ok(())
    }

    pub(crate) fn broadcast(
        &mut self,
        call: &Call,
        mut data: DataMut<'_>,
        root: usize,
        located: &Located,
    ) -> Result<(), Error> {
        let (root_host, root_place) = self.topology.place(root);
        let located = located.as_ref().map(|(segment, location)| (segment, *location));
        if let Some(group) = &mut self.group
            && root_host == self.host
        {
            group.broadcast(call, data.reborrow(), root_place, located)?;
        }
        if let Some(ring) = &mut self.ring {
            ring.broadcast(call, data.reborrow(), root_host)?;
        }
        if let Some(group) = &mut self.group
            && root_host != self.host
        {
            group.broadcast(call, data, 0, located)?;
        }
        Ok(())
    }

    pub(crate) fn barrier(&mut self, call: &Call) -> Result<(), Error> {
        let mut wide = self.ring.as_mut().map(|ring| |_: DataMut<'_>| ring.barrier(call));
        match &mut self.group {
            Some(group) => {
                let wide = wide.as_mut().map(|wide| wide as &mut dyn FnMut(DataMut<'_>) -> Result<(), Error>);
                group.barrier(call, wide)
            }
            None => wide.map_or(Ok(()), |mut wide| wide(DataMut::from(&mut [] as &mut [u8]))),
        }
    }

    /// `input` may be this rank's part of `output`.
    pub(crate) fn all_gather(&mut self, call: &Call, input: Data<'_>, output: DataMut<'_>) -> Result<(), Error> {
        let count = input.count();
        if !self.topology.spans_hosts()
            && let Some(group) = &mut self.group
        {
            return group.all_gather(call, input, output, true);
        }
        let mut output = output;
        output.range(self.rank * count, count).take_from(&input);
        for root in 0..self.world {
            self.broadcast(call, output.range(root * count, count), root, &None)?;
        }
        Ok(())
    }

    fn only_on_one_host(&self, name: &str) -> Result<(), Error> {
        match self.topology.spans_hosts() {
            true => Err(Error::Argument(format!("{name} between hosts is not there yet"))),
            false => Ok(()),
        }
    }

    /// `output` may be this rank's part of `input`, which is read no more then.
    pub(crate) fn reduce_scatter(
        &mut self,
        call: &Call,
        input: Data<'_>,
        mut output: DataMut<'_>,
        op: ReduceOp,
    ) -> Result<(), Error> {
        let divisor = self.divisor(op);
        if !self.topology.spans_hosts()
            && let Some(group) = &mut self.group
        {
            return group.reduce_scatter(call, input, output, op, divisor);
        }
        // Words of u64 are aligned for every dtype.
        let mut whole = vec![0u64; input.byte_len().div_ceil(8)];
        let mut whole = DataMut::over(input.dtype(), &mut whole, input.count());
        self.reduce(call, input, whole.reborrow(), op, &None, None)?;
        output.take_from(&whole.range(self.rank * output.count(), output.count()).as_data());
        Ok(())
    }

    /// Moves ranges between all pairs of ranks, named by rank; see [`Group::exchange`].
    pub(crate) fn exchange(
        &mut self,
        call: &Call,
        input: Data<'_>,
        send: &dyn Fn(usize) -> Range<usize>,
        output: DataMut<'_>,
        receive: &dyn Fn(usize) -> Range<usize>,
        longest: usize,
    ) -> Result<(), Error> {
        self.only_on_one_host("an exchange")?;
        let members = &self.topology.groups[self.host];
        match &mut self.group {
            Some(group) => {
                let (send, receive) = (|to: usize| send(members[to]), |from: usize| receive(members[from]));
                group.exchange(call, input, &send, output, &receive, longest)?;
            }
            None => {
                let (own, mine) = (send(self.rank), receive(self.rank));
                copy_range(input, own, output, mine);
            }
        }
        Ok(())
    }

    /// Sends to one rank, receives from one, or both at a time.
    pub(crate) fn message(
        &mut self,
        outgoing: Option<(usize, Data<'_>)>,
        incoming: Option<(usize, DataMut<'_>)>,
    ) -> Result<(), Error> {
        self.only_on_one_host("a message")?;
        let me = self.rank;
        let outgoing = outgoing.map(|(to, data)| (to, self.message_call(me, to, data.dtype(), data.count()), data));
        let incoming =
            incoming.map(|(from, data)| (from, self.message_call(from, me, data.dtype(), data.count()), data));
        let place = |rank: usize| self.topology.place(rank);
        let outgoing = outgoing.map(|(to, call, data)| Outgoing { call, to: place(to).1, data });
        let incoming = incoming.map(|(from, call, data)| Incoming { call, from: place(from).1, data });
        match &mut self.group {
            Some(group) => group.message(outgoing, incoming),
            None => Ok(()),
        }
    }

    pub(crate) fn allocate(&mut self, call: &Call, stride: usize) -> Result<Arc<Segment>, Error> {
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
