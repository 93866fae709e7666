//! The environment of a container: `env`, `envFrom`, field and resource references, `$(VAR)`. Pure; what it refers
//! to is fetched before (see `sources`).

use super::sources::Fetched;
use super::status::Address;
use crate::quantity::amount;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// What a container asks for that is not there; retried, since it may come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvError {
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { kind: &'static str, namespace: String, name: String, key: String },
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported container resource: {0}")]
    Resource(String),
}

/// What the references of a container are resolved with.
pub(crate) struct Scope<'a> {
    pub(crate) pod: &'a core::Pod,
    pub(crate) address: &'a Address,
    pub(crate) fetched: &'a Fetched,
    /// Of the node, where a container sets no limit.
    pub(crate) allocatable: &'a BTreeMap<String, i64>,
}

/// The container's variables, in order, each name once, added to `base`.
pub(crate) fn resolve(
    container: &core::Container,
    base: Vec<(String, String)>,
    scope: &Scope<'_>,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env = Env(base);
    // `$(VAR)` sees what Kubernetes defines, not what the image or the machine brings along.
    let mut visible: BTreeMap<String, String> = BTreeMap::new();
    let namespace = scope.pod.metadata.namespace.as_deref().unwrap_or_default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional, data) = if let Some(reference) = &from.config_map_ref {
            let data = scope.fetched.config_maps.get(&reference.name).and_then(Option::as_ref);
            ("configmap", &reference.name, reference.optional, data)
        } else if let Some(reference) = &from.secret_ref {
            let data = scope.fetched.secrets.get(&reference.name).and_then(Option::as_ref);
            ("secret", &reference.name, reference.optional, data)
        } else {
            continue;
        };
        match data {
            Some(data) => {
                for (key, value) in data {
                    let name = format!("{prefix}{key}");
                    if !name.is_empty() && !name.contains('=') {
                        let value = String::from_utf8_lossy(value).into_owned();
                        visible.insert(name.clone(), value.clone());
                        env.set(name, value);
                    }
                }
            }
            None if optional == Some(true) => {}
            None => return Err(EnvError::NotFound { kind, name: name.clone() }),
        }
    }
    for variable in container.env.iter().flatten() {
        let value = if let Some(value) = variable.value.as_ref().filter(|value| !value.is_empty()) {
            Some(expand(value, |name| visible.get(name).cloned()))
        } else if let Some(from) = &variable.value_from {
            reference(from, container, scope, namespace)?
        } else {
            Some(String::new())
        };
        if let Some(value) = value {
            visible.insert(variable.name.clone(), value.clone());
            env.set(variable.name.clone(), value);
        }
    }
    Ok(env.0)
}

/// Command, or arguments, with their `$(VAR)`.
pub(crate) fn expand_all(words: &[String], env: &[(String, String)]) -> Vec<String> {
    let lookup = |name: &str| env.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    words.iter().map(|word| expand(word, lookup)).collect()
}

struct Env(Vec<(String, String)>);

impl Env {
    fn set(&mut self, name: String, value: String) {
        self.0.retain(|(known, _)| *known != name);
        self.0.push((name, value));
    }
}

/// Replaces `$(NAME)` by what `lookup` knows, leaves unknown ones as they are, and makes `$$` a `$`.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

fn reference(
    from: &core::EnvVarSource,
    container: &core::Container,
    scope: &Scope<'_>,
    namespace: &str,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &from.field_ref {
        return self::field(&field.field_path, scope).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        let container = match resource.container_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => scope
                .pod
                .spec
                .iter()
                .flat_map(|spec| &spec.containers)
                .find(|c| c.name == name)
                .ok_or_else(|| EnvError::Resource(resource.resource.clone()))?,
            None => container,
        };
        return resource_value(&resource.resource, resource.divisor.as_ref(), container, scope).map(Some);
    }
    let (kind, title, name, key, optional, objects) = if let Some(r) = &from.config_map_key_ref {
        ("configmap", "ConfigMap", &r.name, &r.key, r.optional, &scope.fetched.config_maps)
    } else if let Some(r) = &from.secret_key_ref {
        ("secret", "Secret", &r.name, &r.key, r.optional, &scope.fetched.secrets)
    } else {
        return Ok(None);
    };
    let optional = optional == Some(true);
    match objects.get(name).and_then(Option::as_ref).map(|data| data.get(key)) {
        Some(Some(value)) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        _ if optional => Ok(None),
        Some(None) => {
            Err(EnvError::NoKey { kind: title, namespace: namespace.to_owned(), name: name.clone(), key: key.clone() })
        }
        None => Err(EnvError::NotFound { kind, name: name.clone() }),
    }
}

/// The value of a field path of the downward API.
pub(crate) fn field(path: &str, scope: &Scope<'_>) -> Result<String, EnvError> {
    let metadata = &scope.pod.metadata;
    let spec = scope.pod.spec.as_ref();
    let text = |value: Option<&String>| Ok(value.cloned().unwrap_or_default());
    let lines = |map: Option<&BTreeMap<String, String>>| {
        let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
        Ok(lines.join("\n"))
    };
    if let Some(key) = path.strip_prefix("metadata.labels['").and_then(|rest| rest.strip_suffix("']")) {
        return text(metadata.labels.as_ref().and_then(|labels| labels.get(key)));
    }
    if let Some(key) = path.strip_prefix("metadata.annotations['").and_then(|rest| rest.strip_suffix("']")) {
        return text(metadata.annotations.as_ref().and_then(|annotations| annotations.get(key)));
    }
    match path {
        "metadata.name" => text(metadata.name.as_ref()),
        "metadata.namespace" => text(metadata.namespace.as_ref()),
        "metadata.uid" => text(metadata.uid.as_ref()),
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" => text(spec.and_then(|s| s.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|s| s.service_account_name.as_ref())),
        "status.podIP" | "status.podIPs" => Ok(scope.address.pod_ip.clone()),
        "status.hostIP" | "status.hostIPs" => Ok(scope.address.host_ip.clone()),
        other => Err(EnvError::Field(other.to_owned())),
    }
}

/// A limit or request of a container in units of the divisor, rounded up.
pub(crate) fn resource_value(
    path: &str,
    divisor: Option<&Quantity>,
    container: &core::Container,
    scope: &Scope<'_>,
) -> Result<String, EnvError> {
    let (list, resource) = path.split_once('.').ok_or_else(|| EnvError::Resource(path.to_owned()))?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref()).and_then(|l| l.get(resource));
    let requests = resources.and_then(|r| r.requests.as_ref()).and_then(|l| l.get(resource));
    let value = match list {
        "limits" => limits,
        "requests" => requests.or(limits),
        _ => return Err(EnvError::Resource(path.to_owned())),
    };
    let value = match value {
        Some(quantity) => amount(resource, &quantity.0).unwrap_or(0),
        None if list == "limits" => scope.allocatable.get(resource).copied().unwrap_or(0),
        None => 0,
    };
    let one = if resource == "cpu" { 1000 } else { 1 };
    let divisor = divisor.and_then(|d| amount(resource, &d.0)).filter(|d| *d > 0).unwrap_or(one);
    Ok((value.div_euclid(divisor) + i64::from(value.rem_euclid(divisor) != 0)).to_string())
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
