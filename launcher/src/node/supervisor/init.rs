//! The child's side: from the supervisor's clone to the container's `exec`, and PID 1 of its namespace.
#![allow(unsafe_code)]

use super::mounts;
use super::record::Spec;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fork, setsid, write};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// How far the container is set apart from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Isolation {
    pub(super) user: bool,
    pub(super) mount: bool,
    pub(super) pid: bool,
}

impl Isolation {
    /// What to try, best first. Mounts are asked for by the spec and not given up; the rest is.
    pub(super) fn candidates(spec: &Spec, privileged: bool) -> Vec<Isolation> {
        let mounts = !spec.mounts.is_empty() || spec.rootfs.is_some();
        let mut list = Vec::new();
        for pid in if spec.pid_namespace { &[true, false][..] } else { &[false] } {
            for user in if privileged { &[false, true][..] } else { &[true] } {
                if *pid || mounts {
                    list.push(Isolation { user: *user, mount: true, pid: *pid });
                }
            }
        }
        if !mounts {
            list.push(Isolation { user: false, mount: false, pid: false });
        }
        list
    }

    fn clone_flags(self) -> libc::c_int {
        let flag = |on, flag| if on { flag } else { 0 };
        flag(self.user, libc::CLONE_NEWUSER) | flag(self.mount, libc::CLONE_NEWNS) | flag(self.pid, libc::CLONE_NEWPID)
    }
}

/// The child's ends of the pipes; all close on exec.
pub(super) struct Ends {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// What went wrong before `exec`: a `Stage` byte and a message.
    pub(super) report: OwnedFd,
    /// The wait status of the container's process, from PID 1 of the namespace.
    pub(super) status: OwnedFd,
}

/// What failed before the container's process ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    Isolation = b'I',
    Exec = b'X',
}

/// Forks with new namespaces. The child does not come back from here.
pub(super) fn spawn(spec: &Spec, isolation: Isolation, ends: Ends, scratch: &Path) -> io::Result<Pid> {
    let identity = (nix::unistd::geteuid(), nix::unistd::getegid());
    let flags = libc::c_long::from(isolation.clone_flags() | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack this is fork; this process has a single thread, so the child's
    // copy of the heap is consistent. The child leaves through `exec` or `_exit` alone.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = child(spec, isolation, ends, scratch, identity);
            // SAFETY: ends the child at once, without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))),
    }
}

fn child(
    spec: &Spec,
    isolation: Isolation,
    ends: Ends,
    scratch: &Path,
    (uid, gid): (nix::unistd::Uid, nix::unistd::Gid),
) -> i32 {
    // Whatever becomes of the supervisor becomes of the container.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let prepared = (|| -> Result<(), String> {
        if isolation.user {
            map_user(uid.as_raw(), gid.as_raw()).map_err(|e| format!("failed to map the user: {e}"))?;
        }
        if isolation.mount {
            mounts::arrange(&spec.mounts, spec.rootfs.as_deref(), scratch).map_err(|e| e.to_string())?;
        }
        if isolation.pid {
            mounts::mount_proc().map_err(|e| e.to_string())?;
        }
        Ok(())
    })();
    if let Err(message) = prepared {
        return fail(&ends, Stage::Isolation, &message);
    }
    if !isolation.pid {
        return run(spec, &ends);
    }
    // SAFETY: this process has a single thread; the child goes to `exec` or `_exit`.
    match unsafe { fork() } {
        Err(errno) => fail(&ends, Stage::Isolation, &format!("fork: {errno}")),
        Ok(ForkResult::Child) => run(spec, &ends),
        Ok(ForkResult::Parent { child }) => {
            // PID 1 holds nothing open but what it tells the status through: neither the container's output nor the
            // supervisor's report and lock.
            let Ends { stdin, stdout, stderr, report, status } = ends;
            let silenced = dup2_stdout(stdin.as_fd()).and_then(|()| dup2_stderr(stdin.as_fd()));
            drop((stdin, stdout, stderr, report));
            if silenced.is_err() {
                return 127;
            }
            let kept = std::os::fd::AsRawFd::as_raw_fd(&status).unsigned_abs();
            // SAFETY: closes descriptors that the supervisor's values own, in a copy of the process that never comes
            // back to those values; `status` is left out.
            unsafe {
                libc::syscall(libc::SYS_close_range, 3, kept - 1, 0);
                libc::syscall(libc::SYS_close_range, kept + 1, libc::c_uint::MAX, 0);
            }
            reap(child, status)
        }
    }
}

/// The user is the same inside as outside.
fn map_user(uid: u32, gid: u32) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// PID 1: hands signals on, reaps, and lets nothing outlive the container's process.
fn reap(process: Pid, status: OwnedFd) -> i32 {
    let signals = SigSet::all();
    let code = loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap_until(process) {
                    break code;
                }
            }
            Ok(signal) => drop(kill(Pid::from_raw(-process.as_raw()), signal)),
            Err(_) => {}
        }
    };
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while waitpid(None, None) != Err(Errno::ECHILD) {}
    let _ = write(&status, &code.to_le_bytes());
    0
}

/// Collects what has ended; the status of `process` if it is among it.
fn reap_until(process: Pid) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(ended) if ended.pid() == Some(process) => {
                if let Some(code) = encode(ended) {
                    return Some(code);
                }
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// An exit code, or 256 and the signal; `None` for what is no end.
pub(super) fn encode(status: WaitStatus) -> Option<i32> {
    match status {
        WaitStatus::Exited(_, code) => Some(code),
        WaitStatus::Signaled(_, signal, _) => Some(256 + signal as i32),
        _ => None,
    }
}

/// Becomes the container's process.
fn run(spec: &Spec, ends: &Ends) -> i32 {
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let _ = setsid();
    // Rust ignores SIGPIPE in its own programs; others expect the default.
    // SAFETY: sets a disposition to the default, no handler is involved.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    let wired = dup2_stdin(ends.stdin.as_fd())
        .and_then(|()| dup2_stdout(ends.stdout.as_fd()))
        .and_then(|()| dup2_stderr(ends.stderr.as_fd()));
    if let Err(errno) = wired {
        return fail(ends, Stage::Exec, &format!("dup2: {errno}"));
    }
    if let Err(errno) = chdir(&spec.cwd) {
        let message = format!("chdir to the working directory {}: {}", spec.cwd.display(), errno.desc());
        return fail(ends, Stage::Exec, &message);
    }
    let message = execute(&spec.argv, &spec.env);
    fail(ends, Stage::Exec, &message)
}

/// Comes back only with what went wrong.
pub(super) fn execute(argv: &[String], env: &[(String, String)]) -> String {
    let Some(name) = argv.first() else { return "no command given".to_owned() };
    let c_strings = |items: &mut dyn Iterator<Item = String>| -> Option<Vec<CString>> {
        items.map(|item| CString::new(item).ok()).collect()
    };
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
    let argv = c_strings(&mut argv.iter().cloned());
    let env = c_strings(&mut env.iter().map(|(name, value)| format!("{name}={value}")));
    let (Some(argv), Some(env)) = (argv, env) else {
        return format!("exec: {name:?}: an argument or variable holds a NUL byte");
    };
    let candidates: Vec<String> = if name.contains('/') {
        vec![name.clone()]
    } else {
        path.split(':').filter(|dir| !dir.is_empty()).map(|dir| format!("{dir}/{name}")).collect()
    };
    let mut refused = None;
    for candidate in candidates {
        let Ok(file) = CString::new(candidate.clone()) else { continue };
        let Err(errno) = execve(&file, &argv, &env);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR if !name.contains('/') => {}
            Errno::EACCES if !name.contains('/') => refused = Some((candidate, errno)),
            errno => return format!("exec: {candidate:?}: {}", describe(&candidate, errno)),
        }
    }
    match refused {
        Some((candidate, errno)) => format!("exec: {candidate:?}: {}", describe(&candidate, errno)),
        None => format!("exec: {name:?}: executable file not found in $PATH"),
    }
}

fn describe(path: &str, errno: Errno) -> String {
    match errno {
        Errno::ENOENT if Path::new(path).exists() => "its interpreter does not exist".to_owned(),
        Errno::ENOENT => "no such file or directory".to_owned(),
        Errno::EACCES => "permission denied".to_owned(),
        Errno::ENOEXEC => "exec format error".to_owned(),
        errno => errno.desc().to_lowercase(),
    }
}

fn fail(ends: &Ends, stage: Stage, message: &str) -> i32 {
    let mut report = vec![stage as u8];
    report.extend_from_slice(message.as_bytes());
    let _ = write(&ends.report, &report);
    127
}
