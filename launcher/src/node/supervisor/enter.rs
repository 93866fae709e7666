//! Running a further command in a container: this binary, executed again as `muster enter DIR`, goes into the
//! namespaces of the container's process and becomes the command, with the container's environment and folder.
#![allow(unsafe_code)]

use super::init::execute;
use super::record::{boot_id, read_run, start_time_of};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, dup2_stderr, fchdir, fork};
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
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_COMMAND).read_to_end(&mut text)?;
    let argv: Vec<String> = serde_json::from_slice(&text)?;
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the container does not run");
    let run = read_run(dir).filter(|run| run.boot_id == boot_id()).ok_or_else(gone)?;
    let process = format!("/proc/{}", run.pid);
    let environ = fs::read(format!("{process}/environ"))?;
    let cwd = File::open(format!("{process}/cwd"))?;
    let mut spaces = Vec::new();
    // The user's first: it gives the right to enter the others.
    for name in ["user", "mnt", "pid"] {
        let (theirs, own) = (format!("{process}/ns/{name}"), format!("/proc/self/ns/{name}"));
        if fs::read_link(&theirs)? != fs::read_link(own)? {
            spaces.push(File::open(theirs)?);
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
        // A process that has given itself a title has written over its environment.
        env.push(("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()));
    }
    drop((spaces, cwd));

    // A PID namespace is entered by children alone.
    // SAFETY: this process has a single thread; the child goes to `exec` or `_exit`.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let _ = prctl::set_pdeathsig(Signal::SIGKILL);
            // SAFETY: sets a disposition to the default, no handler is involved.
            let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
            let _ = dup2_stderr(io::stdout().as_fd());
            let message = execute(&argv, &env);
            let _ = writeln!(io::stdout(), "{message}");
            // SAFETY: ends the child at once, without running the parent's exit handlers.
            unsafe { libc::_exit(NOT_EXECUTED.into()) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, code) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            WaitStatus::Signaled(_, signal, _) => Ok(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)),
            _ => Ok(u8::MAX),
        },
    }
}
