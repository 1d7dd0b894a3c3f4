//! What the two files of a model hold: their keys, and every tensor with its place in a checkpoint.
//!
//! One list serves both commands that write models: `convert` fills each [`Slot`] from the checkpoint tensor that it names, `random` makes it up.
//! Names in the files are llama.cpp's (`convert_hf_to_gguf.py`, `clip.cpp`); names in checkpoints are those of transformers and timm.

use crate::vocabulary::Vocabulary;
use llama3med::gguf::{Dtype, Header};

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A large matrix: in the type that was asked for.
    Matrix,
    /// Norms, biases, gammas, class and position embeddings: always f32.
    Exact,
    /// The patch embedding: f16, or f32 in an f32 model.
    Patch,
}

/// A tensor of a model file, and where it comes from.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Name in the GGUF file.
    pub name: String,
    /// Shape in the GGUF file, outermost dimension first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub role: Role,
    /// Name in the checkpoint, without its prefix.
    pub source: String,
    /// Shape of the checkpoint's tensor, of which this may be a part.
    pub source_shape: Vec<usize>,
    /// First weight within the checkpoint's tensor.
    pub source_offset: usize,
    /// Rows of wq and wk change places within each head of this width: see `llama3med::rope`.
    pub head_dim: Option<usize>,
}

impl Slot {
    fn new(name: String, role: Role, shape: &[usize], source: impl Into<String>) -> Self {
        let (shape, source) = (shape.to_vec(), source.into());
        Self { name, source_shape: shape.clone(), shape, role, source, source_offset: 0, head_dim: None }
    }

    fn part_of(self, source_shape: &[usize], source_offset: usize) -> Self {
        Self { source_shape: source_shape.to_vec(), source_offset, ..self }
    }

    /// The type that this tensor gets when `dtype` was asked for.
    pub fn dtype(&self, dtype: Dtype) -> Dtype {
        match self.role {
            Role::Exact => Dtype::F32,
            Role::Patch if dtype == Dtype::F32 => Dtype::F32,
            Role::Patch => Dtype::F16,
            Role::Matrix => fitting(dtype, self.n_cols()),
        }
    }

    /// Length of a row.
    pub fn n_cols(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Number of rows; a vector is one.
    pub fn n_rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }
}

/// The nearest type whose blocks fill rows of `n_cols`: never a coarser one.
pub fn fitting(dtype: Dtype, n_cols: usize) -> Dtype {
    match dtype {
        _ if n_cols.is_multiple_of(dtype.block_len()) => dtype,
        Dtype::Q4K | Dtype::Q6K if n_cols.is_multiple_of(32) => Dtype::Q8_0,
        _ => Dtype::F16,
    }
}

/// Shape of a Llama decoder. Names as in `llama3med::config`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // documented there
pub struct Decoder {
    pub dim: usize,
    pub hidden_dim: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub context_length: usize,
    pub norm_eps: f32,
    pub rope_theta: f32,
    /// Llama-3.1's factors of the rotary frequencies (head_dim / 2).
    pub rope_factors: Option<Vec<f32>>,
    pub tied: bool,
}

impl Decoder {
    /// The keys of `decoder.gguf`.
    pub fn keys(&self, name: &str, vocabulary: &Vocabulary) -> Header {
        let mut header = Header::default();
        header
            .string("general.architecture", "llama")
            .string("general.name", name)
            .u32("general.quantization_version", 2)
            .u32("llama.block_count", self.n_layers as u32)
            .u32("llama.context_length", self.context_length as u32)
            .u32("llama.embedding_length", self.dim as u32)
            .u32("llama.feed_forward_length", self.hidden_dim as u32)
            .u32("llama.attention.head_count", self.n_heads as u32)
            .u32("llama.attention.head_count_kv", self.n_kv_heads as u32)
            .u32("llama.attention.key_length", self.head_dim as u32)
            .u32("llama.attention.value_length", self.head_dim as u32)
            .f32("llama.attention.layer_norm_rms_epsilon", self.norm_eps)
            .f32("llama.rope.freq_base", self.rope_theta)
            .u32("llama.rope.dimension_count", self.head_dim as u32)
            .u32("llama.vocab_size", self.vocab_size as u32);
        vocabulary.keys(&mut header, self.vocab_size);
        header
    }

    /// The tensors of `decoder.gguf`, except `rope_freqs.weight`, which no checkpoint holds.
    pub fn slots(&self) -> Vec<Slot> {
        use Role::{Exact, Matrix};
        let (dim, hidden_dim) = (self.dim, self.hidden_dim);
        let (q, kv) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        let mut slots = vec![
            Slot::new("token_embd.weight".into(), Matrix, &[self.vocab_size, dim], "embed_tokens.weight"),
            Slot::new("output_norm.weight".into(), Exact, &[dim], "norm.weight"),
        ];
        if !self.tied {
            slots.push(Slot::new("output.weight".into(), Matrix, &[self.vocab_size, dim], "lm_head.weight"));
        }
        for layer in 0..self.n_layers {
            let slot = |name: &str, role, shape: &[usize], source: &str| {
                Slot::new(format!("blk.{layer}.{name}.weight"), role, shape, format!("layers.{layer}.{source}.weight"))
            };
            let permuted = |slot: Slot| Slot { head_dim: Some(self.head_dim), ..slot };
            slots.extend([
                slot("attn_norm", Exact, &[dim], "input_layernorm"),
                permuted(slot("attn_q", Matrix, &[q, dim], "self_attn.q_proj")),
                permuted(slot("attn_k", Matrix, &[kv, dim], "self_attn.k_proj")),
                slot("attn_v", Matrix, &[kv, dim], "self_attn.v_proj"),
                slot("attn_output", Matrix, &[dim, q], "self_attn.o_proj"),
                slot("ffn_norm", Exact, &[dim], "post_attention_layernorm"),
                slot("ffn_gate", Matrix, &[hidden_dim, dim], "mlp.gate_proj"),
                slot("ffn_up", Matrix, &[hidden_dim, dim], "mlp.up_proj"),
                slot("ffn_down", Matrix, &[dim, hidden_dim], "mlp.down_proj"),
            ]);
        }
        slots
    }
}

/// The three kinds of image towers, told apart by their tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tower {
    /// OpenAI's CLIP as transformers names it: class token, a norm in front, output of the last block but one.
    Clip,
    /// Google's SigLIP as transformers names it: patches alone.
    Siglip,
    /// A timm vision transformer, such as H-optimus-0: register tokens, layer scale, gated MLP, final norm.
    Timm,
}

/// Shape of an image encoder with its connector.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoder {
    /// Which kind.
    pub tower: Tower,
    /// Side of a tile in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width.
    pub dim: usize,
    /// Width of the MLP, between gate and down where it is gated.
    pub hidden_dim: usize,
    /// Blocks that are run.
    pub n_blocks: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Register tokens after the class token (timm).
    pub n_registers: usize,
    /// Whether the position embedding has a row for the class token.
    pub class_position: bool,
    /// Whether the blocks scale their outputs (timm).
    pub layer_scale: bool,
    /// Whether the MLP is gated (timm).
    pub gated: bool,
    /// quick_gelu, gelu_tanh, gelu or silu.
    pub activation: &'static str,
    /// Added to the variance in LayerNorm.
    pub norm_eps: f32,
    /// Mean of each colour channel.
    pub mean: [f32; 3],
    /// Standard deviation of each colour channel.
    pub std: [f32; 3],
    /// crop, pad or stretch.
    pub fit: &'static str,
    /// Sides at which a picture is seen, ascending; the first is `image_size`.
    pub scales: Vec<usize>,
    /// Tokens dropped from the start of the tower's output, if others than class token and registers.
    pub n_drop: Option<usize>,
    /// Widths of the connector: in, between its layers, out.
    pub connector: Vec<usize>,
}

impl Encoder {
    /// The keys of `encoder.gguf`.
    pub fn keys(&self, name: &str) -> Header {
        let scales: Vec<u32> = self.scales.iter().map(|&scale| scale as u32).collect();
        let mut header = Header::default();
        header
            .string("general.architecture", "clip")
            .string("general.name", name)
            .u32("general.quantization_version", 2)
            .bool("clip.has_vision_encoder", true)
            .bool("clip.has_text_encoder", false)
            .bool("clip.has_llava_projector", true)
            .string("clip.projector_type", "mlp")
            .bool("clip.use_gelu", self.activation != "quick_gelu")
            .u32("clip.vision.image_size", self.image_size as u32)
            .u32("clip.vision.patch_size", self.patch_size as u32)
            .u32("clip.vision.embedding_length", self.dim as u32)
            .u32("clip.vision.feed_forward_length", self.hidden_dim as u32)
            .u32("clip.vision.projection_dim", self.connector[self.connector.len() - 1] as u32)
            .u32("clip.vision.attention.head_count", self.n_heads as u32)
            .f32("clip.vision.attention.layer_norm_epsilon", self.norm_eps)
            .u32("clip.vision.block_count", self.n_blocks as u32)
            // Or llama.cpp would leave out the last of them.
            .i32s("clip.vision.feature_layer", &[self.n_blocks as i32])
            .f32s("clip.vision.image_mean", &self.mean)
            .f32s("clip.vision.image_std", &self.std)
            .string("llama3med.vision.activation", self.activation)
            .string("llama3med.image.fit", self.fit)
            .u32s("llama3med.scales", &scales);
        if let Some(n_drop) = self.n_drop {
            header.u32("llama3med.vision.n_drop", n_drop as u32);
        }
        header
    }

    /// Patches on a tile's side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// The tensors of the tower, then those of the connector.
    pub fn slots(&self) -> (Vec<Slot>, Vec<Slot>) {
        let mut slots = match self.tower {
            Tower::Timm => self.timm_embeddings(),
            Tower::Clip | Tower::Siglip => self.clip_embeddings(),
        };
        for block in 0..self.n_blocks {
            match self.tower {
                Tower::Timm => self.timm_block(block, &mut slots),
                Tower::Clip | Tower::Siglip => self.clip_block(block, &mut slots),
            }
        }
        (slots, self.connector_slots())
    }

    fn clip_embeddings(&self) -> Vec<Slot> {
        let Self { dim, patch_size, .. } = *self;
        let n_positions = self.grid() * self.grid() + self.class_position as usize;
        let source = |name: &str| format!("embeddings.{name}");
        let patches = [dim, 3, patch_size, patch_size];
        let mut slots =
            vec![Slot::new("v.patch_embd.weight".into(), Role::Patch, &patches, source("patch_embedding.weight"))];
        let mut exact = |name: &str, shape: &[usize], source: String| {
            slots.push(Slot::new(name.into(), Role::Exact, shape, source));
        };
        exact("v.position_embd.weight", &[n_positions, dim], source("position_embedding.weight"));
        if self.tower == Tower::Siglip {
            exact("v.patch_embd.bias", &[dim], source("patch_embedding.bias"));
        } else {
            exact("v.class_embd", &[dim], source("class_embedding"));
            // The reference's spelling.
            exact("v.pre_ln.weight", &[dim], "pre_layrnorm.weight".into());
            exact("v.pre_ln.bias", &[dim], "pre_layrnorm.bias".into());
        }
        slots
    }

    fn clip_block(&self, block: usize, slots: &mut Vec<Slot>) {
        let Self { dim, hidden_dim, .. } = *self;
        let layers = [
            ("attn_q", "self_attn.q_proj", dim, dim),
            ("attn_k", "self_attn.k_proj", dim, dim),
            ("attn_v", "self_attn.v_proj", dim, dim),
            ("attn_out", "self_attn.out_proj", dim, dim),
            ("ffn_up", "mlp.fc1", hidden_dim, dim),
            ("ffn_down", "mlp.fc2", dim, hidden_dim),
        ];
        norms(block, &format!("encoder.layers.{block}.layer_norm"), dim, slots);
        for (name, source, n_rows, n_cols) in layers {
            let (name, source) = (format!("v.blk.{block}.{name}"), format!("encoder.layers.{block}.{source}"));
            linear(&name, &source, n_rows, n_cols, slots);
        }
    }

    fn timm_embeddings(&self) -> Vec<Slot> {
        let Self { dim, patch_size, n_registers, .. } = *self;
        let n_positions = self.grid() * self.grid() + self.class_position as usize;
        let exact = |name: &str, shape: &[usize], source: &str| Slot::new(name.into(), Role::Exact, shape, source);
        let patches = [dim, 3, patch_size, patch_size];
        let mut slots = vec![
            Slot::new("v.patch_embd.weight".into(), Role::Patch, &patches, "patch_embed.proj.weight"),
            exact("v.patch_embd.bias", &[dim], "patch_embed.proj.bias"),
            exact("v.position_embd.weight", &[n_positions, dim], "pos_embed").part_of(&[1, n_positions, dim], 0),
            exact("v.class_embd", &[dim], "cls_token").part_of(&[1, 1, dim], 0),
            exact("v.post_ln.weight", &[dim], "norm.weight"),
            exact("v.post_ln.bias", &[dim], "norm.bias"),
        ];
        if n_registers > 0 {
            slots.push(exact("v.reg_embd.weight", &[n_registers, dim], "reg_token").part_of(&[1, n_registers, dim], 0));
        }
        slots
    }

    fn timm_block(&self, block: usize, slots: &mut Vec<Slot>) {
        let Self { dim, hidden_dim, .. } = *self;
        let source = |name: &str| format!("blocks.{block}.{name}");
        let name = |name: &str| format!("v.blk.{block}.{name}");
        norms(block, &source("norm"), dim, slots);
        stacked(&["attn_q", "attn_k", "attn_v"].map(name), &source("attn.qkv"), dim, dim, slots);
        linear(&name("attn_out"), &source("attn.proj"), dim, dim, slots);
        if self.gated {
            // GluMlp with gate_last=False: the first half goes through the activation.
            stacked(&["ffn_gate", "ffn_up"].map(name), &source("mlp.fc1"), hidden_dim, dim, slots);
        } else {
            linear(&name("ffn_up"), &source("mlp.fc1"), hidden_dim, dim, slots);
        }
        linear(&name("ffn_down"), &source("mlp.fc2"), dim, hidden_dim, slots);
        if self.layer_scale {
            for ls in ["ls1", "ls2"] {
                let name = format!("v.blk.{block}.{ls}.weight");
                slots.push(Slot::new(name, Role::Exact, &[dim], source(&format!("{ls}.gamma"))));
            }
        }
    }

    fn connector_slots(&self) -> Vec<Slot> {
        let mut slots = Vec::new();
        for (layer, widths) in self.connector.windows(2).enumerate() {
            let at = 2 * layer;
            linear(&format!("mm.{at}"), &format!("{at}"), widths[1], widths[0], &mut slots);
        }
        slots
    }
}

fn norms(block: usize, source: &str, dim: usize, slots: &mut Vec<Slot>) {
    for norm in 1..=2 {
        for part in ["weight", "bias"] {
            let name = format!("v.blk.{block}.ln{norm}.{part}");
            slots.push(Slot::new(name, Role::Exact, &[dim], format!("{source}{norm}.{part}")));
        }
    }
}

fn linear(name: &str, source: &str, n_rows: usize, n_cols: usize, slots: &mut Vec<Slot>) {
    stacked(&[name.into()], source, n_rows, n_cols, slots);
}

/// Several linear layers of equal shape that the checkpoint keeps in one, one below the other.
fn stacked(names: &[String], source: &str, n_rows: usize, n_cols: usize, slots: &mut Vec<Slot>) {
    let total = names.len() * n_rows;
    for (i, name) in names.iter().enumerate() {
        let (weight, bias) = (format!("{source}.weight"), format!("{source}.bias"));
        slots.extend([
            Slot::new(format!("{name}.weight"), Role::Matrix, &[n_rows, n_cols], weight)
                .part_of(&[total, n_cols], i * n_rows * n_cols),
            Slot::new(format!("{name}.bias"), Role::Exact, &[n_rows], bias).part_of(&[total], i * n_rows),
        ]);
    }
}
