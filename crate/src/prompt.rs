//! The prompt: a conversation in the form that the model was trained on, with the image's place.
//!
//! Follows Llama3-Med's training text (TinyLLaVA's llama3 template): the image stands before the first question, and the pieces of text around it are
//! tokenized apart. What a person types is text throughout, `<image>` and `<|eot_id|>` included.

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::tokenizer::Tokenizer;
use std::collections::BTreeSet;

/// System text of Llama3-Med. Its reference code assigns one literal of three, so the text ends here, with the space.
pub const LLAMA3_MED_SYSTEM: &str = "You are a helpful language and vision assistant. ";

/// Keys of the decoder file that this module reads.
const TEMPLATE_KEY: &str = "llama3med.template";
const SYSTEM_KEY: &str = "llama3med.system_prompt";
const STOP_KEY: &str = "llama3med.stop_token_ids";

/// One place in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A token.
    Token(u32),
    /// All tokens of the image.
    Image,
}

/// How a family of models writes conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// Llama-3's headers.
    Llama3 {
        /// System text; if it is empty, the conversation starts with the first question.
        system: String,
    },
}

impl Template {
    /// The template that a decoder file names; Llama3-Med's where it names none.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        match gguf.get_str(TEMPLATE_KEY)? {
            None | Some("llama3") => {
                let system = gguf.get_str(SYSTEM_KEY)?.unwrap_or(LLAMA3_MED_SYSTEM);
                Ok(Self::Llama3 { system: system.into() })
            }
            Some(other) => {
                Err(Error::corrupt(&gguf.file, TEMPLATE_KEY, format!("expected \"llama3\", found {other:?}")))
            }
        }
    }

    /// The whole prompt: finished turns (question, ids of the answer without the token that ended it), the oldest first, then the open question.
    ///
    /// Leave turns out at the front to shorten it: the image moves to the first question that is left.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        turns: &[(&str, &[u32])],
        question: &str,
        has_image: bool,
    ) -> Result<Vec<Piece>> {
        let mut pieces = self.head(tokenizer, has_image)?;
        for (turn_idx, (question, answer)) in turns.iter().enumerate() {
            pieces.extend(self.question(tokenizer, question, has_image && turn_idx == 0)?);
            pieces.extend(self.answer(tokenizer, answer)?);
        }
        pieces.extend(self.question(tokenizer, question, has_image && turns.is_empty())?);
        Ok(pieces)
    }

    /// What comes before any question: the system text and, if there is an image, everything up to and with it.
    pub fn head(&self, tokenizer: &Tokenizer, has_image: bool) -> Result<Vec<Piece>> {
        let Self::Llama3 { system } = self;
        let mut writer = Writer { tokenizer, pieces: Vec::new() };
        writer.special("<|begin_of_text|>")?;
        if !system.is_empty() {
            writer.header("system", system)?;
            writer.special("<|eot_id|>")?;
        }
        if has_image {
            writer.header("user", "")?;
            writer.pieces.push(Piece::Image);
        }
        Ok(writer.pieces)
    }

    /// A question up to where its answer begins; right after an image, the head has opened it already.
    pub fn question(&self, tokenizer: &Tokenizer, text: &str, follows_image: bool) -> Result<Vec<Piece>> {
        let mut writer = Writer { tokenizer, pieces: Vec::new() };
        if follows_image {
            writer.text(&format!("\n{text}"))?;
        } else {
            writer.header("user", text)?;
        }
        writer.special("<|eot_id|>")?;
        writer.header("assistant", "")?;
        Ok(writer.pieces)
    }

    /// A finished answer, from ids because other ids may stand for the same text.
    pub fn answer(&self, tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<Piece>> {
        let mut writer = Writer { tokenizer, pieces: ids.iter().map(|&id| Piece::Token(id)).collect() };
        writer.special("<|eot_id|>")?;
        Ok(writer.pieces)
    }

    /// Ids that end an answer: all of Llama-3's, since published configurations disagree, and those that the file names.
    pub fn stop_ids(&self, gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let Self::Llama3 { .. } = self;
        let usual = ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"];
        let mut ids: BTreeSet<u32> = usual.iter().filter_map(|token| tokenizer.find(token)).collect();
        let mut named: Vec<(&str, i64)> = Vec::new();
        named.extend(gguf.get_ints(STOP_KEY)?.unwrap_or_default().into_iter().map(|id| (STOP_KEY, id)));
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
            named.extend(gguf.get_usize(key)?.map(|id| (key, id as i64)));
        }
        for (key, id) in named {
            let known = u32::try_from(id).ok().filter(|&id| tokenizer.is_known(id));
            ids.insert(known.ok_or_else(|| Error::corrupt(&gguf.file, key, format!("id {id} has no token")))?);
        }
        Ok(ids.into_iter().collect())
    }

    /// The same form as a Jinja template, for `tokenizer.chat_template` in the decoder file and the programs that read it. Without an image.
    pub fn jinja(&self) -> String {
        let Self::Llama3 { system } = self;
        let quoted = system.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
        LLAMA3_JINJA.replace("SYSTEM", &quoted)
    }
}

/// Every message as a header with its role, a blank line, the text as it stands and the token that ends a turn.
const LLAMA3_JINJA: &str = "{{- bos_token -}}\
{%- set system = 'SYSTEM' -%}\
{%- if messages and messages[0]['role'] == 'system' -%}\
{%- set system = messages[0]['content'] -%}\
{%- endif -%}\
{%- if system -%}\
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' -}}\
{%- endif -%}\
{%- for message in messages -%}\
{%- if message['role'] != 'system' -%}\
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' -}}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}\
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}\
{%- endif -%}";

struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    pieces: Vec<Piece>,
}

impl Writer<'_> {
    fn special(&mut self, token: &str) -> Result<()> {
        self.pieces.push(Piece::Token(self.tokenizer.special(token)?));
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.pieces.extend(self.tokenizer.encode_text(text)?.into_iter().map(Piece::Token));
        Ok(())
    }

    /// The blank line and the text after it are one text: how it splits into tokens depends on both.
    fn header(&mut self, role: &str, text: &str) -> Result<()> {
        self.special("<|start_header_id|>")?;
        self.text(role)?;
        self.special("<|end_header_id|>")?;
        self.text(&format!("\n\n{text}"))
    }
}
