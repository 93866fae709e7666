//! The IDX format of MNIST: bytes with their shape in front, gzipped or not.

use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::pictures::{Channel, Pictures};
use super::{DataError, Split, file};

/// No file unpacks to more: a data set that is kept in memory.
const MAX_BYTES: u64 = 4 << 30;

pub(super) fn open(folder: &Path, split: Split, channels: &'static [Channel; 1]) -> Result<Pictures, DataError> {
    let prefix = match split {
        Split::Train => "train",
        Split::Test => "t10k",
    };
    let (images_path, shape, pixels) = read(folder, &format!("{prefix}-images-idx3-ubyte"), 3)?;
    let (labels_path, count, labels) = read(folder, &format!("{prefix}-labels-idx1-ubyte"), 1)?;
    if shape.contains(&0) {
        return Err(file::format(&images_path, format!("there is nothing in {shape:?}")));
    }
    if shape[0] != count[0] {
        return Err(file::format(&labels_path, format!("{} labels for {} images", count[0], shape[0])));
    }
    let highest = labels.iter().copied().max().unwrap_or_default();
    Ok(Pictures::new(pixels, labels, [1, shape[1], shape[2]], channels, i64::from(highest) + 1))
}

/// Path, shape and bytes of a file.
fn read(folder: &Path, name: &str, dimensions: u8) -> Result<(PathBuf, Vec<i64>, Vec<u8>), DataError> {
    let packed = format!("{name}.gz");
    let path = file::find(folder, &[&packed, name], file::DOWNLOAD)?;
    let mut reader = BufReader::new(file::open(&path)?);
    let parsed = if path.extension().is_some_and(|extension| extension == "gz") {
        parse(MultiGzDecoder::new(reader), dimensions)
    } else {
        parse(&mut reader, dimensions)
    };
    match parsed {
        Ok((shape, data)) => Ok((path, shape, data)),
        Err(IdxError::Format(why)) => Err(file::format(&path, why)),
        // What cannot be unpacked, or ends within its first bytes, was read well enough.
        Err(IdxError::Read(error))
            if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidInput | ErrorKind::InvalidData) =>
        {
            Err(file::format(&path, format!("it is cut short or damaged: {error}")))
        }
        Err(IdxError::Read(source)) => Err(DataError::Read { path, source }),
    }
}

#[derive(Debug)]
pub(super) enum IdxError {
    Read(std::io::Error),
    Format(String),
}

/// Shape and bytes: two zero bytes, the type (8 = bytes), the number of dimensions, then each dimension as a big-endian
/// number.
pub(super) fn parse(mut reader: impl Read, dimensions: u8) -> Result<(Vec<i64>, Vec<u8>), IdxError> {
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
    // Grows with what is there, not with what the shape says.
    let mut data = Vec::new();
    reader.take(bytes + 1).read_to_end(&mut data).map_err(IdxError::Read)?;
    if data.len() as u64 != bytes {
        let have = if data.len() as u64 > bytes { "more".to_owned() } else { data.len().to_string() };
        return Err(IdxError::Format(format!("shape {shape:?} needs {bytes} bytes, it has {have}")));
    }
    Ok((shape, data))
}
