//! LoRA adapters as PEFT saves them: `adapter_config.json` beside `adapter_model.safetensors` or `.bin`, and LLaVA's `non_lora_trainables.bin`.
//!
//! Nothing is merged ahead of time: each matrix carries its update, which is added as rows are read. A linear layer's
//! update is B A whatever `fan_in_fan_out` says, because PEFT itself ignores it for linear layers, and a Llama has no
//! others.

use crate::checkpoint::fields::Json;
use crate::checkpoint::tensor::{LowRank, Tensor};
use crate::checkpoint::{Checkpoint, MAX_CONFIG_BYTES, open, prefixes};
use llama3med::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// The prefixes that PEFT and LLaVA add to the wrapped model's tensor names.
const PREFIX: &str = "base_model.model.";

/// Applies a folder's adapter; if there is none, that is an error only if it is `required`.
pub fn apply(checkpoint: &mut Checkpoint, folder: &Path, required: bool) -> Result<()> {
    let others = folder.join("non_lora_trainables.bin");
    let mut found = others.exists();
    if found {
        for (name, tensor) in open(&others)? {
            replace(checkpoint, &name, tensor)?;
        }
    }
    let files = ["adapter_model.safetensors", "adapter_model.bin"].map(|name| folder.join(name));
    if let Some(path) = files.iter().find(|path| path.exists()) {
        found = true;
        merge(checkpoint, &Json::read(&folder.join("adapter_config.json"), MAX_CONFIG_BYTES)?, open(path)?)?;
    }
    if required && !found {
        let expected = "expected adapter_model.safetensors, adapter_model.bin or non_lora_trainables.bin, found none";
        return Err(Error::corrupt(folder.display().to_string(), "adapter", expected));
    }
    Ok(())
}

fn merge(checkpoint: &mut Checkpoint, config: &Json, mut tensors: BTreeMap<String, Tensor>) -> Result<()> {
    config.only("peft_type", &["LORA"])?;
    if config.flag("use_dora")? == Some(true) {
        return Err(
            config.error("use_dora", "weight-decomposed adapters cannot be merged here; merge them with PEFT".into())
        );
    }
    let is_stabilised = config.flag("use_rslora")? == Some(true);
    let alpha = config.number("lora_alpha")?;
    let alpha = alpha.ok_or_else(|| config.error("lora_alpha", "the key is missing".into()))?;
    while let Some((name, a)) = tensors.pop_first() {
        // Tensors that were not saved by PEFT's own method have the adapter's name, `default`, in theirs.
        let Some((module, end)) = name.split_once(".lora_A.") else {
            if name.contains("lora_") {
                let problem = "expected updates of linear layers, lora_A and lora_B in pairs";
                return Err(Error::corrupt(&a.file_name, &name, problem));
            }
            // A module that was trained in full (`modules_to_save`).
            replace(checkpoint, &name.replace(".modules_to_save.default", ""), a)?;
            continue;
        };
        let other = format!("{module}.lora_B.{end}");
        let missing = || Error::MissingTensor { file: a.file_name.clone(), tensor: other.clone() };
        let b = tensors.remove(&other).ok_or_else(missing)?;
        let module = module.strip_prefix(PREFIX).unwrap_or(module);
        let rank = a.shape.first().map_or(1.0, |&rank| rank as f64);
        let scale = pattern(config, module)?.unwrap_or(alpha) / if is_stabilised { rank.sqrt() } else { rank };
        let key = prefixes::split(&format!("{module}.weight"));
        let Some((key, base)) = key.and_then(|key| checkpoint.tensors.remove_entry(&key)) else {
            let problem =
                format!("the model has no matrix {module}.weight that it could change; name one with --decoder");
            return Err(Error::corrupt(&a.file_name, &name, problem));
        };
        if base.update.is_some() {
            return Err(Error::corrupt(&a.file_name, &name, "another adapter has already changed this matrix"));
        }
        checkpoint.tensors.insert(key, base.updated(LowRank { a, b, scale: scale as f32 })?);
    }
    Ok(())
}

/// A module's alpha from `alpha_pattern`, whose keys match the ends of module names. Ranks need no lookup: they follow
/// from the tensors.
fn pattern(config: &Json, module: &str) -> Result<Option<f64>> {
    let Some(patterns) = config.get("alpha_pattern").and_then(|value| value.as_object()) else { return Ok(None) };
    let fits = |key: &str| module == key || module.strip_suffix(key).is_some_and(|rest| rest.ends_with('.'));
    for (key, value) in patterns {
        if key.contains(['\\', '*', '[', '(', '^', '$', '|', '+', '?']) {
            return Err(config.error("alpha_pattern", format!("expected module names, found the pattern {key:?}")));
        }
        if fits(key) {
            let alpha = value.as_f64().filter(|alpha| alpha.is_finite());
            return alpha
                .map(Some)
                .ok_or_else(|| config.error("alpha_pattern", format!("expected a number, found {value}")));
        }
    }
    Ok(None)
}

/// Replaces the model's own tensor.
fn replace(checkpoint: &mut Checkpoint, name: &str, tensor: Tensor) -> Result<()> {
    let full = name.strip_prefix(PREFIX).unwrap_or(name);
    if let Some(key) = prefixes::split(full) {
        checkpoint.tensors.remove(&key);
    }
    checkpoint.add(full, tensor)
}
