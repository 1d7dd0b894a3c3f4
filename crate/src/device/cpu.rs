//! The processor: matrices in the forms that its kernels read, key/value pages in ordinary memory, and sums over the
//! ranks into which it is split.

pub mod bench;
pub mod kv_cache;
pub mod matrix;

use crate::device::attention::{Heads, Page, attend};
use crate::device::cpu::kv_cache::KvCache;
use crate::device::cpu::matrix::{Activations, Matrix, MatrixBuilder};
use crate::device::linear::{Linear, LinearSum};
use crate::device::ops::{self, Activation};
use crate::device::ranks::{self, Peers};
use crate::device::rope::{Pairs, rotate};
use crate::device::{Device, Input};
use crate::error::{Error, Result};
use crate::file::gguf::Dtype;
use std::ops::Range;

/// One rank of the processor.
pub struct Cpu<P> {
    peers: P,
    /// The 8-bit form of whatever is multiplied next.
    input: Activations,
    /// (n, a part's columns)
    part: Vec<f32>,
    /// (n, n_outputs) for each part of a sum but the first.
    sums: Vec<Vec<f32>>,
}

impl<P> Cpu<P> {
    /// The rank that `peers` connects with the others.
    pub fn new(peers: P) -> Self {
        Self { peers, input: Activations::default(), part: Vec::new(), sums: Vec::new() }
    }
}

/// Buffer of equal width. Without columns, there are still rows: with more ranks than heads or blocks, a rank may own no
/// part of a matrix.
#[derive(Default)]
pub struct Buffer {
    n_rows: usize,
    width: usize,
    values: Vec<f32>,
}

impl Buffer {
    fn resize(&mut self, n_rows: usize, width: usize) {
        (self.n_rows, self.width) = (n_rows, width);
        self.values.resize(n_rows * width, 0.0);
    }

    /// The shape of `x`.
    fn resize_like(&mut self, x: &Self) {
        self.resize(x.n_rows, x.width);
    }
}

impl<P: Peers> Device for Cpu<P> {
    type Peers = P;
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Builder = MatrixBuilder;
    type Cache = KvCache;

    fn peers(&self) -> &P {
        &self.peers
    }

    fn builder(&self, dtype: Dtype, n_rows: usize, n_cols: usize, cols: Range<usize>) -> Result<MatrixBuilder> {
        MatrixBuilder::new(dtype, n_rows, n_cols, cols)
    }

    fn cache(&self, n_layers: usize, heads: &Heads, is_exact: bool) -> KvCache {
        KvCache::new(n_layers, heads.n_kv_heads, heads.head_dim, is_exact)
    }

    fn spare(&self, n_bytes: usize, what: &str) -> Result<()> {
        let reserved = Vec::<u8>::new().try_reserve_exact(n_bytes);
        reserved.map_err(|_| Error::OutOfMemory { what: what.into(), bytes: n_bytes })
    }

    fn upload(&mut self, values: Vec<f32>, n_rows: usize, out: &mut Buffer) {
        *out = Buffer { n_rows, width: values.len() / n_rows.max(1), values };
    }

    fn n_rows(&self, x: &Buffer) -> usize {
        x.n_rows
    }

    async fn download(&mut self, x: &Buffer) -> Result<Vec<f32>> {
        Ok(x.values.clone())
    }

    async fn gather(&mut self, x: &Buffer, all: &mut Vec<f32>) -> Result<()> {
        ranks::gather(&self.peers, &x.values, all).await
    }

    fn copy(&mut self, x: &Buffer, rows: Range<usize>, out: &mut Buffer, at: usize) {
        (out.n_rows, out.width) = (at + rows.len(), x.width);
        out.values.truncate(at * x.width);
        out.values.extend_from_slice(&x.values[rows.start * x.width..rows.end * x.width]);
    }

    /// Each rank looks up the tokens of its part of the vocabulary, and the sum joins them; every rank adds the image
    /// tokens itself.
    async fn embed(
        &mut self,
        table: &Linear<Self>,
        first_id: usize,
        inputs: &[Input<'_, Buffer>],
        out: &mut Buffer,
    ) -> Result<()> {
        let (table, dim) = (&table.weight, table.weight.n_cols());
        let own = first_id..first_id + table.n_rows();
        out.resize(inputs.len(), dim);
        out.values.fill(0.0);
        for (input, out) in inputs.iter().zip(out.values.chunks_exact_mut(dim)) {
            if let Input::Token(id) = input
                && own.contains(&(*id as usize))
            {
                table.row(*id as usize - own.start, out);
            }
        }
        if inputs.iter().any(|input| matches!(input, Input::Token(_))) {
            ranks::sum(&self.peers, &mut out.values).await?;
        }
        for (input, out) in inputs.iter().zip(out.values.chunks_exact_mut(dim)) {
            if let Input::Image(image, row) = input {
                out.copy_from_slice(&image.values[row * dim..][..dim]);
            }
        }
        Ok(())
    }

    fn linear<const N: usize>(&mut self, layers: [&Linear<Self>; N], x: &Buffer, outs: [&mut Buffer; N]) {
        let mut loaded: Option<&Matrix> = None;
        for (Linear { weight, bias }, out) in layers.into_iter().zip(outs) {
            out.resize(x.n_rows, weight.n_rows());
            let is_loaded = loaded.is_some_and(|loaded| loaded.same_input(weight));
            product(weight, &x.values, x.n_rows, is_loaded, &mut self.input, &mut out.values);
            loaded = Some(weight).filter(|weight| weight.n_rows() > 0).or(loaded);
            add_bias(out, bias.as_ref());
        }
    }

    async fn linear_sum(&mut self, layer: &LinearSum<Self>, x: &Buffer, out: &mut Buffer) -> Result<()> {
        let LinearSum { parts, first, bias } = layer;
        let n_rest = parts.len() - 1;
        self.sums.resize_with(self.sums.len().max(n_rest), Vec::new);
        let mut first = *first;
        for (part_idx, part) in parts.iter().enumerate() {
            self.part.clear();
            for row in x.values.chunks_exact(x.width.max(1)) {
                self.part.extend_from_slice(&row[first..first + part.n_cols()]);
            }
            first += part.n_cols();
            out.resize(x.n_rows, part.n_rows());
            let sum = if part_idx == 0 { &mut out.values } else { &mut self.sums[part_idx - 1] };
            sum.resize(x.n_rows * part.n_rows(), 0.0);
            product(part, &self.part, x.n_rows, false, &mut self.input, sum);
        }
        add_neighbours(&mut out.values, &mut self.sums[..n_rest]);
        ranks::sum(&self.peers, &mut out.values).await?;
        add_bias(out, bias.as_ref());
        Ok(())
    }

    fn rms_norm(&mut self, x: &Buffer, weight: &Buffer, eps: f32, out: &mut Buffer) {
        out.resize_like(x);
        ops::rms_norm(&x.values, &weight.values, eps, &mut out.values);
    }

    fn layer_norm(&mut self, x: &Buffer, weight: &Buffer, bias: &Buffer, eps: f32, out: &mut Buffer) {
        out.resize_like(x);
        ops::layer_norm(&x.values, &weight.values, &bias.values, eps, &mut out.values);
    }

    fn add(&mut self, x: &mut Buffer, y: &Buffer) {
        ops::add(&mut x.values, &y.values);
    }

    fn add_scaled(&mut self, x: &mut Buffer, y: &Buffer, scale: &Buffer) {
        ops::add_scaled(&mut x.values, &y.values, &scale.values);
    }

    fn activate(&mut self, activation: Activation, x: &mut Buffer) {
        activation.apply(&mut x.values);
    }

    fn silu_mul(&mut self, gate: &mut Buffer, up: &Buffer) {
        ops::silu_mul(&mut gate.values, &up.values);
    }

    fn rotate(&mut self, x: &mut Buffer, angles: &Buffer, pairs: Pairs) {
        rotate(pairs, &mut x.values, &angles.values, angles.width);
    }

    fn attend(&mut self, q: &Buffer, k: &Buffer, v: &Buffer, heads: &Heads, out: &mut Buffer) {
        out.resize_like(q);
        if heads.n_kv_heads > 0 {
            attend(&q.values, &[Page::of_rows(&k.values, &v.values, heads)], heads, None, &mut out.values);
        }
    }

    fn attend_causal(
        &mut self,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        heads: &Heads,
        cache: &mut KvCache,
        layer: usize,
        first_pos: usize,
        out: &mut Buffer,
    ) {
        out.resize_like(q);
        if heads.n_kv_heads > 0 {
            cache.write(layer, first_pos, &k.values, &v.values);
            let pages = cache.pages(layer, first_pos + q.n_rows);
            attend(&q.values, &pages, heads, Some(first_pos), &mut out.values);
        }
    }
}

/// `out` (n, weight.n_rows()) = `x` (n, weight.n_cols()) times the transposed matrix; `is_loaded` says that `input` has
/// `x` already. Without columns, the part of the sum is zero.
fn product(weight: &Matrix, x: &[f32], n: usize, is_loaded: bool, input: &mut Activations, out: &mut [f32]) {
    if weight.n_rows() == 0 || weight.n_cols() == 0 {
        return out.fill(0.0);
    }
    if !is_loaded {
        input.load(x, n, weight);
    }
    weight.matmul(input, out);
}

fn add_bias(x: &mut Buffer, bias: Option<&Buffer>) {
    if let Some(bias) = bias.filter(|bias| bias.width > 0) {
        ops::add_bias(&mut x.values, &bias.values);
    }
}

/// Adds `rest` to `first` pairwise, then pairs of pairs: the order that [`ranks::sum`] continues between ranks.
fn add_neighbours(first: &mut [f32], rest: &mut [Vec<f32>]) {
    let mut distance = 1;
    while distance <= rest.len() {
        ops::add(first, &rest[distance - 1]);
        for left in (2 * distance..=rest.len() - distance).step_by(2 * distance) {
            let (lefts, rights) = rest.split_at_mut(left);
            ops::add(&mut lefts[left - 1], &rights[distance - 1]);
        }
        distance *= 2;
    }
}
