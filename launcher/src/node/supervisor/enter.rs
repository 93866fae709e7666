//! Running a further command in a container: this binary, executed again as `muster enter DIR`, goes into the
//! namespaces of the container's process and runs the command there, with the container's environment and folder.
//!
//! ```text
//!  node            enter                 keeper (in the PID namespace)      command
//!   |--------------->| setns, forks ------->| subreaper, forks ---------------->| exec
//!   |  SIGTERM ----->|  SIGTERM ----------->| SIGKILL: the command and all -----|
//!   |                |                      | that it has started               |
//!   |<-- exit code --|<------ exit code ----|<------------- exit code ----------|
//! ```
//! The end of a process counts as a SIGTERM to the one on its right. What the command leaves behind when it ends by
//! itself belongs to the container; without a PID namespace nobody would end it with the container, so the keeper does.
#![allow(unsafe_code)]

use super::environment;
use super::init::execute;
use super::process::children_of;
use super::record::{boot_id, read_run, start_time_of};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, fchdir, fork, getppid, setsid};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::ExitCode;

const MAX_COMMAND: u64 = 1 << 20;
/// As shells have it: the command could not be executed.
const NOT_EXECUTED: u8 = 126;

/// The command comes as a JSON array on standard input; all it writes goes to standard output.
pub fn enter(dir: &Path) -> ExitCode {
    match run(dir) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            ExitCode::from(NOT_EXECUTED)
        }
    }
}

fn run(dir: &Path) -> io::Result<u8> {
    // A node that is gone waits for no answer.
    let node = getppid();
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_COMMAND).read_to_end(&mut text)?;
    let argv: Vec<String> = serde_json::from_slice(&text)?;
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the container does not run");
    let run = read_run(dir).filter(|run| run.boot_id == boot_id()).ok_or_else(gone)?;
    let process = format!("/proc/{}", run.pid);
    let environ = environment::of(&run)?;
    let cwd = File::open(format!("{process}/cwd"))?;
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
    let mut env: Vec<(String, String)> = String::from_utf8_lossy(&environ)
        .split('\0')
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()));
    }
    drop((spaces, cwd));

    SigSet::all().thread_block()?;
    // Another user namespace has made the kernel forget this.
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    if getppid() != node {
        return Err(io::Error::other("the node is gone"));
    }
    // A PID namespace is entered by children alone.
    // SAFETY: this process has a single thread; the child ends in `_exit`.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = keep(&argv, &env, has_init);
            // SAFETY: ends the child at once, without running the parent's exit handlers.
            unsafe { libc::_exit(code.into()) }
        }
        ForkResult::Parent { child } => Ok(until_ended(child, || {
            let _ = kill(child, Signal::SIGTERM);
        })),
    }
}

/// Runs the command and answers its code. Asked to end, it ends the command and all that this has started, wherever in
/// sessions and groups that may be by then: orphans come to this process.
fn keep(argv: &[String], env: &[(String, String)], has_init: bool) -> u8 {
    let prepared = prctl::set_pdeathsig(Signal::SIGTERM).and_then(|()| prctl::set_child_subreaper(true));
    // SAFETY: this process has a single thread; the child goes to `exec` or `_exit`.
    match prepared.and_then(|()| unsafe { fork() }) {
        Err(errno) => {
            let _ = writeln!(io::stdout(), "fork: {errno}");
            NOT_EXECUTED
        }
        Ok(ForkResult::Child) => {
            let _ = prctl::set_pdeathsig(Signal::SIGKILL);
            let _ = setsid();
            // SAFETY: sets a disposition to the default, no handler is involved.
            let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
            let _ = dup2_stderr(io::stdout().as_fd());
            let message = execute(argv, env);
            let _ = writeln!(io::stdout(), "{message}");
            // SAFETY: ends the child at once, without running the parent's exit handlers.
            unsafe { libc::_exit(NOT_EXECUTED.into()) }
        }
        Ok(ForkResult::Parent { child }) => {
            let code = until_ended(child, end_all);
            if !has_init {
                end_all();
            }
            code
        }
    }
}

/// Reaps until a child has ended; its code, as shells have it. `end` is called when this process is asked to end.
fn until_ended(child: Pid, end: impl Fn()) -> u8 {
    let signals = SigSet::all();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return u8::try_from(code).unwrap_or(u8::MAX),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return u8::try_from(128 + signal as i32).unwrap_or(u8::MAX);
            }
            Ok(WaitStatus::StillAlive) => match signals.wait() {
                Ok(Signal::SIGTERM) => end(),
                Ok(_) | Err(_) => {}
            },
            Err(Errno::ECHILD) => return u8::MAX,
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
