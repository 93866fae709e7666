//! What a node is told when it starts.

use super::http::NodeHandle;
use super::images::{Host, ImageTable};
use super::runtime::PodRuntime;
use crate::devices::Inventory;
use muster_api::clock::Clock;
use std::net::SocketAddr;
use std::sync::Arc;

/// What the node offers besides its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_storage_bytes: i64,
    pub pods: i64,
}

impl Capacity {
    /// All of this machine, and as many pods as the kubelet's default.
    pub fn of_this_machine(data_dir: &std::path::Path) -> Capacity {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib: i64 = total.and_then(|t| t.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
        let storage =
            nix::sys::statvfs::statvfs(data_dir).map_or(0, |fs| fs.blocks().saturating_mul(fs.fragment_size()));
        Capacity {
            cpu_milli: i64::try_from(cores).unwrap_or(1) * 1000,
            memory_bytes: kib.saturating_mul(1024),
            ephemeral_storage_bytes: i64::try_from(storage).unwrap_or(i64::MAX),
            pods: 110,
        }
    }
}

/// What becomes of the pods when the node is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShutdown {
    /// They end, each within its grace period; no process is left.
    Drain,
    /// They go on; a later node adopts them.
    Leave,
}

#[derive(Clone)]
pub struct Config {
    /// The Node object's name.
    pub name: String,
    pub clock: Clock,
    pub runtime: Arc<dyn PodRuntime>,
    pub images: ImageTable,
    /// What processes of the built-in images start with.
    pub host: Host,
    pub capacity: Capacity,
    pub devices: Inventory,
    /// Where pods reach the API server; they get it as KUBERNETES_SERVICE_HOST and _PORT.
    pub api_server: Option<SocketAddr>,
    /// The certificate authority of the API server, where no controller publishes it to pods.
    pub root_ca: Option<String>,
    /// Labels of the Node object, besides the well-known ones.
    pub labels: std::collections::BTreeMap<String, String>,
    pub on_shutdown: OnShutdown,
    /// Serves the logs of this node's pods once `run` runs.
    pub handle: NodeHandle,
}

impl Config {
    /// A node that drains on shutdown and offers all of this machine but GPUs.
    pub fn new(name: String, clock: Clock, runtime: Arc<dyn PodRuntime>) -> Config {
        Config {
            name,
            clock,
            runtime,
            images: ImageTable::fixed(Vec::new()),
            host: Host::default(),
            capacity: Capacity::of_this_machine(std::path::Path::new("/")),
            devices: Inventory::default(),
            api_server: None,
            root_ca: None,
            labels: std::collections::BTreeMap::new(),
            on_shutdown: OnShutdown::Drain,
            handle: NodeHandle::new(),
        }
    }
}
