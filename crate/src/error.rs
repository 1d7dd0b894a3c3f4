//! The one error type of the crate: every message names the file, tensor or field, what was expected and what was found.
//!
//! Numbers and shapes are checked when a weight or a file is read; after that the forward passes cannot fail, except when another rank is lost.

use std::fmt;

/// What can go wrong between a file's bytes and an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Error {
    /// A file's bytes contradict its format: which file, which field, and how.
    Corrupt {
        /// File name as the user knows it.
        file: String,
        /// Field, key or offset inside the file.
        field: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// A tensor that the model needs is not in the file.
    MissingTensor {
        /// File that was searched.
        file: String,
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor whose shape does not fit the configuration, or whose contents are none.
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// Shape that follows from the configuration, say.
        expected: String,
        /// What is in the file.
        found: String,
    },
    /// Something well-formed that this engine does not implement.
    Unsupported(String),
    /// An image that cannot be read.
    Image(String),
    /// A tokenizer or chat template that cannot be used.
    Tokenizer(String),
    /// An option outside its range.
    Invalid(String),
    /// The newest question alone does not fit into the context.
    ContextFull {
        /// Tokens that the question with its image needs.
        needed: usize,
        /// Tokens that the context holds.
        context: usize,
    },
    /// Memory that could not be had.
    OutOfMemory {
        /// What it was for.
        what: String,
        /// Bytes asked for.
        bytes: usize,
    },
    /// Another rank went away or answered out of turn.
    RankLost(String),
    /// The caller asked to stop.
    Cancelled,
}

impl Error {
    /// Shorthand for [`Error::Corrupt`].
    pub fn corrupt(file: impl Into<String>, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Corrupt { file: file.into(), field: field.into(), problem: problem.into() }
    }

    /// The same error; one about a tokenizer says where that is.
    pub fn of_tokenizer_in(self, place: &str) -> Self {
        match self {
            Self::Tokenizer(what) => Self::Tokenizer(format!("{place}: {what}")),
            other => other,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt { file, field, problem } => write!(f, "{file}: {field}: {problem}"),
            Self::MissingTensor { file, tensor } => write!(f, "{file}: tensor {tensor} is missing"),
            Self::Shape { tensor, expected, found } => {
                write!(f, "tensor {tensor}: expected {expected}, found {found}")
            }
            Self::Unsupported(what) => write!(f, "unsupported: {what}"),
            Self::Image(what) => write!(f, "image: {what}"),
            Self::Tokenizer(what) => write!(f, "tokenizer: {what}"),
            Self::Invalid(what) => write!(f, "{what}"),
            Self::ContextFull { needed, context } => {
                write!(f, "the question needs {needed} tokens but the context holds {context}")
            }
            Self::OutOfMemory { what, bytes } => write!(f, "out of memory: {bytes} bytes for {what}"),
            Self::RankLost(what) => write!(f, "a rank was lost: {what}"),
            Self::Cancelled => write!(f, "stopped"),
        }
    }
}

impl std::error::Error for Error {}

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;
