//! Server-side apply, and the tracking of who set what by other writes.

use super::fields::{Element, Set, print_path};
use super::managed::{Entry, Managed, Manager, strip, take};
use super::walk;
use crate::error::{ApiError, ApiResult};
use crate::schema::{Schema, View};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub use super::managed::keep_times;

/// A write, as far as managed fields are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// `fieldManager` of the request; the server derives one from the user agent where it is absent.
    pub manager: &'a str,
    /// Empty for the main resource.
    pub subresource: &'a str,
    /// Now, RFC 3339 to the second.
    pub now: &'a str,
    /// Fields that this write cannot set (`status` of the main resource, `spec` of a status).
    pub reset: &'a [&'a [&'a str]],
}

/// Fields that writes cannot set: `status` through the main resource, where the kind has a status subresource, and
/// `spec` through the status subresource.
pub fn reset_fields(subresource: &str, has_status: bool) -> &'static [&'static [&'static str]] {
    match subresource {
        "status" => &[&["spec"]],
        _ if has_status => &[&["status"]],
        _ => &[],
    }
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const MAX_UPDATERS: usize = 10;
const FORGOTTEN: &str = "ancient-changes";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Records in `new` which fields this create (`old` is `None`) or update sets. `new` is decoded and defaulted, but no
/// admission step or server decision has touched it; `old` is the object as stored.
pub fn track_update(schema: &Schema, old: Option<&Value>, new: &mut Value, operation: &Operation<'_>) {
    let managed = managed_of(old, new, operation.subresource);
    let fresh = old.is_none();
    take(new);
    let managed = if managed.0.is_empty() && !fresh {
        // An object that nobody's fields are known of stays so until somebody applies to it.
        managed
    } else {
        // That the managed fields of the old object count as removed harms nobody: no manager has them.
        let empty = if fresh { empty_like(schema, new) } else { Value::Null };
        update(schema, old.unwrap_or(&empty), new, managed, operation)
    };
    managed.encode(new);
    if let Some(old) = old {
        keep_times(old, new);
    }
}

/// The managers to start from: those that the request brings along, else those of the stored object.
fn managed_of(old: Option<&Value>, new: &Value, subresource: &str) -> Managed {
    let stored = || old.and_then(Managed::decode).unwrap_or_default();
    if !subresource.is_empty() {
        return stored();
    }
    if Managed::is_reset(new) {
        return Managed::default();
    }
    match Managed::decode(new) {
        Some(managed) if !managed.0.is_empty() => managed,
        _ => stored(),
    }
}

/// What the kind's object is before anything is set, with the type of the given one.
fn empty_like(schema: &Schema, object: &Value) -> Value {
    let mut empty = schema.zero();
    for name in ["apiVersion", "kind"] {
        if let Some(value) = object.get(name) {
            empty[name] = value.clone();
        }
    }
    empty
}

fn api_version(object: &Value) -> String {
    object.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn manager_of(operation: &Operation<'_>, applied: bool, version: &str) -> Manager {
    Manager {
        name: if operation.manager.is_empty() { "unknown".to_owned() } else { operation.manager.to_owned() },
        applied,
        api_version: if applied { String::new() } else { version.to_owned() },
        subresource: operation.subresource.to_owned(),
    }
}

fn reset_set(operation: &Operation<'_>) -> Set {
    let mut set = Set::default();
    for path in operation.reset {
        set.add(Set::of_fields(path));
    }
    set
}

/// Takes out the fields that never belong to a manager.
fn strip_unmanaged(set: &mut Set) {
    set.remove_fields(&["apiVersion", "kind", "metadata"]);
    set.change_below("metadata", |metadata| {
        metadata.remove_fields(&[
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "clusterName",
            "generation",
            "managedFields",
            "resourceVersion",
        ]);
    });
}

/// The managers after a write that made `new` out of `live`.
fn update(schema: &Schema, live: &Value, new: &Value, managed: Managed, operation: &Operation<'_>) -> Managed {
    let version = api_version(new);
    let view = schema.root();
    let reset = reset_set(operation);
    let compared = walk::compare(view, live, new).without(&reset);
    let mut managed = managed;
    take_fields(&mut managed, &compared, None);
    let mut set = compared.modified.union(compared.added);
    strip_unmanaged(&mut set);
    if !set.is_empty() {
        let manager = manager_of(operation, false, &version);
        let before = managed.0.remove(&manager).map(|entry| entry.set).unwrap_or_default();
        let time = Some(operation.now.to_owned());
        managed.0.insert(manager, Entry { set: set.union(before), api_version: version, time });
    }
    cap(&mut managed);
    managed
}

/// Takes changed and removed fields from all managers but one.
fn take_fields(managed: &mut Managed, compared: &walk::Comparison, except: Option<&Manager>) {
    for (manager, entry) in &mut managed.0 {
        if Some(manager) != except {
            for changed in [&compared.modified, &compared.added, &compared.removed] {
                entry.set = std::mem::take(&mut entry.set).difference(changed);
            }
        }
    }
    managed.0.retain(|_, entry| !entry.set.is_empty());
}

/// Keeps the number of updaters bounded: the oldest of a version become one.
fn cap(managed: &mut Managed) {
    let mut updaters: Vec<(String, Manager)> = managed
        .0
        .iter()
        .filter(|(manager, _)| !manager.applied)
        .map(|(manager, entry)| (entry.time.clone().unwrap_or_default(), manager.clone()))
        .collect();
    updaters.sort();
    let mut count = updaters.len();
    let mut first_of: BTreeMap<String, Manager> = BTreeMap::new();
    for (_, manager) in updaters {
        if count <= MAX_UPDATERS {
            break;
        }
        let Some(entry) = managed.0.get(&manager).cloned() else { continue };
        let version = entry.api_version.clone();
        let Some(first) = first_of.get(&version) else {
            first_of.insert(version, manager);
            continue;
        };
        let bucket =
            Manager { name: FORGOTTEN.to_owned(), applied: false, api_version: version, subresource: String::new() };
        if !managed.0.contains_key(&bucket) {
            if let Some(oldest) = managed.0.remove(first) {
                managed.0.insert(bucket.clone(), oldest);
            }
        }
        if manager != bucket {
            managed.0.remove(&manager);
        }
        if let Some(together) = managed.0.get_mut(&bucket) {
            together.set.add(entry.set);
            together.time = entry.time;
        }
        count -= 1;
    }
}

/// Applies a configuration to the live object (`None`: it is created). The answer is the merged object with its managed
/// fields, still to be decoded, defaulted and validated; a conflict is a 409 with its causes. `config` is the body as
/// sent. Where nothing changes the answer equals `live`.
pub fn apply(
    schema: &Schema,
    live: Option<&Value>,
    config: &Value,
    operation: &Operation<'_>,
    force: bool,
) -> ApiResult<Value> {
    if config.pointer("/metadata/managedFields").is_some_and(|v| !v.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let view = schema.root();
    let wrong = walk::check(view, config);
    if !wrong.is_empty() {
        return Err(ApiError::bad_request(format!(
            "failed to create typed patch object ({}): {}",
            describe(config),
            if let [one] = wrong.as_slice() { one.clone() } else { format!("errors:\n  {}", wrong.join("\n  ")) }
        )));
    }
    let mut managed = match live {
        Some(live) => Managed::decode(live).unwrap_or_default(),
        None => Managed::default(),
    };
    let current = live.map(strip).unwrap_or_else(|| empty_like(schema, config));
    if managed.0.is_empty() && live.is_some() {
        let before = Operation { manager: BEFORE_FIRST_APPLY, ..*operation };
        managed = update(schema, &empty_like(schema, config), &current, managed, &before);
    }
    let outcome = match apply_once(view, &current, config, managed.clone(), operation, force) {
        Err(conflicts) if operation.manager == "kubectl" => {
            let allowed = last_applied_set(view, &current, config);
            let left: Vec<Conflict> = conflicts.into_iter().filter(|c| !allowed.has(&c.path)).collect();
            if left.is_empty() && !allowed.is_empty() {
                apply_once(view, &current, config, managed, operation, true)
            } else {
                Err(left)
            }
        }
        outcome => outcome,
    };
    let (mut object, managed) = outcome.map_err(|conflicts| conflict_error(&conflicts))?;
    if operation.manager == "kubectl" {
        renew_last_applied(&mut object, config);
    }
    managed.encode(&mut object);
    if let Some(live) = live {
        keep_times(live, &mut object);
    }
    Ok(object)
}

/// `ns/name; apps/v1, Kind=Deployment`.
fn describe(config: &Value) -> String {
    let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let version = text("/apiVersion");
    // The core group has no name.
    let group = if version.contains('/') { "" } else { "/" };
    format!("{}/{}; {group}{version}, Kind={}", text("/metadata/namespace"), text("/metadata/name"), text("/kind"))
}

#[derive(Debug)]
struct Conflict {
    manager: Manager,
    path: Vec<Element>,
}

fn apply_once(
    view: View<'_>,
    live: &Value,
    config: &Value,
    mut managed: Managed,
    operation: &Operation<'_>,
    force: bool,
) -> Result<(Value, Managed), Vec<Conflict>> {
    let version = api_version(config);
    let manager = manager_of(operation, true, &version);
    let reset = reset_set(operation);
    let merged = walk::merge(view, Some(live), Some(config)).unwrap_or_else(|| json!({}));
    let set = walk::field_set(view, config).recursive_difference(&reset);
    let before = managed.0.get(&manager).cloned();
    let time = before.as_ref().and_then(|entry| entry.time.clone());
    managed.0.insert(manager.clone(), Entry { set, api_version: version, time });
    let object = match before {
        Some(before) if !before.set.is_empty() => prune(view, merged, &managed, &before.set),
        _ => merged,
    };
    let compared = walk::compare(view, live, &object).without(&reset);
    let changed = compared.modified.clone().union(compared.added.clone());
    let mut conflicts = Vec::new();
    for (other, entry) in managed.0.iter().filter(|(other, _)| **other != manager) {
        let paths = entry.set.intersection(&changed).paths();
        conflicts.extend(paths.into_iter().map(|path| Conflict { manager: other.clone(), path }));
    }
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    take_fields(&mut managed, &compared, Some(&manager));
    if let Some(entry) = managed.0.get_mut(&manager) {
        strip_unmanaged(&mut entry.set);
        if object != *live {
            entry.time = Some(operation.now.to_owned());
        }
    }
    managed.0.retain(|_, entry| !entry.set.is_empty());
    Ok((object, managed))
}

/// Removes what the manager applied before and does not apply now, unless somebody else manages it.
fn prune(view: View<'_>, merged: Value, managed: &Managed, before: &Set) -> Value {
    let named = |set: &Set| walk::with_named_fields(view, set);
    let fields = |value: &Value| named(&walk::field_set(view, value));
    let last = named(before);
    let pruned = walk::remove(view, &merged, &last);
    // Give back what is managed now, by anybody.
    let mut owned = Set::default();
    for entry in managed.0.values() {
        owned.add(entry.set.clone());
    }
    let merged_set = fields(&merged);
    let kept = fields(&pruned).union(named(&owned));
    let pruned = walk::remove(view, &merged, &merged_set.clone().difference(&kept));
    // Give back what nobody manages: only what was applied before may go.
    let gone = merged_set.difference(&fields(&pruned)).intersection(&last);
    match walk::remove(view, &merged, &gone) {
        Value::Null => json!({}),
        value => value,
    }
}

/// The fields that `kubectl apply` without server side set and that are still so: kubectl may take them over.
fn last_applied_set(view: View<'_>, live: &Value, config: &Value) -> Set {
    let annotation = live.pointer("/metadata/annotations").and_then(|a| a.get(LAST_APPLIED)).and_then(Value::as_str);
    let last: Option<Value> = annotation.and_then(|text| serde_json::from_str(text).ok());
    match last {
        Some(last) if last.is_object() && api_version(&last) == api_version(config) => {
            let compared = walk::compare(view, &last, live);
            let differing = compared.modified.union(compared.added).union(compared.removed);
            walk::field_set(view, &last).difference(&differing)
        }
        _ => Set::default(),
    }
}

/// Keeps kubectl's own record of what was applied, where the object has one.
fn renew_last_applied(object: &mut Value, config: &Value) {
    let annotations = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    let Some(annotations) = annotations else { return };
    if annotations.get(LAST_APPLIED).and_then(Value::as_str).is_none_or(str::is_empty) {
        return;
    }
    let mut applied = config.clone();
    if let Some(metadata) = applied.get_mut("metadata").and_then(Value::as_object_mut) {
        if let Some(own) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            own.remove(LAST_APPLIED);
        }
        if metadata.get("annotations").and_then(Value::as_object).is_some_and(|own| own.is_empty()) {
            metadata.remove("annotations");
        }
    }
    annotations.insert(LAST_APPLIED.to_owned(), format!("{applied}\n").into());
}

/// The 409 of conflicting managers.
fn conflict_error(conflicts: &[Conflict]) -> ApiError {
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|conflict| {
            json!({
                "reason": "FieldManagerConflict",
                "message": format!("conflict with {}", conflict.manager.print()),
                "field": print_path(&conflict.path),
            })
        })
        .collect();
    let message = if let [only] = conflicts {
        format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager.print(), print_path(&only.path))
    } else {
        let mut lines = Vec::new();
        let mut last: Option<&Manager> = None;
        for conflict in conflicts {
            if last != Some(&conflict.manager) {
                lines.push(format!("conflicts with {}:", conflict.manager.print()));
                last = Some(&conflict.manager);
            }
            lines.push(format!("- {}", print_path(&conflict.path)));
        }
        format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
    };
    ApiError::new(409, "Conflict", message).with_details(json!({"causes": causes}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::arbitrary;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn config_maps() -> Arc<Schema> {
        Schema::builtin("", "v1", "ConfigMap").expect("config maps are built in")
    }

    fn map(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
    }

    fn operation<'a>(manager: &'a str, now: &'a str) -> Operation<'a> {
        Operation { manager, subresource: "", now, reset: &[] }
    }

    fn entry<'a>(object: &'a Value, manager: &str) -> &'a Value {
        object["metadata"]["managedFields"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["manager"] == manager)
            .unwrap_or(&Value::Null)
    }

    #[test]
    fn appliers_share_conflict_force_and_give_up() {
        let schema = config_maps();
        let one = operation("one", "t1");
        let two = operation("two", "t2");
        let first = apply(&schema, None, &map(json!({"a": "1", "b": "2"})), &one, false).expect("created");
        assert_eq!(entry(&first, "one")["fieldsV1"], json!({"f:data": {"f:a": {}, "f:b": {}}}));
        let later = operation("one", "t9");
        let again = apply(&schema, Some(&first), &map(json!({"a": "1", "b": "2"})), &later, false).expect("no-op");
        assert_eq!(again, first);

        let shared = apply(&schema, Some(&first), &map(json!({"a": "1"})), &two, false).expect("shares a");
        assert_eq!(entry(&shared, "two")["fieldsV1"], json!({"f:data": {"f:a": {}}}));
        assert_eq!(entry(&shared, "two")["time"], Value::Null);

        let error = apply(&schema, Some(&shared), &map(json!({"a": "9"})), &two, false).expect_err("conflicts");
        assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"one\": .data.a");
        let third = operation("three", "t3");
        let error = apply(&schema, Some(&shared), &map(json!({"a": "9", "b": "8"})), &third, false).expect_err("3");
        assert_eq!(
            error.message,
            "Apply failed with 3 conflicts: conflicts with \"one\":\n- .data.a\n- .data.b\nconflicts with \"two\":\n- .data.a"
        );

        let forced = apply(&schema, Some(&shared), &map(json!({"a": "9"})), &two, true).expect("forced");
        assert_eq!(entry(&forced, "one")["fieldsV1"], json!({"f:data": {"f:b": {}}}));
        assert_eq!(forced["data"], json!({"a": "9", "b": "2"}));

        let given_up = apply(&schema, Some(&forced), &map(json!({"a": "9"})), &one, false).expect("gives up b");
        assert_eq!(given_up["data"], json!({"a": "9"}));
    }

    #[test]
    fn other_writers_take_fields_over() {
        let schema = config_maps();
        let applied = apply(&schema, None, &map(json!({"x": "1"})), &operation("one", "t1"), false).expect("created");
        let mut patched = applied.clone();
        patched["data"]["x"] = "2".into();
        track_update(&schema, Some(&applied), &mut patched, &operation("patcher", "t2"));
        assert_eq!(entry(&patched, "patcher")["fieldsV1"], json!({"f:data": {"f:x": {}}}));
        assert_eq!(entry(&patched, "one"), &Value::Null);
        let error = apply(&schema, Some(&patched), &map(json!({"x": "3"})), &operation("one", "t3"), false);
        assert_eq!(
            error.expect_err("conflict").message,
            "Apply failed with 1 conflict: conflict with \"patcher\" using v1: .data.x"
        );
    }

    #[test]
    fn creation_is_compared_with_the_zero_object() {
        let schema = Schema::builtin("", "v1", "Pod").expect("pods are built in");
        let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}]}], "securityContext": {}}});
        let mut pod = schema.decode_value(body).expect("decodes").value;
        let operation = Operation { reset: reset_fields("", true), ..operation("m", "t") };
        track_update(&schema, None, &mut pod, &operation);
        assert_eq!(
            entry(&pod, "m")["fieldsV1"],
            json!({
                "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                "f:spec": {
                    "f:containers": {"k:{\"name\":\"c\"}": {
                        ".": {}, "f:name": {}, "f:resources": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}},
                    }},
                    "f:securityContext": {},
                },
            })
        );
    }

    #[test]
    fn one_empty_entry_clears_the_managers() {
        let schema = config_maps();
        let applied = apply(&schema, None, &map(json!({"x": "1"})), &operation("one", "t1"), false).expect("created");
        let mut cleared = applied.clone();
        cleared["metadata"]["managedFields"] = json!([{}]);
        track_update(&schema, Some(&applied), &mut cleared, &operation("patcher", "t2"));
        assert_eq!(cleared["metadata"], json!({"name": "c"}));
    }

    #[test]
    fn configurations_that_do_not_fit_are_refused() {
        let schema = Schema::builtin("apps", "v1", "Deployment").expect("built in");
        for spec in [
            json!({"nosuch": 1}),
            json!({"replicas": []}),
            json!({"template": {"spec": {"containers": [{"image": "x"}]}}}),
        ] {
            let config =
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec});
            let code = apply(&schema, None, &config, &operation("one", "t"), false).expect_err("refused").code;
            assert_eq!(code, 400, "{config}");
        }
    }

    proptest! {
        #[test]
        fn applying_twice_changes_nothing(a in arbitrary::value(), b in arbitrary::value()) {
            let schema = Schema::custom(None).expect("free");
            let object = |x: &Value| json!({"apiVersion": "g/v1", "kind": "X", "metadata": {"name": "n"}, "spec": {"x": x}});
            let live = apply(&schema, None, &object(&a), &operation("one", "t1"), false).expect("created");
            if let Ok(once) = apply(&schema, Some(&live), &object(&b), &operation("two", "t2"), true) {
                let twice = apply(&schema, Some(&once), &object(&b), &operation("two", "t3"), false).expect("owned");
                prop_assert_eq!(once, twice);
            }
        }

        #[test]
        fn never_panics(live in arbitrary::value(), config in arbitrary::value(), managed in arbitrary::value()) {
            let schema = Schema::builtin("", "v1", "Pod").expect("built in");
            let live = json!({"metadata": {"managedFields": managed}, "spec": live});
            for config in [config.clone(), json!({"spec": config})] {
                let _ = apply(&schema, Some(&live), &config, &operation("one", "t1"), true);
                let mut new = config.clone();
                track_update(&schema, Some(&live), &mut new, &operation("two", "t2"));
            }
        }
    }
}
