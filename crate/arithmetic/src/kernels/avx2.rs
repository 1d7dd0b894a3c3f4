//! x86-64 with AVX2: 32 products of bytes per instruction, all 8 rows of a group in one register.
//!
//! ```text
//! values      row 0: w w w w   row 1: w w w w   ...   row 7: w w w w      32 bytes, unsigned
//! activation         a a a a          a a a a   ...          a a a a      4 bytes, repeated
//! maddubs     row 0: i16 i16   row 1: i16 i16   ...                       added up over a block (or less)
//! madd(ones)  row 0: i32       row 1: i32       ...   row 7: i32          no horizontal step
//! ```
//!
//! F16C converts the scales of Q4 to f32. No i16 overflows: see `relaxed`, which does the same in registers of half the
//! width.

// One index is used for registers and memory alike.
#![allow(clippy::needless_range_loop)]

use super::{Sums, TOKEN_BYTES, Tile};
use crate::layout::{Form, GROUP, Group, SUPER};
use std::arch::x86_64::*;

/// Like [`super::reference::multiply`], for processors with AVX2 and F16C only.
pub(super) fn multiply(group: &Group, tile: &Tile, out: &mut Sums) {
    assert_eq!(group.layout.n_blocks, tile.n_blocks);
    // SAFETY: `Kernel::best` offers this function where both were detected; `Group` and `Tile` guarantee the lengths of their bytes.
    unsafe {
        let n = tile.n_tokens;
        for first in (0..n).step_by(4) {
            match n - first {
                1 => rows::<1>(group, tile, first, out),
                2 => rows::<2>(group, tile, first, out),
                3 => rows::<3>(group, tile, first, out),
                _ => rows::<4>(group, tile, first, out),
            }
        }
    }
}

/// # Safety
/// `tile` has `T` tokens starting at `first`, and as many blocks as `group`.
#[target_feature(enable = "avx2,f16c")]
unsafe fn rows<const T: usize>(group: &Group, tile: &Tile, first: usize, out: &mut Sums) {
    unsafe {
        match group.layout.form {
            Form::Q4 => q4::<T>(group, tile, first, out),
            Form::Q8 => q8::<T>(group, tile, first, out),
            Form::Q4K => q4_k::<T>(group, tile, first, out),
            Form::Q6K => q6_k::<T>(group, tile, first, out),
        }
    }
}

/// # Safety
/// As [`rows`], for groups of form Q4.
#[target_feature(enable = "avx2,f16c")]
unsafe fn q4<const T: usize>(group: &Group, tile: &Tile, first: usize, out: &mut Sums) {
    let mut acc = [_mm256_setzero_ps(); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 128 bytes of values, 16 of scales.
        unsafe {
            let x = Tokens::of(tile, block, first);
            let chain = nibbles::<T>(group.values.as_ptr().add(128 * block), x);
            let factor = _mm256_cvtph_ps(_mm_loadu_si128(group.scales.as_ptr().add(16 * block).cast()));
            for t in 0..T {
                let dot = _mm256_madd_epi16(chain[t], _mm256_set1_epi16(1));
                let dot = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_add_epi32(dot, x.term(t, 0))));
                acc[t] = _mm256_add_ps(acc[t], _mm256_mul_ps(x.scale(t), dot));
            }
        }
    }
    store(&acc, &mut out[first..]);
}

/// # Safety
/// As [`rows`], for groups of form Q8.
#[target_feature(enable = "avx2")]
unsafe fn q8<const T: usize>(group: &Group, tile: &Tile, first: usize, out: &mut Sums) {
    let mut acc = [_mm256_setzero_ps(); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 256 bytes of values, 32 of scales.
        unsafe {
            let x = Tokens::of(tile, block, first);
            let mut low = [_mm256_setzero_si256(); T];
            let mut high = low;
            for step in 0..8 {
                let values = _mm256_loadu_si256(group.values.as_ptr().add(256 * block + 32 * step).cast());
                let first = _mm256_and_si256(values, _mm256_set1_epi8(15));
                let second = _mm256_and_si256(_mm256_srli_epi16(values, 4), _mm256_set1_epi8(15));
                for t in 0..T {
                    let a = x.quants(32 * t + 4 * step);
                    low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(first, a));
                    high[t] = _mm256_add_epi16(high[t], _mm256_maddubs_epi16(second, a));
                }
            }
            let factor = _mm256_loadu_ps(group.scales.as_ptr().add(32 * block).cast());
            for t in 0..T {
                let low = _mm256_madd_epi16(low[t], _mm256_set1_epi16(1));
                let high = _mm256_madd_epi16(high[t], _mm256_set1_epi16(16));
                let dot = _mm256_add_epi32(_mm256_add_epi32(low, high), _mm256_slli_epi32(x.term(t, 0), 4));
                let dot = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(dot));
                acc[t] = _mm256_add_ps(acc[t], _mm256_mul_ps(x.scale(t), dot));
            }
        }
    }
    store(&acc, &mut out[first..]);
}

/// # Safety
/// As [`rows`], for groups of form Q4K.
#[target_feature(enable = "avx2")]
unsafe fn q4_k<const T: usize>(group: &Group, tile: &Tile, first: usize, out: &mut Sums) {
    let mut acc = [_mm256_setzero_ps(); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 128 bytes of values, 16 of scales, a head of 64 bytes shared with its super-block.
        unsafe {
            let x = Tokens::of(tile, block, first);
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 64);
            let scales = group.scales.as_ptr().add(16 * block);
            let (factor, offset) = (_mm256_loadu_ps(head.cast()), _mm256_loadu_ps(head.add(32).cast()));
            let mins = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(scales.add(8).cast())));
            // Of 11 + 6 bits, so exact: the product with the sum is rounded once, as in the definition.
            let (scales, min) = (twice(scales), _mm256_mul_ps(offset, mins));
            let chain = nibbles::<T>(group.values.as_ptr().add(128 * block), x);
            for t in 0..T {
                let dot = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_madd_epi16(chain[t], scales)));
                let dot = _mm256_sub_ps(dot, _mm256_mul_ps(min, _mm256_castsi256_ps(x.term(t, 0))));
                acc[t] = _mm256_add_ps(acc[t], _mm256_mul_ps(x.scale(t), dot));
            }
        }
    }
    store(&acc, &mut out[first..]);
}

/// # Safety
/// As [`rows`], for groups of form Q6K.
#[target_feature(enable = "avx2")]
unsafe fn q6_k<const T: usize>(group: &Group, tile: &Tile, first: usize, out: &mut Sums) {
    let mut acc = [_mm256_setzero_ps(); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 256 bytes of values, 16 of scales, a head of 32 bytes shared with its super-block.
        unsafe {
            let x = Tokens::of(tile, block, first);
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 32);
            let factor = _mm256_loadu_ps(head.cast());
            // Both scales of a row, as i16 in one i32 lane; and each of them twice.
            let both = _mm256_cvtepi8_epi16(_mm_loadu_si128(group.scales.as_ptr().add(16 * block).cast()));
            let first = _mm256_blend_epi16(both, _mm256_slli_epi32(both, 16), 0b1010_1010);
            let second = _mm256_blend_epi16(_mm256_srli_epi32(both, 16), both, 0b1010_1010);
            let weights = [_mm256_srai_epi32(_mm256_slli_epi32(both, 16), 16), _mm256_srai_epi32(both, 16)]
                .map(|one| _mm256_cvtepi32_ps(one));
            let mut dot = [_mm256_setzero_si256(); T];
            for pair in 0..4 {
                let values = group.values.as_ptr().add(256 * block + 64 * pair);
                let (even, odd) = (_mm256_loadu_si256(values.cast()), _mm256_loadu_si256(values.add(32).cast()));
                let scales = if pair < 2 { first } else { second };
                for t in 0..T {
                    let at = 32 * t + 8 * pair;
                    let even = _mm256_maddubs_epi16(even, x.quants(at));
                    let odd = _mm256_maddubs_epi16(odd, x.quants(at + 4));
                    dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(_mm256_add_epi16(even, odd), scales));
                }
            }
            for t in 0..T {
                // All of these are integers below 2^24: exact.
                let [first, second] =
                    [0, 1].map(|half| _mm256_mul_ps(weights[half], _mm256_cvtepi32_ps(x.term(t, half))));
                let sum = _mm256_add_ps(_mm256_add_ps(_mm256_cvtepi32_ps(dot[t]), first), second);
                let dot = _mm256_mul_ps(factor, sum);
                acc[t] = _mm256_add_ps(acc[t], _mm256_mul_ps(x.scale(t), dot));
            }
        }
    }
    store(&acc, &mut out[first..]);
}

/// The i16 sums of a block of nibbles with each token.
///
/// # Safety
/// `values` has 128 bytes, `x` `T` tokens.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibbles<const T: usize>(values: *const u8, x: Tokens) -> [__m256i; T] {
    let mut chain = [_mm256_setzero_si256(); T];
    for step in 0..4 {
        // SAFETY: 4 times 32 bytes; there are 32 T bytes of quants.
        unsafe {
            let packed = _mm256_loadu_si256(values.add(32 * step).cast());
            let first = _mm256_and_si256(packed, _mm256_set1_epi8(15));
            let second = _mm256_and_si256(_mm256_srli_epi16(packed, 4), _mm256_set1_epi8(15));
            for t in 0..T {
                let at = 32 * t + 4 * step;
                chain[t] = _mm256_add_epi16(chain[t], _mm256_maddubs_epi16(first, x.quants(at)));
                chain[t] = _mm256_add_epi16(chain[t], _mm256_maddubs_epi16(second, x.quants(at + 16)));
            }
        }
    }
    chain
}

/// Some tokens of a tile's block.
#[derive(Clone, Copy)]
struct Tokens {
    quants: *const u8,
    scales: *const u8,
    terms: *const u8,
}

impl Tokens {
    /// Those starting at `first`.
    ///
    /// # Safety
    /// `tile` has the block and the token.
    #[inline]
    unsafe fn of(tile: &Tile, block: usize, first: usize) -> Self {
        let n = tile.n_tokens;
        // SAFETY: guaranteed by the caller; `Tile` guarantees the length of a block.
        unsafe {
            let quants = tile.bytes.as_ptr().add(block * n * TOKEN_BYTES);
            let (scales, terms) = (quants.add(32 * n + 4 * first), quants.add(36 * n + 8 * first));
            Self { quants: quants.add(32 * first), scales, terms }
        }
    }

    /// Four activations, in all lanes.
    ///
    /// # Safety
    /// There are 4 bytes of quants at `at`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn quants(self, at: usize) -> __m256i {
        // SAFETY: guaranteed by the caller.
        _mm256_set1_epi32(unsafe { self.quants.add(at).cast::<i32>().read_unaligned() })
    }

    /// Term `idx` of token `t`, in all lanes.
    ///
    /// # Safety
    /// There is such a token.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn term(self, t: usize, idx: usize) -> __m256i {
        // SAFETY: guaranteed by the caller.
        _mm256_set1_epi32(unsafe { self.terms.add(8 * t + 4 * idx).cast::<i32>().read_unaligned() })
    }

    /// The scale of token `t`, in all lanes.
    ///
    /// # Safety
    /// As [`Tokens::term`].
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scale(self, t: usize) -> __m256 {
        // SAFETY: guaranteed by the caller.
        _mm256_set1_ps(unsafe { self.scales.add(4 * t).cast::<f32>().read_unaligned() })
    }
}

/// 8 bytes as pairs of equal i16.
///
/// # Safety
/// `bytes` has 8 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn twice(bytes: *const u8) -> __m256i {
    // SAFETY: guaranteed by the caller.
    let wide = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(bytes.cast()) });
    _mm256_or_si256(wide, _mm256_slli_epi32(wide, 16))
}

#[inline]
#[target_feature(enable = "avx2")]
fn store<const T: usize>(acc: &[__m256; T], out: &mut [[f32; GROUP]]) {
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: 8 lanes.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), *acc) };
    }
}
