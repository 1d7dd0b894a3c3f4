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

use super::{Sums, TILE, Tile};
use crate::quant::{Form, GROUP, Group};
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
    unsafe {
        match group.layout.form {
            Form::Q4 => q4::<T>(group, tile, out),
            _ => super::reference::multiply(group, tile, out),
        }
    }
}

/// # Safety
/// As [`rows`].
#[target_feature(enable = "relaxed-simd")]
unsafe fn q4<const T: usize>(group: &Group, tile: &Tile, out: &mut Sums) {
    let stride = T * 40;
    let (low, eight) = (u8x16_splat(15), i16x8_splat(8));
    for half in 0..2 {
        let mut values = group.values[16 * half..].as_ptr();
        let mut scales = group.scales[16 * half..].as_ptr();
        let mut x = tile.bytes.as_ptr();
        let mut acc = [f32x4_splat(0.0); T];
        for _ in 0..tile.n_blocks {
            unsafe {
                let mut chain = [i16x8_splat(0); T];
                for step in 0..4 {
                    let packed = v128_load(values.add(32 * step).cast());
                    let first = v128_and(packed, low);
                    let second = v128_and(u16x8_shr(packed, 4), low);
                    for t in 0..T {
                        let a = v128_load32_splat(x.add(32 * t + 4 * step).cast());
                        let b = v128_load32_splat(x.add(32 * t + 16 + 4 * step).cast());
                        chain[t] = i16x8_add(chain[t], i16x8_relaxed_dot_i8x16_i7x16(a, first));
                        chain[t] = i16x8_add(chain[t], i16x8_relaxed_dot_i8x16_i7x16(b, second));
                    }
                }
                let factor = v128_load(scales.cast());
                for t in 0..T {
                    let sums = v128_load32_splat(x.add(36 * T + 4 * t).cast());
                    let dot = i32x4_dot_i16x8(chain[t], i16x8_splat(1));
                    let dot = f32x4_convert_i32x4(i32x4_sub(dot, i32x4_dot_i16x8(sums, eight)));
                    let a = v128_load32_splat(x.add(32 * T + 4 * t).cast());
                    acc[t] = f32x4_add(acc[t], f32x4_mul(a, f32x4_mul(factor, dot)));
                }
                values = values.add(128);
                scales = scales.add(32);
                x = x.add(stride);
            }
        }
        for t in 0..T {
            // SAFETY: `out[t]` has 8 lanes, `half` is 0 or 1.
            unsafe { v128_store(out[t].as_mut_ptr().add(half * GROUP / 2).cast(), acc[t]) };
        }
    }
}
