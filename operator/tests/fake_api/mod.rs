//! Enough of a Kubernetes API to run a controller against: objects in a map, optimistic concurrency, watches that can
//! lag. No schemas, no admission, no garbage collection.

#![allow(unreachable_pub, dead_code)]

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Resource, namespace, name.
type Key = (String, String, String);

#[derive(Default)]
struct Store {
    objects: BTreeMap<Key, Value>,
    version: u64,
    /// Everything that happened: version, resource, type of the event, object.
    history: Vec<(u64, String, &'static str, Value)>,
    requests: BTreeMap<(String, String), usize>,
    lag: Duration,
    refused_status_updates: usize,
    refused_deletions: usize,
}

#[derive(Clone)]
pub struct FakeApi {
    store: Arc<Mutex<Store>>,
    changed: watch::Sender<u64>,
}

impl Default for FakeApi {
    fn default() -> Self {
        FakeApi { store: Arc::default(), changed: watch::channel(0).0 }
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// A request's place in the API.
#[derive(Debug)]
struct Path {
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

fn parse(path: &str) -> Path {
    let mut parts = path.trim_matches('/').split('/');
    // `api/v1` or `apis/GROUP/VERSION`.
    let skip = if parts.next() == Some("api") { 1 } else { 2 };
    let mut rest: Vec<String> = parts.skip(skip).map(str::to_owned).collect();
    let namespaced = rest.len() >= 3 && rest[0] == "namespaces";
    let namespace = namespaced.then(|| rest.drain(..2).nth(1)).flatten();
    let mut rest = rest.into_iter();
    Path { resource: rest.next().unwrap_or_default(), namespace, name: rest.next(), subresource: rest.next() }
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|target| target.remove(key));
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}

impl Store {
    fn commit(&mut self, kind: &'static str, key: &Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if kind == "DELETED" {
            self.objects.remove(key);
        } else {
            self.objects.insert(key.clone(), object.clone());
        }
        self.history.push((self.version, key.0.clone(), kind, object.clone()));
        object
    }
}

impl FakeApi {
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    // ---- what tests do and ask

    pub fn create(&self, resource: &str, mut object: Value) {
        let mut store = self.lock();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (resource.to_owned(), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        object["metadata"]["uid"] = json!(format!("uid-{}", store.version + 1));
        store.commit("ADDED", &key, object);
        drop(store);
        self.tell();
    }

    pub fn patch(&self, resource: &str, namespace: &str, name: &str, patch: &Value) {
        let mut store = self.lock();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut object = store.objects.get(&key).expect("the object").clone();
        merge(&mut object, patch);
        store.commit("MODIFIED", &key, object);
        drop(store);
        self.tell();
    }

    pub fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let mut store = self.lock();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let object = store.objects.get(&key).expect("the object").clone();
        store.commit("DELETED", &key, object);
        drop(store);
        self.tell();
    }

    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(resource.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    pub fn names(&self, resource: &str) -> Vec<String> {
        self.lock().objects.keys().filter(|key| key.0 == resource).map(|key| key.2.clone()).collect()
    }

    pub fn count(&self, resource: &str) -> usize {
        self.lock().objects.keys().filter(|key| key.0 == resource).count()
    }

    pub fn event_reasons(&self) -> Vec<String> {
        let store = self.lock();
        let events = store.objects.iter().filter(|(key, _)| key.0 == "events");
        events.map(|(_, event)| event["reason"].as_str().unwrap_or_default().to_owned()).collect()
    }

    pub fn requests(&self, method: &str, resource: &str) -> usize {
        self.lock().requests.get(&(method.to_owned(), resource.to_owned())).copied().unwrap_or_default()
    }

    /// Watches show what happens this much later.
    pub fn lag(&self, lag: Duration) {
        self.lock().lag = lag;
    }

    /// The next status updates conflict.
    pub fn refuse_status_updates(&self, count: usize) {
        self.lock().refused_status_updates = count;
    }

    /// The next deletions conflict, though it is the right object: others write to it all the time.
    pub fn refuse_deletions(&self, count: usize) {
        self.lock().refused_deletions = count;
    }

    // ---- the API

    async fn answer(&self, request: Request<kube::client::Body>) -> Answer {
        let path = parse(request.uri().path());
        let method = request.method().clone();
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
            .collect();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        {
            let mut store = self.lock();
            *store.requests.entry((method.to_string(), path.resource.clone())).or_default() += 1;
        }
        if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") {
            let from = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
            return self.watch(path.resource, from);
        }
        let answer = self.change(&method, &path, body);
        if method != Method::GET {
            self.tell();
        }
        match answer {
            Ok((code, value)) => json_answer(code, &value),
            Err((code, reason, message)) => {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure",
                    "code": code.as_u16(), "reason": reason, "message": message,
                });
                json_answer(code, &status)
            }
        }
    }

    fn change(
        &self,
        method: &Method,
        path: &Path,
        body: Value,
    ) -> Result<(StatusCode, Value), (StatusCode, &'static str, String)> {
        let mut store = self.lock();
        let namespace = path.namespace.clone().unwrap_or_default();
        let Some(name) = &path.name else {
            if *method == Method::POST {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let key = (path.resource.clone(), namespace, name.clone());
                if store.objects.contains_key(&key) {
                    let message = format!("{} \"{name}\" already exists", path.resource);
                    return Err((StatusCode::CONFLICT, "AlreadyExists", message));
                }
                let mut object = body;
                object["metadata"]["uid"] = json!(format!("uid-{}", store.version + 1));
                object["metadata"]["namespace"] = json!(key.1);
                return Ok((StatusCode::CREATED, store.commit("ADDED", &key, object)));
            }
            let items: Vec<Value> =
                store.objects.iter().filter(|(key, _)| key.0 == path.resource).map(|(_, item)| item.clone()).collect();
            let list = json!({
                "kind": "List", "apiVersion": "v1",
                "metadata": {"resourceVersion": store.version.to_string()}, "items": items,
            });
            return Ok((StatusCode::OK, list));
        };
        let key = (path.resource.clone(), namespace, name.clone());
        let missing = || (StatusCode::NOT_FOUND, "NotFound", format!("{} \"{name}\" not found", path.resource));
        let conflict = |message: &str| Err((StatusCode::CONFLICT, "Conflict", message.to_owned()));
        let mut object = store.objects.get(&key).cloned().ok_or_else(missing)?;
        match *method {
            Method::GET => Ok((StatusCode::OK, object)),
            Method::PUT => {
                if path.subresource.as_deref() == Some("status") && store.refused_status_updates > 0 {
                    store.refused_status_updates -= 1;
                    return conflict("the object has been modified");
                }
                if body["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                    return conflict("the object has been modified");
                }
                object["status"] = body["status"].clone();
                Ok((StatusCode::OK, store.commit("MODIFIED", &key, object)))
            }
            Method::PATCH => {
                merge(&mut object, &body);
                Ok((StatusCode::OK, store.commit("MODIFIED", &key, object)))
            }
            Method::DELETE => {
                if store.refused_deletions > 0 {
                    store.refused_deletions -= 1;
                    return conflict("the object has been modified");
                }
                let uid = &body["preconditions"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return conflict("the uid is another");
                }
                store.commit("DELETED", &key, object);
                Ok((StatusCode::OK, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})))
            }
            _ => Err((StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", method.to_string())),
        }
    }

    fn watch(&self, resource: String, from: u64) -> Answer {
        let api = self.clone();
        let state = (api.changed.subscribe(), from, 0usize);
        let events = futures::stream::unfold(state, move |(mut changed, mut version, mut next)| {
            let (api, resource) = (api.clone(), resource.clone());
            async move {
                loop {
                    changed.borrow_and_update();
                    let (text, lag) = {
                        let store = api.lock();
                        let mut text = String::new();
                        for (at, about, kind, object) in &store.history[next..] {
                            if *about == resource && *at > version {
                                version = *at;
                                text.push_str(&json!({"type": kind, "object": object}).to_string());
                                text.push('\n');
                            }
                        }
                        next = store.history.len();
                        (text, store.lag)
                    };
                    if !text.is_empty() {
                        tokio::time::sleep(lag).await;
                        let frame = http_body::Frame::data(Bytes::from(text));
                        return Some((Ok::<_, Infallible>(frame), (changed, version, next)));
                    }
                    if changed.changed().await.is_err() {
                        return None;
                    }
                }
            }
        });
        Response::new(BodyExt::boxed(StreamBody::new(events.boxed_sync())))
    }
}

trait BoxedSync: futures::Stream + Sized {
    fn boxed_sync(self) -> std::pin::Pin<Box<dyn futures::Stream<Item = Self::Item> + Send + Sync>>
    where
        Self: Send + Sync + 'static,
    {
        Box::pin(self)
    }
}

impl<S: futures::Stream> BoxedSync for S {}

fn json_answer(code: StatusCode, value: &Value) -> Answer {
    let body = http_body_util::Full::new(Bytes::from(value.to_string()));
    let mut answer = Response::new(BodyExt::boxed(body));
    *answer.status_mut() = code;
    answer
}
