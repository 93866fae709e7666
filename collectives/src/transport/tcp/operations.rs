//! Operations over the network: which schedule, and on what memory.

#![allow(unsafe_code)]

use std::ops::Range;

use super::options::Algorithm;
use super::passage::{self, Calls, PassageBuffers};
use super::{Members, Network};
use crate::call::{Call, Kind};
use crate::element::{DType, Data, DataMut};
use crate::error::Error;
use crate::reduce::{ReduceOp, fold_narrow, narrow, widen};
use crate::schedule::{
    Action, Receive, Schedule, Send, chain_broadcast, chain_reduce, dissemination, halving_doubling, pairwise, part,
    ring_all_gather, ring_all_reduce, tree_all_reduce, tree_broadcast, tree_reduce,
};

/// Bytes of a block: successive blocks overlap. Small enough that what comes in is sent on while it is in cache.
const BLOCK: usize = 1 << 20;

/// Bytes of a block that goes down a chain or up it, where a rank passes one on while it receives the next.
const LINK_BLOCK: usize = 256 << 10;

/// Up to as many bytes a tree's few hops count for more than the full rate of a chain.
const TREE: usize = 512 << 10;

/// Inputs of all ranks up to as many bytes are collected before they are combined.
const COLLECTED: usize = 1 << 20;

/// Bytes of 16-bit floats that are reduced at a time, over the parts of all members: what waits to be combined is as
/// much.
const HALVES: usize = 4 << 20;

/// Up to as many ranks everybody sends its part of an all-gather to everybody.
const FEW: usize = 8;

/// More ranks meet along a tree, which takes twice the hops, but three connections a rank at the most: with one for each
/// power of two, 256 ranks of a machine took some 30 ms to make theirs for the first barrier.
const MANY: usize = 32;

impl Network {
    /// Combines the data of all members; all get the result. `divisor` divides each completed value.
    pub(crate) fn all_reduce(
        &mut self,
        members: &Members,
        call: &Call,
        mut data: DataMut<'_>,
        op: ReduceOp,
        divisor: Option<usize>,
    ) -> Result<(), Error> {
        let world = members.ranks.len();
        let algorithm = self.options.algorithm(world, data.byte_len());
        if world == 1 || algorithm == Algorithm::Direct {
            let own = data.as_data();
            let (dtype, count, mine) = (data.dtype(), data.count(), own.pointer());
            // SAFETY: inputs and output are the caller's one buffer, exactly.
            return unsafe {
                self.collect(members, call, dtype, mine, |_| 0..count, data.pointer(), count, op, divisor)
            };
        }
        if data.dtype().is_half() && algorithm != Algorithm::Tree {
            return self.reduce_halves(members, call, data, op, divisor);
        }
        let steps = |range: Range<usize>| match algorithm {
            Algorithm::Ring => ring_all_reduce(members.me, world, range),
            Algorithm::Tree => tree_all_reduce(members.me, world, range),
            Algorithm::RecursiveHalvingDoubling | Algorithm::Direct => halving_doubling(members.me, world, range),
        };
        let schedule = Schedule::pipelined(data.count(), BLOCK / DType::F32.size(), steps);
        let compressed = self.compresses(call);
        self.in_full_width(data.reborrow(), |network, data| {
            let buffers = PassageBuffers { op, divisor, compressed, ..in_place(&data) };
            network.pass(call, &members.ranks, &schedule, &buffers)
        })
    }

    /// Combines the inputs of all members; the member at `root` gets the result.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn reduce(
        &mut self,
        members: &Members,
        call: &Call,
        input: Data<'_>,
        output: Option<DataMut<'_>>,
        op: ReduceOp,
        divisor: Option<usize>,
        root: usize,
    ) -> Result<(), Error> {
        let world = members.ranks.len();
        let steps = |range: Range<usize>| match input.byte_len() <= TREE {
            true => tree_reduce(members.me, world, root, range),
            false => chain_reduce(members.me, world, root, range),
        };
        let schedule = Schedule::pipelined(input.count(), LINK_BLOCK / DType::F32.size(), steps);
        let mut memory = Vec::new();
        let data = match output {
            Some(output) => output,
            None => {
                memory.resize(input.byte_len().div_ceil(8), 0u64);
                DataMut::over(input.dtype(), &mut memory, input.count())
            }
        };
        assert_eq!((data.dtype(), data.count()), (input.dtype(), input.count()), "input and output are alike");
        // SAFETY: both have as many bytes, and are one buffer or two.
        unsafe { copy(input.pointer(), data.pointer(), input.byte_len()) };
        if world == 1 {
            return self.all_reduce(members, call, data, op, divisor);
        }
        let compressed = self.compresses(call);
        self.in_full_width(data, |network, data| {
            let buffers = PassageBuffers { op, divisor, compressed, ..in_place(&data) };
            network.pass(call, &members.ranks, &schedule, &buffers)
        })
    }

    /// Combines the inputs of all members, each of as many equal parts as there are members; each gets its part. The
    /// output may be this member's part of the input.
    pub(crate) fn reduce_scatter(
        &mut self,
        members: &Members,
        call: &Call,
        input: Data<'_>,
        mut output: DataMut<'_>,
        op: ReduceOp,
        divisor: Option<usize>,
    ) -> Result<(), Error> {
        let (world, me, count) = (members.ranks.len(), members.me, output.count());
        let part = |member: usize| member * count..(member + 1) * count;
        if world == 1 || input.dtype().is_half() || input.byte_len() <= COLLECTED {
            let (dtype, mine) = (input.dtype(), input.pointer());
            // What waits to be combined is a slice of each part at a time.
            let slice = (HALVES / dtype.size() / world).max(1);
            for start in (0..count.max(1)).step_by(slice) {
                let length = slice.min(count - start);
                let at = |member: usize| part(member).start + start..part(member).start + start + length;
                let target = output.at(start);
                // SAFETY: the input has a part for every member, of which these are slices; the output, of one part,
                // is the own one or another buffer, and its slice is at the same place of it.
                unsafe { self.collect(members, call, dtype, mine, at, target, length, op, divisor)? };
            }
            return Ok(());
        }
        // SAFETY: the own part of the input and the output have `count` elements of one dtype, and are the same memory
        // or do not overlap.
        unsafe { copy(input.part(&part(me)), output.pointer(), output.byte_len()) };
        let last = (me + 1) % world;
        let action = |from: usize| if from == last { Action::Finish } else { Action::Reduce };
        let schedule = pairwise(me, world, part, |from| (0..count, action(from)));
        let buffers = PassageBuffers { op, divisor, source: input.pointer(), ..in_place(&output.reborrow()) };
        self.pass(call, &members.ranks, &schedule, &buffers)
    }

    /// Combines the data of all members in ranges of any length, of which each member gets its own in place; what the
    /// other ranges then hold is of no use. The ranges lie one after the other.
    pub(crate) fn reduce_scatter_uneven(
        &mut self,
        members: &Members,
        call: &Call,
        data: DataMut<'_>,
        range: &dyn Fn(usize) -> Range<usize>,
        op: ReduceOp,
        divisor: Option<usize>,
    ) -> Result<(), Error> {
        let own = range(members.me);
        let (input, output) = (data.pointer(), data.part(&own));
        // Panics for a range beyond the data.
        for member in 0..members.ranks.len() {
            let _ = data.part(&range(member));
        }
        // SAFETY: the ranges lie within the data, and the output is the own one.
        unsafe { self.collect(members, call, data.dtype(), input, range, output, own.len(), op, divisor) }
    }

    /// Puts the inputs of all members one after the other. The input may be this member's part of the output.
    pub(crate) fn all_gather(
        &mut self,
        members: &Members,
        call: &Call,
        input: Data<'_>,
        output: DataMut<'_>,
    ) -> Result<(), Error> {
        let (world, me, count) = (members.ranks.len(), members.me, input.count());
        let part = |member: usize| member * count..(member + 1) * count;
        // SAFETY: the part of the output has `count` elements, and is the input itself or does not overlap it.
        unsafe { copy(input.pointer(), output.part(&part(me)), input.byte_len()) };
        if world == 1 {
            return Ok(());
        }
        let schedule = match world <= FEW {
            true => pairwise(me, world, |_| part(me), |from| (part(from), Action::Replace)),
            false => ring_all_gather(me, world, output.count()),
        };
        self.pass(call, &members.ranks, &schedule, &in_place(&output))
    }

    /// Copies the data of the member at `root` to all others.
    pub(crate) fn broadcast(
        &mut self,
        members: &Members,
        call: &Call,
        data: DataMut<'_>,
        root: usize,
    ) -> Result<(), Error> {
        let (world, me) = (members.ranks.len(), members.me);
        if world == 1 {
            return Ok(());
        }
        let steps = |range: Range<usize>| match data.byte_len() <= TREE {
            true => tree_broadcast(me, world, root, range),
            false => chain_broadcast(me, world, root, range),
        };
        let schedule = Schedule::pipelined(data.count(), LINK_BLOCK / data.dtype().size(), steps);
        self.pass(call, &members.ranks, &schedule, &in_place(&data))
    }

    /// Returns when every member has called it.
    pub(crate) fn barrier(&mut self, members: &Members, call: &Call) -> Result<(), Error> {
        let (me, world) = (members.me, members.ranks.len());
        let schedule = match world <= MANY {
            true => dissemination(me, world),
            false => Schedule::of_blocks(&[tree_all_reduce(me, world, 0..0)]),
        };
        self.pass(call, &members.ranks, &schedule, &in_place(&DataMut::from(&mut [] as &mut [u8])))
    }

    /// Sends to each of `partners`, world ranks, the range of the input that `send` gives for it, and receives from
    /// each the range of the output that `receive` gives. Either may be empty; both ends know how long they are.
    pub(crate) fn exchange(
        &mut self,
        partners: &[usize],
        call: &Call,
        input: Data<'_>,
        send: &dyn Fn(usize) -> Range<usize>,
        output: DataMut<'_>,
        receive: &dyn Fn(usize) -> Range<usize>,
    ) -> Result<(), Error> {
        let (world, me) = (self.links.world(), self.links.rank());
        // By rounds, as in any pairwise exchange, also where other ranks have other partners.
        let mut partners: Vec<usize> = partners.iter().copied().filter(|partner| *partner != me).collect();
        partners.sort_unstable_by_key(|partner| (partner + world - me) % world);
        let sends = partners.iter().enumerate().map(|(to, partner)| Send { to, range: send(*partner), after: 0 });
        let receives = partners.iter().enumerate().rev().map(|(from, partner)| Receive {
            from,
            range: receive(*partner),
            action: Action::Replace,
        });
        let schedule = Schedule { sends: sends.collect(), receives: receives.collect() };
        // Ranges come from the caller here; this panics for one beyond its buffer.
        for send in &schedule.sends {
            let _ = input.part(&send.range);
        }
        for receive in &schedule.receives {
            let _ = output.part(&receive.range);
        }
        self.pass(call, &partners, &schedule, &PassageBuffers { source: input.pointer(), ..in_place(&output) })
    }

    /// Sends to one world rank, receives from one, or both at the same time. Returns when what is received is there
    /// and what is sent is on its way: where it is much, not before it is received.
    pub(crate) fn message(
        &mut self,
        outgoing: Option<(usize, Call, Data<'_>)>,
        incoming: Option<(usize, Call, DataMut<'_>)>,
    ) -> Result<(), Error> {
        let mut ranks: Vec<usize> = Vec::with_capacity(2);
        let mut schedule = Schedule::default();
        // The two may be of different dtypes, so ranges are of bytes.
        let mut buffers = PassageBuffers { one_way: true, ..in_place(&DataMut::none(DType::U8)) };
        if let Some((to, _, data)) = &outgoing {
            ranks.push(*to);
            schedule.sends.push(Send { to: 0, range: 0..data.byte_len(), after: 0 });
            buffers.source = data.pointer();
        }
        if let Some((from, _, data)) = &incoming {
            let known = ranks.iter().position(|rank| rank == from);
            let from = known.unwrap_or_else(|| {
                ranks.push(*from);
                ranks.len() - 1
            });
            schedule.receives.push(Receive { from, range: 0..data.byte_len(), action: Action::Replace });
            buffers.target = data.pointer();
        }
        let (sent, received) = (outgoing.map(|(_, call, _)| call), incoming.map(|(_, call, _)| call));
        let Some(calls) = sent
            .or(received)
            .map(|either| Calls { sent: sent.unwrap_or(either), received: received.unwrap_or(either) })
        else {
            return Ok(());
        };
        self.pass_calls(&calls, &ranks, &schedule, &buffers)
    }

    /// Every member sends each of the others the range of its input that is for it; what comes is combined in the
    /// order of members, whatever came first. 16-bit floats travel as they are and are rounded once.
    ///
    /// # Safety
    /// The ranges lie within `input`. This member's own has `count` elements, as `output` has, which is that range
    /// exactly, or disjoint from `input`; both are aligned. Nobody else writes to `input` or touches `output`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn collect(
        &mut self,
        members: &Members,
        call: &Call,
        dtype: DType,
        input: *const u8,
        range: impl Fn(usize) -> Range<usize>,
        output: *mut u8,
        count: usize,
        op: ReduceOp,
        divisor: Option<usize>,
    ) -> Result<(), Error> {
        let (world, me) = (members.ranks.len(), members.me);
        let mut workspace = std::mem::take(&mut self.workspace);
        // Each slot begins at a word.
        let words = (count * dtype.size()).div_ceil(8);
        let slot = words * 8 / dtype.size();
        if world > 1 && workspace.len() < world * words {
            workspace.resize(world * words, 0);
        }
        let target = workspace.as_mut_ptr().cast::<u8>();
        if world > 1 {
            let schedule = pairwise(me, world, &range, |from| (from * slot..from * slot + count, Action::Replace));
            let buffers = PassageBuffers {
                dtype,
                source: input,
                target,
                op,
                divisor: None,
                private: true,
                compressed: false,
                one_way: false,
            };
            self.pass(call, &members.ranks, &schedule, &buffers)?;
        }
        let sources: Vec<*const u8> = (0..world)
            .map(|member| match member == me {
                // SAFETY: the range lies within the input.
                true => unsafe { input.add(range(me).start * dtype.size()) },
                // SAFETY: the workspace has a slot for every member, where there are others.
                false => unsafe { target.add(member * words * 8).cast_const() },
            })
            .collect();
        // SAFETY: all have `count` elements, aligned; slots are disjoint from input and output. Where the
        // output is of the input, it is the own range, so this source exactly.
        unsafe { fold_narrow(dtype, op, divisor, &sources, &[output], count) };
        if workspace.len() * 8 <= 2 * HALVES {
            self.workspace = workspace;
        }
        Ok(())
    }

    /// An all-reduce of 16-bit floats that travel as such: every part goes straight from all to the member that
    /// completes it, and from there to all. Bytes as around a ring, in 16 bits; partial sums that are passed on would
    /// have to be f32, or be rounded each time.
    fn reduce_halves(
        &mut self,
        members: &Members,
        call: &Call,
        mut data: DataMut<'_>,
        op: ReduceOp,
        divisor: Option<usize>,
    ) -> Result<(), Error> {
        let (world, me) = (members.ranks.len(), members.me);
        let (count, dtype) = (data.count(), data.dtype());
        let block = HALVES / dtype.size();
        for start in (0..count.max(1)).step_by(block) {
            let mut block = data.range(start, block.min(count - start));
            let at = |member: usize| part(block.count(), world, member);
            let (input, output) = (block.pointer(), block.part(&at(me)));
            // SAFETY: the parts lie within the block, and the output is the own one.
            unsafe { self.collect(members, call, dtype, input, at, output, at(me).len(), op, divisor)? };
            let schedule = match world <= FEW {
                true => pairwise(me, world, |_| at(me), |from| (at(from), Action::Replace)),
                false => ring_all_gather(me, world, block.count()),
            };
            self.pass(call, &members.ranks, &schedule, &in_place(&block.reborrow()))?;
        }
        Ok(())
    }

    /// Only what the caller gave as f32 and asked to have reduced: sums of 16-bit floats, which come as f32 from hosts
    /// of several ranks, are rounded once, at the end.
    fn compresses(&self, call: &Call) -> bool {
        let reduces = matches!(call.kind, Kind::AllReduce(_) | Kind::Reduce { .. });
        call.dtype == DType::F32 && reduces && self.options.compression.is_some()
    }

    /// Lets `operation` work on f32 in place of 16-bit floats, which are rounded once at the end.
    pub(crate) fn in_full_width(
        &mut self,
        mut data: DataMut<'_>,
        operation: impl FnOnce(&mut Network, DataMut<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (dtype, count) = (data.dtype(), data.count());
        if !dtype.is_half() {
            return operation(self, data.reborrow());
        }
        let mut wide = vec![0f32; count];
        let mut wide = DataMut::from(&mut wide);
        // SAFETY: two buffers of equal count, one of 16-bit floats and one of f32, both borrowed exclusively.
        unsafe { widen(dtype, data.pointer(), wide.pointer(), count) };
        operation(self, wide.reborrow())?;
        // SAFETY: as above.
        unsafe { narrow(dtype, wide.pointer(), data.pointer(), count) };
        Ok(())
    }

    /// One passage. The ranges of `schedule` lie within the buffers, by how the operations above make them.
    fn pass(
        &mut self,
        call: &Call,
        ranks: &[usize],
        schedule: &Schedule,
        buffers: &PassageBuffers,
    ) -> Result<(), Error> {
        self.pass_calls(&Calls { sent: *call, received: *call }, ranks, schedule, buffers)
    }

    /// [`Network::pass`] where what is received belongs to another call than what is sent.
    fn pass_calls(
        &mut self,
        calls: &Calls,
        ranks: &[usize],
        schedule: &Schedule,
        buffers: &PassageBuffers,
    ) -> Result<(), Error> {
        // SAFETY: the operations borrow the buffers for their length, and make schedules for the buffers' counts.
        unsafe { passage::run(&mut self.links, &mut self.scratch, &self.options, calls, ranks, schedule, buffers) }
    }
}

/// A passage that sends from `data` and receives into it.
fn in_place(data: &DataMut<'_>) -> PassageBuffers {
    PassageBuffers {
        dtype: data.dtype(),
        source: data.pointer(),
        target: data.pointer(),
        op: ReduceOp::Sum,
        divisor: None,
        private: false,
        compressed: false,
        one_way: false,
    }
}

/// Copies, unless it is the same memory.
///
/// # Safety
/// Both have `length` bytes; they are the same or do not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    if !std::ptr::eq(from, to) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, to, length) };
    }
}
