//! A weight matrix as one rank holds it: some rows and columns of a stored tensor, in the form that its kernel reads.
//!
//! Built from byte ranges of whole stored rows as they arrive ([`MatrixBuilder`]); multiplied with [`Activations`]. Columns that a rank does not own but
//! that share a block with its own are kept and met by zeros in the activations, so that any split of columns works with any block length.

use crate::error::{Error, Result};
use crate::gguf::Dtype;
use crate::quant::dequantize;
use std::ops::Range;

/// `n_rows` x `n_cols` weights.
pub struct Matrix {
    dtype: Dtype,
    n_rows: usize,
    /// Columns that this rank owns, counted from the first stored one.
    cols: Range<usize>,
    /// Columns stored: whole blocks.
    n_stored: usize,
    data: Vec<u8>,
}

impl Matrix {
    /// Rows, the length of a product.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns that this rank owns, the length of an activation.
    pub fn n_cols(&self) -> usize {
        self.cols.len()
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.data.len()
    }

    /// Dequantizes the owned columns of one row (of an embedding table, say) into `out` (n_cols).
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let row_bytes = self.dtype.row_bytes(self.n_stored);
        let mut stored = vec![0.0; self.n_stored];
        dequantize(self.dtype, &self.data[row * row_bytes..(row + 1) * row_bytes], &mut stored);
        out.copy_from_slice(&stored[self.cols.clone()]);
    }

    /// `out` (n_tokens, n_rows) = `x` (n_tokens, n_cols) times the transposed matrix.
    pub fn matmul(&self, x: &Activations, out: &mut [f32]) {
        assert_eq!(x.n_cols, self.n_stored);
        assert_eq!(out.len(), x.n_tokens * self.n_rows);
        let row_bytes = self.dtype.row_bytes(self.n_stored);
        let mut row = vec![0.0; self.n_stored];
        for (row_idx, bytes) in self.data.chunks_exact(row_bytes).enumerate() {
            dequantize(self.dtype, bytes, &mut row);
            for (token, x) in x.values.chunks_exact(self.n_stored).enumerate() {
                out[token * self.n_rows + row_idx] = row.iter().zip(x).map(|(w, x)| w * x).sum();
            }
        }
    }
}

/// The right-hand side of products: activations in f32 and, where a kernel wants them, in 8 bits. Reused from product to product.
#[derive(Default)]
pub struct Activations {
    n_tokens: usize,
    n_cols: usize,
    values: Vec<f32>,
}

impl Activations {
    /// Takes `x` (n_tokens, matrix.n_cols()) for products with `matrix` and every other matrix of the same columns and number format.
    pub fn load(&mut self, x: &[f32], n_tokens: usize, matrix: &Matrix) {
        assert_eq!(x.len(), n_tokens * matrix.n_cols());
        self.n_tokens = n_tokens;
        self.n_cols = matrix.n_stored;
        self.values.clear();
        self.values.resize(n_tokens * matrix.n_stored, 0.0);
        for (to, from) in self.values.chunks_exact_mut(matrix.n_stored).zip(x.chunks_exact(matrix.n_cols())) {
            to[matrix.cols.clone()].copy_from_slice(from);
        }
    }

    /// How many tokens are loaded.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }
}

/// Takes the bytes of whole stored rows in order, in pieces of any size, and keeps the owned columns.
pub struct MatrixBuilder {
    dtype: Dtype,
    n_rows: usize,
    row_bytes: usize,
    /// The blocks kept of each row, as bytes.
    kept: Range<usize>,
    cols: Range<usize>,
    n_stored: usize,
    n_pushed: u64,
    partial: Vec<u8>,
    data: Vec<u8>,
}

impl MatrixBuilder {
    /// For `n_rows` rows of `n_cols` stored weights each, of which the columns `cols` are this rank's.
    pub fn new(dtype: Dtype, n_rows: usize, n_cols: usize, cols: Range<usize>) -> Result<Self> {
        let block = dtype.block_len();
        let first = cols.start / block * block;
        let last = cols.end.next_multiple_of(block).min(n_cols);
        let kept = dtype.row_bytes(first)..dtype.row_bytes(last);
        let n_bytes = n_rows * kept.len();
        let mut data = Vec::new();
        data.try_reserve_exact(n_bytes)
            .map_err(|_| Error::OutOfMemory { what: format!("a matrix of {n_rows} rows"), bytes: n_bytes })?;
        Ok(Self {
            dtype,
            n_rows,
            row_bytes: dtype.row_bytes(n_cols),
            kept,
            cols: cols.start - first..cols.end - first,
            n_stored: last - first,
            n_pushed: 0,
            partial: Vec::new(),
            data,
        })
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.n_pushed += bytes.len() as u64;
        self.partial.extend_from_slice(bytes);
        let whole = self.partial.len() / self.row_bytes * self.row_bytes;
        for row in self.partial[..whole].chunks_exact(self.row_bytes) {
            self.data.extend_from_slice(&row[self.kept.clone()]);
        }
        self.partial.drain(..whole);
    }

    /// Bytes taken so far.
    pub fn n_pushed(&self) -> u64 {
        self.n_pushed
    }

    /// The matrix; `name` is for the message when bytes are missing.
    pub fn finish(self, name: &str) -> Result<Matrix> {
        let expected = self.n_rows * self.kept.len();
        if self.data.len() != expected || !self.partial.is_empty() {
            return Err(Error::Shape {
                tensor: name.into(),
                expected: format!("{expected} bytes"),
                found: format!("{} bytes", self.data.len()),
            });
        }
        Ok(Matrix { dtype: self.dtype, n_rows: self.n_rows, cols: self.cols, n_stored: self.n_stored, data: self.data })
    }
}
