//! Anonymous memory that processes share by passing its file descriptor: it has no name anywhere, its size is
//! sealed, and it is gone with the last process that maps it.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// The size of a huge page, which saves a processor most look-ups of addresses.
pub(crate) const HUGE: usize = 2 << 20;

/// Makes zeroed memory of `length` bytes whose size nobody can change any more.
pub(crate) fn create(length: usize) -> io::Result<OwnedFd> {
    create_named(c"muster-collectives", length)
}

/// The same, shown as `name` in `/proc/PID/fd` and `/proc/PID/maps`, and nowhere else.
pub(crate) fn create_named(name: &CStr, length: usize) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(length as u64)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file.into())
}

/// Maps memory that another process made, after checking that it has the expected size and cannot lose it: access
/// to a mapping beyond its file's end would kill this process.
pub(crate) fn map(fd: OwnedFd, length: usize) -> io::Result<MmapRaw> {
    let seals = SealFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GET_SEALS)?);
    let file = File::from(fd);
    let actual = file.metadata()?.len();
    if !seals.contains(SEALS) || actual != length as u64 {
        return Err(io::Error::other(format!("shared memory of {actual} bytes, sealed {seals:?}, not of {length}")));
    }
    let map = MmapOptions::new().len(length).map_raw(&file)?;
    if length >= HUGE {
        // Advice, which a kernel without huge pages for shared memory refuses.
        let _ = map.advise(Advice::HugePage);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_sealed_and_checked() {
        let fd = create(8192).expect("memory");
        let file = File::from(fd.try_clone().expect("clone"));
        assert!(file.set_len(4096).is_err());
        assert!(file.set_len(16384).is_err());
        assert!(map(fd.try_clone().expect("clone"), 4096).is_err());
        assert!(map(fd, 8192).is_ok());
        let unsealed = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).expect("memory");
        let file = File::from(unsealed);
        file.set_len(8192).expect("size");
        assert!(map(file.into(), 8192).is_err(), "unsealed memory is refused");
    }
}
