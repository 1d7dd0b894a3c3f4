//! The vocabulary that llama.cpp's converters write into a decoder file (`tokenizer.ggml.*`), in the form of a tokenizer.json.
//!
//! Two of its models are supported: `gpt2`, byte-level BPE with merges, whose pre-tokenizer `tokenizer.ggml.pre` names
//! ([`Split`]); and `llama`, SentencePiece BPE with scores and byte fallback. `tokenizer.ggml.token_type` says whether
//! a token is text, control or added.

use super::json::{Added, File, MergeList, Model};
use super::split::Split;
use super::{MAX_IDS, SPACE, byte_token, wrong};
use crate::error::{Error, Result};
use crate::file::gguf::Gguf;
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

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// The vocabulary of a decoder file.
pub(super) fn file(gguf: &Gguf) -> Result<File> {
    let kind = gguf.get_str(MODEL)?.ok_or_else(|| gguf.missing_key(MODEL))?;
    let tokens = gguf.get_strings(TOKENS)?.ok_or_else(|| gguf.missing_key(TOKENS))?;
    let types = gguf.get_ints(TYPES)?.unwrap_or_else(|| vec![NORMAL.into(); tokens.len()]);
    if types.len() != tokens.len() || tokens.len() > MAX_IDS {
        let problem =
            format!("{} types for {} tokens, expected one each and {MAX_IDS} at most", types.len(), tokens.len());
        return Err(Error::corrupt(&gguf.file, TYPES, problem));
    }
    let types: Vec<i32> = types.into_iter().map(|kind| i32::try_from(kind).unwrap_or(UNUSED)).collect();
    let mut file = match kind {
        "gpt2" => byte_level(gguf, &tokens)?,
        "llama" => sentence_piece(gguf, &tokens, &types)?,
        other => {
            let problem = format!(
                "{}: {MODEL} is {other:?}; this engine reads \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece)",
                gguf.file
            );
            return Err(Error::Unsupported(problem));
        }
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
fn byte_level(gguf: &Gguf, tokens: &[String]) -> Result<File> {
    let pre = gguf.get_str(PRE)?;
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
        Error::Unsupported(format!("{}: {PRE} is {found}; this engine splits words as {known}", gguf.file))
    })?;
    let merges = gguf.get_strings(MERGES)?.ok_or_else(|| gguf.missing_key(MERGES))?;
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
fn sentence_piece(gguf: &Gguf, tokens: &[String], types: &[i32]) -> Result<File> {
    let scores = gguf.get_floats(SCORES)?.ok_or_else(|| gguf.missing_key(SCORES))?;
    if scores.len() != tokens.len() || scores.iter().any(|score| score.is_nan()) {
        let problem = format!("{} scores for {} tokens, or one that is not a number", scores.len(), tokens.len());
        return Err(Error::corrupt(&gguf.file, SCORES, problem));
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
    if gguf.get_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
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
