//! GPUs as NVIDIA's management library tells them. The library is loaded at run time, so the program starts without.
#![allow(unsafe_code)]

use super::Gpu;
use libloading::{Library, Symbol};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

const LIBRARY: &str = "libnvidia-ml.so.1";

#[derive(Debug, thiserror::Error)]
pub enum NvmlError {
    /// No NVIDIA driver on this machine.
    #[error("{LIBRARY} is not installed")]
    Absent,
    #[error("{LIBRARY} has no function {0}")]
    Incomplete(&'static str),
    #[error("{function} failed with code {code}")]
    Failed { function: &'static str, code: c_int },
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

/// All GPUs, in the order of their index.
pub fn discover() -> Result<Vec<Gpu>, NvmlError> {
    discover_in(LIBRARY)
}

fn discover_in(library: &str) -> Result<Vec<Gpu>, NvmlError> {
    // SAFETY: loading runs the library's initialisers, which NVIDIA's driver documents as safe to load so.
    let library = unsafe { Library::new(library) }.map_err(|_| NvmlError::Absent)?;
    // SAFETY: the signatures of all functions below are those of nvml.h; pointers are to live values of the sizes
    // that are passed along; the library outlives every call.
    unsafe {
        let init: Symbol<unsafe extern "C" fn() -> c_int> = function(&library, "nvmlInit_v2")?;
        let shutdown: Symbol<unsafe extern "C" fn() -> c_int> = function(&library, "nvmlShutdown")?;
        check("nvmlInit_v2", init())?;
        let found = list(&library);
        shutdown();
        found
    }
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
        check("nvmlDeviceGetCount_v2", count(&mut total))?;
        let mut gpus = Vec::new();
        for index in 0..total {
            let mut device: Device = std::ptr::null_mut();
            check("nvmlDeviceGetHandleByIndex_v2", by_index(index, &mut device))?;
            let mut bytes = Memory::default();
            check("nvmlDeviceGetMemoryInfo", memory(device, &mut bytes))?;
            gpus.push(Gpu {
                uuid: text("nvmlDeviceGetUUID", &uuid, device)?,
                name: text("nvmlDeviceGetName", &name, device)?,
                memory_bytes: bytes.total,
            });
        }
        Ok(gpus)
    }
}

/// # Safety
/// `T` must be the type of the function in nvml.h.
unsafe fn function<'a, T>(library: &'a Library, name: &'static str) -> Result<Symbol<'a, T>, NvmlError> {
    // SAFETY: by the caller.
    unsafe { library.get(name.as_bytes()) }.map_err(|_| NvmlError::Incomplete(name))
}

/// # Safety
/// `device` must be a handle of NVML.
unsafe fn text(name: &'static str, get: &Text, device: Device) -> Result<String, NvmlError> {
    let mut buffer: [c_char; 96] = [0; 96];
    // SAFETY: the buffer's true size is passed, less one, so that it ends with a zero in any case.
    check(name, unsafe { get(device, buffer.as_mut_ptr(), 95) })?;
    // SAFETY: the last byte is zero.
    Ok(unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned())
}

fn check(function: &'static str, code: c_int) -> Result<(), NvmlError> {
    if code == 0 { Ok(()) } else { Err(NvmlError::Failed { function, code }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_library_has_no_gpus() {
        assert!(matches!(discover_in("libno-such-library.so.1"), Err(NvmlError::Absent)));
    }

    #[test]
    fn a_library_that_is_not_nvml_is_refused() {
        assert!(matches!(discover_in("libc.so.6"), Err(NvmlError::Incomplete("nvmlInit_v2"))));
    }

    #[test]
    fn what_is_found_has_a_name() {
        for gpu in discover().unwrap_or_default() {
            assert!(gpu.uuid.starts_with("GPU-") && !gpu.name.is_empty() && gpu.memory_bytes > 0, "{gpu:?}");
        }
    }
}
