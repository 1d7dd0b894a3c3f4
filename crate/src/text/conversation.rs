//! The prompt: a conversation in the format that the model was trained on, with images in place.
//!
//! Every family of models writes the same things with its own marks: what precedes the first question, what comes
//! between question and answer, and what between an answer and the next question. The text on either side of an image
//! is tokenized separately, as in all of LLaVA's descendants. Whatever a user types is plain text, including `<image>`
//! and `<|eot_id|>`.

mod known_templates;
mod messages;
mod system;
mod writer;

use crate::error::{Error, Result};
use crate::file::gguf::Gguf;
use crate::text::keys::{Keys, MARKS, TEMPLATE};
use crate::text::tokenizer::Tokenizer;
pub use messages::{Chat, Message, Part, Role};
use std::collections::BTreeSet;
use writer::Writer;

/// System text of Llama3-Med. Its reference code assigns one literal of three, so the text ends here, with the space.
pub const LLAMA3_MED_SYSTEM: &str = "You are a helpful language and vision assistant. ";

/// The names that [`Template::named`] accepts.
pub const TEMPLATES: [&str; 7] =
    ["llama3", "llama3-med", "vicuna", "mistral", "mistral-v3", "mistral-v3-tekken", "chatml"];

/// Advice for a template that does not fit, for errors.
fn name_another() -> String {
    format!(
        "name the one it was trained with by --template, or template= in the page's address: {}",
        TEMPLATES.join(", ")
    )
}

/// Tokens without which a Llama-3 prompt cannot be written.
pub const LLAMA3_TOKENS: [&str; 4] = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];

/// An element of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A token.
    Token(u32),
    /// All tokens of the image with this key.
    Image(u64),
}

/// How a family of models writes conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// Llama-3's headers.
    Llama3 {
        /// System text; if it is empty, the conversation starts with the first question.
        system: String,
    },
    /// Any other form.
    Marks(Marks),
}

/// The texts around the messages. Names of control tokens in them stand for the tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    /// Before the first question, including the begin-of-text token and the system text.
    pub first: String,
    /// After each image at the beginning of a question.
    pub after_image: String,
    /// Between a question and its answer.
    pub reply: String,
    /// Between an answer and the next question.
    pub next: String,
}

impl Marks {
    /// Vicuna's conversations (`USER: … ASSISTANT: …</s>`), with the system text that LLaVA-1.5 was trained with.
    pub fn vicuna() -> Self {
        let system = "A chat between a curious user and an artificial intelligence assistant. \
            The assistant gives helpful, detailed, and polite answers to the user's questions.";
        Self {
            first: format!("<s>{system} USER: "),
            after_image: "\n".into(),
            reply: " ASSISTANT:".into(),
            next: "</s>USER: ".into(),
        }
    }

    /// Mistral's instructions, with LLaVA-Med's space before the token that ends an answer.
    pub fn mistral() -> Self {
        Self {
            first: "<s>[INST] ".into(),
            after_image: "\n".into(),
            reply: " [/INST]".into(),
            next: " </s>[INST] ".into(),
        }
    }

    /// Mistral's instructions since version 3, in which `[INST]` and `[/INST]` are tokens; also those since version 7
    /// if there is no system text. With the newer vocabulary (Tekken), no space follows `[INST]`.
    pub fn mistral_v3(is_tekken: bool) -> Self {
        let blank = if is_tekken { "" } else { " " };
        Self {
            first: format!("<s>[INST]{blank}"),
            after_image: "\n".into(),
            reply: "[/INST]".into(),
            next: format!("</s>[INST]{blank}"),
        }
    }

    /// ChatML (`<|im_start|>user … <|im_end|>`); `system` may be empty.
    pub fn chat_ml(system: &str) -> Self {
        let system = match system {
            "" => String::new(),
            text => format!("<|im_start|>system\n{text}<|im_end|>\n"),
        };
        Self {
            first: format!("<s>{system}<|im_start|>user\n"),
            after_image: "\n".into(),
            reply: "<|im_end|>\n<|im_start|>assistant\n".into(),
            next: "<|im_end|>\n<|im_start|>user\n".into(),
        }
    }

    /// The same, with a vocabulary's own begin and end tokens instead of `<s>` and `</s>`; `begin` is empty if there is
    /// none.
    pub fn with_tokens(mut self, begin: &str, end: &str) -> Self {
        self.next = self.next.replace("</s>", "\0").replace("<s>", begin).replace('\0', end);
        if let Some(rest) = self.first.strip_prefix("<s>") {
            // Vocabularies for ChatML may name the mark of a turn as their begin token.
            let begin = if rest.starts_with(begin) { "" } else { begin };
            self.first = format!("{begin}{rest}");
        }
        self
    }
}

impl Template {
    /// The template for a decoder file: the caller's choice, with the file's own tokens, or else the file's own
    /// template.
    pub fn for_file(named: Option<Self>, gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Self> {
        let Some(named) = named else { return Self::from_gguf(gguf, tokenizer) };
        let (begin, end) = known_templates::ends(&Keys::read(gguf)?, tokenizer);
        let template = match named {
            Self::Marks(marks) => Self::Marks(marks.with_tokens(&begin, &end)),
            llama3 => llama3,
        };
        template.check(&gguf.file, tokenizer, "it was asked for")?;
        Ok(template)
    }

    /// The template that a decoder file of this project names; for other files, the one recognised by their Jinja
    /// template or their vocabulary.
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Self> {
        let keys = Keys::read(gguf)?;
        match keys.template {
            None => known_templates::template(gguf, &keys, tokenizer),
            Some("llama3") => {
                let template = Self::Llama3 { system: keys.system.unwrap_or(LLAMA3_MED_SYSTEM).into() };
                template.check(&gguf.file, tokenizer, &format!("{TEMPLATE} names it"))?;
                Ok(template)
            }
            Some("marks") => {
                let marks = keys.marks.ok_or_else(|| gguf.missing_key(MARKS))?;
                let n_marks = marks.len();
                let [first, after_image, reply, next] = <[String; 4]>::try_from(marks)
                    .map_err(|_| Error::corrupt(&gguf.file, MARKS, format!("expected 4 texts, found {n_marks}")))?;
                Ok(Self::Marks(Marks { first, after_image, reply, next }))
            }
            Some(other) => {
                let problem = format!("expected \"llama3\" or \"marks\", found {other:?}");
                Err(Error::corrupt(&gguf.file, TEMPLATE, problem))
            }
        }
    }

    /// Names the template in a decoder file's keys, as [`Template::from_gguf`] reads it.
    pub fn name_in<'a>(&'a self, keys: &mut Keys<'a>) {
        match self {
            Self::Llama3 { system } => {
                keys.template = Some("llama3");
                keys.system = Some(system);
            }
            Self::Marks(Marks { first, after_image, reply, next }) => {
                keys.template = Some("marks");
                keys.marks = Some([first, after_image, reply, next].map(String::clone).into());
            }
        }
    }

    /// A known template by its name, one of [`TEMPLATES`].
    pub fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "llama3" => Self::Llama3 { system: String::new() },
            "llama3-med" => Self::Llama3 { system: LLAMA3_MED_SYSTEM.into() },
            "vicuna" => Self::Marks(Marks::vicuna()),
            "mistral" => Self::Marks(Marks::mistral()),
            "mistral-v3" => Self::Marks(Marks::mistral_v3(false)),
            "mistral-v3-tekken" => Self::Marks(Marks::mistral_v3(true)),
            "chatml" => Self::Marks(Marks::chat_ml("")),
            _ => {
                return Err(Error::Invalid(format!(
                    "template must be one of {}, found {name:?}",
                    TEMPLATES.join(", ")
                )));
            }
        })
    }

    /// Refuses a vocabulary that lacks a token of the template: as text, the token's name would mean nothing to the
    /// model. `why` says why this template was chosen for `file`.
    pub fn check(&self, file: &str, tokenizer: &Tokenizer, why: &str) -> Result<()> {
        let marks = self.marks();
        let texts = [&marks.first, &marks.reply, &marks.next];
        let written = |token: &&str| texts.iter().any(|text| text.contains(*token));
        let tokens = LLAMA3_TOKENS.iter().chain(&["<|im_start|>", "<|im_end|>", "<s>", "</s>"]);
        let Some(missing) = tokens.copied().filter(written).find(|token| tokenizer.find(token).is_none()) else {
            return Ok(());
        };
        let name = match self {
            Self::Llama3 { .. } => "Llama-3's",
            Self::Marks(marks) if marks.first.contains("<|im_start|>") => "ChatML's",
            Self::Marks(marks) if marks.first.contains("[INST]") => "Mistral's",
            Self::Marks(marks) if marks.first.contains("USER:") => "Vicuna's",
            Self::Marks(_) => "this",
        };
        Err(Error::Tokenizer(format!(
            "{file}: {name} form of conversations was taken because {why}, but the vocabulary has no token {missing}; {}",
            name_another()
        )))
    }

    /// The texts around the messages.
    pub fn marks(&self) -> Marks {
        match self {
            Self::Marks(marks) => marks.clone(),
            Self::Llama3 { system } => {
                let user = "<|start_header_id|>user<|end_header_id|>\n\n";
                let system = match system.as_str() {
                    "" => String::new(),
                    text => format!("<|start_header_id|>system<|end_header_id|>\n\n{text}<|eot_id|>"),
                };
                Marks {
                    first: format!("<|begin_of_text|>{system}{user}"),
                    after_image: "\n".into(),
                    reply: "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n".into(),
                    next: format!("<|eot_id|>{user}"),
                }
            }
        }
    }

    /// The whole prompt: the messages, and what opens the answer to the last one. If the last one is an answer, it is
    /// to be continued.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless the messages are an optional system text, then questions and answers in turns, or if
    /// one has a part that its role does not allow.
    pub fn prompt(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<Piece>> {
        let marks = self.marks();
        let mut writer = Writer::new(tokenizer);
        if writer.conversation(&marks, messages)? != Some(Role::Assistant) {
            writer.marks(&marks.reply)?;
        }
        writer.flush()?;
        Ok(writer.pieces)
    }

    /// The part of the prompt that is certain while the last question is still being typed: up to the last control
    /// token or image, since the text after it may merge with later text into one token.
    pub fn known(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<Piece>> {
        let mut writer = Writer::new(tokenizer);
        writer.conversation(&self.marks(), messages)?;
        Ok(writer.pieces)
    }

    /// Ids that end an answer: all such tokens of Llama-3 in the vocabulary, since published configurations disagree;
    /// those that the file names; and the token that ends an answer in the prompt.
    pub fn stop_ids(&self, gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let usual = ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"];
        let mut ids: BTreeSet<u32> = usual.iter().filter_map(|token| tokenizer.find(token)).collect();
        let next = self.marks().next;
        ids.extend(tokenizer.first_special(next.trim_start()).filter(|&(at, ..)| at == 0).map(|(_, _, id)| id));
        for (key, id) in Keys::read(gguf)?.ends() {
            let known = u32::try_from(id).ok().filter(|&id| tokenizer.is_known(id));
            ids.insert(known.ok_or_else(|| Error::corrupt(&gguf.file, key, format!("id {id} has no token")))?);
        }
        Ok(ids.into_iter().collect())
    }

    /// The same format as a Jinja template, for programs that read it from the decoder file. Without images.
    pub fn jinja(&self) -> String {
        let quote = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
        match self {
            Self::Llama3 { system } => LLAMA3_JINJA.replace("SYSTEM", &quote(system)),
            Self::Marks(marks) => MARKS_JINJA
                .replace("FIRST", &quote(&marks.first))
                .replace("REPLY", &quote(&marks.reply))
                .replace("NEXT", &quote(&marks.next)),
        }
    }
}

/// Every message as a header with its role, a blank line, the text unchanged and the token that ends a turn.
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

/// The marks around the messages; it does not accept another system text.
const MARKS_JINJA: &str = "{%- set ns = namespace(n=0) -%}\
{%- for message in messages -%}\
{%- if message['role'] == 'user' -%}\
{{- ('NEXT' if ns.n else 'FIRST') + message['content'] + 'REPLY' -}}\
{%- set ns.n = 1 -%}\
{%- elif message['role'] == 'assistant' -%}\
{{- message['content'] -}}\
{%- endif -%}\
{%- endfor -%}";
