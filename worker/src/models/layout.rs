//! Which tensors a model needs: their names, shapes and first values.

use tch::Tensor;

/// Names a parameter of a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterId(pub(super) usize);

/// Names a buffer of a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferId(pub(super) usize);

/// The first values of a tensor. What is drawn depends on the run's seed and on what was drawn before it.
#[derive(Debug)]
pub enum Initial {
    Constant(f64),
    /// Evenly in plus and minus this.
    Uniform(f64),
    /// Around zero with this standard deviation.
    Normal(f64),
    /// These, floats of the tensor's shape.
    Values(Tensor),
}

impl Initial {
    /// PyTorch's default for the weights and biases of linear layers and convolutions (Kaiming's uniform distribution
    /// with a = sqrt 5): plus and minus 1 / sqrt(inputs of an output).
    pub fn fan_in(inputs: i64) -> Initial {
        Initial::Uniform(1.0 / (inputs.max(1) as f64).sqrt())
    }
}

impl Clone for Initial {
    fn clone(&self) -> Initial {
        match self {
            Initial::Constant(value) => Initial::Constant(*value),
            Initial::Uniform(bound) => Initial::Uniform(*bound),
            Initial::Normal(deviation) => Initial::Normal(*deviation),
            // The same numbers, not a copy of them.
            Initial::Values(values) => Initial::Values(values.shallow_clone()),
        }
    }
}

/// A tensor of 32-bit floats that a run keeps for a model.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// As in the state_dict of the same model in PyTorch: checkpoints and start weights know it by this.
    pub name: String,
    pub shape: Vec<i64>,
    pub initial: Initial,
    /// Other names under which a state_dict has the same tensor.
    pub aliases: Vec<String>,
}

impl TensorSpec {
    /// How many numbers it has.
    pub fn count(&self) -> usize {
        self.shape.iter().map(|size| (*size).max(0) as usize).fold(1, usize::saturating_mul)
    }
}

/// The parameters, which training moves, and the buffers, which passes change in place, such as running statistics.
/// Buffers are averaged over the ranks after each step, so that all ranks have the same.
#[derive(Debug, Default)]
pub struct Layout {
    parameters: Vec<TensorSpec>,
    buffers: Vec<TensorSpec>,
}

impl Layout {
    /// Adds a parameter, in the order in which the forward pass uses them: gradients come back in reverse, and are sent
    /// in that order. One that is used in several places is one parameter, whose gradient is the sum.
    ///
    /// # Panics
    /// Where the name is taken.
    pub fn parameter(&mut self, name: impl Into<String>, shape: &[i64], initial: Initial) -> ParameterId {
        self.add(name.into(), shape, initial, |layout| &mut layout.parameters);
        ParameterId(self.parameters.len() - 1)
    }

    /// Adds a buffer.
    ///
    /// # Panics
    /// Where the name is taken.
    pub fn buffer(&mut self, name: impl Into<String>, shape: &[i64], initial: Initial) -> BufferId {
        self.add(name.into(), shape, initial, |layout| &mut layout.buffers);
        BufferId(self.buffers.len() - 1)
    }

    /// Says that a state_dict may have a parameter under another name too: where PyTorch ties two modules.
    pub fn alias(&mut self, id: ParameterId, name: impl Into<String>) {
        self.parameters[id.0].aliases.push(name.into());
    }

    /// Lets given first values go, once the run has taken them over.
    pub(super) fn forget_values(&mut self) {
        for spec in self.parameters.iter_mut().chain(&mut self.buffers) {
            spec.initial = Initial::Constant(0.0);
        }
    }

    fn add(
        &mut self,
        name: String,
        shape: &[i64],
        initial: Initial,
        list: impl FnOnce(&mut Layout) -> &mut Vec<TensorSpec>,
    ) {
        let taken = self.parameters.iter().chain(&self.buffers).any(|spec| spec.name == name);
        assert!(!taken, "a model has two tensors with the name {name}");
        list(self).push(TensorSpec { name, shape: shape.to_vec(), initial, aliases: Vec::new() });
    }

    pub fn parameters(&self) -> &[TensorSpec] {
        &self.parameters
    }

    pub fn buffers(&self) -> &[TensorSpec] {
        &self.buffers
    }
}
