//! The arithmetic of `llama3med`: number formats as they are stored and as the kernels read them, products of quantized weights with activations, attention
//! and what comes between them. Everything here runs over every weight or every activation.
//!
//! A crate of its own, so that it is compiled for speed where the rest of what a browser downloads is compiled to be small. What others call and what has
//! loops is never inlined: in a caller that is to be small it would become small itself.

pub mod attention;
pub mod dtype;
pub mod kernels;
pub mod layout;
pub mod ops;
pub mod pixels;
pub mod quant;
pub mod rope;
