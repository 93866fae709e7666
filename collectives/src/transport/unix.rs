//! How the ranks of one host find each other: the first of them listens at a Unix socket without a file, whose name
//! nobody can guess who does not know the job's secret, and hands the shared memory out over it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};

use crate::error::Error;
use crate::monitor::{ControlLink, Watch};
use crate::transport::connect::{Identity, accept, dial};
use crate::transport::handshake::{Purpose, tag};
use crate::transport::stream::{Stream, pause};

/// The abstract address of the group that `leader` leads. `scope` sets groups of one epoch apart.
fn address(identity: &Identity, leader: u32, scope: &str) -> io::Result<SocketAddr> {
    let parts: [&[u8]; 5] = [
        b"shared memory",
        &identity.epoch.to_le_bytes(),
        &identity.world.to_le_bytes(),
        &leader.to_le_bytes(),
        scope.as_bytes(),
    ];
    let mut name = "muster-".to_owned();
    for byte in tag(&identity.secret, &parts).iter().take(20) {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    SocketAddr::from_abstract_name(name)
}

/// The leader's part: lets its members be watched as they come, and gives the connections for memory by rank.
pub(crate) fn lead(
    identity: &Identity,
    members: &[u32],
    scope: &str,
    watch: &Watch,
) -> Result<BTreeMap<u32, Stream>, Error> {
    let address = address(identity, identity.rank, scope).map_err(|error| identity.system("socket name", error))?;
    let listener = bind(identity, &address)?;
    listener.set_nonblocking(true).map_err(|error| identity.system("listener", error))?;
    let expected: BTreeSet<(u32, Purpose)> =
        members.iter().flat_map(|rank| [(*rank, Purpose::Control), (*rank, Purpose::Memory)]).collect();
    let next = || checked(listener.accept()?.0);
    let mut memory = BTreeMap::new();
    accept(identity, listener.as_fd(), next, expected, |rank, purpose, stream| {
        match purpose {
            Purpose::Control => drop(watch.add(link(rank, stream))?),
            _ => drop(memory.insert(rank, stream)),
        }
        Ok(())
    })?;
    Ok(memory)
}

/// A member's part: gives the connection for memory.
pub(crate) fn follow(identity: &Identity, leader: u32, scope: &str, watch: &Watch) -> Result<Stream, Error> {
    let address = address(identity, leader, scope).map_err(|error| identity.system("socket name", error))?;
    let open = || Ok(checked(UnixStream::connect_addr(&address)?)?);
    let control = dial(identity, leader, Purpose::Control, 0, open).map_err(|undialed| undialed.into_error(leader))?;
    watch.add(link(leader, control))?;
    dial(identity, leader, Purpose::Memory, 0, open).map_err(|undialed| undialed.into_error(leader))
}

/// The name is free as soon as an earlier attempt of this epoch is gone.
fn bind(identity: &Identity, address: &SocketAddr) -> Result<UnixListener, Error> {
    loop {
        match UnixListener::bind_addr(address) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < identity.deadline => {
                pause(Duration::from_millis(2), &identity.breaker)?;
            }
            Err(error) => return Err(identity.system("bind", error)),
        }
    }
}

/// Refuses processes of other users.
fn checked(stream: UnixStream) -> io::Result<Stream> {
    let credentials = getsockopt(&stream, sockopt::PeerCredentials)?;
    if credentials.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    Stream::from_unix(stream)
}

fn link(rank: u32, stream: Stream) -> ControlLink {
    let process = peer_process(stream.as_fd());
    ControlLink { rank: rank as usize, stream, process }
}

/// A descriptor of the process at the other end that becomes readable when it ends; none for a thread of this
/// process, nor on a kernel without them, where the closed connection tells the same.
#[allow(unsafe_code)]
fn peer_process(stream: BorrowedFd<'_>) -> Option<OwnedFd> {
    let pid = getsockopt(&stream, sockopt::PeerCredentials).ok()?.pid();
    if pid <= 0 || pid == nix::unistd::getpid().as_raw() {
        return None;
    }
    // SAFETY: the call takes two integers. The result is a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    let process = unsafe { OwnedFd::from_raw_fd(fd) };
    // The number may have gone to another process before the descriptor was made, but not while the connection is
    // open: its other end would have been closed with the first.
    let mut byte = [0];
    let peek = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: the kernel writes at most one byte to the array.
    let length = unsafe { libc::recv(stream.as_raw_fd(), byte.as_mut_ptr().cast(), 1, peek) };
    (length != 0).then_some(process)
}
