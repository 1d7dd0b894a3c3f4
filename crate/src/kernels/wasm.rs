//! What both wasm builds share: the way through a tile, and what becomes of the integer sums of each form.
//!
//! A group's rows are taken as two halves of 4. The quants of half a group and one block are unpacked once and meet all tokens of the tile, four tokens
//! at a time; the f32 sums wait in memory meanwhile. How quants are unpacked and multiplied is the build's ([`Engine`]).
//!
//! Products of integers below 2^24 are exact in f32, so that scales may be multiplied in any order before the first rounding: see each form.

use super::{Sums, TOKEN_BYTES, Tile};
use crate::quant::{Form, GROUP, Group, SUPER};
use std::arch::wasm32::*;

/// Unpacks and multiplies. A register has a lane of i32 for each of 4 rows; values are 16 of each 32 bytes of [`Group::values`].
pub(super) trait Engine {
    /// 4 rows and 32 columns of values below 16.
    type Nibbles;
    /// 4 rows and 16 columns of values below 64.
    type Sixes;
    /// 4 rows and 32 columns of values below 256.
    type Bytes;

    /// # Safety
    /// `values` has 4 times 16 bytes, 32 bytes apart.
    unsafe fn nibbles(values: *const u8) -> Self::Nibbles;
    /// # Safety
    /// As [`Engine::nibbles`].
    unsafe fn sixes(values: *const u8) -> Self::Sixes;
    /// # Safety
    /// `values` has 8 times 16 bytes, 32 bytes apart.
    unsafe fn bytes(values: *const u8) -> Self::Bytes;

    /// `start` + the sums over the columns.
    ///
    /// # Safety
    /// `x` has the quants of `T` tokens of a block.
    unsafe fn dot_nibbles<const T: usize>(quants: &Self::Nibbles, x: *const u8, start: [v128; T]) -> [v128; T];
    /// `start` + the sums over the first or the last 16 columns.
    ///
    /// # Safety
    /// As [`Engine::dot_nibbles`].
    unsafe fn dot_sixes<const T: usize>(
        quants: &Self::Sixes,
        x: *const u8,
        half: usize,
        start: [v128; T],
    ) -> [v128; T];
    /// 16 `start` + the sums over the columns.
    ///
    /// # Safety
    /// As [`Engine::dot_nibbles`].
    unsafe fn dot_bytes<const T: usize>(quants: &Self::Bytes, x: *const u8, start: [v128; T]) -> [v128; T];
}

/// Half a group and one block, unpacked.
trait Block {
    /// # Safety
    /// `group` is of this form and has the block; `half` is 0 or 1.
    unsafe fn load(group: &Group, block: usize, half: usize) -> Self;
    /// The products with `T` tokens before their scales are applied.
    ///
    /// # Safety
    /// `x` has the quants of `T` tokens, `terms` their two terms each.
    unsafe fn meet<const T: usize>(&self, x: *const u8, terms: *const u8) -> [v128; T];
}

/// As [`super::reference::multiply`].
///
/// # Safety
/// Where the engine's instructions exist; `tile` has as many blocks as `group`.
#[inline]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
pub(super) unsafe fn multiply<E: Engine>(group: &Group, tile: &Tile, out: &mut Sums) {
    // SAFETY: the caller's; the form is the group's.
    unsafe {
        match group.layout.form {
            Form::Q4 => rows::<Q4<E>>(group, tile, out),
            Form::Q8 => rows::<Q8<E>>(group, tile, out),
            Form::Q4K => rows::<Q4K<E>>(group, tile, out),
            Form::Q6K => rows::<Q6K<E>>(group, tile, out),
        }
    }
}

/// # Safety
/// `tile` has as many blocks as `group`, which is of form `B`.
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
unsafe fn rows<B: Block>(group: &Group, tile: &Tile, out: &mut Sums) {
    let n = tile.n_tokens;
    out[..n].fill([0.0; GROUP]);
    for block in 0..tile.n_blocks {
        // SAFETY: `Tile` guarantees the length of a block.
        let x = unsafe { tile.bytes.as_ptr().add(block * n * TOKEN_BYTES) };
        for half in 0..2 {
            // SAFETY: the caller's; the tokens are those of the tile, `out` has room for as many.
            unsafe {
                let weights = B::load(group, block, half);
                let out = out.as_mut_ptr().cast::<f32>().add(half * GROUP / 2);
                let mut t = 0;
                while t + 4 <= n {
                    add::<B, 4>(&weights, x, n, t, out);
                    t += 4;
                }
                match n - t {
                    1 => add::<B, 1>(&weights, x, n, t, out),
                    2 => add::<B, 2>(&weights, x, n, t, out),
                    3 => add::<B, 3>(&weights, x, n, t, out),
                    _ => {}
                }
            }
        }
    }
}

/// Adds the products with the tokens from `first` on.
///
/// # Safety
/// `x` is a block of `n` tokens, of which there are `T` from `first` on; `out` has 4 sums for each, 8 apart.
#[inline]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
unsafe fn add<B: Block, const T: usize>(weights: &B, x: *const u8, n: usize, first: usize, out: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        let scales = x.add(n * (TOKEN_BYTES - 12) + 4 * first);
        let terms = x.add(n * (TOKEN_BYTES - 8) + 8 * first);
        let products = weights.meet::<T>(x.add(first * (TOKEN_BYTES - 12)), terms);
        for t in 0..T {
            let out = out.add(GROUP * (first + t)).cast::<v128>();
            let product = f32x4_mul(splat(scales.add(4 * t)), products[t]);
            out.write_unaligned(f32x4_add(out.read_unaligned(), product));
        }
    }
}

struct Q4<E: Engine> {
    quants: E::Nibbles,
    factor: v128,
}

impl<E: Engine> Block for Q4<E> {
    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn load(group: &Group, block: usize, half: usize) -> Self {
        // SAFETY: a block has 128 bytes of values and 32 of scales.
        unsafe {
            Self {
                quants: E::nibbles(group.values.as_ptr().add(128 * block + 16 * half)),
                factor: v128_load(group.scales.as_ptr().add(32 * block + 16 * half).cast()),
            }
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn meet<const T: usize>(&self, x: *const u8, terms: *const u8) -> [v128; T] {
        // SAFETY: the caller's.
        let mut dots = unsafe { E::dot_nibbles(&self.quants, x, starts::<T>(terms)) };
        for dot in &mut dots {
            *dot = f32x4_mul(self.factor, f32x4_convert_i32x4(*dot));
        }
        dots
    }
}

struct Q8<E: Engine> {
    quants: E::Bytes,
    factor: v128,
}

impl<E: Engine> Block for Q8<E> {
    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn load(group: &Group, block: usize, half: usize) -> Self {
        // SAFETY: a block has 256 bytes of values and 32 of scales.
        unsafe {
            Self {
                quants: E::bytes(group.values.as_ptr().add(256 * block + 16 * half)),
                factor: v128_load(group.scales.as_ptr().add(32 * block + 16 * half).cast()),
            }
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn meet<const T: usize>(&self, x: *const u8, terms: *const u8) -> [v128; T] {
        // SAFETY: the caller's.
        let mut dots = unsafe { E::dot_bytes(&self.quants, x, starts::<T>(terms)) };
        for dot in &mut dots {
            *dot = f32x4_mul(self.factor, f32x4_convert_i32x4(*dot));
        }
        dots
    }
}

/// `scale` is factor * scale, which has 11 + 6 bits and is exact; `min` likewise. So each product is rounded once, as in the definition.
struct Q4K<E: Engine> {
    quants: E::Nibbles,
    scale: v128,
    min: v128,
}

impl<E: Engine> Block for Q4K<E> {
    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn load(group: &Group, block: usize, half: usize) -> Self {
        // SAFETY: a block has 128 bytes of values, 16 of scales and a head of 64 bytes shared with its super-block.
        unsafe {
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 64 + 16 * half);
            let scales = group.scales.as_ptr().add(16 * block + 4 * half);
            let (scale, min) = (u8_to_f32(scales), u8_to_f32(scales.add(8)));
            Self {
                quants: E::nibbles(group.values.as_ptr().add(128 * block + 16 * half)),
                scale: f32x4_mul(v128_load(head.cast()), scale),
                min: f32x4_mul(v128_load(head.add(32).cast()), min),
            }
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn meet<const T: usize>(&self, x: *const u8, terms: *const u8) -> [v128; T] {
        // SAFETY: the caller's.
        unsafe {
            let mut dots = E::dot_nibbles(&self.quants, x, [i32x4_splat(0); T]);
            for (t, dot) in dots.iter_mut().enumerate() {
                let product = f32x4_mul(self.scale, f32x4_convert_i32x4(*dot));
                *dot = f32x4_sub(product, f32x4_mul(self.min, splat(terms.add(8 * t))));
            }
            dots
        }
    }
}

/// The weighted sum of both halves' dots stays below 2 * 128 * 16 * 127 * 32 < 2^24: exact.
struct Q6K<E: Engine> {
    quants: [E::Sixes; 2],
    scales: [v128; 2],
    factor: v128,
}

impl<E: Engine> Block for Q6K<E> {
    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn load(group: &Group, block: usize, half: usize) -> Self {
        // SAFETY: a block has 256 bytes of values, 16 of scales and a head of 32 bytes shared with its super-block.
        unsafe {
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 32 + 16 * half);
            let values = group.values.as_ptr().add(256 * block + 16 * half);
            // Both scales of a row side by side.
            let both = i16x8_load_extend_i8x8(group.scales.as_ptr().add(16 * block + 8 * half).cast());
            let (first, second) = (i32x4_shr(i32x4_shl(both, 16), 16), i32x4_shr(both, 16));
            Self {
                quants: [E::sixes(values), E::sixes(values.add(128))],
                scales: [f32x4_convert_i32x4(first), f32x4_convert_i32x4(second)],
                factor: v128_load(head.cast()),
            }
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn meet<const T: usize>(&self, x: *const u8, terms: *const u8) -> [v128; T] {
        // SAFETY: the caller's.
        unsafe {
            let mut firsts = E::dot_sixes(&self.quants[0], x, 0, starts::<T>(terms));
            let seconds = E::dot_sixes(&self.quants[1], x, 1, starts::<T>(terms.add(4)));
            for (first, second) in firsts.iter_mut().zip(seconds) {
                let sum = f32x4_mul(self.scales[0], f32x4_convert_i32x4(*first));
                let sum = f32x4_add(sum, f32x4_mul(self.scales[1], f32x4_convert_i32x4(second)));
                *first = f32x4_mul(self.factor, sum);
            }
            firsts
        }
    }
}

/// A term of each token, in all lanes.
///
/// # Safety
/// `terms` has 4 bytes for each token, 8 apart.
#[inline]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
unsafe fn starts<const T: usize>(terms: *const u8) -> [v128; T] {
    let mut starts = [i32x4_splat(0); T];
    for (t, start) in starts.iter_mut().enumerate() {
        // SAFETY: the caller's.
        *start = unsafe { splat(terms.add(8 * t)) };
    }
    starts
}

/// Four bytes, in all lanes.
///
/// # Safety
/// There are 4 bytes at `at`.
#[inline]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
pub(super) unsafe fn splat(at: *const u8) -> v128 {
    // SAFETY: the caller's.
    unsafe { v128_load32_splat(at.cast()) }
}

/// 4 bytes as f32.
///
/// # Safety
/// There are 4 bytes at `at`.
#[inline]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
unsafe fn u8_to_f32(at: *const u8) -> v128 {
    // SAFETY: the caller's.
    let bytes = unsafe { v128_load32_zero(at.cast()) };
    f32x4_convert_i32x4(u32x4_extend_low_u16x8(u16x8_extend_low_u8x16(bytes)))
}
