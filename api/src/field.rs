//! Field errors: what is wrong with which field of an object, in the words and shapes of the Kubernetes API
//! (`k8s.io/apimachinery/pkg/util/validation/field`).

use serde_json::Value;
use std::fmt;

/// The machine-readable reason of one field error; it becomes the `reason` of a Status cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    Required,
    Invalid,
    Duplicate,
    NotSupported,
    Forbidden,
    NotFound,
    TooLong,
    TooMany,
    TypeInvalid,
    InternalError,
}

impl Reason {
    /// The `reason` string of a Status cause, e.g. `FieldValueInvalid`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Required => "FieldValueRequired",
            Reason::Invalid => "FieldValueInvalid",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::NotFound => "FieldValueNotFound",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TooMany => "FieldValueTooMany",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
            Reason::InternalError => "InternalError",
        }
    }
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    pub reason: Reason,
    /// The path as Kubernetes writes it: `spec.containers[0].image`, `metadata.labels`, `spec.map[key]`.
    pub field: String,
    /// The message without the path, e.g. `Invalid value: "x": must be greater than zero`.
    pub message: String,
}

impl FieldError {
    pub fn new(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Self {
        FieldError { reason, field: field.into(), message: message.into() }
    }

    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new(Reason::Required, field, with_detail("Required value".to_owned(), detail))
    }

    pub fn invalid(field: impl Into<String>, value: &Value, detail: impl AsRef<str>) -> Self {
        Self::new(Reason::Invalid, field, with_detail(format!("Invalid value: {}", render(value)), detail.as_ref()))
    }

    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: impl AsRef<str>) -> Self {
        Self::new(Reason::TypeInvalid, field, with_detail(format!("Invalid value: {}", render(value)), detail.as_ref()))
    }

    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(Reason::Duplicate, field, format!("Duplicate value: {}", render(value)))
    }

    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list = supported.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", ");
        Self::new(
            Reason::NotSupported,
            field,
            format!("Unsupported value: {}: supported values: {list}", render(value)),
        )
    }

    pub fn forbidden(field: impl Into<String>, detail: impl AsRef<str>) -> Self {
        Self::new(Reason::Forbidden, field, with_detail("Forbidden".to_owned(), detail.as_ref()))
    }

    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new(Reason::NotFound, field, format!("Not found: {}", render(value)))
    }

    /// A string longer than `max` bytes. Kubernetes leaves the value out of the message.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self::new(Reason::TooLong, field, format!("Too long: may not be more than {max} bytes"))
    }

    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        Self::new(Reason::TooMany, field, format!("Too many: {actual}: must have at most {max} items"))
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Joins several errors as Kubernetes does: equal ones once, one alone as it is, more in brackets.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for text in errors.iter().map(ToString::to_string) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match &texts[..] {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn with_detail(head: String, detail: &str) -> String {
    if detail.is_empty() { head } else { format!("{head}: {detail}") }
}

/// A value as Kubernetes prints it inside a field error: strings quoted, numbers and booleans bare, the rest as JSON.
fn render(value: &Value) -> String {
    value.to_string()
}
