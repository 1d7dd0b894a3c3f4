//! Asks a model one question: the same engine as in the browser, natively.
//!
//! The answer goes to standard output as it is generated; progress and timings go to standard error.

use crate::files::decode;
use crate::files::folder::{Source, failed};
use crate::native::{default_ranks, with_files};
use indicatif::{ProgressBar, ProgressStyle};
use llama3med::device::cpu::Cpu;
use llama3med::device::ranks::{Threads, block_on};
use llama3med::model::sampler::SamplerOptions;
use llama3med::model::session::{Answer, AskOptions, Chat, Finish, Session};
use llama3med::model::{Alternative, Listener, MAX_IMAGES, Stage, Token};
use llama3med::picture::Picture;
use llama3med::text::conversation::{Message, Part, Role, Template};
use llama3med::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What to ask, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The model.
    pub model: Source,
    /// The chat template, if not the model's own.
    pub template: Option<Template>,
    /// Pictures to ask about, in their order before the question.
    pub images: Vec<PathBuf>,
    /// The question.
    pub prompt: String,
    /// Maximum number of tokens in the answer.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Whether to end an answer that only repeats itself.
    pub stop_repetition: bool,
    /// Number of ranks; `None` means one per core, or one alone for a small model.
    pub ranks: Option<usize>,
    /// The largest conversation in tokens; `None` means the engine's default.
    pub context: Option<usize>,
    /// Print the answer as JSON lines, one per token, with its log-probability and that many alternatives.
    pub logprobs: Option<usize>,
    /// File for features, image tokens and logits, for checks.
    pub logits_out: Option<PathBuf>,
}

/// Asks the question; `stop` ends the answer after the next token.
pub fn ask(options: &Options, stop: &AtomicBool) -> Result<Finish> {
    let ask = AskOptions {
        max_tokens: options.max_tokens,
        sampler: options.sampler.clone(),
        stop_repetition: options.stop_repetition,
        alternatives: options.logprobs.unwrap_or(0),
        ..AskOptions::default()
    };
    ask.check()?;
    if options.images.len() > MAX_IMAGES {
        let n_images = options.images.len();
        return Err(Error::Invalid(format!(
            "at most {MAX_IMAGES} pictures can be asked about at once, found {n_images}"
        )));
    }
    let pictures = options.images.iter().map(|path| decode(path)).collect::<Result<Vec<_>>>()?;
    let notes = pictures.iter().flat_map(|picture| &picture.notes);
    notes.for_each(|note| eprintln!("{note}"));
    let (name, files) = options.model.open()?;
    if !pictures.is_empty() && files.encoder.is_none() {
        return Err(Error::NoVision);
    }
    let n_ranks = options.ranks.unwrap_or_else(|| default_ranks(&files));
    let start = Instant::now();
    with_files(files.bytes(), n_ranks, options.template.clone(), options.context, |session| {
        eprintln!("loaded {:?} on {n_ranks} rank(s) in {}", name, seconds(start.elapsed()));
        block_on(run(session, options, &ask, &pictures, stop))
    })
}

async fn run(
    session: &mut Session<Cpu<Threads>>,
    options: &Options,
    ask: &AskOptions,
    pictures: &[Picture],
    stop: &AtomicBool,
) -> Result<Finish> {
    let mut listener = Terminal::new(stop, options);
    let mut chat = Chat::default();
    let (mut image_tokens, mut features) = (Vec::new(), Vec::new());
    for picture in pictures {
        let start = Instant::now();
        let look = session.look(picture, &mut listener).await?;
        listener.end_stage();
        let n_tiles = session.model().vision().map_or(0, |vision| vision.scales.n_tiles());
        eprintln!("encoded {n_tiles} tiles in {}", seconds(start.elapsed()));
        chat.add(Message::new(Role::User, [Part::Image(look.key)]));
        image_tokens.extend(session.image(look.key).await?.unwrap_or_default());
        features.extend(look.features);
    }
    let start = Instant::now();
    let answer = session.ask(&mut chat, &options.prompt, ask, &mut listener).await?;
    if !listener.is_json {
        print("\n");
    }
    report(&listener, &answer, start);
    if let Some(path) = &options.logits_out {
        let dim = session.model().spec().dim;
        store(path, &listener, session.model().spec().vocab_size, (&features, &image_tokens, dim))?;
    }
    Ok(answer.finish)
}

fn report(listener: &Terminal, answer: &Answer, start: Instant) {
    let read = listener.first_token.map_or(start.elapsed(), |first| first - start);
    let rate = |n: usize, time: Duration| n as f64 / time.as_secs_f64().max(1e-9);
    eprintln!("read {} tokens in {} ({:.1}/s)", answer.n_prompt, seconds(read), rate(answer.n_prompt, read));
    // The first token is part of reading; each further one is a step.
    let (n_steps, time) = (listener.ids.len().saturating_sub(1), start.elapsed() - read);
    let end = match answer.finish {
        Finish::Stop => "the model ended its answer",
        Finish::Length => "as long as --max-tokens allows",
        Finish::Context => "the context is full",
        Finish::Repetition => "it only repeated itself; --allow-repetition lets it continue",
        Finish::Cancelled => "stopped",
    };
    eprintln!("answered {} tokens in {} ({:.1}/s): {end}", listener.ids.len(), seconds(time), rate(n_steps, time));
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Shows progress and the answer.
struct Terminal<'a> {
    stop: &'a AtomicBool,
    bar: Option<ProgressBar>,
    ids: Vec<u32>, // (n_steps), including the one that ends the answer
    first_token: Option<Instant>,
    is_json: bool,
    keep_logits: bool,
    logits: Vec<f32>, // (n_steps, vocab_size)
}

impl<'a> Terminal<'a> {
    fn new(stop: &'a AtomicBool, options: &Options) -> Self {
        let (is_json, keep_logits) = (options.logprobs.is_some(), options.logits_out.is_some());
        Self { stop, bar: None, ids: Vec::new(), first_token: None, is_json, keep_logits, logits: Vec::new() }
    }

    fn end_stage(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn go_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

impl Listener for Terminal<'_> {
    async fn progress(&mut self, stage: Stage, done: usize, total: usize) -> bool {
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta} left");
            ProgressBar::new(total as u64).with_style(style.expect("the template is a constant"))
        });
        bar.set_message(match stage {
            Stage::Encoding => "encoding tiles",
            Stage::Reading => "reading tokens",
        });
        bar.set_position(done as u64);
        if done == total {
            self.end_stage();
        }
        self.go_on()
    }

    fn chosen(&mut self, id: u32) {
        self.first_token.get_or_insert_with(Instant::now);
        self.ids.push(id);
    }

    async fn token(&mut self, token: &Token) -> bool {
        let alternative = |other: &Alternative| json!({ "id": other.id, "text": other.text, "logprob": other.logprob });
        let line = || {
            let alternatives: Vec<_> = token.alternatives.iter().map(alternative).collect();
            let (id, text, logprob) = (token.id, &token.text, token.logprob);
            format!("{}\n", json!({ "id": id, "text": text, "logprob": logprob, "alternatives": alternatives }))
        };
        // A closed pipe ends the answer, like Ctrl-C.
        let is_taken = if self.is_json { print(&line()) } else { print(&token.text) };
        is_taken && self.go_on()
    }

    async fn rest(&mut self, text: &str) {
        if self.is_json {
            print(&format!("{}\n", json!({ "text": text })));
        } else {
            print(text);
        }
    }

    fn logits(&mut self, logits: &[f32]) {
        if self.keep_logits {
            self.logits.extend_from_slice(logits);
        }
    }

    fn dropped(&mut self, n_turns: usize) {
        eprintln!("the oldest {n_turns} turn(s) no longer fit into the context");
    }
}

/// Whether standard output accepts it.
fn print(text: &str) -> bool {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|_| stdout.flush()).is_ok()
}

/// Saves the intermediate results. The token that ended the answer counts as a step.
fn store(path: &Path, listener: &Terminal, vocab_size: usize, image: (&[f32], &[f32], usize)) -> Result<()> {
    let (features, image_tokens, dim) = image;
    let n_tokens = image_tokens.len() / dim;
    let ids: Vec<i64> = listener.ids.iter().map(|&id| id as i64).collect();
    let n_steps = listener.logits.len() / vocab_size;
    let n_channels = features.len().checked_div(n_tokens).unwrap_or(0);
    let views = [
        ("features", Dtype::F32, vec![n_tokens, n_channels], bytemuck::cast_slice::<f32, u8>(features)),
        ("image_tokens", Dtype::F32, vec![n_tokens, dim], bytemuck::cast_slice(image_tokens)),
        ("logits", Dtype::F32, vec![n_steps, vocab_size], bytemuck::cast_slice(&listener.logits)),
        ("tokens", Dtype::I64, vec![ids.len()], bytemuck::cast_slice(&ids)),
    ];
    let views = views.into_iter().map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(dtype, shape, bytes)?)));
    let views: std::result::Result<Vec<_>, safetensors::SafeTensorError> = views.collect();
    let stored = views.and_then(|views| serialize_to_file(views, None, path));
    stored.map_err(|error| failed(path, "write", std::io::Error::other(error.to_string())))
}
