//! A container's environment, for the commands that enter it later. What `/proc` shows of its process is no source: a
//! process may write over it, as those do that give themselves a title. It may hold secrets, so no file of a disk has
//! it either: the supervisor keeps it in memory that has a descriptor, which `/proc` opens to those who may look into
//! the supervisor anyway.
#![allow(unsafe_code)]

use super::record::{RunRecord, start_time_of};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Held open by the supervisor as long as it lives.
pub(super) struct Kept(File);

impl Kept {
    /// In the form that `/proc` has.
    pub(super) fn new(env: &[(String, String)]) -> io::Result<Self> {
        // SAFETY: the name is a C string that outlives the call; the descriptor is checked before it is owned.
        let fd = unsafe { libc::memfd_create(c"environment".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for this process.
        let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        for (name, value) in env {
            file.write_all(format!("{name}={value}\0").as_bytes())?;
        }
        Ok(Kept(file))
    }

    pub(super) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

pub(super) fn of(run: &RunRecord) -> io::Result<Vec<u8>> {
    // A supervisor of an earlier version keeps none.
    let Some(number) = run.environment else { return fs::read(format!("/proc/{}/environ", run.pid)) };
    let mut file = File::open(format!("/proc/{}/fd/{number}", run.supervisor))?;
    // Checked after it is open: it is this supervisor's, and not a later process's of its number.
    if start_time_of(run.supervisor) != Some(run.supervisor_start) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the container does not run"));
    }
    let mut environ = Vec::new();
    file.read_to_end(&mut environ)?;
    Ok(environ)
}
