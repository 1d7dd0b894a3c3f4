//! wasm with plain simd128: 8 products of i16 per instruction; the activations are kept as i16 for it.
//!
//! ```text
//! values         row 0: w0 w1 w2 w3   row 1: w0 w1 w2 w3   row 2 ...   row 3 ...      16 bytes, read as 8 x u16
//! and, shift     row 0: w0 w2         row 1: w0 w2         ...                        even columns; a shift by 8 gives the odd ones
//! activation            a0 a2                a0 a2         ...                        2 x i16, repeated
//! dot            row 0: i32           row 1: i32           row 2: i32  row 3: i32     no horizontal step
//! mul            row 0: i16 i16       row 1: i16 i16       ...                        nibbles: added up as i16, 16 * 15 * 127 = 30480; then dot(ones)
//! ```
//!
//! A multiplication that keeps 16 bits is cheaper than a dot on ARM and costs the same on x86. Nibbles give two pairs more from the high halves of the
//! bytes. Of a token's block, 8 bytes are columns 4 j, 4 j + 2 and 4 j + 1, 4 j + 3.

use super::wasm::{self, Engine, splat};
use super::{Sums, Tile};
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
    type Nibbles = [v128; 16];
    type Sixes = [v128; 8];
    type Bytes = [v128; 16];

    #[inline]
    unsafe fn nibbles(values: *const u8) -> [v128; 16] {
        let mut quants = [u16x8_splat(0); 16];
        for step in 0..4 {
            // SAFETY: the caller's.
            let packed = unsafe { v128_load(values.add(32 * step).cast()) };
            quants[2 * step] = v128_and(packed, u16x8_splat(15));
            quants[2 * step + 1] = v128_and(u16x8_shr(packed, 8), u16x8_splat(15));
            quants[2 * step + 8] = v128_and(u16x8_shr(packed, 4), u16x8_splat(15));
            quants[2 * step + 9] = u16x8_shr(packed, 12);
        }
        quants
    }

    #[inline]
    unsafe fn sixes(values: *const u8) -> [v128; 8] {
        // SAFETY: the caller's.
        unsafe { widen(values) }
    }

    #[inline]
    unsafe fn bytes(values: *const u8) -> [v128; 16] {
        // SAFETY: the caller's.
        unsafe { widen(values) }
    }

    #[inline]
    unsafe fn dot_nibbles<const T: usize>(quants: &[v128; 16], x: *const u8, start: [v128; T]) -> [v128; T] {
        let mut chain = [i16x8_splat(0); T];
        for (k, quants) in quants.iter().enumerate() {
            for t in 0..T {
                // SAFETY: the caller's.
                let a = unsafe { splat(x.add(64 * t + 4 * k)) };
                chain[t] = i16x8_add(chain[t], i16x8_mul(a, *quants));
            }
        }
        let mut sums = start;
        for t in 0..T {
            sums[t] = i32x4_add(sums[t], i32x4_dot_i16x8(chain[t], i16x8_splat(1)));
        }
        sums
    }

    #[inline]
    unsafe fn dot_sixes<const T: usize>(quants: &[v128; 8], x: *const u8, half: usize, start: [v128; T]) -> [v128; T] {
        // SAFETY: the caller's.
        unsafe { dot(quants, x.add(32 * half), start) }
    }

    #[inline]
    unsafe fn dot_bytes<const T: usize>(quants: &[v128; 16], x: *const u8, start: [v128; T]) -> [v128; T] {
        let mut sums = start;
        for sum in &mut sums {
            *sum = i32x4_shl(*sum, 4);
        }
        // SAFETY: the caller's.
        unsafe { dot(quants, x, sums) }
    }
}

/// `start` + the sums of the columns from the first of `x` on.
///
/// # Safety
/// `x` has `2 N` columns of each of `T` tokens, 32 columns apart.
#[inline]
unsafe fn dot<const T: usize, const N: usize>(quants: &[v128; N], x: *const u8, start: [v128; T]) -> [v128; T] {
    let mut sums = start;
    for (k, quants) in quants.iter().enumerate() {
        for t in 0..T {
            // SAFETY: the caller's.
            let a = unsafe { splat(x.add(64 * t + 4 * k)) };
            sums[t] = i32x4_add(sums[t], i32x4_dot_i16x8(a, *quants));
        }
    }
    sums
}

/// Even and odd columns of `N / 2` registers of bytes in turn.
///
/// # Safety
/// `values` has `N / 2` times 16 bytes, 32 bytes apart.
#[inline]
unsafe fn widen<const N: usize>(values: *const u8) -> [v128; N] {
    let mut quants = [u16x8_splat(0); N];
    for (step, pair) in quants.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        // SAFETY: the caller's.
        let bytes = unsafe { v128_load(values.add(32 * step).cast()) };
        *pair = [v128_and(bytes, u16x8_splat(255)), u16x8_shr(bytes, 8)];
    }
    quants
}
