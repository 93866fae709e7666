use super::super::reason::Reason;
use super::super::report::Teller;
use super::super::solve::{Placement, Waiting, solve};
use super::*;
use serde_json::json;

fn pod(name: &str, extra: serde_json::Value) -> core::Pod {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"),
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "500m"}}}]}
    });
    merge(&mut pod, extra);
    serde_json::from_value(pod).expect("a pod")
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn member(name: &str) -> core::Pod {
    pod(name, json!({"metadata": {"labels": {POD_GROUP_LABEL: "job"}}}))
}

fn group(min: u64) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup",
        "metadata": {"name": "job", "namespace": "ns", "creationTimestamp": "2025-01-01T00:00:00Z"},
        "spec": {"minMember": min}
    }))
    .expect("a PodGroup")
}

fn machine() -> core::Node {
    serde_json::from_value(json!({
        "metadata": {"name": "n"},
        "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"},
                   "conditions": [{"type": "Ready", "status": "True"}]}
    }))
    .expect("a node")
}

fn problem(snapshot: &Snapshot) -> Problem {
    snapshot.problem(Timestamp::UNIX_EPOCH, SignedDuration::from_secs(1), |_| false)
}

#[test]
fn members_of_a_group_wait_together() {
    let mut snapshot = Snapshot::default();
    assert!(snapshot.apply_node(&machine()));
    assert!(snapshot.apply_group(&group(2)));
    assert!(snapshot.apply_pod(&member("a")));
    assert!(solve(&problem(&snapshot)).starts.is_empty());
    assert!(snapshot.apply_pod(&member("b")));
    assert!(snapshot.apply_pod(&pod("single", json!({}))));
    let solution = solve(&problem(&snapshot));
    assert_eq!(solution.starts.iter().map(|s| s.placements.len()).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn pods_of_other_schedulers_gated_deleting_or_done_are_left_alone() {
    let mut snapshot = Snapshot::default();
    snapshot.apply_node(&machine());
    for (name, extra) in [
        ("other", json!({"spec": {"schedulerName": "volcano"}})),
        ("gated", json!({"spec": {"schedulingGates": [{"name": "kueue"}]}})),
        ("deleting", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:01Z"}})),
        ("done", json!({"status": {"phase": "Succeeded"}})),
        ("bound", json!({"spec": {"nodeName": "n"}})),
    ] {
        snapshot.apply_pod(&pod(name, extra));
    }
    let problem = problem(&snapshot);
    assert!(problem.gangs.is_empty());
    assert_eq!(problem.nodes[0].pods.len(), 1);
}

/// A snapshot of one pod, and its start.
fn start() -> (Snapshot, Start) {
    let mut snapshot = Snapshot::default();
    snapshot.apply_node(&machine());
    snapshot.apply_pod(&pod("p", json!({})));
    let start = Start {
        gang: GangId::Pod { namespace: "ns".to_owned(), name: "p".to_owned() },
        placements: vec![Placement { pod: "p".to_owned(), uid: "uid-p".to_owned(), node: "n".to_owned() }],
    };
    (snapshot, start)
}

fn current(pods: impl IntoIterator<Item = core::Pod>) -> BTreeMap<String, core::Pod> {
    pods.into_iter().map(|pod| (pod.metadata.name.clone().unwrap_or_default(), pod)).collect()
}

#[test]
fn an_assumed_binding_counts_until_it_fails() {
    let (mut snapshot, start) = start();
    snapshot.assume(&start, Timestamp::UNIX_EPOCH);
    // A late event from before the binding changes nothing.
    assert!(!snapshot.apply_pod(&pod("p", json!({}))));
    assert!(problem(&snapshot).gangs.is_empty());
    assert_eq!(problem(&snapshot).nodes[0].pods.len(), 1);
    // The watch confirms it: nothing new to decide.
    assert!(!snapshot.clone().apply_pod(&pod("p", json!({"spec": {"nodeName": "n"}}))));
    assert!(!snapshot.settle(&start, &current([pod("p", json!({}))])));
    assert_eq!(problem(&snapshot).gangs.len(), 1);
}

#[test]
fn a_binding_whose_answer_was_lost_keeps_its_place_though_the_watch_lags() {
    let (mut snapshot, start) = start();
    snapshot.assume(&start, Timestamp::UNIX_EPOCH);
    let bound = pod("p", json!({"metadata": {"resourceVersion": "10"}, "spec": {"nodeName": "n"}}));
    assert!(snapshot.settle(&start, &current([bound])));
    snapshot.apply_pod(&pod("p", json!({"metadata": {"resourceVersion": "9"}})));
    assert_eq!(problem(&snapshot).nodes[0].pods.len(), 1);
    assert!(problem(&snapshot).gangs.is_empty());
}

#[test]
fn a_pod_that_went_while_it_was_bound_holds_nothing() {
    let (mut snapshot, start) = start();
    snapshot.assume(&start, Timestamp::UNIX_EPOCH);
    assert!(!snapshot.settle(&start, &current([pod("p", json!({"metadata": {"uid": "another"}}))])));
    assert!(problem(&snapshot).nodes[0].pods.is_empty());
    assert!(problem(&snapshot).gangs.is_empty());
}

#[test]
fn a_report_tells_of_the_pod_as_it_was_seen() {
    // Written late, it must not undo what has happened since: the binding, or the end of the pod.
    let mut snapshot = Snapshot::default();
    snapshot.apply_pod(&pod("p", json!({"metadata": {"resourceVersion": "7"}})));
    let gang = GangId::Pod { namespace: "ns".to_owned(), name: "p".to_owned() };
    let waiting = [Waiting { gang, reason: Reason::NoNodes }];
    let mut teller = Teller::default();
    teller.due(Timestamp::UNIX_EPOCH, &waiting, &snapshot);
    let (reports, _) = teller.due(Timestamp::UNIX_EPOCH + SignedDuration::from_secs(9), &waiting, &snapshot);
    assert_eq!(reports[0].conditions, BTreeMap::from([("p".to_owned(), 7)]));
}

#[test]
fn a_done_member_counts_and_a_failed_one_is_replaced() {
    let mut snapshot = Snapshot::default();
    snapshot.apply_node(&machine());
    snapshot.apply_group(&group(3));
    let phase = |phase: &str| json!({"status": {"phase": phase}, "metadata": {"labels": {POD_GROUP_LABEL: "job"}}});
    snapshot.apply_pod(&pod("done", phase("Succeeded")));
    snapshot.apply_pod(&pod("failed", phase("Failed")));
    snapshot.apply_pod(&member("a"));
    assert!(solve(&problem(&snapshot)).starts.is_empty());
    snapshot.apply_pod(&member("failed"));
    assert_eq!(solve(&problem(&snapshot)).starts[0].placements.len(), 2);
}

#[test]
fn status_changes_of_bound_pods_need_no_decision() {
    let mut snapshot = Snapshot::default();
    let bound = json!({"spec": {"nodeName": "n"}});
    assert!(snapshot.apply_pod(&pod("p", bound.clone())));
    let mut running = bound;
    merge(&mut running, json!({"status": {"phase": "Running", "podIP": "127.0.0.1"}}));
    assert!(!snapshot.apply_pod(&pod("p", running)));
    assert!(snapshot.apply_pod(&pod("p", json!({"status": {"phase": "Failed"}}))));
}

#[test]
fn priority_comes_from_the_pod_its_class_or_the_default_class() {
    let mut snapshot = Snapshot::default();
    let class = |name: &str, value: i32, default: bool| PriorityClass {
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            name: Some(name.to_owned()),
            ..Default::default()
        },
        value,
        global_default: Some(default),
        ..Default::default()
    };
    snapshot.apply_class(&class("high", 100, false));
    snapshot.apply_class(&class("usual", 5, true));
    for (name, spec, want) in [
        ("own", json!({"priority": 7, "priorityClassName": "high"}), 7),
        ("class", json!({"priorityClassName": "high"}), 100),
        ("system", json!({"priorityClassName": "system-cluster-critical"}), 2_000_000_000),
        ("none", json!({}), 5),
    ] {
        snapshot.apply_pod(&pod(name, json!({"spec": spec})));
        let found = problem(&snapshot).gangs.iter().find(|g| g.id.name() == name).map(|g| g.priority);
        assert_eq!(found, Some(want), "{name}");
    }
}

#[test]
fn requests_are_the_larger_of_running_and_initialising() {
    let spec = |value: serde_json::Value| -> core::PodSpec { serde_json::from_value(value).expect("a spec") };
    let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
    let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": {"limits": {"cpu": "1"}}});
    for (pod, want) in [
        (json!({"containers": [container("1"), container("500m")]}), 1500),
        (json!({"containers": [container("1")], "initContainers": [container("3")]}), 3000),
        (json!({"containers": [container("1")], "initContainers": [sidecar, container("3")]}), 4000),
        (json!({"containers": [container("1")], "overhead": {"cpu": "250m"}}), 1250),
    ] {
        assert_eq!(requests_of(&spec(pod)).get("cpu"), Some(&want));
    }
}
