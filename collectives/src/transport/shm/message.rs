//! From one rank to another of the host: through two buffers that each rank has for what it sends, chunk by chunk.
//!
//! The sender posts a chunk's number and whom it is for; the receiver copies it out and says that it has taken it. Two
//! chunks may be on their way at a time. A message is sent once its receiver has taken all of it, so the buffers are
//! always free for the next one.
//!
//! A long one is offered first: the first chunk is empty and says where the message lies. The receiver reads it there
//! and has taken all of it, or takes the empty chunk alone, and the others follow.

use std::time::Instant;

use crate::call::Call;
use crate::element::{Data, DataMut};
use crate::error::{Error, LossCause};
use crate::reduce::{copy_out, copy_through};

use super::options::Flow;
use super::protocol::OFFER_WORDS;
use super::read::place_of;
use super::region::OUTBOX;
use super::{GIVE_WAY_FOR, GIVE_WAYS, Group, LOOK_FOR, LOOKS, Patience};

/// A message to the rank at a place, as this rank names it.
pub(crate) struct Outgoing<'a> {
    pub(crate) call: Call,
    pub(crate) to: usize,
    pub(crate) data: Data<'a>,
}

/// A message from the rank at a place.
pub(crate) struct Incoming<'a> {
    pub(crate) call: Call,
    pub(crate) from: usize,
    pub(crate) data: DataMut<'a>,
}

/// How far a message is.
struct Progress {
    bytes: usize,
    chunks: u64,
    done: u64,
    /// Whether an empty chunk comes first.
    is_offered: bool,
}

impl Progress {
    fn new(bytes: usize) -> Progress {
        // One without data has a chunk as well: the receiver waits for it.
        Progress { bytes, chunks: bytes.div_ceil(OUTBOX).max(1) as u64, done: 0, is_offered: false }
    }

    /// The message is offered, by a chunk more.
    fn offer(&mut self) {
        self.is_offered = true;
        self.chunks += 1;
    }

    fn is_over(&self) -> bool {
        self.done == self.chunks
    }

    /// Where the next chunk begins, and how long it is.
    fn next(&self) -> (usize, usize) {
        if self.is_offered && self.done == 0 {
            return (0, 0);
        }
        let start = (self.done - u64::from(self.is_offered)) as usize * OUTBOX;
        (start, OUTBOX.min(self.bytes - start))
    }
}

impl Group {
    /// Sends, receives, or both at a time, so that two ranks may send to each other.
    pub(crate) fn message(
        &mut self,
        outgoing: Option<Outgoing<'_>>,
        mut incoming: Option<Incoming<'_>>,
    ) -> Result<(), Error> {
        let mut sent = outgoing.as_ref().map(|outgoing| Progress::new(outgoing.data.byte_len()));
        let mut received = incoming.as_ref().map(|incoming| Progress::new(incoming.data.byte_len()));
        let first = self.sent;
        if let (Some(outgoing), Some(sent)) = (&outgoing, &mut sent) {
            let mut offer = [0; OFFER_WORDS];
            let flow = if received.is_some() { Flow::MessageBothWays } else { Flow::Message };
            if self.offers(flow, sent.bytes) {
                sent.offer();
                let [address, _, segment, offset] = place_of(self, outgoing.data.pointer(), sent.bytes);
                offer = [address, segment, offset];
            }
            self.region.outbox(self.me).announce(&outgoing.call.words(), &offer);
        }
        let (mut idle, mut idle_since) = (0, Instant::now());
        loop {
            let mut moved = false;
            if let (Some(outgoing), Some(sent)) = (&outgoing, &mut sent) {
                moved |= self.send_next(outgoing, sent, first);
            }
            if let (Some(incoming), Some(received)) = (&mut incoming, &mut received) {
                moved |= self.receive_next(incoming, received)?;
            }
            let is_sent = sent.as_ref().is_none_or(|sent| sent.is_over() && self.all_taken());
            let is_received = received.as_ref().is_none_or(Progress::is_over);
            if is_sent && is_received {
                return Ok(());
            }
            if moved {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle == 1 {
                idle_since = Instant::now();
            }
            match self.patience {
                Patience::Look if idle <= LOOKS => std::hint::spin_loop(),
                Patience::Look if idle_since.elapsed() <= LOOK_FOR && !self.has_ended() => std::thread::yield_now(),
                Patience::GiveWay if idle <= GIVE_WAYS && idle_since.elapsed() <= GIVE_WAY_FOR && !self.has_ended() => {
                    std::thread::yield_now();
                }
                _ => {
                    idle = 0;
                    let sender = incoming.as_ref().filter(|_| !is_received).map(|incoming| incoming.from);
                    let receiver = outgoing.as_ref().filter(|_| !is_sent).map(|outgoing| outgoing.to);
                    let call = match (&outgoing, &incoming) {
                        (_, Some(incoming)) if !is_received => incoming.call,
                        (Some(outgoing), _) => outgoing.call,
                        _ => return Ok(()),
                    };
                    let may_send =
                        |group: &Group| sent.as_ref().is_some_and(|sent| !sent.is_over() && group.has_room(sent));
                    let is_over = sent.as_ref().is_some_and(Progress::is_over) && !is_sent;
                    let done = || {
                        may_send(self)
                            || (is_over && self.all_taken())
                            || sender.is_some_and(|sender| self.region.outbox(sender).next_for(self.me).is_some())
                    };
                    let behind = |place: usize| Some(place) == sender || Some(place) == receiver;
                    self.sleep_until(&call, idle_since, &done, &behind)?;
                }
            }
        }
    }

    /// Whether the next chunk can be sent. What follows an offer waits for the answer.
    fn has_room(&self, sent: &Progress) -> bool {
        match sent.is_offered && sent.done == 1 {
            true => self.all_taken(),
            false => self.region.outbox(self.me).has_room(self.sent),
        }
    }

    fn all_taken(&self) -> bool {
        self.sent == self.region.outbox(self.me).taken()
    }

    fn send_next(&mut self, outgoing: &Outgoing<'_>, sent: &mut Progress, first: u64) -> bool {
        if sent.is_over() || !self.has_room(sent) {
            return false;
        }
        if sent.is_offered && sent.done == 1 && self.region.outbox(self.me).is_read(self.sent) {
            sent.done = sent.chunks;
            return true;
        }
        let (start, length) = sent.next();
        let target = self.region.outbox_buffer(self.me, self.sent, length);
        // SAFETY: the chunk lies within the data and fits the buffer, whose last chunk has been taken.
        unsafe { copy_through(outgoing.data.pointer().add(start), target, length) };
        sent.done += 1;
        self.sent = first + sent.done;
        self.region.outbox(self.me).post(outgoing.to, self.sent);
        self.region.head().ring_for_sleepers();
        true
    }

    fn receive_next(&mut self, incoming: &mut Incoming<'_>, received: &mut Progress) -> Result<bool, Error> {
        if received.is_over() {
            return Ok(false);
        }
        let outbox = self.region.outbox(incoming.from);
        let Some(number) = outbox.next_for(self.me) else { return Ok(false) };
        if received.done == 0 {
            let theirs = outbox.words();
            if theirs != incoming.call.words() {
                let rank = self.ranks[incoming.from];
                return Err(self.breaker.trip(match Call::from_words(theirs) {
                    Some(theirs) => {
                        Error::Mismatch { rank, theirs: theirs.to_string(), expected: incoming.call.to_string() }
                    }
                    None => Error::PeerLost { rank, cause: LossCause::InvalidMessage },
                }));
            }
        }
        let [address, segment, offset] = outbox.offer();
        if received.done == 0 && address != 0 {
            let place = [address, received.bytes as u64, segment, offset];
            if self.take_place(incoming.from, place, &incoming.data, &(0..incoming.data.count()))? {
                received.done = received.chunks;
                self.region.outbox(incoming.from).take(number, true);
                self.region.head().ring_for_sleepers();
                return Ok(true);
            }
            received.offer();
        }
        let outbox = self.region.outbox(incoming.from);
        let (start, length) = received.next();
        let source = self.region.outbox_buffer(incoming.from, number, length);
        // SAFETY: the chunk lies within the data, and the sender does not touch its buffer before it is taken.
        unsafe { copy_out(source.cast_const(), incoming.data.pointer().add(start), length, received.bytes) };
        received.done += 1;
        outbox.take(number, false);
        self.region.head().ring_for_sleepers();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_a_message_once() {
        for bytes in [0, 1, OUTBOX, OUTBOX + 1, 5 * OUTBOX - 1] {
            let mut progress = Progress::new(bytes);
            let mut end = 0;
            while !progress.is_over() {
                let (start, length) = progress.next();
                assert_eq!(start, end);
                end = start + length;
                progress.done += 1;
            }
            assert_eq!(end, bytes);
        }
    }
}
