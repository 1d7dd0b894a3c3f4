//! The computing part: matrices in the forms that the kernels read, their products over the ranks, attention, and the
//! operations between them. The loops themselves are in `llama3med_arithmetic`, which is compiled for speed.

pub mod linear;
pub mod matrix;
pub mod ranks;
pub mod shard;

pub use llama3med_arithmetic::{attention, kernels, layout, ops, quant, rope};
