//! Which part of which tensor a rank holds, and how a file's bytes get there.
//!
//! The tables of [`crate::spec`] become [`Want`]s; a [`Loader`] checks them against a file's header, lists the byte
//! ranges it needs, takes those bytes in file order, and hands out the finished [`Tensors`].

use crate::device::cpu::matrix::{Matrix, MatrixBuilder};
use crate::device::quant::BLOCK;
use crate::device::{Builder, Device};
use crate::error::{Error, Result};
use crate::file::gguf::{Dtype, Gguf, TensorInfo};
use std::collections::BTreeMap;
use std::ops::Range;

/// One of several ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub n_ranks: usize,
}

impl Shard {
    /// This rank's part of `n` rows or columns, cut only at multiples of `unit`. Part sizes differ by at most one unit,
    /// and parts may be empty.
    pub fn share(self, n: usize, unit: usize) -> Range<usize> {
        let n_units = n.div_ceil(unit);
        let cut = |rank: usize| (n_units * rank / self.n_ranks * unit).min(n);
        cut(self.rank)..cut(self.rank + 1)
    }

    /// This rank's part of `n` columns, in the pieces from which its sums are computed: over all ranks, the same pieces
    /// on 1, 2 or [`N_PARTS`] ranks.
    ///
    /// Added pairwise, first within a rank and then between ranks, they give the same bits on any of these numbers of
    /// ranks. This matters beyond the last bit: activations are rounded to 8 bits, where a difference in the last bit
    /// sometimes becomes a whole step.
    pub fn parts(self, n: usize, unit: usize) -> Vec<Range<usize>> {
        let n_parts = if N_PARTS.is_multiple_of(self.n_ranks) { N_PARTS / self.n_ranks } else { 1 };
        let part = |part| Shard { rank: self.rank * n_parts + part, n_ranks: self.n_ranks * n_parts };
        (0..n_parts).map(|idx| part(idx).share(n, unit)).collect()
    }
}

/// Parts of a sum over ranks.
pub const N_PARTS: usize = 4;

/// Attention heads as one rank holds them: whole query heads, and the key/value heads that they read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadShare {
    /// This rank's query heads.
    pub heads: Range<usize>,
    /// The key/value heads that they read. Neighbouring ranks may hold the same key/value head.
    pub kv_heads: Range<usize>,
}

impl HeadShare {
    /// Splits `n_heads` query heads, `n_heads / n_kv_heads` of which share a key/value head. `unit` heads stay
    /// together.
    pub fn new(shard: Shard, n_heads: usize, n_kv_heads: usize, unit: usize) -> Self {
        let heads = shard.share(n_heads, unit);
        let group = n_heads / n_kv_heads;
        let kv_heads = if heads.is_empty() { 0..0 } else { heads.start / group..heads.end.div_ceil(group) };
        Self { heads, kv_heads }
    }

    /// How many heads must stay together so that their columns in the output matrix are whole blocks of activations.
    /// Then every number of ranks rounds the same blocks, and answers differ only by the order of sums. 1 if `output`
    /// is stored without blocks.
    pub fn unit(output: &TensorInfo, head_dim: usize) -> usize {
        if output.dtype.block_len() == 1 { 1 } else { BLOCK >> head_dim.trailing_zeros().min(BLOCK.ilog2()) }
    }

    /// For each of this rank's query heads, the key/value head that it reads, counted from this rank's first.
    pub fn kv_head_of_each(&self, n_heads: usize, n_kv_heads: usize) -> Vec<usize> {
        let group = n_heads / n_kv_heads;
        self.heads.clone().map(|head| head / group - self.kv_heads.start).collect()
    }
}

/// A tensor, its required shape, and the part that this rank holds. A vector is a matrix of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Name in the file.
    pub name: String,
    /// Rows and columns of the whole tensor.
    pub shape: (usize, usize),
    /// Rows held.
    pub rows: Range<usize>,
    /// Columns held.
    pub cols: Range<usize>,
    /// The index of this part among several parts of the tensor on this rank.
    pub part: usize,
    /// Whether it is multiplied as a matrix; otherwise its values are used.
    pub is_matrix: bool,
}

impl Want {
    /// The whole tensor, on every rank.
    pub fn whole(name: impl Into<String>, n_rows: usize, n_cols: usize) -> Self {
        Self { name: name.into(), shape: (n_rows, n_cols), rows: 0..n_rows, cols: 0..n_cols, part: 0, is_matrix: true }
    }

    /// Some rows: a part of the products.
    pub fn rows(name: impl Into<String>, n_rows: usize, n_cols: usize, rows: Range<usize>) -> Self {
        Self { rows, ..Self::whole(name, n_rows, n_cols) }
    }

    /// Some columns: a part of every product's sum; or a part of a vector.
    pub fn cols(name: impl Into<String>, n_rows: usize, n_cols: usize, cols: Range<usize>) -> Self {
        Self { cols, ..Self::whole(name, n_rows, n_cols) }
    }

    /// Columns in several parts, each of which becomes a separate matrix: see [`Shard::parts`].
    pub fn col_parts(name: &str, n_rows: usize, n_cols: usize, parts: &[Range<usize>]) -> impl Iterator<Item = Self> {
        let want =
            move |(part, cols): (usize, &Range<usize>)| Self { part, ..Self::cols(name, n_rows, n_cols, cols.clone()) };
        parts.iter().enumerate().map(want)
    }
}

/// Routes the bytes of one file to the tensors of one rank.
pub struct Loader<D: Device> {
    file: String,
    entries: Vec<Entry<D>>,
    n_total: u64,
    n_fed: u64,
}

struct Entry<D: Device> {
    name: String,
    part: usize,
    range: Range<u64>,
    n_pushed: u64,
    arriving: Arriving<D>,
}

enum Arriving<D: Device> {
    Matrix(D::Builder),
    /// Decoded on the processor when it is complete.
    Values(MatrixBuilder),
}

impl<D: Device> Loader<D> {
    /// Checks `wants` against the header and reserves the memory for them. A tensor that nothing wants is an error: it
    /// would change the answer.
    pub fn new(device: &D, gguf: &Gguf, wants: &[Want]) -> Result<Self> {
        let surplus = gguf.tensors.keys().find(|name| !wants.iter().any(|want| &want.name == *name));
        if let Some(name) = surplus {
            return Err(Error::corrupt(
                &gguf.file,
                name,
                "this tensor is not part of the model that the metadata describes",
            ));
        }
        let mut entries = Vec::with_capacity(wants.len());
        for want in wants {
            let info = gguf.tensor(&want.name)?;
            if (info.n_rows, info.n_cols) != want.shape {
                return Err(Error::Shape {
                    tensor: want.name.clone(),
                    expected: format!("[{}, {}]", want.shape.0, want.shape.1),
                    found: format!("{:?}", info.shape),
                });
            }
            let (n_rows, cols) = (want.rows.len(), want.cols.clone());
            let arriving = match want.is_matrix {
                true => Arriving::Matrix(device.builder(info.dtype, n_rows, info.n_cols, cols)?),
                false => Arriving::Values(MatrixBuilder::new(info.dtype, n_rows, info.n_cols, cols)?),
            };
            let range = info.rows(want.rows.clone());
            entries.push(Entry { name: want.name.clone(), part: want.part, range, n_pushed: 0, arriving });
        }
        entries.sort_by_key(|entry| entry.range.start);
        // Parts of one tensor share its bytes.
        let n_total =
            entries.iter().filter(|entry| entry.part == 0).map(|entry| entry.range.end - entry.range.start).sum();
        Ok(Self { file: gguf.file.clone(), entries, n_total, n_fed: 0 })
    }

    /// The byte ranges of the file that this rank needs: sorted, disjoint, neighbours joined.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for entry in self.entries.iter().filter(|entry| !entry.range.is_empty()) {
            match ranges.last_mut() {
                Some(last) if last.end >= entry.range.start => last.end = last.end.max(entry.range.end),
                _ => ranges.push(entry.range.clone()),
            }
        }
        ranges
    }

    /// Takes the bytes of the file that start at `offset`. Unneeded bytes may be left out; the bytes of one tensor must
    /// come in order.
    pub fn feed(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset + bytes.len() as u64;
        let first = self.entries.partition_point(|entry| entry.range.end <= offset);
        for entry in self.entries[first..].iter_mut().take_while(|entry| entry.range.start < end) {
            let from = entry.range.start.max(offset);
            let to = entry.range.end.min(end);
            if from >= to {
                continue;
            }
            let next = entry.range.start + entry.n_pushed;
            if from != next {
                let problem = format!("expected the bytes at {next}, got those at {from}");
                return Err(Error::corrupt(&self.file, &entry.name, problem));
            }
            let bytes = &bytes[(from - offset) as usize..(to - offset) as usize];
            match &mut entry.arriving {
                Arriving::Matrix(builder) => builder.push(bytes),
                Arriving::Values(builder) => builder.push(bytes),
            }
            entry.n_pushed += to - from;
            if entry.part == 0 {
                self.n_fed += to - from;
            }
        }
        Ok(())
    }

    /// Bytes taken, and total bytes needed.
    pub fn progress(&self) -> (u64, u64) {
        (self.n_fed, self.n_total)
    }

    /// The tensors; fails with the name of the first incomplete one.
    pub fn finish(self, device: &mut D) -> Result<Tensors<'_, D>> {
        let (mut matrices, mut values) = (BTreeMap::new(), BTreeMap::new());
        for Entry { name, part, arriving, .. } in self.entries {
            match arriving {
                Arriving::Matrix(builder) => {
                    let matrix = builder.finish(&name)?;
                    matrices.insert((name, part), matrix);
                }
                Arriving::Values(builder) => {
                    let matrix = builder.finish(&name)?;
                    values.insert(name, matrix);
                }
            }
        }
        Ok(Tensors { device, file: self.file, matrices, values })
    }
}

/// Loaded tensors, to be taken out by name, each once.
pub struct Tensors<'a, D: Device> {
    device: &'a mut D,
    file: String,
    matrices: BTreeMap<(String, usize), D::Matrix>,
    values: BTreeMap<String, Matrix>,
}

impl<D: Device> Tensors<'_, D> {
    /// The device that has them.
    pub fn device(&self) -> &D {
        self.device
    }

    /// Takes a tensor as a matrix.
    pub fn matrix(&mut self, name: &str) -> Result<D::Matrix> {
        let missing = || Error::MissingTensor { file: self.file.clone(), tensor: name.into() };
        self.matrices.remove(&(name.into(), 0)).ok_or_else(missing)
    }

    /// Takes all parts of a tensor that was requested in parts.
    pub fn parts(&mut self, name: &str) -> Result<Vec<D::Matrix>> {
        let mut parts = vec![self.matrix(name)?];
        while let Some(part) = self.matrices.remove(&(name.into(), parts.len())) {
            parts.push(part);
        }
        Ok(parts)
    }

    /// Takes a small tensor as f32 values, row by row.
    pub fn values(&mut self, name: &str) -> Result<Vec<f32>> {
        let rows = self.rows(name)?;
        let mut values = vec![0.0; rows.n_rows() * rows.n_cols()];
        if rows.n_cols() > 0 {
            for (row, values) in values.chunks_exact_mut(rows.n_cols()).enumerate() {
                rows.row(row, values);
            }
        }
        Ok(values)
    }

    /// Takes a small tensor to the device, as a matrix with rows of `n_cols`.
    pub fn reshaped(&mut self, name: &str, n_cols: usize) -> Result<D::Matrix> {
        let rows = self.rows(name)?;
        let n_rows = rows.n_rows() * rows.n_cols() / n_cols.max(1);
        let mut builder = self.device.builder(Dtype::F32, n_rows, n_cols, 0..n_cols)?;
        let mut values = vec![0.0; rows.n_cols()];
        for row in 0..rows.n_rows() {
            rows.row(row, &mut values);
            builder.push(bytemuck::cast_slice(&values));
        }
        builder.finish(name)
    }

    fn rows(&mut self, name: &str) -> Result<Matrix> {
        let missing = || Error::MissingTensor { file: self.file.clone(), tensor: name.into() };
        self.values.remove(name).ok_or_else(missing)
    }

    /// Takes a vector to the device, as one row.
    pub fn buffer(&mut self, name: &str) -> Result<D::Buffer> {
        let values = self.values(name)?;
        Ok(self.upload(values, 1))
    }

    /// Takes `name.bias`; `None` if the model has none, which its [`crate::spec`] says.
    pub fn bias(&mut self, name: &str) -> Result<Option<D::Buffer>> {
        let name = format!("{name}.bias");
        if self.values.contains_key(&name) { self.buffer(&name).map(Some) } else { Ok(None) }
    }

    /// Values made from some, on the device.
    pub fn upload(&mut self, values: Vec<f32>, n_rows: usize) -> D::Buffer {
        let mut buffer = D::Buffer::default();
        self.device.upload(values, n_rows, &mut buffer);
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::device::ranks::Alone;
    use crate::file::gguf::Header;

    #[test]
    fn shares_tile_the_whole_at_units() {
        for (n, unit) in [(1, 1), (7, 1), (64, 32), (100, 32), (3, 1)] {
            for n_ranks in 1..=9 {
                let mut next = 0;
                for rank in 0..n_ranks {
                    let share = Shard { rank, n_ranks }.share(n, unit);
                    assert_eq!(share.start, next);
                    assert!(share.start.is_multiple_of(unit) || share.start == n);
                    next = share.end;
                }
                assert_eq!(next, n);
            }
        }
    }

    #[test]
    fn query_heads_find_their_key_heads() {
        let share = HeadShare::new(Shard { rank: 1, n_ranks: 3 }, 6, 2, 1);
        assert_eq!((share.heads.clone(), share.kv_heads.clone()), (2..4, 0..2));
        assert_eq!(share.kv_head_of_each(6, 2), [0, 1]);
        let share = HeadShare::new(Shard { rank: 3, n_ranks: 4 }, 8, 1, 1);
        assert_eq!(share.kv_head_of_each(8, 1), [0, 0]);
    }

    #[test]
    fn parts_are_cut_at_the_same_places_on_1_2_and_4_ranks() {
        for (n, unit) in [(4096, 32), (100, 32), (24, 4), (3, 1)] {
            let cuts = |n_ranks| -> Vec<Range<usize>> {
                (0..n_ranks).flat_map(|rank| Shard { rank, n_ranks }.parts(n, unit)).collect()
            };
            assert!([1, 2].iter().all(|&n_ranks| cuts(n_ranks) == cuts(4)));
            for n_ranks in 1..=9 {
                let shard = Shard { rank: n_ranks / 2, n_ranks };
                let parts: Vec<_> = shard.parts(n, unit).into_iter().flatten().collect();
                assert_eq!(parts, shard.share(n, unit).collect::<Vec<_>>());
            }
        }
    }

    fn file() -> (Gguf, Vec<u8>) {
        let mut header = Header::default();
        header.tensor("norm", Dtype::F32, &[3]);
        header.tensor("w", Dtype::F32, &[4, 5]);
        let mut bytes = header.to_bytes();
        let data = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        bytes.extend(data(&[1.0, 2.0, 3.0]));
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(data(&(0..20).map(|i| i as f32).collect::<Vec<_>>()));
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        (Gguf::parse("x.gguf", &bytes, bytes.len() as u64).unwrap().unwrap(), bytes)
    }

    #[test]
    fn bytes_in_pieces_of_any_size_become_slices() {
        let (gguf, bytes) = file();
        for piece in [1, 7, 40, 1000] {
            let mut device = Cpu::new(Alone);
            let mut wants = [Want::whole("norm", 1, 3), Want { cols: 1..3, ..Want::rows("w", 4, 5, 2..4) }];
            wants.iter_mut().for_each(|want| want.is_matrix = false);
            let mut loader = Loader::new(&device, &gguf, &wants).unwrap();
            assert_eq!(loader.ranges().len(), 2);
            for (i, piece_bytes) in bytes.chunks(piece).enumerate() {
                loader.feed((i * piece) as u64, piece_bytes).unwrap();
            }
            let mut tensors = loader.finish(&mut device).unwrap();
            assert_eq!(tensors.values("norm").unwrap(), [1.0, 2.0, 3.0]);
            assert_eq!(tensors.values("w").unwrap(), [11.0, 12.0, 16.0, 17.0]);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (gguf, bytes) = file();
        let mut device = Cpu::new(Alone);
        let message = |wants: &[Want]| Loader::new(&device, &gguf, wants).err().unwrap().to_string();
        assert!(message(&[Want::whole("norm", 1, 3)]).starts_with("x.gguf: w: this tensor is not part"));
        let (norm, w) = (Want::whole("norm", 1, 3), Want::whole("w", 4, 5));
        assert_eq!(message(&[norm.clone(), w.clone(), Want::whole("gone", 1, 1)]), "x.gguf: tensor gone is missing");
        assert_eq!(message(&[norm.clone(), Want::whole("w", 5, 4)]), "tensor w: expected [5, 4], found [4, 5]");
        let mut loader = Loader::new(&device, &gguf, &[norm, w]).unwrap();
        let at = gguf.tensors["w"].offset;
        let error = loader.feed(at + 4, &bytes[at as usize + 4..]).unwrap_err().to_string();
        assert!(error.starts_with("x.gguf: w: expected the bytes at"), "{error}");
        assert!(loader.finish(&mut device).is_err());
    }
}
