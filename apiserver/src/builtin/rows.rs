//! Cells of tables: ages, lists, counts, as kubectl shows them.

use super::columns::{Column, Doc};
use super::value::text;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde_json::Value;

pub(super) const NAME: Column = Column::new("Name", Doc::Field(ObjectMeta::json_schema, "name")).format("name");
pub(super) const AGE: Column = Column::new("Age", Doc::Field(ObjectMeta::json_schema, "creationTimestamp"));
pub(super) const NAME_AGE: &[Column] =
    &[NAME, Column::new("Created At", Doc::Field(ObjectMeta::json_schema, "creationTimestamp")).typed("date")];

pub(super) const CONTAINERS: Column = Column::wide("Containers", Doc::Text("Names of each container in the template."));
pub(super) const IMAGES: Column =
    Column::wide("Images", Doc::Text("Images referenced by each container in the template."));

/// The row of a kind that has no columns of its own.
pub(super) fn name_age(object: &Value, _now: i64) -> Vec<Value> {
    vec![name(object), text(object, "/metadata/creationTimestamp").into()]
}

pub(super) fn name(object: &Value) -> Value {
    text(object, "/metadata/name").into()
}

pub(super) fn age(object: &Value, now: i64) -> Value {
    since(text(object, "/metadata/creationTimestamp"), now).into()
}

/// How long ago a time was, short, or `<unknown>`.
pub(crate) fn since(time: &str, now: i64) -> String {
    match seconds(time) {
        Some(then) => duration(now - then),
        None => "<unknown>".to_owned(),
    }
}

/// Seconds since the epoch of a time in RFC 3339.
pub(super) fn seconds(time: &str) -> Option<i64> {
    time.parse::<Timestamp>().ok().map(|t| t.as_second())
}

/// A length of time in the two units that matter.
pub(super) fn duration(seconds: i64) -> String {
    // A clock that is a little ahead is no reason for a negative age.
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let (s, m, h, d) = (seconds.max(0), seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |large: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    match () {
        () if s < 120 => format!("{s}s"),
        () if m < 10 => pair(m, "m", s % 60, "s"),
        () if m < 180 => format!("{m}m"),
        () if h < 8 => pair(h, "h", m % 60, "m"),
        () if h < 48 => format!("{h}h"),
        () if h < 192 => pair(d, "d", h % 24, "h"),
        () if d < 730 => format!("{d}d"),
        () if d < 8 * 365 => pair(d / 365, "y", d % 365, "d"),
        () => format!("{}y", d / 365),
    }
}

/// `<none>` for an empty text.
pub(super) fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

pub(super) fn or_unset(text: &str) -> Value {
    if text.is_empty() { "<unset>".into() } else { text.into() }
}

/// A map of labels as `a=b,c=d`.
pub(super) fn label_map(labels: Option<&Value>) -> String {
    let labels = labels.and_then(Value::as_object).into_iter().flatten();
    labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
}

/// A label selector as text: `a=b,c in (d,e),!f`; `<none>` if it selects by nothing.
pub(super) fn selector(selector: Option<&Value>) -> String {
    let Some(selector) = selector else { return "<none>".to_owned() };
    let mut terms: Vec<(String, String)> = Vec::new();
    for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        terms.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = text(expression, "/key");
        let mut values: Vec<&str> = expression
            .get("values")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match text(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        terms.push((key.to_owned(), term));
    }
    terms.sort();
    match terms.is_empty() {
        true => "<none>".to_owned(),
        false => terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(","),
    }
}

/// The names and the images of a pod template's containers.
pub(super) fn containers_and_images(pod_spec: Option<&Value>) -> [Value; 2] {
    let containers = pod_spec.and_then(|s| s.get("containers")).and_then(Value::as_array);
    let join = |key: &str| {
        let texts = containers.into_iter().flatten().map(|c| c.get(key).and_then(Value::as_str).unwrap_or_default());
        Value::from(texts.collect::<Vec<_>>().join(","))
    };
    [join("name"), join("image")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (179 * 60, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600 + 60, "8h"),
            (47 * 3600, "47h"),
            (49 * 3600, "2d1h"),
            (8 * 86400, "8d"),
            (729 * 86400, "729d"),
            (730 * 86400, "2y"),
            (6 * 365 * 86400 + 328 * 86400, "6y328d"),
            (9 * 365 * 86400, "9y"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn selectors() {
        let both = json!({"matchLabels": {"b": "1"}, "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "c", "operator": "DoesNotExist"}]});
        assert_eq!(selector(Some(&both)), "a in (x,y),b=1,!c");
        assert_eq!(selector(Some(&json!({}))), "<none>");
        assert_eq!(selector(None), "<none>");
    }
}
