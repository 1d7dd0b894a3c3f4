//! A session: takes pictures and questions, streams answers (rank 0 only).
//!
//! The cache is kept between questions: the part of the next prompt that matches the cache, token by token and image by
//! image, is not read again. So a picture is read while its question is still being typed, a second turn costs only its
//! own tokens, and an earlier picture is still in the cache when the user returns to it. For this, the last
//! conversations about other pictures are kept. In total they take no more positions than the largest conversation may
//! have, and there are never more of them than encoded images.

mod held;

use crate::device::{Device, PAGE_LEN};
use crate::error::{Error, Result};
use crate::file::gguf::Gguf;
use crate::model::decoder::MAX_TOKENS;
use crate::model::sampler::{Choice, Sampler, SamplerOptions};
use crate::model::{Alternative, Item, Listener, MAX_IMAGES, Model, Stage, Token};
use crate::picture::{Crop, Picture, preprocess};
use crate::spec::watch::Watch;
use crate::text::conversation::{Message, Part, Piece, Role, Template};
use crate::text::tokenizer::Tokenizer;
use held::Held;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

pub use crate::text::conversation::Chat;

/// How to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct AskOptions {
    /// Maximum number of new tokens.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Whether to end an answer that only repeats itself, as small models do with greedy decoding: see
    /// [`Finish::Repetition`].
    pub stop_repetition: bool,
    /// The answer ends before the first occurrence of one of these texts.
    pub stop: Vec<String>,
    /// How many of the most likely tokens to report for each token of the answer: see [`Token::alternatives`].
    pub alternatives: usize,
}

/// Maximum number of alternatives per token.
pub const MAX_ALTERNATIVES: usize = 100;

impl Default for AskOptions {
    fn default() -> Self {
        let (sampler, stop) = (SamplerOptions::default(), Vec::new());
        Self { max_tokens: 512, sampler, stop_repetition: true, stop, alternatives: 0 }
    }
}

impl AskOptions {
    /// Fails if an option is outside its range.
    pub fn check(&self) -> Result<()> {
        self.sampler.check()?;
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::Invalid("a stop text must not be empty".into()));
        }
        if self.alternatives > MAX_ALTERNATIVES {
            let found = self.alternatives;
            return Err(Error::Invalid(format!("alternatives must be at most {MAX_ALTERNATIVES}, found {found}")));
        }
        Ok(())
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop text occurred.
    Stop,
    /// It reached the maximum number of tokens.
    Length,
    /// The context is full.
    Context,
    /// Its end repeats one piece of up to 128 tokens: three times or more, and at least 96 tokens in all. Lists and
    /// tables differ from line to line; a ruler of dashes, a row of zeros, or a short sentence said a few times is
    /// shorter than that.
    Repetition,
    /// The caller stopped it.
    Cancelled,
}

/// The result of a question. The answer itself is the last message of the chat.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The whole text, trimmed, including the given beginning.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens of the prompt that were already in the cache.
    pub n_reused: usize,
}

/// The model's predictions at every token of a given answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Forced {
    /// Prompt and answer, position by position.
    pub items: Vec<Item>,
    /// Logits (1 + answer length, vocab_size) after the prompt and after each token of the answer.
    pub logits: Vec<f32>,
}

/// What the model sees of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// Key for [`Part::Image`].
    pub key: u64,
    /// What the model sees, in the picture's pixels.
    pub crop: Crop,
    /// Merged features (n_tokens, channels), before the connector; empty if the picture had been encoded before.
    pub features: Vec<f32>,
}

/// A model with its tokenizer, its template and the content of its cache.
pub struct Session<D: Device> {
    model: Model<D>,
    tokenizer: Tokenizer,
    template: Template,
    stop_ids: Vec<u32>,
    cache: Cache,
}

/// What the ranks' caches hold.
struct Cache {
    /// The largest conversation in tokens; also the limit for all conversations together, in whole pages.
    context: usize,
    /// Positions of the current conversation.
    items: Vec<Item>,
    /// Those of the others, the latest used last: in the order of [`Model::n_kept`].
    kept: Vec<Vec<Item>>,
}

/// Default maximum length of a conversation, in positions: memory for keys and values grows with it.
pub const DEFAULT_CONTEXT: usize = 4096;

impl<D: Device> Session<D> {
    /// `gguf` is the header of the decoder file; `template` replaces the file's own, which may be missing or unknown.
    /// `context` is the largest conversation in tokens, limited to what the model was trained for.
    pub fn new(model: Model<D>, gguf: &Gguf, template: Option<Template>, context: Option<usize>) -> Result<Self> {
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        let template = Template::for_file(template, gguf, &tokenizer)?;
        let stop_ids = template.stop_ids(gguf, &tokenizer)?;
        let context = context.unwrap_or(DEFAULT_CONTEXT).min(model.spec().context_length);
        // Reserved now, so that a long conversation need not allocate it later.
        let items = Vec::with_capacity(context.min(DEFAULT_CONTEXT));
        let cache = Cache { context, items, kept: Vec::new() };
        Ok(Self { model, tokenizer, template, stop_ids, cache })
    }

    /// The model.
    pub fn model(&self) -> &Model<D> {
        &self.model
    }

    /// The tokens of an encoded image: see [`Model::image`].
    pub async fn image(&mut self, key: u64) -> Result<Option<Vec<f32>>> {
        self.model.image(key).await
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The largest conversation in tokens.
    pub fn context(&self) -> usize {
        self.cache.context
    }

    /// Encodes a picture, unless it is among the last few.
    pub async fn look(&mut self, picture: &Picture, listener: &mut impl Listener) -> Result<Look> {
        let vision = self.model.vision().ok_or(Error::NoVision)?;
        let mut hash = Sha256::new();
        hash.update((picture.width as u64).to_le_bytes());
        hash.update(&picture.rgb);
        let key = hash.finalize()[..8].iter().fold(0, |key, &byte| key << 8 | byte as u64);
        let pixels = preprocess(picture, &vision.preprocess).map_err(Error::of_picture)?;
        let features = match self.model.use_image(key).await? {
            true => Vec::new(),
            false => {
                let result = self.model.encode(key, &pixels, listener).await;
                self.cache.follow(&self.model);
                result?
            }
        };
        Ok(Look { key, crop: pixels.crop, features })
    }

    /// Reads everything of the next prompt that precedes its question: call it while the user is typing.
    pub async fn prepare(&mut self, chat: &Chat, listener: &mut impl Listener) -> Result<()> {
        let open = chat.asked("");
        let (n_dropped, _) = self.fit(&open, 0)?;
        let known = self.items(self.template.known(&self.tokenizer, &open.without(n_dropped))?)?;
        if !known.is_empty() && self.cache.go_to(&mut self.model, &known).await? < known.len() {
            self.cache.read(&mut self.model, &known, listener).await?;
        }
        Ok(())
    }

    /// Answers a question, which is added to the chat: see [`Session::answer`].
    pub async fn ask(
        &mut self,
        chat: &mut Chat,
        question: &str,
        options: &AskOptions,
        listener: &mut impl Listener,
    ) -> Result<Answer> {
        let mut asked = chat.asked(question);
        let answer = self.answer(&mut asked, options, listener).await?;
        *chat = asked;
        Ok(answer)
    }

    /// Answers the last message, or continues it if it is the beginning of an answer. The text is added to the chat,
    /// even if it is cut short.
    ///
    /// # Errors
    /// [`Error::NotKept`] if images that must be read are no longer kept: call [`Session::look`] on all that it names,
    /// and answer again.
    pub async fn answer(
        &mut self,
        chat: &mut Chat,
        options: &AskOptions,
        listener: &mut impl Listener,
    ) -> Result<Answer> {
        options.check()?;
        let (n_dropped, prompt) = self.fit(chat, options.max_tokens)?;
        if n_dropped > 0 {
            listener.dropped(n_dropped);
        }
        let begun = chat.begun(&self.tokenizer)?;
        // The last token is always read again, for its logits.
        let n_reused = self.cache.go_to(&mut self.model, &prompt).await?.min(prompt.len() - 1);
        self.check_images(&prompt[n_reused..])?;
        let logits = self.cache.read(&mut self.model, &prompt, listener).await?;
        let Written { parts, text, finish } = self.write(begun, logits, options, listener).await?;
        chat.add(Message::new(Role::Assistant, parts));
        Ok(Answer { text: text.trim().into(), finish, n_prompt: prompt.len(), n_reused })
    }

    /// Writes an answer, token by token, from the ids of its beginning and the logits after them.
    async fn write(
        &mut self,
        mut ids: Vec<u32>,
        mut logits: Vec<f32>,
        options: &AskOptions,
        listener: &mut impl Listener,
    ) -> Result<Written> {
        let mut sampler = Sampler::new(&options.sampler)?;
        sampler.skip(ids.len());
        let (n_begun, mut stream) = (ids.len(), self.tokenizer.stream());
        let mut heard = Heard { n_tokens: 0, text: ids.iter().map(|&id| stream.push(id)).collect() };
        let mut held = Held::new(&options.stop);
        let finish = loop {
            listener.logits(&logits);
            let known = |id| self.tokenizer.is_known(id);
            let choice = sampler.choose(&mut logits, &ids, options.alternatives, known)?;
            let id = choice.id;
            listener.chosen(id);
            if self.stop_ids.contains(&id) {
                break Finish::Stop;
            }
            ids.push(id);
            let is_stopped = held.push(token(&self.tokenizer, choice, stream.push(id)));
            if !heard.release(&mut held, listener).await {
                break Finish::Cancelled;
            }
            if is_stopped {
                break Finish::Stop;
            }
            if ids.len() - n_begun >= options.max_tokens {
                break Finish::Length;
            }
            if self.cache.items.len() >= self.cache.context {
                break Finish::Context;
            }
            if options.stop_repetition && is_repetition(&ids) {
                break Finish::Repetition;
            }
            logits = self.cache.forward(&mut self.model, &[Item::Token(id)], 1).await?;
        };
        let mut rest = String::new();
        if finish != Finish::Cancelled {
            rest = held.end();
            heard.release(&mut held, listener).await;
        }
        let mut new = ids.split_off(n_begun);
        if finish != Finish::Cancelled && heard.n_tokens == new.len() {
            rest = stream.finish();
        }
        let mut parts = Vec::new();
        if heard.n_tokens < new.len() && !rest.is_empty() {
            parts.push(Part::Text(rest.clone()));
        }
        new.truncate(heard.n_tokens);
        parts.insert(0, Part::Tokens(new));
        if !rest.is_empty() {
            listener.rest(&rest).await;
        }
        Ok(Written { parts, text: heard.text + &rest, finish })
    }

    /// What the model would have predicted at every token of a given answer: logits (1 + answer.len(), vocab_size)
    /// after the prompt and after each token. `watch` sees only these positions.
    pub async fn force(
        &mut self,
        chat: &Chat,
        question: &str,
        answer: &[u32],
        watch: Watch,
        listener: &mut impl Listener,
    ) -> Result<Forced> {
        let mut items = self.items(self.template.prompt(&self.tokenizer, &chat.asked(question).messages)?)?;
        let n_known = items.len() - 1;
        items.extend(answer.iter().map(|&id| Item::Token(id)));
        if items.len() > self.cache.context {
            return Err(Error::ContextFull { needed: items.len(), context: self.cache.context });
        }
        if n_known > 0 && self.cache.go_to(&mut self.model, &items[..n_known]).await? < n_known {
            self.cache.read(&mut self.model, &items[..n_known], listener).await?;
        }
        self.model.watch(watch);
        let mut logits = Vec::new();
        for batch in items[n_known..].chunks(MAX_TOKENS) {
            logits.extend(self.cache.forward(&mut self.model, batch, batch.len()).await?);
        }
        self.model.watch(Watch::default());
        Ok(Forced { items, logits })
    }

    /// From now on `watch` sees this rank's values; [`Watch::default`] ends it.
    pub fn watch(&mut self, watch: Watch) {
        self.model.watch(watch);
    }

    /// Ends the other ranks.
    pub async fn close(&mut self) -> Result<()> {
        self.model.close().await
    }

    /// How many of the oldest turns must be dropped so that the prompt and the answer fit into the context; and that
    /// prompt, position by position.
    fn fit(&self, chat: &Chat, max_tokens: usize) -> Result<(usize, Vec<Item>)> {
        // An answer may be shorter than allowed: at most a quarter of the context is reserved for it by dropping turns.
        let reserve = max_tokens.min(self.cache.context / 4);
        let mut n_dropped = 0;
        loop {
            let items = self.items(self.template.prompt(&self.tokenizer, &chat.without(n_dropped))?)?;
            if items.len() + reserve <= self.cache.context {
                return Ok((n_dropped, items));
            }
            if n_dropped == chat.n_turns() {
                return match items.len() {
                    needed if needed >= self.cache.context => {
                        Err(Error::ContextFull { needed, context: self.cache.context })
                    }
                    _ => Ok((n_dropped, items)),
                };
            }
            n_dropped += 1;
        }
    }

    /// A prompt position by position.
    fn items(&self, pieces: Vec<Piece>) -> Result<Vec<Item>> {
        let n_image_tokens = self.model.vision().map_or(0, |vision| vision.n_image_tokens());
        let n_images = pieces.iter().filter(|piece| matches!(piece, Piece::Image(_))).count();
        if n_images > 0 && n_image_tokens == 0 {
            return Err(Error::NoVision);
        }
        let mut items = Vec::with_capacity(pieces.len() + n_images * n_image_tokens);
        for piece in pieces {
            match piece {
                Piece::Token(id) => items.push(Item::Token(id)),
                Piece::Image(key) => items.extend((0..n_image_tokens as u32).map(|row| Item::Image { key, row })),
            }
        }
        Ok(items)
    }

    /// Fails if images that must be read are no longer kept.
    fn check_images(&self, items: &[Item]) -> Result<()> {
        let key = |item: &Item| if let Item::Image { key, .. } = item { Some(*key) } else { None };
        let images: BTreeSet<u64> = items.iter().filter_map(key).collect();
        if images.len() > MAX_IMAGES {
            let n_images = images.len();
            let problem = format!("{n_images} pictures would have to be read at once, at most {MAX_IMAGES} can be");
            return Err(Error::Invalid(problem));
        }
        match images.iter().all(|&key| self.model.has_image(key)) {
            true => Ok(()),
            false => Err(Error::NotKept { images: images.into_iter().collect() }),
        }
    }
}

/// What has been written of an answer so far.
struct Written {
    parts: Vec<Part>,
    text: String,
    finish: Finish,
}

/// What the listener has been told of an answer.
struct Heard {
    /// New tokens.
    n_tokens: usize,
    /// Text, including the given beginning.
    text: String,
}

impl Heard {
    /// Reports the tokens that are certain; returns whether the answer is to continue.
    async fn release(&mut self, held: &mut Held<'_>, listener: &mut impl Listener) -> bool {
        while let Some(token) = held.release() {
            self.n_tokens += 1;
            self.text.push_str(&token.text);
            if !listener.token(&token).await {
                return false;
            }
        }
        true
    }
}

/// The report of a token that was chosen and completes `text`.
fn token(tokenizer: &Tokenizer, choice: Choice, text: String) -> Token {
    let alternative = |(id, logprob)| Alternative { id, text: tokenizer.piece(id), logprob };
    let alternatives = choice.best.into_iter().map(alternative).collect();
    Token { id: choice.id, text, logprob: choice.logprob, alternatives }
}

/// Longest piece that is searched for, minimum number of repetitions, and minimum number of tokens in all: see
/// [`Finish::Repetition`].
const MAX_CYCLE: usize = 128;
const MIN_CYCLES: usize = 3;
const MIN_REPEATED: usize = 96;

/// Whether an answer has begun to repeat itself. A tail of whole or partial cycles of `n` tokens equals itself shifted
/// by `n` tokens.
fn is_repetition(ids: &[u32]) -> bool {
    (1..=MAX_CYCLE).any(|n| {
        let n_tail = MIN_REPEATED.max(MIN_CYCLES * n);
        let tail = ids.len().checked_sub(n_tail).map(|start| &ids[start..]);
        tail.is_some_and(|tail| tail[n..] == tail[..n_tail - n])
    })
}

impl Cache {
    /// Switches to the conversation that shares most with `items` and cuts it to the shared part; returns its number of
    /// positions.
    ///
    /// Text that is cut off is lost. If the cut-off part contains a picture, the conversation is kept, and a new one
    /// begins with the shared part.
    async fn go_to<D: Device>(&mut self, model: &mut Model<D>, items: &[Item]) -> Result<usize> {
        let n_shared = |cached: &[Item]| cached.iter().zip(items).take_while(|(a, b)| a == b).count();
        let best = (0..self.kept.len()).max_by_key(|&place| n_shared(&self.kept[place]));
        if let Some(place) = best.filter(|&place| n_shared(&self.kept[place]) > n_shared(&self.items)) {
            model.resume(place).await?;
            let resumed = self.kept.remove(place);
            self.kept.push(std::mem::replace(&mut self.items, resumed));
        }
        let n_shared = n_shared(&self.items);
        if self.items[n_shared..].iter().any(|item| matches!(item, Item::Image { .. })) {
            model.fork(n_shared).await?;
            self.kept.push(self.items.clone());
        }
        self.items.truncate(n_shared);
        Ok(n_shared)
    }

    /// Reads the part of `items` that the conversation lacks, after [`Cache::go_to`]; returns the logits after the last
    /// item.
    async fn read<D: Device>(
        &mut self,
        model: &mut Model<D>,
        items: &[Item],
        listener: &mut impl Listener,
    ) -> Result<Vec<f32>> {
        self.items.truncate(items.len() - 1);
        let (n_shared, mut logits) = (self.items.len(), Vec::new());
        let total = items.len() - n_shared;
        for batch in items[n_shared..].chunks(MAX_TOKENS) {
            let done = self.items.len() - n_shared;
            if !listener.progress(Stage::Reading, done, total).await {
                return Err(Error::Cancelled);
            }
            let is_last = done + batch.len() == total;
            logits = self.forward(model, batch, is_last as usize).await?;
        }
        listener.progress(Stage::Reading, total, total).await;
        Ok(logits)
    }

    /// Runs `items` after the positions that the conversation holds; other conversations are dropped to make room.
    async fn forward<D: Device>(&mut self, model: &mut Model<D>, items: &[Item], n_logits: usize) -> Result<Vec<f32>> {
        let n_pages = |n_positions: usize| n_positions.div_ceil(PAGE_LEN);
        let n_here = n_pages(self.items.len() + items.len());
        let n_kept = |kept: &[Vec<Item>]| kept.iter().map(|items| n_pages(items.len())).sum::<usize>();
        while self.kept.len() >= MAX_IMAGES
            || !self.kept.is_empty() && n_here + n_kept(&self.kept) > n_pages(self.context)
        {
            model.forget_oldest().await?;
            self.kept.remove(0);
        }
        let result = model.forward(items, self.items.len(), n_logits).await;
        // If memory was short, the model has dropped more, perhaps without success.
        self.follow(model);
        let logits = result?;
        self.items.extend_from_slice(items);
        Ok(logits)
    }

    /// Forgets the conversations that the model has dropped.
    fn follow<D: Device>(&mut self, model: &Model<D>) {
        self.kept.drain(..self.kept.len() - model.n_kept());
    }
}

#[cfg(test)]
mod tests {
    use super::is_repetition;

    /// The length at which a run of tokens is detected.
    fn noticed(ids: impl IntoIterator<Item = u32>) -> Option<usize> {
        let ids: Vec<u32> = ids.into_iter().collect();
        (0..=ids.len()).find(|&n| is_repetition(&ids[..n]))
    }

    #[test]
    fn cycles_are_noticed_at_the_third_and_after_96_tokens() {
        for n_before in [0, 1, 50] {
            for n in [1, 2, 3, 7, 31, 32, 33, 64, 127, 128] {
                let before = (0..n_before).map(|i| 1000 + i);
                let found = noticed(before.chain((0..600).map(|i| i % n)));
                assert_eq!(found, Some(n_before as usize + (3 * n as usize).max(96)), "{n_before} before {n}");
            }
        }
        assert_eq!(noticed((0..2000).map(|i| i % 129)), None, "longer than is looked for");
    }

    #[test]
    fn what_people_write_is_no_repetition() {
        let list = (0..40).flat_map(|number| [5, 100 + number, 7, 8, 9, 10, 11, 12, 13]);
        assert_eq!(noticed(list), None, "a list of equal lines with numbers");
        assert_eq!(noticed([1, 2].repeat(47)), None, "no, no, no");
        assert_eq!(noticed([&[3; 95][..], &[4]].concat()), None, "a ruler");
        let row: Vec<u32> = (20..60).collect();
        assert_eq!(
            noticed([&row[..], &row, &row[..39], &[1]].concat()),
            None,
            "a verse that comes twice, and almost again"
        );
        let cells = (0..20).flat_map(|row| [[0; 9], [500 + row; 9]].concat());
        assert_eq!(noticed(cells), None, "a table of zeros with labels");
        // The token in between interrupts the run, so what precedes it no longer counts.
        assert_eq!(noticed([&[3; 90][..], &[4], &[3; 95]].concat()), None);
        assert_eq!(noticed([&[3; 90][..], &[4], &[3; 96]].concat()), Some(187));
    }
}
