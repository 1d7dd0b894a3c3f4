//! A checkpoint into a model folder, tensor by tensor.
//!
//! Memory holds the pieces at work, a few megabytes for each thread, never a model and rarely a whole tensor.

use crate::About;
use crate::checkpoint::names::{self, Part};
use crate::checkpoint::tensor::Tensor;
use crate::checkpoint::{Checkpoint, Parts, chat, config};
use crate::encode::encode;
use crate::layout::{Decoder, Encoder, Slot, Tower};
use crate::model_folder::{Plan, Rows, Writer};
use crate::vocabulary::Vocabulary;
use llama3med::gguf::Dtype;
use llama3med::manifest::{CHUNK_SIZE, DECODER, ENCODER, Manifest};
use llama3med::tokenizer::Tokenizer;
use llama3med::{Error, Result};
use std::ops::Range;
use std::path::PathBuf;

/// What to convert, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The checkpoint's folder.
    pub checkpoint: PathBuf,
    /// Parts that are elsewhere.
    pub parts: Parts,
    /// The model folder.
    pub output: PathBuf,
    /// Type of the large matrices.
    pub dtype: Dtype,
    /// Type of the encoder's and the connector's large matrices, if another.
    pub encoder_dtype: Option<Dtype>,
    /// Bytes of a chunk.
    pub chunk_size: u64,
    /// The scales, where the checkpoint does not tell or tells wrong.
    pub scales: Option<Vec<usize>>,
    /// Leaves out the first patch of a single-scale SigLIP tower, which has no class token: TinyLLaVA's own models were trained so.
    pub drop_first_patch: bool,
    /// Name and other texts; an empty name becomes the checkpoint's.
    pub about: About,
}

impl Options {
    /// Q4_0 throughout, and everything else as the checkpoint says.
    pub fn new(checkpoint: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            checkpoint: checkpoint.into(),
            parts: Parts::default(),
            output: output.into(),
            dtype: Dtype::Q4_0,
            encoder_dtype: None,
            chunk_size: CHUNK_SIZE,
            scales: None,
            drop_first_patch: false,
            about: About::default(),
        }
    }
}

/// A checkpoint that has been understood: its shapes, and that every tensor is there and none too many.
pub struct Understood {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Shape of the decoder.
    pub decoder: Decoder,
    /// Shape of tower and connector.
    pub encoder: Encoder,
    /// The tokenizer's vocabulary.
    pub vocabulary: Vocabulary,
}

impl Understood {
    /// Reads everything but the weights.
    pub fn read(folder: &std::path::Path, parts: &Parts, scales: Option<&[usize]>) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder, parts)?;
        let decoder = config::decoder(&checkpoint)?;
        let encoder = config::encoder(&checkpoint, scales, decoder.dim)?;
        let pad = checkpoint.config.ids("pad_token_id")?.first().copied();
        let json = checkpoint.tokenizer()?;
        let tokenizer = Tokenizer::from_json(json.as_bytes())?;
        let template = chat::template(&checkpoint, &tokenizer, &json)?;
        let vocabulary = Vocabulary::parse(json, template, &config::stop_ids(&checkpoint)?, pad)?;
        if vocabulary.n_tokens() > decoder.vocab_size {
            let problem =
                format!("it has ids up to {}, the embedding {} rows", vocabulary.n_tokens() - 1, decoder.vocab_size);
            return Err(Error::corrupt("tokenizer.json", "model.vocab", problem));
        }
        let understood = Self { checkpoint, decoder, encoder, vocabulary };
        understood.check_tensors()?;
        Ok(understood)
    }

    /// Every slot with its part.
    fn slots(&self) -> Vec<(Part, Slot)> {
        let with = |part| move |slot| (part, slot);
        let (tower, connector) = self.encoder.slots();
        let decoder = self.decoder.slots().into_iter().map(with(Part::Decoder));
        decoder
            .chain(tower.into_iter().map(with(Part::Tower)))
            .chain(connector.into_iter().map(with(Part::Connector)))
            .collect()
    }

    fn check_tensors(&self) -> Result<()> {
        let mut left = self.checkpoint.tensors.clone();
        for (part, slot) in self.slots() {
            self.checkpoint.tensor(part, &slot.source, &slot.source_shape)?;
            left.remove(&(part, slot.source));
        }
        let used = |part: Part, name: &str| !names::is_unused(part, name, self.encoder.n_blocks, self.decoder.tied);
        match left.iter().find(|((part, name), _)| used(*part, name)) {
            Some((_, tensor)) => {
                let problem = "this tensor has no place in the model that the configuration describes";
                Err(Error::corrupt(&tensor.file_name, &tensor.name, problem))
            }
            None => Ok(()),
        }
    }

    /// Both files as they are to be written.
    pub fn plans(&self, name: &str, dtype: Dtype, encoder_dtype: Dtype) -> Result<(Plan<'_>, Plan<'_>)> {
        let mut decoder = Plan::new(self.decoder.keys(name, &self.vocabulary));
        let mut encoder = Plan::new(self.encoder.keys(name));
        if let Some(factors) = &self.decoder.rope_factors {
            let rows: Rows = Box::new(|_| encode("rope_freqs.weight", Dtype::F32, factors.clone()));
            decoder.push("rope_freqs.weight", Dtype::F32, &[factors.len()], rows);
        }
        for (part, slot) in self.slots() {
            match part {
                Part::Decoder => self.push(&mut decoder, part, slot, dtype)?,
                _ => self.push(&mut encoder, part, slot, encoder_dtype)?,
            }
        }
        Ok((decoder, encoder))
    }

    fn push(&self, plan: &mut Plan, part: Part, slot: Slot, dtype: Dtype) -> Result<()> {
        let dtype = slot.dtype(dtype);
        let tensor = self.checkpoint.tensor(part, &slot.source, &slot.source_shape)?;
        let (name, shape) = (slot.name.clone(), slot.shape.clone());
        let rows: Rows = Box::new(move |rows| encode(&tensor.name, dtype, read_rows(&tensor, &slot, rows)?));
        plan.push(&name, dtype, &shape, rows);
        Ok(())
    }
}

/// Converts a checkpoint.
pub fn convert(options: &Options) -> Result<Manifest> {
    let mut understood = Understood::read(&options.checkpoint, &options.parts, options.scales.as_deref())?;
    if options.drop_first_patch {
        if understood.encoder.tower != Tower::Siglip || understood.encoder.scales.len() > 1 {
            let problem = "drop-first-patch is for SigLIP towers with one scale; others have a class token to drop, or tiles to merge";
            return Err(Error::Invalid(problem.into()));
        }
        understood.encoder.n_drop = Some(1);
    }
    let mut about = options.about.clone();
    if about.name.is_empty() {
        let name =
            options.checkpoint.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into()));
        about.name = name.unwrap_or_else(|| "Llama3-Med".into());
    }
    let encoder_dtype = options.encoder_dtype.unwrap_or(options.dtype);
    let (decoder, encoder) = understood.plans(&about.name, options.dtype, encoder_dtype)?;
    // What is written must load: the engine's own readers look at the headers first.
    llama3med::config::Config::from_gguf(&decoder.gguf(DECODER)?.0)?;
    llama3med::encoder::Config::from_gguf(&encoder.gguf(ENCODER)?.0)?;
    let mut writer = Writer::create(&options.output, options.chunk_size, decoder.n_bytes() + encoder.n_bytes())?;
    writer.write(DECODER, &decoder)?;
    writer.write(ENCODER, &encoder)?;
    writer.finish(&about)
}

/// Some rows of a slot as f32, from the place in the checkpoint's tensor where they are.
fn read_rows(tensor: &Tensor, slot: &Slot, rows: Range<usize>) -> Result<Vec<f32>> {
    let n_cols = slot.n_cols();
    let read = |rows: Range<usize>| {
        let mut values = Vec::with_capacity(rows.len() * n_cols);
        let (start, end) = (rows.start * n_cols, rows.end * n_cols);
        tensor.read(slot.source_offset + start..slot.source_offset + end, &mut values).map(|()| values)
    };
    let Some(head_dim) = slot.head_dim else { return read(rows) };
    // Pairs of rows (i, i + head_dim / 2) become neighbours: see `llama3med::rope`. Whole heads are read at once.
    let first = rows.start / head_dim * head_dim;
    let heads = read(first..rows.end.next_multiple_of(head_dim))?;
    let source = |row: usize| row / head_dim * head_dim + row % head_dim / 2 + row % 2 * (head_dim / 2) - first;
    Ok(rows.flat_map(|row| &heads[source(row) * n_cols..][..n_cols]).copied().collect())
}
