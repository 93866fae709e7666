//! Two convolutions with pooling, then two linear layers.

use tch::Tensor;

use super::{Model, ParameterSpec};

const FIRST: i64 = 16;
const SECOND: i64 = 32;
const HIDDEN: i64 = 128;

pub(super) fn parameters(model: &Model) -> Vec<ParameterSpec> {
    let flat = SECOND * (model.height / 4) * (model.width / 4);
    vec![
        ParameterSpec::new("conv1.weight", &[FIRST, 1, 3, 3], 9),
        ParameterSpec::new("conv1.bias", &[FIRST], 9),
        ParameterSpec::new("conv2.weight", &[SECOND, FIRST, 3, 3], FIRST * 9),
        ParameterSpec::new("conv2.bias", &[SECOND], FIRST * 9),
        ParameterSpec::new("fc1.weight", &[HIDDEN, flat], flat),
        ParameterSpec::new("fc1.bias", &[HIDDEN], flat),
        ParameterSpec::new("fc2.weight", &[model.classes, HIDDEN], HIDDEN),
        ParameterSpec::new("fc2.bias", &[model.classes], HIDDEN),
    ]
}

pub(super) fn forward(parameters: &[Tensor], pictures: &Tensor) -> Tensor {
    let convolve = |input: &Tensor, weight: usize| {
        let (weight, bias) = (&parameters[weight], &parameters[weight + 1]);
        input
            .conv2d(weight, Some(bias), [1, 1], [1, 1], [1, 1], 1)
            .max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)
            .relu()
    };
    convolve(&convolve(pictures, 0), 2)
        .flatten(1, -1)
        .linear(&parameters[4], Some(&parameters[5]))
        .relu()
        .linear(&parameters[6], Some(&parameters[7]))
}
