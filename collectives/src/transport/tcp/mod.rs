//! The ring of hosts: each leader has a connection to the next and one from the previous, and carries schedules out
//! over them.
//!
//! Before its data every passage sends its call, so neighbours that disagree find out before they touch a buffer.
//! Lengths are never read from the wire: they follow from the call that both ends have.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use crate::breaker::{Breaker, GRACE};
use crate::call::{CALL_BYTES, Call};
use crate::element::{DType, DataMut};
use crate::error::{Error, LossCause};
use crate::monitor::ControlLink;
use crate::reduce::{ReduceOp, fold, narrow, widen};
use crate::schedule::{Action, Step, chain_broadcast, ring_all_reduce};
use crate::transport::connect::{Identity, accept, dial};
use crate::transport::handshake::Purpose;
use crate::transport::stream::{Interruption, Stream, wait};

/// Bytes reduced or passed on at a time. A multiple of every element's size.
const SEGMENT: usize = 256 << 10;

/// Precedes the data of every passage: the call, and the how many-eth passage of this ring it is.
const HEADER: usize = CALL_BYTES + 8;

pub(crate) struct Ring {
    me: usize,
    size: usize,
    next: Stream,
    next_rank: usize,
    previous: Stream,
    previous_rank: usize,
    passages: u64,
    /// Received bytes that wait to be reduced; u64 for their alignment.
    incoming: Vec<u64>,
    breaker: Arc<Breaker>,
    timeout: Duration,
}

/// Connects the ring of `leaders`; gives it with the control connections to both neighbours.
pub(crate) fn connect(
    identity: &Identity,
    leaders: &[(u32, SocketAddr)],
    me: usize,
    listener: &TcpListener,
    timeout: Duration,
) -> Result<(Ring, [ControlLink; 2]), Error> {
    let size = leaders.len();
    let (next_rank, next_address) = leaders[(me + 1) % size];
    let (previous_rank, _) = leaders[(me + size - 1) % size];
    listener.set_nonblocking(true).map_err(|error| identity.system("listener", error))?;
    let expected = BTreeSet::from([(previous_rank, Purpose::Data), (previous_rank, Purpose::Control)]);
    let open = |timeout: Duration| Stream::from_tcp(TcpStream::connect_timeout(&next_address, timeout)?);
    let (dialed, accepted) = std::thread::scope(|scope| {
        // Either half's failure ends the other.
        let trip = |error| identity.breaker.trip(error);
        let dialing = scope.spawn(move || {
            let data = dial(identity, next_rank, Purpose::Data, open).map_err(trip)?;
            Ok((data, dial(identity, next_rank, Purpose::Control, open).map_err(trip)?))
        });
        let next = || Stream::from_tcp(listener.accept()?.0);
        let accepted = accept(identity, listener.as_fd(), next, expected).map_err(trip);
        let dialed = dialing.join().unwrap_or_else(|_| Err(identity.system("connect", "a thread ended")));
        (dialed, accepted)
    });
    let mut accepted = accepted?;
    let (next, next_control) = dialed?;
    let previous = accepted.remove(&(previous_rank, Purpose::Data));
    let previous_control = accepted.remove(&(previous_rank, Purpose::Control));
    let (Some(previous), Some(previous_control)) = (previous, previous_control) else {
        return Err(identity.system("connect", "a connection is missing"));
    };
    let link = |rank: u32, stream| ControlLink { rank: rank as usize, stream, process: None };
    let ring = Ring {
        me,
        size,
        next,
        next_rank: next_rank as usize,
        previous,
        previous_rank: previous_rank as usize,
        passages: 0,
        incoming: Vec::new(),
        breaker: Arc::clone(&identity.breaker),
        timeout,
    };
    Ok((ring, [link(next_rank, next_control), link(previous_rank, previous_control)]))
}

impl Ring {
    /// Reduces `data` over the ring. `divisor` divides each completed value. 16-bit floats travel as f32.
    pub(crate) fn all_reduce(
        &mut self,
        call: &Call,
        mut data: DataMut<'_>,
        op: ReduceOp,
        divisor: Option<usize>,
    ) -> Result<(), Error> {
        let dtype = data.dtype();
        if !dtype.is_half() {
            let steps = ring_all_reduce(self.me, self.size, data.count());
            return self.run(call, &steps, &mut data, op, divisor);
        }
        let mut wide = vec![0f32; data.count()];
        let mut wide = DataMut::from(&mut wide);
        // SAFETY: two buffers of equal count, one of 16-bit floats and one of f32, both borrowed exclusively.
        unsafe { widen(dtype, data.pointer(), wide.pointer(), data.count()) };
        let steps = ring_all_reduce(self.me, self.size, wide.count());
        self.run(call, &steps, &mut wide, op, divisor)?;
        // SAFETY: as above.
        unsafe { narrow(dtype, wide.pointer(), data.pointer(), data.count()) };
        Ok(())
    }

    /// Copies from the leader at `root` to all others.
    pub(crate) fn broadcast(&mut self, call: &Call, mut data: DataMut<'_>, root: usize) -> Result<(), Error> {
        let steps = chain_broadcast(self.me, self.size, root, data.count(), SEGMENT / data.dtype().size());
        self.run(call, &steps, &mut data, ReduceOp::Sum, None)
    }

    /// Every leader's part of a reduction must have gone round before any leader has the result.
    pub(crate) fn barrier(&mut self, call: &Call) -> Result<(), Error> {
        let mut tokens = vec![0u8; self.size];
        let steps = ring_all_reduce(self.me, self.size, tokens.len());
        self.run(call, &steps, &mut DataMut::from(&mut tokens), ReduceOp::Sum, None)
    }

    fn run(
        &mut self,
        call: &Call,
        steps: &[Step],
        data: &mut DataMut<'_>,
        op: ReduceOp,
        divisor: Option<usize>,
    ) -> Result<(), Error> {
        let mut header = [0; HEADER];
        header[..CALL_BYTES].copy_from_slice(&call.encode());
        header[CALL_BYTES..].copy_from_slice(&self.passages.to_le_bytes());
        self.passages += 1;
        let mut exchange =
            Exchange { ring: self, call, expected: header, received: [0; HEADER], header_sent: 0, header_received: 0 };
        for step in steps {
            exchange.step(step, data, op, divisor)?;
        }
        // Schedules without a sent or a received range still send and read the header.
        exchange.step(&Step { send: None, receive: None }, data, op, divisor)
    }
}

/// One passage: a header in each direction, then the ranges of the steps.
struct Exchange<'a> {
    ring: &'a mut Ring,
    call: &'a Call,
    expected: [u8; HEADER],
    received: [u8; HEADER],
    header_sent: usize,
    header_received: usize,
}

/// A received range as it comes in.
struct Receipt {
    dtype: DType,
    target: *mut u8,
    length: usize,
    /// Bytes whose values are in place.
    done: usize,
    /// Bytes in the incoming buffer after that.
    pending: usize,
    action: Action,
}

impl Exchange<'_> {
    fn step(&mut self, step: &Step, data: &mut DataMut<'_>, op: ReduceOp, divisor: Option<usize>) -> Result<(), Error> {
        let dtype = data.dtype();
        let range = |range: &std::ops::Range<usize>, data: &mut DataMut<'_>| {
            let part = data.range(range.start, range.len());
            (part.pointer(), part.byte_len())
        };
        let (send, send_length) = step.send.as_ref().map_or((std::ptr::null_mut(), 0), |send| range(send, data));
        let mut receipt = step.receive.as_ref().map_or(
            Receipt { dtype, target: std::ptr::null_mut(), length: 0, done: 0, pending: 0, action: Action::Replace },
            |(receive, action)| {
                let (target, length) = range(receive, data);
                Receipt { dtype, target, length, done: 0, pending: 0, action: *action }
            },
        );
        let mut sent = 0;
        let mut last_progress = None;
        loop {
            let mut moved = false;
            if self.header_sent < HEADER || sent < send_length {
                let rest = match send_length - sent {
                    0 => &[],
                    // SAFETY: the range lies within `data`, which this passage borrows, and the schedules never
                    // receive into a range that is being sent.
                    length => unsafe { std::slice::from_raw_parts(send.add(sent), length) },
                };
                let slices = [IoSlice::new(&self.expected[self.header_sent..]), IoSlice::new(rest)];
                match self.ring.next.try_write(&slices) {
                    Ok(None) => {}
                    Ok(Some(length)) => {
                        let of_header = length.min(HEADER - self.header_sent);
                        self.header_sent += of_header;
                        sent += length - of_header;
                        moved = true;
                    }
                    Err(_) => return Err(self.ring.breaker.lost(self.ring.next_rank)),
                }
            }
            if self.header_received < HEADER {
                let length =
                    self.ring.read(|previous| previous.try_read(&mut self.received[self.header_received..]))?;
                self.header_received += length;
                moved |= length > 0;
                if self.header_received == HEADER {
                    self.compare()?;
                }
            }
            if self.header_received == HEADER && receipt.done < receipt.length {
                moved |= receipt.advance(self.ring, op, divisor)?;
            }
            let sending = self.header_sent < HEADER || sent < send_length;
            let receiving = self.header_received < HEADER || receipt.done < receipt.length;
            if !sending && !receiving {
                return Ok(());
            }
            if moved {
                last_progress = None;
                continue;
            }
            self.ring.wait(sending, receiving, *last_progress.get_or_insert_with(Instant::now), self.call)?;
        }
    }

    fn compare(&self) -> Result<(), Error> {
        if self.received == self.expected {
            return Ok(());
        }
        let rank = self.ring.previous_rank;
        let (call, _) = self.received.split_first_chunk::<CALL_BYTES>().expect("a header begins with a call");
        let error = match Call::decode(call) {
            Some(theirs) => Error::Mismatch { rank, theirs: theirs.to_string(), expected: self.call.to_string() },
            None => Error::PeerLost { rank, cause: LossCause::InvalidMessage },
        };
        Err(self.ring.breaker.trip(error))
    }
}

impl Receipt {
    /// Reads what has come and takes over whole segments of it; whether there was anything.
    fn advance(&mut self, ring: &mut Ring, op: ReduceOp, divisor: Option<usize>) -> Result<bool, Error> {
        let Receipt { dtype, target, length: total, .. } = *self;
        if self.action == Action::Replace {
            // SAFETY: the range lies within the passage's data, and nothing else refers to its rest.
            let rest = unsafe { std::slice::from_raw_parts_mut(target.add(self.done), total - self.done) };
            let length = ring.read(|previous| previous.try_read(rest))?;
            self.done += length;
            return Ok(length > 0);
        }
        let segment = SEGMENT.min(total - self.done);
        ring.incoming.resize(SEGMENT / 8, 0);
        let incoming = ring.incoming.as_mut_ptr().cast::<u8>();
        // SAFETY: the incoming buffer has SEGMENT bytes, of which `pending` are taken.
        let rest = unsafe { std::slice::from_raw_parts_mut(incoming.add(self.pending), segment - self.pending) };
        let length = ring.read(|previous| previous.try_read(rest))?;
        self.pending += length;
        if self.pending == segment {
            let divisor = divisor.filter(|_| self.action == Action::Finish);
            // SAFETY: both hold `segment` bytes of whole elements: SEGMENT and the total are multiples of their
            // size. They are disjoint and nothing else refers to them now.
            unsafe {
                let target = target.add(self.done);
                let sources = [target.cast_const(), incoming.cast_const()];
                fold(dtype, op, divisor, &sources, &[target], segment / dtype.size());
            }
            self.done += segment;
            self.pending = 0;
        }
        Ok(length > 0)
    }
}

impl Ring {
    /// Reads from the previous leader: 0 if nothing is there yet.
    fn read(&self, read: impl FnOnce(&Stream) -> std::io::Result<Option<usize>>) -> Result<usize, Error> {
        match read(&self.previous) {
            Ok(None) => Ok(0),
            Ok(Some(0)) | Err(_) => Err(self.breaker.lost(self.previous_rank)),
            Ok(Some(length)) => Ok(length),
        }
    }

    fn wait(&self, sending: bool, receiving: bool, since: Instant, call: &Call) -> Result<(), Error> {
        let mut fds = Vec::with_capacity(2);
        if sending {
            fds.push((self.next.as_fd(), PollFlags::POLLOUT));
        }
        if receiving {
            fds.push((self.previous.as_fd(), PollFlags::POLLIN));
        }
        let rank = if receiving { self.previous_rank } else { self.next_rank };
        let half = since + self.timeout / 2;
        let mut result = wait(&fds, half, &self.breaker);
        if matches!(result, Err(Interruption::Deadline)) {
            self.breaker.say_waiting();
            result = wait(&fds, since + self.timeout, &self.breaker);
        }
        if matches!(result, Err(Interruption::Deadline)) && self.breaker.is_excused(rank, since) {
            result = wait(&fds, since + self.timeout + GRACE, &self.breaker);
        }
        match result {
            Ok(()) => Ok(()),
            Err(Interruption::Tripped(error)) => Err(error),
            Err(Interruption::Deadline) => Err(self.breaker.trip(Error::timeout(rank, call, since.elapsed()))),
            Err(Interruption::Failed(error)) => {
                Err(self.breaker.trip(Error::System { rank: self.previous_rank, cause: error.to_string() }))
            }
        }
    }
}
