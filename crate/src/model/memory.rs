//! How much memory a rank needs for a model, from the file headers alone: the number of ranks is known before any
//! weights are read.

use crate::device::cpu::kv_cache::KvCache;
use crate::device::cpu::matrix::Matrix;
use crate::device::shard::{N_PARTS, Shard, Want};
use crate::error::Result;
use crate::file::gguf::Gguf;
use crate::model::MAX_IMAGES;
use crate::model::decoder::MAX_TOKENS;
use crate::model::session::DEFAULT_CONTEXT;
use crate::spec::{DecoderSpec, EncoderSpec, VisionSpec, wants};

/// Memory limit of one rank. A wasm memory may have 4 GiB; the rest is for temporary allocations and fragmentation.
pub const MAX_RANK_BYTES: u64 = 3_300_000_000;

/// Upper limit for the number of ranks.
pub const MAX_RANKS: usize = 64;

/// Bytes of the parsed header and the tokenizer made from it, per byte of the decoder file's header; on the first rank.
const BYTES_PER_HEADER_BYTE: u64 = 4;

/// Bytes that `wants` take in memory, in the kernels' layouts, from the header alone.
fn held_bytes(gguf: &Gguf, wants: &[Want]) -> Result<u64> {
    let bytes_of = |want: &Want| Ok(Matrix::held_bytes(gguf.tensor(&want.name)?.dtype, want.rows.len(), &want.cols));
    wants.iter().map(bytes_of).sum()
}

/// Bytes of a decoder's buffers for `n_tokens`, roughly.
pub fn decoder_buffers(spec: &DecoderSpec, shard: Shard, n_tokens: usize) -> usize {
    let share = spec.heads().share(shard);
    let (q, kv) = (share.heads.len() * spec.head_dim, share.kv_heads.len() * spec.head_dim);
    let hidden = shard.share(spec.hidden_dim, 32).len();
    // x, xb, the parts of a sum, and a sum on its way to another rank and back.
    let whole = spec.dim * (2 + N_PARTS + 2);
    n_tokens * size_of::<f32>() * (whole + 2 * (q + kv + hidden) + spec.dim.max(hidden))
}

/// Bytes of an encoder's buffers for a tile, roughly.
pub fn encoder_buffers(spec: &EncoderSpec, shard: Shard) -> usize {
    let EncoderSpec { dim, n_heads, hidden_dim, .. } = *spec;
    let heads = spec.heads().share(shard).heads.len() * (dim / n_heads);
    let hidden = shard.share(hidden_dim, 32).len();
    // x, xb, the features, the parts of a sum, and a sum on its way to another rank and back.
    let whole = dim * (3 + N_PARTS + 2);
    let patches = spec.grid() * spec.grid() * 3 * spec.patch_len();
    size_of::<f32>() * (spec.n_positions() * (whole + 4 * heads + 2 * hidden + dim.max(hidden)) + patches)
}

/// Bytes that one rank holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Weights, in the forms that the kernels read.
    pub weights: u64,
    /// Keys and values, per position.
    pub kv_per_position: u64,
    /// An estimate for the buffers of the forward passes, encoded pictures and the tokenizer.
    pub work: u64,
}

impl Held {
    /// For one rank of the model in these files, either of which may be missing.
    pub fn of(decoder: Option<&Gguf>, encoder: Option<&Gguf>, shard: Shard) -> Result<Self> {
        let mut held = Self::default();
        let mut dim = 0;
        if let Some(gguf) = decoder {
            let spec = DecoderSpec::read(gguf)?;
            let kv_heads = spec.heads().share(shard).kv_heads;
            dim = spec.dim;
            held.weights += held_bytes(gguf, &wants(&spec.tensors(), shard))?;
            held.kv_per_position =
                (spec.n_layers * KvCache::bytes_per_position(kv_heads.len(), spec.head_dim, spec.exact_cache)) as u64;
            held.work += decoder_buffers(&spec, shard, MAX_TOKENS) as u64;
            if shard.rank == 0 {
                held.work += BYTES_PER_HEADER_BYTE * gguf.data_offset;
            }
        }
        if let Some(gguf) = encoder {
            let vision = VisionSpec::read(gguf)?;
            held.weights += held_bytes(gguf, &wants(&vision.tensors(), shard))?;
            let (spec, scales) = (&vision.encoder, vision.encoder.scales());
            // Pixels in transit and in place; features of all scales, before and after merging; image tokens.
            let n_pixels = 3 * scales.size() * scales.size();
            let n_features = spec.n_tokens() * spec.dim * scales.scales.len();
            let n_values = 2 * n_pixels + 3 * n_features + MAX_IMAGES * spec.n_tokens() * dim;
            held.work += (encoder_buffers(spec, shard) + n_values * size_of::<f32>()) as u64;
        }
        Ok(held)
    }

    /// The maximum over `n_ranks` ranks, for each number separately.
    pub fn most(decoder: Option<&Gguf>, encoder: Option<&Gguf>, n_ranks: usize) -> Result<Self> {
        let mut most = Self::default();
        for rank in 0..n_ranks {
            let held = Self::of(decoder, encoder, Shard { rank, n_ranks })?;
            most.weights = most.weights.max(held.weights);
            most.kv_per_position = most.kv_per_position.max(held.kv_per_position);
            most.work = most.work.max(held.work);
        }
        Ok(most)
    }

    /// The total, if all conversations together have `context` tokens.
    pub fn total(&self, context: usize) -> u64 {
        self.weights + self.kv_per_position * context as u64 + self.work
    }
}

/// The smallest number of ranks for which none exceeds [`MAX_RANK_BYTES`]; `context` as for
/// [`crate::model::session::Session::new`].
pub fn least_ranks(decoder: Option<&Gguf>, encoder: Option<&Gguf>, context: Option<usize>) -> Result<usize> {
    let mut context = context.unwrap_or(DEFAULT_CONTEXT);
    if let Some(gguf) = decoder {
        context = context.min(DecoderSpec::read(gguf)?.context_length);
    }
    for n_ranks in 1..MAX_RANKS {
        if Held::most(decoder, encoder, n_ranks)?.total(context) <= MAX_RANK_BYTES {
            return Ok(n_ranks);
        }
    }
    Ok(MAX_RANKS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::gguf::{Dtype, Header};

    /// The header of a Llama of `n_layers` layers with `n_kv_heads` of 32 heads, whose matrices are of type `dtype`,
    /// and the size of its file.
    fn llama(n_layers: usize, n_kv_heads: usize, dtype: Dtype) -> (Gguf, u64) {
        let (dim, hidden, vocab) = (4096, 11008, 32000);
        let mut header = Header::default();
        header.string("general.architecture", "llama");
        for (key, value) in [
            ("context_length", 8192),
            ("embedding_length", dim),
            ("block_count", n_layers),
            ("feed_forward_length", hidden),
            ("attention.head_count", 32),
            ("attention.head_count_kv", n_kv_heads),
        ] {
            header.u32(&format!("llama.{key}"), value as u32);
        }
        header.tensor("token_embd.weight", dtype, &[vocab, dim]);
        header.tensor("output_norm.weight", Dtype::F32, &[dim]);
        header.tensor("output.weight", dtype, &[vocab, dim]);
        for layer in 0..n_layers {
            let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
            for tensor in ["attn_norm", "ffn_norm"] {
                header.tensor(&name(tensor), Dtype::F32, &[dim]);
            }
            let kv = n_kv_heads * dim / 32;
            for (tensor, rows, cols) in [
                ("attn_q", dim, dim),
                ("attn_k", kv, dim),
                ("attn_v", kv, dim),
                ("attn_output", dim, dim),
                ("ffn_gate", hidden, dim),
                ("ffn_up", hidden, dim),
                ("ffn_down", dim, hidden),
            ] {
                header.tensor(&name(tensor), dtype, &[rows, cols]);
            }
        }
        let bytes = header.to_bytes();
        let size = bytes.len() as u64 + header.data_bytes();
        (Gguf::parse("decoder.gguf", &bytes, size).unwrap().unwrap(), size)
    }

    #[test]
    fn weights_take_little_more_than_their_file() {
        for dtype in Dtype::ALL {
            let (gguf, size) = llama(2, 32, dtype);
            let held = Held::of(Some(&gguf), None, Shard { rank: 0, n_ranks: 1 }).unwrap();
            let ratio = held.weights as f64 / size as f64;
            assert!((0.99..1.32).contains(&ratio), "{}: {ratio}", dtype.name());
        }
    }

    #[test]
    fn ranks_follow_from_what_is_held() {
        let least = |n_layers, n_kv_heads, dtype, context| {
            least_ranks(Some(&llama(n_layers, n_kv_heads, dtype).0), None, context).unwrap()
        };
        // A 7B: 2.2 GB of Q2_K; 3.3 GB of F16 in 6 layers; 3.8 GB of Q4_0 plus 2 GB of keys and values.
        assert_eq!(least(32, 8, Dtype::Q2K, None), 1);
        assert_eq!(least(7, 32, Dtype::F16, None), 2);
        assert_eq!(least(32, 32, Dtype::Q4_0, None), 2);
        assert_eq!(least(32, 32, Dtype::Q8_0, None), 4);
        // Q3_K: 2.9 GB of weights alone fit; together with the keys and values of a long conversation, at 512 KiB per
        // token, they do not.
        assert_eq!([256, 4096].map(|context| least(32, 32, Dtype::Q3K, Some(context))), [1, 2]);
        // A context beyond the file's limit needs no room.
        assert_eq!(least(2, 32, Dtype::Q4_0, Some(1 << 40)), 1);
    }

    #[test]
    fn ranks_share_weights_keys_and_values() {
        let (gguf, _) = llama(4, 8, Dtype::Q5K);
        let one = Held::most(Some(&gguf), None, 1).unwrap();
        let four = Held::most(Some(&gguf), None, 4).unwrap();
        assert_eq!(one.kv_per_position, (4 * 2 * 8 * (128 * 2 + 4)) as u64);
        assert_eq!(four.kv_per_position, one.kv_per_position / 4);
        assert!((0.25..0.27).contains(&(four.weights as f64 / one.weights as f64)));
    }
}
