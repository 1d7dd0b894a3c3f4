//! The connector: merged features of the encoder in, image tokens of the decoder's width out.
//!
//! `linear` or `mlpNx_gelu` of LLaVA (arXiv 2310.03744): N products with the exact GELU between them. Tensor-parallel
//! in pairs: a product split by rows feeds one split by columns, whose sum over the ranks is the whole output.

use crate::device::linear::{Linear, LinearSum, SumState};
use crate::device::matrix::Activations;
use crate::device::ops::Activation;
use crate::device::ranks::Peers;
use crate::device::shard::{Shard, Tensors};
use crate::error::Result;
use crate::spec::watch::{Part, Point, Watch};
use crate::spec::{ConnectorSpec, Split};
use std::ops::Range;

/// Weights and buffers of one rank.
pub struct Connector {
    layers: Vec<Layer>,
    n_inputs: usize,
    state: State,
    watch: Watch,
}

enum Layer {
    /// The first of a pair: takes the whole input, gives this rank's rows.
    Rows(Linear),
    /// The second of a pair: takes the outputs of the first on this rank.
    Sum(LinearSum),
    /// A last layer without a partner: takes this rank's columns of the whole input.
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

impl Connector {
    /// Takes the tensors that [`ConnectorSpec::tensors`] lists.
    pub fn new(spec: &ConnectorSpec, shard: Shard, tensors: &mut Tensors) -> Result<Self> {
        let layer = |idx: usize| {
            let name = ConnectorSpec::name(idx);
            Ok(match spec.split(idx) {
                Split::Cols(_) if idx.is_multiple_of(2) => {
                    let cols = shard.share(spec.widths[idx], ConnectorSpec::UNIT);
                    Layer::SumOfWhole(LinearSum::new(&name, tensors)?, cols)
                }
                Split::Cols(_) => Layer::Sum(LinearSum::new(&name, tensors)?),
                _ => Layer::Rows(Linear::new(&name, tensors)?),
            })
        };
        let layers = (0..spec.n_layers()).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, n_inputs: spec.n_inputs(), state: State::default(), watch: Watch::default() })
    }

    /// From now on `watch` sees this connector's values.
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
