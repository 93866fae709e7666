//! Texts as tokens, one after the other in a file that is mapped, so that it may be larger than the memory.
//!
//! A sample is a window of `context + 1` tokens: its input is all but the last, its targets all but the first. Windows
//! share the token at which one ends and the next begins, so each token but the first is a target once in an epoch. What
//! is left behind the last whole window is not used.

use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::Deserialize;

use super::{Batch, DataError, Split, dense, file};

const MAX_META_BYTES: u64 = 1 << 20;
/// Tokens of a sample at most: with a batch of them, memory is not asked for that nobody has.
const MAX_CONTEXT: usize = 1 << 24;

/// Of `meta.json`, which may be left out for tokens of two bytes.
#[derive(Debug, Clone, Default, Deserialize)]
struct Meta {
    #[serde(default)]
    dtype: Width,
    vocab_size: Option<i64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum Width {
    #[default]
    #[serde(rename = "uint16")]
    Two,
    #[serde(rename = "uint32")]
    Four,
}

impl Width {
    fn bytes(self) -> usize {
        match self {
            Width::Two => 2,
            Width::Four => 4,
        }
    }
}

#[derive(Debug)]
pub(super) struct Tokens {
    path: PathBuf,
    data: Mmap,
    width: Width,
    context: usize,
    vocabulary: i64,
}

impl Tokens {
    pub(super) fn open(folder: &Path, split: Split, context: usize) -> Result<Tokens, DataError> {
        let meta_path = folder.join("meta.json");
        let meta = match meta_path.is_file() {
            true => serde_json::from_slice(&file::read(&meta_path, MAX_META_BYTES)?)
                .map_err(|error| file::format(&meta_path, error.to_string()))?,
            false => Meta::default(),
        };
        let names: &[&str] = match split {
            Split::Train => &["train.bin"],
            Split::Test => &["val.bin", "test.bin"],
        };
        let path = file::find(folder, names, file::PROVIDE)?;
        let data = file::map(&path)?;
        let width = meta.dtype;
        if !data.len().is_multiple_of(width.bytes()) {
            let why = format!("{} bytes are not a whole number of tokens of {}", data.len(), width.bytes());
            return Err(file::format(&path, why));
        }
        let count = data.len() / width.bytes();
        if context == 0 || context > MAX_CONTEXT || count <= context {
            let why = format!("{count} tokens make no sample of {context} and one more");
            return Err(file::format(&path, why));
        }
        let vocabulary = match meta.vocab_size {
            Some(size) if (1..=1 << 32).contains(&size) => size,
            Some(size) => return Err(file::format(&meta_path, format!("no vocabulary has {size} tokens"))),
            None => highest(&data, width) + 1,
        };
        Ok(Tokens { path, data, width, context, vocabulary })
    }

    pub(super) fn len(&self) -> usize {
        (self.data.len() / self.width.bytes() - 1) / self.context
    }

    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// Every token of a batch is below it.
    pub(super) fn vocabulary(&self) -> i64 {
        self.vocabulary
    }

    /// The samples exist.
    pub(super) fn batch(&self, samples: &[i64]) -> Result<Batch, DataError> {
        let width = self.width.bytes();
        let rows = |skip: usize| {
            dense::rows(samples.len(), &[self.context as i64], |row, memory| {
                let start = (samples[row] as usize * self.context + skip) * width;
                let window = &self.data[start..start + self.context * width];
                let highest = highest(window, self.width);
                if highest >= self.vocabulary {
                    let why = format!(
                        "sample {} has the token {highest}, the vocabulary {} (vocab_size in meta.json)",
                        samples[row], self.vocabulary
                    );
                    return Err(file::format(&self.path, why));
                }
                match self.width {
                    Width::Two => dense::fill(memory, two(window).map(i64::from)),
                    Width::Four => dense::fill(memory, four(window).map(i64::from)),
                }
                Ok(())
            })
        };
        Ok(Batch { inputs: rows(0)?, targets: rows(1)? })
    }
}

fn two(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().copied().map(u16::from_le_bytes)
}

fn four(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks().0.iter().copied().map(u32::from_le_bytes)
}

fn highest(bytes: &[u8], width: Width) -> i64 {
    match width {
        Width::Two => two(bytes).max().map(i64::from),
        Width::Four => four(bytes).max().map(i64::from),
    }
    .unwrap_or_default()
}
