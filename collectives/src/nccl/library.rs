//! libnccl: the search for it, its version, unique ids and memory.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::nccl::abi::{NcclFunctions, RawUniqueId, SUCCESS, UNIQUE_ID_BYTES, result_name};
use crate::nccl::device::Context;
use crate::nccl::error::{Error, LoadError};
use crate::nccl::loading::Search;

const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

const ADVICE: &str = "Install NCCL 2.18 or newer: it comes with PyTorch for CUDA (site-packages/nvidia/nccl/lib of its \
                      Python environment) and as NVIDIA's package libnccl2; then give that folder or file";

/// The first that has all that is used: nonblocking communicators, and splitting them.
const OLDEST: Version = Version(21_800);

/// A version of NCCL, ordered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version(u32);

impl Version {
    /// NCCL's own number, as 22809 for 2.28.9.
    pub fn code(self) -> u32 {
        self.0
    }

    pub fn parts(self) -> (u32, u32, u32) {
        // Up to 2.8 a minor version had one digit.
        let major = if self.0 < 10_000 { 1_000 } else { 10_000 };
        (self.0 / major, self.0 % major / 100, self.0 % 100)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = self.parts();
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// The loaded library. Clones are the same one.
#[derive(Clone)]
pub struct Library(Arc<Loaded>);

struct Loaded {
    functions: NcclFunctions,
    version: Version,
    path: PathBuf,
}

impl Library {
    pub fn load(search: &Search) -> Result<Library, LoadError> {
        let opened = search.open(&NAMES, ADVICE)?;
        let functions = NcclFunctions::load(&opened)?;
        let path = opened.path("ncclGetVersion");
        let mut code = 0;
        // SAFETY: the function writes one int.
        unsafe { (functions.get_version)(&raw mut code) };
        let version = Version(code.try_into().unwrap_or(0));
        if version < OLDEST {
            return Err(LoadError::TooOld { path, found: version.to_string(), needed: OLDEST.to_string() });
        }
        Ok(Library(Arc::new(Loaded { functions, version, path })))
    }

    pub fn version(&self) -> Version {
        self.0.version
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Makes the id of a new communicator: one rank does, and all ranks get its bytes. It names a port of this host
    /// where the ranks will meet, and works without a GPU.
    pub fn unique_id(&self) -> Result<UniqueId, Error> {
        let mut id = RawUniqueId([0; UNIQUE_ID_BYTES]);
        // SAFETY: the function writes an id.
        let code = unsafe { (self.functions().get_unique_id)(&raw mut id) };
        self.check("ncclGetUniqueId", code)?;
        Ok(UniqueId(id.0))
    }

    /// Makes an id on rank 0 of `communicator` and gives it to all its ranks; all of them call it.
    pub fn shared_unique_id(&self, communicator: &crate::Communicator) -> Result<UniqueId, Error> {
        // A rank 0 without an id says so, as the others would wait for it.
        let own = (communicator.rank() == 0).then(|| self.unique_id());
        let mut message = [0u8; UNIQUE_ID_BYTES + 1];
        if let Some(Ok(id)) = &own {
            message[0] = 1;
            message[1..].copy_from_slice(&id.0);
        }
        communicator.broadcast(&mut message, 0).map_err(|error| Error::Exchange(error.to_string()))?;
        match (own, message.split_first_chunk::<1>()) {
            (Some(own), _) => own,
            (None, Some(([1], bytes))) => UniqueId::from_bytes(bytes),
            _ => Err(Error::Exchange("rank 0 could not make one".to_owned())),
        }
    }

    /// Allocates memory on the context's device as NCCL likes it best: where it is registered, and the machine has
    /// what it takes, operations on it need no copies.
    pub fn allocate(&self, context: &Context, bytes: usize) -> Result<DeviceMemory, Error> {
        let alloc = self.present(self.functions().mem_alloc, "ncclMemAlloc")?;
        self.present(self.functions().mem_free, "ncclMemFree")?;
        context.make_current()?;
        let mut pointer = std::ptr::null_mut();
        // SAFETY: the function writes a pointer. The context is current, as it needs.
        let code = unsafe { alloc(&raw mut pointer, bytes) };
        self.check("ncclMemAlloc", code)?;
        Ok(DeviceMemory { library: self.clone(), context: context.clone(), pointer, bytes })
    }

    pub(super) fn functions(&self) -> &NcclFunctions {
        &self.0.functions
    }

    pub(super) fn present<F>(&self, function: Option<F>, name: &'static str) -> Result<F, Error> {
        function.ok_or_else(|| Error::Absent { function: name, version: self.version().to_string() })
    }

    pub(super) fn check(&self, function: &'static str, code: c_int) -> Result<(), Error> {
        if code == SUCCESS { Ok(()) } else { Err(self.failed(function, code)) }
    }

    /// The error of a call that was answered `code`.
    pub(super) fn failed(&self, function: &'static str, code: c_int) -> Error {
        // SAFETY: both functions give strings that stay, or null; the second ignores its argument, which may be null.
        let (text, last) = unsafe {
            (
                string((self.functions().get_error_string)(code)),
                string((self.functions().get_last_error)(std::ptr::null_mut())),
            )
        };
        let text = if last.is_empty() { text } else { format!("{text}; last error: {last}") };
        Error::Call { function, code, name: result_name(code), text }
    }
}

/// # Safety
/// Null, or a string that ends with a zero and stays during the call.
pub(super) unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Library(NCCL {}, {})", self.version(), self.path().display())
    }
}

/// What the ranks of a communicator find each other by. Whoever has it can join, so it is handed out over channels
/// that only the job has, and it is not printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId([u8; UNIQUE_ID_BYTES]);

impl UniqueId {
    pub const BYTES: usize = UNIQUE_ID_BYTES;

    pub fn from_bytes(bytes: &[u8]) -> Result<UniqueId, Error> {
        let wrong = |_| Error::Argument(format!("a unique id has {UNIQUE_ID_BYTES} bytes, not {}", bytes.len()));
        bytes.try_into().map(UniqueId).map_err(wrong)
    }

    pub fn as_bytes(&self) -> &[u8; UNIQUE_ID_BYTES] {
        &self.0
    }

    pub(super) fn raw(&self) -> RawUniqueId {
        RawUniqueId(self.0)
    }
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId(..)")
    }
}

/// Memory of a GPU from [`Library::allocate`].
pub struct DeviceMemory {
    library: Library,
    context: Context,
    pointer: *mut c_void,
    bytes: usize,
}

impl DeviceMemory {
    pub fn pointer(&self) -> *mut c_void {
        self.pointer
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // Without its context the memory cannot be reached, nor freed.
        if self.context.make_current().is_ok()
            && let Some(free) = self.library.functions().mem_free
        {
            // SAFETY: the pointer is from ncclMemAlloc and is freed once.
            unsafe { free(self.pointer) };
        }
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMemory({} bytes)", self.bytes)
    }
}

// SAFETY: the pointer is to memory of a device, which no thread owns; this type never dereferences it.
unsafe impl Send for DeviceMemory {}
// SAFETY: as above.
unsafe impl Sync for DeviceMemory {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_both_of_their_forms() {
        assert_eq!(Version(22_809).to_string(), "2.28.9");
        assert_eq!(Version(2_708).to_string(), "2.7.8");
        assert!(Version(2_804) < Version(21_803));
    }

    #[test]
    fn ids_have_their_length() {
        assert!(matches!(UniqueId::from_bytes(&[0; 127]), Err(Error::Argument(_))));
        let bytes: [u8; 128] = std::array::from_fn(|index| index as u8);
        assert_eq!(UniqueId::from_bytes(&bytes).map(|id| *id.as_bytes()), Ok(bytes));
    }
}
