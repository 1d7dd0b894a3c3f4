//! Speed of the products alone, and the limits of the machine, for `bench.html`; JavaScript has the clock.

use crate::js_error;
use llama3med::device::cpu::bench::prepare;
use llama3med::device::cpu::matrix::{Activations, Matrix};
use llama3med::device::kernels::Kernel;
use llama3med::file::gguf::Dtype;
use std::arch::wasm32::*;
use std::hint::black_box;
use wasm_bindgen::prelude::*;

/// One product that can be run repeatedly.
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

    /// The kernel used by this build.
    pub fn kernel() -> String {
        Kernel::best().name.into()
    }

    /// Runs it once.
    pub fn run(&mut self) {
        self.matrix.matmul(&self.activations, &mut self.out);
    }
}

/// A stretch of memory that is only read, as fast as weights could be read.
#[wasm_bindgen]
pub struct Stretch {
    words: Vec<u64>,
}

#[wasm_bindgen]
impl Stretch {
    /// `n_bytes` of memory; each page is written once.
    #[wasm_bindgen(constructor)]
    pub fn new(n_bytes: usize) -> Result<Self, JsValue> {
        let mut words = Vec::new();
        let n_words = n_bytes / 64 * 8;
        words.try_reserve_exact(n_words).map_err(|_| js_error("out-of-memory", &format!("{n_bytes} bytes to read")))?;
        words.resize(n_words, 1);
        Ok(Self { words })
    }

    /// Reads it once.
    pub fn read(&self) -> u64 {
        let mut sums = [0u64; 8];
        for words in self.words.chunks_exact(8) {
            sums.iter_mut().zip(words).for_each(|(sum, word)| *sum ^= word);
        }
        sums.into_iter().fold(0, |sum, word| sum ^ word)
    }
}

/// Number of independent sums, so that none waits for the previous one: latency times instructions per cycle, plus a
/// margin.
const CHAINS: usize = 12;

/// Multiplies small integers in registers and adds them up, `n_runs` times, with the instructions that the products use
/// and nothing else; returns the number of multiplications. No product can be faster. With `wide` the sums are i32,
/// otherwise i16: which is faster depends on the processor. Without relaxed SIMD there is no choice.
#[wasm_bindgen]
pub fn multiply(n_runs: u32, wide: bool) -> f64 {
    let ones = black_box(u8x16_splat(1));
    let mut sums = [ones; CHAINS];
    #[cfg(feature = "relaxed-simd")]
    match wide {
        true => repeat(n_runs, &mut sums, |sum| i32x4_relaxed_dot_i8x16_i7x16_add(ones, ones, sum)),
        false => repeat(n_runs, &mut sums, |sum| i16x8_add(sum, i16x8_relaxed_dot_i8x16_i7x16(ones, sum))),
    }
    #[cfg(not(feature = "relaxed-simd"))]
    {
        let _ = wide;
        repeat(n_runs, &mut sums, |sum| i32x4_add(sum, i32x4_dot_i16x8(ones, sum)));
    }
    black_box(sums);
    let per_instruction = if cfg!(feature = "relaxed-simd") { 16 } else { 8 };
    f64::from(n_runs) * (CHAINS * per_instruction) as f64
}

#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
fn repeat(n_runs: u32, sums: &mut [v128; CHAINS], next: impl Fn(v128) -> v128) {
    for _ in 0..n_runs {
        sums.iter_mut().for_each(|sum| *sum = next(*sum));
    }
}
