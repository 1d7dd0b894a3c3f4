//! `config.json` and its companions: the numbers that the tensors alone do not show, and whether both agree.
//!
//! Tensor shapes take precedence over configured numbers: for H-optimus-0 the configuration has CLIP's defaults beside
//! the true values.

use crate::checkpoint::Checkpoint;
use crate::checkpoint::family::{self, Family};
use crate::checkpoint::fields::Json;
use crate::{CLIP_MEAN_STD, OPTIMUS_MEAN_STD, SIGLIP_MEAN_STD};
use llama3med::device::ops::Activation;
use llama3med::device::rope::llama3_factors;
use llama3med::picture::Fit;
use llama3med::spec::watch::Part;
use llama3med::spec::{Architecture, ConnectorSpec, DecoderSpec, EncoderSpec, Tower, VisionSpec};
use llama3med::{Error, Result};
use serde_json::Value;

/// Every layer and block becomes a list of expected tensors: an absurd number must not make that list huge.
const MAX_LAYERS: usize = 1 << 10;

/// Shape of the decoder, with the numbers of the configuration, which the tensors are checked against later; and the
/// factors of its rotary frequencies.
pub fn decoder(checkpoint: &Checkpoint) -> Result<(DecoderSpec, Option<Vec<f32>>)> {
    let config = &checkpoint.config;
    let prefix = if config.get("text_config").is_some() { "text_config." } else { "" };
    let path = |key: &str| format!("{prefix}{key}");
    if !prefix.is_empty() {
        config.only(&path("model_type"), &["llama", "mistral", "tinyllava", "llama3med", "qwen2"])?;
    }
    config.only(&path("hidden_act"), &["silu"])?;
    // transformers omits values equal to its defaults: there the tensors decide, or else the default.
    let is_sparse = matches!(checkpoint.family, Family::Transformers | Family::Language);
    let shape = |name: &str| checkpoint.shape(Part::Decoder, name).filter(|shape| is_sparse && shape.len() == 2);
    let count = |key: &str, sparse: Option<usize>| {
        config.count(&path(key)).and_then(|n| config.required(&path(key), n.or(sparse.filter(|_| is_sparse))))
    };
    let embedding = shape("embed_tokens.weight");
    let dim = count("hidden_size", embedding.map(|shape| shape[1]))?;
    let n_heads = count("num_attention_heads", Some(32))?;
    let n_layers = count("num_hidden_layers", Some(count_blocks(checkpoint, Part::Decoder, "layers.")?.max(1)))?;
    if n_layers > MAX_LAYERS {
        return Err(
            config.error(&path("num_hidden_layers"), format!("expected at most {MAX_LAYERS}, found {n_layers}"))
        );
    }
    let head_dim = config.count(&path("head_dim"))?.unwrap_or(dim / n_heads);
    let stored = shape("layers.0.self_attn.k_proj.weight").map(|shape| shape[0] / head_dim.max(1)).filter(|&n| n > 0);
    let n_kv_heads = config.count(&path("num_key_value_heads"))?.or(stored).unwrap_or(n_heads);
    if n_heads % n_kv_heads != 0 {
        let problem = format!("{n_kv_heads} does not divide the {n_heads} attention heads");
        return Err(config.error(&path("num_key_value_heads"), problem));
    }
    if head_dim == 0 || head_dim % 2 != 0 {
        return Err(config.error(&path("head_dim"), format!("expected an even number, found {head_dim}")));
    }
    let theta = config.number(&path("rope_theta"))?.or(config.number(&path("rope_parameters.rope_theta"))?);
    let theta = config.required(&path("rope_theta"), theta.or(is_sparse.then_some(10_000.0)))? as f32;
    if theta <= 1.0 {
        return Err(config.error(&path("rope_theta"), format!("expected a number above 1, found {theta}")));
    }
    let eps = config.number(&path("rms_norm_eps"))?;
    let norm_eps = config.required(&path("rms_norm_eps"), eps.or(is_sparse.then_some(1e-6)))?;
    if !(0.0..0.1).contains(&norm_eps) {
        return Err(config.error(&path("rms_norm_eps"), format!("expected 0 to 0.1, found {norm_eps}")));
    }
    let tied = config.flag(&path("tie_word_embeddings"))?.or(config.flag("tie_word_embeddings")?);
    let tied = tied.unwrap_or_else(|| checkpoint.shape(Part::Decoder, "lm_head.weight").is_none());
    let architecture = if family::is_qwen2(config) { Architecture::QWEN2 } else { Architecture::LLAMA };
    let rope_factors = rope_factors(config, prefix, head_dim, theta)?;
    let spec = DecoderSpec {
        architecture,
        dim,
        hidden_dim: count("intermediate_size", shape("layers.0.mlp.gate_proj.weight").map(|shape| shape[0]))?,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        vocab_size: count("vocab_size", embedding.map(|shape| shape[0]))?,
        context_length: context_length(config, prefix, is_sparse, architecture)?,
        norm_eps: norm_eps as f32,
        rope_theta: theta,
        rope_scaled: rope_factors.is_some(),
        tied,
        head_unit: 1,
        exact_cache: false,
    };
    Ok((spec, rope_factors))
}

/// Number of positions that the model was trained for.
fn context_length(config: &Json, prefix: &str, is_sparse: bool, architecture: Architecture) -> Result<usize> {
    let path = |key: &str| format!("{prefix}{key}");
    let is_mistral = config.string(&path("model_type"))?.is_some_and(|kind| kind.ends_with("mistral"));
    let is_qwen2 = architecture == Architecture::QWEN2;
    let usual = match (is_mistral, is_qwen2) {
        (true, _) => 131_072.0,
        (_, true) => 32_768.0,
        _ => 2048.0,
    };
    let context = config.number(&path("max_position_embeddings"))?.or(is_sparse.then_some(usual));
    let context = config.required(&path("max_position_embeddings"), context.filter(|n| (1.0..1e9).contains(n)))?;
    // Within its window, sliding attention sees everything, so the context is limited to the window.
    let slides = is_mistral || is_qwen2 && config.flag(&path("use_sliding_window"))? == Some(true);
    let window = config.count(&path("sliding_window"))?.filter(|_| slides).unwrap_or(usize::MAX);
    Ok((context as usize).min(window))
}

fn rope_factors(config: &Json, prefix: &str, head_dim: usize, theta: f32) -> Result<Option<Vec<f32>>> {
    for key in ["rope_scaling", "rope_parameters"] {
        let path = |field: &str| format!("{prefix}{key}.{field}");
        let kind = config.string(&path("rope_type"))?.or(config.string(&path("type"))?);
        match kind.as_deref() {
            Some("llama3") => {}
            None | Some("default") => continue,
            Some(other) => {
                return Err(config.error(&path("rope_type"), format!("expected llama3 or default, found {other:?}")));
            }
        }
        let number = |field: &str| -> Result<f32> {
            let value = config.number(&path(field))?.filter(|&x| x > 0.0 && x < 1e9);
            config.required(&path(field), value).map(|x| x as f32)
        };
        let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
        if low >= high {
            return Err(config.error(&path("low_freq_factor"), format!("{low} is not below high_freq_factor {high}")));
        }
        let (factor, original) = (number("factor")?, number("original_max_position_embeddings")?);
        return Ok(Some(llama3_factors(head_dim, theta, factor, low, high, original)));
    }
    Ok(None)
}

/// Ids that end an answer, if the configuration lists them.
pub fn stop_ids(checkpoint: &Checkpoint) -> Result<Vec<u32>> {
    let mut ids = checkpoint.config.ids("text_config.eos_token_id")?;
    ids.extend(checkpoint.config.ids("eos_token_id")?);
    if let Some(generation) = &checkpoint.generation {
        ids.extend(generation.ids("eos_token_id")?);
    }
    Ok(ids)
}

/// Shape of tower and connector: sizes from the tensors, the rest from the configuration.
pub fn vision(checkpoint: &Checkpoint, scales: Option<&[usize]>, dim: usize) -> Result<VisionSpec> {
    let mut encoder = match checkpoint.shape(Part::Tower, "patch_embed.proj.weight") {
        Some(_) => timm(checkpoint)?,
        None => transformers(checkpoint)?,
    };
    let connector = connector(checkpoint, dim)?;
    encoder.scales = self::scales(checkpoint, &encoder, connector.n_inputs(), scales)?;
    if encoder.n_heads == 0 || encoder.dim % encoder.n_heads != 0 {
        let problem = format!("{} does not divide the width {}", encoder.n_heads, encoder.dim);
        return Err(checkpoint.config.error("vision_config: number of heads", problem));
    }
    encoder.n_drop = n_drop(checkpoint, &encoder)?.unwrap_or(encoder.n_prefix());
    encoder.fit = fit(checkpoint, encoder.tower)?;
    if let Some(preprocessor) = &checkpoint.preprocessor {
        encoder.mean = preprocessor.channels("image_mean")?.unwrap_or(encoder.mean);
        encoder.std = preprocessor.channels("image_std")?.unwrap_or(encoder.std);
        if encoder.std.iter().any(|&std| std <= 0.0) {
            return Err(preprocessor.error("image_std", "expected positive numbers".into()));
        }
    }
    Ok(VisionSpec { encoder, connector })
}

/// CLIP and SigLIP with transformers' names; SigLIP has no class token.
fn transformers(checkpoint: &Checkpoint) -> Result<EncoderSpec> {
    let config = &checkpoint.config;
    let (dim, patch_size) = patches(checkpoint, "embeddings.patch_embedding.weight")?;
    let is_clip = checkpoint.shape(Part::Tower, "embeddings.class_embedding").is_some();
    let (tower, (mean, std)) = if is_clip { (Tower::Clip, CLIP_MEAN_STD) } else { (Tower::Siglip, SIGLIP_MEAN_STD) };
    let positions = "embeddings.position_embedding.weight";
    let n_positions = *checkpoint.required_shape(Part::Tower, positions)?.first().unwrap_or(&0);
    let grid = square(checkpoint, positions, n_positions.saturating_sub(is_clip as usize))?;
    let image_size = side(config, "vision_config.image_size", grid, patch_size)?;
    agrees(config, "vision_config.patch_size", patch_size)?;
    agrees(config, "vision_config.hidden_size", dim)?;
    let fc1 = checkpoint.required_shape(Part::Tower, "encoder.layers.0.mlp.fc1.weight")?;
    let &[hidden_dim, _] = fc1 else {
        return Err(bad_shape("encoder.layers.0.mlp.fc1.weight", "two dimensions".into(), fc1));
    };
    let stored = count_blocks(checkpoint, Part::Tower, "encoder.layers.")?;
    agrees(config, "vision_config.num_hidden_layers", stored)?;
    let n_inputs = checkpoint.required_shape(Part::Connector, "0.weight")?.get(1);
    let is_multi_scale = n_inputs.is_some_and(|&n_inputs| n_inputs > dim);
    let activation = match config.string("vision_config.hidden_act")?.as_deref() {
        None if is_clip => Activation::QuickGelu,
        Some("quick_gelu") => Activation::QuickGelu,
        None | Some("gelu_pytorch_tanh" | "gelu_new") => Activation::GeluTanh,
        Some("gelu") => Activation::Gelu,
        Some(other) => {
            let problem = format!("expected quick_gelu, gelu_pytorch_tanh or gelu, found {other:?}");
            return Err(config.error("vision_config.hidden_act", problem));
        }
    };
    let eps = config.number("vision_config.layer_norm_eps")?.unwrap_or(if is_clip { 1e-5 } else { 1e-6 });
    Ok(EncoderSpec {
        tower,
        image_size,
        patch_size,
        dim,
        hidden_dim,
        n_layers: blocks_run(checkpoint, stored, is_multi_scale)?,
        n_heads: match checkpoint.family {
            // CLIP's and SigLIP's default.
            Family::Transformers => config.count("vision_config.num_attention_heads")?.unwrap_or(12),
            _ => heads(config, "vision_config.num_attention_heads", dim)?,
        },
        head_unit: 1,
        cls_token: is_clip,
        n_reg_tokens: 0,
        embed_prefix: is_clip,
        patch_bias: !is_clip,
        norm_pre: is_clip,
        norm: false,
        layer_scale: false,
        gated: false,
        mlp_swapped: false,
        activation,
        norm_eps: eps as f32,
        mean,
        std,
        fit: Fit::Crop,
        scales: Vec::new(),
        n_drop: 0,
    })
}

/// A timm tower. Only the timm fields of `vision_config` are used: the others are CLIP's defaults.
fn timm(checkpoint: &Checkpoint) -> Result<EncoderSpec> {
    let config = &checkpoint.config;
    let (dim, patch_size) = patches(checkpoint, "patch_embed.proj.weight")?;
    let n_registers = match checkpoint.shape(Part::Tower, "reg_token") {
        Some(&[1, n, _]) => n,
        Some(other) => return Err(bad_shape("reg_token", format!("[1, n, {dim}]"), other)),
        None => 0,
    };
    let n_positions = match checkpoint.required_shape(Part::Tower, "pos_embed")? {
        &[1, n, _] => n,
        other => return Err(bad_shape("pos_embed", format!("[1, n, {dim}]"), other)),
    };
    let class_position = n_positions.isqrt().pow(2) != n_positions;
    let grid = square(checkpoint, "pos_embed", n_positions.saturating_sub(class_position as usize))?;
    agrees(config, "vision_config.reg_tokens", n_registers)?;
    let image_size = side(config, "vision_config.img_size", grid, patch_size)?;
    let n_blocks = count_blocks(checkpoint, Part::Tower, "blocks.")?;
    agrees(config, "vision_config.depth", n_blocks)?;
    let fc1 = checkpoint.required_shape(Part::Tower, "blocks.0.mlp.fc1.weight")?;
    let fc2 = checkpoint.required_shape(Part::Tower, "blocks.0.mlp.fc2.weight")?;
    let (&[up, _], &[_, hidden_dim]) = (fc1, fc2) else {
        return Err(bad_shape("blocks.0.mlp.fc2.weight", "two dimensions".into(), fc2));
    };
    let gated = match up {
        _ if up == hidden_dim => false,
        _ if Some(up) == hidden_dim.checked_mul(2) => true,
        _ => return Err(bad_shape("blocks.0.mlp.fc1.weight", format!("{hidden_dim} or twice as many rows"), fc1)),
    };
    let (mean, std) = OPTIMUS_MEAN_STD;
    Ok(EncoderSpec {
        tower: Tower::Timm,
        image_size,
        patch_size,
        dim,
        hidden_dim,
        n_layers: n_blocks,
        n_heads: heads(config, "vision_config.num_heads", dim)?,
        head_unit: 1,
        cls_token: true,
        n_reg_tokens: n_registers,
        embed_prefix: class_position,
        patch_bias: true,
        norm_pre: false,
        norm: true,
        layer_scale: checkpoint.shape(Part::Tower, "blocks.0.ls1.gamma").is_some(),
        gated,
        mlp_swapped: false,
        activation: if gated { Activation::Silu } else { Activation::Gelu },
        norm_eps: 1e-6,
        mean,
        std,
        fit: Fit::Crop,
        scales: Vec::new(),
        n_drop: 0,
    })
}

fn bad_shape(tensor: &str, expected: String, found: &[usize]) -> Error {
    Error::Shape { tensor: format!("vision_tower._vision_tower.{tensor}"), expected, found: format!("{found:?}") }
}

/// Width and patch size from the patch embedding (dim, 3, patch, patch).
fn patches(checkpoint: &Checkpoint, name: &str) -> Result<(usize, usize)> {
    match checkpoint.required_shape(Part::Tower, name)? {
        &[dim, 3, p, q] if p == q && p > 0 && dim > 0 => Ok((dim, p)),
        other => Err(bad_shape(name, "[width, 3, patch, patch]".into(), other)),
    }
}

fn square(checkpoint: &Checkpoint, name: &str, n: usize) -> Result<usize> {
    let grid = n.isqrt();
    if grid > 0 && grid * grid == n && grid < 1 << 10 {
        return Ok(grid);
    }
    let shape = checkpoint.shape(Part::Tower, name).unwrap_or_default();
    Err(bad_shape(name, "a square number of positions, with or without one for the class token".into(), shape))
}

/// One more than the highest block index.
fn count_blocks(checkpoint: &Checkpoint, part: Part, prefix: &str) -> Result<usize> {
    let block = |name: &str| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
    let tensors = checkpoint.tensors.iter().filter(|((found, _), _)| *found == part);
    let mut n_blocks = 0;
    for ((_, name), tensor) in tensors {
        match block(name) {
            Some(block) if block >= MAX_LAYERS => {
                let problem = format!("expected at most {MAX_LAYERS} blocks");
                return Err(Error::corrupt(&tensor.file_name, &tensor.name, problem));
            }
            Some(block) => n_blocks = n_blocks.max(block + 1),
            None => {}
        }
    }
    Ok(n_blocks)
}

fn agrees(config: &Json, path: &str, found: usize) -> Result<()> {
    let expected = match config.get(path).and_then(Value::as_u64) {
        Some(0) => Some(0),
        _ => config.count(path)?,
    };
    match expected {
        Some(expected) if expected != found => {
            Err(config.error(path, format!("it says {expected}, the tensors have {found}")))
        }
        _ => Ok(()),
    }
}

/// Side of a tile. The position embeddings show how many whole patches it has; SigLIP's 384 pixels are 27 patches of 14
/// and a remainder.
fn side(config: &Json, path: &str, grid: usize, patch_size: usize) -> Result<usize> {
    // timm allows [height, width].
    let size = match config.get(path) {
        Some(Value::Array(sides)) if sides.len() == 2 && sides[0] == sides[1] => {
            sides[0].as_u64().map(|side| side as usize)
        }
        _ => config.count(path)?,
    };
    match size {
        None => Ok(grid * patch_size),
        Some(size) if size / patch_size == grid => Ok(size),
        Some(size) => {
            let problem = format!("{size} pixels, but the tensors have {grid} x {grid} patches of {patch_size}");
            Err(config.error(path, problem))
        }
    }
}

/// The number of heads cannot be derived from the tensors. Towers that no configuration names are recognised by their
/// width.
fn heads(config: &Json, path: &str, dim: usize) -> Result<usize> {
    let known = match dim {
        _ if config.get("vision_config").is_some() => None,
        768 => Some(12),
        1024 | 1152 => Some(16),
        1536 => Some(24),
        _ => None,
    };
    let heads = config.count(path)?.or(known);
    config.required(path, heads)
}

/// How many blocks run: `hidden_states[-2]` is the output of the second-to-last block. The multi-scale path of
/// Llama3-Med's reference code ignores the configured layer; with every other code the configuration decides.
fn blocks_run(checkpoint: &Checkpoint, stored: usize, is_multi_scale: bool) -> Result<usize> {
    let config = &checkpoint.config;
    let (path, is_chosen) = match checkpoint.family {
        Family::Llama3Med => ("vision_feature_layer", !is_multi_scale),
        Family::Llava => ("mm_vision_select_layer", true),
        Family::Transformers | Family::Language => ("vision_feature_layer", true),
    };
    let layer = match config.number(path)? {
        Some(layer) if is_chosen => layer,
        _ => -2.0,
    };
    let blocks = if layer < 0.0 { stored as f64 + 1.0 + layer } else { layer };
    if layer.fract() != 0.0 || blocks < 1.0 || blocks > stored as f64 {
        return Err(config.error(path, format!("layer {layer} of a tower with {stored} blocks")));
    }
    Ok(blocks as usize)
}

/// The class token is dropped unless the configuration keeps it; timm towers always drop theirs. transformers' LLaVA
/// drops the first token by default even if it is a patch, as with SigLIP.
fn n_drop(checkpoint: &Checkpoint, encoder: &EncoderSpec) -> Result<Option<usize>> {
    let config = &checkpoint.config;
    let is_multi_scale = encoder.scales.len() > 1;
    if checkpoint.family == Family::Llama3Med && is_multi_scale || encoder.tower == Tower::Timm {
        return Ok(None);
    }
    let path = match checkpoint.family {
        Family::Llava => "mm_vision_select_feature",
        _ => "vision_feature_select_strategy",
    };
    config.only(path, &["patch", "default", "full", "cls_patch"])?;
    let keeps = config.string(path)?.is_some_and(|strategy| strategy == "full" || strategy == "cls_patch");
    match (encoder.tower, checkpoint.family) {
        (Tower::Clip, _) if keeps && is_multi_scale => {
            Err(config.error(path, "the class token cannot be kept where tiles are merged".into()))
        }
        (Tower::Clip, _) => Ok(keeps.then_some(0)),
        (Tower::Siglip, Family::Transformers) if !keeps => Ok(Some(1)),
        _ => Ok(None),
    }
}

/// Widths of the connector, from its tensors.
fn connector(checkpoint: &Checkpoint, dim: usize) -> Result<ConnectorSpec> {
    let config = &checkpoint.config;
    config.only("projector_hidden_act", &["gelu"])?;
    let mut widths = Vec::new();
    while let Some(shape) = checkpoint.shape(Part::Connector, &format!("{}.weight", 2 * widths.len().saturating_sub(1)))
    {
        let &[n_rows, n_cols] = shape else { break };
        if widths.is_empty() {
            widths.push(n_cols);
        }
        widths.push(n_rows);
    }
    if widths.is_empty() {
        checkpoint.required_shape(Part::Connector, "0.weight")?;
    }
    let n_layers = widths.len().saturating_sub(1);
    if n_layers == 0 || widths[n_layers] != dim {
        let expected = format!("a connector that ends in the decoder's width {dim}");
        return Err(Error::Shape { tensor: "connector._connector".into(), expected, found: format!("{widths:?}") });
    }
    for path in ["connector_type", "mm_projector_type"] {
        let Some(kind) = config.string(path)? else { continue };
        let depth = if kind == "linear" { Some(1) } else { mlp_depth(&kind) };
        if depth != Some(n_layers) {
            let problem =
                format!("{kind:?} does not match the {n_layers} layers in the tensors (linear, mlp2x_gelu, …)");
            return Err(config.error(path, problem));
        }
    }
    Ok(ConnectorSpec { widths })
}

fn mlp_depth(kind: &str) -> Option<usize> {
    kind.strip_prefix("mlp")?.strip_suffix("x_gelu")?.parse().ok()
}

/// The scales: their number is the connector's input width divided by the tower's width. `s2_scales` is used if it
/// fits; without it, the scales of well-known towers are.
fn scales(
    checkpoint: &Checkpoint,
    encoder: &EncoderSpec,
    n_inputs: usize,
    given: Option<&[usize]>,
) -> Result<Vec<usize>> {
    let (config, size) = (&checkpoint.config, encoder.image_size);
    if n_inputs % encoder.dim != 0 {
        let expected = format!("a multiple of the tower's width {}", encoder.dim);
        return Err(Error::Shape {
            tensor: "connector._connector.0.weight".into(),
            expected,
            found: format!("{n_inputs}"),
        });
    }
    let n_scales = n_inputs / encoder.dim;
    if let Some(scales) = given {
        return check_scales(size, n_scales, scales.to_vec())
            .map_err(|problem| Error::Invalid(format!("scales: {problem}")));
    }
    if n_scales == 1 {
        return Ok(vec![size]);
    }
    // The reference fills in its own default if the configuration has none, so a list of another length says nothing.
    if let Some(scales) = s2_scales(config)?.filter(|scales| scales.len() == n_scales) {
        return check_scales(size, n_scales, scales).map_err(|problem| config.error("s2_scales", problem));
    }
    match (size, n_scales) {
        (224, 3) if encoder.tower == Tower::Timm => Ok(vec![224, 672, 1344]),
        (336, 3) => Ok(vec![336, 672, 1008]),
        (384, 3) => Ok(vec![384, 768, 1152]),
        _ => Err(config.error(
            "s2_scales",
            format!("the connector takes {n_scales} scales of {size} pixels and more; name them with --scales"),
        )),
    }
}

fn s2_scales(config: &Json) -> Result<Option<Vec<usize>>> {
    let read = |value: &Value| match value {
        Value::String(text) => text.split(',').map(|scale| scale.trim().parse().ok()).collect(),
        Value::Array(list) => list.iter().map(|scale| scale.as_u64().map(|scale| scale as usize)).collect(),
        _ => None,
    };
    config.read_as("s2_scales", "sizes such as \"336,672,1008\"", read)
}

fn check_scales(size: usize, n_scales: usize, mut scales: Vec<usize>) -> std::result::Result<Vec<usize>, String> {
    scales.sort_unstable();
    if scales.len() != n_scales {
        return Err(format!("the connector takes {n_scales} scales, found {scales:?}"));
    }
    if scales[0] != size {
        return Err(format!("the smallest must be the tower's {size} pixels, found {scales:?}"));
    }
    if scales.windows(2).any(|pair| pair[0] == pair[1])
        || scales.iter().any(|scale| scale % size != 0 || *scale > 1 << 14)
    {
        return Err(format!("expected different multiples of {size} up to {}, found {scales:?}", 1 << 14));
    }
    Ok(scales)
}

/// How a picture becomes square. transformers stores it in the image processor's configuration, the others in the
/// model's configuration.
fn fit(checkpoint: &Checkpoint, tower: Tower) -> Result<Fit> {
    let config = &checkpoint.config;
    if checkpoint.family == Family::Transformers {
        let (mut pads, mut crops) = (false, tower != Tower::Siglip);
        if let Some(preprocessor) = &checkpoint.preprocessor {
            pads = preprocessor.flag("do_pad")?.unwrap_or(false);
            crops = preprocessor.flag("do_center_crop")?.unwrap_or(crops);
        }
        return Ok(match (pads, crops) {
            (true, _) => Fit::Pad,
            (false, true) => Fit::Crop,
            (false, false) => Fit::Stretch,
        });
    }
    match config.string("image_aspect_ratio")?.as_deref() {
        Some("pad") => Ok(Fit::Pad),
        // SigLIP's image processor does not crop: it stretches.
        None | Some("square") if tower == Tower::Siglip => Ok(Fit::Stretch),
        None | Some("square") => Ok(Fit::Crop),
        Some(other) => Err(config.error("image_aspect_ratio", format!("expected square or pad, found {other:?}"))),
    }
}
