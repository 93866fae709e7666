//! How good a model is on a data set.

use serde::Serialize;
use tch::{Kind, Reduction, Tensor, no_grad};

use crate::data::{DataError, Dataset};
use crate::ddp::group::Group;
use crate::models::Model;
use crate::parameters::Parameters;
use crate::sampler::shard;

/// Large enough to be fast, small enough to stay in the cache.
const BATCH: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    pub accuracy: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    pub samples: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Group(#[from] muster_collectives::Error),
}

/// Each rank measures its part; all get the score of the whole.
pub fn evaluate(
    model: &Model,
    parameters: &Parameters,
    data: &Dataset,
    group: &Group,
) -> Result<Score, EvaluateError> {
    let part = shard(data.len(), group.rank(), group.world());
    let mut correct = 0;
    let mut loss = 0.0;
    no_grad(|| -> Result<(), DataError> {
        for start in part.clone().step_by(BATCH) {
            let batch = data.range(start..part.end.min(start + BATCH))?;
            let scores = model.forward(parameters.leaves(), &batch.inputs);
            correct += scores.argmax(1, false).eq_tensor(&batch.targets).sum(Kind::Int64).int64_value(&[]);
            let none: Option<Tensor> = None;
            loss += scores.cross_entropy_loss(&batch.targets, none, Reduction::Sum, -100, 0.0).double_value(&[]);
        }
        Ok(())
    })?;
    let mut counts = [correct, part.len() as i64];
    let mut losses = [loss];
    group.sum_counts(&mut counts)?;
    group.sum(&mut losses)?;
    let [correct, samples] = counts;
    let whole = (samples as f64).max(1.0);
    Ok(Score { accuracy: correct as f64 / whole, loss: losses[0] / whole, samples })
}
