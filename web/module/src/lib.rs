//! The wasm module that browsers load: all of `llama3med-web`, linked.
//!
//! A crate of its own, because the optimisation level of the crate that is linked is also that of the optimisation across all crates. At the small level
//! of `llama3med-web` it would neither vectorize nor unroll the kernels' loops.
#![cfg(target_arch = "wasm32")]

pub use llama3med_web::*;
