//! A matrix product and its bias, whole or as one rank's part: what encoders and connectors are made of.
//!
//! Split by rows, a rank computes some of the outputs; split by columns, it computes a part of every output's sum, and the sums meet over the ranks
//! before the bias is added.

use crate::error::Result;
use crate::matrix::{Activations, Matrix};
use crate::ops;
use crate::ranks::{self, Peers};
use crate::shard::{Tensors, Want};
use std::ops::Range;

/// y = x W^T + b.
pub struct Linear {
    weight: Matrix,
    bias: Vec<f32>,
}

impl Linear {
    /// What a rank needs that computes the outputs `rows`.
    pub fn want_rows(name: &str, n_outputs: usize, n_inputs: usize, rows: Range<usize>) -> [Want; 2] {
        let weight = Want::rows(format!("{name}.weight"), n_outputs, n_inputs, rows.clone());
        [weight, Want::cols(format!("{name}.bias"), 1, n_outputs, rows)]
    }

    /// What a rank needs that takes the inputs `cols`. The bias is whole: it is added after the sum.
    pub fn want_cols(name: &str, n_outputs: usize, n_inputs: usize, cols: Range<usize>) -> [Want; 2] {
        let weight = Want::cols(format!("{name}.weight"), n_outputs, n_inputs, cols);
        [weight, Want::whole(format!("{name}.bias"), 1, n_outputs)]
    }

    /// Takes what [`Linear::want_rows`] or [`Linear::want_cols`] asked for.
    pub fn new(name: &str, tensors: &mut Tensors) -> Result<Self> {
        Ok(Self { weight: tensors.matrix(&format!("{name}.weight"))?, bias: tensors.vector(&format!("{name}.bias"))? })
    }

    /// A matrix that was put together from other tensors, with its bias.
    pub fn from_parts(weight: Matrix, bias: Vec<f32>) -> Self {
        Self { weight, bias }
    }

    /// Row-split: `out` (n_tokens, this rank's outputs) from the whole of `x` (n_tokens, n_inputs).
    pub fn forward(&self, x: &[f32], n_tokens: usize, input: &mut Activations, out: &mut Vec<f32>) {
        product(&self.weight, x, n_tokens, input, out);
        if !self.bias.is_empty() {
            ops::add_bias(out, &self.bias);
        }
    }

    /// Column-split: `out` (n_tokens, n_outputs), the same on every rank, from this rank's part of `x` (n_tokens, n_inputs).
    pub async fn forward_sum<P: Peers>(
        &self,
        peers: &P,
        x: &[f32],
        n_tokens: usize,
        input: &mut Activations,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        product(&self.weight, x, n_tokens, input, out);
        ranks::sum(peers, out).await?;
        ops::add_bias(out, &self.bias);
        Ok(())
    }
}

/// `out` (n_tokens, matrix.n_rows()) = `x` (n_tokens, matrix.n_cols()) times the transposed matrix.
///
/// With more ranks than heads or blocks a rank may own nothing of a matrix: then its outputs are none, or its part of the sum is zero.
pub fn product(matrix: &Matrix, x: &[f32], n_tokens: usize, input: &mut Activations, out: &mut Vec<f32>) {
    out.resize(n_tokens * matrix.n_rows(), 0.0);
    if matrix.n_rows() == 0 || matrix.n_cols() == 0 {
        return out.fill(0.0);
    }
    input.load(x, n_tokens, matrix);
    matrix.matmul(input, out);
}
