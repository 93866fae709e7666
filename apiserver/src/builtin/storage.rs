//! Persistent volumes, claims, storage classes.

use super::columns::{Column, Doc};
use super::metadata::IMMUTABLE;
use super::pod::validate::quantity_errors;
use super::rows::{AGE, NAME, age, name, or_unset};
use super::table::{BASE, WITH_STATUS};
use super::value::{child, entries, field, fields, fill, flag, items, list, text};
use super::{BuiltinKind, Context, idle, limit_range, wire};
use crate::schema::internal;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, PersistentVolumeSpec, PersistentVolumeStatus,
};
use k8s_openapi::api::storage::v1::StorageClass;
use muster_api::field::FieldError;
use muster_api::quantity::Quantity;
use schemars::JsonSchema;
use serde_json::{Value, json};

pub(super) const KINDS: &[BuiltinKind] = &[
    BuiltinKind {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        returns_deleted: true,
        default: |claim| {
            wire::normalise(claim);
            child(claim, "status");
            let spec = child(claim, "spec");
            child(spec, "resources");
            fill(spec, "volumeMode", "Filesystem");
        },
        prepare_create: |claim, _| {
            fields(claim).insert("status".into(), json!({"phase": "Pending"}));
            guard(claim, "kubernetes.io/pvc-protection");
        },
        admit: |claim, old, context| if old.is_none() { limit_range::claim(claim, context) } else { Ok(()) },
        validate: |claim, _| validate_claim(claim),
        validate_update: validate_claim_update,
        columns: &[
            NAME,
            Column::new("Status", Doc::Field(PersistentVolumeClaimStatus::json_schema, "phase")),
            Column::new("Volume", Doc::Field(PersistentVolumeClaimSpec::json_schema, "volumeName")),
            Column::new("Capacity", Doc::Field(PersistentVolumeClaimStatus::json_schema, "capacity")),
            Column::new("Access Modes", Doc::Field(PersistentVolumeClaimStatus::json_schema, "accessModes")),
            Column::new("StorageClass", Doc::Text("StorageClass of the pvc")),
            Column::new("VolumeAttributesClass", Doc::Text("VolumeAttributesClass of the pvc")),
            AGE,
            Column::wide("VolumeMode", Doc::Field(PersistentVolumeClaimSpec::json_schema, "volumeMode")),
        ],
        row: claim_row,
        ..WITH_STATUS
    },
    BuiltinKind {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        namespaced: false,
        returns_deleted: true,
        idle: idle::VOLUME,
        default: |volume| {
            wire::normalise(volume);
            child(volume, "status");
            let spec = child(volume, "spec");
            fill(spec, "persistentVolumeReclaimPolicy", "Retain");
            fill(spec, "volumeMode", "Filesystem");
            if let Some(path) = spec.get_mut("hostPath") {
                fill(path, "type", "");
            }
        },
        prepare_create: |volume, _| {
            fields(volume).insert("status".into(), json!({"phase": "Pending"}));
            guard(volume, "kubernetes.io/pv-protection");
        },
        validate: |volume, _| validate_volume(volume),
        columns: &[
            NAME,
            Column::new("Capacity", Doc::Field(PersistentVolumeSpec::json_schema, "capacity")),
            Column::new("Access Modes", Doc::Field(PersistentVolumeSpec::json_schema, "accessModes")),
            Column::new(
                "Reclaim Policy",
                Doc::Field(PersistentVolumeSpec::json_schema, "persistentVolumeReclaimPolicy"),
            ),
            Column::new("Status", Doc::Field(PersistentVolumeStatus::json_schema, "phase")),
            Column::new("Claim", Doc::Field(PersistentVolumeSpec::json_schema, "claimRef")),
            Column::new("StorageClass", Doc::Text("StorageClass of the pv")),
            Column::new("VolumeAttributesClass", Doc::Text("VolumeAttributesClass of the pv")),
            Column::new("Reason", Doc::Field(PersistentVolumeStatus::json_schema, "reason")),
            AGE,
            Column::wide("VolumeMode", Doc::Field(PersistentVolumeSpec::json_schema, "volumeMode")),
        ],
        row: volume_row,
        ..WITH_STATUS
    },
    BuiltinKind {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        namespaced: false,
        create_on_update: true,
        returns_deleted: true,
        idle: idle::STORAGE_CLASS,
        default: |class| {
            wire::normalise(class);
            fill(class, "reclaimPolicy", "Delete");
            fill(class, "volumeBindingMode", "Immediate");
        },
        validate: |class, _| validate_class(class),
        validate_update: validate_class_update,
        columns: &[
            NAME,
            Column::new("Provisioner", Doc::Field(StorageClass::json_schema, "provisioner")),
            Column::new("ReclaimPolicy", Doc::Field(StorageClass::json_schema, "reclaimPolicy")),
            Column::new("VolumeBindingMode", Doc::Field(StorageClass::json_schema, "volumeBindingMode")),
            Column::new("AllowVolumeExpansion", Doc::Field(StorageClass::json_schema, "allowVolumeExpansion")),
            AGE,
        ],
        row: |class, now| {
            let default = "storageclass.kubernetes.io/is-default-class";
            let is_default = class.pointer("/metadata/annotations").is_some_and(|a| field(a, default) == "true");
            let name = text(class, "/metadata/name");
            vec![
                if is_default { format!("{name} (default)").into() } else { name.into() },
                field(class, "provisioner").into(),
                field(class, "reclaimPolicy").into(),
                field(class, "volumeBindingMode").into(),
                flag(class, "/allowVolumeExpansion").into(),
                age(class, now),
            ]
        },
        ..BASE
    },
];

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const CLAIM_FROZEN: &str =
    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

/// Adds the finalizer that keeps an object from going while it is in use.
fn guard(object: &mut Value, finalizer: &str) {
    let metadata = child(object, "metadata");
    let mut finalizers = items(metadata, "finalizers").to_vec();
    if !finalizers.iter().any(|f| f == finalizer) {
        finalizers.push(finalizer.into());
    }
    fields(metadata).insert("finalizers".into(), finalizers.into());
}

fn modes(spec: &Value, errors: &mut Vec<FieldError>) {
    let modes = items(spec, "accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
    }
    for mode in modes {
        if !MODES.contains(&mode.as_str().unwrap_or_default()) {
            errors.push(FieldError::not_supported("spec.accessModes", mode, &MODES));
        }
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden("spec.accessModes", why));
    }
    let mode = field(spec, "volumeMode");
    if !["Block", "Filesystem"].contains(&mode) {
        let value = Value::from(mode);
        errors.push(FieldError::not_supported("spec.volumeMode", &value, &["Block", "Filesystem"]));
    }
}

fn validate_claim(claim: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = json!({});
    let spec = claim.get("spec").unwrap_or(&empty);
    modes(spec, &mut errors);
    match spec.pointer("/resources/requests/storage") {
        None => errors.push(FieldError::required("spec.resources[storage]", "")),
        Some(size) => {
            let path = "spec.resources[storage]";
            if size.as_str().and_then(|s| s.parse::<Quantity>().ok()).is_none_or(|q| q <= Quantity::ZERO) {
                errors.push(FieldError::invalid(path, size, "must be greater than zero"));
            }
        }
    }
    errors
}

fn validate_claim_update(new: &Value, old: &Value, context: &Context<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if context.subresource == "status" {
        return errors;
    }
    let bound = text(old, "/status/phase") == "Bound";
    let size =
        |claim: &Value| text(claim, "/spec/resources/requests/storage").parse::<Quantity>().unwrap_or(Quantity::ZERO);
    let mut munged = new.get("spec").cloned().unwrap_or_else(|| json!({}));
    let old_spec = old.get("spec").cloned().unwrap_or_else(|| json!({}));
    if field(&old_spec, "volumeName").is_empty() {
        // Binding fills this in.
        match old_spec.get("volumeName") {
            Some(name) => fields(&mut munged).insert("volumeName".into(), name.clone()),
            None => fields(&mut munged).remove("volumeName"),
        };
    }
    if bound {
        for key in ["resources", "volumeAttributesClassName"] {
            match old_spec.get(key) {
                Some(value) => fields(&mut munged).insert(key.into(), value.clone()),
                None => fields(&mut munged).remove(key),
            };
        }
    }
    if munged != old_spec {
        let shown = internal::diff("core.PersistentVolumeClaimSpec", &old_spec, &munged);
        errors.push(FieldError::forbidden("spec", format!("{CLAIM_FROZEN}\n{shown}")));
    } else if size(new) < size(old) {
        errors.push(FieldError::forbidden(
            "spec.resources.requests.storage",
            "field can not be less than status.capacity",
        ));
    }
    errors
}

fn validate_volume(volume: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = json!({});
    let spec = volume.get("spec").unwrap_or(&empty);
    modes(spec, &mut errors);
    let capacity: Vec<_> = entries(spec, "capacity").collect();
    if capacity.is_empty() {
        errors.push(FieldError::required("spec.capacity", ""));
    } else if spec.pointer("/capacity/storage").is_none() || capacity.len() > 1 {
        let value = spec.get("capacity").unwrap_or(&Value::Null);
        errors.push(FieldError::not_supported("spec.capacity", value, &["storage"]));
    }
    for (resource, amount) in capacity {
        quantity_errors(resource, amount, &format!("spec.capacity[{resource}]"), &mut errors);
    }
    let policy = field(spec, "persistentVolumeReclaimPolicy");
    let policies = ["Delete", "Recycle", "Retain"];
    if !policies.contains(&policy) {
        errors.push(FieldError::not_supported("spec.persistentVolumeReclaimPolicy", &Value::from(policy), &policies));
    }
    errors
}

fn validate_class(class: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if field(class, "provisioner").is_empty() {
        errors.push(FieldError::required("provisioner", ""));
    }
    for (key, supported) in
        [("reclaimPolicy", ["Delete", "Retain"]), ("volumeBindingMode", ["Immediate", "WaitForFirstConsumer"])]
    {
        let value = field(class, key);
        if !supported.contains(&value) {
            errors.push(FieldError::not_supported(key, &Value::from(value), &supported));
        }
    }
    errors
}

fn validate_class_update(new: &Value, old: &Value, _: &Context<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for key in ["parameters", "provisioner", "reclaimPolicy"] {
        if new.get(key) != old.get(key) {
            errors.push(FieldError::forbidden(key, format!("updates to {key} are forbidden.")));
        }
    }
    if new.get("volumeBindingMode") != old.get("volumeBindingMode") {
        let value = new.get("volumeBindingMode").unwrap_or(&Value::Null);
        errors.push(FieldError::invalid("volumeBindingMode", value, IMMUTABLE));
    }
    errors
}

fn mode_names(modes: &[Value]) -> String {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => Some("RWO"),
        "ReadOnlyMany" => Some("ROX"),
        "ReadWriteMany" => Some("RWX"),
        "ReadWriteOncePod" => Some("RWOP"),
        _ => None,
    };
    modes.iter().filter_map(|m| short(m.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
}

fn phase(object: &Value) -> String {
    match object.pointer("/metadata/deletionTimestamp") {
        Some(_) => "Terminating".to_owned(),
        None => text(object, "/status/phase").to_owned(),
    }
}

fn claim_row(claim: &Value, now: i64) -> Vec<Value> {
    // The node's folders are no volumes with a name.
    let bound = !text(claim, "/spec/volumeName").is_empty() || text(claim, "/status/phase") == "Bound";
    let (capacity, modes) = if bound {
        (text(claim, "/status/capacity/storage").to_owned(), mode_names(list(claim, "/status/accessModes")))
    } else {
        Default::default()
    };
    vec![
        name(claim),
        phase(claim).into(),
        text(claim, "/spec/volumeName").into(),
        capacity.into(),
        modes.into(),
        text(claim, "/spec/storageClassName").into(),
        or_unset(text(claim, "/spec/volumeAttributesClassName")),
        age(claim, now),
        or_unset(text(claim, "/spec/volumeMode")),
    ]
}

fn volume_row(volume: &Value, now: i64) -> Vec<Value> {
    let claim = match text(volume, "/spec/claimRef/name") {
        "" => String::new(),
        claim => format!("{}/{claim}", text(volume, "/spec/claimRef/namespace")),
    };
    vec![
        name(volume),
        text(volume, "/spec/capacity/storage").into(),
        mode_names(list(volume, "/spec/accessModes")).into(),
        text(volume, "/spec/persistentVolumeReclaimPolicy").into(),
        phase(volume).into(),
        claim.into(),
        text(volume, "/spec/storageClassName").into(),
        or_unset(text(volume, "/spec/volumeAttributesClassName")),
        text(volume, "/status/reason").into(),
        age(volume, now),
        or_unset(text(volume, "/spec/volumeMode")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::NoObjects;

    #[test]
    fn claims() {
        let context = Context { now: "", namespace: Some("n"), subresource: "", objects: &NoObjects, random: &|| 7 };
        let errors: Vec<String> =
            validate_claim(&json!({"spec": {"volumeMode": "Filesystem"}})).iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value"
            ]
        );
        let old = json!({"spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
            "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Bound"}});
        assert_eq!(validate_claim(&old), []);
        let mut new = old.clone();
        new["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
        assert_eq!(validate_claim_update(&new, &old, &context), []);
        new["spec"]["accessModes"] = json!(["ReadWriteMany"]);
        assert_eq!(validate_claim_update(&new, &old, &context)[0].field, "spec");
    }
}
