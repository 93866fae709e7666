//! Persistent volume claims: each is bound to a folder of its own, which the pods that name it get to see, and which
//! outlives them and the claim. Sizes and access modes are granted as asked for and not enforced.

use super::process::claim_folder;
use crate::watch::{Change, changes};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimStatus};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use muster_api::clock::Clock;
use muster_events::{Recorder, Severity, Subject};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Who these events are by.
const COMPONENT: &str = "muster-node";
const RETRY: Duration = Duration::from_secs(1);

/// Binds claims until `shutdown`; their folders are under `dir`, the process runtime's.
pub async fn run(client: kube::Client, clock: Clock, dir: PathBuf, shutdown: CancellationToken) {
    let (recorder, mut recording) = Recorder::start(&client, &clock, None, &shutdown);
    let all: Api<PersistentVolumeClaim> = Api::all(client.clone());
    let mut claims = std::pin::pin!(changes(all, watcher::Config::default()));
    loop {
        let change = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(change) = claims.next() => change,
            else => break,
        };
        let (Change::Listed(claim) | Change::Applied(claim)) = change else { continue };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            () = attend(&client, &recorder, &dir, &claim) => {}
        }
    }
    while recording.join_next().await.is_some() {}
}

async fn attend(client: &kube::Client, recorder: &Recorder, dir: &Path, claim: &PersistentVolumeClaim) {
    let Some(status) = granted(claim) else { return };
    let (namespace, name) = (claim.metadata.namespace.as_deref().unwrap_or_default(), claim.metadata.name.as_deref());
    let Some(name) = name else { return };
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let news = status.as_ref().ok().is_none_or(|_| phase(claim) != "Bound");
    if let Ok(status) = &status {
        let patch = json!({"metadata": {"resourceVersion": claim.metadata.resource_version}, "status": status});
        loop {
            match api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => break,
                // What it is now is on its way here.
                Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => return,
                Err(error) => {
                    tracing::warn!(%error, namespace, name, "failed to bind a claim; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
    if news {
        let subject = Subject {
            api_version: "v1".to_owned(),
            kind: "PersistentVolumeClaim".to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: claim.metadata.uid.clone().unwrap_or_default(),
            field_path: None,
        };
        let (severity, reason, message) = told(claim, status.is_ok(), &claim_folder(dir, namespace, name));
        recorder.record(&subject, COMPONENT, severity, reason, &message);
    }
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The claim asks for what a folder cannot be.
#[derive(Debug, PartialEq, Eq)]
struct NoFolder;

/// The status that the claim gets; `None` where there is nothing to do.
fn granted(claim: &PersistentVolumeClaim) -> Option<Result<PersistentVolumeClaimStatus, NoFolder>> {
    let spec = claim.spec.as_ref()?;
    if claim.metadata.deletion_timestamp.is_some() {
        return None;
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return (phase(claim) != "Bound").then_some(Err(NoFolder));
    }
    let asked = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get("storage").cloned());
    let capacity: BTreeMap<_, _> = asked.into_iter().map(|size| ("storage".to_owned(), size)).collect();
    let status = PersistentVolumeClaimStatus {
        phase: Some("Bound".to_owned()),
        access_modes: spec.access_modes.clone(),
        capacity: Some(capacity),
        ..PersistentVolumeClaimStatus::default()
    };
    let before = claim.status.as_ref();
    let same = phase(claim) == "Bound" && before.is_some_and(|before| before.capacity == status.capacity);
    (!same).then_some(Ok(status))
}

fn told(claim: &PersistentVolumeClaim, bound: bool, folder: &Path) -> (Severity, &'static str, String) {
    if !bound {
        let why = "volumeMode Block is not possible: a claim is a folder of this machine; use volumeMode Filesystem";
        return (Severity::Warning, "ProvisioningFailed", why.to_owned());
    }
    let folder = folder.display();
    let kept = format!(
        "its data is in the folder {folder}, which stays when the claim is deleted; its size and access modes are not \
         enforced"
    );
    let spec = claim.spec.as_ref();
    let named = |what: &str, name: Option<&String>| {
        name.filter(|name| !name.is_empty()).map(|name| format!("{what} \"{name}\""))
    };
    let class = named("storage class", spec.and_then(|spec| spec.storage_class_name.as_ref()));
    let volume = named("volume", spec.and_then(|spec| spec.volume_name.as_ref()));
    let not_used: Vec<String> = [class, volume].into_iter().flatten().collect();
    if not_used.is_empty() {
        (Severity::Normal, "ProvisioningSucceeded", format!("the claim is bound: {kept}"))
    } else {
        let what = not_used.join(" and ");
        (Severity::Warning, "StorageClassNotUsed", format!("the claim is bound, but not by its {what}: {kept}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: serde_json::Value, status: serde_json::Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": spec, "status": status})).expect("a claim")
    }

    #[test]
    fn a_claim_gets_what_it_asks_for_once() {
        let spec = json!({"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "2Gi"}}});
        let status = granted(&claim(spec.clone(), json!({"phase": "Pending"})));
        let status = json!(status.expect("something to do").expect("a folder"));
        assert_eq!(status, json!({"phase": "Bound", "accessModes": ["ReadWriteMany"], "capacity": {"storage": "2Gi"}}));
        assert_eq!(granted(&claim(spec, status.clone())), None);
        let larger = json!({"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "3Gi"}}});
        let status = granted(&claim(larger, status)).expect("something to do").expect("a folder");
        assert_eq!(json!(status)["capacity"]["storage"], "3Gi");
        let block = json!({"volumeMode": "Block", "resources": {"requests": {"storage": "2Gi"}}});
        assert_eq!(granted(&claim(block, json!({"phase": "Pending"}))), Some(Err(NoFolder)));
    }

    #[test]
    fn what_is_not_used_is_told() {
        let told = |spec| {
            let (kind, reason, message) = told(&claim(spec, json!({})), true, Path::new("/d/ns/c"));
            assert!(message.contains("/d/ns/c"), "{message}");
            (kind, reason, message)
        };
        let (kind, reason, _) = told(json!({"storageClassName": ""}));
        assert_eq!((kind, reason), (Severity::Normal, "ProvisioningSucceeded"));
        let (kind, reason, message) = told(json!({"storageClassName": "fast", "volumeName": "mine"}));
        assert_eq!((kind, reason), (Severity::Warning, "StorageClassNotUsed"));
        assert!(message.contains("storage class \"fast\" and volume \"mine\""), "{message}");
    }
}
