//! `manifest.json`: what a model folder holds, chunk by chunk, and how to present it.
//!
//! Read from outside bytes by the page and by the tool, written by the tool. `cat` of a file's chunks gives a standard GGUF file.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The whole manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always "llama3med".
    pub format: String,
    /// Version of this layout: 1.
    pub version: u32,
    /// Name shown to people.
    pub name: String,
    /// One sentence on what the model is, shown under the name ("Random weights: its answers mean nothing").
    #[serde(default)]
    pub description: String,
    /// Licence of the weights (an SPDX expression where there is one).
    #[serde(default)]
    pub license: String,
    /// Notices that must be shown with the model, one a line.
    #[serde(default)]
    pub notices: Vec<String>,
    /// Questions offered to the user.
    #[serde(default)]
    pub suggested_questions: Vec<String>,
    /// Pictures offered to the user.
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// Fidelity measured at conversion: free-form numbers by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fidelity: Option<serde_json::Map<String, serde_json::Value>>,
    /// `decoder.gguf` and `encoder.gguf`.
    pub files: Vec<File>,
}

/// A sample picture with questions that fit it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Path of the picture, relative to the manifest.
    pub path: String,
    /// What the picture shows, for screen readers.
    pub alt: String,
    /// Questions that fit the picture.
    #[serde(default)]
    pub questions: Vec<String>,
}

/// One GGUF file, cut into chunks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// "decoder.gguf" or "encoder.gguf".
    pub name: String,
    /// Bytes of the whole file.
    pub size: u64,
    /// Bytes of its GGUF header: where tensor data starts.
    pub header_size: u64,
    /// Chunks in the order of the file.
    pub chunks: Vec<Chunk>,
}

/// A byte range of a file: a file of its own, or a range of a larger one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// Path relative to the manifest.
    pub path: String,
    /// First byte within the file at `path`; 0 where the chunk is a file of its own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Name of the file with the language model.
pub const DECODER: &str = "decoder.gguf";
/// Name of the file with the image encoder and the connector.
pub const ENCODER: &str = "encoder.gguf";

/// Default bytes of a chunk: the smallest limit of the common static hosts is 25 MiB a file.
pub const CHUNK_SIZE: u64 = 24 << 20;

/// A manifest larger than this is refused: chunks of a 100 GB model still fit.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;

impl Manifest {
    /// Parses and checks a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let corrupt = |field: &str, problem: String| Error::corrupt("manifest.json", field, problem);
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(corrupt("size", format!("{} bytes are more than {MAX_MANIFEST_BYTES}", bytes.len())));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| corrupt("JSON", error.to_string()))?;
        if manifest.format != "llama3med" || manifest.version != 1 {
            let found = format!("{:?} version {}", manifest.format, manifest.version);
            return Err(corrupt("format", format!("expected \"llama3med\" version 1, found {found}")));
        }
        for name in [DECODER, ENCODER] {
            let n = manifest.files.iter().filter(|file| file.name == name).count();
            if n != 1 {
                return Err(corrupt("files", format!("expected one {name}, found {n}")));
            }
        }
        for file in &manifest.files {
            file.check()?;
        }
        for sample in &manifest.samples {
            check_path(&sample.path)?;
        }
        Ok(manifest)
    }

    /// The file of this name; [`Manifest::parse`] has made sure of [`DECODER`] and [`ENCODER`].
    pub fn file(&self, name: &str) -> Option<&File> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Bytes of all files.
    pub fn n_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl File {
    fn check(&self) -> Result<()> {
        let corrupt = |problem: String| Err(Error::corrupt("manifest.json", &self.name, problem));
        if ![DECODER, ENCODER].contains(&self.name.as_str()) {
            return corrupt(format!("expected {DECODER} or {ENCODER}"));
        }
        let total = self.chunks.iter().try_fold(0u64, |total, chunk| total.checked_add(chunk.size));
        if total != Some(self.size) {
            return corrupt(format!("size is {}, its chunks add up to {total:?}", self.size));
        }
        if self.header_size > self.size || self.size > 1 << 40 {
            return corrupt(format!("header of {} bytes in a file of {}", self.header_size, self.size));
        }
        for chunk in &self.chunks {
            check_path(&chunk.path)?;
            if chunk.size == 0 || chunk.size > 1 << 30 {
                return corrupt(format!("chunk {} of {} bytes; expected 1 to {}", chunk.path, chunk.size, 1 << 30));
            }
            let hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
            if chunk.sha256.len() != 64 || !chunk.sha256.as_bytes().iter().all(hex) {
                return corrupt(format!("chunk {}: sha256 is not 64 lower-case hexadecimal digits", chunk.path));
            }
        }
        Ok(())
    }
}

/// A manifest may come from another host: it names files beside itself and nothing else.
pub fn check_path(path: &str) -> Result<()> {
    let inside = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
    if inside && plain && path.len() <= 200 {
        return Ok(());
    }
    Err(Error::corrupt("manifest.json", "path", format!("{path:?} is not a plain relative path")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> serde_json::Value {
        let file = |name: &str| {
            let chunk = serde_json::json!({ "path": format!("{name}.000"), "size": 10, "sha256": "0a".repeat(32) });
            serde_json::json!({ "name": name, "size": 10, "header_size": 4, "chunks": [chunk] })
        };
        serde_json::json!({ "format": "llama3med", "version": 1, "name": "x", "files": [file(DECODER), file(ENCODER)] })
    }

    #[test]
    fn a_good_manifest_survives_the_round_trip() {
        let manifest = Manifest::parse(example().to_string().as_bytes()).unwrap();
        assert_eq!(manifest.n_bytes(), 20);
        assert_eq!(Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap(), manifest);
    }

    #[test]
    fn every_lie_is_named() {
        type Lie = fn(&mut serde_json::Value);
        let lies: [(Lie, &str); 9] = [
            (|m| m["format"] = "other".into(), "format: expected"),
            (|m| m["version"] = 2.into(), "format: expected"),
            (|m| m["files"][0]["name"] = ENCODER.into(), "files: expected one"),
            (|m| m["files"][0]["size"] = 11.into(), "decoder.gguf: size is 11"),
            (|m| m["files"][0]["header_size"] = 11.into(), "decoder.gguf: header"),
            (|m| m["files"][1]["chunks"][0]["path"] = "../x".into(), "path: \"../x\""),
            (|m| m["files"][1]["chunks"][0]["path"] = "http://x/y".into(), "path"),
            (|m| m["files"][1]["chunks"][0]["sha256"] = "0A".repeat(32).into(), "encoder.gguf: chunk"),
            (|m| m["surprise"] = 1.into(), "JSON: unknown field `surprise`"),
        ];
        for (lie, message) in lies {
            let mut manifest = example();
            lie(&mut manifest);
            let error = Manifest::parse(manifest.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("manifest.json: {message}")), "{error}");
        }
    }
}
