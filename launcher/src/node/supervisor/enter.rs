//! Running a further command in a container: this binary, executed again as `muster enter DIR`, goes into the
//! namespaces of the container's process and runs the command there, with the container's environment and folder.
//!
//! ```text
//!  node                               enter                keeper (in the PID namespace)      command
//!   | spec, its stdin, stdout, stderr   |                     |                                  |
//!   |--- control (enter's stdin) ------>| setns, forks ------>| subreaper, forks --------------->| setsid, terminal, exec
//!   |<---------- started, or failed ----|<-----------------------------------  why it could not --|
//!   | closes the control ( or SIGTERM)->| SIGTERM ----------->| SIGKILL: the command and all ----|
//!   |                                   |                     | that it has started              |
//!   |<--------------- exited, code -----|<------ exit code ---|<---------------- exit code ------|
//! ```
//! The end of a process counts as a SIGTERM to the one on its right. What the command leaves behind when it ends by
//! itself belongs to the container; without a PID namespace nobody would end it with the container, so the keeper does.
#![allow(unsafe_code)]

use super::environment;
use super::init::execute;
use super::process::children_of;
use super::record::{boot_id, read_run, start_time_of};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fchdir, fork, pipe2, setsid};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

/// No command is longer; the kernel takes no more either.
const MAX_COMMAND: u32 = 4 << 20;

/// As shells have it: the command could not be executed. Nobody is told it: the reason is.
const NOT_EXECUTED: i32 = 126;

/// What to run. Sent after its length, a little-endian `u32`, which carries the command's three streams.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EnterSpec {
    pub(crate) argv: Vec<String>,
    /// The streams are a terminal, which becomes the command's own.
    pub(crate) tty: bool,
}

/// How it goes: one line each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum EnterReport {
    Started,
    /// The command never ran.
    Failed {
        message: String,
    },
    Exited {
        code: i32,
    },
}

pub fn enter(dir: &Path) -> ExitCode {
    // SAFETY: the node has made standard input one end of a socket pair; nothing else of this process uses it.
    let mut control = unsafe { UnixStream::from_raw_fd(libc::STDIN_FILENO) };
    let report = match run(dir, &mut control) {
        Ok(code) => EnterReport::Exited { code },
        Err(error) => EnterReport::Failed { message: error.to_string() },
    };
    tell(&mut control, &report);
    ExitCode::SUCCESS
}

fn tell(control: &mut UnixStream, report: &EnterReport) {
    // A node that is gone does not listen.
    let _ = serde_json::to_string(report).map(|text| writeln!(control, "{text}"));
}

fn run(dir: &Path, control: &mut UnixStream) -> io::Result<i32> {
    // Signals of the node's terminal are not for this process.
    let _ = setsid();
    let (spec, streams) = receive(control)?;
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the container does not run");
    let run = read_run(dir).filter(|run| run.boot_id == boot_id()).ok_or_else(gone)?;
    let process = format!("/proc/{}", run.pid);
    let environ = environment::of(&run)?;
    let cwd = File::open(format!("{process}/cwd"))?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    let (mut spaces, mut has_init) = (Vec::new(), false);
    // The user's first: it gives the right to enter the others.
    for name in ["user", "mnt", "pid"] {
        let (theirs, own) = (format!("{process}/ns/{name}"), format!("/proc/self/ns/{name}"));
        if fs::read_link(&theirs)? != fs::read_link(own)? {
            spaces.push(File::open(theirs)?);
            has_init |= name == "pid";
        }
    }
    // Checked after all is open: what was opened belongs to this process and no later one of its number.
    if start_time_of(run.pid) != Some(run.pid_start) {
        return Err(gone());
    }
    for space in &spaces {
        // SAFETY: a system call on a descriptor that is open; no memory is passed. This process has a single thread.
        if unsafe { libc::setns(space.as_raw_fd(), 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    fchdir(&cwd)?;
    drop((spaces, cwd));
    let env = variables(&environ, spec.tty);

    let (report, failed) = pipe2(OFlag::O_CLOEXEC)?;
    SigSet::all().thread_block()?;
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    // A PID namespace is entered by children alone.
    // SAFETY: this process has a single thread; the child ends in `_exit`.
    let keeper = match unsafe { fork() }? {
        ForkResult::Child => {
            let code = keep(&spec, &env, streams, &nothing, failed, has_init);
            // SAFETY: ends the child at once, without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => child,
    };
    // Whoever reads the command's output sees its end when the command's own ends are closed.
    drop((failed, streams));
    let mut failure = String::new();
    File::from(report).read_to_string(&mut failure)?;
    if !failure.is_empty() {
        let _ = waitpid(keeper, None);
        return Err(io::Error::other(failure));
    }
    tell(control, &EnterReport::Started);
    attend(keeper, &signals, control)
}

/// The spec, and the command's standard streams.
fn receive(control: &mut UnixStream) -> io::Result<(EnterSpec, [OwnedFd; 3])> {
    let mut length = [0u8; 4];
    let mut room = cmsg_space!([RawFd; 3]);
    let mut streams = Vec::new();
    let got = {
        let mut parts = [IoSliceMut::new(&mut length)];
        let message = recvmsg::<()>(control.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = part {
                // SAFETY: the kernel has just made these descriptors for this process.
                streams.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        message.bytes
    };
    control.read_exact(&mut length[got..])?;
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let streams = <[OwnedFd; 3]>::try_from(streams).map_err(|_| invalid("a command without its streams"))?;
    let length = u32::from_le_bytes(length);
    if length > MAX_COMMAND {
        return Err(invalid("the command is too long"));
    }
    let mut text = Vec::new();
    control.take(length.into()).read_to_end(&mut text)?;
    Ok((serde_json::from_slice(&text)?, streams))
}

fn variables(environ: &[u8], tty: bool) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = String::from_utf8_lossy(environ)
        .split('\0')
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut lacking = |name: &str, value: &str| {
        if !env.iter().any(|(known, _)| known == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    };
    lacking("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    if tty {
        lacking("TERM", "xterm");
    }
    env
}

/// Runs the command and answers its code. Asked to end, it ends the command and all that this has started, wherever in
/// sessions and groups that may be by then: orphans come to this process.
fn keep(
    spec: &EnterSpec,
    env: &[(String, String)],
    streams: [OwnedFd; 3],
    nothing: &File,
    failed: OwnedFd,
    has_init: bool,
) -> i32 {
    let prepared = prctl::set_pdeathsig(Signal::SIGTERM).and_then(|()| prctl::set_child_subreaper(true));
    // SAFETY: this process has a single thread; the child goes to `exec` or `_exit`.
    match prepared.and_then(|()| unsafe { fork() }) {
        Err(errno) => {
            let _ = File::from(failed).write_all(format!("fork: {errno}").as_bytes());
            NOT_EXECUTED
        }
        Ok(ForkResult::Child) => {
            let message = become_command(spec, env, &streams);
            let _ = File::from(failed).write_all(message.as_bytes());
            // SAFETY: ends the child at once, without running the parent's exit handlers.
            unsafe { libc::_exit(NOT_EXECUTED) }
        }
        Ok(ForkResult::Parent { child }) => {
            drop((failed, streams));
            // The control is for the parent alone.
            let _ = dup2_stdin(nothing.as_fd());
            let code = until_ended(child);
            if !has_init {
                end_all();
            }
            code
        }
    }
}

/// Comes back only with what went wrong.
fn become_command(spec: &EnterSpec, env: &[(String, String)], [stdin, stdout, stderr]: &[OwnedFd; 3]) -> String {
    let prepared = (|| -> io::Result<()> {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        setsid()?;
        dup2_stdin(stdin.as_fd())?;
        dup2_stdout(stdout.as_fd())?;
        dup2_stderr(stderr.as_fd())?;
        // SAFETY: a system call on a descriptor that is open; no memory is passed.
        if spec.tty && unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: sets a disposition to the default, no handler is involved.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        Ok(())
    })();
    match prepared {
        Ok(()) => execute(&spec.argv, env),
        Err(error) => error.to_string(),
    }
}

/// Until the keeper has ended, which is asked to where nobody asks for the command any more; the command's code.
fn attend(keeper: Pid, signals: &SignalFd, control: &UnixStream) -> io::Result<i32> {
    let mut asked = true;
    loop {
        if let Some(code) = code_of(waitpid(keeper, Some(WaitPidFlag::WNOHANG))?) {
            return Ok(code);
        }
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if asked {
            fds.push(PollFd::new(control.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        // The node sends nothing more: what there is to read is the end.
        let mut end = fds.get(1).is_some_and(|control| control.any().unwrap_or(true));
        asked &= !end;
        while let Ok(Some(info)) = signals.read_signal() {
            end |= i32::try_from(info.ssi_signo) == Ok(Signal::SIGTERM as i32);
        }
        if end {
            let _ = kill(keeper, Signal::SIGTERM);
        }
    }
}

/// As shells have it; `None` for what is no end.
fn code_of(status: WaitStatus) -> Option<i32> {
    match status {
        WaitStatus::Exited(_, code) => Some(code),
        WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
        _ => None,
    }
}

/// Reaps until a child has ended; its code. Asked to end, it ends all below.
fn until_ended(child: Pid) -> i32 {
    let signals = SigSet::all();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => match signals.wait() {
                Ok(Signal::SIGTERM) => end_all(),
                Ok(_) | Err(_) => {}
            },
            Ok(status) if status.pid() == Some(child) => {
                if let Some(code) = code_of(status) {
                    return code;
                }
            }
            // All is ended, the child among it.
            Err(Errno::ECHILD) => return 128 + Signal::SIGKILL as i32,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Kills every process below this one, again and again, since orphans move up to it.
fn end_all() {
    loop {
        for pid in children_of(Pid::this()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        if waitpid(None, None) == Err(Errno::ECHILD) {
            return;
        }
    }
}
