//! A tensor in a file: where its weights are. They are read in pieces as f32; if there is an adapter, its low-rank
//! update is added on the fly.
//!
//! Pieces are read rather than mapped: the tool controls how much memory is in use, and a file that shrinks meanwhile
//! causes an error, not a signal.

use half::{bf16, f16};
use llama3med::file::gguf;
use llama3med::{Error, Result};
use safetensors::Dtype;
use std::fs;
use std::ops::Range;
use std::sync::Arc;

/// A tensor in a file.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The file's name and the tensor's full name in it, for error messages.
    pub file_name: String,
    /// Name in the file.
    pub name: String,
    /// Shape as stored.
    pub shape: Vec<usize>,
    pub(super) dtype: Dtype,
    /// Offset of the first weight in the file; the others follow contiguously.
    pub(super) start: u64,
    pub(super) file: Arc<fs::File>,
    /// What an adapter adds to a matrix.
    pub(super) update: Option<Arc<LowRank>>,
}

/// `scale * B A`, the update that LoRA learns for a matrix (n_rows, n_cols) (arXiv 2106.09685).
#[derive(Debug)]
pub struct LowRank {
    /// A: (rank, n_cols).
    pub a: Tensor,
    /// B: (n_rows, rank).
    pub b: Tensor,
    /// alpha / rank, or alpha / sqrt(rank) if it is rank-stabilised (arXiv 2312.03732).
    pub scale: f32,
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

    /// The format that stores these weights without loss.
    pub fn exact_dtype(&self) -> gguf::Dtype {
        match (self.dtype, &self.update) {
            (Dtype::F16, None) => gguf::Dtype::F16,
            (Dtype::BF16, None) => gguf::Dtype::Bf16,
            _ => gguf::Dtype::F32,
        }
    }

    /// Identifies these weights: their file with its size and modification time, their offset in it, and what is added
    /// to them.
    pub fn source(&self) -> String {
        let file = self.file.metadata().map(|file| (file.len(), file.modified().ok()));
        let update = self.update.as_ref().map(|update| (update.a.source(), update.b.source(), update.scale));
        format!("{} {} {:?} {} {file:?} {update:?}", self.file_name, self.name, self.dtype, self.start)
    }

    /// The same matrix with an update, whose shapes must match.
    pub fn updated(self, update: LowRank) -> Result<Self> {
        let LowRank { a, b, .. } = &update;
        let fits = match (&self.shape[..], &a.shape[..], &b.shape[..]) {
            (&[n_rows, n_cols], &[rank, a_cols], &[b_rows, b_rank]) => {
                (n_rows, n_cols, rank) == (b_rows, a_cols, b_rank)
            }
            _ => false,
        };
        if !fits {
            let problem = format!("{:?} and {:?} do not multiply to a matrix of {:?}", b.shape, a.shape, self.shape);
            return Err(Error::corrupt(&b.file_name, &b.name, problem));
        }
        a.check_dtype()?;
        b.check_dtype()?;
        Ok(Self { update: Some(Arc::new(update)), ..self })
    }

    /// Appends the weights of a range, counted in weights, as f32. With an update the range must be whole rows.
    pub fn read(&self, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let width = self.dtype.bitsize() / 8;
        let mut bytes = vec![0; range.len() * width];
        let at = self.start + (range.start * width) as u64;
        read_at(&self.file, &mut bytes, at)
            .map_err(|error| Error::corrupt(&self.file_name, &self.name, error.to_string()))?;
        let first = out.len();
        match self.dtype {
            Dtype::F32 => out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            Dtype::F16 => out.extend(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())),
            Dtype::BF16 => out.extend(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())),
            _ => self.check_dtype()?,
        }
        match &self.update {
            Some(update) => update.add(range, &mut out[first..]),
            None => Ok(()),
        }
    }
}

impl LowRank {
    /// Adds the update to the rows whose weights are `range` of the whole matrix.
    fn add(&self, range: Range<usize>, rows: &mut [f32]) -> Result<()> {
        let (rank, n_cols) = (self.a.shape[0], self.a.shape[1]);
        let (first, last) = (range.start / n_cols, range.end / n_cols);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        self.a.read(0..rank * n_cols, &mut a)?;
        self.b.read(first * rank..last * rank, &mut b)?;
        for (row, b) in rows.chunks_exact_mut(n_cols).zip(b.chunks_exact(rank)) {
            for (&b, a) in b.iter().zip(a.chunks_exact(n_cols)) {
                let factor = self.scale * b;
                row.iter_mut().zip(a).for_each(|(weight, a)| *weight += factor * a);
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
pub(super) fn read_at(file: &fs::File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
pub(super) fn read_at(file: &fs::File, mut bytes: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, at)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        (bytes, at) = (&mut bytes[n..], at + n as u64);
    }
    Ok(())
}
