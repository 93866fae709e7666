//! Paths that are not resources: health, version, metrics, discovery.

use super::Req;
use crate::error::{ApiError, ApiResult};
use crate::response::{self, Response};
use crate::server::Api;
use serde_json::json;
use std::sync::Arc;

/// The version of Kubernetes whose behaviour is served.
const MINOR: &str = "34";

impl Api {
    pub(super) async fn other(self: &Arc<Self>, req: &mut Req) -> ApiResult<Response> {
        let path = req.path.trim_end_matches('/').to_owned();
        if !matches!(req.method.as_str(), "GET" | "HEAD") {
            return Err(ApiError::method_not_allowed());
        }
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        match segments.as_slice() {
            ["healthz" | "livez" | "readyz", ..] => Ok(self.health(req, &segments)),
            ["version"] => Ok(response::json(200, &self.version())),
            ["metrics"] => Ok(response::text(200, self.metrics_text())),
            [] | ["api" | "apis", ..] | ["openapi", ..] => self.discovery(req, &segments),
            _ => Ok(response::page_not_found()),
        }
    }

    fn version(&self) -> serde_json::Value {
        json!({
            "major": "1", "minor": MINOR, "gitVersion": format!("v1.{MINOR}.0+muster.{}", env!("CARGO_PKG_VERSION")),
            "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "",
            "compiler": "rustc", "platform": format!("{}/{}", std::env::consts::OS, architecture()),
        })
    }

    /// `/livez` answers once requests are served at all; `/readyz` waits for all parts.
    fn health(&self, req: &Req, segments: &[&str]) -> Response {
        let mut checks = vec![("ping".to_owned(), true), ("store".to_owned(), true)];
        if segments[0] == "readyz" {
            checks.extend(self.readiness.parts());
        }
        if let [_, check] = segments {
            return match checks.iter().find(|(name, _)| name == check) {
                Some((_, true)) => response::text(200, "ok"),
                Some((_, false)) => response::text(500, format!("internal server error: {check} is not ready\n")),
                None => response::page_not_found(),
            };
        }
        if segments.len() > 2 {
            return response::page_not_found();
        }
        let excluded: Vec<&str> = req.query.all("exclude").collect();
        checks.retain(|(name, _)| !excluded.contains(&name.as_str()));
        let failed = checks.iter().any(|(_, ok)| !ok);
        if !failed && req.query.get("verbose").is_none() {
            return response::text(200, "ok");
        }
        let mut text = String::new();
        for (name, ok) in &checks {
            text.push_str(&if *ok {
                format!("[+]{name} ok\n")
            } else {
                format!("[-]{name} failed: reason withheld\n")
            });
        }
        let verdict = if failed { "failed" } else { "passed" };
        text.push_str(&format!("{} check {verdict}\n", segments[0]));
        response::text(if failed { 500 } else { 200 }, text)
    }

    fn metrics_text(&self) -> String {
        let mut text = String::from("# HELP apiserver_storage_objects Number of stored objects by resource.\n");
        text.push_str("# TYPE apiserver_storage_objects gauge\n");
        let mut seen = Vec::new();
        for served in self.registry.catalog().all() {
            if seen.contains(&served.storage) {
                continue;
            }
            seen.push(served.storage.clone());
            let resource = crate::registry::resource_name(&served.group, &served.plural);
            let count = self.store.count(&served.storage);
            text.push_str(&format!("apiserver_storage_objects{{resource=\"{resource}\"}} {count}\n"));
        }
        text.push_str("# HELP apiserver_storage_revision Newest durable revision.\n");
        text.push_str("# TYPE apiserver_storage_revision counter\n");
        text.push_str(&format!("apiserver_storage_revision {}\n", self.store.revision()));
        if let Some(metrics) = &self.metrics {
            text.push_str(&metrics());
        }
        text
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
