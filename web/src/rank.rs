//! One rank of a model in its worker: loads its tensors, then leads (rank 0) or follows (the others).
//!
//! Every method takes `&self`, so that `stop` can be called while an operation runs. Otherwise operations run one at a
//! time, which `www/llama3med` ensures.

use crate::ports::{Ports, Turn};
use crate::{js_error, object, to_js};
use js_sys::{Array, Function, Object, Uint8Array};
use llama3med::Error;
use llama3med::device::cpu::Cpu;
use llama3med::model::sampler::{SamplerOptions, top_probabilities};
use llama3med::model::session::{Answer, AskOptions, Chat, Finish, Session};
use llama3med::model::{Alternative, Listener, Model, ModelLoader, Stage, Token};
use llama3med::picture::{Picture, Preprocess};
use llama3med::text::conversation::{Message, Template};
use serde::Deserialize;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use wasm_bindgen::prelude::*;

type JsResult<T> = Result<T, JsValue>;

/// One rank.
#[wasm_bindgen]
pub struct Rank {
    rank: usize,
    /// Bytes of a file in transit.
    piece: RefCell<Vec<u8>>,
    state: RefCell<State>,
    /// Conversations that have not been forgotten. The page keeps the files of their pictures, since this memory never
    /// shrinks.
    chats: RefCell<BTreeMap<u32, Chat>>,
    stop: Cell<bool>,
    turn: Turn,
}

enum State {
    Loading(Box<ModelLoader<Cpu<Ports>>>),
    Leading(Box<Session<Cpu<Ports>>>),
    Following(Box<Model<Cpu<Ports>>>),
    /// Taken by an operation, or closed.
    Away,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WebOptions {
    max_tokens: f64,
    temperature: f32,
    top_k: f64,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    seed: f64,
    stop_repetition: bool,
    stop: Vec<String>,
    alternatives: f64,
}

impl Default for WebOptions {
    fn default() -> Self {
        let AskOptions { max_tokens, sampler, stop_repetition, stop, alternatives } = AskOptions::default();
        Self {
            max_tokens: max_tokens as f64,
            temperature: sampler.temperature,
            top_k: sampler.top_k as f64,
            top_p: sampler.top_p,
            min_p: sampler.min_p,
            repetition_penalty: sampler.repetition_penalty,
            seed: sampler.seed as f64,
            stop_repetition,
            stop,
            alternatives: alternatives as f64,
        }
    }
}

impl WebOptions {
    fn check(self) -> llama3med::Result<AskOptions> {
        let whole = |name: &str, value: f64, least: f64| match value >= least && value <= (1u64 << 53) as f64 {
            true if value.fract() == 0.0 => Ok(value),
            _ => Err(Error::Invalid(format!("{name} must be a whole number from {least} to 2^53, found {value}"))),
        };
        let sampler = SamplerOptions {
            temperature: self.temperature,
            top_k: whole("topK", self.top_k, 0.0)? as usize,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: whole("seed", self.seed, 0.0)? as u64,
        };
        let max_tokens = whole("maxTokens", self.max_tokens, 1.0)? as usize;
        let alternatives = whole("alternatives", self.alternatives, 0.0)? as usize;
        let Self { stop_repetition, stop, .. } = self;
        let options = AskOptions { max_tokens, sampler, stop_repetition, stop, alternatives };
        options.check().map(|()| options)
    }
}

#[wasm_bindgen]
impl Rank {
    /// `ports` holds, at the index of each other rank, the message port to it.
    #[wasm_bindgen(constructor)]
    pub fn new(rank: usize, ports: &Array) -> JsResult<Rank> {
        let device = Cpu::new(Ports::new(rank, ports).map_err(to_js)?);
        let state = RefCell::new(State::Loading(Box::new(ModelLoader::new(device))));
        let turn = Turn::new().map_err(to_js)?;
        Ok(Self { rank, piece: RefCell::default(), state, chats: RefCell::default(), stop: Cell::new(false), turn })
    }

    /// Takes the header of a file, reserves memory, and returns the byte ranges to pass to [`Rank::feed`]: start, end,
    /// start, end, ...
    pub fn header(&self, file: &str, prefix: Vec<u8>, file_size: f64) -> JsResult<Vec<f64>> {
        let mut state = self.state.borrow_mut();
        let State::Loading(loader) = &mut *state else { return Err(busy()) };
        let ranges = loader.header(file, prefix, file_size as u64).map_err(to_js)?;
        Ok(ranges.into_iter().flat_map(|range| [range.start as f64, range.end as f64]).collect())
    }

    /// Allocates `n_bytes` in this memory for the next [`Rank::feed`] and returns the address: bytes are read directly
    /// to their place, without a copy.
    pub fn room(&self, n_bytes: usize) -> usize {
        let mut piece = self.piece.borrow_mut();
        piece.resize(n_bytes, 0);
        piece.as_ptr() as usize
    }

    /// Takes the bytes at the address given by [`Rank::room`]; they start at `offset` in the file.
    pub fn feed(&self, file: &str, offset: f64) -> JsResult<()> {
        let mut state = self.state.borrow_mut();
        let State::Loading(loader) = &mut *state else { return Err(busy()) };
        loader.feed(file, offset as u64, &self.piece.borrow()).map_err(to_js)
    }

    /// Called when all bytes have been fed. `context` limits the tokens of a conversation; `template` names the chat
    /// template, if it is not to be the decoder file's own.
    pub fn finish(&self, context: Option<usize>, template: Option<String>) -> JsResult<()> {
        let template = template.map(|name| Template::named(&name)).transpose().map_err(to_js)?;
        let State::Loading(loader) = self.state.replace(State::Away) else { return Err(busy()) };
        self.piece.take();
        let (model, gguf) = loader.finish().map_err(to_js)?;
        let state = match self.rank {
            0 => State::Leading(Box::new(Session::new(model, &gguf, template, context).map_err(to_js)?)),
            _ => State::Following(Box::new(model)),
        };
        self.state.replace(state);
        Ok(())
    }

    /// Runs what rank 0 announces; returns only after an error or when rank 0 closes.
    pub async fn follow(&self) -> JsResult<()> {
        let State::Following(mut model) = self.state.replace(State::Away) else { return Err(busy()) };
        model.follow().await.map_err(to_js)
    }

    /// The properties of the model that the page shows (rank 0).
    pub fn info(&self) -> JsResult<Object> {
        let state = self.state.borrow();
        let State::Leading(session) = &*state else { return Err(busy()) };
        let model = session.model();
        let vision = model.vision();
        let scales: Array =
            vision.iter().flat_map(|vision| &vision.scales.scales).map(|&scale| JsValue::from(scale)).collect();
        object(&[
            ("seesPictures", vision.is_some().into()),
            ("scales", scales.into()),
            ("tileSize", vision.map_or(0, |vision| vision.scales.tile).into()),
            ("nTiles", vision.map_or(0, |vision| vision.scales.n_tiles()).into()),
            ("nImageTokens", vision.map_or(0, |vision| vision.n_image_tokens()).into()),
            ("contextLength", session.context().into()),
            ("nLayers", model.spec().n_layers.into()),
            ("dim", model.spec().dim.into()),
            ("vocabSize", model.spec().vocab_size.into()),
        ])
    }

    /// Number of tokens of a text (rank 0).
    #[wasm_bindgen(js_name = countTokens)]
    pub fn count_tokens(&self, text: &str) -> JsResult<usize> {
        let state = self.state.borrow();
        let State::Leading(session) = &*state else { return Err(busy()) };
        Ok(session.tokenizer().encode_text(text).map_err(to_js)?.len())
    }

    /// Encodes a picture (rank 0). Calls `on("picture", frame, view)` as soon as it is decoded and `on("encoding",
    /// done, total)` after every tile. `frame` is also the result, then with the encoded image's `key`; `view` holds
    /// the pixels for display: `{ width, height, rgba }`, or undefined if there is no memory for them.
    pub async fn look(&self, picture: &Uint8Array, on: Function) -> JsResult<Object> {
        let decoded = decode(picture).map_err(to_js)?;
        let mut session = self.lead()?;
        let frame = session.model().vision().map(|vision| frame(&decoded, &vision.preprocess, vision.scales.n_tiles()));
        if let Some(Ok(frame)) = &frame {
            // Exceptions in the callback are ignored.
            let _ = on.call3(&JsValue::NULL, &"picture".into(), frame, &view(&decoded)?);
        }
        let result = session.look(&decoded, &mut self.events(&on)).await;
        self.state.replace(State::Leading(session));
        let key = result.map_err(to_js)?.key;
        let frame = frame.unwrap_or_else(|| object(&[]))?;
        js_sys::Reflect::set(&frame, &"key".into(), &key.into())?;
        Ok(frame)
    }

    /// Begins a chat with these messages, each `{ role, parts }` with parts `{ text }`, `{ image: key }` or `{ tokens:
    /// ids }` (rank 0).
    pub fn begin(&self, chat: u32, messages: JsValue) -> JsResult<()> {
        let chat_begun = Chat { messages: read(messages)? };
        self.chats.borrow_mut().insert(chat, chat_begun);
        Ok(())
    }

    /// Reads the part of a chat's next prompt that precedes its question (rank 0).
    pub async fn prepare(&self, chat: u32, on: Function) -> JsResult<()> {
        let mut session = self.lead()?;
        let chat = self.chat(chat);
        let result = session.prepare(&chat, &mut self.events(&on)).await;
        self.state.replace(State::Leading(session));
        result.map_err(to_js)
    }

    /// Adds `messages` to a chat, a question and optionally the beginning of its answer, and answers (rank 0). Calls
    /// `on("token", text, token)` for every token, `{ id, logprob, alternatives }`; `on("rest", text)` for text at the
    /// end that no token completes; `on("reading", done, total)` while it reads the prompt; and `on("dropped", n)` for
    /// turns that no longer fit.
    ///
    /// Only the last few pictures are kept encoded. An error of kind "not-encoded" lists in `images` the keys of the
    /// pictures that the question needs: ask again with their files as `pictures`, which are then encoded first.
    pub async fn ask(
        &self,
        chat: u32,
        messages: JsValue,
        pictures: Vec<Uint8Array>,
        options: JsValue,
        on: Function,
    ) -> JsResult<Object> {
        let options: WebOptions = serde_wasm_bindgen::from_value(options)
            .map_err(|error| js_error("invalid", &format!("options: {error}")))?;
        let options = options.check().map_err(to_js)?;
        let messages: Vec<Message> = read(messages)?;
        let mut session = self.lead()?;
        let (id, mut chat) = (chat, self.chat(chat));
        messages.into_iter().for_each(|message| chat.add(message));
        let mut events = self.events(&on);
        let result = answer(&mut session, &mut chat, &pictures, &options, &mut events).await;
        if result.is_ok() {
            self.put_back(id, chat);
        }
        let named = |&(id, probability): &(u32, f32)| (session.tokenizer().decode(&[id]), probability);
        let named: Vec<_> = events.first.iter().map(named).collect();
        self.state.replace(State::Leading(session));
        let answer = result?;
        let first = Array::new();
        for (text, probability) in named {
            first.push(&object(&[("text", text.into()), ("probability", probability.into())])?.into());
        }
        let finish = match answer.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Context => "context",
            Finish::Repetition => "repetition",
            Finish::Cancelled => "cancelled",
        };
        object(&[
            ("text", answer.text.into()),
            ("finish", finish.into()),
            ("nPrompt", answer.n_prompt.into()),
            ("nReused", answer.n_reused.into()),
            ("first", first.into()),
        ])
    }

    /// Stops the current operation at its next tile, part of the prompt, or token.
    pub fn stop(&self) {
        self.stop.set(true);
    }

    /// Forgets a chat, even while an operation uses it.
    pub fn forget(&self, chat: u32) {
        self.chats.borrow_mut().remove(&chat);
    }

    fn lead(&self) -> JsResult<Box<Session<Cpu<Ports>>>> {
        match self.state.replace(State::Away) {
            State::Leading(session) => Ok(session),
            other => {
                self.state.replace(other);
                Err(busy())
            }
        }
    }

    /// A copy of a chat for an operation; a new chat starts empty.
    fn chat(&self, id: u32) -> Chat {
        self.chats.borrow_mut().entry(id).or_default().clone()
    }

    /// Stores the chat after an operation, unless it was forgotten meanwhile.
    fn put_back(&self, id: u32, chat: Chat) {
        if let Some(place) = self.chats.borrow_mut().get_mut(&id) {
            *place = chat;
        }
    }

    fn events<'a>(&'a self, on: &'a Function) -> Events<'a> {
        self.stop.set(false);
        Events { on, rank: self, first: Vec::new() }
    }
}

/// Decodes a picture's file, which is in memory only during decoding. Nothing has been announced to the other ranks
/// yet, so a lack of memory affects only this picture.
fn decode(file: &Uint8Array) -> llama3med::Result<Picture> {
    let n_bytes = file.length() as usize;
    let mut bytes = Vec::new();
    let reserved = bytes.try_reserve_exact(n_bytes);
    reserved.map_err(|_| Error::Image(format!("no memory is left for a file of {n_bytes} bytes")))?;
    bytes.resize(n_bytes, 0);
    file.copy_to(&mut bytes);
    Picture::decode(&bytes).map_err(Error::of_picture)
}

/// What is known of a picture before it is encoded: its size, the square that the model sees and its fill colour,
/// tiles, notes.
fn frame(picture: &Picture, preprocess: &Preprocess, n_tiles: usize) -> JsResult<Object> {
    let crop = preprocess.crop(picture.width, picture.height);
    let crop = object(&[
        ("x", crop.x.into()),
        ("y", crop.y.into()),
        ("width", crop.width.into()),
        ("height", crop.height.into()),
    ])?;
    let padding = preprocess.padding().map(|color| color.map(JsValue::from).into_iter().collect::<Array>());
    let notes: Array = picture.notes.iter().map(|note| JsValue::from(note.as_str())).collect();
    object(&[
        ("crop", crop.into()),
        ("padding", padding.into()),
        ("width", picture.width.into()),
        ("height", picture.height.into()),
        ("tiles", n_tiles.into()),
        ("notes", notes.into()),
    ])
}

/// Longest edge of the displayed picture.
const VIEW_EDGE: usize = 1600;

/// The picture for display; undefined if there is no memory for it, which does not prevent encoding.
fn view(picture: &Picture) -> JsResult<JsValue> {
    let Ok(view) = picture.view(VIEW_EDGE) else { return Ok(JsValue::UNDEFINED) };
    let rgba = Uint8Array::from(view.rgba.as_slice());
    let view = object(&[("width", view.width.into()), ("height", view.height.into()), ("rgba", rgba.into())])?;
    Ok(view.into())
}

/// A conversation from JavaScript.
fn read(messages: JsValue) -> JsResult<Vec<Message>> {
    serde_wasm_bindgen::from_value(messages).map_err(|error| js_error("invalid", &format!("messages: {error}")))
}

/// Answers, after encoding again the pictures that are no longer kept.
async fn answer(
    session: &mut Session<Cpu<Ports>>,
    chat: &mut Chat,
    pictures: &[Uint8Array],
    options: &AskOptions,
    events: &mut Events<'_>,
) -> JsResult<Answer> {
    for file in pictures {
        let decoded = decode(file).map_err(to_js)?;
        session.look(&decoded, events).await.map_err(to_js)?;
    }
    session.answer(chat, options, events).await.map_err(to_js)
}

/// Passes events to JavaScript and lets "stop" in between them.
struct Events<'a> {
    on: &'a Function,
    rank: &'a Rank,
    /// The most likely first tokens of the answer with their probabilities.
    first: Vec<(u32, f32)>,
}

impl Events<'_> {
    async fn tell(&self, event: &str, a: JsValue, b: JsValue) -> bool {
        // Exceptions in the callback are ignored: the work continues.
        let _ = self.on.call3(&JsValue::NULL, &event.into(), &a, &b);
        self.rank.turn.wait().await;
        !self.rank.stop.get()
    }
}

impl Listener for Events<'_> {
    async fn progress(&mut self, stage: Stage, done: usize, total: usize) -> bool {
        let name = match stage {
            Stage::Encoding => "encoding",
            Stage::Reading => "reading",
        };
        self.tell(name, done.into(), total.into()).await
    }
    async fn token(&mut self, token: &Token) -> bool {
        let alternative = |other: &Alternative| {
            let text = other.text.as_str().into();
            object(&[("id", other.id.into()), ("text", text), ("logprob", other.logprob.into())]).ok()
        };
        let alternatives: Array = token.alternatives.iter().filter_map(alternative).collect();
        let about = [("id", token.id.into()), ("logprob", token.logprob.into()), ("alternatives", alternatives.into())];
        let about = object(&about).map_or(JsValue::UNDEFINED, JsValue::from);
        self.tell("token", token.text.as_str().into(), about).await
    }
    async fn rest(&mut self, text: &str) {
        self.tell("rest", text.into(), JsValue::UNDEFINED).await;
    }
    fn logits(&mut self, logits: &[f32]) {
        if self.first.is_empty() {
            self.first = top_probabilities(logits, 2);
        }
    }
    fn dropped(&mut self, n_turns: usize) {
        let _ = self.on.call2(&JsValue::NULL, &"dropped".into(), &n_turns.into());
    }
}

fn busy() -> JsValue {
    js_error("invalid", "this rank is busy, or in another state than this operation needs")
}
