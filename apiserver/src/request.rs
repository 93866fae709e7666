//! What a request asks for: the resource that its path names, the verb, the query.

use crate::error::{ApiError, ApiResult};
use percent_encoding::percent_decode_str;

/// A request's target, by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Resource(ResourcePath),
    /// Anything else: discovery, health, the version.
    Other,
}

/// The parts of a resource's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    pub group: String,
    pub version: String,
    pub namespace: Option<String>,
    pub resource: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// What follows the subresource (`/pods/x/proxy/a/b`).
    pub rest: Vec<String>,
}

impl ResourcePath {
    /// The subresource, empty for the resource itself.
    pub(crate) fn sub(&self) -> &str {
        self.subresource.as_deref().unwrap_or_default()
    }

    /// `pods/log`, as authorization names it.
    pub(crate) fn full_resource(&self) -> String {
        match &self.subresource {
            Some(sub) => format!("{}/{sub}", self.resource),
            None => self.resource.clone(),
        }
    }
}

/// Parses a path. Paths of discovery (`/apis/apps/v1`) have no resource and are [`Target::Other`].
pub(crate) fn target(path: &str) -> ApiResult<Target> {
    let mut segments = Vec::new();
    for segment in path.split('/').filter(|s| !s.is_empty()) {
        let segment = percent_decode_str(segment).decode_utf8();
        segments.push(segment.map_err(|_| ApiError::bad_request("the path is not UTF-8"))?.into_owned());
    }
    let mut segments = segments.into_iter();
    let group = match segments.next().as_deref() {
        Some("api") => Some(String::new()),
        Some("apis") => segments.next(),
        _ => None,
    };
    let (Some(group), Some(version)) = (group, segments.next()) else { return Ok(Target::Other) };
    let rest: Vec<String> = segments.collect();
    let mut path = ResourcePath { group, version, ..ResourcePath::default() };
    let mut parts = rest.into_iter();
    let Some(first) = parts.next() else { return Ok(Target::Other) };
    if first == "namespaces" {
        // `namespaces/NAME` and `namespaces/NAME/status` are about the namespace itself.
        match (parts.next(), parts.next()) {
            (None, _) => path.resource = first,
            (name, None) => {
                path.resource = first;
                path.name = name;
            }
            (name, Some(sub)) if path.group.is_empty() && matches!(sub.as_str(), "status" | "finalize") => {
                path.resource = first;
                path.name = name;
                path.subresource = Some(sub);
            }
            (namespace, Some(resource)) => {
                path.namespace = namespace;
                path.resource = resource;
                path.name = parts.next();
                path.subresource = parts.next();
            }
        }
    } else {
        path.resource = first;
        path.name = parts.next();
        path.subresource = parts.next();
    }
    path.rest = parts.collect();
    Ok(Target::Resource(path))
}

/// The parameters of a URL, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text).decode_utf8_lossy().into_owned()
        };
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| match pair.split_once('=') {
                    Some((key, value)) => (decode(key), decode(value)),
                    None => (decode(pair), String::new()),
                })
                .collect(),
        )
    }

    /// The first value of a parameter.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The first value, unless it is empty.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Whether a flag is on: present, and neither `false` nor `0`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    pub(crate) fn integer(&self, key: &str) -> ApiResult<Option<i64>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(error) => {
                let why = match error.kind() {
                    std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "value out of range",
                    _ => "invalid syntax",
                };
                Err(ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: {why}")))
            }
        }
    }
}

/// The verb of a request, as authorization knows it.
pub(crate) fn verb(method: &http::Method, named: bool, watch: bool) -> Option<&'static str> {
    Some(match (method.as_str(), named) {
        ("GET", true) => "get",
        ("GET", false) if watch => "watch",
        ("GET", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(path: &str) -> String {
        match target(path) {
            Ok(Target::Resource(p)) => format!(
                "{}/{} {} {} {} {}",
                p.group,
                p.version,
                p.namespace.as_deref().unwrap_or("-"),
                p.resource,
                p.name.as_deref().unwrap_or("-"),
                p.subresource.as_deref().unwrap_or("-")
            ),
            Ok(Target::Other) => "other".to_owned(),
            Err(error) => error.message,
        }
    }

    #[test]
    fn paths_name_resources() {
        for (path, expected) in [
            ("/api/v1/pods", "/v1 - pods - -"),
            ("/api/v1/namespaces", "/v1 - namespaces - -"),
            ("/api/v1/namespaces/a", "/v1 - namespaces a -"),
            ("/api/v1/namespaces/a/status", "/v1 - namespaces a status"),
            ("/api/v1/namespaces/a/pods", "/v1 a pods - -"),
            ("/api/v1/namespaces/a/pods/b/log", "/v1 a pods b log"),
            ("/apis/apps/v1/namespaces/a/deployments/d/scale", "apps/v1 a deployments d scale"),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "rbac.authorization.k8s.io/v1 - clusterroles system:node -",
            ),
            ("/apis/apps/v1", "other"),
            ("/apis", "other"),
            ("/api", "other"),
            ("/version", "other"),
            ("/", "other"),
            ("/api/v1/pods/%ff", "the path is not UTF-8"),
        ] {
            assert_eq!(show(path), expected, "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("labelSelector=app%3Da%2Cb+in+(c)&watch&limit=x&pretty=false"));
        assert_eq!(query.get("labelSelector"), Some("app=a,b in (c)"));
        assert!(query.flag("watch") && !query.flag("pretty") && !query.flag("absent"));
        let error = query.integer("limit").expect_err("is not a number");
        assert_eq!(error.message, "strconv.ParseInt: parsing \"x\": invalid syntax");
    }
}
