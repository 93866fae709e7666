//! Image data sets in the IDX format of MNIST: gzipped files of bytes with their shape in front.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use tch::{Kind, Tensor};

use crate::models::{Batch, DataSpec};

/// No file unpacks to more: a data set that is kept in memory.
const MAX_BYTES: u64 = 4 << 30;

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("failed to read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not a data file of this kind: {why}", path.display())]
    Format { path: PathBuf, why: String },
    #[error("no {name} in {}: run make data, or name the folder that holds it with --data", folder.display())]
    Missing { name: &'static str, folder: PathBuf },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

impl Split {
    fn files(self) -> [&'static str; 2] {
        match self {
            Split::Train => ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"],
            Split::Test => ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"],
        }
    }
}

/// Pictures of one channel with their classes, as bytes; a batch becomes numbers when it is taken.
#[derive(Debug)]
pub struct Dataset {
    /// samples x 1 x height x width
    images: Tensor,
    labels: Tensor,
    classes: i64,
}

/// Mean and spread of the pixels of Fashion-MNIST's training set.
const MEAN: f64 = 0.2860;
const DEVIATION: f64 = 0.3530;

impl Dataset {
    pub fn load(folder: &Path, split: Split) -> Result<Dataset, DataError> {
        let [images, labels] = split.files();
        let (shape, pixels) = read_idx(folder, images, 3)?;
        let (count, classes) = read_idx(folder, labels, 1)?;
        let format = |name: &str, why: String| DataError::Format { path: folder.join(name), why };
        if shape[0] != count[0] || shape[0] == 0 {
            return Err(format(labels, format!("{} labels for {} images", count[0], shape[0])));
        }
        let highest = classes.iter().copied().max().unwrap_or_default();
        let images = Tensor::from_data_size(&pixels, &[shape[0], 1, shape[1], shape[2]], Kind::Uint8);
        let labels = Tensor::from_data_size(&classes, &[count[0]], Kind::Uint8).to_kind(Kind::Int64);
        Ok(Dataset { images, labels, classes: i64::from(highest) + 1 })
    }

    pub fn len(&self) -> usize {
        self.images.size()[0] as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the samples are, for the model that learns from them.
    pub fn spec(&self) -> DataSpec {
        let size = self.images.size();
        DataSpec::pictures(size[1], size[2], size[3], self.classes)
    }

    /// The first `samples` only.
    pub fn truncate(&mut self, samples: usize) {
        let keep = (samples as i64).min(self.images.size()[0]);
        self.images = self.images.narrow(0, 0, keep);
        self.labels = self.labels.narrow(0, 0, keep);
    }

    /// Pictures and classes of some samples, by their numbers.
    pub fn batch(&self, samples: &[i64]) -> Batch {
        let samples = Tensor::from_slice(samples);
        let inputs = normalize(&self.images.index_select(0, &samples));
        Batch { inputs, targets: self.labels.index_select(0, &samples) }
    }

    /// Pictures and classes of a range of samples.
    pub fn range(&self, start: usize, len: usize) -> Batch {
        let (start, len) = (start as i64, len as i64);
        Batch { inputs: normalize(&self.images.narrow(0, start, len)), targets: self.labels.narrow(0, start, len) }
    }
}

fn normalize(pixels: &Tensor) -> Tensor {
    let mut numbers = pixels.to_kind(Kind::Float);
    let _ = numbers.g_sub_scalar_(MEAN * 255.0);
    let _ = numbers.g_mul_scalar_(1.0 / (DEVIATION * 255.0));
    numbers
}

/// The shape and the bytes of an IDX file: two zero bytes, the type (8 = bytes), the number of dimensions, then
/// each dimension as a big-endian number.
fn read_idx(folder: &Path, name: &'static str, dimensions: u8) -> Result<(Vec<i64>, Vec<u8>), DataError> {
    let path = folder.join(name);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(DataError::Missing { name, folder: folder.into() });
        }
        Err(source) => return Err(DataError::Read { path, source }),
    };
    parse_idx(GzDecoder::new(BufReader::new(file)), dimensions).map_err(|error| match error {
        IdxError::Read(source) => DataError::Read { path, source },
        IdxError::Format(why) => DataError::Format { path, why },
    })
}

#[derive(Debug)]
enum IdxError {
    Read(std::io::Error),
    Format(String),
}

fn parse_idx(mut reader: impl Read, dimensions: u8) -> Result<(Vec<i64>, Vec<u8>), IdxError> {
    let mut magic = [0; 4];
    reader.read_exact(&mut magic).map_err(IdxError::Read)?;
    if magic != [0, 0, 8, dimensions] {
        return Err(IdxError::Format(format!("it starts with {magic:?} instead of [0, 0, 8, {dimensions}]")));
    }
    let mut shape = Vec::new();
    let mut bytes: u64 = 1;
    for _ in 0..dimensions {
        let mut size = [0; 4];
        reader.read_exact(&mut size).map_err(IdxError::Read)?;
        let size = u32::from_be_bytes(size);
        bytes = bytes.saturating_mul(size.into());
        shape.push(i64::from(size));
    }
    if bytes > MAX_BYTES {
        return Err(IdxError::Format(format!("shape {shape:?} has more than {MAX_BYTES} bytes")));
    }
    let mut data = Vec::new();
    reader.take(bytes + 1).read_to_end(&mut data).map_err(IdxError::Read)?;
    if data.len() as u64 != bytes {
        return Err(IdxError::Format(format!("shape {shape:?} needs {bytes} bytes, it has {}", data.len())));
    }
    Ok((shape, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idx(dimensions: &[u32], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dimensions.len() as u8];
        bytes.extend(dimensions.iter().flat_map(|size| size.to_be_bytes()));
        bytes.extend(data);
        bytes
    }

    #[test]
    fn idx_files_have_their_shape_in_front() {
        let (shape, data) = parse_idx(&idx(&[2, 1, 3], &[1, 2, 3, 4, 5, 6])[..], 3).unwrap();
        assert_eq!((shape, data), (vec![2, 1, 3], vec![1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn files_that_lie_about_their_size_are_refused() {
        let table = [
            idx(&[2, 1, 3], &[1, 2, 3]),
            idx(&[2, 1, 3], &[0; 7]),
            idx(&[u32::MAX, u32::MAX, u32::MAX], &[]),
            idx(&[6], &[0; 6]),
            vec![0, 0, 8],
        ];
        for file in table {
            assert!(parse_idx(&file[..], 3).is_err(), "{file:?}");
        }
    }
}
