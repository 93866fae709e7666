//! Training jobs as a client sees them: their pods, in the order of ranks, and how they stand.

mod follow;

pub(crate) use follow::{Follow, LogOptions, Outcome, show_log};

use crate::client::{Connection, JSON, Kind, Kinds, with_query};
use anyhow::Result;
use muster_api::names::label::{JOB_NAME, REPLICA_INDEX, REPLICA_TYPE};
use serde_json::Value;

/// Roles that stand before the others, as the leading ones of their frameworks.
const LEADING: [&str; 3] = ["master", "chief", "scheduler"];
/// The containers that frameworks call the main one.
const MAIN_CONTAINERS: [&str; 3] = ["pytorch", "tensorflow", "mxnet"];

/// The selector of the pods of a job.
pub(crate) fn selector(job: &str) -> String {
    format!("{JOB_NAME}={job}")
}

/// The pods of a job, in the order of ranks.
pub(crate) async fn pods(connection: &Connection, namespace: &str, job: &str) -> Result<Vec<Value>> {
    let path = with_query(&format!("/api/v1/namespaces/{namespace}/pods"), &[("labelSelector", Some(&selector(job)))]);
    let list = connection.get(&path, JSON).await?;
    let mut pods = list["items"].as_array().cloned().unwrap_or_default();
    pods.sort_by_key(rank_order);
    Ok(pods)
}

/// The job of a name, of whichever kind.
pub(crate) async fn find(connection: &Connection, kinds: &Kinds, name: &str) -> Result<Option<(Kind, Value)>> {
    for kind in kinds.training_jobs() {
        if let Some(job) = connection.find(&kind.object(&connection.namespace, name)).await? {
            return Ok(Some((kind.clone(), job)));
        }
    }
    Ok(None)
}

/// The key that sorts pods as their ranks are.
pub(crate) fn rank_order(pod: &Value) -> (usize, String, u64, String) {
    let (role, index) = role(pod);
    let leading = LEADING.iter().position(|r| *r == role).unwrap_or(LEADING.len());
    (leading, role.to_owned(), index, name(pod).to_owned())
}

/// Role and index of a pod, e.g. `worker`, 0.
pub(crate) fn role(pod: &Value) -> (&str, u64) {
    let label = |key: &str| pod["metadata"]["labels"][key].as_str().unwrap_or_default();
    (label(REPLICA_TYPE), label(REPLICA_INDEX).parse().unwrap_or(0))
}

/// What stands before the lines of a pod: its role and index, or its name.
pub(crate) fn short_name(pod: &Value) -> String {
    match role(pod) {
        ("", _) => name(pod).to_owned(),
        (role, index) => format!("{role}-{index}"),
    }
}

pub(crate) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The container whose logs and exit code count.
pub(crate) fn main_container(pod: &Value) -> &str {
    let names = || pod["spec"]["containers"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str());
    names().find(|n| MAIN_CONTAINERS.contains(n)).or_else(|| names().next()).unwrap_or_default()
}

/// The status of a container of a pod.
pub(crate) fn container_status<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    pod["status"]["containerStatuses"].as_array()?.iter().find(|s| s["name"] == container)
}

/// The condition that holds, the latest one: what a job is doing.
pub(crate) fn state(job: &Value) -> Option<&Value> {
    job.pointer("/status/conditions")?.as_array()?.iter().rev().find(|c| c["status"] == "True")
}

pub(crate) fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_stand_in_the_order_of_ranks() {
        let pod = |role: &str, index: &str| json!({"metadata": {"name": format!("j-{role}-{index}"), "labels": {REPLICA_TYPE: role, REPLICA_INDEX: index}}});
        let mut pods = [pod("worker", "10"), pod("worker", "2"), pod("ps", "0"), pod("master", "0")];
        pods.sort_by_key(rank_order);
        let names: Vec<String> = pods.iter().map(short_name).collect();
        assert_eq!(names, ["master-0", "ps-0", "worker-2", "worker-10"]);
    }
}
