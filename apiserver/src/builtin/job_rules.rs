//! What makes a job fail or succeed early, and what its status may say.

use super::metadata::NOT_NEGATIVE;
use super::names;
use super::value::{field, int, items};
use crate::schema::internal;
use muster_api::field::{FieldError, Reason};
use serde_json::Value;
use std::collections::BTreeSet;

/// Checks the parts of a job's spec that are about indexes and policies.
pub(super) fn spec(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let number = |key: &str| int(spec, &format!("/{key}"));
    let indexed = field(spec, "completionMode") == "Indexed";
    let per_index = number("backoffLimitPerIndex");
    if number("maxFailedIndexes").is_some() && per_index.is_none() {
        let why = "when maxFailedIndexes is specified";
        errors.push(FieldError::required(format!("{path}.backoffLimitPerIndex"), why));
    }
    if let Some(manager) = spec.get("managedBy").and_then(Value::as_str) {
        domain_path(manager, &format!("{path}.managedBy"), errors);
    }
    if indexed {
        if let (Some(most), Some(completions)) = (number("maxFailedIndexes"), number("completions"))
            && most > completions
        {
            let why = "must be less than or equal to completions";
            errors.push(FieldError::invalid(format!("{path}.maxFailedIndexes"), &most.into(), why));
        }
    } else {
        for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(value) = spec.get(key) {
                errors.push(FieldError::invalid(format!("{path}.{key}"), value, "requires indexed completion mode"));
            }
        }
    }
    if let Some(policy) = spec.get("podFailurePolicy") {
        failure_policy(spec, policy, &format!("{path}.podFailurePolicy"), errors);
    }
    if let Some(policy) = spec.get("successPolicy") {
        let path = format!("{path}.successPolicy");
        match number("completions").filter(|_| indexed) {
            Some(completions) => success_policy(policy, completions, &path, errors),
            None if indexed => {}
            None => {
                let why = "requires indexed completion mode";
                errors.push(internal::invalid(&path, "batch.SuccessPolicy", policy, why));
            }
        }
    }
    let replacement = spec.get("podReplacementPolicy").unwrap_or(&Value::Null);
    let supported: &[&str] =
        if spec.get("podFailurePolicy").is_some() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    if replacement.as_str().is_some_and(|policy| !supported.contains(&policy)) {
        errors.push(FieldError::not_supported(format!("{path}.podReplacementPolicy"), replacement, supported));
    }
}

fn domain_path(text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let value = Value::from(text);
    match text.split_once('/') {
        _ if text.is_empty() => errors.push(FieldError::required(path, "")),
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            errors.extend(names::subdomain(domain).into_iter().map(|m| FieldError::invalid(path, &domain.into(), m)));
            if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"/!$&'()*+,;=:@._~-".contains(&b)) {
                errors.push(FieldError::invalid(path, &rest.into(), "Invalid path"));
            }
        }
        _ => {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(FieldError::invalid(path, &value, why));
        }
    }
    if text.len() > 63 {
        errors.push(FieldError::too_long(path, 63));
    }
}

fn failure_policy(spec: &Value, policy: &Value, path: &str, errors: &mut Vec<FieldError>) {
    const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
    let rules = items(policy, "rules");
    if rules.len() > 20 {
        errors.push(FieldError::too_many(format!("{path}.rules"), rules.len(), 20));
    }
    let template = spec.pointer("/template/spec").unwrap_or(&Value::Null);
    let containers: Vec<&str> = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| items(template, list).iter().map(|container| field(container, "name")))
        .collect();
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{path}.rules[{i}]");
        let action = field(rule, "action");
        let shown = Value::from(action);
        if action.is_empty() {
            errors.push(FieldError::required(
                format!("{path}.action"),
                "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
            ));
        } else if action == "FailIndex" && spec.get("backoffLimitPerIndex").is_none() {
            let why = "requires the backoffLimitPerIndex to be set";
            errors.push(FieldError::invalid(format!("{path}.action"), &shown, why));
        } else if !ACTIONS.contains(&action) {
            errors.push(FieldError::not_supported(format!("{path}.action"), &shown, &ACTIONS));
        }
        let codes = rule.get("onExitCodes");
        let conditions = items(rule, "onPodConditions");
        if let Some(codes) = codes {
            exit_codes(codes, &containers, &format!("{path}.onExitCodes"), errors);
        }
        if conditions.len() > 20 {
            errors.push(FieldError::too_many(format!("{path}.onPodConditions"), conditions.len(), 20));
        }
        for (j, condition) in conditions.iter().enumerate() {
            let path = format!("{path}.onPodConditions[{j}]");
            let kind = field(condition, "type");
            let wrong = names::qualified(kind).into_iter();
            errors.extend(wrong.map(|m| FieldError::invalid(format!("{path}.type"), &Value::from(kind), m)));
            let status = field(condition, "status");
            if !["True", "False", "Unknown"].contains(&status) {
                let supported = ["False", "True", "Unknown"];
                errors.push(FieldError::not_supported(format!("{path}.status"), &Value::from(status), &supported));
            }
        }
        match (codes.is_some(), !conditions.is_empty()) {
            (true, true) => {
                valueless(&path, "specifying both OnExitCodes and OnPodConditions is not supported", errors)
            }
            (false, false) => valueless(&path, "specifying one of OnExitCodes and OnPodConditions is required", errors),
            _ => {}
        }
    }
}

/// An error about several fields, which shows no value.
fn valueless(path: &str, why: &str, errors: &mut Vec<FieldError>) {
    errors.push(FieldError::new(Reason::Invalid, path, format!("Invalid value: {why}")));
}

fn exit_codes(codes: &Value, containers: &[&str], path: &str, errors: &mut Vec<FieldError>) {
    let operator = field(codes, "operator");
    if operator.is_empty() {
        errors.push(FieldError::required(format!("{path}.operator"), "valid values: [\"In\" \"NotIn\"]"));
    } else if !["In", "NotIn"].contains(&operator) {
        errors.push(FieldError::not_supported(format!("{path}.operator"), &Value::from(operator), &["In", "NotIn"]));
    }
    if let Some(name) =
        codes.get("containerName").filter(|name| !containers.contains(&name.as_str().unwrap_or_default()))
    {
        let why = "must be one of the container or initContainer names in the pod template";
        errors.push(FieldError::invalid(format!("{path}.containerName"), name, why));
    }
    let path = format!("{path}.values");
    let values = items(codes, "values");
    let all = codes.get("values").unwrap_or(&Value::Null);
    match values.len() {
        0 => errors.push(FieldError::invalid(&path, all, "at least one value is required")),
        many if many > 255 => errors.push(FieldError::too_many(&path, many, 255)),
        _ => {}
    }
    let numbers: Vec<i64> = values.iter().map(|value| value.as_i64().unwrap_or(0)).collect();
    let mut seen = BTreeSet::new();
    for (i, number) in numbers.iter().enumerate() {
        if operator == "In" && *number == 0 {
            errors.push(FieldError::invalid(format!("{path}[{i}]"), &values[i], "must not be 0 for the In operator"));
        }
        if !seen.insert(number) {
            errors.push(FieldError::duplicate(format!("{path}[{i}]"), &values[i]));
        }
    }
    if !numbers.is_sorted() {
        errors.push(FieldError::invalid(&path, all, "must be ordered"));
    }
}

fn success_policy(policy: &Value, completions: i64, path: &str, errors: &mut Vec<FieldError>) {
    let rules = items(policy, "rules");
    let list = format!("{path}.rules");
    if rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        errors.push(FieldError::required(&list, why));
    } else if rules.len() > 20 {
        errors.push(FieldError::too_many(&list, rules.len(), 20));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{list}[{i}]");
        let (count, indexes) = (int(rule, "/succeededCount"), rule.get("succeededIndexes").and_then(Value::as_str));
        if count.is_none() && indexes.is_none() {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            errors.push(FieldError::required(&path, why));
        }
        let mut total = 0;
        if let Some(text) = indexes {
            match count_indexes(text, completions) {
                Ok(count) => total = count,
                Err(why) => {
                    let why = format!("error parsing succeededIndexes: {why}");
                    errors.push(FieldError::invalid(format!("{path}.succeededIndexes"), &Value::from(text), why));
                }
            }
        }
        let Some(count) = count else { continue };
        let path = format!("{path}.succeededCount");
        let mut refuse = |why: String| errors.push(FieldError::invalid(&path, &count.into(), why));
        if count < 0 {
            refuse(NOT_NEGATIVE.to_owned());
        }
        if count > completions {
            refuse(format!("must be less than or equal to {completions} (the number of specified completions)"));
        }
        if indexes.is_some() && count > total {
            let what = "the number of indexes in the specified succeededIndexes field";
            refuse(format!("must be less than or equal to {total} ({what})"));
        }
    }
}

/// How many indexes a text as `1,3-5` names, all of them below `completions`.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let (mut total, mut last) = (0, None);
    for part in text.split(',') {
        let mut ends = part.split('-');
        let (Some(first), second, None) = (ends.next(), ends.next(), ends.next()) else {
            return Err(format!(
                "the fragment \"{part}\" violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        };
        let parse = |text: &str| {
            let number: i64 =
                text.parse().map_err(|_| format!("cannot convert string to integer for index: \"{text}\""))?;
            if number >= completions { Err(format!("too large index: \"{text}\"")) } else { Ok(number) }
        };
        let start = parse(first)?;
        if last.is_some_and(|last| last >= start) {
            return Err(format!("non-increasing order, previous: {}, current: {start}", last.unwrap_or(0)));
        }
        let end = second.map(parse).transpose()?.unwrap_or(start);
        if second.is_some() && start >= end {
            return Err(format!("non-increasing order, previous: {start}, current: {end}"));
        }
        total += end - start + 1;
        last = Some(end);
    }
    Ok(total)
}

/// Checks a status that is written as such.
pub(super) fn status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = Value::Null;
    let (after, before) = (new.get("status").unwrap_or(&empty), old.get("status").unwrap_or(&empty));
    let count = |status: &Value, key: &str| int(status, &format!("/{key}")).unwrap_or(0);
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        if count(after, key) < 0 {
            errors.push(FieldError::invalid(format!("status.{key}"), &count(after, key).into(), NOT_NEGATIVE));
        }
    }
    let is = |status: &Value, kind: &str| {
        items(status, "conditions").iter().any(|c| field(c, "type") == kind && field(c, "status") == "True")
    };
    let (complete, failed) = (is(after, "Complete"), is(after, "Failed"));
    let (target, met) = (is(after, "FailureTarget"), is(after, "SuccessCriteriaMet"));
    let finished = complete || failed;
    let conditions = "status.conditions";
    let (start, end) = (after.get("startTime"), after.get("completionTime"));
    let mut valueless = |refused: bool, why: &str| {
        if refused {
            self::valueless(conditions, why, &mut errors);
        }
    };
    valueless(complete && failed, "cannot set Complete=True and Failed=true conditions");
    valueless(complete && target, "cannot set Complete=True and FailureTarget=true conditions");
    if let Some(end) = end.filter(|_| !complete) {
        let why = "cannot set completionTime when there is no Complete=True condition";
        errors.push(FieldError::invalid("status.completionTime", end, why));
    }
    if complete && end.is_none() {
        errors.push(FieldError::required("status.completionTime", "completionTime is required for Complete jobs"));
    }
    if let (Some(Value::String(start)), Some(end @ Value::String(text))) = (start, end)
        && text < start
    {
        errors.push(FieldError::invalid("status.completionTime", end, "must be equal to or after `startTime`"));
    }
    let mut valueless = |refused: bool, why: &str| {
        if refused {
            self::valueless(conditions, why, &mut errors);
        }
    };
    valueless(failed && !target, "cannot set Failed=True condition without the FailureTarget=true condition");
    valueless(complete && !met, "cannot set Complete=True condition without the SuccessCriteriaMet=true condition");
    for (key, why) in [
        ("active", "active>0 is invalid for finished job"),
        ("terminating", "terminating>0 is invalid for finished job"),
    ] {
        if finished && count(after, key) > 0 {
            errors.push(FieldError::invalid(format!("status.{key}"), &count(after, key).into(), why));
        }
    }
    if finished && start.is_none() {
        errors.push(FieldError::required("status.startTime", "startTime is required for finished job"));
    }
    if after.get("ready").is_some() && count(after, "ready") > count(after, "active") {
        let why = "cannot set more ready pods than active";
        errors.push(FieldError::invalid("status.ready", &count(after, "ready").into(), why));
    }
    let mut valueless = |refused: bool, why: &str| {
        if refused {
            self::valueless(conditions, why, &mut errors);
        }
    };
    valueless(met && failed, "cannot set SuccessCriteriaMet=True and Failed=true conditions");
    valueless(met && target, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    for kind in ["Failed", "Complete", "FailureTarget"] {
        let why = format!("cannot disable the terminal {kind}=True condition");
        valueless(is(before, kind) && !is(after, kind), &why);
    }
    for key in ["failed", "succeeded"] {
        if count(after, key) < count(before, key) {
            let why = format!("cannot decrease the {key} counter");
            errors.push(FieldError::invalid(format!("status.{key}"), &count(after, key).into(), why));
        }
    }
    let suspended = new.pointer("/spec/suspend").and_then(Value::as_bool) == Some(true);
    if before.get("startTime").is_some_and(|old| Some(old) != start) && !suspended {
        let why = "startTime cannot be removed for unsuspended job";
        errors.push(FieldError::required("status.startTime", why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn indexes_are_counted() {
        for (text, expected) in [
            ("", Ok(0)),
            ("0,2-4", Ok(4)),
            ("0-5", Err("too large index: \"5\"".to_owned())),
            ("3,1", Err("non-increasing order, previous: 3, current: 1".to_owned())),
            ("a", Err("cannot convert string to integer for index: \"a\"".to_owned())),
        ] {
            assert_eq!(count_indexes(text, 5), expected, "{text}");
        }
    }

    #[test]
    fn a_finished_job_says_when_it_began_and_why_it_ended() {
        let status = json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}});
        let messages: Vec<String> = super::status(&status, &json!({})).iter().map(ToString::to_string).collect();
        assert_eq!(
            messages,
            [
                "status.completionTime: Required value: completionTime is required for Complete jobs",
                "status.conditions: Invalid value: cannot set Complete=True condition without the \
                 SuccessCriteriaMet=true condition",
                "status.startTime: Required value: startTime is required for finished job",
            ]
        );
    }
}
