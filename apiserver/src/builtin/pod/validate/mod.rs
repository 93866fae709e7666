//! Validation of pods and of the pod templates of workloads.

mod container;
mod placement;
mod probe;
mod resources;
mod volume;

pub(in crate::builtin) use resources::{CONTAINER_RESOURCES, STANDARD_RESOURCES, quantity_errors, resource_name};

use crate::builtin::metadata::{validate_annotations, validate_labels};
use crate::builtin::names;
use crate::builtin::value::{field, flag, int, items, text};
use muster_api::field::FieldError;
use serde_json::Value;
use std::collections::BTreeSet;

pub(super) type Errors = Vec<FieldError>;

const POSITIVE_32: &str = "must be between 1 and 2147483647, inclusive";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// What is wrong with a pod.
pub(in crate::builtin) fn pod(pod: &Value) -> Errors {
    let empty = Value::Object(serde_json::Map::new());
    let spec = pod.get("spec").unwrap_or(&empty);
    let mut errors = Errors::new();
    spec_errors(spec, "spec", &mut errors);
    if !items(spec, "schedulingGates").is_empty() && !field(spec, "nodeName").is_empty() && is_new(pod) {
        errors
            .push(FieldError::forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared"));
    }
    errors
}

/// Whether the object is on its way to be created: nothing stored has no resource version.
fn is_new(pod: &Value) -> bool {
    text(pod, "/metadata/resourceVersion").is_empty()
}

/// What is wrong with a pod template at `path`.
pub(in crate::builtin) fn template(template: &Value, path: &str) -> Errors {
    let mut errors = Errors::new();
    errors.extend(validate_labels(template.pointer("/metadata/labels"), &format!("{path}.metadata.labels")));
    let annotations = format!("{path}.metadata.annotations");
    errors.extend(validate_annotations(template.pointer("/metadata/annotations"), &annotations));
    let empty = Value::Object(serde_json::Map::new());
    spec_errors(template.get("spec").unwrap_or(&empty), &format!("{path}.spec"), &mut errors);
    errors
}

fn spec_errors(spec: &Value, path: &str, errors: &mut Errors) {
    let grace = spec.get("terminationGracePeriodSeconds");
    if let Some(grace) = grace.filter(|g| g.as_i64().is_some_and(|n| n < 0)) {
        errors.push(FieldError::invalid(format!("{path}.terminationGracePeriodSeconds"), grace, NOT_NEGATIVE));
    }
    let volumes = volume::volumes(spec, path, errors);
    container::containers(spec, path, &volumes, errors);
    resources::pod_level(spec, path, errors);
    one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"], errors);
    dns(spec, path, errors);
    errors.extend(validate_labels(spec.get("nodeSelector"), &format!("{path}.nodeSelector")));
    security_context(spec, path, errors);
    host_namespaces(spec, path, errors);
    placement::affinity(spec, path, errors);
    for (i, secret) in items(spec, "imagePullSecrets").iter().enumerate() {
        if field(secret, "name").is_empty() {
            errors.push(FieldError::required(format!("{path}.imagePullSecrets[{i}].name"), ""));
        }
    }
    for (i, gate) in items(spec, "readinessGates").iter().enumerate() {
        let kind = field(gate, "conditionType");
        push(errors, format!("{path}.readinessGates[{i}].conditionType"), kind, names::qualified(kind));
    }
    scheduling_gates(spec, path, errors);
    placement::spread(spec, path, errors);
    for (key, check) in [
        ("serviceAccountName", names::subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::subdomain),
        ("hostname", names::label),
        ("subdomain", names::label),
        ("priorityClassName", names::subdomain),
        ("runtimeClassName", names::subdomain),
    ] {
        let value = field(spec, key);
        if !value.is_empty() {
            push(errors, format!("{path}.{key}"), value, check(value));
        }
    }
    if let Some(deadline) = spec.get("activeDeadlineSeconds")
        && !deadline.as_i64().is_some_and(|n| (1..=i64::from(i32::MAX)).contains(&n))
    {
        errors.push(FieldError::invalid(format!("{path}.activeDeadlineSeconds"), deadline, POSITIVE_32));
    }
    placement::tolerations(spec, path, errors);
    if spec.get("preemptionPolicy").is_some() {
        one_of(spec, path, "preemptionPolicy", &["PreemptLowerPriority", "Never"], errors);
    }
    for (i, alias) in items(spec, "hostAliases").iter().enumerate() {
        ip(field(alias, "ip"), &format!("{path}.hostAliases[{i}].ip"), errors);
        for (j, name) in items(alias, "hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            push(errors, format!("{path}.hostAliases[{i}].hostnames[{j}]"), name, names::subdomain(name));
        }
    }
}

/// Refuses an address that is none.
pub(in crate::builtin) fn ip(text: &str, path: &str, errors: &mut Errors) {
    if text.parse::<std::net::IpAddr>().is_err() {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(path, &Value::from(text), why));
    }
}

/// Refuses a value outside of a closed set; an empty one is required.
fn one_of(object: &Value, path: &str, key: &str, supported: &[&str], errors: &mut Errors) {
    let value = field(object, key);
    if value.is_empty() {
        errors.push(FieldError::required(format!("{path}.{key}"), ""));
    } else if !supported.contains(&value) {
        errors.push(FieldError::not_supported(format!("{path}.{key}"), &Value::from(value), supported));
    }
}

fn push(errors: &mut Errors, path: String, value: &str, messages: Vec<String>) {
    errors.extend(messages.into_iter().map(|m| FieldError::invalid(path.clone(), &Value::from(value), m)));
}

fn not_negative(object: &Value, path: &str, key: &str, errors: &mut Errors) {
    if let Some(value) = object.get(key).filter(|v| v.as_i64().is_some_and(|n| n < 0)) {
        errors.push(FieldError::invalid(format!("{path}.{key}"), value, NOT_NEGATIVE));
    }
}

fn dns(spec: &Value, path: &str, errors: &mut Errors) {
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(spec, path, "dnsPolicy", &policies, errors);
    let servers = spec.get("dnsConfig").map_or(&[][..], |c| items(c, "nameservers"));
    if field(spec, "dnsPolicy") == "None" {
        if spec.get("dnsConfig").is_none() {
            let why = "must provide `dnsConfig` when `dnsPolicy` is None";
            errors.push(FieldError::required(format!("{path}.dnsConfig"), why));
        } else if servers.is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(FieldError::required(format!("{path}.dnsConfig.nameservers"), why));
        }
    }
    if servers.len() > 3 {
        let value = spec.pointer("/dnsConfig/nameservers").unwrap_or(&Value::Null);
        let why = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(format!("{path}.dnsConfig.nameservers"), value, why));
    }
    for (i, server) in servers.iter().enumerate() {
        ip(server.as_str().unwrap_or_default(), &format!("{path}.dnsConfig.nameservers[{i}]"), errors);
    }
}

fn security_context(spec: &Value, path: &str, errors: &mut Errors) {
    let Some(context) = spec.get("securityContext") else { return };
    let path = format!("{path}.securityContext");
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        identity(context.get(key), &format!("{path}.{key}"), errors);
    }
    for (i, group) in items(context, "supplementalGroups").iter().enumerate() {
        identity(Some(group), &format!("{path}.supplementalGroups[{i}]"), errors);
    }
    seccomp(context, &path, errors);
    app_armor(context, &path, errors);
}

/// A user or group number.
fn identity(id: Option<&Value>, path: &str, errors: &mut Errors) {
    if let Some(id) = id.filter(|id| !id.as_i64().is_some_and(|n| (0..=i64::from(i32::MAX)).contains(&n))) {
        errors.push(FieldError::invalid(path, id, "must be between 0 and 2147483647, inclusive"));
    }
}

fn seccomp(context: &Value, path: &str, errors: &mut Errors) {
    let Some(profile) = context.get("seccompProfile") else { return };
    let path = format!("{path}.seccompProfile");
    one_of(profile, &path, "type", &["Localhost", "RuntimeDefault", "Unconfined"], errors);
    let local = field(profile, "type") == "Localhost";
    if local && field(profile, "localhostProfile").is_empty() {
        let why = "must be set when seccomp type is Localhost";
        errors.push(FieldError::required(format!("{path}.localhostProfile"), why));
    } else if !local && profile.get("localhostProfile").is_some() {
        let value = profile.get("localhostProfile").unwrap_or(&Value::Null);
        let why = "can only be set when seccomp type is Localhost";
        errors.push(FieldError::invalid(format!("{path}.localhostProfile"), value, why));
    }
}

fn app_armor(context: &Value, path: &str, errors: &mut Errors) {
    let Some(profile) = context.get("appArmorProfile") else { return };
    let path = format!("{path}.appArmorProfile");
    one_of(profile, &path, "type", &["Localhost", "RuntimeDefault", "Unconfined"], errors);
    let path = format!("{path}.localhostProfile");
    let name = profile.get("localhostProfile");
    let text = name.and_then(Value::as_str).unwrap_or_default();
    if field(profile, "type") == "Localhost" {
        if text.trim().is_empty() {
            errors.push(FieldError::required(path, "must be set when AppArmor type is Localhost"));
        } else if text.trim() != text {
            let why = "must not be padded with whitespace";
            errors.push(FieldError::invalid(path, &Value::from(text), why));
        } else if text.len() > 4095 {
            errors.push(FieldError::too_long(path, 4095));
        }
    } else if let Some(name) = name {
        errors.push(FieldError::invalid(path, name, "can only be set when AppArmor type is Localhost"));
    }
}

fn host_namespaces(spec: &Value, path: &str, errors: &mut Errors) {
    if flag(spec, "/hostPID") && flag(spec, "/shareProcessNamespace") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(format!("{path}.shareProcessNamespace"), &Value::Bool(true), why));
    }
    if !flag(spec, "/hostNetwork") {
        return;
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in items(spec, list).iter().enumerate() {
            for (j, port) in items(container, "ports").iter().enumerate() {
                let host = int(port, "/hostPort").unwrap_or(0);
                if host != int(port, "/containerPort").unwrap_or(0) {
                    errors.push(FieldError::invalid(
                        format!("{path}.{list}[{i}].ports[{j}].hostPort"),
                        &host.into(),
                        "must match `containerPort` when `hostNetwork` is true",
                    ));
                }
            }
        }
    }
}

fn scheduling_gates(spec: &Value, path: &str, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, gate) in items(spec, "schedulingGates").iter().enumerate() {
        let name = field(gate, "name");
        push(errors, format!("{path}.schedulingGates[{i}]"), name, names::qualified(name));
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.schedulingGates[{i}]"), &Value::from(name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The first field that is refused, of a pod with one good container and these changes.
    fn refused(changes: Value) -> Vec<String> {
        let mut spec = json!({
            "containers": [{"name": "main", "image": "i"}],
        });
        for (key, value) in changes.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let mut object = json!({"metadata": {"name": "p"}, "spec": spec});
        crate::builtin::wire::normalise(&mut object);
        crate::builtin::pod::defaults::pod_spec(&mut object["spec"]);
        pod(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn good_pods_pass() {
        for changes in [
            json!({}),
            json!({"tolerations": [{"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoSchedule"}]}),
            json!({"volumes": [{"name": "a"}, {"name": "b", "secret": {"secretName": "s"}}]}),
            json!({"schedulingGates": [{"name": "x.io/y"}]}),
            json!({"hostNetwork": true, "containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80}]}]}),
            json!({"containers": [{"name": "a", "image": "i",
                "resources": {"limits": {"cpu": "1", "nvidia.com/gpu": 2, "hugepages-2Mi": "2Mi", "memory": "1Gi"}},
                "readinessProbe": {"httpGet": {"port": 80}}, "lifecycle": {"preStop": {"exec": {"command": ["x"]}}},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}}],
                "securityContext": {"runAsUser": 0}}]}),
        ] {
            assert_eq!(refused(changes.clone()), Vec::<String>::new(), "{changes}");
        }
    }

    #[test]
    fn bad_pods_are_refused_with_the_path() {
        let with = |container: Value| {
            let mut c = json!({"name": "a", "image": "i"});
            for (key, value) in container.as_object().unwrap() {
                c[key] = value.clone();
            }
            json!({"containers": [c]})
        };
        for (changes, expected) in [
            (json!({"containers": []}), "spec.containers: Required value"),
            (
                json!({"restartPolicy": "Sometimes"}),
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (with(json!({"image": ""})), "spec.containers[0].image: Required value"),
            (
                with(json!({"image": " i"})),
                "spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace",
            ),
            (with(json!({"env": [{"name": ""}]})), "spec.containers[0].env[0].name: Required value"),
            (
                with(
                    json!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
                ),
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            ),
            (
                with(json!({"ports": [{"containerPort": 0}]})),
                "spec.containers[0].ports[0].containerPort: Required value",
            ),
            (
                with(json!({"ports": [{"containerPort": 70000}]})),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                with(json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}]})),
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ),
            (
                with(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                with(json!({"resources": {"requests": {"nvidia.com/gpu": "1"}}})),
                "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
            ),
            (
                with(json!({"resources": {"limits": {"nvidia.com/gpu": "500m"}}})),
                "spec.containers[0].resources.limits[nvidia.com/gpu]: Invalid value: \"500m\": must be an integer",
            ),
            (
                with(json!({"livenessProbe": {"initialDelaySeconds": 1}})),
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
            (
                json!({"activeDeadlineSeconds": 0}),
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            ),
            (
                json!({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}),
                "spec.tolerations[0].operator",
            ),
            (json!({"volumes": [{"name": "v"}, {"name": "v"}]}), "spec.volumes[1].name: Duplicate value: \"v\""),
            (
                json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]}),
                "spec.volumes[0].hostPath: Forbidden",
            ),
            (
                json!({"nodeName": "n", "schedulingGates": [{"name": "g"}]}),
                "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
            ),
            (json!({"nodeSelector": {"a b": "c"}}), "spec.nodeSelector: Invalid value: \"a b\""),
            (json!({"hostname": "a.b"}), "spec.hostname: Invalid value"),
            (json!({"dnsPolicy": "None"}), "spec.dnsConfig: Required value"),
            (json!({"securityContext": {"runAsUser": -1}}), "spec.securityContext.runAsUser: Invalid value: -1"),
            (
                json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}}),
                "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value",
            ),
        ] {
            let errors = refused(changes.clone());
            assert!(errors.iter().any(|e| e.starts_with(expected)), "{changes}\nwanted {expected}\ngot {errors:#?}");
        }
    }
}
