//! The node: runs the pods that are bound to it.
mod process;
mod runtime;
pub mod supervisor;

pub use process::{ProcessConfig, ProcessRuntime};
pub use runtime::{
    ContainerId, ContainerStart, Exit, PodRecord, PodRuntime, Recovered, RecoveredPod, RuntimeError, Signal,
    StartError, Started, Volume, VolumeFile,
};
