//! Files written by `torch.save` (`pytorch_model.bin`, `checkpoint.pth`): a zip archive with one pickle of tensors and
//! one plain entry per storage.
//!
//! A pickle is a program. Here it runs on a machine that knows only the instructions `torch.save` emits and can make
//! only dictionaries, tuples and tensors. A name that is not on the list, such as `os.system`, stops reading with an
//! error that says so, and nothing is ever called. Weights stay in the file until they are read, piece by piece.

use crate::checkpoint::tensor::{Tensor, read_at};
use crate::files::folder::{check_stand_in, failed};
use llama3med::{Error, Result};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use zip::{CompressionMethod, ZipArchive};

/// The largest models' pickles have a few hundred kilobytes; every byte may cost the machine a few dozen bytes of
/// memory.
const MAX_PICKLE_BYTES: u64 = 4 << 20;
/// Keys under which training scripts store the weights beside other things.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// Reads a file's pickle: all its tensors by name.
pub fn open(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file_name = path.display().to_string();
    let corrupt = |field: &str, problem: String| Error::corrupt(&file_name, field, problem);
    let file = Arc::new(fs::File::open(path).map_err(|error| failed(path, "open", error))?);
    let size = file.metadata().map_err(|error| failed(path, "read", error))?.len();
    check_stand_in(path, &file)?;
    let mut magic = [0; 4];
    if size < 4 || read_at(&file, &mut magic, 0).is_err() || magic[..2] != *b"PK" {
        let problem = "not the zip archive that torch.save writes since version 1.6: save it again with a newer torch, or as safetensors";
        return Err(corrupt("zip", problem.into()));
    }
    // The archive's directory is at its end.
    let cut = |error| corrupt("zip", format!("the file is cut short or damaged, after {size} bytes: {error}"));
    let mut archive = ZipArchive::new(&*file).map_err(cut)?;
    let mut entries = BTreeMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(|error| corrupt("zip", error.to_string()))?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let start = entry.data_start().ok_or_else(|| corrupt(&name, "its data is not in the file".into()))?;
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(corrupt(
                &name,
                "expected an entry as torch.save writes it, neither compressed nor encrypted".into(),
            ));
        }
        if start.checked_add(entry.size()).is_none_or(|end| end > size) {
            return Err(corrupt(&name, format!("{} bytes declared at {start} of {size}", entry.size())));
        }
        let place = Place { start, n_bytes: entry.size() };
        entries.insert(name, place);
    }
    let pickle = entries.keys().find_map(|name| Some((name.strip_suffix("data.pkl")?.to_owned(), entries[name])));
    let (root, place) = pickle.ok_or_else(|| corrupt("zip", "there is no data.pkl in it".into()))?;
    if place.n_bytes > MAX_PICKLE_BYTES {
        return Err(corrupt("data.pkl", format!("{} bytes, at most {MAX_PICKLE_BYTES} are read", place.n_bytes)));
    }
    let read = |place: Place| {
        let mut bytes = vec![0; place.n_bytes as usize];
        read_at(&file, &mut bytes, place.start).map(|_| bytes).map_err(|error| failed(path, "read", error))
    };
    if let Some(&order) = entries.get(&format!("{root}byteorder"))
        && (order.n_bytes > 16 || read(order)? != b"little")
    {
        return Err(corrupt("byteorder", "expected weights in little-endian order".into()));
    }
    let bytes = read(place)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in self::tensors(&bytes).map_err(|problem| corrupt("data.pkl", problem))? {
        let entry = format!("{root}data/{}", view.key);
        let storage = entries.get(&entry).ok_or_else(|| corrupt(&name, format!("its storage {entry} is missing")))?;
        let start = view.start(storage.n_bytes).map_err(|problem| corrupt(&name, problem))?;
        let tensor = Tensor {
            file_name: file_name.clone(),
            name: name.clone(),
            shape: view.shape,
            dtype: view.dtype,
            start: storage.start + start,
            file: file.clone(),
            update: None,
        };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(corrupt(&name, "the tensor occurs twice".into()));
        }
    }
    Ok(tensors)
}

/// Runs a pickle: its tensors with their names, in its order, or what is wrong and at which byte.
pub fn tensors(pickle: &[u8]) -> std::result::Result<Vec<(String, View)>, String> {
    let mut machine = Machine::new(pickle);
    let top = machine.run().map_err(|problem| format!("byte {}: {problem}", machine.at))?;
    machine.state_dict(top)
}

/// Where an entry of the archive is in the file.
#[derive(Clone, Copy)]
struct Place {
    start: u64,
    n_bytes: u64,
}

/// A tensor as the pickle describes it: a view of a storage.
#[derive(Debug, Clone)]
pub struct View {
    dtype: Dtype,
    /// Name of the storage's entry in the archive, under `data/`.
    key: String,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// First byte within a storage of `n_bytes`; fails unless the weights are contiguous and all present.
    fn start(&self, n_bytes: u64) -> Problem<u64> {
        let mut n_weights = 1usize;
        for (&dim, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if dim > 1 && stride != n_weights {
                return Err(format!("shape {:?} with strides {:?} is not contiguous", self.shape, self.strides));
            }
            n_weights = n_weights.checked_mul(dim).ok_or_else(|| format!("absurd shape {:?}", self.shape))?;
        }
        let width = self.dtype.bitsize() / 8;
        let start = self.offset.checked_mul(width);
        let end = n_weights.checked_add(self.offset).and_then(|end| end.checked_mul(width));
        match (start, end) {
            (Some(start), Some(end)) if end as u64 <= n_bytes => Ok(start as u64),
            _ => Err(format!("{n_weights} weights from {} on, in a storage of {n_bytes} bytes", self.offset)),
        }
    }
}

type Problem<T> = std::result::Result<T, String>;

/// A position in the pickle's bytes.
type Text = (usize, usize);

/// The names that may occur.
#[derive(Debug, Clone, Copy)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

fn global(module: &[u8], name: &[u8]) -> Problem<Global> {
    Ok(match (module, name) {
        (b"collections", b"OrderedDict") => Global::OrderedDict,
        (b"torch._utils", b"_rebuild_tensor_v2") => Global::RebuildTensor,
        (b"torch._utils", b"_rebuild_parameter") => Global::RebuildParameter,
        (b"torch", b"FloatStorage") => Global::Storage(Dtype::F32),
        (b"torch", b"HalfStorage") => Global::Storage(Dtype::F16),
        (b"torch", b"BFloat16Storage") => Global::Storage(Dtype::BF16),
        (b"torch", b"DoubleStorage") => Global::Storage(Dtype::F64),
        (b"torch", b"LongStorage") => Global::Storage(Dtype::I64),
        (b"torch", b"IntStorage") => Global::Storage(Dtype::I32),
        (b"torch", b"ShortStorage") => Global::Storage(Dtype::I16),
        (b"torch", b"CharStorage") => Global::Storage(Dtype::I8),
        (b"torch", b"ByteStorage") => Global::Storage(Dtype::U8),
        (b"torch", b"BoolStorage") => Global::Storage(Dtype::BOOL),
        _ => {
            let clean = |text: &[u8]| String::from_utf8_lossy(&text[..text.len().min(60)]).escape_debug().to_string();
            let what = "it asks for {}, and nothing but tensors is read: save the state_dict alone, or as safetensors";
            return Err(what.replace("{}", &format!("{}.{}", clean(module), clean(name))));
        }
    })
}

/// A value on the stack. Everything of variable size is in the machine's own lists: values are freely copied, and none
/// contains another.
#[derive(Debug, Clone, Copy)]
enum Value {
    Mark,
    /// None, a boolean, a number that is not an index, a list: not needed here.
    Opaque,
    Int(i64),
    Text(Text),
    Global(Global),
    /// `tuples[start..][..n]`.
    Tuple(usize, usize),
    /// `dicts[i]`.
    Dict(usize),
    /// Type and key.
    Storage(Dtype, Text),
    /// `views[i]`.
    Tensor(usize),
}

/// The pickle machine.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: BTreeMap<u32, Value>,
    tuples: Vec<Value>,
    dicts: Vec<Vec<(Value, Value)>>,
    views: Vec<View>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let (stack, tuples, dicts, views) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { bytes, at: 0, stack, memo: BTreeMap::new(), tuples, dicts, views }
    }

    /// Runs to the end and returns the top of the stack.
    fn run(&mut self) -> Problem<Value> {
        loop {
            let [code] = self.take()?;
            match code {
                b'.' => return self.pop(),
                0x80 => {
                    let [protocol] = self.take()?;
                    if protocol != 2 {
                        return Err(format!("expected pickle protocol 2 as torch.save uses it, found {protocol}"));
                    }
                }
                b'q' | b'r' => {
                    let key = if code == b'q' { self.take::<1>()?[0].into() } else { self.u32()? };
                    let top = *self.stack.last().ok_or("an instruction found the stack empty")?;
                    self.memo.insert(key, top);
                }
                b'a' => drop(self.pop()?),
                // The state of an ordered dictionary is what torch stores beside the weights.
                b'b' => drop(self.pop()?),
                b'e' => {
                    let n = self.above_mark()?;
                    self.stack.truncate(self.stack.len() - n - 1);
                }
                b's' => self.set_items(2, 0)?,
                b'u' => {
                    let n = self.above_mark()?;
                    self.set_items(n, 1)?;
                }
                _ => {
                    let value = self.value(code)?;
                    self.stack.push(value);
                }
            }
        }
    }

    /// What an instruction puts on the stack.
    fn value(&mut self, code: u8) -> Problem<Value> {
        Ok(match code {
            b'(' => Value::Mark,
            b'N' | 0x88 | 0x89 | b']' => Value::Opaque,
            b'G' => self.take::<8>().map(|_| Value::Opaque)?,
            b'J' => self.take().map(|b| Value::Int(i32::from_le_bytes(b).into()))?,
            b'K' => self.take().map(|b| Value::Int(u8::from_le_bytes(b).into()))?,
            b'M' => self.take().map(|b| Value::Int(u16::from_le_bytes(b).into()))?,
            0x8a => self.long()?,
            b'X' => {
                let n = self.u32()? as usize;
                let text = (self.at, n);
                self.skip(n)?;
                Value::Text(text)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                Value::Global(global(module, name)?)
            }
            b'h' | b'j' => {
                let key = if code == b'h' { self.take::<1>()?[0].into() } else { self.u32()? };
                *self.memo.get(&key).ok_or_else(|| format!("nothing was kept as {key}"))?
            }
            b')' => self.tuple(0)?,
            0x85..=0x87 => self.tuple((code - 0x84) as usize)?,
            b't' => {
                let n = self.above_mark()?;
                let tuple = self.tuple(n)?;
                let _mark = self.pop()?;
                tuple
            }
            b'}' => {
                self.dicts.push(Vec::new());
                Value::Dict(self.dicts.len() - 1)
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)?
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.reduce(function, arguments)?
            }
            other => return Err(format!("instruction {other:#04x} is not one that torch.save writes")),
        })
    }

    fn take<const N: usize>(&mut self) -> Problem<[u8; N]> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk());
        self.at += N;
        bytes.copied().ok_or_else(|| "the pickle ends in the middle".into())
    }

    fn u32(&mut self) -> Problem<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn skip(&mut self, n: usize) -> Problem<&'a [u8]> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.get(..n));
        self.at = self.at.saturating_add(n);
        bytes.ok_or_else(|| "the pickle ends in the middle".into())
    }

    fn line(&mut self) -> Problem<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let n = rest.iter().position(|&byte| byte == b'\n').ok_or("the pickle ends in the middle")?;
        self.skip(n + 1).map(|line| &line[..n])
    }

    /// An integer of up to 255 bytes, little-endian, signed; weight counts have up to 8 bytes.
    fn long(&mut self) -> Problem<Value> {
        let [n] = self.take()?;
        let bytes = self.skip(n.into())?;
        if bytes.len() > 8 {
            return Ok(Value::Opaque);
        }
        let sign = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn pop(&mut self) -> Problem<Value> {
        self.stack.pop().ok_or_else(|| "an instruction found the stack empty".into())
    }

    /// Values above the latest mark.
    fn above_mark(&self) -> Problem<usize> {
        let n = self.stack.iter().rev().position(|value| matches!(value, Value::Mark));
        n.ok_or_else(|| "an instruction found no mark".into())
    }

    fn tuple(&mut self, n: usize) -> Problem<Value> {
        let first = self.stack.len().checked_sub(n).ok_or("an instruction found the stack empty")?;
        let start = self.tuples.len();
        self.tuples.extend(self.stack.drain(first..));
        Ok(Value::Tuple(start, n))
    }

    /// Puts the `n` topmost values, as pairs, into the dictionary below them and `n_marks`.
    fn set_items(&mut self, n: usize, n_marks: usize) -> Problem<()> {
        let first = self.stack.len().checked_sub(n).ok_or("an instruction found the stack empty")?;
        let items: Vec<Value> = self.stack.drain(first..).collect();
        self.stack.truncate(self.stack.len() - n_marks);
        let Some(&Value::Dict(dict)) = self.stack.last() else { return Err("items for what is no dictionary".into()) };
        if n % 2 != 0 {
            return Err("a dictionary's key has no value".into());
        }
        self.dicts[dict].extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    fn elements(&self, value: Value) -> Problem<&[Value]> {
        match value {
            Value::Tuple(start, n) => Ok(&self.tuples[start..start + n]),
            other => Err(format!("expected a tuple, found {other:?}")),
        }
    }

    fn text(&self, (start, n): Text) -> Problem<&'a str> {
        std::str::from_utf8(&self.bytes[start..start + n]).map_err(|error| format!("text at byte {start}: {error}"))
    }

    /// ("storage", type, key, device, number of weights).
    fn storage(&self, id: Value) -> Problem<Value> {
        match self.elements(id)? {
            &[Value::Text(kind), Value::Global(Global::Storage(dtype)), Value::Text(key), _, _]
                if self.text(kind)? == "storage" =>
            {
                Ok(Value::Storage(dtype, key))
            }
            other => Err(format!("expected a storage, found {other:?}").chars().take(200).collect()),
        }
    }

    fn reduce(&mut self, function: Value, arguments: Value) -> Problem<Value> {
        let arguments = self.elements(arguments)?;
        match (function, arguments) {
            (Value::Global(Global::OrderedDict), []) => {
                self.dicts.push(Vec::new());
                Ok(Value::Dict(self.dicts.len() - 1))
            }
            (Value::Global(Global::RebuildParameter), &[Value::Tensor(view), ..]) => Ok(Value::Tensor(view)),
            (
                Value::Global(Global::RebuildTensor),
                &[Value::Storage(dtype, key), Value::Int(offset), shape, strides, ..],
            ) => {
                let sizes = |tuple| -> Problem<Vec<usize>> {
                    let size = |value: &Value| match value {
                        Value::Int(n) => usize::try_from(*n).map_err(|_| format!("a size of {n}")),
                        other => Err(format!("expected a size, found {other:?}")),
                    };
                    let elements = self.elements(tuple)?;
                    if elements.len() > 16 {
                        return Err(format!("a tensor of {} dimensions", elements.len()));
                    }
                    elements.iter().map(size).collect()
                };
                let (shape, strides) = (sizes(shape)?, sizes(strides)?);
                if shape.len() != strides.len() {
                    return Err(format!("shape {shape:?} with strides {strides:?}"));
                }
                let key = self.text(key)?.to_owned();
                let offset = usize::try_from(offset).map_err(|_| format!("a storage offset of {offset}"))?;
                self.views.push(View { dtype, key, offset, shape, strides });
                Ok(Value::Tensor(self.views.len() - 1))
            }
            (function, _) => Err(format!("{function:?} cannot be made from its arguments")),
        }
    }

    /// The tensors of the outermost dictionary, or of the one in it where training scripts put them.
    fn state_dict(&self, top: Value) -> Problem<Vec<(String, View)>> {
        let Value::Dict(top) = top else { return Err(format!("expected a dictionary of tensors, found {top:?}")) };
        let mut items = &self.dicts[top];
        let is_tensor = |(_, value): &(Value, Value)| matches!(value, Value::Tensor(_));
        if !items.iter().any(is_tensor) {
            let inner = |wrapper: &&str| {
                let named = |key: Value| matches!(key, Value::Text(text) if self.text(text) == Ok(*wrapper));
                items.iter().find_map(|&(key, value)| match value {
                    Value::Dict(dict) if named(key) => Some(&self.dicts[dict]),
                    _ => None,
                })
            };
            items = WRAPPERS.iter().find_map(inner).unwrap_or(items);
        }
        let mut tensors = Vec::new();
        for (key, value) in items {
            let &Value::Tensor(view) = value else { continue };
            let Value::Text(name) = *key else { return Err(format!("a tensor is named {key:?}")) };
            tensors.push((self.text(name)?.to_owned(), self.views[view].clone()));
        }
        if tensors.is_empty() {
            return Err("there is no tensor in it".into());
        }
        Ok(tensors)
    }
}
