//! Llama3-Med (arXiv 2406.09454) in plain Rust: a picture and a question in, an answer out.
pub mod attention;
pub mod config;
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
pub mod model;
pub mod ops;
pub mod prompt;
pub mod quant;
pub mod ranks;
pub mod rope;
pub mod sampler;
pub mod session;
pub mod shard;
pub mod tiles;
pub mod tokenizer;

pub use error::{Error, Result};
