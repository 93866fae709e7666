//! The Node object and its Lease: what this node is, and that it lives.

use super::config::Config;
use super::status::Address;
use crate::devices::GPU_RESOURCE;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use muster_api::clock::rfc3339_micro;
use muster_api::clock::seconds;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

/// How often the Lease is renewed, and how long it is good for.
pub(super) const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
const LEASES: &str = "kube-node-lease";

/// What the node offers, by resource (see `quantity::amount`).
pub(super) fn allocatable(config: &Config) -> BTreeMap<String, i64> {
    let capacity = config.capacity;
    let mut all = BTreeMap::from([
        ("cpu".to_owned(), capacity.cpu_milli),
        ("memory".to_owned(), capacity.memory_bytes),
        ("ephemeral-storage".to_owned(), capacity.ephemeral_storage_bytes),
        ("pods".to_owned(), capacity.pods),
    ]);
    if !config.devices.gpus.is_empty() {
        all.insert(GPU_RESOURCE.to_owned(), i64::try_from(config.devices.gpus.len()).unwrap_or(i64::MAX));
    }
    all
}

/// Creates the object or brings it up to date; what others set on it (cordon, taints, labels) stays.
pub(super) async fn register(client: &kube::Client, config: &Config, address: &Address) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let params = PatchParams::default();
    let metadata = json!({"labels": labels(config)});
    match nodes.patch(&config.name, &params, &Patch::Merge(&json!({"metadata": metadata}))).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
            node["metadata"]["name"] = json!(config.name);
            let node: Node = serde_json::from_value(node).map_err(kube::Error::SerdeError)?;
            nodes.create(&PostParams::default(), &node).await?;
        }
        other => drop(other?),
    }
    let known = nodes.get(&config.name).await?;
    let status = json!({"status": status(config, address, &known)});
    nodes.patch_status(&config.name, &params, &Patch::Merge(&status)).await?;
    // A new Node is tainted until somebody finds it ready.
    let spec = known.spec.unwrap_or_default();
    let taints: Vec<_> = spec.taints.iter().flatten().filter(|t| t.key != "node.kubernetes.io/not-ready").collect();
    if taints.len() != spec.taints.iter().flatten().count() {
        let patch = json!({"spec": {"taints": (!taints.is_empty()).then_some(taints)}});
        nodes.patch(&config.name, &params, &Patch::Merge(&patch)).await?;
    }
    Ok(())
}

/// Says that no more pods should come.
pub(super) async fn leave(client: &kube::Client, config: &Config) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let known = nodes.get(&config.name).await?;
    let conditions = conditions(config, &known, Some("the node is shutting down"));
    let patch = json!({"status": {"conditions": conditions}});
    nodes.patch_status(&config.name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), config.name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), architecture().to_owned()),
    ]);
    if let Some(gpu) = config.devices.gpus.first() {
        if let Some(product) = label_of(&gpu.name) {
            labels.insert("nvidia.com/gpu.product".to_owned(), product);
        }
        if config.devices.simulated {
            labels.insert("muster.dev/simulated-gpus".to_owned(), "true".to_owned());
        }
    }
    labels.extend(config.labels.clone());
    labels
}

/// A name as the value of a label, as far as it has anything that one may hold.
fn label_of(name: &str) -> Option<String> {
    let letters = name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' });
    let value: String = letters.skip_while(|c| !c.is_ascii_alphanumeric()).take(63).collect();
    let value = value.trim_end_matches(['-', '_', '.']);
    (!value.is_empty()).then(|| value.to_owned())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn status(config: &Config, address: &Address, known: &Node) -> Value {
    let capacity: BTreeMap<String, String> = allocatable(config)
        .into_iter()
        .map(|(resource, amount)| {
            let text = match resource.as_str() {
                "cpu" => crate::quantity::render("cpu", amount),
                "memory" | "ephemeral-storage" => format!("{}Ki", amount / 1024),
                _ => amount.to_string(),
            };
            (resource, text)
        })
        .collect();
    json!({
        "capacity": capacity,
        "allocatable": capacity,
        "conditions": conditions(config, known, None),
        "addresses": [
            {"type": "InternalIP", "address": address.host_ip},
            {"type": "Hostname", "address": config.name},
        ],
        "nodeInfo": {
            "architecture": architecture(),
            "bootID": file("/proc/sys/kernel/random/boot_id"),
            "containerRuntimeVersion": concat!("muster://", env!("CARGO_PKG_VERSION")),
            "kernelVersion": file("/proc/sys/kernel/osrelease"),
            "kubeProxyVersion": "",
            "kubeletVersion": concat!("v1.34.0+muster-", env!("CARGO_PKG_VERSION")),
            "machineID": file("/etc/machine-id"),
            "operatingSystem": "linux",
            "osImage": os_name(),
            "systemUUID": file("/etc/machine-id"),
        },
    })
}

fn file(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn os_name() -> String {
    let release = file("/etc/os-release");
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// All conditions; `wrong` is why the node is not ready.
fn conditions(config: &Config, known: &Node, wrong: Option<&str>) -> Vec<Value> {
    let now = config.clock.now();
    let before = known.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let since = |kind: &str, status: &str| -> Timestamp {
        let same = before.iter().find(|c| c.type_ == kind && c.status == status);
        same.and_then(|c| c.last_transition_time.as_ref()).map_or(seconds(now), |time| time.0)
    };
    let (ready, reason, message) = match wrong {
        None => ("True", "KubeletReady", "the node runs pods"),
        Some(why) => ("False", "NodeShutdown", why),
    };
    let fine = [
        ("MemoryPressure", "KubeletHasSufficientMemory", "the node has sufficient memory available"),
        ("DiskPressure", "KubeletHasNoDiskPressure", "the node has no disk pressure"),
        ("PIDPressure", "KubeletHasSufficientPID", "the node has sufficient process ids available"),
    ];
    { fine.iter().map(|(kind, reason, message)| (*kind, "False", *reason, *message)) }
        .chain([("Ready", ready, reason, message)])
        .map(|(kind, status, reason, message)| {
            json!({
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": seconds(now),
                "lastTransitionTime": since(kind, status),
            })
        })
        .collect()
}

/// Renews the node's Lease.
pub(super) async fn heartbeat(client: &kube::Client, config: &Config) -> Result<(), kube::Error> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("coordination.k8s.io", "v1", "Lease"));
    let leases: Api<DynamicObject> = Api::namespaced_with(client.clone(), LEASES, &kind);
    let spec = json!({
        "holderIdentity": config.name,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": rfc3339_micro(config.clock.now()),
    });
    let patch = Patch::Merge(json!({"spec": spec}));
    match leases.patch(&config.name, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => return other.map(drop),
    }
    let mut lease = DynamicObject::new(&config.name, &kind).within(LEASES);
    lease.data = json!({"spec": spec});
    match leases.create(&PostParams::default(), &lease).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEASES}});
            let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
            let namespace = serde_json::from_value(namespace).map_err(kube::Error::SerdeError)?;
            namespaces.create(&PostParams::default(), &namespace).await?;
            leases.create(&PostParams::default(), &lease).await.map(drop)
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with such a GPU was refused for its label, and never became ready.
    #[test]
    fn the_name_of_any_gpu_makes_a_label() {
        for (name, label) in [
            ("NVIDIA H100 80GB HBM3", Some("NVIDIA-H100-80GB-HBM3")),
            ("TITAN X (Pascal)", Some("TITAN-X--Pascal")),
            ("H\u{fffd}!", Some("H")),
            ("(?)", None),
            ("", None),
        ] {
            assert_eq!(label_of(name).as_deref(), label, "{name}");
        }
        let long = label_of(&"x".repeat(96)).unwrap_or_default();
        assert_eq!(long.len(), 63, "labels have an end");
    }
}
