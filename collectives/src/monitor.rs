//! Control connections and the thread that watches them: the death, abort or good-bye of a neighbour is noticed at
//! once, also while no operation runs, and handed on.
//!
//! Members of a host hold one to their host's leader; where there are several hosts, every rank holds one to each
//! neighbour in a ring of all ranks. They are watched as soon as they are there, while others are still being made. An
//! abort is sent to all neighbours by everyone who learns of it for the first time, so it reaches every rank; likewise
//! that a rank has been waiting for long, in which call, or has left. To its neighbours alone a rank says in which call it
//! has waited for a moment. Around the ring it also goes that all ranks are
//! connected, and where that takes too long, who is there.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::breaker::Breaker;
use crate::call::{CALL_BYTES, Call};
use crate::error::{ENCODED_MAX, Error, LossCause};
use crate::transport::stream::{Stream, timeout};

const GOODBYE: u8 = 1;
const ABORT: u8 = 2;
const WAITING: u8 = 3;
const LEFT: u8 = 4;
const CALL: u8 = 5;
const CONNECTED: u8 = 6;
const COMPLETE: u8 = 7;
const OWN_CALL: u8 = 8;
const WHO: u8 = 9;

/// A rank, a count, and a call.
const CALL_LENGTH: usize = 8 + CALL_BYTES;

/// The control connection to one neighbour.
pub(crate) struct ControlLink {
    pub(crate) rank: usize,
    pub(crate) stream: Stream,
    /// Readable once the neighbour's process has ended, where it is a process of this host.
    pub(crate) process: Option<OwnedFd>,
}

impl ControlLink {
    pub(crate) fn send_abort(&self, error: &[u8]) {
        self.send(&[&[ABORT, error.len() as u8], error].concat());
    }

    /// That `rank` has been waiting for long, for the `count`-th time.
    pub(crate) fn send_waiting(&self, rank: usize, count: u32) {
        let mut frame = [WAITING, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        frame[2..6].copy_from_slice(&(rank as u32).to_le_bytes());
        frame[6..].copy_from_slice(&count.to_le_bytes());
        self.send(&frame);
    }

    /// That `rank` has been waiting in `call` for a while; it has said such things `count` times.
    pub(crate) fn send_call(&self, rank: usize, count: u32, call: &[u8; CALL_BYTES]) {
        let mut frame = [0; 2 + CALL_LENGTH];
        frame[..2].copy_from_slice(&[CALL, CALL_LENGTH as u8]);
        frame[2..6].copy_from_slice(&(rank as u32).to_le_bytes());
        frame[6..10].copy_from_slice(&count.to_le_bytes());
        frame[10..].copy_from_slice(call);
        self.send(&frame);
    }

    /// That this rank has been waiting in `call` for a moment.
    pub(crate) fn send_own_call(&self, call: &[u8; CALL_BYTES]) {
        self.send(&[&[OWN_CALL, CALL_BYTES as u8], &call[..]].concat());
    }

    /// That this rank is connected to both its neighbours in the ring, and so are all from rank 0 to it, this way around.
    pub(crate) fn send_connected(&self) {
        self.send(&[CONNECTED, 0]);
    }

    /// That all ranks are.
    pub(crate) fn send_complete(&self) {
        self.send(&[COMPLETE, 0]);
    }

    /// Asks who is there.
    pub(crate) fn send_who(&self) {
        self.send(&[WHO, 0]);
    }

    /// That `rank`, which may be no neighbour of the other end, has left.
    fn send_left(&self, rank: usize) {
        let mut frame = [LEFT, 4, 0, 0, 0, 0];
        frame[2..].copy_from_slice(&(rank as u32).to_le_bytes());
        self.send(&frame);
    }

    fn send_goodbye(&self) {
        self.send(&[GOODBYE, 0]);
    }

    /// A frame is far smaller than the socket's buffer, so it is sent whole or, to a neighbour that has long stopped
    /// reading, not at all. It will see the closed connection.
    fn send(&self, frame: &[u8]) {
        let _ = self.stream.try_write(&[IoSlice::new(frame)]);
    }
}

/// How long a rank that leaves waits until its neighbours have heard its last word. A connection that is closed while
/// something comes in is reset, and what was said over it may be lost with it.
const PARTING: Duration = Duration::from_millis(200);

/// The watching thread; ends when dropped, after a good-bye to all neighbours.
pub(crate) struct Monitor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    breaker: Arc<Breaker>,
    links: Mutex<Vec<Arc<ControlLink>>>,
    stops: AtomicBool,
    /// Readable after a change of the two above.
    changed: EventFd,
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, Vec<Arc<ControlLink>>> {
        self.links.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Monitor {
    pub(crate) fn start(breaker: Arc<Breaker>) -> std::io::Result<Monitor> {
        let changed = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared { breaker, links: Mutex::default(), stops: AtomicBool::new(false), changed });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("collectives".to_owned()).spawn(move || keep_watch(&shared))?
        };
        Ok(Monitor { shared, thread: Some(thread) })
    }

    pub(crate) fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.shared))
    }
}

/// What gives connections to a [`Monitor`].
#[derive(Clone)]
pub(crate) struct Watch(Arc<Shared>);

impl Watch {
    /// From now on this connection is watched too, and the breaker tells over it.
    pub(crate) fn add(&self, link: ControlLink) -> Result<Arc<ControlLink>, Error> {
        let link = Arc::new(link);
        self.0.links().push(Arc::clone(&link));
        // An eventfd's counter cannot overflow by one write.
        let _ = self.0.changed.write(1);
        self.0.breaker.attach_link(&link)?;
        Ok(link)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // First, so that what the neighbours answer is no news.
        self.shared.stops.store(true, Ordering::SeqCst);
        let _ = self.shared.changed.write(1);
        self.shared.links().iter().for_each(|link| link.send_goodbye());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watched {
    link: Arc<ControlLink>,
    received: Vec<u8>,
    gone: bool,
}

fn keep_watch(shared: &Shared) {
    let breaker = &*shared.breaker;
    let mut watched: Vec<Watched> = Vec::new();
    let mut known = 0;
    let mut leaves_until: Option<Instant> = None;
    loop {
        // Before the look at what has changed, so that what comes after it is noticed.
        let _ = shared.changed.read();
        let links = shared.links().clone();
        for link in &links[known..] {
            let mut neighbour = Watched { link: Arc::clone(link), received: Vec::new(), gone: false };
            // What came along with a handshake may be decrypted already, and then nothing announces it.
            neighbour.read(&links, breaker, false);
            watched.push(neighbour);
        }
        known = links.len();
        if leaves_until.is_none() && shared.stops.load(Ordering::SeqCst) {
            leaves_until = Some(Instant::now() + PARTING);
            // Who has ended the communicator, by death or silence, is not waited for.
            let lost = breaker.error().and_then(|error| error.rank());
            watched.retain(|neighbour| Some(neighbour.link.rank) != lost);
        }
        let mut fds = vec![PollFd::new(shared.changed.as_fd(), PollFlags::POLLIN)];
        for neighbour in watched.iter().filter(|neighbour| !neighbour.gone) {
            fds.push(PollFd::new(neighbour.link.stream.as_fd(), PollFlags::POLLIN));
            fds.extend(neighbour.link.process.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        }
        let left = match leaves_until {
            None => breaker.judge().map(|end| end.saturating_duration_since(Instant::now())),
            Some(_) if fds.len() == 1 => return,
            Some(end) => match end.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return,
                left => Some(left),
            },
        };
        match poll(&mut fds, timeout(left)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let ready = |index: usize| fds[index].revents().is_some_and(|events| !events.is_empty());
        let ready: Vec<bool> = (0..fds.len()).map(ready).collect();
        let leaves = leaves_until.is_some();
        let mut index = 1;
        for neighbour in watched.iter_mut().filter(|neighbour| !neighbour.gone) {
            let stream_ready = ready[index];
            let process_ready = neighbour.link.process.is_some() && ready[index + 1];
            index += 1 + usize::from(neighbour.link.process.is_some());
            if stream_ready || process_ready {
                // What it said before its end counts more than the end.
                neighbour.read(&links, breaker, leaves);
            }
            if process_ready && !neighbour.gone {
                neighbour.end(LossCause::ProcessEnded, breaker, leaves);
            }
        }
    }
}

impl Watched {
    fn read(&mut self, links: &[Arc<ControlLink>], breaker: &Breaker, leaves: bool) {
        let mut buffer = [0; 512];
        while !self.gone {
            match self.link.stream.try_read(&mut buffer) {
                Ok(None) => return,
                Ok(Some(0)) | Err(_) => self.end(LossCause::ConnectionClosed, breaker, leaves),
                Ok(Some(length)) => {
                    self.received.extend_from_slice(&buffer[..length]);
                    self.take_frames(links, breaker);
                }
            }
        }
    }

    fn take_frames(&mut self, links: &[Arc<ControlLink>], breaker: &Breaker) {
        while let [kind, length, rest @ ..] = self.received.as_slice() {
            let (kind, length) = (*kind, usize::from(*length));
            let Some(payload) = rest.get(..length) else { return };
            let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| payload[at + byte]));
            let others = || links.iter().filter(|link| !Arc::ptr_eq(link, &self.link));
            // Whom the frame is about, where it is about another.
            let rank = |at: usize| Some(word(at) as usize).filter(|rank| *rank < breaker.world());
            let call = |at: usize| payload[at..].first_chunk::<CALL_BYTES>().and_then(Call::decode);
            let known = match (kind, Error::decode(payload)) {
                (GOODBYE, None) if length == 0 => {
                    if breaker.depart(self.link.rank) {
                        others().for_each(|link| link.send_left(self.link.rank));
                    }
                    self.part();
                    return;
                }
                (WAITING, _) if length == 8 => rank(0).map(|rank| {
                    let count = word(4);
                    if breaker.excuse(rank, count) {
                        others().for_each(|link| link.send_waiting(rank, count));
                    }
                }),
                (LEFT, _) if length == 4 => rank(0).map(|rank| {
                    if breaker.depart(rank) {
                        others().for_each(|link| link.send_left(rank));
                    }
                }),
                (CALL, _) if length == CALL_LENGTH => rank(0).zip(call(8)).map(|(rank, call)| {
                    let count = word(4);
                    if breaker.hear_call(rank, count, call) {
                        others().for_each(|link| link.send_call(rank, count, &call.encode()));
                    }
                }),
                (OWN_CALL, _) if length == CALL_BYTES => {
                    call(0).map(|call| breaker.hear_own_call(self.link.rank, &call))
                }
                (CONNECTED, None) if length == 0 => {
                    breaker.hear_connected(self.link.rank);
                    Some(())
                }
                (COMPLETE, None) if length == 0 => {
                    breaker.hear_complete();
                    Some(())
                }
                (WHO, None) if length == 0 => {
                    if breaker.hear_who() {
                        others().for_each(|link| link.send_who());
                    }
                    Some(())
                }
                (ABORT, Some(error)) if length <= ENCODED_MAX => {
                    breaker.trip(error);
                    self.part();
                    return;
                }
                _ => None,
            };
            if known.is_none() {
                self.lose(LossCause::InvalidMessage, breaker);
                return;
            }
            self.received.drain(..2 + length);
        }
    }

    /// The neighbour has said its last word, and is told that it was heard.
    fn part(&mut self) {
        self.gone = true;
        self.link.stream.end_writing();
    }

    /// It is no news to who leaves itself that a neighbour has gone.
    fn end(&mut self, cause: LossCause, breaker: &Breaker, leaves: bool) {
        self.gone = true;
        if !leaves && !breaker.has_departed(self.link.rank) {
            self.lose(cause, breaker);
        }
    }

    fn lose(&mut self, cause: LossCause, breaker: &Breaker) {
        self.gone = true;
        breaker.trip(Error::PeerLost { rank: self.link.rank, cause });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;
    use crate::breaker::AbortHandle;
    use crate::call::Kind;
    use crate::element::DType;

    const WORLD: usize = 5;

    fn link() -> ControlLink {
        let (own, _other) = UnixStream::pair().expect("a socket pair");
        ControlLink { rank: 3, stream: Stream::from_unix(own).expect("stream"), process: None }
    }

    /// Feeds bytes as they could come in, and gives what was ended by them and what is kept of them.
    fn feed(pieces: &[Vec<u8>]) -> (Option<Error>, bool, usize) {
        let (link, handle) = (link(), AbortHandle::new());
        handle.0.arm(0, WORLD).expect("a new handle");
        let mut watched = Watched { link: Arc::new(link), received: Vec::new(), gone: false };
        for piece in pieces {
            if watched.gone {
                break;
            }
            watched.received.extend_from_slice(piece);
            watched.take_frames(&[], &handle.0);
        }
        (handle.0.error(), watched.gone, watched.received.len())
    }

    fn any_call(sequence: u64, count: u64) -> Call {
        Call { sequence, kind: Kind::AllGather, dtype: DType::F32, count }
    }

    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let abort = any::<u32>().prop_map(|rank| {
            let error = Error::PeerLeft { rank: rank as usize }.encode();
            [&[ABORT, error.len() as u8], &error[..]].concat()
        });
        let bytes = proptest::collection::vec(any::<u8>(), 0..600);
        // A rank beyond the last one, too.
        let rank = || (0..=WORLD as u32).prop_map(u32::to_le_bytes);
        let waiting = (rank(), any::<[u8; 4]>()).prop_map(|(rank, count)| [&[WAITING, 8], &rank[..], &count].concat());
        let left = rank().prop_map(|rank| [&[LEFT, 4], &rank[..]].concat());
        let calls = || (0..3u64, 0..2u64).prop_map(|(sequence, count)| any_call(sequence, count).encode());
        let call = (rank(), any::<[u8; 4]>(), calls())
            .prop_map(|(rank, count, call)| [&[CALL, CALL_LENGTH as u8], &rank[..], &count, &call].concat());
        let own = prop_oneof![calls(), any::<[u8; CALL_BYTES]>()]
            .prop_map(|call| [&[OWN_CALL, CALL_BYTES as u8], &call[..]].concat());
        let round = prop_oneof![Just(vec![CONNECTED, 0]), Just(vec![COMPLETE, 0]), Just(vec![WHO, 0])];
        prop_oneof![waiting, left, Just(vec![GOODBYE, 0]), abort, call, own, round, bytes]
    }

    proptest! {
        #[test]
        fn any_bytes_end_the_communicator_or_are_part_of_a_frame(
            pieces in proptest::collection::vec(frame(), 0..8),
            cut in 1usize..64,
        ) {
            let all = pieces.concat();
            let (error, gone, kept) = feed(&pieces);
            if !gone {
                prop_assert!(kept < 2 + 255 + 1, "{kept} bytes are kept");
            }
            // However they are cut, they mean the same.
            let (again, gone_again, _) = feed(&all.chunks(cut).map(<[u8]>::to_vec).collect::<Vec<_>>());
            prop_assert_eq!((error, gone), (again, gone_again));
        }

        #[test]
        fn what_no_rank_sends_is_blamed_on_who_sent_it(kind in 10u8.., payload in proptest::collection::vec(any::<u8>(), 0..256)) {
            let frame = [&[kind, payload.len() as u8], &payload[..]].concat();
            let invalid = Some(Error::PeerLost { rank: 3, cause: LossCause::InvalidMessage });
            let (error, gone, _) = feed(&[frame]);
            prop_assert_eq!((error, gone), (invalid, true));
        }
    }
}
