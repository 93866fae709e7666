//! Saving in the background.
//!
//! One buffer holds the copy of a rank's part of the state from when it is taken until it is on disk: who saves again
//! before that waits, so that memory is bounded.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};
use tracing::warn;

use super::load::{FORMAT, Shard, Sidecar};
use super::shard::{self, Name};
use super::state::Entry;
use super::{CheckpointError, Part, Progress, State, failed, json_name, names, remove_old, write_whole};
use crate::ddp::group::Group;

/// How often rank 0 looks for the parts of the others.
const LOOK: Duration = Duration::from_millis(10);
/// How long a part that is on disk may take to be seen in a folder over a network.
const VISIBLE: Duration = Duration::from_secs(10);

/// A checkpoint that is on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    pub progress: Progress,
    /// Of the JSON file.
    pub path: PathBuf,
    /// From the copy to the JSON file.
    pub seconds: f64,
    /// How long training waited for the copy.
    pub copy_seconds: f64,
}

/// What became of an attempt. None: the part of this rank is on disk, and rank 0 knows the rest.
pub type Outcome = Result<Option<Saved>, CheckpointError>;

/// Saves the state of a run into a folder, time after time.
pub struct Saver {
    folder: PathBuf,
    /// None once the thread is told to end.
    orders: Option<Sender<Order>>,
    replies: Receiver<Reply>,
    /// As `orders`.
    give_up: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Here when nothing is being written.
    buffer: Option<MmapMut>,
    pending: Option<Pending>,
    /// The ranks of the attempt in the background are no longer together.
    is_orphan: bool,
    /// Whether all ranks of the group see the same folder, once that is known.
    is_shared: Option<bool>,
}

/// How far the attempt in the background has come.
#[derive(Debug)]
enum Pending {
    Writing,
    /// The part of this rank is on disk, but not the checkpoint.
    Written,
}

enum Order {
    Reserve(MmapMut, usize),
    Save(Box<Job>),
}

enum Reply {
    /// The buffer is free again, and for an attempt, whether its part is on disk.
    Buffer(MmapMut, Option<Result<(), CheckpointError>>),
    Ended(Outcome),
}

/// One rank's work in an attempt.
struct Job {
    buffer: MmapMut,
    entries: Vec<Entry>,
    attempt: u64,
    part: Part,
    sidecar: Sidecar,
    started: Instant,
    copy_seconds: f64,
}

impl Saver {
    /// Keeps the latest `keep` checkpoints. The folder is made when it is needed.
    pub fn new(folder: &Path, keep: usize) -> Result<Saver, CheckpointError> {
        let (orders, todo) = channel();
        let (done, replies) = channel();
        let (give_up, given_up) = channel();
        let writer = Writer { folder: folder.into(), keep, todo, done, given_up };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || writer.run());
        let thread = thread.map_err(|source| failed("start the thread that writes", folder, source))?;
        let buffer = Some(room(folder, 1)?);
        Ok(Saver {
            folder: folder.into(),
            orders: Some(orders),
            replies,
            give_up: Some(give_up),
            thread: Some(thread),
            buffer,
            pending: None,
            is_orphan: false,
            is_shared: None,
        })
    }

    /// Makes room for a part of this state in the background, so that the first step that saves does not wait for it.
    pub fn reserve(&mut self, state: &State, part: Part) {
        let bytes = state.layout(part).bytes;
        if self.pending.is_none()
            && let Some(buffer) = self.buffer.take_if(|buffer| buffer.len() < bytes)
        {
            self.order(Order::Reserve(buffer, bytes));
        }
    }

    /// Copies a part of the state, which is written while training goes on. All ranks of `part.world` do so with the same
    /// `attempt`, which no other attempt has. An attempt that has not ended is given up, once its part is on disk.
    pub fn save(
        &mut self,
        mut state: State,
        progress: Progress,
        part: Part,
        attempt: u64,
    ) -> Result<(), CheckpointError> {
        if let Some(Err(error)) = self.give_up() {
            warn!("{error}");
        }
        let started = Instant::now();
        let layout = state.layout(part);
        let mut buffer = self.take_buffer()?;
        if buffer.len() < layout.bytes {
            match room(&self.folder, layout.bytes) {
                Ok(larger) => buffer = larger,
                Err(error) => {
                    self.buffer = Some(buffer);
                    return Err(error);
                }
            }
        }
        let copying = Instant::now();
        state.copy(&layout, &mut buffer);
        let sidecar = Sidecar {
            format: FORMAT,
            muster: env!("CARGO_PKG_VERSION").into(),
            progress,
            shards: Vec::new(),
            sections: state.take_sections(),
        };
        let copy_seconds = copying.elapsed().as_secs_f64();
        let job = Job { buffer, entries: layout.entries, attempt, part, sidecar, started, copy_seconds };
        (self.pending, self.is_orphan) = (Some(Pending::Writing), false);
        self.order(Order::Save(Box::new(job)));
        Ok(())
    }

    /// Takes note that the ranks are others from now on. An attempt that has not ended may lack parts of those that are
    /// gone.
    pub fn regroup(&mut self) {
        self.is_orphan = self.pending.is_some();
        self.is_shared = None;
    }

    /// Saves together with all ranks of a group, which call this at the same step: each its part, or rank 0 all of it where
    /// they do not see the same folder. Gives the outcome of the attempt before. The group's error means that this attempt
    /// was not begun everywhere.
    pub fn save_together(
        &mut self,
        group: &Group,
        state: State,
        progress: Progress,
    ) -> Result<Vec<Outcome>, muster_collectives::Error> {
        let mut outcomes = self.finish_together(group)?;
        let mut attempt = [if group.rank() == 0 { unique() as i64 } else { 0 }];
        group.broadcast_numbers(&mut attempt, 0)?;
        let attempt = attempt[0] as u64;
        let part = match self.find_shared(group, attempt)? {
            true => Part { rank: group.rank(), world: group.world() },
            false if group.rank() == 0 => Part::WHOLE,
            false => return Ok(outcomes),
        };
        if let Err(error) = self.save(state, progress, part, attempt) {
            outcomes.push(Err(error));
        }
        Ok(outcomes)
    }

    /// Whether all ranks see a file that rank 0 puts into its folder.
    fn find_shared(&mut self, group: &Group, attempt: u64) -> Result<bool, muster_collectives::Error> {
        if let Some(known) = self.is_shared {
            return Ok(known);
        }
        let probe = self.folder.join(format!("probe-{attempt:016x}.part"));
        if group.rank() == 0 {
            // Where it cannot be put, it is not seen, and rank 0 will say why it cannot save.
            let _ = std::fs::create_dir_all(&self.folder).and_then(|()| std::fs::write(&probe, ""));
        }
        group.barrier()?;
        let mut seen = [i64::from(probe.exists())];
        let counted = group.sum_counts(&mut seen);
        if group.rank() == 0 {
            let _ = std::fs::remove_file(&probe);
        }
        counted?;
        let is_shared = seen[0] == group.world() as i64;
        self.is_shared = Some(is_shared);
        Ok(is_shared)
    }

    /// Waits until an attempt that the ranks of a group have made together has ended: the checkpoint is on disk, or it is
    /// known not to come about.
    pub fn finish_together(&mut self, group: &Group) -> Result<Vec<Outcome>, muster_collectives::Error> {
        let mut outcomes = Vec::new();
        let part = self.finish_part();
        let mut failed = [i64::from(part.is_err())];
        outcomes.extend(part.err().map(Err));
        // Behind this, all parts are on disk that will ever be.
        group.sum_counts(&mut failed)?;
        if failed[0] > 0 {
            outcomes.extend(self.give_up());
        }
        let limit = if self.is_orphan { Duration::ZERO } else { VISIBLE };
        outcomes.extend(self.finish(limit));
        Ok(outcomes)
    }

    /// Waits until this rank's part is on disk, or not, and the buffer is free.
    pub fn finish_part(&mut self) -> Result<(), CheckpointError> {
        while matches!(self.pending, Some(Pending::Writing)) {
            match self.replies.recv() {
                Ok(Reply::Buffer(buffer, written)) => {
                    self.buffer = Some(buffer);
                    match written {
                        None => {}
                        Some(Ok(())) => self.pending = Some(Pending::Written),
                        Some(Err(error)) => {
                            self.pending = None;
                            return Err(error);
                        }
                    }
                }
                Ok(Reply::Ended(_)) => {}
                Err(_) => return Err(self.gone()),
            }
        }
        Ok(())
    }

    /// Waits until the attempt in the background has ended; for the parts of other ranks no longer than `limit`. None:
    /// there is no attempt.
    pub fn finish(&mut self, limit: Duration) -> Option<Outcome> {
        if let Err(error) = self.finish_part() {
            return Some(Err(error));
        }
        self.pending.take()?;
        let ended = |reply| match reply {
            Ok(Reply::Ended(outcome)) => Ok(outcome),
            Ok(Reply::Buffer(..)) => unreachable!("the buffer is here already"),
            Err(error) => Err(error),
        };
        match ended(self.replies.recv_timeout(limit)) {
            Ok(outcome) => return Some(outcome),
            Err(RecvTimeoutError::Disconnected) => return Some(Err(self.gone())),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(give_up) = &self.give_up {
            let _ = give_up.send(());
        }
        let outcome = self.replies.recv().map_err(|_| RecvTimeoutError::Disconnected);
        Some(ended(outcome).unwrap_or_else(|_| Err(self.gone())))
    }

    /// Ends an attempt whose ranks are no longer together, once this rank's part is written. It counts all the same if the
    /// parts of all are there.
    pub fn give_up(&mut self) -> Option<Outcome> {
        self.finish(Duration::ZERO)
    }

    /// The outcome of an attempt that has ended in the meantime.
    pub fn poll(&mut self) -> Option<Outcome> {
        while self.pending.is_some() {
            match self.replies.try_recv().ok()? {
                Reply::Buffer(buffer, written) => {
                    self.buffer = Some(buffer);
                    match written {
                        None => {}
                        Some(Ok(())) => self.pending = Some(Pending::Written),
                        Some(Err(error)) => {
                            self.pending = None;
                            return Some(Err(error));
                        }
                    }
                }
                Reply::Ended(outcome) => {
                    self.pending = None;
                    return Some(outcome);
                }
            }
        }
        None
    }

    /// The buffer, after what was reserved.
    fn take_buffer(&mut self) -> Result<MmapMut, CheckpointError> {
        if let Some(buffer) = self.buffer.take() {
            return Ok(buffer);
        }
        match self.replies.recv() {
            Ok(Reply::Buffer(buffer, _)) => Ok(buffer),
            Ok(Reply::Ended(_)) | Err(_) => Err(self.gone()),
        }
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // That the thread is gone is noticed by who waits for its replies.
            let _ = orders.send(order);
        }
    }

    fn gone(&mut self) -> CheckpointError {
        self.pending = None;
        failed("write to", &self.folder, std::io::Error::other("the thread that writes is gone"))
    }
}

impl Drop for Saver {
    /// Lets the part that is being written become whole.
    fn drop(&mut self) {
        (self.orders, self.give_up) = (None, None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread in the background.
struct Writer {
    folder: PathBuf,
    keep: usize,
    todo: Receiver<Order>,
    done: Sender<Reply>,
    given_up: Receiver<()>,
}

impl Writer {
    fn run(self) {
        while let Ok(order) = self.todo.recv() {
            match order {
                Order::Reserve(mut buffer, bytes) => {
                    if let Ok(mut larger) = room(&self.folder, bytes) {
                        // Makes the kernel find the memory now.
                        larger.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
                        buffer = larger;
                    }
                    let _ = self.done.send(Reply::Buffer(buffer, None));
                }
                Order::Save(job) => self.save(*job),
            }
        }
    }

    fn save(&self, job: Job) {
        let Job { buffer, entries, attempt, part, sidecar, started, copy_seconds } = job;
        // Attempts before this one were meant; nobody gives this one up before its part is written.
        while self.given_up.try_recv().is_ok() {}
        let progress = sidecar.progress;
        let step = progress.step;
        let written = std::fs::create_dir_all(&self.folder)
            .map_err(|source| failed("create", &self.folder, source))
            .and_then(|()| shard::write(&self.folder, step, attempt, part, &entries, &buffer));
        let is_written = written.is_ok();
        let _ = self.done.send(Reply::Buffer(buffer, Some(written.map(drop))));
        if !is_written {
            return;
        }
        let outcome = match part.rank {
            0 => self.complete(sidecar, attempt, part.world).map(|path| {
                Some(Saved { progress, path, seconds: started.elapsed().as_secs_f64(), copy_seconds })
            }),
            _ => Ok(None),
        };
        let _ = self.done.send(Reply::Ended(outcome));
    }

    /// Waits for the parts of all ranks, and writes the JSON file.
    fn complete(&self, sidecar: Sidecar, attempt: u64, world: usize) -> Result<PathBuf, CheckpointError> {
        let step = sidecar.progress.step;
        let mut last = false;
        let shards = loop {
            let found = self.find(step, attempt, world)?;
            if found.len() == world {
                break found;
            }
            if last {
                let missing = world - found.len();
                return Err(CheckpointError::Incomplete { step, missing, world, folder: self.folder.clone() });
            }
            // Looks once more when it is told to give up.
            last = !matches!(self.given_up.recv_timeout(LOOK), Err(RecvTimeoutError::Timeout));
        };
        let path = self.folder.join(json_name(step));
        write_whole(&path, Sidecar { shards, ..sidecar }.to_text().as_bytes())?;
        remove_old(&self.folder, step, self.keep);
        Ok(path)
    }

    /// The parts of an attempt that are there, by rank.
    fn find(&self, step: u64, attempt: u64, world: usize) -> Result<Vec<Shard>, CheckpointError> {
        let ours = |name: &Name| name.step == step && name.attempt == attempt && name.part.world == world;
        let mut found: Vec<Name> =
            names(&self.folder)?.iter().filter_map(|name| Name::parse(name)).filter(ours).collect();
        found.sort_by_key(|name| name.part.rank);
        found.dedup_by_key(|name| name.part.rank);
        let shard = |name: Name| {
            let path = self.folder.join(name.to_string());
            let bytes = path.metadata().map_err(|source| failed("read", &path, source))?.len();
            Ok(Shard { file: name.to_string(), bytes })
        };
        found.into_iter().map(shard).collect()
    }
}

/// Memory of its own, in large pages where the kernel has them.
fn room(folder: &Path, bytes: usize) -> Result<MmapMut, CheckpointError> {
    let memory = MmapMut::map_anon(bytes.max(1));
    let memory = memory.map_err(|source| failed("find memory for a checkpoint to", folder, source))?;
    // An advice alone.
    let _ = memory.advise(Advice::HugePage);
    Ok(memory)
}

/// A number that no other attempt has.
pub fn unique() -> u64 {
    // Each one has random keys.
    RandomState::new().build_hasher().finish()
}
