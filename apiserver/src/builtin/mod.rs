//! The built-in kinds: their names, defaults, validation, printer columns. One `BuiltinKind` value a kind;
//! handlers know no kind by name.

use muster_api::field::FieldError;
use serde_json::{Map, Value};

/// A column of a kind's `Table` (what `kubectl get` prints).
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub r#type: &'static str,
    /// OpenAPI format, `name` for the name column, else empty.
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is always shown; above 0 only with `-o wide`.
    pub priority: i32,
}

/// What the hooks below may know of the request besides the object.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Now, RFC 3339 to the second, as it is written into objects.
    pub now: &'a str,
    pub namespace: Option<&'a str>,
    /// `status`, `scale`, ... or empty for the main resource.
    pub subresource: &'a str,
}

/// Everything the API server knows of one built-in kind.
///
/// Objects are JSON values that have already passed decoding against the kind's schema, so fields present have the
/// right JSON type. The order of the calls on a create is: decode, `default`, generic metadata (name, uid, times),
/// `prepare_create`, generic metadata validation, `validate`; on an update: decode, `default`, `prepare_update`,
/// validation of metadata, `validate`, `validate_update`.
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
    /// Verbs in discovery, e.g. `["create", "delete", ...]`; an empty list stands for all of them. Reviews have `create` alone.
    pub verbs: &'static [&'static str],
    /// Subresources besides those the server adds by itself: `status`, `scale`, `log`, `binding`, `eviction`, `token`, `finalize`, `approval`.
    pub subresources: &'static [&'static str],
    /// Whether `metadata.generation` counts changes of spec.
    pub generation: bool,
    /// Whether names may be any path segment (rbac) rather than DNS subdomains; see `names`.
    pub name_rule: NameRule,
    /// Fills what upstream defaults.
    pub default: fn(&mut Value),
    /// Clears what a client may not set on create (status) and sets what the server decides (e.g. job selectors, cluster IPs, pod QoS, tolerations).
    pub prepare_create: fn(&mut Value, &Context<'_>),
    /// Same on update: restores what may not change silently (status on a main-resource update; spec on a status update).
    pub prepare_update: fn(&mut Value, &Value, &Context<'_>),
    pub validate: fn(&Value, &Context<'_>) -> Vec<FieldError>,
    /// (new, old)
    pub validate_update: fn(&Value, &Value, &Context<'_>) -> Vec<FieldError>,
    /// Warnings for the `Warning` header (new, old).
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    pub columns: &'static [Column],
    /// The cells of one object, in the order of `columns`; `now` is seconds since the epoch, for ages.
    pub row: fn(&Value, i64) -> Vec<Value>,
    /// Values for field selectors besides metadata.name and metadata.namespace, as (label, value) pairs.
    pub fields: fn(&Value) -> Map<String, Value>,
    /// Words of a field selector that this kind knows (`spec.nodeName`), whatever their value.
    pub field_labels: &'static [&'static str],
    /// The grace of a deletion, in seconds, for kinds that end gracefully (pods): `None` deletes at once.
    /// Arguments: the object, the grace asked for.
    pub grace: fn(&Value, Option<i64>) -> Option<i64>,
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
