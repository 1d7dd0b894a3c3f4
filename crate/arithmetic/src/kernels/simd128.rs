//! wasm with plain simd128: 8 products of i16 per instruction; the activations are kept as i16 for this.
//!
//! ```text
//! values         row 0: w0 w1 w2 w3   row 1: w0 w1 w2 w3   row 2 ...   row 3 ...      16 bytes, read as 8 x u16
//! and, shift     row 0: w0 w2         row 1: w0 w2         ...                        even columns; a shift by 8 gives the odd ones
//! activation            a0 a2                a0 a2         ...                        2 x i16, repeated
//! dot            row 0: i32           row 1: i32           row 2: i32  row 3: i32     no horizontal step
//! ```
//!
//! Nibbles give two more pairs from the high halves of the bytes. 8 bytes of a token's block are columns 4 j, 4 j + 2
//! and 4 j + 1, 4 j + 3: two steps.

use super::wasm::{self, Dots, Engine, Pair};
use super::{Sums, Tile};
use crate::layout::Group;
use std::arch::wasm32::*;

/// Like [`super::reference::multiply`].
pub(super) fn multiply(group: &Group, tile: &Tile, out: &mut Sums) {
    assert_eq!(group.layout.n_blocks, tile.n_blocks);
    // SAFETY: `Group` and `Tile` guarantee the lengths of their bytes.
    unsafe { wasm::multiply::<Simd128>(group, tile, out) }
}

struct Simd128;

impl Engine for Simd128 {
    const N_STEPS: usize = 16;
    const PLANES: bool = false;

    #[inline(always)]
    unsafe fn nibbles(j: usize, packed: Pair, mut take: impl FnMut(usize, Pair)) {
        take(2 * j, packed.map(|packed| v128_and(packed, u16x8_splat(15))));
        take(2 * j + 1, packed.map(|packed| v128_and(u16x8_shr(packed, 8), u16x8_splat(15))));
        take(2 * j + 8, packed.map(|packed| v128_and(u16x8_shr(packed, 4), u16x8_splat(15))));
        take(2 * j + 9, packed.map(|packed| u16x8_shr(packed, 12)));
    }

    #[inline(always)]
    unsafe fn sixes(j: usize, packed: Pair, mut take: impl FnMut(usize, Pair)) {
        // SAFETY: guaranteed by the caller.
        unsafe { Self::bytes(j, packed, |_, step, weights| take(step, weights)) }
    }

    #[inline(always)]
    unsafe fn bytes(j: usize, packed: Pair, mut take: impl FnMut(usize, usize, Pair)) {
        take(0, 2 * j, packed.map(|packed| v128_and(packed, u16x8_splat(255))));
        take(0, 2 * j + 1, packed.map(|packed| u16x8_shr(packed, 8)));
    }

    #[inline(always)]
    unsafe fn dot(sum: v128, a: v128, weights: v128) -> v128 {
        i32x4_add(sum, i32x4_dot_i16x8(a, weights))
    }

    #[inline(always)]
    unsafe fn dot_nibbles<const T: usize>(steps: *const u8, x: *const u8, start: Dots<T>, n_steps: usize) -> Dots<T> {
        // SAFETY: guaranteed by the caller.
        unsafe { wasm::over_steps(steps, x, start, n_steps, |sum, a, weights| Self::dot(sum, a, weights)) }
    }
}
