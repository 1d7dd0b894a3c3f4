//! Describes a checkpoint, a GGUF file or a model folder without loading it.
//!
//! A checkpoint is shown as the files that `convert` would write.

use crate::checkpoint::Parts;
use crate::convert::Understood;
use crate::convert::types::Types;
use crate::files::folder::{Files, Source, Stored, open_folder};
use crate::files::plan::Plan;
use llama3med::file::gguf::{ARCHITECTURE_KEY, Gguf};
use llama3med::file::manifest::{DECODER, Fidelity, Manifest};
use llama3med::model::memory::Held;
use llama3med::spec::{Architecture, DecoderSpec, EncoderSpec, Tower, VisionSpec, file_of};
use llama3med::text::conversation::Template;
use llama3med::text::keys::Keys;
use llama3med::text::tokenizer::Tokenizer;
use llama3med::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;

/// Numbers of ranks for which memory is reported.
const RANKS: [usize; 4] = [1, 2, 4, 8];

/// The whole report. Written as text by `Display`, as JSON by serde.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// "checkpoint", "GGUF file", "GGUF pair" or "model folder".
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// A one-sentence description.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Licence of the weights.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub license: String,
    /// Measurements of it against the unquantized model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fidelity: Option<Fidelity>,
    /// The language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder: Option<DecoderReport>,
    /// The image encoder and the connector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder: Option<EncoderReport>,
    /// Its files, or those that would be written.
    pub files: Vec<FileReport>,
    /// Memory of the largest rank, for each number of ranks.
    pub memory: Vec<Memory>,
}

/// A decoder.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // as in `DecoderSpec`
pub struct DecoderReport {
    pub family: &'static str,
    pub n_parameters: u64,
    pub dim: usize,
    pub hidden_dim: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub context_length: usize,
    pub rope_theta: f32,
    pub rope_scaled: bool,
    pub tied: bool,
    pub template: String,
    pub system_prompt: Option<String>,
    pub stop_token_ids: Vec<i64>,
}

/// An image encoder with its connector.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // as in `EncoderSpec`
pub struct EncoderReport {
    pub family: &'static str,
    pub n_parameters: u64,
    pub image_size: usize,
    pub patch_size: usize,
    pub dim: usize,
    pub hidden_dim: usize,
    pub n_blocks: usize,
    pub n_heads: usize,
    pub n_registers: usize,
    pub scales: Vec<usize>,
    pub n_tiles: usize,
    pub n_image_tokens: usize,
    pub fit: String,
    pub connector: Vec<usize>,
}

/// A GGUF file.
#[derive(Debug, Clone, Serialize)]
pub struct FileReport {
    /// Its name.
    pub name: String,
    /// Its size.
    pub n_bytes: u64,
    /// Number of chunks, in a model folder.
    pub n_chunks: usize,
    /// Number of tensors and bytes of each type.
    pub types: BTreeMap<&'static str, (usize, u64)>,
}

/// Memory of the largest of several ranks.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// Number of ranks.
    pub n_ranks: usize,
    /// Bytes of weights.
    pub weights: u64,
    /// Bytes of keys and values per 1000 tokens of conversation.
    pub kv_per_1000_tokens: u64,
    /// Bytes of everything else, roughly: activations, encoded pictures, the tokenizer.
    pub work: u64,
}

/// Describes `path`; `verify` also checks a model folder's chunks against their hashes.
pub fn inspect(path: &Path, verify: bool) -> Result<Report> {
    if path.join("manifest.json").exists() {
        return inspect_folder(path, verify);
    }
    if path.is_dir() {
        return inspect_checkpoint(path);
    }
    let stored = Stored::open(path)?;
    let (_, gguf) = stored.header()?;
    let title = gguf.title()?.unwrap_or("unnamed").to_owned();
    let file = file_report(&gguf, stored.size(), 0);
    match gguf.architecture()?.and_then(file_of) {
        Some(DECODER) => report("GGUF file", title, Some(&gguf), None, vec![file]),
        Some(_) => report("GGUF file", title, None, Some(&gguf), vec![file]),
        None => {
            let found = format!("{}: {ARCHITECTURE_KEY} is {:?}", path.display(), gguf.architecture()?);
            let known = Architecture::ALL.map(|architecture| format!("{:?}", architecture.name)).join(", ");
            Err(Error::Unsupported(format!("{found}; expected {known} or {:?}", EncoderSpec::ARCHITECTURE)))
        }
    }
}

/// Describes two GGUF files that together are a model.
pub fn inspect_pair(decoder: &Path, encoder: &Path) -> Result<Report> {
    let files = Files { decoder: decoder.into(), encoder: Some(encoder.into()) };
    let (name, files) = Source::Files(files).open()?;
    let headers = files.named().map(|(_, file)| Ok(file.header()?.1)).collect::<Result<Vec<_>>>()?;
    let reports = headers.iter().zip(files.named()).map(|(gguf, (_, file))| file_report(gguf, file.size(), 0));
    report("GGUF pair", name, headers.first(), headers.get(1), reports.collect())
}

fn inspect_folder(path: &Path, verify: bool) -> Result<Report> {
    let (manifest, stored) = open_folder(path)?;
    let (mut headers, mut files) = (Vec::new(), Vec::new());
    for (name, stored) in stored.named() {
        let file = manifest.file(name).expect("it was opened by this name");
        if verify {
            stored.verify(file)?;
        }
        let (_, gguf) = stored.header()?;
        files.push(file_report(&gguf, stored.size(), file.chunks.len()));
        headers.push(gguf);
    }
    let report = report("model folder", manifest.name.clone(), headers.first(), headers.get(1), files)?;
    let Manifest { description, license, fidelity, .. } = manifest;
    Ok(Report { description, license, fidelity, ..report })
}

fn inspect_checkpoint(path: &Path) -> Result<Report> {
    let understood = Understood::read(path, &Parts::default(), None)?;
    let name = path.display().to_string();
    let types = Types::default();
    let plans = understood.plans(&name, &types, None)?;
    let written = |(name, plan): (&str, &Plan)| plan.gguf(&format!("{name}, if written as {}", types.decoder));
    let headers = plans.named().map(written).collect::<Result<Vec<_>>>()?;
    let files = headers.iter().map(|(gguf, size)| file_report(gguf, *size, 0)).collect();
    let gguf = |idx: usize| headers.get(idx).map(|(gguf, _)| gguf);
    let mut report = report("checkpoint", name, gguf(0), gguf(1), files)?;
    if let (Some(encoder), Some(vision)) = (&mut report.encoder, &understood.vision) {
        encoder.family = family(vision.encoder.tower);
    }
    Ok(report)
}

fn report(
    kind: &'static str,
    name: String,
    decoder: Option<&Gguf>,
    encoder: Option<&Gguf>,
    files: Vec<FileReport>,
) -> Result<Report> {
    Ok(Report {
        kind,
        name,
        description: String::new(),
        license: String::new(),
        fidelity: None,
        decoder: decoder.map(decoder_report).transpose()?,
        encoder: encoder.map(encoder_report).transpose()?,
        files,
        memory: RANKS.iter().map(|&n_ranks| memory(n_ranks, decoder, encoder)).collect::<Result<_>>()?,
    })
}

fn n_parameters(gguf: &Gguf) -> u64 {
    gguf.tensors.values().map(|tensor| tensor.n_rows as u64 * tensor.n_cols as u64).sum()
}

fn decoder_report(gguf: &Gguf) -> Result<DecoderReport> {
    let (spec, keys) = (DecoderSpec::read(gguf)?, Keys::read(gguf)?);
    Ok(DecoderReport {
        family: if spec.rope_scaled { "Llama (Llama-3.1 rope)" } else { spec.architecture.title },
        n_parameters: n_parameters(gguf),
        dim: spec.dim,
        hidden_dim: spec.hidden_dim,
        n_layers: spec.n_layers,
        n_heads: spec.n_heads,
        n_kv_heads: spec.n_kv_heads,
        head_dim: spec.head_dim,
        vocab_size: spec.vocab_size,
        context_length: spec.context_length,
        rope_theta: spec.rope_theta,
        rope_scaled: spec.rope_scaled,
        tied: spec.tied,
        template: keys.template.map_or_else(|| recognised(gguf), String::from),
        system_prompt: keys.system.map(String::from),
        stop_token_ids: keys.stops,
    })
}

/// The chat template as recognised in other projects' files, or why it was not.
fn recognised(gguf: &Gguf) -> String {
    let found = Tokenizer::from_gguf(gguf).and_then(|tokenizer| Template::from_gguf(gguf, &tokenizer));
    found.map_or_else(
        |error| error.to_string(),
        |template| format!("{:?} … {:?}", template.marks().first, template.marks().reply),
    )
}

fn family(tower: Tower) -> &'static str {
    match tower {
        Tower::Clip => "CLIP",
        Tower::Siglip => "SigLIP",
        Tower::Timm => "timm ViT",
    }
}

fn encoder_report(gguf: &Gguf) -> Result<EncoderReport> {
    let VisionSpec { encoder, connector } = VisionSpec::read(gguf)?;
    Ok(EncoderReport {
        family: family(encoder.tower),
        n_parameters: n_parameters(gguf),
        image_size: encoder.image_size,
        patch_size: encoder.patch_size,
        dim: encoder.dim,
        hidden_dim: encoder.hidden_dim,
        n_blocks: encoder.n_layers,
        n_heads: encoder.n_heads,
        n_registers: encoder.n_reg_tokens,
        n_tiles: encoder.scales().n_tiles(),
        n_image_tokens: encoder.n_tokens(),
        fit: encoder.fit_name().into(),
        scales: encoder.scales,
        connector: connector.widths,
    })
}

fn file_report(gguf: &Gguf, n_bytes: u64, n_chunks: usize) -> FileReport {
    let mut types = BTreeMap::new();
    for tensor in gguf.tensors.values() {
        let (n, bytes) = types.entry(tensor.dtype.name()).or_insert((0, 0));
        *n += 1;
        *bytes += tensor.n_bytes();
    }
    FileReport { name: gguf.file.clone(), n_bytes, n_chunks, types }
}

fn memory(n_ranks: usize, decoder: Option<&Gguf>, encoder: Option<&Gguf>) -> Result<Memory> {
    let Held { weights, kv_per_position, work } = Held::most(decoder, encoder, n_ranks)?;
    Ok(Memory { n_ranks, weights, kv_per_1000_tokens: 1000 * kv_per_position, work })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{}: {}", self.kind, self.name)?;
        for (label, text) in [("description", &self.description), ("licence", &self.license)] {
            if !text.is_empty() {
                line(f, label, text)?;
            }
        }
        if let Some(Fidelity { reference, kl_divergence, top1_agreement, n_tokens, .. }) = &self.fidelity {
            let same = 100.0 * top1_agreement;
            let text = format!(
                "{same:.1} % of {n_tokens} tokens as {reference}, KL divergence {kl_divergence:.4} nats per token"
            );
            line(f, "fidelity", &text)?;
        }
        if let Some(decoder) = &self.decoder {
            decoder.show(f)?;
        }
        if let Some(encoder) = &self.encoder {
            encoder.show(f)?;
        }
        for file in &self.files {
            let mut text = megabytes(file.n_bytes);
            if file.n_chunks > 0 {
                write!(text, " in {} chunks", file.n_chunks)?;
            }
            for (dtype, (n, bytes)) in &file.types {
                write!(text, "; {n} tensors {dtype} ({})", megabytes(*bytes))?;
            }
            line(f, &file.name, &text)?;
        }
        for memory in &self.memory {
            let [weights, kv, work] = [memory.weights, memory.kv_per_1000_tokens, memory.work].map(megabytes);
            let label = format!("on {} rank{}", memory.n_ranks, if memory.n_ranks == 1 { "" } else { "s" });
            line(
                f,
                &label,
                &format!(
                    "{weights} of weights per rank, {kv} per 1000 tokens of conversation, about {work} for buffers"
                ),
            )?;
        }
        Ok(())
    }
}

impl DecoderReport {
    fn show(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let heads = format!("{}/{} heads of {}", self.n_heads, self.n_kv_heads, self.head_dim);
        let tied = if self.tied { "tied" } else { "own output matrix" };
        line(f, "decoder", &format!("{}, {} parameters", self.family, millions(self.n_parameters)))?;
        line(f, "shape", &format!("{} layers, width {}, MLP {}, {heads}", self.n_layers, self.dim, self.hidden_dim))?;
        line(f, "vocabulary", &format!("{} tokens, {tied}", self.vocab_size))?;
        line(f, "context", &format!("{} tokens, rope theta {}", self.context_length, self.rope_theta))?;
        let system = self.system_prompt.as_ref().map_or("not stated".into(), |text| format!("{text:?}"));
        line(f, "template", &format!("{}, system prompt {system}, stops at {:?}", self.template, self.stop_token_ids))
    }
}

impl EncoderReport {
    fn show(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let registers = if self.n_registers > 0 { format!(", {} registers", self.n_registers) } else { String::new() };
        let Self { n_blocks, dim, hidden_dim, n_heads, image_size, patch_size, .. } = self;
        line(f, "encoder", &format!("{}, {} parameters with its connector", self.family, millions(self.n_parameters)))?;
        line(f, "shape", &format!("{n_blocks} blocks, width {dim}, MLP {hidden_dim}, {n_heads} heads{registers}"))?;
        line(f, "tile", &format!("{image_size} pixels in patches of {patch_size}"))?;
        let scales: Vec<String> = self.scales.iter().map(usize::to_string).collect();
        let (tiles, tokens) = (self.n_tiles, self.n_image_tokens);
        line(f, "scales", &format!("{}: {tiles} tiles, {tokens} image tokens, fit {}", scales.join(","), self.fit))?;
        let widths: Vec<String> = self.connector.iter().map(usize::to_string).collect();
        line(f, "connector", &widths.join(" -> "))
    }
}

fn line(f: &mut fmt::Formatter, label: &str, text: &str) -> fmt::Result {
    writeln!(f, "  {label:<13} {text}")
}

fn millions(n: u64) -> String {
    format!("{:.1} M", n as f64 / 1e6)
}

fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
