//! Tells why gangs wait: a condition on their pods, events on pods, PodGroup and job.
//!
//! A reason is told when it has lasted a moment, again when it is another one, and with new amounts only now and
//! then: a queue of a thousand jobs must not turn into ten thousand writes.

use super::problem::GangId;
use super::reason::{Reason, ReasonKey};
use super::snapshot::Snapshot;
use super::solve::Waiting;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use muster_api::clock::{Clock, seconds};
use muster_events::{Recorder, Severity, Subject};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Who the scheduler's events are by.
pub(super) const COMPONENT: &str = "muster-scheduler";
/// A gang must have waited this long before anything is written about it.
const FIRST_AFTER: SignedDuration = SignedDuration::from_millis(500);
/// How soon the same reason is written again with new amounts.
const AGAIN_AFTER: SignedDuration = SignedDuration::from_secs(30);
/// At most this many gangs are written about a second.
const PER_SECOND: u32 = 20;

/// What to write about one gang.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) pods: Vec<Subject>,
    /// Of these the condition is to be set, too: it says something else. By name, with the version that was seen.
    pub(crate) conditions: BTreeMap<String, u64>,
    /// PodGroup and job.
    pub(crate) others: Vec<Subject>,
    pub(crate) message: String,
}

#[derive(Debug)]
struct Wait {
    since: Timestamp,
    told: Option<(ReasonKey, Timestamp)>,
}

/// Decides what is worth telling. Pure but for its memory.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    waits: BTreeMap<GangId, Wait>,
    window: Option<(Timestamp, u32)>,
}

impl Teller {
    /// The reports that are due now, and when to ask again.
    pub(crate) fn due(
        &mut self,
        now: Timestamp,
        waiting: &[Waiting],
        snapshot: &Snapshot,
    ) -> (Vec<Report>, Option<Timestamp>) {
        let ids: BTreeSet<&GangId> = waiting.iter().map(|w| &w.gang).collect();
        self.waits.retain(|id, _| ids.contains(id));
        let mut reports = Vec::new();
        let mut again: Option<Timestamp> = None;
        let mut at_latest = |time: Timestamp| again = Some(again.map_or(time, |at| at.min(time)));
        for Waiting { gang, reason } in waiting {
            let wait = self.waits.entry(gang.clone()).or_insert(Wait { since: now, told: None });
            let key = reason.key();
            let due = match &wait.told {
                None => later(wait.since, FIRST_AFTER),
                Some((told, at)) if *told == key => later(*at, AGAIN_AFTER),
                Some(_) => now,
            };
            if due > now {
                at_latest(due);
                continue;
            }
            let (begin, count) = self.window.unwrap_or((now, 0));
            let next_window = later(begin, SignedDuration::from_secs(1));
            if now >= next_window {
                self.window = Some((now, 1));
            } else if count < PER_SECOND {
                self.window = Some((begin, count + 1));
            } else {
                at_latest(next_window);
                continue;
            }
            wait.told = Some((key, now));
            if matches!(reason, Reason::Insufficient { .. }) {
                at_latest(later(now, AGAIN_AFTER));
            }
            let report = report(gang, reason, snapshot);
            if !report.conditions.is_empty() {
                reports.push(report);
            }
        }
        (reports, again)
    }
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

fn report(gang: &GangId, reason: &Reason, snapshot: &Snapshot) -> Report {
    let message = reason.to_string();
    let mut report =
        Report { pods: Vec::new(), conditions: BTreeMap::new(), others: Vec::new(), message: message.clone() };
    if let GangId::Group { namespace, name } = gang
        && let Some(group) = snapshot.group(gang)
    {
        report.others.push(Subject {
            api_version: "scheduling.x-k8s.io/v1alpha1".to_owned(),
            kind: "PodGroup".to_owned(),
            namespace: namespace.clone(),
            name: name.clone(),
            uid: group.uid.clone(),
            field_path: None,
        });
    }
    for ((namespace, name), pod) in snapshot.waiting_pods(gang) {
        if pod.told.as_ref() != Some(&message) {
            report.conditions.insert(name.clone(), pod.version);
        }
        report.pods.push(Subject::pod(namespace, name, &pod.asks.uid));
        if let Some(owner) = &pod.owner
            && !report.others.contains(owner)
        {
            report.others.push(owner.clone());
        }
    }
    report
}

/// Writes a report. What fails is logged; the next change of reason tells it anew.
pub(crate) async fn write(client: &kube::Client, clock: &Clock, recorder: &Recorder, report: Report) {
    let Report { pods, conditions, others, message } = report;
    let tell = |subject| recorder.record(subject, COMPONENT, Severity::Warning, "FailedScheduling", &message);
    others.iter().for_each(tell);
    for pod in &pods {
        let name = pod.name.as_str();
        let Some(version) = conditions.get(name) else { continue };
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
        let now = Time(seconds(clock.now()));
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": now,
        });
        // Only while the pod is as it was seen: by the time that this is written it may have been bound, and run.
        let mut metadata = json!({"uid": pod.uid});
        if *version > 0 {
            metadata["resourceVersion"] = version.to_string().into();
        }
        let patch = json!({"metadata": metadata, "status": {"conditions": [condition]}});
        if let Err(error) = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            tracing::debug!(pod = name, %error, "failed to tell why a pod waits");
        }
        tell(pod);
    }
}
