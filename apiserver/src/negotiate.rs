//! Which form an answer takes, by the request's `Accept` header.

use crate::error::{ApiError, ApiResult};
use crate::protobuf;

/// The encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
            Encoding::Protobuf => protobuf::MEDIA_TYPE,
        }
    }
}

/// What of an object an answer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Whole,
    /// `Table`, of this version of `meta.k8s.io`.
    Table(&'static str),
    /// `PartialObjectMetadata`, or where the flag is set `PartialObjectMetadataList`.
    Partial(&'static str, bool),
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub encoding: Encoding,
    pub shape: Shape,
    /// Whether managed fields are told (in JSON, where leaving them out saves something).
    pub managers: bool,
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

/// What can be answered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Offer {
    /// Tables and partial objects.
    pub shapes: bool,
    pub protobuf: bool,
    /// Several objects, now or as they change.
    pub list: bool,
    /// As they change: frames one after the other, for which YAML is no form.
    pub watch: bool,
}

/// Chooses the form of an answer.
pub(crate) fn form(accept: Option<&str>, offer: Offer) -> ApiResult<Form> {
    let accept = accept.map(str::trim).filter(|accept| !accept.is_empty());
    let Some(accept) = accept else {
        return Ok(Form { encoding: Encoding::Json, shape: Shape::Whole, managers: true });
    };
    let mut unknown_shape = false;
    for range in ranges(accept) {
        let encoding = match range.media {
            "application/json" | "*/*" => Encoding::Json,
            "application/yaml" if !offer.watch => Encoding::Yaml,
            protobuf::MEDIA_TYPE if offer.protobuf => Encoding::Protobuf,
            _ => continue,
        };
        let version = match (range.param("g"), range.param("v")) {
            (Some("meta.k8s.io"), Some("v1")) => Some("meta.k8s.io/v1"),
            (Some("meta.k8s.io"), Some("v1beta1")) => Some("meta.k8s.io/v1beta1"),
            _ => None,
        };
        let shape = match (range.param("as"), version) {
            (None, _) => Shape::Whole,
            // Rows hold whatever they show, which is not known beforehand.
            (Some("Table"), Some(_)) if encoding == Encoding::Protobuf => continue,
            (Some("Table"), Some(version)) if offer.shapes => Shape::Table(version),
            (Some("PartialObjectMetadata"), Some(version)) if offer.shapes => Shape::Partial(version, false),
            (Some("PartialObjectMetadataList"), Some(version)) if offer.shapes => Shape::Partial(version, true),
            _ => {
                unknown_shape = true;
                continue;
            }
        };
        return Ok(Form { encoding, shape, managers: true });
    }
    Err(not_acceptable(unknown_shape, offer))
}

fn not_acceptable(unknown_shape: bool, offer: Offer) -> ApiError {
    let binary = |text: &str| if offer.protobuf { format!(", {}{text}", protobuf::MEDIA_TYPE) } else { String::new() };
    let mut known = format!("application/json, application/yaml{}", binary(""));
    if unknown_shape {
        return ApiError::new(406, "NotAcceptable", format!("only the following media types are accepted: {known}"));
    }
    if offer.list {
        known.push_str(&format!(", application/json;stream=watch{}", binary(";stream=watch")));
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
        let json = Some((Encoding::Json, Shape::Whole));
        for (accept, expected) in [
            (None, json),
            (Some("*/*"), Some((Encoding::Json, Shape::Whole))),
            (Some("application/yaml"), Some((Encoding::Yaml, Shape::Whole))),
            (Some("text/html, application/json;q=0.5"), Some((Encoding::Json, Shape::Whole))),
            (Some("application/json;q=0.1,application/yaml"), Some((Encoding::Yaml, Shape::Whole))),
            (Some(table), Some((Encoding::Json, Shape::Table("meta.k8s.io/v1")))),
            (Some("application/vnd.kubernetes.protobuf,application/json"), Some((Encoding::Protobuf, Shape::Whole))),
            (Some("application/vnd.kubernetes.protobuf"), Some((Encoding::Protobuf, Shape::Whole))),
            (Some("application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1, application/json"), json),
            (Some("application/*"), None),
            (Some("application/json;as=Nope;g=meta.k8s.io;v=v1"), None),
            (Some("text/html"), None),
        ] {
            let form = form(accept, Offer { shapes: true, protobuf: true, ..Offer::default() });
            assert_eq!(form.as_ref().ok().map(|f| (f.encoding, f.shape)), expected, "{accept:?}");
            assert!(form.is_ok() || form.is_err_and(|e| e.code == 406));
        }
    }
}
