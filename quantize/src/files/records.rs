//! Files of JSON records, as an array or one per line: read whole, every error with its position.

use crate::files::folder::read_small;
use crate::files::json::{self, shown};
use llama3med::{Error, Result};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;

/// Larger files are refused.
const MAX_BYTES: usize = 1 << 30;

/// One record and its position.
#[derive(Debug, Clone)]
pub struct Record {
    /// File name as the user knows it.
    pub file: String,
    /// "line 3" or "record 3", counted from 1.
    pub place: String,
    /// Its content.
    pub fields: Map<String, Value>,
}

impl Record {
    /// An error at this record.
    pub fn error(&self, problem: impl AsRef<str>) -> Error {
        Error::corrupt(&self.file, &self.place, problem.as_ref())
    }

    /// The value of a key, unless it is missing or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// The value of a required key.
    pub fn value(&self, key: &str, expected: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| {
            let found: Vec<&str> = self.fields.keys().take(12).map(String::as_str).collect();
            self.error(format!("{key} is missing: expected {expected}, found the keys {}", found.join(", ")))
        })
    }

    /// An error about a key's value.
    pub fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.error(format!("{key}: expected {expected}, found {}", shown(found)))
    }

    /// A text.
    pub fn string(&self, key: &str) -> Result<&str> {
        let value = self.value(key, "a text")?;
        value.as_str().ok_or_else(|| self.wrong(key, "a text", value))
    }

    /// A text, or a number as text: answers such as 3 come in either form.
    pub fn text(&self, key: &str) -> Result<String> {
        let value = self.value(key, "a text or a number")?;
        as_text(value).ok_or_else(|| self.wrong(key, "a text or a number", value))
    }

    /// A text or a whole number that identifies the record.
    pub fn id(&self, key: &str) -> Result<Value> {
        match self.value(key, "a text or a whole number")? {
            id @ Value::String(_) => Ok(id.clone()),
            id @ Value::Number(number) if number.is_i64() || number.is_u64() => Ok(id.clone()),
            other => Err(self.wrong(key, "a text or a whole number", other)),
        }
    }
}

/// A text or a number as text.
pub fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// An id by which records are found and compared: 0 and "0" are equal.
pub fn key(id: &Value) -> String {
    as_text(id).unwrap_or_else(|| id.to_string())
}

/// Reads a file that must contain records.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let file = path.display().to_string();
    let bytes = json::cleaned(&file, read_small(path, MAX_BYTES)?)?;
    let is_array = bytes.trim_ascii_start().starts_with(b"[");
    let records = if is_array { array(&file, &bytes)? } else { lines(&file, &bytes)? };
    if records.is_empty() {
        return Err(Error::corrupt(file, "records", "expected a JSON array or one JSON object a line, found none"));
    }
    Ok(records)
}

/// Any JSON value.
pub fn read_value(path: &Path) -> Result<Value> {
    json::parse(&path.display().to_string(), read_small(path, MAX_BYTES)?)
}

fn array(file: &str, bytes: &[u8]) -> Result<Vec<Record>> {
    let values: Vec<Value> =
        serde_json::from_slice(bytes).map_err(|error| Error::corrupt(file, "JSON", error.to_string()))?;
    (1..).zip(values).map(|(number, value)| record(file, format!("record {number}"), value)).collect()
}

/// One JSON object per line, after [`json::cleaned`]; empty lines are skipped.
pub fn lines(file: &str, bytes: &[u8]) -> Result<Vec<Record>> {
    let numbered = (1..).zip(bytes.split(|&byte| byte == b'\n'));
    let full = numbered.filter(|(_, line)| !line.trim_ascii().is_empty());
    full.map(|(number, line)| {
        let value = serde_json::from_slice(line).map_err(|error| {
            // serde_json counts lines within the line.
            let problem = error.to_string().replace(" at line 1 column", " at column");
            Error::corrupt(file, format!("line {number}"), format!("expected a JSON object: {problem}"))
        })?;
        record(file, format!("line {number}"), value)
    })
    .collect()
}

fn record(file: &str, place: String, value: Value) -> Result<Record> {
    match value {
        Value::Object(fields) => Ok(Record { file: file.into(), place, fields }),
        other => Err(Error::corrupt(file, place, format!("expected a JSON object, found {}", shown(&other)))),
    }
}

/// Checks that no id occurs twice: position and id of each record.
pub fn check_unique<'a>(file: &str, ids: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Result<()> {
    let mut places = HashMap::new();
    for (place, id) in ids {
        if let Some(first) = places.insert(key(id), place) {
            let problem = format!("expected each id once, found {id} again, the id of {first}");
            return Err(Error::corrupt(file, place, problem));
        }
    }
    Ok(())
}
