//! The header of a GGUF file: what the file holds and where, without reading all of it.
//!
//! Reads versions 2 and 3 from the first bytes of a file (the rest is fetched by byte range) and writes version 3.
//! Follows ggml's `docs/gguf.md`. Nothing is allocated from an unchecked length field: metadata arrays stay byte ranges
//! of the header until somebody iterates over them.

mod read;
mod write;

use crate::error::{Error, Result};
pub use llama3med_arithmetic::dtype::Dtype;
use read::{Reader, Stop};
use std::collections::BTreeMap;
use std::ops::Range;
use write::TITLE_KEY;
pub use write::{ALIGNMENT, Header};

/// What one tensor is, and where its data is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Number format.
    pub dtype: Dtype,
    /// Rows: the product of all dimensions but the innermost. A vector is one row.
    pub n_rows: usize,
    /// Weights per row: the innermost dimension.
    pub n_cols: usize,
    /// Dimensions as PyTorch writes them, outermost first.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
}

impl TensorInfo {
    /// Bytes of the whole tensor.
    pub fn n_bytes(&self) -> u64 {
        self.n_rows as u64 * self.dtype.row_bytes(self.n_cols) as u64
    }

    /// The byte range of some rows within the file.
    pub fn rows(&self, rows: Range<usize>) -> Range<u64> {
        let row_bytes = self.dtype.row_bytes(self.n_cols) as u64;
        self.offset + rows.start as u64 * row_bytes..self.offset + rows.end as u64 * row_bytes
    }
}

/// A metadata value. Strings and arrays borrow nothing: they are ranges of the parsed header.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any integer.
    Int(i128),
    /// Any floating-point number.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    String(String),
    /// An array of one element type: ggml's type id, the count, and the range of the elements' bytes in the header.
    Array(u32, usize, Range<usize>),
}

/// A parsed header.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// The file's name, for messages.
    pub file: String,
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// First byte of tensor data: the length of the header.
    pub data_offset: u64,
    /// Size of the file in bytes.
    pub file_size: u64,
    header: Vec<u8>,
    /// The position of each key in the header, with its value.
    spans: BTreeMap<String, Range<usize>>,
}

/// Key of the architecture, such as `llama`, after which others are named.
pub const ARCHITECTURE_KEY: &str = "general.architecture";

/// The names of all parts of a file split by llama.cpp, from the name of one part: `x-00001-of-00003.gguf` and so on;
/// `None` if the name does not have that form.
pub fn part_names(name: &str) -> Option<Vec<String>> {
    let (stem, n_parts) = split_name(name)?;
    let names: Vec<_> = (1..=n_parts).map(|part| format!("{stem}-{part:05}-of-{n_parts:05}.gguf")).collect();
    names.iter().any(|other| other == name).then_some(names)
}

/// Far more parts than any file has: a name with more is an ordinary one, since every part would be asked for.
const MAX_PARTS: usize = 1000;

/// What the names of all parts of a split file share, and their number, from the name of one part. Browsers add " (1)"
/// to the name of a repeated download.
pub(super) fn split_name(name: &str) -> Option<(&str, usize)> {
    let number = |digits: &str| digits.parse::<usize>().ok().filter(|_| digits.len() == 5);
    let mut name = name.strip_suffix(".gguf")?;
    if let Some((rest, copy)) = name.strip_suffix(')').and_then(|name| name.rsplit_once('('))
        && copy.bytes().all(|byte| byte.is_ascii_digit())
    {
        name = rest.strip_suffix(' ').unwrap_or(rest);
    }
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    number(part).and(number(count)).filter(|n_parts| (1..=MAX_PARTS).contains(n_parts)).map(|n_parts| (stem, n_parts))
}

impl Gguf {
    /// Parses the header at the start of a file of `file_size` bytes.
    ///
    /// `Ok(None)` means that the header continues beyond `prefix`: call again with more of the file.
    pub fn parse(file: &str, prefix: &[u8], file_size: u64) -> Result<Option<Self>> {
        let mut reader = Reader { file, bytes: prefix, pos: 0, file_size };
        match reader.header() {
            Ok(gguf) => Ok(Some(gguf)),
            Err(Stop::NeedMore) if (prefix.len() as u64) < file_size => Ok(None),
            Err(Stop::NeedMore) => Err(Error::corrupt(
                file,
                "header",
                format!("the file is cut short: it ends inside its header, after {file_size} bytes"),
            )),
            Err(Stop::Error(error)) => Err(error),
        }
    }

    /// The index of this part, counted from 0, and the number of parts, if this is part of a file split by llama.cpp.
    pub fn split(&self) -> Result<Option<(usize, usize)>> {
        let Some(n_parts) = self.get_usize("split.count")?.filter(|&n_parts| n_parts > 1) else { return Ok(None) };
        let part = self.get_usize("split.no")?.ok_or_else(|| self.missing_key("split.no"))?;
        if part >= n_parts {
            return Err(Error::corrupt(&self.file, "split.no", format!("{part} of {n_parts} parts")));
        }
        Ok(Some((part, n_parts)))
    }

    /// The header of the whole file that a split file's parts form when their tensor data are joined in order, each
    /// starting at its part's `data_offset`.
    pub(super) fn join(parts: &[Self]) -> Result<Vec<u8>> {
        let Some(first) = parts.first() else { return Err(Error::Invalid("a split file without parts".into())) };
        let mut header = Header::default();
        for span in first.spans.iter().filter(|(key, _)| !key.starts_with("split.")).map(|(_, span)| span) {
            header.keys.extend(&first.header[span.clone()]);
            header.n_keys += 1;
        }
        for (idx, part) in parts.iter().enumerate() {
            if part.split()? != Some((idx, parts.len())) {
                let problem = format!("expected part {idx} of {}, counted from 0", parts.len());
                return Err(Error::corrupt(&part.file, "split.no", problem));
            }
            if part.get_usize("general.alignment")?.is_some_and(|alignment| alignment as u64 != ALIGNMENT) {
                return Err(Error::corrupt(
                    &part.file,
                    "general.alignment",
                    format!("expected {ALIGNMENT} in a split file"),
                ));
            }
            let base = header.data_bytes;
            let mut in_order: Vec<_> = part.tensors.iter().collect();
            in_order.sort_by_key(|(_, info)| info.offset);
            for (name, info) in in_order {
                if info.offset - part.data_offset != header.data_bytes - base {
                    return Err(Error::corrupt(&part.file, name, "expected no gap before the tensor in a split file"));
                }
                header.tensor(name, info.dtype, &info.shape);
            }
            let n_bytes = part.file_size.saturating_sub(part.data_offset);
            if idx + 1 < parts.len() && n_bytes != header.data_bytes - base {
                let problem = format!("{n_bytes} bytes of tensors, expected {}", header.data_bytes - base);
                return Err(Error::corrupt(&part.file, "size", problem));
            }
        }
        if first.get_usize("split.tensors.count")?.is_some_and(|count| count as u64 != header.n_tensors) {
            let problem = format!("the parts have {} tensors", header.n_tensors);
            return Err(Error::corrupt(&first.file, "split.tensors.count", problem));
        }
        Ok(header.to_bytes())
    }

    /// The architecture that the file names.
    pub fn architecture(&self) -> Result<Option<&str>> {
        self.get_str(ARCHITECTURE_KEY)
    }

    /// The model's own name.
    pub fn title(&self) -> Result<Option<&str>> {
        self.get_str(TITLE_KEY)
    }

    /// Frees the memory of all keys, which is large for a large vocabulary; tensors are still known.
    pub fn forget_keys(&mut self) {
        (self.metadata, self.spans, self.header) = Default::default();
    }

    /// A tensor that must be present.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensor { file: self.file.clone(), tensor: name.into() })
    }

    /// A non-negative integer; `None` if the key is absent.
    pub fn get_usize(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a non-negative integer", |value| match value {
            Value::Int(i) => usize::try_from(*i).ok().filter(|&i| i < 1 << 31),
            _ => None,
        })
    }

    /// A finite number; `None` if the key is absent.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.get(key, "a finite number", |value| match value {
            Value::Float(x) => Some(*x as f32).filter(|x| x.is_finite()),
            Value::Int(i) => Some(*i as f32),
            _ => None,
        })
    }

    /// A boolean; `None` if the key is absent.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", |value| match value {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// A string; `None` if the key is absent.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "a string", |value| match value {
            Value::String(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// An array of integers; `None` if the key is absent.
    pub fn get_ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.get_array(key, "integers", |value| match value {
            Value::Int(i) => i64::try_from(i).ok(),
            Value::Bool(b) => Some(b as i64),
            _ => None,
        })
    }

    /// An array of numbers; `None` if the key is absent.
    pub fn get_floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.get_array(key, "numbers", |value| match value {
            Value::Float(x) => Some(x as f32),
            Value::Int(i) => Some(i as f32),
            _ => None,
        })
    }

    /// An array of strings; `None` if the key is absent.
    pub fn get_strings(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.get_array(key, "strings", |value| match value {
            Value::String(s) => Some(s),
            _ => None,
        })
    }

    fn get_array<T>(&self, key: &str, expected: &str, read: impl Fn(Value) -> Option<T>) -> Result<Option<Vec<T>>> {
        let Some((element, count, bytes)) = self.array(key)? else { return Ok(None) };
        let mut reader = Reader { file: &self.file, bytes: &self.header[bytes], pos: 0, file_size: u64::MAX };
        // All are in the header: parsing visited each of them.
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            let value = reader.value(element, key).ok().and_then(&read);
            let problem = || Error::corrupt(&self.file, key, format!("expected an array of {expected}"));
            values.push(value.ok_or_else(problem)?);
        }
        Ok(Some(values))
    }

    /// Fails with the key's name: for keys that must be present.
    pub fn missing_key(&self, key: &str) -> Error {
        Error::corrupt(&self.file, key, "the key is missing")
    }

    fn array(&self, key: &str) -> Result<Option<(u32, usize, Range<usize>)>> {
        self.get(key, "an array", |value| match value {
            Value::Array(element, count, bytes) => Some((*element, *count, bytes.clone())),
            _ => None,
        })
    }

    fn get<'a, T>(&'a self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::corrupt(&self.file, key, format!("expected {expected}, found {}", describe(value)))),
        }
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Int(i) => format!("{i}"),
        Value::Float(x) => format!("{x}"),
        Value::Bool(b) => format!("{b}"),
        Value::String(s) => format!("the string {:?}", s.chars().take(40).collect::<String>()),
        Value::Array(_, count, _) => format!("an array of {count}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<u8> {
        let mut header = Header::default();
        header.string("general.architecture", "llama").u32("llama.block_count", 2).f32("eps", 1e-5);
        header.strings("tokens", &["a", "b c"]).f32s("mean", &[0.5, 0.25]).i32s("types", &[-1, 3]).bool("flag", true);
        assert_eq!(header.tensor("norm", Dtype::F32, &[3]), 12);
        assert_eq!(header.tensor("w", Dtype::Q4_0, &[2, 64]), 72);
        let mut bytes = header.to_bytes();
        bytes.resize(bytes.len() + header.data_bytes() as usize, 0);
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = example();
        let gguf = Gguf::parse("x.gguf", &bytes, bytes.len() as u64).unwrap().unwrap();
        assert_eq!(gguf.get_usize("llama.block_count").unwrap(), Some(2));
        assert_eq!(gguf.get_f32("eps").unwrap(), Some(1e-5));
        assert_eq!(gguf.get_strings("tokens").unwrap().unwrap(), ["a", "b c"]);
        assert_eq!(gguf.get_floats("mean").unwrap().unwrap(), [0.5, 0.25]);
        assert_eq!(gguf.get_ints("types").unwrap().unwrap(), [-1, 3]);
        assert_eq!(gguf.get_bool("flag").unwrap(), Some(true));
        assert_eq!(gguf.get_usize("absent").unwrap(), None);
        let w = gguf.tensor("w").unwrap();
        assert_eq!((w.n_rows, w.n_cols, w.shape.as_slice()), (2, 64, &[2, 64][..]));
        assert_eq!(w.rows(1..2), w.offset + 36..w.offset + 72);
        assert_eq!(w.offset, gguf.data_offset + 32);
        assert!(gguf.get_str("eps").unwrap_err().to_string().starts_with("x.gguf: eps: expected a string"));
    }

    #[test]
    fn every_prefix_asks_for_more_and_every_truncation_is_named() {
        let bytes = example();
        let header_len = Gguf::parse("x", &bytes, bytes.len() as u64).unwrap().unwrap().data_offset as usize - 31;
        for len in 0..header_len {
            assert!(Gguf::parse("x", &bytes[..len], bytes.len() as u64).is_ok_and(|gguf| gguf.is_none()), "{len}");
            assert!(Gguf::parse("x", &bytes[..len], len as u64).is_err(), "{len}");
        }
        let error = Gguf::parse("x", &bytes, bytes.len() as u64 - 40).unwrap_err().to_string();
        assert!(error.contains("w: the file is cut short: the tensor ends at byte"), "{error}");
    }

    #[test]
    fn lying_lengths_and_bit_flips_neither_panic_nor_allocate() {
        let bytes = example();
        for at in 0..bytes.len().min(400) {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                if let Ok(Some(gguf)) = Gguf::parse("x", &flipped, flipped.len() as u64) {
                    for key in gguf.metadata.keys() {
                        let _ = (gguf.get_strings(key), gguf.get_ints(key), gguf.get_floats(key));
                    }
                }
            }
        }
    }
}
