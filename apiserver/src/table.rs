//! `Table` answers: what `kubectl get` prints.

use crate::error::{ApiError, ApiResult};
use crate::registry::{Served, Source};
use jiff::Timestamp;
use serde_json::{Value, json};

/// What each row carries of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    Metadata,
    Object,
    None,
}

impl Include {
    pub(crate) fn parse(text: Option<&str>) -> ApiResult<Self> {
        match text.unwrap_or_default() {
            "" | "Metadata" => Ok(Include::Metadata),
            "Object" => Ok(Include::Object),
            "None" => Ok(Include::None),
            other => Err(ApiError::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', \
                 'Object', 'None', or empty"
            ))),
        }
    }
}

/// A table of the objects; a watch leaves out the columns after its first one.
pub(crate) fn table(
    served: &Served,
    version: &str,
    metadata: Value,
    objects: &[Value],
    include: Include,
    now: Timestamp,
    columns: bool,
) -> Value {
    let rows: Vec<Value> = objects.iter().map(|object| row(served, version, object, include, now)).collect();
    let columns = if columns { definitions(served) } else { Value::Array(Vec::new()) };
    json!({"kind": "Table", "apiVersion": version, "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}

fn definitions(served: &Served) -> Value {
    match &served.source {
        Source::Builtin(kind) => (*kind.column_definitions()).clone(),
        Source::Custom(kind) => kind.column_definitions(),
    }
}

fn row(served: &Served, version: &str, object: &Value, include: Include, now: Timestamp) -> Value {
    let (cells, conditions) = match &served.source {
        Source::Builtin(kind) => ((kind.row)(object, now.as_second()), (kind.row_conditions)(object)),
        Source::Custom(kind) => (kind.cells(object, now.as_second()), Vec::new()),
    };
    let mut row = json!({"cells": cells});
    if !conditions.is_empty() {
        row["conditions"] = conditions.into();
    }
    match include {
        Include::None => row["object"] = Value::Null,
        Include::Object => row["object"] = object.clone(),
        Include::Metadata => {
            row["object"] =
                json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": object["metadata"]});
        }
    }
    row
}
