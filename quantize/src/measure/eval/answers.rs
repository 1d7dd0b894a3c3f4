//! The file of answers: written line by line as they come, resumed after an interruption, sorted at the end.

use super::plan::{Asked, Plan};
use crate::files::disk::{flush_folder, write_whole};
use crate::files::folder::{failed, read_small};
use crate::files::json::{self, shown};
use crate::files::records::{self, Record, key};
use crate::measure::questions::QuestionSet;
use crate::measure::score;
use llama3med::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Larger files are refused.
const MAX_BYTES: usize = 1 << 30;

/// The start of every line written here.
const START: &[u8] = b"{\"question_id\":";

/// A known answer.
pub struct Kept {
    /// What the model said.
    pub text: String,
    /// Whether the model ended the answer itself.
    pub is_whole: bool,
    line: String,
}

/// All known answers, and the file in which they are saved.
pub struct Answers {
    model_id: String,
    file: Option<(PathBuf, File)>,
    by_id: HashMap<String, Kept>,
    /// Ids in the order of the file.
    order: Vec<String>,
}

/// The format that LLaVA-Med's and Llama3-Med's scripts write.
#[derive(Serialize)]
struct Line<'a> {
    question_id: &'a Value,
    prompt: &'a str,
    text: &'a str,
    answer_id: String,
    model_id: &'a str,
    metadata: Map<String, Value>,
}

impl Answers {
    /// Reads the answers already in `path`, which must have been made in the same way, and prepares to append to them.
    pub fn open(path: Option<&Path>, plan: &Plan, set: &QuestionSet) -> Result<Self> {
        let model_id = plan.model_id.clone();
        let mut answers = Self { model_id, file: None, by_id: HashMap::new(), order: Vec::new() };
        let Some(path) = path else { return Ok(answers) };
        let name = path.display().to_string();
        let bytes = if path.exists() { read_small(path, MAX_BYTES)? } else { Vec::new() };
        if json::is_utf16(&bytes) {
            let problem = "it is UTF-16, and answers are added in UTF-8: save it as UTF-8, or choose another -o";
            return Err(Error::corrupt(name, "text", problem));
        }
        let whole = whole_lines(&bytes);
        answers.read(&name, &json::cleaned(&name, whole.to_vec())?, plan, set)?;
        let repair = |mut file: File| {
            if whole.len() < bytes.len() {
                eprintln!("{}: the last line is torn; its question is asked again", path.display());
                file.set_len(whole.len() as u64)?;
            } else if !whole.is_empty() && !whole.ends_with(b"\n") {
                file.write_all(b"\n")?;
            }
            Ok(file)
        };
        let file = OpenOptions::new().create(true).append(true).open(path).and_then(repair);
        answers.file = Some((path.into(), file.map_err(|error| failed(path, "write", error))?));
        Ok(answers)
    }

    fn read(&mut self, file: &str, bytes: &[u8], plan: &Plan, set: &QuestionSet) -> Result<()> {
        let by_id: HashMap<String, &Asked> = plan.all.iter().map(|asked| (key(&asked.id), asked)).collect();
        let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        for (answer, line) in score::Answer::list(records::lines(file, bytes)?)?.into_iter().zip(lines) {
            let id = key(&answer.id);
            let asked = by_id.get(&id).ok_or_else(|| {
                let problem = format!("question_id: expected an id of {}, found {}", set.file, shown(&answer.id));
                answer.record.error(problem)
            })?;
            let is_whole = self.check(&answer.record, asked)?;
            let line = String::from_utf8_lossy(line.trim_ascii()).into_owned();
            self.order.push(id.clone());
            self.by_id.insert(id, Kept { text: answer.text, is_whole, line });
        }
        Ok(())
    }

    /// Answers of another model or with other settings are not mixed with those of this run.
    fn check(&self, record: &Record, asked: &Asked) -> Result<bool> {
        let differs = |name: &str, expected: &Value, found: Option<&Value>| {
            let found = found.map_or("nothing".into(), shown);
            record.error(format!(
                "{name}: expected {}, as in this run, found {found}; choose another -o",
                shown(expected)
            ))
        };
        for (name, expected) in [("model_id", &self.model_id), ("prompt", &asked.prompt)] {
            let expected = Value::from(expected.as_str());
            if record.get(name) != Some(&expected) {
                return Err(differs(name, &expected, record.get(name)));
            }
        }
        let metadata = record.get("metadata").and_then(Value::as_object);
        for (name, expected) in &asked.metadata {
            let found = metadata.and_then(|metadata| metadata.get(name));
            if found != Some(expected) {
                return Err(differs(name, expected, found));
            }
        }
        Ok(metadata.and_then(|metadata| metadata.get("finish")) == Some(&Value::from("stop")))
    }

    /// The answer to a question, if known.
    pub fn get(&self, asked: &Asked) -> Option<&Kept> {
        self.by_id.get(&key(&asked.id))
    }

    /// Saves an answer.
    pub fn push(&mut self, asked: &Asked, text: &str, is_whole: bool) -> Result<()> {
        let hash = Sha256::digest(format!("{}\n{}\n{}\n{text}", self.model_id, asked.id, asked.prompt));
        let mut metadata = asked.metadata.clone();
        metadata.insert("finish".into(), if is_whole { "stop" } else { "length" }.into());
        let line = Line {
            question_id: &asked.id,
            prompt: &asked.prompt,
            text,
            answer_id: hash[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
            model_id: &self.model_id,
            metadata,
        };
        let line = serde_json::to_string(&line).expect("an answer is plain data");
        if let Some((path, file)) = &mut self.file {
            // In one write, so that only a crash of the machine can leave part of a line.
            file.write_all(format!("{line}\n").as_bytes()).map_err(|error| failed(path, "write", error))?;
        }
        let id = key(&asked.id);
        self.order.push(id.clone());
        self.by_id.insert(id, Kept { text: text.into(), is_whole, line });
        Ok(())
    }

    /// Sorts the file's lines into the order of the questions, which scripts expect.
    pub fn put_in_order(&mut self, plan: &Plan) -> Result<()> {
        let Some((path, _)) = self.file.take() else { return Ok(()) };
        let known = plan.all.iter().map(|asked| key(&asked.id)).filter(|id| self.by_id.contains_key(id));
        let order: Vec<String> = known.collect();
        if order == self.order {
            return Ok(());
        }
        let lines: String = order.iter().map(|id| format!("{}\n", self.by_id[id].line)).collect();
        write_whole(&path, lines.as_bytes())?;
        flush_folder(&path)
    }
}

/// The file without its last line if that is an incomplete answer. A file of another kind is unchanged, so that an
/// error can name it.
fn whole_lines(bytes: &[u8]) -> &[u8] {
    let (whole, last) = bytes.split_at(bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
    let last = last.strip_prefix(b"\xef\xbb\xbf").unwrap_or(last);
    let is_answer = last.starts_with(START) || START.starts_with(last);
    if is_answer && serde_json::from_slice::<Value>(last).is_err() { whole } else { bytes }
}
