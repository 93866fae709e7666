//! The parts that models are made of. Each adds its tensors to a layout when it is made, with PyTorch's names and
//! initialisation, and computes with those of a state.

use tch::{TchError, Tensor};

use super::{BufferId, Initial, Layout, ParameterId, State};

/// `y = x W' + b`.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    pub weight: ParameterId,
    pub bias: Option<ParameterId>,
}

impl Linear {
    /// From `inputs` to `outputs` features, as `torch.nn.Linear` starts.
    pub fn new(layout: &mut Layout, name: &str, inputs: i64, outputs: i64) -> Linear {
        let mut linear = Linear::with(layout, name, [inputs, outputs], false, Initial::fan_in(inputs));
        linear.bias = Some(layout.parameter(format!("{name}.bias"), &[outputs], Initial::fan_in(inputs)));
        linear
    }

    /// From `inputs` to `outputs` features with other first weights; the bias, if any, starts at zero.
    pub fn with(
        layout: &mut Layout,
        name: &str,
        [inputs, outputs]: [i64; 2],
        bias: bool,
        weight: Initial,
    ) -> Linear {
        Linear {
            weight: layout.parameter(format!("{name}.weight"), &[outputs, inputs], weight),
            bias: bias.then(|| layout.parameter(format!("{name}.bias"), &[outputs], Initial::Constant(0.0))),
        }
    }

    pub fn forward(&self, state: &State<'_>, inputs: &Tensor) -> Result<Tensor, TchError> {
        inputs.f_linear(&state[self.weight], self.bias.map(|bias| &state[bias]))
    }
}

/// A convolution over pictures, with square filters.
#[derive(Debug, Clone, Copy)]
pub struct Conv2d {
    pub weight: ParameterId,
    pub bias: Option<ParameterId>,
    stride: i64,
    padding: i64,
}

/// Sizes of a [`Conv2d`].
#[derive(Debug, Clone, Copy)]
pub struct Filters {
    pub inputs: i64,
    pub outputs: i64,
    pub size: i64,
    pub stride: i64,
}

impl Conv2d {
    /// With a bias, as `torch.nn.Conv2d` starts, and as much padding as keeps a picture's size at stride 1.
    pub fn new(layout: &mut Layout, name: &str, filters: Filters) -> Conv2d {
        let fan_in = filters.inputs * filters.size * filters.size;
        let mut conv = Conv2d::without_bias(layout, name, filters, Initial::fan_in(fan_in));
        conv.bias = Some(layout.parameter(format!("{name}.bias"), &[filters.outputs], Initial::fan_in(fan_in)));
        conv
    }

    pub fn without_bias(layout: &mut Layout, name: &str, filters: Filters, weight: Initial) -> Conv2d {
        let Filters { inputs, outputs, size, stride } = filters;
        let weight = layout.parameter(format!("{name}.weight"), &[outputs, inputs, size, size], weight);
        Conv2d { weight, bias: None, stride, padding: size / 2 }
    }

    pub fn forward(&self, state: &State<'_>, inputs: &Tensor) -> Result<Tensor, TchError> {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        inputs.f_conv2d(&state[self.weight], self.bias.map(|bias| &state[bias]), stride, padding, [1, 1], 1)
    }
}

/// Channels are brought to mean 0 and variance 1 over a batch, or by their running statistics in evaluations.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm2d {
    weight: ParameterId,
    bias: ParameterId,
    mean: BufferId,
    variance: BufferId,
}

impl BatchNorm2d {
    pub fn new(layout: &mut Layout, name: &str, channels: i64) -> BatchNorm2d {
        BatchNorm2d {
            weight: layout.parameter(format!("{name}.weight"), &[channels], Initial::Constant(1.0)),
            bias: layout.parameter(format!("{name}.bias"), &[channels], Initial::Constant(0.0)),
            mean: layout.buffer(format!("{name}.running_mean"), &[channels], Initial::Constant(0.0)),
            variance: layout.buffer(format!("{name}.running_var"), &[channels], Initial::Constant(1.0)),
        }
    }

    pub fn forward(&self, state: &State<'_>, inputs: &Tensor) -> Result<Tensor, TchError> {
        let (weight, bias) = (Some(&state[self.weight]), Some(&state[self.bias]));
        let (mean, variance) = (Some(&state[self.mean]), Some(&state[self.variance]));
        inputs.f_batch_norm(weight, bias, mean, variance, state.training, 0.1, 1e-5, true)
    }
}

/// Features of each item are brought to mean 0 and variance 1.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm {
    weight: ParameterId,
    bias: Option<ParameterId>,
    features: i64,
}

impl LayerNorm {
    pub fn new(layout: &mut Layout, name: &str, features: i64, bias: bool) -> LayerNorm {
        let weight = layout.parameter(format!("{name}.weight"), &[features], Initial::Constant(1.0));
        let bias = bias.then(|| layout.parameter(format!("{name}.bias"), &[features], Initial::Constant(0.0)));
        LayerNorm { weight, bias, features }
    }

    pub fn forward(&self, state: &State<'_>, inputs: &Tensor) -> Result<Tensor, TchError> {
        let bias = self.bias.map(|bias| &state[bias]);
        inputs.f_layer_norm([self.features], Some(&state[self.weight]), bias, 1e-5, true)
    }
}

/// A learned row of features for each token.
#[derive(Debug, Clone, Copy)]
pub struct Embedding {
    pub weight: ParameterId,
}

impl Embedding {
    /// `torch.nn.Embedding` starts with `Initial::Normal(1.0)`.
    pub fn new(layout: &mut Layout, name: &str, tokens: i64, features: i64, initial: Initial) -> Embedding {
        Embedding { weight: layout.parameter(format!("{name}.weight"), &[tokens, features], initial) }
    }

    pub fn forward(&self, state: &State<'_>, tokens: &Tensor) -> Result<Tensor, TchError> {
        Tensor::f_embedding(&state[self.weight], tokens, -1, false, false)
    }
}
