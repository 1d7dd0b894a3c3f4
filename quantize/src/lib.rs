//! From checkpoints to model folders: reads Llama3-Med checkpoints, writes 4-bit GGUF files in chunks, makes random
//! models, inspects and measures both.
//!
//! Rooms, in the order of the data flow: [`files`], [`checkpoint`], [`convert`](mod@convert), [`native`], [`measure`],
//! [`commands`]; imports point up this list only. The command-line tool on top is `main.rs`.

pub mod checkpoint;
pub mod commands;
pub mod convert;
pub mod files;
pub mod measure;
pub mod native;

pub use commands::convert::{Options, convert};
pub use convert::random::random;
pub use files::about::About;

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
