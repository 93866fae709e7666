//! From a request to its answer: who asks, whether they may, which handler answers.

mod admission;
mod bind;
mod bootstrap;
mod definitions;
mod delete;
mod logs;
mod patch;
mod quota;
mod read;
mod reviews;
mod roles;
mod scale;
mod streams;
mod subresource;
mod system;
mod update;
mod write;

pub(crate) use read::{Selection, encode};

use crate::auth::rbac::{self, Action};
use crate::auth::{self, Identity};
use crate::builtin::Objects;
use crate::error::{ApiError, ApiResult};
use crate::negotiate::{self, Encoding, Form, Offer, Shape};
use crate::protobuf;
use crate::registry::Served;
use crate::request::{Query, ResourcePath, Target, target, verb};
use crate::response::{self, Body, Response};
use crate::schema::strict;
use crate::server::{Api, Brief};
use crate::store::{CommitError, Key};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The largest body of a request.
const BODY_LIMIT: usize = 3 << 20;
/// How long a request may take that is not a watch, a log or another stream.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// How often a request is looked at that rests on writes for which no room is found.
const LOOKS: usize = 10;

/// A request on its way through the handlers.
pub(crate) struct Req {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) identity: Identity,
    /// Whether the client has no use for managed fields.
    pub(crate) brief: bool,
    pub(crate) resource: ResourcePath,
    /// The connection is among them, where it can become another protocol's.
    pub(crate) extensions: http::Extensions,
    pub(crate) warnings: Vec<String>,
    /// The kind that the body should hold.
    expected: Option<String>,
    /// Behind a lock only so that requests can be shared between threads.
    body: Mutex<Option<Body>>,
    /// The body once it has been read.
    read: Option<Bytes>,
}

impl Req {
    pub(crate) fn header(&self, name: http::header::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn accept(&self) -> Option<&str> {
        self.headers.get(http::header::ACCEPT).and_then(|value| value.to_str().ok())
    }

    /// The form of an answer about a kind: one object, several (`list`), or several as they change (`watch`).
    pub(crate) fn form(&self, served: &Served, list: bool, watch: bool) -> ApiResult<Form> {
        let protobuf = served.is_builtin() && protobuf::knows(&served.api_version(), &served.kind);
        let mut form = negotiate::form(self.accept(), Offer { shapes: true, protobuf, list, watch })?;
        form.managers = !self.brief;
        let package = match served.as_builtin() {
            Some(kind) if kind.group.is_empty() => "core",
            Some(kind) => kind.group.split('.').next().unwrap_or_default(),
            None => "unstructured",
        };
        let kind = if served.is_builtin() { served.kind.as_str() } else { "Unstructured" };
        let why = match form.shape {
            Shape::Partial(_, false) if list && !watch => {
                format!(
                    "you requested PartialObjectMetadata, but the requested object is a list (*{package}.{kind}List)"
                )
            }
            Shape::Partial(_, true) if !list => format!(
                "you requested PartialObjectMetadataList, but the requested object is not a list (*{package}.{kind})"
            ),
            _ => return Ok(form),
        };
        Err(ApiError::new(406, "NotAcceptable", why))
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.resource.namespace.as_deref()
    }

    pub(crate) fn name(&self) -> &str {
        self.resource.name.as_deref().unwrap_or_default()
    }

    fn unreadable(&self, error: &protobuf::Error, body: &[u8]) -> ApiError {
        let kind = self.expected.as_deref().unwrap_or_default();
        strict::unrecognized(kind, &error.to_string(), body)
    }

    /// The body, within its limit; in JSON where it came in protobuf.
    pub(crate) async fn body(&mut self) -> ApiResult<Bytes> {
        if let Some(read) = &self.read {
            return Ok(read.clone());
        }
        let read = self.read_body().await?;
        Ok(self.read.insert(read).clone())
    }

    async fn read_body(&mut self) -> ApiResult<Bytes> {
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(body) = body else { return Ok(Bytes::new()) };
        let too_large =
            || ApiError::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {BODY_LIMIT}"));
        let mut read = BytesMut::new();
        let mut body = body;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| ApiError::bad_request(format!("failed to read the request: {e}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if read.len() + data.len() > BODY_LIMIT {
                return Err(too_large());
            }
            read.extend_from_slice(&data);
        }
        if self.header(http::header::CONTENT_TYPE).split(';').next() == Some(protobuf::MEDIA_TYPE) {
            let object = protobuf::to_json(&read).map_err(|error| self.unreadable(&error, &read))?;
            self.headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
            return Ok(object.to_string().into());
        }
        Ok(read.freeze())
    }
}

/// The store as the rules of the kinds see it: the newest state, as writers see it.
pub(crate) struct Stored<'a>(pub(crate) &'a Api);

impl Stored<'_> {
    fn storage(&self, group: &str, plural: &str) -> Arc<str> {
        format!("{group}/{plural}").into()
    }

    /// The object as readers see it.
    fn visible(&self, group: &str, plural: &str, namespace: Option<&str>, name: &str) -> Option<Value> {
        let key = Key::new(&self.storage(group, plural), namespace, name);
        self.0.store.get(&key).map(|object| object.bare_value())
    }
}

impl Objects for Stored<'_> {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let namespace = (!namespace.is_empty()).then_some(namespace);
        let key = Key::new(&self.storage(group, plural), namespace, name);
        self.0.store.head(&key).map(|object| Arc::new(object.bare_value()))
    }

    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Arc<Value>> {
        let namespace = (!namespace.is_empty()).then_some(namespace);
        let page = self.0.store.list(&self.storage(group, plural), namespace, None, None);
        page.map(|page| page.items.iter().map(|object| Arc::new(object.bare_value())).collect()).unwrap_or_default()
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

impl rbac::Roles for Stored<'_> {
    fn cluster_role_bindings(&self) -> Vec<Value> {
        // Nobody may do anything on the strength of a write that is not durable.
        self.list(RBAC, "clusterrolebindings", "").into_iter().map(Arc::unwrap_or_clone).collect()
    }

    fn role_bindings(&self, namespace: &str) -> Vec<Value> {
        self.list(RBAC, "rolebindings", namespace).into_iter().map(Arc::unwrap_or_clone).collect()
    }

    fn cluster_role(&self, name: &str) -> Option<Value> {
        self.visible(RBAC, "clusterroles", None, name)
    }

    fn role(&self, namespace: &str, name: &str) -> Option<Value> {
        self.visible(RBAC, "roles", Some(namespace), name)
    }
}

impl Api {
    /// Who bears this token.
    pub(crate) fn authenticate(&self, token: &str) -> ApiResult<Identity> {
        if let Some(identity) = self.keys.by_token(token) {
            return Ok(identity.clone());
        }
        self.token_subject(token).map(|subject| subject.identity()).ok_or_else(ApiError::unauthorized)
    }

    /// The service account whose valid token this is. The account, and the pod it is bound to, must still exist.
    pub(crate) fn token_subject(&self, token: &str) -> Option<auth::token::Subject> {
        let key = self.keys.service_accounts.as_ref()?;
        let claims = key.verify(token, self.clock.now().as_second())?;
        let subject = auth::token::Subject::from_claims(&claims)?;
        let has_uid = |plural: &str, name: &str, uid: &str| {
            let object = Stored(self).visible("", plural, Some(&subject.namespace), name);
            object.is_some_and(|object| object["metadata"]["uid"] == uid)
        };
        let pod = subject.pod.as_ref().is_none_or(|(name, uid)| has_uid("pods", name, uid));
        (pod && has_uid("serviceaccounts", &subject.name, &subject.uid)).then_some(subject)
    }

    pub(crate) fn allowed(&self, identity: &Identity, action: &Action<'_>) -> bool {
        rbac::allowed(&Stored(self), identity, action)
    }

    fn authorize(&self, req: &Req, verb: &str, is_resource: bool) -> ApiResult<()> {
        let path = &req.resource;
        let full = path.full_resource();
        let action = if is_resource {
            let name = req.name();
            Action::Resource { verb, group: &path.group, resource: &full, namespace: req.namespace(), name }
        } else {
            Action::Path { verb, path: &req.path }
        };
        if self.allowed(&req.identity, &action) {
            return Ok(());
        }
        let why = rbac::denial(&req.identity, &action);
        Err(if is_resource {
            ApiError::forbidden(&path.group, &path.resource, req.name(), &why)
        } else {
            ApiError::new(403, "Forbidden", format!("forbidden: {why}")).with_details(serde_json::json!({}))
        })
    }

    /// The identity that the request wants to act as, if its own may do so.
    fn impersonate(&self, identity: Identity, headers: &HeaderMap) -> ApiResult<Identity> {
        let Some((wanted, permissions)) = auth::impersonation(headers)? else { return Ok(identity) };
        for (resource, name) in permissions {
            let (namespace, name) = match name.split_once('/') {
                Some((namespace, name)) if resource == "serviceaccounts" => (Some(namespace), name),
                _ => (None, name.as_str()),
            };
            let action = Action::Resource { verb: "impersonate", group: "", resource, namespace, name };
            if !self.allowed(&identity, &action) {
                return Err(ApiError::forbidden("", resource, name, &rbac::denial(&identity, &action)));
            }
        }
        Ok(wanted)
    }

    /// Answers a request. Boxed, since the handlers' futures are large and of many types.
    pub(crate) fn handle(
        self: &Arc<Self>,
        request: http::Request<Body>,
        identity: Identity,
    ) -> BoxFuture<'static, Response> {
        let api = self.clone();
        Box::pin(async move { api.answer_request(request, identity).await })
    }

    async fn answer_request(self: &Arc<Self>, request: http::Request<Body>, identity: Identity) -> Response {
        let (parts, body) = request.into_parts();
        let mut req = Req {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: Query::parse(parts.uri.query()),
            brief: parts.extensions.get::<Brief>().is_some(),
            headers: parts.headers,
            identity,
            resource: ResourcePath::default(),
            extensions: parts.extensions,
            warnings: Vec::new(),
            expected: None,
            body: Mutex::new(Some(body)),
            read: None,
        };
        let outcome = tokio::time::timeout(TIME_LIMIT, self.route(&mut req)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            Err(ApiError::new(504, "Timeout", "Timeout: request did not complete within the allotted timeout"))
        });
        let mut response = outcome.unwrap_or_else(|error| {
            let form = negotiate::form(req.accept(), Offer { protobuf: true, ..Offer::default() });
            let encoding = form.map_or(Encoding::Json, |form| form.encoding);
            response::error(&error, encoding)
        });
        response::warn(&mut response, &req.warnings);
        response
    }

    async fn route(self: &Arc<Self>, req: &mut Req) -> ApiResult<Response> {
        req.identity = self.impersonate(std::mem::take(&mut req.identity), &req.headers)?;
        let Target::Resource(path) = target(&req.path)? else {
            let method = req.method.as_str().to_ascii_lowercase();
            self.authorize(req, &method, false)?;
            return self.other(req).await;
        };
        req.resource = path;
        let named = req.resource.name.is_some();
        let watch = req.query.flag("watch");
        let verb = verb(&req.method, named, watch).ok_or_else(ApiError::method_not_allowed)?;
        self.authorize(req, verb, true)?;
        if matches!(verb, "get" | "list" | "watch") {
            return self.dispatch(req, verb).await;
        }
        self.dispatch_write(req, verb).await
    }

    /// A write is checked against what other writes have begun. A refusal, or that there was nothing to do, may rest on
    /// one that is not durable yet: it is answered only once that is, and where no room was found for it, the request is
    /// looked at again.
    async fn dispatch_write(self: &Arc<Self>, req: &mut Req, verb: &str) -> ApiResult<Response> {
        for _ in 0..LOOKS {
            let before = self.store.refusals();
            let outcome = self.dispatch(req, verb).await;
            let sure = match &outcome {
                // What was stored came after all that it rests on. Of many deletions some may have had nothing to do.
                Ok(_) => verb != "deletecollection",
                Err(error) => error.code >= 500,
            };
            if sure || self.store.settled().await.map_err(|error| write::store_failed(&error))? == before {
                return outcome;
            }
            req.warnings.clear();
        }
        Err(write::store_failed(&CommitError::Full("writes that this one rests on found no room".into())))
    }

    async fn dispatch(self: &Arc<Self>, req: &mut Req, verb: &str) -> ApiResult<Response> {
        let catalog = self.registry.catalog();
        let named = req.resource.name.is_some();
        let path = &req.resource;
        let Some(served) = catalog.find(&path.group, &path.version, &path.resource) else {
            return match path.group.as_str() {
                "muster.dev" => self.own_resource(req, verb).await,
                group if !group.is_empty() && !catalog.groups().contains_key(group) => Ok(response::page_not_found()),
                _ => Err(unknown_path()),
            };
        };
        req.expected = Some(served.kind.clone());
        let path = &req.resource;
        if !path.rest.is_empty() && !matches!(path.sub(), "proxy" | "log") {
            return Err(unknown_path());
        }
        // The whole resource across namespaces can be read, nothing more.
        if served.namespaced && path.namespace.is_none() {
            if named {
                return Err(unknown_path());
            }
            if !matches!(verb, "list" | "watch") {
                return Err(ApiError::method_not_allowed());
            }
        }
        if !served.namespaced && path.namespace.is_some() {
            return Err(unknown_path());
        }
        if path.subresource.is_some() {
            return self.subresource(req, &served, verb).await;
        }
        let fits = match req.method.as_str() {
            "POST" => !named,
            "PUT" | "PATCH" => named,
            _ => true,
        };
        if !fits || !served.has_verb(verb) {
            return Err(ApiError::method_not_allowed());
        }
        match verb {
            "get" => self.get(req, &served).await,
            "list" => self.list(req, &served).await,
            "watch" => self.watch(req, &served).await,
            "create" if &*served.storage == "/bindings" => self.bind(req, None).await,
            "create" => self.create(req, &served).await,
            "update" => self.update(req, &served).await,
            "patch" => self.patch(req, &served).await,
            "delete" => self.delete(req, &served).await,
            _ => self.delete_collection(req, &served).await,
        }
    }

    /// The objects' place in the store.
    pub(crate) fn key(&self, served: &Served, namespace: Option<&str>, name: &str) -> Key {
        Key::new(&served.storage, namespace.filter(|_| served.namespaced), name)
    }
}

pub(crate) fn unknown_path() -> ApiError {
    ApiError::new(404, "NotFound", "the server could not find the requested resource")
        .with_details(serde_json::json!({}))
}
