//! Validation of containers: names, ports, environment, mounts.

use super::{Errors, one_of, probe, push, resources, seccomp};
use crate::builtin::names;
use crate::builtin::value::{field, flag, int, items};
use muster_api::field::FieldError;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
/// What of its pod a container can have in its environment.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const ENV_RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Checks the containers of a pod spec, which may mount the given volumes.
pub(super) fn containers(spec: &Value, path: &str, volumes: &BTreeMap<&str, bool>, errors: &mut Errors) {
    let mut names_seen = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    let containers = items(spec, "containers");
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in items(spec, list).iter().enumerate() {
            let path = format!("{path}.{list}[{i}]");
            one(container, &path, volumes, errors);
            let name = field(container, "name");
            if !name.is_empty() && !names_seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &Value::from(name)));
            }
            let init = list == "initContainers";
            lifecycle(container, &path, init, errors);
            for (j, port) in items(container, "ports").iter().enumerate() {
                let number = int(port, "/hostPort").unwrap_or(0);
                let key = format!("{}/{}/{number}", field(port, "protocol"), field(port, "hostIP"));
                if number != 0 && !host_ports.insert(key.clone()) {
                    errors.push(FieldError::duplicate(format!("{path}.ports[{j}].hostPort"), &Value::from(key)));
                }
            }
        }
    }
}

fn one(container: &Value, path: &str, volumes: &BTreeMap<&str, bool>, errors: &mut Errors) {
    let name = field(container, "name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else {
        push(errors, format!("{path}.name"), name, names::label(name));
    }
    let image = field(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{path}.image"), &Value::from(image), why));
    }
    one_of(container, path, "terminationMessagePolicy", &["FallbackToLogsOnError", "File"], errors);
    ports(container, path, errors);
    environment(container, path, errors);
    mounts(container, path, volumes, errors);
    one_of(container, path, "imagePullPolicy", &PULL_POLICIES, errors);
    resources::container(container, path, errors);
    security_context(container, path, errors);
}

fn lifecycle(container: &Value, path: &str, init: bool, errors: &mut Errors) {
    let policy = container.get("restartPolicy").and_then(Value::as_str);
    let sidecar = init && policy == Some("Always");
    match policy {
        Some(_) if !init => {
            errors
                .push(FieldError::forbidden(format!("{path}.restartPolicy"), "may not be set for non-init containers"));
        }
        Some(policy) if policy != "Always" => {
            let value = Value::from(policy);
            errors.push(FieldError::not_supported(format!("{path}.restartPolicy"), &value, &["Always"]));
        }
        _ => {}
    }
    if init && !sidecar {
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if container.get(key).is_some() {
                let why = "may not be set for init containers without restartPolicy=Always";
                errors.push(FieldError::forbidden(format!("{path}.{key}"), why));
            }
        }
        return;
    }
    probe::probes(container, path, errors);
}

fn ports(container: &Value, path: &str, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, port) in items(container, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = field(port, "name");
        if !name.is_empty() {
            let messages = names::port_name(name);
            if messages.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &Value::from(name)));
            }
            push(errors, format!("{path}.name"), name, messages);
        }
        let number = int(port, "/containerPort").unwrap_or(0);
        if number == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else if let Some(why) = names::port(number) {
            errors.push(FieldError::invalid(format!("{path}.containerPort"), &number.into(), why));
        }
        let host = int(port, "/hostPort").unwrap_or(0);
        if let Some(why) = names::port(host).filter(|_| host != 0) {
            errors.push(FieldError::invalid(format!("{path}.hostPort"), &host.into(), why));
        }
        one_of(port, &path, "protocol", &PROTOCOLS, errors);
    }
}

fn environment(container: &Value, path: &str, errors: &mut Errors) {
    for (i, variable) in items(container, "env").iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        let name = field(variable, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            push(errors, format!("{path}.name"), name, names::env_name(name));
        }
        if let Some(source) = variable.get("valueFrom") {
            source_of_value(source, field(variable, "value"), &format!("{path}.valueFrom"), errors);
        }
    }
    for (i, source) in items(container, "envFrom").iter().enumerate() {
        let path = format!("{path}.envFrom[{i}]");
        let prefix = field(source, "prefix");
        if !prefix.is_empty() {
            push(errors, format!("{path}.prefix"), prefix, names::env_name(prefix));
        }
        let given: Vec<&str> = ["configMapRef", "secretRef"].into_iter().filter(|k| source.get(*k).is_some()).collect();
        for key in &given {
            if source.get(*key).is_some_and(|r| field(r, "name").is_empty()) {
                errors.push(FieldError::required(format!("{path}.{key}.name"), ""));
            }
        }
        count_sources(given.len(), &path, "must specify one of: `configMapRef` or `secretRef`", errors);
    }
}

fn count_sources(count: usize, path: &str, none: &str, errors: &mut Errors) {
    match count {
        0 => errors.push(FieldError::invalid(path, &Value::from(""), none)),
        1 => {}
        _ => {
            let why = "may not have more than one field specified at a time";
            errors.push(FieldError::invalid(path, &Value::from(""), why));
        }
    }
}

fn source_of_value(source: &Value, value: &str, path: &str, errors: &mut Errors) {
    let mut count = 0;
    if let Some(reference) = source.get("fieldRef") {
        count += 1;
        field_reference(reference, &format!("{path}.fieldRef"), &ENV_FIELDS, errors);
    }
    if let Some(reference) = source.get("resourceFieldRef") {
        count += 1;
        resource_reference(reference, &format!("{path}.resourceFieldRef"), false, errors);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = source.get(key) {
            count += 1;
            let name = field(reference, "key");
            if name.is_empty() {
                errors.push(FieldError::required(format!("{path}.{key}.key"), ""));
            } else {
                push(errors, format!("{path}.{key}.key"), name, names::config_key(name));
            }
        }
    }
    if count > 0 && !value.is_empty() {
        let why = "may not be specified when `value` is not empty";
        errors.push(FieldError::invalid(path, &Value::from(""), why));
        return;
    }
    let none = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
    count_sources(count, path, none, errors);
}

/// A reference to a field of the pod, as environment and downward API volumes have it.
pub(super) fn field_reference(reference: &Value, path: &str, supported: &[&str], errors: &mut Errors) {
    for key in ["apiVersion", "fieldPath"] {
        if field(reference, key).is_empty() {
            errors.push(FieldError::required(format!("{path}.{key}"), ""));
            return;
        }
    }
    let wanted = field(reference, "fieldPath");
    let path = format!("{path}.fieldPath");
    if let Some((map, key)) = wanted.strip_suffix("']").and_then(|w| w.split_once("['")) {
        match map {
            "metadata.annotations" => push(errors, path, key, names::qualified(&key.to_ascii_lowercase())),
            "metadata.labels" => push(errors, path, key, names::qualified(key)),
            _ => {
                let why = format!("error converting fieldPath: {map} does not support subscript");
                errors.push(FieldError::invalid(path, &Value::from(wanted), why));
            }
        }
        return;
    }
    if supported.contains(&wanted) {
        return;
    }
    let known =
        ENV_FIELDS.contains(&wanted) || ["metadata.labels", "metadata.annotations", "status.phase"].contains(&wanted);
    if known {
        errors.push(FieldError::not_supported(path, &Value::from(wanted), supported));
    } else {
        let why = format!("error converting fieldPath: field label not supported: {wanted}");
        errors.push(FieldError::invalid(path, &Value::from(wanted), why));
    }
}

/// A reference to a container's requests or limits; a volume's has to name the container.
pub(super) fn resource_reference(reference: &Value, path: &str, volume: bool, errors: &mut Errors) {
    if volume && field(reference, "containerName").is_empty() {
        errors.push(FieldError::required(format!("{path}.containerName"), ""));
        return;
    }
    let resource = field(reference, "resource");
    let huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|p| resource.starts_with(p));
    if resource.is_empty() {
        errors.push(FieldError::required(format!("{path}.resource"), ""));
    } else if !huge && !ENV_RESOURCES.contains(&resource) {
        let value = Value::from(resource);
        errors.push(FieldError::not_supported(format!("{path}.resource"), &value, &ENV_RESOURCES));
    }
}

fn mounts(container: &Value, path: &str, volumes: &BTreeMap<&str, bool>, errors: &mut Errors) {
    let mut places = BTreeSet::new();
    for (i, mount) in items(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        let name = field(mount, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains_key(name) {
            errors.push(FieldError::not_found(format!("{path}.name"), &Value::from(name)));
        }
        let place = field(mount, "mountPath");
        if place.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if !places.insert(place) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), &Value::from(place), "must be unique"));
        }
        if !field(mount, "subPath").is_empty() && !field(mount, "subPathExpr").is_empty() {
            let value = Value::from(field(mount, "subPathExpr"));
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(format!("{path}.subPathExpr"), &value, why));
        }
        for key in ["subPath", "subPathExpr"] {
            local_path(field(mount, key), &format!("{path}.{key}"), errors);
        }
        if mount.get("mountPropagation").is_some() {
            let supported = ["Bidirectional", "HostToContainer", "None"];
            one_of(mount, &path, "mountPropagation", &supported, errors);
        }
    }
    for (i, device) in items(container, "volumeDevices").iter().enumerate() {
        let path = format!("{path}.volumeDevices[{i}]");
        let name = field(device, "name");
        match volumes.get(name) {
            _ if name.is_empty() => errors.push(FieldError::required(format!("{path}.name"), "")),
            None => errors.push(FieldError::not_found(format!("{path}.name"), &Value::from(name))),
            Some(true) => {}
            Some(false) => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(format!("{path}.name"), &Value::from(name), why));
            }
        }
        if field(device, "devicePath").is_empty() {
            errors.push(FieldError::required(format!("{path}.devicePath"), ""));
        }
    }
}

/// A path that has to stay below its volume.
pub(super) fn local_path(text: &str, path: &str, errors: &mut Errors) {
    if text.starts_with('/') {
        errors.push(FieldError::invalid(path, &Value::from(text), "must be a relative path"));
    }
    if text.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, &Value::from(text), "must not contain '..'"));
    }
}

fn security_context(container: &Value, path: &str, errors: &mut Errors) {
    let Some(context) = container.get("securityContext") else { return };
    let path = format!("{path}.securityContext");
    for key in ["runAsUser", "runAsGroup"] {
        super::identity(context.get(key), &format!("{path}.{key}"), errors);
    }
    let refuses = context.get("allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false);
    if refuses && flag(context, "/privileged") {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(FieldError::invalid(&path, context, why));
    }
    seccomp(context, &path, errors);
}
