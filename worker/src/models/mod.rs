//! Models: what a run trains.
//!
//! A [`Model`] says which tensors it needs and computes with those that it is given. It owns none of them: the run lays
//! parameters and buffers out for communication ([`crate::parameters`]), initialises, saves and sends them. A type of
//! your own that implements the trait is trained by [`crate::program::run_own`], as `examples/own-model` shows; the
//! models in the box are chosen by [`config::ModelConfig`].

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, TchError, Tensor, no_grad};

pub mod config;
pub mod layers;
pub mod layout;
pub mod weights;

mod cnn;
mod gpt;
mod mlp;
mod resnet;
mod script;

pub use layout::{BufferId, Initial, Layout, ParameterId, TensorSpec};

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("failed to read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A configuration that cannot be built; `origin` is its file or its name on the command line.
    #[error("{origin}: {why}")]
    Config { origin: String, why: String },
    /// The model cannot learn from this data.
    #[error("the model {model} cannot learn from this data: {why}")]
    Data { model: String, why: String },
    #[error("{} cannot be trained: {why}", path.display())]
    Script { path: PathBuf, why: String },
    #[error("{} does not hold start weights of this model: {why}", path.display())]
    Weights { path: PathBuf, why: String },
    #[error(transparent)]
    Torch(#[from] TchError),
}

/// What the samples of a data set are: sizes that a model's configuration leaves open come from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSpec {
    /// The shape of one sample: channels, height and width of a picture, the length of a row of tokens.
    pub sample: Vec<i64>,
    /// What a sample consists of.
    pub kind: SampleKind,
    /// Targets are numbers from 0 to below this: a class for each sample, or the next token for each token.
    pub classes: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SampleKind {
    /// 32-bit floats.
    Numbers,
    /// 64-bit integers from 0 to below [`DataSpec::classes`].
    Tokens,
}

impl DataSpec {
    /// Pictures with one class each.
    pub fn pictures(channels: i64, height: i64, width: i64, classes: i64) -> DataSpec {
        DataSpec { sample: vec![channels, height, width], kind: SampleKind::Numbers, classes }
    }

    /// Rows of `length` tokens whose targets are the tokens that follow.
    pub fn tokens(length: i64, vocabulary: i64) -> DataSpec {
        DataSpec { sample: vec![length], kind: SampleKind::Tokens, classes: vocabulary }
    }

    /// How many numbers or tokens a sample has.
    pub fn sample_len(&self) -> i64 {
        self.sample.iter().product()
    }
}

/// Some samples with their targets.
#[derive(Debug)]
pub struct Batch {
    /// samples x the shape of a sample; floats, or 64-bit integers for tokens.
    pub inputs: Tensor,
    /// 64-bit integers: one for each sample, or samples x length for tokens.
    pub targets: Tensor,
}

/// What a pass computes with.
#[derive(Debug, Clone, Copy)]
pub struct State<'a> {
    /// In the order of [`Layout::parameters`]; the same tensors for the whole run.
    pub parameters: &'a [Tensor],
    /// In the order of [`Layout::buffers`]; the same tensors for the whole run.
    pub buffers: &'a [Tensor],
    /// Whether this is a pass of training: dropout drops, and running statistics move.
    pub training: bool,
}

impl std::ops::Index<ParameterId> for State<'_> {
    type Output = Tensor;

    fn index(&self, id: ParameterId) -> &Tensor {
        &self.parameters[id.0]
    }
}

impl std::ops::Index<BufferId> for State<'_> {
    type Output = Tensor;

    fn index(&self, id: BufferId) -> &Tensor {
        &self.buffers[id.0]
    }
}

/// A model that can be trained.
///
/// The run calls [`Model::loss`] for each batch of training and goes back from what it returns, and
/// [`Model::measure`], without recording gradients, for each batch of an evaluation. Random numbers that a pass draws
/// from libtorch depend on the run's seed, the step and the rank alone.
pub trait Model: fmt::Debug {
    /// The tensors that the model computes with. All ranks must give the same layout.
    fn layout(&self) -> &Layout;

    /// Called once, before the first pass, with the tensors that all passes get: for a model that hands them on to
    /// code which holds tensors of its own.
    fn bind(&mut self, _state: &State<'_>) -> Result<(), ModelError> {
        Ok(())
    }

    /// The mean loss over a batch: one number, that depends on the parameters. May change buffers in place.
    fn loss(&self, state: &State<'_>, batch: &Batch) -> Result<Tensor, ModelError>;

    /// The names of what [`Model::measure`] measures beside the loss.
    fn metrics(&self) -> &'static [&'static str] {
        &[]
    }

    /// The loss of a batch of an evaluation, and the other metrics.
    fn measure(&self, state: &State<'_>, batch: &Batch) -> Result<Measured, ModelError>;
}

/// What a model measures on a batch, as sums, so that batches of all ranks can be added up.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Over how many items the sums go: samples, or tokens.
    pub items: i64,
    pub loss: f64,
    /// In the order of [`Model::metrics`].
    pub metrics: Vec<f64>,
}

/// The metrics of a [`Measured::of_scores`].
pub const ACCURACY: &[&str] = &["accuracy"];

/// The mean cross-entropy of scores (samples x classes, or samples x length x classes) to the right classes.
pub fn cross_entropy(scores: &Tensor, targets: &Tensor) -> Result<Tensor, ModelError> {
    reduced_cross_entropy(scores, targets, Reduction::Mean)
}

fn reduced_cross_entropy(scores: &Tensor, targets: &Tensor, reduction: Reduction) -> Result<Tensor, ModelError> {
    let scores = if scores.dim() > 2 { scores.f_flatten(0, -2)? } else { scores.shallow_clone() };
    let targets = targets.f_flatten(0, -1)?;
    Ok(scores.f_cross_entropy_loss(&targets, None::<&Tensor>, reduction, -100, 0.0)?)
}

impl Measured {
    /// The cross-entropy and the accuracy of scores, shaped as for [`cross_entropy`].
    pub fn of_scores(scores: &Tensor, targets: &Tensor) -> Result<Measured, ModelError> {
        no_grad(|| {
            let loss = reduced_cross_entropy(scores, targets, Reduction::Sum)?.f_double_value(&[])?;
            let correct = scores.f_argmax(-1, false)?.f_eq_tensor(targets)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
            Ok(Measured { items: targets.numel() as i64, loss, metrics: vec![correct as f64] })
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
