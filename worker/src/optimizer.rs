//! SGD and Adam over all parameters at once, as one flat tensor; their state has the same layout, so it is
//! checkpointed and broadcast as the parameters are.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::{Tensor, no_grad};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Stochastic gradient descent with momentum.
    Sgd,
    Adam,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Sgd => "sgd",
            Algorithm::Adam => "adam",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub algorithm: Algorithm,
    pub momentum: f64,
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
            Algorithm::Adam => &["mean", "variance"],
        }
    }

    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Names and flat tensors of the state.
    pub fn state(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        Optimizer::slot_names(self.settings.algorithm).iter().copied().zip(&self.slots)
    }

    /// Moves the parameters against their gradients; `step` counts from 1. The gradients are used up.
    pub fn step(&mut self, values: &Tensor, gradients: &Tensor, lr: f64, step: u64) {
        no_grad(|| {
            let mut values = values.shallow_clone();
            let mut gradients = gradients.shallow_clone();
            if self.settings.weight_decay > 0.0 {
                let _ = gradients.g_add_(&(&values * self.settings.weight_decay));
            }
            match (self.settings.algorithm, self.slots.as_mut_slice()) {
                (Algorithm::Sgd, [momentum]) => {
                    let _ = momentum.g_mul_scalar_(self.settings.momentum);
                    let _ = momentum.g_add_(&gradients);
                    gradients.copy_(momentum);
                    let _ = gradients.g_mul_scalar_(-lr);
                }
                (Algorithm::Adam, [mean, variance]) => {
                    let steps = i32::try_from(step).unwrap_or(i32::MAX);
                    let (first, second) = BETAS;
                    let _ = mean.lerp_(&gradients, 1.0 - first);
                    let _ = variance.lerp_(&gradients.square(), 1.0 - second);
                    let scale = (1.0 - second.powi(steps)).sqrt();
                    let mut denominator = variance.sqrt();
                    let _ = denominator.g_add_scalar_(EPSILON * scale);
                    gradients.copy_(mean);
                    let _ = gradients.g_mul_scalar_(-lr * scale / (1.0 - first.powi(steps)));
                    let _ = gradients.g_div_(&denominator);
                }
                _ => unreachable!("an optimizer has the slots of its algorithm"),
            }
            let _ = values.g_add_(&gradients);
        });
    }
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

    fn run(algorithm: Algorithm, steps: u64, lr: f64) -> Vec<f32> {
        let values = Tensor::from_slice(&[1f32, -2.0]);
        let settings = Settings { algorithm, momentum: 0.9, weight_decay: 0.0 };
        let mut optimizer = Optimizer::new(settings, &values);
        for step in 1..=steps {
            // The gradient of the sum of squares.
            let gradients = &values * 2.0;
            optimizer.step(&values, &gradients, lr, step);
        }
        Vec::try_from(&values).unwrap()
    }

    fn close(left: &[f32], right: &[f32]) -> bool {
        left.iter().zip(right).all(|(left, right)| (left - right).abs() < 1e-5)
    }

    /// Figures of torch.optim.SGD(lr=0.1, momentum=0.9) and torch.optim.Adam(lr=0.1) on the same problem.
    #[test]
    fn steps_are_those_of_pytorch() {
        assert!(close(&run(Algorithm::Sgd, 1, 0.1), &[0.8, -1.6]));
        assert!(close(&run(Algorithm::Sgd, 3, 0.1), &[0.062, -0.124]), "{:?}", run(Algorithm::Sgd, 3, 0.1));
        assert!(close(&run(Algorithm::Adam, 1, 0.1), &[0.9, -1.9]));
        assert!(close(&run(Algorithm::Adam, 3, 0.1), &ADAM_3), "{:?}", run(Algorithm::Adam, 3, 0.1));
    }

    const ADAM_3: [f32; 2] = [0.701586, -1.700623];

    #[test]
    fn the_cosine_rises_then_falls_to_zero() {
        let factor = |done| Schedule::Cosine.factor(done);
        assert!(factor(0.0) < 0.1 && factor(0.01) < factor(0.02));
        assert!((factor(WARM_UP) - 1.0).abs() < 1e-9 && factor(0.5) < 0.6 && factor(1.0).abs() < 1e-9);
    }
}
