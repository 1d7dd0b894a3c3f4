//! What a model's files hold, described once: for each part, its hyperparameters and a table of its tensors.
//!
//! A part's hyperparameters are read from a GGUF header (`read`) and written to one (`write`). Its table (`tensors`)
//! gives each tensor's name, its shape, how ranks split it, where a checkpoint holds it, and at which point its input
//! can be watched. The tables determine what a rank loads ([`wants`]), what the converter writes, and which matrices a
//! calibration weights.
//!
//! Names in the files are llama.cpp's (`convert_hf_to_gguf.py`, `clip.cpp`); names in checkpoints are those of
//! transformers and timm.

mod connector;
mod decoder;
mod encoder;
pub mod watch;

pub use connector::ConnectorSpec;
pub use decoder::{Architecture, DecoderSpec};
pub use encoder::{EncoderSpec, Tower, VisionSpec};

use crate::device::attention::Heads;
use crate::device::shard::{HeadShare, Shard, Want};
use crate::file::manifest::{DECODER, ENCODER};
use crate::spec::watch::Place;

/// The name that the file of an architecture has in a model.
pub fn file_of(architecture: &str) -> Option<&'static str> {
    match architecture {
        EncoderSpec::ARCHITECTURE => Some(ENCODER),
        other => Architecture::named(other).map(|_| DECODER),
    }
}

/// Rows and columns of the MLP and the connector are cut at whole blocks of the 4-bit types.
const BLOCK_UNIT: usize = 32;

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A large matrix: in the requested type.
    Matrix,
    /// Norms, biases, gammas, class and position embeddings: always f32.
    Exact,
    /// The patch embedding: f16, or f32 in an f32 model.
    Patch,
}

/// Attention heads, and how ranks split them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSplit {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Query heads that stay on one rank together.
    pub unit: usize,
}

impl HeadSplit {
    /// One rank's heads.
    pub fn share(&self, shard: Shard) -> HeadShare {
        HeadShare::new(shard, self.n_heads, self.n_kv_heads, self.unit)
    }

    /// One rank's heads, in the form that attention takes.
    pub fn of_rank(&self, shard: Shard) -> Heads {
        let share = self.share(shard);
        Heads {
            head_dim: self.head_dim,
            kv_head: share.kv_head_of_each(self.n_heads, self.n_kv_heads),
            n_kv_heads: share.kv_heads.len(),
        }
    }

    /// The split of the matrices that produce queries.
    fn queries(&self) -> Split {
        Split::Rows(self.unit * self.head_dim)
    }

    /// The split of the matrix that takes the heads' outputs.
    fn outputs(&self) -> Split {
        Split::Cols(self.unit * self.head_dim)
    }
}

/// How ranks split a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Every rank has all of it.
    Whole,
    /// By rows (a vector by its entries), at multiples of this number.
    Rows(usize),
    /// By the rows of the key/value heads that the rank's query heads read.
    KvRows(HeadSplit),
    /// By columns, at multiples of this number.
    Cols(usize),
}

/// Where a tensor comes from in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name there, without the part's prefix.
    pub name: String,
    /// Its shape there; this tensor may be only a part of it.
    pub shape: Vec<usize>,
    /// First weight within the checkpoint's tensor.
    pub offset: usize,
    /// Rows are permuted within each head of this width: see [`crate::device::rope`].
    pub permuted: Option<usize>,
}

/// A tensor of a model file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Name in the GGUF file.
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub role: Role,
    /// How ranks split it.
    pub split: Split,
    /// Where it comes from; `None` if no checkpoint holds it.
    pub source: Option<Source>,
    /// Where the matrix's input can be watched.
    pub input: Option<Place>,
}

impl Tensor {
    fn new(name: impl Into<String>, role: Role, shape: &[usize], source: impl Into<String>) -> Self {
        let source = Source { name: source.into(), shape: shape.to_vec(), offset: 0, permuted: None };
        Self { name: name.into(), shape: shape.to_vec(), role, split: Split::Whole, source: Some(source), input: None }
    }

    fn exact(name: impl Into<String>, shape: &[usize], source: impl Into<String>) -> Self {
        Self::new(name, Role::Exact, shape, source)
    }

    /// Length of a row.
    pub fn n_cols(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Number of rows; a vector has one.
    pub fn n_rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// What one rank needs of it. A column split comes in parts: see [`Shard::parts`].
    fn wants(&self, shard: Shard) -> Vec<Want> {
        let (name, n_rows, n_cols) = (self.name.as_str(), self.n_rows(), self.n_cols());
        let rows = match self.split {
            Split::Whole => {
                let is_matrix = self.role == Role::Matrix;
                return vec![Want { is_matrix, ..Want::whole(name, n_rows, n_cols) }];
            }
            Split::Cols(unit) => return Want::col_parts(name, n_rows, n_cols, &shard.parts(n_cols, unit)).collect(),
            Split::Rows(unit) => shard.share(self.shape[0], unit),
            Split::KvRows(heads) => {
                let kv_heads = heads.share(shard).kv_heads;
                kv_heads.start * heads.head_dim..kv_heads.end * heads.head_dim
            }
        };
        let want = match self.shape.len() {
            1 => Want::cols(name, n_rows, n_cols, rows),
            _ => Want::rows(name, n_rows, n_cols, rows),
        };
        vec![Want { is_matrix: self.role == Role::Matrix, ..want }]
    }
}

/// What one rank needs of these tensors.
pub fn wants(tensors: &[Tensor], shard: Shard) -> Vec<Want> {
    tensors.iter().flat_map(|tensor| tensor.wants(shard)).collect()
}

/// A linear layer: the entries of a table for its matrix and, if it has one, its bias.
struct Linear {
    /// Name in the GGUF file, without `.weight`.
    name: String,
    /// Number of outputs and inputs.
    shape: [usize; 2],
    split: Split,
    input: Place,
    /// Name in the checkpoint, without `.weight`.
    source: String,
    /// Index and number of the layers of equal shape that the checkpoint stacks in one tensor, one below the other.
    stack: (usize, usize),
    permuted: Option<usize>,
    has_bias: bool,
}

impl Linear {
    fn tensors(self) -> impl Iterator<Item = Tensor> {
        let ([n_rows, n_cols], (idx, n_layers)) = (self.shape, self.stack);
        let part = |suffix: &str, role, shape: &[usize]| {
            let mut tensor =
                Tensor::new(format!("{}.{suffix}", self.name), role, shape, format!("{}.{suffix}", self.source));
            if let Some(source) = &mut tensor.source {
                source.offset = idx * shape.iter().product::<usize>();
                source.shape[0] *= n_layers;
                source.permuted = self.permuted;
            }
            tensor
        };
        let weight =
            Tensor { split: self.split, input: Some(self.input), ..part("weight", Role::Matrix, &[n_rows, n_cols]) };
        // The bias of a column split is added once, after the sum over the ranks.
        let split = if matches!(self.split, Split::Cols(_)) { Split::Whole } else { self.split };
        let bias = self.has_bias.then(|| Tensor { split, ..part("bias", Role::Exact, &[n_rows]) });
        [weight].into_iter().chain(bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::watch::{Part, Point};

    #[test]
    fn biases_are_split_as_the_rows_are() {
        let heads = HeadSplit { n_heads: 6, n_kv_heads: 2, head_dim: 4, unit: 1 };
        let layer = |split| Linear {
            name: "mm.0".into(),
            shape: [8, 24],
            split,
            input: Place { part: Part::Connector, layer: 0, point: Point::Mlp },
            source: "0".into(),
            stack: (1, 3),
            permuted: None,
            has_bias: true,
        };
        let shard = Shard { rank: 1, n_ranks: 2 };
        let want = |split| wants(&layer(split).tensors().collect::<Vec<_>>(), shard);
        let by_rows = want(Split::Rows(3));
        assert_eq!((by_rows[0].rows.clone(), by_rows[1].cols.clone()), (3..8, 3..8));
        let by_heads = want(Split::KvRows(heads));
        assert_eq!((by_heads[0].rows.clone(), by_heads[1].cols.clone()), (4..8, 4..8));
        let by_columns = want(Split::Cols(4));
        assert_eq!(by_columns.iter().map(|want| want.cols.clone()).collect::<Vec<_>>(), [12..16, 16..24, 0..8]);
        let tensors: Vec<Tensor> = layer(Split::Whole).tensors().collect();
        let sources: Vec<_> = tensors.iter().filter_map(|tensor| tensor.source.as_ref()).collect();
        assert_eq!((sources[0].shape.as_slice(), sources[0].offset), (&[24, 24][..], 192));
        assert_eq!((sources[1].shape.as_slice(), sources[1].offset), (&[24][..], 8));
    }
}
