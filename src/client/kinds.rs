//! The kinds that a server serves, found by any of their names, and what was typed to select objects of them.

use super::Connection;
use anyhow::{Result, bail};
use serde_json::Value;

const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// One kind of one version.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kind {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Kind {
    /// The path of the collection; of all namespaces where `namespace` is None.
    pub(crate) fn collection(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace {
            Some(namespace) if self.namespaced => format!("{root}/namespaces/{namespace}/{}", self.plural),
            _ => format!("{root}/{}", self.plural),
        }
    }

    pub(crate) fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.collection(Some(namespace)))
    }

    /// As kubectl names it: `pytorchjob.kubeflow.org`, `pod`.
    pub(crate) fn qualified(&self) -> String {
        let singular = if self.singular.is_empty() { self.kind.to_lowercase() } else { self.singular.clone() };
        if self.group.is_empty() { singular } else { format!("{singular}.{}", self.group) }
    }

    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub(crate) fn is_training_job(&self) -> bool {
        self.group == "kubeflow.org" && self.kind.ends_with("Job")
    }

    /// How well a typed name fits; lower is better.
    fn fits(&self, typed: &str) -> Option<usize> {
        let (name, group) = match typed.split_once('.') {
            Some((name, group)) => (name, Some(group)),
            None => (typed, None),
        };
        if let Some(group) = group {
            let versioned = format!("{}.{}", self.version, self.group);
            if group != self.group && group != versioned {
                return None;
            }
        }
        let is = |other: &str| other.eq_ignore_ascii_case(name);
        if is(&self.plural) || is(&self.singular) || is(&self.kind) {
            Some(0)
        } else if self.short_names.iter().any(|short| is(short)) {
            Some(1)
        } else {
            None
        }
    }
}

/// All kinds of a server, in its order of preference.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kinds(Vec<Kind>);

/// Objects that were asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Selected {
    pub(crate) kind: Kind,
    /// None: all of the kind.
    pub(crate) name: Option<String>,
}

impl Kinds {
    pub(crate) async fn discover(connection: &Connection) -> Result<Kinds> {
        let (core, groups) = tokio::try_join!(connection.get("/api", DISCOVERY), connection.get("/apis", DISCOVERY))?;
        Ok(Kinds([core, groups].iter().flat_map(parse).collect()))
    }

    pub(crate) fn find(&self, typed: &str) -> Result<&Kind> {
        let best = self
            .0
            .iter()
            .enumerate()
            .filter_map(|(i, kind)| Some((kind.fits(typed)?, i, kind)))
            .min_by_key(|b| (b.0, b.1));
        match best {
            Some((_, _, kind)) => Ok(kind),
            None => bail!("the server has no kind {typed:?}; `kubectl api-resources` lists what it has"),
        }
    }

    pub(crate) fn training_jobs(&self) -> impl Iterator<Item = &Kind> {
        self.0.iter().filter(|kind| kind.is_training_job())
    }

    /// The kind of a manifest.
    pub(crate) fn of(&self, api_version: &str, kind: &str) -> Result<&Kind> {
        match self.0.iter().find(|k| k.api_version() == api_version && k.kind == kind) {
            Some(kind) => Ok(kind),
            None => bail!(
                "the server has no kind {kind:?} in version {api_version:?}; apply its CustomResourceDefinition first"
            ),
        }
    }

    /// What `KIND NAME...`, `KIND/NAME...` or `KIND,KIND` select.
    pub(crate) fn select(&self, what: &[String]) -> Result<Vec<Selected>> {
        if what.iter().any(|w| w.contains('/')) {
            return what
                .iter()
                .map(|w| match w.split_once('/') {
                    Some((kind, name)) if !name.is_empty() && !name.contains('/') => {
                        Ok(Selected { kind: self.find(kind)?.clone(), name: Some(name.to_owned()) })
                    }
                    _ => bail!("{w:?} is not KIND/NAME; all arguments have that form as soon as one has"),
                })
                .collect();
        }
        let Some((kinds, names)) = what.split_first() else { bail!("name a kind, e.g. `pods`") };
        let mut selected = Vec::new();
        for typed in kinds.split(',') {
            let kind = self.find(typed)?;
            if names.is_empty() {
                selected.push(Selected { kind: kind.clone(), name: None });
            }
            selected.extend(names.iter().map(|name| Selected { kind: kind.clone(), name: Some(name.clone()) }));
        }
        Ok(selected)
    }

    /// As `select`, for commands that need names.
    pub(crate) fn select_named(&self, what: &[String]) -> Result<Vec<(Kind, String)>> {
        self.select(what)?
            .into_iter()
            .map(|selected| match selected.name {
                Some(name) => Ok((selected.kind, name)),
                None => bail!("name an object: {}/NAME", selected.kind.singular),
            })
            .collect()
    }
}

/// The kinds of an APIGroupDiscoveryList.
fn parse(list: &Value) -> Vec<Kind> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let strings = |value: &Value| value.as_array().map(|a| a.iter().map(text).collect()).unwrap_or_default();
    let each = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut kinds = Vec::new();
    for group in each(&list["items"]) {
        for version in each(&group["versions"]) {
            for resource in each(&version["resources"]) {
                kinds.push(Kind {
                    group: text(&group["metadata"]["name"]),
                    version: text(&version["version"]),
                    kind: text(&resource["responseKind"]["kind"]),
                    plural: text(&resource["resource"]),
                    singular: text(&resource["singularResource"]),
                    short_names: strings(&resource["shortNames"]),
                    namespaced: resource["scope"] == "Namespaced",
                    verbs: strings(&resource["verbs"]),
                });
            }
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kinds() -> Kinds {
        let resource = |plural: &str, singular: &str, kind: &str, short: &[&str]| {
            json!({"resource": plural, "singularResource": singular, "responseKind": {"kind": kind},
                   "scope": "Namespaced", "shortNames": short, "verbs": ["get"]})
        };
        let group = |name: &str, resources: Value| json!({"metadata": {"name": name}, "versions": [{"version": "v1", "resources": resources}]});
        Kinds(parse(&json!({"items": [
            group("", json!([resource("pods", "pod", "Pod", &["po"]), resource("events", "event", "Event", &["ev"])])),
            group("events.k8s.io", json!([resource("events", "event", "Event", &["ev"])])),
            group("kubeflow.org", json!([resource("pytorchjobs", "pytorchjob", "PyTorchJob", &[])])),
        ]})))
    }

    #[test]
    fn a_kind_is_found_by_each_of_its_names() {
        let kinds = kinds();
        for (typed, want) in [
            ("pods", "/api/v1/namespaces/ns/pods"),
            ("Pod", "/api/v1/namespaces/ns/pods"),
            ("po", "/api/v1/namespaces/ns/pods"),
            ("events", "/api/v1/namespaces/ns/events"),
            ("events.events.k8s.io", "/apis/events.k8s.io/v1/namespaces/ns/events"),
            ("PyTorchJob", "/apis/kubeflow.org/v1/namespaces/ns/pytorchjobs"),
            ("pytorchjobs.v1.kubeflow.org", "/apis/kubeflow.org/v1/namespaces/ns/pytorchjobs"),
        ] {
            assert_eq!(kinds.find(typed).unwrap().collection(Some("ns")), want, "{typed}");
        }
        assert!(kinds.find("cooks").unwrap_err().to_string().contains("api-resources"));
    }

    #[test]
    fn objects_are_selected_as_kubectl_does() {
        let kinds = kinds();
        let select = |what: &[&str]| -> Result<Vec<(String, Option<String>)>> {
            let what: Vec<String> = what.iter().map(|w| w.to_string()).collect();
            Ok(kinds.select(&what)?.into_iter().map(|s| (s.kind.plural, s.name)).collect())
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(select(&["pods,ev"]).unwrap(), [("pods".into(), None), ("events".into(), None)]);
        assert_eq!(select(&["pod", "a", "b"]).unwrap(), [("pods".into(), some("a")), ("pods".into(), some("b"))]);
        assert_eq!(select(&["po/a", "ev/b"]).unwrap(), [("pods".into(), some("a")), ("events".into(), some("b"))]);
        assert!(select(&["po/a", "b"]).is_err());
        assert!(select(&["po/"]).is_err());
    }
}
