//! Arrays of inputs and targets, with the samples along the first dimension of both, from npy or safetensors files.
//!
//! Real numbers become f32. Whole numbers stay what they are (as Int64), but for the bytes of inputs, which are taken as
//! pixels: they become numbers from 0 to 1.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use tch::Tensor;

use super::{Batch, DataError, Split, Targets, dense, file, npy};

/// What an array is made of, in little-endian bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Element {
    pub(super) fn bytes(self) -> usize {
        match self {
            Element::Bool | Element::U8 | Element::I8 => 1,
            Element::U16 | Element::I16 | Element::F16 | Element::Bf16 => 2,
            Element::U32 | Element::I32 | Element::F32 => 4,
            Element::I64 | Element::F64 => 8,
        }
    }

    fn is_real(self) -> bool {
        matches!(self, Element::F16 | Element::Bf16 | Element::F32 | Element::F64)
    }

    pub(super) fn of_npy(descr: &str) -> Result<Element, String> {
        Ok(match descr {
            "|b1" => Element::Bool,
            "|u1" => Element::U8,
            "|i1" => Element::I8,
            "<u2" => Element::U16,
            "<i2" => Element::I16,
            "<u4" => Element::U32,
            "<i4" => Element::I32,
            "<i8" => Element::I64,
            "<f2" => Element::F16,
            "<f4" => Element::F32,
            "<f8" => Element::F64,
            _ => return Err(format!("elements of type {descr:?} cannot be read: save array.astype('<f4') or '<i8'")),
        })
    }

    fn of_safetensors(dtype: Dtype) -> Option<Element> {
        Some(match dtype {
            Dtype::BOOL => Element::Bool,
            Dtype::U8 => Element::U8,
            Dtype::I8 => Element::I8,
            Dtype::U16 => Element::U16,
            Dtype::I16 => Element::I16,
            Dtype::U32 => Element::U32,
            Dtype::I32 => Element::I32,
            Dtype::I64 => Element::I64,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::F32 => Element::F32,
            Dtype::F64 => Element::F64,
            _ => return None,
        })
    }

    /// Writes real numbers, or the pixels that bytes are.
    fn floats(self, bytes: &[u8], memory: &mut [MaybeUninit<f32>]) {
        match self {
            Element::F16 => dense::fill(memory, each(bytes, |bytes| f16::from_le_bytes(bytes).to_f32())),
            Element::Bf16 => dense::fill(memory, each(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32())),
            Element::F32 => dense::fill(memory, each(bytes, f32::from_le_bytes)),
            Element::F64 => dense::fill(memory, each(bytes, |bytes| f64::from_le_bytes(bytes) as f32)),
            Element::Bool => dense::fill(memory, bytes.iter().map(|byte| f32::from(u8::from(*byte != 0)))),
            _ => dense::fill(memory, bytes.iter().map(|byte| f32::from(*byte) / 255.0)),
        }
    }

    /// The whole numbers of elements that are such.
    fn integers<'a>(self, bytes: &'a [u8]) -> Box<dyn Iterator<Item = i64> + 'a> {
        match self {
            Element::Bool => Box::new(bytes.iter().map(|byte| i64::from(*byte != 0))),
            Element::I8 => Box::new(bytes.iter().map(|byte| i64::from(*byte as i8))),
            Element::U16 => Box::new(each(bytes, |bytes| u16::from_le_bytes(bytes).into())),
            Element::I16 => Box::new(each(bytes, |bytes| i16::from_le_bytes(bytes).into())),
            Element::U32 => Box::new(each(bytes, |bytes| u32::from_le_bytes(bytes).into())),
            Element::I32 => Box::new(each(bytes, |bytes| i32::from_le_bytes(bytes).into())),
            Element::I64 => Box::new(each(bytes, i64::from_le_bytes)),
            _ => Box::new(bytes.iter().map(|byte| i64::from(*byte))),
        }
    }
}

/// The elements of whole ones of them.
fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks().0.iter().map(move |bytes| read(*bytes))
}

#[derive(Debug)]
struct Array {
    path: PathBuf,
    file: Arc<Mmap>,
    /// Of the elements in the file, as many as the shape has.
    data: Range<usize>,
    element: Element,
    shape: Vec<usize>,
}

impl Array {
    /// Bytes of a sample.
    fn row_bytes(&self) -> usize {
        self.shape[1..].iter().product::<usize>() * self.element.bytes()
    }

    fn row_shape(&self) -> Vec<i64> {
        self.shape[1..].iter().map(|size| *size as i64).collect()
    }

    fn row(&self, sample: i64) -> &[u8] {
        let bytes = self.row_bytes();
        &self.file[self.data.clone()][sample as usize * bytes..][..bytes]
    }

    /// With `pixels`, bytes become real numbers.
    fn batch(&self, samples: &[i64], pixels: bool) -> Tensor {
        let shape = self.row_shape();
        let real = self.element.is_real() || pixels && matches!(self.element, Element::U8 | Element::Bool);
        let batch: Result<Tensor, std::convert::Infallible> = if real {
            dense::rows(samples.len(), &shape, |row, memory| {
                self.element.floats(self.row(samples[row]), memory);
                Ok(())
            })
        } else {
            dense::rows(samples.len(), &shape, |row, memory| {
                dense::fill(memory, self.element.integers(self.row(samples[row])));
                Ok(())
            })
        };
        let Ok(batch) = batch;
        batch
    }
}

#[derive(Debug)]
pub(super) struct Arrays {
    inputs: Array,
    targets: Array,
    /// Of targets that are whole numbers.
    classes: Option<i64>,
}

impl Arrays {
    fn new(inputs: Array, targets: Array) -> Result<Arrays, DataError> {
        for array in [&inputs, &targets] {
            if array.shape.is_empty() || array.shape.contains(&0) {
                return Err(file::format(&array.path, format!("an array of {:?} has no samples", array.shape)));
            }
        }
        if inputs.shape[0] != targets.shape[0] {
            let why = format!("{} targets for {} inputs", targets.shape[0], inputs.shape[0]);
            return Err(file::format(&targets.path, why));
        }
        let classes = match targets.element.is_real() {
            true => None,
            false => {
                let numbers = || targets.element.integers(&targets.file[targets.data.clone()]);
                let (lowest, highest) = numbers().fold((0, 0), |(low, high), number| (number.min(low), number.max(high)));
                if lowest < 0 || highest == i64::MAX {
                    let worst = if lowest < 0 { lowest } else { highest };
                    return Err(file::format(&targets.path, format!("{worst} is no class; they count from 0")));
                }
                Some(highest + 1)
            }
        };
        Ok(Arrays { inputs, targets, classes })
    }

    pub(super) fn len(&self) -> usize {
        self.inputs.shape[0]
    }

    pub(super) fn shape(&self) -> Vec<i64> {
        self.inputs.row_shape()
    }

    pub(super) fn targets(&self) -> Targets {
        let shape = self.targets.row_shape();
        match self.classes {
            Some(classes) => Targets::Classes { classes, shape },
            None => Targets::Values { shape },
        }
    }

    /// The samples exist.
    pub(super) fn batch(&self, samples: &[i64]) -> Batch {
        Batch { inputs: self.inputs.batch(samples, true), targets: self.targets.batch(samples, false) }
    }
}

fn prefix(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Test => "test",
    }
}

pub(super) fn open_npy(folder: &Path, split: Split) -> Result<Arrays, DataError> {
    let array = |what: &str| {
        let path = file::find(folder, &[&format!("{}-{what}.npy", prefix(split))], file::PROVIDE)?;
        let mapped = file::map(&path)?;
        let npy::Header { element, shape, data } = npy::parse(&mapped).map_err(|why| file::format(&path, why))?;
        Ok(Array { path, file: Arc::new(mapped), data, element, shape })
    };
    Arrays::new(array("inputs")?, array("targets")?)
}

pub(super) fn open_safetensors(folder: &Path, split: Split) -> Result<Arrays, DataError> {
    let path = file::find(folder, &[&format!("{}.safetensors", prefix(split))], file::PROVIDE)?;
    let mapped = Arc::new(file::map(&path)?);
    let (header, metadata) =
        SafeTensors::read_metadata(&mapped).map_err(|error| file::format(&path, error.to_string()))?;
    // Behind the header's length and the header.
    let begin = 8 + header;
    let array = |name: &str| {
        let info = metadata.info(name).ok_or_else(|| file::format(&path, format!("it has no array {name:?}")))?;
        let element = Element::of_safetensors(info.dtype).ok_or_else(|| {
            file::format(&path, format!("{name:?} is of type {:?}, which cannot be read: save it as F32 or I64", info.dtype))
        })?;
        let (start, end) = info.data_offsets;
        let needed = info.shape.iter().try_fold(element.bytes(), |bytes, size| bytes.checked_mul(*size));
        let data = begin.saturating_add(start)..begin.saturating_add(end);
        match (mapped.get(data.clone()), needed) {
            (Some(bytes), Some(needed)) if bytes.len() == needed => {}
            _ => return Err(file::format(&path, format!("{name:?} lies outside the file"))),
        }
        Ok(Array { path: path.clone(), file: Arc::clone(&mapped), data, element, shape: info.shape.clone() })
    };
    Arrays::new(array("inputs")?, array("targets")?)
}
