//! Parameters and gradients, each in one piece of memory.
//!
//! The parameters are views of one flat tensor, and hooks move their gradients to their places in another piece, which
//! the communicator allocates where there is one. So a range of gradients is handed to the collectives, and all of
//! them to the optimizer, without a copy. The layout has the last layer first: backward finishes it first.

#![allow(unsafe_code)]

use muster_collectives::SharedBuffer;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, TchError, Tensor};

use crate::autograd::{Hooks, Store};
use crate::buffers::Buffers;
use crate::ddp::group::Group;
use crate::ddp::reduction::{Buckets, Reduction};
use crate::models::{Initial, Layout, ModelError, State, TensorSpec};
use crate::sampler::SplitMix64;

/// Each parameter starts at a multiple of this many elements, which is a line of the cache.
pub(crate) const ALIGNMENT: usize = 16;
/// No model has more: as many as would be 64 GiB.
const MAX_ELEMENTS: usize = 1 << 34;

/// Where a tensor lies in a flat one.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) spec: TensorSpec,
    offset: usize,
}

#[derive(Debug)]
pub struct Parameters {
    /// In the order of the forward pass.
    places: Vec<Place>,
    values: Tensor,
    leaves: Vec<Tensor>,
    /// Before the memory that it fills, so that it ends first.
    hooks: Hooks,
    gradients: Memory,
    len: usize,
    buffers: Buffers,
}

/// Where the gradients lie: as the values, and one line more. The first element of that carries the loss, so that it
/// is averaged with them.
#[derive(Debug)]
enum Memory {
    Own(Vec<Line>),
    Shared(SharedBuffer<f32>),
}

/// A line of the cache.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; ALIGNMENT]);

impl Memory {
    fn own(len: usize) -> Memory {
        Memory::Own(vec![Line([0.0; ALIGNMENT]); len / ALIGNMENT])
    }

    fn pointer(&mut self) -> *mut f32 {
        match self {
            Memory::Own(lines) => lines.as_mut_ptr().cast(),
            Memory::Shared(buffer) => buffer.as_mut_ptr(),
        }
    }
}

impl Parameters {
    /// Fresh parameters and buffers of a model, the same for the same seed.
    pub fn new(layout: &Layout, seed: u64) -> Result<Parameters, ModelError> {
        let (mut places, len) = lay_out(layout.parameters().iter().rev())?;
        places.reverse();

        let values = Tensor::f_zeros([len as i64], (Kind::Float, Device::Cpu))?;
        let mut random = SplitMix64::new(seed);
        for place in &mut places {
            place.initialise(&values, &mut random)?;
        }
        let (buffers, buffers_len) = lay_out(layout.buffers())?;
        let buffers = Buffers::new(buffers, buffers_len, &mut random)?;
        let leaves: Vec<Tensor> =
            places.iter().map(|place| place.view(&values).detach().set_requires_grad(true)).collect();

        let mut gradients = Memory::own(len + ALIGNMENT);
        let hooks = Hooks::install(&leaves, &targets(&places, &mut gradients, len)).expect("leaves take hooks");
        Ok(Parameters { places, values, leaves, hooks, gradients, len, buffers })
    }

    /// Puts the gradients into a buffer of [`Parameters::gradients_len`] elements that the ranks of a group share.
    pub fn share(&mut self, buffer: SharedBuffer<f32>) {
        assert_eq!(buffer.len(), self.gradients_len(), "the buffer has the gradients' length");
        self.place(Memory::Shared(buffer));
    }

    /// Puts the gradients into memory of this process alone.
    pub fn unshare(&mut self) {
        if matches!(self.gradients, Memory::Shared(_)) {
            self.place(Memory::own(self.gradients_len()));
        }
    }

    fn place(&mut self, mut memory: Memory) {
        let targets = targets(&self.places, &mut memory, self.len);
        self.hooks.place(&targets).expect("leaves take hooks");
        // Nothing points to the old one any more.
        self.gradients = memory;
    }

    /// Elements of the gradients and the loss behind them.
    pub fn gradients_len(&self) -> usize {
        self.len + ALIGNMENT
    }

    /// Goes back from `loss`; `listener` hears of each leaf, by its number in the order of the forward pass, whose
    /// gradient is in its place, while the pass goes on. What the loss does not depend on has a gradient of zeros.
    pub fn backward(
        &mut self,
        loss: &Tensor,
        store: Store,
        listener: &mut (dyn FnMut(usize) + Send),
    ) -> Result<(), TchError> {
        self.hooks.backward(loss, store, listener)?;
        for (leaf, place) in self.places.iter().enumerate() {
            if self.hooks.has_come(leaf) {
                continue;
            }
            if store == Store::Over {
                let start = self.gradients.pointer();
                // SAFETY: the place lies within the gradients, and no hook runs now.
                unsafe { start.add(place.offset).write_bytes(0, place.spec.count()) };
            }
            listener(leaf);
        }
        Ok(())
    }

    /// Goes back from `loss` and makes the gradients their mean over the ranks, each bucket as soon as it is complete.
    /// The inner result is that of the collectives.
    pub fn backward_reducing(
        &mut self,
        loss: &Tensor,
        store: Store,
        group: &Group,
        buckets: &Buckets,
    ) -> Result<Result<(), muster_collectives::Error>, TchError> {
        let memory = self.gradients.pointer();
        // SAFETY: the buckets are those of this memory; only hooks touch it until the reduction has ended, and it has
        // at the end of this function, however that is left.
        let mut reduction = unsafe { Reduction::new(group, buckets, memory) };
        self.backward(loss, store, &mut |leaf| reduction.come(leaf))?;
        Ok(reduction.finish())
    }

    /// Clears the gradients of a rank that has nothing to go back from.
    pub fn clear_gradients(&mut self) {
        self.gradients().fill(0.0);
    }

    /// The tensors of the forward pass.
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// What a pass of the model computes with.
    pub fn state(&self, training: bool) -> State<'_> {
        State { parameters: &self.leaves, buffers: self.buffers.views(), training }
    }

    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    pub fn buffers_mut(&mut self) -> &mut Buffers {
        &mut self.buffers
    }

    /// All values, with zeros between the parameters.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// All values as numbers.
    pub fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: a contiguous tensor of floats on the CPU; leaves are views of it, but nobody computes while this
        // borrow of all parameters lasts.
        unsafe { std::slice::from_raw_parts_mut(self.values.data_ptr().cast::<f32>(), self.len) }
    }

    /// The gradients, in the layout of the values, and behind them a line whose first element is the loss.
    pub fn gradients(&mut self) -> &mut [f32] {
        let len = self.gradients_len();
        // SAFETY: the memory has that length, and hooks write to it within `backward` only.
        unsafe { std::slice::from_raw_parts_mut(self.gradients.pointer(), len) }
    }

    /// Values and gradients at a time, without the loss.
    pub fn values_and_gradients(&mut self) -> (&mut [f32], &mut [f32]) {
        let (len, gradients) = (self.len, self.gradients.pointer());
        // SAFETY: as for each of them alone; they are two pieces of memory.
        unsafe {
            (
                std::slice::from_raw_parts_mut(self.values.data_ptr().cast(), len),
                std::slice::from_raw_parts_mut(gradients, len),
            )
        }
    }

    pub fn set_loss(&mut self, loss: f32) {
        let at = self.len;
        self.gradients()[at] = loss;
    }

    pub fn loss(&mut self) -> f64 {
        let at = self.len;
        self.gradients()[at].into()
    }

    /// How the gradients are cut into buckets of at least `bytes`, last layers first, the loss with the last of them.
    pub fn buckets(&self, bytes: usize) -> Buckets {
        let ends = self.places.iter().map(|place| place.offset + place.spec.count().next_multiple_of(ALIGNMENT));
        Buckets::cut(&ends.collect::<Vec<_>>(), self.gradients_len(), bytes)
    }

    /// Name and view of each parameter in a flat tensor of this layout.
    pub fn split<'a>(&'a self, flat: &'a Tensor) -> impl Iterator<Item = (&'a str, Tensor)> + 'a {
        self.places.iter().map(move |place| (place.spec.name.as_str(), place.view(flat)))
    }

    /// Each parameter with its view.
    pub fn named(&self) -> impl Iterator<Item = (&TensorSpec, Tensor)> {
        self.places.iter().map(|place| (&place.spec, place.view(&self.values)))
    }

    pub fn count(&self) -> usize {
        self.places.iter().map(|place| place.spec.count()).sum()
    }

    /// The SHA-256 of all values, also of buffers: equal on all ranks.
    pub fn digest(&self) -> String {
        let mut digest = Sha256::new();
        for (spec, view) in self.named().chain(self.buffers.named()) {
            digest.update(spec.name.as_bytes());
            digest.update(bytes_of(&view));
        }
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The places of the gradients, as tensors.
fn targets(places: &[Place], memory: &mut Memory, len: usize) -> Vec<Tensor> {
    // SAFETY: the memory holds `len` elements and more; whoever gives it up gives the hooks other places first.
    let flat = unsafe { Tensor::from_blob(memory.pointer().cast(), &[len as i64], &[1], Kind::Float, Device::Cpu) };
    places.iter().map(|place| place.view(&flat)).collect()
}

/// Places one behind the other, and the length of the whole.
fn lay_out<'a>(specs: impl IntoIterator<Item = &'a TensorSpec>) -> Result<(Vec<Place>, usize), ModelError> {
    let mut places = Vec::new();
    let mut len = 0usize;
    for spec in specs {
        let count = spec.count();
        let end = len.saturating_add(count.min(MAX_ELEMENTS + 1).next_multiple_of(ALIGNMENT));
        if count == 0 || end > MAX_ELEMENTS {
            let why = match count {
                0 => format!("it is empty: its shape is {:?}", spec.shape),
                _ => format!("with it the model has more than {MAX_ELEMENTS} numbers: make it smaller"),
            };
            return Err(ModelError::Config { origin: spec.name.clone(), why });
        }
        places.push(Place { spec: spec.clone(), offset: len });
        len = end;
    }
    Ok((places, len))
}

impl Place {
    /// Draws the first values; given ones are let go.
    pub(crate) fn initialise(&mut self, flat: &Tensor, random: &mut SplitMix64) -> Result<(), ModelError> {
        let mut target = self.view(flat);
        let count = self.spec.count();
        let drawn: Vec<f32> = match std::mem::replace(&mut self.spec.initial, Initial::Constant(0.0)) {
            Initial::Constant(value) => {
                target.f_fill_(value)?;
                return Ok(());
            }
            Initial::Values(values) => {
                target.f_copy_(&values)?;
                return Ok(());
            }
            Initial::Uniform(bound) => {
                (0..count).map(|_| (random.next_share() * 2.0 - 1.0) * bound).map(|value| value as f32).collect()
            }
            Initial::Normal(deviation) => {
                (0..count).map(|_| random.next_normal() * deviation).map(|value| value as f32).collect()
            }
        };
        target.f_copy_(&Tensor::from_slice(&drawn).f_view(&self.spec.shape[..])?)?;
        Ok(())
    }

    /// The parameter's shape over its part of a flat tensor. The filters of a convolution keep their channels side
    /// by side in memory, which lets the whole convolution run so, a good deal faster.
    pub(crate) fn view(&self, flat: &Tensor) -> Tensor {
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
    use crate::models::DataSpec;
    use crate::models::tests::build;

    fn parameters() -> Parameters {
        Parameters::new(build("cnn", &DataSpec::pictures(1, 4, 4, 3)).layout(), 7).unwrap()
    }

    fn backward(parameters: &mut Parameters, store: Store) -> Vec<usize> {
        let loss =
            parameters.leaves().iter().fold(Tensor::from(0f32), |sum, leaf| sum + (leaf * leaf).sum(Kind::Float));
        let mut order = Vec::new();
        parameters.backward(&loss, store, &mut |leaf| order.push(leaf)).unwrap();
        order
    }

    #[test]
    fn gradients_land_in_the_flat_memory_step_after_step() {
        let mut parameters = parameters();
        for (store, times) in [(Store::Over, 2.0), (Store::Over, 2.0), (Store::Added, 4.0)] {
            let mut order = backward(&mut parameters, store);
            order.sort_unstable();
            assert_eq!(order, (0..8).collect::<Vec<_>>());
            let expected: Vec<f32> = parameters.values_mut().iter().map(|value| value * times).collect();
            assert_eq!(parameters.values_and_gradients().1, expected);
        }
    }

    #[test]
    fn what_the_loss_does_not_depend_on_has_a_gradient_of_zeros() {
        let mut parameters = parameters();
        backward(&mut parameters, Store::Over);
        let loss = parameters.leaves()[3].sum(Kind::Float);
        let mut order = Vec::new();
        parameters.backward(&loss, Store::Over, &mut |leaf| order.push(leaf)).unwrap();
        assert_eq!(order.len(), 8, "whoever waits hears of all of them");
        assert_eq!(parameters.gradients().iter().sum::<f32>(), parameters.places[3].spec.count() as f32);
    }

    #[test]
    fn a_change_of_the_flat_values_is_seen_by_the_model() {
        let mut parameters = parameters();
        let before = parameters.leaves()[1].double_value(&[0]);
        parameters.values_mut().iter_mut().for_each(|value| *value += 1.0);
        assert!((parameters.leaves()[1].double_value(&[0]) - before - 1.0).abs() < 1e-6);
    }

    #[test]
    fn equal_seeds_give_equal_parameters() {
        let model = build("cnn", &DataSpec::pictures(1, 28, 28, 10));
        let digest = |seed| Parameters::new(model.layout(), seed).unwrap().digest();
        assert_eq!(digest(1), digest(1));
        assert_ne!(digest(1), digest(2));
    }
}
