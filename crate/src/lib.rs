//! Llama3-Med (arXiv 2406.09454) in plain Rust, on 4-bit weights: a picture and a question in, an answer out.
//!
//! The stages, in the order of the data:
//!
//! 1. [`image`]: a file's bytes become an upright picture, a square, normalised numbers;
//! 2. [`tiles`]: the square at several scales, each cut into tiles of the encoder's size;
//! 3. [`encoder`]: a vision transformer turns each tile into features; [`tiles::Merge`] joins them, scale beside scale;
//! 4. [`connector`]: features become image tokens of the decoder's width;
//! 5. [`tokenizer`] and [`prompt`]: the conversation becomes tokens, with the image in its place;
//! 6. [`decoder`]: Llama reads them and gives logits; [`sampler`] chooses the next token;
//! 7. [`session`]: the conversation around all that.
//!
//! One [`model::Model`] is one rank of several that each hold a part of every large matrix and meet in sums ([`ranks`], [`shard`]). Weights come as
//! byte ranges of two GGUF files ([`gguf`], [`manifest`]) and stay quantized ([`matrix`], [`quant`]).
//!
//! This crate does no I/O, starts no thread of its own accord, reads no clock and knows no JavaScript.
//!
//! ```no_run
//! use llama3med::image::Picture;
//! use llama3med::model::ModelLoader;
//! use llama3med::ranks::{Alone, block_on};
//! use llama3med::session::{AskOptions, Chat, Session};
//! use llama3med::shard::Shard;
//! # use llama3med::model::{Listener, Stage};
//! # struct Quiet;
//! # impl Listener for Quiet {
//! #     async fn progress(&mut self, _: Stage, _: usize, _: usize) -> bool { true }
//! #     async fn token(&mut self, _: u32, _: &str) -> bool { true }
//! # }
//!
//! let mut loader = ModelLoader::new(Shard { rank: 0, n_ranks: 1 });
//! for file in ["encoder.gguf", "decoder.gguf"] {
//!     let bytes = std::fs::read(file)?;
//!     loader.header(file, &bytes, bytes.len() as u64)?;
//!     loader.feed(file, 0, &bytes)?;
//! }
//! let (model, header) = loader.finish(Alone)?;
//! let mut session = Session::new(model, &header, None, None)?;
//! let picture = Picture::decode(&std::fs::read("film.png")?)?;
//! let options = AskOptions { max_tokens: 100, sampler: Default::default(), stop_repetition: true };
//! let answer = block_on(async {
//!     let image = Some(session.look(&picture, &mut Quiet).await?.key);
//!     let mut chat = Chat { image, turns: Vec::new() };
//!     session.ask(&mut chat, "Is the heart enlarged?", &options, &mut Quiet).await
//! })?;
//! println!("{}", answer.text);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod bench;
pub mod connector;
pub mod decoder;
pub mod encoder;
pub mod error;
pub mod gguf;
pub mod image;
pub mod kv_cache;
pub mod linear;
pub mod manifest;
pub mod matrix;
pub mod memory;
pub mod model;
pub mod prompt;
pub mod ranks;
pub mod sampler;
pub mod session;
pub mod shard;
pub mod spec;
pub mod tiles;
pub mod tokenizer;
pub mod watch;

pub use error::{Error, Result};
pub use llama3med_arithmetic::{attention, kernels, layout, ops, quant, rope};
