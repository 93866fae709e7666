//! Checkpoints: safetensors files with the tensors, one for each rank that saved, and a JSON file with everything else.
//!
//! ```text
//! step-000000100.json                                           format, progress, sections, the files and their checksums
//! step-000000100-<attempt>-<rank>-of-<world>-<crc32>.safetensors    some of the tensors, none of them cut
//! ```
//!
//! A step is saved in an attempt. Each rank copies its part of the state aside, which is all that training waits for, and
//! writes it in the background. Rank 0 writes the JSON file once all parts are there, and a checkpoint without it does
//! not count; files appear by a rename and are on disk before the JSON file is. What is read is checked against
//! the checksums, of the JSON file too, and a checkpoint that is damaged is passed over for the one before.
//!
//! What is saved is a [`State`], to which anybody adds tensors and sections by name; what was saved is a [`Loaded`],
//! which has them by these names, whatever number of ranks saved it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

mod load;
mod saver;
mod shard;
mod state;

pub use load::{Loaded, Sidecar, latest, open};
pub use saver::{Outcome, Saved, Saver, unique};
pub use state::{Part, State};

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
    #[error(
        "the checkpoint of step {step} was given up: {missing} of {world} parts are not in {}; all ranks must see the \
         same folder there",
        folder.display()
    )]
    Incomplete { step: u64, missing: usize, world: usize, folder: PathBuf },
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

/// The steps of all checkpoints in a folder, latest first, sound or not.
pub fn steps(folder: &Path) -> Result<Vec<u64>, CheckpointError> {
    let step = |name: String| {
        let step = name.strip_prefix("step-")?.strip_suffix(".json")?.parse().ok()?;
        (json_name(step) == name).then_some(step)
    };
    let mut steps: Vec<u64> = names(folder)?.into_iter().filter_map(step).collect();
    steps.sort_unstable_by(|left, right| right.cmp(left));
    Ok(steps)
}

fn json_name(step: u64) -> String {
    format!("step-{step:09}.json")
}

/// The names of a folder's files; none where there is no folder.
fn names(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(failed("read", folder, source)),
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Io { what, path: path.into(), source }
}

fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| failed("sync", folder, source))
}

/// Writes a small file that appears whole and is on disk when this returns.
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
    })?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Removes all but the latest `keep` checkpoints of those up to `step`, which has just been saved, and what is left of
/// attempts that came to nothing. Later checkpoints are those of a run that came further, and not this one's to remove.
/// A JSON file goes before its tensors, so that none is left without them. What cannot be removed stays.
fn remove_old(folder: &Path, step: u64, keep: usize) {
    let steps = steps(folder).unwrap_or_default();
    let (past, later): (Vec<u64>, Vec<u64>) = steps.into_iter().partition(|at| *at <= step);
    let (kept, old) = past.split_at(keep.max(1).min(past.len()));
    old.iter().for_each(|step| remove(&folder.join(json_name(*step))));
    let mut needed = BTreeSet::new();
    for step in kept {
        match load::read_sidecar(&folder.join(json_name(*step))) {
            Ok(sidecar) => needed.extend(sidecar.shards.into_iter().map(|shard| shard.file)),
            Err(error) => warn!("{error}"),
        }
    }
    let of_step = |name: &str| name.strip_prefix("step-")?.split(['-', '.']).next()?.parse::<u64>().ok();
    for name in names(folder).unwrap_or_default() {
        let is_ours = name.ends_with(".safetensors") || name.ends_with(".part");
        let Some(at) = of_step(&name).filter(|at| is_ours && *at <= step && !later.contains(at)) else { continue };
        // A part of this step that is being written, or was, by somebody whom the JSON file does not name.
        if !needed.contains(&name) && !(at == step && name.ends_with(".part")) {
            remove(&folder.join(name));
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => warn!("failed to remove {}: {error}", path.display()),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
