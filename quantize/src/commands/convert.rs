//! Converts a checkpoint into a model folder.

use crate::checkpoint::Parts;
use crate::convert::Understood;
use crate::convert::types::Types;
use crate::files::about::About;
use crate::files::folder::Writer;
use crate::measure::calibrate;
use llama3med::Result;
use llama3med::file::manifest::{CHUNK_SIZE, DECODER, ENCODER, Manifest};
use llama3med::spec::{DecoderSpec, VisionSpec};
use std::path::PathBuf;

/// What to convert, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The checkpoint's folder.
    pub checkpoint: PathBuf,
    /// Parts in other places.
    pub parts: Parts,
    /// The model folder.
    pub output: PathBuf,
    /// Types of the large matrices.
    pub types: Types,
    /// Prompts for measuring which columns matter.
    pub calibration: Option<calibrate::Options>,
    /// Chunk size in bytes.
    pub chunk_size: u64,
    /// The scales, if the checkpoint does not specify them or is wrong.
    pub scales: Option<Vec<usize>>,
    /// Drops the first patch of a single-scale SigLIP tower, which has no class token: TinyLLaVA's own models were
    /// trained that way.
    pub drop_first_patch: bool,
    /// Name and other texts; an empty name is replaced by the checkpoint's.
    pub about: About,
}

impl Options {
    /// The usual types, and the checkpoint's own values for everything else.
    pub fn new(checkpoint: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            checkpoint: checkpoint.into(),
            parts: Parts::default(),
            output: output.into(),
            types: Types::default(),
            calibration: None,
            chunk_size: CHUNK_SIZE,
            scales: None,
            drop_first_patch: false,
            about: About::default(),
        }
    }
}

/// Converts a checkpoint.
pub fn convert(options: &Options) -> Result<Manifest> {
    let mut understood = Understood::read(&options.checkpoint, &options.parts, options.scales.as_deref())?;
    if options.drop_first_patch {
        understood.drop_first_patch()?;
    }
    let mut about = options.about.clone();
    if about.name.is_empty() {
        let name =
            options.checkpoint.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into()));
        about.name = name.unwrap_or_else(|| "Llama3-Med".into());
    }
    // Find wrong types before the prompts are answered.
    understood.plans(&about.name, &options.types, None)?;
    let importance = match &options.calibration {
        Some(calibration) => Some(calibrate::calibrate(&understood, calibration)?),
        None => None,
    };
    let plans = understood.plans(&about.name, &options.types, importance.as_ref())?;
    // The output must load: the engine's own readers check the headers first.
    DecoderSpec::read(&plans.decoder.gguf(DECODER)?.0)?;
    if let Some(encoder) = &plans.encoder {
        VisionSpec::read(&encoder.gguf(ENCODER)?.0)?;
    }
    let source = understood.source(importance.as_ref());
    Writer::create(&options.output, options.chunk_size, &plans, source.as_bytes())?.write_all(&plans, &about)
}
