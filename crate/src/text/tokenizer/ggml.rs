//! The vocabulary that llama.cpp's converters write into a decoder file (`tokenizer.ggml.*`), in the form of a tokenizer.json.
//!
//! Two of its models are supported: `gpt2`, byte-level BPE with merges, whose pre-tokenizer `tokenizer.ggml.pre` names
//! ([`Split`]); and `llama`, SentencePiece BPE with scores and byte fallback. `tokenizer.ggml.token_type` says whether
//! a token is text, control or added.

use super::json::{Added, File, MergeList, Model};
use super::split::Split;
use super::{SPACE, byte_token, wrong};
use crate::error::{Error, Result};
use crate::text::keys::{self, MERGES, PRE, SCORES, TOKENS, Tokens};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Longer tokens would make the search for their halves slow; Llama-2's longest has 16 characters.
pub const MAX_PIECE_BYTES: usize = 512;

/// ggml's token types, which are SentencePiece's.
#[allow(missing_docs)] // the names are the documentation
pub mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}
use token_type::*;

/// The vocabulary of the decoder file `name`.
pub(super) fn file(tokens: Tokens, name: &str) -> Result<File> {
    let Tokens { texts: tokens, types, model } = tokens;
    let mut file = match model {
        keys::Model::ByteLevel(pre, merges) => byte_level(name, &tokens, pre.as_deref(), merges)?,
        keys::Model::SentencePiece(scores, add_space) => sentence_piece(name, &tokens, &types, &scores, add_space)?,
    };
    let mut vocab = std::mem::take(&mut file.model.get_or_insert_default().vocab);
    for (id, (content, kind)) in tokens.into_iter().zip(types).enumerate() {
        // llama.cpp pads embedding tables with unused tokens.
        if kind == UNUSED || content.is_empty() {
            continue;
        }
        let id = id as u32;
        if kind == BYTE && byte_token(&content).is_none() {
            return Err(wrong(TOKENS, format!("token {id}: expected a byte such as <0x0A>, found {content:?}")));
        }
        if matches!(kind, NORMAL | BYTE | UNKNOWN)
            && let Some(other) = vocab.insert(content.clone(), id)
        {
            return Err(wrong(TOKENS, format!("the token of ids {other} and {id} is the same")));
        }
        if matches!(kind, UNKNOWN | CONTROL | USER_DEFINED) {
            file.added_tokens.push(Added { id, content, special: kind != USER_DEFINED, ..Added::default() });
        }
    }
    file.model.get_or_insert_default().vocab = vocab;
    Ok(file)
}

/// Everything but the tokens of a byte-level vocabulary.
fn byte_level(name: &str, tokens: &[String], pre: Option<&str>, merges: Vec<String>) -> Result<File> {
    let split = match pre {
        // Llama-3 files made before the key existed.
        None | Some("default") if tokens.iter().any(|token| token == "<|start_header_id|>") => {
            Split::named("llama-bpe")
        }
        _ => pre.and_then(Split::named),
    };
    let split = split.ok_or_else(|| {
        let found = pre.map_or("missing".into(), |pre| format!("{pre:?}"));
        let known = Split::names();
        Error::Unsupported(format!("{name}: {PRE} is {found}; this engine splits words as {known}"))
    })?;
    let mut pairs = Vec::with_capacity(merges.len());
    for (idx, merge) in merges.into_iter().enumerate() {
        match merge.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => pairs.push((left.to_owned(), right.to_owned())),
            _ => {
                let problem = format!("expected two tokens with a space between them, found {merge:?}");
                return Err(wrong(&format!("{MERGES}[{idx}]"), problem));
            }
        }
    }
    let merges = MergeList(pairs);
    Ok(File {
        normalizer: split.normalizer(),
        pre_tokenizer: split.pre_tokenizer(),
        decoder: json!({ "type": "ByteLevel" }),
        model: Some(Model { merges, ignore_merges: split.ignore_merges, ..Model::default() }),
        ..File::default()
    })
}

/// Everything but the tokens of a SentencePiece vocabulary.
fn sentence_piece(
    name: &str,
    tokens: &[String],
    types: &[i32],
    scores: &[f32],
    add_space: Option<bool>,
) -> Result<File> {
    if scores.len() != tokens.len() || scores.iter().any(|score| score.is_nan()) {
        let problem = format!("{} scores for {} tokens, or one that is not a number", scores.len(), tokens.len());
        return Err(Error::corrupt(name, SCORES, problem));
    }
    if let Some(id) = tokens.iter().position(|token| token.len() > MAX_PIECE_BYTES) {
        return Err(wrong(
            TOKENS,
            format!("token {id} has {} bytes, expected {MAX_PIECE_BYTES} at most", tokens[id].len()),
        ));
    }
    let texts = (0..tokens.len()).filter(|&id| types[id] == NORMAL).map(|id| (tokens[id].as_str(), scores[id]));
    let merges = MergeList(merges_by_score(&texts.collect()));
    let unk_token = types.iter().position(|&kind| kind == UNKNOWN).map(|id| tokens[id].clone());
    let mut steps: Vec<Value> = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE })];
    if add_space.unwrap_or(true) {
        steps.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
    }
    let model = Model { merges, unk_token, fuse_unk: true, byte_fallback: true, ..Model::default() };
    let normalizer = json!({ "type": "Sequence", "normalizers": steps });
    Ok(File { normalizer, model: Some(model), ..File::default() })
}

/// Every way to form a token from two others, given their scores, highest score first: SentencePiece merges the
/// neighbours that form the token with the best score. Among equal scores, a longer left half comes first, as in
/// Hugging Face's conversion.
pub fn merges_by_score(scores: &BTreeMap<&str, f32>) -> Vec<(String, String)> {
    let mut merges = Vec::new();
    for (&text, &score) in scores {
        for (n_left, (at, _)) in text.char_indices().enumerate().skip(1) {
            let (left, right) = text.split_at(at);
            if scores.contains_key(left) && scores.contains_key(right) {
                merges.push((score, n_left, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(b.2)));
    merges.into_iter().map(|(_, _, left, right)| (left.to_owned(), right.to_owned())).collect()
}
