//! HorizontalPodAutoscalers: stored as `autoscaling/v2`, with `v1` as a second face.

use super::columns::{Column, Doc};
use super::metadata::NOT_NEGATIVE;
use super::rows::{AGE, NAME, age, name, or_unset};
use super::table::WITH_STATUS;
use super::value::{child, field, fields, fill, int, items, items_mut, list, text};
use super::{BuiltinKind, StoredAs, idle, wire};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus};
use muster_api::field::FieldError;
use schemars::JsonSchema;
use serde_json::{Value, json};

pub(super) const KINDS: &[BuiltinKind] = &[
    BuiltinKind {
        version: "v1",
        default: |scaler| {
            wire::normalise(scaler);
            fill(child(scaler, "spec"), "minReplicas", 1);
            let status = child(scaler, "status");
            fill(status, "currentReplicas", 0);
            fill(status, "desiredReplicas", 0);
        },
        stored_as: Some(StoredAs { group: "autoscaling", version: "v2", encode, decode }),
        ..SCALER
    },
    SCALER,
];

const SCALER: BuiltinKind = BuiltinKind {
    group: "autoscaling",
    version: "v2",
    kind: "HorizontalPodAutoscaler",
    plural: "horizontalpodautoscalers",
    singular: "horizontalpodautoscaler",
    short_names: &["hpa"],
    categories: &["all"],
    idle: idle::SCALER,
    default,
    prepare_create: |scaler, _| {
        fields(scaler).insert("status".into(), json!({"currentMetrics": null, "desiredReplicas": 0}));
    },
    validate: |scaler, _| validate(scaler),
    columns: &[
        NAME,
        Column::new("Reference", Doc::Field(HorizontalPodAutoscalerSpec::json_schema, "scaleTargetRef")),
        Column::new("Targets", Doc::Field(HorizontalPodAutoscalerSpec::json_schema, "metrics")),
        Column::new("MinPods", Doc::Field(HorizontalPodAutoscalerSpec::json_schema, "minReplicas")),
        Column::new("MaxPods", Doc::Field(HorizontalPodAutoscalerSpec::json_schema, "maxReplicas")),
        Column::new("Replicas", Doc::Field(HorizontalPodAutoscalerStatus::json_schema, "currentReplicas")),
        AGE,
    ],
    row,
    ..WITH_STATUS
};

fn default(scaler: &mut Value) {
    wire::normalise(scaler);
    let status = child(scaler, "status");
    fill(status, "currentMetrics", Value::Null);
    fill(status, "desiredReplicas", 0);
    let spec = child(scaler, "spec");
    fill(spec, "minReplicas", 1);
    if items(spec, "metrics").is_empty() {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        fields(spec)
            .insert("metrics".into(), json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]));
    }
    for metric in items_mut(spec, "metrics") {
        for source in ["resource", "pods", "object", "external", "containerResource"] {
            if let Some(target) = metric.get_mut(source).and_then(|s| s.get_mut("target")) {
                for key in ["value", "averageValue"] {
                    if let Some(amount) = target.get_mut(key) {
                        wire::canonical_quantity(amount);
                    }
                }
            }
        }
    }
    if let Some(behavior) = spec.get_mut("behavior") {
        let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
        let up = child(behavior, "scaleUp");
        fill(up, "stabilizationWindowSeconds", 0);
        fill(up, "selectPolicy", "Max");
        fill(up, "policies", json!([pods, percent]));
        let down = child(behavior, "scaleDown");
        fill(down, "selectPolicy", "Max");
        fill(down, "policies", json!([percent]));
    }
}

const CPU: &str = "targetCPUUtilizationPercentage";

fn encode(scaler: &mut Value) {
    fields(scaler).insert("apiVersion".into(), "autoscaling/v2".into());
    let spec = child(scaler, "spec");
    if let Some(percent) = fields(spec).remove(CPU) {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        fields(spec)
            .insert("metrics".into(), json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]));
    }
    fields(child(scaler, "status")).remove("currentCPUUtilizationPercentage");
    default(scaler);
}

/// What `v1` cannot express, metrics other than cpu utilisation, is left out of this face.
fn decode(scaler: &mut Value) {
    fields(scaler).insert("apiVersion".into(), "autoscaling/v1".into());
    let spec = child(scaler, "spec");
    let percent = |metrics: &[Value], pointer: &str| {
        metrics.iter().find(|m| text(m, "/resource/name") == "cpu").and_then(|m| int(m, pointer))
    };
    let target = percent(items(spec, "metrics"), "/resource/target/averageUtilization");
    fields(spec).remove("metrics");
    fields(spec).remove("behavior");
    if let Some(target) = target {
        fill(spec, CPU, target);
    }
    let status = child(scaler, "status");
    let current = percent(items(status, "currentMetrics"), "/resource/current/averageUtilization");
    fields(status).retain(|key, _| {
        matches!(key.as_str(), "observedGeneration" | "lastScaleTime" | "currentReplicas" | "desiredReplicas")
    });
    fill(status, "currentReplicas", 0);
    if let Some(current) = current {
        fill(status, "currentCPUUtilizationPercentage", current);
    }
}

fn validate(scaler: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = json!({});
    let spec = scaler.get("spec").unwrap_or(&empty);
    let number = |key: &str| spec.get(key).and_then(Value::as_i64).unwrap_or(0);
    if number("minReplicas") < 1 {
        let value = number("minReplicas").into();
        errors.push(FieldError::invalid("spec.minReplicas", &value, "must be greater than or equal to 1"));
    }
    let max: Value = number("maxReplicas").into();
    if number("maxReplicas") < 1 {
        errors.push(FieldError::invalid("spec.maxReplicas", &max, "must be greater than 0"));
    }
    if number("maxReplicas") < number("minReplicas") {
        errors.push(FieldError::invalid("spec.maxReplicas", &max, "must be greater than or equal to `minReplicas`"));
    }
    for key in ["kind", "name"] {
        if text(spec, &format!("/scaleTargetRef/{key}")).is_empty() {
            errors.push(FieldError::required(format!("spec.scaleTargetRef.{key}"), ""));
        }
    }
    if let Some(percent) = spec.get(CPU).filter(|p| p.as_i64() < Some(1)) {
        errors.push(FieldError::invalid(format!("spec.{CPU}"), percent, "must be greater than 0"));
    }
    for (i, metric) in items(spec, "metrics").iter().enumerate() {
        let path = format!("spec.metrics[{i}]");
        let kinds = ["ContainerResource", "External", "Object", "Pods", "Resource"];
        let kind = field(metric, "type");
        if kind.is_empty() {
            errors.push(FieldError::required(format!("{path}.type"), "must specify a metric source type"));
        } else if !kinds.contains(&kind) {
            errors.push(FieldError::not_supported(format!("{path}.type"), &Value::from(kind), &kinds));
        }
    }
    if let Some(window) =
        spec.pointer("/behavior/scaleDown/stabilizationWindowSeconds").filter(|w| w.as_i64() < Some(0))
    {
        errors.push(FieldError::invalid("spec.behavior.scaleDown.stabilizationWindowSeconds", window, NOT_NEGATIVE));
    }
    errors
}

fn row(scaler: &Value, now: i64) -> Vec<Value> {
    let mut scaler_v2 = scaler.clone();
    if field(scaler, "apiVersion") == "autoscaling/v1" {
        encode(&mut scaler_v2);
    }
    let scaler = &scaler_v2;
    let min = int(scaler, "/spec/minReplicas").map_or(String::new(), |n| n.to_string());
    let reference =
        format!("{}/{}", text(scaler, "/spec/scaleTargetRef/kind"), text(scaler, "/spec/scaleTargetRef/name"));
    vec![
        name(scaler),
        reference.into(),
        targets(scaler).into(),
        or_unset(&min),
        int(scaler, "/spec/maxReplicas").unwrap_or(0).into(),
        int(scaler, "/status/currentReplicas").unwrap_or(0).into(),
        age(scaler, now),
    ]
}

fn targets(scaler: &Value) -> String {
    let metrics = list(scaler, "/spec/metrics");
    if metrics.is_empty() {
        return "<none>".to_owned();
    }
    let shown: Vec<String> = metrics
        .iter()
        .enumerate()
        .map(|(i, metric)| {
            let current = list(scaler, "/status/currentMetrics").get(i);
            let of = |object: Option<&Value>, pointer: &str| {
                let value = object.and_then(|o| o.pointer(pointer));
                value.map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            };
            let kind = field(metric, "type");
            let source = format!("{}{}", kind[..1.min(kind.len())].to_lowercase(), &kind[1.min(kind.len())..]);
            let unknown = || "<unknown>".to_owned();
            let pair = |key: &str| {
                let target = of(Some(metric), &format!("/{source}/target/{key}"))?;
                Some((of(current, &format!("/{source}/current/{key}")).unwrap_or_else(unknown), target))
            };
            let text = match (pair("averageUtilization"), pair("averageValue").or_else(|| pair("value"))) {
                (Some((now, target)), _) => {
                    let now = if now.starts_with('<') { now } else { format!("{now}%") };
                    format!("{now}/{target}%")
                }
                (None, Some((now, target))) => format!("{now}/{target}"),
                (None, None) => unknown(),
            };
            match kind {
                "Resource" | "ContainerResource" => format!("{}: {text}", field(&metric[source.as_str()], "name")),
                _ => text,
            }
        })
        .collect();
    let more = shown.len().saturating_sub(2);
    let list = shown.into_iter().take(2).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{list} + {more} more...") } else { list }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions() {
        let mut scaler = json!({"apiVersion": "autoscaling/v1", "metadata": {"name": "h"}, "spec": {"maxReplicas": 3,
            "scaleTargetRef": {"kind": "Deployment", "name": "d"}, CPU: 50}});
        encode(&mut scaler);
        assert_eq!(scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
        assert_eq!(validate(&scaler), []);
        assert_eq!(row(&scaler, 0)[1..5], [json!("Deployment/d"), json!("cpu: <unknown>/50%"), json!("1"), json!(3)]);
        decode(&mut scaler);
        assert_eq!(scaler["spec"][CPU], 50);
        assert_eq!(scaler["spec"].get("metrics"), None);
    }

    #[test]
    fn bounds() {
        let mut scaler = json!({"spec": {"minReplicas": 4, "maxReplicas": 2}});
        default(&mut scaler);
        let errors: Vec<String> = validate(&scaler).into_iter().map(|e| e.field).collect();
        assert_eq!(errors, ["spec.maxReplicas", "spec.scaleTargetRef.kind", "spec.scaleTargetRef.name"]);
    }
}
