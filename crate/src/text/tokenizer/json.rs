//! tokenizer.json as Hugging Face writes it.
//!
//! It is parsed field by field instead of with the library's own reader, which first builds the whole file as a tree of
//! values, several times the size of the tokenizer itself; and a rank's memory never shrinks.

use super::wrong;
use crate::error::Result;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::fmt;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{Merges, Vocab};

/// The parts of a file that matter here.
#[derive(Default)]
pub(super) struct File {
    pub(super) added_tokens: Vec<Added>,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
    pub(super) model: Option<Model>,
}

/// An entry of `added_tokens`.
#[derive(Default, Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) normalized: bool,
    #[serde(default)]
    pub(super) special: bool,
}

impl Added {
    /// The image placeholder is a control token whatever the file says; typed by a user, it is text.
    pub(super) fn is_special(&self) -> bool {
        self.special || self.content == "<image>"
    }

    /// The token in the library's type.
    pub(super) fn token(&self) -> AddedToken {
        AddedToken::from(self.content.as_str(), false)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized)
    }
}

/// The BPE model.
#[derive(Default)]
pub(super) struct Model {
    pub(super) vocab: Vocab,
    pub(super) merges: MergeList,
    pub(super) unk_token: Option<String>,
    pub(super) fuse_unk: bool,
    pub(super) ignore_merges: bool,
    pub(super) byte_fallback: bool,
    // Fields that must be off, with their values.
    pub(super) options: Vec<(String, Value)>,
}

impl Model {
    /// Refuses what this engine does not support.
    pub(super) fn check(&self) -> Result<()> {
        for (field, value) in &self.options {
            let is_off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Number(number) => number.as_f64() == Some(0.0),
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            if !is_off {
                return Err(wrong(&format!("model.{field}"), format!("expected none, found {value}")));
            }
        }
        Ok(())
    }
}

/// Pairs, in merge order.
#[derive(Default)]
pub(super) struct MergeList(pub(super) Merges);

/// Reads a value; if that fails, the error names the field.
fn value<'de, T: Deserialize<'de>, M: MapAccess<'de>>(map: &mut M, field: &str) -> std::result::Result<T, M::Error> {
    map.next_value().map_err(|error| M::Error::custom(format!("{field}: {error}")))
}

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct FileVisitor;
        impl<'de> Visitor<'de> for FileVisitor {
            type Value = File;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a tokenizer.json object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<File, M::Error> {
                let mut file = File::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "added_tokens" => file.added_tokens = value(&mut map, "added_tokens")?,
                        "normalizer" => file.normalizer = value(&mut map, "normalizer")?,
                        "pre_tokenizer" => file.pre_tokenizer = value(&mut map, "pre_tokenizer")?,
                        "decoder" => file.decoder = value(&mut map, "decoder")?,
                        "model" => file.model = Some(map.next_value()?),
                        _ => drop(value::<IgnoredAny, _>(&mut map, &key)?),
                    }
                }
                Ok(file)
            }
        }
        deserializer.deserialize_map(FileVisitor)
    }
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ModelVisitor;
        impl<'de> Visitor<'de> for ModelVisitor {
            type Value = Model;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object as model")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Model, M::Error> {
                let mut model = Model::default();
                while let Some(key) = map.next_key::<String>()? {
                    let field = format!("model.{key}");
                    match key.as_str() {
                        "type" => {
                            let kind: String = value(&mut map, &field)?;
                            if kind != "BPE" {
                                return Err(M::Error::custom(format!("{field}: expected BPE, found {kind}")));
                            }
                        }
                        "vocab" => model.vocab = value::<VocabMap, _>(&mut map, &field)?.0,
                        "merges" => model.merges = value(&mut map, &field)?,
                        "unk_token" => model.unk_token = value(&mut map, &field)?,
                        "fuse_unk" => model.fuse_unk = value(&mut map, &field)?,
                        "ignore_merges" => model.ignore_merges = value(&mut map, &field)?,
                        "byte_fallback" => model.byte_fallback = value(&mut map, &field)?,
                        "dropout" | "continuing_subword_prefix" | "end_of_word_suffix" => {
                            model.options.push((key, value(&mut map, &field)?));
                        }
                        _ => drop(value::<IgnoredAny, _>(&mut map, &field)?),
                    }
                }
                Ok(model)
            }
        }
        deserializer.deserialize_map(ModelVisitor)
    }
}

struct VocabMap(Vocab);

impl<'de> Deserialize<'de> for VocabMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct VocabVisitor;
        impl<'de> Visitor<'de> for VocabVisitor {
            type Value = VocabMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of ids")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<VocabMap, M::Error> {
                let mut vocab = Vocab::default();
                while let Some(token) = map.next_key::<String>()? {
                    let id = value(&mut map, &format!("{token:?}"))?;
                    if token.is_empty() {
                        return Err(M::Error::custom("a token is empty"));
                    }
                    if let Some(other) = vocab.insert(token, id) {
                        return Err(M::Error::custom(format!("the token of ids {other} and {id} is the same")));
                    }
                }
                Ok(VocabMap(vocab))
            }
        }
        deserializer.deserialize_map(VocabVisitor)
    }
}

impl<'de> Deserialize<'de> for MergeList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ListVisitor;
        impl<'de> Visitor<'de> for ListVisitor {
            type Value = MergeList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of merges")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> std::result::Result<MergeList, S::Error> {
                let mut merges = Merges::new();
                loop {
                    let merge = seq.next_element::<Merge>();
                    match merge.map_err(|error| S::Error::custom(format!("[{}]: {error}", merges.len())))? {
                        Some(Merge(left, right)) => merges.push((left, right)),
                        None => return Ok(MergeList(merges)),
                    }
                }
            }
        }
        deserializer.deserialize_seq(ListVisitor)
    }
}

/// `"left right"` in files up to 2024, `["left", "right"]` since.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "two tokens")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Merge, E> {
                let (left, right) =
                    text.split_once(' ').filter(|(_, right)| !right.contains(' ')).ok_or_else(|| {
                        E::custom(format!("expected two tokens with a space between them, found {text:?}"))
                    })?;
                Ok(Merge(left.into(), right.into()))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> std::result::Result<Merge, S::Error> {
                match (seq.next_element()?, seq.next_element()?, seq.next_element::<IgnoredAny>()?) {
                    (Some(left), Some(right), None) => Ok(Merge(left, right)),
                    _ => Err(S::Error::custom("expected two tokens")),
                }
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}
