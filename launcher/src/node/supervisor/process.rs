//! The supervisor's own side: start, copy the output, pass signals on, record the end.
#![allow(unsafe_code)]

use super::environment;
use super::init::{Ends, Isolation, Stage, encode, spawn};
use super::logfile::{LogFile, Stream};
use super::record::{
    ExitRecord, RECORD_FILE, RECORD_VERSION, RunRecord, Spec, StartReport, boot_id, open, read_exit, start_time_of,
    write_exit, write_run,
};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, geteuid, pipe2, setsid};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

/// Output that is read at once.
const CHUNK: usize = 32 * 1024;
/// How long output is awaited after the process has ended that it is of: what that has left running may hold it open.
pub(crate) const DRAIN_MS: u16 = 500;
/// How often the folder is looked for where nothing tells that it is gone.
const LOOK_MS: u16 = 1000;
/// No spec is larger: it holds arguments and environment, which the kernel limits to a few MiB.
const MAX_SPEC: u64 = 16 << 20;

/// Runs one container: its spec comes on stdin, the report of its start goes to stdout, its record to `dir`.
pub(super) fn main(dir: &Path) -> ExitCode {
    match supervise(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&StartReport::Machine { message: format!("supervisor: {error}") });
            ExitCode::FAILURE
        }
    }
}

/// The wall clock; this process is given nobody's clock, as its records are for people.
#[allow(clippy::disallowed_methods)]
fn now() -> Timestamp {
    Timestamp::now()
}

fn supervise(dir: &Path) -> io::Result<()> {
    // SAFETY: closes what the parent may have left open without close-on-exec; nothing here is open above 2 yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    setsid().or_else(|errno| if errno == Errno::EPERM { Ok(Pid::this()) } else { Err(errno) })?;
    prctl::set_child_subreaper(true)?;

    let mut lock = Flock::lock(open(dir)?, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    if read_exit(dir).is_some() {
        return Err(io::Error::other("the container was given up before it started"));
    }

    let mut text = Vec::new();
    io::stdin().lock().take(MAX_SPEC).read_to_end(&mut text)?;
    let spec: Spec = serde_json::from_slice(&text)?;
    drop(text);
    if spec.version != RECORD_VERSION {
        return Err(io::Error::other("the spec has another version"));
    }
    dup2_stdin(File::open("/dev/null")?.as_fd())?;
    let log = LogFile::create(dir, spec.log_max_bytes, spec.log_max_files)?;
    // A user has only so many of these; without one, a look now and then has to do.
    let gone = watch_removal(dir).ok();
    let signals = SigSet::all();
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;

    let container = match start(&spec, dir)? {
        Ok(container) => container,
        Err(failure) => {
            report(&failure);
            return Ok(());
        }
    };
    // Without it, what the process itself shows has to do.
    let environment = environment::Kept::new(&spec.env).ok();
    drop(spec);
    let record = RunRecord {
        version: RECORD_VERSION,
        boot_id: boot_id(),
        supervisor: Pid::this().as_raw(),
        supervisor_start: start_time_of(Pid::this().as_raw()).unwrap_or(0),
        pid: container.process.as_raw(),
        pid_start: start_time_of(container.process.as_raw()).unwrap_or(0),
        environment: environment.as_ref().map(environment::Kept::number),
        started_at: now(),
    };
    write_run(&mut lock, &record)?;
    report(&StartReport::Started(record.clone()));
    // The node reads to the end of the report.
    dup2_stdout(OpenOptions::new().write(true).open("/dev/null")?.as_fd())?;

    let Some(code) = attend(container, log, &signals, gone.as_ref(), dir)? else {
        return Ok(());
    };
    let (exit_code, signal) = if code >= 256 { (128 + code - 256, Some(code - 256)) } else { (code, None) };
    drop(environment);
    let (started_at, finished_at) = (record.started_at, now());
    write_exit(&mut lock, &ExitRecord { version: RECORD_VERSION, exit_code, signal, started_at, finished_at })
}

fn report(report: &StartReport) {
    // A node that is gone reads the records later.
    let mut stdout = io::stdout().lock();
    let _ = serde_json::to_writer(&mut stdout, report).map_err(io::Error::from).and_then(|()| stdout.flush());
}

struct Container {
    /// The supervisor's child: PID 1 of the namespace, or the container's process itself.
    child: Pid,
    /// The container's process as the host knows it.
    process: Pid,
    has_init: bool,
    stdout: File,
    stderr: File,
    status: File,
}

fn start(spec: &Spec, dir: &Path) -> io::Result<Result<Container, StartReport>> {
    let candidates = Isolation::candidates(spec, geteuid().is_root());
    let mut refusal = "no isolation is possible".to_owned();
    for isolation in candidates {
        let pair = || pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from);
        let ((stdout, out), (stderr, err), (report, rep), (status, sta)) = (pair()?, pair()?, pair()?, pair()?);
        let stdin = OwnedFd::from(File::open("/dev/null")?);
        let ends = Ends { stdin, stdout: out, stderr: err, report: rep, status: sta };
        let child = match spawn(spec, isolation, ends, dir) {
            Ok(child) => child,
            Err(error) => {
                refusal = format!("new namespaces: {error}");
                continue;
            }
        };
        let mut failure = Vec::new();
        File::from(report).read_to_end(&mut failure)?;
        if let Some((stage, message)) = failure.split_first() {
            let _ = waitpid(child, None);
            let message = String::from_utf8_lossy(message).into_owned();
            if *stage == Stage::Isolation as u8 {
                refusal = message;
                continue;
            }
            return Ok(Err(StartReport::Failed { message }));
        }
        let process = if isolation.pid { only_child_of(child).unwrap_or(child) } else { child };
        let (stdout, stderr, status) = (File::from(stdout), File::from(stderr), File::from(status));
        return Ok(Ok(Container { child, process, has_init: isolation.pid, stdout, stderr, status }));
    }
    let message = format!("this machine does not let the container have its mounts: {refusal}");
    Ok(Err(StartReport::Refused { message }))
}

pub(super) fn children_of(pid: Pid) -> Vec<Pid> {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) else { return Vec::new() };
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

fn only_child_of(pid: Pid) -> Option<Pid> {
    children_of(pid).first().copied()
}

/// An inotify descriptor that becomes readable when something in `dir` is deleted. (The folder's own end would not do:
/// the kernel tells it only when nothing in the folder is open any more, and the log is.)
fn watch_removal(dir: &Path) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: plain system calls; the descriptor is checked before it is owned, the path outlives the call.
    unsafe {
        let fd = libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(fd);
        if libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), libc::IN_DELETE) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(fd)
    }
}

/// Until the container has ended: its code (as `encode` gives it), or `None` where its directory was removed.
fn attend(
    mut container: Container,
    mut log: LogFile,
    signals: &SignalFd,
    gone: Option<&OwnedFd>,
    dir: &Path,
) -> io::Result<Option<i32>> {
    let mut open = [true, true];
    let mut ended = None;
    let mut buffer = vec![0u8; CHUNK];
    loop {
        let streams = [&container.stdout, &container.stderr];
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let polled: Vec<usize> = (0..2).filter(|i| open[*i]).collect();
        fds.extend(polled.iter().map(|i| PollFd::new(streams[*i].as_fd(), PollFlags::POLLIN)));
        fds.extend(gone.map(|gone| PollFd::new(gone.as_fd(), PollFlags::POLLIN)));
        let timeout = match (ended, gone) {
            (Some(_), _) => PollTimeout::from(DRAIN_MS),
            (None, Some(_)) => PollTimeout::NONE,
            (None, None) => PollTimeout::from(LOOK_MS),
        };
        let ready = match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let readable: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        if ended.is_some() && ready == 0 {
            break;
        }
        for (slot, index) in polled.iter().enumerate() {
            if !readable[slot + 1] {
                continue;
            }
            let (file, stream) = match index {
                0 => (&mut container.stdout, Stream::Stdout),
                _ => (&mut container.stderr, Stream::Stderr),
            };
            match file.read(&mut buffer) {
                Ok(0) => open[*index] = false,
                // A full disk must not stop the container: what cannot be written is lost.
                Ok(count) => drop(log.append(stream, &buffer[..count], now())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => open[*index] = false,
            }
        }
        let look = match gone {
            Some(gone) if readable.last() == Some(&true) => {
                let _ = nix::unistd::read(gone, &mut buffer);
                true
            }
            Some(_) => false,
            None => ready == 0,
        };
        if look && !dir.join(RECORD_FILE).exists() {
            kill_container(&container);
            // Orphans move up to this process as their parents end; none is left behind.
            while waitpid(None, None) != Err(Errno::ECHILD) {
                for pid in children_of(Pid::this()) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            return Ok(None);
        }
        if readable[0] {
            while let Ok(Some(info)) = signals.read_signal() {
                match Signal::try_from(i32::try_from(info.ssi_signo).unwrap_or(0)) {
                    Ok(Signal::SIGCHLD) => ended = ended.or(collect(&mut container)),
                    Ok(Signal::SIGUSR1) => kill_container(&container),
                    Ok(signal) => {
                        let to = if container.has_init { container.child } else { group(container.child) };
                        let _ = kill(to, signal);
                    }
                    Err(_) => {}
                }
            }
            if ended.is_some() && !container.has_init {
                end_all(&container);
            }
        }
        if ended.is_some() && open == [false, false] {
            break;
        }
    }
    let _ = log.finish(now());
    Ok(ended)
}

fn group(leader: Pid) -> Pid {
    Pid::from_raw(-leader.as_raw())
}

/// Reaps what has ended; the container's code once its process is among it.
fn collect(container: &mut Container) -> Option<i32> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(status) if status.pid() == Some(container.child) => {
                if let Some(ended) = encode(status) {
                    code = Some(if container.has_init { told_by_init(container) } else { ended });
                }
            }
            Ok(_) => {}
        }
    }
}

/// PID 1 tells the status before it ends; without that it was killed, and everything with it.
fn told_by_init(container: &mut Container) -> i32 {
    let mut bytes = [0u8; 4];
    match container.status.read_exact(&mut bytes) {
        Ok(()) => i32::from_le_bytes(bytes),
        Err(_) => 256 + Signal::SIGKILL as i32,
    }
}

fn kill_container(container: &Container) {
    if container.has_init {
        let _ = kill(container.child, Signal::SIGKILL);
    } else {
        let _ = kill(group(container.child), Signal::SIGKILL);
        end_all(container);
    }
}

/// Kills every process below this one, again and again, since orphans move up to it. The container's process itself
/// is left to be collected by `collect`.
fn end_all(container: &Container) {
    let me = Pid::this();
    if container.has_init {
        let _ = kill(container.child, Signal::SIGKILL);
        return;
    }
    loop {
        let below = children_of(me);
        if below.is_empty() {
            return;
        }
        for pid in &below {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        let others: Vec<&Pid> = below.iter().filter(|pid| **pid != container.child).collect();
        if others.is_empty() {
            return;
        }
        for pid in others {
            let _ = waitpid(*pid, None);
        }
    }
}
