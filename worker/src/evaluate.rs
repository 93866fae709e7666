//! How good a model is on a data set.

use std::collections::BTreeMap;

use serde::Serialize;
use tch::no_grad;

use crate::data::Dataset;
use crate::ddp::group::Group;
use crate::models::{Measured, Model, ModelError};
use crate::parameters::Parameters;
use crate::sampler::shard;

/// Large enough to be fast, small enough to stay in the cache.
const BATCH: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    #[error(transparent)]
    Group(#[from] muster_collectives::Error),
    #[error(transparent)]
    Model(#[from] ModelError),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// Mean over all items.
    pub loss: f64,
    /// The model's other metrics by name, as means.
    #[serde(flatten)]
    pub metrics: BTreeMap<&'static str, f64>,
    /// What was measured: samples, or tokens.
    #[serde(rename = "samples")]
    pub items: i64,
}

/// Each rank measures its part; all get the score of the whole.
pub fn evaluate(
    model: &dyn Model,
    parameters: &mut Parameters,
    data: &Dataset,
    group: &Group,
) -> Result<Score, EvaluationError> {
    parameters.buffers_mut().begin();
    let state = parameters.state(false);
    let part = shard(data.len(), group.rank(), group.world());
    let names = model.metrics();
    let mut items = [0];
    // The loss and the other metrics.
    let mut sums = vec![0.0; 1 + names.len()];
    no_grad(|| {
        for start in part.clone().step_by(BATCH) {
            let batch = data.range(start, BATCH.min(part.end - start));
            let Measured { items: count, loss, metrics } = model.measure(&state, &batch)?;
            items[0] += count;
            sums.iter_mut().zip(std::iter::once(loss).chain(metrics)).for_each(|(sum, value)| *sum += value);
        }
        Ok::<(), ModelError>(())
    })?;
    group.sum_counts(&mut items)?;
    group.sum(&mut sums)?;
    let whole = (items[0] as f64).max(1.0);
    let metrics = names.iter().copied().zip(sums[1..].iter().map(|sum| sum / whole)).collect();
    Ok(Score { loss: sums[0] / whole, metrics, items: items[0] })
}

impl Score {
    /// The metrics beside the loss, for people.
    pub fn text(&self) -> String {
        self.metrics.iter().map(|(name, value)| format!("  {name} {value:.4}")).collect()
    }
}
