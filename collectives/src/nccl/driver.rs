//! libcuda, the driver's own library: which GPUs there are, and how they reach each other.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::nccl::abi::{
    ATTRIBUTE_CAPABILITY_MAJOR, ATTRIBUTE_CAPABILITY_MINOR, ATTRIBUTE_MULTIPROCESSORS, CuDevice, CudaFunctions,
    P2P_PERFORMANCE_RANK, SUCCESS,
};
use crate::nccl::error::DriverError;
use crate::nccl::library::string;
use crate::nccl::loading::Search;

const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

const ADVICE: &str =
    "Install NVIDIA's driver, or, in a container, give it the host's (as nvidia-container-toolkit does)";

/// The loaded and initialised driver. Clones are the same one.
#[derive(Clone)]
pub struct Driver(Arc<Loaded>);

struct Loaded {
    functions: CudaFunctions,
    path: PathBuf,
}

/// One GPU.
#[derive(Clone)]
pub struct Device {
    pub(super) driver: Driver,
    pub(super) handle: CuDevice,
    ordinal: usize,
}

impl Driver {
    /// Loads and initialises the driver. A machine that has it, but no GPU, is told here: the driver refuses.
    pub fn load(search: &Search) -> Result<Driver, DriverError> {
        let opened = search.open(&NAMES, ADVICE)?;
        let functions = CudaFunctions::load(&opened)?;
        let driver = Driver(Arc::new(Loaded { functions, path: opened.path("cuInit") }));
        // SAFETY: the function may be called any number of times, with no flags.
        driver.check("cuInit", unsafe { (driver.functions().init)(0) })?;
        Ok(driver)
    }

    /// The newest CUDA that the driver speaks, as 13000 for 13.0.
    pub fn version(&self) -> Result<u32, DriverError> {
        let mut version = 0;
        // SAFETY: the function writes one int.
        self.check("cuDriverGetVersion", unsafe { (self.functions().driver_get_version)(&raw mut version) })?;
        Ok(version.try_into().unwrap_or(0))
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The GPUs that this process may use, in CUDA's order.
    pub fn devices(&self) -> Result<Vec<Device>, DriverError> {
        let mut count = 0;
        // SAFETY: the function writes one int.
        self.check("cuDeviceGetCount", unsafe { (self.functions().device_get_count)(&raw mut count) })?;
        (0..count)
            .map(|ordinal| {
                let mut handle = 0;
                // SAFETY: the function writes a handle, an int.
                self.check("cuDeviceGet", unsafe { (self.functions().device_get)(&raw mut handle, ordinal) })?;
                Ok(Device { driver: self.clone(), handle, ordinal: ordinal as usize })
            })
            .collect()
    }

    pub fn device(&self, ordinal: usize) -> Result<Device, DriverError> {
        let mut devices = self.devices()?;
        match devices.len() {
            count if ordinal < count => Ok(devices.swap_remove(ordinal)),
            count => Err(DriverError::NoDevice { ordinal, count }),
        }
    }

    pub(super) fn functions(&self) -> &CudaFunctions {
        &self.0.functions
    }

    pub(super) fn check(&self, function: &'static str, code: c_int) -> Result<(), DriverError> {
        if code == SUCCESS {
            return Ok(());
        }
        let text = |describe: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            // SAFETY: the function writes a pointer to a string that stays, or null for a code it does not know.
            unsafe {
                describe(code, &raw mut text);
                string(text)
            }
        };
        let (name, text) = (text(self.functions().get_error_name), text(self.functions().get_error_string));
        Err(DriverError::Call { function, code, name, text })
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Driver({})", self.path().display())
    }
}

impl Device {
    /// Its place in CUDA's order, in this process.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub fn name(&self) -> Result<String, DriverError> {
        self.text("cuDeviceGetName", self.driver.functions().device_get_name)
    }

    /// As 0000:3b:00.0.
    pub fn pci_bus_id(&self) -> Result<String, DriverError> {
        let text = self.text("cuDeviceGetPCIBusId", self.driver.functions().device_get_pci_bus_id)?;
        Ok(text.to_lowercase())
    }

    /// As NVIDIA's tools print it: GPU-, then 32 digits in five parts.
    pub fn uuid(&self) -> Result<String, DriverError> {
        let functions = self.driver.functions();
        let get = functions.device_get_uuid_v2.unwrap_or(functions.device_get_uuid);
        let mut bytes = [0u8; 16];
        // SAFETY: the function writes 16 bytes.
        self.driver.check("cuDeviceGetUuid", unsafe { get(&raw mut bytes, self.handle) })?;
        let mut text = String::from("GPU");
        for (index, byte) in bytes.iter().enumerate() {
            if matches!(index, 0 | 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        Ok(text)
    }

    /// The architecture, as (9, 0).
    pub fn compute_capability(&self) -> Result<(u32, u32), DriverError> {
        Ok((self.attribute(ATTRIBUTE_CAPABILITY_MAJOR)?, self.attribute(ATTRIBUTE_CAPABILITY_MINOR)?))
    }

    pub fn multiprocessors(&self) -> Result<u32, DriverError> {
        self.attribute(ATTRIBUTE_MULTIPROCESSORS)
    }

    /// Bytes of its memory.
    pub fn memory(&self) -> Result<u64, DriverError> {
        let mut bytes = 0;
        let get = self.driver.functions().device_total_mem;
        // SAFETY: the function writes one size_t.
        self.driver.check("cuDeviceTotalMem", unsafe { get(&raw mut bytes, self.handle) })?;
        Ok(bytes as u64)
    }

    /// The host's memory node that it is nearest to, where the system tells.
    pub fn numa_node(&self) -> Option<u32> {
        let id = self.pci_bus_id().ok()?;
        let text = std::fs::read_to_string(format!("/sys/bus/pci/devices/{id}/numa_node")).ok()?;
        // -1 where the system has one node only.
        text.trim().parse().ok()
    }

    /// Whether its kernels may read and write the other's memory directly.
    pub fn can_access(&self, other: &Device) -> Result<bool, DriverError> {
        let mut can = 0;
        let get = self.driver.functions().device_can_access_peer;
        // SAFETY: the function writes one int.
        self.driver.check("cuDeviceCanAccessPeer", unsafe { get(&raw mut can, self.handle, other.handle) })?;
        Ok(can != 0)
    }

    /// How well the two are connected, relative to other pairs of this host; 0 is best.
    pub fn link_rank(&self, other: &Device) -> Result<u32, DriverError> {
        let mut rank = 0;
        let get = self.driver.functions().device_get_p2p_attribute;
        // SAFETY: the function writes one int.
        let code = unsafe { get(&raw mut rank, P2P_PERFORMANCE_RANK, self.handle, other.handle) };
        self.driver.check("cuDeviceGetP2PAttribute", code)?;
        Ok(rank.try_into().unwrap_or(0))
    }

    fn attribute(&self, attribute: c_int) -> Result<u32, DriverError> {
        let mut value = 0;
        let get = self.driver.functions().device_get_attribute;
        // SAFETY: the function writes one int.
        self.driver.check("cuDeviceGetAttribute", unsafe { get(&raw mut value, attribute, self.handle) })?;
        Ok(value.try_into().unwrap_or(0))
    }

    fn text(
        &self,
        function: &'static str,
        get: unsafe extern "C" fn(*mut c_char, c_int, CuDevice) -> c_int,
    ) -> Result<String, DriverError> {
        let mut bytes = [0u8; 256];
        // SAFETY: the function writes a string of at most the given length with its zero.
        let code = unsafe { get(bytes.as_mut_ptr().cast(), bytes.len() as c_int, self.handle) };
        self.driver.check(function, code)?;
        Ok(CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default())
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.ordinal)
    }
}
