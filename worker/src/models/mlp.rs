//! Linear layers with ReLU between them, over a sample as one row of numbers.

use tch::Tensor;

use super::config::MlpConfig;
use super::layers::Linear;
use super::{ACCURACY, Batch, DataSpec, Layout, Measured, Model, ModelError, SampleKind, State, cross_entropy};

#[derive(Debug)]
pub(super) struct Mlp {
    layout: Layout,
    layers: Vec<Linear>,
}

impl Mlp {
    pub(super) fn new(config: &MlpConfig, data: &DataSpec) -> Result<Mlp, ModelError> {
        if data.kind != SampleKind::Numbers {
            let why = "it learns from numbers, the data are tokens: use gpt";
            return Err(ModelError::Data { model: "mlp".into(), why: why.into() });
        }
        let mut layout = Layout::default();
        let mut inputs = data.sample_len();
        let mut layers = Vec::new();
        for (index, outputs) in config.hidden.iter().copied().chain([data.classes]).enumerate() {
            layers.push(Linear::new(&mut layout, &format!("fc{}", index + 1), inputs, outputs));
            inputs = outputs;
        }
        Ok(Mlp { layout, layers })
    }

    fn scores(&self, state: &State<'_>, batch: &Batch) -> Result<Tensor, ModelError> {
        let mut activations = batch.inputs.f_flatten(1, -1)?;
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                activations = activations.f_relu()?;
            }
            activations = layer.forward(state, &activations)?;
        }
        Ok(activations)
    }
}

impl Model for Mlp {
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
