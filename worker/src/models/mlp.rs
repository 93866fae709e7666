//! Three linear layers.

use tch::Tensor;

use super::{Model, ParameterSpec};

const HIDDEN: i64 = 256;

pub(super) fn parameters(model: &Model) -> Vec<ParameterSpec> {
    let pixels = model.height * model.width;
    vec![
        ParameterSpec::new("fc1.weight", &[HIDDEN, pixels], pixels),
        ParameterSpec::new("fc1.bias", &[HIDDEN], pixels),
        ParameterSpec::new("fc2.weight", &[HIDDEN, HIDDEN], HIDDEN),
        ParameterSpec::new("fc2.bias", &[HIDDEN], HIDDEN),
        ParameterSpec::new("fc3.weight", &[model.classes, HIDDEN], HIDDEN),
        ParameterSpec::new("fc3.bias", &[model.classes], HIDDEN),
    ]
}

pub(super) fn forward(parameters: &[Tensor], pictures: &Tensor) -> Tensor {
    pictures
        .flatten(1, -1)
        .linear(&parameters[0], Some(&parameters[1]))
        .relu()
        .linear(&parameters[2], Some(&parameters[3]))
        .relu()
        .linear(&parameters[4], Some(&parameters[5]))
}
