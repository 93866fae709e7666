//! Finds the records of this machine's ranks and reads them, without their help.
//!
//! Whoever made the memory may have put anything there: nothing is believed before it is checked, and nothing is
//! mapped, so that a reader cannot be killed by it either.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use crate::call::{Call, Kind};
use crate::flight::record::{self, HEAD_WORDS, RECORD_WORDS, WORDS, head, word};
use crate::ticks::Moment;

/// What the link of a recorder's descriptor says.
const LINK: &str = "/memfd:muster-flight (deleted)";

/// Records that are read at most; nobody runs as many ranks on a machine.
const RECORDINGS_MAX: usize = 4096;

/// What [`find`] found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// One a communicator, in the order of process and descriptor.
    pub recordings: Vec<Recording>,
    /// What looks like a record and cannot be read.
    pub skipped: Vec<Skipped>,
}

/// A record that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// The process that holds it.
    pub pid: u32,
    /// Why it cannot be read.
    pub cause: String,
}

/// What one rank's communicator did last. Times are those of the host's monotonic clock.
#[derive(Clone, PartialEq, Debug)]
pub struct Recording {
    /// The rank's process, as this process sees it.
    pub pid: u32,
    /// What the process was doing for the kernel when the record was read.
    pub process: Process,
    /// The rank.
    pub rank: u32,
    /// The number of ranks.
    pub world: u32,
    /// The epoch of the communicator.
    pub epoch: u64,
    /// Equal for the ranks of one communicator, and for no others.
    pub identity: u64,
    /// What the job is called; may be empty.
    pub label: String,
    /// The host, as the communicator knows it.
    pub host: String,
    /// Ranks of the world on that host, this one counted.
    pub neighbours: u32,
    /// When it was read.
    pub taken: Duration,
    /// When the rank began to connect.
    pub created: Duration,
    /// When all ranks were connected.
    pub connected: Option<Duration>,
    /// How many operations have begun, the forgotten ones counted.
    pub begun: u64,
    /// The sequence of the last operation of all ranks that has begun.
    pub collective: Option<u64>,
    /// The last operations, in the order of their beginning.
    pub operations: Vec<Operation>,
    /// What ended the communicator.
    pub failure: Option<Failure>,
}

/// One operation of a rank.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Operation {
    pub(super) call: Call,
    /// The how many-eth operation of this rank it is, from 1, all kinds counted.
    pub number: u64,
    /// The other rank of a message, where it is known.
    pub peer: Option<u32>,
    /// Whether it has ended, and how.
    pub state: State,
    /// When it was asked for.
    pub issued: Duration,
    /// When its turn came.
    pub started: Duration,
    /// When it ended.
    pub ended: Option<Duration>,
}

/// How far an operation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Running,
    Done,
    Failed,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Running => "running",
            State::Done => "done",
            State::Failed => "failed",
        })
    }
}

/// What ended a communicator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The rank that it is about.
    pub rank: Option<u32>,
    /// The error's text.
    pub text: String,
    /// When it ended.
    pub at: Duration,
}

/// A process's state, by the letter in `/proc/PID/stat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Process {
    /// It runs, or sleeps and would wake.
    Alive,
    /// It sleeps in the kernel and cannot be woken.
    Blocked,
    /// A signal has stopped it.
    Stopped,
    /// A debugger holds it.
    Traced,
    /// It has ended and its parent has not taken note.
    Ended,
    Unknown,
}

impl Process {
    /// From the letter in `/proc/PID/stat`.
    pub fn from_letter(letter: char) -> Process {
        match letter {
            'R' | 'S' | 'I' | 'P' | 'W' => Process::Alive,
            'D' => Process::Blocked,
            'T' => Process::Stopped,
            't' => Process::Traced,
            'Z' | 'X' | 'x' => Process::Ended,
            _ => Process::Unknown,
        }
    }
}

impl Operation {
    /// The operation's number among those that take the same ranks: what they know it by.
    pub fn sequence(&self) -> u64 {
        self.call.sequence
    }

    /// Which operation, on what: `all_reduce(sum, f32, 1000)`.
    pub fn call(&self) -> String {
        let text = self.call.to_string();
        text.rsplit_once(" as operation ").map_or(text.clone(), |(call, _)| call.to_owned())
    }

    /// Which operation: `all_reduce`.
    pub fn name(&self) -> String {
        self.call().split('(').next().unwrap_or_default().to_owned()
    }

    /// The type of the elements.
    pub fn dtype(&self) -> crate::element::DType {
        self.call.dtype
    }

    /// The number of elements that the rank gave it.
    pub fn count(&self) -> u64 {
        self.call.count
    }

    /// The bytes of these elements.
    pub fn bytes(&self) -> u64 {
        self.call.count.saturating_mul(self.call.dtype.size() as u64)
    }

    pub(super) fn is_message(&self) -> bool {
        matches!(self.call.kind, Kind::Message { .. })
    }

    /// When it came into the state that it is in.
    pub fn since(&self) -> Duration {
        self.ended.unwrap_or(self.started)
    }
}

/// Reads the records of all processes of this machine that this one may look into: those of the same user.
pub fn find() -> io::Result<Found> {
    let mut memories: BTreeMap<(u64, u64), Vec<(u32, String)>> = BTreeMap::new();
    for pid in numbers(Path::new("/proc"))? {
        // It may have ended meanwhile, or be another user's.
        let folder = format!("/proc/{pid}/fd");
        let Ok(descriptors) = numbers(Path::new(&folder)) else { continue };
        for descriptor in descriptors {
            let path = format!("{folder}/{descriptor}");
            if !std::fs::read_link(&path).is_ok_and(|target| target.as_os_str() == LINK) {
                continue;
            }
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let memory = (metadata.dev(), metadata.ino());
            if memories.len() < RECORDINGS_MAX || memories.contains_key(&memory) {
                memories.entry(memory).or_default().push((pid, path));
            }
        }
    }
    let mut found = Found::default();
    for (memory, holders) in memories {
        // One at a time: there may be more of them than files that this process may open.
        let Some(file) = holders.iter().find_map(|(_, path)| open(path, memory)) else { continue };
        let pids: Vec<u32> = holders.iter().map(|(pid, _)| *pid).collect();
        match read(&file, &pids) {
            Ok(Some(recording)) => found.recordings.push(recording),
            Ok(None) => {}
            Err(flaw) => {
                let pid = pids.first().copied().unwrap_or_default();
                found.skipped.push(Skipped { pid, cause: flaw.to_string() });
            }
        }
    }
    found.recordings.sort_by_key(|recording| (recording.pid, recording.created));
    Ok(found)
}

/// The entries of a folder that are numbers, ascending.
fn numbers(folder: &Path) -> io::Result<BTreeSet<u32>> {
    let entries = std::fs::read_dir(folder)?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// The file of that device and inode, if the descriptor still is for it.
fn open(path: &str, memory: (u64, u64)) -> Option<File> {
    // The link's text proves nothing: opening a pipe of that name must not wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && (metadata.dev(), metadata.ino()) == memory).then_some(file)
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
enum Flaw {
    #[error("it is not a flight record")]
    Stranger,
    #[error("it is a flight record of another version of muster")]
    Layout,
    #[error("it contradicts itself")]
    Invalid,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The record that processes hold; `None` where its rank's process is not among them. A child that was forked
/// without exec holds what its parent had, and goes on to when the parent has died.
fn read(file: &File, holders: &[u32]) -> Result<Option<Recording>, Flaw> {
    if file.metadata()?.len() != record::BYTES as u64 {
        // Another version has another size.
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, 0).map_err(|_| Flaw::Stranger)?;
        return Err(if u64::from_ne_bytes(magic) == record::MAGIC { Flaw::Layout } else { Flaw::Stranger });
    }
    // Three times: what is equal in the first and the last did not change while the second was read.
    let first = snapshot(file)?;
    fence(Ordering::Acquire);
    let second = snapshot(file)?;
    fence(Ordering::Acquire);
    let last = snapshot(file)?;
    let Some(mut recording) = decode(&first, &second, &last, Moment::now())? else { return Ok(None) };
    let Some(pid) = holders.iter().copied().find(|pid| is_known_as(*pid, recording.pid)) else {
        return Ok(None);
    };
    recording.pid = pid;
    recording.process = process(pid);
    Ok(Some(recording))
}

fn snapshot(file: &File) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; record::BYTES];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect())
}

/// Whether the process that has the number `pid` here knows itself as `own`, which differs in a container.
fn is_known_as(pid: u32, own: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let innermost = line.and_then(|numbers| numbers.split_whitespace().next_back()?.parse().ok());
    innermost.unwrap_or(pid) == own
}

fn process(pid: u32) -> Process {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may hold anything, parentheses and spaces too.
    let letter = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    letter.map_or(Process::Unknown, Process::from_letter)
}

/// What is in memory that was read three times; `None` where its rank has not finished to set it up.
fn decode(first: &[u64], second: &[u64], last: &[u64], now: Moment) -> Result<Option<Recording>, Flaw> {
    if [first, second, last].iter().any(|words| words.len() != WORDS) {
        return Err(Flaw::Invalid);
    }
    match first[head::MAGIC] {
        record::MAGIC => {}
        0 => return Ok(None),
        _ => return Err(Flaw::Stranger),
    }
    if second[head::LAYOUT] != record::LAYOUT || second[head::SIZES] != record::SIZES {
        return Err(Flaw::Layout);
    }
    let number = |index: usize| u32::try_from(second[index]).map_err(|_| Flaw::Invalid);
    let origin = Moment { ticks: second[head::TICKS], nanoseconds: second[head::NANOSECONDS] };
    let time = |ticks: u64| Duration::from_nanos(origin.at(now, ticks).min(now.nanoseconds));
    let (rank, world) = (number(head::RANK)?, number(head::WORLD)?);
    if rank >= world {
        return Err(Flaw::Invalid);
    }
    let failure = (first[head::ERROR] == record::ERROR_READABLE).then(|| Failure {
        rank: second[head::ERROR_RANK].checked_sub(1).and_then(|rank| u32::try_from(rank).ok()),
        text: text(&second[head::ERROR_TEXT..][..record::ERROR_WORDS], second[head::ERROR_LENGTH]),
        at: time(second[head::ERROR_TICKS]),
    });
    let mut operations: Vec<Operation> = (HEAD_WORDS..WORDS)
        .step_by(RECORD_WORDS)
        .filter(|start| first[start + word::STATE] == last[start + word::STATE])
        .filter_map(|start| operation(first[start + word::STATE], &second[start..][..RECORD_WORDS], time))
        .collect();
    operations.sort_by_key(|operation| operation.number);
    operations.dedup_by_key(|operation| operation.number);
    Ok(Some(Recording {
        pid: number(head::PID)?,
        process: Process::Unknown,
        rank,
        world,
        epoch: second[head::EPOCH],
        identity: second[head::IDENTITY],
        label: text(&second[head::LABEL..][..record::LABEL_WORDS], second[head::LABEL_LENGTH]),
        host: text(&second[head::HOST..][..record::HOST_WORDS], second[head::HOST_LENGTH]),
        neighbours: number(head::NEIGHBOURS)?,
        taken: Duration::from_nanos(now.nanoseconds),
        created: time(origin.ticks),
        connected: (second[head::CONNECTED] != 0).then(|| time(second[head::CONNECTED])),
        begun: second[head::BEGUN],
        collective: second[head::COLLECTIVE].checked_sub(1),
        operations,
        failure,
    }))
}

fn operation(state: u64, words: &[u64], time: impl Fn(u64) -> Duration) -> Option<Operation> {
    let number = state >> record::STATE_BITS;
    let state = match state & ((1 << record::STATE_BITS) - 1) {
        record::RUNNING => State::Running,
        record::DONE => State::Done,
        record::FAILED => State::Failed,
        _ => return None,
    };
    let call = Call::from_words(*words[word::CALL..].first_chunk()?)?;
    Some(Operation {
        call,
        number,
        peer: words[word::PEER].checked_sub(1).and_then(|peer| u32::try_from(peer).ok()),
        state,
        issued: time(words[word::ISSUED]),
        started: time(words[word::STARTED]),
        ended: (state != State::Running).then(|| time(words[word::ENDED])),
    })
}

/// Text for people: what a terminal would act upon is replaced.
fn text(words: &[u64], length: u64) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..length]);
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
