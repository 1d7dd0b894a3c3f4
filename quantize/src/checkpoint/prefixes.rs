//! Splits a tensor's name in a checkpoint: into the part of the model it belongs to, and its name within that part.
//!
//! Llama3-Med's reference code writes `language_model.*`, `vision_tower._vision_tower.*` and `connector._connector.*`;
//! the LLaVA family uses other prefixes for the same names.

use llama3med::spec::watch::Part;

/// The part's folder in a checkpoint of Llama3-Med's reference code, and the prefix of its tensor names.
pub fn folder(part: Part) -> &'static str {
    match part {
        Part::Decoder => "language_model",
        Part::Tower => "vision_tower",
        Part::Connector => "connector",
    }
}

/// Splits a full name; `None` if no part of the model has such names. A layer wrapped by an adapter gets the same name
/// as an unwrapped one.
pub fn split(full: &str) -> Option<(Part, String)> {
    let full = &full.replace(".base_layer.", ".");
    let name = full.strip_prefix("model.").unwrap_or(full);
    if let Some(name) = name.strip_prefix("vision_tower.") {
        let name = strip(name, &["_vision_tower.", "vision_tower."]);
        return Some((Part::Tower, strip(name, &["vision_model."]).into()));
    }
    if let Some(name) = name.strip_prefix("connector.") {
        return Some((Part::Connector, connector(strip(name, &["_connector."]))));
    }
    if let Some(name) = name.strip_prefix("multi_modal_projector.").or(name.strip_prefix("mm_projector.")) {
        return Some((Part::Connector, connector(name)));
    }
    let name = strip(strip(name, &["language_model."]), &["model."]);
    let known = ["embed_tokens.", "layers.", "norm.", "lm_head."];
    known.iter().any(|prefix| name.starts_with(prefix)).then(|| (Part::Decoder, name.into()))
}

/// Connector layers are numbered with their activations: 0, 2, 4. A linear connector has no number, and transformers
/// counts 1, 2.
fn connector(name: &str) -> String {
    match name {
        "weight" | "bias" => format!("0.{name}"),
        _ => match name.strip_prefix("linear_").and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => match layer.parse::<usize>() {
                Ok(layer @ 1..100) => format!("{}.{rest}", 2 * (layer - 1)),
                _ => name.into(),
            },
            None => name.into(),
        },
    }
}

fn strip<'a>(name: &'a str, prefixes: &[&str]) -> &'a str {
    prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// Tensors that checkpoints contain and inference does not use. Every other leftover tensor is an error.
///
/// * `position_ids`, `rotary_emb.inv_freq`: buffers determined by the shape;
/// * `head.*` of the tower: SigLIP's pooling head, timm's classifier;
/// * `post_layernorm.*` of CLIP and SigLIP: comes after the output that is used;
/// * tower blocks from `n_blocks` on: they come after it too;
/// * `text_model.*`, `logit_scale`, `logit_bias`, `*_projection.weight`: the other half of a whole CLIP or SigLIP model;
/// * `image_newline`: LLaVA-1.6's separator of image rows, unused when patches are merged flat;
/// * `lm_head.weight` where the configuration ties it to the embedding.
pub fn is_unused(part: Part, name: &str, n_blocks: usize, tied: bool) -> bool {
    let block = name.strip_prefix("encoder.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    match part {
        Part::Decoder => name.ends_with("rotary_emb.inv_freq") || tied && name == "lm_head.weight",
        Part::Tower => {
            let prefixes = ["head.", "post_layernorm.", "text_model."];
            name.ends_with("position_ids")
                || prefixes.iter().any(|prefix| name.starts_with(prefix))
                || block.is_some_and(|block| block >= n_blocks)
        }
        Part::Connector => false,
    }
}

/// Names outside the three parts that are known to be unused.
pub fn is_unused_outside(full: &str) -> bool {
    let name = full.strip_prefix("model.").unwrap_or(full);
    ["image_newline", "logit_scale", "logit_bias", "visual_projection.weight", "text_projection.weight"].contains(&name)
        || name.starts_with("text_model.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_of_names_is_split() {
        let cases = [
            ("language_model.model.layers.0.mlp.up_proj.weight", Part::Decoder, "layers.0.mlp.up_proj.weight"),
            ("language_model.lm_head.weight", Part::Decoder, "lm_head.weight"),
            ("model.embed_tokens.weight", Part::Decoder, "embed_tokens.weight"),
            ("model.language_model.norm.weight", Part::Decoder, "norm.weight"),
            ("lm_head.weight", Part::Decoder, "lm_head.weight"),
            (
                "language_model.model.layers.1.mlp.up_proj.base_layer.weight",
                Part::Decoder,
                "layers.1.mlp.up_proj.weight",
            ),
            ("model.vision_tower.embeddings.patch_embedding.weight", Part::Tower, "embeddings.patch_embedding.weight"),
            ("vision_tower._vision_tower.blocks.3.ls1.gamma", Part::Tower, "blocks.3.ls1.gamma"),
            (
                "vision_tower._vision_tower.vision_model.embeddings.class_embedding",
                Part::Tower,
                "embeddings.class_embedding",
            ),
            ("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias", Part::Tower, "pre_layrnorm.bias"),
            ("connector._connector.2.bias", Part::Connector, "2.bias"),
            ("connector._connector.weight", Part::Connector, "0.weight"),
            ("multi_modal_projector.linear_2.weight", Part::Connector, "2.weight"),
            ("model.mm_projector.0.weight", Part::Connector, "0.weight"),
        ];
        for (full, part, name) in cases {
            assert_eq!(split(full), Some((part, name.into())), "{full}");
        }
        assert_eq!(split("optimizer.step"), None);
    }
}
