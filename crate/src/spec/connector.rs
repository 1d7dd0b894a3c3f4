//! The connector: tensors `mm.*` of `encoder.gguf`. Its shape follows from them alone.

use super::{BLOCK_UNIT, Linear, Split, Tensor};
use crate::error::{Error, Result};
use crate::file::gguf::Gguf;
use crate::spec::watch::{Part, Place, Point};

/// Shape of the connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorSpec {
    /// Widths: of the input, between the layers, of the output.
    pub widths: Vec<usize>,
}

/// Far more layers than any connector has.
const MAX_LAYERS: usize = 64;

impl ConnectorSpec {
    /// Layers split their columns at multiples of this number.
    pub const UNIT: usize = BLOCK_UNIT;

    /// Name of a layer in the file: `mm.0`, `mm.2`, ...; the numbers between are activations.
    pub fn name(layer: usize) -> String {
        format!("mm.{}", 2 * layer)
    }

    /// Reads the shapes of the `mm.*` tensors.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let mut widths: Vec<usize> = Vec::new();
        for layer in 0..MAX_LAYERS {
            let name = format!("{}.weight", Self::name(layer));
            let Some(info) = gguf.tensors.get(&name) else { break };
            if let Some(before) = widths.last()
                && info.n_cols != *before
            {
                return Err(Error::Shape {
                    tensor: name,
                    expected: format!("[_, {before}], as the layer before gives"),
                    found: format!("{:?}", info.shape),
                });
            }
            if info.n_rows == 0 || info.n_cols == 0 {
                return Err(Error::corrupt(&gguf.file, name, "a dimension is 0"));
            }
            if widths.is_empty() {
                widths.push(info.n_cols);
            }
            widths.push(info.n_rows);
        }
        if widths.is_empty() {
            return Err(Error::MissingTensor { file: gguf.file.clone(), tensor: "mm.0.weight".into() });
        }
        Ok(Self { widths })
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.widths.len() - 1
    }

    /// Channels of a merged feature.
    pub fn n_inputs(&self) -> usize {
        self.widths[0]
    }

    /// Width of an image token.
    pub fn n_outputs(&self) -> usize {
        self.widths[self.n_layers()]
    }

    /// How ranks split a layer: in pairs, the first by rows, the second by columns; a last layer without a partner by
    /// columns.
    pub fn split(&self, layer: usize) -> Split {
        let is_first = layer.is_multiple_of(2) && layer + 1 < self.n_layers();
        if is_first { Split::Rows(Self::UNIT) } else { Split::Cols(Self::UNIT) }
    }

    /// The tensors of the connector.
    pub fn tensors(&self) -> Vec<Tensor> {
        let layer = |layer: usize| Linear {
            name: Self::name(layer),
            shape: [self.widths[layer + 1], self.widths[layer]],
            split: self.split(layer),
            input: Place { part: Part::Connector, layer, point: Point::Mlp },
            source: (2 * layer).to_string(),
            stack: (0, 1),
            permuted: None,
            has_bias: true,
        };
        (0..self.n_layers()).flat_map(|idx| layer(idx).tensors()).collect()
    }
}
