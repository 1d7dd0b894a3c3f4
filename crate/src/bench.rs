//! Products at the model's shapes, to be timed by whoever has a clock: `cargo bench` natively, the bindings in the browser.

use crate::gguf::Dtype;
use crate::matrix::{Activations, Matrix, MatrixBuilder};

/// A matrix of pseudo-random weights, activations of `n_tokens` for it, and room for the product.
pub fn prepare(dtype: Dtype, n_rows: usize, n_cols: usize, n_tokens: usize) -> (Matrix, Activations, Vec<f32>) {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    let mut builder = MatrixBuilder::new(dtype, n_rows, n_cols, 0..n_cols).expect("memory for the benchmark");
    let mut row = vec![0; dtype.row_bytes(n_cols)];
    for _ in 0..n_rows {
        for pair in row.chunks_exact_mut(2) {
            // Small exponents, so that every 16 bits are a small f16 wherever a format keeps one.
            pair.copy_from_slice(&((next() & 0xb3ff) as u16).to_le_bytes());
        }
        builder.push(&row);
    }
    let matrix = builder.finish("benchmark").expect("all rows were pushed");
    let x: Vec<f32> = (0..n_tokens * n_cols).map(|_| next() as f32 / 32768.0 - 1.0).collect();
    let mut activations = Activations::default();
    activations.load(&x, n_tokens, &matrix);
    (matrix, activations, vec![0.0; n_tokens * n_rows])
}
