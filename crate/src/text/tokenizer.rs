//! Text to token ids and back.
//!
//! The `tokenizers` crate computes the ids. It is built from the tokenizer.json text that the converter stores in the
//! decoder file, or, for files from llama.cpp's converters, from their vocabulary (`ggml`). Decoding uses a table of
//! bytes. Typed text never becomes a control token: those are not part of the vocabulary used for encoding text.

pub mod ggml;
mod json;
pub mod split;
mod steps;

use crate::error::{Error, Result};
use crate::file::gguf::Gguf;
use crate::text::keys::{JSON, Keys, Tokens};
use json::{Added, File};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use steps::{Steps, normalizer};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{TokenizerBuilder, TokenizerImpl};

/// Largest text in bytes: keeps a pasted book from using up the memory of the rank that tokenizes it.
pub const MAX_TEXT_BYTES: usize = 1 << 19;

// Four times the largest vocabulary in use; keeps a forged id from costing memory.
pub(super) const MAX_IDS: usize = 1 << 20;

// The last two are not used.
type Encoder = TokenizerImpl<BPE, NFC, Steps, ByteLevel, ByteLevel>;

/// A BPE tokenizer: byte-level as in Llama-3, or SentencePiece with byte fallback as in Llama-2 and Mistral.
pub struct Tokenizer {
    encoder: Encoder,
    style: Style,
    // The text of all ids, concatenated; id i has bytes[starts[i]..starts[i + 1]].
    bytes: Vec<u8>,
    starts: Vec<u32>,
    kinds: Vec<Kind>,
    added: BTreeMap<String, u32>,
}

/// How tokens spell text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Each byte is a letter of GPT-2's byte alphabet.
    ByteLevel,
    /// Spaces are ▁, which may be put before a text; text without a token is spelled in bytes such as <0x0A>.
    SentencePiece(Prefix),
}

/// When ▁ is put before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prefix {
    Never,
    First,
    Always,
}

/// What precedes a text that is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nothing.
    Start,
    /// A control token or an image.
    Apart,
    /// Other text, which this one continues.
    Inside,
}

/// SentencePiece's mark for a space.
const SPACE: &str = "\u{2581}";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unknown,
    Text,
    Special,
}

impl Tokenizer {
    /// The tokenizer in a decoder file: the tokenizer.json of this project's files, or the vocabulary of llama.cpp's.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let (place, tokenizer) = match Keys::read(gguf)?.json {
            Some(json) => (format!("{}: {JSON}", gguf.file), Self::from_json(json.as_bytes())),
            None => {
                let file = Tokens::read(gguf).and_then(|tokens| ggml::file(tokens, &gguf.file));
                (gguf.file.clone(), file.and_then(Self::build))
            }
        };
        let tokenizer = tokenizer.map_err(|error| error.of_tokenizer_in(&place))?;
        // An id without a row would be read as a vector of zeros.
        let n_rows = gguf.tensors.get("token_embd.weight").map_or(usize::MAX, |embedding| embedding.n_rows);
        if let Some(id) = (n_rows..tokenizer.kinds.len()).rfind(|&id| tokenizer.is_known(id as u32)) {
            let problem = format!("the vocabulary has ids up to {id}, but token_embd.weight has {n_rows} rows");
            return Err(Error::Tokenizer(format!("{place}: {problem}")));
        }
        Ok(tokenizer)
    }

    /// The tokenizer from a tokenizer.json file.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        Self::build(serde_json::from_slice(json).map_err(|error| Error::Tokenizer(error.to_string()))?)
    }

    fn build(file: File) -> Result<Self> {
        let Some(model) = file.model else { return Err(wrong("model", "the field is missing")) };
        model.check()?;
        let style = match model.byte_fallback {
            true => Style::SentencePiece(prefix(&file.normalizer, &file.pre_tokenizer)?),
            false => Style::ByteLevel,
        };
        let table = Table::new(&model.vocab, &file.added_tokens, style)?;
        let mut vocab = model.vocab;
        let unk_token = model.unk_token.as_deref();
        vocab.retain(|token, id| table.kinds[*id as usize] == Kind::Text || unk_token == Some(token.as_str()));
        vocab.extend(file.added_tokens.iter().filter(|t| !t.is_special()).map(|t| (t.content.clone(), t.id)));
        let mut merges = model.merges.0;
        check_bytes(&vocab, unk_token, style)?;
        match style {
            Style::ByteLevel => {
                check_decoder(&file.decoder)?;
                check_merges(&vocab, &merges)?;
            }
            Style::SentencePiece(_) => {
                // Published files include merges that produce control tokens, which text never contains.
                let is_text = |token: &str| vocab.contains_key(token);
                merges.retain(|(left, right)| is_text(left) && is_text(right) && is_text(&format!("{left}{right}")));
            }
        }
        let mut bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .byte_fallback(model.byte_fallback)
            .fuse_unk(model.fuse_unk)
            .ignore_merges(model.ignore_merges);
        if let Some(unk_token) = model.unk_token {
            bpe = bpe.unk_token(unk_token);
        }
        if style != Style::ByteLevel {
            // Without words, only whole texts could be cached.
            bpe = bpe.cache_capacity(0);
        }
        let bpe = bpe.build().map_err(|error| wrong("model", error))?;
        let mut builder = TokenizerBuilder::new().with_model(bpe);
        if style == Style::ByteLevel {
            builder = builder.with_normalizer(normalizer(&file.normalizer)?);
            builder = builder.with_pre_tokenizer(Some(Steps::from_json(file.pre_tokenizer)?));
        }
        let mut encoder: Encoder = builder.build().map_err(|error| wrong("model", error))?;
        let text_tokens = file.added_tokens.iter().filter(|token| !token.is_special());
        encoder.add_tokens(text_tokens.map(Added::token)).map_err(|error| wrong("added_tokens", error))?;
        let added = file.added_tokens.into_iter().map(|token| (token.content, token.id)).collect();
        Ok(Self { encoder, style, bytes: table.bytes, starts: table.starts, kinds: table.kinds, added })
    }

    /// The ids of a text in which nothing is a control token, without a beginning-of-text token.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_text_at(text, Place::Start)
    }

    /// The same for a text at a given place among others: SentencePiece may put a space before it.
    pub fn encode_text_at(&self, text: &str, place: Place) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT_BYTES {
            let problem = format!("the text has {} bytes, at most {MAX_TEXT_BYTES} can be read", text.len());
            return Err(Error::Tokenizer(problem));
        }
        let mut spelled = Cow::Borrowed(text);
        if let Style::SentencePiece(prefix) = self.style {
            let is_prefixed = match prefix {
                Prefix::Never => false,
                Prefix::First => place == Place::Start,
                Prefix::Always => place != Place::Inside,
            };
            let prefix = if is_prefixed && !text.is_empty() { SPACE } else { "" };
            spelled = format!("{prefix}{}", text.replace(' ', SPACE)).into();
        }
        let encoding =
            self.encoder.encode_fast(&*spelled, false).map_err(|error| Error::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Whether a space is put before a text that follows a control token or an image.
    pub fn begins_with_space(&self) -> bool {
        self.style == Style::SentencePiece(Prefix::Always)
    }

    /// Id of a control token such as `<|eot_id|>`.
    pub fn special(&self, token: &str) -> Result<u32> {
        self.find(token).ok_or_else(|| wrong("added_tokens", format!("{token} is missing")))
    }

    /// Name of a control token.
    pub fn special_name(&self, id: u32) -> Option<&str> {
        let named = self.added.iter().find(|&(_, &other)| other == id && self.is_special(id));
        named.map(|(token, _)| token.as_str())
    }

    /// Id of a control token, if there is one of that name.
    pub fn find(&self, token: &str) -> Option<u32> {
        self.added.get(token).copied()
    }

    /// The first control token named in a text: position, name and id. If several start at the same position, the
    /// longest wins.
    pub fn first_special(&self, text: &str) -> Option<(usize, &str, u32)> {
        let named = self.added.iter().filter(|&(_, &id)| self.is_special(id));
        let found = named.filter_map(|(token, &id)| Some((text.find(token.as_str())?, token.as_str(), id)));
        found.min_by_key(|&(at, token, _)| (at, std::cmp::Reverse(token.len())))
    }

    /// How many ids have a token. Embedding tables may have more rows.
    pub fn n_known(&self) -> usize {
        self.kinds.iter().filter(|&&kind| kind != Kind::Unknown).count()
    }

    /// Whether the id has a token.
    pub fn is_known(&self, id: u32) -> bool {
        self.kind(id) != Kind::Unknown
    }

    /// Whether the id is a control token, which has no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.kind(id) == Kind::Special
    }

    /// A stream that turns ids into text as they arrive.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, held: Vec::new(), is_first: true }
    }

    /// The text of some ids, without control tokens.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = self.stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// Text of one id among others; a broken character shows as U+FFFD.
    pub fn piece(&self, id: u32) -> String {
        String::from_utf8_lossy(self.text(id)).into_owned()
    }

    fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Unknown)
    }

    fn text(&self, id: u32) -> &[u8] {
        match self.kind(id) {
            Kind::Text => &self.bytes[self.starts[id as usize] as usize..self.starts[id as usize + 1] as usize],
            Kind::Unknown | Kind::Special => &[],
        }
    }
}

/// Turns ids into text as they arrive. The concatenated pieces are the text of all ids; no piece ends inside a
/// character.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    // The start of a character that the next token may complete: at most three bytes between calls.
    held: Vec<u8>,
    // No text has been returned yet.
    is_first: bool,
}

impl TextStream<'_> {
    /// The text that is certain once `id` is known; empty for control tokens and inside a character.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = self.tokenizer.text(id);
        if self.is_first && !text.is_empty() {
            self.is_first = false;
            if self.tokenizer.style != Style::ByteLevel {
                // The space that was added when the text was encoded.
                text = text.strip_prefix(b" ").unwrap_or(text);
            }
        }
        self.held.extend_from_slice(text);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(rest) => {
                    text.push_str(rest);
                    self.held.clear();
                    return text;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.held[..valid]));
                    let n_wrong = error.error_len();
                    self.held.drain(..valid + n_wrong.unwrap_or(0));
                    if n_wrong.is_none() {
                        return text;
                    }
                    text.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
    }

    /// What is left after the last id: a character that was never completed becomes U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }
}

/// Bytes and kinds of all ids.
struct Table {
    bytes: Vec<u8>,
    starts: Vec<u32>,
    kinds: Vec<Kind>,
}

impl Table {
    fn new(vocab: &Vocab, added_tokens: &[Added], style: Style) -> Result<Self> {
        let added = added_tokens.iter().map(|token| (token.content.as_str(), token.id, token.is_special()));
        let mut by_id: Vec<Option<(&str, bool)>> = Vec::new();
        let mut enter = |field: &str, token, id: u32, is_special| {
            let id = id as usize;
            if id >= MAX_IDS {
                return Err(wrong(field, format!("the id of {token:?} is {id}, expected less than {MAX_IDS}")));
            }
            by_id.resize(by_id.len().max(id + 1), None);
            if let Some((other, _)) = by_id[id].filter(|(other, _)| *other != token) {
                return Err(wrong(field, format!("id {id} belongs to both {other:?} and {token:?}")));
            }
            by_id[id] = Some((token, is_special));
            Ok(())
        };
        for (token, &id) in vocab {
            enter("model.vocab", token.as_str(), id, false)?;
        }
        for (idx, (token, id, is_special)) in added.enumerate() {
            if let Some(other) = vocab.get(token).filter(|&&other| other != id) {
                let problem = format!("expected {other} as in model.vocab, found {id}");
                return Err(wrong(&format!("added_tokens[{idx}].id"), problem));
            }
            enter(&format!("added_tokens[{idx}]"), token, id, is_special)?;
        }
        let byte_of: BTreeMap<char, u8> = byte_chars().into_iter().zip(0..=255).collect();
        let mut table = Self { bytes: Vec::new(), starts: vec![0], kinds: Vec::with_capacity(by_id.len()) };
        for entry in by_id {
            match (entry, style) {
                (Some((token, _)), Style::ByteLevel) => {
                    // Like the ByteLevel decoder: a token that is not written in its alphabet stands for itself.
                    let bytes: Option<Vec<u8>> = token.chars().map(|c| byte_of.get(&c).copied()).collect();
                    table.bytes.extend(bytes.unwrap_or_else(|| token.as_bytes().to_vec()));
                }
                (Some((token, _)), Style::SentencePiece(_)) => match byte_token(token) {
                    Some(byte) => table.bytes.push(byte),
                    None => table.bytes.extend(token.replace(SPACE, " ").into_bytes()),
                },
                (None, _) => {}
            }
            table.starts.push(table.bytes.len() as u32);
            table.kinds.push(match entry {
                None => Kind::Unknown,
                Some((_, true)) => Kind::Special,
                Some((_, false)) => Kind::Text,
            });
        }
        Ok(table)
    }
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_plain = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_plain.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The characters with which byte-level tokenizers write bytes (GPT-2's `bytes_to_unicode`), by byte.
fn byte_chars() -> Vec<char> {
    let mut next = 256;
    let chars = (0..=255u8).map(|byte| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => byte as char,
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    });
    chars.collect()
}

fn wrong(field: &str, problem: impl fmt::Display) -> Error {
    Error::Tokenizer(format!("{field}: {problem}"))
}

// Checks -----------------------------------------------------------------------------------------------------------------

/// A vocabulary may lack tokens for some bytes, as SmolLM2's does: as in Hugging Face's library, such bytes become the
/// unknown token, or are dropped if there is none. If the space is missing, the vocabulary is not written in this
/// alphabet at all.
fn check_bytes(vocab: &Vocab, unk_token: Option<&str>, style: Style) -> Result<()> {
    match unk_token {
        Some(token) if !vocab.contains_key(token) => {
            Err(wrong("model.unk_token", format!("{token:?} is not in model.vocab")))
        }
        None if style == Style::ByteLevel && !vocab.contains_key("\u{120}") => {
            Err(wrong("model.vocab", "expected bytes written as letters, found no 'Ġ', which is the space"))
        }
        _ => Ok(()),
    }
}

/// Where ▁ goes before a text, from the steps that Hugging Face's files use to express it; any other step is refused.
fn prefix(normalizer: &Value, pre_tokenizer: &Value) -> Result<Prefix> {
    let kind = |json: &Value| json.get("type").and_then(Value::as_str).map(String::from);
    let is_replace = |json: &Value| {
        kind(json).as_deref() == Some("Replace") && json["pattern"]["String"] == " " && json["content"] == SPACE
    };
    let is_prepend = |json: &Value| kind(json).as_deref() == Some("Prepend") && json["prepend"] == SPACE;
    match (kind(normalizer).as_deref(), kind(pre_tokenizer).as_deref()) {
        (Some("Sequence"), None) => match normalizer["normalizers"].as_array().map(Vec::as_slice) {
            Some([prepend, replace]) if is_prepend(prepend) && is_replace(replace) => Ok(Prefix::Always),
            Some([replace]) if is_replace(replace) => Ok(Prefix::Never),
            _ => Err(wrong("normalizer", "expected Prepend and Replace of spaces by ▁")),
        },
        (Some("Replace"), None) if is_replace(normalizer) => Ok(Prefix::Never),
        (None, Some("Metaspace")) if pre_tokenizer["replacement"] == SPACE && pre_tokenizer["split"] != true => {
            match pre_tokenizer["prepend_scheme"].as_str() {
                Some("never") => Ok(Prefix::Never),
                Some("first") => Ok(Prefix::First),
                Some("always") => Ok(Prefix::Always),
                None if pre_tokenizer["add_prefix_space"] == false => Ok(Prefix::Never),
                None => Ok(Prefix::Always),
                Some(other) => Err(wrong("pre_tokenizer.prepend_scheme", format!("found {other:?}"))),
            }
        }
        (normalizer, pre_tokenizer) => {
            let found = format!("{} and {}", normalizer.unwrap_or("none"), pre_tokenizer.unwrap_or("none"));
            Err(wrong(
                "normalizer, pre_tokenizer",
                format!("expected spaces to become ▁ as Llama-2 has it, found {found}"),
            ))
        }
    }
}

fn check_merges(vocab: &Vocab, merges: &Merges) -> Result<()> {
    let mut merged = String::new();
    for (idx, (left, right)) in merges.iter().enumerate() {
        merged.clear();
        merged.push_str(left);
        merged.push_str(right);
        if let Some(token) = [left, right, &merged].into_iter().find(|token| !vocab.contains_key(token.as_str())) {
            return Err(wrong(&format!("model.merges[{idx}]"), format!("{token:?} is not among the text tokens")));
        }
    }
    Ok(())
}

fn check_decoder(decoder: &Value) -> Result<()> {
    let parts = decoder.get("decoders").and_then(Value::as_array);
    let only = match parts.map(Vec::as_slice) {
        Some([only]) => only,
        _ => decoder,
    };
    match only.get("type").and_then(Value::as_str) {
        Some("ByteLevel") => Ok(()),
        found => Err(wrong("decoder.type", format!("expected ByteLevel, found {}", found.unwrap_or("nothing")))),
    }
}
