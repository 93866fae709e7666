//! Start weights from a safetensors file whose names are those of PyTorch's state_dict.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor, no_grad};

use super::{ModelError, TensorSpec};
use crate::parameters::Parameters;

const MAX_BYTES: u64 = 64 << 30;

/// How many steps a module has seen: PyTorch keeps it, nothing here needs it.
const COUNTER: &str = "num_batches_tracked";

/// Copies the tensors of a file over those of a model. Every parameter must be there, under its name or an alias, in
/// the same shape; a buffer may be left out. A file with tensors that the model does not have is refused, since it
/// belongs to another model. Refused, nothing is changed.
pub fn load(path: &Path, parameters: &mut Parameters) -> Result<(), ModelError> {
    let failed = |source| ModelError::Read { path: path.into(), source };
    let wrong = |why: String| ModelError::Weights { path: path.into(), why };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(wrong(format!("it has more than {MAX_BYTES} bytes")));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(format!("no safetensors file: {error}")))?;

    let mut unknown: Vec<&str> = tensors.names().into_iter().filter(|name| !name.ends_with(COUNTER)).collect();
    let mut copies = Vec::new();
    let mut missing = Vec::new();
    let places = parameters.named().map(|(spec, target)| (spec, target, true));
    let buffers = parameters.buffers().named().map(|(spec, target)| (spec, target, false));
    for (spec, mut target, needed) in places.chain(buffers) {
        unknown.retain(|name| !names(spec).any(|own| own == *name));
        let Some(source) = names(spec).find_map(|name| tensors.tensor(name).ok()) else {
            if needed {
                missing.push(spec.name.as_str());
            }
            continue;
        };
        let shape: Vec<i64> = source.shape().iter().map(|size| *size as i64).collect();
        let (name, have) = (&spec.name, source.dtype());
        if shape != spec.shape || have != Dtype::F32 {
            return Err(wrong(format!("{name} is {have:?} {shape:?}, not F32 {:?}", spec.shape)));
        }
        let source = Tensor::f_from_data_size(source.data(), &shape, Kind::Float)?;
        copies.push(move || target.f_copy_(&source));
    }
    if !missing.is_empty() || !unknown.is_empty() {
        let list = |what: &str, names: &[&str]| match names {
            [] => String::new(),
            [name] => format!("{what} {name}"),
            [name, rest @ ..] => format!("{what} {name} and {} more", rest.len()),
        };
        let (missing, unknown) = (list("it lacks", &missing), list("it has besides", &unknown));
        let between = if missing.is_empty() || unknown.is_empty() { "" } else { ", " };
        return Err(wrong(format!("{missing}{between}{unknown}")));
    }
    no_grad(|| copies.into_iter().try_for_each(|mut copy| copy()))?;
    Ok(())
}

fn names(spec: &TensorSpec) -> impl Iterator<Item = &str> {
    std::iter::once(spec.name.as_str()).chain(spec.aliases.iter().map(String::as_str))
}
