//! The Llama decoder (Llama 3, arXiv 2407.21783) as one rank runs it: token and image embeddings in, logits out.
//!
//! Tensor-parallel: wq, wk, wv, w1, w3 are split by rows, wo and w2 by columns, so that each layer needs two sums over
//! the ranks; the embedding table and the output matrix are split by vocabulary rows.

use crate::device::attention::Heads;
use crate::device::linear::{Linear, LinearSum};
use crate::device::rope::Rope;
use crate::device::shard::Tensors;
use crate::device::{Cache, Device, Input};
use crate::error::{Error, Result};
use crate::file::manifest::DECODER;
use crate::spec::DecoderSpec;
use crate::spec::watch::{Part, Place, Point, Watch};

/// Maximum number of tokens per forward pass: bounds the buffers; longer prompts are split.
pub const MAX_TOKENS: usize = 128;

/// Weights, cache and buffers of one rank.
pub struct Decoder<D: Device> {
    spec: DecoderSpec,
    heads: Heads,
    /// The first token of this rank's rows of the embedding table and of the output matrix.
    first_id: usize,
    tok_embeddings: Linear<D>,
    layers: Vec<Layer<D>>,
    norm: D::Buffer,
    /// `None`: the output matrix is the embedding table.
    output: Option<Linear<D>>,
    rope: Rope,
    kv_cache: D::Cache,
    state: State<D::Buffer>,
    watch: Watch,
}

struct Layer<D: Device> {
    attention_norm: D::Buffer, // (dim)
    wq: Linear<D>,             // (n_heads * head_dim, dim), this rank's heads
    wk: Linear<D>,             // (n_kv_heads * head_dim, dim)
    wv: Linear<D>,
    wo: LinearSum<D>,    // (dim, n_heads * head_dim)
    ffn_norm: D::Buffer, // (dim)
    w1: Linear<D>,       // (hidden_dim, dim), this rank's rows
    w3: Linear<D>,
    w2: LinearSum<D>, // (dim, hidden_dim)
}

/// The current wave of activations; made once, reused by every forward.
#[derive(Default)]
struct State<B> {
    x: B,            // (n_tokens, dim): the residual stream
    xb: B,           // (n_tokens, dim)
    angles: B,       // (n_tokens, head_dim): of the rotary embedding
    q: B,            // (n_tokens, n_heads * head_dim)
    k: B,            // (n_tokens, n_kv_heads * head_dim)
    v: B,            // (n_tokens, n_kv_heads * head_dim)
    att: B,          // (n_tokens, n_heads * head_dim)
    hb: B,           // (n_tokens, hidden_dim)
    hb2: B,          // (n_tokens, hidden_dim)
    row: B,          // (1, dim)
    logits: B,       // (1, this rank's vocabulary)
    n_tokens: usize, // for which all of these have room
}

impl<D: Device> Decoder<D> {
    /// Takes the tensors that [`DecoderSpec::tensors`] lists.
    pub fn new(spec: DecoderSpec, tensors: &mut Tensors<D>) -> Result<Self> {
        let shard = tensors.device().shard();
        let heads = spec.heads().of_rank(shard);
        let factors = if spec.rope_scaled { Some(tensors.values(DecoderSpec::ROPE_FACTORS)?) } else { None };
        if factors.iter().flatten().any(|factor| !factor.is_finite() || *factor <= 0.0) {
            return Err(Error::corrupt(DECODER, DecoderSpec::ROPE_FACTORS, "a factor is not a positive number"));
        }
        Ok(Self {
            first_id: spec.vocab(shard).start,
            tok_embeddings: Linear { weight: tensors.matrix(DecoderSpec::TOKEN_EMBEDDING)?, bias: None },
            layers: (0..spec.n_layers).map(|layer| Layer::new(layer, tensors)).collect::<Result<_>>()?,
            norm: tensors.buffer(DecoderSpec::OUTPUT_NORM)?,
            output: match spec.tied {
                true => None,
                false => Some(Linear { weight: tensors.matrix(DecoderSpec::OUTPUT)?, bias: None }),
            },
            rope: Rope::new(spec.head_dim, spec.rope_theta, factors.as_deref()),
            kv_cache: tensors.device().cache(spec.n_layers, &heads, spec.exact_cache),
            state: State::default(),
            watch: Watch::default(),
            heads,
            spec,
        })
    }

    /// Shape of the whole decoder.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// The keys and values of the conversation that [`Decoder::forward`] continues; they may be replaced by another's.
    pub fn kv_cache(&mut self) -> &mut D::Cache {
        &mut self.kv_cache
    }

    /// Whether the buffers have room for `n_tokens`. The same on every rank, since all run the same operations.
    pub fn has_buffers(&self, n_tokens: usize) -> bool {
        n_tokens <= self.state.n_tokens
    }

    /// From now on `watch` sees this decoder's values.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// Runs `inputs` (at most [`MAX_TOKENS`]) at the positions starting at `first_pos`, overwriting what the cache held
    /// there.
    pub async fn forward(&mut self, d: &mut D, inputs: &[Input<'_, D::Buffer>], first_pos: usize) -> Result<()> {
        let (n_tokens, eps, pairs) = (inputs.len(), self.spec.norm_eps, self.spec.architecture.pairs);
        self.kv_cache.reserve(first_pos, first_pos + n_tokens)?;
        let (s, cache) = (&mut self.state, &mut self.kv_cache);
        s.n_tokens = s.n_tokens.max(n_tokens);
        d.upload(self.rope.angles(first_pos, n_tokens), n_tokens, &mut s.angles);
        d.embed(&self.tok_embeddings, self.first_id, inputs, &mut s.x).await?;
        for (idx, layer) in self.layers.iter().enumerate() {
            let at = |point| Place { part: Part::Decoder, layer: idx, point };
            // h = x + self.attention(self.attention_norm(x))
            d.rms_norm(&s.x, &layer.attention_norm, eps, &mut s.xb);
            self.watch.see(d, at(Point::Attention), &s.xb).await?;
            d.linear([&layer.wq, &layer.wk, &layer.wv], &s.xb, [&mut s.q, &mut s.k, &mut s.v]);
            d.rotate(&mut s.q, &s.angles, pairs);
            d.rotate(&mut s.k, &s.angles, pairs);
            d.attend_causal(&s.q, &s.k, &s.v, &self.heads, cache, idx, first_pos, &mut s.att);
            self.watch.see(d, at(Point::Heads), &s.att).await?;
            d.linear_sum(&layer.wo, &s.att, &mut s.xb).await?;
            d.add(&mut s.x, &s.xb);
            // out = h + w2(silu(w1(ffn_norm(h))) * w3(ffn_norm(h)))
            d.rms_norm(&s.x, &layer.ffn_norm, eps, &mut s.xb);
            self.watch.see(d, at(Point::Mlp), &s.xb).await?;
            d.linear([&layer.w1, &layer.w3], &s.xb, [&mut s.hb, &mut s.hb2]);
            d.silu_mul(&mut s.hb, &s.hb2);
            self.watch.see(d, at(Point::Hidden), &s.hb).await?;
            d.linear_sum(&layer.w2, &s.hb, &mut s.xb).await?;
            d.add(&mut s.x, &s.xb);
            self.watch.see(d, at(Point::Residual), &s.x).await?;
        }
        Ok(())
    }

    /// Logits of the last `n` positions of the latest forward pass: (n, vocab_size), appended to `logits` on rank 0
    /// only.
    pub async fn logits(&mut self, d: &mut D, n: usize, logits: &mut Vec<f32>) -> Result<()> {
        let s = &mut self.state;
        let output = self.output.as_ref().unwrap_or(&self.tok_embeddings);
        let place = Place { part: Part::Decoder, layer: self.layers.len(), point: Point::Mlp };
        let n_rows = d.n_rows(&s.x);
        for row in n_rows - n..n_rows {
            d.copy(&s.x, row..row + 1, &mut s.row, 0);
            d.rms_norm(&s.row, &self.norm, self.spec.norm_eps, &mut s.xb);
            self.watch.see(d, place, &s.xb).await?;
            d.linear([output], &s.xb, [&mut s.logits]);
            d.gather(&s.logits, logits).await?;
        }
        Ok(())
    }
}

impl<D: Device> Layer<D> {
    fn new(layer: usize, tensors: &mut Tensors<D>) -> Result<Self> {
        let name = |tensor: &str| DecoderSpec::name(layer, tensor);
        Ok(Self {
            attention_norm: tensors.buffer(&format!("{}.weight", name("attn_norm")))?,
            wq: Linear::new(&name("attn_q"), tensors)?,
            wk: Linear::new(&name("attn_k"), tensors)?,
            wv: Linear::new(&name("attn_v"), tensors)?,
            wo: LinearSum::new(&name("attn_output"), 0, tensors)?,
            ffn_norm: tensors.buffer(&format!("{}.weight", name("ffn_norm")))?,
            w1: Linear::new(&name("ffn_gate"), tensors)?,
            w3: Linear::new(&name("ffn_up"), tensors)?,
            w2: LinearSum::new(&name("ffn_down"), 0, tensors)?,
        })
    }
}
