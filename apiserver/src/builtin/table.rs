//! The table of all built-in kinds.

use super::{BuiltinKind, NameRule, idle, wire};
use serde_json::{Map, Value};
use std::sync::LazyLock;

/// Every kind that the server has without a CustomResourceDefinition.
pub fn all() -> &'static [BuiltinKind] {
    static ALL: LazyLock<Vec<BuiltinKind>> = LazyLock::new(|| {
        [
            super::apps::KINDS,
            super::autoscaling::KINDS,
            super::batch::KINDS,
            super::cluster::KINDS,
            super::config::KINDS,
            super::core_kinds::KINDS,
            super::event::KINDS,
            super::kinds::KINDS,
            super::pod::KINDS,
            super::rbac::KINDS,
            super::service::KINDS,
            super::storage::KINDS,
        ]
        .concat()
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
    idle: idle::NOT_IDLE,
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_has_a_row_for_its_columns() {
        for kind in all() {
            let mut object = json!({"metadata": {"name": "a", "creationTimestamp": "2020-01-01T00:00:00Z"}});
            (kind.default)(&mut object);
            assert_eq!((kind.row)(&object, 0).len(), kind.columns.len(), "{}", kind.kind);
            let definitions = kind.column_definitions();
            for definition in definitions.as_array().unwrap() {
                assert_ne!(definition["description"], "", "{} {definition}", kind.kind);
            }
            let fields = (kind.fields)(&object);
            for label in kind.field_labels {
                assert!(fields.contains_key(*label), "{} {label}", kind.kind);
            }
        }
    }

    #[test]
    fn defaulting_twice_changes_nothing() {
        for kind in all() {
            let mut once = json!({"metadata": {"name": "a"}, "spec": {}});
            (kind.default)(&mut once);
            let mut twice = once.clone();
            (kind.default)(&mut twice);
            assert_eq!(once, twice, "{}", kind.kind);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for kind in all() {
            assert!(seen.insert((kind.group, kind.version, kind.plural)), "{}", kind.plural);
            assert_eq!(kind.singular, kind.kind.to_lowercase());
        }
    }

    #[test]
    fn hostile_objects_panic_nowhere() {
        let leaf = [json!(null), json!([]), json!({}), json!("x"), json!(-1), json!([null, 1, "x", {}, []])];
        for kind in all() {
            for value in &leaf {
                let mut object = json!({"metadata": value, "spec": value, "status": value, "rules": value,
                    "subjects": value, "data": value, "subsets": value, "endpoints": value, "webhooks": value});
                let context = super::super::Context {
                    now: "",
                    namespace: Some("n"),
                    subresource: "",
                    objects: &super::super::NoObjects,
                    random: &|| 3,
                };
                (kind.default)(&mut object);
                let _ = (kind.admit)(&mut object, None, &context);
                (kind.prepare_create)(&mut object, &context);
                let old = object.clone();
                (kind.prepare_update)(&mut object, &old, &context);
                (kind.validate)(&object, &context);
                (kind.validate_update)(&object, &old, &context);
                (kind.row)(&object, 0);
                (kind.fields)(&object);
                (kind.grace)(&object, None);
            }
        }
    }
}
