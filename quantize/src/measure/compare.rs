//! Compares a model with the unquantized one that it was made from.
//!
//! Both get the same prompts and pictures. The reference answers greedily. Then each model reads exactly these answers
//! (teacher forcing), and at every token of them the two next-token distributions and the residual streams are
//! compared. The models run one after the other: memory holds one of them, and the reference's outputs, a few megabytes
//! per prompt for an 8B.

use crate::checkpoint::Parts;
use crate::convert::Understood;
use crate::files::decode;
use crate::files::folder::{Files, open_folder, write_manifest};
use crate::files::plan::Unwritten;
use crate::measure::prompts::{self, Prompt};
use crate::native::default_ranks;
use crate::native::{Bytes, with_files};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use llama3med::device::cpu::Cpu;
use llama3med::device::ranks::{Threads, block_on};
use llama3med::file::gguf::Gguf;
use llama3med::file::manifest::{DECODER, Fidelity};
use llama3med::model::session::{AskOptions, Chat, Forced, Session};
use llama3med::model::{Listener, Stage, Token};
use llama3med::spec::watch::{Part, Place, Point, Watch};
use llama3med::{Error, Result};
use serde::Serialize;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Measure what quantization costs a model.
///
/// REFERENCE is the checkpoint that MODEL was made from (used at its stored precision; nothing is written to it) or a
/// model folder converted with --type f32 or f16. Both models read the reference's greedy answers to the same prompts.
/// The report has the Kullback-Leibler divergence of their next-token distributions, how often both have the same most
/// likely token, and the relative error of the image features and of the residual stream after each layer.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:\n  quantize compare models/llama3-med checkpoints/llama3-med --write\n  \
    quantize compare models/llama3-med checkpoints/llama3-med --prompts prompts.txt --images films\n  \
    quantize compare models/llama3-med models/llama3-med-f16 --prompts test.json --images images --limit 50")]
pub struct Options {
    /// The model folder.
    pub model: PathBuf,
    /// The checkpoint's folder, or a model folder of higher precision.
    pub reference: PathBuf,
    /// A text file with one prompt per line, or a question set as for eval. Default: the questions that the model
    /// folder suggests for its sample pictures, or a dozen general ones.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// A folder of pictures: those of the question set, or any pictures to combine with the prompts in turn.
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Use the first N prompts only.
    #[arg(long, value_name = "N", value_parser = crate::at_least_one)]
    pub limit: Option<usize>,
    /// End each answer after N tokens.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = crate::at_least_one)]
    pub max_tokens: usize,
    /// Write the result into the model folder's manifest, so that the page shows it.
    #[arg(long)]
    pub write: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Split each model over N ranks, one thread each. Default: the number of cores, or 1 for a small model.
    #[arg(long, value_name = "N", value_parser = crate::at_least_one)]
    pub ranks: Option<usize>,
    /// The reference's parts in other places, as in `convert`.
    #[command(flatten)]
    #[allow(missing_docs)]
    pub parts: Parts,
    /// The reference's scales, as in `convert`.
    #[arg(long, value_delimiter = ',')]
    pub scales: Option<Vec<usize>>,
    /// Drop the reference's first patch, as in `convert`.
    #[arg(long)]
    pub drop_first_patch: bool,
}

/// The measurements. Written as text by `Display`, as JSON by serde.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the model.
    pub model: String,
    /// The largest divergence of one token's distributions.
    pub worst_kl_divergence: f64,
    /// The fidelity card for the manifest.
    #[serde(flatten)]
    pub fidelity: Fidelity,
}

/// Runs the comparison; `stop` ends it with [`Error::Cancelled`].
pub fn compare(options: &Options, stop: &AtomicBool) -> Result<Report> {
    let (mut manifest, files) = open_folder(&options.model)?;
    let (images, folder) = (options.images.as_deref(), &options.model);
    let mut prompts = match &options.prompts {
        Some(file) => prompts::read(file, images)?,
        None => prompts::offered(folder, &manifest, images)?,
    };
    prompts.truncate(options.limit.unwrap_or(usize::MAX));
    let pictures: BTreeSet<&PathBuf> = prompts.iter().filter_map(|prompt| prompt.image.as_ref()).collect();
    let run = Run {
        prompts: &prompts,
        n_ranks: options.ranks.unwrap_or_else(|| default_ranks(&files)),
        max_tokens: options.max_tokens,
        stop,
    };
    let mut reference = Vec::new();
    let name = with_reference(options, |name, files| {
        run.each("reference", files, &[], |_, trace| {
            reference.push(trace);
            Ok(())
        })?;
        Ok(name)
    })?;
    let mut totals = Totals::default();
    run.each("model", files.bytes(), &reference, |idx, trace| {
        totals.add(&reference[idx], &trace).map_err(|problem| {
            Error::Invalid(format!("the models do not belong together: {problem}, for {:?}", prompts[idx].question))
        })
    })?;
    let n_tokens = totals.n_tokens as f64;
    let fidelity = Fidelity {
        reference: name,
        n_prompts: prompts.len() as u64,
        n_images: pictures.len() as u64,
        n_tokens: totals.n_tokens,
        kl_divergence: rounded(totals.kl_sum / n_tokens),
        top1_agreement: rounded(totals.n_same as f64 / n_tokens),
        layer_errors: totals.layers.iter().map(Difference::relative).collect(),
        encoder_error: (!pictures.is_empty()).then(|| totals.features.relative()),
    };
    if options.write {
        manifest.fidelity = Some(fidelity.clone());
        write_manifest(&options.model, &manifest)?;
    }
    Ok(Report { model: manifest.name, worst_kl_divergence: rounded(totals.kl_worst), fidelity })
}

/// The reference's name and its files: those of a model folder, or those that a checkpoint would be converted to.
fn with_reference<T>(options: &Options, run: impl FnOnce(String, Files<&dyn Bytes>) -> Result<T>) -> Result<T> {
    let place = &options.reference;
    if place.join("manifest.json").exists() {
        let (manifest, files) = open_folder(place)?;
        let name = name(&manifest.name, &files.decoder.header()?.1);
        return run(name, files.bytes());
    }
    let mut understood = Understood::read(place, &options.parts, options.scales.as_deref())?;
    if options.drop_first_patch {
        understood.drop_first_patch()?;
    }
    let plans = understood.exact_plans()?;
    let name = name("checkpoint", &plans.decoder.gguf(DECODER)?.0);
    run(name, plans.map(Unwritten::from).bytes())
}

/// "checkpoint, f16".
fn name(what: &str, decoder: &Gguf) -> String {
    let matrices = decoder.tensors.values().filter(|tensor| tensor.n_rows > 1);
    let types: BTreeSet<&str> = matrices.map(|tensor| tensor.dtype.name()).collect();
    let what: String = what.chars().take(100).collect();
    format!("{what}, {}", types.into_iter().collect::<Vec<_>>().join(" and "))
}

/// What one model outputs for one prompt.
struct Trace {
    answer: Vec<u32>,
    forced: Forced,
    layers: Vec<Vec<f32>>, // of each layer (1 + answer.len(), dim)
    features: Vec<f32>,    // (n_image_tokens, channels), for the first prompt about a picture
    known: Vec<bool>,      // (vocab_size): ids that the tokenizer knows
}

/// The same work for both models.
struct Run<'a> {
    prompts: &'a [Prompt],
    n_ranks: usize,
    max_tokens: usize,
    stop: &'a AtomicBool,
}

impl Run<'_> {
    /// Passes on what the model outputs for each prompt, in order, given the answers of `reference` or its own.
    fn each(
        &self,
        who: &'static str,
        files: Files<&dyn Bytes>,
        reference: &[Trace],
        mut done: impl FnMut(usize, Trace) -> Result<()> + Send,
    ) -> Result<()> {
        let style = ProgressStyle::with_template("{msg:9} {wide_bar} {pos}/{len} {eta} left");
        let bar = ProgressBar::new(self.prompts.len() as u64).with_style(style.expect("the template is a constant"));
        bar.set_message(who);
        bar.tick();
        with_files(files, self.n_ranks, None, None, |session| {
            let mut listener = Patient { stop: self.stop };
            let mut looked = (None, None);
            for (idx, prompt) in self.prompts.iter().enumerate() {
                let mut features = Vec::new();
                if let Some(path) = &prompt.image
                    && looked.0 != Some(path)
                {
                    let look = block_on(session.look(&decode(path)?, &mut listener))?;
                    (looked, features) = ((Some(path), Some(look.key)), look.features);
                }
                let chat = Chat::about(prompt.image.as_ref().and(looked.1));
                let answer = reference.get(idx).map(|trace| trace.answer.clone());
                let trace = block_on(self.trace(session, chat, &prompt.question, answer, features, &mut listener))?;
                done(idx, trace)?;
                bar.inc(1);
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        Ok(())
    }

    async fn trace(
        &self,
        session: &mut Session<Cpu<Threads>>,
        chat: Chat,
        question: &str,
        answer: Option<Vec<u32>>,
        features: Vec<f32>,
        listener: &mut Patient<'_>,
    ) -> Result<Trace> {
        let answer = match answer {
            Some(answer) => answer,
            None => {
                let max_tokens = self.max_tokens;
                let options = AskOptions { max_tokens, stop_repetition: false, ..AskOptions::default() };
                let mut asked = chat.clone();
                session.ask(&mut asked, question, &options, listener).await?;
                asked.answers().pop().unwrap_or_default()
            }
        };
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let layers: Rc<RefCell<Vec<Vec<f32>>>> = Rc::default();
        let seen = layers.clone();
        let watch = Watch::new(move |place, _, value| {
            if let Place { part: Part::Decoder, layer, point: Point::Residual } = place {
                let mut layers = seen.borrow_mut();
                let n_layers = layers.len().max(layer + 1);
                layers.resize(n_layers, Vec::new());
                layers[layer].extend_from_slice(value);
            }
        });
        let forced = session.force(&chat, question, &answer, watch, listener).await?;
        let known = (0..session.model().spec().vocab_size as u32).map(|id| session.tokenizer().is_known(id)).collect();
        Ok(Trace { answer, forced, layers: layers.take(), features, known })
    }
}

/// Stops immediately.
struct Patient<'a> {
    stop: &'a AtomicBool,
}

impl Listener for Patient<'_> {
    async fn progress(&mut self, _: Stage, _: usize, _: usize) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    async fn token(&mut self, _: &Token) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// A sum of squares.
#[derive(Default, Clone)]
struct Difference {
    of_difference: f64,
    of_reference: f64,
}

impl Difference {
    fn add(&mut self, reference: &[f32], found: &[f32]) {
        for (&reference, &found) in reference.iter().zip(found) {
            self.of_difference += (found as f64 - reference as f64).powi(2);
            self.of_reference += (reference as f64).powi(2);
        }
    }

    fn relative(&self) -> f64 {
        rounded((self.of_difference / self.of_reference.max(f64::MIN_POSITIVE)).sqrt())
    }
}

#[derive(Default)]
struct Totals {
    n_tokens: u64,
    n_same: u64,
    kl_sum: f64,
    kl_worst: f64,
    layers: Vec<Difference>,
    features: Difference,
}

impl Totals {
    /// Fails with the difference if the two are not comparable.
    fn add(&mut self, reference: &Trace, model: &Trace) -> std::result::Result<(), &'static str> {
        if reference.forced.items != model.forced.items {
            return Err("they tokenize a prompt differently");
        }
        let width = |trace: &Trace| trace.layers.iter().map(Vec::len).collect::<Vec<_>>();
        if reference.forced.logits.len() != model.forced.logits.len() || width(reference) != width(model) {
            return Err("their layers or vocabularies differ");
        }
        if reference.features.len() != model.features.len() {
            return Err("their image features differ in size");
        }
        self.features.add(&reference.features, &model.features);
        self.layers.resize(reference.layers.len(), Difference::default());
        for (total, (reference, found)) in self.layers.iter_mut().zip(reference.layers.iter().zip(&model.layers)) {
            total.add(reference, found);
        }
        let vocab_size = reference.known.len();
        let rows = reference.forced.logits.chunks_exact(vocab_size).zip(model.forced.logits.chunks_exact(vocab_size));
        for (expected, found) in rows {
            let (expected, found) = (known(expected, &reference.known), known(found, &reference.known));
            let kl = kl_divergence(&expected, &found);
            self.n_tokens += 1;
            self.n_same += (best(&expected) == best(&found)) as u64;
            self.kl_sum += kl;
            self.kl_worst = self.kl_worst.max(kl);
        }
        Ok(())
    }
}

fn known(logits: &[f32], known: &[bool]) -> Vec<f64> {
    logits.iter().zip(known).filter(|(_, known)| **known).map(|(&logit, _)| logit as f64).collect()
}

fn best(logits: &[f64]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

/// sum p log(p / q) of the distributions given by two rows of logits, in nats.
fn kl_divergence(p: &[f64], q: &[f64]) -> f64 {
    let log_sum = |logits: &[f64]| {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        max + logits.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln()
    };
    let (p_sum, q_sum) = (log_sum(p), log_sum(q));
    let log = p.iter().map(|p| p - p_sum).zip(q.iter().map(|q| q - q_sum));
    let divergence: f64 = log.map(|(p, q)| p.exp() * (p - q)).sum();
    // Negative only by rounding.
    divergence.max(0.0)
}

/// Four significant digits: the measurement is not more precise than that.
fn rounded(x: f64) -> f64 {
    format!("{x:.3e}").parse().unwrap_or(x)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Fidelity { reference, n_prompts, n_images, n_tokens, kl_divergence, top1_agreement, .. } = &self.fidelity;
        writeln!(
            f,
            "{} compared with {reference}: {n_prompts} prompts, {n_images} pictures, {n_tokens} tokens",
            self.model
        )?;
        let mut line = |label: &str, text: String| writeln!(f, "  {label:<22} {text}");
        line("most likely next token", format!("the same for {:.1} %", 100.0 * top1_agreement))?;
        let worst = self.worst_kl_divergence;
        line("KL divergence", format!("{kl_divergence:.4} nats per token, {worst:.3} for the worst"))?;
        match self.fidelity.encoder_error {
            Some(error) => line("image features", format!("relative error {:.2} %", 100.0 * error))?,
            None => line("image features", "not measured: no picture was shown".into())?,
        }
        for (layer, error) in self.fidelity.layer_errors.iter().enumerate() {
            line(&format!("after layer {}", layer + 1), format!("relative error {:.2} %", 100.0 * error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_definition() {
        let (p, q): ([f64; 2], [f64; 2]) = ([0.75, 0.25], [0.5, 0.5]);
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        // Logits are defined up to a constant.
        let found = kl_divergence(&p.map(|p| p.ln() + 7.0), &q.map(|q| q.ln() - 3.0));
        assert!((found - expected).abs() < 1e-12);
        assert_eq!(kl_divergence(&[1e4, 0.0], &[1e4, 0.0]), 0.0);
    }
}
