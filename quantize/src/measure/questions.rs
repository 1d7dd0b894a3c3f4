//! Question sets: LLaVA-Med's and Llama3-Med's files, and VQA-RAD, SLAKE and PathVQA as published.
//!
//! The first record determines the format; records come as a JSON array or one per line.

use crate::files::json::shown;
use crate::files::records::{self, Record, as_text};
use llama3med::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Keys by which results are grouped, if the records have them.
pub const GROUPS: [&str; 4] = ["scale", "kind", "question_type", "finding"];

/// One question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its position in its file.
    pub place: String,
    /// A text or a whole number.
    pub id: Value,
    /// Path of its picture in the folder of pictures, as given in the record: needed for asking, not for scoring.
    pub image: Value,
    /// The question itself, without `<image>`.
    pub text: String,
    /// The true answer, if the file has it.
    pub answer: Option<String>,
    /// How its answer is scored.
    pub answer_type: Option<AnswerType>,
    /// Values of those [`GROUPS`] that the record has.
    pub groups: BTreeMap<&'static str, String>,
}

/// As LLaVA-Med's scripts distinguish them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerType {
    /// "OPEN".
    Open,
    /// "CLOSED".
    Closed,
    /// "other", "number": open for the PathVQA script, skipped by the others.
    Other,
    /// "yes/no": closed for the PathVQA script, skipped by the others.
    YesNo,
}

/// A file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Format {
    /// `test.json` of LLaVA-Med, `test_llava.json` of Llama3-Med.
    #[serde(rename = "LLaVA")]
    Llava,
    /// The questions file that Llama3-Med's model_vqa.py reads: no answers.
    #[serde(rename = "questions")]
    Questions,
    /// VQA-RAD's own file.
    #[serde(rename = "VQA-RAD")]
    VqaRad,
    /// SLAKE's own file.
    #[serde(rename = "SLAKE")]
    Slake,
    /// PathVQA's records.
    #[serde(rename = "PathVQA")]
    PathVqa,
}

/// A file of questions.
#[derive(Debug, Clone)]
pub struct QuestionSet {
    /// File name as the user knows it.
    pub file: String,
    /// Its format.
    pub format: Format,
    /// In file order.
    pub questions: Vec<Question>,
    /// What was left out, and why.
    pub note: Option<String>,
}

impl QuestionSet {
    /// Reads a file of any format.
    pub fn read(path: &Path) -> Result<Self> {
        let records = records::read(path)?;
        let format = Format::of(&records[0])?;
        let n_records = records.len();
        let (kept, which) = format.select(records);
        let note = (kept.len() < n_records).then(|| format!("{} of {n_records} records: {which}", kept.len()));
        let file = path.display().to_string();
        if kept.is_empty() {
            return Err(Error::corrupt(file, "records", format!("expected some with {which}, found none")));
        }
        let numbered = kept.iter().enumerate();
        let questions: Vec<Question> =
            numbered.map(|(number, record)| format.question(number, record)).collect::<Result<_>>()?;
        records::check_unique(&file, questions.iter().map(|question| (question.place.as_str(), &question.id)))?;
        Ok(Self { file, format, questions, note })
    }

    /// Takes answers, their types and groups from the questions of `truth` with the same ids.
    pub fn add_truth(&mut self, truth: &QuestionSet) -> Result<()> {
        let by_id: HashMap<String, &Question> =
            truth.questions.iter().map(|question| (records::key(&question.id), question)).collect();
        for question in &mut self.questions {
            let found = by_id.get(&records::key(&question.id)).ok_or_else(|| {
                let problem = format!("expected an id of {}, found {}", truth.file, shown(&question.id));
                Error::corrupt(&self.file, &question.place, problem)
            })?;
            question.answer.clone_from(&found.answer);
            question.answer_type = found.answer_type.or(question.answer_type);
            question.groups.clone_from(&found.groups);
        }
        Ok(())
    }

    /// Path of a question's picture in the folder of pictures.
    pub fn image<'a>(&self, question: &'a Question) -> Result<&'a str> {
        question.image.as_str().ok_or_else(|| {
            let key = self.format.image_key();
            let problem = match &question.image {
                Value::Null => format!("{key} is missing: expected the path of the picture that is asked about"),
                other => format!("{key}: expected a text, found {}", shown(other)),
            };
            Error::corrupt(&self.file, &question.place, problem)
        })
    }

    /// Whether every question has its answer.
    pub fn has_answers(&self) -> bool {
        self.questions.iter().all(|question| question.answer.is_some())
    }
}

impl Format {
    fn of(record: &Record) -> Result<Self> {
        let has = |key: &str| record.fields.contains_key(key);
        match () {
            _ if has("conversations") || has("conversatons") => Ok(Self::Llava),
            _ if has("question_id") && has("text") => Ok(Self::Questions),
            _ if has("img_name") || has("q_lang") => Ok(Self::Slake),
            _ if has("image_name") || has("qid") => Ok(Self::VqaRad),
            _ if has("question") && (has("image") || has("answer")) => Ok(Self::PathVqa),
            _ => {
                let found: Vec<&str> = record.fields.keys().take(12).map(String::as_str).collect();
                Err(record.error(format!(
                    "expected the keys of a known format: conversations (LLaVA), question_id and text (questions), qid \
                    (VQA-RAD), q_lang (SLAKE), or question and answer (PathVQA); found {}",
                    if found.is_empty() { "none".into() } else { found.join(", ") }
                )))
            }
        }
    }

    /// The records to ask, and what they have in common. VQA-RAD has training and test questions in one file.
    fn select(self, records: Vec<Record>) -> (Vec<Record>, &'static str) {
        let begins = |record: &Record, key: &str, start: &str| {
            record.get(key).and_then(Value::as_str).is_some_and(|value| value.starts_with(start))
        };
        match self {
            Self::Slake => {
                let english = records.into_iter().filter(|record| begins(record, "q_lang", "en"));
                (english.collect(), "q_lang en")
            }
            Self::VqaRad if records.iter().any(|record| begins(record, "phrase_type", "test")) => {
                let test = records.into_iter().filter(|record| begins(record, "phrase_type", "test"));
                (test.collect(), "phrase_type test_*")
            }
            _ => (records, "all"),
        }
    }

    /// The key for a record's picture.
    fn image_key(self) -> &'static str {
        match self {
            Self::VqaRad => "image_name",
            Self::Slake => "img_name",
            Self::Llava | Self::Questions | Self::PathVqa => "image",
        }
    }

    fn question(self, number: usize, record: &Record) -> Result<Question> {
        let (mut id, mut answer) = (Value::from(number), None);
        let (text, answer_type) = match self {
            Self::Llava => {
                id = record.id("id")?;
                let turns = conversation(record)?;
                answer = Some(turns[1].clone());
                (turns[0].clone(), given_type(record)?)
            }
            Self::Questions => {
                id = record.id("question_id")?;
                (record.string("text")?.into(), given_type(record)?)
            }
            Self::VqaRad | Self::Slake => {
                id = record.id("qid")?;
                answer = Some(record.text("answer")?);
                record.value("answer_type", "OPEN or CLOSED")?;
                (record.text("question")?, given_type(record)?)
            }
            Self::PathVqa => {
                let found = record.text("answer")?;
                let is_closed = ["yes", "no"].contains(&found.trim().to_lowercase().as_str());
                answer = Some(found);
                let answer_type = if is_closed { AnswerType::Closed } else { AnswerType::Open };
                (record.text("question")?, Some(answer_type))
            }
        };
        let mut groups: BTreeMap<&'static str, String> =
            GROUPS.into_iter().filter_map(|key| Some((key, as_text(record.get(key)?)?))).collect();
        if let (Self::Slake, Some(kind)) = (self, record.get("content_type").and_then(as_text)) {
            groups.insert("question_type", kind);
        }
        let image = record.get(self.image_key()).cloned().unwrap_or_default();
        let text = text.replace("<image>", "").trim().to_owned();
        Ok(Question { place: record.place.clone(), id, image, text, answer, answer_type, groups })
    }
}

/// The values of a LLaVA record's first two turns. Some of LLaVA-Med's files misspell the key, without its third i.
fn conversation(record: &Record) -> Result<[String; 2]> {
    let key = if record.fields.contains_key("conversations") { "conversations" } else { "conversatons" };
    let expected = "a list of a question and an answer, each with a text or a number as value";
    let turns = record.value(key, expected)?;
    let value = |turn: usize| turns.get(turn).and_then(|turn| as_text(turn.get("value")?));
    match (value(0), value(1)) {
        (Some(question), Some(answer)) => Ok([question, answer]),
        _ => Err(record.wrong(key, expected, turns)),
    }
}

fn given_type(record: &Record) -> Result<Option<AnswerType>> {
    let Some(found) = record.get("answer_type") else { return Ok(None) };
    match found.as_str().unwrap_or_default().trim() {
        "OPEN" => Ok(Some(AnswerType::Open)),
        "CLOSED" => Ok(Some(AnswerType::Closed)),
        "other" | "number" => Ok(Some(AnswerType::Other)),
        "yes/no" => Ok(Some(AnswerType::YesNo)),
        _ => Err(record.wrong("answer_type", "OPEN, CLOSED, other, number or yes/no", found)),
    }
}

/// The file of a question's picture. PathVQA names pictures without their extension.
pub fn find_image(folder: &Path, set: &QuestionSet, question: &Question) -> Result<PathBuf> {
    let named = folder.join(set.image(question)?);
    let endings = ["", ".jpg", ".png", ".jpeg"].map(|ending| {
        let mut path = named.clone().into_os_string();
        path.push(ending);
        PathBuf::from(path)
    });
    endings.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let problem = format!("image: expected the file {}, found none", named.display());
        Error::corrupt(&set.file, &question.place, problem)
    })
}
