//! A model's answers to a question set: asked picture by picture, saved as they come, scored at the end.
//!
//! `plan` decides what is asked about which picture, `answers` saves what was answered, `score` reports. Questions
//! about one picture follow each other, so that it is encoded only once.

mod answers;
mod plan;

use crate::files::folder::open_folder;
use crate::measure::questions::QuestionSet;
use crate::measure::score::{Report, Scorer, Scoring, pair};
use crate::native::default_ranks;
use crate::native::with_session;
use answers::Answers;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use llama3med::device::cpu::Cpu;
use llama3med::device::ranks::{Threads, block_on};
use llama3med::file::manifest::Manifest;
use llama3med::model::sampler::SamplerOptions;
use llama3med::model::session::{AskOptions, Chat, Finish, Session};
use llama3med::model::{Listener, Stage};
use llama3med::{Error, Result};
use plan::{Asked, Plan};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// What follows each closed question in LLaVA-Med's published answers.
const CLOSED_SUFFIX: &str = "Please choose from the following two options: [yes, no]";

/// Ask a model the questions of a test set and score its answers.
///
/// Reads LLaVA-Med's test.json, Llama3-Med's questions file (with --truth), and VQA-RAD, SLAKE and PathVQA as
/// published. Prints what the chosen protocol's own script prints, plus strict scores with 95 % confidence intervals.
///
/// Ctrl-C ends the run after the current question; the same command then continues with the questions that the file
/// given by -o does not answer yet. Questions whose picture cannot be read are left out and counted. An answer that
/// repeats itself continues to --max-tokens, as in the published scripts.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Examples:\n  quantize eval models/demo --questions test.json --images images -o answers.jsonl\n  \
    quantize eval models/demo --questions test.json --images images --blank -o blank.jsonl\n  \
    quantize eval models/demo --questions VQA_RAD.json --images VQA_RAD_images --closed-suffix -o answers.jsonl"
)]
pub struct Options {
    /// The model folder.
    pub model: PathBuf,
    /// The file of questions.
    #[arg(long, value_name = "FILE")]
    pub questions: PathBuf,
    /// The folder with their pictures.
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// A file with the true answers under the same ids, if the questions lack them.
    #[arg(long, value_name = "FILE")]
    pub truth: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub scoring: Scoring,
    /// Ask the first N questions only.
    #[arg(long, value_name = "N", value_parser = crate::at_least_one)]
    pub limit: Option<usize>,
    /// Save the answers in this file, one JSON object per line. Questions already answered in it are not asked again.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Put TEXT after each closed question. The default TEXT is LLaVA-Med's: "Please choose from the following two
    /// options: [yes, no]".
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true, default_missing_value = CLOSED_SUFFIX)]
    pub closed_suffix: Option<String>,
    /// Control: show a grey picture of the same size instead of each picture.
    #[arg(long)]
    pub blank: bool,
    /// Control: show the picture of another question, the same one in every run.
    #[arg(long, conflicts_with = "blank")]
    pub shuffle: bool,
    /// End each answer after N tokens.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = crate::at_least_one)]
    pub max_tokens: usize,
    /// Temperature: 0 always takes the most likely token, 1 draws with the model's own probabilities, higher values are
    /// more random.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub temperature: f64,
    /// Draw from the most likely tokens that together have this probability; 1 allows all.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f64,
    /// Seed of the random numbers: the same seed gives the same answers.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Split the model over N ranks, one thread each. Default: the number of cores, or 1 for a small model.
    #[arg(long, value_name = "N", value_parser = crate::at_least_one)]
    pub ranks: Option<usize>,
    /// Room for a question with its picture and answer, in tokens. Default: 4096, or less if the model was trained for less.
    #[arg(long, value_name = "N", value_parser = crate::at_least_one)]
    pub context: Option<usize>,
}

impl Options {
    fn sampler(&self) -> SamplerOptions {
        let (temperature, top_p) = (self.temperature as f32, self.top_p as f32);
        SamplerOptions { temperature, top_p, seed: self.seed, ..SamplerOptions::default() }
    }
}

/// Asks and scores; no report if there are no true answers. `stop` ends the run after the current question with
/// [`Error::Cancelled`].
pub fn eval(options: &Options, stop: &AtomicBool) -> Result<Option<Report>> {
    options.sampler().check()?;
    let mut set = QuestionSet::read(&options.questions)?;
    if let Some(truth) = &options.truth {
        set.add_truth(&QuestionSet::read(truth)?)?;
    }
    let scorer = if set.has_answers() { Some(Scorer::new(&options.scoring, &set)?) } else { None };
    if scorer.is_none() && options.output.is_none() {
        let problem = "expected true answers, found questions alone: give --truth to score, or -o to save the answers";
        return Err(Error::corrupt(set.file, "records", problem));
    }
    let (manifest, files) = open_folder(&options.model)?;
    let plan = Plan::new(options, &set, &model_id(&manifest))?;
    let mut answers = Answers::open(options.output.as_deref(), &plan, &set)?;
    let todo: Vec<&Asked> = plan.in_order_of_work().filter(|asked| answers.get(asked).is_none()).collect();
    let mut unreadable = Unreadable::default();
    let n_ranks = options.ranks.unwrap_or_else(|| default_ranks(&files));
    if !todo.is_empty() {
        let n_kept = plan.n_asked - todo.len();
        let n_missing = todo.iter().filter(|asked| asked.image.is_err()).count();
        let missing =
            if n_missing > 0 { format!(", {n_missing} of them without their picture") } else { String::new() };
        eprintln!("{} questions to ask{missing}, {n_kept} answered earlier; {n_ranks} rank(s)", todo.len());
        let asked = with_session(&options.model, n_ranks, options.context, |session| {
            block_on(ask_all(session, options, &todo, &mut answers, &mut unreadable, stop))
        });
        if matches!(asked, Err(Error::Cancelled)) {
            stopped(options, &plan, &answers);
        }
        asked?;
    }
    answers.put_in_order(&plan)?;
    let with_question = plan.asked().iter().zip(&set.questions);
    let answered: Vec<_> =
        with_question.filter_map(|(asked, question)| Some((question, answers.get(asked)?))).collect();
    if let (Some(error), true) = (&unreadable.first, answered.is_empty()) {
        return Err(error.clone());
    }
    let Some(scorer) = scorer else {
        unreadable.note().iter().for_each(|note| eprintln!("{note}"));
        eprintln!("{} answers are saved; without true answers nothing is scored", answered.len());
        return Ok(None);
    };
    let pairs: Vec<_> = answered.iter().map(|(question, answer)| pair(question, &answer.text)).collect();
    let mut report = scorer.report(&pairs);
    let n_cut = answered.iter().filter(|(_, answer)| !answer.is_whole).count();
    report.notes.extend(notes(options, &set, n_cut));
    report.notes.extend(unreadable.note());
    report.run = Some(json!({
        "model": plan.model_id, "questions": set.file, "format": set.format, "n_asked": answered.len(),
        "n_unreadable_pictures": unreadable.n_pictures, "n_unasked": unreadable.n_questions, "n_cut": n_cut,
        "control": plan.control, "closed_suffix": options.closed_suffix, "max_tokens": options.max_tokens,
        "temperature": options.temperature, "top_p": options.top_p, "seed": options.seed,
    }));
    Ok(Some(report))
}

/// The model's name, and which weights these are.
fn model_id(manifest: &Manifest) -> String {
    let mut hash = Sha256::new();
    manifest.files.iter().flat_map(|file| &file.chunks).for_each(|chunk| hash.update(&chunk.sha256));
    let hash: String = hash.finalize()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {hash}", manifest.name)
}

fn stopped(options: &Options, plan: &Plan, answers: &Answers) {
    let n_answered = plan.asked().iter().filter(|asked| answers.get(asked).is_some()).count();
    let then = match &options.output {
        Some(path) => format!("in {}; the same command goes on", path.display()),
        None => "not saved, because -o was not given".into(),
    };
    eprintln!("stopped: {n_answered} of {} answers are {then}", plan.n_asked);
}

fn notes(options: &Options, set: &QuestionSet, n_cut: usize) -> Vec<String> {
    let mut notes = vec![match &options.closed_suffix {
        Some(suffix) => format!("closed questions were asked with {suffix:?} after them"),
        None => "closed questions were asked as they stand".into(),
    }];
    notes.extend(set.note.iter().map(|note| format!("{}: {note}", set.file)));
    match (options.blank, options.shuffle) {
        (true, _) => notes.push("control run: the model saw grey pictures".into()),
        (_, true) => notes.push("control run: the model saw pictures of other questions".into()),
        _ => {}
    }
    if let Some(limit) = options.limit.filter(|&limit| limit < set.questions.len()) {
        notes.push(format!("the first {limit} of {} questions", set.questions.len()));
    }
    if n_cut > 0 {
        notes.push(format!("{n_cut} answers were cut at {} tokens or by the context", options.max_tokens));
    }
    notes
}

/// Pictures that could not be read. Their questions are neither asked nor scored; the others are.
#[derive(Default)]
struct Unreadable {
    n_pictures: usize,
    n_questions: usize,
    first: Option<Error>,
}

impl Unreadable {
    fn note(&self) -> Option<String> {
        let first = self.first.as_ref()?;
        let (n_pictures, n_questions) = (self.n_pictures, self.n_questions);
        Some(format!(
            "{n_pictures} pictures could not be read, {n_questions} questions about them are left out: {first}"
        ))
    }
}

async fn ask_all(
    session: &mut Session<Cpu<Threads>>,
    options: &Options,
    todo: &[&Asked],
    answers: &mut Answers,
    unreadable: &mut Unreadable,
    stop: &AtomicBool,
) -> Result<()> {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta} left");
    let bar = ProgressBar::new(todo.len() as u64).with_style(style.expect("the template is a constant"));
    // Like the published scripts, which let a model repeat itself.
    let (max_tokens, sampler) = (options.max_tokens, options.sampler());
    let ask = AskOptions { max_tokens, sampler, stop_repetition: false, ..AskOptions::default() };
    let mut listener = Patient { stop };
    for group in todo.chunk_by(|a, b| a.image_idx == b.image_idx) {
        let picture = match group[0].picture(options.blank) {
            Ok(picture) => picture,
            Err(error) => {
                bar.suspend(|| eprintln!("{error}; {} questions about it are left out", group.len()));
                bar.inc(group.len() as u64);
                unreadable.n_pictures += 1;
                unreadable.n_questions += group.len();
                unreadable.first.get_or_insert(error);
                continue;
            }
        };
        bar.set_message("encoding");
        let look = session.look(&picture, &mut listener).await?;
        bar.set_message("answering");
        for asked in group {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let mut chat = Chat::about(look.key);
            let answer = session.ask(&mut chat, &asked.prompt, &ask, &mut listener).await;
            let answer = answer.map_err(|error| asked.located(error))?;
            answers.push(asked, &answer.text, answer.finish == Finish::Stop)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Lets an answer finish, and abandons a picture immediately.
struct Patient<'a> {
    stop: &'a AtomicBool,
}

impl Listener for Patient<'_> {
    async fn progress(&mut self, stage: Stage, _: usize, _: usize) -> bool {
        stage == Stage::Reading || !self.stop.load(Ordering::Relaxed)
    }
}
