//! The binary version of CIFAR-10 and CIFAR-100: records of labels and 3 x 32 x 32 pixels.

use std::path::Path;

use super::pictures::{Channel, Pictures};
use super::{DataError, Split, file};

const PIXELS: usize = 3 * 32 * 32;
/// Far more than the files of either set have.
const MAX_BYTES: u64 = 1 << 30;

pub(super) struct Cifar {
    /// What the archive unpacks to.
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static [&'static str],
    /// Labels of a record, of which the last one counts.
    labels: usize,
    classes: u8,
    channels: &'static [Channel; 3],
}

pub(super) const TEN: Cifar = Cifar {
    folder: "cifar-10-batches-bin",
    train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
    test: &["test_batch.bin"],
    labels: 1,
    classes: 10,
    channels: &[
        Channel { mean: 0.4914, deviation: 0.2470 },
        Channel { mean: 0.4822, deviation: 0.2435 },
        Channel { mean: 0.4465, deviation: 0.2616 },
    ],
};

pub(super) const HUNDRED: Cifar = Cifar {
    folder: "cifar-100-binary",
    train: &["train.bin"],
    test: &["test.bin"],
    labels: 2,
    classes: 100,
    channels: &[
        Channel { mean: 0.5071, deviation: 0.2673 },
        Channel { mean: 0.4865, deviation: 0.2564 },
        Channel { mean: 0.4409, deviation: 0.2762 },
    ],
};

pub(super) fn open(folder: &Path, split: Split, cifar: &Cifar) -> Result<Pictures, DataError> {
    let inner = folder.join(cifar.folder);
    let folder = if inner.is_dir() { inner.as_path() } else { folder };
    let names = match split {
        Split::Train => cifar.train,
        Split::Test => cifar.test,
    };
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for name in names {
        let path = file::find(folder, &[name], file::PROVIDE)?;
        let bytes = file::read(&path, MAX_BYTES)?;
        parse(&bytes, cifar, &mut pixels, &mut labels).map_err(|why| file::format(&path, why))?;
    }
    Ok(Pictures::new(pixels, labels, [3, 32, 32], cifar.channels, cifar.classes.into()))
}

/// Adds the records of a file.
pub(super) fn parse(
    bytes: &[u8],
    cifar: &Cifar,
    pixels: &mut Vec<u8>,
    labels: &mut Vec<u8>,
) -> Result<(), String> {
    let record = cifar.labels + PIXELS;
    if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
        return Err(format!("{} bytes are not a whole number of records of {record}", bytes.len()));
    }
    for (index, record) in bytes.chunks_exact(record).enumerate() {
        let (record_labels, picture) = record.split_at(cifar.labels);
        let label = record_labels[cifar.labels - 1];
        if label >= cifar.classes {
            return Err(format!("record {index} has the class {label}, there are {}", cifar.classes));
        }
        labels.push(label);
        pixels.extend(picture);
    }
    Ok(())
}
