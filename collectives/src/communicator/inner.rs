//! What a communicator shares with the threads that carry out its started operations: each operation waits for its
//! turn here, is recorded, and is handed to the engine.

use std::sync::{Arc, Mutex};

use crate::breaker::Breaker;
use crate::call::{Call, Kind};
use crate::element::{DType, Data, DataMut};
use crate::engine::{Engine, Exchange, Located};
use crate::error::Error;
use crate::flight::Recorder;
use crate::order::{Order, Ticket};
use crate::origin::Origin;
use crate::reduce::ReduceOp;
use crate::segment::Segments;

pub(super) struct Inner {
    pub(super) rank: usize,
    pub(super) world: usize,
    pub(super) epoch: u64,
    pub(super) breaker: Arc<Breaker>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) order: Order,
    pub(super) engine: Mutex<Engine>,
    pub(super) segments: Arc<Segments>,
    pub(super) origin: Origin,
}

impl Inner {
    #[inline]
    pub(super) fn in_order<R>(
        &self,
        ticket: Ticket,
        run: impl FnOnce(&mut Engine) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let _turn = self.order.wait(ticket);
        self.breaker.check()?;
        run(&mut self.engine.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// An operation of the whole world.
    #[inline]
    pub(super) fn run<R>(
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

    #[inline]
    pub(super) fn all_reduce(
        &self,
        ticket: Ticket,
        input: Data<'_>,
        output: DataMut<'_>,
        op: ReduceOp,
    ) -> Result<(), Error> {
        self.run(ticket, Kind::AllReduce(op), input.dtype(), input.count(), |engine, call| {
            let located = self.locate_in_place(engine, &input, &output);
            withdrawing(&located, input.byte_len(), engine.reduce(call, input, output, op, &located, None))
        })
    }

    /// Where a buffer lies that is input and output in one.
    #[inline]
    pub(super) fn locate_in_place(&self, engine: &Engine, input: &Data<'_>, output: &DataMut<'_>) -> Located {
        let bytes = input.byte_len();
        if !engine.reduces_in_place(bytes) || input.pointer() != output.pointer().cast_const() {
            return None;
        }
        self.segments.locate(input.pointer(), bytes)
    }

    pub(super) fn reduce(
        &self,
        ticket: Ticket,
        input: Data<'_>,
        output: DataMut<'_>,
        op: ReduceOp,
        root: u32,
    ) -> Result<(), Error> {
        self.run(ticket, Kind::Reduce { op, root }, input.dtype(), input.count(), |engine, call| {
            let located = self.locate_in_place(engine, &input, &output);
            let root = Some(root as usize);
            withdrawing(&located, input.byte_len(), engine.reduce(call, input, output, op, &located, root))
        })
    }

    pub(super) fn broadcast(&self, ticket: Ticket, data: DataMut<'_>, root: u32) -> Result<(), Error> {
        self.run(ticket, Kind::Broadcast { root }, data.dtype(), data.count(), |engine, call| {
            let bytes = data.byte_len();
            let located = self.segments.locate(data.pointer(), bytes);
            withdrawing(&located, bytes, engine.broadcast(call, data, root as usize, &located))
        })
    }

    pub(super) fn barrier(&self, ticket: Ticket) -> Result<(), Error> {
        self.run(ticket, Kind::Barrier, DType::U8, 0, |engine, call| engine.barrier(call))
    }

    pub(super) fn all_gather(&self, ticket: Ticket, input: Data<'_>, output: DataMut<'_>) -> Result<(), Error> {
        self.run(ticket, Kind::AllGather, input.dtype(), input.count(), |engine, call| {
            engine.all_gather(call, input, output)
        })
    }

    pub(super) fn reduce_scatter(
        &self,
        ticket: Ticket,
        input: Data<'_>,
        output: DataMut<'_>,
        op: ReduceOp,
    ) -> Result<(), Error> {
        self.run(ticket, Kind::ReduceScatter(op), input.dtype(), output.count(), |engine, call| {
            engine.reduce_scatter(call, input, output, op)
        })
    }

    pub(super) fn gather(&self, ticket: Ticket, input: Data<'_>, output: DataMut<'_>, root: u32) -> Result<(), Error> {
        let (count, me) = (input.count(), self.rank);
        self.run(ticket, Kind::Gather { root }, input.dtype(), count, |engine, call| {
            let root = root as usize;
            let send = |to: usize| if to == root { 0..count } else { 0..0 };
            let receive = |from: usize| if me == root { from * count..(from + 1) * count } else { 0..0 };
            let talks = |rank: usize| me == root || rank == root;
            engine.exchange(call, Exchange { input, send: &send, output, receive: &receive, talks: &talks }, count)
        })
    }

    pub(super) fn scatter(&self, ticket: Ticket, input: Data<'_>, output: DataMut<'_>, root: u32) -> Result<(), Error> {
        let (count, me) = (output.count(), self.rank);
        self.run(ticket, Kind::Scatter { root }, output.dtype(), count, |engine, call| {
            let root = root as usize;
            let send = |to: usize| if me == root { to * count..(to + 1) * count } else { 0..0 };
            let receive = |from: usize| if from == root { 0..count } else { 0..0 };
            let talks = |rank: usize| me == root || rank == root;
            engine.exchange(call, Exchange { input, send: &send, output, receive: &receive, talks: &talks }, count)
        })
    }

    pub(super) fn all_to_all(&self, ticket: Ticket, input: Data<'_>, output: DataMut<'_>) -> Result<(), Error> {
        let count = input.count() / self.world;
        self.run(ticket, Kind::AllToAll { uneven: false }, input.dtype(), count, |engine, call| {
            let part = |rank: usize| rank * count..(rank + 1) * count;
            let exchange = Exchange { input, send: &part, output, receive: &part, talks: &|_| true };
            engine.exchange(call, exchange, count)
        })
    }

    pub(super) fn all_to_all_uneven(
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

    pub(super) fn message(
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

/// The result of an operation on a buffer that other ranks may have written to: after a failure they do not any more,
/// however late they are.
fn withdrawing(located: &Located, bytes: usize, result: Result<(), Error>) -> Result<(), Error> {
    if result.is_err()
        && let Some((segment, location)) = located
    {
        // Without memory for that the buffer stays where it is; the operation's error counts for more.
        let _ = segment.withdraw(*location, bytes);
    }
    result
}

/// Where the parts of a buffer begin and end.
struct Offsets(Vec<usize>);

impl Offsets {
    pub(super) fn of(counts: &[usize]) -> Offsets {
        let ends = counts.iter().scan(0, |end, count| {
            *end += count;
            Some(*end)
        });
        Offsets(std::iter::once(0).chain(ends).collect())
    }

    pub(super) fn range(&self, rank: usize) -> std::ops::Range<usize> {
        self.0[rank]..self.0[rank + 1]
    }
}
