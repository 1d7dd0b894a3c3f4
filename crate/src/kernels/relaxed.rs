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
//! Bytes are two planes of nibbles, high and low. As the second operand of both instructions never has its highest bit set, and no pair of products
//! leaves 16 bits (2 * 63 * 127 = 16002), they give the same result on every engine. Of i16: 8 dots of nibbles stay within 8 * 2 * 15 * 127 = 30480, 2
//! dots of 6-bit values within 2 * 2 * 63 * 127 = 32004.

use super::wasm::{self, Engine, splat};
use super::{Sums, Tile};
use crate::quant::Group;
use std::arch::wasm32::*;

/// As [`super::reference::multiply`]. Both values of `WIDE` give the same bits; [`is_wide_faster`] says which is faster here.
pub(super) fn multiply<const WIDE: bool>(group: &Group, tile: &Tile, out: &mut Sums) {
    assert_eq!(group.layout.n_blocks, tile.n_blocks);
    // SAFETY: the module runs only where relaxed SIMD exists; `Group` and `Tile` guarantee the lengths of their bytes.
    unsafe { wasm::multiply::<Relaxed<WIDE>>(group, tile, out) }
}

/// Whether the processor adds four products to an i32 in one instruction, or needs as many for either way.
///
/// An x86 without that instruction makes it of three, the first of which saturates its sums at 16 bits: with a second operand beyond the agreed range
/// it shows. (AVX-VNNI gives 4 * 127 * 255, ARM takes 255 as -1.)
#[target_feature(enable = "relaxed-simd")]
pub(super) fn is_wide_faster() -> bool {
    let dot = i32x4_relaxed_dot_i8x16_i7x16_add(i8x16_splat(127), i8x16_splat(-1), i32x4_splat(0));
    i32x4_extract_lane::<0>(dot) != 2 * i16::MAX as i32
}

struct Relaxed<const WIDE: bool>;

impl<const WIDE: bool> Relaxed<WIDE> {
    /// `start` + the sums of the columns from the first of `x` on; `CHAIN` dots fit into i16.
    #[inline]
    #[target_feature(enable = "relaxed-simd")]
    unsafe fn dot<const T: usize, const N: usize, const CHAIN: usize>(
        quants: &[v128; N],
        x: *const u8,
        start: [v128; T],
    ) -> [v128; T] {
        let mut sums = start;
        // SAFETY: the caller's.
        unsafe {
            if WIDE {
                // A token alone would wait for each sum: it gets two.
                let mut odd = [i32x4_splat(0); T];
                for (k, quants) in quants.iter().enumerate() {
                    for t in 0..T {
                        let sum = if T == 1 && k % 2 == 1 { &mut odd[t] } else { &mut sums[t] };
                        *sum = i32x4_relaxed_dot_i8x16_i7x16_add(splat(x.add(32 * t + 4 * k)), *quants, *sum);
                    }
                }
                if T == 1 {
                    sums[0] = i32x4_add(sums[0], odd[0]);
                }
                return sums;
            }
            for (chain_idx, quants) in quants.chunks(CHAIN).enumerate() {
                let mut chain = [i16x8_splat(0); T];
                for (k, quants) in quants.iter().enumerate() {
                    for t in 0..T {
                        let a = splat(x.add(32 * t + 4 * (chain_idx * CHAIN + k)));
                        chain[t] = i16x8_add(chain[t], i16x8_relaxed_dot_i8x16_i7x16(a, *quants));
                    }
                }
                for t in 0..T {
                    sums[t] = i32x4_add(sums[t], i32x4_dot_i16x8(chain[t], i16x8_splat(1)));
                }
            }
        }
        sums
    }
}

impl<const WIDE: bool> Engine for Relaxed<WIDE> {
    type Nibbles = [v128; 8];
    type Sixes = [v128; 4];
    /// Low and high nibbles.
    type Bytes = [[v128; 8]; 2];

    #[inline]
    #[target_feature(enable = "relaxed-simd")]
    unsafe fn nibbles(values: *const u8) -> Self::Nibbles {
        // SAFETY: the caller's.
        let packed = unsafe { load::<4>(values) };
        let mut quants = [u8x16_splat(0); 8];
        for step in 0..4 {
            (quants[step], quants[step + 4]) = (low(packed[step]), high(packed[step]));
        }
        quants
    }

    #[inline]
    #[target_feature(enable = "relaxed-simd")]
    unsafe fn sixes(values: *const u8) -> Self::Sixes {
        // SAFETY: the caller's.
        unsafe { load(values) }
    }

    #[inline]
    #[target_feature(enable = "relaxed-simd")]
    unsafe fn bytes(values: *const u8) -> Self::Bytes {
        // SAFETY: the caller's.
        let bytes = unsafe { load::<8>(values) };
        let mut planes = [bytes; 2];
        for step in 0..8 {
            (planes[0][step], planes[1][step]) = (low(bytes[step]), high(bytes[step]));
        }
        planes
    }

    #[inline]
    #[target_feature(enable = "relaxed-simd")]
    unsafe fn dot_nibbles<const T: usize>(quants: &Self::Nibbles, x: *const u8, start: [v128; T]) -> [v128; T] {
        // SAFETY: the caller's.
        unsafe { Self::dot::<T, 8, 8>(quants, x, start) }
    }

    #[inline]
    #[target_feature(enable = "relaxed-simd")]
    unsafe fn dot_sixes<const T: usize>(
        quants: &Self::Sixes,
        x: *const u8,
        half: usize,
        start: [v128; T],
    ) -> [v128; T] {
        // SAFETY: the caller's.
        unsafe { Self::dot::<T, 4, 2>(quants, x.add(16 * half), start) }
    }

    #[inline]
    #[target_feature(enable = "relaxed-simd")]
    unsafe fn dot_bytes<const T: usize>([low, high]: &Self::Bytes, x: *const u8, start: [v128; T]) -> [v128; T] {
        // SAFETY: the caller's.
        unsafe {
            let mut sums = Self::dot::<T, 8, 8>(high, x, start);
            for sum in &mut sums {
                *sum = i32x4_shl(*sum, 4);
            }
            Self::dot::<T, 8, 8>(low, x, sums)
        }
    }
}

#[inline]
#[target_feature(enable = "relaxed-simd")]
fn low(bytes: v128) -> v128 {
    v128_and(bytes, u8x16_splat(15))
}

#[inline]
#[target_feature(enable = "relaxed-simd")]
fn high(bytes: v128) -> v128 {
    v128_and(u16x8_shr(bytes, 4), u8x16_splat(15))
}

/// # Safety
/// `values` has `N` times 16 bytes, 32 bytes apart.
#[inline]
#[target_feature(enable = "relaxed-simd")]
unsafe fn load<const N: usize>(values: *const u8) -> [v128; N] {
    let mut registers = [u8x16_splat(0); N];
    for (step, register) in registers.iter_mut().enumerate() {
        // SAFETY: the caller's.
        *register = unsafe { v128_load(values.add(32 * step).cast()) };
    }
    registers
}
