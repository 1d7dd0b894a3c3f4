//! The image encoder: a ViT (arXiv 2010.11929) in its three forms, one tile in, patch features out.
//!
//! CLIP (class token, norm before the blocks), SigLIP (patches only) and timm's DINOv2 (register tokens, layer scale, gated MLP) are one forward pass
//! whose steps follow from the tensors that the file has. Names as in timm's `vision_transformer.py`. Tensor-parallel: heads and MLP columns are split
//! over the ranks, so that each block needs two sums.

use crate::attention::{Heads, Page, attend};
use crate::error::{Error, Result};
use crate::gguf::{Dtype, Gguf};
use crate::linear::{Linear, LinearSum, SumState};
use crate::matrix::{Activations, MatrixBuilder};
use crate::ops::{self, Activation};
use crate::ranks::Peers;
use crate::shard::{HeadShare, N_PARTS, Shard, Tensors, Want};
use crate::watch::{Part, Point, Watch};

/// Shape of the encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Pixels on a side of a tile.
    pub image_size: usize,
    /// Pixels on a side of a patch. What does not fill a patch at the right and lower edge is not seen.
    pub patch_size: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the MLP.
    pub hidden_dim: usize,
    /// Blocks that are run.
    pub n_layers: usize,
    /// Heads; divides `dim`.
    pub n_heads: usize,
    /// Heads that stay on one rank together.
    pub head_unit: usize,
    /// Added to the variance in LayerNorm.
    pub norm_eps: f32,
    /// Between the two products of the MLP, or on its gate.
    pub activation: Activation,
    /// Whether the MLP is gated (timm's `GluMlp`).
    pub gated: bool,
    /// Whether the file calls the MLP's first product `ffn_down` and its second `ffn_up`, as early converters did.
    pub mlp_swapped: bool,
    /// Whether a class token stands before the patches.
    pub cls_token: bool,
    /// Register tokens between class token and patches.
    pub n_reg_tokens: usize,
    /// Whether the position embedding has a row for every prefix token too, or for patches only.
    pub embed_prefix: bool,
    /// Whether the patch embedding has a bias.
    pub patch_bias: bool,
    /// Whether a norm stands before the blocks (CLIP).
    pub norm_pre: bool,
    /// Whether a norm stands after the blocks.
    pub norm: bool,
    /// Whether each branch is scaled per channel before it is added.
    pub layer_scale: bool,
    /// Tokens dropped from the start of the output.
    pub n_drop: usize,
}

/// Refuses numbers that no model has before anything is sized by them.
const MAX_DIM: usize = 1 << 16;
const MAX_SIDE: usize = 1 << 14;

impl Config {
    /// Reads the `clip.vision.*` keys and looks which tensors are there.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        match gguf.get_str("general.architecture")? {
            Some("clip") => {}
            Some(other) => {
                let problem = format!("{}: general.architecture is {other:?}; image encoders are \"clip\"", gguf.file);
                return Err(Error::Unsupported(problem));
            }
            None => return Err(gguf.missing_key("general.architecture")),
        }
        refuse_others(gguf)?;
        let has = |name: &str| gguf.tensors.contains_key(name);
        let (image_size, patch_size) = (required(gguf, "image_size")?, required(gguf, "patch_size")?);
        let cls_token = has("v.class_embd");
        let n_reg_tokens = gguf.tensors.get("v.reg_embd.weight").map_or(0, |info| info.n_rows);
        let n_prefix = cls_token as usize + n_reg_tokens;
        let grid = image_size / patch_size;
        let (dim, hidden_dim) = (required(gguf, "embedding_length")?, required(gguf, "feed_forward_length")?);
        let n_heads = required(gguf, "attention.head_count")?;
        let down = gguf.tensor("v.blk.0.ffn_down.weight")?;
        let config = Self {
            image_size,
            patch_size,
            dim,
            hidden_dim,
            n_layers: n_layers(gguf)?,
            n_heads,
            head_unit: HeadShare::unit(gguf.tensor("v.blk.0.attn_out.weight")?, dim / n_heads),
            norm_eps: gguf.get_f32("clip.vision.attention.layer_norm_epsilon")?.unwrap_or(1e-5),
            activation: activation(gguf)?,
            gated: has("v.blk.0.ffn_gate.weight"),
            mlp_swapped: dim != hidden_dim && (down.n_rows, down.n_cols) == (hidden_dim, dim),
            cls_token,
            n_reg_tokens,
            embed_prefix: gguf.tensor("v.position_embd.weight")?.n_rows != grid * grid,
            patch_bias: has("v.patch_embd.bias"),
            norm_pre: has("v.pre_ln.weight"),
            norm: has("v.post_ln.weight"),
            layer_scale: has("v.blk.0.ls1.weight") || has("v.blk.0.ls2.weight"),
            n_drop: gguf.get_usize("llama3med.vision.n_drop")?.unwrap_or(n_prefix),
        };
        config.check(gguf)?;
        Ok(config)
    }

    fn check(&self, gguf: &Gguf) -> Result<()> {
        let bad = |key: &str, problem: String| Err(Error::corrupt(&gguf.file, key, problem));
        if self.patch_size > self.image_size {
            let problem = format!("{} is more than image_size {}", self.patch_size, self.image_size);
            return bad("clip.vision.patch_size", problem);
        }
        if self.n_reg_tokens > 0 && !self.cls_token {
            return Err(Error::MissingTensor { file: gguf.file.clone(), tensor: "v.class_embd".into() });
        }
        if !self.dim.is_multiple_of(self.n_heads) {
            let problem = format!("{} does not divide embedding_length {}", self.n_heads, self.dim);
            return bad("clip.vision.attention.head_count", problem);
        }
        if self.gated != (self.activation == Activation::Silu) {
            let found = if self.gated { "is there" } else { "is missing" };
            let problem = format!("{:?} does not go with the MLP: v.blk.0.ffn_gate.weight {found}", self.activation);
            return bad("llama3med.vision.activation", problem);
        }
        if !(0.0..1.0).contains(&self.norm_eps) {
            return bad("clip.vision.attention.layer_norm_epsilon", format!("{} is absurd", self.norm_eps));
        }
        if self.n_drop >= self.n_positions() {
            let problem = format!("{} of {} tokens would leave none", self.n_drop, self.n_positions());
            return bad("llama3med.vision.n_drop", problem);
        }
        Ok(())
    }

    /// Patches on a side of a tile.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Features that a tile becomes.
    pub fn n_tokens(&self) -> usize {
        self.n_positions() - self.n_drop
    }

    /// Names of the MLP's first and second product.
    fn fc_names(&self) -> (&'static str, &'static str) {
        if self.mlp_swapped { ("ffn_down", "ffn_up") } else { ("ffn_up", "ffn_down") }
    }

    fn n_prefix(&self) -> usize {
        self.cls_token as usize + self.n_reg_tokens
    }

    fn n_positions(&self) -> usize {
        self.n_prefix() + self.grid() * self.grid()
    }

    fn patch_len(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }
}

/// What llama.cpp puts into files of the same architecture and this engine does not run.
fn refuse_others(gguf: &Gguf) -> Result<()> {
    let refuse = |what: String| Err(Error::Unsupported(format!("{}: {what}", gguf.file)));
    if let Some(kind) = gguf.get_str("clip.projector_type")?.filter(|&kind| kind != "mlp") {
        return refuse(format!("clip.projector_type is {kind:?}; this engine runs LLaVA's \"mlp\""));
    }
    if let Some(kind) = gguf.get_str("clip.vision.mm_patch_merge_type")?.filter(|kind| kind.starts_with("spatial")) {
        return refuse(format!(
            "pictures in tiles of any number (LLaVA-NeXT, {kind:?}) are not supported; LLaVA 1.5 would work"
        ));
    }
    if gguf.get_bool("clip.use_silu")? == Some(true) && !gguf.tensors.contains_key("v.blk.0.ffn_gate.weight") {
        return refuse("clip.use_silu without a gated MLP is not supported".into());
    }
    Ok(())
}

/// Blocks that are run: as many as there are, or up to the layer that is named as the feature. (llama.cpp itself leaves out the last block where none is
/// named, although its converter has already left out those that LLaVA does not use.)
fn n_layers(gguf: &Gguf) -> Result<usize> {
    const KEY: &str = "clip.vision.feature_layer";
    let n_blocks = required(gguf, "block_count")?;
    match gguf.get_ints(KEY)?.as_deref() {
        None | Some([]) => Ok(n_blocks),
        Some([layer]) if (1..=n_blocks as i64).contains(layer) => Ok(*layer as usize),
        Some([layer]) => Err(Error::corrupt(&gguf.file, KEY, format!("layer {layer} of {n_blocks} blocks"))),
        Some(layers) => {
            let problem = format!("{}: {KEY} names {} layers; this engine takes one", gguf.file, layers.len());
            Err(Error::Unsupported(problem))
        }
    }
}

fn required(gguf: &Gguf, key: &str) -> Result<usize> {
    let key = format!("clip.vision.{key}");
    let value = gguf.get_usize(&key)?.ok_or_else(|| gguf.missing_key(&key))?;
    let max = match key.rsplit('.').next() {
        Some("block_count") => 1 << 10,
        Some("image_size" | "patch_size") => MAX_SIDE,
        _ => MAX_DIM,
    };
    if (1..=max).contains(&value) {
        return Ok(value);
    }
    Err(Error::corrupt(&gguf.file, key, format!("expected 1 to {max}, found {value}")))
}

fn activation(gguf: &Gguf) -> Result<Activation> {
    match gguf.get_str("llama3med.vision.activation")? {
        Some("quick_gelu") => Ok(Activation::QuickGelu),
        Some("gelu_tanh") => Ok(Activation::GeluTanh),
        Some("gelu") => Ok(Activation::Gelu),
        Some("silu") => Ok(Activation::Silu),
        Some(other) => {
            let problem = format!("expected quick_gelu, gelu_tanh, gelu or silu, found {other:?}");
            Err(Error::corrupt(&gguf.file, "llama3med.vision.activation", problem))
        }
        None if gguf.get_bool("clip.use_gelu")?.unwrap_or(false) => Ok(Activation::GeluTanh),
        None => Ok(Activation::QuickGelu),
    }
}

/// Weights and buffers of one rank.
pub struct Encoder {
    config: Config,
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
    /// The tensors that this rank needs.
    pub fn wants(config: &Config, shard: Shard) -> Vec<Want> {
        let Config { dim, patch_size, .. } = *config;
        let n_patches = config.grid() * config.grid();
        let n_embedded = if config.embed_prefix { config.n_positions() } else { n_patches };
        let mut wants = vec![
            // A row of the file is a row of a patch.
            Want::whole("v.patch_embd.weight", dim * 3 * patch_size, patch_size),
            Want::whole("v.position_embd.weight", n_embedded, dim),
        ];
        if config.patch_bias {
            wants.push(Want::whole("v.patch_embd.bias", 1, dim));
        }
        if config.cls_token {
            wants.push(Want::whole("v.class_embd", 1, dim));
        }
        if config.n_reg_tokens > 0 {
            wants.push(Want::whole("v.reg_embd.weight", config.n_reg_tokens, dim));
        }
        if config.norm_pre {
            wants.extend(Norm::wants("v.pre_ln", dim));
        }
        if config.norm {
            wants.extend(Norm::wants("v.post_ln", dim));
        }
        (0..config.n_layers).for_each(|layer| Block::wants(config, shard, layer, &mut wants));
        wants
    }

    /// Takes the tensors that [`Encoder::wants`] named.
    pub fn new(config: Config, shard: Shard, tensors: &mut Tensors) -> Result<Self> {
        let share = HeadShare::new(shard, config.n_heads, config.n_heads, config.head_unit);
        let heads = Heads {
            head_dim: config.dim / config.n_heads,
            kv_head: share.kv_head_of_each(config.n_heads, config.n_heads),
            n_kv_heads: share.kv_heads.len(),
        };
        let mut weight = MatrixBuilder::new(Dtype::F32, config.dim, config.patch_len(), 0..config.patch_len())?;
        weight.push(bytemuck::cast_slice(&tensors.vector("v.patch_embd.weight")?));
        let bias = if config.patch_bias { tensors.vector("v.patch_embd.bias")? } else { vec![0.0; config.dim] };
        let mut prefix = if config.cls_token { tensors.vector("v.class_embd")? } else { Vec::new() };
        if config.n_reg_tokens > 0 {
            prefix.extend(tensors.vector("v.reg_embd.weight")?);
        }
        Ok(Self {
            patch_embed: Linear::from_parts(weight.finish("v.patch_embd.weight")?, bias),
            prefix,
            pos_embed: tensors.vector("v.position_embd.weight")?,
            norm_pre: if config.norm_pre { Some(Norm::new("v.pre_ln", tensors)?) } else { None },
            blocks: (0..config.n_layers).map(|layer| Block::new(&config, layer, tensors)).collect::<Result<_>>()?,
            norm: if config.norm { Some(Norm::new("v.post_ln", tensors)?) } else { None },
            state: State::default(),
            watch: Watch::default(),
            heads,
            shard,
            config,
        })
    }

    /// Bytes of the buffers for a tile, roughly.
    pub fn buffer_bytes(config: &Config, shard: Shard) -> usize {
        let Config { dim, n_heads, hidden_dim, .. } = *config;
        let heads = HeadShare::new(shard, n_heads, n_heads, config.head_unit).heads.len() * (dim / n_heads);
        let hidden = shard.share(hidden_dim, 32).len();
        // x, xb, the features, the parts of a sum, and a sum on its way to another rank and from there.
        let whole = dim * (3 + N_PARTS + 2);
        let patches = config.grid() * config.grid() * 2 * config.patch_len();
        size_of::<f32>() * (config.n_positions() * (whole + 4 * heads + 2 * hidden + dim.max(hidden)) + patches)
    }

    /// Bytes that the next tile allocates for buffers, roughly: nothing after the first.
    pub fn missing_bytes(&self) -> usize {
        if self.state.x.is_empty() { Self::buffer_bytes(&self.config, self.shard) } else { 0 }
    }

    /// Width of a feature.
    pub fn dim(&self) -> usize {
        self.config.dim
    }

    /// Patches on a side of a tile.
    pub fn grid(&self) -> usize {
        self.config.grid()
    }

    /// Features that a tile becomes.
    pub fn n_tokens(&self) -> usize {
        self.config.n_tokens()
    }

    /// From now on `watch` sees what passes through.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// Features (n_tokens, dim) of a tile (3, image_size, image_size), the same on every rank.
    pub async fn forward<P: Peers>(&mut self, peers: &P, tile: &[f32]) -> Result<Vec<f32>> {
        let Config { dim, norm_eps, n_drop, .. } = self.config;
        let n = self.config.n_positions();
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
                None => self.config.activation.apply(&mut s.hidden),
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
        let Config { image_size, patch_size, dim, .. } = self.config;
        let (grid, s) = (self.config.grid(), &mut self.state);
        assert_eq!(tile.len(), 3 * image_size * image_size);
        // The convolution is a product: its stride is its kernel's size.
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
        let first = if self.config.embed_prefix { 0 } else { self.config.n_prefix() };
        ops::add(&mut s.x[first * dim..], &self.pos_embed);
    }
}

impl Block {
    fn wants(config: &Config, shard: Shard, layer: usize, wants: &mut Vec<Want>) {
        let Config { dim, hidden_dim, n_heads, .. } = *config;
        let share = HeadShare::new(shard, n_heads, n_heads, config.head_unit);
        let head_dim = dim / n_heads;
        let q = share.heads.start * head_dim..share.heads.end * head_dim;
        let hidden = shard.share(hidden_dim, 32);
        let (fc1, fc2) = config.fc_names();
        let name = |tensor: &str| format!("v.blk.{layer}.{tensor}");
        for tensor in ["attn_q", "attn_k", "attn_v"] {
            wants.extend(Linear::wants(&name(tensor), dim, dim, q.clone()));
        }
        let heads = shard.parts(dim, config.head_unit * head_dim);
        wants.extend(LinearSum::wants(&name("attn_out"), dim, dim, &heads, true));
        wants.extend(Linear::wants(&name(fc1), hidden_dim, dim, hidden.clone()));
        if config.gated {
            wants.extend(Linear::wants(&name("ffn_gate"), hidden_dim, dim, hidden.clone()));
        }
        wants.extend(LinearSum::wants(&name(fc2), dim, hidden_dim, &shard.parts(hidden_dim, 32), true));
        wants.extend(["ln1", "ln2"].into_iter().flat_map(|norm| Norm::wants(&name(norm), dim)));
        if config.layer_scale {
            wants.extend(["ls1.weight", "ls2.weight"].map(|scale| Want::whole(name(scale), 1, dim)));
        }
    }

    fn new(config: &Config, layer: usize, tensors: &mut Tensors) -> Result<Self> {
        let name = |tensor: &str| format!("v.blk.{layer}.{tensor}");
        let (fc1, fc2) = config.fc_names();
        let mut scale = |tensor: &str| match config.layer_scale {
            true => tensors.vector(&name(tensor)).map(Some),
            false => Ok(None),
        };
        let (ls1, ls2) = (scale("ls1.weight")?, scale("ls2.weight")?);
        Ok(Self {
            norm1: Norm::new(&name("ln1"), tensors)?,
            q: Linear::new(&name("attn_q"), tensors)?,
            k: Linear::new(&name("attn_k"), tensors)?,
            v: Linear::new(&name("attn_v"), tensors)?,
            proj: LinearSum::new(&name("attn_out"), tensors, true)?,
            ls1,
            norm2: Norm::new(&name("ln2"), tensors)?,
            gate: if config.gated { Some(Linear::new(&name("ffn_gate"), tensors)?) } else { None },
            fc1: Linear::new(&name(fc1), tensors)?,
            fc2: LinearSum::new(&name(fc2), tensors, true)?,
            ls2,
        })
    }
}

impl Norm {
    fn wants(name: &str, dim: usize) -> [Want; 2] {
        ["weight", "bias"].map(|part| Want::whole(format!("{name}.{part}"), 1, dim))
    }

    fn new(name: &str, tensors: &mut Tensors) -> Result<Self> {
        Ok(Self { weight: tensors.vector(&format!("{name}.weight"))?, bias: tensors.vector(&format!("{name}.bias"))? })
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
