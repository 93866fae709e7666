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
use crate::transport::shm::{Group, Incoming, Outgoing, ReductionBuffers, Wide};
use crate::transport::stream::{Interruption, Stream};
use crate::transport::tcp::{Members, Network};

/// Bytes of a rank's window: small enough that the windows of a few ranks stay in cache, and larger where each turn
/// also costs a passage between hosts.
pub(crate) const WINDOW: usize = 64 << 10;
pub(crate) const WINDOW_BETWEEN_HOSTS: usize = 1 << 20;

/// Bytes that go through a host's leader at a time.
const BROADCAST_PIECE: usize = 4 << 20;

/// Bytes of a window for each rank of the host, at least.
pub(crate) const PART: usize = 1 << 10;

pub(crate) struct Engine {
    pub(crate) topology: Topology,
    /// This host's place among the hosts.
    pub(crate) host: usize,
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) group: Option<Group>,
    /// Connections to other hosts, where there are any.
    pub(crate) network: Option<Network>,
    /// The leaders of all hosts, if this rank is one of them.
    pub(crate) leaders: Option<Members>,
    pub(crate) everybody: Members,
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

/// Ranges that move between pairs of ranks, named by rank. Both ends of a pair name ranges of one length.
pub(crate) struct Exchange<'a> {
    pub(crate) input: Data<'a>,
    pub(crate) send: &'a dyn Fn(usize) -> Range<usize>,
    pub(crate) output: DataMut<'a>,
    pub(crate) receive: &'a dyn Fn(usize) -> Range<usize>,
    /// Whether this rank and another have anything to say to each other; the same at both.
    pub(crate) talks: &'a dyn Fn(usize) -> bool,
}

impl Engine {
    /// The next operation of the whole world, as this rank calls it.
    pub(crate) fn call(&mut self, kind: Kind, dtype: DType, count: usize) -> Call {
        let sequence = self.operations;
        self.operations += 1;
        Call { sequence, kind, dtype, count: count as u64 }
    }

    /// A message to rank `to`, as this rank calls it.
    pub(crate) fn outgoing<'a>(&mut self, to: usize, data: Data<'a>) -> (usize, Call, Data<'a>) {
        (to, self.message_call(self.rank, to, data.dtype(), data.count()), data)
    }

    /// A message from rank `from`.
    pub(crate) fn incoming<'a>(&mut self, from: usize, data: DataMut<'a>) -> (usize, Call, DataMut<'a>) {
        (from, self.message_call(from, self.rank, data.dtype(), data.count()), data)
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
        output: DataMut<'_>,
        op: ReduceOp,
        located: &Located,
        root: Option<usize>,
    ) -> Result<(), Error> {
        let divisor = self.divisor(op);
        let receives = root.is_none_or(|root| root == self.rank);
        let spans = self.topology.spans_hosts();
        let Some(group) = &mut self.group else {
            return self.reduce_alone(call, ReductionBuffers { input, output }, op, root);
        };
        if !spans {
            let located = located.as_ref().map(|(segment, location)| (segment, *location));
            let root = root.map(|root| self.topology.place(root).1);
            return group.reduce(call, ReductionBuffers { input, output }, op, divisor, located, root);
        }
        let mut wide = self
            .network
            .as_mut()
            .zip(self.leaders.as_ref())
            .map(|(network, leaders)| |data: DataMut<'_>| network.all_reduce(leaders, call, data, op, divisor));
        let wide = wide.as_mut().map(|wide| wide as Wide<'_>);
        group.reduce_wide(call, ReductionBuffers { input, output }, op, receives, wide)
    }

    /// The part of a rank that is the only one of its host.
    fn reduce_alone(
        &mut self,
        call: &Call,
        buffers: ReductionBuffers<'_>,
        op: ReduceOp,
        root: Option<usize>,
    ) -> Result<(), Error> {
        let divisor = self.divisor(op);
        let ReductionBuffers { input, mut output } = buffers;
        let receives = root.is_none_or(|root| root == self.rank);
        let (Some(network), Some(leaders)) = (&mut self.network, &self.leaders) else {
            output.take_from(&input);
            return Ok(());
        };
        if !self.topology.shares_memory() {
            return match root {
                Some(root) => {
                    let output = receives.then_some(output);
                    network.reduce(&self.everybody, call, input, output, op, divisor, root)
                }
                None => {
                    output.take_from(&input);
                    network.all_reduce(&self.everybody, call, output, op, divisor)
                }
            };
        }
        let mut scratch = Vec::new();
        let mut target = if receives {
            output.reborrow()
        } else {
            scratch.resize(input.byte_len().div_ceil(8), 0u64);
            DataMut::over(input.dtype(), &mut scratch, input.count())
        };
        target.take_from(&input);
        // Where other hosts go turn by turn, so does this one; and their leaders have 16-bit floats in f32.
        let wire = if input.dtype().is_half() { DType::F32 } else { input.dtype() };
        let per_turn = WINDOW_BETWEEN_HOSTS / wire.size();
        for turn in 0..input.count().div_ceil(per_turn).max(1) {
            let start = turn * per_turn;
            let data = target.range(start, per_turn.min(input.count() - start));
            network.in_full_width(data, |network, data| network.all_reduce(leaders, call, data, op, divisor))?;
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
        if self.topology.spans_hosts() && self.topology.shares_memory() {
            // A piece at a time: members of a host wait for their leader no longer than a piece takes between hosts.
            let per_piece = BROADCAST_PIECE / data.dtype().size();
            for piece in 0..data.count().div_ceil(per_piece).max(1) {
                let start = piece * per_piece;
                let length = per_piece.min(data.count() - start);
                self.broadcast_piece(call, data.range(start, length), root, &None)?;
            }
            return Ok(());
        }
        self.broadcast_piece(call, data, root, located)
    }

    fn broadcast_piece(
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
        if let (Some(network), Some(leaders)) = (&mut self.network, &self.leaders) {
            network.broadcast(leaders, call, data.reborrow(), root_host)?;
        }
        if let Some(group) = &mut self.group
            && root_host != self.host
        {
            group.broadcast(call, data, 0, located)?;
        }
        Ok(())
    }

    pub(crate) fn barrier(&mut self, call: &Call) -> Result<(), Error> {
        let mut wide = self
            .network
            .as_mut()
            .zip(self.leaders.as_ref())
            .map(|(network, leaders)| |_: DataMut<'_>| network.barrier(leaders, call));
        match &mut self.group {
            Some(group) => {
                let wide = wide.as_mut().map(|wide| wide as Wide<'_>);
                group.barrier(call, wide)
            }
            None => wide.map_or(Ok(()), |mut wide| wide(DataMut::from(&mut [] as &mut [u8]))),
        }
    }

    /// `input` may be this rank's part of `output`.
    pub(crate) fn all_gather(&mut self, call: &Call, input: Data<'_>, output: DataMut<'_>) -> Result<(), Error> {
        let count = input.count();
        match (&mut self.group, &mut self.network) {
            (Some(group), None) => group.all_gather(call, input, output, true),
            (None, Some(network)) if !self.topology.shares_memory() => {
                network.all_gather(&self.everybody, call, input, output)
            }
            _ => {
                let send = |_: usize| 0..count;
                let receive = |from: usize| from * count..(from + 1) * count;
                let exchange = Exchange { input, send: &send, output, receive: &receive, talks: &|_| true };
                self.exchange(call, exchange, count)
            }
        }
    }

    /// `output` may be this rank's part of `input`, of which the other parts stay as they are.
    pub(crate) fn reduce_scatter(
        &mut self,
        call: &Call,
        input: Data<'_>,
        output: DataMut<'_>,
        op: ReduceOp,
    ) -> Result<(), Error> {
        let divisor = self.divisor(op);
        match (&mut self.group, &mut self.network) {
            (Some(group), None) => group.reduce_scatter(call, input, output, op, divisor),
            (None, Some(network)) if !self.topology.shares_memory() => {
                network.reduce_scatter(&self.everybody, call, input, output, op, divisor)
            }
            _ => self.reduce_scatter_wide(call, input, output, op),
        }
    }

    /// Slice by slice of all parts: each is reduced on each host, then completed for each host by its leader, which
    /// gets no more over the network than its host's ranks are given, from each of the other hosts.
    fn reduce_scatter_wide(
        &mut self,
        call: &Call,
        input: Data<'_>,
        mut output: DataMut<'_>,
        op: ReduceOp,
    ) -> Result<(), Error> {
        let (divisor, world, count, host) = (self.divisor(op), self.world, output.count(), self.host);
        // By host, so that what a leader completes lies in one piece.
        let order: Vec<usize> = self.topology.groups.iter().flatten().copied().collect();
        let first: Vec<usize> = self
            .topology
            .groups
            .iter()
            .scan(0, |first, group| {
                *first += group.len();
                Some(*first - group.len())
            })
            .chain([world])
            .collect();
        let own = first[host] + self.topology.place(self.rank).1;
        // 16-bit floats are f32 between hosts, as in any reduction of several hosts.
        let wire = if input.dtype().is_half() { DType::F32 } else { input.dtype() };
        let per_slice = (WINDOW_BETWEEN_HOSTS / wire.size() / world).max(1);
        let mut wide = self.network.as_mut().zip(self.leaders.as_ref()).map(|(network, leaders)| {
            |data: DataMut<'_>| {
                let slice = data.count() / world;
                let range = |host: usize| first[host] * slice..first[host + 1] * slice;
                network.in_full_width(data, |network, data| {
                    network.reduce_scatter_uneven(leaders, call, data, &range, op, divisor)
                })
            }
        });
        if let Some(group) = &mut self.group {
            let wide = wide.as_mut().map(|wide| wide as Wide<'_>);
            return group.reduce_scatter_wide(
                call,
                ReductionBuffers { input, output },
                op,
                &order,
                own,
                per_slice,
                wide,
            );
        }
        let Some(wide) = &mut wide else {
            // Alone in the world.
            output.take_from(&input);
            return Ok(());
        };
        let mut memory = vec![0u64; (world * per_slice.min(count) * input.dtype().size()).div_ceil(8)];
        for turn in 0..count.div_ceil(per_slice).max(1) {
            let start = turn * per_slice;
            let slice = per_slice.min(count - start);
            let mut data = DataMut::over(input.dtype(), &mut memory, world * slice);
            for (place, rank) in order.iter().enumerate() {
                let given = rank * count + start..rank * count + start + slice;
                copy_range(input, given, data.reborrow(), place * slice..(place + 1) * slice);
            }
            wide(data.reborrow())?;
            let got = own * slice..(own + 1) * slice;
            copy_range(data.as_data(), got, output.reborrow(), start..start + slice);
        }
        Ok(())
    }

    /// Moves ranges between all pairs of ranks: over shared memory between those of this host, over the network to
    /// the others. `longest` is the length of the longest range of all, the same on all ranks.
    pub(crate) fn exchange(&mut self, call: &Call, exchange: Exchange<'_>, longest: usize) -> Result<(), Error> {
        let Exchange { input, send, mut output, receive, talks } = exchange;
        let members = &self.topology.groups[self.host];
        match &mut self.group {
            Some(group) => {
                let (send, receive) = (|to: usize| send(members[to]), |from: usize| receive(members[from]));
                group.exchange(call, input, &send, output.reborrow(), &receive, longest)?;
            }
            None => copy_range(input, send(self.rank), output.reborrow(), receive(self.rank)),
        }
        if let Some(network) = &mut self.network {
            let elsewhere = |rank: &usize| !members.contains(rank) && talks(*rank);
            let partners: Vec<usize> = (0..self.world).filter(elsewhere).collect();
            if !partners.is_empty() {
                network.exchange(&partners, call, input, send, output, receive)?;
            }
        }
        Ok(())
    }

    /// Sends to one rank, receives from one, or both.
    pub(crate) fn message(
        &mut self,
        outgoing: Option<(usize, Call, Data<'_>)>,
        incoming: Option<(usize, Call, DataMut<'_>)>,
    ) -> Result<(), Error> {
        let me = self.rank;
        let here = |rank: usize| Some(self.topology.place(rank)).filter(|(host, _)| *host == self.host);
        let is_local = |rank: Option<usize>| rank.is_none_or(|rank| here(rank).is_some());
        let (to, from) = (outgoing.as_ref().map(|(to, ..)| *to), incoming.as_ref().map(|(from, ..)| *from));
        let place = |rank: usize| here(rank).map_or(0, |(_, place)| place);
        let shared_out = |(to, call, data)| Outgoing { call, to: place(to), data };
        let shared_in = |(from, call, data)| Incoming { call, from: place(from), data };
        if is_local(to) && is_local(from) {
            let (outgoing, incoming) = (outgoing.map(shared_out), incoming.map(shared_in));
            return self.group.as_mut().map_or(Ok(()), |group| group.message(outgoing, incoming));
        }
        let (to_is_here, from_is_here) = (is_local(to), is_local(from));
        if let Some(network) = &mut self.network
            && (to.is_none() || !to_is_here)
            && (from.is_none() || !from_is_here)
        {
            return network.message(outgoing, incoming);
        }
        // One over shared memory and one over the network, one after the other. Of the ranks of any ring one sends to
        // a lower rank, and receives first: so none waits for itself.
        let receives_first = to.is_some_and(|to| to < me);
        let (mut outgoing, mut incoming) = (outgoing, incoming);
        for turn in 0..2 {
            if (turn == 0) == receives_first {
                let Some(incoming) = incoming.take() else { continue };
                match (from_is_here, &mut self.group, &mut self.network) {
                    (true, Some(group), _) => group.message(None, Some(shared_in(incoming)))?,
                    (_, _, Some(network)) => network.message(None, Some(incoming))?,
                    _ => {}
                }
            } else {
                let Some(outgoing) = outgoing.take() else { continue };
                match (to_is_here, &mut self.group, &mut self.network) {
                    (true, Some(group), _) => group.message(Some(shared_out(outgoing)), None)?,
                    (_, _, Some(network)) => network.message(Some(outgoing), None)?,
                    _ => {}
                }
            }
        }
        Ok(())
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
        let len = call.count as usize * call.dtype.size();
        Ok(Arc::new(Segment::new(map, call.sequence, me, len, stride)))
    }
}
