//! What node and supervisor tell each other: the spec on stdin, the start report on stdout, and the record in the
//! container's directory, which a later node reads, perhaps of another version.
//!
//! The record is one file: a line for the start, a line for the end. Its lock is held as long as the supervisor lives.
//! A line is written at once; one that a power cut tore is no JSON and counts as never written.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub(crate) const RECORD_VERSION: u32 = 1;
pub(super) const RECORD_FILE: &str = "record";
pub(crate) const LOG_FILE: &str = "0.log";
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
    /// The supervisor itself met with trouble (a full disk, say); the container is none the worse.
    Machine {
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
    /// The supervisor's descriptor of the container's environment.
    #[serde(default)]
    pub(crate) environment: Option<i32>,
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

/// One line of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Run(RunRecord),
    Exit(ExitRecord),
}

/// What is known of a container: its start, its end.
pub(crate) fn read(dir: &Path) -> (Option<RunRecord>, Option<ExitRecord>) {
    let path = dir.join(RECORD_FILE);
    let (mut run, mut exit) = (None, None);
    let small = fs::metadata(&path).is_ok_and(|file| file.len() <= MAX_RECORD);
    let text = if small { fs::read(&path).unwrap_or_default() } else { Vec::new() };
    for line in text.split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Line::Run(record)) => run = Some(record),
            Ok(Line::Exit(record)) => exit = Some(record),
            Err(_) => {}
        }
    }
    (run, exit)
}

pub(crate) fn read_run(dir: &Path) -> Option<RunRecord> {
    read(dir).0
}

pub(crate) fn read_exit(dir: &Path) -> Option<ExitRecord> {
    read(dir).1
}

/// The record, to be locked and appended to; made where there is none.
pub(crate) fn open(dir: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(RECORD_FILE))
}

pub(super) fn write_run(record: &mut File, run: &RunRecord) -> io::Result<()> {
    append(record, &Line::Run(run.clone()))
}

/// Only the holder of the record's lock may write.
pub(crate) fn write_exit(record: &mut File, exit: &ExitRecord) -> io::Result<()> {
    append(record, &Line::Exit(exit.clone()))
}

fn append(record: &mut File, line: &Line) -> io::Result<()> {
    // The first break ends a line that was torn.
    let text = format!("\n{}\n", serde_json::to_string(line)?);
    record.write_all(text.as_bytes())
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
