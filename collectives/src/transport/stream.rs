//! A connected socket, TCP or Unix, that never blocks: every wait has a deadline and ends when the communicator
//! does.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags};

use crate::breaker::Breaker;
use crate::error::Error;
use crate::transport::tls::Session;

pub(crate) struct Stream {
    fd: OwnedFd,
    /// Where it is encrypted. A control connection is read by one thread and written by others.
    session: Option<Box<Mutex<Session>>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({}, encrypted: {})", self.fd.as_raw_fd(), self.session.is_some())
    }
}

/// Why a wait ended without what it waited for.
#[derive(Debug)]
pub(crate) enum Interruption {
    Deadline,
    Tripped(Error),
    Failed(io::Error),
}

impl From<io::Error> for Interruption {
    fn from(error: io::Error) -> Self {
        Interruption::Failed(error)
    }
}

impl From<Errno> for Interruption {
    fn from(errno: Errno) -> Self {
        Interruption::Failed(errno.into())
    }
}

impl std::fmt::Display for Interruption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Interruption::Deadline => f.write_str("no answer in time"),
            Interruption::Tripped(error) => error.fmt(f),
            Interruption::Failed(error) => error.fmt(f),
        }
    }
}

impl Stream {
    /// From a connected socket that does not block.
    pub(crate) fn from_fd(fd: OwnedFd) -> Stream {
        Stream { fd, session: None }
    }

    /// The same connection, with everything that is said from now on encrypted.
    pub(crate) fn encrypted(self, session: Session) -> Stream {
        Stream { session: Some(Box::new(Mutex::new(session))), ..self }
    }

    pub(crate) fn from_unix(stream: UnixStream) -> io::Result<Stream> {
        stream.set_nonblocking(true)?;
        Ok(Stream { fd: stream.into(), session: None })
    }

    fn session(&self) -> Option<MutexGuard<'_, Session>> {
        self.session.as_ref().map(|session| session.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Reads what is there: `None` if nothing is yet, 0 bytes at the end.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.session() {
            None => receive(self.as_fd(), buffer),
            Some(mut session) => session.read(self.as_fd(), buffer),
        }
    }

    /// Writes what there is room for: `None` if there is none.
    pub(crate) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        match self.session() {
            None => send(self.as_fd(), slices),
            Some(mut session) => session.write(self.as_fd(), slices),
        }
    }

    /// Whether all that was written is on its way; otherwise it is once this was called again.
    pub(crate) fn try_flush(&self) -> io::Result<bool> {
        self.session().map_or(Ok(true), |mut session| session.flush(self.as_fd()))
    }

    /// Reads what is there into one buffer after the other.
    pub(crate) fn try_read_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<Option<usize>> {
        if self.session.is_some() {
            // Decrypted bytes lie ready, so nothing is saved by reading to several buffers at once.
            return buffers
                .iter_mut()
                .find(|buffer| !buffer.is_empty())
                .map_or(Ok(None), |buffer| self.try_read(buffer));
        }
        loop {
            match socket::recvmsg::<()>(self.fd.as_raw_fd(), buffers, None, MsgFlags::MSG_DONTWAIT) {
                Ok(message) => return Ok(Some(message.bytes)),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Says no more: the other end reads an end. What comes in can still be read.
    pub(crate) fn end_writing(&self) {
        // It may have ended by itself.
        let _ = socket::shutdown(self.fd.as_raw_fd(), socket::Shutdown::Write);
    }

    /// Bytes that only the two ends of an encrypted connection share, once it has been used in both directions.
    pub(crate) fn binding(&self) -> io::Result<Vec<u8>> {
        self.session().map_or(Ok(Vec::new()), |session| Ok(session.binding()?.to_vec()))
    }

    /// Reads what rank `peer` is to say.
    pub(crate) fn read_exact(
        &self,
        mut buffer: &mut [u8],
        peer: usize,
        deadline: Instant,
        breaker: &Breaker,
    ) -> Result<(), Interruption> {
        while !buffer.is_empty() {
            match self.try_read(buffer)? {
                Some(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Some(length) => buffer = &mut buffer[length..],
                None => wait_for(peer, &[(self.as_fd(), PollFlags::POLLIN)], deadline, breaker)?,
            }
        }
        Ok(())
    }

    /// Writes something to rank `peer`.
    pub(crate) fn write_all(
        &self,
        mut bytes: &[u8],
        peer: usize,
        deadline: Instant,
        breaker: &Breaker,
    ) -> Result<(), Interruption> {
        while !bytes.is_empty() {
            match self.try_write(&[IoSlice::new(bytes)])? {
                Some(length) => bytes = &bytes[length..],
                None => wait_for(peer, &[(self.as_fd(), PollFlags::POLLOUT)], deadline, breaker)?,
            }
        }
        Ok(())
    }

    /// Sends a file descriptor over a Unix socket, with one byte to carry it.
    pub(crate) fn send_fd(&self, fd: BorrowedFd<'_>, deadline: Instant, breaker: &Breaker) -> Result<(), Interruption> {
        let fds = [fd.as_raw_fd()];
        loop {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let message = [ControlMessage::ScmRights(&fds)];
            match socket::sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(b"f")], &message, flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => wait(&[(self.as_fd(), PollFlags::POLLOUT)], deadline, breaker)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    #[allow(unsafe_code)]
    pub(crate) fn receive_fd(&self, deadline: Instant, breaker: &Breaker) -> Result<OwnedFd, Interruption> {
        loop {
            let mut byte = [0];
            let mut slices = [io::IoSliceMut::new(&mut byte)];
            let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            match socket::recvmsg::<()>(self.fd.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                Ok(message) => {
                    let mut received = None;
                    for control in message.cmsgs()? {
                        if let ControlMessageOwned::ScmRights(fds) = control {
                            for fd in fds {
                                // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
                                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
                            }
                        }
                    }
                    return received.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                Err(Errno::EAGAIN) => wait(&[(self.as_fd(), PollFlags::POLLIN)], deadline, breaker)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads what a socket has: `None` if nothing is there yet, 0 bytes at the end.
pub(crate) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match socket::recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => return Ok(Some(length)),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Writes what a socket has room for: `None` if it has none.
pub(crate) fn send(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
    loop {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match socket::sendmsg::<()>(fd.as_raw_fd(), slices, &[], flags, None) {
            Ok(length) => return Ok(Some(length)),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Waits until one of `fds` is ready (or failed, which its next use tells), the deadline has passed, or the breaker
/// has tripped.
pub(crate) fn wait(
    fds: &[(BorrowedFd<'_>, PollFlags)],
    deadline: Instant,
    breaker: &Breaker,
) -> Result<(), Interruption> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
    polled.extend(breaker.event().map(|event| PollFd::new(event, PollFlags::POLLIN)));
    loop {
        breaker.check().map_err(Interruption::Tripped)?;
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(Interruption::Deadline);
        }
        match poll(&mut polled, timeout(Some(remaining))) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return breaker.check().map_err(Interruption::Tripped),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// How often a wait for a rank looks whether that has left: then nothing but its listener may be there.
pub(crate) const LOOKS_EVERY: Duration = Duration::from_millis(50);

/// As [`wait`], but not for a rank that has left.
pub(crate) fn wait_for(
    peer: usize,
    fds: &[(BorrowedFd<'_>, PollFlags)],
    deadline: Instant,
    breaker: &Breaker,
) -> Result<(), Interruption> {
    loop {
        if breaker.has_departed(peer) {
            return Err(Interruption::Tripped(breaker.lost(peer)));
        }
        match wait(fds, deadline.min(Instant::now() + LOOKS_EVERY), breaker) {
            Err(Interruption::Deadline) if Instant::now() < deadline => {}
            result => return result,
        }
    }
}

/// Sleeps, but no longer than until the breaker trips.
pub(crate) fn pause(duration: Duration, breaker: &Breaker) -> Result<(), Error> {
    match wait(&[], Instant::now() + duration, breaker) {
        Err(Interruption::Tripped(error)) => Err(error),
        _ => Ok(()),
    }
}

/// `None` waits for ever.
pub(crate) fn timeout(remaining: Option<Duration>) -> PollTimeout {
    // Rounded up, so that the wait is not repeated for a last fraction.
    remaining.map_or(PollTimeout::NONE, |remaining| {
        PollTimeout::try_from(remaining + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
    })
}
