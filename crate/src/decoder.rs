//! The Llama decoder (Llama 3, arXiv 2407.21783) as one rank runs it: token and image embeddings in, logits out.
//!
//! Tensor-parallel: wq, wk, wv, w1, w3 are split by rows, wo and w2 by columns, so that each layer needs two sums over the ranks; the embedding table
//! and the output matrix are split by vocabulary rows.

use crate::attention::{Heads, attend};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::kv_cache::KvCache;
use crate::linear::{LinearSum, SumState, product};
use crate::matrix::{Activations, Matrix};
use crate::ops;
use crate::ranks::{self, Peers};
use crate::rope::Rope;
use crate::shard::{HeadShare, N_PARTS, Shard, Tensors, Want};
use crate::watch::{Part, Point, Watch};
use std::ops::Range;

/// Tokens that one forward pass takes at most: bounds the buffers; longer prompts come in pieces.
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
    config: Config,
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
    wq: Matrix,               // (n_heads * head_dim, dim), this rank's heads
    wk: Matrix,               // (n_kv_heads * head_dim, dim)
    wv: Matrix,
    wo: LinearSum,      // (dim, n_heads * head_dim)
    ffn_norm: Vec<f32>, // (dim)
    w1: Matrix,         // (hidden_dim, dim), this rank's rows
    w3: Matrix,
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
    n_tokens: usize,    // that all of these have had room for
}

impl Decoder {
    /// The tensors that this rank needs.
    pub fn wants(config: &Config, shard: Shard) -> Vec<Want> {
        let Config { dim, hidden_dim, head_dim, n_heads, n_kv_heads, vocab_size, .. } = *config;
        let share = HeadShare::new(shard, n_heads, n_kv_heads, config.head_unit);
        let columns = |heads: &Range<usize>| heads.start * head_dim..heads.end * head_dim;
        let (q, kv) = (columns(&share.heads), columns(&share.kv_heads));
        let hidden = shard.share(hidden_dim, 32);
        let vocab = shard.share(vocab_size, 4);
        let mut wants = vec![
            Want::rows("token_embd.weight", vocab_size, dim, vocab.clone()),
            Want::whole("output_norm.weight", 1, dim),
        ];
        if !config.tied {
            wants.push(Want::rows("output.weight", vocab_size, dim, vocab));
        }
        if config.rope_scaled {
            wants.push(Want::whole("rope_freqs.weight", 1, head_dim / 2));
        }
        for layer in 0..config.n_layers {
            let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
            wants.extend([
                Want::whole(name("attn_norm"), 1, dim),
                Want::rows(name("attn_q"), n_heads * head_dim, dim, q.clone()),
                Want::rows(name("attn_k"), n_kv_heads * head_dim, dim, kv.clone()),
                Want::rows(name("attn_v"), n_kv_heads * head_dim, dim, kv.clone()),
                Want::whole(name("ffn_norm"), 1, dim),
                Want::rows(name("ffn_gate"), hidden_dim, dim, hidden.clone()),
                Want::rows(name("ffn_up"), hidden_dim, dim, hidden.clone()),
            ]);
            let heads = shard.parts(n_heads * head_dim, config.head_unit * head_dim);
            let name = |tensor: &str| format!("blk.{layer}.{tensor}");
            wants.extend(LinearSum::wants(&name("attn_output"), dim, n_heads * head_dim, &heads, false));
            wants.extend(LinearSum::wants(&name("ffn_down"), dim, hidden_dim, &shard.parts(hidden_dim, 32), false));
        }
        wants
    }

    /// Takes the tensors that [`Decoder::wants`] named.
    pub fn new(config: Config, shard: Shard, tensors: &mut Tensors) -> Result<Self> {
        let share = HeadShare::new(shard, config.n_heads, config.n_kv_heads, config.head_unit);
        let heads = Heads {
            head_dim: config.head_dim,
            kv_head: share.kv_head_of_each(config.n_heads, config.n_kv_heads),
            n_kv_heads: share.kv_heads.len(),
        };
        let factors = if config.rope_scaled { Some(tensors.vector("rope_freqs.weight")?) } else { None };
        if factors.iter().flatten().any(|factor| !factor.is_finite() || *factor <= 0.0) {
            return Err(Error::corrupt("decoder.gguf", "rope_freqs.weight", "a factor is not a positive number"));
        }
        Ok(Self {
            vocab: shard.share(config.vocab_size, 4),
            tok_embeddings: tensors.matrix("token_embd.weight")?,
            layers: (0..config.n_layers).map(|layer| Layer::new(layer, tensors)).collect::<Result<_>>()?,
            norm: tensors.vector("output_norm.weight")?,
            output: if config.tied { None } else { Some(tensors.matrix("output.weight")?) },
            rope: Rope::new(config.head_dim, config.rope_theta, factors.as_deref()),
            kv_cache: KvCache::new(config.n_layers, heads.n_kv_heads, config.head_dim, config.exact_cache),
            state: State::default(),
            watch: Watch::default(),
            heads,
            shard,
            config,
        })
    }

    /// Shape of the whole decoder.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The keys and values of the conversation that [`Decoder::forward`] goes on with; another may be put in their place.
    pub fn kv_cache(&mut self) -> &mut KvCache {
        &mut self.kv_cache
    }

    /// Whether the buffers have room for `n_tokens`. The same on every rank that has run the same operations.
    pub fn has_buffers(&self, n_tokens: usize) -> bool {
        n_tokens <= self.state.n_tokens
    }

    /// Bytes that a forward of `n_tokens` and its logits allocate, roughly: buffers that are too small, and what is given back at once.
    pub fn missing_bytes(&self, n_tokens: usize) -> usize {
        let buffers =
            if self.has_buffers(n_tokens) { 0 } else { Self::buffer_bytes(&self.config, self.shard, n_tokens) };
        buffers + 4 * size_of::<f32>() * self.config.vocab_size
    }

    /// Bytes of the buffers for `n_tokens`, roughly.
    pub fn buffer_bytes(config: &Config, shard: Shard, n_tokens: usize) -> usize {
        let share = HeadShare::new(shard, config.n_heads, config.n_kv_heads, config.head_unit);
        let (q, kv) = (share.heads.len() * config.head_dim, share.kv_heads.len() * config.head_dim);
        let hidden = shard.share(config.hidden_dim, 32).len();
        // x, xb, the parts of a sum, and a sum on its way to another rank and from there.
        let whole = config.dim * (2 + N_PARTS + 2);
        n_tokens * size_of::<f32>() * (whole + 2 * (q + kv + hidden) + config.dim.max(hidden))
    }

    /// From now on `watch` sees what passes through.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// Runs `inputs` (at most [`MAX_TOKENS`]) at the positions from `first_pos` on, over whatever the cache held there.
    pub async fn forward<P: Peers>(&mut self, peers: &P, inputs: &[Input<'_>], first_pos: usize) -> Result<()> {
        let Config { dim, head_dim, norm_eps, .. } = self.config;
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
            product(&layer.wq, &s.xb, n_tokens, &mut s.input, &mut s.q);
            product(&layer.wk, &s.xb, n_tokens, &mut s.input, &mut s.k);
            product(&layer.wv, &s.xb, n_tokens, &mut s.input, &mut s.v);
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
            product(&layer.w1, &s.xb, n_tokens, &mut s.input, &mut s.hb);
            product(&layer.w3, &s.xb, n_tokens, &mut s.input, &mut s.hb2);
            ops::silu_mul(&mut s.hb, &s.hb2);
            see(Point::Hidden, &s.hb);
            layer.w2.forward(peers, &s.hb, n_tokens, &mut s.input, &mut s.sum, &mut s.xb).await?;
            ops::add(&mut s.x, &s.xb);
            see(Point::Residual, &s.x);
        }
        Ok(())
    }

    /// Logits of the last `n` positions of the latest forward: (n, vocab_size), appended to `logits` on rank 0 and there alone.
    pub async fn logits<P: Peers>(&mut self, peers: &P, n: usize, logits: &mut Vec<f32>) -> Result<()> {
        let Config { dim, norm_eps, .. } = self.config;
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

    /// Fills the residual stream: each rank looks up the tokens that it holds, the sum joins them, image tokens are put in by everybody.
    async fn embed<P: Peers>(&mut self, peers: &P, inputs: &[Input<'_>]) -> Result<()> {
        let dim = self.config.dim;
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
        let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
        Ok(Self {
            attention_norm: tensors.vector(&name("attn_norm"))?,
            wq: tensors.matrix(&name("attn_q"))?,
            wk: tensors.matrix(&name("attn_k"))?,
            wv: tensors.matrix(&name("attn_v"))?,
            wo: LinearSum::new(&format!("blk.{layer}.attn_output"), tensors, false)?,
            ffn_norm: tensors.vector(&name("ffn_norm"))?,
            w1: tensors.matrix(&name("ffn_gate"))?,
            w3: tensors.matrix(&name("ffn_up"))?,
            w2: LinearSum::new(&format!("blk.{layer}.ffn_down"), tensors, false)?,
        })
    }
}
