//! A second opinion: candle's CLIP, SigLIP and Llama on inputs that are in no golden, and its block formats.

use crate::decoder::{Ready, text};
use crate::golden::{Files, assert_close, folder, header, load, on_ranks};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::text_model::Activation;
use candle_transformers::models::clip::vision_model::{ClipVisionConfig, ClipVisionTransformer};
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use candle_transformers::models::siglip;
use llama3med::device::ops::layer_norm;
use llama3med::device::quant::dequantize;
use llama3med::device::ranks::block_on;
use llama3med::file::gguf::Dtype;
use llama3med::model::encoder::Encoder;
use llama3med::spec::VisionSpec;
use std::collections::HashMap;

/// The tensors of a checkpoint under `prefix`, in f32, with the prefix removed.
fn weights(variant: &str, prefix: &str) -> HashMap<String, Tensor> {
    let mut weights = HashMap::new();
    for entry in std::fs::read_dir(folder(variant).join("checkpoint")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            for (name, tensor) in candle_core::safetensors::load(&path, &Device::Cpu).unwrap() {
                if let Some(name) = name.strip_prefix(prefix) {
                    weights.insert(name.to_string(), tensor.to_dtype(DType::F32).unwrap());
                }
            }
        }
    }
    weights
}

fn builder(variant: &str, prefix: &str) -> VarBuilder<'static> {
    VarBuilder::from_tensors(weights(variant, prefix), DType::F32, &Device::Cpu)
}

fn config(variant: &str, key: &str) -> serde_json::Value {
    let text = std::fs::read(folder(variant).join("checkpoint/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    config[key].clone()
}

/// A tile of noise, and our encoder's output for it.
fn encode(variant: &str) -> (Tensor, Vec<f32>) {
    let files = Files::convert(variant, Dtype::F32);
    let gguf = header("encoder.gguf", &files.encoder);
    let spec = VisionSpec::read(&gguf).unwrap();
    let side = spec.encoder.image_size;
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let tile: Vec<f32> = (0..3 * side * side).map(|_| noise()).collect();
    let features = on_ranks(1, |mut device| {
        let mut tensors = load(&mut device, &gguf, &files.encoder, &spec.tensors());
        let mut encoder = Encoder::new(spec.encoder.clone(), &mut tensors).unwrap();
        block_on(encoder.forward(&mut device, &tile)).unwrap()
    });
    let tile = Tensor::from_vec(tile, (1, 3, side, side), &Device::Cpu).unwrap();
    (tile, features.into_iter().next().unwrap())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn clip_is_that_of_candle() {
    let (tile, features) = encode("clip-s2");
    let config = config("clip-s2", "vision_config");
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let config = ClipVisionConfig {
        embed_dim: number("hidden_size"),
        activation: Activation::QuickGelu,
        intermediate_size: number("intermediate_size"),
        num_hidden_layers: number("num_hidden_layers"),
        num_attention_heads: number("num_attention_heads"),
        projection_dim: 0,
        num_channels: 3,
        image_size: number("image_size"),
        patch_size: number("patch_size"),
    };
    let prefix = "vision_tower._vision_tower.vision_model.";
    let clip = ClipVisionTransformer::new(builder("clip-s2", prefix), &config).unwrap();
    let states = clip.output_hidden_states(&tile).unwrap();
    // The outputs of every block, then the pooled one: the second-to-last block is third from the end.
    let features_of = |state: &Tensor| values(&state.narrow(1, 1, state.dim(1).unwrap() - 1).unwrap());
    assert_close("CLIP against candle", &features, &features_of(&states[states.len() - 3]), 2e-5);
}

#[test]
fn siglip_is_that_of_candle() {
    let (tile, features) = encode("siglip");
    let mut config: siglip::VisionConfig = serde_json::from_value(config("siglip", "vision_config")).unwrap();
    config.num_hidden_layers -= 1;
    let prefix = "vision_tower._vision_tower.vision_model.";
    // candle returns the output after the final norm.
    let wrapped = weights("siglip", prefix);
    let norm = |part: &str| values(&wrapped[&format!("post_layernorm.{part}")]);
    let mut normed = vec![0.0; features.len()];
    layer_norm(&features, &norm("weight"), &norm("bias"), 1e-6, &mut normed);
    let model = siglip::VisionModel::new(&config, false, builder("siglip", prefix)).unwrap();
    assert_close("SigLIP against candle", &normed, &values(&model.forward(&tile).unwrap()), 2e-5);
}

#[test]
fn llama_is_that_of_candle() {
    let ids: Vec<u32> = (0..130).map(|i| i * 97 % 378).collect();
    let files = Files::convert("clip-s2", Dtype::F32);
    let found = on_ranks(1, |device| Ready::new(device, &files).logits(&text(&ids), 0, 1));
    let config: LlamaConfig = serde_json::from_value(config("clip-s2", "text_config")).unwrap();
    let config = config.into_config(false);
    let llama = Llama::load(builder("clip-s2", "language_model."), &config).unwrap();
    let mut cache = Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
    let expected = llama.forward(&Tensor::new(&ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap(), 0, &mut cache);
    assert_close("Llama against candle", &found[0], &values(&expected.unwrap()), 1e-4);
}

#[test]
fn stored_blocks_mean_what_candle_says() {
    let values: Vec<f32> = (0..1024).map(|i| ((i * 7919 % 1000) as f32 / 500.0 - 1.0) * (1 + i / 256) as f32).collect();
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
        let expected: Vec<f32> = quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let mut decoded = vec![0.0; 1024];
        dequantize(dtype, &quantized.data().unwrap(), &mut decoded);
        assert_eq!(decoded, expected, "{}", dtype.name());
    }
}
