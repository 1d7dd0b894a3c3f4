//! wasm with relaxed SIMD: 16 products of bytes per instruction.
//!
//! ```text
//! values      row 0: w w w w   row 1: w w w w   row 2: w w w w   row 3: w w w w     16 bytes, unsigned and below 128
//! activation         a a a a          a a a a          a a a a          a a a a     4 bytes, repeated
//! dot         row 0: i32       row 1: i32       row 2: i32       row 3: i32         added up at once (WIDE), or
//!             row 0: i16 i16   row 1: i16 i16   ...                                 added up as i16 for as long as they fit
//! madd(ones)  row 0: i32       row 1: i32       row 2: i32       row 3: i32         no horizontal step
//! ```
//!
//! Bytes are two planes of nibbles, high and low. The second operand of both instructions never has its highest bit
//! set, and no pair of products exceeds 16 bits (2 * 63 * 127 = 16002), so every engine gives the same result. As i16,
//! 8 dots of nibbles stay within 8 * 2 * 15 * 127 = 30480. Only 2 dots of 6-bit values would fit: they are added up at
//! once, which then costs no more.

use super::wasm::{self, Dots, Engine, Pair};
use super::{Sums, Tile};
use crate::layout::Group;
use std::arch::wasm32::*;

/// Like [`super::reference::multiply`]. Both values of `WIDE` give the same bits; [`is_wide_faster`] says which is
/// faster here.
pub(super) fn multiply<const WIDE: bool>(group: &Group, tile: &Tile, out: &mut Sums) {
    assert_eq!(group.layout.n_blocks, tile.n_blocks);
    // SAFETY: the module runs only where relaxed SIMD exists; `Group` and `Tile` guarantee the lengths of their bytes.
    unsafe { wasm::multiply::<Relaxed<WIDE>>(group, tile, out) }
}

/// Whether the processor adds four products to an i32 in one instruction, or needs equally many instructions either
/// way.
///
/// An x86 without that instruction emulates it with three, the first of which saturates at 16 bits: a second operand
/// beyond the allowed range reveals it. (AVX-VNNI gives 4 * 127 * 255; ARM treats 255 as -1.)
#[target_feature(enable = "relaxed-simd")]
pub(super) fn is_wide_faster() -> bool {
    let dot = i32x4_relaxed_dot_i8x16_i7x16_add(i8x16_splat(127), i8x16_splat(-1), i32x4_splat(0));
    i32x4_extract_lane::<0>(dot) != 2 * i16::MAX as i32
}

struct Relaxed<const WIDE: bool>;

impl<const WIDE: bool> Engine for Relaxed<WIDE> {
    const N_STEPS: usize = 8;
    const PLANES: bool = true;

    #[inline]
    #[target_feature(enable = "relaxed-simd")]
    unsafe fn nibbles(j: usize, packed: Pair, mut take: impl FnMut(usize, Pair)) {
        take(j, packed.map(low));
        take(j + 4, packed.map(high));
    }

    #[inline(always)]
    unsafe fn sixes(j: usize, packed: Pair, mut take: impl FnMut(usize, Pair)) {
        take(j, packed);
    }

    #[inline]
    #[target_feature(enable = "relaxed-simd")]
    unsafe fn bytes(j: usize, packed: Pair, mut take: impl FnMut(usize, usize, Pair)) {
        take(0, j, packed.map(high));
        take(1, j, packed.map(low));
    }

    #[inline]
    #[target_feature(enable = "relaxed-simd")]
    unsafe fn dot(sum: v128, a: v128, weights: v128) -> v128 {
        i32x4_relaxed_dot_i8x16_i7x16_add(a, weights, sum)
    }

    #[inline]
    #[target_feature(enable = "relaxed-simd")]
    unsafe fn dot_nibbles<const T: usize>(steps: *const u8, x: *const u8, start: Dots<T>, n_steps: usize) -> Dots<T> {
        if WIDE {
            // SAFETY: guaranteed by the caller.
            return unsafe { wasm::over_steps(steps, x, start, n_steps, |sum, a, weights| Self::dot(sum, a, weights)) };
        }
        let add = |sum, a, weights| i16x8_add(sum, i16x8_relaxed_dot_i8x16_i7x16(a, weights));
        // SAFETY: guaranteed by the caller.
        let mut sums = unsafe { wasm::over_steps(steps, x, [[i16x8_splat(0); 2]; T], n_steps, add) };
        for t in 0..T {
            for half in 0..2 {
                sums[t][half] = i32x4_add(start[t][half], i32x4_dot_i16x8(sums[t][half], i16x8_splat(1)));
            }
        }
        sums
    }
}

#[inline(always)]
fn low(bytes: v128) -> v128 {
    v128_and(bytes, u8x16_splat(15))
}

#[inline(always)]
fn high(bytes: v128) -> v128 {
    v128_and(u16x8_shr(bytes, 4), u8x16_splat(15))
}
