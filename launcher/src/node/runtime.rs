//! The seam between the node and what really runs containers: processes of this machine (`process`), or a
//! simulation's.

use super::supervisor::Mount;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncWrite};

/// One start of one container of one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId {
    pub pod_uid: String,
    pub container: String,
    /// 0 for the first start, then one more for each restart.
    pub attempt: u32,
}

impl fmt::Display for ContainerId {
    /// As `containerID` in a status carries it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "muster://{}/{}/{}", self.pod_uid, self.container, self.attempt)
    }
}

/// What is known of a pod without the API server: enough to give its devices back and to find its object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    pub version: u32,
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// UUIDs of the GPUs that the pod holds, by container.
    pub devices: BTreeMap<String, Vec<String>>,
}

/// A volume as the pod's containers get to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volume {
    /// An empty folder that lives as long as the pod.
    Empty,
    /// Given files, readable by the pod.
    Files(Vec<VolumeFile>),
    /// A folder that outlives the pod.
    Claim { namespace: String, name: String },
    /// A path of the machine itself.
    Host(PathBuf),
}

#[derive(Clone, PartialEq, Eq)]
pub struct VolumeFile {
    /// Relative, without `..`.
    pub path: PathBuf,
    pub mode: u32,
    pub content: Vec<u8>,
}

impl fmt::Debug for VolumeFile {
    /// Without the content, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeFile({}, {} bytes)", self.path.display(), self.content.len())
    }
}

/// Everything that a container's process is started with.
#[derive(Clone)]
pub struct ContainerStart {
    pub id: ContainerId,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    pub mounts: Vec<Mount>,
    /// The unpacked root file system of an OCI image, in place of the host's.
    pub rootfs: Option<PathBuf>,
    /// False for a pod with `hostPID`.
    pub pid_namespace: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    pub pid: i32,
    pub started_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub exit_code: i32,
    pub signal: Option<i32>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    /// How it ended is not known: its supervisor is gone without a record.
    pub lost: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The machine does not allow what the container asks for. Trying again does not help.
    #[error("{0}")]
    Refused(String),
    /// The command cannot be executed; counts as a container that ended.
    #[error("{0}")]
    Failed(String),
    /// The machine failed to start it; to be tried again.
    #[error("failed to start the container: {0}")]
    Machine(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Asks the container's processes to end (SIGTERM).
    Terminate,
    /// Ends them (SIGKILL).
    Kill,
}

/// A further command in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    pub argv: Vec<String>,
    /// Whether something will be written to it.
    pub stdin: bool,
    /// Whether it gets a terminal, which then is all three of its streams.
    pub tty: bool,
}

/// Gives the command's terminal a size: columns, rows.
pub type Resize = Box<dyn Fn(u16, u16) + Send + Sync>;

/// A further command that runs in a container.
pub struct Executing {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// None with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub resize: Option<Resize>,
    /// Its exit code once it has ended. Dropped, it ends the command and what that has started.
    pub exit: BoxFuture<'static, Result<i32, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovered {
    Running(Started),
    Exited(Exit),
}

/// A pod that an earlier node left.
#[derive(Clone, Debug)]
pub struct RecoveredPod {
    pub record: PodRecord,
    pub containers: Vec<(ContainerId, Recovered)>,
}

#[derive(Debug, thiserror::Error)]
#[error("{context}: {source}")]
pub struct RuntimeError {
    pub context: String,
    pub source: std::io::Error,
}

pub trait PodRuntime: Send + Sync + 'static {
    /// Keeps the record and makes the volumes; answers where each volume is. May be called again, to renew files.
    fn prepare(
        &self,
        record: PodRecord,
        volumes: BTreeMap<String, Volume>,
    ) -> BoxFuture<'_, Result<BTreeMap<String, PathBuf>, RuntimeError>>;

    /// Starts a container; answers once its process runs.
    fn start(&self, start: ContainerStart) -> BoxFuture<'_, Result<Started, StartError>>;

    /// Answers when a started or recovered container has ended, at once if it has.
    fn wait(&self, id: ContainerId) -> BoxFuture<'static, Exit>;

    fn signal(&self, id: &ContainerId, signal: Signal);

    /// Starts a further command in a container, or says why it cannot.
    fn exec(&self, id: &ContainerId, command: Command) -> BoxFuture<'static, Result<Executing, String>>;

    /// What earlier nodes left here.
    fn recover(&self) -> BoxFuture<'_, Result<Vec<RecoveredPod>, RuntimeError>>;

    /// Ends whatever is left of a pod and forgets it, with its logs.
    fn remove(&self, pod_uid: String) -> BoxFuture<'static, ()>;

    /// Where the container's log files are.
    fn log_dir(&self, id: &ContainerId) -> PathBuf;
}
