//! The products alone, for `bench.html?kernels=1`: JavaScript has the clock.

use crate::js_error;
use llama3med::bench::prepare;
use llama3med::gguf::Dtype;
use llama3med::kernels::Kernel;
use llama3med::matrix::{Activations, Matrix};
use wasm_bindgen::prelude::*;

/// One product, ready to be run again and again.
#[wasm_bindgen]
pub struct Product {
    matrix: Matrix,
    activations: Activations,
    out: Vec<f32>,
}

#[wasm_bindgen]
impl Product {
    /// A matrix of `dtype` ("q4_0", ...) times `n_tokens` activations.
    #[wasm_bindgen(constructor)]
    pub fn new(dtype: &str, n_rows: usize, n_cols: usize, n_tokens: usize) -> Result<Self, JsValue> {
        let known = Dtype::ALL.into_iter().find(|known| known.name() == dtype);
        let dtype = known.ok_or_else(|| js_error("invalid", &format!("there is no type {dtype}")))?;
        if n_cols == 0 || !n_cols.is_multiple_of(dtype.block_len()) || n_rows == 0 || n_tokens == 0 {
            return Err(js_error("invalid", &format!("no product of {n_rows} x {n_cols} x {n_tokens}")));
        }
        let (matrix, activations, out) = prepare(dtype, n_rows, n_cols, n_tokens);
        Ok(Self { matrix, activations, out })
    }

    /// The kernel that this build uses.
    pub fn kernel() -> String {
        Kernel::best().name.into()
    }

    /// Runs it once.
    pub fn run(&mut self) {
        self.matrix.matmul(&self.activations, &mut self.out);
    }
}
