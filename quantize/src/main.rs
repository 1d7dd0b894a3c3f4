//! The command-line tool: parses arguments, prints each error on one line.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use llama3med::file::manifest::{CHUNK_SIZE, Manifest};
use llama3med::model::sampler::SamplerOptions;
use llama3med::model::session::Finish;
use llama3med::text::conversation::{TEMPLATES, Template};
use llama3med::{Error, Result};
use quantize::checkpoint::Parts;
use quantize::commands::{ask, inspect};
use quantize::convert::random;
use quantize::convert::types::{Choice, Exception, Types};
use quantize::files::folder::{Files, Source};
use quantize::measure::{calibrate, compare, eval, score};
use quantize::{About, at_least_one};
use serde::Serialize;
use signal_hook::consts::SIGINT;
use signal_hook::flag;
use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The exit status that a shell expects of a program ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Convert vision-language checkpoints into 4-bit model folders for the browser; inspect them, ask them and measure
/// them.
#[derive(Parser)]
#[command(version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Convert(ConvertArgs),
    Inspect(InspectArgs),
    Ask(AskArgs),
    Compare(Box<compare::Options>),
    Eval(Box<eval::Options>),
    Score(score::Options),
    Random(RandomArgs),
}

/// Show what a checkpoint, a GGUF file or a model folder contains.
///
/// Prints family, shapes, scales, tiles, image tokens, number formats, sizes and template, and how much memory each
/// rank needs if the model is split over 1, 2, 4 or 8 of them. Reads only headers. For a checkpoint it describes the
/// files that convert would write without --type.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  quantize inspect models/llama3-med\n  quantize inspect --json checkpoints/llama3-med\n  \
    quantize inspect llava-llama-3-8b-q4_k_m.gguf --encoder llava-llama-3-8b-mmproj-f16.gguf"
)]
struct InspectArgs {
    /// A checkpoint's folder, a GGUF file or a model folder.
    path: PathBuf,
    /// The image encoder (llama.cpp's mmproj) that belongs to a decoder's GGUF file.
    #[arg(long, value_name = "FILE")]
    encoder: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Also check every chunk of a model folder against its hash.
    #[arg(long)]
    verify: bool,
}

/// Ask a model one question, with or without a picture.
///
/// The model is a model folder, or GGUF files from llama.cpp's converters, which need no conversion; name any part of a
/// split file. A decoder without an encoder answers in text and sees no pictures. This is the same engine as in the
/// browser, with one thread per rank. The answer is written to standard output as it is generated, progress and timings
/// to standard error. Ctrl-C stops the answer; pressed again, it ends the program.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  quantize ask models/demo --image film.png --prompt \"Is the heart enlarged?\"\n  \
    quantize ask models/demo --prompt \"What is a meniscus?\" --temperature 0.7 --top-p 0.9 --seed 1\n  \
    quantize ask --decoder llava-q4_k_m.gguf --encoder llava-mmproj-f16.gguf --image film.png --prompt \"What is this?\"\n  \
    quantize ask --decoder llama-3-8b-instruct-q4_k_m.gguf --prompt \"What is a meniscus?\""
)]
struct AskArgs {
    /// The model folder.
    #[arg(required_unless_present = "decoder")]
    model: Option<PathBuf>,
    /// The language model as a GGUF file, instead of a model folder.
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    decoder: Option<PathBuf>,
    /// The image encoder with its connector (llama.cpp's mmproj) that belongs to it, if it is to see pictures.
    #[arg(long, value_name = "FILE", requires = "decoder")]
    encoder: Option<PathBuf>,
    /// The chat template, if the file does not specify a known one, or to override it.
    #[arg(long, value_parser = TEMPLATES)]
    template: Option<String>,
    /// A picture: PNG, JPEG, WebP, GIF, BMP or TIFF. May be given several times (up to 4): the pictures come before the
    /// question in this order.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// The question.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// End the answer after N tokens.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_one)]
    max_tokens: usize,
    /// Temperature: 0 always takes the most likely token, 1 draws with the model's own probabilities, higher values are
    /// more random.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the most likely tokens that together have this probability; 1 allows all.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Draw from the N most likely tokens; 0 allows all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
    /// Never draw a token whose probability is less than P times that of the most likely one; 0 allows all.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Make tokens that already occur in the answer less likely; 1 changes nothing, 1.1 is a usual value.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Let an answer continue even if it only repeats itself. Otherwise it ends once one piece has occurred at least
    /// three times in a row and fills at least 96 tokens.
    #[arg(long)]
    allow_repetition: bool,
    /// Seed of the random numbers: the same seed gives the same answer.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Split the model over N ranks, one thread each. Default: the number of cores, or 1 for a small model.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    ranks: Option<usize>,
    /// Tokens available for the conversation: its picture, questions and answers. Default: 4096, or less if the model
    /// was trained for less.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    context: Option<usize>,
    /// Print the answer as JSON lines, one per token: id, text, logprob (natural logarithm of its probability), and the
    /// N most likely tokens at its place.
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,
    /// Save intermediate results (features, image_tokens, logits, tokens) as a safetensors file, to compare with other
    /// programs.
    #[arg(long, value_name = "FILE")]
    logits_out: Option<PathBuf>,
}

/// Convert a checkpoint into a model folder.
///
/// CHECKPOINT is a folder with config.json, a tokenizer (tokenizer.json or tokenizer.model) and weights: safetensors or
/// PyTorch files (pytorch_model.bin, checkpoint.pth; no code in them is ever run), in one file, in shards with an
/// index, or in the subfolders language_model, vision_tower and connector. Llama3-Med, TinyLLaVA, and LLaVA in its
/// original layout (LLaVA-Med v1.5, LLaVA-Tri, LLaVA-1.5) or transformers' layout are recognised, and so is
/// transformers' Llama, Mistral or Qwen2 alone, which sees no pictures. If a part of the model is in another place,
/// name it with --decoder, --encoder or --connector.
///
/// The model folder appears under its name only when it is complete. If the run is interrupted or fails, run the same
/// command again: it continues from the chunks already written (in MODEL.partial).
#[derive(Args)]
#[command(
    after_help = "Examples:\n  quantize convert checkpoints/llama3-med -o models/llama3-med --license llama3\n  \
    quantize convert checkpoints/llama3-med -o models/llama3-med --type q4_0 --encoder-type q8_0\n  \
    quantize convert runs/llama3-med-lora --decoder checkpoints/llama-3-8b --encoder checkpoints/clip-l-336 -o models/llama3-med"
)]
struct ConvertArgs {
    /// The checkpoint's folder.
    checkpoint: PathBuf,
    /// Side lengths in pixels at which the model sees a picture, such as 336,672,1008, if the checkpoint does not
    /// specify them.
    #[arg(long, value_delimiter = ',')]
    scales: Option<Vec<usize>>,
    #[command(flatten)]
    parts: Parts,
    /// Let the unquantized model answer these prompts first, to measure which weights matter most (an importance
    /// matrix): a text file with one prompt per line, or a question set as for eval. Improves q4_0, q4_k and q6_k.
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// A folder of pictures for --calibrate: those of the question set, or any pictures to combine with the prompts in
    /// turn.
    #[arg(long, value_name = "DIR", requires = "calibrate")]
    images: Option<PathBuf>,
    /// Drop the first patch of a single-scale SigLIP tower, as TinyLLaVA's own models were trained.
    #[arg(long)]
    drop_first_patch: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Make a model folder with random weights, for tests and benchmarks.
///
/// The folder has the size and shape of a real model, and a tokenizer; the same seed always gives the same content. Its
/// answers mean nothing.
#[derive(Args)]
#[command(after_help = "Example:\n  quantize random --shape tiny -o dist/models/tiny")]
struct RandomArgs {
    /// The shape of the model.
    #[arg(long, value_parser = random::SHAPES.map(|(name, help)| clap::builder::PossibleValue::new(name).help(help)))]
    shape: String,
    /// Seed of the random weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args)]
struct OutputArgs {
    /// The model folder to write. An existing model there is replaced once the new one is complete; any other folder is
    /// left alone.
    #[arg(short, long, value_name = "MODEL")]
    output: PathBuf,
    /// Number format of the large matrices; q4_k_m mixes q6_k into q4_k as llama.cpp does. A matrix whose rows are not
    /// a whole number of blocks gets the nearest finer format that fits.
    #[arg(long = "type", value_name = "TYPE", default_value_t, value_parser = choices())]
    choice: Choice,
    /// Number format of the large matrices of encoder and connector, if different from --type.
    #[arg(long = "encoder-type", value_name = "TYPE", value_parser = choices())]
    encoder_choice: Option<Choice>,
    /// Give the large matrices whose GGUF names match PATTERN, a regular expression, another format: ffn_down=q8_0,
    /// ^blk\.0\.=f16, ^mm\.=f32. May be given several times; the last match wins.
    #[arg(long = "tensor", value_name = "PATTERN=TYPE")]
    exceptions: Vec<Exception>,
    /// Chunk size in bytes, or with a suffix K, M or G. Default: 24M, which every common static host accepts.
    #[arg(long, value_name = "BYTES", default_value_t = CHUNK_SIZE, hide_default_value = true, value_parser = bytes)]
    chunk_size: u64,
    /// What users are told about the model: a JSON file with name, description, license, notices, suggested_questions
    /// and samples, as in a manifest. Sample paths are relative to the file; the pictures are copied into the model
    /// folder. The options below override it.
    #[arg(long, value_name = "FILE")]
    about: Option<PathBuf>,
    /// Name of the model, as shown to users.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// One sentence about the model.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Licence of the weights, if possible as an SPDX expression.
    #[arg(long, value_name = "TEXT")]
    license: Option<String>,
    /// A notice to show with the model, for example one that its licence requires. May be given several times.
    #[arg(long, value_name = "TEXT")]
    notice: Vec<String>,
    /// A question for the page to suggest. May be given several times.
    #[arg(long, value_name = "TEXT")]
    question: Vec<String>,
}

impl OutputArgs {
    fn types(&self) -> Types {
        Types { decoder: self.choice, encoder: self.encoder_choice, exceptions: self.exceptions.clone() }
    }

    fn about(&self) -> Result<About> {
        let mut about = self.about.as_deref().map_or_else(|| Ok(About::default()), About::read)?;
        let texts = [
            (&mut about.name, &self.name),
            (&mut about.description, &self.description),
            (&mut about.license, &self.license),
        ];
        for (text, flag) in texts {
            if let Some(flag) = flag {
                text.clone_from(flag);
            }
        }
        let lists = [(&mut about.notices, &self.notice), (&mut about.suggested_questions, &self.question)];
        for (list, flags) in lists {
            if !flags.is_empty() {
                list.clone_from(flags);
            }
        }
        Ok(about)
    }
}

fn choices() -> impl TypedValueParser<Value = Choice> {
    PossibleValuesParser::new(Choice::names()).try_map(|name| name.parse())
}

fn bytes(text: &str) -> std::result::Result<u64, String> {
    let (digits, unit) = match text.to_ascii_uppercase().strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (
            digits.to_owned(),
            match text.to_ascii_uppercase().as_bytes()[text.len() - 1] {
                b'K' => 1 << 10,
                b'M' => 1 << 20,
                _ => 1 << 30,
            },
        ),
        None => (text.to_owned(), 1),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number, such as 24M".to_owned())?;
    number.checked_mul(unit).filter(|n| (1..=1 << 30).contains(n)).ok_or_else(|| "expected 1 byte to 1G".to_owned())
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Convert(args) => make_converted(args),
        Command::Inspect(args) => show(&args),
        Command::Ask(args) => answer(args),
        Command::Compare(args) => beside(&args),
        Command::Eval(args) => evaluate(&args),
        Command::Score(args) => score::score(&args).map(|report| print(&report, args.scoring.json)),
        Command::Random(args) => make_random(args),
    };
    match result {
        Ok(code) => code,
        Err(Error::Cancelled) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("quantize: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(args: &InspectArgs) -> Result<ExitCode> {
    let report = match &args.encoder {
        Some(encoder) => inspect::inspect_pair(&args.path, encoder)?,
        None => inspect::inspect(&args.path, args.verify)?,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).expect("a report is plain data"));
    } else {
        print!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}

/// A flag that the first Ctrl-C sets; the second ends the program.
fn watch_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    // The order matters: the first Ctrl-C finds the flag unset and sets it, the second finds it set.
    flag::register_conditional_shutdown(SIGINT, INTERRUPTED as i32, stop.clone())
        .and_then(|_| flag::register(SIGINT, stop.clone()))
        .map_err(|error| Error::Invalid(format!("cannot handle Ctrl-C: {error}")))?;
    Ok(stop)
}

fn beside(options: &compare::Options) -> Result<ExitCode> {
    let report = compare::compare(options, &*watch_ctrl_c()?)?;
    Ok(print(&report, options.json))
}

fn evaluate(options: &eval::Options) -> Result<ExitCode> {
    let report = eval::eval(options, &*watch_ctrl_c()?)?;
    Ok(report.map_or(ExitCode::SUCCESS, |report| print(&report, options.scoring.json)))
}

fn print(report: &(impl Serialize + Display), as_json: bool) -> ExitCode {
    let json = || serde_json::to_string_pretty(report).expect("a report is plain data") + "\n";
    let text = if as_json { json() } else { report.to_string() };
    // A reader that stops early, such as `head`, is not an error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn answer(args: AskArgs) -> Result<ExitCode> {
    let stop = watch_ctrl_c()?;
    let options = ask::Options {
        model: match args.decoder {
            Some(decoder) => Source::Files(Files { decoder, encoder: args.encoder }),
            None => Source::Folder(args.model.unwrap_or_default()),
        },
        template: args.template.as_deref().map(Template::named).transpose()?,
        images: args.image,
        prompt: args.prompt,
        max_tokens: args.max_tokens,
        sampler: SamplerOptions {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
            seed: args.seed,
        },
        stop_repetition: !args.allow_repetition,
        ranks: args.ranks,
        context: args.context,
        logprobs: args.logprobs,
        logits_out: args.logits_out,
    };
    match ask::ask(&options, &stop)? {
        Finish::Cancelled => Ok(ExitCode::from(INTERRUPTED)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn make_converted(args: ConvertArgs) -> Result<ExitCode> {
    let manifest = quantize::convert(&quantize::Options {
        checkpoint: args.checkpoint,
        parts: args.parts,
        calibration: args.calibrate.map(|prompts| calibrate::Options { prompts, images: args.images }),
        types: args.output.types(),
        chunk_size: args.output.chunk_size,
        scales: args.scales,
        drop_first_patch: args.drop_first_patch,
        about: args.output.about()?,
        output: args.output.output.clone(),
    })?;
    report(&args.output, &manifest);
    Ok(ExitCode::SUCCESS)
}

fn make_random(args: RandomArgs) -> Result<ExitCode> {
    let manifest = random::random(&random::Options {
        shape: args.shape,
        types: args.output.types(),
        chunk_size: args.output.chunk_size,
        seed: args.seed,
        about: args.output.about()?,
        output: args.output.output.clone(),
    })?;
    report(&args.output, &manifest);
    Ok(ExitCode::SUCCESS)
}

fn report(args: &OutputArgs, manifest: &Manifest) {
    let n_chunks: usize = manifest.files.iter().map(|file| file.chunks.len()).sum();
    let megabytes = manifest.n_bytes() as f64 / 1e6;
    println!("{}: {:?}, {megabytes:.1} MB in {n_chunks} chunks", args.output.display(), manifest.name);
}
