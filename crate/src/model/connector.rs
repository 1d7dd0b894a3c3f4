//! The connector: merged features of the encoder in, image tokens of the decoder's width out.
//!
//! `linear` or `mlpNx_gelu` of LLaVA (arXiv 2310.03744): N products with the exact GELU between them. Tensor-parallel
//! in pairs: a product split by rows feeds one split by columns, whose sum over the ranks is the whole output.

use crate::device::Device;
use crate::device::linear::{Linear, LinearSum};
use crate::device::ops::Activation;
use crate::device::shard::Tensors;
use crate::error::Result;
use crate::spec::watch::{Part, Place, Point, Watch};
use crate::spec::{ConnectorSpec, Split};

/// Weights and buffers of one rank.
pub struct Connector<D: Device> {
    layers: Vec<Layer<D>>,
    n_inputs: usize,
    x: D::Buffer,   // (n_tokens, this layer's inputs on this rank)
    out: D::Buffer, // (n_tokens, this layer's outputs on this rank)
    watch: Watch,
}

enum Layer<D: Device> {
    /// The first of a pair: takes the whole input, gives this rank's rows.
    Rows(Linear<D>),
    /// The second of a pair, which takes the outputs of the first on this rank; or a last layer without a partner, which
    /// takes this rank's columns of the whole input.
    Sum(LinearSum<D>),
}

impl<D: Device> Connector<D> {
    /// Takes the tensors that [`ConnectorSpec::tensors`] lists.
    pub fn new(spec: &ConnectorSpec, tensors: &mut Tensors<D>) -> Result<Self> {
        let shard = tensors.device().shard();
        let layer = |idx: usize| {
            let name = ConnectorSpec::name(idx);
            Ok(match spec.split(idx) {
                Split::Cols(unit) => {
                    let is_alone = idx.is_multiple_of(2);
                    let first = if is_alone { shard.share(spec.widths[idx], unit).start } else { 0 };
                    Layer::Sum(LinearSum::new(&name, first, tensors)?)
                }
                _ => Layer::Rows(Linear::new(&name, tensors)?),
            })
        };
        let layers = (0..spec.n_layers()).map(layer).collect::<Result<_>>()?;
        let (x, out) = Default::default();
        Ok(Self { layers, n_inputs: spec.n_inputs(), x, out, watch: Watch::default() })
    }

    /// From now on `watch` sees this connector's values.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// Image tokens (n_tokens, n_outputs), the same on every rank, from `features` (n_tokens, n_inputs).
    pub async fn forward(&mut self, d: &mut D, features: &[f32]) -> Result<D::Buffer> {
        let Self { x, out, .. } = self;
        d.upload(features.to_vec(), features.len() / self.n_inputs, x);
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            if layer_idx > 0 {
                d.activate(Activation::Gelu, x);
            }
            let place = Place { part: Part::Connector, layer: layer_idx, point: Point::Mlp };
            self.watch.see(d, place, x).await?;
            match layer {
                Layer::Rows(linear) => d.linear([linear], x, [out]),
                Layer::Sum(linear) => d.linear_sum(linear, x, out).await?,
            }
            std::mem::swap(x, out);
        }
        // A buffer of its own, since it is kept: the others have room for the widest layer.
        let mut tokens = D::Buffer::default();
        d.copy(x, 0..d.n_rows(x), &mut tokens, 0);
        Ok(tokens)
    }
}
