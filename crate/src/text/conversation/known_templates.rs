//! Recognises which of the known templates a decoder file of llama.cpp's uses: by marks in its Jinja template that
//! occur in no other, or, without one, by its vocabulary. No template is executed.

use super::{Marks, Template, name_another};
use crate::error::{Error, Result};
use crate::file::gguf::Gguf;
use crate::text::keys::{JINJA, Keys};
use crate::text::tokenizer::Tokenizer;

/// System texts are a few sentences.
const MAX_SYSTEM_BYTES: usize = 4096;

/// The template, with the file's own tokens.
pub(super) fn template(gguf: &Gguf, keys: &Keys, tokenizer: &Tokenizer) -> Result<Template> {
    let (begin, end) = ends(keys, tokenizer);
    let (template, why) = match keys.jinja {
        Some(source) => by_source(source, tokenizer),
        None => by_vocabulary(gguf, tokenizer)?,
    }
    .ok_or_else(|| {
        let found = if keys.jinja.is_some() { "is none that this engine knows" } else { "is missing" };
        Error::Unsupported(format!("{}: {JINJA} {found}; {}", gguf.file, name_another()))
    })?;
    let template = match template {
        Template::Marks(marks) => Template::Marks(marks.with_tokens(&begin, &end)),
        llama3 => llama3,
    };
    template.check(&gguf.file, tokenizer, &why)?;
    Ok(template)
}

/// Names of the tokens that begin a text and end an answer; the first is empty if nothing precedes a text.
pub(super) fn ends(keys: &Keys, tokenizer: &Tokenizer) -> (String, String) {
    let named = |id: Option<u32>, usual: &str| id.and_then(|id| tokenizer.special_name(id)).unwrap_or(usual).to_owned();
    let (begin, end) = (named(keys.bos, "<s>"), named(keys.eos, "</s>"));
    // GPT-2 vocabularies have no begin token unless the file names one.
    let is_added = keys.add_bos.unwrap_or(tokenizer.find(&begin).is_some());
    (if is_added { begin } else { String::new() }, end)
}

/// The template recognised in a Jinja template, and by which mark.
fn by_source(source: &str, tokenizer: &Tokenizer) -> Option<(Template, String)> {
    let has = |mark: &str| source.contains(mark);
    let (template, mark) = if has("<|start_header_id|>") {
        (Template::Llama3 { system: String::new() }, "<|start_header_id|>")
    } else if has("<|im_start|>") {
        let system = system_text(source, "<|im_start|>system\n", "<|im_end|>");
        (Template::Marks(Marks::chat_ml(&system)), "<|im_start|>")
    } else if has("[INST]") {
        (Template::Marks(mistral(source, tokenizer)), "[INST]")
    } else if has("USER:") && has("ASSISTANT:") {
        let marks = match has("A chat between") {
            true => Marks::vicuna(),
            false => Marks { first: "<s>USER: ".into(), ..Marks::vicuna() },
        };
        (Template::Marks(marks), "USER: and ASSISTANT:")
    } else {
        return None;
    };
    Some((template, format!("{JINJA} has {mark}")))
}

/// The template recognised by the vocabulary if the file has no Jinja template, and by what.
fn by_vocabulary(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Option<(Template, String)>> {
    let shown = |mark: &str| format!("{JINJA} is missing and the vocabulary has {mark}");
    // Llama-2 has as many key heads as query heads; Mistral and TinyLlama have fewer.
    let heads = gguf.get_usize("llama.attention.head_count")?;
    let is_llama2 = heads.is_some() && heads == gguf.get_usize("llama.attention.head_count_kv")?.or(heads);
    Ok(if tokenizer.find("<|start_header_id|>").is_some() {
        Some((Template::Llama3 { system: String::new() }, shown("<|start_header_id|>")))
    } else if tokenizer.find("<|im_start|>").is_some() {
        Some((Template::Marks(Marks::chat_ml("")), shown("<|im_start|>")))
    } else if tokenizer.find("[INST]").is_some() {
        Some((Template::Marks(mistral_v3(tokenizer)), shown("[INST]")))
    } else if is_llama2 {
        // LLaVA-1.5's files are the most common ones without a template.
        let why = format!("{JINJA} is missing and there are as many key heads as query heads, as in Llama-2");
        Some((Template::Marks(Marks::vicuna()), why))
    } else {
        None
    })
}

/// Mistral's formats differ in the spaces that their templates write next to the marks; Llama-2's begins a new text
/// with every turn.
fn mistral(source: &str, tokenizer: &Tokenizer) -> Marks {
    if source.contains("<<SYS>>") {
        Marks { next: " </s><s>[INST] ".into(), ..Marks::mistral() }
    } else if source.contains(" [/INST]") {
        Marks { next: "</s>[INST] ".into(), ..Marks::mistral() }
    } else if source.contains("[INST] ") {
        mistral_v3(tokenizer)
    } else {
        Marks::mistral_v3(true)
    }
}

/// If SentencePiece puts a space before the text after a token, it serves as the template's own space: mistral-common
/// also writes only one.
fn mistral_v3(tokenizer: &Tokenizer) -> Marks {
    let is_token = tokenizer.find("[INST]").is_some_and(|id| tokenizer.is_special(id));
    Marks::mistral_v3(is_token && tokenizer.begins_with_space())
}

/// The system text that a Jinja template contains between two marks, as SmolLM2's and Qwen2.5's do for conversations
/// without one; empty if there is none, or if the template computes it.
fn system_text(source: &str, open: &str, close: &str) -> String {
    let source = source.replace("\\n", "\n");
    let texts = source.split(open).skip(1).filter_map(|rest| rest.split_once(close));
    let is_plain = |text: &&str| text.len() <= MAX_SYSTEM_BYTES && !text.contains(['\'', '"', '{', '}', '\\']);
    texts.map(|(text, _)| text).filter(|text| !text.is_empty()).find(is_plain).unwrap_or_default().to_owned()
}
