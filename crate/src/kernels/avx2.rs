//! x86-64 with AVX2: 32 products of bytes per instruction, all 8 rows of a group in one register.
//!
//! ```text
//! values      row 0: w w w w   row 1: w w w w   ...   row 7: w w w w      32 bytes, unsigned
//! activation         a a a a          a a a a   ...          a a a a      4 bytes, repeated
//! maddubs     row 0: i16 i16   row 1: i16 i16   ...                       added up over a block (or less)
//! madd(ones)  row 0: i32       row 1: i32       ...   row 7: i32          no horizontal step
//! ```
//!
//! No i16 overflows: see `relaxed`, which does the same in registers of half the width.

// One index runs through registers and memory alike.
#![allow(clippy::needless_range_loop)]

use super::{Sums, TILE, Tile};
use crate::quant::{Form, Group, SUPER};
use std::arch::x86_64::*;

/// As [`super::reference::multiply`]; only where the processor has AVX2.
pub(super) fn multiply(group: &Group, tile: &Tile, out: &mut Sums) {
    assert_eq!(group.layout.n_blocks, tile.n_blocks);
    // SAFETY: `Kernel::best` offers this function where AVX2 was detected; `Group` and `Tile` guarantee the lengths of their bytes.
    unsafe {
        match tile.n_tokens {
            1 => rows::<1>(group, tile, out),
            2 => rows::<2>(group, tile, out),
            3 => rows::<3>(group, tile, out),
            _ => rows::<TILE>(group, tile, out),
        }
    }
}

/// # Safety
/// `tile` has `T` tokens and as many blocks as `group`.
#[target_feature(enable = "avx2")]
unsafe fn rows<const T: usize>(group: &Group, tile: &Tile, out: &mut Sums) {
    unsafe {
        match group.layout.form {
            Form::Q4 => q4::<T>(group, tile, out),
            Form::Q8 => q8::<T>(group, tile, out),
            Form::Q4K => q4_k::<T>(group, tile, out),
            Form::Q6K => q6_k::<T>(group, tile, out),
        }
    }
}

/// # Safety
/// As [`rows`], for groups of form Q4.
#[target_feature(enable = "avx2")]
unsafe fn q4<const T: usize>(group: &Group, tile: &Tile, out: &mut Sums) {
    let mut acc = [_mm256_setzero_ps(); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 128 bytes of values, 32 of scales and 40 T of activations.
        unsafe {
            let x = tile.bytes.as_ptr().add(block * 40 * T);
            let chain = nibbles::<T>(group.values.as_ptr().add(128 * block), x);
            let factor = _mm256_loadu_ps(group.scales.as_ptr().add(32 * block).cast());
            for t in 0..T {
                let dot = _mm256_madd_epi16(chain[t], _mm256_set1_epi16(1));
                let correction = _mm256_madd_epi16(sums::<T>(x, t), _mm256_set1_epi16(8));
                let dot = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_sub_epi32(dot, correction)));
                acc[t] = _mm256_add_ps(acc[t], _mm256_mul_ps(scale::<T>(x, t), dot));
            }
        }
    }
    store(&acc, out);
}

/// # Safety
/// As [`rows`], for groups of form Q8.
#[target_feature(enable = "avx2")]
unsafe fn q8<const T: usize>(group: &Group, tile: &Tile, out: &mut Sums) {
    let mut acc = [_mm256_setzero_ps(); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 256 bytes of values, 32 of scales and 40 T of activations.
        unsafe {
            let x = tile.bytes.as_ptr().add(block * 40 * T);
            let mut low = [_mm256_setzero_si256(); T];
            let mut high = low;
            for step in 0..8 {
                let values = _mm256_loadu_si256(group.values.as_ptr().add(256 * block + 32 * step).cast());
                let first = _mm256_and_si256(values, _mm256_set1_epi8(15));
                let second = _mm256_and_si256(_mm256_srli_epi16(values, 4), _mm256_set1_epi8(15));
                for t in 0..T {
                    let a = quants(x, 32 * t + 4 * step);
                    low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(first, a));
                    high[t] = _mm256_add_epi16(high[t], _mm256_maddubs_epi16(second, a));
                }
            }
            let factor = _mm256_loadu_ps(group.scales.as_ptr().add(32 * block).cast());
            for t in 0..T {
                let low = _mm256_madd_epi16(low[t], _mm256_set1_epi16(1));
                let high = _mm256_madd_epi16(high[t], _mm256_set1_epi16(16));
                let correction = _mm256_madd_epi16(sums::<T>(x, t), _mm256_set1_epi16(128));
                let dot = _mm256_sub_epi32(_mm256_add_epi32(low, high), correction);
                let dot = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(dot));
                acc[t] = _mm256_add_ps(acc[t], _mm256_mul_ps(scale::<T>(x, t), dot));
            }
        }
    }
    store(&acc, out);
}

/// # Safety
/// As [`rows`], for groups of form Q4K.
#[target_feature(enable = "avx2")]
unsafe fn q4_k<const T: usize>(group: &Group, tile: &Tile, out: &mut Sums) {
    let mut acc = [_mm256_setzero_ps(); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 128 bytes of values, 16 of scales, a head of 64 bytes shared with its super-block and 40 T of activations.
        unsafe {
            let x = tile.bytes.as_ptr().add(block * 40 * T);
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 64);
            let scales = group.scales.as_ptr().add(16 * block);
            let (factor, offset) = (_mm256_loadu_ps(head.cast()), _mm256_loadu_ps(head.add(32).cast()));
            let (scales, mins) = (twice(scales), twice(scales.add(8)));
            let chain = nibbles::<T>(group.values.as_ptr().add(128 * block), x);
            for t in 0..T {
                let dot = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_madd_epi16(chain[t], scales)));
                let correction = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums::<T>(x, t), mins));
                let dot = _mm256_sub_ps(dot, _mm256_mul_ps(offset, correction));
                acc[t] = _mm256_add_ps(acc[t], _mm256_mul_ps(scale::<T>(x, t), dot));
            }
        }
    }
    store(&acc, out);
}

/// # Safety
/// As [`rows`], for groups of form Q6K.
#[target_feature(enable = "avx2")]
unsafe fn q6_k<const T: usize>(group: &Group, tile: &Tile, out: &mut Sums) {
    let mut acc = [_mm256_setzero_ps(); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 256 bytes of values, 16 of scales, a head of 32 bytes shared with its super-block and 40 T of activations.
        unsafe {
            let x = tile.bytes.as_ptr().add(block * 40 * T);
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 32);
            let factor = _mm256_loadu_ps(head.cast());
            // Both scales of a row, i16, in one i32 lane; and each of them twice.
            let both = _mm256_cvtepi8_epi16(_mm_loadu_si128(group.scales.as_ptr().add(16 * block).cast()));
            let first = _mm256_blend_epi16(both, _mm256_slli_epi32(both, 16), 0b1010_1010);
            let second = _mm256_blend_epi16(_mm256_srli_epi32(both, 16), both, 0b1010_1010);
            let mut dot = [_mm256_setzero_si256(); T];
            for pair in 0..4 {
                let values = group.values.as_ptr().add(256 * block + 64 * pair);
                let (even, odd) = (_mm256_loadu_si256(values.cast()), _mm256_loadu_si256(values.add(32).cast()));
                let scales = if pair < 2 { first } else { second };
                for t in 0..T {
                    let at = 32 * t + 8 * pair;
                    let even = _mm256_maddubs_epi16(even, quants(x, at));
                    let odd = _mm256_maddubs_epi16(odd, quants(x, at + 4));
                    dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(_mm256_add_epi16(even, odd), scales));
                }
            }
            for t in 0..T {
                let correction = _mm256_slli_epi32(_mm256_madd_epi16(sums::<T>(x, t), both), 5);
                let dot = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_sub_epi32(dot[t], correction)));
                acc[t] = _mm256_add_ps(acc[t], _mm256_mul_ps(scale::<T>(x, t), dot));
            }
        }
    }
    store(&acc, out);
}

/// The i16 sums of a block of nibbles with each token.
///
/// # Safety
/// `values` has 128 bytes, `x` 40 T.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibbles<const T: usize>(values: *const u8, x: *const u8) -> [__m256i; T] {
    let mut chain = [_mm256_setzero_si256(); T];
    for step in 0..4 {
        // SAFETY: 4 times 32 bytes; `quants` stays within the 32 T bytes of quants.
        unsafe {
            let packed = _mm256_loadu_si256(values.add(32 * step).cast());
            let first = _mm256_and_si256(packed, _mm256_set1_epi8(15));
            let second = _mm256_and_si256(_mm256_srli_epi16(packed, 4), _mm256_set1_epi8(15));
            for t in 0..T {
                let at = 32 * t + 4 * step;
                chain[t] = _mm256_add_epi16(chain[t], _mm256_maddubs_epi16(first, quants(x, at)));
                chain[t] = _mm256_add_epi16(chain[t], _mm256_maddubs_epi16(second, quants(x, at + 16)));
            }
        }
    }
    chain
}

/// Four activations, in all lanes.
///
/// # Safety
/// `x` has 4 bytes at `at`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn quants(x: *const u8, at: usize) -> __m256i {
    // SAFETY: the caller's.
    _mm256_set1_epi32(unsafe { x.add(at).cast::<i32>().read_unaligned() })
}

/// The two sums of token `t`, in all lanes.
///
/// # Safety
/// `x` is a block of `T` tokens.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn sums<const T: usize>(x: *const u8, t: usize) -> __m256i {
    // SAFETY: the caller's.
    unsafe { quants(x, 36 * T + 4 * t) }
}

/// The scale of token `t`, in all lanes.
///
/// # Safety
/// `x` is a block of `T` tokens.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn scale<const T: usize>(x: *const u8, t: usize) -> __m256 {
    // SAFETY: the caller's.
    _mm256_set1_ps(unsafe { x.add(32 * T + 4 * t).cast::<f32>().read_unaligned() })
}

/// 8 bytes as pairs of equal i16.
///
/// # Safety
/// `bytes` has 8 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn twice(bytes: *const u8) -> __m256i {
    // SAFETY: the caller's.
    let wide = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(bytes.cast()) });
    _mm256_or_si256(wide, _mm256_slli_epi32(wide, 16))
}

#[inline]
#[target_feature(enable = "avx2")]
fn store<const T: usize>(acc: &[__m256; T], out: &mut Sums) {
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: 8 lanes.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), *acc) };
    }
}
