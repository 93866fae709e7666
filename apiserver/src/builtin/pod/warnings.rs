//! What is allowed in a pod and is hardly what its author means: told in `Warning` headers.

use crate::builtin::names;
use crate::builtin::value::{entries, field, int, items, text};
use muster_api::quantity::Quantity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const REMOVED_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];

/// Labels of nodes that have other names by now.
const OLD_NODE_LABELS: [(&str, &str); 7] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "non-functional in v1.20+; use \"tolerations\" and \"taints\" instead",
    ),
    ("node.kubernetes.io/exclude-disruption", "non-functional in v1.21+"),
];

const REMOVED_VOLUMES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

fn old_label(label: &str) -> Option<&'static str> {
    OLD_NODE_LABELS.iter().find(|(name, _)| *name == label).map(|(_, message)| *message)
}

/// Warnings about a new pod, or about a change of one.
pub(super) fn pod(pod: &Value, old: Option<&Value>) -> Vec<String> {
    let mut found = Vec::new();
    if old.is_none() {
        hostname(pod, "this is used in the Pod's hostname", &mut found);
    }
    found.extend(warnings(pod, ""));
    found
}

/// Warnings about a workload whose pods follow the template at `path` (`spec.template`). `named` are those whose pods
/// have names that begin with its own.
pub(in crate::builtin) fn workload(object: &Value, old: Option<&Value>, path: &str, named: bool) -> Vec<String> {
    let mut found = Vec::new();
    match old {
        Some(old) if old.get("spec") == object.get("spec") => return found,
        None if named => hostname(object, "this is used in Pod names and hostnames", &mut found),
        _ => {}
    }
    let template = object.pointer(&format!("/{}", path.replace('.', "/"))).unwrap_or(&Value::Null);
    found.extend(warnings(template, path));
    found
}

fn hostname(object: &Value, used: &str, found: &mut Vec<String>) {
    let wrong = names::label(text(object, "/metadata/name"));
    if !wrong.is_empty() {
        found.push(format!(
            "metadata.name: {used}, which can result in surprising behavior; a DNS label is recommended: [{}]",
            wrong.join(" ")
        ));
    }
}

/// Warnings about a pod, or about the pod template at `path`.
fn warnings(pod: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let Some(spec) = pod.get("spec") else { return found };
    let at = |rest: &str| if path.is_empty() { rest.to_owned() } else { format!("{path}.{rest}") };
    for (label, _) in entries(spec, "nodeSelector") {
        if let Some(message) = old_label(label) {
            found.push(format!("{}: {message}", at(&format!("spec.nodeSelector[{label}]"))));
        }
    }
    node_affinity(spec, &at("spec.affinity.nodeAffinity"), &mut found);
    for (i, spread) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = at(&format!("spec.topologySpreadConstraints[{i}]"));
        let key = field(spread, "topologyKey");
        if let Some(message) = old_label(key) {
            found.push(format!("{path}.topologyKey: {key} is {message}"));
        }
        if spread.get("labelSelector").is_none() {
            found.push(format!("{path}.labelSelector: a null labelSelector results in matching no pod"));
        }
    }
    let annotations = pod.pointer("/metadata/annotations").unwrap_or(&Value::Null);
    for (name, message) in REMOVED_ANNOTATIONS {
        if annotations.get(name).is_some() {
            found.push(format!("{}: {message}", at(&format!("metadata.annotations[{name}]"))));
        }
    }
    for (i, volume) in items(spec, "volumes").iter().enumerate() {
        for (kind, message) in REMOVED_VOLUMES {
            if volume.get(kind).is_some() {
                let kind = if kind == "storageos" { "storageOS" } else { kind };
                found.push(format!("{}: {message}", at(&format!("spec.volumes[{i}].{kind}"))));
            }
        }
    }
    let mut seen = BTreeSet::new();
    for (i, alias) in items(spec, "hostAliases").iter().enumerate() {
        let ip = field(alias, "ip");
        if !seen.insert(ip) {
            found.push(format!("{}: duplicate ip {ip:?}", at(&format!("spec.hostAliases[{i}].ip"))));
        }
    }
    pull_secrets(spec, &at("spec.imagePullSecrets"), &mut found);
    for (name, amount) in entries(spec, "overhead") {
        fractional(name, amount, &at("spec.overhead"), &mut found);
    }
    let containers: Vec<(String, &Value)> = ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| items(spec, list).iter().enumerate().map(move |(i, container)| (list, i, container)))
        .map(|(list, i, container)| (at(&format!("spec.{list}[{i}]")), container))
        .collect();
    for (path, container) in &containers {
        for list in ["limits", "requests"] {
            for name in ["memory", "ephemeral-storage"] {
                if let Some(amount) = container.pointer(&format!("/resources/{list}/{name}")) {
                    fractional(name, amount, &format!("{path}.resources.{list}"), &mut found);
                }
            }
        }
        hidden_variables(container, path, &mut found);
    }
    ports(&containers, &mut found);
    if int(spec, "/terminationGracePeriodSeconds").is_some_and(|grace| grace < 0) {
        let path = at("spec.terminationGracePeriodSeconds");
        found.push(format!("{path}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (list, term) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", ""),
            ("preferredDuringSchedulingIgnoredDuringExecution", "podAffinityTerm"),
        ] {
            let terms = spec.pointer(&format!("/affinity/{kind}/{list}")).and_then(Value::as_array);
            for (i, outer) in terms.into_iter().flatten().enumerate() {
                let inner = if term.is_empty() { Some(outer) } else { outer.get(term) };
                if inner.is_none_or(|term| term.get("labelSelector").is_none()) {
                    let dot = if term.is_empty() { "" } else { "." };
                    let path = at(&format!("spec.affinity.{kind}.{list}[{i}]{dot}{term}.labelSelector"));
                    found.push(format!("{path}: a null labelSelector results in matching no pod"));
                }
            }
        }
    }
    found
}

fn node_affinity(spec: &Value, path: &str, found: &mut Vec<String>) {
    let Some(affinity) = spec.pointer("/affinity/nodeAffinity") else { return };
    let required = affinity.pointer("/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms");
    for (i, term) in required.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let path = format!("{path}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[{i}]");
        node_term(term, &path, found);
    }
    for (i, weighted) in items(affinity, "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
        let path = format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{i}].preference");
        let term = weighted.get("preference").unwrap_or(&Value::Null);
        if items(term, "matchExpressions").is_empty() && items(term, "matchFields").is_empty() {
            continue;
        }
        node_term(term, &path, found);
    }
}

fn node_term(term: &Value, path: &str, found: &mut Vec<String>) {
    for (i, expression) in items(term, "matchExpressions").iter().enumerate() {
        let key = field(expression, "key");
        if let Some(message) = old_label(key) {
            found.push(format!("{path}.matchExpressions[{i}].key: {key} is {message}"));
        }
    }
}

fn pull_secrets(spec: &Value, path: &str, found: &mut Vec<String>) {
    let secrets = items(spec, "imagePullSecrets");
    let mut seen = BTreeSet::new();
    for (i, secret) in secrets.iter().enumerate() {
        let name = field(secret, "name");
        if !seen.insert(name) {
            found.push(format!("{path}[{i}].name: duplicate name {name:?}"));
        }
    }
    for (i, _) in secrets.iter().enumerate().filter(|(_, secret)| field(secret, "name").is_empty()) {
        found.push(format!("{path}[{i}].name: invalid empty name \"\""));
    }
}

/// Bytes cannot be divided.
fn fractional(name: &str, amount: &Value, path: &str, found: &mut Vec<String>) {
    let whole = amount.as_str().and_then(|text| text.parse::<Quantity>().ok()).is_none_or(|q| q.is_integer());
    if matches!(name, "memory" | "ephemeral-storage") && !whole {
        found.push(format!("{path}[{name}]: fractional byte value {amount} is invalid, must be an integer"));
    }
}

/// A variable that is given twice, the second without use of the first.
fn hidden_variables(container: &Value, path: &str, found: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, variable) in items(container, "env").iter().enumerate() {
        let (name, value) = (field(variable, "name"), field(variable, "value"));
        let reference = format!("$({name})");
        let builds_on_it = variable.get("valueFrom").is_none() && value != reference && value.contains(&reference);
        if !seen.insert(name) && !builds_on_it {
            found.push(format!(
                "{path}.env[{i}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
}

/// A port of a container.
struct Port<'a> {
    path: String,
    host_ip: &'a str,
    host_port: i64,
}

fn ports(containers: &[(String, &Value)], found: &mut Vec<String>) {
    let mut by_number: BTreeMap<(i64, &str), Vec<Port<'_>>> = BTreeMap::new();
    let mut by_name: BTreeMap<&str, String> = BTreeMap::new();
    let mut same_names = Vec::new();
    for (path, container) in containers {
        for (i, port) in items(container, "ports").iter().enumerate() {
            let path = format!("{path}.ports[{i}]");
            let (number, protocol) = (int(port, "/containerPort").unwrap_or(0), field(port, "protocol"));
            let (host_ip, host_port) = (field(port, "hostIP"), int(port, "/hostPort").unwrap_or(0));
            let name = field(port, "name");
            if !host_ip.is_empty() && host_port == 0 {
                found.push(format!(
                    "{path}: hostIP set without hostPort: {{Name:{name} HostPort:0 ContainerPort:{number} \
                     Protocol:{protocol} HostIP:{host_ip}}}"
                ));
            }
            let others = by_number.entry((number, protocol)).or_default();
            for other in others.iter() {
                let words = if (host_ip, host_port) == (other.host_ip, other.host_port) {
                    "duplicate"
                } else if host_port == 0 || other.host_port == 0 {
                    "overlapping"
                } else if host_port == other.host_port && host_ip.is_empty() != other.host_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                found.push(format!("{path}: {words} port definition with {}", other.path));
            }
            others.push(Port { path: path.clone(), host_ip, host_port });
            if !name.is_empty() {
                match by_name.get(name) {
                    Some(first) => same_names.push(format!(
                        "{path}: duplicate port name {name:?} with {first}, services and probes that select ports by \
                         name will use {first}"
                    )),
                    None => drop(by_name.insert(name, path)),
                }
            }
        }
    }
    found.extend(same_names);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_hardly_meant_is_told() {
        let pod = json!({"spec": {"terminationGracePeriodSeconds": -1, "containers": [
            {"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "X", "value": "2"}, {"name": "X", "value": "$(X)3"}],
             "resources": {"limits": {"memory": "100m", "cpu": "100m"}},
             "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}]},
            {"name": "b", "ports": [{"containerPort": 1, "protocol": "TCP", "hostIP": "127.0.0.1", "name": "p"}]},
        ]}});
        assert_eq!(
            warnings(&pod, "template"),
            [
                "template.spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be \
                 an integer",
                "template.spec.containers[0].env[1]: hides previous definition of \"X\", which may be dropped when using \
                 apply",
                "template.spec.containers[0].ports[1]: duplicate port definition with template.spec.containers[0].ports[0]",
                "template.spec.containers[1].ports[0]: hostIP set without hostPort: {Name:p HostPort:0 ContainerPort:1 \
                 Protocol:TCP HostIP:127.0.0.1}",
                "template.spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be \
                 treated as 1",
            ]
        );
        assert_eq!(warnings(&json!({"spec": {"containers": [{"name": "a"}]}}), ""), [""; 0]);
    }
}
