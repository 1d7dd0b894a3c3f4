//! A session: pictures looked at, questions asked, answers streamed (rank 0 only).
//!
//! The cache is kept between questions: whatever the next prompt shares with what the cache holds, token by token and image by image, is not read
//! again. So a picture is read while its question is still being typed, and a second turn costs only its own tokens.

use crate::decoder::MAX_TOKENS;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::image::{Crop, Picture, preprocess};
use crate::model::{Item, Listener, Model, Stage};
use crate::prompt::{Piece, Template};
use crate::ranks::Peers;
use crate::sampler::{Sampler, SamplerOptions};
use crate::tokenizer::Tokenizer;
use sha2::{Digest, Sha256};

/// A conversation about at most one picture. Belongs to the caller; any number may take turns in one session.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chat {
    /// Key of the encoded picture, from [`Session::look`].
    pub image: Option<u64>,
    /// Questions with their answers, the oldest first.
    pub turns: Vec<Turn>,
}

/// A question and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// As the person wrote it.
    pub question: String,
    /// Tokens of the answer exactly as they were generated, so that the cache fits them; without the token that ended it.
    pub answer: Vec<u32>,
}

/// How to answer.
#[derive(Debug, Clone)]
pub struct AskOptions {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// It has as many tokens as allowed.
    Length,
    /// The context is full.
    Context,
    /// The caller stopped it.
    Cancelled,
}

/// What came of a question. The answer itself is the last turn of the chat.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The whole text, trimmed.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt, and how many of them the cache held already.
    pub n_prompt: usize,
    /// Tokens of the prompt that were not read again.
    pub n_reused: usize,
}

/// What the model sees of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// Key for [`Chat::image`].
    pub key: u64,
    /// Part of the picture that the model sees, in its pixels.
    pub crop: Crop,
    /// Merged features (n_tokens, channels) from before the connector; empty if the picture was encoded before.
    pub features: Vec<f32>,
}

/// A model with its tokenizer, its template and what its cache holds.
pub struct Session<P> {
    model: Model<P>,
    tokenizer: Tokenizer,
    template: Template,
    stop_ids: Vec<u32>,
    context: usize,
    cached: Vec<Item>,
}

/// Positions that a conversation may have unless the caller says otherwise: memory for keys and values grows with it.
pub const DEFAULT_CONTEXT: usize = 4096;

impl<P: Peers> Session<P> {
    /// `gguf` is the header of the decoder file. `context` is the largest conversation in tokens, cut to what the model was trained for.
    pub fn new(model: Model<P>, gguf: &Gguf, context: Option<usize>) -> Result<Self> {
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        let template = Template::from_gguf(gguf)?;
        let stop_ids = template.stop_ids(gguf, &tokenizer)?;
        let context = context.unwrap_or(DEFAULT_CONTEXT).min(model.config().context_length);
        Ok(Self { model, tokenizer, template, stop_ids, context, cached: Vec::new() })
    }

    /// The model.
    pub fn model(&self) -> &Model<P> {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The largest conversation in tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Encodes a picture, or finds it among the last few.
    pub async fn look(&mut self, picture: &Picture, listener: &mut impl Listener) -> Result<Look> {
        let mut hash = Sha256::new();
        hash.update((picture.width as u64).to_le_bytes());
        hash.update(&picture.rgb);
        let key = hash.finalize()[..8].iter().fold(0, |key, &byte| key << 8 | byte as u64);
        let pixels = preprocess(picture, self.model.preprocess());
        let features = match self.model.image(key) {
            Some(_) => Vec::new(),
            None => self.model.encode(key, &pixels, listener).await?,
        };
        Ok(Look { key, crop: pixels.crop, features })
    }

    /// Reads everything of the next prompt that is known before its question: call it while the person is typing.
    pub async fn prepare(&mut self, chat: &Chat, listener: &mut impl Listener) -> Result<()> {
        let n_dropped = self.n_turns_to_drop(chat, "", 0)?;
        let (with_a, with_b) = (self.items(chat, n_dropped, "a")?, self.items(chat, n_dropped, "b")?);
        let n_known = with_a.iter().zip(&with_b).take_while(|(a, b)| a == b).count();
        if n_known > 0 {
            self.read(&with_a[..n_known], listener).await?;
        }
        Ok(())
    }

    /// Answers a question. The turn is added to the chat, also when the answer is cut short; a question that was never read is not.
    pub async fn ask(
        &mut self,
        chat: &mut Chat,
        question: &str,
        options: &AskOptions,
        listener: &mut impl Listener,
    ) -> Result<Answer> {
        let mut sampler = Sampler::new(&options.sampler)?;
        let n_dropped = self.n_turns_to_drop(chat, question, options.max_tokens)?;
        if n_dropped > 0 {
            listener.dropped(n_dropped);
        }
        let prompt = self.items(chat, n_dropped, question)?;
        let n_reused = self.n_shared(&prompt);
        let mut logits = self.read(&prompt, listener).await?;
        let (mut ids, mut text) = (Vec::new(), String::new());
        let mut stream = self.tokenizer.stream();
        let finish = loop {
            listener.logits(&logits);
            let known = |id| self.tokenizer.is_known(id);
            let id = sampler.sample(&mut logits, &ids, known)?;
            listener.chosen(id);
            if self.stop_ids.contains(&id) {
                break Finish::Stop;
            }
            ids.push(id);
            let piece = stream.push(id);
            text.push_str(&piece);
            if !listener.token(id, &piece).await {
                break Finish::Cancelled;
            }
            if ids.len() >= options.max_tokens {
                break Finish::Length;
            }
            if self.cached.len() >= self.context {
                break Finish::Context;
            }
            logits = self.model.forward(&[Item::Token(id)], self.cached.len(), 1).await?;
            self.cached.push(Item::Token(id));
        };
        let rest = stream.finish();
        if !rest.is_empty() && finish != Finish::Cancelled {
            text.push_str(&rest);
            listener.token(ids[ids.len() - 1], &rest).await;
        }
        chat.turns.push(Turn { question: question.into(), answer: ids });
        Ok(Answer { text: text.trim().into(), finish, n_prompt: prompt.len(), n_reused })
    }

    /// Ends the other ranks.
    pub async fn close(&mut self) -> Result<()> {
        self.model.close().await
    }

    /// How many positions at the start of `items` the cache holds; the last is always read again, for its logits.
    fn n_shared(&self, items: &[Item]) -> usize {
        let n_shared = self.cached.iter().zip(items).take_while(|(a, b)| a == b).count();
        n_shared.min(items.len() - 1)
    }

    /// Brings the cache to hold exactly `items`; returns the logits after the last.
    async fn read(&mut self, items: &[Item], listener: &mut impl Listener) -> Result<Vec<f32>> {
        let n_shared = self.n_shared(items);
        self.cached.truncate(n_shared);
        let (total, mut logits) = (items.len() - n_shared, Vec::new());
        for batch in items[n_shared..].chunks(MAX_TOKENS) {
            let done = self.cached.len() - n_shared;
            if !listener.progress(Stage::Reading, done, total).await {
                return Err(Error::Cancelled);
            }
            let is_last = done + batch.len() == total;
            logits = self.model.forward(batch, self.cached.len(), is_last as usize).await?;
            self.cached.extend_from_slice(batch);
        }
        listener.progress(Stage::Reading, total, total).await;
        Ok(logits)
    }

    /// How many of the oldest turns must go so that the prompt, and after it the answer, fit into the context.
    fn n_turns_to_drop(&self, chat: &Chat, question: &str, max_tokens: usize) -> Result<usize> {
        // An answer may be shorter than allowed: no turn is given up for more than a quarter of the context.
        let reserve = max_tokens.min(self.context / 4);
        for n_dropped in 0..chat.turns.len() {
            if self.items(chat, n_dropped, question)?.len() + reserve <= self.context {
                return Ok(n_dropped);
            }
        }
        let needed = self.items(chat, chat.turns.len(), question)?.len();
        if needed >= self.context {
            return Err(Error::ContextFull { needed, context: self.context });
        }
        Ok(chat.turns.len())
    }

    /// The prompt without its oldest `n_dropped` turns, position by position.
    fn items(&self, chat: &Chat, n_dropped: usize, question: &str) -> Result<Vec<Item>> {
        let turns: Vec<(&str, &[u32])> =
            chat.turns[n_dropped..].iter().map(|turn| (turn.question.as_str(), turn.answer.as_slice())).collect();
        let pieces = self.template.prompt(&self.tokenizer, &turns, question, chat.image.is_some())?;
        let mut items = Vec::new();
        for piece in pieces {
            match (piece, chat.image) {
                (Piece::Token(id), _) => items.push(Item::Token(id)),
                (Piece::Image, Some(key)) => {
                    items.extend((0..self.model.n_image_tokens() as u32).map(|row| Item::Image { key, row }));
                }
                (Piece::Image, None) => {}
            }
        }
        Ok(items)
    }
}
