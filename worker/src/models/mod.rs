//! The models that the worker can train by name.
//!
//! A model is its parameters' shapes and a function of them: it owns no tensors, so that [`crate::parameters`] can
//! lay them out for communication.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::Tensor;

mod cnn;
mod mlp;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Two convolutions and two linear layers.
    Cnn,
    /// Three linear layers.
    Mlp,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Architecture::Cnn => "cnn",
            Architecture::Mlp => "mlp",
        })
    }
}

/// A model for pictures of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    pub architecture: Architecture,
    pub height: i64,
    pub width: i64,
    pub classes: i64,
}

/// The name and shape of a parameter. It starts uniform in +-1/sqrt(fan_in).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    pub name: &'static str,
    pub shape: Vec<i64>,
    pub fan_in: i64,
}

impl ParameterSpec {
    fn new(name: &'static str, shape: &[i64], fan_in: i64) -> ParameterSpec {
        ParameterSpec { name, shape: shape.to_vec(), fan_in }
    }

    pub fn count(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }
}

impl Model {
    /// The parameters in the order in which the forward pass uses them.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        match self.architecture {
            Architecture::Cnn => cnn::parameters(self),
            Architecture::Mlp => mlp::parameters(self),
        }
    }

    /// Scores of each class, for a batch of pictures; the parameters come in the order of [`Model::parameters`].
    pub fn forward(&self, parameters: &[Tensor], pictures: &Tensor) -> Tensor {
        match self.architecture {
            Architecture::Cnn => cnn::forward(parameters, pictures),
            Architecture::Mlp => mlp::forward(parameters, pictures),
        }
    }
}
