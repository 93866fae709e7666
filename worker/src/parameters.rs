//! Parameters and gradients, each in one piece of memory.
//!
//! The parameters are views of one flat tensor, and backward adds their gradients into views of another. So a
//! range of gradients is handed to the collectives, and all of them to the optimizer, without a copy. The layout
//! has the last layer first: backward finishes it first.

use std::ops::Range;

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};

use crate::models::{Model, ParameterSpec};
use crate::sampler::SplitMix64;

/// Each parameter starts at a multiple of this many elements, which is a line of the cache.
const ALIGNMENT: usize = 16;

#[derive(Debug)]
struct Place {
    spec: ParameterSpec,
    offset: usize,
}

#[derive(Debug)]
pub struct Parameters {
    /// In the order of the forward pass.
    places: Vec<Place>,
    values: Tensor,
    /// As `values`, and one line more: the first element of it carries the loss, so that it is averaged with the
    /// gradients.
    gradients: Tensor,
    leaves: Vec<Tensor>,
    len: usize,
}

impl Parameters {
    /// Fresh parameters, the same for the same seed.
    pub fn new(model: &Model, seed: u64) -> Parameters {
        let mut places = Vec::new();
        let mut len = 0;
        for spec in model.parameters().into_iter().rev() {
            let count = spec.count();
            places.push(Place { spec, offset: len });
            len += count.next_multiple_of(ALIGNMENT);
        }
        places.reverse();

        let options = (Kind::Float, Device::Cpu);
        let values = Tensor::zeros([len as i64], options);
        let gradients = Tensor::zeros([(len + ALIGNMENT) as i64], options);
        let mut random = SplitMix64::new(seed);
        for place in &places {
            let bound = 1.0 / (place.spec.fan_in as f64).sqrt();
            let drawn: Vec<f32> = (0..place.spec.count())
                .map(|_| ((random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0) * bound)
                .map(|value| value as f32)
                .collect();
            place.view(&values).copy_(&Tensor::from_slice(&drawn).view(&place.spec.shape[..]));
        }
        let leaves: Vec<Tensor> =
            places.iter().map(|place| place.view(&values).detach().set_requires_grad(true)).collect();

        // Backward adds in place to a gradient that exists. One that is all zeros makes them exist; then their
        // memory is exchanged for the flat one.
        let zero = leaves.iter().fold(Tensor::zeros([], options), |sum, leaf| sum + (leaf * 0.0).sum(Kind::Float));
        zero.backward();
        for (leaf, place) in leaves.iter().zip(&places) {
            leaf.grad().set_data(&place.view(&gradients));
        }
        Parameters { places, values, gradients, leaves, len }
    }

    /// The tensors of the forward pass.
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// All values, with zeros between the parameters.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// All gradients, in the layout of the values.
    pub fn gradients(&self) -> Tensor {
        self.gradients.narrow(0, 0, self.len as i64)
    }

    /// The gradients and behind them the loss.
    pub fn gradients_with_loss(&self) -> &Tensor {
        &self.gradients
    }

    pub fn clear_gradients(&mut self) {
        let _ = self.gradients.zero_();
    }

    pub fn set_loss(&mut self, loss: &Tensor) {
        no_grad(|| self.gradients.narrow(0, self.len as i64, 1).copy_(&loss.view([1])));
    }

    pub fn loss(&self) -> f64 {
        self.gradients.double_value(&[self.len as i64])
    }

    /// The ranges of elements that are reduced together, last layers first, the loss with the last of them. A
    /// bucket is closed once it holds `bytes`.
    pub fn buckets(&self, bytes: usize) -> Vec<Range<usize>> {
        let mut buckets = Vec::new();
        let mut start = 0;
        for place in self.places.iter().rev() {
            let end = place.offset + place.spec.count().next_multiple_of(ALIGNMENT);
            if (end - start) * size_of::<f32>() >= bytes {
                buckets.push(start..end);
                start = end;
            }
        }
        let end = self.len + ALIGNMENT;
        match buckets.last_mut() {
            Some(last) if start == self.len => last.end = end,
            _ => buckets.push(start..end),
        }
        buckets
    }

    /// Name and view of each parameter in a flat tensor of this layout.
    pub fn split<'a>(&'a self, flat: &'a Tensor) -> impl Iterator<Item = (&'static str, Tensor)> + 'a {
        self.places.iter().map(move |place| (place.spec.name, place.view(flat)))
    }

    pub fn count(&self) -> usize {
        self.places.iter().map(|place| place.spec.count()).sum()
    }

    /// The SHA-256 of all values: equal on all ranks.
    pub fn digest(&self) -> String {
        let mut digest = Sha256::new();
        for (name, view) in self.split(&self.values) {
            digest.update(name.as_bytes());
            digest.update(bytes_of(&view));
        }
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Place {
    /// The parameter's shape over its part of a flat tensor. The filters of a convolution keep their channels side
    /// by side in memory, which lets the whole convolution run so, a good deal faster.
    fn view(&self, flat: &Tensor) -> Tensor {
        let part = flat.narrow(0, self.offset as i64, self.spec.count() as i64);
        match self.spec.shape[..] {
            [outputs, inputs, height, width] => part.view([outputs, height, width, inputs]).permute([0, 3, 1, 2]),
            _ => part.view(&self.spec.shape[..]),
        }
    }
}

/// The little-endian bytes of a tensor of floats.
pub fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let count = tensor.numel();
    let mut values = vec![0f32; count];
    tensor.contiguous().copy_data(&mut values, count);
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Architecture;

    fn parameters() -> Parameters {
        let model = Model { architecture: Architecture::Cnn, height: 4, width: 4, classes: 3 };
        Parameters::new(&model, 7)
    }

    fn backward(parameters: &Parameters) {
        let loss =
            parameters.leaves().iter().fold(Tensor::from(0f32), |sum, leaf| sum + (leaf * leaf).sum(Kind::Float));
        loss.backward();
    }

    #[test]
    fn gradients_land_in_the_flat_memory_step_after_step() {
        let mut parameters = parameters();
        let address = parameters.gradients().data_ptr();
        for _ in 0..3 {
            parameters.clear_gradients();
            backward(&parameters);
            let expected = parameters.values() * 2.0;
            assert!(parameters.gradients().equal(&expected));
            for leaf in parameters.leaves() {
                let grad = leaf.grad().data_ptr() as usize;
                assert!(grad >= address as usize && grad < address as usize + parameters.len * 4);
            }
        }
    }

    #[test]
    fn a_change_of_the_flat_values_is_seen_by_the_model() {
        let parameters = parameters();
        let before = parameters.leaves()[1].double_value(&[0]);
        no_grad(|| {
            let _ = parameters.values().shallow_clone().g_add_scalar_(1.0);
        });
        assert!((parameters.leaves()[1].double_value(&[0]) - before - 1.0).abs() < 1e-6);
    }

    #[test]
    fn buckets_cover_everything_last_layer_first() {
        let parameters = parameters();
        for bytes in [1, 100, 4096, 1 << 30] {
            let buckets = parameters.buckets(bytes);
            assert_eq!(buckets.first().map(|first| first.start), Some(0));
            assert_eq!(buckets.last().map(|last| last.end), Some(parameters.len + ALIGNMENT));
            assert!(buckets.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
        assert_eq!(parameters.buckets(1).len(), 8, "one bucket for each parameter");
        assert_eq!(parameters.buckets(1 << 30).len(), 1);
        assert_eq!(parameters.places.last().map(|place| place.offset), Some(0));
    }

    #[test]
    fn equal_seeds_give_equal_parameters() {
        let model = Model { architecture: Architecture::Cnn, height: 28, width: 28, classes: 10 };
        let digest = |seed| Parameters::new(&model, seed).digest();
        assert_eq!(digest(1), digest(1));
        assert_ne!(digest(1), digest(2));
    }
}
