//! The kinds that are served now: the built-in ones, and those of the CustomResourceDefinitions there are.

use crate::builtin::{self, BuiltinKind};
use crate::crd::CustomKind;
use crate::error::ApiError;
use crate::schema::Schema;
use crate::store::{Draft, Index, Object};
use bytes::{Bytes, BytesMut};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// The verbs of a kind that has all of them.
pub(crate) const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The same, in the order in which discovery gives them for custom kinds.
const CUSTOM_VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// Where a served kind comes from.
#[derive(Clone)]
pub(crate) enum Source {
    Builtin(&'static BuiltinKind),
    Custom(Arc<CustomKind>),
}

/// One kind in one version, as it is served.
pub(crate) struct Served {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub subresources: Vec<String>,
    /// The store's name of the resource: `group/plural` of the kind that is stored.
    pub storage: Arc<str>,
    pub source: Source,
    prefix: Bytes,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} {}", self.group, self.version, self.kind)
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn prefix(api_version: &str, kind: &str) -> Bytes {
    let head = serde_json::json!({"kind": kind, "apiVersion": api_version}).to_string();
    let mut head = BytesMut::from(head.as_bytes());
    head.truncate(head.len() - 1);
    head.extend_from_slice(b",");
    head.freeze()
}

pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// `pods`, `deployments.apps`.
pub(crate) fn resource_name(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

impl Served {
    fn builtin(kind: &'static BuiltinKind) -> Self {
        let storage = match &kind.stored_as {
            Some(stored) => format!("{}/{}", stored.group, kind.plural),
            None => format!("{}/{}", kind.group, kind.plural),
        };
        Served {
            group: kind.group.to_owned(),
            version: kind.version.to_owned(),
            kind: kind.kind.to_owned(),
            list_kind: format!("{}List", kind.kind),
            plural: kind.plural.to_owned(),
            singular: kind.singular.to_owned(),
            short_names: strings(kind.short_names),
            categories: strings(kind.categories),
            namespaced: kind.namespaced,
            verbs: strings(if kind.verbs.is_empty() { ALL_VERBS } else { kind.verbs }),
            subresources: strings(kind.subresources),
            storage: storage.into(),
            source: Source::Builtin(kind),
            prefix: prefix(&api_version(kind.group, kind.version), kind.kind),
        }
    }

    pub(crate) fn custom(mut kind: CustomKind) -> Self {
        // Only the OpenAPI document needs the schema as it was written, and it is large.
        kind.open_api = "".into();
        let mut subresources = Vec::new();
        if kind.scale.is_some() {
            subresources.push("scale".to_owned());
        }
        if kind.status {
            subresources.push("status".to_owned());
        }
        Served {
            group: kind.group.clone(),
            version: kind.version.clone(),
            kind: kind.kind.clone(),
            list_kind: kind.list_kind.clone(),
            plural: kind.plural.clone(),
            singular: kind.singular.clone(),
            short_names: kind.short_names.clone(),
            categories: kind.categories.clone(),
            namespaced: kind.namespaced,
            verbs: strings(CUSTOM_VERBS),
            subresources,
            storage: format!("{}/{}", kind.group, kind.plural).into(),
            prefix: prefix(&api_version(&kind.group, &kind.version), &kind.kind),
            source: Source::Custom(Arc::new(kind)),
        }
    }

    pub(crate) fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    pub(crate) fn as_builtin(&self) -> Option<&'static BuiltinKind> {
        match &self.source {
            Source::Builtin(kind) => Some(kind),
            Source::Custom(_) => None,
        }
    }

    pub(crate) fn is_builtin(&self) -> bool {
        matches!(self.source, Source::Builtin(_))
    }

    pub(crate) fn schema(&self) -> Option<Arc<Schema>> {
        match &self.source {
            Source::Builtin(kind) => Schema::builtin(kind.group, kind.version, kind.kind),
            Source::Custom(kind) => Some(kind.schema.clone()),
        }
    }

    /// Where a custom kind keeps its replicas.
    pub(crate) fn custom_scale(&self) -> Option<&crate::crd::Scale> {
        match &self.source {
            Source::Builtin(_) => None,
            Source::Custom(kind) => kind.scale.as_ref(),
        }
    }

    pub(crate) fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// Whether objects are stored in another kind's form.
    fn face(&self) -> Option<&'static builtin::StoredAs> {
        self.as_builtin().and_then(|kind| kind.stored_as.as_ref())
    }

    /// The group that errors of validation name: that of the stored kind.
    pub(crate) fn stored_group(&self) -> &str {
        self.face().map_or(&self.group, |face| face.group)
    }

    /// Whether items of a list carry `apiVersion` and `kind`, as those of custom kinds do.
    pub(crate) fn typed_items(&self) -> bool {
        self.as_builtin().is_none()
    }

    /// The stored object in this kind's form.
    pub(crate) fn value(&self, object: &Object) -> Value {
        match self.face() {
            Some(face) => {
                let mut value = object.value(&api_version(face.group, face.version), &self.kind);
                (face.decode)(&mut value);
                value
            }
            None => object.value(&self.api_version(), &self.kind),
        }
    }

    /// The stored object as it is answered, with `apiVersion` and `kind`.
    pub(crate) fn json(&self, object: &Object, managers: bool) -> Bytes {
        if self.face().is_some() {
            return self.value(object).to_string().into();
        }
        let [head, tail] = object.parts(managers);
        // Their first byte is the brace that the prefix begins with.
        let (head, tail) = if head.is_empty() { (head, &tail[1..]) } else { (&head[1..], tail) };
        let mut json = BytesMut::with_capacity(self.prefix.len() + head.len() + tail.len());
        json.extend_from_slice(&self.prefix);
        json.extend_from_slice(head);
        json.extend_from_slice(tail);
        json.freeze()
    }

    /// The stored object as an item of a list.
    pub(crate) fn item_json(&self, object: &Object, managers: bool) -> Bytes {
        if self.face().is_some() {
            let mut value = self.value(object);
            if let Some(fields) = value.as_object_mut() {
                fields.remove("apiVersion");
                fields.remove("kind");
            }
            return value.to_string().into();
        }
        match object.parts(managers) {
            _ if self.typed_items() => self.json(object, managers),
            [[], _] => object.json.clone(),
            parts => parts.concat().into(),
        }
    }

    /// The object as it will be stored.
    pub(crate) fn draft(&self, value: &Value) -> Draft {
        let mut value = Cow::Borrowed(value);
        if let Some(face) = self.face() {
            (face.encode)(value.to_mut());
        }
        let index = index(&self.storage, &value);
        Draft::new(&value, index)
    }

    /// A field's value for field selectors, empty where the object has none.
    pub(crate) fn field<'a>(&self, object: &'a Object, key: &str) -> Cow<'a, str> {
        match &self.source {
            Source::Builtin(_) if self.face().is_none() => Cow::Borrowed(object.index.field(key).unwrap_or_default()),
            Source::Builtin(kind) => Cow::Owned(text_of((kind.fields)(&self.value(object)).get(key))),
            Source::Custom(kind) => Cow::Owned(text_of(kind.selectable_values(&object.bare_value()).get(key))),
        }
    }

    /// Whether a field selector may name this field; the error says what it may name.
    pub(crate) fn check_field(&self, key: &str) -> Result<(), ApiError> {
        if matches!(key, "metadata.name") || (key == "metadata.namespace" && self.namespaced) {
            return Ok(());
        }
        let (known, only_metadata) = match &self.source {
            Source::Builtin(kind) => (kind.field_labels.contains(&key), kind.field_labels.is_empty()),
            Source::Custom(kind) => (kind.selectable.iter().any(|(name, _)| name == key), false),
        };
        if known {
            return Ok(());
        }
        Err(ApiError::bad_request(if only_metadata {
            format!("{key:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
        } else {
            match self.kind.as_str() {
                "Job" => format!("field label {key:?} not supported for Job"),
                _ => format!("field label not supported: {key}"),
            }
        }))
    }

    pub(crate) fn not_found(&self, name: &str) -> ApiError {
        ApiError::not_found(&self.group, &self.plural, name)
    }

    /// The object's key in a registry on etcd, which some messages name.
    pub(crate) fn registry_key(&self, namespace: Option<&str>, name: &str) -> String {
        let resource = match (&self.source, self.plural.as_str()) {
            (Source::Custom(_), plural) => format!("{}/{plural}", self.group),
            (_, "customresourcedefinitions") => format!("{}/{}", self.group, self.plural),
            (_, "nodes") => "minions".to_owned(),
            (_, "services") => "services/specs".to_owned(),
            (_, "endpoints") => "services/endpoints".to_owned(),
            (_, "replicationcontrollers") => "controllers".to_owned(),
            (_, "ingresses") => "ingress".to_owned(),
            (_, plural) => plural.to_owned(),
        };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("/registry/{resource}/{namespace}/{name}"),
            None => format!("/registry/{resource}/{name}"),
        }
    }

    pub(crate) fn conflict(&self, name: &str) -> ApiError {
        ApiError::conflict(
            &self.group,
            &self.plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }
}

fn text_of(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// What the store keeps beside an object for selectors; `storage` is the store's name of its resource.
pub(crate) fn index(storage: &str, value: &Value) -> Index {
    let kind = builtin::all().iter().find(|kind| {
        kind.stored_as.is_none()
            && storage.strip_suffix(kind.plural).and_then(|group| group.strip_suffix('/')) == Some(kind.group)
    });
    let fields = kind.map(|kind| (kind.fields)(value)).unwrap_or_default();
    let fields = fields.iter().map(|(key, value)| (key.clone(), text_of(Some(value))));
    Index::of(value, fields.filter(|(_, value)| !value.is_empty()))
}

/// All kinds served at one moment.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// By group, version, plural.
    kinds: BTreeMap<(String, String, String), Arc<Served>>,
}

impl Catalog {
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Served>> {
        self.kinds.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.kinds.values()
    }

    pub(crate) fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Served>> {
        self.all().find(|s| s.group == group && s.version == version && s.kind == kind)
    }

    /// The groups, each with its versions, the preferred one first.
    pub(crate) fn groups(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for served in self.kinds.values() {
            let versions = groups.entry(&served.group).or_default();
            if !versions.contains(&served.version.as_str()) {
                versions.push(&served.version);
            }
        }
        for versions in groups.values_mut() {
            versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        }
        groups
    }
}

/// Orders versions as Kubernetes does: v2 before v1 before v1beta1 before v1alpha1 before anything else.
fn version_rank(version: &str) -> (u8, u64, u64, std::cmp::Reverse<String>) {
    let parsed = version.strip_prefix('v').and_then(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..digits].parse().ok()?;
        let (stability, minor) = match &rest[digits..] {
            "" => (3, ""),
            tail => match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
                (Some(minor), _) => (2, minor),
                (_, Some(minor)) => (1, minor),
                _ => return None,
            },
        };
        let minor = if minor.is_empty() { 0 } else { minor.parse().ok()? };
        Some((stability, major, minor))
    });
    let name = std::cmp::Reverse(version.to_owned());
    parsed.map_or((0, 0, 0, name.clone()), |(stability, major, minor)| (stability, major, minor, name))
}

/// Holds the catalog of the moment.
#[derive(Debug)]
pub(crate) struct Registry {
    catalog: RwLock<Arc<Catalog>>,
    /// Told of every change.
    changed: tokio::sync::watch::Sender<()>,
}

impl Registry {
    /// The built-in kinds alone.
    pub(crate) fn new() -> Self {
        let registry = Registry { catalog: RwLock::default(), changed: tokio::sync::watch::Sender::new(()) };
        registry.set_custom(Vec::new());
        registry
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces all custom kinds.
    pub(crate) fn set_custom(&self, custom: Vec<Arc<Served>>) {
        let builtin = builtin::all().iter().map(|kind| Arc::new(Served::builtin(kind)));
        let mut kinds = BTreeMap::new();
        for served in builtin.chain(custom) {
            let key = (served.group.clone(), served.version.clone(), served.plural.clone());
            kinds.entry(key).or_insert(served);
        }
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Catalog { kinds });
        self.changed.send_replace(());
    }

    /// Returns once the kind is not served any more.
    pub(crate) async fn unserved(&self, served: &Served) {
        let mut changed = self.changed.subscribe();
        while self.catalog().find(&served.group, &served.version, &served.plural).is_some() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_stability() {
        let mut versions = vec!["v1alpha1", "foo", "v1", "v2", "v1beta2", "v10", "v1beta1"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }

    #[test]
    fn selectable_fields_are_indexed() {
        let index = index("/pods", &serde_json::json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}}));
        assert!(index.field("spec.nodeName").is_none_or(|node| node == "n"));
    }
}
