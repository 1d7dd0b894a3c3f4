//! Encodes weights as a stored type: candle's quantizers (ports of ggml's) and plain casts; with or without column
//! importance.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use llama3med::file::gguf::Dtype;
use llama3med::{Error, Result};
use std::collections::BTreeMap;

/// How much each column of a matrix counts, by the matrix's name in the GGUF file: (n_cols), 1 on average.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    /// By the name of the matrix.
    pub columns: BTreeMap<String, Vec<f32>>,
}

impl Importance {
    /// The weights of a matrix's columns, if anything entered it.
    pub fn of(&self, matrix: &str) -> Option<&[f32]> {
        self.columns.get(matrix).map(Vec::as_slice)
    }

    /// How many matrices are known.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }
}

/// The types that this tool writes; the engine reads more.
pub const TYPES: [Dtype; 7] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q4_0, Dtype::Q8_0, Dtype::Q4K, Dtype::Q6K];

/// Encodes whole rows with column importance: `importance` (n_cols) weights the squared errors if the type has scales
/// to choose.
pub fn encode_for(name: &str, dtype: Dtype, values: Vec<f32>, importance: &[f32]) -> Result<Vec<u8>> {
    let theirs = match dtype {
        Dtype::Q4K => GgmlDType::Q4K,
        Dtype::Q6K => GgmlDType::Q6K,
        Dtype::Q4_0 => {
            check_finite(name, &values)?;
            let rows = values.chunks_exact(importance.len());
            return Ok(rows.flat_map(|row| q4_0_row(row, importance)).collect());
        }
        _ => return encode(name, dtype, values),
    };
    check_finite(name, &values)?;
    let shape = (values.len() / importance.len(), importance.len());
    let quantized = Tensor::from_vec(values, shape, &Device::Cpu)
        .and_then(|values| QTensor::quantize_imatrix(&values, importance, theirs));
    bytes(name, dtype, quantized)
}

/// Encodes whole rows. `name` is the tensor's, for error messages.
pub fn encode(name: &str, dtype: Dtype, values: Vec<f32>) -> Result<Vec<u8>> {
    check_finite(name, &values)?;
    let theirs = match dtype {
        Dtype::F32 => return Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Dtype::Bf16 => return Ok(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()),
        Dtype::F16 => return encode_f16(name, &values),
        Dtype::Q4_0 => GgmlDType::Q4_0,
        Dtype::Q8_0 => GgmlDType::Q8_0,
        Dtype::Q4K => GgmlDType::Q4K,
        Dtype::Q6K => GgmlDType::Q6K,
        _ => return Err(Error::Unsupported(format!("tensor {name}: {} can be read but not written", dtype.name()))),
    };
    let n = values.len();
    let quantized = Tensor::from_vec(values, n, &Device::Cpu).and_then(|values| QTensor::quantize(&values, theirs));
    bytes(name, dtype, quantized)
}

fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(Error::corrupt("checkpoint", name, format!("expected finite weights, found {value}"))),
        None => Ok(()),
    }
}

fn bytes(name: &str, dtype: Dtype, quantized: candle_core::Result<QTensor>) -> Result<Vec<u8>> {
    let bytes = quantized.and_then(|quantized| Ok(quantized.data()?.into_owned()));
    bytes.map_err(|error| Error::Unsupported(format!("tensor {name}: {} cannot hold it: {error}", dtype.name())))
}

/// One row in Q4_0. A column counts by its importance, and, as in ggml for every format, a large weight counts more
/// than a small one in the same row.
fn q4_0_row(row: &[f32], importance: &[f32]) -> Vec<u8> {
    let variance = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
    let blocks = row.as_chunks::<32>().0.iter().zip(importance.as_chunks::<32>().0);
    blocks
        .flat_map(|(block, importance)| {
            let mut weights = *importance;
            weights.iter_mut().zip(block).for_each(|(weight, x)| *weight *= (variance + x * x).sqrt());
            let scale = f16::from_f32(q4_0_scale(block, &weights));
            let nibble = move |x: f32| (q4_0(x, scale.to_f32()) + 8.0) as u8;
            let (low, high) = block.split_at(16);
            let nibbles = low.iter().zip(high).map(move |(&low, &high)| nibble(low) | nibble(high) << 4);
            scale.to_le_bytes().into_iter().chain(nibbles)
        })
        .collect()
}

/// The nearest of -8 ..= 7 steps.
fn q4_0(x: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { (x / scale).round().clamp(-8.0, 7.0) }
}

/// The scale with the smallest weighted squared error among 19 candidates around -largest / 8, each refitted to its own
/// steps.
///
/// For given steps q, the best scale is sum(w x q) / sum(w q q), and it reduces the error by sum(w x q)^2 / sum(w q q).
fn q4_0_scale(block: &[f32; 32], weights: &[f32; 32]) -> f32 {
    let largest = block.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0);
    let (mut best, mut gained) = (0.0, 0.0);
    for tenth in -9..=9 {
        let scale = -largest / (8.0 + 0.1 * tenth as f32);
        let (mut xq, mut qq) = (0.0, 0.0);
        for (&x, &weight) in block.iter().zip(weights) {
            let q = q4_0(x, scale);
            (xq, qq) = (xq + weight * x * q, qq + weight * q * q);
        }
        if qq > 0.0 && xq * xq > gained * qq {
            (best, gained) = (xq / qq, xq * xq / qq);
        }
    }
    best
}

fn encode_f16(name: &str, values: &[f32]) -> Result<Vec<u8>> {
    if let Some(value) = values.iter().find(|value| value.abs() > f16::MAX.to_f32()) {
        let problem = format!("{value} is beyond the range of f16; use another type");
        return Err(Error::corrupt("checkpoint", name, problem));
    }
    Ok(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use llama3med::device::quant::dequantize;

    #[test]
    fn every_type_comes_back_close() {
        let values: Vec<f32> = (0..512).map(|i| ((i * 7919 % 1009) as f32 / 504.0 - 1.0) * 0.05).collect();
        for dtype in TYPES {
            let bytes = encode("w", dtype, values.clone()).unwrap();
            assert_eq!(bytes.len(), dtype.row_bytes(512));
            let mut back = vec![0.0; 512];
            dequantize(dtype, &bytes, &mut back);
            let worst = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Half a step of 4 bits over -0.05 .. 0.05.
            assert!(worst < 0.05 / 7.0, "{}: {worst}", dtype.name());
        }
    }

    #[test]
    fn important_columns_are_closer_and_the_weighted_error_is_smaller() {
        let n_cols = 512;
        let values: Vec<f32> =
            (0..4 * n_cols).map(|i| ((i * 7919 % 10_007) as f32 / 5003.5 - 1.0).powi(3) * 0.05).collect();
        let importance: Vec<f32> = (0..n_cols).map(|col| if col % 7 == 0 { 6.9 } else { 0.02 }).collect();
        for dtype in [Dtype::Q4_0, Dtype::Q4K, Dtype::Q6K] {
            let error = |bytes: Vec<u8>| {
                assert_eq!(bytes.len(), 4 * dtype.row_bytes(n_cols));
                let mut back = vec![0.0; values.len()];
                dequantize(dtype, &bytes, &mut back);
                let square = |(i, (a, b)): (usize, (&f32, &f32))| importance[i % n_cols] * (a - b) * (a - b);
                values.iter().zip(&back).enumerate().map(square).sum::<f32>()
            };
            let plain = error(encode("w", dtype, values.clone()).unwrap());
            let weighted = error(encode_for("w", dtype, values.clone(), &importance).unwrap());
            assert!(weighted < 0.8 * plain, "{}: {weighted} of {plain}", dtype.name());
        }
    }

    #[test]
    fn blocks_of_zeros_stay_zero() {
        for dtype in [Dtype::Q4_0, Dtype::Q4K, Dtype::Q6K] {
            let mut back = vec![1.0; 512];
            dequantize(dtype, &encode_for("w", dtype, vec![0.0; 512], &[1.0; 256]).unwrap(), &mut back);
            assert!(back.iter().all(|x| *x == 0.0), "{}: {:?}", dtype.name(), &back[..8]);
        }
        assert!(
            encode_for("w", Dtype::Q4K, vec![f32::INFINITY; 256], &[1.0; 256])
                .unwrap_err()
                .to_string()
                .contains("finite")
        );
    }

    #[test]
    fn what_no_type_can_hold_is_named() {
        let error = encode("w", Dtype::Q4_0, vec![f32::NAN; 32]).unwrap_err().to_string();
        assert_eq!(error, "checkpoint: w: expected finite weights, found NaN");
        let error = encode("w", Dtype::F16, vec![1e6]).unwrap_err().to_string();
        assert!(error.contains("beyond the range of f16"), "{error}");
    }
}
