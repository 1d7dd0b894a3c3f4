//! The connector: merged features of the encoder in, image tokens of the decoder's width out.
//!
//! `linear` or `mlpNx_gelu` of LLaVA (arXiv 2310.03744): N products with the exact GELU between them. Tensor-parallel in pairs: a product split by rows
//! feeds one split by columns, whose sum over the ranks makes the whole output again.

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::linear::{Linear, LinearSum, SumState};
use crate::matrix::Activations;
use crate::ops::Activation;
use crate::ranks::Peers;
use crate::shard::{Shard, Tensors, Want};
use crate::watch::{Part, Point, Watch};
use std::ops::Range;

/// Weights and buffers of one rank.
pub struct Connector {
    layers: Vec<Layer>,
    n_inputs: usize,
    n_outputs: usize,
    state: State,
    watch: Watch,
}

enum Layer {
    /// The first of a pair: takes everything, gives this rank's rows.
    Rows(Linear),
    /// The second of a pair: takes the part that the first left on this rank.
    Sum(LinearSum),
    /// A last layer without a partner: takes this rank's columns out of the whole.
    SumOfWhole(LinearSum, Range<usize>),
}

/// The activations between two layers; made once, reused.
#[derive(Default)]
struct State {
    x: Vec<f32>,   // (n_tokens, this layer's inputs on this rank)
    out: Vec<f32>, // (n_tokens, this layer's outputs on this rank)
    sum: SumState,
    input: Activations,
}

/// A layer as the file has it.
struct Shape {
    name: String,
    n_outputs: usize,
    n_inputs: usize,
    place: Place,
}

/// Where a layer stands in a pair.
enum Place {
    First,
    Second,
    Alone,
}

/// Parts are cut at whole blocks of the 4-bit types.
const UNIT: usize = 32;

/// Far more than any connector has.
const MAX_LAYERS: usize = 64;

impl Connector {
    /// The tensors that this rank needs.
    pub fn wants(gguf: &Gguf, shard: Shard) -> Result<Vec<Want>> {
        let mut wants = Vec::new();
        for Shape { name, n_outputs, n_inputs, place } in shapes(gguf)? {
            match place {
                Place::First => wants.extend(Linear::wants(&name, n_outputs, n_inputs, shard.share(n_outputs, UNIT))),
                Place::Second | Place::Alone => {
                    wants.extend(LinearSum::wants(&name, n_outputs, n_inputs, &shard.parts(n_inputs, UNIT), true));
                }
            }
        }
        Ok(wants)
    }

    /// Takes the tensors that [`Connector::wants`] named.
    pub fn new(gguf: &Gguf, shard: Shard, tensors: &mut Tensors) -> Result<Self> {
        let shapes = shapes(gguf)?;
        let (n_inputs, n_outputs) = (shapes[0].n_inputs, shapes[shapes.len() - 1].n_outputs);
        let layer = |shape: Shape| {
            Ok(match shape.place {
                Place::First => Layer::Rows(Linear::new(&shape.name, tensors)?),
                Place::Second => Layer::Sum(LinearSum::new(&shape.name, tensors, true)?),
                Place::Alone => {
                    let cols = shard.share(shape.n_inputs, UNIT);
                    Layer::SumOfWhole(LinearSum::new(&shape.name, tensors, true)?, cols)
                }
            })
        };
        let layers = shapes.into_iter().map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, n_inputs, n_outputs, state: State::default(), watch: Watch::default() })
    }

    /// Channels of a merged feature.
    pub fn n_inputs(&self) -> usize {
        self.n_inputs
    }

    /// Width of an image token.
    pub fn n_outputs(&self) -> usize {
        self.n_outputs
    }

    /// From now on `watch` sees what passes through.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// Image tokens (n_tokens, n_outputs), the same on every rank, from `features` (n_tokens, n_inputs).
    pub async fn forward<P: Peers>(&mut self, peers: &P, features: &[f32]) -> Result<Vec<f32>> {
        let n_tokens = features.len() / self.n_inputs;
        let State { x, out, sum, input } = &mut self.state;
        x.clear();
        x.extend_from_slice(features);
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            if layer_idx > 0 {
                Activation::Gelu.apply(x);
            }
            self.watch.see(Part::Connector, layer_idx, Point::Mlp, n_tokens, x);
            match layer {
                Layer::Rows(linear) => linear.forward(x, n_tokens, input, out),
                Layer::Sum(linear) => linear.forward(peers, x, n_tokens, input, sum, out).await?,
                Layer::SumOfWhole(linear, cols) => {
                    let n_whole = x.len() / n_tokens.max(1);
                    let part = x.chunks_exact(n_whole.max(1)).flat_map(|row| &row[cols.clone()]).copied().collect();
                    *x = part;
                    linear.forward(peers, x, n_tokens, input, sum, out).await?;
                }
            }
            std::mem::swap(x, out);
        }
        Ok(x.clone())
    }
}

/// Every layer in order: `mm.0`, `mm.2`, ...; an activation stands between.
fn shapes(gguf: &Gguf) -> Result<Vec<Shape>> {
    let mut shapes: Vec<Shape> = Vec::new();
    for layer in 0..MAX_LAYERS {
        let name = format!("mm.{}", 2 * layer);
        let Some(info) = gguf.tensors.get(&format!("{name}.weight")) else { break };
        if let Some(before) = shapes.last()
            && info.n_cols != before.n_outputs
        {
            return Err(Error::Shape {
                tensor: format!("{name}.weight"),
                expected: format!("[_, {}], as the layer before gives", before.n_outputs),
                found: format!("{:?}", info.shape),
            });
        }
        if info.n_rows == 0 || info.n_cols == 0 {
            return Err(Error::corrupt(&gguf.file, format!("{name}.weight"), "a dimension is 0"));
        }
        let place = if layer % 2 == 0 { Place::First } else { Place::Second };
        shapes.push(Shape { name, n_outputs: info.n_rows, n_inputs: info.n_cols, place });
    }
    match shapes.last_mut() {
        None => return Err(Error::MissingTensor { file: gguf.file.clone(), tensor: "mm.0.weight".into() }),
        Some(last) if matches!(last.place, Place::First) => last.place = Place::Alone,
        Some(_) => {}
    }
    Ok(shapes)
}
