//! The image encoder: a ViT (arXiv 2010.11929) in its three forms; one tile in, patch features out.
//!
//! CLIP (class token, norm before the blocks), SigLIP (patches only) and timm's DINOv2 (register tokens, layer scale,
//! gated MLP) are one forward pass, whose steps follow from the tensors in the file. Names as in timm's
//! `vision_transformer.py`. Tensor-parallel: heads and MLP columns are split over the ranks, so that each block needs
//! two sums.

use crate::device::Device;
use crate::device::attention::Heads;
use crate::device::linear::{Linear, LinearSum};
use crate::device::shard::Tensors;
use crate::error::Result;
use crate::spec::EncoderSpec;
use crate::spec::watch::{Part, Place, Point, Watch};

/// Weights and buffers of one rank.
pub struct Encoder<D: Device> {
    spec: EncoderSpec,
    heads: Heads,
    patch_embed: Linear<D>, // (dim, 3 * patch_size * patch_size), whole on every rank
    prefix: D::Buffer,      // (n_prefix, dim): class and register tokens
    pos_embed: D::Buffer,   // (n_prefix + n_patches, dim)
    norm_pre: Option<Norm<D>>,
    blocks: Vec<Block<D>>,
    norm: Option<Norm<D>>,
    state: State<D::Buffer>,
    watch: Watch,
}

struct Block<D: Device> {
    norm1: Norm<D>,
    q: Linear<D>, // (n_heads * head_dim, dim), this rank's heads
    k: Linear<D>,
    v: Linear<D>,
    proj: LinearSum<D>,     // (dim, n_heads * head_dim)
    ls1: Option<D::Buffer>, // (dim)
    norm2: Norm<D>,
    gate: Option<Linear<D>>, // (hidden_dim, dim), this rank's rows
    fc1: Linear<D>,          // (hidden_dim, dim)
    fc2: LinearSum<D>,       // (dim, hidden_dim)
    ls2: Option<D::Buffer>,
}

struct Norm<D: Device> {
    weight: D::Buffer,
    bias: D::Buffer,
}

/// The activations of a tile; made once, reused by every forward.
#[derive(Default)]
struct State<B> {
    is_made: bool,
    patches: B, // (n_patches, 3 * patch_size * patch_size)
    x: B,       // (n_positions, dim): the residual stream
    xb: B,      // (n_positions, dim)
    q: B,       // (n_positions, n_heads * head_dim), this rank's heads
    k: B,
    v: B,
    att: B,
    gate: B,   // (n_positions, hidden_dim), this rank's columns
    hidden: B, // (n_positions, hidden_dim)
}

impl<D: Device> Encoder<D> {
    /// Takes the tensors that [`EncoderSpec::tensors`] lists.
    pub fn new(spec: EncoderSpec, tensors: &mut Tensors<D>) -> Result<Self> {
        let shard = tensors.device().shard();
        let mut prefix = if spec.cls_token { tensors.values(EncoderSpec::CLS_TOKEN)? } else { Vec::new() };
        if spec.n_reg_tokens > 0 {
            prefix.extend(tensors.values(EncoderSpec::REG_TOKENS)?);
        }
        let mut pos_embed = tensors.values(EncoderSpec::POSITIONS)?;
        if !spec.embed_prefix {
            // Only the patches have positions.
            pos_embed.splice(0..0, std::iter::repeat_n(0.0, prefix.len()));
        }
        let patch_bias = spec.patch_bias.then(|| tensors.buffer(EncoderSpec::PATCH_BIAS)).transpose()?;
        Ok(Self {
            patch_embed: Linear {
                weight: tensors.reshaped(EncoderSpec::PATCH_EMBEDDING, spec.patch_len())?,
                bias: patch_bias,
            },
            prefix: tensors.upload(prefix, spec.n_prefix()),
            pos_embed: tensors.upload(pos_embed, spec.n_positions()),
            norm_pre: if spec.norm_pre { Some(Norm::new(EncoderSpec::NORM_PRE, tensors)?) } else { None },
            blocks: (0..spec.n_layers).map(|layer| Block::new(&spec, layer, tensors)).collect::<Result<_>>()?,
            norm: if spec.norm { Some(Norm::new(EncoderSpec::NORM, tensors)?) } else { None },
            state: State::default(),
            watch: Watch::default(),
            heads: spec.heads().of_rank(shard),
            spec,
        })
    }

    /// Whether the buffers for a tile exist.
    pub fn has_buffers(&self) -> bool {
        self.state.is_made
    }

    /// What the encoder is.
    pub fn spec(&self) -> &EncoderSpec {
        &self.spec
    }

    /// From now on `watch` sees this encoder's values.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// Features (n_tokens, dim) of a tile (3, image_size, image_size), the same on every rank.
    pub async fn forward(&mut self, d: &mut D, tile: &[f32]) -> Result<Vec<f32>> {
        let eps = self.spec.norm_eps;
        self.embed(d, tile);
        let s = &mut self.state;
        // x = self.norm_pre(x)
        if let Some(norm) = &self.norm_pre {
            d.layer_norm(&s.x, &norm.weight, &norm.bias, eps, &mut s.xb);
            std::mem::swap(&mut s.x, &mut s.xb);
        }
        for (idx, block) in self.blocks.iter().enumerate() {
            let at = |point| Place { part: Part::Tower, layer: idx, point };
            // x = x + self.ls1(self.attn(self.norm1(x)))
            d.layer_norm(&s.x, &block.norm1.weight, &block.norm1.bias, eps, &mut s.xb);
            self.watch.see(d, at(Point::Attention), &s.xb).await?;
            d.linear([&block.q, &block.k, &block.v], &s.xb, [&mut s.q, &mut s.k, &mut s.v]);
            d.attend(&s.q, &s.k, &s.v, &self.heads, &mut s.att);
            self.watch.see(d, at(Point::Heads), &s.att).await?;
            d.linear_sum(&block.proj, &s.att, &mut s.xb).await?;
            add_branch(d, &mut s.x, &s.xb, block.ls1.as_ref());
            // x = x + self.ls2(self.mlp(self.norm2(x)))
            d.layer_norm(&s.x, &block.norm2.weight, &block.norm2.bias, eps, &mut s.xb);
            self.watch.see(d, at(Point::Mlp), &s.xb).await?;
            let hidden = if let Some(gate) = &block.gate {
                d.linear([gate, &block.fc1], &s.xb, [&mut s.gate, &mut s.hidden]);
                d.silu_mul(&mut s.gate, &s.hidden);
                &s.gate
            } else {
                d.linear([&block.fc1], &s.xb, [&mut s.hidden]);
                d.activate(self.spec.activation, &mut s.hidden);
                &s.hidden
            };
            self.watch.see(d, at(Point::Hidden), hidden).await?;
            d.linear_sum(&block.fc2, hidden, &mut s.xb).await?;
            add_branch(d, &mut s.x, &s.xb, block.ls2.as_ref());
            self.watch.see(d, at(Point::Residual), &s.x).await?;
        }
        d.copy(&s.x, self.spec.n_drop..self.spec.n_positions(), &mut s.xb, 0);
        let Some(norm) = &self.norm else { return d.download(&s.xb).await };
        d.layer_norm(&s.xb, &norm.weight, &norm.bias, eps, &mut s.x);
        d.download(&s.x).await
    }

    /// Fills the residual stream: prefix tokens, then patches, with their positions.
    fn embed(&mut self, d: &mut D, tile: &[f32]) {
        let EncoderSpec { image_size, patch_size, .. } = self.spec;
        let (grid, s) = (self.spec.grid(), &mut self.state);
        assert_eq!(tile.len(), 3 * image_size * image_size);
        s.is_made = true;
        // The convolution is a matrix product, because its stride equals its kernel size.
        let mut patches = Vec::with_capacity(tile.len());
        for patch in 0..grid * grid {
            let (top, left) = (patch / grid * patch_size, patch % grid * patch_size);
            for row in (0..3).flat_map(|channel| (top..top + patch_size).map(move |y| channel * image_size + y)) {
                patches.extend_from_slice(&tile[row * image_size + left..][..patch_size]);
            }
        }
        d.upload(patches, grid * grid, &mut s.patches);
        d.linear([&self.patch_embed], &s.patches, [&mut s.xb]);
        let n_prefix = self.spec.n_prefix();
        d.copy(&self.prefix, 0..n_prefix, &mut s.x, 0);
        d.copy(&s.xb, 0..grid * grid, &mut s.x, n_prefix);
        d.add(&mut s.x, &self.pos_embed);
    }
}

impl<D: Device> Block<D> {
    fn new(spec: &EncoderSpec, layer: usize, tensors: &mut Tensors<D>) -> Result<Self> {
        let name = |tensor: &str| EncoderSpec::name(layer, tensor);
        let (fc1, fc2) = spec.fc_names();
        let mut scale = |tensor: &str| match spec.layer_scale {
            true => tensors.buffer(&format!("{}.weight", name(tensor))).map(Some),
            false => Ok(None),
        };
        let (ls1, ls2) = (scale("ls1")?, scale("ls2")?);
        Ok(Self {
            norm1: Norm::new(&name("ln1"), tensors)?,
            q: Linear::new(&name("attn_q"), tensors)?,
            k: Linear::new(&name("attn_k"), tensors)?,
            v: Linear::new(&name("attn_v"), tensors)?,
            proj: LinearSum::new(&name("attn_out"), 0, tensors)?,
            ls1,
            norm2: Norm::new(&name("ln2"), tensors)?,
            gate: if spec.gated { Some(Linear::new(&name("ffn_gate"), tensors)?) } else { None },
            fc1: Linear::new(&name(fc1), tensors)?,
            fc2: LinearSum::new(&name(fc2), 0, tensors)?,
            ls2,
        })
    }
}

impl<D: Device> Norm<D> {
    fn new(name: &str, tensors: &mut Tensors<D>) -> Result<Self> {
        Ok(Self { weight: tensors.buffer(&format!("{name}.weight"))?, bias: tensors.buffer(&format!("{name}.bias"))? })
    }
}

/// `x` += `branch` * gamma, per channel.
fn add_branch<D: Device>(d: &mut D, x: &mut D::Buffer, branch: &D::Buffer, gamma: Option<&D::Buffer>) {
    match gamma {
        Some(gamma) => d.add_scaled(x, branch, gamma),
        None => d.add(x, branch),
    }
}
