//! Checkpoints: a safetensors file for the numbers, and a JSON file beside it for everything else.
//!
//! The JSON file is written last and holds the checksum of the numbers: a checkpoint without it, or whose numbers
//! do not fit it, does not count. Both appear by a rename and are on disk before the call returns.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor, no_grad};
use tracing::warn;

use crate::models::DataSpec;
use crate::models::config::ModelConfig;
use crate::optimizer::{Optimizer, Settings};
use crate::parameters::{Parameters, bytes_of};

/// Of the JSON file; raised when an older reader would misunderstand it.
const FORMAT: u32 = 2;
const MAX_SIDECAR_BYTES: u64 = 1 << 20;
const MAX_TENSOR_BYTES: u64 = 64 << 30;

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("failed to {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{} is a checkpoint of another run: {why}", path.display())]
    Foreign { path: PathBuf, why: String },
    #[error("there is no checkpoint in {}", folder.display())]
    None { folder: PathBuf },
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps.
    pub step: u64,
    /// Whole passes over the data.
    pub epoch: u64,
    /// Samples of the current pass that are done, by all ranks together.
    pub offset: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sidecar {
    pub format: u32,
    pub muster: String,
    pub model: ModelConfig,
    /// What the model was built for.
    pub data: DataSpec,
    pub optimizer: Settings,
    pub seed: u64,
    pub progress: Progress,
    /// SHA-256 of the parameters alone, as each rank prints it.
    pub parameters: String,
    /// SHA-256 of the safetensors file.
    pub sha256: String,
}

impl Sidecar {
    pub fn new(model: ModelConfig, data: DataSpec, optimizer: Settings, seed: u64) -> Sidecar {
        Sidecar {
            format: FORMAT,
            muster: env!("CARGO_PKG_VERSION").into(),
            model,
            data,
            optimizer,
            seed,
            progress: Progress::default(),
            parameters: String::new(),
            sha256: String::new(),
        }
    }
}

/// Writes the state of a run, then removes all but the latest `keep` checkpoints. The path of the numbers.
pub fn save(
    folder: &Path,
    keep: usize,
    sidecar: &Sidecar,
    parameters: &Parameters,
    optimizer: &Optimizer,
) -> Result<PathBuf, CheckpointError> {
    fs::create_dir_all(folder).map_err(|source| failed("create", folder, source))?;
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut add = |group: &str, name: &str, view: &Tensor| {
        let shape = view.size().iter().map(|size| *size as usize).collect();
        tensors.insert(format!("{group}.{name}"), (shape, bytes_of(view)));
    };
    for (spec, view) in parameters.named().chain(parameters.buffers().named()) {
        add("model", &spec.name, &view);
    }
    for (slot, flat) in optimizer.state() {
        for (name, view) in parameters.split(flat) {
            add(&format!("optimizer.{slot}"), name, &view);
        }
    }
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, (shape, bytes))| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shape and bytes come from one tensor");
            (name.as_str(), view)
        })
        .collect();
    let numbers = safetensors::serialize(views, None).expect("names and shapes of parameters can be written");
    let sidecar = Sidecar { sha256: hex_digest(&numbers), parameters: parameters.digest(), ..sidecar.clone() };
    let mut text = serde_json::to_vec_pretty(&sidecar).expect("a sidecar is plain data");
    text.push(b'\n');

    let name = name_of(sidecar.progress.step);
    let path = folder.join(format!("{name}.safetensors"));
    write_whole(&path, &numbers)?;
    write_whole(&folder.join(format!("{name}.json")), &text)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| failed("sync", folder, source))?;
    remove_old(folder, keep);
    Ok(path)
}

/// The steps of all checkpoints in a folder, latest first, sound or not.
pub fn steps(folder: &Path) -> Result<Vec<u64>, CheckpointError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed("read", folder, source)),
    };
    let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let step = |name: String| name.strip_prefix("step-")?.strip_suffix(".json")?.parse().ok();
    let mut steps: Vec<u64> = entries.filter_map(name).filter_map(step).collect();
    steps.sort_unstable_by(|left, right| right.cmp(left));
    Ok(steps)
}

/// A checkpoint that has been read and checked, but not used yet.
#[derive(Debug)]
pub struct Loaded {
    pub sidecar: Sidecar,
    path: PathBuf,
    numbers: Vec<u8>,
}

/// Reads the latest sound checkpoint of a folder. Damaged ones are passed over with a warning.
pub fn latest(folder: &Path) -> Result<Loaded, CheckpointError> {
    for step in steps(folder)? {
        match open(&folder.join(format!("{}.json", name_of(step)))) {
            Ok(loaded) => return Ok(loaded),
            Err(error) => warn!("passing over a checkpoint: {error}"),
        }
    }
    Err(CheckpointError::None { folder: folder.into() })
}

/// Reads one checkpoint, by its folder (the latest), or by either of its files.
pub fn open(path: &Path) -> Result<Loaded, CheckpointError> {
    if path.is_dir() {
        return latest(path);
    }
    let (numbers_path, sidecar_path) = (path.with_extension("safetensors"), path.with_extension("json"));
    let text = read(&sidecar_path, MAX_SIDECAR_BYTES)?;
    let damaged = |path: &Path, why: String| CheckpointError::Damaged { path: path.into(), why };
    let sidecar: Sidecar = serde_json::from_slice(&text).map_err(|error| damaged(&sidecar_path, error.to_string()))?;
    if sidecar.format != FORMAT {
        let why = format!("format {} is not known here, only {FORMAT}", sidecar.format);
        return Err(CheckpointError::Foreign { path: sidecar_path, why });
    }
    let numbers = read(&numbers_path, MAX_TENSOR_BYTES)?;
    if hex_digest(&numbers) != sidecar.sha256 {
        return Err(damaged(&numbers_path, "its checksum is not the one in its JSON file".into()));
    }
    Ok(Loaded { sidecar, path: numbers_path, numbers })
}

impl Loaded {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the parameters and buffers in.
    pub fn restore_parameters(&self, parameters: &Parameters) -> Result<(), CheckpointError> {
        let named = parameters.named().chain(parameters.buffers().named());
        self.restore("model", named.map(|(spec, view)| (spec.name.as_str(), view)))
    }

    /// Copies the state of the optimizer in.
    pub fn restore_optimizer(&self, parameters: &Parameters, optimizer: &Optimizer) -> Result<(), CheckpointError> {
        for (slot, flat) in optimizer.state() {
            self.restore(&format!("optimizer.{slot}"), parameters.split(flat))?;
        }
        Ok(())
    }

    fn restore<'a>(
        &self,
        group: &str,
        targets: impl Iterator<Item = (&'a str, Tensor)>,
    ) -> Result<(), CheckpointError> {
        let foreign = |why: String| CheckpointError::Foreign { path: self.path.clone(), why };
        let tensors = SafeTensors::deserialize(&self.numbers)
            .map_err(|error| CheckpointError::Damaged { path: self.path.clone(), why: error.to_string() })?;
        // All are checked before any is copied, so that a refusal leaves the state as it was.
        let mut copies = Vec::new();
        for (name, mut target) in targets {
            let name = format!("{group}.{name}");
            let source = tensors.tensor(&name).map_err(|_| foreign(format!("it has no tensor {name}")))?;
            let shape: Vec<i64> = source.shape().iter().map(|size| *size as i64).collect();
            if source.dtype() != Dtype::F32 || shape != target.size() {
                let (have, want) = (source.dtype(), target.size());
                return Err(foreign(format!("{name} is {have:?} {shape:?}, not F32 {want:?}")));
            }
            let source = Tensor::from_data_size(source.data(), &shape, Kind::Float);
            copies.push(move || target.copy_(&source));
        }
        no_grad(|| copies.into_iter().for_each(|mut copy| copy()));
        Ok(())
    }
}

fn name_of(step: u64) -> String {
    format!("step-{step:09}")
}

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Io { what, path: path.into(), source }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let file = File::open(path).map_err(|source| failed("open", path, source))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|source| failed("read", path, source))?;
    if bytes.len() as u64 > limit {
        return Err(CheckpointError::Damaged { path: path.into(), why: format!("it has more than {limit} bytes") });
    }
    Ok(bytes)
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    // Unlike the temporary name of another process of the same job, should two ever write here.
    let temporary = path.with_extension(format!("{}.part", std::process::id()));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        failed("write", path, source)
    })
}

/// The JSON file goes first, so that no checkpoint is left without its numbers. What cannot be removed stays.
fn remove_old(folder: &Path, keep: usize) {
    for step in steps(folder).unwrap_or_default().into_iter().skip(keep.max(1)) {
        for extension in ["json", "safetensors"] {
            let path = folder.join(format!("{}.{extension}", name_of(step)));
            if let Err(error) = fs::remove_file(&path) {
                warn!("failed to remove {}: {error}", path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::tests::build;
    use crate::optimizer::{Algorithm, Step};

    fn data() -> DataSpec {
        DataSpec::pictures(1, 4, 4, 3)
    }

    const SETTINGS: Settings =
        Settings { algorithm: Algorithm::Adam, momentum: 0.9, nesterov: false, weight_decay: 0.0 };

    fn state(seed: u64) -> (Parameters, Optimizer) {
        let mut parameters = Parameters::new(build("cnn", &data()).layout(), seed).unwrap();
        let mut optimizer = Optimizer::new(SETTINGS, parameters.values());
        let gradients: Vec<f32> = parameters.values_mut().iter().map(|value| value * 0.5).collect();
        let step = Step { lr: 0.01, step: 1, scale: 1.0, threads: 1 };
        optimizer.step(parameters.values_mut(), &gradients, step);
        (parameters, optimizer)
    }

    fn save_at(folder: &Path, step: u64, keep: usize, seed: u64) -> PathBuf {
        let (parameters, optimizer) = state(seed);
        let mut sidecar = Sidecar::new("cnn".parse().unwrap(), data(), SETTINGS, seed);
        sidecar.progress.step = step;
        save(folder, keep, &sidecar, &parameters, &optimizer).unwrap()
    }

    #[test]
    fn what_is_saved_is_restored_bit_by_bit() {
        let folder = tempfile::tempdir().unwrap();
        save_at(folder.path(), 5, 3, 1);
        let (parameters, optimizer) = state(2);
        let loaded = latest(folder.path()).unwrap();
        loaded.restore_parameters(&parameters).unwrap();
        loaded.restore_optimizer(&parameters, &optimizer).unwrap();
        let (wanted, wanted_optimizer) = state(1);
        assert_eq!(parameters.digest(), wanted.digest());
        assert_eq!(loaded.sidecar.parameters, wanted.digest());
        for ((_, have), (_, want)) in optimizer.state().zip(wanted_optimizer.state()) {
            assert!(have.equal(want));
        }
    }

    #[test]
    fn only_the_latest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for step in [1, 2, 10, 100] {
            save_at(folder.path(), step, 2, 1);
        }
        assert_eq!(steps(folder.path()).unwrap(), [100, 10]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        save_at(folder.path(), 1, 3, 1);
        let path = save_at(folder.path(), 2, 3, 1);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bytes in [&whole[..whole.len() / 2], &flipped, &[]] {
            fs::write(&path, bytes).unwrap();
            assert!(matches!(open(&path), Err(CheckpointError::Damaged { .. })));
            assert_eq!(latest(folder.path()).unwrap().sidecar.progress.step, 1);
        }
        fs::write(path.with_extension("json"), "{").unwrap();
        assert_eq!(latest(folder.path()).unwrap().sidecar.progress.step, 1);
    }

    #[test]
    fn a_checkpoint_of_another_model_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        save_at(folder.path(), 1, 3, 1);
        let other = build("cnn", &DataSpec { classes: 4, ..data() });
        let other = Parameters::new(other.layout(), 9).unwrap();
        let before = other.digest();
        let error = latest(folder.path()).unwrap().restore_parameters(&other).unwrap_err();
        assert!(matches!(error, CheckpointError::Foreign { .. }), "{error}");
        assert_eq!(other.digest(), before);
    }

    #[test]
    fn an_empty_folder_has_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(latest(&folder.path().join("absent")), Err(CheckpointError::None { .. })));
    }
}
