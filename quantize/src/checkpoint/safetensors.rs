//! safetensors files: the header is checked against the file's length before anything in it is trusted.

use crate::checkpoint::tensor::Tensor;
use crate::files::folder::{check_stand_in, failed};
use llama3med::{Error, Result};
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Longer headers are refused, as they are by the format's own library.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Reads a file's header: all its tensors by name.
pub fn open(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file_name = path.display().to_string();
    let corrupt = |field: &str, problem: String| Error::corrupt(&file_name, field, problem);
    let mut file = fs::File::open(path).map_err(|error| failed(path, "open", error))?;
    let size = file.metadata().map_err(|error| failed(path, "read", error))?.len();
    check_stand_in(path, &file)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|_| corrupt("header length", format!("the file is cut short: it has {size} bytes")))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES.min(size - 8) {
        let problem =
            format!("{length} bytes declared in a file of {size}: it is cut short, or not a safetensors file");
        return Err(corrupt("header length", problem));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|error| failed(path, "read", error))?;
    let names: Names = serde_json::from_slice(&header).map_err(|error| corrupt("header", error.to_string()))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| corrupt("header", error.to_string()))?;
    let found = size - 8 - length;
    if metadata.data_len() as u64 != found {
        let expected = metadata.data_len();
        let how = if found < expected as u64 { "cut short" } else { "longer than it says" };
        let problem = format!("the file is {how}: the header declares {expected} bytes of data, there are {found}");
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
        update: None,
    };
    let infos = names.0.into_iter().filter_map(|name| Some((metadata.info(&name)?, name)));
    Ok(infos.map(|(info, name)| (name.clone(), tensor(name, info))).collect())
}

/// The header's tensor names. A name that occurs twice is refused, because JSON parsers silently keep only one of the
/// two.
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
