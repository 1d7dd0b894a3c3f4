//! Files of JSON records, one an item of an array or one a line: read whole, every error with its place.

use crate::model_folder::read_small;
use llama3med::{Error, Result};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;

/// Larger files are refused.
const MAX_BYTES: usize = 1 << 30;

/// What some editors put before the text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One record, and where it stands.
#[derive(Debug, Clone)]
pub struct Record {
    /// File name as the user knows it.
    pub file: String,
    /// "line 3" or "record 3", counted from 1.
    pub place: String,
    /// What it holds.
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

    /// The value of a key that must be there.
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

    /// A text, or a number as text: answers such as 3 come as either.
    pub fn text(&self, key: &str) -> Result<String> {
        let value = self.value(key, "a text or a number")?;
        as_text(value).ok_or_else(|| self.wrong(key, "a text or a number", value))
    }

    /// A text or a whole number that names the record.
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

/// A value as JSON, cut short.
pub fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Reads a file that must hold records.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let (file, bytes) = (path.display().to_string(), read_small(path, MAX_BYTES)?);
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes);
    let records = if bytes.trim_ascii_start().starts_with(b"[") { array(&file, bytes)? } else { lines(&file, bytes)? };
    if records.is_empty() {
        return Err(Error::corrupt(file, "records", "expected a JSON array or one JSON object a line, found none"));
    }
    Ok(records)
}

/// Any JSON value.
pub fn read_value(path: &Path) -> Result<Value> {
    let bytes = read_small(path, MAX_BYTES)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::corrupt(path.display().to_string(), "JSON", error.to_string()))
}

fn array(file: &str, bytes: &[u8]) -> Result<Vec<Record>> {
    let values: Vec<Value> =
        serde_json::from_slice(bytes).map_err(|error| Error::corrupt(file, "JSON", error.to_string()))?;
    (1..).zip(values).map(|(number, value)| record(file, format!("record {number}"), value)).collect()
}

/// One JSON object a line; empty lines are skipped.
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

/// Makes sure that no id comes twice: place and id of each record.
pub fn check_unique<'a>(file: &str, ids: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Result<()> {
    let mut places = HashMap::new();
    for (place, id) in ids {
        if let Some(first) = places.insert(id.to_string(), place) {
            let problem = format!("expected each id once, found {id} again, the id of {first}");
            return Err(Error::corrupt(file, place, problem));
        }
    }
    Ok(())
}
