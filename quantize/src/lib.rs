//! From checkpoints to model folders: reads Llama3-Med checkpoints, writes 4-bit GGUF files in chunks, makes random
//! models, inspects both, measures them.
//!
//! The command-line tool on top is `main.rs`. Data flow: `checkpoint` -> `types` -> `encode` -> `model_folder`; for a
//! measurement: `json` -> `records` -> `questions` -> `eval` -> `score` -> `protocol` -> `metrics`, or `prompts` ->
//! `compare`.
pub mod about;
pub mod ask;
pub mod calibrate;
pub mod checkpoint;
pub mod compare;
pub mod convert;
mod disk;
pub mod encode;
pub mod eval;
pub mod inspect;
pub mod json;
pub mod metrics;
pub mod model_folder;
pub mod native;
pub mod prompts;
pub mod protocol;
pub mod questions;
pub mod random;
pub mod records;
pub mod score;
pub mod types;
pub mod vocabulary;

pub use about::About;
pub use convert::{Options, convert};
pub use random::random;

/// Mean and standard deviation of colour channels.
pub type MeanStd = ([f32; 3], [f32; 3]);
/// Those of OpenAI's CLIP training.
pub const CLIP_MEAN_STD: MeanStd = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.261_302_6, 0.275_777_1]);
/// Those of Bioptimus's H-optimus-0 training.
pub const OPTIMUS_MEAN_STD: MeanStd = ([0.707223, 0.578729, 0.703617], [0.211883, 0.230117, 0.177517]);
/// Those of Google's SigLIP training.
pub const SIGLIP_MEAN_STD: MeanStd = ([0.5; 3], [0.5; 3]);

/// A positive whole number, as a command-line argument.
pub fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a whole number from 1 on".to_owned())
}
