//! The loops over all parameters: one pass over the memory a step.
//!
//! Each is written once, for slices, which the compiler turns into vectors, and compiled for the processors that there
//! are. Multiplications and additions are not contracted, so that a step has the same bits on all of them.

#![allow(unsafe_code)]

/// Fewer elements than that are not worth another thread.
const PER_THREAD: usize = 1 << 18;

/// What a step of SGD is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sgd {
    pub(super) lr: f32,
    pub(super) momentum: f32,
    pub(super) nesterov: bool,
    pub(super) weight_decay: f32,
    /// On the gradients, before all else.
    pub(super) scale: f32,
}

/// What a step of Adam is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Adam {
    /// The learning rate over the mean's correction.
    pub(super) lr: f32,
    pub(super) betas: (f32, f32),
    /// The root of the variance's correction.
    pub(super) correction: f32,
    pub(super) epsilon: f32,
    /// Added to the gradient.
    pub(super) weight_decay: f32,
    /// On the values, before all else: 1 less what AdamW's decay takes.
    pub(super) keep: f32,
    pub(super) scale: f32,
}

#[inline(always)]
fn sgd_loop(step: Sgd, values: &mut [f32], gradients: &[f32], momenta: &mut [f32]) {
    for ((value, gradient), momentum) in values.iter_mut().zip(gradients).zip(momenta) {
        let gradient = gradient * step.scale + step.weight_decay * *value;
        let moved = *momentum * step.momentum + gradient;
        *momentum = moved;
        let moved = if step.nesterov { gradient + step.momentum * moved } else { moved };
        *value -= step.lr * moved;
    }
}

#[inline(always)]
fn adam_loop(step: Adam, values: &mut [f32], gradients: &[f32], means: &mut [f32], variances: &mut [f32]) {
    let (first, second) = step.betas;
    for (((value, gradient), mean), variance) in values.iter_mut().zip(gradients).zip(means).zip(variances) {
        let kept = *value * step.keep;
        let gradient = gradient * step.scale + step.weight_decay * kept;
        *mean += (1.0 - first) * (gradient - *mean);
        *variance = *variance * second + (1.0 - second) * (gradient * gradient);
        let denominator = variance.sqrt() / step.correction + step.epsilon;
        *value = kept - step.lr * (*mean / denominator);
    }
}

/// In blocks, each in f64 by several lanes whose order is fixed: the sum is the same wherever it is formed.
#[inline(always)]
fn squares_loop(numbers: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0f64; LANES];
    let (blocks, rest) = numbers.as_chunks::<LANES>();
    for block in blocks {
        for (sum, number) in sums.iter_mut().zip(block) {
            *sum += f64::from(*number) * f64::from(*number);
        }
    }
    let rest: f64 = rest.iter().map(|number| f64::from(*number) * f64::from(*number)).sum();
    sums.iter().sum::<f64>() + rest
}

/// One function of slices, compiled for AVX-512, AVX2 and whatever else there is, and chosen at run time.
macro_rules! for_each_processor {
    ($name:ident, $body:ident, ($($argument:ident: $type:ty),*) -> $result:ty) => {
        fn $name($($argument: $type),*) -> $result {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2")]
                unsafe fn wide($($argument: $type),*) -> $result {
                    $body($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                unsafe fn middle($($argument: $type),*) -> $result {
                    $body($($argument),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                {
                    // SAFETY: the processor has what the function is compiled for.
                    return unsafe { wide($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { middle($($argument),*) };
                }
            }
            $body($($argument),*)
        }
    };
}

for_each_processor!(sgd_part, sgd_loop, (step: Sgd, values: &mut [f32], gradients: &[f32], momenta: &mut [f32]) -> ());
for_each_processor!(
    adam_part,
    adam_loop,
    (step: Adam, values: &mut [f32], gradients: &[f32], means: &mut [f32], variances: &mut [f32]) -> ()
);
for_each_processor!(squares_part, squares_loop, (numbers: &[f32]) -> f64);

/// Elements for each of so many threads that it is worth it, in whole cache lines.
fn per_thread(len: usize, threads: usize) -> usize {
    let threads = threads.min(len / PER_THREAD).max(1);
    len.div_ceil(threads).next_multiple_of(16).max(16)
}

pub(super) fn sgd(step: Sgd, values: &mut [f32], gradients: &[f32], momenta: &mut [f32], threads: usize) {
    let per = per_thread(values.len(), threads);
    std::thread::scope(|scope| {
        let mut parts = values.chunks_mut(per).zip(gradients.chunks(per)).zip(momenta.chunks_mut(per));
        let own = parts.next();
        for ((values, gradients), momenta) in parts {
            scope.spawn(move || sgd_part(step, values, gradients, momenta));
        }
        if let Some(((values, gradients), momenta)) = own {
            sgd_part(step, values, gradients, momenta);
        }
    });
}

pub(super) fn adam(
    step: Adam,
    values: &mut [f32],
    gradients: &[f32],
    means: &mut [f32],
    variances: &mut [f32],
    threads: usize,
) {
    let per = per_thread(values.len(), threads);
    std::thread::scope(|scope| {
        let mut parts =
            values.chunks_mut(per).zip(gradients.chunks(per)).zip(means.chunks_mut(per)).zip(variances.chunks_mut(per));
        let own = parts.next();
        for (((values, gradients), means), variances) in parts {
            scope.spawn(move || adam_part(step, values, gradients, means, variances));
        }
        if let Some((((values, gradients), means), variances)) = own {
            adam_part(step, values, gradients, means, variances);
        }
    });
}

/// The Euclidean norm, the same for equal numbers whatever the number of threads; infinite or NaN where a number is.
pub(super) fn norm(numbers: &[f32]) -> f64 {
    numbers.chunks(PER_THREAD).map(squares_part).sum::<f64>().sqrt()
}
