//! Validation of containers: names, ports, environment, mounts.

use super::{Errors, one_of, probe, push, resources, seccomp};
use crate::builtin::names;
use crate::builtin::value::{field, flag, int, items};
use crate::schema::internal;
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
    let grace = int(spec, "/terminationGracePeriodSeconds");
    let host_users = spec.get("hostUsers").and_then(Value::as_bool).unwrap_or(true);
    let claims: Vec<&str> = items(spec, "resourceClaims").iter().map(|claim| field(claim, "name")).collect();
    let containers = items(spec, "containers");
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in items(spec, list).iter().enumerate() {
            let path = format!("{path}.{list}[{i}]");
            one(container, &path, volumes, errors);
            resources::container(container, &path, &claims, errors);
            resize_policy(container, &path, field(spec, "restartPolicy"), errors);
            security_context(container, &path, host_users, errors);
            let name = field(container, "name");
            if !name.is_empty() && !names_seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &Value::from(name)));
            }
            let init = list == "initContainers";
            lifecycle(container, &path, init, grace, errors);
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
    one_of(container, path, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], errors);
    ports(container, path, errors);
    environment(container, path, errors);
    mounts(container, path, volumes, errors);
    one_of(container, path, "imagePullPolicy", &PULL_POLICIES, errors);
}

fn lifecycle(container: &Value, path: &str, init: bool, grace: Option<i64>, errors: &mut Errors) {
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
    probe::probes(container, path, grace, errors);
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
        let (list, path) = (format!("{path}.envFrom"), format!("{path}.envFrom[{i}]"));
        let prefix = field(source, "prefix");
        if !prefix.is_empty() {
            push(errors, format!("{path}.prefix"), prefix, names::env_name(prefix));
        }
        let given: Vec<&str> = ["configMapRef", "secretRef"].into_iter().filter(|k| source.get(*k).is_some()).collect();
        for key in &given {
            let name = source.get(*key).map(|reference| field(reference, "name")).unwrap_or_default();
            if name.is_empty() {
                errors.push(FieldError::required(format!("{path}.{key}.name"), ""));
            } else {
                push(errors, format!("{path}.{key}.name"), name, names::subdomain(name));
            }
        }
        count_sources(given.len(), &list, "must specify one of: `configMapRef` or `secretRef`", errors);
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
            let object = field(reference, "name");
            push(errors, format!("{path}.{key}.name"), object, names::subdomain(object));
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
    let whole = path.to_owned();
    let path = format!("{path}.fieldPath");
    let version = field(reference, "apiVersion");
    if version != "v1" {
        let why = format!("error converting fieldPath: unsupported pod version: {version}");
        errors.push(FieldError::invalid(path, &Value::from(wanted), why));
        return;
    }
    if let Some((map, key)) = wanted.strip_suffix("']").and_then(|w| w.split_once("['")) {
        match map {
            "metadata.annotations" => push(errors, whole, key, names::qualified(&key.to_ascii_lowercase())),
            "metadata.labels" => push(errors, whole, key, names::qualified(key)),
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
    divisor(resource, reference.get("divisor"), &format!("{path}.divisor"), errors);
}

/// In which units a resource may be told.
fn divisor(resource: &str, divisor: Option<&Value>, path: &str, errors: &mut Errors) {
    const BYTES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let divisor = divisor.and_then(Value::as_str).unwrap_or("0");
    let (known, units, what) = match resource.split_once('.') {
        Some((_, "cpu")) => (&["1m", "1"][..], "1m and 1", "cpu resource"),
        Some((_, "memory")) => (&BYTES[..], "", "memory resource"),
        Some((_, "ephemeral-storage")) => (&BYTES[..], "", "local ephemeral storage resource"),
        Some((_, rest)) if rest.starts_with("hugepages-") => (&BYTES[..], "", "hugepages resource"),
        _ => return,
    };
    if divisor != "0" && !known.contains(&divisor) {
        let units = if units.is_empty() { BYTES.join(", ") } else { units.to_owned() };
        let why = format!("only divisor's values {units} are supported with the {what}");
        errors.push(FieldError::invalid(path, &Value::from(resource), why));
    }
}

fn mounts(container: &Value, path: &str, volumes: &BTreeMap<&str, bool>, errors: &mut Errors) {
    let mut places = BTreeSet::new();
    let privileged = flag(container, "/securityContext/privileged");
    for (i, mount) in items(container, "volumeMounts").iter().enumerate() {
        // Some messages name the list, not its item.
        let (list, path) = (format!("{path}.volumeMounts"), format!("{path}.volumeMounts[{i}]"));
        let name = field(mount, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        if !volumes.contains_key(name) {
            errors.push(FieldError::not_found(format!("{path}.name"), &Value::from(name)));
        }
        let place = field(mount, "mountPath");
        if place.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        }
        if !places.insert(place) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), &Value::from(place), "must be unique"));
        }
        if !field(mount, "subPath").is_empty() && !field(mount, "subPathExpr").is_empty() {
            let value = Value::from(field(mount, "subPathExpr"));
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(format!("{path}.subPathExpr"), &value, why));
        }
        for key in ["subPath", "subPathExpr"] {
            local_path(field(mount, key), &format!("{list}.{key}"), errors);
        }
        propagation(mount, &list, privileged, errors);
        recursive_read_only(mount, &format!("{list}.recursiveReadOnly"), errors);
    }
    let devices = items(container, "volumeDevices");
    for (i, mount) in items(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        for (key, other, why) in [
            ("name", "name", "must not already exist in volumeDevices"),
            ("mountPath", "devicePath", "must not already exist as a path in volumeDevices"),
        ] {
            let value = field(mount, key);
            if devices.iter().any(|device| field(device, other) == value) {
                errors.push(FieldError::invalid(format!("{path}.{key}"), &Value::from(value), why));
            }
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

fn propagation(mount: &Value, path: &str, privileged: bool, errors: &mut Errors) {
    if mount.get("mountPropagation").is_none() {
        return;
    }
    one_of(mount, path, "mountPropagation", &["Bidirectional", "HostToContainer", "None"], errors);
    if field(mount, "mountPropagation") == "Bidirectional" && !privileged {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(FieldError::forbidden(format!("{path}.mountPropagation"), why));
    }
}

fn recursive_read_only(mount: &Value, path: &str, errors: &mut Errors) {
    match mount.get("recursiveReadOnly").and_then(Value::as_str) {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !flag(mount, "/readOnly") {
                errors.push(FieldError::forbidden(path, "may only be specified when readOnly is true"));
            }
            if !matches!(field(mount, "mountPropagation"), "" | "None") {
                let why = "may only be specified when mountPropagation is None or not specified";
                errors.push(FieldError::forbidden(path, why));
            }
        }
        Some(other) => {
            errors.push(FieldError::not_supported(path, &Value::from(other), &["Disabled", "Enabled", "IfPossible"]));
        }
    }
}

/// What becomes of a running container when its resources change.
fn resize_policy(container: &Value, path: &str, restart: &str, errors: &mut Errors) {
    let list = format!("{path}.resizePolicy");
    let mut seen = BTreeSet::new();
    for (i, policy) in items(container, "resizePolicy").iter().enumerate() {
        let (resource, action) = (field(policy, "resourceName"), field(policy, "restartPolicy"));
        if !seen.insert(resource) {
            errors.push(FieldError::duplicate(format!("{list}[{i}]"), &Value::from(resource)));
        }
        for (value, supported) in [(resource, ["cpu", "memory"]), (action, ["NotRequired", "RestartContainer"])] {
            if value.is_empty() {
                errors.push(FieldError::required(&list, ""));
            } else if !supported.contains(&value) {
                errors.push(FieldError::not_supported(&list, &Value::from(value), &supported));
            }
        }
        if restart == "Never" && action != "NotRequired" {
            let why = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(&list, &Value::from(action), why));
        }
    }
}

fn security_context(container: &Value, path: &str, host_users: bool, errors: &mut Errors) {
    let Some(context) = container.get("securityContext") else { return };
    let path = format!("{path}.securityContext");
    for key in ["runAsUser", "runAsGroup"] {
        super::identity(context.get(key), &format!("{path}.{key}"), errors);
    }
    if let Some(mount) = context.get("procMount").and_then(Value::as_str) {
        let path = format!("{path}.procMount");
        if !["Default", "Unmasked"].contains(&mount) {
            errors.push(FieldError::not_supported(&path, &Value::from(mount), &["Default", "Unmasked"]));
        }
        if host_users && mount == "Unmasked" {
            let why = "`hostUsers` must be false to use `Unmasked`";
            errors.push(FieldError::invalid(&path, &Value::from(mount), why));
        }
    }
    seccomp(context, &path, errors);
    let refuses = context.get("allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false);
    if refuses && flag(context, "/privileged") {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(internal::invalid(&path, "core.SecurityContext", context, why));
    }
    let added = context.get("capabilities").map_or(&[][..], |capabilities| items(capabilities, "add"));
    if refuses && added.iter().any(|capability| capability == "CAP_SYS_ADMIN") {
        let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        errors.push(internal::invalid(&path, "core.SecurityContext", context, why));
    }
    super::app_armor(context, &path, errors);
}
