//! Residual networks, as torchvision builds them, names and first values too; with the stem for large pictures or, for
//! small ones such as CIFAR's, with one that keeps their size.

use tch::{TchError, Tensor};

use super::config::{Depth, ResnetConfig, Stem};
use super::layers::{BatchNorm2d, Conv2d, Filters, Linear};
use super::{ACCURACY, Batch, DataSpec, Initial, Layout, Measured, Model, ModelError, State, cross_entropy};

/// Pictures smaller than this get the small stem, where none is chosen.
const LARGE: i64 = 64;

#[derive(Debug)]
pub(super) struct Resnet {
    layout: Layout,
    stem: Stem,
    first: Normed,
    blocks: Vec<Block>,
    output: Linear,
}

/// A convolution without bias, and the normalisation of its channels.
#[derive(Debug)]
struct Normed {
    convolution: Conv2d,
    norm: BatchNorm2d,
}

/// What is added to the stream, which is brought to another size where needed.
#[derive(Debug)]
struct Block {
    layers: Vec<Normed>,
    downsample: Option<Normed>,
}

impl Normed {
    fn new(layout: &mut Layout, convolution: &str, norm: &str, filters: Filters) -> Normed {
        // Kaiming's normal distribution over the outputs, for ReLU.
        let fan_out = filters.outputs * filters.size * filters.size;
        let initial = Initial::Normal((2.0 / fan_out as f64).sqrt());
        Normed {
            convolution: Conv2d::without_bias(layout, convolution, filters, initial),
            norm: BatchNorm2d::new(layout, norm, filters.outputs),
        }
    }

    fn forward(&self, state: &State<'_>, inputs: &Tensor) -> Result<Tensor, TchError> {
        self.norm.forward(state, &self.convolution.forward(state, inputs)?)
    }
}

impl Block {
    fn new(layout: &mut Layout, name: &str, depth: Depth, inputs: i64, channels: i64, stride: i64) -> Block {
        let outputs = channels * depth.expansion();
        let sizes: &[[i64; 4]] = match depth {
            Depth::Eighteen => &[[inputs, channels, 3, stride], [channels, channels, 3, 1]],
            Depth::Fifty => &[[inputs, channels, 1, 1], [channels, channels, 3, stride], [channels, outputs, 1, 1]],
        };
        let layers = sizes.iter().zip(1..).map(|(&[inputs, outputs, size, stride], number)| {
            let filters = Filters { inputs, outputs, size, stride };
            Normed::new(layout, &format!("{name}.conv{number}"), &format!("{name}.bn{number}"), filters)
        });
        let layers = layers.collect();
        let downsample = (stride != 1 || inputs != outputs).then(|| {
            let filters = Filters { inputs, outputs, size: 1, stride };
            Normed::new(layout, &format!("{name}.downsample.0"), &format!("{name}.downsample.1"), filters)
        });
        Block { layers, downsample }
    }

    fn forward(&self, state: &State<'_>, stream: &Tensor) -> Result<Tensor, TchError> {
        let mut added = stream.shallow_clone();
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                added = added.f_relu_()?;
            }
            added = layer.forward(state, &added)?;
        }
        match &self.downsample {
            None => added.f_add_(stream)?.f_relu_(),
            Some(downsample) => added.f_add_(&downsample.forward(state, stream)?)?.f_relu_(),
        }
    }
}

impl Resnet {
    pub(super) fn new(depth: Depth, config: &ResnetConfig, data: &DataSpec) -> Result<Resnet, ModelError> {
        let [colours, height, width] = data.sample[..] else {
            let why = format!("it learns from pictures (channels, height, width), samples have shape {:?}", data.sample);
            return Err(ModelError::Data { model: depth.name().into(), why });
        };
        let small = height.min(width) < LARGE;
        let stem = config.stem.unwrap_or(if small { Stem::Small } else { Stem::Large });
        let mut layout = Layout::default();
        let [size, stride] = match stem {
            Stem::Small => [3, 1],
            Stem::Large => [7, 2],
        };
        let filters = Filters { inputs: colours, outputs: 64, size, stride };
        let first = Normed::new(&mut layout, "conv1", "bn1", filters);
        let mut blocks = Vec::new();
        let mut inputs = 64;
        for (stage, count) in depth.blocks().into_iter().enumerate() {
            let channels = 64 << stage;
            for index in 0..count {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let name = format!("layer{}.{index}", stage + 1);
                blocks.push(Block::new(&mut layout, &name, depth, inputs, channels, stride));
                inputs = channels * depth.expansion();
            }
        }
        let output = Linear::new(&mut layout, "fc", inputs, data.classes);
        Ok(Resnet { layout, stem, first, blocks, output })
    }

    fn scores(&self, state: &State<'_>, batch: &Batch) -> Result<Tensor, TchError> {
        let mut stream = self.first.forward(state, &batch.inputs)?.f_relu_()?;
        if self.stem == Stem::Large {
            stream = stream.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
        }
        for block in &self.blocks {
            stream = block.forward(state, &stream)?;
        }
        self.output.forward(state, &stream.f_adaptive_avg_pool2d([1, 1])?.f_flatten(1, -1)?)
    }
}

impl Model for Resnet {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn loss(&self, state: &State<'_>, batch: &Batch) -> Result<Tensor, ModelError> {
        cross_entropy(&self.scores(state, batch)?, &batch.targets)
    }

    fn metrics(&self) -> &'static [&'static str] {
        ACCURACY
    }

    fn measure(&self, state: &State<'_>, batch: &Batch) -> Result<Measured, ModelError> {
        Measured::of_scores(&self.scores(state, batch)?, &batch.targets)
    }
}
