//! Events: says in the API what a controller did and why.
//!
//! An event that repeats raises a count instead of making a new object, and one object gets a burst of events and then
//! few, so that no loop can flood the store. Recording never holds up what is recorded: events go through a queue, and
//! where that is full they are dropped.

use super::resource::{Objects, RequestError, resource};
use kube::Client;
use muster_api::clock::{Clock, rfc3339};
use muster_api::random::Random;
use serde_json::json;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Events of one object are recorded one after the other, those of different objects side by side.
const LANES: usize = 8;
const LANE_LENGTH: usize = 4096;
/// How many events of one object are let through at once, and how often one more is.
const BURST: u32 = 100;
const REFILL: Duration = Duration::from_secs(30);
/// An event that repeats faster than this is one event: several changes of the same moment lead to as many passes.
const SAME_MOMENT: Duration = Duration::from_millis(300);
/// How many objects and events a lane remembers before it forgets them all.
const REMEMBERED: usize = 4096;

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The controller that speaks, e.g. `pytorchjob-controller`.
    pub component: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Note {
    subject: Subject,
    severity: String,
    reason: String,
    message: String,
}

/// Where to send events. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Recorder {
    lanes: Vec<mpsc::Sender<Note>>,
}

impl Recorder {
    /// Starts recording, until `shutdown`; what is queued by then is still recorded.
    pub fn start(
        client: Client,
        clock: Clock,
        random: Random,
        shutdown: CancellationToken,
    ) -> (Recorder, tokio::task::JoinSet<()>) {
        let mut tasks = tokio::task::JoinSet::new();
        let lanes = (0..LANES)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(LANE_LENGTH);
                let lane = Lane {
                    client: client.clone(),
                    clock: clock.clone(),
                    random: random.clone(),
                    known: HashMap::new(),
                    budgets: HashMap::new(),
                };
                tasks.spawn(lane.run(receiver, shutdown.clone()));
                sender
            })
            .collect();
        (Recorder { lanes }, tasks)
    }

    pub fn record(&self, subject: &Subject, severity: &str, reason: &str, message: &str) {
        let mut hasher = DefaultHasher::new();
        subject.uid.hash(&mut hasher);
        let lane = usize::try_from(hasher.finish() % LANES as u64).unwrap_or(0);
        let note = Note {
            subject: subject.clone(),
            severity: severity.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        if self.lanes[lane].try_send(note).is_err() {
            tracing::debug!(object = %subject.name, reason, "event dropped");
        }
    }
}

struct Lane {
    client: Client,
    clock: Clock,
    random: Random,
    known: HashMap<Note, Recorded>,
    budgets: HashMap<Subject, Budget>,
}

struct Recorded {
    name: String,
    count: u32,
    last: Instant,
}

struct Budget {
    left: u32,
    refilled: Instant,
}

impl Lane {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                note = notes.recv() => match note {
                    Some(note) => self.record(note).await,
                    None => return,
                },
                () = shutdown.cancelled() => {
                    notes.close();
                    while let Ok(note) = notes.try_recv() {
                        self.record(note).await;
                    }
                    return;
                }
            }
        }
    }

    fn spend(&mut self, subject: &Subject) -> bool {
        if self.budgets.len() >= REMEMBERED {
            self.budgets.clear();
        }
        let now = Instant::now();
        let budget = self.budgets.entry(subject.clone()).or_insert(Budget { left: BURST, refilled: now });
        let periods = now.duration_since(budget.refilled).as_secs() / REFILL.as_secs();
        if periods > 0 {
            budget.left = budget.left.saturating_add(u32::try_from(periods).unwrap_or(u32::MAX)).min(BURST);
            budget.refilled = now;
        }
        let allowed = budget.left > 0;
        budget.left = budget.left.saturating_sub(1);
        allowed
    }

    async fn record(&mut self, note: Note) {
        let now = Instant::now();
        if self.known.get(&note).is_some_and(|known| now.duration_since(known.last) < SAME_MOMENT) {
            return;
        }
        if !self.spend(&note.subject) {
            return;
        }
        if let Err(error) = self.write(note).await {
            tracing::debug!(%error, "an event could not be recorded");
        }
    }

    async fn write(&mut self, note: Note) -> Result<(), RequestError> {
        let events = Objects::new(&self.client, &resource("", "v1", "Event", "events"), &note.subject.namespace);
        let now = rfc3339(self.clock.now());
        if let Some(known) = self.known.get_mut(&note) {
            known.count += 1;
            known.last = Instant::now();
            let patch = json!({"count": known.count, "lastTimestamp": now});
            match events.merge(&known.name, &patch).await {
                Err(RequestError::NotFound(_)) => {}
                outcome => return outcome.map(|_| ()),
            }
        }
        let mut suffix = [0; 8];
        self.random.fill(&mut suffix);
        let name = format!("{}.{:016x}", note.subject.name, u64::from_be_bytes(suffix));
        let subject = &note.subject;
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": subject.namespace},
            "involvedObject": {
                "apiVersion": subject.api_version,
                "kind": subject.kind,
                "namespace": subject.namespace,
                "name": subject.name,
                "uid": subject.uid,
            },
            "type": note.severity,
            "reason": note.reason,
            "message": note.message,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": subject.component},
            "reportingComponent": subject.component,
            "reportingInstance": "",
        });
        events.create(event).await?;
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(note, Recorded { name, count: 1, last: Instant::now() });
        Ok(())
    }
}
