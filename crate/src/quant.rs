//! The stored number formats: what their blocks mean.
//!
//! Block layouts as in ggml's `ggml-common.h`; meaning as in its `dequantize_row_*`. Encoding is the converter's (candle's quantizers); decoding is here.

use crate::gguf::Dtype;
use half::{bf16, f16};

/// Decodes whole blocks of `bytes` into `out`.
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

fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    #[test]
    fn decoding_agrees_with_candle() {
        let values: Vec<f32> =
            (0..1024).map(|i| ((i * 7919 % 1000) as f32 / 500.0 - 1.0) * (1 + i / 256) as f32).collect();
        let tensor = Tensor::from_slice(&values, (4, 256), &Device::Cpu).unwrap();
        let pairs = [
            (Dtype::F32, GgmlDType::F32),
            (Dtype::F16, GgmlDType::F16),
            (Dtype::Bf16, GgmlDType::BF16),
            (Dtype::Q4_0, GgmlDType::Q4_0),
            (Dtype::Q8_0, GgmlDType::Q8_0),
            (Dtype::Q4K, GgmlDType::Q4K),
            (Dtype::Q6K, GgmlDType::Q6K),
        ];
        for (dtype, theirs) in pairs {
            let quantized = QTensor::quantize(&tensor, theirs).unwrap();
            let expected: Vec<f32> =
                quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let mut decoded = vec![0.0; 1024];
            dequantize(dtype, &quantized.data().unwrap(), &mut decoded);
            assert_eq!(decoded, expected, "{}", dtype.name());
        }
    }
}
