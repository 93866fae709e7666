//! Defaults of pods and of the pod templates of workloads.

use crate::builtin::value::{child, field, fields, fill, items_mut};
use serde_json::{Value, json};

/// Fills a pod's spec: what a template has, and what only a pod gets.
pub(in crate::builtin) fn pod_spec(spec: &mut Value) {
    template_spec(spec);
    fill(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool) == Some(true);
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(child(container, "resources"));
            if host_network {
                for port in items_mut(container, "ports") {
                    if let Some(number) = port.get("containerPort").cloned() {
                        fill(port, "hostPort", number);
                    }
                }
            }
        }
    }
    if let Some(resources) = spec.get_mut("resources") {
        requests_from_limits(resources);
    }
}

/// A resource that is limited and not requested is requested up to its limit.
fn requests_from_limits(resources: &mut Value) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    let requests = child(resources, "requests");
    for (name, limit) in limits {
        fill(requests, &name, limit);
    }
}

/// Takes away what release 1.34 knows and has switched off.
pub(in crate::builtin) fn drop_disabled(spec: &mut Value) {
    fields(spec).remove("hostnameOverride");
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            let parts = fields(container);
            parts.remove("restartPolicyRules");
            if list == "containers" {
                parts.remove("restartPolicy");
            }
            if let Some(Value::Object(lifecycle)) = parts.get_mut("lifecycle")
                && lifecycle.remove("stopSignal").is_some()
                && lifecycle.is_empty()
            {
                parts.remove("lifecycle");
            }
            for variable in items_mut(container, "env") {
                if let Some(Value::Object(source)) = variable.get_mut("valueFrom") {
                    source.remove("fileKeyRef");
                }
            }
        }
    }
}

/// Fills a pod template: the object that has `metadata` and `spec`.
pub(in crate::builtin) fn template(template: &mut Value) {
    child(template, "metadata");
    template_spec(child(template, "spec"));
    drop_disabled(child(template, "spec"));
}

/// Fills the spec of a pod template.
pub(in crate::builtin) fn template_spec(spec: &mut Value) {
    let account = match (field(spec, "serviceAccountName"), field(spec, "serviceAccount")) {
        ("", old) => old.to_owned(),
        (name, _) => name.to_owned(),
    };
    if !account.is_empty() {
        fields(spec).insert("serviceAccountName".into(), account.clone().into());
        fields(spec).insert("serviceAccount".into(), account.into());
    }
    fill(spec, "restartPolicy", "Always");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "schedulerName", "default-scheduler");
    child(spec, "securityContext");
    items_mut(spec, "volumes").for_each(volume);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        items_mut(spec, list).for_each(container);
    }
}

fn container(container: &mut Value) {
    child(container, "resources");
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    let policy = if floats(field(container, "image")) { "Always" } else { "IfNotPresent" };
    fill(container, "imagePullPolicy", policy);
    for port in items_mut(container, "ports") {
        fill(port, "protocol", "TCP");
    }
    for variable in items_mut(container, "env") {
        if let Some(source) = variable.get_mut("valueFrom") {
            references(source);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe) {
            fill(probe, "timeoutSeconds", 1);
            fill(probe, "periodSeconds", 10);
            fill(probe, "successThreshold", 1);
            fill(probe, "failureThreshold", 3);
            handler(probe);
            if let Some(grpc) = probe.get_mut("grpc") {
                fill(grpc, "service", "");
            }
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)) {
            handler(hook);
        }
    }
}

fn handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        fill(get, "path", "/");
        fill(get, "scheme", "HTTP");
    }
}

fn references(source: &mut Value) {
    if let Some(reference) = source.get_mut("fieldRef") {
        fill(reference, "apiVersion", "v1");
    }
    if let Some(reference) = source.get_mut("resourceFieldRef") {
        fill(reference, "divisor", "0");
    }
}

/// Whether an image name stands for whatever is newest: no tag, or the tag `latest`, and no digest.
fn floats(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn volume(volume: &mut Value) {
    let has_source = volume.as_object().is_some_and(|fields| fields.keys().any(|key| key != "name"));
    if !has_source {
        child(volume, "emptyDir");
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source) {
            fill(source, "defaultMode", 0o644);
            items_mut(source, "items").for_each(references);
            for projection in items_mut(source, "sources") {
                if let Some(token) = projection.get_mut("serviceAccountToken") {
                    fill(token, "expirationSeconds", 3600);
                }
                if let Some(downward) = projection.get_mut("downwardAPI") {
                    items_mut(downward, "items").for_each(references);
                }
            }
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        fill(path, "type", "");
    }
    if let Some(claim) = volume.get_mut("ephemeral").and_then(|e| e.get_mut("volumeClaimTemplate")) {
        fill(child(claim, "spec"), "volumeMode", "Filesystem");
    }
}

/// Fills what the API always writes in a pod's status.
pub(super) fn status(status: &mut Value) {
    for condition in items_mut(status, "conditions") {
        fill(condition, "lastProbeTime", Value::Null);
        fill(condition, "lastTransitionTime", Value::Null);
    }
    for list in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
        for container in items_mut(status, list) {
            for (key, zero) in [
                ("name", json!("")),
                ("state", json!({})),
                ("lastState", json!({})),
                ("ready", json!(false)),
                ("restartCount", json!(0)),
                ("image", json!("")),
                ("imageID", json!("")),
            ] {
                fill(container, key, zero);
            }
            for state in ["state", "lastState"] {
                let state = child(container, state);
                if let Some(running) = state.get_mut("running") {
                    fill(running, "startedAt", Value::Null);
                }
                if let Some(ended) = state.get_mut("terminated") {
                    fill(ended, "exitCode", 0);
                    fill(ended, "startedAt", Value::Null);
                    fill(ended, "finishedAt", Value::Null);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies_follow_the_tag() {
        for (image, expected) in [
            ("busybox", true),
            ("busybox:latest", true),
            ("busybox:1.36", false),
            ("registry:5000/busybox", true),
            ("registry:5000/a/b:v1", false),
            ("a@sha256:0123", false),
            ("", true),
        ] {
            assert_eq!(floats(image), expected, "{image}");
        }
    }

    #[test]
    fn templates_keep_requests_as_they_are() {
        let mut spec = json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}]});
        template_spec(&mut spec);
        assert_eq!(spec["containers"][0]["resources"], json!({"limits": {"cpu": "1"}}));
        pod_spec(&mut spec);
        assert_eq!(spec["containers"][0]["resources"]["requests"], json!({"cpu": "1"}));
    }

    #[test]
    fn host_ports_follow_container_ports_on_the_host_network() {
        let mut spec = json!({"hostNetwork": true, "containers": [{"name": "a", "ports": [{"containerPort": 80}]}]});
        pod_spec(&mut spec);
        assert_eq!(spec["containers"][0]["ports"], json!([{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}]));
    }

    #[test]
    fn volumes() {
        let mut spec = json!({"volumes": [{"name": "a"}, {"name": "b", "hostPath": {"path": "/x"}},
            {"name": "c", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]});
        template_spec(&mut spec);
        assert_eq!(
            spec["volumes"],
            json!([{"name": "a", "emptyDir": {}}, {"name": "b", "hostPath": {"path": "/x", "type": ""}},
                {"name": "c", "projected": {"defaultMode": 420,
                    "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}}])
        );
    }
}
