//! The node's role: this machine, its GPUs, its environment, pods as processes under supervisors.

use crate::data_folder::DataFolder;
use crate::env;
use crate::settings::{ServerSettings, xdg};
use anyhow::{Context, Result};
use muster_api::clock::Clock;
use muster_launcher::devices::Inventory;
use muster_launcher::node::{
    self, Capacity, Config, Host, ImageTable, NodeHandle, OnShutdown, PodRuntime, ProcessConfig, ProcessRuntime,
    Recovered, Signal,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The libtorch that `muster-worker` is built with.
const LIBTORCH: &str = "muster/libtorch-2.11.0";
const WORKER: &str = "muster-worker";
const LOG_MAX_BYTES: u64 = 10 << 20;
const LOG_MAX_FILES: u32 = 5;

/// Ready to run; its logs can be asked for as soon as it does.
pub(super) struct Prepared {
    config: Config,
    /// Of the runtime.
    dir: PathBuf,
    ca: PathBuf,
}

/// What ends the pods of a node without patience.
#[derive(Clone)]
pub(super) struct Killer(Arc<dyn PodRuntime>);

pub(super) fn prepare(settings: &ServerSettings, folder: &DataFolder) -> Result<Prepared> {
    let clock = Clock::system();
    let muster_exe = std::env::current_exe().context("the path of this program is not known")?;
    let dir = folder.file("node");
    let runtime = ProcessRuntime::new(ProcessConfig {
        dir: dir.clone(),
        muster_exe: muster_exe.clone(),
        clock: clock.clone(),
        log_max_bytes: LOG_MAX_BYTES,
        log_max_files: LOG_MAX_FILES,
    })
    .with_context(|| format!("failed to use {}", dir.display()))?;
    let devices = match settings.simulated_gpus {
        0 => Inventory::of_this_machine(),
        count => Inventory::simulated(count.try_into()?),
    };
    let config = Config {
        name: host_name(),
        clock,
        runtime: Arc::new(runtime),
        images: ImageTable::open(Some(settings.images.clone()))?,
        host: Host {
            env: env::all(),
            cwd: std::env::current_dir().context("the current folder is gone")?,
            worker_exe: worker(&muster_exe),
            libtorch: libtorch(),
        },
        capacity: Capacity::of_this_machine(folder.path()),
        devices,
        api_server: None,
        root_ca: None,
        labels: BTreeMap::new(),
        on_shutdown: OnShutdown::Drain,
        handle: NodeHandle::new(),
    };
    Ok(Prepared { config, dir, ca: folder.file("ca.crt") })
}

impl Prepared {
    /// The logs of its pods, for the API server.
    pub(super) fn http(&self) -> node::NodeService {
        self.config.handle.http()
    }

    pub(super) fn killer(&self) -> Killer {
        Killer(self.config.runtime.clone())
    }

    pub(super) async fn run(
        mut self,
        client: kube::Client,
        api_server: Option<SocketAddr>,
        ready: oneshot::Sender<()>,
        stop: CancellationToken,
    ) -> Result<()> {
        self.config.api_server = api_server;
        // By now the API server has made it, where this process is one.
        self.config.root_ca = std::fs::read_to_string(&self.ca).ok();
        let claims = node::claims::run(client.clone(), self.config.clock.clone(), self.dir, stop.clone());
        let mut node = std::pin::pin!(node::run(client, self.config, ready, stop));
        tokio::select! {
            outcome = &mut node => return Ok(outcome?),
            // It has no pods to wait for.
            () = claims => {}
        }
        Ok(node.await?)
    }
}

impl Killer {
    /// Kills every process of every pod; the node sees them end.
    pub(super) async fn kill_all(&self) {
        match self.0.recover().await {
            Ok(pods) => {
                for (id, state) in pods.into_iter().flat_map(|pod| pod.containers) {
                    if matches!(state, Recovered::Running(_)) {
                        self.0.signal(&id, Signal::Kill);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "failed to list what runs"),
        }
    }
}

/// The machine's name, as far as object names allow.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_lowercase();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

/// The worker beside this program, else the one of the PATH.
fn worker(muster_exe: &Path) -> PathBuf {
    let beside = muster_exe.with_file_name(WORKER);
    if beside.is_file() {
        return beside;
    }
    let path = env::read(env::PATH).unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(WORKER)).find(|file| file.is_file()).unwrap_or(beside)
}

/// The folder of libtorch's libraries: of `LIBTORCH`, else of the cache that `make libtorch` fills.
fn libtorch() -> Option<PathBuf> {
    let folder = match env::path(env::LIBTORCH) {
        Some(folder) => folder,
        None => xdg(env::XDG_CACHE_HOME, ".cache").ok()?.join(LIBTORCH),
    };
    Some(folder.join("lib")).filter(|lib| lib.is_dir())
}
