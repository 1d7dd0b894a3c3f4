//! `manifest.json`: what a model folder holds, chunk by chunk, and how to present it.
//!
//! Parsed from untrusted bytes by the page and the tool, written by the tool. `cat` of a file's chunks gives a standard
//! GGUF file.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The whole manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always "llama3med".
    pub format: String,
    /// Version of this format: 1.
    pub version: u32,
    /// Name shown to the user.
    pub name: String,
    /// One sentence on what the model is, shown under the name ("Random weights: its answers mean nothing").
    #[serde(default)]
    pub description: String,
    /// Licence of the weights (an SPDX expression where there is one).
    #[serde(default)]
    pub license: String,
    /// Notices that must be shown with the model, one per line.
    #[serde(default)]
    pub notices: Vec<String>,
    /// Questions offered to the user.
    #[serde(default)]
    pub suggested_questions: Vec<String>,
    /// Pictures offered to the user.
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// How close the model is to the unquantized one, as measured by `quantize compare`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fidelity: Option<Fidelity>,
    /// `decoder.gguf` and, if the model sees pictures, `encoder.gguf`.
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

/// A model compared with the one that it was made from; both get the same prompts and the latter's answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fidelity {
    /// What it was compared with ("checkpoint, f16").
    pub reference: String,
    /// Number of prompts, each asked once.
    pub n_prompts: u64,
    /// Number of different pictures among them.
    pub n_images: u64,
    /// Number of predicted tokens: those of the reference's answers, and their ends.
    pub n_tokens: u64,
    /// Kullback-Leibler divergence of the model's next-token distributions from the reference's, in nats, as the mean
    /// over all tokens.
    pub kl_divergence: f64,
    /// Fraction of the tokens for which both have the same most likely token.
    pub top1_agreement: f64,
    /// Relative error (root mean square) of the residual stream after each layer of the decoder.
    pub layer_errors: Vec<f64>,
    /// Relative error of the image features, if pictures were shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder_error: Option<f64>,
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

/// A byte range of a file: a separate file, or a range of a larger one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// Path relative to the manifest.
    pub path: String,
    /// First byte within the file at `path`; 0 if the chunk is a separate file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: u64,
    /// Size in bytes.
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

/// Default chunk size in bytes: among the common static hosts, the smallest limit is 25 MiB per file.
pub const CHUNK_SIZE: u64 = 24 << 20;

/// Larger manifests are refused; chunks of a 100 GB model still fit.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// Bounds on a fidelity card, far beyond any real one.
const MAX_REFERENCE_BYTES: usize = 300;
const MAX_LAYERS: usize = 1 << 10;

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
        let count = |name: &str| manifest.files.iter().filter(|file| file.name == name).count();
        match (count(DECODER), count(ENCODER)) {
            (1, 0 | 1) => {}
            (1, n) => return Err(corrupt("files", format!("expected at most one {ENCODER}, found {n}"))),
            (n, _) => return Err(corrupt("files", format!("expected one {DECODER}, found {n}"))),
        }
        for file in &manifest.files {
            file.check()?;
        }
        for sample in &manifest.samples {
            check_path(&sample.path)?;
        }
        manifest.fidelity.as_ref().map_or(Ok(()), Fidelity::check)?;
        Ok(manifest)
    }

    /// The file of this name; [`Manifest::parse`] has checked that [`DECODER`] exists.
    pub fn file(&self, name: &str) -> Option<&File> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Bytes of all files.
    pub fn n_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl Fidelity {
    fn check(&self) -> Result<()> {
        let corrupt = |problem: String| Err(Error::corrupt("manifest.json", "fidelity", problem));
        if self.reference.len() > MAX_REFERENCE_BYTES || self.layer_errors.len() > MAX_LAYERS {
            let (n_bytes, n_layers) = (self.reference.len(), self.layer_errors.len());
            return corrupt(format!(
                "a reference of {n_bytes} bytes and {n_layers} layers are more than any model has"
            ));
        }
        if !(0.0..=1.0).contains(&self.top1_agreement) {
            return corrupt(format!("top1_agreement is {}, expected 0 to 1", self.top1_agreement));
        }
        let errors = self.layer_errors.iter().chain(&self.encoder_error).chain([&self.kl_divergence]);
        match errors.copied().find(|error| !(error.is_finite() && *error >= 0.0)) {
            Some(error) => corrupt(format!("an error is {error}, expected 0 or more")),
            None => Ok(()),
        }
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

/// A manifest may come from another host: it may only name files beside itself.
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
        let fidelity = serde_json::json!({ "reference": "checkpoint, f16", "n_prompts": 3, "n_images": 1, "n_tokens": 40,
            "kl_divergence": 0.0125, "top1_agreement": 0.975, "layer_errors": [0.01, 0.02], "encoder_error": 0.03 });
        serde_json::json!({ "format": "llama3med", "version": 1, "name": "x", "fidelity": fidelity,
                            "files": [file(DECODER), file(ENCODER)] })
    }

    #[test]
    fn a_good_manifest_survives_the_round_trip() {
        let manifest = Manifest::parse(example().to_string().as_bytes()).unwrap();
        assert_eq!(manifest.n_bytes(), 20);
        assert_eq!(Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap(), manifest);
        let mut text_alone = example();
        text_alone["files"].as_array_mut().unwrap().pop();
        assert!(Manifest::parse(text_alone.to_string().as_bytes()).unwrap().file(ENCODER).is_none());
    }

    #[test]
    fn every_lie_is_named() {
        type Lie = fn(&mut serde_json::Value);
        let lies: [(Lie, &str); 16] = [
            (|m| m["format"] = "other".into(), "format: expected"),
            (|m| m["version"] = 2.into(), "format: expected"),
            (|m| m["files"][0]["name"] = ENCODER.into(), "files: expected one decoder.gguf, found 0"),
            (
                |m| {
                    let encoder = m["files"][1].clone();
                    m["files"].as_array_mut().unwrap().push(encoder);
                },
                "files: expected at most one encoder.gguf, found 2",
            ),
            (|m| m["files"][0]["size"] = 11.into(), "decoder.gguf: size is 11"),
            (|m| m["files"][0]["header_size"] = 11.into(), "decoder.gguf: header"),
            (|m| m["files"][1]["chunks"][0]["path"] = "../x".into(), "path: \"../x\""),
            (|m| m["files"][1]["chunks"][0]["path"] = "http://x/y".into(), "path"),
            (|m| m["files"][1]["chunks"][0]["sha256"] = "0A".repeat(32).into(), "encoder.gguf: chunk"),
            (|m| m["surprise"] = 1.into(), "JSON: unknown field `surprise`"),
            (|m| m["fidelity"]["surprise"] = 1.into(), "JSON: unknown field `surprise`"),
            (|m| m["fidelity"]["kl_divergence"] = "low".into(), "JSON: invalid type"),
            (|m| m["fidelity"]["top1_agreement"] = 1.5.into(), "fidelity: top1_agreement is 1.5"),
            (|m| m["fidelity"]["layer_errors"][1] = (-0.5).into(), "fidelity: an error is -0.5"),
            (
                |m| m["fidelity"]["layer_errors"] = vec![0.5; 2000].into(),
                "fidelity: a reference of 15 bytes and 2000 layers",
            ),
            (|m| m["fidelity"]["reference"] = "x".repeat(400).into(), "fidelity: a reference of 400 bytes"),
        ];
        for (lie, message) in lies {
            let mut manifest = example();
            lie(&mut manifest);
            let error = Manifest::parse(manifest.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("manifest.json: {message}")), "{error}");
        }
    }
}
