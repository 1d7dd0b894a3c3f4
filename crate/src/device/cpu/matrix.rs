//! A weight matrix as one rank holds it: some rows and columns of a stored tensor, in the layout that its kernel reads.
//!
//! Built from byte ranges of whole stored rows as they arrive ([`MatrixBuilder`]); multiplied with [`Activations`].
//! Quantized columns are kept in whole blocks of 32; columns in these blocks that a rank does not own are multiplied
//! with zero activations, so that any split of columns works.

use crate::device::Builder;
use crate::device::kernels::unpack::Unpacked;
use crate::device::kernels::{Kernel, Tiles, float};
use crate::device::layout::{Form, GROUP, Layout};
use crate::device::quant::BLOCK;
use crate::error::{Error, Result};
use crate::file::gguf::Dtype;
use std::ops::Range;

/// `n_rows` x `n_cols` weights.
pub struct Matrix {
    n_rows: usize,
    n_cols: usize,
    form: Stored,
    /// 16-byte units, for the alignment.
    data: Vec<u128>,
    n_bytes: usize,
}

/// How the weights are laid out in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stored {
    /// Groups of 8 rows in kernel form; the owned columns start at column `first` of the first block.
    Groups { layout: Layout, first: usize },
    /// F32, F16 or BF16 in panels of 8 rows, column by column; the last panel has only the remaining rows.
    Panels { dtype: Dtype },
}

impl Matrix {
    /// Number of rows, the length of a product.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Number of columns that this rank owns, the length of an activation.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        size_of_val(&self.data[..])
    }

    /// Bytes taken by `n_rows` rows of `dtype` of which the columns `cols` are held.
    pub fn held_bytes(dtype: Dtype, n_rows: usize, cols: &Range<usize>) -> u64 {
        match Layout::new(dtype, blocks(cols)) {
            Some(layout) => n_rows.div_ceil(GROUP) as u64 * layout.group_bytes() as u64,
            None => n_rows as u64 * dtype.row_bytes(cols.len()) as u64,
        }
    }

    /// Whether [`Activations`] loaded for one of the two also work for the other.
    pub fn same_input(&self, other: &Self) -> bool {
        self.n_cols == other.n_cols && self.form.input() == other.form.input()
    }

    /// Dequantizes the owned columns of one row (of an embedding table, say) into `out` (n_cols).
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let (group, row) = (row / GROUP, row % GROUP);
        match self.form {
            Stored::Groups { layout, first } => {
                let bytes = &self.bytes()[group * layout.group_bytes()..][..layout.group_bytes()];
                let mut whole = vec![0.0; layout.n_blocks * BLOCK];
                Unpacked::default().group(&layout, bytes).row(row, &mut whole);
                out.copy_from_slice(&whole[first..first + self.n_cols]);
            }
            Stored::Panels { dtype } => {
                let width = GROUP.min(self.n_rows - group * GROUP);
                let size = dtype.block_bytes();
                let panel = &self.bytes()[group * GROUP * self.n_cols * size..];
                for (out, column) in out.iter_mut().zip(panel.chunks_exact(width * size)) {
                    *out = float::decode(dtype, &column[row * size..][..size]);
                }
            }
        }
    }

    /// `out` (n_tokens, n_rows) = `x` (n_tokens, n_cols) times the transposed matrix.
    pub fn matmul(&self, x: &Activations, out: &mut [f32]) {
        self.matmul_by(Kernel::best(), x, out);
    }

    /// [`Matrix::matmul`] with a given kernel, for tests and benchmarks.
    pub fn matmul_by(&self, kernel: Kernel, x: &Activations, out: &mut [f32]) {
        assert_eq!(out.len(), x.n_tokens * self.n_rows);
        assert_eq!(x.n_cols, self.n_cols);
        assert_eq!(x.input, self.form.input(), "activations were loaded for another form");
        match self.form {
            Stored::Groups { layout, .. } => kernel.matmul(&layout, self.bytes(), self.n_rows, &x.tiles, out),
            Stored::Panels { dtype } => {
                float::matmul(dtype, self.bytes(), self.n_rows, &x.values, self.n_cols, out);
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.data)[..self.n_bytes]
    }
}

/// What 8-bit activations are loaded for: form, blocks, offsets per block, first column.
type Input = (Form, usize, usize, usize);

impl Stored {
    /// None: activations stay f32.
    fn input(&self) -> Option<Input> {
        match *self {
            Self::Groups { layout, first } => Some((layout.form, layout.n_blocks, layout.n_offsets(), first)),
            Self::Panels { .. } => None,
        }
    }
}

/// The right-hand side of products: activations in the number format that a matrix's kernel needs. Reused from product
/// to product; loading is cheap compared with a product, so it may be done for every matrix.
#[derive(Default)]
pub struct Activations {
    n_tokens: usize,
    n_cols: usize,
    input: Option<Input>,
    /// The values that are multiplied in f32.
    values: Vec<f32>,
    tiles: Tiles,
}

impl Activations {
    /// Takes `x` (n_tokens, matrix.n_cols()) for products with `matrix` and every other matrix that has
    /// [`Matrix::same_input`].
    pub fn load(&mut self, x: &[f32], n_tokens: usize, matrix: &Matrix) {
        assert_eq!(x.len(), n_tokens * matrix.n_cols());
        (self.n_tokens, self.n_cols, self.input) = (n_tokens, matrix.n_cols, matrix.form.input());
        match matrix.form {
            Stored::Groups { layout, first } => self.tiles.load(x, n_tokens, first, &layout),
            Stored::Panels { .. } => float::load(x, n_tokens, &mut self.values),
        }
    }

    /// Number of loaded tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }
}

/// Takes the bytes of whole stored rows in order, in pieces of any size, and keeps the owned columns in kernel form. At
/// most one group of rows is buffered in stored form.
pub struct MatrixBuilder {
    dtype: Dtype,
    n_cols: usize,
    row_bytes: usize,
    /// The byte range of the blocks kept of each row.
    kept: Range<usize>,
    n_groups_done: usize,
    n_pushed: u64,
    partial: Vec<u8>,
    /// The first group with a scale that is not finite.
    bad_group: Option<usize>,
    matrix: Matrix,
}

impl MatrixBuilder {
    /// For `n_rows` rows of `n_cols` stored weights each; the columns `cols` are this rank's.
    pub fn new(dtype: Dtype, n_rows: usize, n_cols: usize, cols: Range<usize>) -> Result<Self> {
        let blocks = blocks(&cols);
        let (form, n_bytes, kept) = match Layout::new(dtype, blocks.clone()) {
            Some(layout) => {
                let per_block = dtype.block_len() / BLOCK;
                let kept = blocks.start / per_block..blocks.end.div_ceil(per_block);
                let n_bytes = n_rows.div_ceil(GROUP).checked_mul(layout.group_bytes());
                let form = Stored::Groups { layout, first: cols.start - blocks.start * BLOCK };
                (form, n_bytes, kept.start * dtype.block_bytes()..kept.end * dtype.block_bytes())
            }
            None => {
                let kept = dtype.row_bytes(cols.start)..dtype.row_bytes(cols.end);
                (Stored::Panels { dtype }, n_rows.checked_mul(kept.len()), kept)
            }
        };
        let n_bytes = n_bytes.unwrap_or(usize::MAX);
        let mut data = Vec::new();
        data.try_reserve_exact(n_bytes.div_ceil(16))
            .map_err(|_| Error::OutOfMemory { what: format!("a matrix of {n_rows} rows"), bytes: n_bytes })?;
        Ok(Self {
            dtype,
            n_cols,
            row_bytes: dtype.row_bytes(n_cols),
            kept,
            n_groups_done: 0,
            n_pushed: 0,
            partial: Vec::new(),
            bad_group: None,
            matrix: Matrix { n_rows, n_cols: cols.len(), form, data, n_bytes },
        })
    }

    /// Writes the next group from the stored bytes of its rows.
    fn pack(&mut self, rows: &[u8]) {
        let group = self.n_groups_done;
        self.n_groups_done += 1;
        let group_bytes = match self.matrix.form {
            Stored::Groups { layout, .. } => layout.group_bytes(),
            Stored::Panels { .. } => GROUP * self.kept.len(),
        };
        let end = ((group + 1) * group_bytes).min(self.matrix.n_bytes);
        self.matrix.data.resize(end.div_ceil(16), 0);
        let group = &mut bytemuck::cast_slice_mut::<u128, u8>(&mut self.matrix.data)[group * group_bytes..end];
        let rows = rows.chunks_exact(self.row_bytes).map(|row| &row[self.kept.clone()]).enumerate();
        match self.matrix.form {
            Stored::Groups { layout, .. } => {
                for (row, stored) in rows {
                    layout.pack_row(stored, row, group);
                }
                if !layout.is_finite(group) {
                    self.bad_group.get_or_insert(self.n_groups_done - 1);
                }
            }
            Stored::Panels { dtype } => {
                let size = dtype.block_bytes();
                let n_rows = rows.len();
                for (row, stored) in rows {
                    match size {
                        2 => interleave::<2>(stored, row, n_rows, group),
                        _ => interleave::<4>(stored, row, n_rows, group),
                    }
                }
            }
        }
    }
}

impl Builder for MatrixBuilder {
    type Matrix = Matrix;

    /// Reserved memory is first touched when a group is written, so the system provides its pages between the reads.
    fn push(&mut self, mut bytes: &[u8]) {
        self.n_pushed += bytes.len() as u64;
        while !bytes.is_empty() {
            let n_rows = GROUP.min(self.matrix.n_rows - (self.n_groups_done * GROUP).min(self.matrix.n_rows));
            let wanted = n_rows * self.row_bytes;
            if wanted == 0 {
                // More than the tensor has: `finish` reports it.
                return;
            }
            if self.partial.is_empty() && bytes.len() >= wanted {
                let (group, rest) = bytes.split_at(wanted);
                self.pack(group);
                bytes = rest;
                continue;
            }
            let (more, rest) = bytes.split_at(bytes.len().min(wanted - self.partial.len()));
            self.partial.extend_from_slice(more);
            bytes = rest;
            if self.partial.len() == wanted {
                let mut group = std::mem::take(&mut self.partial);
                self.pack(&group);
                if self.n_groups_done * GROUP < self.matrix.n_rows {
                    group.clear();
                    self.partial = group;
                }
            }
        }
    }

    fn finish(self, name: &str) -> Result<Matrix> {
        let expected = self.matrix.n_rows as u64 * self.row_bytes as u64;
        if self.n_pushed != expected {
            return Err(Error::Shape {
                tensor: name.into(),
                expected: format!("{expected} bytes of {} x {} {}", self.matrix.n_rows, self.n_cols, self.dtype.name()),
                found: format!("{} bytes", self.n_pushed),
            });
        }
        if let Some(group) = self.bad_group {
            return Err(Error::Shape {
                tensor: name.into(),
                expected: "finite scales".into(),
                found: format!(
                    "others in rows {} to {}",
                    group * GROUP,
                    (group * GROUP + GROUP).min(self.matrix.n_rows) - 1
                ),
            });
        }
        Ok(self.matrix)
    }
}

/// The blocks that contain some columns; none for none.
fn blocks(cols: &Range<usize>) -> Range<usize> {
    cols.start / BLOCK..cols.end.div_ceil(BLOCK).max(cols.start / BLOCK)
}

/// Writes row `row` of a panel of `n_rows` rows whose values have `N` bytes.
fn interleave<const N: usize>(stored: &[u8], row: usize, n_rows: usize, panel: &mut [u8]) {
    let columns = panel.as_chunks_mut::<N>().0.chunks_exact_mut(n_rows);
    for (column, value) in columns.zip(stored.as_chunks::<N>().0) {
        column[row] = *value;
    }
}
