//! The header of a GGUF file: what the file holds and where, without reading all of it.
//!
//! Reads versions 2 and 3 from the first bytes of a file (the rest is fetched by byte range) and writes version 3.
//! Follows ggml's `docs/gguf.md`. Nothing is allocated from an unchecked length field: metadata arrays stay byte ranges
//! of the header until somebody iterates over them.

use crate::error::{Error, Result, stand_in};
pub use llama3med_arithmetic::dtype::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;

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

/// The names of all parts of a file split by llama.cpp, from the name of one part: `x-00001-of-00003.gguf` and so on;
/// `None` if the name does not have that form.
pub fn part_names(name: &str) -> Option<Vec<String>> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |digits: &str| digits.parse::<usize>().ok().filter(|_| digits.len() == 5);
    let (part, n_parts) = (number(part)?, number(count)?);
    let names = (1..=n_parts).map(|part| format!("{stem}-{part:05}-of-{n_parts:05}.gguf"));
    (1..=n_parts).contains(&part).then(|| names.collect())
}

// Far above any real model; keeps a forged count from costing time.
const MAX_TENSORS: u64 = 1 << 16;
const MAX_KEYS: u64 = 1 << 16;
const MAX_DIMS: u32 = 4;
const MAX_ELEMENTS: u64 = 1 << 40;

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
    pub fn join(parts: &[Self]) -> Result<Vec<u8>> {
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

enum Stop {
    NeedMore,
    Error(Error),
}

struct Reader<'a> {
    file: &'a str,
    bytes: &'a [u8],
    pos: usize,
    file_size: u64,
}

impl<'a> Reader<'a> {
    fn header(&mut self) -> std::result::Result<Gguf, Stop> {
        let magic = self.take(4)?;
        if magic != b"GGUF" {
            if let Some(found) = stand_in(self.bytes) {
                return Err(self.corrupt("contents", found.into()));
            }
            return Err(self.corrupt("magic", format!("expected \"GGUF\", found {:?}", String::from_utf8_lossy(magic))));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(self.corrupt("version", format!("expected 2 or 3, found {version}")));
        }
        let n_tensors = self.count("tensor count", MAX_TENSORS)?;
        let n_keys = self.count("metadata count", MAX_KEYS)?;
        let (mut metadata, mut spans) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..n_keys {
            let start = self.pos;
            let key = self.string("a metadata key")?;
            let kind = self.u32()?;
            let value = self.value(kind, &key)?;
            spans.insert(key.clone(), start..self.pos);
            if metadata.insert(key.clone(), value).is_some() {
                return Err(self.corrupt(&key, "the key occurs twice".into()));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Int(i)) if (1..=1 << 20).contains(i) && i.count_ones() == 1 => *i as u64,
            Some(other) => {
                let found = describe(other);
                return Err(self.corrupt("general.alignment", format!("expected a power of two, found {found}")));
            }
        };
        let mut tensors = BTreeMap::new();
        for _ in 0..n_tensors {
            let (name, info) = self.tensor_info(alignment)?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(self.corrupt(&name, "the tensor occurs twice".into()));
            }
        }
        let data_offset = (self.pos as u64).next_multiple_of(alignment);
        for (name, info) in &mut tensors {
            info.offset = info.offset.saturating_add(data_offset);
            let end = info.offset.saturating_add(info.n_bytes());
            if end > self.file_size {
                let problem =
                    format!("the file is cut short: the tensor ends at byte {end}, the file at {}", self.file_size);
                return Err(self.corrupt(name, problem));
            }
        }
        self.check_overlap(&tensors)?;
        let header = self.bytes[..self.pos].to_vec();
        let file_size = self.file_size;
        Ok(Gguf { file: self.file.into(), metadata, tensors, data_offset, file_size, header, spans })
    }

    fn tensor_info(&mut self, alignment: u64) -> std::result::Result<(String, TensorInfo), Stop> {
        let name = self.string("a tensor name")?;
        let n_dims = self.u32()?;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return Err(self.corrupt(&name, format!("expected 1 to {MAX_DIMS} dimensions, found {n_dims}")));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            shape.push(self.u64()?);
        }
        shape.reverse();
        let n_elements = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        if n_elements.is_none_or(|n| n == 0 || n > MAX_ELEMENTS) {
            return Err(self.corrupt(&name, format!("absurd shape {shape:?}")));
        }
        let id = self.u32()?;
        let offset = self.u64()?;
        let Some(dtype) = Dtype::from_id(id) else {
            let known: Vec<_> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
            return Err(self.corrupt(&name, format!("number format {id} is not one of {}", known.join(", "))));
        };
        let shape: Vec<usize> = shape.into_iter().map(|dim| dim as usize).collect();
        let n_cols = shape[shape.len() - 1];
        let n_rows = shape[..shape.len() - 1].iter().product();
        if !n_cols.is_multiple_of(dtype.block_len()) {
            let problem = format!("rows of {n_cols} are not whole blocks of {} ({})", dtype.block_len(), dtype.name());
            return Err(self.corrupt(&name, problem));
        }
        if offset % alignment != 0 {
            return Err(self.corrupt(&name, format!("offset {offset} is not a multiple of {alignment}")));
        }
        Ok((name, TensorInfo { dtype, n_rows, n_cols, shape, offset }))
    }

    fn check_overlap(&self, tensors: &BTreeMap<String, TensorInfo>) -> std::result::Result<(), Stop> {
        let mut by_offset: Vec<_> = tensors.iter().collect();
        by_offset.sort_by_key(|(_, info)| info.offset);
        for pair in by_offset.windows(2) {
            let ((first, info), (second, next)) = (pair[0], pair[1]);
            if info.offset + info.n_bytes() > next.offset {
                return Err(self.corrupt(second, format!("the tensor overlaps {first}")));
            }
        }
        Ok(())
    }

    fn value(&mut self, kind: u32, key: &str) -> std::result::Result<Value, Stop> {
        Ok(match kind {
            0 => Value::Int(self.take(1)?[0] as i128),
            1 => Value::Int(self.take(1)?[0] as i8 as i128),
            2 => Value::Int(u16::from_le_bytes(self.array()?) as i128),
            3 => Value::Int(i16::from_le_bytes(self.array()?) as i128),
            4 => Value::Int(self.u32()? as i128),
            5 => Value::Int(i32::from_le_bytes(self.array()?) as i128),
            6 => Value::Float(f32::from_le_bytes(self.array()?) as f64),
            7 => Value::Bool(self.take(1)?[0] != 0),
            8 => Value::String(self.string(key)?),
            9 => {
                let element = self.u32()?;
                let count = self.u64()?;
                let start = self.pos;
                self.skip_elements(element, count, key)?;
                Value::Array(element, count as usize, start..self.pos)
            }
            10 => Value::Int(self.u64()? as i128),
            11 => Value::Int(i64::from_le_bytes(self.array()?) as i128),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.corrupt(key, format!("unknown value type {kind}"))),
        })
    }

    fn skip_elements(&mut self, element: u32, count: u64, key: &str) -> std::result::Result<(), Stop> {
        let size = match element {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                self.bounded(count.saturating_mul(8), key)?;
                for _ in 0..count {
                    let len = self.u64()?;
                    self.bounded(len, key)?;
                    self.take(len as usize)?;
                }
                return Ok(());
            }
            _ => return Err(self.corrupt(key, format!("arrays of value type {element} are not supported"))),
        };
        let n_bytes = count.saturating_mul(size);
        self.bounded(n_bytes, key)?;
        self.take(n_bytes as usize).map(|_| ())
    }

    /// Refuses lengths that the rest of the file cannot hold, before anything is allocated or fetched for them.
    fn bounded(&self, n_bytes: u64, field: &str) -> std::result::Result<(), Stop> {
        let left = self.file_size.saturating_sub(self.pos as u64);
        if n_bytes > left {
            return Err(self.corrupt(
                field,
                format!("{n_bytes} bytes declared, but the file has only {left} left: it is cut short or damaged"),
            ));
        }
        Ok(())
    }

    fn count(&mut self, field: &str, max: u64) -> std::result::Result<u64, Stop> {
        let count = self.u64()?;
        if count > max {
            return Err(self.corrupt(field, format!("{count} is more than {max}")));
        }
        Ok(count)
    }

    fn string(&mut self, field: &str) -> std::result::Result<String, Stop> {
        let len = self.u64()?;
        self.bounded(len, field)?;
        match std::str::from_utf8(self.take(len as usize)?) {
            Ok(text) => Ok(text.into()),
            // llama.cpp writes vocabularies as raw bytes: some entries are parts of UTF-8 sequences.
            Err(_) if self.file_size == u64::MAX => {
                Ok(String::from_utf8_lossy(&self.bytes[self.pos - len as usize..self.pos]).into())
            }
            Err(_) => Err(self.corrupt(field, "not valid UTF-8".into())),
        }
    }

    fn u32(&mut self) -> std::result::Result<u32, Stop> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> std::result::Result<u64, Stop> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> std::result::Result<[u8; N], Stop> {
        Ok(self.take(N)?.try_into().expect("take returns as many bytes as asked"))
    }

    fn take(&mut self, n: usize) -> std::result::Result<&'a [u8], Stop> {
        let end = self.pos.checked_add(n).filter(|&end| end <= self.bytes.len()).ok_or(Stop::NeedMore)?;
        let taken = &self.bytes[self.pos..end];
        self.pos = end;
        Ok(taken)
    }

    fn corrupt(&self, field: &str, problem: String) -> Stop {
        Stop::Error(Error::corrupt(self.file, field, problem))
    }
}

/// Builds the header of a GGUF file. The tensors' data follows in the order in which the tensors were added.
#[derive(Default)]
pub struct Header {
    keys: Vec<u8>,
    n_keys: u64,
    tensors: Vec<u8>,
    n_tensors: u64,
    data_bytes: u64,
}

/// Alignment of tensors in the files that this crate writes.
pub const ALIGNMENT: u64 = 32;

impl Header {
    /// Adds an unsigned integer.
    pub fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.key(key, 4, &value.to_le_bytes())
    }
    /// Adds a floating-point number.
    pub fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.key(key, 6, &value.to_le_bytes())
    }
    /// Adds a boolean.
    pub fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key, 7, &[value as u8])
    }
    /// Adds a string.
    pub fn string(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key, 8, &string_bytes(value))
    }
    /// Adds an array of unsigned integers.
    pub fn u32s(&mut self, key: &str, values: &[u32]) -> &mut Self {
        self.array(key, 4, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
    /// Adds an array of signed integers.
    pub fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        self.array(key, 5, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
    /// Adds an array of floating-point numbers.
    pub fn f32s(&mut self, key: &str, values: &[f32]) -> &mut Self {
        self.array(key, 6, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
    /// Adds an array of strings.
    pub fn strings<S: AsRef<str>>(&mut self, key: &str, values: &[S]) -> &mut Self {
        self.array(key, 8, values.len(), values.iter().flat_map(|value| string_bytes(value.as_ref())).collect())
    }

    /// Adds the next tensor; `shape` as PyTorch writes it. Returns the size of its data in bytes, before padding to
    /// [`ALIGNMENT`].
    pub fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> u64 {
        let n_cols = shape[shape.len() - 1];
        let n_rows: usize = shape[..shape.len() - 1].iter().product();
        let n_bytes = n_rows as u64 * dtype.row_bytes(n_cols) as u64;
        self.tensors.extend(string_bytes(name));
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        for &dim in shape.iter().rev() {
            self.tensors.extend((dim as u64).to_le_bytes());
        }
        self.tensors.extend(dtype.id().to_le_bytes());
        self.tensors.extend(self.data_bytes.to_le_bytes());
        self.n_tensors += 1;
        self.data_bytes += n_bytes.next_multiple_of(ALIGNMENT);
        n_bytes
    }

    /// The header, padded so that the tensors' data can follow directly.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.n_tensors.to_le_bytes());
        bytes.extend(self.n_keys.to_le_bytes());
        bytes.extend(&self.keys);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        bytes
    }

    /// Bytes of all added tensors, with their padding.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    fn array(&mut self, key: &str, element: u32, count: usize, elements: Vec<u8>) -> &mut Self {
        let mut bytes = element.to_le_bytes().to_vec();
        bytes.extend((count as u64).to_le_bytes());
        bytes.extend(elements);
        self.key(key, 9, &bytes)
    }

    fn key(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.keys.extend(string_bytes(key));
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.n_keys += 1;
        self
    }
}

fn string_bytes(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
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
