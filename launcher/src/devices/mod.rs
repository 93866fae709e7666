//! The machine's GPUs: which there are, and which pod holds which.
//!
//! Real ones come from NVML, loaded at run time; a simulated inventory serves tests and says so in its names. Each
//! device is given to one pod at a time. It does not partition devices or look at how busy they are.

mod allocate;
mod nvml;

pub use allocate::Allocation;
pub use nvml::{NvmlError, discover, discover_in};

use serde::{Deserialize, Serialize};

/// The extended resource that GPUs are asked for by.
pub const GPU_RESOURCE: &str = "nvidia.com/gpu";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// What `CUDA_VISIBLE_DEVICES` names it by.
    pub uuid: String,
    pub name: String,
    pub memory_bytes: u64,
}

/// The GPUs of a machine, in the order of their index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    pub gpus: Vec<Gpu>,
    pub simulated: bool,
}

impl Inventory {
    /// What NVML finds; none where there is no NVIDIA driver.
    pub fn of_this_machine() -> Inventory {
        match discover() {
            Ok(gpus) => Inventory { gpus, simulated: false },
            Err(NvmlError::Absent) => Inventory::default(),
            Err(error) => {
                tracing::warn!(%error, "the machine's GPUs cannot be used");
                Inventory::default()
            }
        }
    }

    /// So many devices that do not exist.
    pub fn simulated(count: usize) -> Inventory {
        let gpus = (0..count)
            .map(|index| Gpu {
                uuid: format!("GPU-simulated-{index}"),
                name: "Simulated GPU".to_owned(),
                memory_bytes: 80 << 30,
            })
            .collect();
        Inventory { gpus, simulated: true }
    }
}
