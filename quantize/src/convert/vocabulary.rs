//! The vocabulary in llama.cpp's form, taken from `tokenizer.json`.
//!
//! This project's engine uses the whole `tokenizer.json`, which is stored as well; the arrays are for other programs that open `decoder.gguf`.

use llama3med::file::gguf::Header;
use llama3med::text::conversation::Template;
use llama3med::text::keys::{Keys, Model, Tokens};
use llama3med::text::tokenizer::ggml::token_type::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use llama3med::text::tokenizer::split::Split;
use llama3med::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// More entries than any vocabulary has; larger ids would determine the size of arrays.
const MAX_TOKENS: usize = 1 << 21;

/// Tokens that end an answer wherever they exist, because the checkpoints' own lists disagree.
const STOPS: [&str; 3] = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"];

/// Everything that `decoder.gguf` says about tokens.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    json: String,
    template: Template,
    /// Whether it is a SentencePiece vocabulary, with scores instead of merges.
    has_scores: bool,
    /// Text and type of every id; `None` where the tokenizer has a gap.
    tokens: Vec<Option<(String, i32)>>,
    merges: Vec<String>,
    /// llama.cpp's name for the pre-tokenizer, if it has one.
    pre: Option<&'static str>,
    bos: Option<u32>,
    eos: u32,
    pad: u32,
    stops: Vec<u32>,
}

impl Vocabulary {
    /// Reads the text of `tokenizer.json`. `config_stops` are the ids with which the checkpoint's configuration ends
    /// answers, `pad` its padding token.
    pub fn parse(json: String, template: Template, config_stops: &[u32], pad: Option<u32>) -> Result<Self> {
        let value: Value = serde_json::from_str(&json).map_err(|error| corrupt("JSON", error.to_string()))?;
        let model = &value["model"];
        if model["type"].as_str().is_some_and(|kind| kind != "BPE") {
            return Err(corrupt("model.type", format!("expected BPE, found {}", model["type"])));
        }
        let has_scores = model["byte_fallback"] == true;
        let mut tokens = Vec::new();
        let vocab = model["vocab"].as_object().ok_or_else(|| corrupt("model.vocab", "expected an object".into()))?;
        for (text, id) in vocab {
            let is_byte = has_scores && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
            set(&mut tokens, "model.vocab", text, id, if is_byte { BYTE } else { NORMAL })?;
        }
        let none = Vec::new();
        let added = match &value["added_tokens"] {
            Value::Null => &none,
            other => other.as_array().ok_or_else(|| corrupt("added_tokens", "expected an array".into()))?,
        };
        for token in added {
            let text = token["content"].as_str();
            let text = text.ok_or_else(|| corrupt("added_tokens", "a content is not a string".into()))?;
            let kind = match token["special"] == true {
                true if has_scores && model["unk_token"] == text => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
            set(&mut tokens, "added_tokens", text, &token["id"], kind)?;
        }
        let merges = merges(&model["merges"])?;
        let find = |text: &str| tokens.iter().position(|token| token.as_ref().is_some_and(|(t, _)| t == text));
        let mut stops: Vec<u32> = STOPS.iter().filter_map(|text| find(text)).map(|id| id as u32).collect();
        // Configurations name ids from larger vocabularies, which the engine would never produce.
        stops.extend(config_stops.iter().copied().filter(|&id| matches!(tokens.get(id as usize), Some(Some(_)))));
        // What ends an answer in the prompt also ends it when generated.
        let marks = template.marks();
        let named = |text: &str| {
            let control = tokens.iter().enumerate().filter_map(|(id, token)| Some((id, token.as_ref()?)));
            let control = control.filter(|(_, (_, kind))| *kind == CONTROL);
            control.filter_map(|(id, (name, _))| Some((text.find(name.as_str())?, id as u32))).min()
        };
        let end = named(&marks.next).filter(|&(at, _)| marks.next[..at].trim().is_empty()).map(|(_, id)| id);
        let bos = named(&marks.first).filter(|&(at, _)| at == 0).map(|(_, id)| id);
        stops.extend(end);
        stops.sort_unstable();
        stops.dedup();
        let Some(eos) = end.or(stops.first().copied()) else {
            return Err(corrupt(
                "added_tokens",
                "neither template nor configuration names a token that ends an answer".into(),
            ));
        };
        let pad = pad.filter(|&id| (id as usize) < tokens.len()).unwrap_or(eos);
        let pre = Split::name_of(&value["normalizer"], &value["pre_tokenizer"], model["ignore_merges"] == true);
        Ok(Self { pre, json, template, has_scores, tokens, merges, bos, eos, pad, stops })
    }

    /// Number of ids that the tokenizer has, up to its highest.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Adds the keys, with as many tokens as the embedding table has rows.
    pub fn keys(&self, header: &mut Header, vocab_size: usize) {
        let unused = |id: usize| (format!("[PAD{id}]"), UNUSED);
        let token = |id: usize| self.tokens.get(id).cloned().flatten().unwrap_or_else(|| unused(id));
        let (texts, types): (Vec<String>, Vec<i32>) = (0..vocab_size).map(token).unzip();
        let model = match self.has_scores {
            true => Model::SentencePiece(self.scores(&texts), None),
            false => Model::ByteLevel(self.pre.map(String::from), self.merges.clone()),
        };
        Tokens { texts, types, model }.write(header);
        let jinja = self.template.jinja();
        let mut keys = Keys {
            json: Some(&self.json),
            jinja: Some(&jinja),
            stops: self.stops.iter().map(|&id| id.into()).collect(),
            bos: self.bos,
            add_bos: Some(self.bos.is_some()),
            eos: Some(self.eos),
            padding: Some(self.pad),
            ..Keys::default()
        };
        self.template.name_in(&mut keys);
        keys.write(header);
    }

    /// Scores that merge pieces in the order of the merges: each is the index of the first merge that makes the piece,
    /// counted down.
    fn scores(&self, texts: &[String]) -> Vec<f32> {
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for (place, merge) in self.merges.iter().enumerate() {
            places.entry(merge.replacen(' ', "", 1)).or_insert(place);
        }
        let score = |text: &String| places.get(text).map_or(0.0, |&place| -(place as f32));
        texts.iter().map(score).collect()
    }
}

fn corrupt(field: &str, problem: String) -> Error {
    Error::corrupt("tokenizer.json", field, problem)
}

fn set(tokens: &mut Vec<Option<(String, i32)>>, field: &str, text: &str, id: &Value, kind: i32) -> Result<()> {
    let problem = || corrupt(field, format!("{text:?}: expected an id below {MAX_TOKENS}, found {id}"));
    let id = id.as_u64().filter(|&id| id < MAX_TOKENS as u64).ok_or_else(problem)? as usize;
    if tokens.len() <= id {
        tokens.resize(id + 1, None);
    }
    match &tokens[id] {
        // Added tokens may also be in the vocabulary; then the added entry takes precedence.
        Some((other, _)) if other != text => {
            Err(corrupt(field, format!("{text:?} and {other:?} have the same id {id}")))
        }
        _ => {
            tokens[id] = Some((text.into(), kind));
            Ok(())
        }
    }
}

/// Merges come as "a b" or, in newer files, as ["a", "b"].
fn merges(value: &Value) -> Result<Vec<String>> {
    let list = value.as_array().ok_or_else(|| corrupt("model.merges", "expected an array".into()))?;
    let merge = |merge: &Value| match merge {
        Value::String(text) if text.split(' ').count() == 2 => Some(text.clone()),
        Value::Array(pair) if pair.len() == 2 => Some(format!("{} {}", pair[0].as_str()?, pair[1].as_str()?)),
        _ => None,
    };
    let bad = |found: &Value| corrupt("model.merges", format!("expected a pair of tokens, found {found}"));
    list.iter().map(|value| merge(value).ok_or_else(|| bad(value))).collect()
}
