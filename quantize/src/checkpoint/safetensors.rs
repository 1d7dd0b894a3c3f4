//! safetensors files, read in pieces: the header is checked against the file's length before anything is believed.
//!
//! Pieces are read rather than mapped: the memory in use stays what the tool asked for, and a file that shrinks meanwhile is an error, not a signal.

use crate::model_folder::failed;
use half::{bf16, f16};
use llama3med::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Longer headers are refused, as by the format's own library.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor in a file.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The file's name and the tensor's full name in it, for messages.
    pub file_name: String,
    /// Name in the file.
    pub name: String,
    /// Shape as stored.
    pub shape: Vec<usize>,
    dtype: Dtype,
    start: u64,
    file: Arc<fs::File>,
}

/// Reads a file's header: all its tensors by name.
pub fn open(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file_name = path.display().to_string();
    let corrupt = |field: &str, problem: String| Error::corrupt(&file_name, field, problem);
    let mut file = fs::File::open(path).map_err(|error| failed(path, "open", error))?;
    let size = file.metadata().map_err(|error| failed(path, "read", error))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| corrupt("header length", format!("the file has only {size} bytes")))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES.min(size - 8) {
        return Err(corrupt("header length", format!("{length} bytes announced in a file of {size}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|error| failed(path, "read", error))?;
    let names: Names = serde_json::from_slice(&header).map_err(|error| corrupt("header", error.to_string()))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| corrupt("header", error.to_string()))?;
    let found = size - 8 - length;
    if metadata.data_len() as u64 != found {
        let problem = format!("the header announces {} bytes of data, the file has {found}", metadata.data_len());
        return Err(corrupt("data", problem));
    }
    let file = Arc::new(file);
    let tensor = |name: String, info: &TensorInfo| Tensor {
        file_name: file_name.clone(),
        name,
        shape: info.shape.clone(),
        dtype: info.dtype,
        start: 8 + length + info.data_offsets.0 as u64,
        file: file.clone(),
    };
    let infos = names.0.into_iter().filter_map(|name| Some((metadata.info(&name)?, name)));
    Ok(infos.map(|(info, name)| (name.clone(), tensor(name, info))).collect())
}

impl Tensor {
    /// Fails unless the weights are f32, f16 or bf16.
    pub fn check_dtype(&self) -> Result<()> {
        match self.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
            other => {
                let problem = format!("expected weights in F32, F16 or BF16, found {other:?}");
                Err(Error::corrupt(&self.file_name, &self.name, problem))
            }
        }
    }

    /// Appends the weights of a range, counted in weights, as f32.
    pub fn read(&self, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let width = self.dtype.bitsize() / 8;
        let mut bytes = vec![0; range.len() * width];
        let at = self.start + (range.start * width) as u64;
        read_at(&self.file, &mut bytes, at)
            .map_err(|error| Error::corrupt(&self.file_name, &self.name, error.to_string()))?;
        match self.dtype {
            Dtype::F32 => out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            Dtype::F16 => out.extend(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())),
            Dtype::BF16 => out.extend(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())),
            _ => self.check_dtype()?,
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_at(file: &fs::File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn read_at(file: &fs::File, mut bytes: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, at)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        (bytes, at) = (&mut bytes[n..], at + n as u64);
    }
    Ok(())
}

/// The header's tensor names; a name that occurs twice, of which JSON readers silently keep one, is refused.
struct Names(BTreeSet<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(NamesVisitor)
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = Names;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Names, A::Error> {
        let mut names = BTreeSet::new();
        while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
            if names.contains(&name) {
                return Err(serde::de::Error::custom(format!("tensor {name} occurs twice")));
            }
            names.insert(name);
        }
        names.remove("__metadata__");
        Ok(Names(names))
    }
}
