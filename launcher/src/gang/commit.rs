//! Carries out a decision: binds all pods of a gang, or none.
//!
//! Against Muster's own API server that is one request, one store transaction. A server that does not know the
//! request gets one Binding a pod, in order; when one fails, the pods bound before it are deleted again (their
//! controller makes new ones), so that no gang runs in part.

use super::problem::GangId;
use super::snapshot::POD_GROUP_LABEL;
use super::solve::Start;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use muster_planted::{self as planted, Bug};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const GANG_BINDINGS: &str = "/apis/muster.dev/v1alpha1/gangbindings";

/// How long it waits before it asks again what has become of a binding.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// How a commit ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Bound,
    /// It was refused, or its answer did not come, and it may have been carried out all the same. These are the pods
    /// of the start as they are now, by name.
    Uncertain(BTreeMap<String, Pod>),
}

/// Why a request to bind was not answered with success.
enum NotBound {
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
        match self.try_to_bind(start).await {
            Ok(()) => return Outcome::Bound,
            Err(NotBound::Conflict(message)) => {
                tracing::debug!(gang = %start.gang, message, "the cluster changed meanwhile: deciding again");
            }
            Err(NotBound::Failed(error)) => tracing::warn!(gang = %start.gang, %error, "failed to bind"),
        }
        loop {
            match self.current(start).await {
                Ok(pods) => return Outcome::Uncertain(pods),
                Err(error) => tracing::debug!(gang = %start.gang, %error, "failed to read the pods"),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The pods of a start as they are now, by name.
    async fn current(&self, start: &Start) -> Result<BTreeMap<String, Pod>, kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), start.gang.namespace());
        let found = match &start.gang {
            GangId::Pod { name, .. } => api.get_opt(name).await?.into_iter().collect(),
            GangId::Group { name, .. } => {
                let members = ListParams::default().labels(&format!("{POD_GROUP_LABEL}={name}"));
                api.list(&members).await?.items
            }
        };
        Ok(found.into_iter().map(|pod| (pod.name_any(), pod)).collect())
    }

    async fn try_to_bind(&self, start: &Start) -> Result<(), NotBound> {
        if !self.one_by_one.load(Ordering::Relaxed) {
            match self.bind_together(start).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 || is_of_a_pod(&status) => {
                    return Err(NotBound::Conflict(status.message));
                }
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 405 => {
                    tracing::info!("the API server has no gang bindings: pods are bound one by one");
                    self.one_by_one.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(NotBound::Failed(error)),
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

    async fn bind_one_by_one(&self, start: &Start) -> Result<(), NotBound> {
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
            return Err(match error {
                kube::Error::Api(status) if status.code == 409 || status.code == 404 => {
                    NotBound::Conflict(status.message)
                }
                error => NotBound::Failed(error),
            });
        }
        Ok(())
    }
}

/// Whether it is a pod that was not found, and not the request.
fn is_of_a_pod(status: &kube::core::Status) -> bool {
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.kind == "pods")
}

#[cfg(test)]
mod tests {
    use super::super::solve::Placement;
    use super::*;
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    /// A server without pods, whose answer to gang bindings has these details, and the requests that it gets.
    fn server(details: Value) -> (kube::Client, Arc<Mutex<Vec<String>>>) {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let path = request.uri().path().to_owned();
            seen.lock().expect("the requests").push(format!("{} {path}", request.method()));
            let details = if path == GANG_BINDINGS { details.clone() } else { json!({"kind": "pods", "name": "p"}) };
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "not found",
                "reason": "NotFound", "code": 404, "details": details});
            let answer = Response::builder().status(404).body(Full::new(Bytes::from(status.to_string())));
            std::future::ready(Ok::<_, Infallible>(answer.expect("an answer")))
        });
        (kube::Client::new(service, "ns"), requests)
    }

    async fn requests(details: Value) -> Vec<String> {
        let (client, requests) = server(details);
        let start = Start {
            gang: GangId::Pod { namespace: "ns".to_owned(), name: "p".to_owned() },
            placements: vec![Placement { pod: "p".to_owned(), uid: "1".to_owned(), node: "n".to_owned() }],
        };
        let outcome = Binder::new(client).bind(&start).await;
        assert!(matches!(outcome, Outcome::Uncertain(pods) if pods.is_empty()));
        let requests = requests.lock().expect("the requests");
        requests.clone()
    }

    #[tokio::test]
    async fn a_pod_that_is_gone_is_not_a_server_without_gang_bindings() {
        let gang = format!("POST {GANG_BINDINGS}");
        let read = "GET /api/v1/namespaces/ns/pods/p".to_owned();
        assert_eq!(requests(json!({"kind": "pods", "name": "p"})).await, [gang.clone(), read.clone()]);
        let one = "POST /api/v1/namespaces/ns/pods/p/binding".to_owned();
        assert_eq!(requests(json!({})).await, [gang, one, read]);
    }
}
