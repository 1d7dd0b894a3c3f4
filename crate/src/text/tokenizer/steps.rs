//! What happens to a text before BPE: Unicode normalisation, then the steps that split it into words and write its
//! bytes as letters.
//!
//! These are the library's own steps, but only those used by byte-level tokenizers: its enum of all steps would bring
//! every one of them, with its tables, into the browser.

use super::wrong;
use crate::error::Result;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::split::Split;
use tokenizers::{PreTokenizedString, PreTokenizer};

/// The normalizer of a tokenizer.json file: NFC or none.
pub(super) fn normalizer(json: &Value) -> Result<Option<NFC>> {
    match json.get("type").and_then(Value::as_str) {
        None if json.is_null() => Ok(None),
        Some("NFC") => Ok(Some(NFC)),
        found => Err(wrong("normalizer.type", format!("expected none or NFC, found {}", found.unwrap_or("no type")))),
    }
}

/// Pre-tokenizers, applied one after the other.
pub(super) struct Steps(Vec<Step>);

enum Step {
    Split(Split),
    Digits(Digits),
    ByteLevel(ByteLevel),
}

impl Steps {
    /// The pre-tokenizers of a tokenizer.json file.
    pub(super) fn from_json(json: Value) -> Result<Self> {
        let mut steps = Self(Vec::new());
        steps.add("pre_tokenizer", json)?;
        match steps.0.iter().any(|step| matches!(step, Step::ByteLevel(_))) {
            true => Ok(steps),
            false => Err(wrong("pre_tokenizer", "expected a ByteLevel step, found none")),
        }
    }

    fn add(&mut self, field: &str, mut json: Value) -> Result<()> {
        let step = match json["type"].as_str() {
            Some("Split") => Step::Split(read(field, json)?),
            Some("Digits") => Step::Digits(read(field, json)?),
            Some("ByteLevel") => Step::ByteLevel(read(field, json)?),
            Some("Sequence") => {
                let Value::Array(parts) = json["pretokenizers"].take() else {
                    return Err(wrong(&format!("{field}.pretokenizers"), "expected a list"));
                };
                let mut parts = parts.into_iter().enumerate();
                return parts.try_for_each(|(idx, part)| self.add(&format!("{field}.pretokenizers[{idx}]"), part));
            }
            found => {
                let problem = "expected Sequence, Split, Digits or ByteLevel, found";
                return Err(wrong(&format!("{field}.type"), format!("{problem} {}", found.unwrap_or("nothing"))));
            }
        };
        self.0.push(step);
        Ok(())
    }
}

fn read<T: DeserializeOwned>(field: &str, json: Value) -> Result<T> {
    serde_json::from_value(json).map_err(|error| wrong(field, error))
}

impl PreTokenizer for Steps {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        self.0.iter().try_for_each(|step| match step {
            Step::Split(step) => step.pre_tokenize(text),
            Step::Digits(step) => step.pre_tokenize(text),
            Step::ByteLevel(step) => step.pre_tokenize(text),
        })
    }
}
