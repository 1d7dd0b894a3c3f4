//! f32 arithmetic in lanes of 8: written once as plain loops over arrays, which the compiler turns into wasm simd128 and AVX2.
//!
//! No fused multiply-add and no reordering, so that every build gives the same bits.

use crate::gguf::Dtype;
use crate::quant::GROUP;
use half::{bf16, f16};

/// Makes `$name`, which runs `$body` compiled for AVX2 where the processor has it. `$body` must be `#[inline(always)]`.
macro_rules! vectorized {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? { $body:expr }) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body
        }
    };
}
pub(crate) use vectorized;

/// 32 activations in 8 bits: `scale * quant`.
#[derive(Debug, Clone, Copy)]
pub struct Quantized {
    /// -127 to 127.
    pub quants: [i8; 32],
    /// NaN where an activation is not finite: so is then every product.
    pub scale: f32,
    /// Sums of the first and the last 16 quants.
    pub sums: [i16; 2],
}

vectorized! {
    /// Quantizes a block, rounding to nearest, ties to even.
    pub fn quantize(x: &[f32; 32]) -> Quantized { quantize_lanes(x) }
}

#[inline(always)]
fn quantize_lanes(x: &[f32; 32]) -> Quantized {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
    const MAGIC: f32 = 12582912.0;
    let (mut max, mut poison) = ([0.0f32; 8], [0.0f32; 8]);
    for x in x.as_chunks::<8>().0 {
        for lane in 0..8 {
            let magnitude = x[lane].abs();
            max[lane] = if magnitude > max[lane] { magnitude } else { max[lane] };
            poison[lane] += x[lane] * 0.0;
        }
    }
    let max = max.iter().fold(0.0f32, |a, &b| if b > a { b } else { a });
    let poison: f32 = poison.iter().sum();
    let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
    let mut wide = [0i32; 32];
    for i in 0..32 {
        wide[i] = (x[i] * inverse + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
    }
    // An infinite `inverse` (denormal activations) is as good as zero.
    let finite = if inverse.is_finite() { 1 } else { 0 };
    let quants: [i8; 32] = std::array::from_fn(|i| (wide[i] * finite) as i8);
    let sums = [0, 16].map(|first| quants[first..first + 16].iter().map(|&quant| quant as i16).sum());
    Quantized { quants, scale: max / 127.0 + poison, sums }
}

/// Decodes one stored f32, f16 or bf16.
pub fn decode(dtype: Dtype, bytes: &[u8]) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Dtype::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
}

/// Columns whose products are added up before they join the result: shorter sums lose fewer digits, and the decoded panel stays in the cache.
const COLUMNS: usize = 256;

/// Tokens that a panel meets at a time.
const TOKENS: usize = 4;

/// `out` (n_tokens, n_rows) = `x` (n_tokens, n_cols) times the transposed matrix in `bytes`: panels of 8 rows, column after column.
pub fn matmul(dtype: Dtype, bytes: &[u8], n_rows: usize, x: &[f32], n_cols: usize, out: &mut [f32]) {
    out.fill(0.0);
    let size = dtype.block_bytes();
    let mut panel = [[0.0; 8]; COLUMNS];
    for (idx, rows) in bytes.chunks(GROUP * n_cols * size).enumerate() {
        let (first_row, width) = (idx * GROUP, rows.len() / (n_cols * size));
        for (chunk, columns) in rows.chunks(COLUMNS * width * size).enumerate() {
            let first_col = chunk * COLUMNS;
            let n = columns.len() / (width * size);
            unpack(dtype, columns, width, &mut panel);
            let mut tokens = x.chunks_exact(n_cols).map(|x| &x[first_col..first_col + n]).enumerate();
            while let Some((token, first)) = tokens.next() {
                let mut group = [first; TOKENS];
                let mut n_tokens = 1;
                for slot in &mut group[1..] {
                    if let Some((_, x)) = tokens.next() {
                        *slot = x;
                        n_tokens += 1;
                    }
                }
                let sums = dot_panel(&panel[..n], &group);
                for (place, sums) in sums[..n_tokens].iter().enumerate() {
                    let out = &mut out[(token + place) * n_rows + first_row..][..width];
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                }
            }
        }
    }
}

vectorized! {
    /// Decodes columns of `width` rows into lanes; lanes without a row keep what they held.
    fn unpack(dtype: Dtype, columns: &[u8], width: usize, panel: &mut [[f32; 8]; COLUMNS]) {
        unpack_lanes(dtype, columns, width, panel)
    }
}

#[inline(always)]
fn unpack_lanes(dtype: Dtype, columns: &[u8], width: usize, panel: &mut [[f32; 8]; COLUMNS]) {
    let size = dtype.block_bytes();
    for (lanes, column) in panel.iter_mut().zip(columns.chunks_exact(width * size)) {
        for (lane, bytes) in lanes.iter_mut().zip(column.chunks_exact(size)) {
            *lane = decode(dtype, bytes);
        }
    }
}

vectorized! {
    /// The products of 8 rows with some tokens, column after column.
    fn dot_panel(panel: &[[f32; 8]], x: &[&[f32]; TOKENS]) -> [[f32; 8]; TOKENS] { dot_panel_lanes(panel, x) }
}

#[inline(always)]
fn dot_panel_lanes(panel: &[[f32; 8]], x: &[&[f32]; TOKENS]) -> [[f32; 8]; TOKENS] {
    let mut sums = [[0.0; 8]; TOKENS];
    let x = x.map(|x| &x[..panel.len()]);
    for (col, weights) in panel.iter().enumerate() {
        for (sums, x) in sums.iter_mut().zip(x) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight * x[col];
            }
        }
    }
    sums
}
