//! The wasm module that browsers load: links all of `llama3med-web`.
//!
//! A separate crate, because the optimisation level of the linked crate also applies to link-time optimisation across
//! all crates. At `llama3med-web`'s level, for size, it would neither vectorise nor unroll the kernels' loops.
#![cfg(target_arch = "wasm32")]

pub use llama3med_web::*;
