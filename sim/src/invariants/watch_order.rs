//! No watch goes back in time: the resource versions of its events grow, as the server sends them.

use serde::Deserialize;

pub const NAME: &str = "watch-order";

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: Object<'a>,
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow, default)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize, Default)]
struct Metadata<'a> {
    #[serde(rename = "resourceVersion", default)]
    version: &'a str,
}

/// One watch, as far as it has come.
#[derive(Default)]
pub struct WatchOrder {
    version: u64,
    /// The objects that there are already come in the order of their names.
    initial: bool,
}

impl WatchOrder {
    /// The watch that is asked for by `query`.
    pub fn new(query: &str) -> WatchOrder {
        let parameter = |name| query.split('&').filter_map(|part| part.split_once('=')).find(|(key, _)| *key == name);
        let version = parameter("resourceVersion").and_then(|(_, version)| version.parse().ok()).unwrap_or(0);
        // Without a version it begins with the objects that there are.
        WatchOrder { version, initial: version == 0 }
    }

    /// Looks at the next line of a watch.
    pub fn observe(&mut self, line: &[u8]) -> Result<(), String> {
        let line: Line<'_> = serde_json::from_slice(line).map_err(|error| format!("an unreadable event: {error}"))?;
        if line.kind == "ERROR" {
            return Ok(());
        }
        let Ok(version) = line.object.metadata.version.parse::<u64>() else {
            return Err(format!("an event {} without a version", line.kind));
        };
        if self.initial && line.kind == "ADDED" {
            return Ok(());
        }
        self.initial = false;
        // A bookmark repeats the version of the last event, or is past it.
        let goes_on = if line.kind == "BOOKMARK" { version >= self.version } else { version > self.version };
        if !goes_on {
            return Err(format!("{} of version {version} after version {}", line.kind, self.version));
        }
        self.version = version;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str, version: u32) -> Vec<u8> {
        let metadata = serde_json::json!({"name": "x", "resourceVersion": version.to_string()});
        serde_json::json!({"type": kind, "object": {"kind": "Pod", "metadata": metadata}}).to_string().into_bytes()
    }

    #[test]
    fn versions_grow() {
        let mut order = WatchOrder::new("watch=true&resourceVersion=4");
        for (kind, version, fits) in [
            ("ADDED", 4, false),
            ("ADDED", 5, true),
            ("MODIFIED", 7, true),
            ("BOOKMARK", 7, true),
            ("DELETED", 7, false),
            ("ADDED", 6, false),
        ] {
            assert_eq!(order.observe(&line(kind, version)).is_ok(), fits, "{kind} {version}");
        }
    }
}
