//! Files, read with limits or mapped.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::DataError;

pub(super) const DOWNLOAD: &str = "run make data, or name the folder that holds it with --data";
pub(super) const PROVIDE: &str = "name the folder that holds it with --data";

/// The file of a folder that is there under one of these names.
pub(super) fn find(folder: &Path, names: &[&str], help: &'static str) -> Result<PathBuf, DataError> {
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| DataError::Missing { name: names.join(" or "), folder: folder.into(), help })
}

pub(super) fn open(path: &Path) -> Result<File, DataError> {
    File::open(path).map_err(|source| DataError::Read { path: path.into(), source })
}

/// All of a file. One that is longer than `limit` is refused.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|source| DataError::Read { path: path.into(), source })?;
    if bytes.len() as u64 > limit {
        return Err(format(path, format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

pub(super) fn map(path: &Path) -> Result<Mmap, DataError> {
    let read = |source| DataError::Read { path: path.into(), source };
    let file = open(path)?;
    match file.metadata().map_err(read)?.len() {
        0 => return Err(format(path, "it is empty".into())),
        length if usize::try_from(length).is_err() => return Err(read(ErrorKind::FileTooLarge.into())),
        _ => {}
    }
    // SAFETY: the bytes are only ever read, and as bytes, any of which is valid. Whoever changes the file changes the
    // samples, and whoever shortens it ends the process, as documented.
    unsafe { Mmap::map(&file) }.map_err(read)
}

pub(super) fn format(path: &Path, why: String) -> DataError {
    DataError::Format { path: path.into(), why }
}
