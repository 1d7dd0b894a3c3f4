//! Scores of whole sets of answers: the numbers that each published script prints, and strict ones with confidence
//! intervals.
//!
//! The scripts follow one definition and differ in what they leave out, as described by [`Protocol`]. Strict numbers
//! are the same for all of them.

use crate::measure::metrics::{self, Candidates};
use crate::measure::questions::{AnswerType, GROUPS, Question};
use clap::ValueEnum;
use llama3med::{Error, Result};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// Whose script is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// Llama3-Med's run_eval.py.
    #[value(name = "llama3med")]
    Llama3Med,
    /// LLaVA-Med's run_eval.py: the same numbers, with candidates under the key "0".
    LlavaMed,
    /// LLaVA-Med's run_eval_pvqa.py: leaves wrong yes/no answers out of its accuracy, which inflates it; no open
    /// accuracy, no BLEU.
    LlavaMedPvqa,
    /// MedTrinity's run_eval_nocandi.py: matches answers by id, does not normalise texts, and counts a closed answer as
    /// right if the true answer occurs in it.
    #[value(name = "medtrinity")]
    MedTrinity,
}

impl Protocol {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama3Med => "llama3med",
            Self::LlavaMed => "llava-med",
            Self::LlavaMedPvqa => "llava-med-pvqa",
            Self::MedTrinity => "medtrinity",
        }
    }

    /// Whether it scores open answers by the nearest of a list of candidates.
    pub fn wants_candidates(self) -> bool {
        matches!(self, Self::Llama3Med | Self::LlavaMed)
    }

    /// Whether it scores a question as open (`Some(false)`) or closed; `None` if it leaves the question out.
    fn is_closed(self, question: &Question) -> Option<bool> {
        match (question.answer_type, self) {
            (Some(AnswerType::Open), _) => Some(false),
            (Some(AnswerType::Closed), _) => Some(true),
            (Some(AnswerType::Other), Self::LlavaMedPvqa) => Some(false),
            (Some(AnswerType::YesNo), Self::LlavaMedPvqa) => Some(true),
            (Some(_), _) => None,
            // The other scripts fail on such a question, see `check`.
            (None, _) => Some(false),
        }
    }

    /// Refuses questions on which the script would fail.
    pub fn check(self, file: &str, questions: &[Question]) -> Result<()> {
        match questions.iter().find(|question| question.answer_type.is_none()) {
            Some(question) if self != Self::MedTrinity => {
                let problem =
                    "answer_type is missing: expected OPEN or CLOSED (only protocol medtrinity treats that as OPEN)";
                Err(Error::corrupt(file, &question.place, problem))
            }
            _ => Ok(()),
        }
    }
}

/// A question with its answer.
pub struct Pair<'a> {
    /// The question.
    pub question: &'a Question,
    /// The true answer.
    pub truth: &'a str,
    /// The model's answer.
    pub answer: &'a str,
}

/// What a script prints, in percent; `None` if it would divide by zero or does not compute the value.
#[derive(Debug, Clone, Serialize)]
pub struct Published {
    /// The protocol's name.
    pub name: &'static str,
    /// Questions scored as open.
    pub n_open: usize,
    /// Questions scored as closed.
    pub n_closed: usize,
    /// Number of closed questions that the accuracy is divided by.
    pub n_closed_counted: usize,
    /// Questions of types that the script ignores.
    pub n_skipped: usize,
    /// Scores by name, in the script's order.
    #[serde(serialize_with = "as_map")]
    pub scores: Vec<(&'static str, Option<f64>)>,
}

fn as_map<S: Serializer>(
    scores: &[(&'static str, Option<f64>)],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(scores.iter().copied())
}

const OVERLAP: [&str; 4] = ["exact match score", "f1 score", "precision", "recall"];
const BLEU: [&str; 4] = ["bleu_score", "bleu_score_1", "bleu_score_2", "bleu_score_3"];
const CLOSED_OVERLAP: [&str; 3] = ["closed f1 score", "closed precision", "closed recall"];

/// Means of several numbers.
struct Means<const N: usize> {
    sums: [f64; N],
    n: usize,
}

impl<const N: usize> Means<N> {
    fn new() -> Self {
        Self { sums: [0.0; N], n: 0 }
    }

    fn add(&mut self, values: [f64; N]) {
        self.sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        self.n += 1;
    }

    fn percent(&self, names: [&'static str; N]) -> impl Iterator<Item = (&'static str, Option<f64>)> {
        names.into_iter().zip(self.sums.map(|sum| (self.n > 0).then(|| 100.0 * sum / self.n as f64)))
    }
}

/// Scores like the protocol's script.
pub fn published(protocol: Protocol, pairs: &[Pair], candidates: Option<&Candidates>) -> Published {
    let (mut overlap, mut bleu, mut open) = (Means::<4>::new(), Means::<4>::new(), Means::<1>::new());
    let (mut closed, mut closed_overlap) = (Means::<1>::new(), Means::<3>::new());
    let (mut n_closed, mut n_skipped) = (0, 0);
    for pair in pairs {
        let clean = |text: &str| match protocol {
            Protocol::MedTrinity => text.to_lowercase(),
            _ => metrics::normalize_word(&text.to_lowercase()),
        };
        let (answer, truth) = (clean(pair.answer), clean(pair.truth));
        let shared = metrics::published_overlap(&answer, &truth);
        match protocol.is_closed(pair.question) {
            Some(false) => {
                let exact = metrics::published_exact_match(&answer, &truth);
                overlap.add([exact, shared.f1, shared.precision, shared.recall]);
                bleu.add(bleu_scores(protocol, &answer, &truth));
                if let Some(candidates) = candidates {
                    open.add([candidates.published_hit(&answer, &truth) as u8 as f64]);
                }
            }
            Some(true) => {
                n_closed += 1;
                closed_overlap.add([shared.f1, shared.precision, shared.recall]);
                let is_hit = match protocol {
                    Protocol::MedTrinity => answer.contains(&truth),
                    _ => metrics::published_closed_hit(&answer, &truth),
                };
                // The PathVQA script drops an answer that contains yes or no but not the truth.
                if is_hit || protocol != Protocol::LlavaMedPvqa || !metrics::says_yes_or_no(&answer) {
                    closed.add([is_hit as u8 as f64]);
                }
            }
            None => n_skipped += 1,
        }
    }
    let mut scores: Vec<_> = overlap.percent(OVERLAP).collect();
    if protocol != Protocol::LlavaMedPvqa {
        scores.extend(bleu.percent(BLEU));
    }
    if protocol.wants_candidates() {
        scores.extend(open.percent(["open accuracy"]));
    }
    scores.extend(closed.percent(["yes/no accuracy"]));
    if protocol == Protocol::MedTrinity {
        scores.extend(closed_overlap.percent(CLOSED_OVERLAP));
    }
    Published { name: protocol.name(), n_open: overlap.n, n_closed, n_closed_counted: closed.n, n_skipped, scores }
}

fn bleu_scores(protocol: Protocol, answer: &str, truth: &str) -> [f64; 4] {
    let (answer, truth) = (metrics::words(answer), metrics::words(truth));
    std::array::from_fn(|order| {
        // MedTrinity's script smooths the single-order scores, but not the first.
        let is_smoothed = protocol == Protocol::MedTrinity && order > 0;
        metrics::bleu(&answer, &truth, &metrics::BLEU_WEIGHTS[order], is_smoothed)
    })
}

/// Strict numbers of some questions, in percent.
#[derive(Debug, Clone, Serialize)]
pub struct Strict {
    /// Number of questions.
    pub n: usize,
    /// Correct answers: by the first word if the truth is yes or no, else exact.
    pub n_right: usize,
    /// Fraction of correct answers.
    pub accuracy: f64,
    /// Wilson's interval of the accuracy.
    pub accuracy_ci95: [f64; 2],
    /// Mean F1 of words.
    pub token_f1: f64,
    /// Its interval by the standard error.
    pub token_f1_ci95: Option<[f64; 2]>,
    /// Mean fraction of the truth's words that occur in the answer.
    pub token_recall: f64,
    /// The most frequent truth.
    pub majority_answer: String,
    /// Accuracy of always giving it.
    pub majority_accuracy: f64,
}

/// Strict numbers by class of question: "closed", its subclasses "closed yes/no" and "closed other", and "open".
pub type Classes = BTreeMap<&'static str, Strict>;

/// Strict numbers of all questions; classes without questions are left out.
pub fn strict(pairs: &[Pair]) -> Classes {
    let mut by_class: BTreeMap<&'static str, Vec<&Pair>> = BTreeMap::new();
    for pair in pairs {
        let is_yes_or_no = metrics::yes_or_no(pair.truth).is_some();
        let is_closed = match pair.question.answer_type {
            Some(AnswerType::Closed | AnswerType::YesNo) => true,
            Some(AnswerType::Open | AnswerType::Other) => false,
            None => is_yes_or_no,
        };
        let classes: &[&'static str] = match (is_closed, is_yes_or_no) {
            (false, _) => &["open"],
            (true, true) => &["closed", "closed yes/no"],
            (true, false) => &["closed", "closed other"],
        };
        classes.iter().for_each(|&class| by_class.entry(class).or_default().push(pair));
    }
    by_class.into_iter().map(|(class, pairs)| (class, strict_of(&pairs, class == "open"))).collect()
}

fn strict_of(pairs: &[&Pair], is_open: bool) -> Strict {
    let is_right = if is_open { metrics::is_exact } else { metrics::is_closed_hit };
    let n = pairs.len();
    let n_right = pairs.iter().filter(|pair| is_right(pair.answer, pair.truth)).count();
    let overlaps: Vec<_> = pairs.iter().map(|pair| metrics::overlap(pair.answer, pair.truth)).collect();
    let f1: Vec<f64> = overlaps.iter().map(|overlap| overlap.f1).collect();
    let mut truths: BTreeMap<String, usize> = BTreeMap::new();
    pairs.iter().for_each(|pair| *truths.entry(metrics::normalize_word(pair.truth)).or_default() += 1);
    // Among equally frequent truths, the alphabetically first.
    let n_majority = truths.values().copied().max().unwrap_or(0);
    let majority = truths.into_iter().find(|(_, n)| *n == n_majority);
    let percent = |value: f64| 100.0 * value / n as f64;
    Strict {
        n,
        n_right,
        accuracy: percent(n_right as f64),
        accuracy_ci95: metrics::wilson(n_right, n).map(|end| 100.0 * end),
        token_f1: percent(f1.iter().sum()),
        token_f1_ci95: metrics::mean_interval(&f1).map(|ends| ends.map(|end| 100.0 * end)),
        token_recall: percent(overlaps.iter().map(|overlap| overlap.recall).sum()),
        majority_answer: majority.map(|(truth, _)| truth).unwrap_or_default(),
        majority_accuracy: percent(n_majority as f64),
    }
}

/// Strict numbers by each value of each of [`GROUPS`] that the records have.
pub fn breakdown(pairs: &[Pair]) -> BTreeMap<&'static str, BTreeMap<String, Classes>> {
    let mut all = BTreeMap::new();
    for key in GROUPS {
        let mut by_value: BTreeMap<String, Vec<Pair>> = BTreeMap::new();
        for &Pair { question, truth, answer } in pairs {
            if let Some(value) = question.groups.get(key) {
                by_value.entry(value.clone()).or_default().push(Pair { question, truth, answer });
            }
        }
        if !by_value.is_empty() {
            all.insert(key, by_value.into_iter().map(|(value, pairs)| (value, strict(&pairs))).collect());
        }
    }
    all
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, n_open, n_closed, n_closed_counted, n_skipped, .. } = self;
        writeln!(f, "protocol {name}: {n_open} open and {n_closed} closed questions, in percent")?;
        for (name, score) in &self.scores {
            let note = match *name {
                "exact match score" => "  distinct words of the truth per word of the answer",
                "recall" => "  \"Open\" in papers: fraction of the truth's words in the answer",
                "open accuracy" => "  the nearest candidate is the truth",
                "yes/no accuracy" => "  \"Closed\" in papers: by substrings",
                _ => "",
            };
            let score = score.map_or("-".into(), |score| format!("{score:.2}"));
            writeln!(f, "  {}", format!("{name:18} {score:>6}{note}").trim_end())?;
        }
        if n_closed_counted < n_closed {
            writeln!(
                f,
                "  yes/no accuracy is over {n_closed_counted} questions: the script drops wrong yes and no answers"
            )?;
        }
        if *n_skipped > 0 {
            writeln!(f, "  {n_skipped} questions of other answer types are left out")?;
        }
        Ok(())
    }
}

impl fmt::Display for Strict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interval =
            |ends: Option<[f64; 2]>| ends.map_or(String::new(), |[low, high]| format!("[{low:.1}, {high:.1}]"));
        let accuracy = interval(Some(self.accuracy_ci95));
        let f1 = interval(self.token_f1_ci95);
        write!(f, "{:>6} {:>8.2} {accuracy:14} {:>8.2} {f1:14}", self.n, self.accuracy, self.token_f1)?;
        let majority: String = self.majority_answer.chars().take(24).collect();
        write!(f, " {:>8.2} {:>8.2} {majority:?}", self.token_recall, self.majority_accuracy)
    }
}
