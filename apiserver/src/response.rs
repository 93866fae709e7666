//! Building answers.

use crate::error::ApiError;
use crate::negotiate::Encoding;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WARNING};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::Value;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request or an answer, perhaps a stream.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

pub type Response = http::Response<Body>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn bytes(code: u16, content_type: &str, body: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(full(body));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}

pub(crate) fn json(code: u16, value: &Value) -> Response {
    bytes(code, "application/json", value.to_string())
}

pub(crate) fn text(code: u16, text: impl Into<Bytes>) -> Response {
    bytes(code, "text/plain; charset=utf-8", text)
}

/// What Go's router answers to a path that nobody serves.
pub(crate) fn page_not_found() -> Response {
    text(404, "404 page not found\n")
}

pub(crate) fn error(error: &ApiError, encoding: Encoding) -> Response {
    let mut response = crate::handlers::encode(encoding, error.code, &error.to_status());
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds one `Warning` header a warning, each once.
pub(crate) fn warn(response: &mut Response, warnings: &[String]) {
    for (place, warning) in warnings.iter().enumerate() {
        if warnings[..place].contains(warning) {
            continue;
        }
        let quoted: String = warning
            .chars()
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c if c.is_control() => vec![' '],
                c => vec![c],
            })
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}
