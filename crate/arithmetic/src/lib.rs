//! The arithmetic of `llama3med`: number formats as stored and as the kernels read them, products of quantized weights
//! with activations, attention, and the operations between them. Everything here runs over every weight or every
//! activation.
//!
//! A separate crate, so that it is compiled for speed while the rest of the browser's download is compiled for size.
//! Functions that are called from outside and contain loops are never inlined: inlined into a caller compiled for size,
//! they would be compiled for size too.

pub mod attention;
pub mod dtype;
pub mod kernels;
pub mod layout;
pub mod ops;
pub mod pixels;
pub mod quant;
pub mod rope;
