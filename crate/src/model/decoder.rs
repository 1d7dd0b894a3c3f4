//! The Llama decoder (Llama 3, arXiv 2407.21783) as one rank runs it: token and image embeddings in, logits out.
//!
//! Tensor-parallel: wq, wk, wv, w1, w3 are split by rows, wo and w2 by columns, so that each layer needs two sums over
//! the ranks; the embedding table and the output matrix are split by vocabulary rows.

use crate::device::attention::{Heads, attend};
use crate::device::linear::{Linear, LinearSum, SumState, product};
use crate::device::matrix::{Activations, Matrix};
use crate::device::ops;
use crate::device::ranks::{self, Peers};
use crate::device::rope::Rope;
use crate::device::shard::{N_PARTS, Shard, Tensors};
use crate::error::{Error, Result};
use crate::file::manifest::DECODER;
use crate::model::kv_cache::KvCache;
use crate::spec::DecoderSpec;
use crate::spec::watch::{Part, Point, Watch};
use std::ops::Range;

/// Maximum number of tokens per forward pass: bounds the buffers; longer prompts are split.
pub const MAX_TOKENS: usize = 128;

/// One position of the input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Input<'a> {
    /// A token of the vocabulary.
    Token(u32),
    /// An image token (dim), from the connector.
    Embedding(&'a [f32]),
}

/// Weights, cache and buffers of one rank.
pub struct Decoder {
    spec: DecoderSpec,
    shard: Shard,
    heads: Heads,
    /// This rank's rows of the embedding table and of the output matrix.
    vocab: Range<usize>,
    tok_embeddings: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// `None`: the output matrix is the embedding table.
    output: Option<Matrix>,
    rope: Rope,
    kv_cache: KvCache,
    state: State,
    watch: Watch,
}

struct Layer {
    attention_norm: Vec<f32>, // (dim)
    wq: Linear,               // (n_heads * head_dim, dim), this rank's heads
    wk: Linear,               // (n_kv_heads * head_dim, dim)
    wv: Linear,
    wo: LinearSum,      // (dim, n_heads * head_dim)
    ffn_norm: Vec<f32>, // (dim)
    w1: Linear,         // (hidden_dim, dim), this rank's rows
    w3: Linear,
    w2: LinearSum, // (dim, hidden_dim)
}

/// The current wave of activations; made once, reused by every forward.
#[derive(Default)]
struct State {
    x: Vec<f32>,      // (n_tokens, dim): the residual stream
    xb: Vec<f32>,     // (n_tokens, dim)
    q: Vec<f32>,      // (n_tokens, n_heads * head_dim)
    k: Vec<f32>,      // (n_tokens, n_kv_heads * head_dim)
    v: Vec<f32>,      // (n_tokens, n_kv_heads * head_dim)
    att: Vec<f32>,    // (n_tokens, n_heads * head_dim)
    hb: Vec<f32>,     // (n_tokens, hidden_dim)
    hb2: Vec<f32>,    // (n_tokens, hidden_dim)
    logits: Vec<f32>, // (n_rows, this rank's vocabulary)
    sum: SumState,
    input: Activations, // the 8-bit form of whatever is multiplied next
    n_tokens: usize,    // for which all of these have room
}

impl Decoder {
    /// Takes the tensors that [`DecoderSpec::tensors`] lists.
    pub fn new(spec: DecoderSpec, shard: Shard, tensors: &mut Tensors) -> Result<Self> {
        let heads = spec.heads().of_rank(shard);
        let factors = if spec.rope_scaled { Some(tensors.vector(DecoderSpec::ROPE_FACTORS)?) } else { None };
        if factors.iter().flatten().any(|factor| !factor.is_finite() || *factor <= 0.0) {
            return Err(Error::corrupt(DECODER, DecoderSpec::ROPE_FACTORS, "a factor is not a positive number"));
        }
        Ok(Self {
            vocab: spec.vocab(shard),
            tok_embeddings: tensors.matrix(DecoderSpec::TOKEN_EMBEDDING)?,
            layers: (0..spec.n_layers).map(|layer| Layer::new(layer, tensors)).collect::<Result<_>>()?,
            norm: tensors.vector(DecoderSpec::OUTPUT_NORM)?,
            output: if spec.tied { None } else { Some(tensors.matrix(DecoderSpec::OUTPUT)?) },
            rope: Rope::new(spec.architecture.pairs, spec.head_dim, spec.rope_theta, factors.as_deref()),
            kv_cache: KvCache::new(spec.n_layers, heads.n_kv_heads, spec.head_dim, spec.exact_cache),
            state: State::default(),
            watch: Watch::default(),
            heads,
            shard,
            spec,
        })
    }

    /// Shape of the whole decoder.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// The keys and values of the conversation that [`Decoder::forward`] continues; they may be replaced by another's.
    pub fn kv_cache(&mut self) -> &mut KvCache {
        &mut self.kv_cache
    }

    /// Whether the buffers have room for `n_tokens`. The same on every rank, since all run the same operations.
    pub fn has_buffers(&self, n_tokens: usize) -> bool {
        n_tokens <= self.state.n_tokens
    }

    /// Bytes that a forward pass of `n_tokens` and its logits allocate, roughly: buffers to enlarge, and temporary
    /// memory.
    pub fn missing_bytes(&self, n_tokens: usize) -> usize {
        let buffers = if self.has_buffers(n_tokens) { 0 } else { Self::buffer_bytes(&self.spec, self.shard, n_tokens) };
        buffers + 4 * size_of::<f32>() * self.spec.vocab_size
    }

    /// Bytes of the buffers for `n_tokens`, roughly.
    pub fn buffer_bytes(spec: &DecoderSpec, shard: Shard, n_tokens: usize) -> usize {
        let share = spec.heads().share(shard);
        let (q, kv) = (share.heads.len() * spec.head_dim, share.kv_heads.len() * spec.head_dim);
        let hidden = shard.share(spec.hidden_dim, 32).len();
        // x, xb, the parts of a sum, and a sum on its way to another rank and back.
        let whole = spec.dim * (2 + N_PARTS + 2);
        n_tokens * size_of::<f32>() * (whole + 2 * (q + kv + hidden) + spec.dim.max(hidden))
    }

    /// From now on `watch` sees this decoder's values.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// Runs `inputs` (at most [`MAX_TOKENS`]) at the positions starting at `first_pos`, overwriting what the cache held
    /// there.
    pub async fn forward<P: Peers>(&mut self, peers: &P, inputs: &[Input<'_>], first_pos: usize) -> Result<()> {
        let DecoderSpec { dim, head_dim, norm_eps, .. } = self.spec;
        let (n_tokens, n_heads, n_kv_heads) = (inputs.len(), self.heads.kv_head.len(), self.heads.n_kv_heads);
        self.kv_cache.reserve(first_pos, first_pos + n_tokens)?;
        self.state.n_tokens = self.state.n_tokens.max(n_tokens);
        self.rope.set_positions(first_pos, n_tokens);
        self.embed(peers, inputs).await?;
        let s = &mut self.state;
        s.xb.resize(n_tokens * dim, 0.0);
        s.att.resize(n_tokens * n_heads * head_dim, 0.0);
        for (idx, layer) in self.layers.iter().enumerate() {
            let see = |point, value: &[f32]| self.watch.see(Part::Decoder, idx, point, n_tokens, value);
            // h = x + self.attention(self.attention_norm(x))
            ops::rms_norm(&s.x, &layer.attention_norm, norm_eps, &mut s.xb);
            see(Point::Attention, &s.xb);
            layer.wq.forward(&s.xb, n_tokens, &mut s.input, &mut s.q);
            layer.wk.forward(&s.xb, n_tokens, &mut s.input, &mut s.k);
            layer.wv.forward(&s.xb, n_tokens, &mut s.input, &mut s.v);
            self.rope.rotate(&mut s.q, n_heads);
            self.rope.rotate(&mut s.k, n_kv_heads);
            self.kv_cache.write(idx, first_pos, &s.k, &s.v);
            if n_heads > 0 {
                let pages = self.kv_cache.pages(idx, first_pos + n_tokens);
                attend(&s.q, &pages, &self.heads, Some(first_pos), &mut s.att);
            }
            see(Point::Heads, &s.att);
            layer.wo.forward(peers, &s.att, n_tokens, &mut s.input, &mut s.sum, &mut s.xb).await?;
            ops::add(&mut s.x, &s.xb);
            // out = h + w2(silu(w1(ffn_norm(h))) * w3(ffn_norm(h)))
            ops::rms_norm(&s.x, &layer.ffn_norm, norm_eps, &mut s.xb);
            see(Point::Mlp, &s.xb);
            layer.w1.forward(&s.xb, n_tokens, &mut s.input, &mut s.hb);
            layer.w3.forward(&s.xb, n_tokens, &mut s.input, &mut s.hb2);
            ops::silu_mul(&mut s.hb, &s.hb2);
            see(Point::Hidden, &s.hb);
            layer.w2.forward(peers, &s.hb, n_tokens, &mut s.input, &mut s.sum, &mut s.xb).await?;
            ops::add(&mut s.x, &s.xb);
            see(Point::Residual, &s.x);
        }
        Ok(())
    }

    /// Logits of the last `n` positions of the latest forward pass: (n, vocab_size), appended to `logits` on rank 0
    /// only.
    pub async fn logits<P: Peers>(&mut self, peers: &P, n: usize, logits: &mut Vec<f32>) -> Result<()> {
        let DecoderSpec { dim, norm_eps, .. } = self.spec;
        let s = &mut self.state;
        let first = s.x.len() / dim - n;
        let output = self.output.as_ref().unwrap_or(&self.tok_embeddings);
        for x in s.x[first * dim..].chunks_exact(dim) {
            s.xb.resize(dim, 0.0);
            ops::rms_norm(x, &self.norm, norm_eps, &mut s.xb);
            self.watch.see(Part::Decoder, self.layers.len(), Point::Mlp, 1, &s.xb);
            product(output, &s.xb, 1, &mut s.input, &mut s.logits);
            ranks::gather(peers, &s.logits, logits).await?;
        }
        Ok(())
    }

    /// Fills the residual stream: each rank looks up the tokens of its part of the vocabulary, and the sum joins them;
    /// every rank adds the image tokens itself.
    async fn embed<P: Peers>(&mut self, peers: &P, inputs: &[Input<'_>]) -> Result<()> {
        let dim = self.spec.dim;
        let x = &mut self.state.x;
        x.clear();
        x.resize(inputs.len() * dim, 0.0);
        for (input, x) in inputs.iter().zip(x.chunks_exact_mut(dim)) {
            if let Input::Token(id) = input
                && self.vocab.contains(&(*id as usize))
            {
                self.tok_embeddings.row(*id as usize - self.vocab.start, x);
            }
        }
        if inputs.iter().any(|input| matches!(input, Input::Token(_))) {
            ranks::sum(peers, x).await?;
        }
        for (input, x) in inputs.iter().zip(x.chunks_exact_mut(dim)) {
            if let Input::Embedding(embedding) = input {
                x.copy_from_slice(embedding);
            }
        }
        Ok(())
    }
}

impl Layer {
    fn new(layer: usize, tensors: &mut Tensors) -> Result<Self> {
        let name = |tensor: &str| DecoderSpec::name(layer, tensor);
        Ok(Self {
            attention_norm: tensors.vector(&format!("{}.weight", name("attn_norm")))?,
            wq: Linear::new(&name("attn_q"), tensors)?,
            wk: Linear::new(&name("attn_k"), tensors)?,
            wv: Linear::new(&name("attn_v"), tensors)?,
            wo: LinearSum::new(&name("attn_output"), tensors)?,
            ffn_norm: tensors.vector(&format!("{}.weight", name("ffn_norm")))?,
            w1: Linear::new(&name("ffn_gate"), tensors)?,
            w3: Linear::new(&name("ffn_up"), tensors)?,
            w2: LinearSum::new(&name("ffn_down"), tensors)?,
        })
    }
}
