//! From a checkpoint to the files of a model, tensor by tensor.
//!
//! Memory holds only the pieces being processed, a few megabytes per thread: never a model, and rarely a whole tensor.

pub mod encode;
pub mod random;
pub mod types;
pub mod vocabulary;

use crate::checkpoint::family::Family;
use crate::checkpoint::tensor::Tensor;
use crate::checkpoint::{Checkpoint, Parts, chat_template, config, prefixes};
use crate::files::folder::Files;
use crate::files::plan::{Plan, Rows};
use encode::{Importance, encode, encode_for};
use llama3med::file::gguf::{Dtype, Header};
use llama3med::spec::watch::Part;
use llama3med::spec::{self, DecoderSpec, Role, Source, Tower, VisionSpec};
use llama3med::text::tokenizer::Tokenizer;
use llama3med::{Error, Result};
use std::ops::Range;
use types::Types;
use vocabulary::Vocabulary;

/// A checkpoint with known shapes, whose tensors are complete and without extras.
pub struct Understood {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Shape of the decoder.
    pub decoder: DecoderSpec,
    /// Llama-3.1's factors of the rotary frequencies (head_dim / 2).
    pub rope_factors: Option<Vec<f32>>,
    /// Shape of tower and connector; `None` for a language model alone.
    pub vision: Option<VisionSpec>,
    /// The tokenizer's vocabulary.
    pub vocabulary: Vocabulary,
}

impl Understood {
    /// Reads everything but the weights.
    pub fn read(folder: &std::path::Path, parts: &Parts, scales: Option<&[usize]>) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder, parts)?;
        let (decoder, rope_factors) = config::decoder(&checkpoint)?;
        let vision = match checkpoint.family {
            Family::Language if scales.is_some() => {
                return Err(Error::Invalid(
                    "scales: this checkpoint is a language model, which sees no pictures".into(),
                ));
            }
            Family::Language => None,
            _ => Some(config::vision(&checkpoint, scales, decoder.dim)?),
        };
        let pad = checkpoint.config.ids("pad_token_id")?.first().copied();
        let json = checkpoint.tokenizer()?;
        let tokenizer = Tokenizer::from_json(json.as_bytes())
            .map_err(|error| error.of_tokenizer_in(&checkpoint.tokenizer_name()))?;
        let template = chat_template::template(&checkpoint, &tokenizer, &json, parts.template.as_deref())?;
        let vocabulary = Vocabulary::parse(json, template, &config::stop_ids(&checkpoint)?, pad)?;
        if vocabulary.n_tokens() > decoder.vocab_size {
            let problem =
                format!("it has ids up to {}, the embedding {} rows", vocabulary.n_tokens() - 1, decoder.vocab_size);
            return Err(Error::corrupt("tokenizer.json", "model.vocab", problem));
        }
        let understood = Self { checkpoint, decoder, rope_factors, vision, vocabulary };
        understood.check_tensors()?;
        Ok(understood)
    }

    /// Drops the first patch of a single-scale SigLIP tower, as TinyLLaVA's own models were trained.
    pub fn drop_first_patch(&mut self) -> Result<()> {
        match &mut self.vision {
            Some(VisionSpec { encoder, .. }) if encoder.tower == Tower::Siglip && encoder.scales.len() == 1 => {
                encoder.n_drop = 1;
                Ok(())
            }
            _ => {
                let problem = "drop-first-patch is for SigLIP towers with one scale; others have a class token to drop, or tiles to merge";
                Err(Error::Invalid(problem.into()))
            }
        }
    }

    /// What the weights are made from: the tensors, the current state of their files, and the column weights.
    pub fn source(&self, importance: Option<&Importance>) -> String {
        let tensors: Vec<String> = self.checkpoint.tensors.values().map(Tensor::source).collect();
        format!("{}\n{importance:?}", tensors.join("\n"))
    }

    /// Every tensor of the model with its part.
    pub fn tensors(&self) -> Vec<(Part, spec::Tensor)> {
        let of = |part: Part, tensors: Vec<spec::Tensor>| tensors.into_iter().map(move |tensor| (part, tensor));
        let mut tensors: Vec<_> = of(Part::Decoder, self.decoder.tensors()).collect();
        if let Some(VisionSpec { encoder, connector }) = &self.vision {
            tensors.extend(of(Part::Tower, encoder.tensors()));
            tensors.extend(of(Part::Connector, connector.tensors()));
        }
        tensors
    }

    fn check_tensors(&self) -> Result<()> {
        let mut left = self.checkpoint.tensors.clone();
        for (part, tensor) in self.tensors() {
            let Some(source) = tensor.source else { continue };
            self.checkpoint.tensor(part, &source.name, &source.shape)?;
            left.remove(&(part, source.name));
        }
        let n_blocks = self.vision.as_ref().map_or(0, |vision| vision.encoder.n_layers);
        let used = |part: Part, name: &str| !prefixes::is_unused(part, name, n_blocks, self.decoder.tied);
        match left.iter().find(|((part, name), _)| used(*part, name)) {
            Some((_, tensor)) => {
                let problem = "this tensor has no place in the model that the configuration describes";
                Err(Error::corrupt(&tensor.file_name, &tensor.name, problem))
            }
            None => Ok(()),
        }
    }

    /// The files to write; `importance` weights the columns of the matrices that it contains.
    pub fn plans<'a>(
        &'a self,
        name: &str,
        types: &Types,
        importance: Option<&'a Importance>,
    ) -> Result<Files<Plan<'a>>> {
        let tensors = self.tensors();
        let dtypes = types.assign(tensors.iter().map(|(_, tensor)| tensor))?;
        self.plans_with(name, tensors.into_iter().zip(dtypes), importance)
    }

    /// The files with every matrix at the checkpoint's precision.
    pub fn exact_plans(&self) -> Result<Files<Plan<'_>>> {
        let exact = |(part, tensor): (Part, spec::Tensor)| {
            let dtype = match &tensor.source {
                Some(source) if tensor.role == Role::Matrix => {
                    self.checkpoint.tensor(part, &source.name, &source.shape)?.exact_dtype()
                }
                _ => Dtype::F32,
            };
            Ok(((part, tensor), dtype))
        };
        let tensors = self.tensors().into_iter().map(exact).collect::<Result<Vec<_>>>()?;
        self.plans_with("reference", tensors.into_iter(), None)
    }

    fn plans_with<'a>(
        &'a self,
        name: &str,
        tensors: impl Iterator<Item = ((Part, spec::Tensor), Dtype)>,
        importance: Option<&'a Importance>,
    ) -> Result<Files<Plan<'a>>> {
        let mut header = Header::default();
        self.decoder.write(name, &mut header);
        self.vocabulary.keys(&mut header, self.decoder.vocab_size);
        let mut decoder = Plan::new(header);
        let mut encoder = self.vision.as_ref().map(|vision| {
            let mut header = Header::default();
            vision.write(name, &mut header);
            Plan::new(header)
        });
        for ((part, tensor), dtype) in tensors {
            let plan = encoder.as_mut().filter(|_| part != Part::Decoder).unwrap_or(&mut decoder);
            let rows = self.rows(part, &tensor, dtype, importance)?;
            plan.push(&tensor.name, dtype, &tensor.shape, rows);
        }
        Ok(Files { decoder, encoder })
    }

    /// The function that writes the rows of a tensor.
    fn rows<'a>(
        &'a self,
        part: Part,
        tensor: &spec::Tensor,
        dtype: Dtype,
        importance: Option<&'a Importance>,
    ) -> Result<Rows<'a>> {
        let Some(source) = tensor.source.clone() else {
            // The factors are the only tensor that comes from no checkpoint.
            let factors = self.rope_factors.as_deref().unwrap_or_default();
            return Ok(Box::new(|_| encode(DecoderSpec::ROPE_FACTORS, Dtype::F32, factors.to_vec())));
        };
        let (n_cols, columns) = (tensor.n_cols(), importance.and_then(|importance| importance.of(&tensor.name)));
        let tensor = self.checkpoint.tensor(part, &source.name, &source.shape)?;
        Ok(Box::new(move |rows| {
            let values = read_rows(&tensor, &source, n_cols, rows)?;
            match columns {
                Some(columns) => encode_for(&tensor.name, dtype, values, columns),
                None => encode(&tensor.name, dtype, values),
            }
        }))
    }
}

/// Some rows of `n_cols` weights as f32, from their place in the checkpoint's tensor.
fn read_rows(tensor: &Tensor, source: &Source, n_cols: usize, rows: Range<usize>) -> Result<Vec<f32>> {
    let read = |rows: Range<usize>| {
        let mut values = Vec::with_capacity(rows.len() * n_cols);
        let (start, end) = (rows.start * n_cols, rows.end * n_cols);
        tensor.read(source.offset + start..source.offset + end, &mut values).map(|()| values)
    };
    let Some(head_dim) = source.permuted else { return read(rows) };
    // Pairs of rows (i, i + head_dim / 2) become adjacent: see `llama3med::device::rope`. Whole heads are read at once.
    let first = rows.start / head_dim * head_dim;
    let heads = read(first..rows.end.next_multiple_of(head_dim))?;
    let place = |row: usize| row / head_dim * head_dim + row % head_dim / 2 + row % 2 * (head_dim / 2) - first;
    Ok(rows.flat_map(|row| &heads[place(row) * n_cols..][..n_cols]).copied().collect())
}
