//! The stored number formats: what their blocks mean ([`dequantize`]), and how they are laid out for the kernels ([`Layout`]).
//!
//! Block layouts as in ggml's `ggml-common.h`; meaning as in its `dequantize_row_*`. Encoding is the converter's (candle's quantizers); decoding is here.
//!
//! Kernel form: weights lie in groups of 8 rows, and in a group in blocks of 32 columns. All quants are unsigned; a weight is
//! `scale * quant - min`. A group is three runs of bytes, one after the other, each a multiple of 16 bytes:
//!
//! ```text
//! heads   one per super-block (K forms)   Q4K: 8 x f32 d, 8 x f32 dmin      Q6K: 8 x f32 d
//! scales  one per block                   Q4: 8 x f16    Q8: 8 x f32        Q4K: 8 x u8 scale, 8 x u8 min     Q6K: 8 x (i8, i8)
//! values  one per block                   Q4, Q4K: 4 x 32 bytes of nibbles  Q8, Q6K: 8 x 32 bytes
//!
//! 32 bytes of values:  row 0: c c+1 c+2 c+3   row 1: c c+1 c+2 c+3   ...   row 7: c c+1 c+2 c+3
//! nibbles, step j of 4: low nibbles are columns c = 4 j, high nibbles are columns c = 16 + 4 j
//! bytes, step j of 8: c = 4 j
//! ```
//!
//! So a vector register of 16 (32) bytes meets 4 consecutive activations repeated 4 (8) times, and the sums of 4 (8) rows come out side by side.
//! Rows that are missing in the last group have scale 0. All numbers of the stored form are kept exactly.
//!
//! Four forms hold all types. Each is made for the type of its name; the other types are integers with scales too ([`Sub`]) and go where those fit:
//!
//! ```text
//! Q4   Q4_0, Q4_1*             Q8   Q8_0, Q5_0, Q5_1*, IQ4_NL, IQ4_XS (values of the codebook)
//! Q4K  Q4_K                    Q6K  Q6_K, Q5_K*, Q3_K, Q2_K*
//! ```
//!
//! Types with a star also have offsets, which belong to a block or half a block. They are no part of the form: `matrix` keeps them as a small f32 matrix
//! that is multiplied with the sums of the activations ([`n_offsets`]).

use crate::gguf::Dtype;
use half::{bf16, f16};
use std::ops::Range;

/// Rows of a group.
pub const GROUP: usize = 8;

/// Columns of a block.
pub const BLOCK: usize = 32;

/// Blocks of a super-block of the K formats.
pub(crate) const SUPER: usize = 8;

/// Decodes whole blocks of `bytes` into `out`.
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), dtype.row_bytes(out.len()));
    let blocks = bytes.chunks_exact(dtype.block_bytes()).zip(out.chunks_exact_mut(dtype.block_len()));
    for (block, out) in blocks {
        match dtype {
            Dtype::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Dtype::F16 => out[0] = f16_at(block, 0),
            Dtype::Bf16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            Dtype::Q4_0 => dequantize_q4_0(block, out),
            Dtype::Q8_0 => dequantize_q8_0(block, out),
            Dtype::Q4K => dequantize_q4_k(block, out),
            Dtype::Q6K => dequantize_q6_k(block, out),
            _ => dequantize_subs(dtype, block, out),
        }
    }
}

// d: f16, 16 bytes; low nibbles are weights 0..16, high nibbles 16..32; w = d * (q - 8).
fn dequantize_q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (i, q) in block[2..].iter().enumerate() {
        out[i] = d * ((q & 15) as i32 - 8) as f32;
        out[i + 16] = d * ((q >> 4) as i32 - 8) as f32;
    }
}

// d: f16, 32 signed bytes; w = d * q.
fn dequantize_q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = d * (q as i8) as f32;
    }
}

// d, dmin: f16; 12 bytes of 6-bit scales and mins for 8 sub-blocks of 32; 128 bytes of nibbles, 64 weights in each 32 bytes;
// w = d * scale * q - dmin * min.
fn dequantize_q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for sub in 0..8 {
        let (scale, min) = q4_k_scale_min(&block[4..16], sub);
        let (scale, min) = (d * scale as f32, dmin * min as f32);
        let qs = &block[16 + sub / 2 * 32..][..32];
        for (i, q) in qs.iter().enumerate() {
            let q = if sub % 2 == 0 { q & 15 } else { q >> 4 };
            out[sub * 32 + i] = scale * q as f32 - min;
        }
    }
}

/// The 6-bit scale and min of sub-block `sub` of a Q4_K block, from its 12 packed bytes.
pub fn q4_k_scale_min(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        return (packed[sub] & 63, packed[sub + 4] & 63);
    }
    let scale = (packed[sub + 4] & 15) | (packed[sub - 4] >> 6 << 4);
    let min = (packed[sub + 4] >> 4) | (packed[sub] >> 6 << 4);
    (scale, min)
}

// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales for sub-blocks of 16, d: f16; w = d * scale * (q - 32).
fn dequantize_q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16_at(block, 208);
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, at) = (i / 128, i % 128 / 32, i % 32);
        let nibbles = low[half * 64 + quarter % 2 * 32 + at];
        let nibble = if quarter < 2 { nibbles & 15 } else { nibbles >> 4 };
        let pair = high[half * 32 + at] >> (2 * quarter) & 3;
        let q = (nibble | pair << 4) as i32 - 32;
        *out = d * (scales[i / 16] as i8) as f32 * q as f32;
    }
}

fn dequantize_subs(dtype: Dtype, block: &[u8], out: &mut [f32]) {
    for (sub, out) in out.chunks_exact_mut(BLOCK).enumerate() {
        let Sub { factor, scale, offset, codes } = Sub::read(dtype, block, sub);
        for (col, (out, code)) in out.iter_mut().zip(codes).enumerate() {
            *out = factor * scale[col / 16] as f32 * code as f32 + offset[col / 16];
        }
    }
}

/// 32 weights of a stored block as integers, for the types without a form of their own: in each half a weight is `factor * scale * code + offset`.
struct Sub {
    factor: f32,
    scale: [i8; 2],
    offset: [f32; 2],
    codes: [i8; BLOCK],
}

/// What a nibble of the IQ4 types means (ggml's `kvalues_iq4nl`).
const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Sub {
    /// Sub-block `sub` of a block; 0 where a block has 32 weights.
    fn read(dtype: Dtype, block: &[u8], sub: usize) -> Self {
        let plain = |factor, offset, codes| Self { factor, scale: [1; 2], offset: [offset; 2], codes };
        // Low nibbles are the first half, high nibbles the second.
        let nibble = |qs: &[u8], col: usize| (qs[col % 16] >> (col / 16 * 4) & 15) as i8;
        let fifth = |qh: &[u8], col: usize| ((qh[col / 8] >> (col % 8) & 1) << 4) as i8;
        // Quants of 2 bits: 128 weights in each 32 bytes.
        let pair = |qs: &[u8], col: usize| (qs[sub / 4 * 32 + col] >> (sub % 4 * 2) & 3) as i8;
        let d = f16_at(block, 0);
        match dtype {
            Dtype::Q4_1 => plain(d, f16_at(block, 2), std::array::from_fn(|col| nibble(&block[4..], col))),
            Dtype::Q5_0 => {
                let code = |col| (nibble(&block[6..], col) | fifth(&block[2..6], col)) - 16;
                plain(d, 0.0, std::array::from_fn(code))
            }
            Dtype::Q5_1 => {
                let code = |col| nibble(&block[8..], col) | fifth(&block[4..8], col);
                plain(d, f16_at(block, 2), std::array::from_fn(code))
            }
            // 16 bytes of a 4-bit scale and a 4-bit min, 64 bytes of quants, d, dmin: f16.
            Dtype::Q2K => {
                let (dmin, scales) = (f16_at(block, 82), [block[2 * sub], block[2 * sub + 1]]);
                Self {
                    factor: f16_at(block, 80),
                    scale: scales.map(|scale| (scale & 15) as i8),
                    offset: scales.map(|scale| -(dmin * (scale >> 4) as f32)),
                    codes: std::array::from_fn(|col| pair(&block[16..], col)),
                }
            }
            // 32 bytes of third bits, 64 bytes of quants, 12 bytes of 6-bit scales, d: f16; a third bit that is not set takes 4 away.
            Dtype::Q3K => Self {
                factor: f16_at(block, 108),
                scale: [0, 1].map(|half| q3_k_scale(&block[96..108], 2 * sub + half)),
                offset: [0.0; 2],
                codes: std::array::from_fn(|col| pair(&block[32..], col) + 4 * (block[col] >> sub & 1) as i8 - 4),
            },
            // As Q4_K, with 32 bytes of fifth bits between scales and nibbles.
            Dtype::Q5K => {
                let (scale, min) = q4_k_scale_min(&block[4..16], sub);
                let nibbles = &block[48 + sub / 2 * 32..][..32];
                let code = |col| nibbles[col] >> (sub % 2 * 4) & 15 | (block[16 + col] >> sub & 1) << 4;
                Self {
                    factor: d,
                    scale: [scale as i8; 2],
                    offset: [-(f16_at(block, 2) * min as f32); 2],
                    codes: std::array::from_fn(|col| code(col) as i8),
                }
            }
            Dtype::IQ4_NL => plain(d, 0.0, std::array::from_fn(|col| IQ4_VALUES[nibble(&block[2..], col) as usize])),
            // d: f16, 8 high bit pairs of scales, 8 low nibbles of scales, nibbles of each sub-block.
            Dtype::IQ4_XS => {
                let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * sub) & 3;
                let scale = (block[4 + sub / 2] >> (sub % 2 * 4) & 15) as i8 | (high << 4) as i8;
                Self {
                    scale: [scale - 32; 2],
                    ..plain(d, 0.0, std::array::from_fn(|col| IQ4_VALUES[nibble(&block[8 + 16 * sub..], col) as usize]))
                }
            }
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Q4_0 | Dtype::Q8_0 | Dtype::Q4K | Dtype::Q6K => {
                unreachable!("{} has a form of its own", dtype.name())
            }
        }
    }
}

impl Sub {
    /// Writes row `row` of a block of `form`. In form Q4 codes are from 0 on where the form's are from -8 on: the offset makes up for it, exactly as long
    /// as `offset + 8 * factor` fits into an f32, so unless one is 8192 times the other.
    fn pack(&self, form: Form, row: usize, head: &mut [u8], scales: &mut [u8], values: &mut [u8]) {
        let code = |col: usize, bias: u8| (self.codes[col] as u8).wrapping_add(bias) as u32;
        match form {
            Form::Q4 => {
                scales[2 * row..2 * row + 2].copy_from_slice(&f16::from_f32(self.factor).to_le_bytes());
                let byte = |col: usize| code(col, 0) | code(col + 16, 0) << 4;
                (0..4).for_each(|j| put_word(values, j, row, four(|i| byte(4 * j + i))));
            }
            Form::Q8 => {
                put_f32(scales, row, self.factor * self.scale[0] as f32);
                (0..8).for_each(|j| put_word(values, j, row, four(|i| code(4 * j + i, 128))));
            }
            Form::Q6K => {
                put_f32(head, row, self.factor);
                scales[2 * row..2 * row + 2].copy_from_slice(&self.scale.map(|scale| scale as u8));
                (0..8).for_each(|j| put_word(values, j, row, four(|i| code(4 * j + i, 32))));
            }
            Form::Q4K => unreachable!("Q4_K alone has this form"),
        }
    }
}

/// Four bytes as a word, the first lowest.
fn four(byte: impl Fn(usize) -> u32) -> u32 {
    (0..4).map(|i| byte(i) << (8 * i)).sum()
}

// The 6-bit scales of a Q3_K block: 16 low nibbles, then 16 high bit pairs.
fn q3_k_scale(packed: &[u8], at: usize) -> i8 {
    let low = packed[at % 8] >> (at / 8 * 4) & 15;
    let high = packed[8 + at % 4] >> (at / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// Offsets that `dtype` has for each 32 columns beside its kernel form: 2 where each half has its own.
pub const fn n_offsets(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q5K => 1,
        Dtype::Q2K => 2,
        _ => 0,
    }
}

fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The integer kernel forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Nibbles, min = 8 scales.
    Q4,
    /// Bytes, min = 128 scales.
    Q8,
    /// Nibbles, scale and min of 6 bits per block.
    Q4K,
    /// 6-bit values in bytes, min = 32 scales, a signed scale per 16 columns.
    Q6K,
}

impl Form {
    /// The form that `dtype` is kept in; none for the floating-point formats.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::Q4_0 | Dtype::Q4_1 => Some(Self::Q4),
            Dtype::Q8_0 | Dtype::Q5_0 | Dtype::Q5_1 | Dtype::IQ4_NL | Dtype::IQ4_XS => Some(Self::Q8),
            Dtype::Q4K => Some(Self::Q4K),
            Dtype::Q6K | Dtype::Q5K | Dtype::Q3K | Dtype::Q2K => Some(Self::Q6K),
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => None,
        }
    }

    const fn head_bytes(self) -> usize {
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

    const fn value_bytes(self) -> usize {
        match self {
            Self::Q4 | Self::Q4K => 128,
            Self::Q8 | Self::Q6K => 256,
        }
    }
}

/// Shape of a group: its form and its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Form of the values.
    pub form: Form,
    /// Blocks in a row.
    pub n_blocks: usize,
    /// Place of the first block in its super-block, 0..8; 0 for forms without.
    pub first_sub: usize,
}

impl Layout {
    /// For the blocks `blocks` of a stored row of `dtype`.
    pub fn new(form: Form, blocks: Range<usize>) -> Self {
        let first_sub = if form.head_bytes() > 0 { blocks.start % SUPER } else { 0 };
        Self { form, n_blocks: blocks.len(), first_sub }
    }

    fn n_heads(&self) -> usize {
        if self.form.head_bytes() > 0 { (self.first_sub + self.n_blocks).div_ceil(SUPER) } else { 0 }
    }

    /// Bytes of one group.
    pub fn group_bytes(&self) -> usize {
        self.n_heads() * self.form.head_bytes() + self.n_blocks * (self.form.scale_bytes() + self.form.value_bytes())
    }

    /// One group from its bytes.
    pub fn group<'a>(&self, bytes: &'a [u8]) -> Group<'a> {
        assert_eq!(bytes.len(), self.group_bytes());
        let (heads, rest) = bytes.split_at(self.n_heads() * self.form.head_bytes());
        let (scales, values) = rest.split_at(self.n_blocks * self.form.scale_bytes());
        Group { layout: *self, heads, scales, values }
    }

    /// Writes row `row` (0..8) of a group: the stored `bytes` of the blocks of `dtype` that hold this layout's blocks, the first of which is sub-block
    /// `first_sub` of the first. Rows that are never written must be zero bytes. Adds the row's offsets to `offsets`: [`n_offsets`] for each block.
    pub fn pack_row(
        &self,
        dtype: Dtype,
        first_sub: usize,
        bytes: &[u8],
        row: usize,
        group: &mut [u8],
        offsets: &mut Vec<f32>,
    ) {
        let (heads, rest) = group.split_at_mut(self.n_heads() * self.form.head_bytes());
        let (scales, values) = rest.split_at_mut(self.n_blocks * self.form.scale_bytes());
        match dtype {
            Dtype::Q4_0 => pack_blocks::<18, 16, 128>(bytes, row, 0, scales, values),
            Dtype::Q8_0 => pack_blocks::<34, 32, 256>(bytes, row, 0x8080_8080, scales, values),
            Dtype::Q4K => {
                for (head, stored) in heads.chunks_exact_mut(64).zip(bytes.chunks_exact(144)) {
                    put_f32(head, row, f16_at(stored, 0));
                    put_f32(head, GROUP + row, f16_at(stored, 2));
                }
                let per_block = scales.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks_mut::<128>().0);
                for (block, (scales, values)) in per_block.enumerate() {
                    let (at, sub) = ((self.first_sub + block) / SUPER, (self.first_sub + block) % SUPER);
                    pack_q4_k(&bytes[at * 144..][..144], sub, row, scales, values);
                }
            }
            Dtype::Q6K => {
                for (head, stored) in heads.chunks_exact_mut(32).zip(bytes.chunks_exact(210)) {
                    put_f32(head, row, f16_at(stored, 208));
                }
                let per_block = scales.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks_mut::<256>().0);
                for (block, (scales, values)) in per_block.enumerate() {
                    let (at, sub) = ((self.first_sub + block) / SUPER, (self.first_sub + block) % SUPER);
                    let stored = &bytes[at * 210..][..210];
                    scales[2 * row..2 * row + 2].copy_from_slice(&stored[192 + 2 * sub..][..2]);
                    (0..8).for_each(|j| put_word(values, j, row, q6_k_word(stored, sub, j)));
                }
            }
            _ => {
                let per_stored = dtype.block_len() / BLOCK;
                let values = values.chunks_exact_mut(self.form.value_bytes());
                let per_block = scales.chunks_exact_mut(self.form.scale_bytes()).zip(values);
                for (block, (scales, values)) in per_block.enumerate() {
                    let (at, sub) = ((first_sub + block) / per_stored, (first_sub + block) % per_stored);
                    let stored = &bytes[at * dtype.block_bytes()..][..dtype.block_bytes()];
                    let sub = Sub::read(dtype, stored, sub);
                    let head = heads.get_mut((self.first_sub + block) / SUPER * self.form.head_bytes()..);
                    sub.pack(self.form, row, head.unwrap_or_default(), scales, values);
                    let bias = if self.form == Form::Q4 { 8.0 * sub.factor } else { 0.0 };
                    offsets.extend(sub.offset[..n_offsets(dtype)].iter().map(|offset| offset + bias));
                }
            }
        }
    }
}

/// A group of 8 rows in kernel form.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// Form and number of blocks.
    pub layout: Layout,
    /// f32 factors of the super-blocks.
    pub heads: &'a [u8],
    /// Scales of the blocks.
    pub scales: &'a [u8],
    /// Quants of the blocks.
    pub values: &'a [u8],
}

/// How the 32 weights of one row and block follow from their quants: in each half (16 columns), `factor * (scale * quant) - offset * min`.
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

    /// Whether all floating-point scales are numbers: kernels may rely on it.
    pub fn is_finite(&self) -> bool {
        let (halves, words) = match self.layout.form {
            Form::Q4 => (self.scales, self.heads),
            Form::Q8 => (self.heads, self.scales),
            Form::Q4K | Form::Q6K => (&[][..], self.heads),
        };
        let finite_half = |half: &[u8; 2]| u16::from_le_bytes(*half) & 0x7c00 != 0x7c00;
        halves.as_chunks().0.iter().all(finite_half)
            && words.as_chunks().0.iter().all(|word| f32::from_le_bytes(*word).is_finite())
    }

    /// Decodes one row (n_blocks * 32) without its offsets; where there are none, exactly as [`dequantize`] does.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let quants = self.quants(block, row);
            let Factors { factor, offset, scale, min } = self.factors(block, row);
            for (col, (out, quant)) in out.iter_mut().zip(quants).enumerate() {
                let (quant, half) = (quant as i32, col / 16);
                *out = match self.layout.form {
                    Form::Q4 => factor * (quant - 8) as f32,
                    Form::Q8 => factor * (quant - 128) as f32,
                    Form::Q4K => factor * scale[half] as f32 * quant as f32 - offset * min[half] as f32,
                    Form::Q6K => factor * scale[half] as f32 * (quant - 32) as f32,
                };
            }
        }
    }
}

// Blocks of `N` bytes, a f16 scale and quants, to `S` bytes of scales (f16 or f32) and `V` of values for 8 rows; the bits `flip` of the quants are turned
// over.
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

// A sub-block's nibbles are the low or the high halves of 32 bytes; here they become both halves of 16.
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

// Four 6-bit quants from column 4 j of sub-block `sub` on.
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

fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_bits(word(bytes, at))
}

fn put_f32(bytes: &mut [u8], at: usize, value: f32) {
    bytes[4 * at..][..4].copy_from_slice(&value.to_le_bytes());
}
