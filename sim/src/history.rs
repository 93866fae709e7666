//! The store's backend in a simulated world: keeps nothing, and sees every transaction whole, in the order of
//! commits. It writes the trace, keeps the cluster's objects for others to read, and asks the invariants.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard};

use muster_apiserver::store::{Backend, BackendError, Row};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::{Change, Cluster, Key};
use crate::invariants::{Invariant, Violation};

/// No world needs more: most end after some hundred. Where two controllers undo each other's work no time passes, and
/// only this ends it.
const MAX_TRANSACTIONS: u64 = 20_000;

/// What has happened so far.
pub struct History {
    start: Instant,
    trace: String,
    pub cluster: Cluster,
    invariants: Vec<Box<dyn Invariant + Send>>,
    pub violation: Option<Violation>,
    pub transactions: u64,
}

/// A history that the parts of a world share.
#[derive(Clone)]
pub struct Shared {
    history: Arc<Mutex<History>>,
    /// Told when an invariant is broken.
    pub broken: Arc<Notify>,
}

impl Shared {
    pub fn new(invariants: Vec<Box<dyn Invariant + Send>>) -> Shared {
        let history = History {
            start: Instant::now(),
            trace: String::new(),
            cluster: Cluster::default(),
            invariants,
            violation: None,
            transactions: 0,
        };
        Shared { history: Arc::new(Mutex::new(history)), broken: Arc::new(Notify::new()) }
    }

    pub fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a line to the trace.
    pub fn note(&self, text: impl std::fmt::Display) {
        self.lock().note(text);
    }

    /// Asks the invariants about the cluster at rest.
    pub fn at_rest(&self) {
        let mut history = self.lock();
        let History { invariants, cluster, violation, .. } = &mut *history;
        for invariant in invariants {
            if let (None, Err(message)) = (&violation, invariant.at_rest(cluster)) {
                *violation = Some(Violation { invariant: invariant.name(), message });
            }
        }
    }

    pub fn violate(&self, invariant: &'static str, message: String) {
        self.lock().violation.get_or_insert(Violation { invariant, message });
        self.broken.notify_one();
    }
}

impl History {
    pub fn note(&mut self, text: impl std::fmt::Display) {
        let millis = self.start.elapsed().as_millis();
        // Writing to a string cannot fail.
        let _ = writeln!(self.trace, "{:>4}.{:03} {text}", millis / 1000, millis % 1000);
    }

    pub fn take_trace(&mut self) -> String {
        std::mem::take(&mut self.trace)
    }

    fn commit(&mut self, rows: &[Row]) {
        self.transactions += 1;
        let mut changes: Vec<Change> = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(key) = Key::parse(&row.key) else { continue };
            let value = row.value.as_ref().and_then(|json| serde_json::from_slice(json).ok());
            let change = self.cluster.apply(key, value);
            let what = match (&change.before, &change.after) {
                (None, _) => "create",
                (Some(_), Some(_)) => "update",
                (Some(_), None) => "delete",
            };
            // The whole object counts for the comparison of two runs, also where only its digest is shown.
            let digest = row.value.as_ref().map_or(0, |json| fnv(json));
            self.note(format_args!("{} {what} {} {digest:016x}{}", row.revision, change.key, summary(&change)));
            changes.push(change);
        }
        if self.violation.is_some() {
            return;
        }
        if self.transactions > MAX_TRANSACTIONS {
            let message = format!("more than {MAX_TRANSACTIONS} transactions");
            self.violation = Some(Violation { invariant: "convergence", message });
            return;
        }
        for invariant in &mut self.invariants {
            if let Err(message) = invariant.observe(&changes, &self.cluster) {
                self.violation = Some(Violation { invariant: invariant.name(), message });
                return;
            }
        }
    }
}

/// What a reader of the trace wants to see of an object.
fn summary(change: &Change) -> String {
    let Some(object) = &change.after else { return String::new() };
    let mut text = String::new();
    let mut add = |name: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let _ = write!(text, " {name}={value}");
        }
    };
    add("phase", object.pointer("/status/phase").and_then(|value| value.as_str()));
    add("node", object.pointer("/spec/nodeName").and_then(|value| value.as_str()));
    add("deleting", object.pointer("/metadata/deletionTimestamp").and_then(|value| value.as_str()));
    add("reason", object["reason"].as_str());
    add("message", object["message"].as_str());
    if let Some(conditions) = object.pointer("/status/conditions").and_then(|value| value.as_array()) {
        for condition in conditions.iter().filter(|condition| condition["status"] == "True") {
            add("is", condition["type"].as_str());
        }
    }
    text
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

impl Backend for Shared {
    fn load(&mut self, _visit: &mut dyn FnMut(Row)) -> Result<u64, BackendError> {
        Ok(0)
    }

    fn commit(&mut self, rows: &[Row]) -> Result<(), BackendError> {
        let mut history = self.lock();
        history.commit(rows);
        if history.violation.is_some() {
            self.broken.notify_one();
        }
        Ok(())
    }

    fn compact(&mut self, _floor: u64, _superseded: &[u64]) -> Result<(), BackendError> {
        Ok(())
    }

    fn inline(&self) -> bool {
        true
    }
}
