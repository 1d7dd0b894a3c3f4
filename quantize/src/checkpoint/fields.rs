//! A JSON file whose fields are read by path, and errors that name file and field.

use crate::files::folder::read_small;
use crate::files::json;
use llama3med::{Error, Result};
use serde_json::Value;
use std::path::Path;

const MAX_DIM: usize = 1 << 20;

/// A JSON file whose fields are read by path, such as `text_config.hidden_size`.
#[derive(Debug, Clone)]
pub struct Json {
    file: String,
    /// The whole content.
    pub value: Value,
}

impl Json {
    /// Reads an object from a file of at most `max` bytes.
    pub fn read(path: &Path, max: usize) -> Result<Self> {
        let bytes = read_small(path, max)?;
        let file = path.display().to_string();
        let value = json::parse(&file, bytes)?;
        if !value.is_object() {
            return Err(Error::corrupt(&file, "JSON", "expected an object"));
        }
        Ok(Self { file, value })
    }

    /// An error about a field.
    pub fn error(&self, field: &str, problem: String) -> Error {
        Error::corrupt(&self.file, field, problem)
    }

    /// A field; null counts as absent.
    pub fn get(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.value, |value, key| value.get(key)).filter(|value| !value.is_null())
    }

    /// Fills in what a tower's own `config.json` says where this configuration says nothing. Of a whole CLIP model, the
    /// image half is used.
    pub fn complete_vision(&mut self, mut tower: Value) {
        if self.get("vision_config").is_none() {
            self.value["vision_config"] = match tower["vision_config"].take() {
                Value::Null => tower,
                vision => vision,
            };
        }
    }

    pub(super) fn read_as<T>(
        &self,
        path: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(path) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.error(path, format!("expected {expected}, found {}", json::shown(value)))),
        }
    }

    /// A count from 1 to 2^20.
    pub fn count(&self, path: &str) -> Result<Option<usize>> {
        let read = |value: &Value| value.as_u64().map(|n| n as usize).filter(|n| (1..=MAX_DIM).contains(n));
        self.read_as(path, &format!("a whole number from 1 to {MAX_DIM}"), read)
    }

    /// A finite number.
    pub fn number(&self, path: &str) -> Result<Option<f64>> {
        self.read_as(path, "a finite number", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    /// A string.
    pub fn string(&self, path: &str) -> Result<Option<String>> {
        self.read_as(path, "a string", |value| value.as_str().map(String::from))
    }

    /// A boolean.
    pub fn flag(&self, path: &str) -> Result<Option<bool>> {
        self.read_as(path, "true or false", Value::as_bool)
    }

    /// A token id or a list of them.
    pub fn ids(&self, path: &str) -> Result<Vec<u32>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let read = |value: &Value| match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        Ok(self.read_as(path, "a token id or a list of them", read)?.unwrap_or_default())
    }

    pub(super) fn required<T>(&self, path: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(path, "the key is missing".into()))
    }

    pub(super) fn channels(&self, path: &str) -> Result<Option<[f32; 3]>> {
        let read = |value: &Value| {
            let list: Option<Vec<f32>> = value.as_array()?.iter().map(|x| x.as_f64().map(|x| x as f32)).collect();
            <[f32; 3]>::try_from(list?).ok().filter(|list| list.iter().all(|x| x.is_finite()))
        };
        self.read_as(path, "three numbers", read)
    }

    /// Fails unless the field is absent or has one of these values.
    pub fn only(&self, path: &str, allowed: &[&str]) -> Result<()> {
        match self.string(path)? {
            Some(found) if !allowed.contains(&found.as_str()) => {
                Err(self.error(path, format!("expected {}, found {found:?}", allowed.join(" or "))))
            }
            _ => Ok(()),
        }
    }
}
