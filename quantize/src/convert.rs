//! Converts a checkpoint into a model folder, tensor by tensor.
//!
//! Memory holds only the pieces being processed, a few megabytes per thread: never a model, and rarely a whole tensor.

use crate::About;
use crate::calibrate::{self, Importance};
use crate::checkpoint::family::Family;
use crate::checkpoint::names::{self, Part};
use crate::checkpoint::tensor::Tensor;
use crate::checkpoint::{Checkpoint, Parts, chat, config};
use crate::encode::{encode, encode_for};
use crate::layout::{Decoder, Encoder, Role, Slot, Tower};
use crate::model_folder::{Files, Plan, Rows, Writer};
use crate::types::Types;
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

/// A checkpoint whose shapes are known, and whose tensors are complete and without extras.
pub struct Understood {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Shape of the decoder.
    pub decoder: Decoder,
    /// Shape of tower and connector; `None` for a language model alone.
    pub encoder: Option<Encoder>,
    /// The tokenizer's vocabulary.
    pub vocabulary: Vocabulary,
}

impl Understood {
    /// Reads everything but the weights.
    pub fn read(folder: &std::path::Path, parts: &Parts, scales: Option<&[usize]>) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder, parts)?;
        let decoder = config::decoder(&checkpoint)?;
        let encoder = match checkpoint.family {
            Family::Language if scales.is_some() => {
                return Err(Error::Invalid(
                    "scales: this checkpoint is a language model, which sees no pictures".into(),
                ));
            }
            Family::Language => None,
            _ => Some(config::encoder(&checkpoint, scales, decoder.dim)?),
        };
        let pad = checkpoint.config.ids("pad_token_id")?.first().copied();
        let json = checkpoint.tokenizer()?;
        let tokenizer = Tokenizer::from_json(json.as_bytes())
            .map_err(|error| error.of_tokenizer_in(&checkpoint.tokenizer_name()))?;
        let template = chat::template(&checkpoint, &tokenizer, &json, parts.template.as_deref())?;
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

    /// Drops the first patch of a single-scale SigLIP tower, as TinyLLaVA's own models were trained.
    pub fn drop_first_patch(&mut self) -> Result<()> {
        match &mut self.encoder {
            Some(encoder) if encoder.tower == Tower::Siglip && encoder.scales.len() == 1 => {
                encoder.n_drop = Some(1);
                Ok(())
            }
            _ => {
                let problem = "drop-first-patch is for SigLIP towers with one scale; others have a class token to drop, or tiles to merge";
                Err(Error::Invalid(problem.into()))
            }
        }
    }

    /// What the weights are made from: the tensors, their files in their current state, and the weights of columns.
    pub fn source(&self, importance: Option<&Importance>) -> String {
        let tensors: Vec<String> = self.checkpoint.tensors.values().map(Tensor::source).collect();
        format!("{}\n{importance:?}", tensors.join("\n"))
    }

    /// Every slot with its part.
    fn slots(&self) -> Vec<(Part, Slot)> {
        let with = |part| move |slot| (part, slot);
        let (tower, connector) = self.encoder.as_ref().map(Encoder::slots).unwrap_or_default();
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
        let n_blocks = self.encoder.as_ref().map_or(0, |encoder| encoder.n_blocks);
        let used = |part: Part, name: &str| !names::is_unused(part, name, n_blocks, self.decoder.tied);
        match left.iter().find(|((part, name), _)| used(*part, name)) {
            Some((_, tensor)) => {
                let problem = "this tensor has no place in the model that the configuration describes";
                Err(Error::corrupt(&tensor.file_name, &tensor.name, problem))
            }
            None => Ok(()),
        }
    }

    /// The files to be written; `importance` weights the columns of the matrices that it has.
    pub fn plans<'a>(
        &'a self,
        name: &str,
        types: &Types,
        importance: Option<&'a Importance>,
    ) -> Result<Files<Plan<'a>>> {
        let slots = self.slots();
        let dtypes = types.assign(slots.iter().map(|(_, slot)| slot))?;
        self.plans_with(name, slots.into_iter().zip(dtypes), importance)
    }

    /// The files with every matrix at the checkpoint's precision.
    pub fn exact_plans(&self) -> Result<Files<Plan<'_>>> {
        let exact = |(part, slot): (Part, Slot)| {
            let dtype = match slot.role {
                Role::Matrix => self.checkpoint.tensor(part, &slot.source, &slot.source_shape)?.exact_dtype(),
                Role::Exact | Role::Patch => Dtype::F32,
            };
            Ok(((part, slot), dtype))
        };
        let slots = self.slots().into_iter().map(exact).collect::<Result<Vec<_>>>()?;
        self.plans_with("reference", slots.into_iter(), None)
    }

    fn plans_with<'a>(
        &'a self,
        name: &str,
        slots: impl Iterator<Item = ((Part, Slot), Dtype)>,
        importance: Option<&'a Importance>,
    ) -> Result<Files<Plan<'a>>> {
        let mut decoder = Plan::new(self.decoder.keys(name, &self.vocabulary));
        let mut encoder = self.encoder.as_ref().map(|encoder| Plan::new(encoder.keys(name)));
        if let Some(factors) = &self.decoder.rope_factors {
            let rows: Rows = Box::new(|_| encode("rope_freqs.weight", Dtype::F32, factors.clone()));
            decoder.push("rope_freqs.weight", Dtype::F32, &[factors.len()], rows);
        }
        for ((part, slot), dtype) in slots {
            let plan = encoder.as_mut().filter(|_| part != Part::Decoder).unwrap_or(&mut decoder);
            self.push(plan, part, slot, dtype, importance)?;
        }
        Ok(Files { decoder, encoder })
    }

    fn push<'a>(
        &'a self,
        plan: &mut Plan<'a>,
        part: Part,
        slot: Slot,
        dtype: Dtype,
        importance: Option<&'a Importance>,
    ) -> Result<()> {
        let tensor = self.checkpoint.tensor(part, &slot.source, &slot.source_shape)?;
        let (name, shape) = (slot.name.clone(), slot.shape.clone());
        let columns = importance.and_then(|importance| importance.of(&name));
        let rows: Rows = Box::new(move |rows| {
            let values = read_rows(&tensor, &slot, rows)?;
            match columns {
                Some(columns) => encode_for(&tensor.name, dtype, values, columns),
                None => encode(&tensor.name, dtype, values),
            }
        });
        plan.push(&name, dtype, &shape, rows);
        Ok(())
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
    llama3med::config::Config::from_gguf(&plans.decoder.gguf(DECODER)?.0)?;
    if let Some(encoder) = &plans.encoder {
        llama3med::encoder::Config::from_gguf(&encoder.gguf(ENCODER)?.0)?;
    }
    let source = understood.source(importance.as_ref());
    Writer::create(&options.output, options.chunk_size, &plans, source.as_bytes())?.write_all(&plans, &about)
}

/// Some rows of a slot as f32, from the checkpoint's tensor.
fn read_rows(tensor: &Tensor, slot: &Slot, rows: Range<usize>) -> Result<Vec<f32>> {
    let n_cols = slot.n_cols();
    let read = |rows: Range<usize>| {
        let mut values = Vec::with_capacity(rows.len() * n_cols);
        let (start, end) = (rows.start * n_cols, rows.end * n_cols);
        tensor.read(slot.source_offset + start..slot.source_offset + end, &mut values).map(|()| values)
    };
    let Some(head_dim) = slot.head_dim else { return read(rows) };
    // Pairs of rows (i, i + head_dim / 2) become adjacent: see `llama3med::rope`. Whole heads are read at once.
    let first = rows.start / head_dim * head_dim;
    let heads = read(first..rows.end.next_multiple_of(head_dim))?;
    let source = |row: usize| row / head_dim * head_dim + row % head_dim / 2 + row % 2 * (head_dim / 2) - first;
    Ok(rows.flat_map(|row| &heads[source(row) * n_cols..][..n_cols]).copied().collect())
}
