//! Carries out a decision: binds all pods of a gang, or none.
//!
//! Against Muster's own API server that is one request, one store transaction. A server that does not know the
//! request gets one Binding a pod, in order; when one fails, the pods bound before it are deleted again (their
//! controller makes new ones), so that no gang runs in part.

use super::solve::Start;
use crate::planted::{self, Bug};
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

const GANG_BINDINGS: &str = "/apis/muster.dev/v1alpha1/gangbindings";

/// How a commit ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Bound,
    /// The cluster is no longer what the decision was made on: decide again.
    Conflict(String),
    /// The request did not get through, or was refused for another reason.
    Failed(kube::Error),
}

pub(crate) struct Binder {
    client: kube::Client,
    /// The server has no gang bindings.
    one_by_one: AtomicBool,
}

impl Binder {
    pub(crate) fn new(client: kube::Client) -> Self {
        Binder { client, one_by_one: AtomicBool::new(planted::is(Bug::TornGang)) }
    }

    pub(crate) async fn bind(&self, start: &Start) -> Outcome {
        if !self.one_by_one.load(Ordering::Relaxed) {
            match self.bind_together(start).await {
                Ok(_) => return Outcome::Bound,
                Err(kube::Error::Api(status)) if status.code == 409 => return Outcome::Conflict(status.message),
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 405 => {
                    tracing::info!("the API server has no gang bindings: pods are bound one by one");
                    self.one_by_one.store(true, Ordering::Relaxed);
                }
                Err(error) => return Outcome::Failed(error),
            }
        }
        self.bind_one_by_one(start).await
    }

    async fn bind_together(&self, start: &Start) -> Result<Value, kube::Error> {
        let bindings: Vec<Value> = start
            .placements
            .iter()
            .map(|p| json!({"namespace": start.gang.namespace(), "name": p.pod, "uid": p.uid, "node": p.node}))
            .collect();
        let body = json!({"apiVersion": "muster.dev/v1alpha1", "kind": "GangBinding", "bindings": bindings});
        let request = http::Request::post(GANG_BINDINGS)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())
            .expect("a fixed path and header make a valid request");
        self.client.request(request).await
    }

    async fn bind_one_by_one(&self, start: &Start) -> Outcome {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), start.gang.namespace());
        for (bound, placement) in start.placements.iter().enumerate() {
            let binding = Binding {
                metadata: ObjectMeta {
                    name: Some(placement.pod.clone()),
                    namespace: Some(start.gang.namespace().to_owned()),
                    uid: Some(placement.uid.clone()),
                    ..ObjectMeta::default()
                },
                target: ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Node".to_owned()),
                    name: Some(placement.node.clone()),
                    ..ObjectReference::default()
                },
            };
            let answer: Result<Value, _> =
                pods.create_subresource("binding", &placement.pod, &PostParams::default(), &binding).await;
            let Err(error) = answer else { continue };
            let undone = if planted::is(Bug::TornGang) { 0 } else { bound };
            for earlier in &start.placements[..undone] {
                let params = DeleteParams {
                    preconditions: Some(Preconditions { uid: Some(earlier.uid.clone()), ..Preconditions::default() }),
                    ..DeleteParams::default()
                };
                if let Err(error) = pods.delete(&earlier.pod, &params).await {
                    tracing::warn!(pod = earlier.pod, %error, "failed to undo a part of a gang's binding");
                }
            }
            return match error {
                kube::Error::Api(status) if status.code == 409 || status.code == 404 => {
                    Outcome::Conflict(status.message)
                }
                error => Outcome::Failed(error),
            };
        }
        Outcome::Bound
    }
}
