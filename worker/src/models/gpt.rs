//! A decoder of transformer blocks that learns to foretell the next token, as GPT-2 and nanoGPT are built; names and
//! first values are nanoGPT's.

use tch::{TchError, Tensor};

use super::config::GptConfig;
use super::layers::{Embedding, LayerNorm, Linear};
use super::{ACCURACY, Batch, DataSpec, Initial, Layout, Measured, Model, ModelError, SampleKind, State, cross_entropy};

/// The spread of first weights.
const SPREAD: f64 = 0.02;

#[derive(Debug)]
pub(super) struct Gpt {
    layout: Layout,
    /// Of tokens. The scores of the next token are products with the same rows: one parameter in two places.
    tokens: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    heads: i64,
    context: i64,
    dropout: f64,
}

#[derive(Debug)]
struct Block {
    attention_norm: LayerNorm,
    /// Queries, keys and values of all heads.
    attention: Linear,
    attention_output: Linear,
    mlp_norm: LayerNorm,
    mlp: Linear,
    mlp_output: Linear,
}

impl Gpt {
    pub(super) fn new(config: &GptConfig, data: &DataSpec) -> Result<Gpt, ModelError> {
        let unfit = |why: String| ModelError::Data { model: "gpt".into(), why };
        let (SampleKind::Tokens, [length]) = (data.kind, &data.sample[..]) else {
            let why = format!("it learns from rows of tokens, samples are {:?} of shape {:?}", data.kind, data.sample);
            return Err(unfit(why));
        };
        let &GptConfig { layers, heads, width, context, dropout, bias, .. } = config;
        if *length > context {
            return Err(unfit(format!("rows have {length} tokens, its context only {context}: raise context")));
        }
        let vocabulary = config.vocabulary.unwrap_or(data.classes);
        if vocabulary < data.classes {
            let why = format!("it knows {vocabulary} tokens, the data {}: raise vocabulary", data.classes);
            return Err(unfit(why));
        }

        let mut layout = Layout::default();
        let normal = || Initial::Normal(SPREAD);
        // Each block adds twice to the stream of activations.
        let residual = || Initial::Normal(SPREAD / (2.0 * layers as f64).sqrt());
        let tokens = Embedding::new(&mut layout, "transformer.wte", vocabulary, width, normal());
        layout.alias(tokens.weight, "lm_head.weight");
        let positions = Embedding::new(&mut layout, "transformer.wpe", context, width, normal());
        let mut blocks = Vec::new();
        for index in 0..layers {
            let name = |part: &str| format!("transformer.h.{index}.{part}");
            let hidden = 4 * width;
            blocks.push(Block {
                attention_norm: LayerNorm::new(&mut layout, &name("ln_1"), width, bias),
                attention: Linear::with(&mut layout, &name("attn.c_attn"), [width, 3 * width], bias, normal()),
                attention_output: Linear::with(&mut layout, &name("attn.c_proj"), [width, width], bias, residual()),
                mlp_norm: LayerNorm::new(&mut layout, &name("ln_2"), width, bias),
                mlp: Linear::with(&mut layout, &name("mlp.c_fc"), [width, hidden], bias, normal()),
                mlp_output: Linear::with(&mut layout, &name("mlp.c_proj"), [hidden, width], bias, residual()),
            });
        }
        let norm = LayerNorm::new(&mut layout, "transformer.ln_f", width, bias);
        Ok(Gpt { layout, tokens, positions, blocks, norm, heads, context, dropout })
    }

    /// Scores of the token after each token: samples x length x vocabulary.
    fn scores(&self, state: &State<'_>, batch: &Batch) -> Result<Tensor, TchError> {
        let length = batch.inputs.size().get(1).copied().unwrap_or_default();
        if length > self.context {
            return Err(TchError::Shape(format!("{length} tokens do not fit in a context of {}", self.context)));
        }
        let positions = state[self.positions.weight].f_narrow(0, 0, length)?;
        let embedded = self.tokens.forward(state, &batch.inputs)?.f_add(&positions)?;
        let mut stream = embedded.f_dropout(self.dropout, state.training)?;
        for block in &self.blocks {
            stream = stream.f_add(&self.attend(block, state, &block.attention_norm.forward(state, &stream)?)?)?;
            let hidden = block.mlp.forward(state, &block.mlp_norm.forward(state, &stream)?)?.f_gelu("none")?;
            let output = block.mlp_output.forward(state, &hidden)?.f_dropout(self.dropout, state.training)?;
            stream = stream.f_add(&output)?;
        }
        self.norm.forward(state, &stream)?.f_linear(&state[self.tokens.weight], None::<&Tensor>)
    }

    fn attend(&self, block: &Block, state: &State<'_>, stream: &Tensor) -> Result<Tensor, TchError> {
        let (samples, length, width) = stream.size3()?;
        let all = block.attention.forward(state, stream)?;
        let part = |index: i64| {
            let part = all.f_narrow(2, index * width, width)?;
            part.f_view([samples, length, self.heads, width / self.heads])?.f_transpose(1, 2)
        };
        let dropout = if state.training { self.dropout } else { 0.0 };
        let mixed = Tensor::f_scaled_dot_product_attention(
            &part(0)?,
            &part(1)?,
            &part(2)?,
            None::<&Tensor>,
            dropout,
            true,
            None::<f64>,
            false,
        )?;
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([samples, length, width])?;
        block.attention_output.forward(state, &mixed)?.f_dropout(self.dropout, state.training)
    }
}

impl Model for Gpt {
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
