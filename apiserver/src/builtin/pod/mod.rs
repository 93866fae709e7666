//! Pods.

mod admission;
pub(super) mod defaults;
mod qos;
mod row;
mod update;
pub(super) mod validate;
pub(super) mod warnings;

use super::table::{BASE, keep_status};
use super::value::{child, field, fields, fill, int, list, text};
use super::{BuiltinKind, Context, wire};
use serde_json::{Map, Value, json};

pub(super) const KINDS: &[BuiltinKind] = &[BuiltinKind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    subresources: &["attach", "binding", "eviction", "exec", "log", "portforward", "status"],
    generation: true,
    returns_deleted: true,
    default,
    admit: admission::admit,
    prepare_create,
    prepare_update,
    validate: |pod, _| validate::pod(pod),
    validate_update: update::validate,
    warnings: warnings::pod,
    columns: row::COLUMNS,
    row: row::row,
    row_conditions: row::conditions,
    fields: selectable,
    field_labels: SELECTABLE,
    grace,
    ..BASE
}];

const SELECTABLE: &[&str] = &[
    "spec.hostNetwork",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.nominatedNodeName",
    "status.phase",
    "status.podIP",
    "status.podIPs",
];

fn default(pod: &mut Value) {
    wire::normalise(pod);
    defaults::pod_spec(child(pod, "spec"));
    defaults::status(child(pod, "status"));
}

fn prepare_create(pod: &mut Value, context: &Context<'_>) {
    let spec = child(pod, "spec");
    defaults::drop_disabled(spec);
    at_least_one_second(spec);
    let gated = !list(spec, "/schedulingGates").is_empty();
    let mut status = json!({"phase": "Pending", "qosClass": qos::class(spec)});
    if gated {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "lastProbeTime": null, "lastTransitionTime": context.now,
            "reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    fields(pod).insert("status".into(), status);
}

fn at_least_one_second(spec: &mut Value) {
    if int(spec, "/terminationGracePeriodSeconds").is_some_and(|grace| grace < 0) {
        fields(spec).insert("terminationGracePeriodSeconds".into(), 1.into());
    }
}

fn prepare_update(pod: &mut Value, old: &Value, context: &Context<'_>) {
    keep_status(pod, old, context.subresource);
    defaults::drop_disabled(child(pod, "spec"));
    if context.subresource == "status" {
        let owners = old.pointer("/metadata/ownerReferences").cloned();
        let metadata = fields(child(pod, "metadata"));
        match owners {
            Some(owners) => metadata.insert("ownerReferences".into(), owners),
            None => metadata.remove("ownerReferences"),
        };
        let class = old.pointer("/status/qosClass").cloned();
        if let Some(class) = class {
            fill(child(pod, "status"), "qosClass", class);
        }
    }
}

fn grace(pod: &Value, asked: Option<i64>) -> Option<i64> {
    let waits_for_nothing =
        text(pod, "/spec/nodeName").is_empty() || matches!(text(pod, "/status/phase"), "Failed" | "Succeeded");
    let period = asked.or(int(pod, "/spec/terminationGracePeriodSeconds")).unwrap_or(0);
    Some(match period {
        _ if waits_for_nothing => 0,
        // A negative period stands for as short as can be without force.
        period if period < 0 => 1,
        period => period,
    })
}

fn selectable(pod: &Value) -> Map<String, Value> {
    let mut values: Map<String, Value> = SELECTABLE
        .iter()
        .map(|label| ((*label).to_owned(), text(pod, &format!("/{}", label.replace('.', "/"))).into()))
        .collect();
    let host_network = pod.pointer("/spec/hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    values.insert("spec.hostNetwork".into(), host_network.to_string().into());
    let ips: Vec<&str> = list(pod, "/status/podIPs").iter().map(|ip| field(ip, "ip")).collect();
    values.insert("status.podIPs".into(), ips.join(",").into());
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::NoObjects;

    const CONTEXT: Context<'static> = Context {
        now: "2020-01-01T00:00:00Z",
        namespace: Some("n"),
        subresource: "",
        objects: &NoObjects,
        random: &|| 7,
    };

    #[test]
    fn deletion_grace() {
        let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": phase}});
        for (pod, asked, expected) in [
            (pod("", "Pending"), Some(30), 0),
            (pod("n", "Running"), None, 30),
            (pod("n", "Running"), Some(5), 5),
            (pod("n", "Running"), Some(0), 0),
            (pod("n", "Running"), Some(-1), 1),
            (pod("n", "Succeeded"), Some(9), 0),
        ] {
            assert_eq!(grace(&pod, asked), Some(expected), "{pod} {asked:?}");
        }
    }

    #[test]
    fn status_is_the_servers_at_creation() {
        let mut pod = json!({"spec": {"schedulingGates": [{"name": "g"}], "terminationGracePeriodSeconds": -3},
            "status": {"phase": "Running"}});
        prepare_create(&mut pod, &CONTEXT);
        assert_eq!(pod["status"]["phase"], "Pending");
        assert_eq!(pod["status"]["qosClass"], "BestEffort");
        assert_eq!(pod["status"]["conditions"][0]["reason"], "SchedulingGated");
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 1);
    }

    #[test]
    fn each_subresource_writes_its_own_part() {
        let old = json!({"metadata": {"name": "a"}, "spec": {"x": 1}, "status": {"phase": "Pending", "qosClass": "Burstable"}});
        let mut main = json!({"metadata": {"name": "a"}, "spec": {"x": 2}, "status": {"phase": "Failed"}});
        let mut status = main.clone();
        prepare_update(&mut main, &old, &CONTEXT);
        assert_eq!((&main["spec"]["x"], &main["status"]["phase"]), (&json!(2), &json!("Pending")));
        prepare_update(&mut status, &old, &Context { subresource: "status", ..CONTEXT });
        assert_eq!((&status["spec"]["x"], &status["status"]["phase"]), (&json!(1), &json!("Failed")));
        assert_eq!(status["status"]["qosClass"], "Burstable");
    }
}
