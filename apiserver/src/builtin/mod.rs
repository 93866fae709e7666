//! The built-in kinds: their names, defaults, validation, printer columns. One `BuiltinKind` value a kind;
//! handlers know no kind by name.

pub mod metadata;
pub mod names;

mod apps;
mod autoscaling;
mod batch;
mod cluster;
mod columns;
mod config;
mod core_kinds;
mod event;
mod idle;
mod job_rules;
mod kinds;
mod label_selector;
mod limit_range;
mod pod;
mod rbac;
mod rows;
mod service;
mod storage;
mod table;
mod traffic;
mod value;
mod wire;
mod workload_status;

pub use columns::{Column, Doc};
pub(crate) use rows::since;
pub use table::all;

use crate::error::ApiResult;
use muster_api::field::FieldError;
use serde_json::{Map, Value};
use std::sync::Arc;

/// What the hooks below may know of the request besides the object.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Now, RFC 3339 to the second, as it is written into objects.
    pub now: &'a str,
    pub namespace: Option<&'a str>,
    /// `status`, `scale`, ... or empty for the main resource.
    pub subresource: &'a str,
    /// Other objects of the store, for rules that look beyond the object at hand.
    pub objects: &'a dyn Objects,
    /// A source of random numbers (name suffixes, addresses, ports).
    pub random: &'a dyn Fn() -> u64,
}

/// Read access to what is stored, as writers see it.
pub trait Objects {
    /// One object; `namespace` is empty for cluster-scoped kinds.
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;
    /// All objects of a kind; an empty `namespace` stands for all of them.
    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Arc<Value>>;
}

/// Nothing is stored: for tests and for kinds that look at nothing else.
#[derive(Clone, Copy, Debug)]
pub struct NoObjects;

impl Objects for NoObjects {
    fn get(&self, _: &str, _: &str, _: &str, _: &str) -> Option<Arc<Value>> {
        None
    }

    fn list(&self, _: &str, _: &str, _: &str) -> Vec<Arc<Value>> {
        Vec::new()
    }
}

/// Everything the API server knows of one built-in kind.
///
/// Objects are JSON values that have already passed decoding against the kind's schema, so fields present have the
/// right JSON type. The order of the calls on a create is: decode, `default`, generic metadata (name, uid, times),
/// `admit`, `prepare_create`, generic metadata validation, `validate`; on an update: decode, `default`, `admit`,
/// `prepare_update`, validation of metadata, `validate`, `validate_update`.
#[derive(Clone, Copy)]
pub struct BuiltinKind {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// Verbs in discovery, e.g. `["create", "delete", ...]`; an empty list stands for all of them. Reviews have
    /// `create` alone.
    pub verbs: &'static [&'static str],
    /// Subresources: `status`, `scale`, `log`, `binding`, `eviction`, `token`, `finalize`, `approval`, ...
    pub subresources: &'static [&'static str],
    /// Whether `metadata.generation` counts changes of spec.
    pub generation: bool,
    pub name_rule: NameRule,
    /// Where no part of Muster acts on the object, what to do instead; an event on the object says so.
    pub idle: fn(&Value) -> Option<&'static str>,
    /// Whether a deletion answers with the object rather than with a `Status`.
    pub returns_deleted: bool,
    /// Whether an update may leave out `metadata.resourceVersion`.
    pub unconditional_update: bool,
    /// Whether an update of an absent object creates it.
    pub create_on_update: bool,
    /// Whether a deletion that names no propagation policy orphans the dependents (and warns).
    pub orphan_by_default: bool,
    /// Set for a kind that is another face of a stored one.
    pub stored_as: Option<StoredAs>,
    /// Brings the object into the form in which Kubernetes writes it, and fills what it defaults.
    pub default: fn(&mut Value),
    /// Admission: what other objects decide (service accounts, priority classes, quota). The old object is given on
    /// updates. Never called for subresources other than `status`.
    pub admit: fn(&mut Value, Option<&Value>, &Context<'_>) -> ApiResult<()>,
    /// Clears what a client may not set on create (status) and sets what the server decides (job selectors, cluster
    /// IPs, pod QoS, tolerations).
    pub prepare_create: fn(&mut Value, &Context<'_>),
    /// Same on update (new, old): restores what may not change silently (status on a main-resource update; all but
    /// status on a status update).
    pub prepare_update: fn(&mut Value, &Value, &Context<'_>),
    pub validate: fn(&Value, &Context<'_>) -> Vec<FieldError>,
    /// (new, old)
    pub validate_update: fn(&Value, &Value, &Context<'_>) -> Vec<FieldError>,
    /// Warnings for the `Warning` header (new, old).
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    pub columns: &'static [Column],
    /// The cells of one object, in the order of `columns`; `now` is seconds since the epoch, for ages.
    pub row: fn(&Value, i64) -> Vec<Value>,
    /// The `conditions` of an object's table row.
    pub row_conditions: fn(&Value) -> Vec<Value>,
    /// Values for field selectors besides metadata.name and metadata.namespace; an absent label has the value "".
    pub fields: fn(&Value) -> Map<String, Value>,
    /// Words of a field selector that this kind knows (`spec.nodeName`), whatever their value.
    pub field_labels: &'static [&'static str],
    /// The grace of a deletion, in seconds, for kinds that end gracefully (pods): `None` deletes at once.
    /// Arguments: the object, the grace asked for.
    pub grace: fn(&Value, Option<i64>) -> Option<i64>,
}

/// How a kind that is another face of a stored kind is converted.
#[derive(Clone, Copy)]
pub struct StoredAs {
    pub group: &'static str,
    pub version: &'static str,
    /// From this kind's form to the stored one; sets `apiVersion`.
    pub encode: fn(&mut Value),
    /// From the stored form to this kind's; sets `apiVersion`.
    pub decode: fn(&mut Value),
}

/// How a kind's names are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain (most kinds).
    Subdomain,
    /// RFC 1123 label (namespaces).
    Label,
    /// RFC 1035 label (services).
    Label1035,
    /// One path segment (roles and bindings).
    PathSegment,
}
