//! Models with random weights, of any size: for tests, benchmarks, and a demonstration that tells its users that its
//! answers mean nothing.
//!
//! Blocks are generated directly in their stored type, from a few random bytes per weight, so that an 8B model takes
//! little longer than writing its file. Weights have mean 0 and standard deviation 1 / sqrt(row length), and norms are
//! 1: activations neither vanish nor explode.

use crate::convert::types::Types;
use crate::convert::vocabulary::Vocabulary;
use crate::files::about::About;
use crate::files::folder::{Files, Writer};
use crate::files::plan::{Plan, Rows};
use crate::{CLIP_MEAN_STD, OPTIMUS_MEAN_STD, SIGLIP_MEAN_STD};
use half::f16;
use llama3med::device::ops::Activation;
use llama3med::device::rope::llama3_factors;
use llama3med::file::gguf::{Dtype, Header};
use llama3med::file::manifest::{CHUNK_SIZE, Manifest};
use llama3med::picture::Fit;
use llama3med::spec::{Architecture, ConnectorSpec, DecoderSpec, EncoderSpec, Role, Tensor, Tower, VisionSpec};
use llama3med::text::conversation::{LLAMA3_MED_SYSTEM, Template};
use llama3med::text::tokenizer::split;
use llama3med::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// The shapes that [`random`] supports.
pub const SHAPES: [(&str, &str); 8] = [
    ("tiny", "6 layers of 192 and a ViT of 96, scales 64,128,256: opens in a moment"),
    ("1b", "Llama-3.2-1B with CLIP-L/14-336, one scale"),
    ("1b-clip-s2", "Llama-3.2-1B with CLIP-L/14-336, scales 336,672,1008"),
    ("3b-clip-s2", "Llama-3.2-3B with CLIP-L/14-336, scales 336,672,1008"),
    ("8b-clip", "Llama-3-8B with CLIP-L/14-336, one scale"),
    ("8b-clip-s2", "Llama-3-8B with CLIP-L/14-336, scales 336,672,1008: the paper's model"),
    ("8b-siglip-s2", "Llama-3-8B with SigLIP-so400m/14-384, scales 384,768,1152"),
    ("8b-optimus-s2", "Llama-3.1-8B with H-optimus-0, scales 224,672,1344: the pathology model"),
];

/// What to generate.
#[derive(Debug, Clone)]
pub struct Options {
    /// One of [`SHAPES`].
    pub shape: String,
    /// The model folder.
    pub output: PathBuf,
    /// Types of the large matrices.
    pub types: Types,
    /// Chunk size in bytes.
    pub chunk_size: u64,
    /// The same seed gives the same model.
    pub seed: u64,
    /// Name and other texts; empty ones are replaced by suitable defaults.
    pub about: About,
}

impl Options {
    /// Q4_0 throughout, seed 0.
    pub fn new(shape: &str, output: impl Into<PathBuf>) -> Self {
        Self {
            shape: shape.into(),
            output: output.into(),
            types: Dtype::Q4_0.into(),
            chunk_size: CHUNK_SIZE,
            seed: 0,
            about: About::default(),
        }
    }
}

/// Writes a model folder with random weights.
pub fn random(options: &Options) -> Result<Manifest> {
    let (decoder, rope_factors, vision) = shape(&options.shape)?;
    let about = about(options);
    let vocabulary = Vocabulary::parse(tokenizer(decoder.vocab_size), template(), &[], None)?;
    let (mut decoder_keys, mut vision_keys) = (Header::default(), Header::default());
    decoder.write(&about.name, &mut decoder_keys);
    vocabulary.keys(&mut decoder_keys, decoder.vocab_size);
    vision.write(&about.name, &mut vision_keys);
    let (mut decoder_plan, mut encoder_plan) = (Plan::new(decoder_keys), Plan::new(vision_keys));
    let (decoder_tensors, encoder_tensors) = (decoder.tensors(), vision.tensors());
    let mut dtypes = options.types.assign(decoder_tensors.iter().chain(&encoder_tensors))?;
    let encoder_dtypes = dtypes.split_off(decoder_tensors.len());
    if let Some(factors) = rope_factors {
        let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        let rows: Rows = Box::new(move |_| Ok(bytes.clone()));
        decoder_plan.push(DecoderSpec::ROPE_FACTORS, Dtype::F32, &[factors.len()], rows);
    }
    push_all(&mut decoder_plan, decoder_tensors, dtypes, options.seed);
    push_all(&mut encoder_plan, encoder_tensors, encoder_dtypes, !options.seed);
    let source = format!("random {} {}", options.shape, options.seed);
    let plans = Files { decoder: decoder_plan, encoder: Some(encoder_plan) };
    Writer::create(&options.output, options.chunk_size, &plans, source.as_bytes())?.write_all(&plans, &about)
}

fn about(options: &Options) -> About {
    let or = |text: &str, default: String| if text.is_empty() { default } else { text.to_owned() };
    let mut about = options.about.clone();
    about.name = or(&about.name, format!("Random weights ({})", options.shape));
    about.description =
        or(&about.description, "Random weights: a stand-in of the right shape. Its answers mean nothing.".into());
    about.license = or(&about.license, "CC0-1.0".into());
    if about.notices.is_empty() {
        about.notices = vec!["Random weights: this model has learned nothing and its answers mean nothing.".into()];
    }
    if about.suggested_questions.is_empty() {
        about.suggested_questions = ["What does this picture show?", "Is anything unusual?", "Describe the left side."]
            .map(String::from)
            .into();
    }
    about
}

/// The decoder, its rotary frequency factors, and the encoder with its connector.
pub(crate) fn shape(name: &str) -> Result<(DecoderSpec, Option<Vec<f32>>, VisionSpec)> {
    let llama = |dim, hidden_dim, n_layers, n_heads, head_dim: usize, factor: Option<f32>| {
        let decoder = DecoderSpec {
            dim,
            hidden_dim,
            n_layers,
            n_heads,
            n_kv_heads: 8,
            head_dim,
            vocab_size: 128_256,
            context_length: if factor.is_some() { 131_072 } else { 8192 },
            tied: dim < 4096,
            rope_scaled: factor.is_some(),
            ..tiny_decoder()
        };
        (decoder, factor.map(|factor| llama3_factors(head_dim, 500_000.0, factor, 1.0, 4.0, 8192.0)))
    };
    let llama_1b = || llama(2048, 8192, 16, 32, 64, Some(32.0));
    let llama_8b = || llama(4096, 14_336, 32, 32, 128, None);
    let s2 = &[336, 672, 1008];
    let ((decoder, rope_factors), encoder) = match name {
        "tiny" => ((tiny_decoder(), None), tiny_encoder()),
        "1b" => (llama_1b(), clip(&[336])),
        "1b-clip-s2" => (llama_1b(), clip(s2)),
        "3b-clip-s2" => (llama(3072, 8192, 28, 24, 128, Some(32.0)), clip(s2)),
        "8b-clip" => (llama_8b(), clip(&[336])),
        "8b-clip-s2" => (llama_8b(), clip(s2)),
        "8b-siglip-s2" => (llama_8b(), siglip()),
        "8b-optimus-s2" => (llama(4096, 14_336, 32, 32, 128, Some(8.0)), optimus()),
        _ => {
            let known: Vec<_> = SHAPES.iter().map(|(name, _)| *name).collect();
            return Err(Error::Invalid(format!("shape must be one of {}, found {name:?}", known.join(", "))));
        }
    };
    let connector = ConnectorSpec { widths: vec![encoder.dim * encoder.scales.len(), decoder.dim, decoder.dim] };
    Ok((decoder, rope_factors, VisionSpec { encoder, connector }))
}

fn tiny_decoder() -> DecoderSpec {
    DecoderSpec {
        architecture: Architecture::LLAMA,
        dim: 192,
        hidden_dim: 512,
        n_layers: 6,
        n_heads: 6,
        n_kv_heads: 2,
        head_dim: 32,
        vocab_size: 512,
        context_length: 2048,
        norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaled: false,
        tied: false,
        head_unit: 1,
        exact_cache: false,
    }
}

fn tiny_encoder() -> EncoderSpec {
    let scales = vec![64, 128, 256];
    EncoderSpec {
        image_size: 64,
        patch_size: 8,
        dim: 96,
        hidden_dim: 384,
        n_layers: 4,
        n_heads: 3,
        scales,
        ..clip(&[])
    }
}

/// CLIP-L/14-336 up to its second-to-last block.
fn clip(scales: &[usize]) -> EncoderSpec {
    let (mean, std) = CLIP_MEAN_STD;
    EncoderSpec {
        tower: Tower::Clip,
        image_size: 336,
        patch_size: 14,
        dim: 1024,
        hidden_dim: 4096,
        n_layers: 23,
        n_heads: 16,
        head_unit: 1,
        cls_token: true,
        n_reg_tokens: 0,
        embed_prefix: true,
        patch_bias: false,
        norm_pre: true,
        norm: false,
        layer_scale: false,
        gated: false,
        mlp_swapped: false,
        activation: Activation::QuickGelu,
        norm_eps: 1e-5,
        mean,
        std,
        fit: Fit::Crop,
        scales: scales.into(),
        n_drop: 1,
    }
}

/// SigLIP-so400m/14-384 up to its second-to-last block.
fn siglip() -> EncoderSpec {
    let (mean, std) = SIGLIP_MEAN_STD;
    EncoderSpec {
        tower: Tower::Siglip,
        image_size: 384,
        dim: 1152,
        hidden_dim: 4304,
        n_layers: 26,
        cls_token: false,
        embed_prefix: false,
        patch_bias: true,
        norm_pre: false,
        n_drop: 0,
        activation: Activation::GeluTanh,
        norm_eps: 1e-6,
        mean,
        std,
        fit: Fit::Stretch,
        ..clip(&[384, 768, 1152])
    }
}

/// H-optimus-0.
fn optimus() -> EncoderSpec {
    let (mean, std) = OPTIMUS_MEAN_STD;
    EncoderSpec {
        tower: Tower::Timm,
        image_size: 224,
        dim: 1536,
        n_layers: 40,
        n_heads: 24,
        n_reg_tokens: 4,
        embed_prefix: false,
        patch_bias: true,
        norm_pre: false,
        norm: true,
        layer_scale: true,
        gated: true,
        n_drop: 5,
        activation: Activation::Silu,
        norm_eps: 1e-6,
        mean,
        std,
        ..clip(&[224, 672, 1344])
    }
}

fn push_all(plan: &mut Plan, tensors: Vec<Tensor>, dtypes: Vec<Dtype>, seed: u64) {
    // A tensor that no checkpoint contains is not random here either.
    let random = tensors.into_iter().zip(dtypes).filter(|(tensor, _)| tensor.source.is_some());
    for (idx, (tensor, dtype)) in random.enumerate() {
        let (values, n_cols) = (values(&tensor), tensor.n_cols());
        let rows: Rows = Box::new(move |rows| {
            let mut bytes = Vec::with_capacity(rows.len() * dtype.row_bytes(n_cols));
            for row in rows {
                let mut rng = Random::new(seed, (idx as u64) << 40 | row as u64);
                fill(dtype, n_cols, values, &mut rng, &mut bytes);
            }
            Ok(bytes)
        });
        plan.push(&tensor.name, dtype, &tensor.shape, rows);
    }
}

/// The distribution of a tensor's weights.
#[derive(Debug, Clone, Copy)]
enum Values {
    Constant(f32),
    Deviation(f32),
}

fn values(tensor: &Tensor) -> Values {
    let fan_in = match tensor.role {
        Role::Patch => tensor.shape[1..].iter().product(),
        _ => tensor.n_cols(),
    };
    let is_norm = tensor.name.contains("norm") || tensor.name.contains("ln");
    match tensor.role {
        Role::Exact if tensor.name.ends_with(".bias") => Values::Constant(0.0),
        Role::Exact if tensor.name.contains(".ls") => Values::Constant(0.1),
        Role::Exact if is_norm => Values::Constant(1.0),
        Role::Exact => Values::Deviation(0.5),
        Role::Matrix | Role::Patch => Values::Deviation(1.0 / (fan_in as f32).sqrt()),
    }
}

/// splitmix64: random enough for weights, and the same on every machine.
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        random.0 ^= random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform, mean 0, standard deviation 1.
    fn value(&mut self) -> f32 {
        ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * 3f32.sqrt()
    }

    fn bytes(&mut self, n: usize, map: impl Fn(u8) -> u8, out: &mut Vec<u8>) {
        for start in (0..n).step_by(8) {
            let word = self.next().to_le_bytes();
            out.extend(word[..(n - start).min(8)].iter().map(|&byte| map(byte)));
        }
    }
}

/// Appends one row.
fn fill(dtype: Dtype, n_cols: usize, values: Values, rng: &mut Random, out: &mut Vec<u8>) {
    let deviation = match values {
        Values::Constant(value) => {
            assert_eq!(dtype, Dtype::F32, "constant tensors are stored exactly");
            return (0..n_cols).for_each(|_| out.extend(value.to_le_bytes()));
        }
        Values::Deviation(deviation) => deviation,
    };
    let scale = |units: f32| f16::from_f32(deviation / units).to_le_bytes();
    for _ in 0..n_cols / dtype.block_len() {
        match dtype {
            Dtype::F32 => out.extend((deviation * rng.value()).to_le_bytes()),
            Dtype::F16 => out.extend(f16::from_f32(deviation * rng.value()).to_le_bytes()),
            Dtype::Bf16 => out.extend(half::bf16::from_f32(deviation * rng.value()).to_le_bytes()),
            // Nibbles 1 ..= 15 represent -7 ..= 7; a 0 would be a -8 without a counterpart, and give every matrix a
            // nonzero mean.
            Dtype::Q4_0 => {
                out.extend(scale(4.183));
                rng.bytes(16, |byte| byte | ((byte & 15 == 0) as u8) << 3 | ((byte >> 4 == 0) as u8) << 7, out);
            }
            Dtype::Q8_0 => {
                out.extend(scale(73.5));
                rng.bytes(32, |byte| if byte == 128 { 0 } else { byte }, out);
            }
            // All eight scales and mins are 32; dmin = 7.5 d centres the nibbles 0 ..= 15 on 0.
            Dtype::Q4K => {
                let d = deviation / 4.61 / 32.0;
                out.extend(f16::from_f32(d).to_le_bytes());
                out.extend(f16::from_f32(7.5 * d).to_le_bytes());
                out.extend([[160; 8].as_slice(), &[0; 4]].concat());
                rng.bytes(128, |byte| byte, out);
            }
            // Signed scales of 1; 6-bit values around 32.
            Dtype::Q6K => {
                rng.bytes(192, |byte| byte, out);
                out.extend([1; 16]);
                out.extend(scale(18.47));
            }
            _ => unreachable!("`random` refuses {}", dtype.name()),
        }
    }
}

/// A byte-level BPE tokenizer with Llama-3's special tokens as its last 256 ids: all bytes, then as many words of two,
/// three and four letters as fit, each with the merge that makes it.
fn tokenizer(vocab_size: usize) -> String {
    let n_plain = vocab_size - 256;
    let mut tokens: Vec<String> = byte_letters().iter().map(|letter| letter.to_string()).collect();
    let mut merges = Vec::new();
    let mut stems: Vec<String> = ('a'..='z').chain(['Ġ']).map(String::from).collect();
    while tokens.len() < n_plain {
        let mut longer = Vec::new();
        for (stem, last) in stems.iter().flat_map(|stem| ('a'..='z').map(move |last| (stem, last))) {
            if tokens.len() == n_plain {
                break;
            }
            merges.push(json!([stem, last.to_string()]));
            longer.push(format!("{stem}{last}"));
            tokens.push(format!("{stem}{last}"));
        }
        stems = longer;
    }
    let vocab: Map<String, Value> =
        tokens.into_iter().zip(0..).map(|(token, id): (_, u32)| (token, id.into())).collect();
    let added: Vec<Value> = (0..256)
        .map(|i| {
            json!({ "id": n_plain + i, "content": special(i), "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true })
        })
        .collect();
    let byte_level = |use_regex| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let split =
        json!({ "type": "Split", "pattern": { "Regex": split::LLAMA3 }, "behavior": "Isolated", "invert": false });
    let bos = special(0);
    let (bos_piece, bos_ids) = (json!({ "SpecialToken": { "id": bos, "type_id": 0 } }), json!([n_plain]));
    let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let template = json!({
        "type": "TemplateProcessing",
        "single": [bos_piece, sequence("A")],
        "pair": [bos_piece, sequence("A"), sequence("B")],
        "special_tokens": { bos.as_str(): { "id": bos, "ids": bos_ids, "tokens": [bos] } },
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [split, byte_level(false)] },
        "post_processor": template,
        "decoder": byte_level(true),
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                   "vocab": vocab, "merges": merges },
    })
    .to_string()
}

fn template() -> Template {
    Template::Llama3 { system: LLAMA3_MED_SYSTEM.into() }
}

/// Llama-3's special tokens by index.
fn special(i: usize) -> String {
    match i {
        0 => "<|begin_of_text|>".into(),
        1 => "<|end_of_text|>".into(),
        6 => "<|start_header_id|>".into(),
        7 => "<|end_header_id|>".into(),
        8 => "<|eom_id|>".into(),
        9 => "<|eot_id|>".into(),
        _ => format!("<|reserved_special_token_{i}|>"),
    }
}

/// The letter with which byte-level BPE writes each byte (GPT-2's `bytes_to_unicode`).
fn byte_letters() -> Vec<char> {
    let mut next = 256;
    let mut letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => byte as char,
        _ => {
            next += 1;
            char::from_u32(next - 1).expect("below the surrogates")
        }
    };
    (0..=255).map(&mut letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::encode::TYPES;
    use llama3med::device::quant::dequantize;

    #[test]
    fn blocks_have_mean_zero_and_the_deviation_asked_for() {
        for dtype in TYPES {
            let (n, mut bytes) = (1 << 16, Vec::new());
            fill(dtype, n, Values::Deviation(0.02), &mut Random::new(1, 2), &mut bytes);
            let mut values = vec![0.0; n];
            dequantize(dtype, &bytes, &mut values);
            let mean = values.iter().sum::<f32>() / n as f32;
            let deviation = (values.iter().map(|x| x * x).sum::<f32>() / n as f32).sqrt();
            assert!((deviation / 0.02 - 1.0).abs() < 0.03, "{}: {deviation}", dtype.name());
            // Only Q6_K keeps ggml's asymmetric range, by half a step of 18.
            let tolerance = if dtype == Dtype::Q6K { 0.04 } else { 0.012 };
            assert!(mean.abs() < tolerance * 0.02, "{}: {mean}", dtype.name());
        }
    }

    #[test]
    fn the_made_up_tokenizers_are_whole() {
        for vocab_size in [512, 128_256] {
            let json = tokenizer(vocab_size);
            let vocabulary = Vocabulary::parse(json.clone(), template(), &[], None).unwrap();
            assert_eq!(vocabulary.n_tokens(), vocab_size);
            let theirs = tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap();
            let text = "The picture zeigt μm² 🫁\n\tof 12345 cells  <|eot_id|>";
            let ids = theirs.encode(text, true).unwrap();
            assert_eq!(theirs.decode(ids.get_ids(), false).unwrap(), format!("<|begin_of_text|>{text}"));
            assert_eq!(ids.get_ids().last(), Some(&(vocab_size as u32 - 256 + 9)));
        }
    }
}
