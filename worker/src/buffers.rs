//! The tensors that a model changes in its passes, such as running statistics.
//!
//! A step may be interrupted after its passes; its buffers must then be as before. So passes work on a copy, which is
//! kept once the step is done.

use tch::{Device, Kind, Tensor, no_grad};

use crate::models::{ModelError, TensorSpec};
use crate::parameters::Place;
use crate::sampler::SplitMix64;

#[derive(Debug)]
pub struct Buffers {
    places: Vec<Place>,
    /// As of the last step that was done.
    kept: Tensor,
    /// What passes see and change.
    used: Tensor,
    views: Vec<Tensor>,
}

impl Buffers {
    pub(crate) fn new(mut places: Vec<Place>, len: usize, random: &mut SplitMix64) -> Result<Buffers, ModelError> {
        let kept = Tensor::f_zeros([len as i64], (Kind::Float, Device::Cpu))?;
        for place in &mut places {
            place.initialise(&kept, random)?;
        }
        let used = kept.copy();
        let views = places.iter().map(|place| place.view(&used)).collect();
        Ok(Buffers { places, kept, used, views })
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The tensors of a pass, the same for the whole run.
    pub fn views(&self) -> &[Tensor] {
        &self.views
    }

    /// All of them as of the last step that was done, as one flat tensor.
    pub fn kept(&self) -> &Tensor {
        &self.kept
    }

    /// All of them as passes left them, as one flat tensor.
    pub fn used(&self) -> &Tensor {
        &self.used
    }

    /// Before the first pass of a step or of an evaluation: forgets what passes changed that led to no step.
    pub fn begin(&mut self) {
        if !self.is_empty() {
            no_grad(|| self.used.copy_(&self.kept));
        }
    }

    /// The step of the passes is done.
    pub fn keep(&mut self) {
        if !self.is_empty() {
            no_grad(|| self.kept.copy_(&self.used));
        }
    }

    /// Each buffer with its view as of the last step that was done.
    pub fn named(&self) -> impl Iterator<Item = (&TensorSpec, Tensor)> {
        self.places.iter().map(|place| (&place.spec, place.view(&self.kept)))
    }
}
