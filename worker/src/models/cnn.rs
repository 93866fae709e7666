//! Convolutions, each with pooling that halves the picture, then two linear layers.

use tch::Tensor;

use super::config::CnnConfig;
use super::layers::{Conv2d, Filters, Linear};
use super::{ACCURACY, Batch, DataSpec, Layout, Measured, Model, ModelError, State, cross_entropy};

#[derive(Debug)]
pub(super) struct Cnn {
    layout: Layout,
    convolutions: Vec<Conv2d>,
    hidden: Linear,
    output: Linear,
}

impl Cnn {
    pub(super) fn new(config: &CnnConfig, data: &DataSpec) -> Result<Cnn, ModelError> {
        let [mut inputs, mut height, mut width] = data.sample[..] else {
            let why = format!("it learns from pictures (channels, height, width), samples have shape {:?}", data.sample);
            return Err(ModelError::Data { model: "cnn".into(), why });
        };
        let mut layout = Layout::default();
        let mut convolutions = Vec::new();
        for (index, outputs) in config.channels.iter().copied().enumerate() {
            let filters = Filters { inputs, outputs, size: 3, stride: 1 };
            convolutions.push(Conv2d::new(&mut layout, &format!("conv{}", index + 1), filters));
            (inputs, height, width) = (outputs, height / 2, width / 2);
        }
        if height < 1 || width < 1 {
            let (pictures, times) = (&data.sample[1..], config.channels.len());
            let why = format!("pictures of {pictures:?} cannot be halved {times} times: give fewer channels");
            return Err(ModelError::Data { model: "cnn".into(), why });
        }
        let hidden = Linear::new(&mut layout, "fc1", inputs * height * width, config.hidden);
        let output = Linear::new(&mut layout, "fc2", config.hidden, data.classes);
        Ok(Cnn { layout, convolutions, hidden, output })
    }

    fn scores(&self, state: &State<'_>, batch: &Batch) -> Result<Tensor, ModelError> {
        let mut activations = batch.inputs.shallow_clone();
        for convolution in &self.convolutions {
            activations = convolution
                .forward(state, &activations)?
                .f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)?
                .f_relu()?;
        }
        let features = self.hidden.forward(state, &activations.f_flatten(1, -1)?)?.f_relu()?;
        Ok(self.output.forward(state, &features)?)
    }
}

impl Model for Cnn {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn loss(&self, state: &State<'_>, batch: &Batch) -> Result<Tensor, ModelError> {
        cross_entropy(&self.scores(state, batch)?, &batch.targets)
    }

    fn metrics(&self) -> &'static [&'static str] {
        ACCURACY
    }

    fn measure(&self, state: &State<'_>, batch: &Batch) -> Result<Measured, ModelError> {
        Measured::of_scores(&self.scores(state, batch)?, &batch.targets)
    }
}
