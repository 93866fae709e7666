//! Where supervisors come from: one small process without threads that was executed once, and is forked for each
//! container. A fork costs a tenth of what executing this binary again would, and its pages are shared.
//!
//! It gets the containers' folders over a socket, each with the two ends that the supervisor talks to the node
//! through. It ends when the node does; the supervisors live on.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "this is the door to processes")]

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use nix::unistd::{ForkResult, dup2_stdin, dup2_stdout, fork, setsid};
use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};

/// A path is no longer.
const MAX_PATH: usize = libc::PATH_MAX as usize;

/// The node's end. The process behind it is started when it is first needed, and again where it has gone.
#[derive(Debug)]
pub(crate) struct Spawner {
    exe: PathBuf,
    /// Names the process to people who list processes.
    dir: PathBuf,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    socket: OwnedFd,
    process: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // What it has forked is none of its own any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Spawner {
    pub(crate) fn new(exe: PathBuf, dir: PathBuf) -> Self {
        Spawner { exe, dir, running: Mutex::new(None) }
    }

    /// Starts a supervisor for a container's folder, with these as its stdin and stdout. That it could not start is
    /// seen by its stdout, which ends without a report. Answers the process that was asked.
    pub(crate) fn spawn(&self, dir: &Path, stdin: &OwnedFd, stdout: &OwnedFd) -> io::Result<u32> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = running.as_ref()
            && send(known, dir, stdin, stdout).is_ok()
        {
            return Ok(known.process.id());
        }
        *running = None;
        let fresh = self.start()?;
        send(&fresh, dir, stdin, stdout)?;
        Ok(running.insert(fresh).process.id())
    }

    /// Ends a process that a message was lost with, so that no other message is: one that has been killed takes
    /// messages until it is gone.
    pub(crate) fn give_up(&self, process: u32) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.take_if(|running| running.process.id() == process);
    }

    fn start(&self) -> io::Result<Running> {
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let process = Command::new(&self.exe)
            .arg("supervise")
            .arg(&self.dir)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.exe.display())))?;
        Ok(Running { socket, process })
    }
}

fn send(to: &Running, dir: &Path, stdin: &OwnedFd, stdout: &OwnedFd) -> io::Result<()> {
    let fds = [stdin.as_raw_fd(), stdout.as_raw_fd()];
    let path = [IoSlice::new(dir.as_os_str().as_bytes())];
    loop {
        let rights = [ControlMessage::ScmRights(&fds)];
        match sendmsg::<()>(to.socket.as_raw_fd(), &path, &rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop).map_err(io::Error::from),
        }
    }
}

/// What `muster supervise DIR` runs: forks a supervisor for each message on stdin, until nobody is there to send any.
/// Called before any thread is made.
pub fn main() -> ExitCode {
    // Signals of the terminal are for the node.
    let _ = setsid();
    // Nobody waits for supervisors: their records say how containers ended.
    // SAFETY: sets a disposition to ignore; no handler is involved.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) };
    loop {
        match receive() {
            Ok(Some((dir, stdin, stdout))) => {
                // SAFETY: this process has a single thread; the child goes on as it would alone.
                match unsafe { fork() } {
                    Ok(ForkResult::Child) => return supervise(&dir, stdin, stdout),
                    // The ends close, and so the node learns of it.
                    Ok(ForkResult::Parent { .. }) | Err(_) => {}
                }
            }
            Ok(None) => return ExitCode::SUCCESS,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return ExitCode::FAILURE,
        }
    }
}

fn supervise(dir: &Path, stdin: OwnedFd, stdout: OwnedFd) -> ExitCode {
    // SAFETY: sets a disposition to the default; no handler is involved.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
    if dup2_stdin(stdin.as_fd()).and_then(|()| dup2_stdout(stdout.as_fd())).is_err() {
        return ExitCode::FAILURE;
    }
    drop((stdin, stdout));
    super::process::main(dir)
}

/// The next container's folder and ends; `None` where the node is gone.
fn receive() -> io::Result<Option<(PathBuf, OwnedFd, OwnedFd)>> {
    let mut path = vec![0; MAX_PATH];
    let mut space = cmsg_space!([RawFd; 2]);
    let (length, fds) = {
        let mut parts = [IoSliceMut::new(&mut path)];
        let message = recvmsg::<()>(libc::STDIN_FILENO, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just made these descriptors for this process.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, fds)
    };
    if length == 0 {
        return Ok(None);
    }
    let mut fds = fds.into_iter();
    match (fds.next(), fds.next()) {
        (Some(stdin), Some(stdout)) => Ok(Some((PathBuf::from(OsStr::from_bytes(&path[..length])), stdin, stdout))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a container without its ends")),
    }
}
