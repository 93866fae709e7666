//! GPUs as NVIDIA's management library tells them. The library is loaded at run time, so the program starts without.
#![allow(unsafe_code)]

use super::Gpu;
use libloading::{Library, Symbol};
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;

const LIBRARY: &str = "libnvidia-ml.so.1";

/// Values of `nvmlReturn_t` that say something of one device, not of NVML.
const NOT_SUPPORTED: c_int = 3;
const NO_PERMISSION: c_int = 4;
const GPU_IS_LOST: c_int = 15;

/// What nvml.h gives a name or a UUID, with the zero at its end.
const TEXT_BYTES: usize = 96;

#[derive(Debug, thiserror::Error)]
pub enum NvmlError {
    /// No NVIDIA driver on this machine.
    #[error("{LIBRARY} is not installed")]
    Absent,
    /// It is there, but for another machine, broken, or without something that it needs.
    #[error("{LIBRARY} cannot be loaded: {0}")]
    Unloadable(String),
    #[error("{LIBRARY} has no function {0}")]
    Incomplete(&'static str),
    #[error("{function} failed with code {code}{}", meaning.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    Failed {
        function: &'static str,
        code: c_int,
        /// The library's own words for the code.
        meaning: Option<String>,
    },
    /// Devices that cannot be told apart cannot be given to pods.
    #[error("GPU {index} says that its uuid is {uuid:?}: {why}")]
    Uuid { index: c_uint, uuid: String, why: &'static str },
}

/// `nvmlMemory_t`.
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

type Device = *mut c_void;
type Text = unsafe extern "C" fn(Device, *mut c_char, c_uint) -> c_int;
type ErrorText = unsafe extern "C" fn(c_int) -> *const c_char;

/// All GPUs that can be used, in the order of their index.
pub fn discover() -> Result<Vec<Gpu>, NvmlError> {
    discover_in(Path::new(LIBRARY))
}

/// As `discover`, by a library of one's own: a bare name is looked for as the loader does.
pub fn discover_in(library: &Path) -> Result<Vec<Gpu>, NvmlError> {
    // SAFETY: loading runs the library's initialisers, which NVIDIA's driver documents as safe to load so.
    let library = unsafe { Library::new(library) }.map_err(|error| not_loaded(library, &error))?;
    // SAFETY: the signatures of all functions below are those of nvml.h; pointers are to live values of the sizes
    // that are passed along; the library outlives every call.
    unsafe {
        let init: Symbol<unsafe extern "C" fn() -> c_int> = function(&library, "nvmlInit_v2")?;
        let shutdown: Symbol<unsafe extern "C" fn() -> c_int> = function(&library, "nvmlShutdown")?;
        check(&library, "nvmlInit_v2", init())?;
        let found = list(&library);
        shutdown();
        found
    }
}

/// The loader gives words alone; a library that is there but misses another is told by the other's name.
fn not_loaded(library: &Path, error: &libloading::Error) -> NvmlError {
    let text = match error {
        libloading::Error::DlOpen { source } => source.to_string(),
        other => other.to_string(),
    };
    let absent = text.ends_with("No such file or directory") && text.starts_with(&format!("{}:", library.display()));
    if absent { NvmlError::Absent } else { NvmlError::Unloadable(text) }
}

/// # Safety
/// NVML must be initialised.
unsafe fn list(library: &Library) -> Result<Vec<Gpu>, NvmlError> {
    // SAFETY: see `discover_in`.
    unsafe {
        let count: Symbol<unsafe extern "C" fn(*mut c_uint) -> c_int> = function(library, "nvmlDeviceGetCount_v2")?;
        let by_index: Symbol<unsafe extern "C" fn(c_uint, *mut Device) -> c_int> =
            function(library, "nvmlDeviceGetHandleByIndex_v2")?;
        let uuid: Symbol<Text> = function(library, "nvmlDeviceGetUUID")?;
        let name: Symbol<Text> = function(library, "nvmlDeviceGetName")?;
        let memory: Symbol<unsafe extern "C" fn(Device, *mut Memory) -> c_int> =
            function(library, "nvmlDeviceGetMemoryInfo")?;
        let mut total: c_uint = 0;
        check(library, "nvmlDeviceGetCount_v2", count(&mut total))?;
        let mut gpus = Vec::new();
        let mut seen = BTreeSet::new();
        for index in 0..total {
            let mut device: Device = std::ptr::null_mut();
            let found = check(library, "nvmlDeviceGetHandleByIndex_v2", by_index(index, &mut device))
                .and_then(|()| describe(library, index, device, &uuid, &name, &memory));
            match found {
                Ok(gpu) if !seen.insert(gpu.uuid.clone()) => {
                    return Err(NvmlError::Uuid { index, uuid: gpu.uuid, why: "an earlier one has the same" });
                }
                Ok(gpu) => gpus.push(gpu),
                // The count holds devices that this user may not open (those of other containers, say) and one that
                // has fallen off its bus; the others work.
                Err(error @ NvmlError::Failed { code: NO_PERMISSION | GPU_IS_LOST, .. }) => {
                    tracing::warn!(index, %error, "a GPU is left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(gpus)
    }
}

/// # Safety
/// `device` must be a handle of NVML.
unsafe fn describe(
    library: &Library,
    index: c_uint,
    device: Device,
    uuid: &Text,
    name: &Text,
    memory: &unsafe extern "C" fn(Device, *mut Memory) -> c_int,
) -> Result<Gpu, NvmlError> {
    let mut bytes = Memory::default();
    // SAFETY: the structure is that of nvml.h.
    match unsafe { memory(device, &mut bytes) } {
        // A GPU that uses the machine's memory has none of its own to tell of.
        NOT_SUPPORTED => bytes = Memory::default(),
        code => check(library, "nvmlDeviceGetMemoryInfo", code)?,
    }
    // SAFETY: by the caller.
    let (uuid, name) = unsafe {
        (text(library, "nvmlDeviceGetUUID", uuid, device)?, text(library, "nvmlDeviceGetName", name, device)?)
    };
    // It becomes a part of a list in CUDA_VISIBLE_DEVICES.
    let whole = !uuid.is_empty() && uuid.len() < TEXT_BYTES;
    if !whole || !uuid.chars().all(|letter| letter.is_ascii_alphanumeric() || "-/".contains(letter)) {
        return Err(NvmlError::Uuid { index, uuid, why: "that is none" });
    }
    Ok(Gpu { uuid, name, memory_bytes: bytes.total })
}

/// # Safety
/// `T` must be the type of the function in nvml.h.
unsafe fn function<'a, T>(library: &'a Library, name: &'static str) -> Result<Symbol<'a, T>, NvmlError> {
    // SAFETY: by the caller.
    unsafe { library.get(name.as_bytes()) }.map_err(|_| NvmlError::Incomplete(name))
}

/// # Safety
/// `device` must be a handle of NVML.
unsafe fn text(library: &Library, name: &'static str, get: &Text, device: Device) -> Result<String, NvmlError> {
    let mut buffer: [c_char; TEXT_BYTES + 1] = [0; TEXT_BYTES + 1];
    // SAFETY: the buffer's true size is passed, less one, so that it ends with a zero in any case.
    check(library, name, unsafe { get(device, buffer.as_mut_ptr(), TEXT_BYTES as c_uint) })?;
    // SAFETY: the last byte is zero.
    Ok(unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned())
}

fn check(library: &Library, function: &'static str, code: c_int) -> Result<(), NvmlError> {
    if code == 0 { Ok(()) } else { Err(NvmlError::Failed { function, code, meaning: meaning(library, code) }) }
}

fn meaning(library: &Library, code: c_int) -> Option<String> {
    // SAFETY: the signature is that of nvml.h. The string is one of the library's constants; the function may be
    // called before NVML is initialised.
    unsafe {
        let error: Symbol<ErrorText> = library.get(b"nvmlErrorString").ok()?;
        let text = error(code);
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}
