//! The vocabulary as llama.cpp wants it, taken from `tokenizer.json`.
//!
//! This project's engine uses the whole `tokenizer.json`, which is stored as well; the arrays are for other programs that open `decoder.gguf`.

use llama3med::gguf::Header;
use llama3med::{Error, Result};
use serde_json::Value;

/// ggml's token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// More entries than any vocabulary has; ids beyond it would size the arrays.
const MAX_TOKENS: usize = 1 << 21;

/// How Llama-3 splits text into words before merging.
pub const LLAMA3_SPLIT: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// Tokens that end an answer wherever they exist: the checkpoints' own lists disagree.
const STOPS: [&str; 3] = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"];

/// Tokens without which a Llama-3 prompt cannot be written.
const TEMPLATE: [&str; 4] = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];

/// Everything that `decoder.gguf` says about tokens.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    json: String,
    /// Text and type of every id; `None` where the tokenizer has a gap.
    tokens: Vec<Option<(String, i32)>>,
    merges: Vec<String>,
    pre: &'static str,
    bos: u32,
    eos: u32,
    pad: u32,
    stops: Vec<u32>,
}

impl Vocabulary {
    /// Reads the text of `tokenizer.json`. `config_stops` are the ids that the checkpoint's configuration ends answers with, `pad` its padding token.
    pub fn parse(json: String, config_stops: &[u32], pad: Option<u32>) -> Result<Self> {
        let value: Value = serde_json::from_str(&json).map_err(|error| corrupt("JSON", error.to_string()))?;
        let model = &value["model"];
        if model["type"].as_str().is_some_and(|kind| kind != "BPE") || model["byte_fallback"] == true {
            let kind = if model["byte_fallback"] == true {
                "BPE with byte fallback".into()
            } else {
                model["type"].to_string()
            };
            return Err(corrupt("model.type", format!("expected a byte-level BPE as Llama-3 has it, found {kind}")));
        }
        let mut tokens = Vec::new();
        let vocab = model["vocab"].as_object().ok_or_else(|| corrupt("model.vocab", "expected an object".into()))?;
        for (text, id) in vocab {
            set(&mut tokens, "model.vocab", text, id, NORMAL)?;
        }
        let none = Vec::new();
        let added = match &value["added_tokens"] {
            Value::Null => &none,
            other => other.as_array().ok_or_else(|| corrupt("added_tokens", "expected an array".into()))?,
        };
        for token in added {
            let text = token["content"].as_str();
            let text = text.ok_or_else(|| corrupt("added_tokens", "a content is not a string".into()))?;
            let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
            set(&mut tokens, "added_tokens", text, &token["id"], kind)?;
        }
        let merges = merges(&model["merges"])?;
        let find = |text: &str| tokens.iter().position(|token| token.as_ref().is_some_and(|(t, _)| t == text));
        if let Some(text) = TEMPLATE.iter().find(|text| find(text).is_none()) {
            return Err(corrupt("added_tokens", format!("{text} is missing, which Llama-3's prompts are made of")));
        }
        let mut stops: Vec<u32> = STOPS.iter().filter_map(|text| find(text)).map(|id| id as u32).collect();
        // Configurations name ids of larger vocabularies; the engine could never see them.
        stops.extend(config_stops.iter().copied().filter(|&id| matches!(tokens.get(id as usize), Some(Some(_)))));
        stops.sort_unstable();
        stops.dedup();
        let [bos, eos] = ["<|begin_of_text|>", "<|eot_id|>"].map(|text| find(text).unwrap_or_default() as u32);
        let pad = pad.filter(|&id| (id as usize) < tokens.len()).unwrap_or(eos);
        Ok(Self { pre: pre(&value["pre_tokenizer"]), json, tokens, merges, bos, eos, pad, stops })
    }

    /// Ids that the tokenizer knows, counted up to its highest.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Adds the keys, with as many tokens as the embedding table has rows.
    pub fn keys(&self, header: &mut Header, vocab_size: usize) {
        let unused = |id: usize| (format!("[PAD{id}]"), UNUSED);
        let token = |id: usize| self.tokens.get(id).cloned().flatten().unwrap_or_else(|| unused(id));
        let (texts, types): (Vec<String>, Vec<i32>) = (0..vocab_size).map(token).unzip();
        header
            .string("tokenizer.ggml.model", "gpt2")
            .string("tokenizer.ggml.pre", self.pre)
            .strings("tokenizer.ggml.tokens", &texts)
            .i32s("tokenizer.ggml.token_type", &types)
            .strings("tokenizer.ggml.merges", &self.merges)
            .u32("tokenizer.ggml.eos_token_id", self.eos)
            .u32("tokenizer.ggml.padding_token_id", self.pad)
            .bool("tokenizer.ggml.add_bos_token", true)
            .string("tokenizer.huggingface.json", &self.json)
            .u32("tokenizer.ggml.bos_token_id", self.bos)
            .u32s("llama3med.stop_token_ids", &self.stops);
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
        // Added tokens may be listed in the vocabulary as well; what is said of them there as added counts.
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

/// llama.cpp's name for the way text is split into words.
fn pre(value: &Value) -> &'static str {
    let steps = match value["pretokenizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(value),
    };
    if steps.iter().any(|step| step["pattern"]["Regex"] == LLAMA3_SPLIT) {
        return "llama-bpe";
    }
    if steps.iter().any(|step| step["type"] == "ByteLevel" && step["use_regex"] != false) {
        return "gpt-2";
    }
    "default"
}
