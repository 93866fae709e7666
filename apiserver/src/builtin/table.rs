//! The table of all built-in kinds.

use super::{BuiltinKind, NameRule, wire};
use serde_json::{Map, Value};
use std::sync::LazyLock;

/// Every kind that the server has without a CustomResourceDefinition.
pub fn all() -> &'static [BuiltinKind] {
    static ALL: LazyLock<Vec<BuiltinKind>> = LazyLock::new(|| {
        let groups: [&[BuiltinKind]; 1] = [super::kinds::KINDS];
        groups.concat()
    });
    &ALL
}

/// What most kinds have in common: namespaced, all verbs, a name that is a DNS subdomain, no rules of their own.
pub(super) const BASE: BuiltinKind = BuiltinKind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: &[],
    subresources: &[],
    generation: false,
    name_rule: NameRule::Subdomain,
    acted_on: true,
    returns_deleted: false,
    unconditional_update: true,
    create_on_update: false,
    orphan_by_default: false,
    stored_as: None,
    default: wire::normalise,
    admit: |_, _, _| Ok(()),
    prepare_create: |_, _| {},
    prepare_update: |_, _, _| {},
    validate: |_, _| Vec::new(),
    validate_update: |_, _, _| Vec::new(),
    warnings: |_, _| Vec::new(),
    columns: super::rows::NAME_AGE,
    row: super::rows::name_age,
    row_conditions: |_| Vec::new(),
    fields: |_| Map::new(),
    field_labels: &[],
    grace: |_, _| None,
};

/// What kinds with a status have in common: the main resource does not write status, `/status` writes nothing else.
pub(super) const WITH_STATUS: BuiltinKind = BuiltinKind {
    subresources: &["status"],
    prepare_create: |object, _| clear_status(object),
    prepare_update: |new, old, context| keep_status(new, old, context.subresource),
    ..BASE
};

pub(super) fn clear_status(object: &mut Value) {
    if let Value::Object(fields) = object {
        fields.remove("status");
    }
}

/// Takes from the old object what the request's subresource may not change.
pub(super) fn keep_status(new: &mut Value, old: &Value, subresource: &str) {
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return };
    let mine = |key: &str| matches!(key, "apiVersion" | "kind" | "metadata");
    let restored = |key: &str| if subresource == "status" { key != "status" } else { key == "status" };
    new.retain(|key, _| mine(key) || !restored(key));
    for (key, value) in old {
        if !mine(key) && restored(key) {
            new.insert(key.clone(), value.clone());
        }
    }
}
