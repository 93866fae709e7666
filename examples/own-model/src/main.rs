//! A model of one's own: gated layers, whose outputs are products of values and of gates between 0 and 1.
//!
//! The program is muster-worker around it: the same arguments, ranks, checkpoints and metrics.

use std::process::ExitCode;

use muster_worker::models::layers::Linear;
use muster_worker::models::{ACCURACY, Batch, DataSpec, Layout, Measured, Model, ModelError, State, cross_entropy};
use muster_worker::program;
use tch::Tensor;

const WIDTH: i64 = 128;

/// The layout has the tensors, which the run keeps; the layers know which of them are theirs.
#[derive(Debug)]
struct Gated {
    layout: Layout,
    layers: Vec<(Linear, Linear)>,
    output: Linear,
}

impl Gated {
    fn new(data: &DataSpec) -> Gated {
        let mut layout = Layout::default();
        let mut inputs = data.sample_len();
        let mut layers = Vec::new();
        for index in 0..2 {
            let mut linear = |part: &str| Linear::new(&mut layout, &format!("{part}{index}"), inputs, WIDTH);
            layers.push((linear("value"), linear("gate")));
            inputs = WIDTH;
        }
        let output = Linear::new(&mut layout, "output", WIDTH, data.classes);
        Gated { layout, layers, output }
    }

    fn scores(&self, state: &State<'_>, batch: &Batch) -> Result<Tensor, ModelError> {
        let mut features = batch.inputs.f_flatten(1, -1)?;
        for (value, gate) in &self.layers {
            let gate = gate.forward(state, &features)?.f_sigmoid()?;
            features = value.forward(state, &features)?.f_mul(&gate)?;
        }
        Ok(self.output.forward(state, &features)?)
    }
}

impl Model for Gated {
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

fn main() -> ExitCode {
    program::run_own("gated", |data| Ok(Box::new(Gated::new(data))))
}
