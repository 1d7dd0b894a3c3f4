//! Llama3-Med (arXiv 2406.09454) in plain Rust, on 4-bit weights: takes a picture and a question, returns an answer.
//!
//! Each room of the crate is a folder with one file in front of it, in the order of the data flow:
//!
//! 1. [`file`](mod@file): what a model's files hold: GGUF headers and manifests;
//! 2. [`picture`]: turns a file's bytes into an upright picture, a square, normalised numbers, and tiles at several scales;
//! 3. [`text`]: the tokenizer, and conversations as tokens and images in their places;
//! 4. [`spec`]: a model described once: its keys, and every tensor's name, shape, split and source;
//! 5. [`device`]: what computes: stored matrices, their products, attention, and the sums over ranks;
//! 6. [`model`]: encoder, connector, decoder and sampler, and [`model::session`] around them.
//!
//! Imports point up this list only. One [`model::Model`] is one of several ranks, each of which holds a part of every
//! large matrix; the ranks exchange sums ([`device::ranks`], [`device::shard`]). Weights come as byte ranges of two
//! GGUF files and stay quantized ([`device::cpu::matrix`], [`device::quant`]).
//!
//! This crate does no I/O, starts no thread, reads no clock and knows no JavaScript.
//!
//! ```no_run
//! use llama3med::picture::Picture;
//! use llama3med::model::ModelLoader;
//! use llama3med::device::ranks::{Alone, block_on};
//! use llama3med::model::session::{AskOptions, Chat, Session};
//! use llama3med::device::cpu::Cpu;
//!
//! let mut loader = ModelLoader::new(Cpu::new(Alone));
//! for file in ["encoder.gguf", "decoder.gguf"] {
//!     let bytes = std::fs::read(file)?;
//!     loader.header(file, &bytes, bytes.len() as u64)?;
//!     loader.feed(file, 0, &bytes)?;
//! }
//! let (model, header) = loader.finish()?;
//! let mut session = Session::new(model, &header, None, None)?;
//! let picture = Picture::decode(&std::fs::read("film.png")?)?;
//! let options = AskOptions { max_tokens: 100, ..AskOptions::default() };
//! let answer = block_on(async {
//!     let mut chat = Chat::about(session.look(&picture, &mut ()).await?.key);
//!     session.ask(&mut chat, "Is the heart enlarged?", &options, &mut ()).await
//! })?;
//! println!("{}", answer.text);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod device;
pub mod error;
pub mod file;
pub mod model;
pub mod picture;
pub mod spec;
pub mod text;

pub use error::{Error, Result};
