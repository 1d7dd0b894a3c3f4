//! Every hyperparameter of the decoder, read from GGUF metadata and checked.

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::shard::HeadShare;

/// Shape of the Llama decoder. Names as in Llama's reference code.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the gated MLP.
    pub hidden_dim: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Heads that stay on one rank together.
    pub head_unit: usize,
    /// Whether keys and values are kept in f32, as where the weights that they come from are stored as floating-point numbers.
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

/// Refuses numbers that no model has before anything is sized by them.
const MAX_DIM: usize = 1 << 20;

impl Config {
    /// Reads the `llama.*` keys; what is absent follows from the tensors or from llama.cpp's defaults.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        match gguf.get_str("general.architecture")? {
            Some("llama") => {}
            Some(other) => {
                return Err(Error::Unsupported(format!(
                    "{}: general.architecture is {other:?}; this engine runs \"llama\" decoders",
                    gguf.file
                )));
            }
            None => return Err(gguf.missing_key("general.architecture")),
        }
        let dim = required(gguf, "llama.embedding_length")?;
        let n_heads = required(gguf, "llama.attention.head_count")?;
        let n_kv_heads = optional(gguf, "llama.attention.head_count_kv", n_heads)?;
        let head_dim = optional(gguf, "llama.attention.key_length", dim / n_heads)?;
        let config = Self {
            dim,
            hidden_dim: required(gguf, "llama.feed_forward_length")?,
            n_layers: required(gguf, "llama.block_count")?,
            n_heads,
            n_kv_heads,
            head_dim,
            head_unit: HeadShare::unit(gguf.tensor("blk.0.attn_output.weight")?, head_dim),
            exact_cache: gguf.tensor("blk.0.attn_k.weight")?.dtype.block_len() == 1,
            vocab_size: gguf.tensor("token_embd.weight")?.n_rows,
            context_length: required(gguf, "llama.context_length")?,
            norm_eps: gguf.get_f32("llama.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
            rope_theta: gguf.get_f32("llama.rope.freq_base")?.unwrap_or(10_000.0),
            tied: !gguf.tensors.contains_key("output.weight"),
            rope_scaled: gguf.tensors.contains_key("rope_freqs.weight"),
        };
        config.check(gguf)?;
        Ok(config)
    }

    fn check(&self, gguf: &Gguf) -> Result<()> {
        let bad = |key: &str, problem: String| Err(Error::corrupt(&gguf.file, key, problem));
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let problem = format!("{} does not divide head_count {}", self.n_kv_heads, self.n_heads);
            return bad("llama.attention.head_count_kv", problem);
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return bad("llama.attention.key_length", format!("expected an even number, found {}", self.head_dim));
        }
        for (key, expected) in
            [("llama.attention.value_length", self.head_dim), ("llama.rope.dimension_count", self.head_dim)]
        {
            let found = optional(gguf, key, expected)?;
            if found != expected {
                return bad(key, format!("only {expected}, the width of a head, is supported; found {found}"));
            }
        }
        let vocab_size = optional(gguf, "llama.vocab_size", self.vocab_size)?;
        if vocab_size != self.vocab_size {
            let problem = format!("{vocab_size} does not fit the {} rows of token_embd.weight", self.vocab_size);
            return bad("llama.vocab_size", problem);
        }
        if let Some(kind) = gguf.get_str("llama.rope.scaling.type")?
            && kind != "none"
        {
            return bad(
                "llama.rope.scaling.type",
                format!("{kind:?} is not supported (Llama-3.1 scaling is a tensor)"),
            );
        }
        if self.rope_theta <= 0.0 || !(0.0..1.0).contains(&self.norm_eps) {
            return bad(
                "llama.rope.freq_base",
                format!("theta {} or eps {} is absurd", self.rope_theta, self.norm_eps),
            );
        }
        Ok(())
    }
}

fn required(gguf: &Gguf, key: &str) -> Result<usize> {
    let value = gguf.get_usize(key)?.ok_or_else(|| gguf.missing_key(key))?;
    in_bounds(gguf, key, value)
}

fn optional(gguf: &Gguf, key: &str, default: usize) -> Result<usize> {
    in_bounds(gguf, key, gguf.get_usize(key)?.unwrap_or(default))
}

fn in_bounds(gguf: &Gguf, key: &str, value: usize) -> Result<usize> {
    // Contexts of a million positions exist; nothing is allocated for positions that are not used.
    let max = match key {
        "llama.context_length" => 1 << 30,
        "llama.block_count" => 1 << 10,
        _ => MAX_DIM,
    };
    if (1..=max).contains(&value) {
        return Ok(value);
    }
    Err(Error::corrupt(&gguf.file, key, format!("expected 1 to {max}, found {value}")))
}
