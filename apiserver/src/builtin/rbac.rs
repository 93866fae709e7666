//! Roles and bindings, and the roles that every cluster has.

use super::columns::{Column, Doc};
use super::rows::{AGE, NAME, age, name};
use super::table::BASE;
use super::value::{field, fields, fill, items, items_mut};
use super::{BuiltinKind, NameRule, wire};
use crate::schema::internal;
use k8s_openapi::api::rbac::v1::RoleBinding;
use muster_api::field::FieldError;
use schemars::JsonSchema;
use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";
const RBAC: BuiltinKind =
    BuiltinKind { group: GROUP, name_rule: NameRule::PathSegment, create_on_update: true, ..BASE };
const ROLE: BuiltinKind = BuiltinKind {
    default: |role| {
        wire::normalise(role);
        fill(role, "rules", Value::Null);
    },
    validate: |role, context| validate_role(role, context.namespace.is_some()),
    ..RBAC
};
const BINDING: BuiltinKind = BuiltinKind {
    default: default_binding,
    validate: |binding, context| validate_binding(binding, context.namespace.is_some()),
    validate_update: |new, old, _| {
        if new.get("roleRef") == old.get("roleRef") {
            return Vec::new();
        }
        let role = new.get("roleRef").unwrap_or(&Value::Null);
        vec![internal::invalid("roleRef", "rbac.RoleRef", role, "cannot change roleRef")]
    },
    columns: &[
        NAME,
        Column::new("Role", Doc::Field(RoleBinding::json_schema, "roleRef")),
        AGE,
        Column::wide("Users", Doc::Text("Users in the roleBinding")),
        Column::wide("Groups", Doc::Text("Groups in the roleBinding")),
        Column::wide("ServiceAccounts", Doc::Text("ServiceAccounts in the roleBinding")),
    ],
    row: binding_row,
    ..RBAC
};

pub(super) const KINDS: &[BuiltinKind] = &[
    BuiltinKind {
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        namespaced: false,
        columns: &[
            NAME,
            Column::new("Role", Doc::Field(k8s_openapi::api::rbac::v1::ClusterRoleBinding::json_schema, "roleRef")),
            AGE,
            Column::wide("Users", Doc::Text("Users in the clusterRoleBinding")),
            Column::wide("Groups", Doc::Text("Groups in the clusterRoleBinding")),
            Column::wide("ServiceAccounts", Doc::Text("ServiceAccounts in the clusterRoleBinding")),
        ],
        ..BINDING
    },
    BuiltinKind { kind: "ClusterRole", plural: "clusterroles", singular: "clusterrole", namespaced: false, ..ROLE },
    BuiltinKind { kind: "RoleBinding", plural: "rolebindings", singular: "rolebinding", ..BINDING },
    BuiltinKind { kind: "Role", plural: "roles", singular: "role", ..ROLE },
];

fn default_binding(binding: &mut Value) {
    wire::normalise(binding);
    if let Some(role) = binding.get_mut("roleRef") {
        fill(role, "apiGroup", GROUP);
    }
    for subject in items_mut(binding, "subjects") {
        match field(subject, "kind") {
            "User" | "Group" => fill(subject, "apiGroup", GROUP),
            // The core group is written by leaving it out.
            "ServiceAccount" if field(subject, "apiGroup").is_empty() => {
                fields(subject).remove("apiGroup");
            }
            _ => {}
        }
    }
}

fn validate_role(role: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, rule) in items(role, "rules").iter().enumerate() {
        let path = format!("rules[{i}]");
        if items(rule, "verbs").is_empty() {
            errors.push(FieldError::required(format!("{path}.verbs"), "verbs must contain at least one value"));
        }
        if !items(rule, "nonResourceURLs").is_empty() {
            let value = &rule["nonResourceURLs"];
            let path = format!("{path}.nonResourceURLs");
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(path, value, why));
            } else if ["apiGroups", "resources", "resourceNames"].iter().any(|k| !items(rule, k).is_empty()) {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(path, value, why));
            }
            continue;
        }
        for (key, why) in [
            ("apiGroups", "resource rules must supply at least one api group"),
            ("resources", "resource rules must supply at least one resource"),
        ] {
            if items(rule, key).is_empty() {
                errors.push(FieldError::required(format!("{path}.{key}"), why));
            }
        }
    }
    errors
}

fn validate_binding(binding: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = json!({});
    let role = binding.get("roleRef").unwrap_or(&empty);
    if field(role, "apiGroup") != GROUP {
        let value = Value::from(field(role, "apiGroup"));
        errors.push(FieldError::not_supported("roleRef.apiGroup", &value, &[GROUP]));
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&field(role, "kind")) {
        errors.push(FieldError::not_supported("roleRef.kind", &Value::from(field(role, "kind")), kinds));
    }
    if field(role, "name").is_empty() {
        errors.push(FieldError::required("roleRef.name", ""));
    }
    for (i, subject) in items(binding, "subjects").iter().enumerate() {
        let path = format!("subjects[{i}]");
        if field(subject, "name").is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        let kind = field(subject, "kind");
        match kind {
            "ServiceAccount" if namespaced || !field(subject, "namespace").is_empty() => {}
            "ServiceAccount" => errors.push(FieldError::required(format!("{path}.namespace"), "")),
            "User" | "Group" => {
                if field(subject, "apiGroup") != GROUP {
                    let value = Value::from(field(subject, "apiGroup"));
                    errors.push(FieldError::not_supported(format!("{path}.apiGroup"), &value, &[GROUP]));
                }
            }
            _ => {
                let supported = ["ServiceAccount", "User", "Group"];
                errors.push(FieldError::not_supported(format!("{path}.kind"), &Value::from(kind), &supported));
            }
        }
    }
    errors
}

fn binding_row(binding: &Value, now: i64) -> Vec<Value> {
    let empty = json!({});
    let role = binding.get("roleRef").unwrap_or(&empty);
    let of = |kind: &str| -> Value {
        let subjects = items(binding, "subjects").iter().filter(|s| field(s, "kind") == kind);
        let names = subjects.map(|s| match (kind, field(s, "namespace")) {
            ("ServiceAccount", namespace) => format!("{namespace}/{}", field(s, "name")),
            _ => field(s, "name").to_owned(),
        });
        names.collect::<Vec<_>>().join(", ").into()
    };
    let role = format!("{}/{}", field(role, "kind"), field(role, "name"));
    vec![name(binding), role.into(), age(binding, now), of("User"), of("Group"), of("ServiceAccount")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals() {
        let role = json!({"rules": [{"apiGroups": [""], "resources": ["pods"]}, {"verbs": ["get"], "nonResourceURLs": ["/x"]}]});
        let paths = |errors: Vec<FieldError>| errors.into_iter().map(|e| e.field).collect::<Vec<_>>();
        assert_eq!(paths(validate_role(&role, true)), ["rules[0].verbs", "rules[1].nonResourceURLs"]);
        let mut binding = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}, {"kind": "Robot", "name": "x"}]});
        default_binding(&mut binding);
        assert_eq!(
            paths(validate_binding(&binding, false)),
            ["roleRef.kind", "subjects[1].namespace", "subjects[2].kind"]
        );
        assert_eq!(paths(validate_binding(&binding, true)), ["subjects[2].kind"]);
    }
}
