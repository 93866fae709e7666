//! From a container's specification to the process that is started: image, environment, command, mounts, devices.

use super::config::Config;
use super::env::{self, Scope};
use super::images::Ground;
use super::runtime::{ContainerId, ContainerStart, StartError, Started};
use super::sources::{Wanted, fetch};
use super::status::Address;
use super::supervisor::Mount;
use super::volumes;
use k8s_openapi::api::core::v1 as core;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Why a container does not run.
#[derive(Debug)]
pub(crate) enum LaunchError {
    /// It waits, and is tried again; `reason` as its status gives it.
    Held { reason: &'static str, message: String },
    /// Its command could not be executed: it counts as ended.
    Failed(String),
}

pub(crate) struct Launch<'a> {
    pub(crate) client: &'a kube::Client,
    pub(crate) config: &'a Config,
    pub(crate) address: &'a Address,
    pub(crate) allocatable: &'a BTreeMap<String, i64>,
    pub(crate) pod: &'a core::Pod,
    pub(crate) container: &'a core::Container,
    pub(crate) attempt: u32,
    /// Where the pod's volumes are.
    pub(crate) places: &'a BTreeMap<String, PathBuf>,
    /// Uuids of the GPUs that this container holds.
    pub(crate) devices: &'a [String],
}

fn held(reason: &'static str) -> impl Fn(String) -> LaunchError {
    move |message| LaunchError::Held { reason, message }
}

impl Launch<'_> {
    pub(crate) async fn run(&self) -> Result<Started, LaunchError> {
        let start = self.prepare().await?;
        self.config.runtime.start(start).await.map_err(|error| match error {
            StartError::Refused(message) => held("CreateContainerConfigError")(message),
            StartError::Failed(message) => LaunchError::Failed(message),
            StartError::Machine(_) => held("RunContainerError")(error.to_string()),
        })
    }

    async fn prepare(&self) -> Result<ContainerStart, LaunchError> {
        let Launch { config, pod, container, .. } = self;
        let image = container.image.as_deref().unwrap_or_default();
        let (found, command) = config.images.resolve(image).map_err(|e| held("ErrImagePull")(e.to_string()))?;
        let ground = config.host.ground(&found, command);

        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let wanted = Wanted::by_environment(container);
        let fetched = fetch(self.client, namespace, wanted, None)
            .await
            .map_err(|error| held("CreateContainerConfigError")(error.to_string()))?;
        let scope = Scope { pod, address: self.address, fetched: &fetched, allocatable: self.allocatable };
        let env = env::resolve(container, self.base_env(&ground), &scope)
            .map_err(|error| held("CreateContainerConfigError")(error.to_string()))?;

        let argv = self.argv(&ground, &env)?;
        let mut mounts: Vec<Mount> = ground
            .overlays
            .iter()
            .map(|(source, target)| Mount { source: source.clone(), target: target.clone(), read_only: false })
            .collect();
        let volumes = volumes::mounts(container, self.places, &env).map_err(held("CreateContainerConfigError"))?;
        // A volume hides what the image has at its path.
        mounts.retain(|mount| !volumes.iter().any(|volume| mount.target.starts_with(&volume.target)));
        mounts.extend(volumes);
        let cwd = container.working_dir.as_ref().filter(|dir| !dir.is_empty()).map_or(ground.cwd, PathBuf::from);
        let spec = pod.spec.as_ref();
        Ok(ContainerStart {
            id: ContainerId {
                pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
                container: container.name.clone(),
                attempt: self.attempt,
            },
            argv,
            env,
            cwd,
            mounts,
            rootfs: ground.rootfs,
            pid_namespace: spec.and_then(|s| s.host_pid) != Some(true),
        })
    }

    fn base_env(&self, ground: &Ground) -> Vec<(String, String)> {
        let mut env = ground.env.clone();
        let mut set = |name: &str, value: String| {
            env.retain(|(known, _)| known != name);
            env.push((name.to_owned(), value));
        };
        let spec = self.pod.spec.as_ref();
        let hostname = spec.and_then(|s| s.hostname.clone()).or_else(|| self.pod.metadata.name.clone());
        set("HOSTNAME", hostname.unwrap_or_default());
        if let Some(server) = self.config.api_server {
            set("KUBERNETES_SERVICE_HOST", server.ip().to_string());
            set("KUBERNETES_SERVICE_PORT", server.port().to_string());
            set("KUBERNETES_SERVICE_PORT_HTTPS", server.port().to_string());
        }
        // On a machine with GPUs, who holds none sees none.
        if !self.config.devices.gpus.is_empty() {
            let visible = self.devices.join(",");
            let none = if visible.is_empty() { "void".to_owned() } else { visible.clone() };
            set("CUDA_VISIBLE_DEVICES", visible);
            set("NVIDIA_VISIBLE_DEVICES", none);
        }
        env
    }

    fn argv(&self, ground: &Ground, env: &[(String, String)]) -> Result<Vec<String>, LaunchError> {
        let given = |words: &Option<Vec<String>>| words.clone().filter(|words| !words.is_empty());
        let (command, args) = (given(&self.container.command), given(&self.container.args));
        // As with images elsewhere, arguments alone are the command where the image has none of its own.
        let mut argv = match &command {
            Some(command) => env::expand_all(command, env),
            None => ground.command.clone(),
        };
        argv.extend(args.map(|args| env::expand_all(&args, env)).unwrap_or_default());
        if argv.is_empty() {
            let image = self.container.image.as_deref().unwrap_or_default();
            let message = format!(
                "no command specified: on this machine the image \"{image}\" has none of its own; give the container a \
                 command, or the image's entry in the image table"
            );
            return Err(held("CreateContainerError")(message));
        }
        Ok(argv)
    }
}
