//! TCP sockets as the transport wants them.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage};
use nix::sys::socket::{accept4, connect, getsockopt, listen, setsockopt, socket, sockopt};

use crate::breaker::Breaker;
use crate::transport::stream::{Interruption, Stream, wait};

/// Connects without blocking, so that an abort ends it.
pub(super) fn open(address: &SocketAddr, deadline: Instant, breaker: &Breaker) -> Result<Stream, Interruption> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(*address)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS | Errno::EINTR) => {
            wait(&[(fd.as_fd(), PollFlags::POLLOUT)], deadline, breaker)?;
            match getsockopt(&fd, sockopt::SocketError)? {
                0 => {}
                errno => return Err(Errno::from_raw(errno).into()),
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    Ok(Stream::from_fd(fd))
}

/// The next connection that somebody has made to `listener`.
#[allow(unsafe_code)]
pub(super) fn next(listener: &TcpListener) -> std::io::Result<Stream> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(Stream::from_fd(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Buffers are left to the kernel: it grows them as the path needs, and one that is set is not grown.
pub(super) fn tune(fd: &impl AsFd, same_address: bool) -> nix::Result<()> {
    setsockopt(fd, sockopt::TcpNoDelay, &true)?;
    if same_address {
        // Nothing is lost on the way to the same machine, and a control that paces what is sent, as bbr does, only
        // holds it up. Reno is part of every kernel; where it may not be chosen the default has to do.
        let _ = setsockopt(fd, sockopt::TcpCongestion, &"reno".into());
    }
    Ok(())
}

/// Prepares a listener for all ranks' knocking at once: the kernel drops what exceeds the queue, and who is dropped
/// tries again only after a second.
pub(super) fn prepare_listener(listener: &TcpListener) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    listen(listener, Backlog::new(4096)?)?;
    Ok(())
}
