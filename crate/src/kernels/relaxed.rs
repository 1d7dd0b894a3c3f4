//! wasm with relaxed SIMD: 16 products of bytes per instruction.
//!
//! ```text
//! values      row 0: w w w w   row 1: w w w w   row 2: w w w w   row 3: w w w w     16 bytes, unsigned and below 128
//! activation         a a a a          a a a a          a a a a          a a a a     4 bytes, repeated
//! dot         row 0: i16 i16   row 1: i16 i16   ...                                 added up over a block (or less)
//! madd(ones)  row 0: i32       row 1: i32       row 2: i32       row 3: i32         no horizontal step
//! ```
//!
//! Nibbles: 8 dots into one i16 chain stay within 8 * 2 * 15 * 127 = 30480. Bytes (Q8) are two planes of nibbles, high and low. 6-bit values: 2 dots stay
//! within 2 * 2 * 63 * 127 = 32004. As the second operand of `i16x8_relaxed_dot_i8x16_i7x16` never has its highest bit set, the instruction gives the
//! same result on every engine. A group's rows are taken as two halves of 4.

// One index runs through registers and memory alike.
#![allow(clippy::needless_range_loop)]

use super::{Sums, TILE, Tile};
use crate::quant::{Form, GROUP, Group, SUPER};
use std::arch::wasm32::*;

/// As [`super::reference::multiply`].
pub(super) fn multiply(group: &Group, tile: &Tile, out: &mut Sums) {
    assert_eq!(group.layout.n_blocks, tile.n_blocks);
    // SAFETY: the module runs only where relaxed SIMD exists; `Group` and `Tile` guarantee the lengths of their bytes.
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
#[target_feature(enable = "relaxed-simd")]
unsafe fn rows<const T: usize>(group: &Group, tile: &Tile, out: &mut Sums) {
    for half in 0..2 {
        // SAFETY: the caller's; the form is the group's.
        let acc = unsafe {
            match group.layout.form {
                Form::Q4 => q4::<T>(group, tile, half),
                Form::Q8 => q8::<T>(group, tile, half),
                Form::Q4K => q4_k::<T>(group, tile, half),
                Form::Q6K => q6_k::<T>(group, tile, half),
            }
        };
        for (out, acc) in out.iter_mut().zip(acc) {
            // SAFETY: 4 of 8 lanes.
            unsafe { v128_store(out.as_mut_ptr().add(half * GROUP / 2).cast(), acc) };
        }
    }
}

/// # Safety
/// As [`rows`], for groups of form Q4; `half` is 0 or 1.
#[target_feature(enable = "relaxed-simd")]
unsafe fn q4<const T: usize>(group: &Group, tile: &Tile, half: usize) -> [v128; T] {
    let mut values = group.values.as_ptr().wrapping_add(16 * half);
    let mut scales = group.scales.as_ptr().wrapping_add(16 * half);
    let mut x = tile.bytes.as_ptr();
    let mut acc = [f32x4_splat(0.0); T];
    for _ in 0..tile.n_blocks {
        // SAFETY: a block has 128 bytes of values, 32 of scales and 40 T of activations.
        unsafe {
            let chain = nibbles::<T>(values, x);
            let factor = v128_load(scales.cast());
            for t in 0..T {
                let dot = i32x4_dot_i16x8(chain[t], i16x8_splat(1));
                let correction = i32x4_dot_i16x8(splat(x, 36 * T + 4 * t), i16x8_splat(8));
                let dot = f32x4_mul(factor, f32x4_convert_i32x4(i32x4_sub(dot, correction)));
                acc[t] = f32x4_add(acc[t], f32x4_mul(splat(x, 32 * T + 4 * t), dot));
            }
        }
        values = values.wrapping_add(128);
        scales = scales.wrapping_add(32);
        x = x.wrapping_add(40 * T);
    }
    acc
}

/// # Safety
/// As [`rows`], for groups of form Q8; `half` is 0 or 1.
#[target_feature(enable = "relaxed-simd")]
unsafe fn q8<const T: usize>(group: &Group, tile: &Tile, half: usize) -> [v128; T] {
    let mut values = group.values.as_ptr().wrapping_add(16 * half);
    let mut scales = group.scales.as_ptr().wrapping_add(16 * half);
    let mut x = tile.bytes.as_ptr();
    let mut acc = [f32x4_splat(0.0); T];
    for _ in 0..tile.n_blocks {
        // SAFETY: a block has 256 bytes of values, 32 of scales and 40 T of activations.
        unsafe {
            let (mut low, mut high) = ([i16x8_splat(0); T], [i16x8_splat(0); T]);
            for step in 0..8 {
                let bytes = v128_load(values.add(32 * step).cast());
                let first = v128_and(bytes, u8x16_splat(15));
                let second = v128_and(u16x8_shr(bytes, 4), u8x16_splat(15));
                for t in 0..T {
                    let a = splat(x, 32 * t + 4 * step);
                    low[t] = i16x8_add(low[t], i16x8_relaxed_dot_i8x16_i7x16(a, first));
                    high[t] = i16x8_add(high[t], i16x8_relaxed_dot_i8x16_i7x16(a, second));
                }
            }
            let factor = v128_load(scales.cast());
            for t in 0..T {
                let low = i32x4_dot_i16x8(low[t], i16x8_splat(1));
                let high = i32x4_dot_i16x8(high[t], i16x8_splat(16));
                let correction = i32x4_dot_i16x8(splat(x, 36 * T + 4 * t), i16x8_splat(128));
                let dot = i32x4_sub(i32x4_add(low, high), correction);
                let dot = f32x4_mul(factor, f32x4_convert_i32x4(dot));
                acc[t] = f32x4_add(acc[t], f32x4_mul(splat(x, 32 * T + 4 * t), dot));
            }
        }
        values = values.wrapping_add(256);
        scales = scales.wrapping_add(32);
        x = x.wrapping_add(40 * T);
    }
    acc
}

/// # Safety
/// As [`rows`], for groups of form Q4K; `half` is 0 or 1.
#[target_feature(enable = "relaxed-simd")]
unsafe fn q4_k<const T: usize>(group: &Group, tile: &Tile, half: usize) -> [v128; T] {
    let mut values = group.values.as_ptr().wrapping_add(16 * half);
    let mut scales = group.scales.as_ptr().wrapping_add(4 * half);
    let mut x = tile.bytes.as_ptr();
    let mut acc = [f32x4_splat(0.0); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 128 bytes of values, 16 of scales, a head of 64 bytes shared with its super-block and 40 T of activations.
        unsafe {
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 64 + 16 * half);
            let (factor, offset) = (v128_load(head.cast()), v128_load(head.add(32).cast()));
            let (scale, min) = (twice(scales), twice(scales.add(8)));
            let chain = nibbles::<T>(values, x);
            for t in 0..T {
                let dot = f32x4_mul(factor, f32x4_convert_i32x4(i32x4_dot_i16x8(chain[t], scale)));
                let correction = f32x4_convert_i32x4(i32x4_dot_i16x8(splat(x, 36 * T + 4 * t), min));
                let dot = f32x4_sub(dot, f32x4_mul(offset, correction));
                acc[t] = f32x4_add(acc[t], f32x4_mul(splat(x, 32 * T + 4 * t), dot));
            }
        }
        values = values.wrapping_add(128);
        scales = scales.wrapping_add(16);
        x = x.wrapping_add(40 * T);
    }
    acc
}

/// # Safety
/// As [`rows`], for groups of form Q6K; `half` is 0 or 1.
#[target_feature(enable = "relaxed-simd")]
unsafe fn q6_k<const T: usize>(group: &Group, tile: &Tile, half: usize) -> [v128; T] {
    let mut values = group.values.as_ptr().wrapping_add(16 * half);
    let mut scales = group.scales.as_ptr().wrapping_add(8 * half);
    let mut x = tile.bytes.as_ptr();
    let mut acc = [f32x4_splat(0.0); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 256 bytes of values, 16 of scales, a head of 32 bytes shared with its super-block and 40 T of activations.
        unsafe {
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 32 + 16 * half);
            let factor = v128_load(head.cast());
            // Both scales of a row side by side; and each of them twice.
            let both = i16x8_load_extend_i8x8(scales.cast());
            let first = i16x8_shuffle::<0, 0, 2, 2, 4, 4, 6, 6>(both, both);
            let second = i16x8_shuffle::<1, 1, 3, 3, 5, 5, 7, 7>(both, both);
            let mut dot = [i32x4_splat(0); T];
            for pair in 0..4 {
                let even = v128_load(values.add(64 * pair).cast());
                let odd = v128_load(values.add(64 * pair + 32).cast());
                let scale = if pair < 2 { first } else { second };
                for t in 0..T {
                    let even = i16x8_relaxed_dot_i8x16_i7x16(splat(x, 32 * t + 8 * pair), even);
                    let odd = i16x8_relaxed_dot_i8x16_i7x16(splat(x, 32 * t + 8 * pair + 4), odd);
                    dot[t] = i32x4_add(dot[t], i32x4_dot_i16x8(i16x8_add(even, odd), scale));
                }
            }
            for t in 0..T {
                let correction = i32x4_shl(i32x4_dot_i16x8(splat(x, 36 * T + 4 * t), both), 5);
                let dot = f32x4_mul(factor, f32x4_convert_i32x4(i32x4_sub(dot[t], correction)));
                acc[t] = f32x4_add(acc[t], f32x4_mul(splat(x, 32 * T + 4 * t), dot));
            }
        }
        values = values.wrapping_add(256);
        scales = scales.wrapping_add(16);
        x = x.wrapping_add(40 * T);
    }
    acc
}

/// The i16 sums of half a block of nibbles with each token.
///
/// # Safety
/// `values` is the first or second 16 bytes of a block of 128, `x` a block of `T` tokens.
#[inline]
#[target_feature(enable = "relaxed-simd")]
unsafe fn nibbles<const T: usize>(values: *const u8, x: *const u8) -> [v128; T] {
    let mut chain = [i16x8_splat(0); T];
    for step in 0..4 {
        // SAFETY: the caller's; quants are the first 32 T bytes of a block.
        unsafe {
            let packed = v128_load(values.add(32 * step).cast());
            let first = v128_and(packed, u8x16_splat(15));
            let second = v128_and(u16x8_shr(packed, 4), u8x16_splat(15));
            for t in 0..T {
                let (a, b) = (splat(x, 32 * t + 4 * step), splat(x, 32 * t + 4 * step + 16));
                chain[t] = i16x8_add(chain[t], i16x8_relaxed_dot_i8x16_i7x16(a, first));
                chain[t] = i16x8_add(chain[t], i16x8_relaxed_dot_i8x16_i7x16(b, second));
            }
        }
    }
    chain
}

/// Four bytes, in all lanes.
///
/// # Safety
/// `x` has 4 bytes at `at`.
#[inline]
#[target_feature(enable = "relaxed-simd")]
unsafe fn splat(x: *const u8, at: usize) -> v128 {
    // SAFETY: the caller's.
    unsafe { v128_load32_splat(x.add(at).cast()) }
}

/// 4 bytes as pairs of equal i16.
///
/// # Safety
/// `bytes` has 4 bytes.
#[inline]
#[target_feature(enable = "relaxed-simd")]
unsafe fn twice(bytes: *const u8) -> v128 {
    // SAFETY: the caller's.
    let wide = u16x8_extend_low_u8x16(unsafe { v128_load32_zero(bytes.cast()) });
    i16x8_shuffle::<0, 0, 1, 1, 2, 2, 3, 3>(wide, wide)
}
