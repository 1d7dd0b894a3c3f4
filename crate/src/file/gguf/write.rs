//! Writes the header of a GGUF file.

use super::ARCHITECTURE_KEY;
use llama3med_arithmetic::dtype::Dtype;

/// Builds the header of a GGUF file. The tensors' data follows in the order in which the tensors were added.
#[derive(Default)]
pub struct Header {
    pub(super) keys: Vec<u8>,
    pub(super) n_keys: u64,
    tensors: Vec<u8>,
    pub(super) n_tensors: u64,
    pub(super) data_bytes: u64,
}

/// Alignment of tensors in the files that this crate writes.
pub const ALIGNMENT: u64 = 32;

pub(super) const TITLE_KEY: &str = "general.name";

impl Header {
    /// Begins the header of a model's file with what all of them say; `title` is the model's name.
    pub fn of_model(&mut self, architecture: &str, title: &str) -> &mut Self {
        self.string(ARCHITECTURE_KEY, architecture).string(TITLE_KEY, title).u32("general.quantization_version", 2)
    }
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
