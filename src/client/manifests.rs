//! Manifests from files: YAML (several documents) or JSON, lists taken apart.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manifest {
    pub(crate) object: Value,
    /// Where it is from, for messages.
    pub(crate) source: String,
}

impl Manifest {
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
}

/// The objects of files, folders and `-`.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("failed to read standard input")?;
            manifests.extend(read_text(&text, "standard input")?);
        } else if path.is_dir() {
            for file in files_of(path)? {
                manifests.extend(read_file(&file)?);
            }
        } else {
            manifests.extend(read_file(path)?);
        }
    }
    if manifests.is_empty() {
        bail!("there is no object in {}", paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "));
    }
    Ok(manifests)
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = || format!("failed to read {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(fail)? {
        let path = entry.with_context(fail)?.path();
        if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Result<Vec<Manifest>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    read_text(&text, &path.display().to_string())
}

/// The objects of a text; `source` is how messages name it.
fn read_text(text: &str, source: &str) -> Result<Vec<Manifest>> {
    let documents: Vec<Value> = if text.trim_start().starts_with('{') {
        vec![serde_json::from_str(text).with_context(|| format!("{source} is not JSON"))?]
    } else {
        serde_saphyr::from_multiple(text).map_err(|e| anyhow::anyhow!("{source} is not YAML: {e}"))?
    };
    let mut manifests = Vec::new();
    for document in documents {
        match document {
            Value::Null => {}
            Value::Object(mut object)
                if object.get("kind").and_then(Value::as_str).is_some_and(|k| k.ends_with("List")) =>
            {
                let Some(Value::Array(items)) = object.remove("items") else { bail!("{source}: a list without items") };
                manifests.extend(items.into_iter().map(|object| Manifest { object, source: source.to_owned() }));
            }
            object @ Value::Object(_) => manifests.push(Manifest { object, source: source.to_owned() }),
            _ => bail!("{source}: a document is not an object with apiVersion and kind"),
        }
    }
    for manifest in &manifests {
        for field in ["/apiVersion", "/kind"] {
            if manifest.text(field).is_empty() {
                bail!("{source}: an object has no {}", &field[1..]);
            }
        }
    }
    Ok(manifests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let yaml = "---\n# nothing\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: b}}\n- {apiVersion: v1, kind: Secret, metadata: {name: c}}\n";
        let names: Vec<String> =
            read_text(yaml, "x").unwrap().iter().map(|m| m.text("/metadata/name").to_owned()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(read_text("{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}", "x").unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_manifest_is_said() {
        for (text, want) in
            [("- 1", "not an object"), ("kind: Pod", "apiVersion"), ("a: [", "YAML"), ("{\"a\"", "JSON")]
        {
            let error = format!("{:#}", read_text(text, "f.yaml").unwrap_err());
            assert!(error.contains(want) && error.contains("f.yaml"), "{error}");
        }
    }
}
