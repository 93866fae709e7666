//! Counts of pods in the status of a workload.

use super::metadata::NOT_NEGATIVE;
use muster_api::field::FieldError;
use serde_json::Value;

/// Counts of pods in a status: none is negative, and of what is there no part is more than the whole.
fn counts(status: &Value, all: &[&str], parts: &[&str], ready: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let count = |key: &str| status.get(key).and_then(Value::as_i64).unwrap_or(0);
    let mut refuse = |key: &str, why: &str| {
        errors.push(FieldError::invalid(format!("status.{key}"), &Value::from(count(key)), why));
    };
    all.iter().filter(|key| count(key) < 0).for_each(|key| refuse(key, NOT_NEGATIVE));
    let more = parts.iter().filter(|key| count(key) > count("replicas"));
    more.for_each(|key| refuse(key, "cannot be greater than status.replicas"));
    if !parts.is_empty() && count("availableReplicas") > count("readyReplicas") {
        refuse("availableReplicas", &format!("cannot be greater than {ready}"));
    }
    errors
}

/// Checks of a status that is written as such.
pub(super) fn status_counts(kind: &str, new: &Value) -> Vec<FieldError> {
    let status = new.get("status").unwrap_or(&Value::Null);
    match kind {
        "Deployment" => counts(
            status,
            &[
                "observedGeneration",
                "replicas",
                "updatedReplicas",
                "readyReplicas",
                "availableReplicas",
                "unavailableReplicas",
                "collisionCount",
            ],
            &["updatedReplicas", "readyReplicas", "availableReplicas"],
            "readyReplicas",
        ),
        "ReplicaSet" => counts(
            status,
            &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"],
            &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
            "readyReplicas",
        ),
        "StatefulSet" => counts(
            status,
            &[
                "replicas",
                "readyReplicas",
                "currentReplicas",
                "updatedReplicas",
                "availableReplicas",
                "observedGeneration",
                "collisionCount",
            ],
            &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
            "status.readyReplicas",
        ),
        _ => counts(
            status,
            &[
                "currentNumberScheduled",
                "numberMisscheduled",
                "desiredNumberScheduled",
                "numberReady",
                "observedGeneration",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
                "collisionCount",
            ],
            &[],
            "",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_are_no_more_than_the_whole() {
        let status = json!({"status": {"replicas": 1, "readyReplicas": 3, "availableReplicas": 5}});
        let messages: Vec<String> = status_counts("StatefulSet", &status).iter().map(ToString::to_string).collect();
        assert_eq!(
            messages,
            [
                "status.readyReplicas: Invalid value: 3: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 5: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 5: cannot be greater than status.readyReplicas",
            ]
        );
        assert_eq!(status_counts("DaemonSet", &json!({"status": {"numberReady": -1}})).len(), 1);
    }
}
