//! x86-64 with AVX2: 32 products of bytes per instruction, all 8 rows of a group in one register.
//!
//! ```text
//! values      row 0: w w w w   row 1: w w w w   ...   row 7: w w w w      32 bytes, unsigned
//! activation         a a a a          a a a a   ...          a a a a      4 bytes, repeated
//! maddubs     row 0: i16 i16   row 1: i16 i16   ...                       added up over a block (or less)
//! madd(ones)  row 0: i32       row 1: i32       ...   row 7: i32          no horizontal step
//! ```
//!
//! No i16 overflows: see `relaxed`, which does the same in registers of half the width. What becomes of the sums is the same as in `wasm`; there the
//! exactness of each step is explained.

use super::{Sums, TOKEN_BYTES, Tile};
use crate::quant::{Form, GROUP, Group, SUPER};
use std::arch::x86_64::*;

/// As [`super::reference::multiply`]; only where the processor has AVX2.
pub(super) fn multiply(group: &Group, tile: &Tile, out: &mut Sums) {
    assert_eq!(group.layout.n_blocks, tile.n_blocks);
    // SAFETY: `Kernel::best` offers this function where AVX2 was detected; `Group` and `Tile` guarantee the lengths of their bytes.
    unsafe {
        match group.layout.form {
            Form::Q4 => rows::<Q4>(group, tile, out),
            Form::Q8 => rows::<Q8>(group, tile, out),
            Form::Q4K => rows::<Q4K>(group, tile, out),
            Form::Q6K => rows::<Q6K>(group, tile, out),
        }
    }
}

/// A group and one block, unpacked.
trait Block {
    /// # Safety
    /// `group` is of this form and has the block.
    unsafe fn load(group: &Group, block: usize) -> Self;
    /// The products with `T` tokens before their scales are applied.
    ///
    /// # Safety
    /// `x` has the quants of `T` tokens, `terms` their two terms each.
    unsafe fn meet<const T: usize>(&self, x: *const u8, terms: *const u8) -> [__m256; T];
}

/// # Safety
/// `tile` has as many blocks as `group`, which is of form `B`.
#[target_feature(enable = "avx2")]
unsafe fn rows<B: Block>(group: &Group, tile: &Tile, out: &mut Sums) {
    let n = tile.n_tokens;
    out[..n].fill([0.0; GROUP]);
    for block in 0..tile.n_blocks {
        // SAFETY: the caller's; `Tile` guarantees the length of a block, and `out` has room for as many tokens.
        unsafe {
            let x = tile.bytes.as_ptr().add(block * n * TOKEN_BYTES);
            let weights = B::load(group, block);
            let mut t = 0;
            while t + 4 <= n {
                add::<B, 4>(&weights, x, n, t, out);
                t += 4;
            }
            match n - t {
                1 => add::<B, 1>(&weights, x, n, t, out),
                2 => add::<B, 2>(&weights, x, n, t, out),
                3 => add::<B, 3>(&weights, x, n, t, out),
                _ => {}
            }
        }
    }
}

/// Adds the products with the tokens from `first` on.
///
/// # Safety
/// `x` is a block of `n` tokens, of which there are `T` from `first` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add<B: Block, const T: usize>(weights: &B, x: *const u8, n: usize, first: usize, out: &mut Sums) {
    // SAFETY: the caller's.
    unsafe {
        let products = weights.meet::<T>(x.add(32 * first), x.add(36 * n + 8 * first));
        for (t, product) in products.into_iter().enumerate() {
            let out = out[first + t].as_mut_ptr();
            let product = _mm256_mul_ps(_mm256_castsi256_ps(splat(x.add(32 * n + 4 * (first + t)))), product);
            _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), product));
        }
    }
}

struct Q4 {
    quants: [__m256i; 8],
    factor: __m256,
}

impl Block for Q4 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(group: &Group, block: usize) -> Self {
        // SAFETY: a block has 128 bytes of values and 32 of scales.
        unsafe {
            Self {
                quants: nibbles(group.values.as_ptr().add(128 * block)),
                factor: _mm256_loadu_ps(group.scales.as_ptr().add(32 * block).cast()),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn meet<const T: usize>(&self, x: *const u8, terms: *const u8) -> [__m256; T] {
        // SAFETY: the caller's.
        let dots = unsafe { dot::<T, 8, 8>(&self.quants, x, starts(terms)) };
        let mut products = [self.factor; T];
        for (product, dot) in products.iter_mut().zip(dots) {
            *product = _mm256_mul_ps(self.factor, _mm256_cvtepi32_ps(dot));
        }
        products
    }
}

struct Q8 {
    /// Low and high nibbles.
    quants: [[__m256i; 8]; 2],
    factor: __m256,
}

impl Block for Q8 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(group: &Group, block: usize) -> Self {
        // SAFETY: a block has 256 bytes of values and 32 of scales.
        unsafe {
            let bytes = load::<8>(group.values.as_ptr().add(256 * block));
            let mut quants = [bytes; 2];
            for (step, &bytes) in bytes.iter().enumerate() {
                (quants[0][step], quants[1][step]) = (low(bytes), high(bytes));
            }
            Self { quants, factor: _mm256_loadu_ps(group.scales.as_ptr().add(32 * block).cast()) }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn meet<const T: usize>(&self, x: *const u8, terms: *const u8) -> [__m256; T] {
        // SAFETY: the caller's.
        let mut sums = unsafe { dot::<T, 8, 8>(&self.quants[1], x, starts(terms)) };
        for sum in &mut sums {
            *sum = _mm256_slli_epi32(*sum, 4);
        }
        // SAFETY: the caller's.
        let sums = unsafe { dot::<T, 8, 8>(&self.quants[0], x, sums) };
        let mut products = [self.factor; T];
        for (product, dot) in products.iter_mut().zip(sums) {
            *product = _mm256_mul_ps(self.factor, _mm256_cvtepi32_ps(dot));
        }
        products
    }
}

struct Q4K {
    quants: [__m256i; 8],
    scale: __m256,
    min: __m256,
}

impl Block for Q4K {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(group: &Group, block: usize) -> Self {
        // SAFETY: a block has 128 bytes of values, 16 of scales and a head of 64 bytes shared with its super-block.
        unsafe {
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 64);
            let scales = _mm_loadu_si128(group.scales.as_ptr().add(16 * block).cast());
            let (scale, min) = (_mm256_cvtepu8_epi32(scales), _mm256_cvtepu8_epi32(_mm_srli_si128(scales, 8)));
            Self {
                quants: nibbles(group.values.as_ptr().add(128 * block)),
                scale: _mm256_mul_ps(_mm256_loadu_ps(head.cast()), _mm256_cvtepi32_ps(scale)),
                min: _mm256_mul_ps(_mm256_loadu_ps(head.add(32).cast()), _mm256_cvtepi32_ps(min)),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn meet<const T: usize>(&self, x: *const u8, terms: *const u8) -> [__m256; T] {
        // SAFETY: the caller's.
        let dots = unsafe { dot::<T, 8, 8>(&self.quants, x, [_mm256_setzero_si256(); T]) };
        let mut products = [self.min; T];
        for (t, dot) in dots.into_iter().enumerate() {
            let dot = _mm256_mul_ps(self.scale, _mm256_cvtepi32_ps(dot));
            // SAFETY: the caller's.
            let sum = unsafe { _mm256_castsi256_ps(splat(terms.add(8 * t))) };
            products[t] = _mm256_sub_ps(dot, _mm256_mul_ps(self.min, sum));
        }
        products
    }
}

struct Q6K {
    /// The first and the last 16 columns.
    quants: [[__m256i; 4]; 2],
    scales: [__m256; 2],
    factor: __m256,
}

impl Block for Q6K {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(group: &Group, block: usize) -> Self {
        // SAFETY: a block has 256 bytes of values, 16 of scales and a head of 32 bytes shared with its super-block.
        unsafe {
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 32);
            let values = group.values.as_ptr().add(256 * block);
            // Both scales of a row, i16, in one i32 lane.
            let both = _mm256_cvtepi8_epi16(_mm_loadu_si128(group.scales.as_ptr().add(16 * block).cast()));
            let (first, second) = (_mm256_srai_epi32(_mm256_slli_epi32(both, 16), 16), _mm256_srai_epi32(both, 16));
            Self {
                quants: [load(values), load(values.add(128))],
                scales: [_mm256_cvtepi32_ps(first), _mm256_cvtepi32_ps(second)],
                factor: _mm256_loadu_ps(head.cast()),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn meet<const T: usize>(&self, x: *const u8, terms: *const u8) -> [__m256; T] {
        // SAFETY: the caller's.
        let (firsts, seconds) = unsafe {
            let second = dot::<T, 4, 2>(&self.quants[1], x.add(16), starts(terms.add(4)));
            (dot::<T, 4, 2>(&self.quants[0], x, starts(terms)), second)
        };
        let mut products = [self.factor; T];
        for (t, (first, second)) in firsts.into_iter().zip(seconds).enumerate() {
            let first = _mm256_mul_ps(self.scales[0], _mm256_cvtepi32_ps(first));
            let second = _mm256_mul_ps(self.scales[1], _mm256_cvtepi32_ps(second));
            products[t] = _mm256_mul_ps(self.factor, _mm256_add_ps(first, second));
        }
        products
    }
}

/// `start` + the sums of the columns from the first of `x` on; `CHAIN` products fit into i16.
///
/// # Safety
/// `x` has `4 N` columns of each of `T` tokens, 32 columns apart.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot<const T: usize, const N: usize, const CHAIN: usize>(
    quants: &[__m256i; N],
    x: *const u8,
    start: [__m256i; T],
) -> [__m256i; T] {
    let mut sums = start;
    for (chain_idx, quants) in quants.chunks(CHAIN).enumerate() {
        let mut chain = [_mm256_setzero_si256(); T];
        for (k, quants) in quants.iter().enumerate() {
            for t in 0..T {
                // SAFETY: the caller's.
                let a = unsafe { splat(x.add(32 * t + 4 * (chain_idx * CHAIN + k))) };
                chain[t] = _mm256_add_epi16(chain[t], _mm256_maddubs_epi16(*quants, a));
            }
        }
        for t in 0..T {
            sums[t] = _mm256_add_epi32(sums[t], _mm256_madd_epi16(chain[t], _mm256_set1_epi16(1)));
        }
    }
    sums
}

/// # Safety
/// `values` has 128 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibbles(values: *const u8) -> [__m256i; 8] {
    // SAFETY: the caller's.
    let packed = unsafe { load::<4>(values) };
    let mut quants = [_mm256_setzero_si256(); 8];
    for (step, &packed) in packed.iter().enumerate() {
        (quants[step], quants[step + 4]) = (low(packed), high(packed));
    }
    quants
}

/// # Safety
/// `values` has `32 N` bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const N: usize>(values: *const u8) -> [__m256i; N] {
    let mut registers = [_mm256_setzero_si256(); N];
    for (step, register) in registers.iter_mut().enumerate() {
        // SAFETY: the caller's.
        *register = unsafe { _mm256_loadu_si256(values.add(32 * step).cast()) };
    }
    registers
}

#[inline]
#[target_feature(enable = "avx2")]
fn low(bytes: __m256i) -> __m256i {
    _mm256_and_si256(bytes, _mm256_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx2")]
fn high(bytes: __m256i) -> __m256i {
    _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15))
}

/// A term of each token, in all lanes.
///
/// # Safety
/// `terms` has 4 bytes for each token, 8 apart.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn starts<const T: usize>(terms: *const u8) -> [__m256i; T] {
    let mut starts = [_mm256_setzero_si256(); T];
    for (t, start) in starts.iter_mut().enumerate() {
        // SAFETY: the caller's.
        *start = unsafe { splat(terms.add(8 * t)) };
    }
    starts
}

/// Four bytes, in all lanes.
///
/// # Safety
/// There are 4 bytes at `at`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn splat(at: *const u8) -> __m256i {
    // SAFETY: the caller's.
    _mm256_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
}
