//! One rank's whole model: a decoder and, if it takes pictures, encoder and connector; and the operations that all
//! ranks run together.
//!
//! Rank 0 leads. It announces each operation to the others by a broadcast, then all ranks run the same code;
//! [`Model::follow`] is the loop of the other ranks. Weights arrive through [`ModelLoader`], as byte ranges of the
//! model's files: the decoder's, and the encoder's if there is one.

pub mod connector;
pub mod decoder;
pub mod encoder;
pub mod memory;
pub mod sampler;
pub mod session;

use crate::device::ranks::{self, Peers};
use crate::device::shard::{Loader, Shard, Tensors};
use crate::device::{Cache, Device, Input};
use crate::error::{Error, Result};
use crate::file::gguf::Gguf;
use crate::file::manifest::{DECODER, ENCODER};
use crate::model::connector::Connector;
use crate::model::decoder::{Decoder, MAX_TOKENS};
use crate::model::encoder::Encoder;
use crate::model::memory::{decoder_buffers, encoder_buffers};
use crate::picture::tiles::{Merge, Scales};
use crate::picture::{Crop, Pixels, Preprocess};
use crate::spec::watch::Watch;
use crate::spec::{DecoderSpec, VisionSpec, wants};
use std::ops::Range;

/// Collects the bytes of a model's files for one rank.
pub struct ModelLoader<D: Device> {
    device: D,
    decoder: Option<(Gguf, DecoderSpec, Loader<D>)>,
    encoder: Option<(VisionSpec, Loader<D>)>,
}

impl<D: Device> ModelLoader<D> {
    /// For a model on this device.
    pub fn new(device: D) -> Self {
        Self { device, decoder: None, encoder: None }
    }

    /// Takes the first bytes of a file, which must include the whole header, and returns the byte ranges to pass to
    /// [`ModelLoader::feed`].
    ///
    /// `prefix` is freed before memory for weights is reserved, and so are a decoder's keys on all ranks but the first,
    /// the only one with a tokenizer: with a large vocabulary they take tens of MB, and a rank's memory never shrinks.
    pub fn header(&mut self, file: &str, prefix: impl AsRef<[u8]>, file_size: u64) -> Result<Vec<Range<u64>>> {
        let mut gguf = Gguf::parse(file, prefix.as_ref(), file_size)?.ok_or_else(|| {
            let n_bytes = prefix.as_ref().len();
            Error::corrupt(file, "header", format!("it extends beyond its first {n_bytes} bytes"))
        })?;
        drop(prefix);
        let shard = self.device.shard();
        if let Some((part, n_parts)) = gguf.split()? {
            let problem = format!("{file}: this is part {} of {n_parts} of a split file: all are needed", part + 1);
            return Err(Error::Unsupported(problem));
        }
        if file == DECODER {
            let spec = DecoderSpec::read(&gguf)?;
            if shard.rank > 0 {
                gguf.forget_keys();
            }
            let loader = Loader::new(&self.device, &gguf, &wants(&spec.tensors(), shard))?;
            let ranges = loader.ranges();
            self.decoder = Some((gguf, spec, loader));
            return Ok(ranges);
        }
        let spec = VisionSpec::read(&gguf)?;
        let loader = Loader::new(&self.device, &gguf, &wants(&spec.tensors(), shard))?;
        let ranges = loader.ranges();
        self.encoder = Some((spec, loader));
        Ok(ranges)
    }

    /// Takes bytes of a file, starting at `offset`.
    pub fn feed(&mut self, file: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let loader = match file {
            DECODER => self.decoder.as_mut().map(|(_, _, loader)| loader),
            _ => self.encoder.as_mut().map(|(_, loader)| loader),
        };
        loader.ok_or_else(|| missing(file))?.feed(offset, bytes)
    }

    /// The model, and the header of the decoder file, from which the first rank makes its tokenizer. Without an encoder
    /// file the model takes no pictures.
    pub fn finish(self) -> Result<(Model<D>, Gguf)> {
        let mut device = self.device;
        let (decoder_gguf, spec, loader) = self.decoder.ok_or_else(|| missing(DECODER))?;
        let decoder = Decoder::new(spec, &mut loader.finish(&mut device)?)?;
        let vision = match self.encoder {
            Some((spec, loader)) => Some(Vision::new(spec, &mut loader.finish(&mut device)?, decoder.spec().dim)?),
            None => None,
        };
        Ok((Model { device, vision, decoder, images: Vec::new(), kept: Vec::new() }, decoder_gguf))
    }
}

/// The vision part: image tower and connector, and how a picture is prepared for them.
pub struct Vision<D: Device> {
    encoder: Encoder<D>,
    connector: Connector<D>,
    /// The scales at which pictures are encoded.
    pub scales: Scales,
    /// How pictures are prepared.
    pub preprocess: Preprocess,
}

impl<D: Device> Vision<D> {
    /// Bytes that encoding a picture for a decoder of width `dim` allocates on this rank, roughly: pixels in transit
    /// and in place, features, image tokens, and, the first time, the buffers.
    fn encode_bytes(&self, shard: Shard, dim: usize) -> usize {
        let spec = self.encoder.spec();
        let n_pixels = 3 * self.scales.size() * self.scales.size();
        let n_features = spec.n_tokens() * spec.dim * self.scales.scales.len();
        let n_tokens = spec.n_tokens() * dim;
        let buffers = if self.encoder.has_buffers() { 0 } else { encoder_buffers(spec, shard) };
        buffers + size_of::<f32>() * (2 * n_pixels + 3 * n_features + 6 * n_tokens)
    }

    /// The vision part for a decoder of width `dim`.
    fn new(spec: VisionSpec, tensors: &mut Tensors<D>, dim: usize) -> Result<Self> {
        let VisionSpec { encoder, connector } = spec;
        let (scales, preprocess) = (encoder.scales(), encoder.preprocess());
        let (n_tokens, n_patches) = (encoder.n_tokens(), encoder.grid() * encoder.grid());
        if scales.n_tiles() > 1 && n_tokens != n_patches {
            let problem = format!("leaves {n_tokens} tokens of {n_patches} patches: several scales cannot be merged");
            return Err(Error::corrupt(ENCODER, "llama3med.vision.n_drop", problem));
        }
        let width = encoder.dim * scales.scales.len();
        if connector.n_inputs() != width || connector.n_outputs() != dim {
            return Err(Error::Shape {
                tensor: "mm.0.weight".into(),
                expected: format!(
                    "a connector from {width} ({} scales of {}) to {dim}",
                    scales.scales.len(),
                    encoder.dim
                ),
                found: format!("one from {} to {}", connector.n_inputs(), connector.n_outputs()),
            });
        }
        Ok(Self {
            encoder: Encoder::new(encoder, tensors)?,
            connector: Connector::new(&connector, tensors)?,
            scales,
            preprocess,
        })
    }

    /// Number of tokens per image.
    pub fn n_image_tokens(&self) -> usize {
        self.encoder.spec().n_tokens()
    }
}

fn missing(file: &str) -> Error {
    Error::corrupt(file, "header", "it was not given")
}

/// One position of a conversation. Positions can be compared, so that the cache's content can be matched with the next
/// prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// A token of the vocabulary.
    Token(u32),
    /// Image token `row` of the image with this key.
    Image {
        /// Key of an encoded image.
        key: u64,
        /// Index among its tokens.
        row: u32,
    },
}

/// The stages of the work between picture and answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Tiles of a picture go through the encoder.
    Encoding,
    /// Tokens of a prompt go through the decoder.
    Reading,
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that it completes; empty inside a character.
    pub text: String,
    /// Logarithm of its probability by the model: log-softmax of the logits, before temperature, penalties and bans.
    pub logprob: f32,
    /// The most likely tokens at this place, as many as requested, the best first; this token may be among them.
    pub alternatives: Vec<Alternative>,
}

/// A token that could have been chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    /// Its id.
    pub id: u32,
    /// Its text; a broken character shows as U+FFFD, a control token has no text.
    pub text: String,
    /// As for [`Token::logprob`].
    pub logprob: f32,
}

/// Is told about progress between the pieces of work, and may stop it.
#[allow(async_fn_in_trait)] // single-threaded wasm and one thread per rank: nobody needs Send futures
pub trait Listener {
    /// `done` of `total` tiles or tokens are done; `false` stops.
    async fn progress(&mut self, _stage: Stage, _done: usize, _total: usize) -> bool {
        true
    }
    /// The next token of the answer; `false` stops.
    async fn token(&mut self, _token: &Token) -> bool {
        true
    }
    /// Text at the end of the answer that no token completes: an incomplete character, or the rest of the token in
    /// which a stop text began.
    async fn rest(&mut self, _text: &str) {}
    /// The logits (vocab_size) from which the next token is chosen, before any masking.
    fn logits(&mut self, _logits: &[f32]) {}
    /// The token that was chosen from them. A token that ends the answer is reported only here.
    fn chosen(&mut self, _id: u32) {}
    /// The oldest `n_turns` turns no longer fit into the context and were left out of the prompt.
    fn dropped(&mut self, _n_turns: usize) {}
}

/// Hears nothing, stops nothing.
impl Listener for () {}

/// One rank's model.
pub struct Model<D: Device> {
    device: D,
    vision: Option<Vision<D>>,
    decoder: Decoder<D>,
    /// Encoded images, the latest used last: key and tokens (n_image_tokens, dim). The same on every rank.
    images: Vec<(u64, D::Buffer)>,
    /// Keys and values of other conversations than the decoder's own, the latest used last. The same conversations on
    /// every rank.
    kept: Vec<D::Cache>,
}

/// Number of encoded images that are kept: looking again at one of the last few costs nothing.
pub const MAX_IMAGES: usize = 4;

/// Memory that keys and values of kept conversations leave free.
const SPARE_BYTES: usize = 1 << 20;

/// Memory to leave for allocations that no operation reserves, above all while a long prompt is turned from text into
/// positions.
const LEAST_BYTES: usize = 1 << 17;

const CLOSE: u32 = 0;
const ENCODE: u32 = 1;
const FORWARD: u32 = 2;
const USE_IMAGE: u32 = 3;
const FORK: u32 = 4;
const RESUME: u32 = 5;
const FORGET: u32 = 6;

impl<D: Device> Model<D> {
    /// Shape of the decoder.
    pub fn spec(&self) -> &DecoderSpec {
        self.decoder.spec()
    }

    /// The vision part; a language model alone has none.
    pub fn vision(&self) -> Option<&Vision<D>> {
        self.vision.as_ref()
    }

    /// From now on `watch` sees this rank's values; [`Watch::default`] ends it.
    pub fn watch(&mut self, watch: Watch) {
        if let Some(vision) = &mut self.vision {
            vision.encoder.watch(watch.clone());
            vision.connector.watch(watch.clone());
        }
        self.decoder.watch(watch);
    }

    /// Number of conversations whose keys and values are kept, besides the one that [`Model::forward`] continues.
    pub fn n_kept(&self) -> usize {
        self.kept.len()
    }

    /// Whether the encoded image with this key is still kept.
    pub fn has_image(&self, key: u64) -> bool {
        self.images.iter().any(|(kept, _)| *kept == key)
    }

    /// The encoded image with this key (n_image_tokens, dim), if it is still kept.
    pub async fn image(&mut self, key: u64) -> Result<Option<Vec<f32>>> {
        let Some((_, tokens)) = self.images.iter().find(|(kept, _)| *kept == key) else { return Ok(None) };
        self.device.download(tokens).await.map(Some)
    }

    /// Encodes a picture under `key` (rank 0 only). Returns the merged features (n_tokens, channels), before the
    /// connector.
    ///
    /// If memory is short on any rank, kept conversations are dropped, as in [`Model::forward`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if that did not free enough; the model remains usable.
    pub async fn encode(&mut self, key: u64, pixels: &Pixels, listener: &mut impl Listener) -> Result<Vec<f32>> {
        if self.vision.is_none() {
            return Err(Error::NoVision);
        }
        ranks::broadcast(self.device.peers(), &mut words(&[ENCODE, key as u32, (key >> 32) as u32])).await?;
        self.run_encode(key, Some(pixels), Some(listener)).await
    }

    /// Marks the encoded image with this key as the latest used (rank 0 only); `false` if it is no longer kept.
    pub async fn use_image(&mut self, key: u64) -> Result<bool> {
        let Some(place) = self.images.iter().position(|(kept, _)| *kept == key) else { return Ok(false) };
        ranks::broadcast(self.device.peers(), &mut words(&[USE_IMAGE, place as u32])).await?;
        self.run_use_image(place)?;
        Ok(true)
    }

    /// Keeps the conversation as the latest of [`Model::n_kept`] and continues with a new one that begins with its
    /// first `n_positions` (rank 0 only).
    pub async fn fork(&mut self, n_positions: usize) -> Result<()> {
        ranks::broadcast(self.device.peers(), &mut words(&[FORK, n_positions as u32])).await?;
        self.run_fork(n_positions);
        Ok(())
    }

    /// Continues with the kept conversation at index `place`, the oldest at 0, and keeps the current one as the latest
    /// (rank 0 only).
    pub async fn resume(&mut self, place: usize) -> Result<()> {
        ranks::broadcast(self.device.peers(), &mut words(&[RESUME, place as u32])).await?;
        self.run_resume(place)
    }

    /// Frees the memory of the oldest kept conversation, if there is one (rank 0 only).
    pub async fn forget_oldest(&mut self) -> Result<()> {
        ranks::broadcast(self.device.peers(), &mut words(&[FORGET])).await?;
        self.run_forget();
        Ok(())
    }

    /// Runs `items` at the positions starting at `first_pos` (rank 0 only) and returns the logits of the last
    /// `n_logits` of them (n_logits, vocab_size).
    ///
    /// If memory is short on any rank, kept conversations are dropped, the oldest first: see [`Model::n_kept`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if that did not free enough. Then no rank has run anything, and the conversation is
    /// unchanged.
    pub async fn forward(&mut self, items: &[Item], first_pos: usize, n_logits: usize) -> Result<Vec<f32>> {
        assert!(!items.is_empty() && items.len() <= MAX_TOKENS && n_logits <= items.len());
        let mut message = vec![FORWARD, first_pos as u32, n_logits as u32];
        for item in items {
            // Two words per item: 0 and the token; or the image's index in the list plus one, and the row.
            match *item {
                Item::Token(id) => message.extend([0, id]),
                Item::Image { key, row } => {
                    let place = self.images.iter().position(|(kept, _)| *kept == key);
                    let place = place.ok_or_else(|| Error::NotKept { images: vec![key] })?;
                    message.extend([place as u32 + 1, row]);
                }
            }
        }
        ranks::broadcast(self.device.peers(), &mut words(&message)).await?;
        self.run_forward(&message[1..]).await
    }

    /// Ends the other ranks' [`Model::follow`] (rank 0 only).
    pub async fn close(&mut self) -> Result<()> {
        ranks::broadcast(self.device.peers(), &mut words(&[CLOSE])).await
    }

    /// Runs what rank 0 announces until it closes: the main loop of every other rank.
    pub async fn follow(&mut self) -> Result<()> {
        loop {
            let mut message = Vec::new();
            ranks::broadcast(self.device.peers(), &mut message).await?;
            let words: Vec<u32> = (0..message.len() / 4).map_while(|i| word(&message, i)).collect();
            let result = match words[..] {
                [CLOSE] => return Ok(()),
                [ENCODE, low, high] => {
                    let key = low as u64 | (high as u64) << 32;
                    self.run_encode(key, None, None::<&mut ()>).await.map(drop)
                }
                [FORWARD, ..] if words.len() > 3 => self.run_forward(&words[1..]).await.map(drop),
                [USE_IMAGE, place] => self.run_use_image(place as usize),
                [FORK, n_positions] => {
                    self.run_fork(n_positions as usize);
                    Ok(())
                }
                [RESUME, place] => self.run_resume(place as usize),
                [FORGET] => {
                    self.run_forget();
                    Ok(())
                }
                _ => return Err(Error::RankLost(format!("unknown operation {:?}", words.first()))),
            };
            match result {
                // The ranks agreed on these errors, so the next operation finds them in step.
                Ok(()) | Err(Error::Cancelled | Error::OutOfMemory { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Every rank: returns what `reserve` allocates, if it and a little more are available on all ranks. Otherwise kept
    /// conversations are dropped, the oldest first. `reserve` changes nothing.
    async fn agree<T>(&mut self, what: &str, reserve: impl Fn(&mut Self) -> Result<T>) -> Result<T> {
        loop {
            let reserved = reserve(self);
            let asked = match &reserved {
                Err(Error::OutOfMemory { bytes, .. }) => *bytes as f32,
                _ => 0.0,
            };
            // The rest of the work's allocations cannot fail gracefully, so a little memory should be left for them.
            let is_short = reserved.is_err() || self.spare(SPARE_BYTES - LEAST_BYTES, "the work").is_err();
            let mut votes = [reserved.is_err() as u8 as f32, is_short as u8 as f32, asked];
            ranks::sum(self.device.peers(), &mut votes).await?;
            let [n_failed, n_short, n_bytes] = votes;
            if n_short == 0.0 || n_failed == 0.0 && self.kept.is_empty() {
                return reserved;
            }
            if self.kept.is_empty() {
                let what = format!("{what} on {n_failed} of {} ranks", self.device.peers().n_ranks());
                return Err(Error::OutOfMemory { what, bytes: n_bytes as usize });
            }
            drop(reserved);
            self.run_forget();
        }
    }

    /// Whether `n_bytes`, plus [`LEAST_BYTES`], are available now.
    fn spare(&self, n_bytes: usize, what: &str) -> Result<()> {
        self.device.spare(n_bytes.saturating_add(LEAST_BYTES), what)
    }

    /// Every rank: tile by tile through the encoder, then merge and connect. Before each tile, rank 0 says whether to
    /// continue.
    async fn run_encode(
        &mut self,
        key: u64,
        pixels: Option<&Pixels>,
        mut listener: Option<&mut impl Listener>,
    ) -> Result<Vec<f32>> {
        let shard = self.device.shard();
        let n_bytes = self.vision.as_ref().ok_or(Error::NoVision)?.encode_bytes(shard, self.decoder.spec().dim);
        self.agree("a picture", |model| model.spare(n_bytes, "a picture")).await?;
        let Vision { encoder, connector, scales, .. } = self.vision.as_mut().ok_or(Error::NoVision)?;
        let mut message = pixels.map_or_else(Vec::new, |pixels| bytemuck::cast_slice(&pixels.values).to_vec());
        ranks::broadcast(self.device.peers(), &mut message).await?;
        let received = match pixels {
            Some(_) => None,
            None => Some(received(&message, scales.size())?),
        };
        drop(message);
        let pixels = pixels.or(received.as_ref()).expect("given or received");
        let n_tiles = scales.n_tiles();
        // A single tile needs no merging: its number of tokens may differ from its number of patches.
        let mut merge = (n_tiles > 1).then(|| Merge::new(scales, encoder.spec().grid(), encoder.spec().dim));
        let mut features = Vec::new();
        for tile in 0..n_tiles {
            let mut go_on = vec![1];
            if let Some(listener) = &mut listener {
                go_on[0] = listener.progress(Stage::Encoding, tile, n_tiles).await as u8;
            }
            ranks::broadcast(self.device.peers(), &mut go_on).await?;
            if go_on != [1] {
                return Err(Error::Cancelled);
            }
            features = encoder.forward(&mut self.device, &scales.tile(pixels, tile)).await?;
            if let Some(merge) = &mut merge {
                merge.push(&features)?;
            }
        }
        if let Some(merge) = merge {
            features = merge.finish()?;
        }
        let tokens = connector.forward(&mut self.device, &features).await?;
        if let Some(listener) = listener {
            listener.progress(Stage::Encoding, n_tiles, n_tiles).await;
        }
        self.images.retain(|(kept, _)| *kept != key);
        if self.images.len() == MAX_IMAGES {
            self.images.remove(0);
        }
        self.images.push((key, tokens));
        Ok(features)
    }

    /// Every rank.
    fn run_use_image(&mut self, place: usize) -> Result<()> {
        if place >= self.images.len() {
            return Err(Error::RankLost("ranks keep different images".into()));
        }
        self.images[place..].rotate_left(1);
        Ok(())
    }

    /// Every rank.
    fn run_fork(&mut self, n_positions: usize) {
        let new = self.decoder.kv_cache().fork(n_positions);
        self.kept.push(std::mem::replace(self.decoder.kv_cache(), new));
    }

    /// Every rank.
    fn run_resume(&mut self, place: usize) -> Result<()> {
        if place >= self.kept.len() {
            return Err(Error::RankLost("ranks keep different conversations".into()));
        }
        let resumed = self.kept.remove(place);
        self.kept.push(std::mem::replace(self.decoder.kv_cache(), resumed));
        Ok(())
    }

    /// Every rank.
    fn run_forget(&mut self) {
        self.kept.drain(..self.kept.len().min(1));
    }

    /// Every rank: makes the positions `first..end` writable and checks that there is memory for the work on them.
    async fn make_room(&mut self, first: usize, end: usize) -> Result<()> {
        let has_buffers = self.decoder.has_buffers(end - first);
        if has_buffers && self.decoder.kv_cache().has_room(first, end) {
            return Ok(());
        }
        let spec = self.decoder.spec();
        let shard = self.device.shard();
        let buffers = if has_buffers { 0 } else { decoder_buffers(spec, shard, end - first) };
        // The buffers, and temporary memory for the logits.
        let n_bytes = buffers + 4 * size_of::<f32>() * spec.vocab_size;
        let reserve = |model: &mut Self| {
            let new = model.decoder.kv_cache().new_pages(first, end)?;
            model.spare(n_bytes, "activations").map(|()| new)
        };
        let new = self.agree("a longer conversation", reserve).await?;
        self.decoder.kv_cache().take(new, end);
        Ok(())
    }

    /// Every rank: `words` is a [`FORWARD`] message without its first word.
    async fn run_forward(&mut self, words: &[u32]) -> Result<Vec<f32>> {
        let (first_pos, n_logits) = (words[0] as usize, words[1] as usize);
        self.make_room(first_pos, first_pos + (words.len() - 2) / 2).await?;
        let mut inputs = Vec::with_capacity(words.len() / 2);
        for item in words[2..].chunks_exact(2) {
            inputs.push(match *item {
                [0, id] => Input::Token(id),
                [place, row] => {
                    let image = self.images.get(place as usize - 1).map(|(_, tokens)| tokens);
                    let image = image.filter(|image| (row as usize) < self.device.n_rows(image));
                    let image = image.ok_or_else(|| Error::RankLost("ranks keep different images".into()))?;
                    Input::Image(image, row as usize)
                }
                _ => unreachable!("chunks of two"),
            });
        }
        self.decoder.forward(&mut self.device, &inputs, first_pos).await?;
        let mut logits = Vec::new();
        self.decoder.logits(&mut self.device, n_logits, &mut logits).await?;
        Ok(logits)
    }
}

/// The picture that rank 0 sent: (3, size, size).
fn received(message: &[u8], size: usize) -> Result<Pixels> {
    let values = bytemuck::pod_collect_to_vec::<u8, f32>(message);
    if values.len() != 3 * size * size {
        return Err(Error::RankLost(format!("a picture of {} values came", values.len())));
    }
    let crop = Crop { x: 0.0, y: 0.0, width: 0.0, height: 0.0 };
    Ok(Pixels { size, values, crop })
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn word(message: &[u8], i: usize) -> Option<u32> {
    let bytes = message.get(4 * i..4 * i + 4)?;
    Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}
