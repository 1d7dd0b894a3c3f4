//! The place of a conversation's own system text: known for every format whose questions are marked like those of a
//! known family.

use super::Marks;
use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

/// The text before and after a system text at the beginning of a conversation; with it, they replace [`Marks::first`].
/// An empty system text removes the format's own.
///
/// Llama-3, ChatML and Vicuna have a place for it. Mistral's formats have none: the text is put before the first
/// question, between `<<SYS>>` and `<</SYS>>` as in LLaVA's reference code, or, since version 3, as a paragraph of its
/// own.
pub(super) fn around(marks: &Marks, tokenizer: &Tokenizer, text: &str) -> Result<(String, String)> {
    let first = marks.first.as_str();
    let question = first.trim_end();
    let in_message = |open: &str, header: &str, close: &str| {
        let at = first.rfind(&format!("{open}user"))?;
        let (begin, user) = (&first[..first.find(open)?], &first[at..]);
        Some((format!("{begin}{header}"), format!("{close}{user}"), format!("{begin}{user}")))
    };
    let llama3 = || in_message("<|start_header_id|>", "<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>");
    let chat_ml = || in_message("<|im_start|>", "<|im_start|>system\n", "<|im_end|>\n");
    let places = llama3().or_else(chat_ml).or_else(|| {
        if question.ends_with("[INST]") {
            let (open, close) = match marks.reply.starts_with(' ') {
                true => ("<<SYS>>\n", "\n<</SYS>>\n\n"),
                false => ("", "\n\n"),
            };
            return Some((format!("{first}{open}"), close.into(), first.into()));
        }
        let user = &first[question.rfind("USER:").filter(|&at| question.len() == at + "USER:".len())?..];
        let mut begin = 0;
        while let Some((0, token, _)) = tokenizer.first_special(&first[begin..]) {
            begin += token.len();
        }
        let begin = &first[..begin];
        Some((begin.into(), format!(" {user}"), format!("{begin}{user}")))
    });
    let (before, after, without) = places.ok_or_else(|| {
        Error::Unsupported("this model's form of conversations has no known place for a system text".into())
    })?;
    Ok(if text.is_empty() { (without, String::new()) } else { (before, after) })
}
