//! How things are shown: tables, objects, coloured lines.

mod lines;
mod table;

pub(crate) use lines::{Lines, Prefix};
pub(crate) use table::{Columns, Table};

use crate::cli::OutputFormat;
use crate::client::Kind;
use anyhow::Result;
use serde_json::Value;

/// An object as JSON, YAML or its name. Managed fields are left out: they are for machines.
pub(crate) fn object(value: &Value, kind: &Kind, format: OutputFormat) -> Result<String> {
    let mut value = value.clone();
    strip_managed_fields(&mut value);
    match format {
        OutputFormat::Json => Ok(serde_json::to_string_pretty(&value)?),
        OutputFormat::Yaml => Ok(serde_saphyr::to_string(&value)?.trim_end().to_owned()),
        OutputFormat::Name | OutputFormat::Wide => Ok(name(&value, kind)),
    }
}

/// `pytorchjob.kubeflow.org/NAME`
pub(crate) fn name(value: &Value, kind: &Kind) -> String {
    format!("{}/{}", kind.qualified(), value["metadata"]["name"].as_str().unwrap_or_default())
}

fn strip_managed_fields(value: &mut Value) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    if let Some(items) = value.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(strip_managed_fields);
    }
}

/// How long ago, as kubectl writes ages: `12s`, `5m3s`, `2h`, `3d4h`.
pub(crate) fn age(seconds: i64) -> String {
    let s = seconds.max(0);
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    let two = |a: i64, unit_a: &str, b: i64, unit_b: &str| {
        if b == 0 { format!("{a}{unit_a}") } else { format!("{a}{unit_a}{b}{unit_b}") }
    };
    match () {
        () if s < 120 => format!("{s}s"),
        () if m < 10 => two(m, "m", s % 60, "s"),
        () if m < 180 => format!("{m}m"),
        () if h < 8 => two(h, "h", m % 60, "m"),
        () if h < 48 => format!("{h}h"),
        () if d < 8 => two(d, "d", h % 24, "h"),
        () => format!("{d}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::age;

    #[test]
    fn ages_are_written_as_kubectl_writes_them() {
        for (seconds, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (303, "5m3s"),
            (3600, "60m"),
            (11_000, "3h3m"),
            (90_000, "25h"),
            (270_000, "3d3h"),
        ] {
            assert_eq!(age(seconds), want);
        }
    }
}
