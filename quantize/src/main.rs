//! The command-line tool: arguments in, one line per error out.

use clap::{Args, Parser, Subcommand, ValueEnum};
use llama3med::gguf::Dtype;
use llama3med::manifest::{CHUNK_SIZE, Manifest};
use quantize::{About, random};
use std::path::PathBuf;
use std::process::ExitCode;

/// Turns Llama3-Med checkpoints into model folders for the browser, looks into them, and runs them.
#[derive(Parser)]
#[command(version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Convert(ConvertArgs),
    Random(RandomArgs),
}

/// Turn a checkpoint into a model folder.
///
/// CHECKPOINT is a folder with config.json, tokenizer.json and safetensors, as Llama3-Med's reference code saves them: one file, shards with an index, or
/// the folders language_model, vision_tower and connector. The model folder appears when it is whole; an interrupted run leaves nothing in its place and
/// can be started again.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  quantize convert checkpoints/llama3-med -o models/llama3-med --license llama3\n  \
    quantize convert checkpoints/llama3-med -o models/llama3-med --type q4_k --encoder-type q8_0"
)]
struct ConvertArgs {
    /// The checkpoint's folder.
    checkpoint: PathBuf,
    /// Sides in pixels at which pictures are seen, such as 336,672,1008, where the checkpoint does not tell.
    #[arg(long, value_delimiter = ',')]
    scales: Option<Vec<usize>>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Make a model folder of random weights, for tests and benchmarks.
///
/// The folder has the size and shape of the real thing, a tokenizer inside, and the same content for the same seed. Its answers mean nothing.
#[derive(Args)]
#[command(after_help = "Example:\n  quantize random --shape tiny -o www/models/demo")]
struct RandomArgs {
    /// What to make.
    #[arg(long, value_parser = random::SHAPES.map(|(name, help)| clap::builder::PossibleValue::new(name).help(help)))]
    shape: String,
    /// Makes another model of the same shape.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args)]
struct OutputArgs {
    /// The model folder to write. An older model there is replaced once the new one is whole.
    #[arg(short, long, value_name = "MODEL")]
    output: PathBuf,
    /// Number format of the large matrices.
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_0")]
    dtype: Type,
    /// Number format of the large matrices of encoder and connector, if another.
    #[arg(long, value_name = "TYPE")]
    encoder_type: Option<Type>,
    /// Bytes of a chunk; K, M and G may follow. The default fits the smallest limit of the common static hosts.
    #[arg(long, value_name = "BYTES", default_value_t = CHUNK_SIZE, value_parser = bytes)]
    chunk_size: u64,
    /// Name shown to people.
    #[arg(long)]
    name: Option<String>,
    /// One sentence on what the model is.
    #[arg(long)]
    description: Option<String>,
    /// Licence of the weights, as an SPDX expression where there is one.
    #[arg(long)]
    license: Option<String>,
    /// A notice that must be shown with the model; may be given several times.
    #[arg(long, value_name = "TEXT")]
    notice: Vec<String>,
    /// A question that the page offers; may be given several times.
    #[arg(long, value_name = "TEXT")]
    question: Vec<String>,
}

impl OutputArgs {
    fn about(&self) -> About {
        About {
            name: self.name.clone().unwrap_or_default(),
            description: self.description.clone().unwrap_or_default(),
            license: self.license.clone().unwrap_or_default(),
            notices: self.notice.clone(),
            questions: self.question.clone(),
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Type {
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_k")]
    Q4K,
    #[value(name = "q8_0")]
    Q8_0,
    F16,
    F32,
}

impl From<Type> for Dtype {
    fn from(value: Type) -> Self {
        match value {
            Type::Q4_0 => Self::Q4_0,
            Type::Q4K => Self::Q4K,
            Type::Q8_0 => Self::Q8_0,
            Type::F16 => Self::F16,
            Type::F32 => Self::F32,
        }
    }
}

fn bytes(text: &str) -> Result<u64, String> {
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
        Command::Random(args) => make_random(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quantize: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make_converted(args: ConvertArgs) -> llama3med::Result<()> {
    let manifest = quantize::convert(&quantize::Options {
        checkpoint: args.checkpoint,
        dtype: args.output.dtype.into(),
        encoder_dtype: args.output.encoder_type.map(Dtype::from),
        chunk_size: args.output.chunk_size,
        scales: args.scales,
        about: args.output.about(),
        output: args.output.output.clone(),
    })?;
    report(&args.output, &manifest);
    Ok(())
}

fn make_random(args: RandomArgs) -> llama3med::Result<()> {
    let manifest = random(&random::Options {
        shape: args.shape,
        dtype: args.output.dtype.into(),
        encoder_dtype: args.output.encoder_type.map(Dtype::from),
        chunk_size: args.output.chunk_size,
        seed: args.seed,
        about: args.output.about(),
        output: args.output.output.clone(),
    })?;
    report(&args.output, &manifest);
    Ok(())
}

fn report(args: &OutputArgs, manifest: &Manifest) {
    let n_chunks: usize = manifest.files.iter().map(|file| file.chunks.len()).sum();
    let megabytes = manifest.n_bytes() as f64 / 1e6;
    println!("{}: {:?}, {megabytes:.1} MB in {n_chunks} chunks", args.output.display(), manifest.name);
}
