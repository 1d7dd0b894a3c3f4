//! The image encoder: a ViT (arXiv 2010.11929) in its three forms; one tile in, patch features out.
//!
//! CLIP (class token, norm before the blocks), SigLIP (patches only) and timm's DINOv2 (register tokens, layer scale,
//! gated MLP) are one forward pass, whose steps follow from the tensors in the file. Names as in timm's
//! `vision_transformer.py`. Tensor-parallel: heads and MLP columns are split over the ranks, so that each block needs
//! two sums.

use crate::device::attention::{Heads, Page, attend};
use crate::device::linear::{Linear, LinearSum, SumState};
use crate::device::matrix::{Activations, MatrixBuilder};
use crate::device::ops;
use crate::device::ranks::Peers;
use crate::device::shard::{N_PARTS, Shard, Tensors};
use crate::error::Result;
use crate::file::gguf::Dtype;
use crate::spec::EncoderSpec;
use crate::spec::watch::{Part, Point, Watch};

/// Weights and buffers of one rank.
pub struct Encoder {
    spec: EncoderSpec,
    shard: Shard,
    heads: Heads,
    patch_embed: Linear, // (dim, 3 * patch_size * patch_size), whole on every rank
    prefix: Vec<f32>,    // (n_prefix, dim): class and register tokens
    pos_embed: Vec<f32>, // (n_patches, dim), or (n_prefix + n_patches, dim) with embed_prefix
    norm_pre: Option<Norm>,
    blocks: Vec<Block>,
    norm: Option<Norm>,
    state: State,
    watch: Watch,
}

struct Block {
    norm1: Norm,
    q: Linear, // (n_heads * head_dim, dim), this rank's heads
    k: Linear,
    v: Linear,
    proj: LinearSum,       // (dim, n_heads * head_dim)
    ls1: Option<Vec<f32>>, // (dim)
    norm2: Norm,
    gate: Option<Linear>, // (hidden_dim, dim), this rank's rows
    fc1: Linear,          // (hidden_dim, dim)
    fc2: LinearSum,       // (dim, hidden_dim)
    ls2: Option<Vec<f32>>,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// The activations of a tile; made once, reused by every forward.
#[derive(Default)]
struct State {
    patches: Vec<f32>, // (n_patches, 3 * patch_size * patch_size)
    x: Vec<f32>,       // (n_positions, dim): the residual stream
    xb: Vec<f32>,      // (n_positions, dim)
    q: Vec<f32>,       // (n_positions, n_heads * head_dim), this rank's heads
    k: Vec<f32>,
    v: Vec<f32>,
    att: Vec<f32>,
    gate: Vec<f32>,   // (n_positions, hidden_dim), this rank's columns
    hidden: Vec<f32>, // (n_positions, hidden_dim)
    sum: SumState,
    input: Activations, // the 8-bit form of whatever is multiplied next
}

impl Encoder {
    /// Takes the tensors that [`EncoderSpec::tensors`] lists.
    pub fn new(spec: EncoderSpec, shard: Shard, tensors: &mut Tensors) -> Result<Self> {
        let mut weight = MatrixBuilder::new(Dtype::F32, spec.dim, spec.patch_len(), 0..spec.patch_len())?;
        weight.push(bytemuck::cast_slice(&tensors.vector(EncoderSpec::PATCH_EMBEDDING)?));
        let bias = if spec.patch_bias { tensors.vector(EncoderSpec::PATCH_BIAS)? } else { vec![0.0; spec.dim] };
        let mut prefix = if spec.cls_token { tensors.vector(EncoderSpec::CLS_TOKEN)? } else { Vec::new() };
        if spec.n_reg_tokens > 0 {
            prefix.extend(tensors.vector(EncoderSpec::REG_TOKENS)?);
        }
        Ok(Self {
            patch_embed: Linear::from_parts(weight.finish(EncoderSpec::PATCH_EMBEDDING)?, bias),
            prefix,
            pos_embed: tensors.vector(EncoderSpec::POSITIONS)?,
            norm_pre: if spec.norm_pre { Some(Norm::new(EncoderSpec::NORM_PRE, tensors)?) } else { None },
            blocks: (0..spec.n_layers).map(|layer| Block::new(&spec, layer, tensors)).collect::<Result<_>>()?,
            norm: if spec.norm { Some(Norm::new(EncoderSpec::NORM, tensors)?) } else { None },
            state: State::default(),
            watch: Watch::default(),
            heads: spec.heads().of_rank(shard),
            shard,
            spec,
        })
    }

    /// Bytes of the buffers for a tile, roughly.
    pub fn buffer_bytes(spec: &EncoderSpec, shard: Shard) -> usize {
        let EncoderSpec { dim, n_heads, hidden_dim, .. } = *spec;
        let heads = spec.heads().share(shard).heads.len() * (dim / n_heads);
        let hidden = shard.share(hidden_dim, 32).len();
        // x, xb, the features, the parts of a sum, and a sum on its way to another rank and back.
        let whole = dim * (3 + N_PARTS + 2);
        let patches = spec.grid() * spec.grid() * 2 * spec.patch_len();
        size_of::<f32>() * (spec.n_positions() * (whole + 4 * heads + 2 * hidden + dim.max(hidden)) + patches)
    }

    /// Bytes that the next tile allocates for buffers, roughly: nothing after the first.
    pub fn missing_bytes(&self) -> usize {
        if self.state.x.is_empty() { Self::buffer_bytes(&self.spec, self.shard) } else { 0 }
    }

    /// Width of a feature.
    pub fn dim(&self) -> usize {
        self.spec.dim
    }

    /// Patches per side of a tile.
    pub fn grid(&self) -> usize {
        self.spec.grid()
    }

    /// Number of features per tile.
    pub fn n_tokens(&self) -> usize {
        self.spec.n_tokens()
    }

    /// From now on `watch` sees this encoder's values.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// Features (n_tokens, dim) of a tile (3, image_size, image_size), the same on every rank.
    pub async fn forward<P: Peers>(&mut self, peers: &P, tile: &[f32]) -> Result<Vec<f32>> {
        let EncoderSpec { dim, norm_eps, n_drop, .. } = self.spec;
        let n = self.spec.n_positions();
        self.embed(tile);
        let s = &mut self.state;
        s.xb.resize(n * dim, 0.0);
        s.att.resize(n * self.heads.kv_head.len() * self.heads.head_dim, 0.0);
        // x = self.norm_pre(x)
        if let Some(norm) = &self.norm_pre {
            norm.forward(&s.x, norm_eps, &mut s.xb);
            std::mem::swap(&mut s.x, &mut s.xb);
        }
        for (idx, block) in self.blocks.iter().enumerate() {
            let see = |point, value: &[f32]| self.watch.see(Part::Tower, idx, point, n, value);
            // x = x + self.ls1(self.attn(self.norm1(x)))
            block.norm1.forward(&s.x, norm_eps, &mut s.xb);
            see(Point::Attention, &s.xb);
            block.q.forward(&s.xb, n, &mut s.input, &mut s.q);
            block.k.forward(&s.xb, n, &mut s.input, &mut s.k);
            block.v.forward(&s.xb, n, &mut s.input, &mut s.v);
            if self.heads.n_kv_heads > 0 {
                attend(&s.q, &[Page::of_rows(&s.k, &s.v, &self.heads)], &self.heads, None, &mut s.att);
            }
            see(Point::Heads, &s.att);
            block.proj.forward(peers, &s.att, n, &mut s.input, &mut s.sum, &mut s.xb).await?;
            add_scaled(&mut s.x, &s.xb, block.ls1.as_deref());
            // x = x + self.ls2(self.mlp(self.norm2(x)))
            block.norm2.forward(&s.x, norm_eps, &mut s.xb);
            see(Point::Mlp, &s.xb);
            block.fc1.forward(&s.xb, n, &mut s.input, &mut s.hidden);
            match &block.gate {
                Some(gate) => {
                    gate.forward(&s.xb, n, &mut s.input, &mut s.gate);
                    ops::silu_mul(&mut s.gate, &s.hidden);
                    std::mem::swap(&mut s.gate, &mut s.hidden);
                }
                None => self.spec.activation.apply(&mut s.hidden),
            }
            see(Point::Hidden, &s.hidden);
            block.fc2.forward(peers, &s.hidden, n, &mut s.input, &mut s.sum, &mut s.xb).await?;
            add_scaled(&mut s.x, &s.xb, block.ls2.as_deref());
            see(Point::Residual, &s.x);
        }
        let seen = &s.x[n_drop * dim..];
        let Some(norm) = &self.norm else { return Ok(seen.to_vec()) };
        let mut features = vec![0.0; seen.len()];
        norm.forward(seen, norm_eps, &mut features);
        Ok(features)
    }

    /// Fills the residual stream: prefix tokens, then patches, with their positions.
    fn embed(&mut self, tile: &[f32]) {
        let EncoderSpec { image_size, patch_size, dim, .. } = self.spec;
        let (grid, s) = (self.spec.grid(), &mut self.state);
        assert_eq!(tile.len(), 3 * image_size * image_size);
        // The convolution is a matrix product, because its stride equals its kernel size.
        s.patches.clear();
        for patch in 0..grid * grid {
            let (top, left) = (patch / grid * patch_size, patch % grid * patch_size);
            for row in (0..3).flat_map(|channel| (top..top + patch_size).map(move |y| channel * image_size + y)) {
                s.patches.extend_from_slice(&tile[row * image_size + left..][..patch_size]);
            }
        }
        self.patch_embed.forward(&s.patches, grid * grid, &mut s.input, &mut s.xb);
        s.x.clear();
        s.x.extend_from_slice(&self.prefix);
        s.x.extend_from_slice(&s.xb);
        let first = if self.spec.embed_prefix { 0 } else { self.spec.n_prefix() };
        ops::add(&mut s.x[first * dim..], &self.pos_embed);
    }
}

impl Block {
    fn new(spec: &EncoderSpec, layer: usize, tensors: &mut Tensors) -> Result<Self> {
        let name = |tensor: &str| EncoderSpec::name(layer, tensor);
        let (fc1, fc2) = spec.fc_names();
        let mut scale = |tensor: &str| match spec.layer_scale {
            true => tensors.vector(&format!("{}.weight", name(tensor))).map(Some),
            false => Ok(None),
        };
        let (ls1, ls2) = (scale("ls1")?, scale("ls2")?);
        Ok(Self {
            norm1: Norm::new(&name("ln1"), tensors)?,
            q: Linear::new(&name("attn_q"), tensors)?,
            k: Linear::new(&name("attn_k"), tensors)?,
            v: Linear::new(&name("attn_v"), tensors)?,
            proj: LinearSum::new(&name("attn_out"), tensors)?,
            ls1,
            norm2: Norm::new(&name("ln2"), tensors)?,
            gate: if spec.gated { Some(Linear::new(&name("ffn_gate"), tensors)?) } else { None },
            fc1: Linear::new(&name(fc1), tensors)?,
            fc2: LinearSum::new(&name(fc2), tensors)?,
            ls2,
        })
    }
}

impl Norm {
    fn new(name: &str, tensors: &mut Tensors) -> Result<Self> {
        Ok(Self { weight: tensors.vector(&format!("{name}.weight"))?, bias: tensors.bias(name)? })
    }

    fn forward(&self, x: &[f32], eps: f32, out: &mut [f32]) {
        ops::layer_norm(x, &self.weight, &self.bias, eps, out);
    }
}

/// `x` += `branch` * gamma, per channel.
fn add_scaled(x: &mut [f32], branch: &[f32], gamma: Option<&[f32]>) {
    let Some(gamma) = gamma else { return ops::add(x, branch) };
    for (x, branch) in x.chunks_exact_mut(gamma.len()).zip(branch.chunks_exact(gamma.len())) {
        for ((x, branch), gamma) in x.iter_mut().zip(branch).zip(gamma) {
            *x += branch * gamma;
        }
    }
}
