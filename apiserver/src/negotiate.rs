//! Which form an answer takes, by the request's `Accept` header.

use crate::error::{ApiError, ApiResult};

/// The encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
}

impl Encoding {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
        }
    }
}

/// What of an object an answer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Whole,
    /// `Table`, of this version of `meta.k8s.io`.
    Table(&'static str),
    /// `PartialObjectMetadata` or, for lists, `PartialObjectMetadataList`.
    Partial(&'static str),
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub encoding: Encoding,
    pub shape: Shape,
}

/// One range of an `Accept` header.
#[derive(Debug)]
pub(crate) struct MediaRange<'a> {
    pub media: &'a str,
    pub params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> MediaRange<'a> {
    pub(crate) fn param(&self, key: &str) -> Option<&'a str> {
        self.params.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }
}

/// The ranges of an `Accept` header, the most wanted first.
pub(crate) fn ranges(accept: &str) -> Vec<MediaRange<'_>> {
    let mut ranges: Vec<MediaRange<'_>> = accept
        .split(',')
        .filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().filter(|media| !media.is_empty())?;
            let params: Vec<(&str, &str)> = parts
                .filter_map(|param| param.split_once('='))
                .map(|(k, v)| (k.trim(), v.trim().trim_matches('"')))
                .collect();
            let quality = params.iter().find(|(k, _)| *k == "q").and_then(|(_, q)| q.parse().ok()).unwrap_or(1.0);
            Some(MediaRange { media, params, quality })
        })
        .collect();
    ranges.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    ranges
}

/// Chooses the form of an answer. `shapes` tells whether tables and partial objects are offered.
pub(crate) fn form(accept: Option<&str>, shapes: bool, watch: bool) -> ApiResult<Form> {
    let accept = accept.map(str::trim).filter(|accept| !accept.is_empty());
    let Some(accept) = accept else { return Ok(Form { encoding: Encoding::Json, shape: Shape::Whole }) };
    let mut unknown_shape = false;
    for range in ranges(accept) {
        let encoding = match range.media {
            "application/json" | "*/*" | "application/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            _ => continue,
        };
        let version = match (range.param("g"), range.param("v")) {
            (Some("meta.k8s.io"), Some("v1")) => Some("meta.k8s.io/v1"),
            (Some("meta.k8s.io"), Some("v1beta1")) => Some("meta.k8s.io/v1beta1"),
            _ => None,
        };
        let shape = match (range.param("as"), version) {
            (None, _) => Shape::Whole,
            (Some("Table"), Some(version)) if shapes => Shape::Table(version),
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some(version)) if shapes => {
                Shape::Partial(version)
            }
            _ => {
                unknown_shape = true;
                continue;
            }
        };
        return Ok(Form { encoding, shape });
    }
    Err(not_acceptable(unknown_shape, watch))
}

fn not_acceptable(unknown_shape: bool, watch: bool) -> ApiError {
    let mut known = "application/json, application/yaml".to_owned();
    if unknown_shape {
        return ApiError::new(406, "NotAcceptable", format!("only the following media types are accepted: {known}"));
    }
    if watch {
        known.push_str(", application/json;stream=watch");
    }
    ApiError::new(406, "NotAcceptable", format!("406: Not Acceptable\n\nAvailable representations: {known}"))
        .with_details(serde_json::json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_wanted_form_that_is_offered_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        for (accept, expected) in [
            (None, Some((Encoding::Json, Shape::Whole))),
            (Some("*/*"), Some((Encoding::Json, Shape::Whole))),
            (Some("application/yaml"), Some((Encoding::Yaml, Shape::Whole))),
            (Some("text/html, application/json;q=0.5"), Some((Encoding::Json, Shape::Whole))),
            (Some("application/json;q=0.1,application/yaml"), Some((Encoding::Yaml, Shape::Whole))),
            (Some(table), Some((Encoding::Json, Shape::Table("meta.k8s.io/v1")))),
            (Some("application/vnd.kubernetes.protobuf,application/json"), Some((Encoding::Json, Shape::Whole))),
            (Some("application/vnd.kubernetes.protobuf"), None),
            (Some("application/json;as=Nope;g=meta.k8s.io;v=v1"), None),
            (Some("text/html"), None),
        ] {
            let form = form(accept, true, false);
            assert_eq!(form.as_ref().ok().map(|f| (f.encoding, f.shape)), expected, "{accept:?}");
            assert!(form.is_ok() || form.is_err_and(|e| e.code == 406));
        }
    }
}
