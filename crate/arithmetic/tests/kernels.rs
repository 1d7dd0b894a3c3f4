//! Every kernel that runs here is compared with the definition, bit for bit, at all edges of rows, columns, cuts and
//! tokens.
//!
//! One source, three builds. Natively this is part of `cargo test`. In headless Chromium, run it from this crate's
//! folder, for each of the two wasm builds (needs chromedriver and wasm-bindgen-test-runner, in the version of
//! Cargo.lock, on the PATH; `webdriver.json` is in this folder):
//!
//! ```sh
//! CHROMEDRIVER=/usr/bin/chromedriver cargo test -p llama3med-arithmetic --profile wasm --target wasm32-unknown-unknown --test kernels
//! CHROMEDRIVER=/usr/bin/chromedriver cargo test -p llama3med-arithmetic --profile wasm --target wasm32-unknown-unknown --test kernels --features relaxed-simd
//! ```

use half::{bf16, f16};
use llama3med::device::Builder;
use llama3med::device::attention::{Heads, Page, attend};
use llama3med::device::cpu::matrix::{Activations, Matrix, MatrixBuilder};
use llama3med::device::kernels::Kernel;
use llama3med::device::kernels::float::{decode, exp};
use llama3med::device::ops::Activation;
use llama3med::device::quant::dequantize;
use llama3med::file::gguf::Dtype;
use std::ops::Range;
#[cfg(not(target_arch = "wasm32"))]
use std::prelude::v1::test;
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

#[cfg(target_arch = "wasm32")]
wasm_bindgen_test::wasm_bindgen_test_configure!(run_in_browser);

const QUANTIZED: [Dtype; 12] = [
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q8_0,
    Dtype::Q2K,
    Dtype::Q3K,
    Dtype::Q4K,
    Dtype::Q5K,
    Dtype::Q6K,
    Dtype::IQ4_NL,
    Dtype::IQ4_XS,
];

/// Offset of the f16 factors in a block.
fn factors(dtype: Dtype) -> &'static [usize] {
    match dtype {
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K => &[0, 2],
        Dtype::Q2K => &[80, 82],
        Dtype::Q3K => &[108],
        Dtype::Q6K => &[208],
        _ => &[0],
    }
}

/// A seeded stream of numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// In the range -1..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn activations(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| 3.0 * self.unit()).collect()
    }

    /// Stored bytes of `n` weights: any bytes are valid quants; only the f16 factors must be finite.
    fn weights(&mut self, dtype: Dtype, n: usize) -> Vec<u8> {
        if dtype == Dtype::F32 {
            return (0..n).flat_map(|_| self.unit().to_le_bytes()).collect();
        }
        if dtype.block_len() == 1 {
            // BF16 and F16 have different exponents; these bytes are small numbers in both.
            return (0..n).flat_map(|_| [self.next() as u8, 0x34 + (self.next() as u8 & 0x83)]).collect();
        }
        let mut bytes: Vec<u8> = (0..dtype.row_bytes(n)).map(|_| self.next() as u8).collect();
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            for &at in factors(dtype) {
                // A few of them are subnormal f16 numbers.
                let factor = 0.01 * self.unit() / (1 << (self.next() % 12)) as f32;
                block[at..at + 2].copy_from_slice(&f16::from_f32(factor).to_le_bytes());
            }
        }
        bytes
    }
}

fn build(dtype: Dtype, n_rows: usize, n_cols: usize, cols: Range<usize>, bytes: &[u8], piece: usize) -> Matrix {
    let mut builder = MatrixBuilder::new(dtype, n_rows, n_cols, cols).unwrap();
    bytes.chunks(piece).for_each(|piece| builder.push(piece));
    builder.finish("w").unwrap()
}

/// The owned columns of all rows, decoded.
fn decoded(dtype: Dtype, n_cols: usize, cols: Range<usize>, bytes: &[u8]) -> Vec<f32> {
    let mut row = vec![0.0; n_cols];
    let decode = |bytes: &[u8]| {
        dequantize(dtype, bytes, &mut row);
        row[cols.clone()].to_vec()
    };
    bytes.chunks_exact(dtype.row_bytes(n_cols)).flat_map(decode).collect()
}

/// Whole, and cut as ranks and odd head widths may cut them.
fn cuts(n_cols: usize) -> Vec<Range<usize>> {
    let mut cuts = vec![0..n_cols, 0..n_cols / 2, n_cols / 2..n_cols, n_cols - 1..n_cols];
    if n_cols > 64 {
        cuts.extend([32..n_cols - 32, 31..n_cols - 7, 17..50, 40..41, 64..64]);
    }
    cuts
}

#[test]
fn rows_come_back_exactly_from_bytes_in_pieces() {
    let mut random = Random(1);
    for dtype in Dtype::ALL {
        for n_rows in [1, 7, 8, 9, 17] {
            let n_cols = if dtype.block_len() == 1 { 77 } else { 768 };
            let bytes = random.weights(dtype, n_rows * n_cols);
            for (cols, piece) in cuts(n_cols).into_iter().zip([1 << 20, 1, 33, 1000, 4096].into_iter().cycle()) {
                let matrix = build(dtype, n_rows, n_cols, cols.clone(), &bytes, piece);
                assert_eq!((matrix.n_rows(), matrix.n_cols()), (n_rows, cols.len()));
                let expected = decoded(dtype, n_cols, cols.clone(), &bytes);
                let mut row = vec![0.0; cols.len()];
                for idx in 0..n_rows {
                    matrix.row(idx, &mut row);
                    assert_eq!(row, expected[idx * cols.len()..][..cols.len()], "{} {cols:?}", dtype.name());
                }
            }
        }
    }
}

#[test]
fn scales_that_are_no_numbers_are_refused() {
    let mut random = Random(8);
    for dtype in QUANTIZED {
        for (at, bad) in factors(dtype).iter().flat_map(|at| [(at, f16::INFINITY), (at, f16::NAN)]) {
            let mut bytes = random.weights(dtype, 20 * 512);
            let row = dtype.row_bytes(512);
            bytes[18 * row + at..18 * row + at + 2].copy_from_slice(&bad.to_le_bytes());
            let mut builder = MatrixBuilder::new(dtype, 20, 512, 0..512).unwrap();
            builder.push(&bytes);
            let error = builder.finish("w").err().expect("such scales are refused").to_string();
            assert_eq!(error, "tensor w: expected finite scales, found others in rows 16 to 19", "{}", dtype.name());
        }
    }
}

#[test]
fn kernels_equal_the_definition_bit_for_bit() {
    let mut random = Random(2);
    for dtype in QUANTIZED {
        for n_blocks in [1, 2, 3, 9] {
            for n_rows in 1..=9 {
                let n_cols = n_blocks * dtype.block_len();
                let bytes = random.weights(dtype, n_rows * n_cols);
                for cols in cuts(n_cols) {
                    let matrix = build(dtype, n_rows, n_cols, cols.clone(), &bytes, 1 << 20);
                    let many = if n_rows == 9 { [15, 16, 17, 33].as_slice() } else { &[] };
                    for n_tokens in (1..=9).chain(many.iter().copied()) {
                        let x = random.activations(n_tokens * cols.len());
                        let what = format!("{} {n_rows} x {cols:?} x {n_tokens}", dtype.name());
                        assert_all_equal(&matrix, &x, n_tokens, &what);
                    }
                }
            }
        }
    }
}

fn assert_all_equal(matrix: &Matrix, x: &[f32], n_tokens: usize, what: &str) {
    let mut activations = Activations::default();
    activations.load(x, n_tokens, matrix);
    let mut expected = vec![f32::NAN; n_tokens * matrix.n_rows()];
    matrix.matmul_by(Kernel::REFERENCE, &activations, &mut expected);
    for kernel in Kernel::all() {
        let mut out = vec![f32::NAN; expected.len()];
        matrix.matmul_by(kernel, &activations, &mut out);
        let equal = out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(equal, "{} {what}: {out:?} is not {expected:?}", kernel.name);
    }
}

/// The largest quants of a form with the largest activations: no sum overflows.
#[test]
fn extreme_quants_do_not_overflow() {
    for dtype in QUANTIZED {
        for fill in [0x00u8, 0xff, 0x7f, 0x80] {
            let (n_rows, n_cols) = (8, 512);
            let mut bytes = vec![fill; n_rows * dtype.row_bytes(n_cols)];
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                for &at in factors(dtype) {
                    block[at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes());
                }
            }
            let matrix = build(dtype, n_rows, n_cols, 0..n_cols, &bytes, 1 << 20);
            let weights = decoded(dtype, n_cols, 0..n_cols, &bytes);
            for sign in [1.0, -1.0] {
                let x = vec![127.0 * sign; 5 * n_cols];
                assert_all_equal(&matrix, &x, 5, dtype.name());
                let mut activations = Activations::default();
                activations.load(&x, 5, &matrix);
                let mut out = vec![0.0; 5 * n_rows];
                matrix.matmul(&activations, &mut out);
                let expected: f64 = weights[..n_cols].iter().map(|weight| (127.0 * sign * weight) as f64).sum();
                let close = |out: &f32| (*out as f64 - expected).abs() <= 1e-6 * expected.abs();
                assert!(out.iter().all(close), "{out:?} {expected}");
            }
        }
    }
}

/// Against f64 products of the decoded weights: the only loss is the rounding of activations to 8 bits, and
/// floating-point forms lose nothing.
#[test]
fn products_are_those_of_the_decoded_weights() {
    let mut random = Random(3);
    for dtype in Dtype::ALL {
        let (n_rows, n_cols, n_tokens) = (19, 1024, 6);
        let bytes = random.weights(dtype, n_rows * n_cols);
        for cols in [0..n_cols, 96..800, 100..901] {
            let matrix = build(dtype, n_rows, n_cols, cols.clone(), &bytes, 5000);
            let weights = decoded(dtype, n_cols, cols.clone(), &bytes);
            let x = random.activations(n_tokens * cols.len());
            let mut activations = Activations::default();
            activations.load(&x, n_tokens, &matrix);
            let mut out = vec![0.0; n_tokens * n_rows];
            matrix.matmul(&activations, &mut out);
            for (i, out) in out.iter().enumerate() {
                let x = &x[i / n_rows * cols.len()..][..cols.len()];
                let weights = &weights[i % n_rows * cols.len()..][..cols.len()];
                let terms: Vec<f64> = x.iter().zip(weights).map(|(x, w)| *x as f64 * *w as f64).collect();
                let expected: f64 = terms.iter().sum();
                let norm = weights.iter().map(|w| (*w as f64).powi(2)).sum::<f64>().sqrt();
                // Rounding to 8 bits: uniform within half a step of 3 / 127, so 0.0068 per activation; six standard deviations.
                let bound = if QUANTIZED.contains(&dtype) {
                    6.0 * 0.0069 * norm
                } else {
                    1e-6 * terms.iter().map(|term| term.abs()).sum::<f64>()
                };
                let error = (*out as f64 - expected).abs();
                assert!(error <= bound, "{} {cols:?}: {out} is not {expected}, bound {bound}", dtype.name());
            }
        }
    }
}

#[test]
fn an_activation_that_is_not_a_number_spoils_its_token_alone() {
    let mut random = Random(4);
    for dtype in Dtype::ALL {
        let (n_rows, n_cols) = (8, 256);
        let bytes = random.weights(dtype, n_rows * n_cols);
        let matrix = build(dtype, n_rows, n_cols, 0..n_cols, &bytes, 1 << 20);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random.activations(3 * n_cols);
            x[n_cols + 40] = bad;
            let mut activations = Activations::default();
            activations.load(&x, 3, &matrix);
            let mut out = vec![0.0; 3 * n_rows];
            matrix.matmul(&activations, &mut out);
            assert!(out[n_rows..2 * n_rows].iter().all(|out| !out.is_finite()), "{} {out:?}", dtype.name());
            assert!(out[..n_rows].iter().chain(&out[2 * n_rows..]).all(|out| out.is_finite()));
        }
        // Tiny and zero activations do not.
        let x: Vec<f32> = (0..n_cols).map(|i| if i < 64 { 1e-40 } else { 0.0 }).collect();
        let mut activations = Activations::default();
        activations.load(&x, 1, &matrix);
        let mut out = vec![1.0; n_rows];
        matrix.matmul(&activations, &mut out);
        assert!(out.iter().all(|out| out.abs() < 1e-30));
    }
}

#[test]
fn every_half_is_decoded_exactly() {
    for bits in 0..=u16::MAX {
        let (f16, bf16) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
        for (dtype, expected) in [(Dtype::F16, f16), (Dtype::Bf16, bf16)] {
            let decoded = decode(dtype, &bits.to_le_bytes());
            assert!(decoded.to_bits() == expected.to_bits() || decoded.is_nan() && expected.is_nan(), "{bits:x}");
        }
    }
}

#[test]
fn a_value_that_is_not_a_number_is_not_lost_in_functions() {
    let mut x = [1.0, f32::NAN, -1.0, 100.0, -100.0, 3.0, 4.0, 5.0];
    for activation in [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Silu] {
        let mut y = x;
        activation.apply(&mut y);
        let finite = y.map(f32::is_finite);
        assert_eq!(finite, [true, false, true, true, true, true, true, true], "{activation:?}");
    }
    x[0] = exp(x[1]);
    assert!(x[0].is_nan());
    let heads = Heads { head_dim: 8, kv_head: vec![0], n_kv_heads: 1 };
    for n_queries in [1, 20] {
        let (q, v) = (vec![1.0; 8 * n_queries], vec![1.0; 8 * 20]);
        let mut k = v.clone();
        k[83] = f32::NAN;
        let mut out = vec![0.0; 8 * n_queries];
        attend(&q, &[Page::of_rows(&k, &v, &heads)], &heads, None, &mut out);
        assert!(out.iter().all(|out| out.is_nan()));
    }
}

#[test]
fn forms_stay_close_to_the_stored_size() {
    for dtype in Dtype::ALL {
        let limit = match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Q4_0 => 1.0,
            Dtype::Q3K | Dtype::Q4K | Dtype::Q8_0 => 1.06,
            Dtype::Q6K => 1.32,
            _ => 1.2,
        };
        let mut builder = MatrixBuilder::new(dtype, 64, 4096, 0..4096).unwrap();
        builder.push(&vec![0; 64 * dtype.row_bytes(4096)]);
        let n_bytes = builder.finish("w").unwrap().n_bytes();
        assert_eq!(n_bytes as u64, Matrix::held_bytes(dtype, 64, &(0..4096)), "{}", dtype.name());
        let ratio = n_bytes as f64 / (64 * dtype.row_bytes(4096)) as f64;
        assert!(ratio <= limit, "{}: {ratio}", dtype.name());
    }
}
