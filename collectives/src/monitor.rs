//! Control connections and the thread that watches them: the death, abort or good-bye of a neighbour is noticed at
//! once, also while no operation runs, and handed on.
//!
//! Members of a host hold one to their host's leader, leaders one to each neighbour in the ring of hosts. An abort
//! is sent to all neighbours by everyone who learns of it for the first time, so it reaches every rank.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::breaker::Breaker;
use crate::error::{ENCODED_MAX, Error, LossCause};
use crate::transport::stream::Stream;

const GOODBYE: u8 = 1;
const ABORT: u8 = 2;
const WAITING: u8 = 3;

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

    pub(crate) fn send_waiting(&self) {
        self.send(&[WAITING, 0]);
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

/// The watching thread; ends when dropped, after a good-bye to all neighbours.
pub(crate) struct Monitor {
    links: Vec<Arc<ControlLink>>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    pub(crate) fn start(links: Vec<Arc<ControlLink>>, breaker: Arc<Breaker>) -> std::io::Result<Monitor> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let thread = {
            let (links, stop) = (links.clone(), Arc::clone(&stop));
            std::thread::Builder::new().name("collectives".to_owned()).spawn(move || watch(&links, &stop, &breaker))?
        };
        Ok(Monitor { links, stop, thread: Some(thread) })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.links.iter().for_each(|link| link.send_goodbye());
        // An eventfd's counter cannot overflow by one write.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watched<'a> {
    link: &'a ControlLink,
    received: Vec<u8>,
    gone: bool,
}

fn watch(links: &[Arc<ControlLink>], stop: &EventFd, breaker: &Breaker) {
    let mut watched: Vec<Watched<'_>> =
        links.iter().map(|link| Watched { link, received: Vec::new(), gone: false }).collect();
    loop {
        let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        for neighbour in watched.iter().filter(|neighbour| !neighbour.gone) {
            fds.push(PollFd::new(neighbour.link.stream.as_fd(), PollFlags::POLLIN));
            fds.extend(neighbour.link.process.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let ready = |index: usize| fds[index].revents().is_some_and(|events| !events.is_empty());
        if ready(0) {
            return;
        }
        let mut index = 1;
        for neighbour in watched.iter_mut().filter(|neighbour| !neighbour.gone) {
            let stream_ready = ready(index);
            let process_ready = neighbour.link.process.is_some() && ready(index + 1);
            index += 1 + usize::from(neighbour.link.process.is_some());
            if stream_ready || process_ready {
                // What it said before its end counts more than the end.
                neighbour.read(breaker);
            }
            if process_ready && !neighbour.gone {
                neighbour.lose(LossCause::ProcessEnded, breaker);
            }
        }
    }
}

impl Watched<'_> {
    fn read(&mut self, breaker: &Breaker) {
        let mut buffer = [0; 512];
        while !self.gone {
            match self.link.stream.try_read(&mut buffer) {
                Ok(None) => return,
                Ok(Some(0)) | Err(_) => self.lose(LossCause::ConnectionClosed, breaker),
                Ok(Some(length)) => {
                    self.received.extend_from_slice(&buffer[..length]);
                    self.take_frames(breaker);
                }
            }
        }
    }

    fn take_frames(&mut self, breaker: &Breaker) {
        while let [kind, length, rest @ ..] = self.received.as_slice() {
            let (kind, length) = (*kind, usize::from(*length));
            let Some(payload) = rest.get(..length) else { return };
            match (kind, Error::decode(payload)) {
                (GOODBYE, None) if length == 0 => {
                    breaker.depart(self.link.rank);
                    self.gone = true;
                    return;
                }
                (WAITING, None) if length == 0 => breaker.excuse(self.link.rank),
                (ABORT, Some(error)) if length <= ENCODED_MAX => {
                    breaker.trip(error);
                }
                _ => {
                    self.lose(LossCause::InvalidMessage, breaker);
                    return;
                }
            }
            self.received.drain(..2 + length);
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

    fn link() -> ControlLink {
        let (own, _other) = UnixStream::pair().expect("a socket pair");
        ControlLink { rank: 3, stream: Stream::from_unix(own).expect("stream"), process: None }
    }

    /// Feeds bytes as they could come in, and gives what was ended by them and what is kept of them.
    fn feed(pieces: &[Vec<u8>]) -> (Option<Error>, bool, usize) {
        let (link, handle) = (link(), AbortHandle::new());
        let mut watched = Watched { link: &link, received: Vec::new(), gone: false };
        for piece in pieces {
            if watched.gone {
                break;
            }
            watched.received.extend_from_slice(piece);
            watched.take_frames(&handle.0);
        }
        (handle.0.error(), watched.gone, watched.received.len())
    }

    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let abort = any::<u32>().prop_map(|rank| {
            let error = Error::PeerLeft { rank: rank as usize }.encode();
            [&[ABORT, error.len() as u8], &error[..]].concat()
        });
        let bytes = proptest::collection::vec(any::<u8>(), 0..600);
        prop_oneof![Just(vec![WAITING, 0]), Just(vec![GOODBYE, 0]), abort, bytes]
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
        fn what_no_rank_sends_is_blamed_on_who_sent_it(kind in 4u8.., payload in proptest::collection::vec(any::<u8>(), 0..256)) {
            let frame = [&[kind, payload.len() as u8], &payload[..]].concat();
            let invalid = Some(Error::PeerLost { rank: 3, cause: LossCause::InvalidMessage });
            let (error, gone, _) = feed(&[frame]);
            prop_assert_eq!((error, gone), (invalid, true));
        }
    }
}
