//! Strategic merge patch: lists of built-in kinds are merged by their keys, and directives in the patch say what to
//! delete, replace, keep and how to order.

use crate::error::{ApiError, ApiResult};
use crate::schema::Schema;
use crate::schema::view::{PatchList, View};
use serde_json::{Map, Value, json};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// Applies a strategic merge patch to an object of a built-in kind.
pub fn apply(schema: &Schema, document: &Value, patch: &Value) -> ApiResult<Value> {
    if !schema.is_builtin() {
        return Err(ApiError::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        ));
    }
    let Value::Object(patch) = patch else {
        let found = super::go_kind(patch);
        return Err(ApiError::bad_request(format!(
            "json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
        )));
    };
    let original = document.as_object().cloned().unwrap_or_default();
    merge_map(original, patch.clone(), schema.root()).map(Value::Object)
}

fn bad(message: impl Into<String>) -> ApiError {
    ApiError::bad_request(message)
}

fn merge_map(mut original: Object, mut patch: Object, view: View<'_>) -> ApiResult<Object> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(without_directives_in(patch)),
            Some("delete") => Ok(Object::new()),
            _ => Err(bad(format!("unknown patch type: {directive} in map: {}", Value::Object(patch)))),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    order_lists(&mut original, &mut patch, view)?;
    // Deletions from lists of scalars come first, so that a patch may delete and add in one list.
    let (deletions, rest): (Vec<_>, Vec<_>) = patch.into_iter().partition(|(key, _)| key.starts_with(DELETE_PREFIX));
    for (key, gone) in deletions {
        let Value::Array(gone) = gone else { return Err(bad("invalid patch format of primitive list")) };
        if let Some(Value::Array(items)) = original.get_mut(&key[DELETE_PREFIX.len()..]) {
            items.retain(|item| !gone.contains(item));
        }
    }
    for (key, value) in rest {
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.remove(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                Some(Value::Object(merge_map(old, new, view.field(&key))?))
            }
            (Some(Value::Array(old)), Value::Array(new)) => Some(Value::Array(merge_list(old, new, view.field(&key))?)),
            (_, value) => without_directives(value),
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

/// `$retainKeys`: fields that are not listed go; the patch may not set others than those listed.
fn retain_keys(original: &mut Object, patch: &mut Object) -> ApiResult<()> {
    let Some(keep) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keep) = keep else { return Err(bad("invalid patch format of retainKeys")) };
    let kept = |key: &str| keep.iter().any(|k| k.as_str() == Some(key));
    if patch.iter().any(|(key, value)| !key.starts_with('$') && !value.is_null() && !kept(key)) {
        return Err(
            ApiError::new(422, "Invalid", "patch content doesn't match retainKeys list").with_details(json!({}))
        );
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

/// `$setElementOrder/x`: merges the list x and puts it into this order.
fn order_lists(original: &mut Object, patch: &mut Object, view: View<'_>) -> ApiResult<()> {
    let keys: Vec<String> = patch.keys().filter(|key| key.starts_with(ORDER_PREFIX)).cloned().collect();
    for directive in keys {
        let name = directive[ORDER_PREFIX.len()..].to_owned();
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(bad("invalid patch format of setElementOrder list"));
        };
        let list_view = view.field(&name);
        let key = match list_view.patch_list() {
            PatchList::Merge(key) => Some(key),
            PatchList::MergePrimitive | PatchList::Replace => None,
        };
        if patch.get(&name).is_some_and(Value::is_null) {
            // A null deletes the list, whatever its order.
            continue;
        }
        let old = original.get(&name).and_then(Value::as_array).cloned();
        let new = patch.get(&name).and_then(Value::as_array).cloned();
        if let Some(new) = &new {
            check_order(new, &order, key, &name)?;
        }
        let merged = match (old.clone(), new) {
            (Some(old), Some(new)) => merge_list(old, new, list_view)?,
            (Some(old), None) => old,
            (None, Some(new)) => match without_directives(Value::Array(new)) {
                Some(Value::Array(new)) => new,
                _ => continue,
            },
            (None, None) => continue,
        };
        patch.remove(&name);
        original.insert(name, Value::Array(reorder(merged, &order, &old.unwrap_or_default(), key)));
    }
    Ok(())
}

/// The patch's items must come in the order that the patch asks for.
fn check_order(items: &[Value], order: &[Value], key: Option<&str>, name: &str) -> ApiResult<()> {
    let mut places = order.iter();
    for item in items.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        if !places.any(|place| same(place, item, key)) {
            return Err(bad(format!(
                "the order in patch list:\n{}\n doesn't match {ORDER_PREFIX}{name} list:\n{}\n",
                super::go_print(&Value::from(items.to_vec())),
                super::go_print(&Value::from(order.to_vec()))
            )));
        }
    }
    Ok(())
}

fn merge_list(old: Vec<Value>, new: Vec<Value>, view: View<'_>) -> ApiResult<Vec<Value>> {
    let key = match view.patch_list() {
        PatchList::Replace => return Ok(new),
        PatchList::MergePrimitive => None,
        PatchList::Merge(key) => Some(key),
    };
    if old.iter().chain(&new).any(Value::is_array) {
        return Err(ApiError::new(422, "Invalid", "lists of lists are not supported").with_details(json!({})));
    }
    let Some(key) = key else {
        let mut merged: Vec<Value> = Vec::new();
        for item in old.iter().chain(&new) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(reorder(merged, &new, &old, None));
    };
    let (mut original, plain) = special_items(old, new, key)?;
    let before = original.clone();
    for item in &plain {
        let Value::Object(fields) = item else {
            return Err(bad(format!("list element types are not identical: {}", super::go_print(item))));
        };
        if !fields.contains_key(key) {
            return Err(no_merge_key(item, key));
        }
        match original.iter_mut().find(|other| same(other, item, Some(key))) {
            Some(Value::Object(place)) => {
                *place = merge_map(std::mem::take(place), fields.clone(), view.item())?;
            }
            _ => original.extend(without_directives(item.clone())),
        }
    }
    Ok(reorder(original, &plain, &before, Some(key)))
}

/// Carries out the directives that are items of a list; returns what is left of both lists.
fn special_items(mut old: Vec<Value>, new: Vec<Value>, key: &str) -> ApiResult<(Vec<Value>, Vec<Value>)> {
    let mut plain = Vec::new();
    let mut replace = false;
    for item in new {
        match item.get(DIRECTIVE) {
            None => plain.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") if item.get(key).is_some() => old.retain(|other| !same(other, &item, Some(key))),
                Some("delete") => return Err(no_merge_key(&item, key)),
                Some("replace") => replace = true,
                Some("merge") => return Err(bad("merging lists cannot yet be specified in the patch")),
                _ => return Err(bad(format!("unknown patch type: {directive} in map: {item}"))),
            },
        }
    }
    Ok((if replace { Vec::new() } else { old }, plain))
}

fn no_merge_key(item: &Value, key: &str) -> ApiError {
    bad(format!("map: {} does not contain declared merge key: {key}", super::go_print(item)))
}

/// Whether two items are the same one: equal scalars, or objects with the same merge key.
fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

/// Items named in `order` come in that order; the others keep their order in `before`, and stand before an item of
/// `order` only where they stood before it already.
fn reorder(items: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item, key));
    let (mut ordered, mut others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| place(order, item).is_some());
    ordered.sort_by_key(|item| place(order, item));
    others.sort_by_key(|item| place(before, item));
    let mut out = Vec::with_capacity(ordered.len() + others.len());
    let (mut ordered, mut others) = (ordered.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), ordered.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(a), Some(b)) => match (place(before, a), place(before, b)) {
                (Some(a), Some(b)) => a < b,
                _ => false,
            },
        };
        out.extend(if other_first { others.next() } else { ordered.next() });
    }
}

/// A value of the patch that is taken as it is: without nulls and directives; `None` where it says to delete.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) => {
            if map.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                return None;
            }
            Some(Value::Object(without_directives_in(map)))
        }
        Value::Array(items) => {
            let kept = items.into_iter().filter(|item| !is_bare_directive(item));
            Some(Value::Array(kept.filter_map(without_directives).collect()))
        }
        other => Some(other),
    }
}

/// `{"$patch": "replace"}` among the items of a list.
fn is_bare_directive(item: &Value) -> bool {
    item.as_object().is_some_and(|map| map.len() == 1 && map.contains_key(DIRECTIVE))
}

fn without_directives_in(map: Object) -> Object {
    let kept = map.into_iter().filter(|(key, value)| {
        let directive =
            key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(ORDER_PREFIX) || key.starts_with(DELETE_PREFIX);
        !directive && !value.is_null()
    });
    kept.filter_map(|(key, value)| Some((key, without_directives(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pod(patch: Value) -> ApiResult<Value> {
        let schema = Schema::builtin("", "v1", "Pod").expect("pods are built in");
        let document = json!({
            "metadata": {"finalizers": ["a", "b"], "labels": {"x": "1"}},
            "spec": {
                "containers": [
                    {"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
                    {"name": "b", "image": "b:1"},
                ],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "tolerations": [{"key": "k"}],
                "nodeSelector": {"a": "b"},
            },
        });
        apply(&schema, &document, &patch)
    }

    fn names(value: &Value) -> Vec<&str> {
        value.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect()
    }

    #[test]
    fn items_are_merged_by_key_and_new_ones_come_first() {
        let out = pod(json!({"spec": {"containers": [{"name": "c", "image": "c:1"}, {"name": "b", "image": "b:2"}]}}));
        let containers = &out.expect("the patch applies")["spec"]["containers"];
        assert_eq!(names(containers), ["c", "a", "b"]);
        assert_eq!(containers[2]["image"], "b:2");
        let out =
            pod(json!({"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "9"}, {"name": "Z"}]}]}}));
        assert_eq!(names(&out.expect("applies")["spec"]["containers"][0]["env"]), ["X", "Z", "Y"]);
    }

    #[test]
    fn directives_delete_replace_retain_and_order() {
        let out = pod(json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}})).expect("applies");
        assert_eq!(names(&out["spec"]["containers"]), ["b"]);
        let out =
            pod(json!({"spec": {"containers": [{"name": "a", "env": [{"$patch": "replace"}, {"name": "ONLY"}]}]}}));
        assert_eq!(names(&out.expect("applies")["spec"]["containers"][0]["env"]), ["ONLY"]);
        let out = pod(
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}),
        );
        assert_eq!(out.expect("applies")["spec"]["volumes"], json!([{"name": "v", "hostPath": {"path": "/x"}}]));
        let out = pod(
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": "a:2"}]}}),
        );
        let out = out.expect("applies");
        assert_eq!(names(&out["spec"]["containers"]), ["b", "a"]);
        assert_eq!(out["spec"]["containers"][1]["image"], "a:2");
        let out =
            pod(json!({"spec": {"nodeSelector": {"$patch": "replace", "c": "d"}, "tolerations": [{"key": "z"}]}}));
        let out = out.expect("applies");
        assert_eq!(out["spec"]["nodeSelector"], json!({"c": "d"}));
        assert_eq!(out["spec"]["tolerations"], json!([{"key": "z"}]));
    }

    #[test]
    fn lists_of_scalars_are_united_and_cut() {
        let out = pod(json!({"metadata": {"finalizers": ["b", "c"]}})).expect("applies");
        assert_eq!(out["metadata"]["finalizers"], json!(["a", "b", "c"]));
        let out = pod(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "labels": {"x": null}}}));
        let out = out.expect("applies");
        assert_eq!(out["metadata"], json!({"finalizers": ["b"], "labels": {}}));
    }

    #[test]
    fn malformed_directives_are_refused() {
        for patch in [
            json!({"spec": {"containers": [{"image": "x"}]}}),
            json!({"spec": {"containers": [{"name": "a", "$patch": "nonsense"}]}}),
            json!({"spec": {"$patch": 1}}),
            json!({"spec": {"$setElementOrder/containers": 1}}),
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name"], "hostPath": {}}]}}),
            json!([]),
        ] {
            let code = pod(patch.clone()).expect_err("malformed").code;
            assert!(code == 400 || code == 422, "{patch}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(document in crate::schema::arbitrary::value(), patch in crate::schema::arbitrary::value()) {
            let schema = Schema::builtin("", "v1", "Pod").expect("pods are built in");
            let _ = apply(&schema, &document, &patch);
            let _ = apply(&schema, &json!({"spec": {"containers": document}}), &json!({"spec": {"containers": patch}}));
        }
    }
}
