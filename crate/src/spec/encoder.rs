//! The image encoder: keys and tensors of `encoder.gguf`, including those about the preparation of pictures.

use super::{BLOCK_UNIT, ConnectorSpec, HeadSplit, Linear, Role, Split, Tensor};
use crate::device::ops::Activation;
use crate::device::shard::HeadShare;
use crate::error::{Error, Result};
use crate::file::gguf::{ARCHITECTURE_KEY, Gguf, Header};
use crate::picture::tiles::Scales;
use crate::picture::{Fit, Preprocess};
use crate::spec::watch::{Part, Place, Point};

/// The three kinds of image towers, told apart by their tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tower {
    /// OpenAI's CLIP with transformers' names: class token, a norm before the blocks.
    Clip,
    /// Google's SigLIP with transformers' names: patches only.
    Siglip,
    /// A timm vision transformer, such as H-optimus-0: register tokens, layer scale, gated MLP, final norm.
    Timm,
}

/// Shape of the encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSpec {
    /// Its kind, recognised by the tensors; used only for the names in a checkpoint.
    pub tower: Tower,
    /// Pixels per side of a tile.
    pub image_size: usize,
    /// Pixels per side of a patch. An incomplete patch at the right or lower edge is ignored.
    pub patch_size: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the MLP; of a gated MLP, between gate and down.
    pub hidden_dim: usize,
    /// Number of blocks that are run.
    pub n_layers: usize,
    /// Number of heads; divides `dim`.
    pub n_heads: usize,
    /// Heads that stay on one rank together. Depends on how a file stores its matrices; 1 if there is no file yet.
    pub head_unit: usize,
    /// Added to the variance in LayerNorm.
    pub norm_eps: f32,
    /// Activation between the two products of the MLP, or on its gate.
    pub activation: Activation,
    /// Whether the MLP is gated (timm's `GluMlp`).
    pub gated: bool,
    /// Whether the file calls the MLP's first product `ffn_down` and its second `ffn_up`, as early converters did.
    pub mlp_swapped: bool,
    /// Whether a class token precedes the patches.
    pub cls_token: bool,
    /// Number of register tokens between class token and patches.
    pub n_reg_tokens: usize,
    /// Whether the position embedding also has rows for the prefix tokens, not only for patches.
    pub embed_prefix: bool,
    /// Whether the patch embedding has a bias.
    pub patch_bias: bool,
    /// Whether there is a norm before the blocks (CLIP).
    pub norm_pre: bool,
    /// Whether there is a norm after the blocks.
    pub norm: bool,
    /// Whether each branch is scaled per channel before it is added.
    pub layer_scale: bool,
    /// Number of tokens dropped from the start of the output.
    pub n_drop: usize,
    /// Side lengths in pixels at which a picture is encoded, ascending; the first is `image_size`.
    pub scales: Vec<usize>,
    /// How a picture becomes square.
    pub fit: Fit,
    /// Mean of each colour channel.
    pub mean: [f32; 3],
    /// Standard deviation of each colour channel.
    pub std: [f32; 3],
}

/// Larger numbers are refused before anything is sized by them: no model has them.
const MAX_DIM: usize = 1 << 16;
const MAX_SIDE: usize = 1 << 14;

const ACTIVATION_KEY: &str = "llama3med.vision.activation";
const N_DROP_KEY: &str = "llama3med.vision.n_drop";
const SCALES_KEY: &str = "llama3med.scales";
const FIT_KEY: &str = "llama3med.image.fit";
const MEAN_KEY: &str = "clip.vision.image_mean";
const STD_KEY: &str = "clip.vision.image_std";
const FEATURE_LAYER_KEY: &str = "clip.vision.feature_layer";

/// Activations by their names in a file.
const ACTIVATIONS: [(&str, Activation); 4] = [
    ("quick_gelu", Activation::QuickGelu),
    ("gelu_tanh", Activation::GeluTanh),
    ("gelu", Activation::Gelu),
    ("silu", Activation::Silu),
];

const FITS: [(&str, Fit); 3] = [("crop", Fit::Crop), ("pad", Fit::Pad), ("stretch", Fit::Stretch)];

impl EncoderSpec {
    /// llama.cpp's name for image encoders.
    pub const ARCHITECTURE: &str = "clip";
    /// The patch embedding, which is a convolution.
    pub const PATCH_EMBEDDING: &str = "v.patch_embd.weight";
    /// Its bias.
    pub const PATCH_BIAS: &str = "v.patch_embd.bias";
    /// The position embedding.
    pub const POSITIONS: &str = "v.position_embd.weight";
    /// The class token.
    pub const CLS_TOKEN: &str = "v.class_embd";
    /// The register tokens.
    pub const REG_TOKENS: &str = "v.reg_embd.weight";
    /// The norm before the blocks, without `.weight`.
    pub const NORM_PRE: &str = "v.pre_ln";
    /// The norm after the blocks, without `.weight`.
    pub const NORM: &str = "v.post_ln";

    /// Name of a block's tensor in the file, without `.weight`.
    pub fn name(layer: usize, tensor: &str) -> String {
        format!("v.blk.{layer}.{tensor}")
    }

    /// Names of the MLP's first and second product.
    pub fn fc_names(&self) -> (&'static str, &'static str) {
        if self.mlp_swapped { ("ffn_down", "ffn_up") } else { ("ffn_up", "ffn_down") }
    }

    /// Reads the `clip.vision.*` keys and this project's own, and checks which tensors there are.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        match gguf.architecture()?.ok_or_else(|| gguf.missing_key(ARCHITECTURE_KEY))? {
            Self::ARCHITECTURE => {}
            other => {
                let problem = format!("{ARCHITECTURE_KEY} is {other:?}; image encoders are {:?}", Self::ARCHITECTURE);
                return Err(Error::Unsupported(format!("{}: {problem}", gguf.file)));
            }
        }
        refuse_others(gguf)?;
        let has = |name: &str| gguf.tensors.contains_key(name);
        let has_weight = |name: &str| has(&format!("{name}.weight"));
        let in_block = |name: &str| format!("{}.weight", Self::name(0, name));
        let (image_size, patch_size) = (required(gguf, "image_size")?, required(gguf, "patch_size")?);
        let cls_token = has(Self::CLS_TOKEN);
        let n_reg_tokens = gguf.tensors.get(Self::REG_TOKENS).map_or(0, |info| info.n_rows);
        let grid = image_size / patch_size;
        let (dim, hidden_dim) = (required(gguf, "embedding_length")?, required(gguf, "feed_forward_length")?);
        let n_heads = required(gguf, "attention.head_count")?;
        let down = gguf.tensor(&in_block("ffn_down"))?;
        let gated = has(&in_block("ffn_gate"));
        let layer_scale = has(&in_block("ls1")) || has(&in_block("ls2"));
        let mut spec = Self {
            tower: match (cls_token, layer_scale || n_reg_tokens > 0 || gated) {
                (_, true) => Tower::Timm,
                (true, false) => Tower::Clip,
                (false, false) => Tower::Siglip,
            },
            image_size,
            patch_size,
            dim,
            hidden_dim,
            n_layers: n_layers(gguf)?,
            n_heads,
            head_unit: HeadShare::unit(gguf.tensor(&in_block("attn_out"))?, dim / n_heads),
            norm_eps: gguf.get_f32("clip.vision.attention.layer_norm_epsilon")?.unwrap_or(1e-5),
            activation: activation(gguf)?,
            gated,
            mlp_swapped: dim != hidden_dim && (down.n_rows, down.n_cols) == (hidden_dim, dim),
            cls_token,
            n_reg_tokens,
            embed_prefix: gguf.tensor(Self::POSITIONS)?.n_rows != grid * grid,
            patch_bias: has(Self::PATCH_BIAS),
            norm_pre: has_weight(Self::NORM_PRE),
            norm: has_weight(Self::NORM),
            layer_scale,
            n_drop: gguf.get_usize(N_DROP_KEY)?.unwrap_or(cls_token as usize + n_reg_tokens),
            scales: Vec::new(),
            fit: Fit::Pad,
            mean: [0.0; 3],
            std: [1.0; 3],
        };
        spec.check(gguf)?;
        spec.read_pictures(gguf)?;
        Ok(spec)
    }

    fn check(&self, gguf: &Gguf) -> Result<()> {
        let bad = |key: &str, problem: String| Err(Error::corrupt(&gguf.file, key, problem));
        if self.patch_size > self.image_size {
            let problem = format!("{} is more than image_size {}", self.patch_size, self.image_size);
            return bad("clip.vision.patch_size", problem);
        }
        if self.n_reg_tokens > 0 && !self.cls_token {
            return Err(Error::MissingTensor { file: gguf.file.clone(), tensor: Self::CLS_TOKEN.into() });
        }
        if !self.dim.is_multiple_of(self.n_heads) {
            let problem = format!("{} does not divide embedding_length {}", self.n_heads, self.dim);
            return bad("clip.vision.attention.head_count", problem);
        }
        if self.gated != (self.activation == Activation::Silu) {
            let found = if self.gated { "is there" } else { "is missing" };
            let problem = format!("{:?} does not go with the MLP: v.blk.0.ffn_gate.weight {found}", self.activation);
            return bad(ACTIVATION_KEY, problem);
        }
        if !(0.0..1.0).contains(&self.norm_eps) {
            return bad("clip.vision.attention.layer_norm_epsilon", format!("{} is absurd", self.norm_eps));
        }
        if self.n_drop >= self.n_positions() {
            let problem = format!("{} of {} tokens would leave none", self.n_drop, self.n_positions());
            return bad(N_DROP_KEY, problem);
        }
        Ok(())
    }

    /// How pictures are prepared. Files without this project's keys are LLaVA files of llama.cpp; LLaVA pads and has
    /// one scale.
    fn read_pictures(&mut self, gguf: &Gguf) -> Result<()> {
        let sizes = match gguf.get_ints(SCALES_KEY)? {
            None => vec![self.image_size],
            Some(sizes) => sizes.into_iter().map(|size| usize::try_from(size).unwrap_or(0)).collect(),
        };
        self.scales = Scales::new(self.image_size, &sizes)?.scales;
        self.std = channels(gguf, STD_KEY)?;
        if self.std.iter().any(|&std| std <= 0.0) {
            return Err(Error::corrupt(&gguf.file, STD_KEY, "expected positive numbers"));
        }
        if let Some(name) = gguf.get_str(FIT_KEY)? {
            let fit = FITS.iter().find(|(known, _)| *known == name).map(|(_, fit)| *fit);
            let problem = || format!("expected crop, pad or stretch, found {name:?}");
            self.fit = fit.ok_or_else(|| Error::corrupt(&gguf.file, FIT_KEY, problem()))?;
        }
        self.mean = channels(gguf, MEAN_KEY)?;
        Ok(())
    }

    /// Writes the keys of a file named `name` whose connector produces tokens of width `projection_dim`.
    fn write(&self, name: &str, projection_dim: usize, header: &mut Header) {
        let scales: Vec<u32> = self.scales.iter().map(|&scale| scale as u32).collect();
        header
            .of_model(Self::ARCHITECTURE, name)
            .bool("clip.has_vision_encoder", true)
            .bool("clip.has_text_encoder", false)
            .bool("clip.has_llava_projector", true)
            .string("clip.projector_type", "mlp")
            .bool("clip.use_gelu", self.activation != Activation::QuickGelu)
            .u32("clip.vision.image_size", self.image_size as u32)
            .u32("clip.vision.patch_size", self.patch_size as u32)
            .u32("clip.vision.embedding_length", self.dim as u32)
            .u32("clip.vision.feed_forward_length", self.hidden_dim as u32)
            .u32("clip.vision.projection_dim", projection_dim as u32)
            .u32("clip.vision.attention.head_count", self.n_heads as u32)
            .f32("clip.vision.attention.layer_norm_epsilon", self.norm_eps)
            .u32("clip.vision.block_count", self.n_layers as u32)
            // Without this key, llama.cpp would leave out the last block.
            .i32s(FEATURE_LAYER_KEY, &[self.n_layers as i32])
            .f32s(MEAN_KEY, &self.mean)
            .f32s(STD_KEY, &self.std)
            .string(ACTIVATION_KEY, named(&ACTIVATIONS, self.activation))
            .string(FIT_KEY, self.fit_name())
            .u32s(SCALES_KEY, &scales);
        if self.n_drop != self.n_prefix() {
            header.u32(N_DROP_KEY, self.n_drop as u32);
        }
    }

    /// The scales at which pictures are encoded.
    pub fn scales(&self) -> Scales {
        Scales { tile: self.image_size, scales: self.scales.clone() }
    }

    /// How a picture becomes the square of the largest scale.
    pub fn preprocess(&self) -> Preprocess {
        Preprocess { size: self.scales().size(), fit: self.fit, mean: self.mean, std: self.std }
    }

    /// The name, in a file, of the way in which pictures become square.
    pub fn fit_name(&self) -> &'static str {
        named(&FITS, self.fit)
    }

    /// Patches per side of a tile.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Number of features per tile.
    pub fn n_tokens(&self) -> usize {
        self.n_positions() - self.n_drop
    }

    /// Number of class and register tokens.
    pub fn n_prefix(&self) -> usize {
        self.cls_token as usize + self.n_reg_tokens
    }

    /// Number of tokens of a tile in the blocks.
    pub fn n_positions(&self) -> usize {
        self.n_prefix() + self.grid() * self.grid()
    }

    /// Number of values per patch.
    pub fn patch_len(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }

    /// How ranks split the heads.
    pub fn heads(&self) -> HeadSplit {
        let Self { n_heads, dim, head_unit, .. } = *self;
        HeadSplit { n_heads, n_kv_heads: n_heads, head_dim: dim / n_heads, unit: head_unit }
    }

    /// The tensors of the encoder.
    pub fn tensors(&self) -> Vec<Tensor> {
        let mut table = self.embeddings();
        (0..self.n_layers).for_each(|layer| self.block(layer, &mut table));
        table
    }

    fn embeddings(&self) -> Vec<Tensor> {
        let Self { dim, patch_size, n_reg_tokens, .. } = *self;
        let is_timm = self.tower == Tower::Timm;
        let source = |clip: &'static str, timm: &'static str| if is_timm { timm } else { clip };
        let n_embedded = if self.embed_prefix { self.n_positions() } else { self.grid() * self.grid() };
        let patches = [dim, 3, patch_size, patch_size];
        let projection = source("embeddings.patch_embedding", "patch_embed.proj");
        let bias = self.patch_bias.then(|| Tensor::exact(Self::PATCH_BIAS, &[dim], format!("{projection}.bias")));
        let mut table = vec![Tensor::new(Self::PATCH_EMBEDDING, Role::Patch, &patches, format!("{projection}.weight"))];
        // The order of tensors that each tower's converter has always written.
        table.extend(bias.clone().filter(|_| is_timm));
        // timm stores tokens as a batch of one.
        let tokens = |name: &str, shape: &[usize], clip, timm| {
            let mut tensor = Tensor::exact(name, shape, source(clip, timm));
            if let (Some(source), true) = (&mut tensor.source, is_timm) {
                source.shape = [&[1; 2][..3 - shape.len()], shape].concat();
            }
            tensor
        };
        let positions = ("embeddings.position_embedding.weight", "pos_embed");
        table.push(tokens(Self::POSITIONS, &[n_embedded, dim], positions.0, positions.1));
        table.extend(bias.filter(|_| !is_timm));
        if self.cls_token {
            table.push(tokens(Self::CLS_TOKEN, &[dim], "embeddings.class_embedding", "cls_token"));
        }
        let mut norm = |name: &str, source: &str| {
            let part = |part: &str| Tensor::exact(format!("{name}.{part}"), &[dim], format!("{source}.{part}"));
            table.extend(["weight", "bias"].map(part));
        };
        if self.norm_pre {
            // The reference's spelling.
            norm(Self::NORM_PRE, source("pre_layrnorm", "norm_pre"));
        }
        if self.norm {
            norm(Self::NORM, source("post_layernorm", "norm"));
        }
        if n_reg_tokens > 0 {
            table.push(tokens(Self::REG_TOKENS, &[n_reg_tokens, dim], "", "reg_token"));
        }
        table
    }

    fn block(&self, layer: usize, table: &mut Vec<Tensor>) {
        let Self { dim, hidden_dim, .. } = *self;
        let is_timm = self.tower == Tower::Timm;
        let prefix = format!("{}.{layer}", if is_timm { "blocks" } else { "encoder.layers" });
        let (fc1, fc2) = self.fc_names();
        let (up, down) = ([hidden_dim, dim], [dim, hidden_dim]);
        let (heads, hidden) = (self.heads(), Split::Rows(BLOCK_UNIT));
        // Name in the file, outputs and inputs, split, point of its input, names in transformers and in timm, place in
        // timm's stack. In a gated MLP (GluMlp with gate_last=False), the first half goes through the activation.
        let gate = ("ffn_gate", up, hidden, Point::Mlp, "", "mlp.fc1", (0, 2));
        let rest = [
            ("attn_q", [dim, dim], heads.queries(), Point::Attention, "self_attn.q_proj", "attn.qkv", (0, 3)),
            ("attn_k", [dim, dim], heads.queries(), Point::Attention, "self_attn.k_proj", "attn.qkv", (1, 3)),
            ("attn_v", [dim, dim], heads.queries(), Point::Attention, "self_attn.v_proj", "attn.qkv", (2, 3)),
            ("attn_out", [dim, dim], heads.outputs(), Point::Heads, "self_attn.out_proj", "attn.proj", (0, 1)),
            (fc1, up, hidden, Point::Mlp, "mlp.fc1", "mlp.fc1", if self.gated { (1, 2) } else { (0, 1) }),
            (fc2, down, Split::Cols(BLOCK_UNIT), Point::Hidden, "mlp.fc2", "mlp.fc2", (0, 1)),
        ];
        for (number, part) in [(1, "weight"), (1, "bias"), (2, "weight"), (2, "bias")] {
            let source = if is_timm { "norm" } else { "layer_norm" };
            let name = format!("{}.{part}", Self::name(layer, &format!("ln{number}")));
            table.push(Tensor::exact(name, &[dim], format!("{prefix}.{source}{number}.{part}")));
        }
        let layers = rest[..4].iter().chain(Some(&gate).filter(|_| self.gated)).chain(&rest[4..]);
        for &(name, shape, split, point, clip, timm, stack) in layers {
            let layer = Linear {
                name: Self::name(layer, name),
                shape,
                split,
                input: Place { part: Part::Tower, layer, point },
                source: format!("{prefix}.{}", if is_timm { timm } else { clip }),
                stack: if is_timm { stack } else { (0, 1) },
                permuted: None,
                has_bias: true,
            };
            table.extend(layer.tensors());
        }
        for scale in ["ls1", "ls2"].into_iter().filter(|_| self.layer_scale) {
            let name = format!("{}.weight", Self::name(layer, scale));
            table.push(Tensor::exact(name, &[dim], format!("{prefix}.{scale}.gamma")));
        }
    }
}

/// What `encoder.gguf` holds: the encoder and the connector.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionSpec {
    /// The image tower.
    pub encoder: EncoderSpec,
    /// The connector, which turns its features into image tokens.
    pub connector: ConnectorSpec,
}

impl VisionSpec {
    /// Reads a header.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        Ok(Self { encoder: EncoderSpec::read(gguf)?, connector: ConnectorSpec::read(gguf)? })
    }

    /// Writes the keys of a file named `name`.
    pub fn write(&self, name: &str, header: &mut Header) {
        self.encoder.write(name, self.connector.n_outputs(), header);
    }

    /// The tensors of the encoder, then those of the connector.
    pub fn tensors(&self) -> Vec<Tensor> {
        [self.encoder.tensors(), self.connector.tensors()].concat()
    }
}

/// Refuses what llama.cpp's files of the same architecture may contain and this engine does not support.
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

/// Number of blocks that are run: all, or up to the layer named as the feature layer. (If none is named, llama.cpp
/// itself leaves out the last block, although its converter has already left out the blocks that LLaVA does not use.)
fn n_layers(gguf: &Gguf) -> Result<usize> {
    const KEY: &str = FEATURE_LAYER_KEY;
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

fn channels(gguf: &Gguf, key: &str) -> Result<[f32; 3]> {
    let values = gguf.get_floats(key)?.ok_or_else(|| gguf.missing_key(key))?;
    let finite = values.iter().all(|value| value.is_finite());
    let channels = <[f32; 3]>::try_from(values).ok().filter(|_| finite);
    channels.ok_or_else(|| Error::corrupt(&gguf.file, key, "expected three finite numbers"))
}

fn activation(gguf: &Gguf) -> Result<Activation> {
    let Some(name) = gguf.get_str(ACTIVATION_KEY)? else {
        let is_gelu = gguf.get_bool("clip.use_gelu")?.unwrap_or(false);
        return Ok(if is_gelu { Activation::GeluTanh } else { Activation::QuickGelu });
    };
    let found = ACTIVATIONS.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation);
    let problem = || format!("expected quick_gelu, gelu_tanh, gelu or silu, found {name:?}");
    found.ok_or_else(|| Error::corrupt(&gguf.file, ACTIVATION_KEY, problem()))
}

/// The name of a value.
fn named<T: PartialEq>(names: &[(&'static str, T)], value: T) -> &'static str {
    names.iter().find(|(_, known)| *known == value).map_or("", |(name, _)| name)
}
