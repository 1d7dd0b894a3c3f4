//! wasm with plain simd128: 8 products of i16 per instruction; the activations are kept as i16 for it.
//!
//! ```text
//! values         row 0: w0 w1 w2 w3   row 1: w0 w1 w2 w3   row 2 ...   row 3 ...      16 bytes, read as 8 x u16
//! and, shift     row 0: w0 w2         row 1: w0 w2         ...                        even columns; a shift by 8 gives the odd ones
//! activation            a0 a2                a0 a2         ...                        2 x i16, repeated
//! dot            row 0: i32           row 1: i32           row 2: i32  row 3: i32     no horizontal step
//! ```
//!
//! Nibbles give two pairs more from the high halves of the bytes. Of a token's block, 8 bytes are columns 4 j, 4 j + 2 and 4 j + 1, 4 j + 3: two steps.

use super::wasm::{self, Dots, Engine, STEP_BYTES, Steps, splat};
use super::{Sums, TOKEN_BYTES, Tile};
use crate::quant::Group;
use std::arch::wasm32::*;

/// As [`super::reference::multiply`].
pub(super) fn multiply(group: &Group, tile: &Tile, out: &mut Sums) {
    assert_eq!(group.layout.n_blocks, tile.n_blocks);
    // SAFETY: `Group` and `Tile` guarantee the lengths of their bytes.
    unsafe { wasm::multiply::<Simd128>(group, tile, out) }
}

struct Simd128;

impl Engine for Simd128 {
    const N_STEPS: usize = 16;

    #[inline(always)]
    unsafe fn nibbles(values: *const u8, steps: &mut Steps) -> *const u8 {
        for j in 0..4 {
            for half in 0..2 {
                // SAFETY: the caller's.
                let packed = unsafe { v128_load(values.add(32 * j + 16 * half).cast()) };
                steps[2 * j][half] = v128_and(packed, u16x8_splat(15));
                steps[2 * j + 1][half] = v128_and(u16x8_shr(packed, 8), u16x8_splat(15));
                steps[2 * j + 8][half] = v128_and(u16x8_shr(packed, 4), u16x8_splat(15));
                steps[2 * j + 9][half] = u16x8_shr(packed, 12);
            }
        }
        steps.as_ptr().cast()
    }

    #[inline(always)]
    unsafe fn sixes(values: *const u8, steps: &mut Steps) -> *const u8 {
        // SAFETY: the caller's.
        unsafe { Self::bytes(values, steps) }
    }

    #[inline(always)]
    unsafe fn bytes(values: *const u8, steps: &mut Steps) -> *const u8 {
        for j in 0..8 {
            for half in 0..2 {
                // SAFETY: the caller's.
                let bytes = unsafe { v128_load(values.add(32 * j + 16 * half).cast()) };
                steps[2 * j][half] = v128_and(bytes, u16x8_splat(255));
                steps[2 * j + 1][half] = u16x8_shr(bytes, 8);
            }
        }
        steps.as_ptr().cast()
    }

    #[inline(always)]
    unsafe fn dot_nibbles<const T: usize>(steps: *const u8, x: *const u8, start: Dots<T>, n_steps: usize) -> Dots<T> {
        let mut sums = start;
        for k in 0..n_steps {
            // SAFETY: the caller's.
            unsafe {
                let step = steps.add(STEP_BYTES * k);
                let weights = [v128_load(step.cast()), v128_load(step.add(16).cast())];
                for t in 0..T {
                    let a = splat(x.add((TOKEN_BYTES - 12) * t + 4 * k));
                    for half in 0..2 {
                        sums[t][half] = i32x4_add(sums[t][half], i32x4_dot_i16x8(a, weights[half]));
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn dot_sixes<const T: usize>(steps: *const u8, x: *const u8, start: Dots<T>, n_steps: usize) -> Dots<T> {
        // SAFETY: the caller's.
        unsafe { Self::dot_nibbles(steps, x, start, n_steps) }
    }

    #[inline(always)]
    unsafe fn dot_bytes<const T: usize>(steps: *const u8, x: *const u8, start: Dots<T>, n_steps: usize) -> Dots<T> {
        // SAFETY: the caller's.
        unsafe { Self::dot_nibbles(steps, x, start.map(|pair| pair.map(|sum| i32x4_shl(sum, 4))), n_steps) }
    }
}
