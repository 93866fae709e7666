//! The image table: what an image's name stands for on this machine.
//!
//! ```toml
//! [[image]]
//! match = "docker.io/kubeflow/*"      # `*` stands for any text; the first entry that matches counts
//! folder = "/srv/kubeflow"            # one of folder, venv, oci, host
//! command = ["python", "train.py"]    # optional: the image's own command, for containers that give none
//! ```
//! * `folder`: the folder's content is seen at the root, over what the machine has there; the working folder is the
//!   folder itself, and its `bin` comes first on the PATH.
//! * `venv`: a Python virtual environment: its `bin` comes first on the PATH.
//! * `oci`: an unpacked OCI bundle (`config.json` and `rootfs/`, as `umoci unpack` makes it).
//! * `host = true`: this machine as it is.
//!
//! `host` and `muster-worker` are built in. A relative path counts from the table's own folder.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// No sane table or OCI configuration is larger.
const MAX_FILE: u64 = 4 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    Host,
    Worker,
    Folder { folder: PathBuf },
    Venv { venv: PathBuf },
    Oci { bundle: PathBuf },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pattern: String,
    image: Image,
    command: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("failed to read the image table {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the image table {path} is not valid: {message}")]
    Parse { path: PathBuf, message: String },
}

/// Why an image cannot be used, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error(
        "no entry of the image table matches \"{image}\"; add to {table}:\n[[image]]\nmatch = \"{pattern}\"\nhost = \
         true        # or: folder = \"/path\", venv = \"/path\", oci = \"/path/of/an/unpacked/bundle\""
    )]
    NoEntry { image: String, pattern: String, table: String },
    #[error("the image table maps \"{image}\" to {path}, which {what}")]
    Unusable { image: String, path: PathBuf, what: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    image: Vec<RawEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    r#match: String,
    folder: Option<PathBuf>,
    venv: Option<PathBuf>,
    oci: Option<PathBuf>,
    host: Option<bool>,
    #[serde(default)]
    command: Vec<String>,
}

fn parse(text: &str, relative_to: &Path) -> Result<Vec<Entry>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    file.image
        .into_iter()
        .map(|raw| {
            let RawEntry { r#match: pattern, folder, venv, oci, host, command } = raw;
            let image = match (folder, venv, oci, host) {
                (Some(folder), None, None, None) => Image::Folder { folder: relative_to.join(folder) },
                (None, Some(venv), None, None) => Image::Venv { venv: relative_to.join(venv) },
                (None, None, Some(bundle), None) => Image::Oci { bundle: relative_to.join(bundle) },
                (None, None, None, Some(true)) => Image::Host,
                _ => return Err(format!("the entry for \"{pattern}\" needs one of folder, venv, oci, host = true")),
            };
            if pattern.is_empty() {
                return Err("an entry has an empty match".to_owned());
            }
            Ok(Entry { pattern, image, command })
        })
        .collect()
}

/// The table, read again when its file changes, so that an entry that was missing helps at the next try.
#[derive(Clone, Debug)]
pub struct ImageTable {
    /// Where it is, or where it would be.
    path: Option<PathBuf>,
    loaded: Arc<Mutex<Loaded>>,
}

#[derive(Debug, Default)]
struct Loaded {
    entries: Arc<Vec<Entry>>,
    changed: Option<SystemTime>,
}

impl ImageTable {
    /// Fails where the file exists and is not a table. `path` need not exist yet.
    pub fn open(path: Option<PathBuf>) -> Result<ImageTable, TableError> {
        let table = ImageTable { path, loaded: Arc::default() };
        table.load()?;
        Ok(table)
    }

    /// A fixed table, of no file.
    pub fn fixed(entries: Vec<Entry>) -> ImageTable {
        let loaded = Loaded { entries: Arc::new(entries), changed: None };
        ImageTable { path: None, loaded: Arc::new(Mutex::new(loaded)) }
    }

    /// Every image is this machine: for a simulated node.
    pub fn everything_is_host() -> ImageTable {
        ImageTable::fixed(vec![Entry { pattern: "*".to_owned(), image: Image::Host, command: Vec::new() }])
    }

    fn load(&self) -> Result<Arc<Vec<Entry>>, TableError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &self.path else { return Ok(loaded.entries.clone()) };
        let changed = fs::metadata(path).and_then(|m| m.modified()).ok();
        if changed == loaded.changed {
            return Ok(loaded.entries.clone());
        }
        let entries = match changed {
            None => Vec::new(),
            Some(_) => {
                let text = read_bounded(path).map_err(|source| TableError::Read { path: path.clone(), source })?;
                parse(&text, path.parent().unwrap_or(Path::new("/")))
                    .map_err(|message| TableError::Parse { path: path.clone(), message })?
            }
        };
        *loaded = Loaded { entries: Arc::new(entries), changed };
        Ok(loaded.entries.clone())
    }

    /// What the image is here, and its own command.
    pub fn resolve(&self, image: &str) -> Result<(Image, Vec<String>), ImageError> {
        let entries = self.load().unwrap_or_else(|error| {
            tracing::warn!(%error, "keeping the image table as it was");
            self.loaded.lock().unwrap_or_else(PoisonError::into_inner).entries.clone()
        });
        let found = entries.iter().find(|entry| names(image).iter().any(|name| matches(&entry.pattern, name)));
        let built_in = match untagged(image) {
            "host" => Some((Image::Host, Vec::new())),
            "muster-worker" => Some((Image::Worker, Vec::new())),
            _ => None,
        };
        match (found, built_in) {
            (Some(entry), _) => {
                usable(image, &entry.image)?;
                Ok((entry.image.clone(), entry.command.clone()))
            }
            (None, Some(built_in)) => Ok(built_in),
            (None, None) => Err(ImageError::NoEntry {
                image: image.to_owned(),
                pattern: untagged(image).to_owned(),
                table: self.path.as_ref().map_or("the image table".to_owned(), |path| path.display().to_string()),
            }),
        }
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(std::io::Error::other("the file is too large"));
    }
    fs::read_to_string(path)
}

fn usable(image: &str, found: &Image) -> Result<(), ImageError> {
    let wrong = |path: &Path, what: &str| {
        Err(ImageError::Unusable { image: image.to_owned(), path: path.to_owned(), what: what.to_owned() })
    };
    match found {
        Image::Host | Image::Worker => Ok(()),
        Image::Folder { folder } if folder.is_dir() => Ok(()),
        Image::Folder { folder } => wrong(folder, "is not a folder"),
        Image::Venv { venv } if venv.join("bin").is_dir() => Ok(()),
        Image::Venv { venv } => wrong(venv, "is not a virtual environment: it has no folder bin"),
        Image::Oci { bundle } if bundle.join("rootfs").is_dir() => Ok(()),
        Image::Oci { bundle } if bundle.join("index.json").is_file() => wrong(
            bundle,
            "is a packed image: unpack it with `umoci unpack --image IMAGE:TAG BUNDLE` and name the bundle",
        ),
        Image::Oci { bundle } => wrong(bundle, "is not an unpacked OCI bundle: it has no folder rootfs"),
    }
}

/// The names that a pattern may match: as written and in full, with and without tag.
fn names(image: &str) -> Vec<String> {
    let first = image.split('/').next().unwrap_or_default();
    let has_registry = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let full = match (has_registry, image.contains('/')) {
        (true, _) => image.to_owned(),
        (false, true) => format!("docker.io/{image}"),
        (false, false) => format!("docker.io/library/{image}"),
    };
    let mut names = vec![image.to_owned(), full.clone(), untagged(image).to_owned(), untagged(&full).to_owned()];
    names.dedup();
    names
}

/// Without tag and digest.
fn untagged(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

/// Whether the text fits a pattern in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

/// What an unpacked OCI image says of its process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OciProcess {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: PathBuf,
}

pub(crate) fn oci_process(bundle: &Path) -> OciProcess {
    let text = read_bounded(&bundle.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let words = |key: &str| -> Vec<String> {
        config["process"][key].as_array().into_iter().flatten().filter_map(|v| v.as_str()).map(str::to_owned).collect()
    };
    let env = words("env");
    OciProcess {
        args: words("args"),
        env: env.iter().filter_map(|v| v.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        cwd: PathBuf::from(config["process"]["cwd"].as_str().unwrap_or("/")),
    }
}

/// The machine's own environment, worker and libraries.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The environment that `muster up` was started in.
    pub env: BTreeMap<String, String>,
    /// Where it was started.
    pub cwd: PathBuf,
    pub worker_exe: PathBuf,
    /// The folder of libtorch's shared libraries, put on the worker's LD_LIBRARY_PATH.
    pub libtorch: Option<PathBuf>,
}

/// What a process of an image starts with, before the container's own settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ground {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) command: Vec<String>,
    pub(crate) cwd: PathBuf,
    pub(crate) rootfs: Option<PathBuf>,
    /// (what, seen where)
    pub(crate) overlays: Vec<(PathBuf, PathBuf)>,
}

impl Host {
    pub(crate) fn ground(&self, image: &Image, command: Vec<String>) -> Ground {
        let mut env = self.env.clone();
        let default = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let path = env.entry("PATH".to_owned()).or_insert_with(|| default.to_owned());
        let mut ground = Ground {
            env: Vec::new(),
            command,
            cwd: if self.cwd.as_os_str().is_empty() { PathBuf::from("/") } else { self.cwd.clone() },
            rootfs: None,
            overlays: Vec::new(),
        };
        match image {
            Image::Host => {}
            Image::Worker => {
                if let Some(dir) = self.worker_exe.parent() {
                    *path = format!("{}:{path}", dir.display());
                }
                if let Some(libtorch) = &self.libtorch {
                    let before = env.get("LD_LIBRARY_PATH").filter(|v| !v.is_empty());
                    let value = before.map_or_else(
                        || libtorch.display().to_string(),
                        |before| format!("{}:{before}", libtorch.display()),
                    );
                    env.insert("LD_LIBRARY_PATH".to_owned(), value);
                }
                if ground.command.is_empty() {
                    ground.command = vec![self.worker_exe.display().to_string()];
                }
            }
            Image::Folder { folder } => {
                *path = format!("{}:{path}", folder.join("bin").display());
                ground.cwd = folder.clone();
                overlay(folder, Path::new("/"), 0, &mut ground.overlays);
            }
            Image::Venv { venv } => {
                *path = format!("{}:{path}", venv.join("bin").display());
                env.insert("VIRTUAL_ENV".to_owned(), venv.display().to_string());
                env.remove("PYTHONHOME");
            }
            Image::Oci { bundle } => {
                let process = oci_process(bundle);
                if ground.command.is_empty() {
                    ground.command = process.args;
                }
                ground.cwd = process.cwd;
                ground.rootfs = Some(bundle.join("rootfs"));
                env = process.env.into_iter().collect();
                env.entry("PATH".to_owned()).or_insert_with(|| default.to_owned());
            }
        }
        ground.env = env.into_iter().collect();
        ground
    }
}

/// What of a folder is to be seen where: whole where the machine has nothing of that name, else what is below.
fn overlay(folder: &Path, at: &Path, depth: usize, overlays: &mut Vec<(PathBuf, PathBuf)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let (source, target) = (entry.path(), at.join(entry.file_name()));
        // Deeper than this it is no image's layout, and a link may lead in a circle.
        if source.is_dir() && target.is_dir() && depth < 8 {
            overlay(&source, &target, depth + 1, overlays);
        } else if source.exists() && (depth > 0 || source.is_dir()) {
            overlays.push((source, target));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_with_and_without_registry_and_tag() {
        for (pattern, image, want) in [
            ("docker.io/kubeflow/*", "docker.io/kubeflow/pytorch:v1", true),
            ("docker.io/kubeflow/*", "kubeflow/pytorch", true),
            ("kubeflow/*", "kubeflow/pytorch:v1", true),
            ("python", "python:3.11", true),
            ("python:3.12", "python:3.11", false),
            ("docker.io/library/python", "python", true),
            ("*/mxnet*:cpu", "example.com/a/mxnet-gpu:cpu", true),
            ("*/mxnet*:cpu", "example.com/a/mxnet-gpu:gpu", false),
            ("registry:5000/a", "registry:5000/a:1", true),
            ("registry:5000/a", "registry:5000/ab", false),
            ("a@sha256:1", "a@sha256:1", true),
            ("*", "anything/at:all", true),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(names(image).iter().any(|name| matches(pattern, name)), want, "{pattern} {image}");
        }
    }

    #[test]
    fn the_first_entry_counts_and_what_is_wrong_is_said() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("images.toml");
        fs::create_dir_all(dir.path().join("env/bin")).expect("made");
        let table = ImageTable::open(Some(path.clone())).expect("a missing file is an empty table");
        assert_eq!(table.resolve("host"), Ok((Image::Host, vec![])));
        assert_eq!(table.resolve("muster-worker:latest"), Ok((Image::Worker, vec![])));
        let error = table.resolve("kubeflow/x:v1").expect_err("no entry").to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains("match = \"kubeflow/x\""), "{error}");

        fs::write(
            &path,
            "[[image]]\nmatch = \"kubeflow/*\"\nvenv = \"env\"\ncommand = [\"python\"]\n\n[[image]]\nmatch = \
             \"*\"\nfolder = \"none\"\n",
        )
        .expect("written");
        let venv = dir.path().join("env");
        assert_eq!(table.resolve("kubeflow/x:v1"), Ok((Image::Venv { venv }, vec!["python".to_owned()])));
        let error = table.resolve("other").expect_err("no such folder").to_string();
        assert!(error.ends_with("none, which is not a folder"), "{error}");

        for bad in
            ["[[image]]\nmatch = \"a\"\n", "[[image]]\nmatch = \"a\"\nhost = true\nvenv = \"b\"\n", "x = 1\n", "["]
        {
            fs::write(&path, bad).expect("written");
            assert!(ImageTable::open(Some(path.clone())).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_worker_finds_its_libraries() {
        let host = Host {
            env: BTreeMap::from([
                ("PATH".to_owned(), "/bin".to_owned()),
                ("LD_LIBRARY_PATH".to_owned(), "/x".to_owned()),
            ]),
            cwd: PathBuf::from("/"),
            worker_exe: PathBuf::from("/opt/muster/muster-worker"),
            libtorch: Some(PathBuf::from("/lib/torch")),
        };
        let ground = host.ground(&Image::Worker, vec![]);
        assert_eq!(ground.command, ["/opt/muster/muster-worker"]);
        let env: BTreeMap<_, _> = ground.env.into_iter().collect();
        assert_eq!(env["LD_LIBRARY_PATH"], "/lib/torch:/x");
        assert_eq!(env["PATH"], "/opt/muster:/bin");
        let host_env: BTreeMap<_, _> = host.ground(&Image::Host, vec![]).env.into_iter().collect();
        assert_eq!(host_env["LD_LIBRARY_PATH"], "/x");
    }
}
