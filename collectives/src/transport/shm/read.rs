//! Copying right from another rank's buffer: once, where the windows take a copy in and a copy out.
//!
//! A rank that has data for others shows where it lies, before a meeting; after it they copy, and meet again, and
//! until then the data stays as it is. What lies in a segment is copied from its mapping. Private memory is read by
//! `process_vm_readv`, if every rank of the group may read every other's: a security module, a filter for system
//! calls, other users or other namespaces can forbid it, so each rank tries once with all others, and all hear of all
//! results before the first use. Nothing asks for that permission: `PR_SET_PTRACER` would give others, and with `ANY`
//! every process of the user, the right to write and to stop as well, for as long as the process lives. That is for
//! who starts the ranks to decide; windows are there without it.
//!
//! Ranks only read, and what they read goes to their own caller's buffer. Where to read is found in the region, which
//! only ranks of this world can write. A process that ends while it is read gives an error, or, if its number has been
//! given to another meanwhile, a wrong token afterwards. A rank that gives up has told so in the region before its
//! buffer can change, so who reads looks there afterwards, too.

use std::io;
use std::sync::atomic::{Ordering, fence};

use nix::errno::Errno;

use crate::call::{Call, Location};
use crate::element::{Data, DataMut};
use crate::error::{Error, LossCause};
use crate::reduce::copy_out;

use super::moved::Ranges;
use super::options::{Flow, Reading};
use super::region::{Door, Region};
use super::{Group, Patience, Placement};

/// Read at a time: between two pieces a rank looks whether the communicator has ended.
const PIECE: usize = 4 << 20;

/// Words that say where a range of a rank's data lies, or that it has none: its address, its bytes, the segment that
/// holds it, plus one, or 0, and the offset there.
pub(super) const PLACE: usize = 4;

pub(super) fn place_of(group: &Group, pointer: *const u8, bytes: usize) -> [u64; PLACE] {
    let (segment, offset) = match group.segments.locate(pointer, bytes) {
        Some((_, Location { segment, offset })) => (segment + 1, offset),
        None => (0, 0),
    };
    [pointer.addr() as u64, bytes as u64, segment, offset]
}

/// What a rank knows of reading the others' memory.
pub(super) struct Reader {
    /// Known to all by the region; whoever finds it at its address reads the right process.
    token: Box<[u64; 2]>,
    own: Reading,
    /// What counts for the group, once that is known.
    agreed: Option<Reading>,
    state: State,
    /// Whether this rank may read from the one at a place, once it has tried.
    tried: Vec<Option<bool>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Untried,
    /// This rank has told the others what it has found; they have as well by the next meeting.
    Told,
    /// Every rank may read every other's memory, or not.
    Agreed(bool),
}

impl Reader {
    /// Tells the others of the rank at place `me`, this one, where to find its token.
    pub(super) fn new(region: &Region, me: usize, own: Reading) -> Reader {
        let ranks = region.ranks();
        let mut token = Box::new([0u64; 2]);
        // Without randomness an address says as much as it can.
        let bytes = size_of_val(&*token);
        // SAFETY: the call writes to the token alone, whose size it is given.
        if unsafe { libc::getrandom(token.as_mut_ptr().cast(), bytes, libc::GRND_NONBLOCK) } != bytes as isize {
            *token = [token.as_ptr().addr() as u64, u64::from(std::process::id())];
        }
        let process = u64::from(std::process::id());
        region.door(me).open(&Door {
            process,
            address: token.as_ptr().addr() as u64,
            token: *token,
            reading: own.word(),
        });
        Reader { token, own, agreed: None, state: State::Untried, tried: vec![None; ranks] }
    }
}

/// Why memory was not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Unread(Errno);

/// Copies `length` bytes at `address` of the memory of `process`.
///
/// # Safety
/// `length` bytes can be written to `target`, and nobody else touches them meanwhile.
unsafe fn read_memory(process: u64, address: u64, target: *mut u8, length: usize) -> Result<(), Unread> {
    let mut done = 0;
    while done < length {
        let local = libc::iovec { iov_base: target.wrapping_add(done).cast(), iov_len: length - done };
        let remote_base = (address as usize).wrapping_add(done) as *mut libc::c_void;
        let remote = libc::iovec { iov_base: remote_base, iov_len: length - done };
        // SAFETY: the kernel writes within `length` bytes of the target, which the caller vouches for; an address in
        // the other process that is not mapped there is an error.
        let read =
            unsafe { libc::process_vm_readv(process as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(read) {
            Ok(0) => return Err(Unread(Errno::EFAULT)),
            Ok(read) => done += read,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Unread(Errno::last())),
        }
    }
    Ok(())
}

/// Whether the token that a rank has told of is where it says.
fn token_is_there(door: &Door) -> Result<(), Unread> {
    let mut found = [0u64; 2];
    // SAFETY: the words are this function's.
    unsafe { read_memory(door.process, door.address, found.as_mut_ptr().cast(), size_of_val(&found))? };
    if found == door.token { Ok(()) } else { Err(Unread(Errno::ESRCH)) }
}

impl Group {
    /// Whether this rank may read the memory of the one at `place`; tried once.
    pub(super) fn may_read(&mut self, place: usize) -> bool {
        let own = self.reader.own;
        let region = &self.region;
        *self.reader.tried[place]
            .get_or_insert_with(|| own != Reading::Never && token_is_there(&region.door(place).look()).is_ok())
    }

    /// Whether every rank of the group may read every other's memory. Asked by all ranks alike, before a meeting that
    /// is not their first; says no until all have heard of all, which takes until the second time.
    fn all_may_read(&mut self) -> bool {
        self.reader.state = match self.reader.state {
            State::Untried => {
                let may = self.others().all(|place| self.may_read(place));
                self.region.door(self.me).tell(may);
                State::Told
            }
            State::Told => State::Agreed((0..self.ranks.len()).all(|place| self.region.door(place).has_told())),
            agreed => agreed,
        };
        self.reader.state == State::Agreed(true)
    }

    /// How the group is set up; nobody knows of the others before the first meeting.
    fn agreed_reading(&mut self) -> Reading {
        if self.meetings == 0 {
            return Reading::Never;
        }
        let region = &self.region;
        *self.reader.agreed.get_or_insert_with(|| {
            let words = (0..region.ranks()).map(|place| region.door(place).look().reading);
            Reading::from_word(words.max().unwrap_or_default())
        })
    }

    /// Whether a message of `bytes` bytes is offered to be read.
    pub(super) fn offers(&self, flow: Flow, bytes: usize) -> bool {
        self.reader.own.pays(flow, bytes, self.patience == Patience::GiveWay)
    }

    /// How ranges of up to `bytes` bytes go: the same on all ranks, but for where this one's input lies.
    fn way(&mut self, flow: Flow, bytes: usize, input: Data<'_>) -> Way {
        let reading = self.agreed_reading();
        if reading.pays(flow, bytes, self.patience == Patience::GiveWay) && self.all_may_read() {
            return Way::Read;
        }
        if !reading.pays_mapped(bytes) {
            return Way::Windows;
        }
        match self.segments.locate(input.pointer(), input.byte_len()) {
            Some((_, location)) => Way::SegmentIfAll(location),
            None => Way::Windows,
        }
    }

    /// Shows the others what they are to copy, where it lies or, by `stage`, in the windows, and agrees with them.
    /// Gives whether they find it where it lies.
    pub(super) fn show_or_stage(
        &mut self,
        call: &Call,
        bytes: usize,
        input: Data<'_>,
        send: Ranges<'_>,
        stage: &dyn Fn(&Group),
    ) -> Result<bool, Error> {
        let way = match Flow::of(call.kind) {
            Some(flow) => self.way(flow, bytes, input),
            None => Way::Windows,
        };
        let location = match way {
            Way::SegmentIfAll(location) => Some(location),
            Way::Windows | Way::Read => None,
        };
        match way {
            Way::Windows => stage(self),
            Way::Read | Way::SegmentIfAll(_) => self.show_places(input, send),
        }
        let placement = self.agree(call, location)?;
        if way == Way::Read || self.all_in_one_segment() {
            return Ok(true);
        }
        if placement != Placement::Private {
            if location.is_some() {
                stage(self);
            }
            self.meet(call)?;
        }
        Ok(false)
    }

    /// Whether a broadcast of `bytes` bytes is read at the root; the same on all ranks.
    pub(super) fn reads_broadcast(&mut self, bytes: usize) -> bool {
        let sharing = self.patience == Patience::GiveWay;
        self.agreed_reading().pays(Flow::Broadcast, bytes, sharing) && self.all_may_read()
    }

    /// Shows each other rank what it is to copy: a range of the input. In the set of this turn, of which nobody else
    /// uses this rank's window.
    pub(super) fn show_places(&self, input: Data<'_>, send: Ranges<'_>) {
        for to in self.others() {
            let range = send(to);
            let place = place_of(self, input.part(&range), range.len() * input.dtype().size());
            let bytes = size_of_val(&place);
            let window = self.region.window(self.turn, self.me, to * bytes, bytes);
            // SAFETY: the window has room for the words, as it was asked for, and begins at a page.
            unsafe { window.cast::<[u64; PLACE]>().write(place) };
        }
    }

    /// Copies what the others have shown before the last meeting, and meets them again.
    pub(super) fn take_places(&mut self, call: &Call, output: &DataMut<'_>, receive: Ranges<'_>) -> Result<(), Error> {
        let (me, ranks) = (self.me, self.ranks.len());
        // Each begins with another, so that not all read from one.
        for from in (1..ranks).map(|step| (me + step) % ranks) {
            let range = receive(from);
            let length = range.len() * output.dtype().size();
            if length == 0 {
                continue;
            }
            let bytes = PLACE * size_of::<u64>();
            let window = self.region.window(self.turn, from, self.me * bytes, bytes);
            // SAFETY: as for showing; the other rank has written the words before the meeting.
            let place = unsafe { window.cast::<[u64; PLACE]>().read() };
            if !self.take_place(from, place, output, &range)? {
                // It was in all ranks' segment, or they had told each other that they may read.
                let cause = LossCause::InvalidMessage;
                return Err(self.breaker.trip(Error::PeerLost { rank: self.ranks[from], cause }));
            }
        }
        self.turn += 1;
        self.meet(call)
    }

    /// Copies a range of the output from where the rank at `from` says that it lies, and makes sure that it was that.
    /// Gives whether this rank can.
    pub(super) fn take_place(
        &mut self,
        from: usize,
        [address, bytes, segment, offset]: [u64; PLACE],
        output: &DataMut<'_>,
        range: &std::ops::Range<usize>,
    ) -> Result<bool, Error> {
        let (target, length) = (output.part(range), range.len() * output.dtype().size());
        let rank = self.ranks[from];
        if bytes != length as u64 {
            return Err(self.breaker.trip(Error::PeerLost { rank, cause: LossCause::InvalidMessage }));
        }
        if self.reader.own == Reading::Never {
            return Ok(false);
        }
        let mapped = segment.checked_sub(1).and_then(|id| self.segments.find(id));
        let mapped = mapped.filter(|segment| segment.holds(from, offset as usize, length));
        if mapped.is_none() && !self.may_read(from) {
            return Ok(false);
        }
        let door = self.region.door(from).look();
        let mut done = 0;
        while done < length {
            let piece = PIECE.min(length - done);
            let target = target.wrapping_add(done);
            match &mapped {
                Some(segment) => {
                    let source = segment.at(from, offset as usize + done, piece).cast_const();
                    // SAFETY: both lie within their buffers. The sender has lent its own until the closing meeting,
                    // and the output is no part of it: this rank's part of the segment, or none of it at all.
                    unsafe { copy_out(source, target, piece, output.byte_len()) };
                }
                // SAFETY: the piece lies within the output, which this rank's caller has lent.
                None => unsafe { read_memory(door.process, address + done as u64, target, piece) }
                    .map_err(|unread| self.unread(from, unread))?,
            }
            done += piece;
            self.breaker.check()?;
        }
        // What was read before this is what was there before the other rank's last word.
        fence(Ordering::SeqCst);
        if self.region.head().is_ending() {
            return Err(self.ended(from));
        }
        if mapped.is_none() {
            token_is_there(&door).map_err(|unread| self.unread(from, unread))?;
        }
        Ok(true)
    }

    /// The rank at `from` could not be read. If that is because it has died, others know better.
    #[cold]
    fn unread(&self, from: usize, Unread(errno): Unread) -> Error {
        if let Some(error) = self.region.head().abort().or_else(|| self.breaker.explanation()) {
            return self.breaker.trip(error);
        }
        let rank = self.ranks[from];
        self.breaker.trip(match errno {
            Errno::ESRCH => Error::PeerLost { rank, cause: LossCause::ProcessEnded },
            _ => {
                let cause = format!("cannot read the memory of rank {rank} any more: {errno}");
                Error::System { rank: self.ranks[self.me], cause }
            }
        })
    }

    /// Somebody ends the communicator, and says why at this moment.
    #[cold]
    fn ended(&self, from: usize) -> Error {
        let error = self.region.head().abort().or_else(|| self.breaker.explanation());
        let cause = LossCause::InvalidMessage;
        self.breaker.trip(error.unwrap_or(Error::PeerLost { rank: self.ranks[from], cause }))
    }
}

/// How what ranks move gets to the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Through the windows.
    Windows,
    /// The others read it where it lies.
    Read,
    /// This rank's lies in a segment: the others copy it from there if they all find theirs in the same.
    SegmentIfAll(Location),
}

impl Drop for Reader {
    /// Who tries the token after this finds nothing there.
    fn drop(&mut self) {
        self.token.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_word(process: u64, address: u64) -> Result<u64, Unread> {
        let mut word = 0u64;
        // SAFETY: the word is this function's.
        unsafe { read_memory(process, address, (&raw mut word).cast(), size_of::<u64>()) }.map(|()| word)
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let (process, word) = (u64::from(std::process::id()), 7u64);
        assert_eq!(read_word(process, (&raw const word).addr() as u64), Ok(7));
        assert_eq!(read_word(process, 8), Err(Unread(Errno::EFAULT)));
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn a_process_that_has_ended_is_not_read() {
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        let process = u64::from(child.id());
        child.wait().expect("it ends");
        assert_eq!(read_word(process, 4096), Err(Unread(Errno::ESRCH)));
    }

    /// As of a process that has been given the number of one that has ended.
    #[test]
    fn another_token_is_not_taken_for_the_right_one() {
        let token = [3u64, 4];
        let door = |token| Door {
            process: std::process::id().into(),
            address: TOKEN.as_ptr().addr() as u64,
            token,
            reading: 0,
        };
        static TOKEN: [u64; 2] = [3, 4];
        assert_eq!(token_is_there(&door(token)), Ok(()));
        assert_eq!(token_is_there(&door([3, 5])), Err(Unread(Errno::ESRCH)));
    }
}
