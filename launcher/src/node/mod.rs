//! The node: runs the pods that are bound to it as processes of this machine.
//!
//! `agent` keeps the Node object and gives each pod a `worker`; a worker lets `lifecycle` (pure) decide and has a
//! `PodRuntime` carry it out; `process` is the runtime of real processes, each under a `supervisor`. `status`, `env`,
//! `volumes` and `images` say what a pod's specification means here; `http` and `logs` serve what it wrote. `streams` takes a client to
//! a container, where `exec` runs what it asks for.
//!
//! `probe` (pure) knows when a container is to be asked how it is, and `action` asks it.
//!
//! Pods have the machine's network and no cgroup of their own. What a pod asks for and cannot have, such as another
//! user or a gRPC probe, an event on the pod says.

mod action;
mod agent;
pub mod claims;
mod config;
mod env;
mod exec;
mod http;
mod images;
mod launch;
pub mod lifecycle;
mod logs;
mod object;
mod peers;
mod probe;
mod process;
mod runtime;
mod sources;
mod status;
mod streams;
pub mod supervisor;
mod volumes;
mod worker;

pub use agent::{Error, run};
pub use config::{Capacity, Config, OnShutdown};
pub use http::{NodeHandle, NodeService};
pub use images::{Host, Image, ImageError, ImageTable, TableError};
pub use process::{ProcessConfig, ProcessRuntime};
pub use runtime::{
    Command, ContainerId, ContainerStart, Executing, Exit, PodRecord, PodRuntime, Recovered, RecoveredPod, Resize,
    RuntimeError, Signal, StartError, Started, Volume, VolumeFile,
};
