//! Events: what a component did and why, told in the API.
//!
//! Recording never holds up what is recorded: events go through queues, and where one is full they are dropped. An
//! event that repeats raises a count instead of making a new object. Two limits keep events from crowding out the work
//! that they tell of: one object gets a burst of events and then few, so that no loop can flood the store; and normal
//! events of all objects together get a burst and then a steady rate, as those of a kubelet do (`eventBurst` 100,
//! `eventRecordQPS` 50). Warnings do not wait in that line.

mod pace;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use muster_api::clock::{Clock, seconds};
use pace::Pace;
use serde_json::json;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Events of one object are recorded one after the other, those of different objects side by side.
const LANES: usize = 8;
const LANE_LENGTH: usize = 1024;
/// How many events of one object are let through at once, and how often one more is.
const OBJECT_BURST: u32 = 100;
const OBJECT_REFILL: SignedDuration = SignedDuration::from_secs(30);
/// How many normal events of all objects are let through at once, and how often one more is.
const BURST: u32 = 100;
const REFILL: Duration = Duration::from_millis(20);
/// An event that repeats faster than this is one event: several changes of the same moment lead to as many passes.
const SAME_MOMENT: SignedDuration = SignedDuration::from_millis(300);
/// How many objects and events a lane remembers before it forgets them all.
const REMEMBERED: usize = 4096;
/// How long the events that are queued at the end are still recorded.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        })
    }
}

/// The object that an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Subject {
    pub api_version: String,
    pub kind: String,
    /// Empty for objects without one; their events are in `default`.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The part of the object that is meant, e.g. `spec.containers{main}`.
    pub field_path: Option<String>,
}

impl Subject {
    pub fn pod(namespace: &str, name: &str, uid: &str) -> Self {
        Subject {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            field_path: None,
        }
    }
}

/// Events that differ in none of this are one, which is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Note {
    subject: Subject,
    component: String,
    severity: Severity,
    reason: String,
    message: String,
}

impl Note {
    /// The same note has the same name, so that it is counted across restarts too.
    fn name(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        // Names end at 253 characters.
        let subject = self.subject.name.get(..230).unwrap_or(&self.subject.name);
        format!("{subject}.{:016x}", hasher.finish())
    }
}

type Timed = (Note, Timestamp);

#[derive(Clone, Debug)]
struct Queues {
    normal: mpsc::Sender<Timed>,
    warning: mpsc::Sender<Timed>,
}

/// Where to send events. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Recorder {
    clock: Clock,
    lanes: Vec<Queues>,
}

impl Recorder {
    /// Starts recording, until `shutdown`; what is queued by then is still recorded, for a moment. `host` is the name
    /// of the node whose events these are.
    pub fn start(
        client: &Client,
        clock: &Clock,
        host: Option<&str>,
        shutdown: &CancellationToken,
    ) -> (Recorder, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let pace = Arc::new(Pace::new(BURST, REFILL));
        let lanes = (0..LANES)
            .map(|_| {
                let (normal, normals) = mpsc::channel(LANE_LENGTH);
                let (warning, warnings) = mpsc::channel(LANE_LENGTH);
                let lane = Lane {
                    client: client.clone(),
                    host: host.map(str::to_owned),
                    pace: pace.clone(),
                    known: HashMap::new(),
                    budgets: HashMap::new(),
                };
                tasks.spawn(lane.run(normals, warnings, shutdown.clone()));
                Queues { normal, warning }
            })
            .collect();
        (Recorder { clock: clock.clone(), lanes }, tasks)
    }

    /// `component` is who speaks, e.g. `pytorchjob-controller`.
    pub fn record(&self, subject: &Subject, component: &str, severity: Severity, reason: &str, message: &str) {
        let mut hasher = DefaultHasher::new();
        subject.uid.hash(&mut hasher);
        let lane = usize::try_from(hasher.finish() % LANES as u64).unwrap_or(0);
        let note = Note {
            subject: subject.clone(),
            component: component.to_owned(),
            severity,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let queue = match severity {
            Severity::Normal => &self.lanes[lane].normal,
            Severity::Warning => &self.lanes[lane].warning,
        };
        if queue.try_send((note, self.clock.now())).is_err() {
            tracing::debug!(object = %subject.name, reason, "event dropped");
        }
    }
}

struct Lane {
    client: Client,
    host: Option<String>,
    pace: Arc<Pace>,
    known: HashMap<Note, Recorded>,
    budgets: HashMap<Subject, Budget>,
}

struct Recorded {
    count: i32,
    last: Timestamp,
}

struct Budget {
    left: u32,
    refilled: Timestamp,
}

impl Lane {
    async fn run(
        mut self,
        mut normals: mpsc::Receiver<Timed>,
        mut warnings: mpsc::Receiver<Timed>,
        shutdown: CancellationToken,
    ) {
        let mut next: Option<Timed> = None;
        loop {
            tokio::select! {
                biased;
                Some(timed) = warnings.recv() => self.record(timed).await,
                () = self.pace.turn(), if next.is_some() => {
                    if let Some(timed) = next.take() {
                        self.record(timed).await;
                    }
                }
                Some(timed) = normals.recv(), if next.is_none() => {
                    // What will not be written takes no turn.
                    next = Some(timed).filter(|timed| !self.repeats(timed));
                }
                () = shutdown.cancelled() => break,
            }
        }
        normals.close();
        warnings.close();
        let last_words = async {
            while let Ok(timed) = warnings.try_recv() {
                self.record(timed).await;
            }
            if let Some(timed) = next {
                self.record(timed).await;
            }
            while let Ok(timed) = normals.try_recv() {
                self.record(timed).await;
            }
        };
        if tokio::time::timeout(LAST_WORDS, last_words).await.is_err() {
            tracing::debug!("the last events were not recorded");
        }
    }

    fn repeats(&self, (note, at): &Timed) -> bool {
        self.known.get(note).is_some_and(|known| at.duration_since(known.last) < SAME_MOMENT)
    }

    /// Whether the object may have one more event.
    fn spend(&mut self, subject: &Subject, now: Timestamp) -> bool {
        if self.budgets.len() >= REMEMBERED {
            self.budgets.clear();
        }
        let budget = self.budgets.entry(subject.clone()).or_insert(Budget { left: OBJECT_BURST, refilled: now });
        let periods = now.duration_since(budget.refilled).as_secs() / OBJECT_REFILL.as_secs();
        if periods > 0 {
            let more = u32::try_from(periods).unwrap_or(u32::MAX);
            budget.left = budget.left.saturating_add(more).min(OBJECT_BURST);
            budget.refilled = now;
        }
        let allowed = budget.left > 0;
        budget.left = budget.left.saturating_sub(1);
        allowed
    }

    async fn record(&mut self, timed: Timed) {
        if self.repeats(&timed) || !self.spend(&timed.0.subject, timed.1) {
            return;
        }
        if let Err(error) = self.write(timed).await {
            tracing::debug!(%error, "an event could not be recorded");
        }
    }

    async fn write(&mut self, (note, at): Timed) -> Result<(), kube::Error> {
        let name = note.name();
        let now = Time(seconds(at));
        let namespace = match note.subject.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let known = self.known.get(&note).map(|known| known.count);
        let mut count = 1;
        if known.is_some() || !self.create(namespace, &name, &note, &now).await? {
            count = match known {
                Some(count) => count,
                None => events.get(&name).await?.count.unwrap_or(1),
            };
            count = count.saturating_add(1);
            let patch = Patch::Merge(json!({"count": count, "lastTimestamp": now}));
            match events.patch(&name, &PatchParams::default(), &patch).await {
                // Somebody deleted it.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    self.create(namespace, &name, &note, &now).await?;
                    count = 1;
                }
                other => drop(other?),
            }
        }
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(note, Recorded { count, last: at });
        Ok(())
    }

    /// Says whether the event is new.
    async fn create(&self, namespace: &str, name: &str, note: &Note, now: &Time) -> Result<bool, kube::Error> {
        let subject = &note.subject;
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(subject.api_version.clone()),
                kind: Some(subject.kind.clone()),
                namespace: Some(subject.namespace.clone()).filter(|namespace| !namespace.is_empty()),
                name: Some(subject.name.clone()),
                uid: Some(subject.uid.clone()),
                field_path: subject.field_path.clone(),
                ..ObjectReference::default()
            },
            type_: Some(note.severity.to_string()),
            reason: Some(note.reason.clone()),
            message: Some(note.message.clone()),
            source: Some(EventSource { component: Some(note.component.clone()), host: self.host.clone() }),
            reporting_component: Some(note.component.clone()),
            reporting_instance: Some(self.host.clone().unwrap_or_default()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now.clone()),
            count: Some(1),
            ..Event::default()
        };
        let body = serde_json::to_vec(&event).map_err(kube::Error::SerdeError)?;
        let path = format!("/api/{}/namespaces/{namespace}/{}", Event::API_VERSION, Event::URL_PATH_SEGMENT);
        let request = kube::core::Request::new(path).create(&PostParams::default(), body);
        // Nobody reads the answer.
        match self.client.request_text(request.map_err(kube::Error::BuildRequest)?).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            other => other.map(|_| true),
        }
    }
}

#[cfg(test)]
mod tests;
