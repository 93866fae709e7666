//! Data sets: numbered samples, each an input with its target, of which batches are taken by their numbers.
//!
//! Where the samples come from is a [`Format`]; all become a [`Dataset`]. Small sets of pictures are kept in memory as
//! bytes, everything else is mapped from its files, which therefore must not be shortened while a process uses them.
//! Files are not trusted: whatever is in them, the answer is a data set or an error that names the file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tch::Tensor;

mod arrays;
mod cifar;
mod dense;
mod file;
mod idx;
pub mod loader;
mod npy;
mod pictures;
mod tokens;

use arrays::Arrays;
use pictures::Pictures;
use tokens::Tokens;

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("failed to read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not a data file of this kind: {why}", path.display())]
    Format { path: PathBuf, why: String },
    #[error("no {name} in {}: {help}", folder.display())]
    Missing { name: String, folder: PathBuf, help: &'static str },
    #[error("the test set is not like what the model is made for: {why}")]
    Unlike { why: String },
    #[error("there is no sample {sample}: the data set has {len}")]
    Absent { sample: i64, len: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

/// What a data set's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// {train,t10k}-{images-idx3,labels-idx1}-ubyte, with .gz or without
    FashionMnist,
    /// As fashion-mnist
    Mnist,
    /// data_batch_{1..5}.bin and test_batch.bin, the binary version
    #[value(name = "cifar-10")]
    Cifar10,
    /// train.bin and test.bin, the binary version; the 100 fine classes
    #[value(name = "cifar-100")]
    Cifar100,
    /// train.bin and val.bin: tokens one after the other, u16 or what a meta.json says; a sample is a window of them
    Tokens,
    /// {train,test}-{inputs,targets}.npy: arrays with the samples along the first dimension
    Npy,
    /// {train,test}.safetensors with the arrays inputs and targets
    Safetensors,
}

impl Format {
    /// The name of its folder in the cache.
    pub fn folder(self) -> &'static str {
        match self {
            Format::FashionMnist => "fashion-mnist",
            Format::Mnist => "mnist",
            Format::Cifar10 => "cifar-10",
            Format::Cifar100 => "cifar-100",
            Format::Tokens => "tokens",
            Format::Npy => "npy",
            Format::Safetensors => "safetensors",
        }
    }
}

/// Which data set, and how it is cut into samples.
#[derive(Debug, Clone)]
pub struct Source {
    pub format: Format,
    pub folder: PathBuf,
    /// Of tokens: how many a sample's input has.
    pub context: usize,
}

/// What the targets of a data set are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Numbers below this, of this shape for each sample: one for a picture, one for each token of a text.
    Classes { classes: i64, shape: Vec<i64> },
    /// Real numbers of this shape for each sample.
    Values { shape: Vec<i64> },
}

/// Some samples, along the first dimension of both.
#[derive(Debug)]
pub struct Batch {
    /// Float, or Int64 where the inputs are tokens or other whole numbers wider than a byte.
    pub inputs: Tensor,
    /// Int64 classes, or Float values.
    pub targets: Tensor,
}

#[derive(Debug)]
enum Samples {
    Pictures(Pictures),
    Tokens(Tokens),
    Arrays(Arrays),
}

/// May be used by several threads.
#[derive(Debug)]
pub struct Dataset {
    samples: Samples,
    len: usize,
}

impl Dataset {
    pub fn open(source: &Source, split: Split) -> Result<Dataset, DataError> {
        let folder = &source.folder;
        let samples = match source.format {
            Format::FashionMnist => Samples::Pictures(idx::open(folder, split, &[pictures::FASHION_MNIST])?),
            Format::Mnist => Samples::Pictures(idx::open(folder, split, &[pictures::MNIST])?),
            Format::Cifar10 => Samples::Pictures(cifar::open(folder, split, &cifar::TEN)?),
            Format::Cifar100 => Samples::Pictures(cifar::open(folder, split, &cifar::HUNDRED)?),
            Format::Tokens => Samples::Tokens(Tokens::open(folder, split, source.context)?),
            Format::Npy => Samples::Arrays(arrays::open_npy(folder, split)?),
            Format::Safetensors => Samples::Arrays(arrays::open_safetensors(folder, split)?),
        };
        let len = match &samples {
            Samples::Pictures(pictures) => pictures.len(),
            Samples::Tokens(tokens) => tokens.len(),
            Samples::Arrays(arrays) => arrays.len(),
        };
        Ok(Dataset { samples, len })
    }

    /// Both parts of a data set, which fit each other.
    pub fn open_both(source: &Source) -> Result<(Dataset, Dataset), DataError> {
        let train = Dataset::open(source, Split::Train)?;
        let test = Dataset::open(source, Split::Test)?;
        test.check(&train.shape(), &train.targets())?;
        Ok((train, test))
    }

    /// Whether a model for such inputs and targets can be measured on these samples.
    pub fn check(&self, shape: &[i64], targets: &Targets) -> Result<(), DataError> {
        let unlike = |why: String| Err(DataError::Unlike { why });
        if self.shape() != shape {
            return unlike(format!("its inputs are {:?}, not {shape:?}", self.shape()));
        }
        match (self.targets(), targets) {
            (Targets::Classes { classes, shape }, Targets::Classes { classes: known, shape: wanted })
                if shape == *wanted && classes <= *known =>
            {
                Ok(())
            }
            (Targets::Values { shape }, Targets::Values { shape: wanted }) if shape == *wanted => Ok(()),
            (have, want) => unlike(format!("its targets are {have:?}, not {want:?}")),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The shape of one input: channels, height and width of a picture.
    pub fn shape(&self) -> Vec<i64> {
        match &self.samples {
            Samples::Pictures(pictures) => pictures.shape().to_vec(),
            Samples::Tokens(tokens) => vec![tokens.context() as i64],
            Samples::Arrays(arrays) => arrays.shape(),
        }
    }

    pub fn targets(&self) -> Targets {
        match &self.samples {
            Samples::Pictures(pictures) => Targets::Classes { classes: pictures.classes(), shape: Vec::new() },
            Samples::Tokens(tokens) => {
                Targets::Classes { classes: tokens.vocabulary(), shape: vec![tokens.context() as i64] }
            }
            Samples::Arrays(arrays) => arrays.targets(),
        }
    }

    /// About how many bytes a sample takes up in a batch.
    pub fn sample_bytes(&self) -> usize {
        let count = |shape: &[i64]| shape.iter().product::<i64>() as usize;
        let targets = match self.targets() {
            Targets::Classes { shape, .. } | Targets::Values { shape } => count(&shape),
        };
        (count(&self.shape()) + targets) * size_of::<i64>()
    }

    /// Whether taking a batch may have to wait for a disk.
    pub fn is_mapped(&self) -> bool {
        !matches!(self.samples, Samples::Pictures(_))
    }

    /// The first `samples` only.
    pub fn truncate(&mut self, samples: usize) {
        self.len = self.len.min(samples);
    }

    /// Some samples by their numbers, in that order.
    pub fn batch(&self, samples: &[i64]) -> Result<Batch, DataError> {
        let absent = samples.iter().find(|sample| usize::try_from(**sample).map_or(true, |sample| sample >= self.len));
        if let Some(sample) = absent {
            return Err(DataError::Absent { sample: *sample, len: self.len });
        }
        match &self.samples {
            Samples::Pictures(pictures) => Ok(pictures.batch(samples)),
            Samples::Tokens(tokens) => tokens.batch(samples),
            Samples::Arrays(arrays) => Ok(arrays.batch(samples)),
        }
    }

    /// A range of samples.
    pub fn range(&self, samples: std::ops::Range<usize>) -> Result<Batch, DataError> {
        self.batch(&samples.map(|sample| sample as i64).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests;
