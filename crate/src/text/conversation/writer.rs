//! Turns messages into tokens and images, in order.

use super::{Marks, Message, Part, Piece, Role, system};
use crate::error::{Error, Result};
use crate::text::tokenizer::{Place, Tokenizer};

/// Writes a prompt. How a text splits into tokens depends on all of it, so text is held back until a control token or
/// an image ends it.
pub(super) struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    /// The part that is certain.
    pub pieces: Vec<Piece>,
    text: String,
    place: Place,
}

impl<'a> Writer<'a> {
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, pieces: Vec::new(), text: String::new(), place: Place::Start }
    }

    /// Writes what opens the conversation, and the messages with the marks between them; returns the role of the last
    /// message.
    pub fn conversation(&mut self, marks: &Marks, messages: &[Message]) -> Result<Option<Role>> {
        let turns = match messages {
            [system, turns @ ..] if system.role == Role::System => {
                self.system(marks, system)?;
                turns
            }
            turns => {
                self.marks(&marks.first)?;
                turns
            }
        };
        let mut last = None;
        for message in turns {
            match (last, message.role) {
                (None, Role::User) => self.question(marks, message)?,
                (Some(Role::Assistant), Role::User) => {
                    self.marks(&marks.next)?;
                    self.question(marks, message)?;
                }
                (Some(Role::User), Role::Assistant) => {
                    self.marks(&marks.reply)?;
                    self.answer(&message.tokens(self.tokenizer)?)?;
                }
                (_, role) => {
                    return Err(Error::Invalid(format!(
                        "messages must be questions and answers in turns, after a system text if there is one; found one of {role:?} out of turn"
                    )));
                }
            }
            last = Some(message.role);
        }
        Ok(last)
    }

    fn system(&mut self, marks: &Marks, message: &Message) -> Result<()> {
        let mut text = String::new();
        for part in &message.parts {
            let Part::Text(part) = part else {
                return Err(Error::Invalid("a system text holds text alone".into()));
            };
            text.push_str(part);
        }
        let (before, after) = system::around(marks, self.tokenizer, &text)?;
        self.marks(&before)?;
        self.text.push_str(&text);
        self.marks(&after)
    }

    /// Writes questions as LLaVA does: `<image>` and a line break for each image at the beginning, only `<image>`
    /// elsewhere.
    fn question(&mut self, marks: &Marks, message: &Message) -> Result<()> {
        let mut is_beginning = true;
        for part in &message.parts {
            match part {
                Part::Text(text) => {
                    self.text.push_str(text);
                    is_beginning &= text.is_empty();
                }
                Part::Image(key) => {
                    self.flush()?;
                    self.pieces.push(Piece::Image(*key));
                    self.place = Place::Apart;
                    if is_beginning {
                        self.marks(&marks.after_image)?;
                    }
                }
                Part::Tokens(_) => return Err(Error::Invalid("a question cannot hold tokens".into())),
            }
        }
        Ok(())
    }

    fn answer(&mut self, ids: &[u32]) -> Result<()> {
        self.flush()?;
        self.pieces.extend(ids.iter().map(|&id| Piece::Token(id)));
        self.place = Place::Inside;
        Ok(())
    }

    /// Text in which names of control tokens stand for the tokens.
    pub fn marks(&mut self, mut text: &str) -> Result<()> {
        while let Some((at, token, id)) = self.tokenizer.first_special(text) {
            self.text.push_str(&text[..at]);
            self.flush()?;
            self.pieces.push(Piece::Token(id));
            self.place = Place::Apart;
            text = &text[at + token.len()..];
        }
        self.text.push_str(text);
        Ok(())
    }

    /// Tokenizes the text held back.
    pub fn flush(&mut self) -> Result<()> {
        if !self.text.is_empty() {
            let ids = self.tokenizer.encode_text_at(&self.text, self.place)?;
            self.pieces.extend(ids.into_iter().map(Piece::Token));
            self.text.clear();
            self.place = Place::Inside;
        }
        Ok(())
    }
}
