//! A further command in a container, as the node holds it: `muster enter` (see `supervisor::enter`) runs it, on pipes
//! or on a terminal that are made here.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "this is the door to processes")]

use super::runtime::{Command, Executing, Resize};
use super::supervisor::{EnterReport, EnterSpec};
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::pipe2;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;

/// All that `muster enter` says is no longer.
const MAX_REPORT: u64 = 64 * 1024;

/// The command's ends of its streams, and what the node keeps.
struct Streams {
    theirs: [OwnedFd; 3],
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: Option<pipe::Receiver>,
    resize: Option<Resize>,
}

pub(super) async fn execute(program: &Path, dir: &Path, command: Command) -> io::Result<Executing> {
    let Streams { theirs, stdin, stdout, stderr, resize } =
        if command.tty { terminal(&command) } else { pipes(&command) }?;
    let (control, far) = UnixStream::pair()?;
    // It ends by itself once the control is closed; who is not waited for is reaped by the runtime.
    let child = tokio::process::Command::new(program)
        .arg("enter")
        .arg(dir)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(far)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let spec = serde_json::to_vec(&EnterSpec { argv: command.argv, tty: command.tty })?;
    let length = u32::try_from(spec.len()).map_err(|_| io::Error::from(io::ErrorKind::ArgumentListTooLong))?;
    let fds = theirs.each_ref().map(AsRawFd::as_raw_fd);
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(control.as_raw_fd(), &[IoSlice::new(&length.to_le_bytes())], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    drop(theirs);
    control.set_nonblocking(true)?;
    let mut control = tokio::net::UnixStream::from_std(control)?;
    // One that has failed reads no further, and says why.
    let sent = control.write_all(&spec).await;
    let mut reports = BufReader::new(control.take(MAX_REPORT));
    match next(&mut reports).await? {
        Some(EnterReport::Started) => {}
        Some(EnterReport::Failed { message }) => return Err(io::Error::other(message)),
        Some(EnterReport::Exited { .. }) | None => {
            sent?;
            return Err(io::Error::other("the process that enters the container ended without a word"));
        }
    }
    let exit = async move {
        let code = match next(&mut reports).await {
            Ok(Some(EnterReport::Exited { code })) => Ok(code),
            Ok(Some(EnterReport::Failed { message })) => Err(message),
            Ok(_) => Err("the process that entered the container was killed".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        drop(child);
        code
    };
    Ok(Executing {
        stdin: stdin.map(|stdin| Box::new(stdin) as _),
        stdout: Box::new(stdout),
        stderr: stderr.map(|stderr| Box::new(stderr) as _),
        resize,
        exit: Box::pin(exit),
    })
}

async fn next<R: tokio::io::AsyncBufRead + Unpin>(reports: &mut R) -> io::Result<Option<EnterReport>> {
    let mut line = Vec::new();
    match reports.read_until(b'\n', &mut line).await? {
        0 => Ok(None),
        _ => Ok(Some(serde_json::from_slice(&line)?)),
    }
}

fn pipes(command: &Command) -> io::Result<Streams> {
    let ((stdout, out), (stderr, err)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
    let (input, stdin) = if command.stdin {
        let (input, stdin) = pipe2(OFlag::O_CLOEXEC)?;
        (input, Some(pipe::Sender::from_owned_fd(stdin)?))
    } else {
        (OwnedFd::from(File::open("/dev/null")?), None)
    };
    Ok(Streams {
        theirs: [input, out, err],
        stdin,
        stdout: pipe::Receiver::from_owned_fd(stdout)?,
        stderr: Some(pipe::Receiver::from_owned_fd(stderr)?),
        resize: None,
    })
}

fn terminal(command: &Command) -> io::Result<Streams> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let flags = libc::O_NOCTTY | libc::O_CLOEXEC;
    let theirs = OpenOptions::new().read(true).write(true).custom_flags(flags).open(ptsname_r(&master)?)?;
    let theirs = [theirs.try_clone()?.into(), theirs.try_clone()?.into(), theirs.into()];
    // A terminal is read, written and waited for as a pipe is; that it is none is all that would be checked.
    let own = || master.as_fd().try_clone_to_owned();
    let stdin = command.stdin.then(|| pipe::Sender::from_owned_fd_unchecked(own()?)).transpose()?;
    let (stdout, size) = (pipe::Receiver::from_owned_fd_unchecked(own()?)?, own()?);
    let resize = move |columns: u16, rows: u16| {
        let size_now = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open, and the kernel only reads the structure, which outlives the call.
        unsafe { libc::ioctl(size.as_raw_fd(), libc::TIOCSWINSZ, &raw const size_now) };
    };
    Ok(Streams { theirs, stdin, stdout, stderr: None, resize: Some(Box::new(resize)) })
}
