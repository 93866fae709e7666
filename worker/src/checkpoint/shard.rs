//! The file of one rank's part: a safetensors file whose name says what it belongs to and carries its checksum.
//!
//! A file is named after the attempt that wrote it and its own contents, so no attempt ever touches the files of another,
//! and a checkpoint that is whole stays whole while the same step is saved again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use serde_json::{Map, Value, json};

use super::state::Entry;
use super::{CheckpointError, Part, failed, sync_folder};

/// Written, and counted into the checksum, at a time.
const CHUNK: usize = 1 << 20;

/// What the name of a part's file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name {
    pub step: u64,
    /// Of the attempt to save, the same on all ranks and unlike any other's.
    pub attempt: u64,
    pub part: Part,
    pub crc32: u32,
}

impl Name {
    pub(super) fn parse(name: &str) -> Option<Name> {
        let mut fields = name.strip_prefix("step-")?.strip_suffix(".safetensors")?.split('-');
        let mut field = || fields.next();
        let parsed = Name {
            step: field()?.parse().ok()?,
            attempt: u64::from_str_radix(field()?, 16).ok()?,
            part: {
                let rank = field()?.parse().ok()?;
                let world = (field()? == "of").then(&mut field)??.parse().ok()?;
                Part { rank, world }
            },
            crc32: u32::from_str_radix(field()?, 16).ok()?,
        };
        // The only way to write it.
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Name { step, attempt, part: Part { rank, world }, crc32 } = self;
        write!(f, "step-{step:09}-{attempt:016x}-{rank}-of-{world}-{crc32:08x}.safetensors")
    }
}

/// Writes the tensors of a part, which are in `memory`. The file is on disk, under its name, when this returns.
pub(super) fn write(
    folder: &Path,
    step: u64,
    attempt: u64,
    part: Part,
    entries: &[Entry],
    memory: &[u8],
) -> Result<PathBuf, CheckpointError> {
    let temporary = folder.join(format!("step-{step:09}-{attempt:016x}-{}-of-{}.part", part.rank, part.world));
    let write = || -> io::Result<PathBuf> {
        let mut file = Checked { file: File::create(&temporary)?, hasher: Hasher::new() };
        write_tensors(&mut file, entries, memory)?;
        file.file.sync_all()?;
        let name = Name { step, attempt, part, crc32: file.hasher.finalize() };
        let path = folder.join(name.to_string());
        fs::rename(&temporary, &path)?;
        Ok(path)
    };
    let path = write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        failed("write", &temporary, source)
    })?;
    sync_folder(folder)?;
    Ok(path)
}

/// A file and the checksum of what has been written to it.
struct Checked {
    file: File,
    hasher: Hasher,
}

impl Write for Checked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(&bytes[..bytes.len().min(CHUNK)])?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The header's length and the header, a JSON object padded with blanks, then the elements of each tensor.
fn write_tensors(file: &mut impl Write, entries: &[Entry], memory: &[u8]) -> io::Result<()> {
    let mut entries: Vec<&Entry> = entries.iter().collect();
    // Wide elements first, so that all are aligned.
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.element()));
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for entry in &entries {
        let start = end;
        end += entry.bytes();
        let dtype = serde_json::to_value(entry.dtype)?;
        let value = json!({"dtype": dtype, "shape": entry.shape, "data_offsets": [start, end]});
        if header.insert(entry.name.clone(), value).is_some() {
            return Err(io::Error::other(format!("two tensors are named {}", entry.name)));
        }
    }
    let mut text = serde_json::to_vec(&Value::Object(header))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(&text)?;
    let mut rows = Vec::new();
    for entry in entries {
        let source = &memory[entry.at..][..entry.span()];
        if is_contiguous(&entry.shape, &entry.strides) {
            file.write_all(source)?;
        } else {
            rows.clear();
            gather(source, entry.element(), &entry.shape, &entry.strides, &mut rows);
            file.write_all(&rows)?;
        }
    }
    Ok(())
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected *= size;
            fits
        })
}

/// Appends the elements in the order of the tensor, which is not the order in which they lie in memory.
fn gather(source: &[u8], element: usize, shape: &[usize], strides: &[usize], out: &mut Vec<u8>) {
    match (shape, strides) {
        ([size], [stride]) => {
            (0..*size).for_each(|index| out.extend_from_slice(&source[index * stride * element..][..element]));
        }
        ([size, shape @ ..], [stride, strides @ ..]) => {
            (0..*size).for_each(|index| gather(&source[index * stride * element..], element, shape, strides, out));
        }
        _ => out.extend_from_slice(&source[..element]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written_and_no_other_is() {
        let name = Name { step: 1_234_567_890_123, attempt: 7, part: Part { rank: 3, world: 11 }, crc32: 0xab };
        assert_eq!(name.to_string(), "step-1234567890123-0000000000000007-3-of-11-000000ab.safetensors");
        assert_eq!(Name::parse(&name.to_string()), Some(name));
        for other in [
            "step-1-0000000000000007-3-of-11-000000ab.safetensors",
            "step-000000001-0000000000000007-3-of-11-000000ab.json",
            "step-000000001-0000000000000007-3-11-000000ab.safetensors",
            "step-000000001-0000000000000007-3-of-11-000000ab-.safetensors",
            "../step-000000001-0000000000000007-3-of-11-000000ab.safetensors",
            "step-000000001.safetensors",
            "step-.safetensors",
        ] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn elements_are_gathered_in_the_order_of_the_tensor() {
        // 2 x 3, stored by columns.
        let mut out = Vec::new();
        gather(&[0, 10, 1, 11, 2, 12], 1, &[2, 3], &[1, 2], &mut out);
        assert_eq!(out, [0, 1, 2, 10, 11, 12]);
        assert!(is_contiguous(&[2, 1, 3], &[3, 99, 1]) && !is_contiguous(&[2, 3], &[1, 2]));
        assert!(is_contiguous(&[], &[]) && is_contiguous(&[2, 0], &[7, 7]));
    }
}
