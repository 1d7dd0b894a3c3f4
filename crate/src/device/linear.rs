//! Matrix products over several ranks, with or without a bias: the building blocks of encoder, connector and decoder.
//!
//! Split by rows, a rank computes some of the outputs ([`Linear`]). Split by columns, it computes part of every
//! output's sum ([`LinearSum`]), and the parts are summed over the ranks before the bias is added.

use crate::device::matrix::{Activations, Matrix};
use crate::device::ops;
use crate::device::ranks::{self, Peers};
use crate::device::shard::Tensors;
use crate::error::Result;

/// y = x W^T + b, split by rows or whole.
pub struct Linear {
    weight: Matrix,
    bias: Vec<f32>, // empty if there is none
}

impl Linear {
    /// Takes `name.weight` and, if the model has it, `name.bias`.
    pub fn new(name: &str, tensors: &mut Tensors) -> Result<Self> {
        Ok(Self { weight: tensors.matrix(&format!("{name}.weight"))?, bias: tensors.bias(name)? })
    }

    /// From a matrix that was assembled from other tensors, and its bias.
    pub fn from_parts(weight: Matrix, bias: Vec<f32>) -> Self {
        Self { weight, bias }
    }

    /// `out` (n_tokens, this rank's outputs) from the whole of `x` (n_tokens, n_inputs).
    pub fn forward(&self, x: &[f32], n_tokens: usize, input: &mut Activations, out: &mut Vec<f32>) {
        product(&self.weight, x, n_tokens, input, out);
        if !self.bias.is_empty() {
            ops::add_bias(out, &self.bias);
        }
    }
}

/// y = x W^T + b, split by columns.
pub struct LinearSum {
    /// This rank's columns, in the parts given by [`crate::device::shard::Shard::parts`].
    parts: Vec<Matrix>,
    bias: Vec<f32>, // whole; empty if there is none
}

/// Buffers of a [`LinearSum`], which several may share.
#[derive(Default)]
pub struct SumState {
    x: Vec<f32>,         // (n_tokens, a part's columns)
    sums: Vec<Vec<f32>>, // (n_tokens, n_outputs), for each part but the first
}

impl LinearSum {
    /// Takes all parts of `name.weight` and, if the model has it, the whole of `name.bias`, which is added after the
    /// sum.
    pub fn new(name: &str, tensors: &mut Tensors) -> Result<Self> {
        Ok(Self { parts: tensors.parts(&format!("{name}.weight"))?, bias: tensors.bias(name)? })
    }

    /// `out` (n_tokens, n_outputs), the same on every rank, from this rank's part of `x` (n_tokens, n_inputs).
    pub async fn forward<P: Peers>(
        &self,
        peers: &P,
        x: &[f32],
        n_tokens: usize,
        input: &mut Activations,
        state: &mut SumState,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let n_cols = self.parts.iter().map(Matrix::n_cols).sum::<usize>();
        let SumState { x: part_x, sums } = state;
        sums.resize_with(sums.len().max(self.parts.len() - 1), Vec::new);
        let mut first = 0;
        for (part_idx, part) in self.parts.iter().enumerate() {
            part_x.clear();
            for row in x.chunks_exact(n_cols.max(1)) {
                part_x.extend_from_slice(&row[first..first + part.n_cols()]);
            }
            first += part.n_cols();
            let sum = if part_idx == 0 { &mut *out } else { &mut sums[part_idx - 1] };
            product(part, part_x, n_tokens, input, sum);
        }
        add_neighbours(out, &mut sums[..self.parts.len() - 1]);
        ranks::sum(peers, out).await?;
        if !self.bias.is_empty() {
            ops::add_bias(out, &self.bias);
        }
        Ok(())
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

/// `out` (n_tokens, matrix.n_rows()) = `x` (n_tokens, matrix.n_cols()) times the transposed matrix.
///
/// With more ranks than heads or blocks, a rank may own no part of a matrix: then it has no outputs, or its part of the
/// sum is zero.
pub fn product(matrix: &Matrix, x: &[f32], n_tokens: usize, input: &mut Activations, out: &mut Vec<f32>) {
    out.resize(n_tokens * matrix.n_rows(), 0.0);
    if matrix.n_rows() == 0 || matrix.n_cols() == 0 {
        return out.fill(0.0);
    }
    input.load(x, n_tokens, matrix);
    matrix.matmul(input, out);
}
