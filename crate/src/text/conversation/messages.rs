//! A conversation: messages, each with a role and parts, any number of them in any order.

use crate::error::{Error, Result};
use crate::text::tokenizer::{Place, Tokenizer};
use serde::Deserialize;
use std::borrow::Cow;

/// The author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions to the model before the conversation; only the first message may have this role.
    System,
    /// A question.
    User,
    /// An answer.
    Assistant,
}

/// A part of a message. As JSON: `{ "text": … }`, `{ "image": … }` or `{ "tokens": … }`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Text as typed; names of control tokens in it are plain text.
    Text(String),
    /// The encoded image with this key.
    Image(u64),
    /// Tokens of an answer exactly as they were generated. The same text could be tokenized differently, and then the
    /// cache would not match.
    Tokens(Vec<u32>),
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Message {
    /// Its author.
    pub role: Role,
    /// Its content, in order.
    pub parts: Vec<Part>,
}

impl Message {
    /// A message of any role.
    pub fn new(role: Role, parts: impl Into<Vec<Part>>) -> Self {
        Self { role, parts: parts.into() }
    }

    /// Keys of its images.
    pub fn images(&self) -> impl Iterator<Item = u64> {
        let key = |part: &Part| if let Part::Image(key) = part { Some(*key) } else { None };
        self.parts.iter().filter_map(key)
    }

    /// Tokens of an answer. Text in it is tokenized separately from what comes before and after it.
    pub(super) fn tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => {
                    let place = if ids.is_empty() { Place::Start } else { Place::Inside };
                    ids.extend(tokenizer.encode_text_at(text, place)?);
                }
                Part::Tokens(tokens) => match tokens.iter().find(|&&id| !tokenizer.is_known(id)) {
                    Some(id) => return Err(Error::Invalid(format!("id {id} has no token"))),
                    None => ids.extend(tokens),
                },
                Part::Image(_) => return Err(Error::Invalid("an answer cannot hold a picture".into())),
            }
        }
        Ok(ids)
    }
}

/// A conversation. The caller owns it; a session may switch between any number of them.
///
/// If the last message is the user's, it is an open question, to which [`Chat::add`] may add; if it is the model's, it
/// is an answer that may be continued.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chat {
    /// The oldest first: an optional system text, then questions and answers in turns.
    pub messages: Vec<Message>,
}

impl Chat {
    /// A conversation whose first question begins with an image, if one is given.
    pub fn about(image: impl Into<Option<u64>>) -> Self {
        let mut chat = Self::default();
        if let Some(key) = image.into() {
            chat.add(Message::new(Role::User, [Part::Image(key)]));
        }
        chat
    }

    /// Adds a message, or, if the last message has the same role, appends the parts to that one.
    pub fn add(&mut self, message: Message) {
        match self.messages.last_mut() {
            Some(last) if last.role == message.role => last.parts.extend(message.parts),
            _ => self.messages.push(message),
        }
    }

    /// The same conversation followed by a question.
    pub fn asked(&self, question: &str) -> Self {
        let mut chat = self.clone();
        chat.add(Message::new(Role::User, [Part::Text(question.into())]));
        chat
    }

    /// The tokens of each generated answer, the oldest first.
    pub fn answers(&self) -> Vec<Vec<u32>> {
        let ids = |part: &Part| if let Part::Tokens(ids) = part { ids.clone() } else { Vec::new() };
        let answers = self.messages.iter().filter(|message| message.role == Role::Assistant);
        answers.map(|answer| answer.parts.iter().flat_map(ids).collect()).collect()
    }

    /// Tokens of the answer to continue; empty if the last message is a question.
    pub(crate) fn begun(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        match self.messages.last() {
            Some(last) if last.role == Role::Assistant => last.tokens(tokenizer),
            _ => Ok(Vec::new()),
        }
    }

    /// Number of turns of question and answer before the last question.
    pub(crate) fn n_turns(&self) -> usize {
        self.messages.iter().filter(|message| message.role == Role::User).count().saturating_sub(1)
    }

    /// The messages without the oldest `n_turns` turns. Their images are dropped too, except the first of the
    /// conversation, which most questions are about: it moves to the beginning of the first remaining question.
    pub(crate) fn without(&self, n_turns: usize) -> Cow<'_, [Message]> {
        if n_turns == 0 {
            return Cow::Borrowed(&self.messages);
        }
        let n_before = self.messages.iter().take_while(|message| message.role == Role::System).count();
        let (before, turns) = self.messages.split_at(n_before);
        let mut kept = turns[(2 * n_turns).min(turns.len())..].to_vec();
        let is_kept = |key: &u64| kept.iter().any(|message| message.images().any(|other| other == *key));
        let first = turns.iter().flat_map(Message::images).next().filter(|key| !is_kept(key));
        if let (Some(key), Some(question)) = (first, kept.first_mut()) {
            question.parts.insert(0, Part::Image(key));
        }
        [before, &kept].concat().into()
    }
}
