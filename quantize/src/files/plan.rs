//! A GGUF file before it is written: its header, and what makes its tensors.

use llama3med::file::gguf::{ALIGNMENT, Dtype, Gguf, Header};
use llama3med::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;

/// Weights in a piece that one thread processes at a time: with two pieces per thread this bounds memory use.
const PIECE_WEIGHTS: usize = 1 << 20;

/// Returns the bytes of some rows of a tensor.
pub type Rows<'a> = Box<dyn Fn(Range<usize>) -> Result<Vec<u8>> + Send + Sync + 'a>;

/// A GGUF file to be written: its header, and the sources of its tensors.
pub struct Plan<'a> {
    pub(super) header: Header,
    pub(super) tensors: Vec<Planned<'a>>,
}

/// A tensor of a planned file.
pub(super) struct Planned<'a> {
    pub n_rows: usize,
    pub n_cols: usize,
    pub n_bytes: u64,
    pub rows: Rows<'a>,
}

impl<'a> Plan<'a> {
    /// Starts with a header that already has its keys.
    pub fn new(header: Header) -> Self {
        Self { header, tensors: Vec::new() }
    }

    /// Adds a tensor.
    pub fn push(&mut self, name: &str, dtype: Dtype, shape: &[usize], rows: Rows<'a>) {
        let n_bytes = self.header.tensor(name, dtype, shape);
        let n_cols = shape[shape.len() - 1];
        let n_rows = shape[..shape.len() - 1].iter().product();
        self.tensors.push(Planned { n_rows, n_cols, n_bytes, rows });
    }

    /// Size of the file in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.header.to_bytes().len() as u64 + self.header.data_bytes()
    }

    /// The header as a reader will see it, and the file's size.
    pub fn gguf(&self, name: &str) -> Result<(Gguf, u64)> {
        let gguf = Gguf::parse(name, &self.header.to_bytes(), self.n_bytes())?;
        Ok((gguf.ok_or_else(|| Error::corrupt(name, "header", "it is incomplete"))?, self.n_bytes()))
    }
}

/// A planned file that is read without being written: its tensors are computed piece by piece as they are read.
pub struct Unwritten<'a> {
    header: Vec<u8>,
    tensors: Vec<Planned<'a>>,
}

impl<'a> From<Plan<'a>> for Unwritten<'a> {
    fn from(plan: Plan<'a>) -> Self {
        Self { header: plan.header.to_bytes(), tensors: plan.tensors }
    }
}

impl Unwritten<'_> {
    /// The header's bytes.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Size of the file in bytes.
    pub fn size(&self) -> u64 {
        let place = |start: u64, tensor: &Planned| (start + tensor.n_bytes).next_multiple_of(ALIGNMENT);
        self.tensors.iter().fold(self.header.len() as u64, place)
    }

    /// A byte range of the file.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let header =
            &self.header[self.header.len().min(range.start as usize)..self.header.len().min(range.end as usize)];
        let (mut bytes, mut start) = (header.to_vec(), self.header.len() as u64);
        for tensor in &self.tensors {
            let (from, to) = (range.start.max(start), range.end.min(start + tensor.n_bytes));
            if from < to {
                let row_bytes = tensor.n_bytes / tensor.n_rows as u64;
                let rows = ((from - start) / row_bytes) as usize..(to - start).div_ceil(row_bytes) as usize;
                let n_before = (from - start) as usize - rows.start * row_bytes as usize;
                let pieces = tensor.pieces(rows).into_par_iter().map(|rows| (tensor.rows)(rows));
                let made = pieces.collect::<Result<Vec<_>>>()?.concat();
                bytes.extend_from_slice(&made[n_before..n_before + (to - from) as usize]);
            }
            start = (start + tensor.n_bytes).next_multiple_of(ALIGNMENT);
            // Zeros between two tensors.
            let n_so_far = range.end.min(start).saturating_sub(range.start) as usize;
            bytes.resize(n_so_far.max(bytes.len()), 0);
        }
        Ok(bytes)
    }
}

impl Planned<'_> {
    /// Rows in pieces that one thread processes at a time.
    pub fn pieces(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let piece_rows = (PIECE_WEIGHTS / self.n_cols).max(1);
        rows.clone().step_by(piece_rows).map(|row| row..(row + piece_rows).min(rows.end)).collect()
    }
}
