//! Reads the header of a GGUF file, which may be of any length, forged or damaged.

use super::{Gguf, TensorInfo, Value, describe};
use crate::error::{Error, stand_in};
use llama3med_arithmetic::dtype::Dtype;
use std::collections::BTreeMap;

// Far above any real model; keeps a forged count from costing time.
const MAX_TENSORS: u64 = 1 << 16;
const MAX_KEYS: u64 = 1 << 16;
const MAX_DIMS: u32 = 4;
const MAX_ELEMENTS: u64 = 1 << 40;

/// Why reading stopped.
pub(super) enum Stop {
    NeedMore,
    Error(Error),
}

/// Reads a header from the first bytes of a file.
pub(super) struct Reader<'a> {
    pub(super) file: &'a str,
    pub(super) bytes: &'a [u8],
    pub(super) pos: usize,
    pub(super) file_size: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn header(&mut self) -> std::result::Result<Gguf, Stop> {
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

    pub(super) fn value(&mut self, kind: u32, key: &str) -> std::result::Result<Value, Stop> {
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
