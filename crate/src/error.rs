//! The crate's only error type: every message names the file, tensor or field, what was expected and what was found.
//!
//! Numbers and shapes are checked when a weight or a file is read; after that, the forward passes cannot fail unless
//! another rank is lost.

use std::fmt;

/// What can go wrong between a file's bytes and an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Error {
    /// A file's bytes contradict its format: which file, which field, and why.
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
    /// A tensor whose shape does not fit the configuration, or whose contents are not valid numbers.
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// What was expected, for example a shape that follows from the configuration.
        expected: String,
        /// What is in the file.
        found: String,
    },
    /// Something well-formed that this engine does not implement.
    Unsupported(String),
    /// An image that cannot be read.
    Image(String),
    /// Encoded images that must be read, of which some are no longer kept.
    NotKept {
        /// Keys of all of them.
        images: Vec<u64>,
    },
    /// A picture was shown to a model that has no image encoder.
    NoVision,
    /// A file that is not an image in a supported format: what it is, with its article.
    Format(String),
    /// A tokenizer or chat template that cannot be used.
    Tokenizer(String),
    /// Files that together are not a model.
    Pair {
        /// Why not, in a sentence.
        problem: String,
        /// What was found, for details.
        found: String,
    },
    /// An option outside its range.
    Invalid(String),
    /// The newest question alone does not fit into the context.
    ContextFull {
        /// Tokens that the question with its image needs.
        needed: usize,
        /// Tokens that the context holds.
        context: usize,
    },
    /// Memory that could not be allocated.
    OutOfMemory {
        /// What it was needed for.
        what: String,
        /// Bytes requested.
        bytes: usize,
    },
    /// Another rank went away or sent a message out of turn.
    RankLost(String),
    /// The caller asked to stop.
    Cancelled,
}

impl Error {
    /// Turns lack of memory for a picture into an error about that picture, so that the caller does not give up the
    /// model.
    pub fn of_picture(self) -> Self {
        match self {
            Self::OutOfMemory { what, bytes } => Self::Image(format!("no memory is left: {bytes} bytes for {what}")),
            other => other,
        }
    }

    /// Shorthand for [`Error::Corrupt`].
    pub fn corrupt(file: impl Into<String>, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Corrupt { file: file.into(), field: field.into(), problem: problem.into() }
    }

    /// The same error; if it is about a tokenizer, it also says where that is.
    pub fn of_tokenizer_in(self, place: &str) -> Self {
        match self {
            Self::Tokenizer(what) => Self::Tokenizer(format!("{place}: {what}")),
            other => other,
        }
    }
}

/// What was saved instead of a file, if the first bytes tell: a repository's placeholder for a large file, or a
/// server's web page.
pub fn stand_in(first: &[u8]) -> Option<&'static str> {
    let text = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(first).trim_ascii_start();
    let begins = |mark: &str| text.get(..mark.len()).is_some_and(|start| start.eq_ignore_ascii_case(mark.as_bytes()));
    if begins("version https://git-lfs") {
        return Some("this is a Git LFS pointer, a placeholder for the file: `git lfs pull` fetches the file itself");
    }
    let is_page = ["<!doctype html", "<html", "<head", "<body"].into_iter().any(begins);
    is_page.then_some("this is a web page, a server's answer instead of the file: fetch the file again")
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
            Self::NotKept { .. } => write!(f, "image: the encoded image is no longer kept"),
            Self::NoVision => write!(f, "this model sees no pictures: it is a language model without an image encoder"),
            Self::Format(what) => write!(f, "this is {what}; PNG, JPEG, WebP, GIF, BMP and TIFF are read"),
            Self::Tokenizer(what) => write!(f, "tokenizer: {what}"),
            Self::Pair { problem, .. } => write!(f, "{problem}"),
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

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;
