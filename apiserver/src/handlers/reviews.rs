//! Reviews: objects that are answered, not stored. Who am I, may I, whose token is this.

use super::{Req, Stored};
use crate::auth::rbac::{self, Action};
use crate::auth::{Identity, token};
use crate::codec;
use crate::error::{ApiError, ApiResult};
use crate::options::WriteOptions;
use crate::registry::Served;
use crate::response::{self, Response};
use crate::schema::strict;
use crate::server::Api;
use muster_api::clock::rfc3339;
use muster_api::field::FieldError;
use serde_json::{Map, Value, json};
use std::sync::Arc;

const DEFAULT_AUDIENCE: &str = token::ISSUER;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// `userInfo` of an identity.
fn user_info(identity: &Identity) -> Value {
    let mut info = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        info["uid"] = identity.uid.clone().into();
    }
    if !identity.extra.is_empty() {
        info["extra"] = json!(identity.extra);
    }
    info
}

impl Api {
    /// The answer to a review; nothing where the kind is stored like any other.
    pub(super) fn review(&self, req: &Req, served: &Served, object: &Value) -> ApiResult<Option<Value>> {
        let spec = &object["spec"];
        let status = match (served.group.as_str(), served.kind.as_str()) {
            ("authorization.k8s.io", "SelfSubjectAccessReview") => self.access(&req.identity, spec, "")?,
            ("authorization.k8s.io", "SubjectAccessReview" | "LocalSubjectAccessReview") => {
                let groups = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let identity = Identity {
                    user: text(spec, "user").to_owned(),
                    uid: text(spec, "uid").to_owned(),
                    groups: groups.map(str::to_owned).collect(),
                    ..Identity::default()
                };
                let mut identity = identity;
                if let Some((namespace, name)) =
                    identity.user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
                    && identity.groups.is_empty()
                {
                    identity.groups = Identity::service_account(namespace, name, "").groups;
                }
                if identity.user.is_empty() && identity.groups.is_empty() {
                    let why = "at least one of user or group must be specified";
                    let error = FieldError::invalid("spec.user", &json!(""), why);
                    return Err(ApiError::invalid(&served.group, "", "", &[error]));
                }
                let namespace = req.namespace().unwrap_or_default();
                if !namespace.is_empty() && text(&spec["resourceAttributes"], "namespace") != namespace {
                    let given = &spec["resourceAttributes"]["namespace"];
                    let why = format!("must match metadata.namespace: {namespace}");
                    let error = FieldError::invalid("spec.resourceAttributes.namespace", given, why);
                    return Err(ApiError::invalid(&served.group, "", "", &[error]));
                }
                self.access(&identity, spec, namespace)?
            }
            ("authorization.k8s.io", "SelfSubjectRulesReview") => {
                self.rules_status(&req.identity, text(spec, "namespace"))?
            }
            ("authentication.k8s.io", "SelfSubjectReview") => json!({"userInfo": user_info(&req.identity)}),
            ("authentication.k8s.io", "TokenReview") => self.token_status(text(spec, "token"))?,
            _ => return Ok(None),
        };
        let mut answer = object.clone();
        answer["status"] = status;
        let mut metadata = Map::new();
        if let Some(namespace) = req.namespace() {
            metadata.insert("namespace".to_owned(), namespace.into());
        }
        answer["metadata"] = metadata.into();
        Ok(Some(answer))
    }

    fn access(&self, identity: &Identity, spec: &Value, namespace: &str) -> ApiResult<Value> {
        let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        let full;
        let action = match (resource.is_object(), path.is_object()) {
            (true, false) => {
                full = match text(resource, "subresource") {
                    "" => text(resource, "resource").to_owned(),
                    sub => format!("{}/{sub}", text(resource, "resource")),
                };
                let namespace = if namespace.is_empty() { text(resource, "namespace") } else { namespace };
                Action::Resource {
                    verb: text(resource, "verb"),
                    group: text(resource, "group"),
                    resource: &full,
                    namespace: (!namespace.is_empty()).then_some(namespace),
                    name: text(resource, "name"),
                }
            }
            (false, true) => Action::Path { verb: text(path, "verb"), path: text(path, "path") },
            (both, _) => {
                let given = if both { path } else { &Value::Null };
                let field = if both { "spec.nonResourceAttributes" } else { "spec.resourceAttributes" };
                let why = if both {
                    "cannot be specified in combination with resourceAttributes"
                } else {
                    "exactly one of nonResourceAttributes or resourceAttributes must be specified"
                };
                let error = FieldError::invalid(field, given, why);
                return Err(ApiError::invalid("authorization.k8s.io", "", "", &[error]));
            }
        };
        Ok(json!({"allowed": self.allowed(identity, &action)}))
    }

    fn rules_status(&self, identity: &Identity, namespace: &str) -> ApiResult<Value> {
        if namespace.is_empty() {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        let (mut resources, mut paths) = (Vec::new(), Vec::new());
        for rule in rbac::rules(&Stored(self), identity, Some(namespace)) {
            if rule["nonResourceURLs"].is_array() {
                paths.push(json!({"verbs": rule["verbs"], "nonResourceURLs": rule["nonResourceURLs"]}));
            } else {
                resources.push(rule);
            }
        }
        Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
    }

    fn token_status(&self, token: &str) -> ApiResult<Value> {
        if token.is_empty() {
            return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
        }
        Ok(match self.authenticate(token) {
            Ok(identity) => {
                json!({"authenticated": true, "user": user_info(&identity), "audiences": [DEFAULT_AUDIENCE]})
            }
            Err(_) => json!({"user": {}, "error": "invalid bearer token"}),
        })
    }

    /// `POST serviceaccounts/NAME/token`.
    pub(super) async fn request_token(self: &Arc<Self>, req: &mut Req, served: &Arc<Served>) -> ApiResult<Response> {
        const SHORTEST: i64 = 600;
        WriteOptions::parse("CreateOptions", &req.query, &req.headers, false)?;
        // Read first: a body in protobuf, as kubectl sends it, becomes JSON by that.
        let body = req.body().await?;
        let content_type = req.header(http::header::CONTENT_TYPE).to_owned();
        codec::check_media_type(&content_type)?;
        let tree = strict::parse(&body, &content_type).map_err(|error| error.unrecognized("TokenRequest", &body))?;
        let mut request = tree.into_value();
        if !request.is_object() {
            request = json!({});
        }
        let (namespace, name) = (req.namespace().unwrap_or_default().to_owned(), req.name().to_owned());
        let account = self.store.get(&self.key(served, Some(&namespace), &name));
        let account = account.ok_or_else(|| served.not_found(&name))?;
        let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
        let refused = |error: FieldError| Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
        if seconds < SHORTEST {
            let why = "may not specify a duration less than 10 minutes";
            return refused(FieldError::invalid("spec.expirationSeconds", &json!(seconds), why));
        }
        if seconds > 1 << 32 {
            let why = "may not specify a duration larger than 2^32 seconds";
            return refused(FieldError::invalid("spec.expirationSeconds", &json!(seconds), why));
        }
        let Some(key) = &self.keys.service_accounts else {
            return Err(ApiError::new(503, "ServiceUnavailable", "this server signs no service account tokens"));
        };
        let mut subject =
            token::Subject { namespace, name: name.clone(), uid: account.index.uid.to_string(), pod: None };
        let bound = &request["spec"]["boundObjectRef"];
        if bound["kind"] == "Pod" {
            let pod_name = text(bound, "name");
            let pod = crate::builtin::Objects::get(&Stored(self), "", "pods", &subject.namespace, pod_name);
            let pod = pod.ok_or_else(|| ApiError::not_found("", "pods", pod_name))?;
            let uid = text(&pod["metadata"], "uid");
            let wanted = text(bound, "uid");
            if !wanted.is_empty() && wanted != uid {
                let why = format!(
                    "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
                );
                return Err(ApiError::conflict("", "pods", pod_name, &why));
            }
            subject.pod = Some((pod_name.to_owned(), uid.to_owned()));
        }
        let audiences: Vec<String> = request["spec"]["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let audiences = if audiences.is_empty() { vec![DEFAULT_AUDIENCE.to_owned()] } else { audiences };
        let now = self.clock.now();
        let token = key.sign(&subject.claims(&audiences, now.as_second(), seconds, &self.random));
        let token = token.map_err(|error| ApiError::internal(error.to_string()))?;
        let expiry = jiff::Timestamp::from_second(now.as_second() + seconds).unwrap_or(now);
        request["apiVersion"] = "authentication.k8s.io/v1".into();
        request["kind"] = "TokenRequest".into();
        request["metadata"] = json!({"name": name, "namespace": subject.namespace, "creationTimestamp": rfc3339(now)});
        request["spec"]["audiences"] = json!(audiences);
        request["spec"]["expirationSeconds"] = seconds.into();
        request["status"] = json!({"token": token, "expirationTimestamp": rfc3339(expiry)});
        Ok(response::json(201, &request))
    }
}
