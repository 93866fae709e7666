//! Carries a schedule out over connections: sends what may be sent, receives what comes, combines it while it is in
//! cache, and waits only when neither goes on.

#![allow(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::poll::PollFlags;

use super::frame::{HEADER, header};
use super::links::{Intent, Links};
use super::options::TcpOptions;
use super::wire::{Outgoing, STAGE, Staging};
use crate::call::Call;
use crate::element::DType;
use crate::error::Error;
use crate::reduce::ReduceOp;
use crate::schedule::{Action, Schedule};
use crate::transport::stream::Stream;

/// Bytes that go over one connection before the next has its turn, where there are several.
const STRIPE: usize = 256 << 10;

/// Most pieces of memory in one write.
const PIECES: usize = 16;

/// What a passage sends from and receives into.
pub(super) struct PassageBuffers {
    pub(super) dtype: DType,
    pub(super) source: *const u8,
    pub(super) target: *mut u8,
    pub(super) op: ReduceOp,
    pub(super) divisor: Option<usize>,
    /// The target is not the caller's, so nothing is lost if data that should not have come is written there.
    pub(super) private: bool,
    /// Elements travel as bf16.
    pub(super) compressed: bool,
    /// The receiver's header is not waited for: the sender may be done before the receiver has begun.
    pub(super) one_way: bool,
}

impl PassageBuffers {
    pub(super) fn wire_size(&self) -> usize {
        if self.compressed { DType::BF16.size() } else { self.dtype.size() }
    }
}

/// What a passage is part of: one operation of all its ranks, or a message sent and another received.
pub(super) struct Calls {
    pub(super) sent: Call,
    pub(super) received: Call,
}

/// One other rank, as this passage sees it.
struct End {
    member: usize,
    rank: usize,
    sends: bool,
    lanes_out: usize,
    lanes_in: usize,
    own: [u8; HEADER],
    own_sent: usize,
    expected: [u8; HEADER],
    theirs: [u8; HEADER],
    theirs_received: usize,
    /// Bytes of data in each direction, to know whose turn it is among the lanes.
    sent: usize,
    received: usize,
}

/// The lane that byte `offset` travels on, and how many bytes stay on it.
fn lane(offset: usize, lanes: usize) -> (usize, usize) {
    match lanes {
        1 => (0, usize::MAX),
        _ => (offset / STRIPE % lanes, STRIPE - offset % STRIPE),
    }
}

struct Passage<'a> {
    links: &'a mut Links,
    calls: &'a Calls,
    schedule: &'a Schedule,
    buffers: &'a PassageBuffers,
    ends: Vec<End>,
    next_send: usize,
    /// Bytes of the next send that are on their way.
    sent: usize,
    outgoing: Outgoing<'a>,
    next_receive: usize,
    staging: Staging<'a>,
}

/// Memory that passages use one after the other.
#[derive(Default)]
pub(super) struct Scratch {
    incoming: Vec<u64>,
    outgoing: Vec<u64>,
}

/// Runs `schedule`, whose ranks are indices of `members`.
///
/// # Safety
/// Every range of elements that the schedule sends lies within the source, and every one that it receives within the
/// target; both are aligned, and of f32 if `compressed`. Until this returns nobody else writes to the one or touches
/// the other. They may be the same memory, or overlap, as where the target is a part of the source: this thread looks
/// at one of them at a time. What is sent of a range is what lies there when the schedule lets it go.
pub(super) unsafe fn run(
    links: &mut Links,
    scratch: &mut Scratch,
    options: &TcpOptions,
    calls: &Calls,
    members: &[usize],
    schedule: &Schedule,
    buffers: &PassageBuffers,
) -> Result<(), Error> {
    let ends = open(links, options, calls, members, schedule, buffers)?;
    let Scratch { incoming, outgoing } = scratch;
    let mut passage = Passage {
        links,
        calls,
        schedule,
        buffers,
        ends,
        next_send: 0,
        sent: 0,
        outgoing: Outgoing::new(outgoing),
        next_receive: 0,
        staging: Staging::new(incoming),
    };
    let mut since = None;
    loop {
        let sent = passage.send()?;
        let received = passage.receive()?;
        if passage.is_complete() && passage.flush()? {
            return Ok(());
        }
        if sent || received {
            since = None;
        } else {
            passage.wait(*since.get_or_insert_with(Instant::now))?;
        }
    }
}

/// Opens the connections that a passage uses, and counts it on each.
fn open(
    links: &mut Links,
    options: &TcpOptions,
    calls: &Calls,
    members: &[usize],
    schedule: &Schedule,
    buffers: &PassageBuffers,
) -> Result<Vec<End>, Error> {
    // By member: bytes out and in, where there is any message.
    let mut ends: Vec<(usize, Option<usize>, Option<usize>)> = Vec::new();
    let mut find = |member: usize| match ends.iter().rposition(|(known, ..)| *known == member) {
        Some(index) => index,
        None => {
            ends.push((member, None, None));
            ends.len() - 1
        }
    };
    let sends: Vec<_> = schedule.sends.iter().map(|send| (find(send.to), send.range.len())).collect();
    let receives: Vec<_> = schedule.receives.iter().map(|receive| (find(receive.from), receive.range.len())).collect();
    for (index, length) in sends {
        *ends[index].1.get_or_insert(0) += length * buffers.wire_size();
    }
    for (index, length) in receives {
        *ends[index].2.get_or_insert(0) += length * buffers.wire_size();
    }
    ends.into_iter()
        .map(|(member, out, into)| {
            let rank = members[member];
            let lanes = |bytes: Option<usize>| options.lanes(links.same_address(rank), bytes.unwrap_or(0));
            let (lanes_out, lanes_in) = (lanes(out), lanes(into));
            let (intent, call) = match out {
                Some(_) if buffers.one_way => (Intent::Send, &calls.sent),
                _ => (Intent::Meet, &calls.received),
            };
            links.open(rank, lanes_out.max(lanes_in), intent, call)?;
            let channel = links.channel(rank);
            let own = header(&calls.sent, channel.sent, buffers.dtype, buffers.compressed);
            let expected = header(&calls.received, channel.received, buffers.dtype, buffers.compressed);
            let (greets, listens) = (out.is_some() || !buffers.one_way, into.is_some() || !buffers.one_way);
            channel.sent += u64::from(greets);
            channel.received += u64::from(listens);
            Ok(End {
                member,
                rank,
                sends: out.is_some(),
                lanes_out,
                lanes_in,
                own,
                own_sent: if greets { 0 } else { HEADER },
                expected,
                theirs: [0; HEADER],
                theirs_received: if listens { 0 } else { HEADER },
                sent: 0,
                received: 0,
            })
        })
        .collect()
}

impl Passage<'_> {
    fn is_complete(&self) -> bool {
        self.next_send == self.schedule.sends.len()
            && self.next_receive == self.schedule.receives.len()
            && self.ends.iter().all(|end| end.own_sent == HEADER && end.theirs_received == HEADER)
    }

    /// Whether all that was written is on its way: an encrypted connection may hold some of it back.
    fn flush(&mut self) -> Result<bool, Error> {
        let mut flushed = true;
        for index in 0..self.ends.len() {
            let End { rank, lanes_out, .. } = self.ends[index];
            let lanes = &self.links.channel(rank).lanes[..lanes_out];
            match lanes.iter().map(Stream::try_flush).collect::<std::io::Result<Vec<bool>>>() {
                Ok(lanes) => flushed &= lanes.into_iter().all(|lane| lane),
                Err(_) => return Err(self.broken(index)),
            }
        }
        Ok(flushed)
    }

    fn end(&self, member: usize) -> usize {
        self.ends.iter().position(|end| end.member == member).expect("a passage knows the ranks of its schedule")
    }

    /// Sends what there is room for; whether anything was sent.
    fn send(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        // To those who get no data the header goes at once.
        for index in 0..self.ends.len() {
            let end = &self.ends[index];
            if !end.sends && end.own_sent < HEADER {
                let rest = [IoSlice::new(&end.own[end.own_sent..])];
                match self.links.channel(end.rank).lanes[0].try_write(&rest) {
                    Ok(written) => {
                        self.ends[index].own_sent += written.unwrap_or(0);
                        moved |= written.is_some();
                    }
                    Err(_) => return Err(self.broken(index)),
                }
            }
        }
        let Some(send) = self.schedule.sends.get(self.next_send) else { return Ok(moved) };
        if send.after > self.next_receive {
            return Ok(moved);
        }
        let index = self.end(send.to);
        let written = if self.buffers.compressed { self.write_compressed(index) } else { self.write(index) };
        match written {
            Ok(written) => Ok(moved | written),
            Err(_) => Err(self.broken(index)),
        }
    }

    /// Writes the header's rest and the data of as many sends as may go to this end now.
    fn write(&mut self, index: usize) -> std::io::Result<bool> {
        let end = &mut self.ends[index];
        let size = self.buffers.dtype.size();
        let (lane, mut room) = lane(end.sent, end.lanes_out);
        let mut pieces = [IoSlice::new(&[]); PIECES];
        pieces[0] = IoSlice::new(&end.own[end.own_sent..]);
        let mut number = 1;
        let mut skip = self.sent;
        for send in &self.schedule.sends[self.next_send..] {
            if send.to != end.member || send.after > self.next_receive || number == PIECES || room == 0 {
                break;
            }
            let length = (send.range.len() * size - skip).min(room);
            // SAFETY: the range lies within the source by the caller's promise. The slice is gone before anything is
            // received, so nothing writes to it.
            let piece =
                unsafe { std::slice::from_raw_parts(self.buffers.source.add(send.range.start * size + skip), length) };
            pieces[number] = IoSlice::new(piece);
            number += 1;
            room -= length;
            skip = 0;
        }
        let Some(mut written) = self.links.channel(end.rank).lanes[lane].try_write(&pieces[..number])? else {
            return Ok(false);
        };
        let of_header = written.min(HEADER - end.own_sent);
        end.own_sent += of_header;
        written -= of_header;
        end.sent += written;
        // What is complete, empty ranges too, once the header is on its way.
        while end.own_sent == HEADER
            && let Some(send) = self.schedule.sends.get(self.next_send)
            && send.to == end.member
            && send.after <= self.next_receive
        {
            let taken = written.min(send.range.len() * size - self.sent);
            self.sent += taken;
            written -= taken;
            if self.sent < send.range.len() * size {
                break;
            }
            self.next_send += 1;
            self.sent = 0;
        }
        Ok(true)
    }

    /// The same for one send whose elements are rounded first, a piece at a time.
    fn write_compressed(&mut self, index: usize) -> std::io::Result<bool> {
        let end = &mut self.ends[index];
        let send = &self.schedule.sends[self.next_send];
        let total = send.range.len() * DType::BF16.size();
        let (lane, room) = lane(end.sent, end.lanes_out);
        let begun = self.sent / DType::BF16.size();
        // SAFETY: the rest of the range lies within the source, which holds f32 where data is compressed. It is rounded
        // to memory of this rank before anything is received.
        let rest = unsafe {
            let start = self.buffers.source.cast::<f32>().add(send.range.start + begun);
            self.outgoing.rounded(start, send.range.len() - begun, self.sent)
        };
        let rest = &rest[..rest.len().min(room)];
        let pieces = [IoSlice::new(&end.own[end.own_sent..]), IoSlice::new(rest)];
        let Some(written) = self.links.channel(end.rank).lanes[lane].try_write(&pieces)? else { return Ok(false) };
        let of_header = written.min(HEADER - end.own_sent);
        end.own_sent += of_header;
        end.sent += written - of_header;
        self.sent += written - of_header;
        if end.own_sent == HEADER && self.sent == total {
            self.next_send += 1;
            self.sent = 0;
            self.outgoing.clear();
        }
        Ok(true)
    }

    /// Receives what is there; whether anything was.
    fn receive(&mut self) -> Result<bool, Error> {
        let Some(receive) = self.schedule.receives.get(self.next_receive) else {
            // Those who send no data still say what they do.
            let mut moved = false;
            for index in 0..self.ends.len() {
                if self.ends[index].theirs_received < HEADER {
                    moved |= self.read_header(index, &mut [])? > 0;
                }
            }
            return Ok(moved);
        };
        let (range, action) = (receive.range.clone(), receive.action);
        let index = self.end(receive.from);
        let size = self.buffers.dtype.size();
        let mut moved = false;
        if self.ends[index].theirs_received < HEADER {
            let mut target: &mut [u8] = &mut [];
            if self.buffers.private && action == Action::Replace && !self.buffers.compressed {
                let (_, room) = lane(0, self.ends[index].lanes_in);
                // SAFETY: the range lies within the target by the caller's promise, and nothing else refers to it: no
                // slice of what is sent is kept.
                target = unsafe {
                    let start = self.buffers.target.add(range.start * size);
                    std::slice::from_raw_parts_mut(start, (range.len() * size).min(room))
                };
            }
            let of_data = self.read_header(index, target)?;
            if self.ends[index].theirs_received < HEADER {
                return Ok(of_data > 0);
            }
            moved = true;
            let of_data = of_data - 1;
            self.ends[index].received += of_data;
            self.staging.done += of_data;
        }
        let total = range.len() * size;
        if self.staging.done < total {
            let end = &self.ends[index];
            let (lane, room) = lane(end.received, end.lanes_in);
            // SAFETY: the range lies within the target by the caller's promise, and nothing else refers to its rest.
            let target = unsafe { self.buffers.target.add(range.start * size + self.staging.done) };
            let rest = total - self.staging.done;
            // SAFETY: as above.
            let space = unsafe { self.staging.space(target, rest, action, self.buffers) };
            let space_length = space.len().min(room);
            let length = match self.links.channel(end.rank).lanes[lane].try_read(&mut space[..space_length]) {
                Ok(None) => return Ok(moved),
                Ok(Some(0)) | Err(_) => return Err(self.links.lost(end.rank)),
                Ok(Some(length)) => length,
            };
            moved = true;
            self.ends[index].received += length;
            // SAFETY: as above.
            unsafe { self.staging.take(length, target, rest, action, self.buffers) };
        }
        if self.staging.done == total {
            self.next_receive += 1;
            self.staging.done = 0;
        }
        Ok(moved)
    }

    /// Reads the rest of an end's header, and what follows it into `data`. Gives 0 if nothing has come, and one more
    /// than the bytes of data else.
    fn read_header(&mut self, index: usize, data: &mut [u8]) -> Result<usize, Error> {
        let end = &mut self.ends[index];
        let missing = HEADER - end.theirs_received;
        let stream = &self.links.channel(end.rank).lanes[0];
        let rest = &mut end.theirs[end.theirs_received..];
        let read = match data.is_empty() {
            true => stream.try_read(rest),
            false => stream.try_read_vectored(&mut [IoSliceMut::new(rest), IoSliceMut::new(data)]),
        };
        let length = match read {
            Ok(None) => return Ok(0),
            Ok(Some(0)) | Err(_) => return Err(self.links.lost(end.rank)),
            Ok(Some(length)) => length,
        };
        end.theirs_received += length.min(missing);
        if end.theirs_received == HEADER && end.theirs != end.expected {
            return Err(self.links.complain(end.rank, &end.theirs, &self.calls.received));
        }
        Ok(1 + length.saturating_sub(missing))
    }

    /// Why a connection could not be written to. What the other end said before it closed it counts for more than
    /// that it did.
    fn broken(&mut self, index: usize) -> Error {
        if self.ends[index].theirs == [0; HEADER] {
            // Also where no header was waited for.
            self.ends[index].theirs_received = 0;
        }
        while self.ends[index].theirs_received < HEADER {
            match self.read_header(index, &mut []) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return error,
            }
        }
        self.links.lost(self.ends[index].rank)
    }

    fn wait(&mut self, since: Instant) -> Result<(), Error> {
        let mut waits: Vec<(usize, usize, PollFlags)> = Vec::with_capacity(4);
        match self.schedule.receives.get(self.next_receive) {
            Some(receive) => {
                let end = &self.ends[self.end(receive.from)];
                let lane = if end.theirs_received < HEADER { 0 } else { lane(end.received, end.lanes_in).0 };
                waits.push((end.rank, lane, PollFlags::POLLIN));
            }
            None => {
                let silent = self.ends.iter().filter(|end| end.theirs_received < HEADER);
                waits.extend(silent.map(|end| (end.rank, 0, PollFlags::POLLIN)));
            }
        }
        if let Some(send) = self.schedule.sends.get(self.next_send)
            && send.after <= self.next_receive
        {
            let end = &self.ends[self.end(send.to)];
            waits.push((end.rank, lane(end.sent, end.lanes_out).0, PollFlags::POLLOUT));
        }
        let ungreeted = self.ends.iter().filter(|end| !end.sends && end.own_sent < HEADER);
        waits.extend(ungreeted.map(|end| (end.rank, 0, PollFlags::POLLOUT)));
        // Whoever still has something of its data to come must be able to count on this rank to send it.
        for end in &self.ends {
            let lanes = self.links.lanes(end.rank).iter().take(end.lanes_out).enumerate();
            let held = lanes.filter(|(_, stream)| !matches!(stream.try_flush(), Ok(true)));
            waits.extend(held.map(|(lane, _)| (end.rank, lane, PollFlags::POLLOUT)));
        }
        let Some((rank, _, flags)) = waits.first().copied() else { return Ok(()) };
        let call = if flags == PollFlags::POLLIN { &self.calls.received } else { &self.calls.sent };
        let fds: Vec<(BorrowedFd<'_>, PollFlags)> =
            waits.iter().map(|(rank, lane, flags)| (self.links.lanes(*rank)[*lane].as_fd(), *flags)).collect();
        self.links.wait(&fds, rank, since, call)
    }
}

const _: () = assert!(STRIPE.is_multiple_of(STAGE) && STAGE.is_multiple_of(8));
