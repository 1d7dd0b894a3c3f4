//! The only interface to the kernels: products of weights in kernel form with 8-bit activations.
//!
//! Each [`Kernel`] does the same arithmetic. `reference` is the definition, in plain loops; `simd128`, `relaxed` and
//! `avx2` match it bit for bit: the sums over a block are integers, and what follows is the same sequence of f32
//! operations for every row, without fused multiply-add. On wasm the build decides which kernels exist (feature
//! `relaxed-simd`); natively, the processor does.
//!
//! ```text
//! out = sum over blocks of  a * (factor * I - offset * M)      a: scale of the token's block; factor, offset: f32 scales of the row
//!                      or  a * (factor * (I - M))              where both f32 scales are one (all forms but Q4K)
//! I = sum over both halves of the block of  scale * sum of quant * activation
//! M = sum over both halves of the block of  min * sum of activation                             all of these integers
//! ```
//!
//! What a type adds to whole blocks, beyond its form, is added to the finished sums, in the same way for every kernel.

#[cfg(target_arch = "x86_64")]
mod avx2;
pub mod float;
mod reference;
#[cfg(all(target_arch = "wasm32", feature = "relaxed-simd"))]
mod relaxed;
#[cfg(all(target_arch = "wasm32", not(feature = "relaxed-simd")))]
mod simd128;
pub mod unpack;
#[cfg(target_arch = "wasm32")]
mod wasm;

use crate::layout::{Form, GROUP, Group, Layout};
use crate::quant::BLOCK;
use std::hint::black_box;
use unpack::Unpacked;

/// Tokens of a full tile: they share the unpacking of each block of weights, which is then cheap compared with the
/// products.
pub const TILE: usize = 16;

/// Size of a chunk of tiles: its activations stay in the processor's cache while all row groups are multiplied with it.
const CHUNK_BYTES: usize = 512 << 10;

/// 8-bit activations as this build's kernel reads them: `i16` where bytes would have to be widened at every use.
#[cfg(not(all(target_arch = "wasm32", not(feature = "relaxed-simd"))))]
type Quant = i8;
/// See above.
#[cfg(all(target_arch = "wasm32", not(feature = "relaxed-simd")))]
type Quant = i16;

/// The storage order of each four columns: the widened form pairs even columns and odd columns.
const ORDER: [usize; 4] = if size_of::<Quant>() == 2 { [0, 2, 1, 3] } else { [0, 1, 2, 3] };

/// Bytes of one token's quants in a block.
const QUANT_BYTES: usize = BLOCK * size_of::<Quant>();

/// Bytes of one token's block: quants, scale and two terms.
const TOKEN_BYTES: usize = QUANT_BYTES + 12;

/// Sums of a tile: 8 rows of up to [`TILE`] tokens.
pub type Sums = [[f32; GROUP]; TILE];

/// One implementation of the products.
#[derive(Clone, Copy)]
pub struct Kernel {
    /// The name, for tests and benchmarks.
    pub name: &'static str,
    multiply: fn(&Group, &Tile, &mut Sums),
}

impl Kernel {
    /// The definition.
    pub const REFERENCE: Self = Self { name: "reference", multiply: reference::multiply };

    #[cfg(all(target_arch = "wasm32", feature = "relaxed-simd"))]
    const RELAXED: Self = Self { name: "relaxed", multiply: relaxed::multiply::<true> };
    #[cfg(all(target_arch = "wasm32", feature = "relaxed-simd"))]
    const RELAXED_NARROW: Self = Self { name: "relaxed, 16-bit sums", multiply: relaxed::multiply::<false> };

    /// The fastest kernel that runs here.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            return Self { name: "avx2", multiply: avx2::multiply };
        }
        #[cfg(all(target_arch = "wasm32", not(feature = "relaxed-simd")))]
        return Self { name: "simd128", multiply: simd128::multiply };
        #[cfg(all(target_arch = "wasm32", feature = "relaxed-simd"))]
        return if relaxed::is_wide_faster() { Self::RELAXED } else { Self::RELAXED_NARROW };
        #[cfg(not(target_arch = "wasm32"))]
        Self::REFERENCE
    }

    /// Every kernel that runs here, the definition first.
    pub fn all() -> Vec<Self> {
        #[cfg(all(target_arch = "wasm32", feature = "relaxed-simd"))]
        return vec![Self::REFERENCE, Self::RELAXED, Self::RELAXED_NARROW];
        #[cfg(not(all(target_arch = "wasm32", feature = "relaxed-simd")))]
        if Self::best().name == Self::REFERENCE.name {
            vec![Self::REFERENCE]
        } else {
            vec![Self::REFERENCE, Self::best()]
        }
    }

    /// `out` (n_tokens, n_rows) = activations times the transposed matrix whose groups are in `bytes`.
    #[inline(never)]
    pub fn matmul(self, layout: &Layout, bytes: &[u8], n_rows: usize, x: &Tiles, out: &mut [f32]) {
        assert_eq!((x.n_blocks, x.n_offsets, x.form), (layout.n_blocks, layout.n_offsets(), Some(layout.form)));
        assert_eq!(out.len(), x.n_tokens * n_rows);
        let tiles_per_chunk = (CHUNK_BYTES / (TILE * x.n_blocks * TOKEN_BYTES).max(1)).max(1);
        let mut sums = [[0.0; GROUP]; TILE];
        let mut unpacked = Unpacked::default();
        for first_tile in (0..x.n_tiles()).step_by(tiles_per_chunk) {
            let tiles = first_tile..x.n_tiles().min(first_tile + tiles_per_chunk);
            for (group, bytes) in bytes.chunks_exact(layout.group_bytes().max(1)).enumerate() {
                let (group, first_row) = (unpacked.group(layout, bytes), group * GROUP);
                let n = GROUP.min(n_rows - first_row);
                for tile_idx in tiles.clone() {
                    let tile = x.tile(tile_idx);
                    (self.multiply)(&group, &tile, &mut sums);
                    if !group.offsets.is_empty() {
                        float::add_panel(group.offsets, x.sums(tile_idx), &mut sums[..tile.n_tokens]);
                    }
                    for (token, sums) in sums[..tile.n_tokens].iter().enumerate() {
                        let at = (tile_idx * TILE + token) * n_rows + first_row;
                        match out[at..at + n].as_mut_array() {
                            Some(out) => *out = *sums,
                            None => out[at..at + n].copy_from_slice(&sums[..n]),
                        }
                    }
                }
            }
        }
    }
}

/// Activations in 8 bits, in tiles of [`TILE`] tokens (the last may have fewer).
///
/// A tile is a run of blocks; a block of `t` tokens is `t` x 32 quants, `t` x f32 scale, `t` x two [`terms`].
#[derive(Default)]
pub struct Tiles {
    form: Option<Form>,
    n_tokens: usize,
    n_blocks: usize,
    n_offsets: usize,
    bytes: Vec<u8>,
    /// (n_tokens, n_blocks * n_offsets): the sums of the rounded activations, for each block or half block.
    sums: Vec<f32>,
}

impl Tiles {
    /// Quantizes `x` (n_tokens, n_cols) for such weights. `x` starts at column `first` of rows with as many blocks as
    /// `layout`; the rest is zero.
    #[inline(never)]
    pub fn load(&mut self, x: &[f32], n_tokens: usize, first: usize, layout: &Layout) {
        let (form, n_blocks, n_offsets) = (layout.form, layout.n_blocks, layout.n_offsets());
        (self.form, self.n_tokens, self.n_blocks, self.n_offsets) = (Some(form), n_tokens, n_blocks, n_offsets);
        self.sums.clear();
        self.bytes.resize(n_tokens * n_blocks * TOKEN_BYTES, 0);
        let n_cols = x.len() / n_tokens.max(1);
        for token in 0..n_tokens {
            let (tile, place) = (token / TILE, token % TILE);
            let in_tile = TILE.min(n_tokens - tile * TILE);
            let tile = &mut self.bytes[tile * TILE * n_blocks * TOKEN_BYTES..][..in_tile * n_blocks * TOKEN_BYTES];
            let row = &x[token * n_cols..][..n_cols];
            for (block, bytes) in tile.chunks_exact_mut(in_tile * TOKEN_BYTES).enumerate() {
                let from = (block * BLOCK).max(first);
                let to = (block * BLOCK + BLOCK).min(first + n_cols);
                let mut values = [0.0; BLOCK];
                if to - from.min(to) == BLOCK {
                    values.copy_from_slice(&row[from - first..to - first]);
                } else if from < to {
                    values[from - block * BLOCK..to - block * BLOCK].copy_from_slice(&row[from - first..to - first]);
                }
                let quantized = float::quantize(&values);
                store(bytes, in_tile, place, &quantized, form);
                let [first, second] = quantized.sums.map(i32::from);
                match n_offsets {
                    0 => {}
                    1 => self.sums.push(quantized.scale * (first + second) as f32),
                    _ => self.sums.extend([first, second].map(|sum| quantized.scale * sum as f32)),
                }
            }
        }
    }

    /// The sums for a tile's tokens.
    fn sums(&self, tile_idx: usize) -> &[f32] {
        let in_tile = TILE * self.n_blocks * self.n_offsets;
        &self.sums[tile_idx * in_tile..][..in_tile.min(self.sums.len() - tile_idx * in_tile)]
    }

    /// Number of tokens loaded.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    fn n_tiles(&self) -> usize {
        self.n_tokens.div_ceil(TILE)
    }

    fn tile(&self, idx: usize) -> Tile<'_> {
        let n_tokens = TILE.min(self.n_tokens - idx * TILE);
        let token_bytes = self.n_blocks * TOKEN_BYTES;
        let bytes = &self.bytes[idx * TILE * token_bytes..][..n_tokens * token_bytes];
        Tile { n_tokens, n_blocks: self.n_blocks, bytes }
    }
}

/// Some tokens' activations over all blocks; only [`Tiles`] makes them, so the kernels may rely on the lengths.
struct Tile<'a> {
    n_tokens: usize,
    n_blocks: usize,
    bytes: &'a [u8],
}

impl Tile<'_> {
    fn block(&self, block: usize) -> &[u8] {
        let n_bytes = self.n_tokens * TOKEN_BYTES;
        &self.bytes[block * n_bytes..][..n_bytes]
    }

    /// The quant of one token and column.
    fn quant(&self, block: usize, token: usize, col: usize) -> i32 {
        let place = token * BLOCK + col / 4 * 4 + ORDER[col % 4];
        let bytes = &self.block(block)[place * size_of::<Quant>()..][..size_of::<Quant>()];
        bytemuck::pod_read_unaligned::<Quant>(bytes) as i32
    }

    /// The scale of one token and block.
    fn scale(&self, block: usize, token: usize) -> f32 {
        bytemuck::pod_read_unaligned(&self.block(block)[self.n_tokens * QUANT_BYTES + 4 * token..][..4])
    }
}

/// Brings `bytes` into the cache with one load per cache line. Such loads, issued back to back, run at full memory
/// speed; mixed with products, only a few are in flight at a time, and each is waited for. (wasm has no prefetch
/// instruction.)
#[inline]
pub(crate) fn fetch(bytes: &[u8]) {
    let runs = bytes.as_chunks::<512>().0.iter();
    black_box(runs.fold(0, |lines, run| run.iter().step_by(64).fold(lines, |lines, byte| lines | byte)));
}

/// Corrections for a token's products with unsigned quants: -8 M' as i32 for Q4 and, in 16ths, for Q8; M' as f32 for
/// Q4K, where M' is the sum of the activations; -32 times the sum of each half for Q6K, as i32. The definition does not
/// need them.
fn terms(form: Form, [first, second]: [i16; 2]) -> [i32; 2] {
    let (first, second) = (first as i32, second as i32);
    match form {
        Form::Q4 | Form::Q8 => [-8 * (first + second), 0],
        Form::Q4K => [((first + second) as f32).to_bits() as i32, 0],
        Form::Q6K => [-32 * first, -32 * second],
    }
}

fn store(block: &mut [u8], n_tokens: usize, token: usize, quantized: &float::Quantized, form: Form) {
    let (quants, rest) = block.split_at_mut(n_tokens * QUANT_BYTES);
    let (scales, corrections) = rest.split_at_mut(4 * n_tokens);
    let quants = &mut quants[token * QUANT_BYTES..][..QUANT_BYTES];
    let ordered: [Quant; BLOCK] = std::array::from_fn(|i| quantized.quants[i / 4 * 4 + ORDER[i % 4]] as Quant);
    quants.copy_from_slice(bytemuck::bytes_of(&ordered));
    scales[4 * token..][..4].copy_from_slice(&quantized.scale.to_le_bytes());
    corrections[8 * token..][..8].copy_from_slice(bytemuck::bytes_of(&terms(form, quantized.sums)));
}
