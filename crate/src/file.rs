//! What the files of a model hold: headers and manifests, without the weights themselves.

pub mod gguf;
pub mod manifest;
pub mod pair;
