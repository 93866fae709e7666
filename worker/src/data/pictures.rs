//! Pictures with their classes, in memory as bytes; a batch becomes numbers when it is taken.

use std::convert::Infallible;

use super::{Batch, dense};

/// Mean and spread of a channel over a training set, of pixels between 0 and 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channel {
    pub mean: f64,
    pub deviation: f64,
}

pub(super) const FASHION_MNIST: Channel = Channel { mean: 0.2860, deviation: 0.3530 };
pub(super) const MNIST: Channel = Channel { mean: 0.1307, deviation: 0.3081 };

#[derive(Debug)]
pub(super) struct Pictures {
    /// samples x channels x height x width
    pixels: Vec<u8>,
    labels: Vec<u8>,
    shape: [i64; 3],
    channels: &'static [Channel],
    classes: i64,
}

impl Pictures {
    /// `pixels` has as many pictures of this shape as there are labels, at least one and none without pixels, and
    /// `shape` as many channels as `channels`.
    pub(super) fn new(
        pixels: Vec<u8>,
        labels: Vec<u8>,
        shape: [i64; 3],
        channels: &'static [Channel],
        classes: i64,
    ) -> Pictures {
        Pictures { pixels, labels, shape, channels, classes }
    }

    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(super) fn shape(&self) -> &[i64] {
        &self.shape
    }

    pub(super) fn classes(&self) -> i64 {
        self.classes
    }

    /// The samples exist.
    pub(super) fn batch(&self, samples: &[i64]) -> Batch {
        let len = self.shape.iter().product::<i64>() as usize;
        let plane = len / self.channels.len();
        let picture = |row: usize| &self.pixels[samples[row] as usize * len..][..len];
        let Ok(inputs) = dense::rows(samples.len(), &self.shape, |row, memory| -> Result<(), Infallible> {
            let planes = picture(row).chunks_exact(plane).zip(memory.chunks_exact_mut(plane));
            for ((pixels, memory), channel) in planes.zip(self.channels) {
                let mean = (channel.mean * 255.0) as f32;
                let scale = (1.0 / (channel.deviation * 255.0)) as f32;
                dense::fill(memory, pixels.iter().map(|pixel| (f32::from(*pixel) - mean) * scale));
            }
            Ok(())
        });
        let Ok(targets) = dense::rows(samples.len(), &[], |row, memory| -> Result<(), Infallible> {
            dense::fill(memory, [i64::from(self.labels[samples[row] as usize])]);
            Ok(())
        });
        Batch { inputs, targets }
    }
}
