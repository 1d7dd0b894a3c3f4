//! Weights as the kernels read them: groups of 8 rows, divided into blocks of 32 columns.
//!
//! All quants are unsigned; a weight is `scale * quant - min`. A group is several runs of bytes, one after the other:
//!
//! ```text
//! heads   f32, one for 256 columns   Q4K: 8 d, 8 dmin     Q6K: 8 d; for types with mins 8 dmin after all d
//! scales  one per block              Q4: 8 x f16          Q8: 8 x f32       Q4K: 8 x u8 scale, 8 x u8 min     Q6K: 8 x (i8, i8)
//! values  one per block              Q4, Q4K: 4 x 32 bytes of nibbles       Q8, Q6K: 8 x 32 bytes, or planes
//!
//! 32 bytes of values:  row 0: c c+1 c+2 c+3   row 1: c c+1 c+2 c+3   ...   row 7: c c+1 c+2 c+3
//! nibbles, step j of 4: low nibbles are columns c = 4 j, high nibbles are columns c = 16 + 4 j
//! bytes, step j of 8: c = 4 j
//! ```
//!
//! So a vector register of 16 (32) bytes is multiplied with 4 consecutive activations, repeated 4 (8) times, and the
//! sums of 4 (8) rows are adjacent lanes. Rows missing from the last group have scale 0. All numbers of the stored form
//! are kept exactly.
//!
//! Four forms serve all types. Each is made for the type it is named after; the other types are also integers with
//! scales ([`Sub`]), and use the form that fits:
//!
//! ```text
//! Q4   Q4_0, Q4_1*             Q8   Q8_0, Q5_0, Q5_1*, IQ4_NL, IQ4_XS (values of the codebook)
//! Q4K  Q4_K                    Q6K  Q6_K, Q5_K*, Q3_K, Q2_K*
//! ```
//!
//! Values with fewer bits than their form has are stored in planes, and are expanded to the form's bytes just before a
//! group is used (`kernels::unpack`):
//!
//! ```text
//! a plane of b bits is b x 32 bytes: step j of the form is at byte 32 (j mod b), b bits starting at bit b (j / b)
//! Q2_K 2 bits   Q3_K 2 + 1   IQ4_NL, IQ4_XS 4 (codebook indices)   Q5_0, Q5_1, Q5_K 4 + 1
//! ```
//!
//! Types with a star add a number to all weights of a block or of half a block. It is stored after the values, and is
//! multiplied with the sums of the activations:
//!
//! ```text
//! Q4_1, Q5_1  8 x f32 an addend      Q5_K  8 x u8 a min      Q2_K  8 x (4 bits, 4 bits), a min per half;
//!                                                                  min times dmin is subtracted
//! ```

use crate::dtype::Dtype;
use crate::quant::{BLOCK, Sub, f16_at, has_codebook, q4_k_scale_min};
use half::f16;
use std::ops::Range;

/// Rows per group.
pub const GROUP: usize = 8;

/// Blocks per super-block of the K formats.
pub(crate) const SUPER: usize = 8;

/// The integer kernel forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Nibbles, min = 8 scales.
    Q4,
    /// Bytes, min = 128 scales.
    Q8,
    /// Nibbles, scale and min of 6 bits per block.
    Q4K,
    /// 6-bit values in bytes, min = 32 scales, one signed scale per 16 columns.
    Q6K,
}

impl Form {
    /// The form that `dtype` is multiplied in; `None` for floating-point formats.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::Q4_0 | Dtype::Q4_1 => Some(Self::Q4),
            Dtype::Q8_0 | Dtype::Q5_0 | Dtype::Q5_1 | Dtype::IQ4_NL | Dtype::IQ4_XS => Some(Self::Q8),
            Dtype::Q4K => Some(Self::Q4K),
            Dtype::Q6K | Dtype::Q5K | Dtype::Q3K | Dtype::Q2K => Some(Self::Q6K),
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => None,
        }
    }

    /// Bytes of a super-block's heads.
    pub(crate) const fn head_bytes(self) -> usize {
        match self {
            Self::Q4 | Self::Q8 => 0,
            Self::Q4K => 64,
            Self::Q6K => 32,
        }
    }

    const fn scale_bytes(self) -> usize {
        match self {
            Self::Q8 => 32,
            Self::Q4 | Self::Q4K | Self::Q6K => 16,
        }
    }

    /// Bytes of a block's values, unpacked from their planes.
    pub(crate) const fn value_bytes(self) -> usize {
        match self {
            Self::Q4 | Self::Q4K => 128,
            Self::Q8 | Self::Q6K => 256,
        }
    }

    /// The unsigned quant of a weight of 0.
    const fn zero(self) -> u8 {
        match self {
            Self::Q4 | Self::Q4K => 0,
            Self::Q8 => 128,
            Self::Q6K => 32,
        }
    }
}

/// What a type adds to the weights of a block, beyond its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offsets {
    None,
    /// An f32.
    Addend,
    /// An integer min, whose factor is a head; one per block, or one per half.
    Mins(usize),
}

/// Shape of a group: what is stored in it, and which columns it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The stored type.
    pub dtype: Dtype,
    /// Form of the values.
    pub form: Form,
    /// Blocks per row.
    pub n_blocks: usize,
    /// Index of the first block within its stored block: 0..8 if stored blocks have 256 columns, else 0.
    pub first_sub: usize,
}

/// The runs of bytes of a group.
pub(crate) struct Runs<'a> {
    /// As in [`Group`].
    pub heads: &'a [u8],
    /// f32 factors of mins.
    pub min_heads: &'a [u8],
    /// As in [`Group`].
    pub scales: &'a [u8],
    /// Values, as described by [`Layout::planes`].
    pub values: &'a [u8],
    /// Addends or mins.
    pub offsets: &'a [u8],
}

impl Layout {
    /// For the blocks `blocks` of a stored row of `dtype`; `None` for floating-point formats.
    pub fn new(dtype: Dtype, blocks: Range<usize>) -> Option<Self> {
        let first_sub = blocks.start % (dtype.block_len() / BLOCK).max(1);
        Form::of(dtype).map(|form| Self { dtype, form, n_blocks: blocks.len(), first_sub })
    }

    /// Bits of a value in each of its two planes, low bits first; `None` if values are stored as in the form.
    pub(crate) const fn planes(&self) -> Option<[usize; 2]> {
        match self.dtype {
            Dtype::Q2K => Some([2, 0]),
            Dtype::Q3K => Some([2, 1]),
            Dtype::IQ4_NL | Dtype::IQ4_XS => Some([4, 0]),
            Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q5K => Some([4, 1]),
            _ => None,
        }
    }

    /// The unsigned quant of a value whose planes are 0.
    pub(crate) const fn bias(&self) -> u8 {
        let least = match self.dtype {
            Dtype::Q3K => 4,
            Dtype::Q5_0 => 16,
            _ => 0,
        };
        self.form.zero() - least
    }

    pub(crate) const fn offsets(&self) -> Offsets {
        match self.dtype {
            Dtype::Q4_1 | Dtype::Q5_1 => Offsets::Addend,
            Dtype::Q5K => Offsets::Mins(1),
            Dtype::Q2K => Offsets::Mins(2),
            _ => Offsets::None,
        }
    }

    /// How many numbers are added to the weights of a block: 2 if each half has its own.
    pub const fn n_offsets(&self) -> usize {
        match self.offsets() {
            Offsets::None => 0,
            Offsets::Addend => 1,
            Offsets::Mins(n) => n,
        }
    }

    fn n_heads(&self) -> usize {
        if self.form.head_bytes() > 0 { (self.first_sub + self.n_blocks).div_ceil(SUPER) } else { 0 }
    }

    /// Lengths of the runs of a group.
    fn run_bytes(&self) -> [usize; 5] {
        let value_bytes = self.planes().map_or(self.form.value_bytes(), |[low, high]| 32 * (low + high));
        let (min_head_bytes, offset_bytes) = match self.offsets() {
            Offsets::None => (0, 0),
            Offsets::Addend => (0, 32),
            Offsets::Mins(_) => (32, 8),
        };
        [
            self.n_heads() * self.form.head_bytes(),
            self.n_heads() * min_head_bytes,
            self.n_blocks * self.form.scale_bytes(),
            self.n_blocks * value_bytes,
            self.n_blocks * offset_bytes,
        ]
    }

    /// Bytes of one group, a multiple of 16.
    pub fn group_bytes(&self) -> usize {
        self.run_bytes().iter().sum::<usize>().next_multiple_of(16)
    }

    /// Whether no floating-point scale of a group is NaN or infinite: kernels may rely on this.
    #[inline(never)]
    pub fn is_finite(&self, bytes: &[u8]) -> bool {
        self.runs(bytes).is_finite(self)
    }

    /// The runs of one group.
    pub(crate) fn runs<'a>(&self, bytes: &'a [u8]) -> Runs<'a> {
        assert_eq!(bytes.len(), self.group_bytes());
        let mut rest = bytes;
        let [heads, min_heads, scales, values, offsets] = self.run_bytes().map(|n| {
            let (run, more) = rest.split_at(n);
            rest = more;
            run
        });
        Runs { heads, min_heads, scales, values, offsets }
    }

    /// Writes row `row` (0..8) of a group, from the stored `bytes` of the blocks that contain this layout's blocks.
    /// Rows that are never written must be zero.
    #[inline(never)]
    pub fn pack_row(&self, bytes: &[u8], row: usize, group: &mut [u8]) {
        let mut rest = group;
        let [heads, min_heads, scales, values, offsets] = self.run_bytes().map(|n| {
            let (run, more) = std::mem::take(&mut rest).split_at_mut(n);
            rest = more;
            run
        });
        match self.dtype {
            Dtype::Q4_0 => pack_blocks::<18, 16, 128>(bytes, row, 0, scales, values),
            Dtype::Q8_0 => pack_blocks::<34, 32, 256>(bytes, row, 0x8080_8080, scales, values),
            Dtype::Q4K => {
                for (head, stored) in heads.chunks_exact_mut(64).zip(bytes.chunks_exact(144)) {
                    put_f32(head, row, f16_at(stored, 0));
                    put_f32(head, GROUP + row, f16_at(stored, 2));
                }
                let per_block = scales.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks_mut::<128>().0);
                for (block, (scales, values)) in per_block.enumerate() {
                    let (at, sub) = self.place(block);
                    pack_q4_k(&bytes[at * 144..][..144], sub, row, scales, values);
                }
            }
            Dtype::Q6K => {
                for (head, stored) in heads.chunks_exact_mut(32).zip(bytes.chunks_exact(210)) {
                    put_f32(head, row, f16_at(stored, 208));
                }
                let per_block = scales.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks_mut::<256>().0);
                for (block, (scales, values)) in per_block.enumerate() {
                    let (at, sub) = self.place(block);
                    let stored = &bytes[at * 210..][..210];
                    scales[2 * row..2 * row + 2].copy_from_slice(&stored[192 + 2 * sub..][..2]);
                    (0..8).for_each(|j| put_word(values, j, row, q6_k_word(stored, sub, j)));
                }
            }
            _ => {
                let value_bytes = values.len() / self.n_blocks.max(1);
                for block in 0..self.n_blocks {
                    let (at, sub) = self.place(block);
                    let stored = &bytes[at * self.dtype.block_bytes()..][..self.dtype.block_bytes()];
                    let sub = Sub::read(self.dtype, stored, sub);
                    self.pack_scale(&sub, row, block, scales);
                    self.pack_values(&sub, row, &mut values[block * value_bytes..][..value_bytes]);
                    if self.form.head_bytes() > 0 {
                        put_f32(&mut heads[at * 32..], row, sub.factor);
                    }
                    match self.offsets() {
                        Offsets::None => {}
                        Offsets::Addend => put_f32(&mut offsets[block * 32..], row, self.addend(&sub)),
                        Offsets::Mins(n) => {
                            put_f32(&mut min_heads[at * 32..], row, sub.min_factor);
                            offsets[block * GROUP + row] =
                                if n == 2 { sub.min[0] | sub.min[1] << 4 } else { sub.min[0] };
                        }
                    }
                }
            }
        }
    }

    /// The stored block that contains a block, and the block's index in it.
    fn place(&self, block: usize) -> (usize, usize) {
        let per_stored = (self.dtype.block_len() / BLOCK).max(1);
        ((self.first_sub + block) / per_stored, (self.first_sub + block) % per_stored)
    }

    fn pack_scale(&self, sub: &Sub, row: usize, block: usize, scales: &mut [u8]) {
        let scales = &mut scales[block * self.form.scale_bytes()..][..self.form.scale_bytes()];
        match self.form {
            Form::Q4 => scales[2 * row..2 * row + 2].copy_from_slice(&f16::from_f32(sub.factor).to_le_bytes()),
            Form::Q8 => put_f32(scales, row, sub.factor * sub.scale[0] as f32),
            Form::Q6K => scales[2 * row..2 * row + 2].copy_from_slice(&sub.scale.map(|scale| scale as u8)),
            Form::Q4K => unreachable!("only Q4_K has this form"),
        }
    }

    fn pack_values(&self, sub: &Sub, row: usize, values: &mut [u8]) {
        // For a codebook, its index is kept.
        let least = if has_codebook(self.dtype) { 0 } else { self.form.zero() - self.bias() };
        let word = |j: usize| {
            let codes = [0, 1, 2, 3].map(|i| (sub.codes[4 * j + i] as u8).wrapping_add(least));
            u32::from_le_bytes(codes)
        };
        let Some([low, high]) = self.planes() else {
            // The nibbles of Q4.
            return (0..4).for_each(|j| put_word(values, j, row, word(j) | word(j + 4) << 4));
        };
        let (low_plane, high_plane) = values.split_at_mut(32 * low);
        for j in 0..8 {
            put_bits(low_plane, low, j, row, word(j));
            if high > 0 {
                put_bits(high_plane, high, j, row, word(j) >> low);
            }
        }
    }

    /// In form Q4, codes start at 0 where the form's start at -8. The addend compensates for this, exactly as long as
    /// `offset + 8 * factor` fits into an f32: always, unless one is 8192 times the other.
    fn addend(&self, sub: &Sub) -> f32 {
        sub.offset + if self.form == Form::Q4 { 8.0 * sub.factor } else { 0.0 }
    }
}

impl Runs<'_> {
    fn is_finite(&self, layout: &Layout) -> bool {
        let (halves, words) = match layout.form {
            Form::Q4 => (self.scales, &[][..]),
            Form::Q8 => (&[][..], self.scales),
            Form::Q4K | Form::Q6K => (&[][..], self.heads),
        };
        let addends = if layout.offsets() == Offsets::Addend { self.offsets } else { &[] };
        let finite_half = |half: &[u8; 2]| u16::from_le_bytes(*half) & 0x7c00 != 0x7c00;
        let finite = |words: &[u8]| words.as_chunks().0.iter().all(|word| f32::from_le_bytes(*word).is_finite());
        halves.as_chunks().0.iter().all(finite_half) && [words, self.min_heads, addends].into_iter().all(finite)
    }
}

/// A group of 8 rows in kernel form.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// Form and number of blocks of the group.
    pub layout: Layout,
    /// f32 factors of the super-blocks' scales and mins.
    pub heads: &'a [u8],
    /// Scales of the blocks.
    pub scales: &'a [u8],
    /// Quants of the blocks.
    pub values: &'a [u8],
    /// What is added to all weights of each block or half block: (n_blocks * n_offsets) times 8 rows.
    pub offsets: &'a [[f32; GROUP]],
}

/// How the 32 weights of one row and block are computed from their quants: in each half (16 columns), `factor * (scale
/// * quant) - offset * min`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factors {
    /// Factor of the scales.
    pub factor: f32,
    /// Factor of the mins.
    pub offset: f32,
    /// Integer scale of each half.
    pub scale: [i32; 2],
    /// Integer min of each half.
    pub min: [i32; 2],
}

impl Group<'_> {
    /// The quants of one row and block, in column order.
    pub fn quants(&self, block: usize, row: usize) -> [u8; BLOCK] {
        let n_bytes = self.layout.form.value_bytes();
        let values = &self.values[block * n_bytes..][..n_bytes];
        std::array::from_fn(|col| {
            if n_bytes == 256 {
                values[col / 4 * 32 + row * 4 + col % 4]
            } else {
                let byte = values[col % 16 / 4 * 32 + row * 4 + col % 4];
                if col < 16 { byte & 15 } else { byte >> 4 }
            }
        })
    }

    /// The scales of one row and block.
    pub fn factors(&self, block: usize, row: usize) -> Factors {
        let form = self.layout.form;
        let head = &self.heads[(self.layout.first_sub + block) / SUPER * form.head_bytes()..];
        let scales = &self.scales[block * form.scale_bytes()..][..form.scale_bytes()];
        match form {
            Form::Q4 | Form::Q8 => {
                let (factor, min) = match form {
                    Form::Q4 => (f16_at(scales, 2 * row), 8),
                    _ => (f32_at(scales, row), 128),
                };
                Factors { factor, offset: factor, scale: [1; 2], min: [min; 2] }
            }
            Form::Q4K => Factors {
                factor: f32_at(head, row),
                offset: f32_at(head, GROUP + row),
                scale: [scales[row] as i32; 2],
                min: [scales[GROUP + row] as i32; 2],
            },
            Form::Q6K => {
                let factor = f32_at(head, row);
                let scale = [scales[2 * row] as i8 as i32, scales[2 * row + 1] as i8 as i32];
                Factors { factor, offset: factor, scale, min: scale.map(|scale| 32 * scale) }
            }
        }
    }

    /// Decodes one row (n_blocks * 32), exactly as [`crate::quant::dequantize`] does.
    #[inline(never)]
    pub fn row(&self, row: usize, out: &mut [f32]) {
        for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let quants = self.quants(block, row);
            let Factors { factor, offset, scale, min } = self.factors(block, row);
            let n_offsets = self.layout.n_offsets();
            for (col, (out, quant)) in out.iter_mut().zip(quants).enumerate() {
                let (quant, half) = (quant as i32, col / 16);
                *out = match self.layout.form {
                    Form::Q4 => factor * (quant - 8) as f32,
                    Form::Q8 => factor * (quant - 128) as f32,
                    Form::Q4K => factor * scale[half] as f32 * quant as f32 - offset * min[half] as f32,
                    Form::Q6K => factor * scale[half] as f32 * (quant - 32) as f32,
                };
                if n_offsets > 0 {
                    *out += self.offsets[block * n_offsets + half * (n_offsets - 1)][row];
                }
            }
        }
    }
}

// From blocks of `N` bytes, an f16 scale and quants, to `S` bytes of scales (f16 or f32) and `V` bytes of values for 8
// rows; the bits in `flip` are inverted in the quants.
fn pack_blocks<const N: usize, const S: usize, const V: usize>(
    bytes: &[u8],
    row: usize,
    flip: u32,
    scales: &mut [u8],
    values: &mut [u8],
) {
    let per_block = scales.as_chunks_mut::<S>().0.iter_mut().zip(values.as_chunks_mut::<V>().0);
    for ((scales, values), stored) in per_block.zip(bytes.as_chunks::<N>().0) {
        match S {
            16 => scales[2 * row..2 * row + 2].copy_from_slice(&stored[..2]),
            _ => put_f32(scales, row, f16_at(stored, 0)),
        }
        let words = stored[2..].as_chunks::<4>().0;
        for (step, word) in values.as_chunks_mut::<32>().0.iter_mut().zip(words) {
            put_word(step, 0, row, u32::from_le_bytes(*word) ^ flip);
        }
    }
}

// A sub-block's nibbles are the low or the high halves of 32 bytes; here they become both halves of 16 bytes.
fn pack_q4_k(stored: &[u8], sub: usize, row: usize, scales: &mut [u8], values: &mut [u8]) {
    (scales[row], scales[GROUP + row]) = q4_k_scale_min(&stored[4..16], sub);
    let qs = &stored[16 + sub / 2 * 32..][..32];
    for j in 0..4 {
        let (first, second) = (word(qs, j), word(qs, j + 4));
        let nibbles = if sub.is_multiple_of(2) {
            first & 0x0f0f_0f0f | (second & 0x0f0f_0f0f) << 4
        } else {
            first >> 4 & 0x0f0f_0f0f | second & 0xf0f0_f0f0
        };
        put_word(values, j, row, nibbles);
    }
}

// Four 6-bit quants, starting at column 4 j of sub-block `sub`.
fn q6_k_word(stored: &[u8], sub: usize, j: usize) -> u32 {
    let (half, quarter) = (sub / 4, sub % 4);
    let low = word(&stored[half * 64 + quarter % 2 * 32..], j) >> (quarter / 2 * 4) & 0x0f0f_0f0f;
    let high = word(&stored[128 + half * 32..], j) >> (2 * quarter) & 0x0303_0303;
    low | high << 4
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]])
}

fn put_word(values: &mut [u8], step: usize, row: usize, word: u32) {
    values[step * 32 + row * 4..][..4].copy_from_slice(&word.to_le_bytes());
}

/// Number `at` of a run of f32.
pub(crate) fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_bits(word(bytes, at))
}

/// Adds the low `bits` of four bytes to a plane, as step `step` of row `row`.
fn put_bits(plane: &mut [u8], bits: usize, step: usize, row: usize, codes: u32) {
    let codes = codes & (0x0101_0101 * ((1 << bits) - 1));
    let before = word(&plane[step % bits * 32..], row);
    put_word(plane, step % bits, row, before | codes << (bits * (step / bits)));
}

fn put_f32(bytes: &mut [u8], at: usize, value: f32) {
    bytes[4 * at..][..4].copy_from_slice(&value.to_le_bytes());
}
