//! The stored number formats, and how to decode them ([`dequantize`]).
//!
//! Block layouts are those of ggml's `ggml-common.h`, with the meaning of its `dequantize_row_*`. Decoding is here;
//! encoding is in the converter (candle's quantizers). How the kernels lay out the blocks is in `layout`.

use crate::dtype::Dtype;
use half::{bf16, f16};

/// Columns that share one scale or two.
pub const BLOCK: usize = 32;

/// Decodes whole blocks of `bytes` into `out`.
#[inline(never)]
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), dtype.row_bytes(out.len()));
    let blocks = bytes.chunks_exact(dtype.block_bytes()).zip(out.chunks_exact_mut(dtype.block_len()));
    for (block, out) in blocks {
        match dtype {
            Dtype::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Dtype::F16 => out[0] = f16_at(block, 0),
            Dtype::Bf16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            Dtype::Q4_0 => dequantize_q4_0(block, out),
            Dtype::Q8_0 => dequantize_q8_0(block, out),
            Dtype::Q4K => dequantize_q4_k(block, out),
            Dtype::Q6K => dequantize_q6_k(block, out),
            _ => dequantize_subs(dtype, block, out),
        }
    }
}

// d: f16, 16 bytes; low nibbles are weights 0..16, high nibbles 16..32; w = d * (q - 8).
fn dequantize_q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (i, q) in block[2..].iter().enumerate() {
        out[i] = d * ((q & 15) as i32 - 8) as f32;
        out[i + 16] = d * ((q >> 4) as i32 - 8) as f32;
    }
}

// d: f16, 32 signed bytes; w = d * q.
fn dequantize_q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = d * (q as i8) as f32;
    }
}

// d, dmin: f16; 12 bytes of 6-bit scales and mins for 8 sub-blocks of 32; 128 bytes of nibbles, 64 weights in each 32 bytes;
// w = d * scale * q - dmin * min.
fn dequantize_q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for sub in 0..8 {
        let (scale, min) = q4_k_scale_min(&block[4..16], sub);
        let (scale, min) = (d * scale as f32, dmin * min as f32);
        let qs = &block[16 + sub / 2 * 32..][..32];
        for (i, q) in qs.iter().enumerate() {
            let q = if sub % 2 == 0 { q & 15 } else { q >> 4 };
            out[sub * 32 + i] = scale * q as f32 - min;
        }
    }
}

/// The 6-bit scale and min of sub-block `sub` of a Q4_K block, from its 12 packed bytes.
pub fn q4_k_scale_min(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        return (packed[sub] & 63, packed[sub + 4] & 63);
    }
    let scale = (packed[sub + 4] & 15) | (packed[sub - 4] >> 6 << 4);
    let min = (packed[sub + 4] >> 4) | (packed[sub] >> 6 << 4);
    (scale, min)
}

// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales for sub-blocks of 16, d: f16; w = d * scale * (q - 32).
fn dequantize_q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16_at(block, 208);
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, at) = (i / 128, i % 128 / 32, i % 32);
        let nibbles = low[half * 64 + quarter % 2 * 32 + at];
        let nibble = if quarter < 2 { nibbles & 15 } else { nibbles >> 4 };
        let pair = high[half * 32 + at] >> (2 * quarter) & 3;
        let q = (nibble | pair << 4) as i32 - 32;
        *out = d * (scales[i / 16] as i8) as f32 * q as f32;
    }
}

fn dequantize_subs(dtype: Dtype, block: &[u8], out: &mut [f32]) {
    for (sub, out) in out.chunks_exact_mut(BLOCK).enumerate() {
        let Sub { factor, scale, offset, min_factor, min, codes } = Sub::read(dtype, block, sub);
        let meaning = |code: i8| if has_codebook(dtype) { IQ4_VALUES[code as usize] } else { code };
        for (col, (out, code)) in out.iter_mut().zip(codes).enumerate() {
            let offset = offset - min_factor * min[col / 16] as f32;
            *out = factor * scale[col / 16] as f32 * meaning(code) as f32 + offset;
        }
    }
}

/// 32 weights of a stored block as integers, for types without their own form: in each half, a weight is `factor *
/// scale * code + (offset - min_factor * min)`, where `code` is an index into the codebook if there is one.
pub(crate) struct Sub {
    pub factor: f32,
    pub scale: [i8; 2],
    pub offset: f32,
    pub min_factor: f32,
    pub min: [u8; 2],
    pub codes: [i8; BLOCK],
}

/// Whether codes are indices into [`IQ4_VALUES`].
pub(crate) const fn has_codebook(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::IQ4_NL | Dtype::IQ4_XS)
}

/// The value of a nibble in the IQ4 types (ggml's `kvalues_iq4nl`).
pub(crate) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Sub {
    /// Sub-block `sub` of a block; 0 if a block has 32 weights.
    pub fn read(dtype: Dtype, block: &[u8], sub: usize) -> Self {
        let plain = |factor, offset, codes| Self { factor, scale: [1; 2], offset, min_factor: 0.0, min: [0; 2], codes };
        // Low nibbles are the first half, high nibbles the second.
        let nibble = |qs: &[u8], col: usize| (qs[col % 16] >> (col / 16 * 4) & 15) as i8;
        let fifth = |qh: &[u8], col: usize| ((qh[col / 8] >> (col % 8) & 1) << 4) as i8;
        // Quants of 2 bits: 128 weights in each 32 bytes.
        let pair = |qs: &[u8], col: usize| (qs[sub / 4 * 32 + col] >> (sub % 4 * 2) & 3) as i8;
        let d = f16_at(block, 0);
        match dtype {
            Dtype::Q4_1 => plain(d, f16_at(block, 2), std::array::from_fn(|col| nibble(&block[4..], col))),
            Dtype::Q5_0 => {
                let code = |col| (nibble(&block[6..], col) | fifth(&block[2..6], col)) - 16;
                plain(d, 0.0, std::array::from_fn(code))
            }
            Dtype::Q5_1 => {
                let code = |col| nibble(&block[8..], col) | fifth(&block[4..8], col);
                plain(d, f16_at(block, 2), std::array::from_fn(code))
            }
            // 16 bytes, each a 4-bit scale and a 4-bit min; 64 bytes of quants; d, dmin: f16.
            Dtype::Q2K => {
                let scales = [block[2 * sub], block[2 * sub + 1]];
                Self {
                    factor: f16_at(block, 80),
                    scale: scales.map(|scale| (scale & 15) as i8),
                    offset: 0.0,
                    min_factor: f16_at(block, 82),
                    min: scales.map(|scale| scale >> 4),
                    codes: std::array::from_fn(|col| pair(&block[16..], col)),
                }
            }
            // 32 bytes of third bits, 64 bytes of quants, 12 bytes of 6-bit scales, d: f16; if the third bit is not
            // set, 4 is subtracted.
            Dtype::Q3K => {
                let code = |col| pair(&block[32..], col) + 4 * (block[col] >> sub & 1) as i8 - 4;
                Self {
                    scale: [0, 1].map(|half| q3_k_scale(&block[96..108], 2 * sub + half)),
                    ..plain(f16_at(block, 108), 0.0, std::array::from_fn(code))
                }
            }
            // Like Q4_K, with 32 bytes of fifth bits between scales and nibbles.
            Dtype::Q5K => {
                let (scale, min) = q4_k_scale_min(&block[4..16], sub);
                let nibbles = &block[48 + sub / 2 * 32..][..32];
                let code = |col| nibbles[col] >> (sub % 2 * 4) & 15 | (block[16 + col] >> sub & 1) << 4;
                Self {
                    factor: d,
                    scale: [scale as i8; 2],
                    offset: 0.0,
                    min_factor: f16_at(block, 2),
                    min: [min; 2],
                    codes: std::array::from_fn(|col| code(col) as i8),
                }
            }
            Dtype::IQ4_NL => plain(d, 0.0, std::array::from_fn(|col| nibble(&block[2..], col))),
            // d: f16, 8 high bit pairs of scales, 8 low nibbles of scales, nibbles of each sub-block.
            Dtype::IQ4_XS => {
                let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * sub) & 3;
                let scale = (block[4 + sub / 2] >> (sub % 2 * 4) & 15) as i8 | (high << 4) as i8;
                Self {
                    scale: [scale - 32; 2],
                    ..plain(d, 0.0, std::array::from_fn(|col| nibble(&block[8 + 16 * sub..], col)))
                }
            }
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Q4_0 | Dtype::Q8_0 | Dtype::Q4K | Dtype::Q6K => {
                unreachable!("{} has a form of its own", dtype.name())
            }
        }
    }
}

// The 6-bit scales of a Q3_K block: 16 low nibbles, then 16 high bit pairs.
fn q3_k_scale(packed: &[u8], at: usize) -> i8 {
    let low = packed[at % 8] >> (at / 8 * 4) & 15;
    let high = packed[8 + at % 4] >> (at / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

pub(crate) fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
