//! Which family a checkpoint belongs to, by its configuration's keys and its tensors, never by a folder's name; and
//! what it is if it is not a supported model.

use crate::checkpoint::Checkpoint;
use crate::checkpoint::fields::Json;
use llama3med::spec::watch::Part;
use llama3med::{Error, Result};
use serde_json::Value;

/// Families, by how their configurations are written and how their code handles an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama3-Med and TinyLLaVA-Factory: `connector_type`, and parts with their own configurations.
    Llama3Med,
    /// LLaVA's original layout (LLaVA-1.5, LLaVA-Med v1.5, LLaVA-Tri): the language model's configuration with `mm_*`
    /// keys.
    Llava,
    /// transformers' LLaVA: `text_config` and `vision_config`, from which values equal to the defaults are omitted.
    Transformers,
    /// transformers' Llama, Mistral or Qwen2: a language model alone, which takes no pictures.
    Language,
}

/// Unsupported models: what their `model_type` or architecture contains, and what they are.
const OTHERS: [(&str, &str); 20] = [
    ("gemma3", "MedGemma or Gemma 3: a Gemma decoder, 256 pooled image tokens"),
    ("paligemma", "PaliGemma: a Gemma decoder"),
    ("mllama", "Llama-3.2-Vision: its decoder looks at the image by cross attention"),
    ("llava_next", "LLaVA-NeXT: its tiles follow the image's shape (anyres)"),
    ("llavanext", "LLaVA-NeXT: its tiles follow the image's shape (anyres)"),
    ("llava_onevision", "LLaVA-OneVision: a Qwen decoder, anyres tiles"),
    ("idefics", "Idefics: shuffled pixels or cross attention"),
    ("smolvlm", "SmolVLM: shuffled pixels and rows of tiles in the prompt"),
    ("qwen", "Qwen-VL: a Qwen decoder with positions in two dimensions"),
    ("internvl", "InternVL: shuffled pixels"),
    ("mistral3", "Mistral 3: a Pixtral tower"),
    ("pixtral", "Pixtral: rotary positions in the tower"),
    ("llava_phi", "a LLaVA with a Phi decoder"),
    ("llava_gemma", "a LLaVA with a Gemma decoder"),
    ("llava_mpt", "a LLaVA with an MPT decoder"),
    ("vipllava", "ViP-LLaVA: features of several layers"),
    ("video_llava", "Video-LLaVA: two towers"),
    ("mgm", "Mini-Gemini: two towers"),
    ("mini_gemini", "Mini-Gemini: two towers"),
    ("instructblip", "InstructBLIP: a Q-Former between tower and decoder"),
];

/// Configuration keys of a vision part: any of them shows that a language model is only half of a model.
const VISION_KEYS: [&str; 4] = ["vision_config", "connector_type", "mm_vision_tower", "mm_projector_type"];

/// The supported models, for error messages.
const INSTEAD: &str = "what works: Llama3-Med, LLaVA-Med v1.5, LLaVA-Tri and LLaVA-Llama-3, LLaVA-1.5, TinyLLaVA with TinyLlama, LLaVA with Qwen2";

/// How configurations name a Qwen2 decoder: `model_type` or architecture, in lower case.
const QWEN2: [&str; 5] = ["qwen2", "qwen2forcausallm", "llava_qwen", "llavaqwenforcausallm", "llava_qwen2"];

/// Whether a configuration's language model is a Qwen2.
pub fn is_qwen2(config: &Json) -> bool {
    let text = &config.value["text_config"];
    let names = [&config.value, text].map(names_in).concat();
    names.iter().any(|name| QWEN2.contains(&name.as_str()))
}

/// A configuration's `architectures` and `model_type` in lower case.
fn names_in(config: &Value) -> Vec<String> {
    let architectures = config["architectures"].as_array().into_iter().flatten();
    architectures.chain([&config["model_type"]]).filter_map(Value::as_str).map(str::to_lowercase).collect()
}

/// The family, or what the checkpoint is instead.
pub fn recognise(checkpoint: &Checkpoint) -> Result<Family> {
    let config = &checkpoint.config;
    let model_type = config.string("model_type")?.unwrap_or_default();
    let names: Vec<String> =
        names_in(&config.value).into_iter().filter(|name| !QWEN2.contains(&name.as_str())).collect();
    let refuse = |what: &str| Err(config.error("model_type", format!("{model_type:?} is {what}; {INSTEAD}")));
    if let Some((_, what)) = OTHERS.iter().find(|(word, _)| names.iter().any(|name| name.contains(word))) {
        return refuse(what);
    }
    let says = |key: &str, word: &str| config.string(key).ok().flatten().is_some_and(|value| value.contains(word));
    if says("image_aspect_ratio", "anyres") || says("mm_patch_merge_type", "spatial") {
        return refuse(
            "LLaVA-NeXT (1.6): its tiles follow the image's shape (image_aspect_ratio anyres, mm_patch_merge_type spatial)",
        );
    }
    if says("mm_projector_type", "downsample") {
        return refuse("VILA: its projector folds neighbouring image tokens together");
    }
    if config.flag("mm_use_im_start_end")? == Some(true) {
        return refuse(
            "LLaVA 1.0 or LLaVA-Med 1.0 (mm_use_im_start_end), whose published weights are deltas; LLaVA-Med v1.5 is whole",
        );
    }
    let has = |part| checkpoint.tensors.keys().any(|(found, _)| *found == part);
    let family = match model_type.as_str() {
        "tinyllava" | "llama3med" => Family::Llama3Med,
        _ if config.get("text_config").is_some() => match model_type.as_str() {
            "llava" => Family::Transformers,
            _ => return refuse("no LLaVA"),
        },
        "llava" | "llava_llama" | "llava_mistral" | "llava_qwen" | "llava_qwen2" => Family::Llava,
        "llama" | "mistral" | "qwen2" if has(Part::Connector) => Family::Llava,
        "llama" | "mistral" | "qwen2"
            if !has(Part::Tower) && !VISION_KEYS.iter().any(|key| config.get(key).is_some()) =>
        {
            refuse_deltas(checkpoint)?;
            return Ok(Family::Language);
        }
        "llama" | "mistral" | "qwen2" => {
            return refuse(
                "a language model without a tower and a connector: as a part of one that has them, name it with --decoder",
            );
        }
        _ => return refuse("of no family known here"),
    };
    let named = |keys: &[&str]| {
        let name = keys.iter().find_map(|key| config.string(key).ok().flatten().filter(|name| !name.is_empty()));
        name.map_or_else(String::new, |name| format!(" ({name})"))
    };
    let parts: [(Part, &str, &str, &[&str]); 3] = [
        (Part::Decoder, "language model", "--decoder", &["llm_model_name_or_path", "_name_or_path"]),
        (Part::Tower, "image tower", "--encoder", &["vision_model_name_or_path", "mm_vision_tower"]),
        (Part::Connector, "connector", "--connector", &["pretrain_mm_mlp_adapter"]),
    ];
    if let Some((_, what, flag, keys)) = parts.into_iter().find(|(part, ..)| !has(*part)) {
        let problem = format!("the {what}{} is not in the checkpoint: name its folder with {flag}", named(keys));
        return Err(Error::corrupt(checkpoint.folder.display().to_string(), "tensors", problem));
    }
    refuse_deltas(checkpoint)?;
    Ok(family)
}

/// Weights published as differences from another model's: their norm weights are close to 0, whereas a model's are
/// close to 1 or larger.
fn refuse_deltas(checkpoint: &Checkpoint) -> Result<()> {
    let Some(norm) = checkpoint.tensors.get(&(Part::Decoder, "norm.weight".into())) else { return Ok(()) };
    let mut weights = Vec::new();
    norm.check_dtype()?;
    norm.read(0..norm.shape.iter().product::<usize>().min(1 << 16), &mut weights)?;
    if weights.iter().all(|weight| weight.abs() < 0.1) {
        let problem = "all its weights are close to 0: these are delta weights, to be added to their base model before anything else";
        return Err(Error::corrupt(&norm.file_name, &norm.name, problem));
    }
    Ok(())
}
