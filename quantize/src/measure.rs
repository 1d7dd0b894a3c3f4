//! What a model is worth: columns that matter, what quantization costs, and answers beside true ones.

pub mod calibrate;
pub mod compare;
pub mod eval;
pub mod metrics;
pub mod prompts;
pub mod protocol;
pub mod questions;
pub mod score;
