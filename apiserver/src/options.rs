//! The options of requests: who writes, whether it counts, how strictly the body is read.

use crate::codec::FieldValidation;
use crate::error::{ApiError, ApiResult};
use crate::request::Query;
use http::HeaderMap;
use muster_api::field::{FieldError, Reason};
use serde_json::json;

/// `CreateOptions`, `UpdateOptions` and `PatchOptions`.
#[derive(Clone, Debug)]
pub(crate) struct WriteOptions {
    pub dry_run: bool,
    pub manager: String,
    pub validation: FieldValidation,
    pub force: bool,
}

impl WriteOptions {
    /// Of a write that Muster itself makes.
    pub(crate) fn internal(manager: &str) -> Self {
        WriteOptions { dry_run: false, manager: manager.to_owned(), validation: FieldValidation::Ignore, force: false }
    }

    /// `kind` is the name of the options in messages; `apply` is true for server-side apply.
    pub(crate) fn parse(kind: &str, query: &Query, headers: &HeaderMap, apply: bool) -> ApiResult<Self> {
        let mut errors = Vec::new();
        let dry_run = dry_run(query, &mut errors);
        let manager = query.get("fieldManager").unwrap_or_default();
        if manager.len() > 128 {
            errors.push(FieldError::too_long("fieldManager", 128));
        } else if let Some((at, c)) = manager.char_indices().find(|(_, c)| c.is_control()) {
            let why = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
            let shown: String = manager.chars().map(go_escape).collect();
            let message = format!("Invalid value: \"{shown}\": {why}");
            errors.push(FieldError::new(Reason::Invalid, "fieldManager", message));
        } else if apply && manager.is_empty() {
            errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        }
        let force = query.get("force").is_some();
        if force && !apply && kind == "PatchOptions" {
            errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
        }
        let validation = match query.get("fieldValidation").unwrap_or_default() {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let supported = ["", "Ignore", "Strict", "Warn"];
                errors.push(FieldError::not_supported("fieldValidation", &json!(other), &supported));
                FieldValidation::Warn
            }
        };
        refuse(kind, &errors)?;
        let manager = if manager.is_empty() { from_user_agent(headers) } else { manager.to_owned() };
        Ok(WriteOptions { dry_run, manager, validation, force: query.flag("force") })
    }
}

/// A character as Go quotes it.
fn go_escape(c: char) -> String {
    match c {
        '"' => "\\\"".to_owned(),
        '\\' => "\\\\".to_owned(),
        '\n' => "\\n".to_owned(),
        '\t' => "\\t".to_owned(),
        '\r' => "\\r".to_owned(),
        c if c.is_control() => format!("\\x{:02x}", u32::from(c)),
        c => c.to_string(),
    }
}

pub(crate) fn refuse(kind: &str, errors: &[FieldError]) -> ApiResult<()> {
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", kind, "", errors)) }
}

/// Whether the request is not to be carried out.
pub(crate) fn dry_run(query: &Query, errors: &mut Vec<FieldError>) -> bool {
    let values: Vec<&str> = query.all("dryRun").filter(|value| !value.is_empty()).collect();
    if values.iter().any(|value| *value != "All") {
        errors.push(FieldError::not_supported("dryRun", &json!(values), &["All"]));
    }
    !values.is_empty()
}

/// A client that does not name its field manager is known by the start of its user agent.
fn from_user_agent(headers: &HeaderMap) -> String {
    let agent = headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name: String =
        agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(128).collect();
    if name.is_empty() { "unknown".to_owned() } else { name }
}

/// Which moment a list or a watch is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VersionMatch {
    Unset,
    Exact,
    NotOlderThan,
}

/// `ListOptions`.
#[derive(Clone, Debug)]
pub(crate) struct ListOptions {
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout: Option<u64>,
    pub limit: usize,
    pub continue_token: Option<String>,
    /// Empty or a number.
    pub resource_version: Option<u64>,
    pub version_match: VersionMatch,
}

impl ListOptions {
    pub(crate) fn parse(query: &Query) -> ApiResult<Self> {
        let watch = query.flag("watch");
        let limit = query.integer("limit")?.unwrap_or(0);
        let timeout = query.integer("timeoutSeconds")?;
        let version_text = query.text("resourceVersion");
        let match_text = query.text("resourceVersionMatch");
        let mut send_initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let bookmarks = query.flag("allowWatchBookmarks");
        let mut errors = Vec::new();
        let field = "resourceVersionMatch";
        if watch {
            match (send_initial_events, match_text) {
                (Some(_), Some("NotOlderThan")) | (None, None) => {}
                (Some(_), other) => {
                    let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                    errors.push(FieldError::forbidden(field, why));
                    if let Some(other) = other {
                        errors.push(FieldError::not_supported(field, &json!(other), &["NotOlderThan"]));
                    }
                }
                (None, Some(other)) => {
                    let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                    errors.push(FieldError::forbidden(field, why));
                    if other != "NotOlderThan" {
                        errors.push(FieldError::not_supported(field, &json!(other), &["NotOlderThan"]));
                    }
                }
            }
        } else {
            if send_initial_events.is_some() {
                errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
            }
            match match_text {
                None => {}
                Some(_) if version_text.is_none() => {
                    let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                    errors.push(FieldError::forbidden(field, why));
                }
                Some(_) if query.text("continue").is_some() => {
                    let why = "resourceVersionMatch is forbidden when continue is provided";
                    errors.push(FieldError::forbidden(field, why));
                }
                Some("Exact") if version_text == Some("0") => {
                    let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                    errors.push(FieldError::forbidden(field, why));
                }
                Some("Exact" | "NotOlderThan") => {}
                Some(other) => {
                    let supported = ["Exact", "NotOlderThan", ""];
                    errors.push(FieldError::not_supported(field, &json!(other), &supported));
                }
            }
        }
        refuse("ListOptions", &errors)?;
        let resource_version = version(version_text).map_err(|mut error| {
            if !watch {
                error.message.insert_str(0, "invalid resource version: ");
            }
            error
        })?;
        if watch && bookmarks && send_initial_events.is_none() && resource_version.unwrap_or(0) == 0 {
            // A watch from nowhere in particular that takes bookmarks is told when it has seen the present.
            send_initial_events = Some(true);
        }
        Ok(ListOptions {
            bookmarks,
            send_initial_events,
            timeout: timeout.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0),
            limit: usize::try_from(limit).unwrap_or(0),
            continue_token: query.text("continue").map(str::to_owned),
            resource_version,
            version_match: match match_text {
                Some("Exact") => VersionMatch::Exact,
                Some("NotOlderThan") => VersionMatch::NotOlderThan,
                _ => VersionMatch::Unset,
            },
        })
    }
}

/// Parses a resource version.
pub(crate) fn version(text: Option<&str>) -> ApiResult<Option<u64>> {
    let Some(text) = text else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        ApiError::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}
