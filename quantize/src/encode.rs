//! Weights into the bytes of a stored type: candle's quantizers (ports of ggml's), and plain casts.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use llama3med::gguf::Dtype;
use llama3med::{Error, Result};

/// The types that this tool writes; the engine reads more.
pub const TYPES: [Dtype; 7] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q4_0, Dtype::Q8_0, Dtype::Q4K, Dtype::Q6K];

/// Encodes whole rows. `name` is the tensor's, for messages.
pub fn encode(name: &str, dtype: Dtype, values: Vec<f32>) -> Result<Vec<u8>> {
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(Error::corrupt("checkpoint", name, format!("expected finite weights, found {value}")));
    }
    let theirs = match dtype {
        Dtype::F32 => return Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Dtype::Bf16 => return Ok(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()),
        Dtype::F16 => return encode_f16(name, &values),
        Dtype::Q4_0 => GgmlDType::Q4_0,
        Dtype::Q8_0 => GgmlDType::Q8_0,
        Dtype::Q4K => GgmlDType::Q4K,
        Dtype::Q6K => GgmlDType::Q6K,
        _ => return Err(Error::Unsupported(format!("tensor {name}: {} is read but not written", dtype.name()))),
    };
    let n = values.len();
    let quantized = Tensor::from_vec(values, n, &Device::Cpu).and_then(|values| QTensor::quantize(&values, theirs));
    let bytes = quantized.and_then(|quantized| Ok(quantized.data()?.into_owned()));
    bytes.map_err(|error| Error::Unsupported(format!("tensor {name}: {} cannot hold it: {error}", dtype.name())))
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
    use llama3med::quant::dequantize;

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
    fn what_no_type_can_hold_is_named() {
        let error = encode("w", Dtype::Q4_0, vec![f32::NAN; 32]).unwrap_err().to_string();
        assert_eq!(error, "checkpoint: w: expected finite weights, found NaN");
        let error = encode("w", Dtype::F16, vec![1e6]).unwrap_err().to_string();
        assert!(error.contains("beyond the range of f16"), "{error}");
    }
}
