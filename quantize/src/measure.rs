//! Measures a model: which columns matter, what quantization costs, and how its answers compare with the true ones.

pub mod calibrate;
pub mod compare;
pub mod eval;
pub mod metrics;
pub mod prompts;
pub mod protocol;
pub mod questions;
pub mod score;
