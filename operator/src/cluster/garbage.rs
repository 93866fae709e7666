//! Garbage collection: an object goes when the last of its owners has gone.

use super::graph::{FOREGROUND, Node, ORPHAN, OwnerState};
use super::resources::Resource;
use super::{Shared, Task};
use crate::shell::resource::RequestError;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Watches of different kinds run beside each other: how long those of dependents may be behind that of their owner.
const CATCH_UP: Duration = Duration::from_millis(50);
/// How long until an owner is looked for again whose kind is not served.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

type Attended = Result<Option<Duration>, RequestError>;

/// What becomes of an object, by the states of its owners.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// Some owners have gone, others stay: the references with these uids are taken away.
    Detach(Vec<String>),
    Delete {
        /// Whether the object's own dependents go first.
        foreground: bool,
    },
    /// An owner is of a kind that is not served: nothing can be said.
    Unclear,
}

fn decide(owners: &[(String, OwnerState)], has_dependents: bool) -> Verdict {
    let with = |state: OwnerState| owners.iter().filter(move |(_, s)| *s == state);
    if with(OwnerState::Solid).next().is_some() {
        let leaving: Vec<String> =
            with(OwnerState::Absent).chain(with(OwnerState::Waiting)).map(|(uid, _)| uid.clone()).collect();
        return if leaving.is_empty() { Verdict::Keep } else { Verdict::Detach(leaving) };
    }
    if with(OwnerState::Unknown).next().is_some() {
        return Verdict::Unclear;
    }
    Verdict::Delete { foreground: has_dependents && with(OwnerState::Waiting).next().is_some() }
}

/// Looks at one object.
pub(super) async fn attend(shared: &Shared, uid: &str) -> Attended {
    let Some(node) = shared.graph().get(uid).cloned() else { return Ok(None) };
    if node.orphans {
        return orphan_dependents(shared, uid, &node).await;
    }
    if node.waits_for_dependents {
        return wait_for_dependents(shared, uid, &node).await;
    }
    if node.deleting || node.owners.is_empty() {
        return Ok(None);
    }
    let mut states = Vec::with_capacity(node.owners.len());
    for owner in &node.owners {
        let mut state = shared.graph().owner_state(owner, &node.namespace);
        if state == OwnerState::Unknown {
            state = ask(shared, owner, &node).await?;
        }
        states.push((owner.uid.clone(), state));
    }
    let has_dependents = !shared.graph().dependents(uid).is_empty();
    match decide(&states, has_dependents) {
        Verdict::Keep => Ok(None),
        Verdict::Unclear => Ok(Some(LOOK_AGAIN)),
        Verdict::Detach(owners) => detach(shared, uid, &node, &owners).await,
        Verdict::Delete { foreground } => delete(shared, uid, &node, foreground).await,
    }
}

pub(super) fn api(shared: &Shared, resource: &Resource, namespace: &str) -> Api<DynamicObject> {
    if resource.namespaced {
        Api::namespaced_with(shared.client.clone(), namespace, &resource.api)
    } else {
        Api::all_with(shared.client.clone(), &resource.api)
    }
}

/// Asks the API whether an owner is there.
async fn ask(shared: &Shared, owner: &OwnerReference, dependent: &Node) -> Result<OwnerState, RequestError> {
    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
    let Some(resource) = shared.resource(group, &owner.kind) else { return Ok(OwnerState::Unknown) };
    if resource.namespaced && !dependent.resource.namespaced {
        // An object of the whole cluster cannot be owned from within a namespace.
        return Ok(OwnerState::Unknown);
    }
    let found = api(shared, &resource, &dependent.namespace).get_metadata_opt(&owner.name).await?;
    match found.map(|found| found.metadata).filter(|metadata| metadata.uid.as_deref() == Some(owner.uid.as_str())) {
        None => {
            shared.graph().know_absent(&owner.uid);
            Ok(OwnerState::Absent)
        }
        Some(metadata) => {
            let node = Node::new(resource, &metadata);
            Ok(if node.waits_for_dependents { OwnerState::Waiting } else { OwnerState::Solid })
        }
    }
}

/// The object as the API has it, if it is still the same one.
async fn current(shared: &Shared, uid: &str, node: &Node) -> Result<Option<ObjectMeta>, RequestError> {
    let found = api(shared, &node.resource, &node.namespace).get_metadata_opt(&node.name).await?;
    Ok(found.map(|found| found.metadata).filter(|metadata| metadata.uid.as_deref() == Some(uid)))
}

/// Changes the metadata of the object in the version that was looked at.
async fn patch(shared: &Shared, node: &Node, metadata: &ObjectMeta, mut change: Value) -> Result<(), RequestError> {
    change["resourceVersion"] = json!(metadata.resource_version);
    change["uid"] = json!(metadata.uid);
    let patch = json!({"metadata": change});
    let api = api(shared, &node.resource, &node.namespace);
    match api.patch_metadata(&node.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(error) => match error.into() {
            RequestError::NotFound(_) => Ok(()),
            error => Err(error),
        },
    }
}

async fn detach(shared: &Shared, uid: &str, node: &Node, owners: &[String]) -> Attended {
    let Some(metadata) = current(shared, uid, node).await? else { return Ok(None) };
    let before = metadata.owner_references.clone().unwrap_or_default();
    let kept: Vec<&OwnerReference> = before.iter().filter(|owner| !owners.contains(&owner.uid)).collect();
    if kept.len() == before.len() {
        return Ok(None);
    }
    let kept = if kept.is_empty() { Value::Null } else { json!(kept) };
    patch(shared, node, &metadata, json!({"ownerReferences": kept})).await?;
    Ok(None)
}

async fn delete(shared: &Shared, uid: &str, node: &Node, foreground: bool) -> Attended {
    let Some(metadata) = current(shared, uid, node).await? else { return Ok(None) };
    if metadata.owner_references.as_deref().unwrap_or_default() != node.owners {
        // Its owners have changed since they were looked at; the change is on its way here.
        return Ok(None);
    }
    let has = |name: &str| metadata.finalizers.iter().flatten().any(|f| f == name);
    let policy = match () {
        () if has(ORPHAN) => PropagationPolicy::Orphan,
        () if foreground || has(FOREGROUND) => PropagationPolicy::Foreground,
        () => PropagationPolicy::Background,
    };
    let params = DeleteParams {
        propagation_policy: Some(policy),
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: metadata.resource_version }),
        ..DeleteParams::default()
    };
    match api(shared, &node.resource, &node.namespace).delete(&node.name, &params).await {
        Ok(_) => Ok(None),
        Err(error) => match error.into() {
            RequestError::NotFound(_) => Ok(None),
            error => Err(error),
        },
    }
}

async fn remove_finalizer(shared: &Shared, uid: &str, node: &Node, finalizer: &str) -> Attended {
    let Some(metadata) = current(shared, uid, node).await? else { return Ok(None) };
    let before = metadata.finalizers.clone().unwrap_or_default();
    let kept: Vec<&String> = before.iter().filter(|f| *f != finalizer).collect();
    if kept.len() < before.len() {
        patch(shared, node, &metadata, json!({"finalizers": kept})).await?;
    }
    Ok(None)
}

/// An owner deleted in the foreground goes once no dependent that blocks it is left.
async fn wait_for_dependents(shared: &Shared, uid: &str, node: &Node) -> Attended {
    let blockers = shared.graph().blockers(uid);
    if blockers.is_empty() {
        return remove_finalizer(shared, uid, node, FOREGROUND).await;
    }
    // Each of them is deleted in its own turn; the last one to go brings this owner back here.
    blockers.into_iter().for_each(|dependent| shared.queue.add(Task::Object(dependent)));
    Ok(None)
}

async fn orphan_dependents(shared: &Shared, uid: &str, node: &Node) -> Attended {
    // A dependent that is not known yet would be taken for one that has lost its owner.
    sleep(CATCH_UP).await;
    let dependents = shared.graph().dependents(uid);
    for dependent in dependents {
        let Some(object) = shared.graph().get(&dependent).cloned() else { continue };
        detach(shared, &dependent, &object, &[uid.to_owned()]).await?;
    }
    remove_finalizer(shared, uid, node, ORPHAN).await
}

/// Removes a finalizer from an object that is on its way out.
pub(super) async fn release(shared: &Arc<Shared>, uid: &str, finalizer: &str) -> Attended {
    let Some(node) = shared.graph().get(uid).cloned() else { return Ok(None) };
    remove_finalizer(shared, uid, &node, finalizer).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use OwnerState::{Absent, Solid, Unknown, Waiting};

    #[test]
    fn verdicts() {
        let cases: [(&[OwnerState], bool, Verdict); 8] = [
            (&[Solid], false, Verdict::Keep),
            (&[Solid, Unknown], false, Verdict::Keep),
            (&[Solid, Absent], false, Verdict::Detach(vec!["1".into()])),
            (&[Solid, Waiting], true, Verdict::Detach(vec!["1".into()])),
            (&[Absent, Absent], true, Verdict::Delete { foreground: false }),
            (&[Waiting], false, Verdict::Delete { foreground: false }),
            (&[Absent, Waiting], true, Verdict::Delete { foreground: true }),
            (&[Unknown, Absent], false, Verdict::Unclear),
        ];
        for (states, has_dependents, expected) in cases {
            let owners: Vec<_> = states.iter().enumerate().map(|(i, state)| (i.to_string(), *state)).collect();
            assert_eq!(decide(&owners, has_dependents), expected, "{states:?}");
        }
    }
}
