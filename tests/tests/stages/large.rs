//! A full-size decoder with random weights, in llama.cpp and here: on demand (`make test-large`), because it needs
//! several gigabytes of disk and memory. `LARGE_DECODER` names the GGUF file, `LARGE_LOGITS` the output of
//! `golden/large_logits.py` for it.

use crate::decoder::{logits, text};
use crate::golden::{best, on_ranks};
use llama3med::device::Device;
use llama3med::device::shard::Loader;
use llama3med::model::decoder::Decoder;
use llama3med::spec::{DecoderSpec, wants};
use quantize::files::folder::Stored;
use safetensors::SafeTensors;
use std::path::PathBuf;

const PIECE_BYTES: u64 = 4 << 20;

/// Root mean square of the differences relative to that of llama.cpp's logits, after every token. Both round
/// activations to 8 bits per block; llama.cpp also rounds the blocks' scales to 16 bits (in Q4_K, 256 activations share
/// one). Where that moves an activation to its next step, the following layers of random weights propagate the
/// difference and add to it (`quantized.rs` has the cost of the rounding itself). Measured: 0.029 for an 8B in Q4_0,
/// 0.027 and 0.037 for a 1B in Q4_0 and Q4_K.
const BOUND: f32 = 0.05;

fn load<D: Device>(stored: &Stored, device: &mut D) -> Decoder<D> {
    let (_, gguf) = stored.header().unwrap();
    let spec = DecoderSpec::read(&gguf).unwrap();
    let mut loader = Loader::new(device, &gguf, &wants(&spec.tensors(), device.shard())).unwrap();
    for range in loader.ranges() {
        for start in range.clone().step_by(PIECE_BYTES as usize) {
            loader.feed(start, &stored.read(start..(start + PIECE_BYTES).min(range.end)).unwrap()).unwrap();
        }
    }
    Decoder::new(spec, &mut loader.finish(device).unwrap()).unwrap()
}

fn rms(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let n = values.len() as f32;
    (values.map(|value| value * value).sum::<f32>() / n).sqrt()
}

#[test]
#[ignore = "needs a model of several gigabytes and llama.cpp: make test-large"]
fn logits_of_a_large_decoder_are_those_of_llama_cpp() {
    let path = |name: &str| PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set")));
    let golden = std::fs::read(path("LARGE_LOGITS")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let numbers =
        |name: &str| golden.tensor(name).unwrap().data().chunks_exact(4).map(|b| <[u8; 4]>::try_from(b).unwrap());
    let ids: Vec<i64> = numbers("ids").map(|bytes| u32::from_le_bytes(bytes) as i64).collect();
    let expected: Vec<f32> = numbers("logits").map(f32::from_le_bytes).collect();
    let stored = Stored::open(&path("LARGE_DECODER")).unwrap();
    let found =
        on_ranks(2, |mut device| logits(&mut load(&stored, &mut device), &mut device, &text(&ids), 0, ids.len()))
            .remove(0);
    assert_eq!(found.len(), expected.len());
    let vocab_size = found.len() / ids.len();
    let mut n_same = 0;
    let mut worst = 0f32;
    for (found, expected) in found.chunks_exact(vocab_size).zip(expected.chunks_exact(vocab_size)) {
        let error = rms(found.iter().zip(expected).map(|(a, b)| a - b)) / rms(expected.iter().copied());
        worst = worst.max(error);
        n_same += usize::from(best(found, vocab_size) == best(expected, vocab_size));
    }
    println!("{} tokens: error at most {worst:.1e}, the same likeliest token after {n_same}", ids.len());
    assert!(worst <= BOUND, "{worst:e} is above {BOUND:e}");
}
