//! Scores answers made here or elsewhere against the true ones: reads, pairs, scores, reports.

use crate::files::json::shown;
use crate::files::records::{self, Record, as_text};
use crate::measure::metrics::Candidates;
use crate::measure::protocol::{self, Classes, Pair, Protocol, Published};
use crate::measure::questions::{AnswerType, Question, QuestionSet};
use clap::Args;
use llama3med::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

/// Score answers that were made elsewhere.
///
/// ANSWERS has one JSON object per line with question_id and text, as LLaVA-Med's and Llama3-Med's scripts write them.
/// Ids may be numbers or texts; no pictures are needed. Prints what the chosen protocol's own script prints, plus
/// strict scores with 95 % confidence intervals.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:\n  quantize score answers.jsonl --truth data_RAD/test.json\n  \
    quantize score answers.jsonl --truth test.json --candidates candidate.json --protocol llava-med --json")]
pub struct Options {
    /// The answers, one for each question and in the same order; with --protocol medtrinity in any order, and some may
    /// be missing.
    #[arg(value_name = "ANSWERS")]
    pub answers: PathBuf,
    /// The questions with their true answers: LLaVA-Med's test.json, or VQA-RAD, SLAKE or PathVQA as published.
    #[arg(long, value_name = "FILE")]
    pub truth: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub scoring: Scoring,
}

/// How to score.
#[derive(Args, Debug, Clone)]
pub struct Scoring {
    /// The published script to follow.
    #[arg(long, value_enum, default_value = "llama3med")]
    pub protocol: Protocol,
    /// The answers that open accuracy chooses from: a JSON list, or a list under the key "0". Default: all true answers to open questions.
    #[arg(long, value_name = "FILE")]
    pub candidates: Option<PathBuf>,
    /// Print the whole report as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Scores.
pub fn score(options: &Options) -> Result<Report> {
    let truth = QuestionSet::read(&options.truth)?;
    if !truth.has_answers() {
        let problem = "expected true answers, found questions alone; give the file that they were made from";
        return Err(Error::corrupt(truth.file, "records", problem));
    }
    let scorer = Scorer::new(&options.scoring, &truth)?;
    let answers = Answer::list(records::read(&options.answers)?)?;
    let file = options.answers.display().to_string();
    let (pairs, note) = match options.scoring.protocol {
        Protocol::MedTrinity => joined(&truth, &file, &answers)?,
        _ => (in_order(&truth, &file, &answers)?, None),
    };
    let mut report = scorer.report(&pairs);
    report.notes.extend(truth.note.iter().map(|note| format!("{}: {note}", truth.file)).chain(note));
    Ok(report)
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Id of its question.
    pub id: Value,
    /// What the model said.
    pub text: String,
    /// The other fields.
    pub record: Record,
}

impl Answer {
    /// Reads records as answers; no question may occur twice.
    pub fn list(records: Vec<Record>) -> Result<Vec<Self>> {
        let file = records.first().map(|record| record.file.clone()).unwrap_or_default();
        let answer = |record: Record| {
            Ok(Self { id: record.id("question_id")?, text: record.string("text")?.to_owned(), record })
        };
        let answers: Vec<Self> = records.into_iter().map(answer).collect::<Result<_>>()?;
        records::check_unique(&file, answers.iter().map(|answer| (answer.record.place.as_str(), &answer.id)))?;
        Ok(answers)
    }
}

/// A question and its answer; the question's file has true answers.
pub fn pair<'a>(question: &'a Question, answer: &'a str) -> Pair<'a> {
    Pair { question, truth: question.answer.as_deref().unwrap_or_default(), answer }
}

/// Pairs as those scripts do that require the same ids in the same order.
fn in_order<'a>(truth: &'a QuestionSet, file: &str, answers: &'a [Answer]) -> Result<Vec<Pair<'a>>> {
    let differs = |(question, answer): &(&Question, &Answer)| records::key(&question.id) != records::key(&answer.id);
    if let Some((question, answer)) = truth.questions.iter().zip(answers).find(differs) {
        let (expected, found) = (shown(&question.id), shown(&answer.id));
        let problem = format!("question_id: expected {expected}, as {} has it there, found {found}", question.place);
        return Err(answer.record.error(format!("{problem} ({})", truth.file)));
    }
    let (n_questions, n_answers) = (truth.questions.len(), answers.len());
    if n_questions != n_answers {
        let first = match (truth.questions.get(n_answers), answers.get(n_questions)) {
            (Some(question), _) => format!("none for the question {}", shown(&question.id)),
            (_, Some(answer)) => format!("one to {} that is no question", shown(&answer.id)),
            _ => unreachable!("one of them is longer"),
        };
        let problem = format!("expected {n_questions}, one a question of {}, found {n_answers}: {first}", truth.file);
        return Err(Error::corrupt(file, "answers", problem));
    }
    Ok(truth.questions.iter().zip(answers).map(|(question, answer)| pair(question, &answer.text)).collect())
}

/// Pairs those with the same id, and reports how many have none.
fn joined<'a>(truth: &'a QuestionSet, file: &str, answers: &'a [Answer]) -> Result<(Vec<Pair<'a>>, Option<String>)> {
    let by_id: HashMap<String, &Answer> = answers.iter().map(|answer| (records::key(&answer.id), answer)).collect();
    let with_answer = |question: &'a Question| Some((question, by_id.get(&records::key(&question.id))?));
    let found = truth.questions.iter().filter_map(with_answer);
    let pairs: Vec<Pair> = found.map(|(question, answer)| pair(question, &answer.text)).collect();
    if pairs.is_empty() {
        let problem = format!("expected ids of {}, found none of them", truth.file);
        return Err(Error::corrupt(file, "question_id", problem));
    }
    let (n_questions, n_answers) = (truth.questions.len() - pairs.len(), answers.len() - pairs.len());
    let note =
        format!("{n_questions} questions without an answer and {n_answers} answers without a question are left out");
    Ok((pairs, (n_questions + n_answers > 0).then_some(note)))
}

/// What is needed besides the pairs.
pub struct Scorer {
    protocol: Protocol,
    candidates: Option<(Candidates, String)>,
}

impl Scorer {
    /// Reads the candidates, or takes the true answers to open questions; checks whether the protocol can score the
    /// questions.
    pub fn new(scoring: &Scoring, truth: &QuestionSet) -> Result<Self> {
        let protocol = scoring.protocol;
        protocol.check(&truth.file, &truth.questions)?;
        let given = scoring.candidates.as_deref().map(read_candidates).transpose()?;
        if !protocol.wants_candidates() {
            return Ok(Self { protocol, candidates: None });
        }
        let candidates = match (given, &scoring.candidates) {
            (Some(given), Some(path)) => (given, path.display().to_string()),
            _ => {
                let open = truth.questions.iter().filter(|question| question.answer_type == Some(AnswerType::Open));
                let answers = open.filter_map(|question| question.answer.as_deref());
                (Candidates::new(answers), format!("true answers to open questions of {}", truth.file))
            }
        };
        Ok(Self { protocol, candidates: Some(candidates) })
    }

    /// Scores pairs.
    pub fn report(&self, pairs: &[Pair]) -> Report {
        let candidates = self.candidates.as_ref().map(|(candidates, _)| candidates);
        let notes = self.candidates.iter().map(|(candidates, from)| format!("{} candidates: {from}", candidates.len()));
        Report {
            n_questions: pairs.len(),
            protocol: protocol::published(self.protocol, pairs, candidates),
            strict: protocol::strict(pairs),
            breakdown: protocol::breakdown(pairs),
            notes: notes.collect(),
            run: None,
        }
    }
}

fn read_candidates(path: &Path) -> Result<Candidates> {
    parse_candidates(&path.display().to_string(), &records::read_value(path)?)
}

/// Llama3-Med's candidates are a list, LLaVA-Med's a list under the key "0".
pub fn parse_candidates(file: &str, value: &Value) -> Result<Candidates> {
    let expected = "a list of texts, or one under the key \"0\"";
    let wrong = |found: &str| Error::corrupt(file, "candidates", format!("expected {expected}, found {found}"));
    let list = match value {
        Value::Object(fields) => fields.get("0").ok_or_else(|| wrong("an object without the key \"0\""))?,
        other => other,
    };
    let list = list.as_array().ok_or_else(|| wrong(&shown(list)))?;
    let text = |item: &Value| as_text(item).ok_or_else(|| wrong(&format!("{} in it", shown(item))));
    let texts: Vec<String> = list.iter().map(text).collect::<Result<_>>()?;
    if texts.is_empty() {
        return Err(wrong("an empty list"));
    }
    Ok(Candidates::new(texts.iter().map(String::as_str)))
}

/// Everything that is known about a set of answers.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Number of questions with an answer.
    pub n_questions: usize,
    /// What the protocol's script prints.
    pub protocol: Published,
    /// Strict numbers by class of question.
    pub strict: Classes,
    /// Strict numbers by group, value and class.
    pub breakdown: BTreeMap<&'static str, BTreeMap<String, Classes>>,
    /// What to know when comparing numbers.
    pub notes: Vec<String>,
    /// How the answers were made, if they were made here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Value>,
}

/// A group with more values than this is printed only in JSON.
const MAX_PRINTED: usize = 16;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.protocol)?;
        writeln!(f, "strict, in percent with 95 % intervals: closed by the first word (yes, no) or exact, open exact")?;
        let columns = ["n", "accuracy", "", "token F1", "", "recall", "majority"];
        let [n, accuracy, ci, f1, ci_f1, recall, majority] = columns;
        writeln!(f, "  {:26} {n:>6} {accuracy:>8} {ci:14} {f1:>8} {ci_f1:14} {recall:>8} {majority:>8}", "")?;
        for (class, strict) in &self.strict {
            writeln!(f, "  {class:26} {strict}")?;
        }
        for (key, values) in &self.breakdown {
            if values.len() > MAX_PRINTED {
                writeln!(f, "by {key}: {} values, see --json", values.len())?;
                continue;
            }
            writeln!(f, "by {key}")?;
            for (value, classes) in values {
                for (class, strict) in classes.iter().filter(|(class, _)| ["closed", "open"].contains(class)) {
                    writeln!(f, "  {:26} {strict}", format!("{value}, {class}"))?;
                }
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}
