//! Events: one stored object with two faces, `v1` and `events.k8s.io/v1`.

use super::columns::{Column, Doc};
use super::rows::{NAME, name, since};
use super::table::BASE;
use super::value::{child, field, fields, fill, int, text};
use super::{BuiltinKind, Context, StoredAs, names, wire};
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use muster_api::field::FieldError;
use schemars::JsonSchema;
use serde_json::{Map, Value};

pub(super) const KINDS: &[BuiltinKind] = &[
    BuiltinKind {
        default: default_core,
        validate: |event, context| {
            let mut errors = involved(event, "involvedObject", context);
            errors.extend(if is_new_style(event) {
                new_style(event, "reportingComponent", "message")
            } else {
                Vec::new()
            });
            errors
        },
        fields: |event| selectable(event, "involvedObject"),
        field_labels: CORE_LABELS,
        ..EVENT
    },
    BuiltinKind {
        group: "events.k8s.io",
        stored_as: Some(StoredAs { group: "", version: "v1", encode, decode }),
        default: default_events,
        validate: validate_events,
        row: |event, now| {
            let mut event = event.clone();
            encode(&mut event);
            row(&event, now)
        },
        fields: |event| {
            let mut event = event.clone();
            encode(&mut event);
            let mut values = selectable(&event, "involvedObject");
            for (old, new) in [("involvedObject", "regarding"), ("reportingComponent", "reportingController")] {
                for (key, value) in values.clone() {
                    if let Some(rest) = key.strip_prefix(old) {
                        values.insert(format!("{new}{rest}"), value);
                    }
                }
            }
            values
        },
        field_labels: EVENTS_LABELS,
        ..EVENT
    },
];

const EVENT: BuiltinKind = BuiltinKind {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    create_on_update: true,
    columns: &[
        Column::new("Last Seen", Doc::Field(Event::json_schema, "lastTimestamp")),
        Column::new("Type", Doc::Field(Event::json_schema, "type")),
        Column::new("Reason", Doc::Field(Event::json_schema, "reason")),
        Column::new("Object", Doc::Field(Event::json_schema, "involvedObject")),
        Column::wide("Subobject", Doc::Field(ObjectReference::json_schema, "fieldPath")),
        Column::wide("Source", Doc::Field(Event::json_schema, "source")),
        Column::new("Message", Doc::Field(Event::json_schema, "message")),
        Column::wide("First Seen", Doc::Field(Event::json_schema, "firstTimestamp")),
        Column::wide("Count", Doc::Field(Event::json_schema, "count")),
        Column { priority: 1, ..NAME },
    ],
    row,
    ..BASE
};

const CORE_LABELS: &[&str] = &[
    "involvedObject.apiVersion",
    "involvedObject.fieldPath",
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.resourceVersion",
    "involvedObject.uid",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

const EVENTS_LABELS: &[&str] = &[
    "reason",
    "regarding.apiVersion",
    "regarding.fieldPath",
    "regarding.kind",
    "regarding.name",
    "regarding.namespace",
    "regarding.resourceVersion",
    "regarding.uid",
    "reportingController",
    "type",
];

/// Fields of `events.k8s.io/v1` and their names in `v1`.
const FACES: &[(&str, &str)] = &[
    ("deprecatedCount", "count"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedSource", "source"),
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
];

fn default_core(event: &mut Value) {
    wire::normalise(event);
    child(event, "involvedObject");
    child(event, "source");
    for key in ["eventTime", "firstTimestamp", "lastTimestamp"] {
        fill(event, key, Value::Null);
    }
    fill(event, "reportingComponent", "");
    fill(event, "reportingInstance", "");
}

fn default_events(event: &mut Value) {
    wire::normalise(event);
    child(event, "regarding");
    child(event, "deprecatedSource");
    for key in ["eventTime", "deprecatedFirstTimestamp", "deprecatedLastTimestamp"] {
        fill(event, key, Value::Null);
    }
}

fn encode(event: &mut Value) {
    let map = fields(event);
    for (new, old) in FACES {
        if let Some(value) = map.remove(*new) {
            map.insert((*old).to_owned(), value);
        }
    }
    map.insert("apiVersion".into(), "v1".into());
    default_core(event);
}

fn decode(event: &mut Value) {
    let map = fields(event);
    for (new, old) in FACES {
        if let Some(value) = map.remove(*old) {
            map.insert((*new).to_owned(), value);
        }
    }
    map.insert("apiVersion".into(), "events.k8s.io/v1".into());
    default_events(event);
}

fn is_new_style(event: &Value) -> bool {
    !field(event, "eventTime").is_empty()
}

/// The object that an event is about lives where the event does.
fn involved(event: &Value, key: &str, context: &Context<'_>) -> Vec<FieldError> {
    let theirs = text(event, &format!("/{key}/namespace"));
    let ours = context.namespace.unwrap_or_default();
    let fits = if theirs.is_empty() { ours.is_empty() || ours == "default" } else { theirs == ours };
    if fits {
        return Vec::new();
    }
    let path = "involvedObject.namespace";
    vec![FieldError::invalid(path, &Value::from(theirs), "does not match event.namespace")]
}

fn new_style(event: &Value, controller_key: &str, message_key: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let controller = field(event, controller_key);
    if controller.is_empty() {
        errors.push(FieldError::required("reportingController", ""));
    } else {
        let wrong = names::qualified(controller).into_iter();
        errors.extend(wrong.map(|m| FieldError::invalid("reportingController", &Value::from(controller), m)));
    }
    for (key, limit) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        let value = field(event, key);
        if value.is_empty() {
            errors.push(FieldError::required(key, ""));
        } else if value.len() > limit {
            let why = format!("can have at most {limit} characters");
            errors.push(FieldError::invalid(key, &Value::from(""), why));
        }
    }
    if field(event, message_key).len() > 1024 {
        errors.push(FieldError::invalid("message", &Value::from(""), "can have at most 1024 characters"));
    }
    errors
}

fn validate_events(event: &Value, context: &Context<'_>) -> Vec<FieldError> {
    let mut errors = involved(event, "regarding", context);
    if is_new_style(event) {
        errors.extend(new_style(event, "reportingController", "note"));
    } else {
        errors.push(FieldError::required("eventTime", ""));
    }
    let kind = field(event, "type");
    if !["Normal", "Warning"].contains(&kind) {
        let why = format!("has invalid value: {kind}");
        errors.push(FieldError::invalid("type", &Value::from(""), why));
    }
    for (key, old) in [
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
    ] {
        if event.get(key).is_some_and(|v| !v.is_null()) {
            errors.push(FieldError::invalid(old, &Value::from(""), "needs to be unset"));
        }
    }
    for key in ["component", "host"] {
        if !text(event, &format!("/deprecatedSource/{key}")).is_empty() {
            errors.push(FieldError::invalid("source", &Value::from(""), "needs to be unset"));
        }
    }
    errors
}

fn selectable(event: &Value, involved: &str) -> Map<String, Value> {
    let mut values = Map::new();
    for key in ["apiVersion", "fieldPath", "kind", "name", "namespace", "resourceVersion", "uid"] {
        values.insert(format!("{involved}.{key}"), text(event, &format!("/{involved}/{key}")).into());
    }
    for key in ["reason", "reportingComponent", "type"] {
        values.insert(key.to_owned(), field(event, key).into());
    }
    values.insert("source".into(), component(event).into());
    values
}

fn component(event: &Value) -> &str {
    match text(event, "/source/component") {
        "" => field(event, "reportingComponent"),
        component => component,
    }
}

fn row(event: &Value, now: i64) -> Vec<Value> {
    let at = |key: &str| match field(event, key) {
        "" => None,
        time => Some(since(time, now)),
    };
    let unknown = || "<unknown>".to_owned();
    let first = at("firstTimestamp").or_else(|| at("eventTime")).unwrap_or_else(unknown);
    let mut last = at("lastTimestamp").unwrap_or_else(|| first.clone());
    let mut count = int(event, "/count").filter(|c| *c != 0).unwrap_or(1);
    if let Some(series) = event.get("series") {
        last = since(field(series, "lastObservedTime"), now);
        count = int(series, "/count").unwrap_or(0);
    }
    let kind = text(event, "/involvedObject/kind").to_lowercase();
    let object = match text(event, "/involvedObject/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let host = match text(event, "/source/host") {
        "" => field(event, "reportingInstance"),
        host => host,
    };
    let source = if host.is_empty() { component(event).to_owned() } else { format!("{}, {host}", component(event)) };
    vec![
        last.into(),
        field(event, "type").into(),
        field(event, "reason").into(),
        object.into(),
        text(event, "/involvedObject/fieldPath").into(),
        source.into(),
        field(event, "message").trim().into(),
        first.into(),
        count.into(),
        name(event),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::NoObjects;
    use serde_json::json;

    #[test]
    fn two_faces_of_one_event() {
        let mut event = json!({"apiVersion": "events.k8s.io/v1", "metadata": {"name": "e"}, "note": "text",
            "eventTime": "2020-01-01T00:00:00.000001Z", "regarding": {"kind": "Pod", "name": "q"},
            "reportingController": "x/c", "deprecatedSource": {}, "deprecatedFirstTimestamp": null,
            "deprecatedLastTimestamp": null});
        let before = event.clone();
        encode(&mut event);
        assert_eq!(
            event,
            json!({"apiVersion": "v1", "metadata": {"name": "e"}, "message": "text", "source": {},
                "eventTime": "2020-01-01T00:00:00.000001Z", "involvedObject": {"kind": "Pod", "name": "q"},
                "reportingComponent": "x/c", "reportingInstance": "", "firstTimestamp": null, "lastTimestamp": null})
        );
        decode(&mut event);
        assert_eq!(event, before);
    }

    #[test]
    fn refusals() {
        let context = Context { now: "", namespace: Some("n"), subresource: "", objects: &NoObjects, random: &|| 7 };
        let mut event = json!({"regarding": {"namespace": "n"}, "reason": "x"});
        default_events(&mut event);
        let errors: Vec<String> = validate_events(&event, &context).into_iter().map(|e| e.to_string()).collect();
        assert_eq!(errors, ["eventTime: Required value", "type: Invalid value: \"\": has invalid value: "]);
        let event = json!({"involvedObject": {"namespace": "default"}});
        assert_eq!(involved(&event, "involvedObject", &context).len(), 1);
    }

    #[test]
    fn lines() {
        let event = json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "R", "message": "m\n", "count": 3,
            "involvedObject": {"kind": "Pod", "name": "p"}, "source": {"component": "c", "host": "h"},
            "firstTimestamp": "1970-01-01T00:00:00Z", "lastTimestamp": "1970-01-01T00:01:00Z"});
        let cells = json!(["60s", "Normal", "R", "pod/p", "", "c, h", "m", "2m", 3, "e"]);
        assert_eq!(Value::Array(row(&event, 120)), cells);
    }
}
