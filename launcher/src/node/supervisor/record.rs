//! What node and supervisor tell each other: the spec on stdin, the start report on stdout, and the records in the
//! container's directory, which a later node reads, perhaps of another version.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub(crate) const RECORD_VERSION: u32 = 1;
pub(crate) const LOCK_FILE: &str = "lock";
pub(crate) const LOG_FILE: &str = "0.log";
const RUN_FILE: &str = "run.json";
const EXIT_FILE: &str = "exit.json";
/// The record of a pod, so many folders above those of its containers' starts.
pub(crate) const POD_FILE: &str = "pod.json";
const POD_DEPTH: usize = 3;
/// A record is a few hundred bytes; anything much larger is not one.
const MAX_RECORD: u64 = 64 * 1024;

/// A file or folder of the host that the container sees somewhere else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

/// What to run. Handed over on stdin: it may hold secrets, so it is never written to disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) version: u32,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: PathBuf,
    pub(crate) mounts: Vec<Mount>,
    /// The unpacked root file system of an OCI image, in place of the host's.
    pub(crate) rootfs: Option<PathBuf>,
    /// Whether the container gets its own PID namespace, where the kernel allows.
    pub(crate) pid_namespace: bool,
    pub(crate) log_max_bytes: u64,
    pub(crate) log_max_files: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StartReport {
    Started(RunRecord),
    /// The machine does not allow what the container asks for (mounts, a root file system).
    Refused {
        message: String,
    },
    /// The command could not be executed.
    Failed {
        message: String,
    },
}

/// The running container, for whoever adopts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub(crate) version: u32,
    pub(crate) boot_id: String,
    pub(crate) supervisor: i32,
    /// In clock ticks since boot: with the pid it names one process and no later one.
    pub(crate) supervisor_start: u64,
    pub(crate) pid: i32,
    pub(crate) pid_start: u64,
    pub(crate) started_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub(crate) version: u32,
    pub(crate) exit_code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) started_at: Timestamp,
    pub(crate) finished_at: Timestamp,
}

pub(crate) fn read_run(dir: &Path) -> Option<RunRecord> {
    read(&dir.join(RUN_FILE))
}

pub(crate) fn read_exit(dir: &Path) -> Option<ExitRecord> {
    read(&dir.join(EXIT_FILE))
}

pub(super) fn write_run(dir: &Path, record: &RunRecord) -> io::Result<()> {
    write_atomically(&dir.join(RUN_FILE), &serde_json::to_vec(record)?)
}

/// On disk when this returns, and so is what leads to it: the pod's record and the folders between.
pub(crate) fn write_exit(dir: &Path, record: &ExitRecord) -> io::Result<()> {
    let path = dir.join(EXIT_FILE);
    write_atomically(&path, &serde_json::to_vec(record)?)?;
    File::open(&path)?.sync_all()?;
    // DIR/pods/UID/containers/NAME/ATTEMPT
    for (depth, folder) in dir.ancestors().take(5).enumerate() {
        if depth == POD_DEPTH
            && let Ok(record) = File::open(folder.join(POD_FILE))
        {
            record.sync_all()?;
        }
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    if fs::metadata(path).ok()?.len() > MAX_RECORD {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// A reader sees the old content or the new, readable by the owner alone.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    fs::rename(&temporary, path)
}

/// When a process started, in clock ticks since boot.
pub(crate) fn start_time_of(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, in parentheses, may hold anything; field 22 is the 20th after it.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Names this boot of the machine: pids of another boot mean nothing.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
