//! Llama3-Med (arXiv 2406.09454) in plain Rust, on 4-bit weights: takes a picture and a question, returns an answer.
//!
//! The stages, in the order of the data flow:
//!
//! 1. 1. [`image`]: turns a file's bytes into an upright picture, a square, and normalised numbers;
//! 2. 2. [`tiles`]: resizes the square to several scales, each cut into tiles of the encoder's size;
//! 3. 3. [`encoder`]: a vision transformer turns each tile into features; [`tiles::Merge`] concatenates the scales;
//! 4. 4. [`connector`]: turns features into image tokens of the decoder's width;
//! 5. 5. [`tokenizer`] and [`prompt`]: turn the conversation into tokens, with the image in its place;
//! 6. 6. [`decoder`]: Llama, from tokens to logits; [`sampler`] chooses the next token;
//! 7. 7. [`session`]: runs conversations on top of all this.
//!
//! One [`model::Model`] is one of several ranks, each of which holds a part of every large matrix; the ranks exchange
//! sums ([`ranks`], [`shard`]). Weights come as byte ranges of two GGUF files ([`gguf`], [`manifest`]) and stay
//! quantized ([`matrix`], [`quant`]).
//!
//! This crate does no I/O, starts no thread, reads no clock and knows no JavaScript.
//!
//! ```no_run
//! use llama3med::image::Picture;
//! use llama3med::model::ModelLoader;
//! use llama3med::ranks::{Alone, block_on};
//! use llama3med::session::{AskOptions, Chat, Session};
//! use llama3med::shard::Shard;
//! # use llama3med::model::{Listener, Stage, Token};
//! # struct Quiet;
//! # impl Listener for Quiet {
//! #     async fn progress(&mut self, _: Stage, _: usize, _: usize) -> bool { true }
//! #     async fn token(&mut self, _: &Token) -> bool { true }
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
//! let options = AskOptions { max_tokens: 100, ..AskOptions::default() };
//! let answer = block_on(async {
//!     let mut chat = Chat::about(session.look(&picture, &mut Quiet).await?.key);
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
