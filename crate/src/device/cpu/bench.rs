//! Products and attention at the model's shapes, timed with the caller's clock: `cargo bench -p llama3med` natively,
//! the bindings in a browser.
//!
//! Figures are the best of several interleaved runs, in units for which a processor has a limit: multiplications per
//! second for many tokens, bytes of weights per second for one.

use crate::device::attention::{Heads, Page, attend};
use crate::device::cpu::kv_cache::KvCache;
use crate::device::cpu::matrix::{Activations, Matrix, MatrixBuilder};
use crate::device::kernels::Kernel;
use crate::device::{Builder, Cache};
use crate::file::gguf::Dtype;
use std::fmt::Write;

/// Rows and columns of the matrices, chosen so that they exceed a processor's cache.
const SHAPE: (usize, usize) = (4096, 4096);

/// Times products of every number format with one token and with 128, and attention at a decoder's and an encoder's
/// shape. Returns a Markdown table. `now` returns milliseconds.
pub fn table(now: impl Fn() -> f64) -> String {
    let best = Kernel::best();
    let mut table =
        format!("| form | tokens | {} GMAC/s | GB/s of weights | x reference |\n|---|---|---|---|---|\n", best.name);
    for dtype in Dtype::ALL {
        for n_tokens in [1, 128] {
            let (matrix, x, mut out) = prepare(dtype, SHAPE.0, SHAPE.1, n_tokens);
            let ms = fastest(&now, 8, || matrix.matmul(&x, &mut out));
            let (small, x, mut out) = prepare(dtype, 64, SHAPE.1, n_tokens.min(4));
            let slow = fastest(&now, 2, || small.matmul_by(Kernel::REFERENCE, &x, &mut out));
            let rate = (SHAPE.0 * SHAPE.1 * n_tokens) as f64 / ms / 1e6;
            let reference = (64 * SHAPE.1 * n_tokens.min(4)) as f64 / slow / 1e6;
            let bytes = matrix.n_bytes() as f64 / ms / 1e6;
            let name = dtype.name();
            let ratio = if dtype.block_len() > 1 { format!("{:.0}", rate / reference) } else { "-".into() };
            writeln!(table, "| {name} | {n_tokens} | {rate:.1} | {bytes:.1} | {ratio} |").expect("a string grows");
        }
    }
    for (what, n_heads, n_kv_heads, n_queries, n_keys) in [
        ("attention, decoder", 32, 8, 1, 1024),
        ("attention, decoder", 32, 8, 128, 1024),
        ("attention, encoder", 16, 16, 577, 577),
    ] {
        let heads =
            Heads { head_dim: 64, kv_head: (0..n_heads).map(|head| head * n_kv_heads / n_heads).collect(), n_kv_heads };
        let values = |n: usize| (0..n).map(|i| (i * 7919 % 1009) as f32 / 500.0 - 1.0).collect::<Vec<_>>();
        let (q, kv) = (values(n_queries * n_heads * 64), values(n_keys * n_kv_heads * 64));
        let mut out = vec![0.0; q.len()];
        let mut cache = KvCache::new(1, n_kv_heads, 64, false);
        cache.reserve(0, n_keys).expect("memory for the benchmark");
        cache.write(0, 0, &kv, &kv);
        let pages = match what {
            "attention, encoder" => vec![Page::of_rows(&kv, &kv, &heads)],
            _ => cache.pages(0, n_keys),
        };
        let ms = fastest(&now, 8, || attend(&q, &pages, &heads, None, &mut out));
        let rate = (2 * n_heads * 64 * n_queries * n_keys) as f64 / ms / 1e6;
        writeln!(table, "| {what}, {n_keys} keys | {n_queries} | {rate:.1} | - | - |").expect("a string grows");
    }
    table
}

/// Milliseconds of the fastest of `n_runs` runs, each at least 4 ms long.
fn fastest(now: &impl Fn() -> f64, n_runs: usize, mut work: impl FnMut()) -> f64 {
    let mut n_times = 1;
    let mut fastest = f64::INFINITY;
    let mut run = 0;
    while run < n_runs {
        let start = now();
        (0..n_times).for_each(|_| work());
        let ms = now() - start;
        if ms < 4.0 {
            n_times *= 2;
        } else {
            fastest = fastest.min(ms / n_times as f64);
            run += 1;
        }
    }
    fastest
}

/// A matrix of pseudo-random weights, matching activations of `n_tokens`, and room for the product.
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
            // A fixed exponent, so that any 16 bits are a small f16 wherever a format stores one.
            pair.copy_from_slice(&((next() & 0x83ff) as u16 | 0x2400).to_le_bytes());
        }
        builder.push(&row);
    }
    let matrix = builder.finish("benchmark").expect("all rows were pushed");
    let x: Vec<f32> = (0..n_tokens * n_cols).map(|_| next() as f32 / 32768.0 - 1.0).collect();
    let mut activations = Activations::default();
    activations.load(&x, n_tokens, &matrix);
    (matrix, activations, vec![0.0; n_tokens * n_rows])
}
