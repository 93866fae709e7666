//! SGD, Adam and AdamW over all parameters at once, as one flat piece of memory; their state has the same layout, so it
//! is checkpointed and broadcast as the parameters are.

#![allow(unsafe_code)]

mod kernel;

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::Tensor;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Adaptive moments; weight decay is added to the gradient.
    Adam,
    /// As adam, but weight decay acts on the parameters themselves.
    Adamw,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Sgd => "sgd",
            Algorithm::Adam => "adam",
            Algorithm::Adamw => "adamw",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub algorithm: Algorithm,
    pub momentum: f64,
    #[serde(default)]
    pub nesterov: bool,
    pub weight_decay: f64,
}

const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

#[derive(Debug)]
pub struct Optimizer {
    settings: Settings,
    /// One flat tensor for each name of [`Optimizer::slot_names`].
    slots: Vec<Tensor>,
}

impl Optimizer {
    pub fn new(settings: Settings, values: &Tensor) -> Optimizer {
        let slots = Optimizer::slot_names(settings.algorithm).iter().map(|_| values.zeros_like()).collect();
        Optimizer { settings, slots }
    }

    pub fn slot_names(algorithm: Algorithm) -> &'static [&'static str] {
        match algorithm {
            Algorithm::Sgd => &["momentum"],
            Algorithm::Adam | Algorithm::Adamw => &["mean", "variance"],
        }
    }

    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Names and flat tensors of the state.
    pub fn state(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        Optimizer::slot_names(self.settings.algorithm).iter().copied().zip(&self.slots)
    }

    /// Moves the parameters against their gradients times `scale`; `step` counts from 1. The formulas, and the order of
    /// their operations, are those of torch.optim, which computes with the same constants in f32.
    pub fn step(&mut self, values: &mut [f32], gradients: &[f32], Step { lr, step, scale, threads }: Step) {
        let Settings { algorithm, momentum, nesterov, weight_decay } = self.settings;
        match (algorithm, self.slots.as_mut_slice()) {
            (Algorithm::Sgd, [momenta]) => {
                let step = kernel::Sgd {
                    lr: lr as f32,
                    momentum: momentum as f32,
                    nesterov,
                    weight_decay: weight_decay as f32,
                    scale: scale as f32,
                };
                kernel::sgd(step, values, gradients, numbers(momenta), threads);
            }
            (Algorithm::Adam | Algorithm::Adamw, [means, variances]) => {
                let steps = i32::try_from(step).unwrap_or(i32::MAX);
                let (first, second) = BETAS;
                let decoupled = algorithm == Algorithm::Adamw;
                let step = kernel::Adam {
                    lr: (lr / (1.0 - first.powi(steps))) as f32,
                    betas: (first as f32, second as f32),
                    correction: (1.0 - second.powi(steps)).sqrt() as f32,
                    epsilon: EPSILON as f32,
                    weight_decay: if decoupled { 0.0 } else { weight_decay as f32 },
                    keep: if decoupled { (1.0 - lr * weight_decay) as f32 } else { 1.0 },
                    scale: scale as f32,
                };
                kernel::adam(step, values, gradients, numbers(means), numbers(variances), threads);
            }
            _ => unreachable!("an optimizer has the slots of its algorithm"),
        }
    }
}

/// How far a step goes.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub lr: f64,
    /// Counts from 1.
    pub step: u64,
    /// On the gradients: what clipping leaves of them, over the scale of the loss.
    pub scale: f64,
    pub threads: usize,
}

/// The Euclidean norm of gradients, as if they were one vector; not finite where one of them is not.
pub fn norm(gradients: &[f32]) -> f64 {
    kernel::norm(gradients)
}

/// What is left of gradients of this norm that may have `longest` at most, as torch.nn.utils.clip_grad_norm_ has it.
pub fn clip(norm: f64, longest: Option<f64>) -> f64 {
    longest.map_or(1.0, |longest| (longest / (norm + 1e-6)).min(1.0))
}

/// The scale of the loss under fp16, whose small gradients would vanish: halved when gradients overflow, and doubled
/// after so many steps in which they did not. The rule and its numbers are those of torch.amp.GradScaler.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    pub scale: f64,
    /// Steps since it last changed.
    pub steps: u32,
}

impl LossScale {
    const GROWTH_STEPS: u32 = 2000;

    pub fn new() -> LossScale {
        LossScale { scale: 65536.0, steps: 0 }
    }

    /// Takes note of a step's gradients. Whether they are finite, and the step is to be done.
    pub fn admit(&mut self, norm: f64) -> bool {
        if !norm.is_finite() {
            *self = LossScale { scale: self.scale * 0.5, steps: 0 };
            return false;
        }
        self.steps += 1;
        if self.steps == LossScale::GROWTH_STEPS {
            *self = LossScale { scale: self.scale * 2.0, steps: 0 };
        }
        true
    }
}

impl Default for LossScale {
    fn default() -> LossScale {
        LossScale::new()
    }
}

/// The elements of a flat tensor of floats.
fn numbers(tensor: &mut Tensor) -> &mut [f32] {
    assert!(tensor.kind() == tch::Kind::Float && tensor.is_contiguous() && tensor.device() == tch::Device::Cpu);
    // SAFETY: a contiguous tensor of floats on the CPU has `numel` of them behind its pointer, and nobody else has a
    // view of a slot.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    /// A short rise, then down to zero along half a cosine.
    Cosine,
}

/// The share of the run in which the learning rate rises.
const WARM_UP: f64 = 0.02;

impl Schedule {
    /// The factor on the learning rate, when `done` of the run (0 to 1) lies behind.
    pub fn factor(self, done: f64) -> f64 {
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine if done < WARM_UP => (done + 1e-3) / (WARM_UP + 1e-3),
            Schedule::Cosine => {
                let rest = ((done - WARM_UP) / (1.0 - WARM_UP)).clamp(0.0, 1.0);
                0.5 * (1.0 + (std::f64::consts::PI * rest).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(settings: Settings, steps: u64) -> Vec<f32> {
        let mut values = vec![1f32, -2.0];
        let mut optimizer = Optimizer::new(settings, &Tensor::from_slice(&values));
        for step in 1..=steps {
            // The gradient of the sum of squares.
            let gradients: Vec<f32> = values.iter().map(|value| value * 2.0).collect();
            optimizer.step(&mut values, &gradients, Step { lr: 0.1, step, scale: 1.0, threads: 1 });
        }
        values
    }

    /// Figures of torch.optim on the same problem, with lr=0.1 and momentum=0.9.
    #[test]
    fn steps_are_those_of_pytorch() {
        let plain = |algorithm| Settings { algorithm, momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        let table = [
            (plain(Algorithm::Sgd), 1, [0.8, -1.6]),
            (plain(Algorithm::Sgd), 3, [0.062, -0.124]),
            (Settings { nesterov: true, weight_decay: 0.1, ..plain(Algorithm::Sgd) }, 3, NESTEROV_3),
            (plain(Algorithm::Adam), 1, [0.9, -1.9]),
            (plain(Algorithm::Adam), 3, ADAM_3),
            (Settings { weight_decay: 0.1, ..plain(Algorithm::Adam) }, 3, ADAM_DECAY_3),
            (Settings { weight_decay: 0.1, ..plain(Algorithm::Adamw) }, 3, ADAMW_3),
        ];
        for (settings, steps, expected) in table {
            let values = run(settings, steps);
            let close =
                values.iter().zip(expected).all(|(value, expected): (&f32, f32)| (value - expected).abs() < 1e-5);
            assert!(close, "{settings:?} after {steps}: {values:?}, not {expected:?}");
        }
    }

    const NESTEROV_3: [f32; 2] = [-0.140468, 0.280937];
    const ADAM_3: [f32; 2] = [0.701586, -1.700623];
    const ADAM_DECAY_3: [f32; 2] = [0.701586, -1.700623];
    const ADAMW_3: [f32; 2] = [0.675101, -1.644369];

    #[test]
    fn threads_change_nothing() {
        let settings = Settings { algorithm: Algorithm::Adamw, momentum: 0.9, nesterov: false, weight_decay: 0.1 };
        let run = |threads| {
            let mut values: Vec<f32> = (0..1_000_003).map(|index| (index % 97) as f32).collect();
            let gradients: Vec<f32> = (0..1_000_003).map(|index| (index % 89) as f32 - 44.0).collect();
            let mut optimizer = Optimizer::new(settings, &Tensor::from_slice(&values));
            optimizer.step(&mut values, &gradients, Step { lr: 0.1, step: 1, scale: 0.5, threads });
            values
        };
        assert!(run(1) == run(3));
    }

    #[test]
    fn the_norm_tells_of_any_number_that_is_not_finite() {
        let mut numbers = vec![3f32; 1_000_000];
        assert!((norm(&numbers) - 3000.0).abs() < 1e-6);
        assert_eq!(clip(3000.0, None), 1.0);
        assert!((clip(3000.0, Some(30.0)) - 0.01).abs() < 1e-9);
        assert_eq!(clip(3.0, Some(30.0)), 1.0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            numbers[777_777] = bad;
            assert!(!norm(&numbers).is_finite());
        }
    }

    #[test]
    fn the_scale_of_the_loss_halves_at_an_overflow_and_doubles_after_a_while() {
        let mut scale = LossScale { scale: 8.0, steps: 5 };
        assert!(!scale.admit(f64::INFINITY));
        assert_eq!(scale, LossScale { scale: 4.0, steps: 0 });
        for _ in 0..LossScale::GROWTH_STEPS {
            assert_eq!(scale.scale, 4.0);
            assert!(scale.admit(1.0));
        }
        assert_eq!(scale, LossScale { scale: 8.0, steps: 0 });
    }

    #[test]
    fn the_cosine_rises_then_falls_to_zero() {
        let factor = |done| Schedule::Cosine.factor(done);
        assert!(factor(0.0) < 0.1 && factor(0.01) < factor(0.02));
        assert!((factor(WARM_UP) - 1.0).abs() < 1e-9 && factor(0.5) < 0.6 && factor(1.0).abs() < 1e-9);
    }
}
