//! A pod's line in `kubectl get pods`.

use crate::builtin::columns::{Column, Doc};
use crate::builtin::rows::{AGE, NAME, age, duration, name, or_none, seconds};
use crate::builtin::value::{field, int, items, list, text};
use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
use schemars::JsonSchema;
use serde_json::{Value, json};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    Column::new("Ready", Doc::Text("The aggregate readiness state of this pod for accepting traffic.")),
    Column::new("Status", Doc::Text("The aggregate status of the containers in this pod.")),
    Column::new(
        "Restarts",
        Doc::Text(
            "The number of times the containers in this pod have been restarted and when the last container in this \
             pod has restarted.",
        ),
    ),
    AGE,
    Column::wide("IP", Doc::Field(PodStatus::json_schema, "podIP")),
    Column::wide("Node", Doc::Field(PodSpec::json_schema, "nodeName")),
    Column::wide("Nominated Node", Doc::Field(PodStatus::json_schema, "nominatedNodeName")),
    Column::wide("Readiness Gates", Doc::Field(PodSpec::json_schema, "readinessGates")),
];

pub(super) fn row(pod: &Value, now: i64) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts > 0 => format!("{} ({} ago)", summary.restarts, duration(now - last)),
        _ => summary.restarts.to_string(),
    };
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.containers).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now),
        or_none(text(pod, "/status/podIP")),
        or_none(text(pod, "/spec/nodeName")),
        or_none(text(pod, "/status/nominatedNodeName")),
        readiness_gates(pod).into(),
    ]
}

pub(super) fn conditions(pod: &Value) -> Vec<Value> {
    let completed = |reason: &str, message: &str| {
        vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
    };
    match text(pod, "/status/phase") {
        "Succeeded" => completed("Succeeded", "The pod has completed successfully."),
        "Failed" => completed("Failed", "The pod failed."),
        _ => Vec::new(),
    }
}

struct Summary {
    ready: usize,
    containers: usize,
    restarts: i64,
    /// When a container ended last before it was restarted, in seconds since the epoch.
    last_restart: Option<i64>,
    reason: String,
}

impl Summary {
    fn of(pod: &Value) -> Summary {
        let restartable = |name: &str| {
            list(pod, "/spec/initContainers")
                .iter()
                .any(|c| field(c, "name") == name && field(c, "restartPolicy") == "Always")
        };
        let sidecars =
            list(pod, "/spec/initContainers").iter().filter(|c| field(c, "restartPolicy") == "Always").count();
        let mut summary = Summary {
            ready: 0,
            containers: list(pod, "/spec/containers").len() + sidecars,
            restarts: 0,
            last_restart: None,
            reason: phase_or_reason(pod),
        };
        let (mut sidecar_restarts, mut last_sidecar_restart) = (0, None);
        let mut initialising = false;
        let inits = list(pod, "/status/initContainerStatuses");
        for (i, status) in inits.iter().enumerate() {
            summary.count_restart(status);
            let sidecar = restartable(field(status, "name"));
            if sidecar {
                sidecar_restarts += restarts_of(status);
                last_sidecar_restart = last_sidecar_restart.max(last_end(status));
            }
            match init_reason(status, sidecar) {
                Init::Done => continue,
                Init::Serving { ready } => {
                    summary.ready += usize::from(ready);
                    continue;
                }
                Init::Because(reason) => summary.reason = format!("Init:{reason}"),
                Init::Waiting => {
                    summary.reason = format!("Init:{i}/{}", list(pod, "/spec/initContainers").len());
                }
            }
            initialising = true;
            break;
        }
        if !initialising || initialized(pod) {
            summary.restarts = sidecar_restarts;
            summary.last_restart = last_sidecar_restart;
            summary.read_containers(pod);
        }
        if pod.pointer("/metadata/deletionTimestamp").is_some() {
            let lost = text(pod, "/status/reason") == "NodeLost";
            let ended = matches!(text(pod, "/status/phase"), "Failed" | "Succeeded");
            if lost {
                summary.reason = "Unknown".into();
            } else if !ended {
                summary.reason = "Terminating".into();
            }
        }
        summary
    }

    fn count_restart(&mut self, status: &Value) {
        self.restarts += restarts_of(status);
        self.last_restart = self.last_restart.max(last_end(status));
    }

    /// What the containers say: the first one that has something to say wins.
    fn read_containers(&mut self, pod: &Value) {
        let mut has_running = false;
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            self.count_restart(status);
            let state = |pointer: &str| text(status, &format!("/state/{pointer}"));
            if !state("waiting/reason").is_empty() {
                self.reason = state("waiting/reason").to_owned();
            } else if let Some(ended) = status.pointer("/state/terminated") {
                self.reason = ended_reason(ended);
            } else if status.get("ready").and_then(Value::as_bool) == Some(true)
                && status.pointer("/state/running").is_some()
            {
                has_running = true;
                self.ready += 1;
            }
        }
        // A container that is still at work says more than one that has ended well.
        if self.reason == "Completed" && has_running {
            self.reason = if is_ready(pod) { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

fn phase_or_reason(pod: &Value) -> String {
    let gated = list(pod, "/status/conditions")
        .iter()
        .any(|c| field(c, "type") == "PodScheduled" && field(c, "reason") == "SchedulingGated");
    match (text(pod, "/status/phase"), text(pod, "/status/reason")) {
        _ if gated => "SchedulingGated".to_owned(),
        (phase, "") => phase.to_owned(),
        (_, reason) => reason.to_owned(),
    }
}

enum Init {
    Done,
    Serving { ready: bool },
    Because(String),
    Waiting,
}

fn init_reason(status: &Value, sidecar: bool) -> Init {
    if let Some(ended) = status.pointer("/state/terminated") {
        if int(ended, "/exitCode").unwrap_or(0) == 0 {
            return Init::Done;
        }
        return Init::Because(ended_reason(ended));
    }
    if sidecar && status.get("started").and_then(Value::as_bool) == Some(true) {
        return Init::Serving { ready: status.get("ready").and_then(Value::as_bool) == Some(true) };
    }
    match text(status, "/state/waiting/reason") {
        "" | "PodInitializing" => Init::Waiting,
        reason => Init::Because(reason.to_owned()),
    }
}

fn ended_reason(ended: &Value) -> String {
    match (field(ended, "reason"), int(ended, "/signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", int(ended, "/exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn restarts_of(status: &Value) -> i64 {
    int(status, "/restartCount").unwrap_or(0)
}

fn last_end(status: &Value) -> Option<i64> {
    seconds(text(status, "/lastState/terminated/finishedAt"))
}

fn has_condition(pod: &Value, kind: &str) -> bool {
    list(pod, "/status/conditions").iter().any(|c| field(c, "type") == kind && field(c, "status") == "True")
}

fn initialized(pod: &Value) -> bool {
    has_condition(pod, "Initialized")
}

fn is_ready(pod: &Value) -> bool {
    has_condition(pod, "Ready")
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = gates.iter().filter(|gate| {
        let conditions = pod.get("status").map_or(&[][..], |s| items(s, "conditions"));
        conditions.iter().any(|c| field(c, "type") == field(gate, "conditionType") && field(c, "status") == "True")
    });
    format!("{}/{}", met.count(), gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pod: &Value) -> Vec<String> {
        let cells = row(pod, 1_577_836_800 + 60);
        cells[1..4].iter().map(|c| c.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn states_of_a_pod() {
        let pod = |status: Value| json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": status});
        let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
        let done =
            json!({"ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let crashed = json!({"ready": false, "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2020-01-01T00:00:00Z"}}});
        for (status, expected) in [
            (json!({"phase": "Pending"}), ["0/2", "Pending", "0"]),
            (json!({"phase": "Running", "containerStatuses": [running, running]}), ["2/2", "Running", "0"]),
            (json!({"phase": "Running", "containerStatuses": [running, done]}), ["1/2", "NotReady", "0"]),
            (
                json!({"phase": "Running", "containerStatuses": [running, crashed]}),
                ["1/2", "CrashLoopBackOff", "4 (60s ago)"],
            ),
            (json!({"phase": "Succeeded", "containerStatuses": [done, done]}), ["0/2", "Completed", "0"]),
            (json!({"phase": "Failed", "reason": "Evicted"}), ["0/2", "Evicted", "0"]),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
                ["0/2", "ExitCode:3", "0"],
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
                ["0/2", "Signal:9", "0"],
            ),
        ] {
            assert_eq!(line(&pod(status.clone())), expected, "{status}");
        }
    }

    #[test]
    fn initialisation() {
        let pod = |status: Value| {
            json!({"spec": {"initContainers": [{"name": "i"}, {"name": "j"}],
            "containers": [{"name": "a"}]}, "status": {"phase": "Pending", "initContainerStatuses": status}})
        };
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        for (statuses, expected) in [
            (json!([done, {"name": "j", "state": {"running": {}}}]), "Init:1/2"),
            (json!([{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}]), "Init:0/2"),
            (json!([{"name": "i", "state": {"waiting": {"reason": "ErrImagePull"}}}]), "Init:ErrImagePull"),
            (json!([{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]), "Init:Error"),
            (json!([{"name": "i", "state": {"terminated": {"exitCode": 1}}}]), "Init:ExitCode:1"),
        ] {
            assert_eq!(line(&pod(statuses))[1], expected);
        }
    }

    #[test]
    fn deletion_is_shown() {
        let pod = json!({"metadata": {"deletionTimestamp": "2020-01-01T00:00:00Z"}, "spec": {"containers": [{}]},
            "status": {"phase": "Running"}});
        assert_eq!(line(&pod)[1], "Terminating");
    }
}
