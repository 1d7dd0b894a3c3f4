//! What computes, behind one door: the forward passes of encoder, connector and decoder are written once over
//! [`Device`]. [`cpu`] is the processor, one rank of several; the loops themselves are in `llama3med_arithmetic`, which
//! is compiled for speed.
//!
//! Operations are as coarse as the forward passes allow, so that a device can join steps: layers with the same input
//! come together, a bias is part of its product, and attention stores the new keys and values itself. The number format
//! in which activations are multiplied is the device's own affair.

pub mod cpu;
pub mod linear;
pub mod ranks;
pub mod shard;

pub use llama3med_arithmetic::{attention, kernels, layout, ops, quant, rope};

use crate::device::attention::Heads;
use crate::device::linear::{Linear, LinearSum};
use crate::device::ops::Activation;
use crate::device::ranks::Peers;
use crate::device::rope::Pairs;
use crate::device::shard::Shard;
use crate::error::Result;
use crate::file::gguf::Dtype;
use std::ops::Range;

/// Positions for which a [`Cache`] takes memory at a time.
pub const PAGE_LEN: usize = 64;

/// A device as one rank uses it. A device that is not split has one rank.
///
/// Operations take effect in the order in which they are called. An operation sets the shape of its output, which must
/// not be one of its inputs. Values come back to the caller only by [`Device::download`] and [`Device::gather`].
#[allow(async_fn_in_trait)] // single-threaded wasm and one thread per rank: no Send futures needed
pub trait Device: Sized {
    /// How this rank exchanges bytes with the others.
    type Peers: Peers;
    /// Rows of f32 values in the device's memory: activations, norms, biases.
    type Buffer: Default;
    /// A weight matrix in the device's memory, in the form in which it is multiplied.
    type Matrix;
    /// A matrix whose bytes are arriving.
    type Builder: Builder<Matrix = Self::Matrix>;
    /// Keys and values of a conversation.
    type Cache: Cache;

    /// The other ranks.
    fn peers(&self) -> &Self::Peers;

    /// Which rank this is, and of how many.
    fn shard(&self) -> Shard {
        Shard { rank: self.peers().rank(), n_ranks: self.peers().n_ranks() }
    }

    /// Reserves memory for the columns `cols` of a matrix of `n_rows` rows of `n_cols` stored weights.
    fn builder(&self, dtype: Dtype, n_rows: usize, n_cols: usize, cols: Range<usize>) -> Result<Self::Builder>;

    /// An empty cache for this rank's key/value heads in `n_layers` layers; an exact one keeps f32.
    fn cache(&self, n_layers: usize, heads: &Heads, is_exact: bool) -> Self::Cache;

    /// Whether `n_bytes` for `what` are available now.
    fn spare(&self, n_bytes: usize, what: &str) -> Result<()>;

    /// `out` = `values`, in `n_rows` rows. They are given away, so that a device in ordinary memory need not copy them.
    fn upload(&mut self, values: Vec<f32>, n_rows: usize, out: &mut Self::Buffer);

    /// Number of rows of `x`.
    fn n_rows(&self, x: &Self::Buffer) -> usize;

    /// The values of `x`, row by row.
    async fn download(&mut self, x: &Self::Buffer) -> Result<Vec<f32>>;

    /// Appends every rank's `x` to `all` on rank 0, in rank order; the other ranks' `all` is unchanged.
    async fn gather(&mut self, x: &Self::Buffer, all: &mut Vec<f32>) -> Result<()>;

    /// Copies rows of `x` to `out` from row `at` on; `out` keeps the rows before and ends after them.
    fn copy(&mut self, x: &Self::Buffer, rows: Range<usize>, out: &mut Self::Buffer, at: usize);

    /// `out` (inputs.len(), dim), the same on every rank: rows of the embedding `table`, of which this rank holds those
    /// from token `first_id` on, and rows of encoded images.
    async fn embed(
        &mut self,
        table: &Linear<Self>,
        first_id: usize,
        inputs: &[Input<'_, Self::Buffer>],
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Each of `outs` (n, this rank's outputs) = `x` W^T + b, by one of `layers`.
    fn linear<const N: usize>(&mut self, layers: [&Linear<Self>; N], x: &Self::Buffer, outs: [&mut Self::Buffer; N]);

    /// `out` (n, n_outputs) = `x` W^T + b, the same on every rank, where each rank has some of the columns of W.
    async fn linear_sum(&mut self, layer: &LinearSum<Self>, x: &Self::Buffer, out: &mut Self::Buffer) -> Result<()>;

    /// `out` = `x` / rms(x) * `weight`, per row.
    fn rms_norm(&mut self, x: &Self::Buffer, weight: &Self::Buffer, eps: f32, out: &mut Self::Buffer);

    /// `out` = (`x` - mean) / std * `weight` + `bias`, per row.
    fn layer_norm(
        &mut self,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        bias: &Self::Buffer,
        eps: f32,
        out: &mut Self::Buffer,
    );

    /// `x` += `y`.
    fn add(&mut self, x: &mut Self::Buffer, y: &Self::Buffer);

    /// `x` += `y` * `scale`, per column.
    fn add_scaled(&mut self, x: &mut Self::Buffer, y: &Self::Buffer, scale: &Self::Buffer);

    /// Applies an activation function in place.
    fn activate(&mut self, activation: Activation, x: &mut Self::Buffer);

    /// `gate` = silu(`gate`) * `up`.
    fn silu_mul(&mut self, gate: &mut Self::Buffer, up: &Self::Buffer);

    /// Rotates the heads of every row of `x` in place, by that row of `angles` (n, head_dim): see
    /// [`rope::Rope::angles`].
    fn rotate(&mut self, x: &mut Self::Buffer, angles: &Self::Buffer, pairs: Pairs);

    /// `out` (n, n_heads * head_dim) = softmax(q k^T / sqrt(head_dim)) v over all rows of `k` and `v` (n, n_kv_heads *
    /// head_dim).
    fn attend(&mut self, q: &Self::Buffer, k: &Self::Buffer, v: &Self::Buffer, heads: &Heads, out: &mut Self::Buffer);

    /// Stores `k` and `v` in a layer of `cache` from position `first_pos` on; then the same over the cache, where every
    /// query sees the positions up to its own.
    #[allow(clippy::too_many_arguments)] // what attention needs
    fn attend_causal(
        &mut self,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        heads: &Heads,
        cache: &mut Self::Cache,
        layer: usize,
        first_pos: usize,
        out: &mut Self::Buffer,
    );
}

/// One position of a decoder's input.
pub enum Input<'a, B> {
    /// A token of the vocabulary.
    Token(u32),
    /// A row of an encoded image (n_image_tokens, dim).
    Image(&'a B, usize),
}

/// Takes the bytes of whole stored rows in order, in pieces of any size, straight into the device's memory.
pub trait Builder {
    /// What it becomes.
    type Matrix;

    /// Takes the next bytes.
    fn push(&mut self, bytes: &[u8]);

    /// The matrix; `name` is for the error if bytes are missing.
    fn finish(self, name: &str) -> Result<Self::Matrix>;
}

/// Keys and values of a conversation, in memory that grows with it page by page.
pub trait Cache: Sized {
    /// Memory that is allocated but not part of a cache yet.
    type Pages;

    /// Another conversation that begins with the first `n_positions` of this one and shares their memory until one of
    /// the two changes it.
    fn fork(&self, n_positions: usize) -> Self;

    /// Whether the positions `first..end` can be written without new memory. The answer is the same on every rank that
    /// has seen the same positions.
    fn has_room(&self, first: usize, end: usize) -> bool;

    /// Allocates what the positions `first..end` lack. Changes nothing.
    fn new_pages(&self, first: usize, end: usize) -> Result<Self::Pages>;

    /// Installs [`Cache::new_pages`] and frees the pages after position `end`.
    fn take(&mut self, new: Self::Pages, end: usize);

    /// Makes the positions `first..end` writable in every layer and frees the pages after them. After an error nothing
    /// has changed.
    fn reserve(&mut self, first: usize, end: usize) -> Result<()> {
        let new = self.new_pages(first, end)?;
        self.take(new, end);
        Ok(())
    }
}
