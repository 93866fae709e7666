//! Claims and volumes stay while they are in use, and nodes are tainted while they are not ready.

use super::Shared;
use super::garbage::release;
use crate::shell::resource::RequestError;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod, Taint};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const CLAIM_GUARD: &str = "kubernetes.io/pvc-protection";
const VOLUME_GUARD: &str = "kubernetes.io/pv-protection";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// Lets a claim or a volume go that nobody uses any more.
pub(super) async fn attend_storage(shared: &Arc<Shared>, uid: &str) -> Result<Option<Duration>, RequestError> {
    let Some(node) = shared.graph().get(uid).cloned() else { return Ok(None) };
    if node.resource.namespaced {
        let pods: Api<Pod> = Api::namespaced(shared.client.clone(), &node.namespace);
        let pods = pods.list(&ListParams::default()).await?;
        // The end of a pod brings the claim back here.
        if pods.items.iter().any(|pod| uses(pod, &node.name)) {
            return Ok(None);
        }
        return release(shared, uid, CLAIM_GUARD).await;
    }
    let volumes: Api<PersistentVolume> = Api::all(shared.client.clone());
    let Some(volume) = volumes.get_opt(&node.name).await? else { return Ok(None) };
    if volume.status.and_then(|status| status.phase).as_deref() == Some("Bound") {
        return Ok(None);
    }
    release(shared, uid, VOLUME_GUARD).await
}

fn uses(pod: &Pod, claim: &str) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return false;
    }
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().any(|volume| {
        let named = volume.persistent_volume_claim.as_ref().is_some_and(|source| source.claim_name == claim);
        let own = volume.ephemeral.is_some()
            && claim.strip_suffix(&volume.name).and_then(|rest| rest.strip_suffix('-')) == pod.metadata.name.as_deref();
        named || own
    })
}

/// Makes a node's taint fit its condition.
pub(super) async fn attend_node(shared: &Arc<Shared>, name: &str) -> Result<Option<Duration>, RequestError> {
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let Some(node) = nodes.get_opt(name).await? else { return Ok(None) };
    let Some(taints) = taints(&node) else { return Ok(None) };
    let patch = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"taints": taints},
    });
    match nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(RequestError::from) {
        Ok(_) | Err(RequestError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The taints that a node should have, where they are not what it has. A node that has never said how it is keeps
/// what it has.
fn taints(node: &Node) -> Option<Vec<Taint>> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?.status == "True";
    let mut taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let is_ours = |taint: &Taint| taint.key == NOT_READY && taint.effect == "NoSchedule";
    let tainted = taints.iter().any(is_ours);
    if ready != tainted {
        return None;
    }
    if ready {
        taints.retain(|taint| !is_ours(taint));
    } else {
        taints.push(Taint { key: NOT_READY.into(), effect: "NoSchedule".into(), ..Taint::default() });
    }
    Some(taints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_uses_a_claim() {
        let pod = |value| serde_json::from_value::<Pod>(value).unwrap();
        let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}});
        assert!(uses(&pod(json!({"spec": {"containers": [], "volumes": [volume]}})), "data"));
        assert!(!uses(&pod(json!({"spec": {"containers": [], "volumes": [volume]}})), "other"));
        let done = json!({"spec": {"containers": [], "volumes": [volume]}, "status": {"phase": "Succeeded"}});
        assert!(!uses(&pod(done), "data"));
        let own =
            json!({"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": [{"name": "v", "ephemeral": {}}]}});
        assert!(uses(&pod(own), "p-v"));
    }

    #[test]
    fn taints_follow_readiness() {
        let node = |status: Option<&str>, taints| {
            let conditions: Vec<_> = status.iter().map(|s| json!({"type": "Ready", "status": s})).collect();
            serde_json::from_value::<Node>(json!({"spec": {"taints": taints}, "status": {"conditions": conditions}}))
                .unwrap()
        };
        let ours = json!([{"key": NOT_READY, "effect": "NoSchedule"}]);
        assert_eq!(taints(&node(None, ours.clone())), None);
        assert_eq!(taints(&node(Some("True"), ours.clone())), Some(vec![]));
        assert_eq!(taints(&node(Some("False"), ours)), None);
        assert_eq!(taints(&node(Some("Unknown"), json!([]))).map(|t| t.len()), Some(1));
        assert_eq!(taints(&node(Some("True"), json!([]))), None);
    }
}
