//! Reading checkpoints back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tch::{Tensor, no_grad};
use tracing::warn;

use super::shard::Name;
use super::state::kind_of;
use super::{CheckpointError, Progress, failed, json_name, steps};

/// Of the JSON file; raised when an older reader would misunderstand it.
pub(super) const FORMAT: u32 = 2;
const MAX_SIDECAR_BYTES: u64 = 16 << 20;
const MAX_SHARD_BYTES: u64 = 256 << 30;

/// What the JSON file says, but for its own checksum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sidecar {
    pub format: u32,
    pub muster: String,
    pub progress: Progress,
    pub shards: Vec<Shard>,
    pub sections: BTreeMap<String, Value>,
}

/// A file with tensors, in the same folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// It carries the checksum.
    pub file: String,
    pub bytes: u64,
}

/// The JSON file: the checksum is that of the text of `checkpoint`, as it stands there.
#[derive(Deserialize)]
struct Envelope<'a> {
    crc32: String,
    #[serde(borrow)]
    checkpoint: &'a RawValue,
}

impl Sidecar {
    pub(super) fn to_text(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("a sidecar is plain data");
        format!("{{\"crc32\": \"{:08x}\", \"checkpoint\": {text}}}\n", crc32fast::hash(text.as_bytes()))
    }
}

/// Reads a JSON file, without what it names.
pub(super) fn read_sidecar(path: &Path) -> Result<Sidecar, CheckpointError> {
    /// What every format has.
    #[derive(Deserialize)]
    struct Any {
        format: u32,
    }

    let damaged = |why: String| CheckpointError::Damaged { path: path.into(), why };
    let file = File::open(path).map_err(|source| failed("open", path, source))?;
    let mut text = Vec::new();
    file.take(MAX_SIDECAR_BYTES + 1).read_to_end(&mut text).map_err(|source| failed("read", path, source))?;
    if text.len() as u64 > MAX_SIDECAR_BYTES {
        return Err(damaged(format!("it has more than {MAX_SIDECAR_BYTES} bytes")));
    }
    let envelope: Envelope<'_> = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    let text = envelope.checkpoint.get();
    if format!("{:08x}", crc32fast::hash(text.as_bytes())) != envelope.crc32 {
        return Err(damaged("its checksum is not that of what it says".into()));
    }
    let Any { format } = serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
    if format != FORMAT {
        let why = format!("format {format} is not known here, only {FORMAT}");
        return Err(CheckpointError::Foreign { path: path.into(), why });
    }
    serde_json::from_str(text).map_err(|error| damaged(error.to_string()))
}

/// A checkpoint that has been read and checked, but not used yet.
#[derive(Debug)]
pub struct Loaded {
    pub sidecar: Sidecar,
    path: PathBuf,
    shards: Vec<Vec<u8>>,
    /// By name: the shard, where its tensors begin, and what the tensor is.
    tensors: BTreeMap<String, (usize, usize, TensorInfo)>,
}

/// Reads the latest sound checkpoint of a folder. Damaged ones are passed over with a warning that names them.
pub fn latest(folder: &Path) -> Result<Loaded, CheckpointError> {
    for step in steps(folder)? {
        match open(&folder.join(json_name(step))) {
            Ok(loaded) => return Ok(loaded),
            Err(error) => warn!("passing over the checkpoint of step {step}: {error}"),
        }
    }
    Err(CheckpointError::None { folder: folder.into() })
}

/// Reads one checkpoint, by its JSON file, or the latest of a folder.
pub fn open(path: &Path) -> Result<Loaded, CheckpointError> {
    if path.is_dir() {
        return latest(path);
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let sidecar = read_sidecar(path)?;
    let mut loaded = Loaded { sidecar, path: path.into(), shards: Vec::new(), tensors: BTreeMap::new() };
    for (index, shard) in loaded.sidecar.shards.iter().enumerate() {
        let (bytes, begin, metadata) = read_shard(folder, path, shard)?;
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, (index, begin, info.clone())));
        loaded.tensors.extend(tensors);
        loaded.shards.push(bytes);
    }
    Ok(loaded)
}

/// The bytes of a file with tensors, where the first of these begins, and what they are.
fn read_shard(folder: &Path, json: &Path, shard: &Shard) -> Result<(Vec<u8>, usize, Metadata), CheckpointError> {
    // A name without a path, by the way.
    let name = Name::parse(&shard.file).ok_or_else(|| CheckpointError::Damaged {
        path: json.into(),
        why: format!("{:?} is not a name of a file of a checkpoint", shard.file),
    })?;
    let path = folder.join(&shard.file);
    let damaged = |why: String| CheckpointError::Damaged { path: path.clone(), why };
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged("it is missing".into())),
        Err(source) => return Err(failed("open", &path, source)),
    };
    let length = file.metadata().map_err(|source| failed("read", &path, source))?.len();
    if length != shard.bytes || length > MAX_SHARD_BYTES {
        return Err(damaged(format!("it has {length} bytes, not {}", shard.bytes)));
    }
    let mut bytes = Vec::new();
    let room = bytes.try_reserve_exact(length as usize);
    room.map_err(|_| failed("find memory for", &path, io::ErrorKind::OutOfMemory.into()))?;
    file.by_ref().take(length).read_to_end(&mut bytes).map_err(|source| failed("read", &path, source))?;
    if crc32fast::hash(&bytes) != name.crc32 {
        return Err(damaged("its checksum is not the one in its name".into()));
    }
    let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(error.to_string()))?;
    Ok((bytes, 8 + header, metadata))
}

impl Loaded {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What was saved as plain data under this name; None where nothing was.
    pub fn section<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, CheckpointError> {
        let read = |value: &Value| T::deserialize(value).map_err(|error| self.foreign(format!("{name}: {error}")));
        self.sidecar.sections.get(name).map(read).transpose()
    }

    /// A section that every checkpoint of the run has.
    pub fn require<T: DeserializeOwned>(&self, name: &str) -> Result<T, CheckpointError> {
        self.section(name)?.ok_or_else(|| self.foreign(format!("it says nothing of its {name}")))
    }

    /// Copies tensors into those that are given with their names. All are checked before any is copied, so that a
    /// refusal leaves them as they were.
    pub fn restore<N: AsRef<str>>(
        &self,
        targets: impl IntoIterator<Item = (N, Tensor)>,
    ) -> Result<(), CheckpointError> {
        let mut copies = Vec::new();
        for (name, target) in targets {
            copies.push((self.find(name.as_ref(), &target)?, target));
        }
        no_grad(|| {
            for (bytes, mut target) in copies {
                target.copy_(&Tensor::from_data_size(bytes, &target.size(), target.kind()));
            }
        });
        Ok(())
    }

    /// As [`Loaded::restore`], for what [`super::State::views`] has saved.
    pub fn restore_views<N: AsRef<str>>(
        &self,
        prefix: &str,
        views: impl IntoIterator<Item = (N, Tensor)>,
    ) -> Result<(), CheckpointError> {
        self.restore(views.into_iter().map(|(name, view)| (format!("{prefix}.{}", name.as_ref()), view)))
    }

    /// The bytes of a tensor that is of the kind and shape of `target`.
    fn find(&self, name: &str, target: &Tensor) -> Result<&[u8], CheckpointError> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.foreign(format!("it has no tensor {name}")))?;
        let (shard, begin, info) = tensor;
        let shape: Vec<i64> = info.shape.iter().map(|size| *size as i64).collect();
        if kind_of(info.dtype) != Some(target.kind()) || shape != target.size() {
            let (have, want, size) = (info.dtype, target.kind(), target.size());
            return Err(self.foreign(format!("{name} is {have:?} {shape:?}, not {want:?} {size:?}")));
        }
        let (start, end) = info.data_offsets;
        let bytes = self.shards[*shard].get(begin.saturating_add(start)..begin.saturating_add(end));
        bytes.ok_or_else(|| self.foreign(format!("{name} lies outside its file")))
    }

    fn foreign(&self, why: String) -> CheckpointError {
        CheckpointError::Foreign { path: self.path.clone(), why }
    }
}
