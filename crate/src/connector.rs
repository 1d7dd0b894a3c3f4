//! The connector: merged features of the encoder in, image tokens of the decoder's width out.
//!
//! `linear` or `mlpNx_gelu` of LLaVA (arXiv 2310.03744): N products with the exact GELU between them. Tensor-parallel in pairs: a product split by rows
//! feeds one split by columns, whose sum over the ranks makes the whole output again.

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::linear::Linear;
use crate::matrix::Activations;
use crate::ops::Activation;
use crate::ranks::Peers;
use crate::shard::{Shard, Tensors, Want};
use std::ops::Range;

/// Weights and buffers of one rank.
pub struct Connector {
    layers: Vec<(Split, Linear)>,
    n_inputs: usize,
    n_outputs: usize,
    state: State,
}

/// The activations between two layers; made once, reused.
#[derive(Default)]
struct State {
    x: Vec<f32>,   // (n_tokens, this layer's inputs on this rank)
    out: Vec<f32>, // (n_tokens, this layer's outputs on this rank)
    input: Activations,
}

/// A layer's place in a pair, with this rank's part.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Split {
    /// Takes everything, gives some rows.
    Rows(Range<usize>),
    /// Takes the part that the layer before left on this rank.
    Cols(Range<usize>),
    /// A last layer without a partner: takes its columns out of the whole.
    ColsOfWhole(Range<usize>),
}

/// Parts are cut at whole blocks of the 4-bit types.
const UNIT: usize = 32;

/// Far more than any connector has.
const MAX_LAYERS: usize = 64;

impl Connector {
    /// The tensors that this rank needs.
    pub fn wants(gguf: &Gguf, shard: Shard) -> Result<Vec<Want>> {
        let mut wants = Vec::new();
        for ((name, n_outputs, n_inputs), split) in plan(gguf, shard)? {
            wants.extend(match split {
                Split::Rows(rows) => Linear::want_rows(&name, n_outputs, n_inputs, rows),
                Split::Cols(cols) | Split::ColsOfWhole(cols) => Linear::want_cols(&name, n_outputs, n_inputs, cols),
            });
        }
        Ok(wants)
    }

    /// Takes the tensors that [`Connector::wants`] named.
    pub fn new(gguf: &Gguf, shard: Shard, tensors: &mut Tensors) -> Result<Self> {
        let plan = plan(gguf, shard)?;
        let (n_inputs, n_outputs) = (plan[0].0.2, plan[plan.len() - 1].0.1);
        let layer = |((name, _, _), split): ((String, _, _), _)| Ok((split, Linear::new(&name, tensors)?));
        let layers = plan.into_iter().map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, n_inputs, n_outputs, state: State::default() })
    }

    /// Channels of a merged feature.
    pub fn n_inputs(&self) -> usize {
        self.n_inputs
    }

    /// Width of an image token.
    pub fn n_outputs(&self) -> usize {
        self.n_outputs
    }

    /// Image tokens (n_tokens, n_outputs), the same on every rank, from `features` (n_tokens, n_inputs).
    pub async fn forward<P: Peers>(&mut self, peers: &P, features: &[f32]) -> Result<Vec<f32>> {
        let n_tokens = features.len() / self.n_inputs;
        let State { x, out, input } = &mut self.state;
        x.clear();
        x.extend_from_slice(features);
        for (layer_idx, (split, linear)) in self.layers.iter().enumerate() {
            if layer_idx > 0 {
                Activation::Gelu.apply(x);
            }
            match split {
                Split::Rows(_) => linear.forward(x, n_tokens, input, out),
                Split::Cols(_) => linear.forward_sum(peers, x, n_tokens, input, out).await?,
                Split::ColsOfWhole(cols) => {
                    let n_whole = x.len() / n_tokens.max(1);
                    let part = x.chunks_exact(n_whole.max(1)).flat_map(|row| &row[cols.clone()]).copied().collect();
                    *x = part;
                    linear.forward_sum(peers, x, n_tokens, input, out).await?;
                }
            }
            std::mem::swap(x, out);
        }
        Ok(x.clone())
    }
}

/// Name, outputs and inputs of a layer.
type Shape = (String, usize, usize);

/// Every layer in order (`mm.0`, `mm.2`, ...: an activation stands between) and what this rank does of it.
fn plan(gguf: &Gguf, shard: Shard) -> Result<Vec<(Shape, Split)>> {
    let mut shapes: Vec<Shape> = Vec::new();
    for layer in 0..MAX_LAYERS {
        let name = format!("mm.{}", 2 * layer);
        let Some(info) = gguf.tensors.get(&format!("{name}.weight")) else { break };
        if let Some((_, n_inputs, _)) = shapes.last()
            && info.n_cols != *n_inputs
        {
            return Err(Error::Shape {
                tensor: format!("{name}.weight"),
                expected: format!("[_, {n_inputs}], as the layer before gives"),
                found: format!("{:?}", info.shape),
            });
        }
        if info.n_rows == 0 || info.n_cols == 0 {
            return Err(Error::corrupt(&gguf.file, format!("{name}.weight"), "a dimension is 0"));
        }
        shapes.push((name, info.n_rows, info.n_cols));
    }
    if shapes.is_empty() {
        return Err(Error::MissingTensor { file: gguf.file.clone(), tensor: "mm.0.weight".into() });
    }
    let n_layers = shapes.len();
    let split = |(layer, shape): (usize, Shape)| {
        let split = match layer % 2 {
            0 if layer + 1 < n_layers => Split::Rows(shard.share(shape.1, UNIT)),
            0 => Split::ColsOfWhole(shard.share(shape.2, UNIT)),
            _ => Split::Cols(shard.share(shape.2, UNIT)),
        };
        (shape, split)
    };
    Ok(shapes.into_iter().enumerate().map(split).collect())
}
