//! What is on disk: model folders, JSON and records, and pictures.

pub mod about;
pub(crate) mod disk;
pub mod folder;
pub mod json;
pub mod plan;
pub mod records;

use folder::read_small;
use llama3med::picture::Picture;
use llama3med::{Error, Result};
use std::path::Path;

/// Larger picture files are refused.
const MAX_PICTURE_BYTES: usize = 512 << 20;

/// Reads a picture.
pub fn decode(path: &Path) -> Result<Picture> {
    let bytes = read_small(path, MAX_PICTURE_BYTES)?;
    Picture::decode(&bytes).map_err(|error| match error {
        Error::Image(problem) => Error::Image(format!("{}: {problem}", path.display())),
        Error::Format(_) => Error::Image(format!("{}: {error}", path.display())),
        other => other,
    })
}
