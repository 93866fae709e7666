//! Limit ranges at admission: what containers that say nothing get, and what all have to keep within.

use super::Context;
use super::value::{child, entries, field, fields, fill, items, items_mut, text};
use crate::error::{ApiError, ApiResult};
use muster_api::field::FieldError;
use muster_api::quantity::Quantity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

type Amounts = BTreeMap<String, Quantity>;

fn ranges(context: &Context<'_>) -> Vec<Arc<Value>> {
    context.objects.list("", "limitranges", context.namespace.unwrap_or_default())
}

/// The items of a range that are about objects of this type.
fn about<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let items = range.pointer("/spec/limits").and_then(Value::as_array).into_iter().flatten();
    items.filter(move |item| field(item, "type") == kind)
}

/// Fills a new pod's containers and checks it.
pub(super) fn pod(pod: &mut Value, context: &Context<'_>) -> ApiResult<()> {
    let ranges = ranges(context);
    for range in &ranges {
        fill_in(pod, range);
    }
    for range in &ranges {
        let mut wrong = Vec::new();
        let spec = pod.get("spec").unwrap_or(&Value::Null);
        for item in about(range, "Container") {
            for container in ["containers", "initContainers"].into_iter().flat_map(|list| items(spec, list)) {
                let resources = container.get("resources").unwrap_or(&Value::Null);
                check(item, &amounts(resources, "requests"), &amounts(resources, "limits"), &mut wrong);
            }
        }
        for item in about(range, "Pod") {
            check(
                item,
                &muster_api::quota::of_pod(spec, "requests"),
                &muster_api::quota::of_pod(spec, "limits"),
                &mut wrong,
            );
        }
        refuse("pods", text(pod, "/metadata/name"), &wrong)?;
    }
    Ok(())
}

/// Checks a claim on storage.
pub(super) fn claim(claim: &Value, context: &Context<'_>) -> ApiResult<()> {
    let resources = claim.pointer("/spec/resources").unwrap_or(&Value::Null);
    let requests = amounts(resources, "requests");
    for range in ranges(context) {
        let mut wrong = Vec::new();
        for item in about(&range, "PersistentVolumeClaim") {
            for (name, enforced) in amounts(item, "min") {
                least(item, &name, enforced, &requests, &Amounts::new(), &mut wrong);
            }
            for (name, enforced) in amounts(item, "max") {
                let words = format!("maximum {name} usage per PersistentVolumeClaim is {enforced}");
                match requests.get(&name) {
                    None => wrong.push(format!("{words}.  No request is specified")),
                    Some(request) if *request > enforced => wrong.push(format!("{words}, but request is {request}")),
                    Some(_) => {}
                }
            }
        }
        refuse("persistentvolumeclaims", text(claim, "/metadata/name"), &wrong)?;
    }
    Ok(())
}

fn refuse(plural: &str, name: &str, wrong: &[String]) -> ApiResult<()> {
    match wrong {
        [] => Ok(()),
        [one] => Err(ApiError::forbidden("", plural, name, one)),
        many => Err(ApiError::forbidden("", plural, name, &format!("[{}]", many.join(", ")))),
    }
}

/// What is wrong with a range itself.
pub(super) fn validate(range: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    let items = range.pointer("/spec/limits").and_then(Value::as_array).into_iter().flatten();
    for (i, item) in items.enumerate() {
        let path = format!("spec.limits[{i}]");
        let kind = field(item, "type");
        if !["Pod", "Container", "PersistentVolumeClaim"].contains(&kind) && !kind.contains('/') {
            let why = "must be a standard limit type or fully qualified";
            errors.push(FieldError::invalid(format!("{path}.type"), &Value::from(kind), why));
        }
        if !seen.insert(kind) {
            errors.push(FieldError::duplicate(format!("{path}.type"), &Value::from(kind)));
        }
        if kind == "Pod" {
            for key in ["default", "defaultRequest"].into_iter().filter(|key| item.get(*key).is_some()) {
                errors
                    .push(FieldError::forbidden(format!("{path}.{key}"), "may not be specified when `type` is 'Pod'"));
            }
        }
        if kind == "PersistentVolumeClaim" && ["min", "max"].iter().all(|key| item.get(*key).is_none()) {
            let why = "either minimum or maximum storage value is required, but neither was provided";
            errors.push(FieldError::required(format!("{path}.limits"), why));
        }
        bounds(item, &path, kind == "Pod", &mut errors);
    }
    errors
}

/// The least, the defaults and the most of each resource come in this order.
fn bounds(item: &Value, path: &str, of_pods: bool, errors: &mut Vec<FieldError>) {
    let [min, max] = ["min", "max"].map(|key| amounts(item, key));
    let [request, limit] =
        ["defaultRequest", "default"].map(|key| if of_pods { Amounts::new() } else { amounts(item, key) });
    let ratios = amounts(item, "maxLimitRequestRatio");
    let names: BTreeSet<&String> =
        [&min, &max, &request, &limit, &ratios].into_iter().flat_map(BTreeMap::keys).collect();
    for name in names {
        let mut ordered =
            |key: &str, shown: Quantity, low: (&str, Option<&Quantity>), high: (&str, Option<&Quantity>)| {
                if let ((low, Some(a)), (high, Some(b))) = (low, high)
                    && a > b
                {
                    let why = format!("{low} value {a} is greater than {high} value {b}");
                    errors.push(FieldError::invalid(format!("{path}.{key}[{name}]"), &shown.to_string().into(), why));
                }
            };
        let (least, most) = (min.get(name), max.get(name));
        let (asked, given) = (request.get(name), limit.get(name));
        if let Some(value) = least {
            ordered("min", *value, ("min", least), ("max", most));
        }
        if let Some(value) = asked {
            ordered("defaultRequest", *value, ("min", least), ("default request", asked));
            ordered("defaultRequest", *value, ("default request", asked), ("max", most));
            ordered("defaultRequest", *value, ("default request", asked), ("default limit", given));
        }
        if let Some(value) = least.filter(|_| given.is_some()) {
            ordered("default", *value, ("min", least), ("default", given));
        }
        if let Some(value) = most.filter(|_| given.is_some()) {
            ordered("default", *value, ("default", given), ("max", most));
        }
        if let Some(ratio) = ratios.get(name).filter(|ratio| **ratio < Quantity::from_units(1)) {
            let path = format!("{path}.maxLimitRequestRatio[{name}]");
            errors.push(FieldError::invalid(path, &ratio.to_string().into(), format!("ratio {ratio} is less than 1")));
        }
    }
}

fn fill_in(pod: &mut Value, range: &Value) {
    let mut done = Vec::new();
    for item in about(range, "Container") {
        for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
            for container in items_mut(child(pod, "spec"), list) {
                let name = field(container, "name").to_owned();
                for (part, defaults, word) in
                    [("requests", "defaultRequest", "request"), ("limits", "default", "limit")]
                {
                    let mut set = Vec::new();
                    for (resource, amount) in entries(item, defaults) {
                        let resources = child(child(container, "resources"), part);
                        if resources.get(resource).is_none() {
                            fill(resources, resource, amount.clone());
                            set.push(resource.clone());
                        }
                    }
                    if !set.is_empty() {
                        done.push(format!("{} {word} for {what} {name}", set.join(", ")));
                    }
                }
            }
        }
    }
    if !done.is_empty() {
        let annotations = child(child(pod, "metadata"), "annotations");
        let told = format!("LimitRanger plugin set: {}", done.join("; "));
        fields(annotations).insert(ANNOTATION.into(), told.into());
    }
}

fn amounts(object: &Value, key: &str) -> Amounts {
    let parse = |(name, amount): (&String, &Value)| Some((name.clone(), amount.as_str()?.parse().ok()?));
    entries(object, key).filter_map(parse).collect()
}

fn check(item: &Value, requests: &Amounts, limits: &Amounts, wrong: &mut Vec<String>) {
    for (name, enforced) in amounts(item, "min") {
        least(item, &name, enforced, requests, limits, wrong);
    }
    for (name, enforced) in amounts(item, "max") {
        let words = format!("maximum {name} usage per {} is {enforced}", field(item, "type"));
        match (limits.get(&name), requests.get(&name)) {
            (None, _) => wrong.push(format!("{words}.  No limit is specified")),
            (Some(limit), _) if *limit > enforced => wrong.push(format!("{words}, but limit is {limit}")),
            (_, Some(request)) if *request > enforced => wrong.push(format!("{words}, but request is {request}")),
            _ => {}
        }
    }
    for (name, enforced) in amounts(item, "maxLimitRequestRatio") {
        let words = format!("{name} max limit to request ratio per {} is {enforced}", field(item, "type"));
        let given = |map: &Amounts| map.get(&name).copied().filter(|amount| !amount.is_zero());
        match (given(requests), given(limits)) {
            (None, _) => wrong.push(format!("{words}, but no request is specified or request is 0")),
            (_, None) => wrong.push(format!("{words}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit.milli() as f64 / request.milli() as f64;
                if ratio * 1000.0 > enforced.milli() as f64 {
                    wrong.push(format!("{words}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

fn least(item: &Value, name: &str, enforced: Quantity, requests: &Amounts, limits: &Amounts, wrong: &mut Vec<String>) {
    let words = format!("minimum {name} usage per {} is {enforced}", field(item, "type"));
    match (requests.get(name), limits.get(name)) {
        (None, _) => wrong.push(format!("{words}.  No request is specified")),
        (Some(request), _) if *request < enforced => wrong.push(format!("{words}, but request is {request}")),
        (_, Some(limit)) if *limit < enforced => wrong.push(format!("{words}, but limit is {limit}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::Objects;
    use serde_json::json;

    struct One(Value);

    impl Objects for One {
        fn get(&self, _: &str, _: &str, _: &str, _: &str) -> Option<Arc<Value>> {
            None
        }

        fn list(&self, _: &str, plural: &str, _: &str) -> Vec<Arc<Value>> {
            if plural == "limitranges" { vec![Arc::new(self.0.clone())] } else { Vec::new() }
        }
    }

    #[test]
    fn pods_are_filled_and_kept_within_bounds() {
        let range = One(json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "1"},
            "defaultRequest": {"cpu": "500m"}, "max": {"cpu": "2"}, "min": {"cpu": "100m"}}]}}));
        let context = Context { now: "", namespace: Some("n"), subresource: "", objects: &range, random: &|| 1 };
        let mut silent = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        assert_eq!(pod(&mut silent, &context), Ok(()));
        assert_eq!(
            silent["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}})
        );
        assert_eq!(
            silent["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu limit for container a"
        );
        let resources = json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "3"}});
        let mut wrong =
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "resources": resources}]}});
        let error = pod(&mut wrong, &context).expect_err("beyond both bounds");
        assert_eq!(
            error.message,
            "pods \"p\" is forbidden: [minimum cpu usage per Container is 100m, but request is 50m, maximum cpu usage \
             per Container is 2, but limit is 3]"
        );
    }
}
