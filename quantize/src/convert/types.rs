//! The number format of each large matrix: one for all, or a mixture that spends more bits where they matter, with
//! exceptions by name.

use crate::convert::encode::TYPES;
use llama3med::file::gguf::Dtype;
use llama3med::spec::{DecoderSpec, Role, Tensor};
use llama3med::{Error, Result};
use regex::Regex;
use std::fmt;
use std::str::FromStr;

/// The mixture's name in llama.cpp.
const Q4_K_M: &str = "q4_k_m";

/// The choice for a file's large matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// One format for all.
    Plain(Dtype),
    /// llama.cpp's Q4_K_M: Q6_K for the output matrix, and for the value and down matrices of every third layer and of
    /// the first and last eighths of the layers; Q4_K for the others.
    Q4KM,
}

impl Choice {
    /// Every choice by name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TYPES.into_iter().map(Dtype::name).chain([Q4_K_M])
    }

    /// The format of a matrix with this name in a file of `n_layers` layers.
    fn of(self, name: &str, n_layers: usize, is_output: bool) -> Dtype {
        let dtype = match self {
            Self::Plain(dtype) => return dtype,
            Self::Q4KM => Dtype::Q4K,
        };
        let more = ["attn_v.weight", "ffn_down.weight"].iter().any(|end| name.ends_with(end))
            && layer(name).is_some_and(|layer| has_more_bits(layer, n_layers));
        if more || is_output { Dtype::Q6K } else { dtype }
    }
}

impl Default for Choice {
    /// The default: `docs/types.md` explains it.
    fn default() -> Self {
        Self::Q4KM
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(dtype) => dtype.name(),
            Self::Q4KM => Q4_K_M,
        })
    }
}

impl From<Dtype> for Choice {
    fn from(dtype: Dtype) -> Self {
        Self::Plain(dtype)
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match written(text) {
            Some(dtype) => Ok(Self::Plain(dtype)),
            None if text == Q4_K_M => Ok(Self::Q4KM),
            None => Err(format!("expected {}", Self::names().collect::<Vec<_>>().join(", "))),
        }
    }
}

/// A format for the matrices whose names match a pattern, overriding the choice for the others.
#[derive(Debug, Clone)]
pub struct Exception {
    pattern: Regex,
    dtype: Dtype,
}

impl FromStr for Exception {
    type Err = String;

    /// `PATTERN=TYPE`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (pattern, name) = text.rsplit_once('=').ok_or("expected PATTERN=TYPE, such as ffn_down=q8_0")?;
        let known = || TYPES.map(Dtype::name).join(", ");
        let dtype = written(name).ok_or_else(|| format!("expected a type after '=', one of {}", known()))?;
        if pattern.is_empty() {
            return Err("expected a pattern before '='".into());
        }
        let pattern = Regex::new(pattern).map_err(|error| match error {
            regex::Error::Syntax(text) => text.lines().last().unwrap_or("the pattern cannot be read").to_owned(),
            other => other.to_string(),
        })?;
        Ok(Self { pattern, dtype })
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.dtype.name())
    }
}

fn written(name: &str) -> Option<Dtype> {
    TYPES.into_iter().find(|dtype| dtype.name() == name)
}

/// The formats of a model's two files.
#[derive(Debug, Clone, Default)]
pub struct Types {
    /// For the language model.
    pub decoder: Choice,
    /// For image tower and connector, if different.
    pub encoder: Option<Choice>,
    /// If several match a matrix, the last wins.
    pub exceptions: Vec<Exception>,
}

impl From<Dtype> for Types {
    /// One format throughout.
    fn from(dtype: Dtype) -> Self {
        Self { decoder: dtype.into(), encoder: None, exceptions: Vec::new() }
    }
}

impl Types {
    /// The format of every tensor of a model, in the order of `tensors`.
    ///
    /// If a row is not a whole number of blocks, the nearest finer format that fits replaces the chosen one
    /// ([`fitting`]). An exception must be followed exactly: one that does not fit, or that matches no large matrix, is
    /// an error.
    pub fn assign<'a>(&self, tensors: impl Iterator<Item = &'a Tensor> + Clone) -> Result<Vec<Dtype>> {
        let is_decoder = |tensor: &Tensor| !tensor.name.starts_with("v.") && !tensor.name.starts_with("mm.");
        let n_layers = |decoder: bool| {
            let layers =
                tensors.clone().filter(|tensor| is_decoder(tensor) == decoder).filter_map(|tensor| layer(&tensor.name));
            layers.max().map_or(0, |last| last + 1)
        };
        let n_layers = [n_layers(false), n_layers(true)];
        let tied = !tensors.clone().any(|tensor| tensor.name == DecoderSpec::OUTPUT);
        let output = if tied { DecoderSpec::TOKEN_EMBEDDING } else { DecoderSpec::OUTPUT };
        let mut used = vec![false; self.exceptions.len()];
        let mut assigned = Vec::new();
        for tensor in tensors {
            let in_decoder = is_decoder(tensor);
            let choice = if in_decoder { self.decoder } else { self.encoder.unwrap_or(self.decoder) };
            let mut dtype =
                stored_as(tensor, choice.of(&tensor.name, n_layers[in_decoder as usize], tensor.name == output));
            if tensor.role == Role::Matrix {
                for (exception, used) in self.exceptions.iter().zip(&mut used) {
                    if exception.pattern.is_match(&tensor.name) {
                        (*used, dtype) = (true, exception.check(tensor)?);
                    }
                }
            }
            assigned.push(dtype);
        }
        match self.exceptions.iter().zip(used).find(|(_, used)| !used) {
            Some((exception, _)) => {
                Err(Error::Invalid(format!("--tensor {exception}: no large matrix has such a name")))
            }
            None => Ok(assigned),
        }
    }
}

/// The type that a tensor gets when `dtype` was asked for.
fn stored_as(tensor: &Tensor, dtype: Dtype) -> Dtype {
    match tensor.role {
        Role::Exact => Dtype::F32,
        Role::Patch if dtype == Dtype::F32 => Dtype::F32,
        Role::Patch => Dtype::F16,
        Role::Matrix => fitting(dtype, tensor.n_cols()),
    }
}

/// The nearest type whose blocks fill rows of `n_cols`: never a coarser one.
fn fitting(dtype: Dtype, n_cols: usize) -> Dtype {
    match dtype {
        _ if n_cols.is_multiple_of(dtype.block_len()) => dtype,
        Dtype::Q4K | Dtype::Q6K if n_cols.is_multiple_of(32) => Dtype::Q8_0,
        _ => Dtype::F16,
    }
}

impl Exception {
    fn check(&self, tensor: &Tensor) -> Result<Dtype> {
        let n_cols = tensor.n_cols();
        if fitting(self.dtype, n_cols) == self.dtype {
            return Ok(self.dtype);
        }
        let unit = self.dtype.block_len();
        let problem = format!("--tensor {self}: {} has rows of {n_cols} weights, not blocks of {unit}", tensor.name);
        Err(Error::Invalid(problem))
    }
}

/// The layer of a tensor `blk.N.*` or `v.blk.N.*`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("v.").unwrap_or(name).strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// llama.cpp's `use_more_bits`.
fn has_more_bits(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::random::shape;

    fn tensors(name: &str) -> Vec<Tensor> {
        let (decoder, _, vision) = shape(name).unwrap();
        [decoder.tensors(), vision.tensors()].concat()
    }

    fn finer(types: &Types, tensors: &[Tensor], dtype: Dtype) -> Vec<String> {
        let assigned = types.assign(tensors.iter()).unwrap();
        tensors
            .iter()
            .zip(assigned)
            .filter(|(_, found)| *found == dtype)
            .map(|(tensor, _)| tensor.name.clone())
            .collect()
    }

    #[test]
    fn the_mixture_is_that_of_llama_cpp() {
        let types = Types { decoder: Choice::Q4KM, ..Dtype::Q4_0.into() };
        let layers = |names: &[String], kind: &str| -> Vec<usize> {
            names
                .iter()
                .filter(|name| name.starts_with("blk.") && name.contains(kind))
                .filter_map(|name| layer(name))
                .collect()
        };
        // The choices of llama.cpp's quantizer for models of 32 layers with an output matrix and of 16 without.
        let names = finer(&types, &tensors("8b-clip"), Dtype::Q6K);
        let expected = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
        assert_eq!((layers(&names, "attn_v"), layers(&names, "ffn_down")), (expected.into(), expected.into()));
        assert!(names.contains(&"output.weight".into()) && !names.contains(&"token_embd.weight".into()));
        let names = finer(&types, &tensors("1b"), Dtype::Q6K);
        assert_eq!(layers(&names, "attn_v"), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert!(names.contains(&"token_embd.weight".into()));
        // The tower's 23 blocks follow the same rule.
        assert!(names.contains(&"v.blk.22.ffn_down.weight".into()) && names.contains(&"v.blk.4.attn_v.weight".into()));
        // Rows of 192 and 96 weights: not blocks of 256.
        assert!(finer(&types, &tensors("tiny"), Dtype::Q8_0).contains(&"blk.5.attn_v.weight".into()));
    }

    #[test]
    fn exceptions_go_before_and_the_last_counts() {
        let exceptions = ["ffn_down=q8_0", r"^blk\.(0|1)\.ffn_down=f16", "^mm=f32"].map(|text| text.parse().unwrap());
        let types = Types { exceptions: exceptions.into(), ..Dtype::Q4_0.into() };
        let tensors = tensors("tiny");
        assert_eq!(finer(&types, &tensors, Dtype::Q8_0).len(), 4 + 4);
        let f16 = finer(&types, &tensors, Dtype::F16);
        assert_eq!(f16, ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight", "v.patch_embd.weight"]);
        assert!(finer(&types, &tensors, Dtype::F32).contains(&"mm.2.weight".into()));
    }

    #[test]
    fn exceptions_that_cannot_be_met_are_named() {
        let assign = |text: &str| {
            let types = Types { exceptions: vec![text.parse().unwrap()], ..Dtype::Q4_0.into() };
            types.assign(tensors("tiny").iter()).unwrap_err().to_string()
        };
        assert_eq!(assign("ffn_dwn=q8_0"), "--tensor ffn_dwn=q8_0: no large matrix has such a name");
        assert_eq!(assign("attn_norm=f16"), "--tensor attn_norm=f16: no large matrix has such a name");
        let error = assign("attn_v=q6_k");
        assert_eq!(error, "--tensor attn_v=q6_k: blk.0.attn_v.weight has rows of 192 weights, not blocks of 256");
        let parse = |text: &str| text.parse::<Exception>().unwrap_err();
        assert!(parse("ffn_down").contains("PATTERN=TYPE"));
        assert!(parse("=q8_0").contains("a pattern before"));
        assert!(parse("ffn=q4_k_m").contains("one of f32, f16"));
        assert!(parse("(=q8_0").contains("unclosed group"));
        assert!(parse(&format!("{}=q8_0", "(a{999}){999}".repeat(9))).contains("size limit"));
        assert_eq!("q3_k_m".parse::<Choice>(), Err("expected f32, f16, bf16, q4_0, q8_0, q4_k, q6_k, q4_k_m".into()));
    }
}
