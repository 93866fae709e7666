//! Containers as processes of this machine, each under a supervisor of its own.
//!
//! ```text
//! DIR/pods/UID/pod.json                          PodRecord
//! DIR/pods/UID/NAME.volume/                      emptyDir, configMap, secret, ...
//! DIR/pods/UID/NAME.ATTEMPT/                     record and log of one start (see `supervisor`)
//! DIR/claims/NAMESPACE/NAME/                     persistent volume claims
//! ```
//! Folders are readable by the owner alone.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "this is the door to processes; its waits are on a thread for blocking")]

use super::exec;
use super::runtime::{
    Command, ContainerId, ContainerStart, Executing, Exit, PodRecord, PodRuntime, Recovered, RecoveredPod,
    RuntimeError, Signal, StartError, Started, Volume, VolumeFile,
};
use super::supervisor::{
    self, ExitRecord, RECORD_VERSION, RunRecord, Spawner, Spec, StartReport, boot_id, open_record, start_time_of,
    write_atomically,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use muster_api::clock::Clock;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{Pid, pipe2};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

const POD_FILE: &str = "pod.json";

#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Where pods are kept.
    pub dir: PathBuf,
    /// The program that is run as `supervise DIR`: `muster` itself.
    pub muster_exe: PathBuf,
    pub clock: Clock,
    pub log_max_bytes: u64,
    pub log_max_files: u32,
}

#[derive(Clone)]
pub struct ProcessRuntime {
    config: Arc<ProcessConfig>,
    spawner: Arc<Spawner>,
    /// More forks at once than this only wait for each other.
    starts: Arc<Semaphore>,
}

impl ProcessRuntime {
    pub fn new(config: ProcessConfig) -> io::Result<Self> {
        make_dir(&config.dir.join("pods"))?;
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let spawner = Arc::new(Spawner::new(config.muster_exe.clone(), config.dir.clone()));
        Ok(ProcessRuntime { config: Arc::new(config), spawner, starts: Arc::new(Semaphore::new(cores * 2)) })
    }

    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.dir.join("pods").join(safe(uid))
    }

    fn container_dir(&self, id: &ContainerId) -> PathBuf {
        let mut name = safe(&id.container);
        name.push(format!(".{}", id.attempt));
        self.pod_dir(&id.pod_uid).join(name)
    }

    /// The starts of a pod's containers that have left a folder.
    fn starts_of(&self, pod_uid: &str, dir: &Path) -> Vec<(ContainerId, PathBuf)> {
        let id = |path: &Path| {
            let (container, attempt) = path.file_name()?.to_str()?.rsplit_once('.')?;
            let attempt = attempt.parse().ok()?;
            Some(ContainerId { pod_uid: pod_uid.to_owned(), container: container.to_owned(), attempt })
        };
        let mut starts: Vec<(ContainerId, PathBuf)> =
            entries(dir).unwrap_or_default().into_iter().filter_map(|path| Some((id(&path)?, path))).collect();
        starts.sort();
        starts
    }

    fn prepare_blocking(
        &self,
        record: &PodRecord,
        volumes: &BTreeMap<String, Volume>,
    ) -> Result<BTreeMap<String, PathBuf>, RuntimeError> {
        let dir = self.pod_dir(&record.uid);
        make_dir(&dir).map_err(context(&dir))?;
        let text = serde_json::to_vec(record).map_err(|e| context(&dir)(e.into()))?;
        let path = dir.join(POD_FILE);
        // A torn first one is a pod in which nothing was started yet.
        let written = if path.exists() { write_atomically(&path, &text) } else { fs::write(&path, &text) };
        written.map_err(context(&path))?;
        let mut places = BTreeMap::new();
        for (name, volume) in volumes {
            let own = dir.join(volume_dir(name));
            let place = match volume {
                Volume::Empty => own,
                Volume::Files(files) => {
                    make_shared_dir(&own).map_err(context(&own))?;
                    for file in files {
                        write_file(&own, file).map_err(context(&own.join(&file.path)))?;
                    }
                    own
                }
                Volume::Claim { namespace, name } => claim_folder(&self.config.dir, namespace, name),
                Volume::Host(path) => path.clone(),
            };
            if matches!(volume, Volume::Empty | Volume::Claim { .. }) {
                make_shared_dir(&place).map_err(context(&place))?;
            }
            places.insert(name.clone(), place);
        }
        Ok(places)
    }

    fn start_blocking(&self, start: ContainerStart) -> Result<Started, StartError> {
        let machine = |error: io::Error| StartError::Machine(error.to_string());
        let dir = self.container_dir(&start.id);
        make_dir(&dir).map_err(machine)?;
        if let Some(old) = start.id.attempt.checked_sub(2) {
            // Only the log of the start before this one is ever asked for.
            let _ = fs::remove_dir_all(self.container_dir(&ContainerId { attempt: old, ..start.id.clone() }));
        }
        let spec = Spec {
            version: RECORD_VERSION,
            argv: start.argv,
            env: start.env,
            cwd: start.cwd,
            mounts: start.mounts,
            rootfs: start.rootfs,
            pid_namespace: start.pid_namespace,
            log_max_bytes: self.config.log_max_bytes,
            log_max_files: self.config.log_max_files,
        };
        let spec = serde_json::to_vec(&spec).map_err(|e| machine(e.into()))?;
        let mut report = self.hand_over(&dir, &spec).map_err(machine)?;
        // The process that forks was killed before it had read the message: what says nothing has started nothing.
        if report.is_none() && supervisor::read_run(&dir).is_none() {
            report = self.hand_over(&dir, &spec).map_err(machine)?;
        }
        match report {
            Some(StartReport::Started(run)) => Ok(Started { pid: run.pid, started_at: run.started_at }),
            Some(StartReport::Refused { message }) => Err(StartError::Refused(message)),
            Some(StartReport::Failed { message }) => Err(StartError::Failed(message)),
            Some(StartReport::Machine { message }) => Err(StartError::Machine(message)),
            None => Err(StartError::Machine(
                "its supervisor ended without a word: it was killed, or the machine is out of processes or memory"
                    .to_owned(),
            )),
        }
    }

    /// What a fresh supervisor says of its start; `None` where it, or the process that was to fork it, ended before it
    /// said anything.
    fn hand_over(&self, dir: &Path, spec: &[u8]) -> io::Result<Option<StartReport>> {
        let ((stdin, give), (take, stdout)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
        let asked = self.spawner.spawn(dir, &stdin, &stdout)?;
        drop((stdin, stdout));
        // One that has refused reads no further, and says why.
        let handed = File::from(give).write_all(spec);
        let mut report = Vec::new();
        File::from(take).take(64 * 1024).read_to_end(&mut report)?;
        if report.is_empty() {
            self.spawner.give_up(asked);
        }
        match handed {
            Err(error) if report.is_empty() && error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(serde_json::from_slice(&report).ok()),
        }
    }

    fn recover_blocking(&self) -> Result<Vec<RecoveredPod>, RuntimeError> {
        let pods = self.config.dir.join("pods");
        let mut recovered = Vec::new();
        for dir in entries(&pods).map_err(context(&pods))? {
            let record = fs::read(dir.join(POD_FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            let Some(record): Option<PodRecord> = record else {
                // Left before anything was started in it.
                tracing::warn!(dir = %dir.display(), "removing a pod folder without a record");
                fs::remove_dir_all(&dir).map_err(context(&dir))?;
                continue;
            };
            let starts = self.starts_of(&record.uid, &dir);
            let containers = starts.into_iter().map(|(id, dir)| (id, self.recover_container(&dir))).collect();
            recovered.push(RecoveredPod { record, containers });
        }
        Ok(recovered)
    }

    fn recover_container(&self, dir: &Path) -> Recovered {
        if let Some(exit) = supervisor::read_exit(dir) {
            return Recovered::Exited(exit_of(exit));
        }
        // The lock is held as long as the supervisor lives.
        let alive = open_record(dir).map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock));
        let held = match alive {
            Ok(Err(_)) => None,
            Ok(Ok(lock)) => Some(lock),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "cannot tell whether a container runs");
                None
            }
        };
        if held.is_none() {
            // It may be about to write its record.
            for _ in 0..200 {
                if let Some(run) = supervisor::read_run(dir) {
                    return Recovered::Running(Started { pid: run.pid, started_at: run.started_at });
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // With the lock nobody writes any more: the end may have been recorded since the first look.
        if let Some(exit) = supervisor::read_exit(dir) {
            return Recovered::Exited(exit_of(exit));
        }
        // Written under the lock: a supervisor that comes late sees it and does not start.
        Recovered::Exited(self.lost(dir, held))
    }

    /// Records that a container ended nobody knows how, and makes sure that it did.
    fn lost(&self, dir: &Path, held: Option<Flock<File>>) -> Exit {
        let run = supervisor::read_run(dir);
        if let Some(run) = &run
            && run.boot_id == boot_id()
            && start_time_of(run.pid) == Some(run.pid_start)
        {
            let _ = nix::sys::signal::kill(Pid::from_raw(-run.pid), nix::sys::signal::Signal::SIGKILL);
        }
        let finished_at = self.config.clock.now();
        let record = ExitRecord {
            version: RECORD_VERSION,
            exit_code: LOST_EXIT_CODE,
            signal: None,
            started_at: run.map_or(finished_at, |run| run.started_at),
            finished_at,
        };
        let written = match held {
            Some(mut file) => supervisor::write_exit(&mut file, &record),
            None => open_record(dir).and_then(|mut file| supervisor::write_exit(&mut file, &record)),
        };
        if let Err(error) = written {
            tracing::warn!(dir = %dir.display(), %error, "failed to record a container's end");
        }
        exit_of(record)
    }
}

/// What Kubernetes gives containers of which it lost track.
const LOST_EXIT_CODE: i32 = 137;

fn exit_of(record: ExitRecord) -> Exit {
    Exit {
        exit_code: record.exit_code,
        signal: record.signal,
        started_at: Some(record.started_at),
        finished_at: record.finished_at,
        lost: record.signal.is_none() && record.exit_code == LOST_EXIT_CODE,
    }
}

impl PodRuntime for ProcessRuntime {
    fn prepare(
        &self,
        record: PodRecord,
        volumes: BTreeMap<String, Volume>,
    ) -> BoxFuture<'_, Result<BTreeMap<String, PathBuf>, RuntimeError>> {
        let runtime = self.clone();
        blocking(move || runtime.prepare_blocking(&record, &volumes)).boxed()
    }

    fn start(&self, start: ContainerStart) -> BoxFuture<'_, Result<Started, StartError>> {
        let runtime = self.clone();
        async move {
            let _turn = self.starts.acquire().await;
            blocking(move || runtime.start_blocking(start)).await
        }
        .boxed()
    }

    fn wait(&self, id: ContainerId) -> BoxFuture<'static, Exit> {
        let dir = self.container_dir(&id);
        let runtime = self.clone();
        async move {
            if let Some(run) = supervisor::read_run(&dir) {
                if let Some(pidfd) = open_supervisor(&run) {
                    // SAFETY: the descriptor is owned and always names the same open pidfd.
                    match unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) } {
                        Ok(pidfd) => drop(pidfd.readable().await),
                        Err(error) => tracing::warn!(%error, "cannot wait for a supervisor"),
                    }
                }
            }
            match supervisor::read_exit(&dir) {
                Some(record) => exit_of(record),
                None => blocking(move || runtime.lost(&dir, None)).await,
            }
        }
        .boxed()
    }

    fn signal(&self, id: &ContainerId, signal: Signal) {
        let number = match signal {
            Signal::Terminate => libc::SIGTERM,
            Signal::Kill => libc::SIGUSR1,
        };
        let Some(pidfd) = supervisor::read_run(&self.container_dir(id)).as_ref().and_then(open_supervisor) else {
            return;
        };
        // SAFETY: a system call on a descriptor that is open; no memory is passed.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, 0, 0) };
    }

    fn exec(&self, id: &ContainerId, command: Command) -> BoxFuture<'static, Result<Executing, String>> {
        let (dir, program) = (self.container_dir(id), self.config.muster_exe.clone());
        async move { exec::execute(&program, &dir, command).await.map_err(|error| error.to_string()) }.boxed()
    }

    fn recover(&self) -> BoxFuture<'_, Result<Vec<RecoveredPod>, RuntimeError>> {
        let runtime = self.clone();
        blocking(move || runtime.recover_blocking()).boxed()
    }

    fn remove(&self, pod_uid: String) -> BoxFuture<'static, ()> {
        let runtime = self.clone();
        async move {
            let dir = runtime.pod_dir(&pod_uid);
            let running = {
                let (runtime, dir) = (runtime.clone(), dir.clone());
                blocking(move || {
                    let starts = runtime.starts_of(&pod_uid, &dir).into_iter();
                    let running = starts.filter(|(_, dir)| supervisor::read_exit(dir).is_none());
                    let running: Vec<ContainerId> = running.map(|(id, _)| id).collect();
                    running.iter().for_each(|id| runtime.signal(id, Signal::Kill));
                    running
                })
                .await
            };
            for id in running {
                runtime.wait(id).await;
            }
            blocking(move || {
                if let Err(error) = fs::remove_dir_all(&dir)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(dir = %dir.display(), %error, "failed to remove a pod's folder");
                }
            })
            .await;
        }
        .boxed()
    }

    fn log_dir(&self, id: &ContainerId) -> PathBuf {
        self.container_dir(id)
    }
}

/// A descriptor of the supervisor, if it still is the process that the record names.
fn open_supervisor(run: &RunRecord) -> Option<OwnedFd> {
    // SAFETY: a system call without pointers; a descriptor that it gives is owned here alone.
    let pidfd = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, run.supervisor, 0);
        OwnedFd::from_raw_fd(i32::try_from(fd).ok().filter(|fd| *fd >= 0)?)
    };
    // Checked after it is open: from here on the pid cannot become another process.
    (start_time_of(run.supervisor) == Some(run.supervisor_start) && run.boot_id == boot_id()).then_some(pidfd)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn context(path: &Path) -> impl FnOnce(io::Error) -> RuntimeError {
    let context = path.display().to_string();
    move |source| RuntimeError { context, source }
}

/// Names come from validated objects; whatever else comes stays one path component.
fn safe(name: &str) -> OsString {
    match name {
        "" | "." | ".." => OsString::from("_"),
        name => OsString::from(name.replace(['/', '\0'], "_")),
    }
}

/// No folder of a container, whose name ends in a number.
fn volume_dir(name: &str) -> OsString {
    let mut dir = safe(name);
    dir.push(".volume");
    dir
}

/// Where a claim's data is, in the runtime's folder.
pub(super) fn claim_folder(dir: &Path, namespace: &str, name: &str) -> PathBuf {
    dir.join("claims").join(safe(namespace)).join(safe(name))
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A folder that the pod's processes, of whatever user, may write into.
fn make_shared_dir(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        fs::create_dir(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    }
    Ok(())
}

fn write_file(dir: &Path, file: &VolumeFile) -> io::Result<()> {
    if !file.path.components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a volume's path must be relative and without '..'"));
    }
    let path = dir.join(&file.path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // A new file follows no link that a container may have left in its volume; the readers of one that is there see
    // its old content or its new.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut new) => new.write_all(&file.content)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => write_atomically(&path, &file.content)?,
        Err(error) => return Err(error),
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(file.mode & 0o777))
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|e| e.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
