//! What a decoder file says about tokens and conversations: the only place where these keys are read and written.
//!
//! [`Keys`] are short. [`Tokens`] are llama.cpp's long lists, which are read only if the file has no tokenizer.json.

use super::tokenizer::MAX_IDS;
use super::tokenizer::ggml::token_type::{NORMAL, UNUSED};
use crate::error::{Error, Result};
use crate::file::gguf::{Gguf, Header};

pub(super) const JSON: &str = "tokenizer.huggingface.json";
pub(super) const JINJA: &str = "tokenizer.chat_template";
pub(super) const TEMPLATE: &str = "llama3med.template";
pub(super) const MARKS: &str = "llama3med.marks";
const SYSTEM: &str = "llama3med.system_prompt";
const STOPS: &str = "llama3med.stop_token_ids";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const PADDING: &str = "tokenizer.ggml.padding_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";

/// Everything but the lists of tokens.
#[derive(Debug, Clone, Default)]
pub struct Keys<'a> {
    /// The text of tokenizer.json, which the tokenizer is built from.
    pub json: Option<&'a str>,
    /// The chat template for other programs, in Jinja.
    pub jinja: Option<&'a str>,
    /// The family of the template, `llama3` or `marks`.
    pub template: Option<&'a str>,
    /// The system text of a `llama3` template.
    pub system: Option<&'a str>,
    /// The four texts of a `marks` template, in the order of [`Marks`](super::conversation::Marks).
    pub marks: Option<Vec<String>>,
    /// Ids that end an answer.
    pub stops: Vec<i64>,
    /// Id that begins a text.
    pub bos: Option<u32>,
    /// Whether it is written before every text.
    pub add_bos: Option<bool>,
    /// Id that ends a text.
    pub eos: Option<u32>,
    /// Id that ends a turn.
    pub eot: Option<u32>,
    /// Id that fills batches in other programs; not read here.
    pub padding: Option<u32>,
}

impl<'a> Keys<'a> {
    /// The keys of a file; other projects' files lack most of them.
    pub fn read(gguf: &'a Gguf) -> Result<Self> {
        // An id beyond u32 stays one that no vocabulary has.
        let id = |key| Ok(gguf.get_usize(key)?.map(|id| u32::try_from(id).unwrap_or(u32::MAX)));
        Ok(Self {
            json: gguf.get_str(JSON)?,
            jinja: gguf.get_str(JINJA)?,
            template: gguf.get_str(TEMPLATE)?,
            system: gguf.get_str(SYSTEM)?,
            marks: gguf.get_strings(MARKS)?,
            stops: gguf.get_ints(STOPS)?.unwrap_or_default(),
            bos: id(BOS)?,
            add_bos: gguf.get_bool(ADD_BOS)?,
            eos: id(EOS)?,
            eot: id(EOT)?,
            padding: None,
        })
    }

    /// Writes them.
    pub fn write(&self, header: &mut Header) {
        let stops: Vec<u32> = self.stops.iter().map(|&id| id as u32).collect();
        put(header, Header::u32, EOS, self.eos);
        put(header, Header::u32, PADDING, self.padding);
        put(header, Header::bool, ADD_BOS, self.add_bos);
        put(header, Header::string, JSON, self.json);
        header.u32s(STOPS, &stops);
        put(header, Header::string, JINJA, self.jinja);
        put(header, Header::u32, BOS, self.bos);
        put(header, Header::u32, EOT, self.eot);
        put(header, Header::string, TEMPLATE, self.template);
        put(header, Header::string, SYSTEM, self.system);
        put(header, Header::strings, MARKS, self.marks.as_deref());
    }

    /// Every id that ends an answer, with the key that names it.
    pub(super) fn ends(&self) -> impl Iterator<Item = (&'static str, i64)> {
        let usual = [(EOS, self.eos), (EOT, self.eot)];
        let usual = usual.into_iter().filter_map(|(key, id)| Some((key, id?.into())));
        self.stops.iter().map(|&id| (STOPS, id)).chain(usual)
    }
}

fn put<T>(
    header: &mut Header,
    write: impl for<'a> Fn(&'a mut Header, &str, T) -> &'a mut Header,
    key: &str,
    value: Option<T>,
) {
    if let Some(value) = value {
        write(header, key, value);
    }
}

/// The vocabulary in llama.cpp's form.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// Text of every id.
    pub texts: Vec<String>,
    /// Type of every id: [`token_type`](super::tokenizer::ggml::token_type).
    pub types: Vec<i32>,
    /// How they are put together.
    pub model: Model,
}

/// llama.cpp's kinds of vocabularies.
#[derive(Debug, Clone)]
pub enum Model {
    /// `gpt2`, byte-level BPE: llama.cpp's name for the pre-tokenizer, and the merges.
    ByteLevel(Option<String>, Vec<String>),
    /// `llama`, SentencePiece: the scores, and whether a space is put before a text; if nothing says so, it is.
    SentencePiece(Vec<f32>, Option<bool>),
}

impl Tokens {
    /// The vocabulary of a file.
    pub(super) fn read(gguf: &Gguf) -> Result<Self> {
        let model = gguf.get_str(MODEL)?.ok_or_else(|| gguf.missing_key(MODEL))?;
        let texts = gguf.get_strings(TOKENS)?.ok_or_else(|| gguf.missing_key(TOKENS))?;
        let types = gguf.get_ints(TYPES)?.unwrap_or_else(|| vec![NORMAL.into(); texts.len()]);
        if types.len() != texts.len() || texts.len() > MAX_IDS {
            let (n_types, n) = (types.len(), texts.len());
            let problem = format!("{n_types} types for {n} tokens, expected one each and {MAX_IDS} at most");
            return Err(Error::corrupt(&gguf.file, TYPES, problem));
        }
        let types = types.into_iter().map(|kind| i32::try_from(kind).unwrap_or(UNUSED)).collect();
        let model = match model {
            "gpt2" => {
                let merges = gguf.get_strings(MERGES)?.ok_or_else(|| gguf.missing_key(MERGES))?;
                Model::ByteLevel(gguf.get_str(PRE)?.map(String::from), merges)
            }
            "llama" => {
                let scores = gguf.get_floats(SCORES)?.ok_or_else(|| gguf.missing_key(SCORES))?;
                Model::SentencePiece(scores, gguf.get_bool(ADD_SPACE)?)
            }
            other => {
                let read = "this engine reads \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece)";
                return Err(Error::Unsupported(format!("{}: {MODEL} is {other:?}; {read}", gguf.file)));
            }
        };
        Ok(Self { texts, types, model })
    }

    /// Writes it.
    pub fn write(&self, header: &mut Header) {
        match &self.model {
            Model::ByteLevel(pre, merges) => {
                header.string(MODEL, "gpt2");
                // Without a name llama.cpp warns, which is better than using a wrong one.
                put(header, Header::string, PRE, pre.as_deref());
                header.strings(MERGES, merges);
            }
            Model::SentencePiece(scores, add_space) => {
                header.string(MODEL, "llama").string(PRE, "default").f32s(SCORES, scores);
                put(header, Header::bool, ADD_SPACE, *add_space);
            }
        }
        header.strings(TOKENS, &self.texts).i32s(TYPES, &self.types);
    }
}
