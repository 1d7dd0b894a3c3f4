//! The decoder, of Llama's architecture or a similar one: keys and tensors of `decoder.gguf`.

use super::{BLOCK_UNIT, HeadSplit, Linear, Role, Split, Tensor};
use crate::device::rope::Pairs;
use crate::device::shard::{HeadShare, Shard};
use crate::error::{Error, Result};
use crate::file::gguf::{ARCHITECTURE_KEY, Gguf, Header};
use crate::spec::watch::{Part, Place, Point};
use std::ops::Range;

/// The differences between the Llama-like architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture {
    /// llama.cpp's name, the prefix of the keys.
    pub name: &'static str,
    /// Its name for messages.
    pub title: &'static str,
    /// Whether the matrices q, k and v have biases.
    pub qkv_bias: bool,
    /// Which values of a head are rotated together. For neighbours, the rows of wq and wk are permuted in files.
    pub pairs: Pairs,
}

impl Architecture {
    /// Llama, Mistral and their descendants.
    pub const LLAMA: Self = Self { name: "llama", title: "Llama", qkv_bias: false, pairs: Pairs::Neighbours };
    /// Qwen2 and Qwen2.5.
    pub const QWEN2: Self = Self { name: "qwen2", title: "Qwen2", qkv_bias: true, pairs: Pairs::Halves };
    /// All that this engine supports.
    pub const ALL: [Self; 2] = [Self::LLAMA, Self::QWEN2];

    /// The architecture of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.name == name)
    }

    /// The architecture that a file names.
    fn read(gguf: &Gguf) -> Result<Self> {
        let name = gguf.architecture()?.ok_or_else(|| gguf.missing_key(ARCHITECTURE_KEY))?;
        Self::named(name).ok_or_else(|| {
            let known = Self::ALL.map(|architecture| format!("{:?}", architecture.name)).join(" and ");
            let problem = format!("{ARCHITECTURE_KEY} is {name:?}; this engine runs {known} decoders");
            Error::Unsupported(format!("{}: {problem}", gguf.file))
        })
    }
}

/// Shape of the decoder. Names as in Llama's reference code.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// Which of the Llama-like architectures it is.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the gated MLP.
    pub hidden_dim: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Heads that stay on one rank together. Depends on how a file stores its matrices; 1 if there is no file yet.
    pub head_unit: usize,
    /// Whether keys and values are kept in f32, as they are if the weights that produce them are stored as
    /// floating-point numbers.
    pub exact_cache: bool,
    /// Rows of the embedding table, padding included.
    pub vocab_size: usize,
    /// Positions that the model was trained for.
    pub context_length: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Whether the output matrix is the embedding table.
    pub tied: bool,
    /// Whether the file has factors for the rotary frequencies (Llama-3.1 scaling).
    pub rope_scaled: bool,
}

/// Larger numbers are refused before anything is sized by them: no model has them.
const MAX_DIM: usize = 1 << 20;

/// Rows of the vocabulary are split at multiples of this number.
const VOCAB_UNIT: usize = 4;

impl DecoderSpec {
    /// The embedding table.
    pub const TOKEN_EMBEDDING: &str = "token_embd.weight";
    /// The norm before the output matrix.
    pub const OUTPUT_NORM: &str = "output_norm.weight";
    /// The output matrix.
    pub const OUTPUT: &str = "output.weight";
    /// The factors of the rotary frequencies; no checkpoint holds them.
    pub const ROPE_FACTORS: &str = "rope_freqs.weight";

    /// Name of a layer's tensor in the file, without `.weight`.
    pub fn name(layer: usize, tensor: &str) -> String {
        format!("blk.{layer}.{tensor}")
    }

    /// Reads the architecture's keys (`llama.*`); for missing ones, the tensors or llama.cpp's defaults decide.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let architecture = Architecture::read(gguf)?;
        let keys = Keys { gguf, architecture };
        let dim = keys.required("embedding_length")?;
        let n_heads = keys.required("attention.head_count")?;
        let n_kv_heads = keys.optional("attention.head_count_kv", n_heads)?;
        let head_dim = keys.optional("attention.key_length", dim / n_heads)?;
        let stored = |tensor: &str| gguf.tensor(&format!("{}.weight", Self::name(0, tensor)));
        let spec = Self {
            architecture,
            dim,
            hidden_dim: keys.required("feed_forward_length")?,
            n_layers: keys.required("block_count")?,
            n_heads,
            n_kv_heads,
            head_dim,
            head_unit: HeadShare::unit(stored("attn_output")?, head_dim),
            exact_cache: stored("attn_k")?.dtype.block_len() == 1,
            vocab_size: gguf.tensor(Self::TOKEN_EMBEDDING)?.n_rows,
            context_length: keys.required("context_length")?,
            norm_eps: gguf.get_f32(&keys.name("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
            rope_theta: gguf.get_f32(&keys.name("rope.freq_base"))?.unwrap_or(10_000.0),
            tied: !gguf.tensors.contains_key(Self::OUTPUT),
            rope_scaled: gguf.tensors.contains_key(Self::ROPE_FACTORS),
        };
        spec.check(keys)?;
        Ok(spec)
    }

    fn check(&self, keys: Keys) -> Result<()> {
        let bad = |key: &str, problem: String| Err(Error::corrupt(&keys.gguf.file, keys.name(key), problem));
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let problem = format!("{} does not divide head_count {}", self.n_kv_heads, self.n_heads);
            return bad("attention.head_count_kv", problem);
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return bad("attention.key_length", format!("expected an even number, found {}", self.head_dim));
        }
        for key in ["attention.value_length", "rope.dimension_count"] {
            let (expected, found) = (self.head_dim, keys.optional(key, self.head_dim)?);
            if found != expected {
                return bad(key, format!("only {expected}, the width of a head, is supported; found {found}"));
            }
        }
        let vocab_size = keys.optional("vocab_size", self.vocab_size)?;
        if vocab_size != self.vocab_size {
            let problem = format!("{vocab_size} does not fit the {} rows of token_embd.weight", self.vocab_size);
            return bad("vocab_size", problem);
        }
        if let Some(kind) = keys.gguf.get_str(&keys.name("rope.scaling.type"))?
            && kind != "none"
        {
            return bad("rope.scaling.type", format!("{kind:?} is not supported (Llama-3.1 scaling is a tensor)"));
        }
        if self.rope_theta <= 0.0 || !(0.0..1.0).contains(&self.norm_eps) {
            let problem = format!("theta {} or eps {} is absurd", self.rope_theta, self.norm_eps);
            return bad("rope.freq_base", problem);
        }
        Ok(())
    }

    /// Writes the keys of a decoder named `name`, except those of its vocabulary.
    pub fn write(&self, name: &str, header: &mut Header) {
        let key = |key: &str| format!("{}.{key}", self.architecture.name);
        header
            .of_model(self.architecture.name, name)
            .u32(&key("block_count"), self.n_layers as u32)
            .u32(&key("context_length"), self.context_length as u32)
            .u32(&key("embedding_length"), self.dim as u32)
            .u32(&key("feed_forward_length"), self.hidden_dim as u32)
            .u32(&key("attention.head_count"), self.n_heads as u32)
            .u32(&key("attention.head_count_kv"), self.n_kv_heads as u32)
            .u32(&key("attention.key_length"), self.head_dim as u32)
            .u32(&key("attention.value_length"), self.head_dim as u32)
            .f32(&key("attention.layer_norm_rms_epsilon"), self.norm_eps)
            .f32(&key("rope.freq_base"), self.rope_theta)
            .u32(&key("rope.dimension_count"), self.head_dim as u32)
            .u32(&key("vocab_size"), self.vocab_size as u32);
    }

    /// How ranks split the heads.
    pub fn heads(&self) -> HeadSplit {
        let Self { n_heads, n_kv_heads, head_dim, head_unit, .. } = *self;
        HeadSplit { n_heads, n_kv_heads, head_dim, unit: head_unit }
    }

    /// One rank's rows of the vocabulary.
    pub fn vocab(&self, shard: Shard) -> Range<usize> {
        shard.share(self.vocab_size, VOCAB_UNIT)
    }

    /// The tensors of `decoder.gguf`.
    pub fn tensors(&self) -> Vec<Tensor> {
        let output = Some(Place { part: Part::Decoder, layer: self.n_layers, point: Point::Mlp });
        let vocabulary = |name: &str, input, source: &str| Tensor {
            split: Split::Rows(VOCAB_UNIT),
            input,
            ..Tensor::new(name, Role::Matrix, &[self.vocab_size, self.dim], source)
        };
        let mut table = Vec::new();
        if self.rope_scaled {
            table.push(Tensor { source: None, ..Tensor::exact(Self::ROPE_FACTORS, &[self.head_dim / 2], "") });
        }
        let embeds = vocabulary(Self::TOKEN_EMBEDDING, output.filter(|_| self.tied), "embed_tokens.weight");
        table.extend([embeds, Tensor::exact(Self::OUTPUT_NORM, &[self.dim], "norm.weight")]);
        if !self.tied {
            table.push(vocabulary(Self::OUTPUT, output, "lm_head.weight"));
        }
        (0..self.n_layers).for_each(|layer| self.layer(layer, &mut table));
        table
    }

    fn layer(&self, layer: usize, table: &mut Vec<Tensor>) {
        let Self { dim, hidden_dim, head_dim, architecture, .. } = *self;
        let (q, kv, heads) = (self.n_heads * head_dim, self.n_kv_heads * head_dim, self.heads());
        let is_permuted = architecture.pairs == Pairs::Neighbours;
        let norm = |name: &str, source: &str| {
            let (name, source) = (Self::name(layer, name), format!("layers.{layer}.{source}"));
            Tensor::exact(format!("{name}.weight"), &[dim], format!("{source}.weight"))
        };
        let linear = |(name, shape, split, point, source): (&str, [usize; 2], Split, Point, &str)| {
            let layer = Linear {
                name: Self::name(layer, name),
                shape,
                split,
                input: Place { part: Part::Decoder, layer, point },
                source: format!("layers.{layer}.{source}"),
                stack: (0, 1),
                permuted: (is_permuted && matches!(name, "attn_q" | "attn_k")).then_some(head_dim),
                has_bias: architecture.qkv_bias && point == Point::Attention,
            };
            layer.tensors()
        };
        let attention = [
            ("attn_q", [q, dim], heads.queries(), Point::Attention, "self_attn.q_proj"),
            ("attn_k", [kv, dim], Split::KvRows(heads), Point::Attention, "self_attn.k_proj"),
            ("attn_v", [kv, dim], Split::KvRows(heads), Point::Attention, "self_attn.v_proj"),
            ("attn_output", [dim, q], heads.outputs(), Point::Heads, "self_attn.o_proj"),
        ];
        let mlp = [
            ("ffn_gate", [hidden_dim, dim], Split::Rows(BLOCK_UNIT), Point::Mlp, "mlp.gate_proj"),
            ("ffn_up", [hidden_dim, dim], Split::Rows(BLOCK_UNIT), Point::Mlp, "mlp.up_proj"),
            ("ffn_down", [dim, hidden_dim], Split::Cols(BLOCK_UNIT), Point::Hidden, "mlp.down_proj"),
        ];
        table.push(norm("attn_norm", "input_layernorm"));
        table.extend(attention.into_iter().flat_map(linear));
        table.push(norm("ffn_norm", "post_attention_layernorm"));
        table.extend(mlp.into_iter().flat_map(linear));
    }
}

/// The keys of a decoder, which all begin with its architecture.
#[derive(Clone, Copy)]
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: Architecture,
}

impl Keys<'_> {
    fn name(self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    fn required(self, key: &str) -> Result<usize> {
        let name = self.name(key);
        let value = self.gguf.get_usize(&name)?.ok_or_else(|| self.gguf.missing_key(&name))?;
        self.in_bounds(key, value)
    }

    fn optional(self, key: &str, default: usize) -> Result<usize> {
        self.in_bounds(key, self.gguf.get_usize(&self.name(key))?.unwrap_or(default))
    }

    fn in_bounds(self, key: &str, value: usize) -> Result<usize> {
        // Contexts of a million positions exist; nothing is allocated for unused positions.
        let max = match key {
            "context_length" => 1 << 30,
            "block_count" => 1 << 10,
            _ => MAX_DIM,
        };
        if (1..=max).contains(&value) {
            return Ok(value);
        }
        Err(Error::corrupt(&self.gguf.file, self.name(key), format!("expected 1 to {max}, found {value}")))
    }
}
