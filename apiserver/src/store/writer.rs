//! Writing: check against the head, number, queue; one thread commits what waits, then publishes it.

use super::backend::{Backend, BackendError, Row};
use super::object::{Draft, Index, Key, Object};
use super::view::{Event, Expired, Page, View, Watch};
use serde_json::Value;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// The most bytes that one commit gathers.
const BATCH_BYTES: usize = 4 << 20;
/// Superseded rows are dropped from the backend once there are this many; then the newest half stays.
const SUPERSEDED_ROWS: usize = 8192;
/// How long the writer waits for work before it calls the backend's housekeeping.
const IDLE: Duration = Duration::from_secs(1);

/// One step of a transaction.
#[derive(Debug)]
pub enum Op {
    /// There must be no such object.
    Create { key: Key, draft: Draft },
    /// The object must be at this revision.
    Update { key: Key, expected: u64, draft: Draft },
    /// The object must be at this revision.
    Delete { key: Key, expected: u64 },
}

impl Op {
    fn key(&self) -> &Key {
        match self {
            Op::Create { key, .. } | Op::Update { key, .. } | Op::Delete { key, .. } => key,
        }
    }
}

/// Why a transaction left no trace. `usize` is the place of the step that did not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    #[error("step {0}: the object is there already")]
    Exists(usize),
    #[error("step {0}: the object is at another revision")]
    Conflict(usize),
    #[error("step {0}: there is no such object")]
    Missing(usize),
    #[error("{0}")]
    Full(Arc<str>),
    #[error("{0}")]
    Backend(Arc<str>),
}

/// How a batch came to nothing.
#[derive(Clone, Debug)]
struct Failure {
    full: bool,
    why: Arc<str>,
}

impl From<Failure> for CommitError {
    fn from(Failure { full, why }: Failure) -> Self {
        if full { CommitError::Full(why) } else { CommitError::Backend(why) }
    }
}

impl From<&BackendError> for Failure {
    fn from(error: &BackendError) -> Self {
        Failure { full: matches!(error, BackendError::Full(_)), why: error.to_string().into() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("the store holds a row that cannot be read: revision {revision}, key {key:?}")]
    Corrupt { revision: u64, key: String },
    #[error("failed to start the store's writer: {0}")]
    Thread(#[source] std::io::Error),
}

struct Pending {
    events: Vec<(Key, Event)>,
    reply: oneshot::Sender<Result<(), Failure>>,
}

struct InFlight {
    revision: u64,
    object: Option<Arc<Object>>,
}

struct Head {
    revision: u64,
    in_flight: HashMap<Key, InFlight>,
    queue: Vec<Pending>,
    closing: bool,
    /// After a failed flush nobody knows what the disk holds: all later writes are refused.
    failed: Option<Arc<str>>,
    /// Revisions, from and to, that were numbered and found no room.
    lost: Vec<(u64, u64)>,
    /// How often that happened.
    refusals: u64,
    /// Set for backends that commit on the caller's thread.
    inline: Option<Box<dyn Backend>>,
}

struct Inner {
    head: Mutex<Head>,
    wake: Condvar,
    view: Arc<View>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// A handle to the store; clones share it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store at revision {}", self.revision())
    }
}

impl Store {
    /// Reads all that the backend keeps. `index` says what selectors need of an object of the resource.
    pub fn open(mut backend: Box<dyn Backend>, index: impl Fn(&str, &Value) -> Index) -> Result<Store, OpenError> {
        let mut rows: Vec<Row> = Vec::new();
        let floor = backend.load(&mut |row| rows.push(row))?;
        let revision = rows.last().map_or(floor, |row| row.revision.max(floor));
        let view = Arc::new(View::new(revision, floor));
        let mut latest: HashMap<Key, Arc<Object>> = HashMap::new();
        let mut superseded = VecDeque::new();
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            let corrupt = || OpenError::Corrupt { revision: row.revision, key: row.key.clone() };
            let key = Key::decode(&row.key).ok_or_else(corrupt)?;
            let previous = latest.remove(&key);
            if let Some(previous) = &previous {
                superseded.push_back((previous.revision, row.revision));
            }
            let path: Arc<str> = (&*key.path).into();
            match row.value.clone() {
                Some(json) => {
                    let object = Object::load(row.revision, json, |value| index(&key.resource, value));
                    let object = Arc::new(object.ok_or_else(corrupt)?);
                    latest.insert(key.clone(), object.clone());
                    let event = Event { revision: row.revision, path, object, previous, deleted: false };
                    events.push((key.resource, event));
                }
                None => {
                    superseded.push_back((row.revision, row.revision));
                    if let Some(last) = previous {
                        let object = Arc::new(last.at_revision(row.revision));
                        let event = Event { revision: row.revision, path, object, previous: Some(last), deleted: true };
                        events.push((key.resource, event));
                    }
                }
            }
        }
        drop(latest);
        view.publish(revision, events);
        view.raise_floor(floor);
        let inline = backend.inline();
        let (inline, threaded) = if inline { (Some(backend), None) } else { (None, Some(backend)) };
        let head = Head {
            revision,
            in_flight: HashMap::new(),
            queue: Vec::new(),
            closing: false,
            failed: None,
            lost: Vec::new(),
            refusals: 0,
            inline,
        };
        let inner = Arc::new(Inner { head: Mutex::new(head), wake: Condvar::new(), view, thread: Mutex::new(None) });
        if let Some(backend) = threaded {
            let shared = inner.clone();
            let thread = std::thread::Builder::new()
                .name("muster-store".to_owned())
                .spawn(move || Writer { shared, backend, superseded }.run())
                .map_err(OpenError::Thread)?;
            *inner.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        }
        Ok(Store(inner))
    }

    /// The revision up to which everything is durable and visible.
    pub fn revision(&self) -> u64 {
        self.0.view.revision()
    }

    /// The object as readers see it.
    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.0.view.get(key)
    }

    /// The object as writers see it: perhaps not durable yet. An answer that tells of it must wait, see [`Store::durable`].
    pub fn head(&self, key: &Key) -> Option<Arc<Object>> {
        let head = self.0.lock();
        self.0.head_of(&head, key)
    }

    pub fn count(&self, resource: &str) -> usize {
        self.0.view.count(resource)
    }

    /// The objects of a resource as of a revision (now, where none is given), in order, after the path `after`.
    pub fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        after: Option<&str>,
        at: Option<u64>,
    ) -> Result<Page, Expired> {
        self.0.view.list(resource, namespace, after, at)
    }

    /// Follows a resource from after `revision`.
    pub fn watch(&self, resource: &Arc<str>, revision: u64) -> Watch {
        self.0.view.watch(resource, revision)
    }

    /// Forgets the history up to now: watches and lists from before are answered with 410.
    pub fn forget_history(&self) {
        self.0.view.raise_floor(self.revision());
    }

    /// How often writes that were begun have been refused for want of room. Who looks at the head asks before, and once
    /// more through [`Store::settled`]: where it is the same, nothing of what was seen has been taken back.
    pub fn refusals(&self) -> u64 {
        self.0.lock().refusals
    }

    /// Waits until every write that was begun is durable and visible, or refused; how often the latter has happened.
    pub async fn settled(&self) -> Result<u64, CommitError> {
        let begun = self.0.lock().revision;
        match self.durable(begun).await {
            Ok(()) | Err(CommitError::Full(_)) => Ok(self.refusals()),
            Err(error) => Err(error),
        }
    }

    /// Waits until everything up to `revision` is durable and visible.
    pub async fn durable(&self, revision: u64) -> Result<(), CommitError> {
        loop {
            // Made before the look, so that no revision between the two is missed.
            let published = self.0.view.published();
            // Read first: what is refused after this look is not covered by a later revision.
            let seen = self.revision();
            let (failed, lost) = {
                let head = self.0.lock();
                (head.failed.clone(), head.lost.iter().any(|(from, to)| (*from..=*to).contains(&revision)))
            };
            if lost {
                return Err(CommitError::Full("no space was left for the object".into()));
            }
            if seen >= revision {
                return Ok(());
            }
            if let Some(why) = failed {
                return Err(CommitError::Backend(why));
            }
            tokio::select! {
                biased;
                () = published => {}
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    }

    /// Carries out all steps or none. Returns once the change is durable and visible: the objects as they are now (for a
    /// deletion, as it was last, with the deletion's revision).
    pub async fn commit(&self, ops: Vec<Op>) -> Result<Vec<Arc<Object>>, CommitError> {
        let (objects, reply) = self.submit(ops)?;
        match reply.await {
            Ok(Ok(())) => Ok(objects),
            Ok(Err(failure)) => Err(failure.into()),
            Err(_) => Err(CommitError::Backend("the store is closed".into())),
        }
    }

    #[allow(clippy::type_complexity)]
    fn submit(&self, ops: Vec<Op>) -> Result<(Vec<Arc<Object>>, oneshot::Receiver<Result<(), Failure>>), CommitError> {
        let inner = &*self.0;
        let mut head = inner.lock();
        if let Some(why) = &head.failed {
            return Err(CommitError::Backend(why.clone()));
        }
        if head.closing {
            return Err(CommitError::Backend("the store is closed".into()));
        }
        let mut before = Vec::with_capacity(ops.len());
        for (place, op) in ops.iter().enumerate() {
            let current = inner.head_of(&head, op.key());
            match (op, &current) {
                (Op::Create { .. }, Some(_)) => return Err(CommitError::Exists(place)),
                (Op::Create { .. }, None) => {}
                (Op::Update { .. } | Op::Delete { .. }, None) => return Err(CommitError::Missing(place)),
                (Op::Update { expected, .. } | Op::Delete { expected, .. }, Some(current)) => {
                    if current.revision != *expected {
                        return Err(CommitError::Conflict(place));
                    }
                }
            }
            before.push(current);
        }
        let mut objects = Vec::with_capacity(ops.len());
        let mut events = Vec::with_capacity(ops.len());
        for (op, previous) in ops.into_iter().zip(before) {
            head.revision += 1;
            let revision = head.revision;
            let (key, object, deleted) = match op {
                Op::Create { key, draft } | Op::Update { key, draft, .. } => (key, draft.commit(revision), false),
                Op::Delete { key, .. } => {
                    let Some(last) = &previous else { continue };
                    (key, last.at_revision(revision), true)
                }
            };
            let object = Arc::new(object);
            let entry = InFlight { revision, object: (!deleted).then(|| object.clone()) };
            head.in_flight.insert(key.clone(), entry);
            let event = Event { revision, path: (&*key.path).into(), object: object.clone(), previous, deleted };
            events.push((key, event));
            objects.push(object);
        }
        let (reply, answer) = oneshot::channel();
        if let Some(mut backend) = head.inline.take() {
            let rows: Vec<Row> = events.iter().map(row).collect();
            let outcome = backend.commit(&rows);
            head.inline = Some(backend);
            match outcome {
                Ok(()) => {
                    inner.publish(head.revision, vec![events]);
                    head.in_flight.clear();
                    let _ = reply.send(Ok(()));
                }
                Err(error) => {
                    let failure = Failure::from(&error);
                    inner.take_back(&mut head, &failure);
                    let _ = reply.send(Err(failure));
                }
            }
        } else {
            head.queue.push(Pending { events, reply });
            inner.wake.notify_one();
        }
        Ok((objects, answer))
    }

    /// Commits what is queued and ends the writer; later writes are refused. Blocks until done.
    pub fn close(&self) {
        self.0.lock().closing = true;
        self.0.wake.notify_all();
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn head_of(&self, head: &Head, key: &Key) -> Option<Arc<Object>> {
        match head.in_flight.get(key) {
            Some(entry) => entry.object.clone(),
            None => self.view.get(key),
        }
    }

    /// Nothing that is not durable yet will be: all who wait are told so. Without room the next write may go well; after
    /// any other failure nobody knows what the disk holds, and no more is accepted.
    fn take_back(&self, head: &mut Head, failure: &Failure) {
        head.in_flight.clear();
        if failure.full {
            head.refusals += 1;
            let from = self.view.revision() + 1;
            match head.lost.last_mut() {
                Some((_, to)) if *to + 1 >= from => *to = head.revision,
                _ => head.lost.push((from, head.revision)),
            }
        } else {
            head.failed = Some(failure.why.clone());
        }
        for pending in head.queue.drain(..) {
            let _ = pending.reply.send(Err(failure.clone()));
        }
    }

    fn publish(&self, revision: u64, batch: Vec<Vec<(Key, Event)>>) {
        self.view.publish(revision, batch.into_iter().flatten().map(|(key, event)| (key.resource, event)));
    }
}

fn row((key, event): &(Key, Event)) -> Row {
    let value = (!event.deleted).then(|| event.object.json.clone());
    Row { revision: event.revision, key: key.encode(), value }
}

struct Writer {
    shared: Arc<Inner>,
    backend: Box<dyn Backend>,
    /// Rows that newer ones have replaced: (revision, the revision that replaced it).
    superseded: VecDeque<(u64, u64)>,
}

impl Writer {
    fn run(mut self) {
        loop {
            let mut idle = false;
            let batch = {
                let mut head = self.shared.lock();
                while head.queue.is_empty() && !head.closing && !idle {
                    let (guard, timeout) =
                        self.shared.wake.wait_timeout(head, IDLE).unwrap_or_else(PoisonError::into_inner);
                    head = guard;
                    idle = timeout.timed_out();
                }
                if head.queue.is_empty() && head.closing {
                    break;
                }
                let mut bytes = 0;
                let fits = head
                    .queue
                    .iter()
                    .take_while(|pending| {
                        let fits = bytes < BATCH_BYTES;
                        bytes += pending.events.iter().map(|(_, e)| e.object.json.len()).sum::<usize>();
                        fits
                    })
                    .count();
                head.queue.drain(..fits).collect::<Vec<_>>()
            };
            let outcome = if batch.is_empty() { self.backend.idle() } else { self.commit(batch) };
            match outcome {
                Ok(()) => {}
                // It was about tidying up, which can wait.
                Err(error @ BackendError::Full(_)) => tracing::warn!(%error, "the store could not tidy up"),
                Err(error) => self.fail(&error),
            }
        }
        if let Err(error) = self.backend.idle() {
            tracing::warn!(%error, "the store could not tidy up");
        }
    }

    fn commit(&mut self, batch: Vec<Pending>) -> Result<(), BackendError> {
        let rows: Vec<Row> = batch.iter().flat_map(|pending| pending.events.iter().map(row)).collect();
        if let Err(error) = self.backend.commit(&rows) {
            self.fail(&error);
            let failure = Failure::from(&error);
            for pending in batch {
                let _ = pending.reply.send(Err(failure.clone()));
            }
            return Ok(());
        }
        let revision = rows.last().map_or(0, |row| row.revision);
        let mut replies = Vec::with_capacity(batch.len());
        let mut events = Vec::with_capacity(batch.len());
        for pending in batch {
            for (_, event) in &pending.events {
                if let Some(previous) = &event.previous {
                    self.superseded.push_back((previous.revision, event.revision));
                }
                if event.deleted {
                    self.superseded.push_back((event.revision, event.revision));
                }
            }
            replies.push(pending.reply);
            events.push(pending.events);
        }
        self.shared.publish(revision, events);
        self.shared.lock().in_flight.retain(|_, entry| entry.revision > revision);
        for reply in replies {
            let _ = reply.send(Ok(()));
        }
        self.compact()
    }

    fn compact(&mut self) -> Result<(), BackendError> {
        if self.superseded.len() < SUPERSEDED_ROWS {
            return Ok(());
        }
        let drop: Vec<(u64, u64)> = self.superseded.drain(..SUPERSEDED_ROWS / 2).collect();
        let floor = drop.last().map_or(0, |(_, by)| *by);
        let rows: Vec<u64> = drop.iter().map(|(revision, _)| *revision).collect();
        let outcome = self.backend.compact(floor, &rows);
        if outcome.is_err() {
            drop.into_iter().rev().for_each(|row| self.superseded.push_front(row));
        }
        outcome
    }

    fn fail(&self, error: &BackendError) {
        let failure = Failure::from(error);
        if failure.full {
            tracing::error!(%error, "writes are refused until there is space");
        } else {
            tracing::error!(%error, "the store has failed and refuses all writes from now on");
        }
        self.shared.take_back(&mut self.shared.lock(), &failure);
    }
}
