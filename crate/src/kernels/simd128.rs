//! wasm with plain simd128: 8 products of i16 per instruction; the activations are kept as i16 for it.
//!
//! ```text
//! values         row 0: w0 w1 w2 w3   row 1: w0 w1 w2 w3   row 2 ...   row 3 ...      16 bytes, read as 8 x u16
//! and, shift     row 0: w0 w2         row 1: w0 w2         ...                        even columns; a shift by 8 gives the odd ones
//! activation            a0 a2                a0 a2         ...                        2 x i16, repeated
//! dot            row 0: i32           row 1: i32           row 2: i32  row 3: i32     no horizontal step
//! ```
//!
//! Nibbles give two such pairs more from the high halves of the bytes. A group's rows are taken as two halves of 4. Of a token's block, 8 bytes are
//! columns 4 j, 4 j + 2 and 4 j + 1, 4 j + 3.

// One index runs through registers and memory alike.
#![allow(clippy::needless_range_loop)]

use super::{Sums, TILE, Tile};
use crate::quant::{Form, GROUP, Group, SUPER};
use std::arch::wasm32::*;

/// As [`super::reference::multiply`].
pub(super) fn multiply(group: &Group, tile: &Tile, out: &mut Sums) {
    assert_eq!(group.layout.n_blocks, tile.n_blocks);
    // SAFETY: `Group` and `Tile` guarantee the lengths of their bytes.
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
unsafe fn q4<const T: usize>(group: &Group, tile: &Tile, half: usize) -> [v128; T] {
    let mut values = group.values.as_ptr().wrapping_add(16 * half);
    let mut scales = group.scales.as_ptr().wrapping_add(16 * half);
    let mut x = tile.bytes.as_ptr();
    let mut acc = [f32x4_splat(0.0); T];
    for _ in 0..tile.n_blocks {
        // SAFETY: a block has 128 bytes of values, 32 of scales and 72 T of activations.
        unsafe {
            let dots = nibbles::<T>(values, x);
            let factor = v128_load(scales.cast());
            for t in 0..T {
                let correction = i32x4_dot_i16x8(splat(x, 68 * T + 4 * t), i16x8_splat(8));
                let dot = f32x4_mul(factor, f32x4_convert_i32x4(i32x4_sub(dots[t], correction)));
                acc[t] = f32x4_add(acc[t], f32x4_mul(splat(x, 64 * T + 4 * t), dot));
            }
        }
        values = values.wrapping_add(128);
        scales = scales.wrapping_add(32);
        x = x.wrapping_add(72 * T);
    }
    acc
}

/// # Safety
/// As [`rows`], for groups of form Q8; `half` is 0 or 1.
unsafe fn q8<const T: usize>(group: &Group, tile: &Tile, half: usize) -> [v128; T] {
    let mut values = group.values.as_ptr().wrapping_add(16 * half);
    let mut scales = group.scales.as_ptr().wrapping_add(16 * half);
    let mut x = tile.bytes.as_ptr();
    let mut acc = [f32x4_splat(0.0); T];
    for _ in 0..tile.n_blocks {
        // SAFETY: a block has 256 bytes of values, 32 of scales and 72 T of activations.
        unsafe {
            let [first, second] = bytes::<T>(values, x);
            let factor = v128_load(scales.cast());
            for t in 0..T {
                let correction = i32x4_dot_i16x8(splat(x, 68 * T + 4 * t), i16x8_splat(128));
                let dot = i32x4_sub(i32x4_add(first[t], second[t]), correction);
                let dot = f32x4_mul(factor, f32x4_convert_i32x4(dot));
                acc[t] = f32x4_add(acc[t], f32x4_mul(splat(x, 64 * T + 4 * t), dot));
            }
        }
        values = values.wrapping_add(256);
        scales = scales.wrapping_add(32);
        x = x.wrapping_add(72 * T);
    }
    acc
}

/// # Safety
/// As [`rows`], for groups of form Q4K; `half` is 0 or 1.
unsafe fn q4_k<const T: usize>(group: &Group, tile: &Tile, half: usize) -> [v128; T] {
    let mut values = group.values.as_ptr().wrapping_add(16 * half);
    let mut scales = group.scales.as_ptr().wrapping_add(4 * half);
    let mut x = tile.bytes.as_ptr();
    let mut acc = [f32x4_splat(0.0); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 128 bytes of values, 16 of scales, a head of 64 bytes shared with its super-block and 72 T of activations.
        unsafe {
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 64 + 16 * half);
            let (factor, offset) = (v128_load(head.cast()), v128_load(head.add(32).cast()));
            let scale = u32x4_extend_low_u16x8(u16x8_extend_low_u8x16(v128_load32_zero(scales.cast())));
            let min = twice(scales.add(8));
            let dots = nibbles::<T>(values, x);
            for t in 0..T {
                let dot = f32x4_mul(factor, f32x4_convert_i32x4(i32x4_mul(dots[t], scale)));
                let correction = f32x4_convert_i32x4(i32x4_dot_i16x8(splat(x, 68 * T + 4 * t), min));
                let dot = f32x4_sub(dot, f32x4_mul(offset, correction));
                acc[t] = f32x4_add(acc[t], f32x4_mul(splat(x, 64 * T + 4 * t), dot));
            }
        }
        values = values.wrapping_add(128);
        scales = scales.wrapping_add(16);
        x = x.wrapping_add(72 * T);
    }
    acc
}

/// # Safety
/// As [`rows`], for groups of form Q6K; `half` is 0 or 1.
unsafe fn q6_k<const T: usize>(group: &Group, tile: &Tile, half: usize) -> [v128; T] {
    let mut values = group.values.as_ptr().wrapping_add(16 * half);
    let mut scales = group.scales.as_ptr().wrapping_add(8 * half);
    let mut x = tile.bytes.as_ptr();
    let mut acc = [f32x4_splat(0.0); T];
    for block in 0..tile.n_blocks {
        // SAFETY: a block has 256 bytes of values, 16 of scales, a head of 32 bytes shared with its super-block and 72 T of activations.
        unsafe {
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 32 + 16 * half);
            let factor = v128_load(head.cast());
            // Both scales of a row side by side; and each of them as i32.
            let both = i16x8_load_extend_i8x8(scales.cast());
            let (scale, scale2) = (i32x4_shr(i32x4_shl(both, 16), 16), i32x4_shr(both, 16));
            let [first, second] = bytes::<T>(values, x);
            for t in 0..T {
                let correction = i32x4_shl(i32x4_dot_i16x8(splat(x, 68 * T + 4 * t), both), 5);
                let dot = i32x4_add(i32x4_mul(first[t], scale), i32x4_mul(second[t], scale2));
                let dot = f32x4_mul(factor, f32x4_convert_i32x4(i32x4_sub(dot, correction)));
                acc[t] = f32x4_add(acc[t], f32x4_mul(splat(x, 64 * T + 4 * t), dot));
            }
        }
        values = values.wrapping_add(256);
        scales = scales.wrapping_add(16);
        x = x.wrapping_add(72 * T);
    }
    acc
}

/// The sums of half a block of nibbles with each token.
///
/// # Safety
/// `values` is the first or second 16 bytes of a block of 128, `x` a block of `T` tokens.
#[inline]
unsafe fn nibbles<const T: usize>(values: *const u8, x: *const u8) -> [v128; T] {
    let mut dots = [i32x4_splat(0); T];
    for step in 0..4 {
        // SAFETY: the caller's; quants are the first 64 T bytes of a block.
        unsafe {
            let packed = v128_load(values.add(32 * step).cast());
            let even = v128_and(packed, u16x8_splat(15));
            let odd = v128_and(u16x8_shr(packed, 8), u16x8_splat(15));
            let even2 = v128_and(u16x8_shr(packed, 4), u16x8_splat(15));
            let odd2 = u16x8_shr(packed, 12);
            for t in 0..T {
                let at = 64 * t + 8 * step;
                let first = i32x4_add(i32x4_dot_i16x8(splat(x, at), even), i32x4_dot_i16x8(splat(x, at + 4), odd));
                let second =
                    i32x4_add(i32x4_dot_i16x8(splat(x, at + 32), even2), i32x4_dot_i16x8(splat(x, at + 36), odd2));
                dots[t] = i32x4_add(dots[t], i32x4_add(first, second));
            }
        }
    }
    dots
}

/// The sums of half a block of bytes with each token, of the first and of the last 16 columns.
///
/// # Safety
/// `values` is the first or second 16 bytes of a block of 256, `x` a block of `T` tokens.
#[inline]
unsafe fn bytes<const T: usize>(values: *const u8, x: *const u8) -> [[v128; T]; 2] {
    let mut dots = [[i32x4_splat(0); T]; 2];
    for step in 0..8 {
        // SAFETY: the caller's; quants are the first 64 T bytes of a block.
        unsafe {
            let bytes = v128_load(values.add(32 * step).cast());
            let (even, odd) = (v128_and(bytes, u16x8_splat(255)), u16x8_shr(bytes, 8));
            for t in 0..T {
                let at = 64 * t + 8 * step;
                let dot = i32x4_add(i32x4_dot_i16x8(splat(x, at), even), i32x4_dot_i16x8(splat(x, at + 4), odd));
                dots[step / 4][t] = i32x4_add(dots[step / 4][t], dot);
            }
        }
    }
    dots
}

/// Four bytes, in all lanes.
///
/// # Safety
/// `x` has 4 bytes at `at`.
#[inline]
unsafe fn splat(x: *const u8, at: usize) -> v128 {
    // SAFETY: the caller's.
    unsafe { v128_load32_splat(x.add(at).cast()) }
}

/// 4 bytes as pairs of equal i16.
///
/// # Safety
/// `bytes` has 4 bytes.
#[inline]
unsafe fn twice(bytes: *const u8) -> v128 {
    // SAFETY: the caller's.
    let wide = u16x8_extend_low_u8x16(unsafe { v128_load32_zero(bytes.cast()) });
    i16x8_shuffle::<0, 0, 1, 1, 2, 2, 3, 3>(wide, wide)
}
