//! What both wasm builds share: the way through a tile, and what becomes of the integer sums of each form.
//!
//! A group's block is unpacked once into a short run of [`Steps`] and meets all tokens of the tile, four tokens at a time: a step's weights are in two
//! registers while each of the four tokens brings 4 bytes. So 8 sums of integers are in registers, and the f32 sums wait in memory. How weights are
//! unpacked and multiplied is the build's ([`Engine`]).
//!
//! The loop over the steps must stay a loop. Unrolled, it becomes one nested expression for each sum, which takes its operands from a stack machine's stack:
//! all activations are then read before the first product, and no engine has registers for them. That the number of steps is not a constant prevents it.
//!
//! Products of integers below 2^24 are exact in f32, so that scales may be multiplied in any order before the first rounding: see each form.

use super::{Sums, TOKEN_BYTES, Tile};
use crate::quant::{Form, GROUP, Group, SUPER};
use std::arch::wasm32::*;
use std::hint::black_box;

/// A block of weights, unpacked. A step is the weights that 4 bytes of activations meet: rows 0 to 3 and rows 4 to 7.
pub(super) type Steps = [[v128; 2]; 16];

/// Bytes of a step.
pub(super) const STEP_BYTES: usize = 32;

/// Sums of the rows of a group, for some tokens.
pub(super) type Dots<const T: usize> = [[v128; 2]; T];

/// Unpacks and multiplies. All weights are unsigned.
pub(super) trait Engine {
    /// Steps of 32 columns.
    const N_STEPS: usize;

    /// The steps of 32 columns of values below 16: into `steps`, where they do not lie ready.
    ///
    /// # Safety
    /// `values` has 4 times 32 bytes.
    unsafe fn nibbles(values: *const u8, steps: &mut Steps) -> *const u8;
    /// As [`Engine::nibbles`], of values below 64.
    ///
    /// # Safety
    /// `values` has 8 times 32 bytes.
    unsafe fn sixes(values: *const u8, steps: &mut Steps) -> *const u8;
    /// As [`Engine::nibbles`], of values below 256.
    ///
    /// # Safety
    /// As [`Engine::sixes`].
    unsafe fn bytes(values: *const u8, steps: &mut Steps) -> *const u8;

    /// `start` + the sums over `n_steps` steps of values below 16: no more than [`Engine::N_STEPS`].
    ///
    /// # Safety
    /// There are so many steps, and `x` has the quants of `T` tokens of a block.
    unsafe fn dot_nibbles<const T: usize>(steps: *const u8, x: *const u8, start: Dots<T>, n_steps: usize) -> Dots<T>;
    /// `start` + the sums over `n_steps` steps of values below 64.
    ///
    /// # Safety
    /// As [`Engine::dot_nibbles`].
    unsafe fn dot_sixes<const T: usize>(steps: *const u8, x: *const u8, start: Dots<T>, n_steps: usize) -> Dots<T>;
    /// 16 `start` + the sums over the columns of values below 256.
    ///
    /// # Safety
    /// As [`Engine::dot_nibbles`].
    unsafe fn dot_bytes<const T: usize>(steps: *const u8, x: *const u8, start: Dots<T>, n_steps: usize) -> Dots<T>;
}

/// What a form does with the integer sums of a block.
trait Block<E: Engine> {
    /// # Safety
    /// `group` is of this form and has the block.
    unsafe fn load(group: &Group, block: usize, steps: &mut Steps) -> (*const u8, Self);
    /// The products with `T` tokens before their scales are applied.
    ///
    /// # Safety
    /// `x` has the quants of `T` tokens, `terms` their two terms each; `steps` are the loaded ones, `n_steps` is [`Engine::N_STEPS`].
    unsafe fn meet<const T: usize>(&self, steps: *const u8, x: *const u8, terms: *const u8, n_steps: usize) -> Dots<T>;
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
            Form::Q4 => rows::<E, Q4>(group, tile, out),
            Form::Q8 => rows::<E, Q8>(group, tile, out),
            Form::Q4K => rows::<E, Q4K>(group, tile, out),
            Form::Q6K => rows::<E, Q6K>(group, tile, out),
        }
    }
}

/// # Safety
/// `tile` has as many blocks as `group`, which is of form `B`.
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
unsafe fn rows<E: Engine, B: Block<E>>(group: &Group, tile: &Tile, out: &mut Sums) {
    let n = tile.n_tokens;
    let n_steps = black_box(E::N_STEPS);
    let mut steps = [[u8x16_splat(0); 2]; 16];
    out[..n].fill([0.0; GROUP]);
    for block in 0..tile.n_blocks {
        // SAFETY: the caller's; `Tile` guarantees the length of a block, and `out` has room for as many tokens.
        unsafe {
            let x = tile.bytes.as_ptr().add(block * n * TOKEN_BYTES);
            let (steps, weights) = B::load(group, block, &mut steps);
            let mut t = 0;
            while t + 4 <= n {
                add::<E, B, 4>(&weights, steps, x, n, t, n_steps, out);
                t += 4;
            }
            match n - t {
                1 => add::<E, B, 1>(&weights, steps, x, n, t, n_steps, out),
                2 => add::<E, B, 2>(&weights, steps, x, n, t, n_steps, out),
                3 => add::<E, B, 3>(&weights, steps, x, n, t, n_steps, out),
                _ => {}
            }
        }
    }
}

/// Adds the products with the tokens from `first` on.
///
/// # Safety
/// `x` is a block of `n` tokens, of which there are `T` from `first` on; the rest as in [`Block::meet`].
#[inline]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
unsafe fn add<E: Engine, B: Block<E>, const T: usize>(
    weights: &B,
    steps: *const u8,
    x: *const u8,
    n: usize,
    first: usize,
    n_steps: usize,
    out: &mut Sums,
) {
    // SAFETY: the caller's.
    unsafe {
        let scales = x.add(n * (TOKEN_BYTES - 12) + 4 * first);
        let terms = x.add(n * (TOKEN_BYTES - 8) + 8 * first);
        let products = weights.meet::<T>(steps, x.add(first * (TOKEN_BYTES - 12)), terms, n_steps);
        let out = out.as_mut_ptr().add(first).cast::<v128>();
        for t in 0..T {
            let scale = splat(scales.add(4 * t));
            for half in 0..2 {
                let out = out.add(2 * t + half);
                out.write_unaligned(f32x4_add(out.read_unaligned(), f32x4_mul(scale, products[t][half])));
            }
        }
    }
}

/// `factor` for each row.
struct Q4 {
    factor: [v128; 2],
}

impl<E: Engine> Block<E> for Q4 {
    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn load(group: &Group, block: usize, steps: &mut Steps) -> (*const u8, Self) {
        // SAFETY: a block has 128 bytes of values and 32 of scales.
        unsafe {
            let steps = E::nibbles(group.values.as_ptr().add(128 * block), steps);
            (steps, Self { factor: pair(group.scales.as_ptr().add(32 * block)) })
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn meet<const T: usize>(&self, steps: *const u8, x: *const u8, terms: *const u8, n_steps: usize) -> Dots<T> {
        // SAFETY: the caller's.
        let dots = unsafe { E::dot_nibbles(steps, x, starts::<T>(terms), n_steps) };
        dots.map(|dots| each(|half| f32x4_mul(self.factor[half], f32x4_convert_i32x4(dots[half]))))
    }
}

struct Q8 {
    factor: [v128; 2],
}

impl<E: Engine> Block<E> for Q8 {
    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn load(group: &Group, block: usize, steps: &mut Steps) -> (*const u8, Self) {
        // SAFETY: a block has 256 bytes of values and 32 of scales.
        unsafe {
            let steps = E::bytes(group.values.as_ptr().add(256 * block), steps);
            (steps, Self { factor: pair(group.scales.as_ptr().add(32 * block)) })
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn meet<const T: usize>(&self, steps: *const u8, x: *const u8, terms: *const u8, n_steps: usize) -> Dots<T> {
        // SAFETY: the caller's.
        let dots = unsafe { E::dot_bytes(steps, x, starts::<T>(terms), n_steps) };
        dots.map(|dots| each(|half| f32x4_mul(self.factor[half], f32x4_convert_i32x4(dots[half]))))
    }
}

/// `scale` is factor * scale, which has 11 + 6 bits and is exact; `min` likewise. So each product is rounded once, as in the definition.
struct Q4K {
    scale: [v128; 2],
    min: [v128; 2],
}

impl<E: Engine> Block<E> for Q4K {
    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn load(group: &Group, block: usize, steps: &mut Steps) -> (*const u8, Self) {
        // SAFETY: a block has 128 bytes of values, 16 of scales and a head of 64 bytes shared with its super-block.
        unsafe {
            let steps = E::nibbles(group.values.as_ptr().add(128 * block), steps);
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 64);
            let (factor, min) = (pair(head), pair(head.add(32)));
            let scales = group.scales.as_ptr().add(16 * block);
            let scale = each(|half| f32x4_mul(factor[half], u8_to_f32(scales.add(4 * half))));
            (steps, Self { scale, min: each(|half| f32x4_mul(min[half], u8_to_f32(scales.add(8 + 4 * half)))) })
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn meet<const T: usize>(&self, steps: *const u8, x: *const u8, terms: *const u8, n_steps: usize) -> Dots<T> {
        // SAFETY: the caller's.
        unsafe {
            let mut dots = E::dot_nibbles(steps, x, [[i32x4_splat(0); 2]; T], n_steps);
            for (t, dots) in dots.iter_mut().enumerate() {
                let sum = splat(terms.add(8 * t));
                *dots = each(|half| {
                    let product = f32x4_mul(self.scale[half], f32x4_convert_i32x4(dots[half]));
                    f32x4_sub(product, f32x4_mul(self.min[half], sum))
                });
            }
            dots
        }
    }
}

/// The weighted sum of both halves' dots stays below 2 * 128 * 16 * 127 * 32 < 2^24: exact.
struct Q6K {
    /// Of the first and of the last 16 columns.
    scales: [[v128; 2]; 2],
    factor: [v128; 2],
}

impl<E: Engine> Block<E> for Q6K {
    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn load(group: &Group, block: usize, steps: &mut Steps) -> (*const u8, Self) {
        // SAFETY: a block has 256 bytes of values, 16 of scales and a head of 32 bytes shared with its super-block.
        unsafe {
            let steps = E::sixes(group.values.as_ptr().add(256 * block), steps);
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 32);
            let scales = group.scales.as_ptr().add(16 * block);
            // Both scales of a row side by side.
            let both: [v128; 2] = each(|half| i16x8_load_extend_i8x8(scales.add(8 * half).cast()));
            let first = each(|half| f32x4_convert_i32x4(i32x4_shr(i32x4_shl(both[half], 16), 16)));
            let second = each(|half| f32x4_convert_i32x4(i32x4_shr(both[half], 16)));
            (steps, Self { scales: [first, second], factor: pair(head) })
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn meet<const T: usize>(&self, steps: *const u8, x: *const u8, terms: *const u8, n_steps: usize) -> Dots<T> {
        let n_half = n_steps / 2;
        let weighted = |dots: &Dots<T>, scales: &[v128; 2]| {
            dots.map(|dots| each(|half| f32x4_mul(scales[half], f32x4_convert_i32x4(dots[half]))))
        };
        // SAFETY: the caller's.
        unsafe {
            let firsts = weighted(&E::dot_sixes(steps, x, starts::<T>(terms), n_half), &self.scales[0]);
            let x = x.add((TOKEN_BYTES - 12) / 2);
            let dots = E::dot_sixes(steps.add(E::N_STEPS / 2 * STEP_BYTES), x, starts::<T>(terms.add(4)), n_half);
            let mut sums = weighted(&dots, &self.scales[1]);
            for (sums, firsts) in sums.iter_mut().zip(&firsts) {
                *sums = each(|half| f32x4_mul(self.factor[half], f32x4_add(firsts[half], sums[half])));
            }
            sums
        }
    }
}

/// Both halves of a group's rows.
#[inline(always)]
fn each(of_half: impl Fn(usize) -> v128) -> [v128; 2] {
    [of_half(0), of_half(1)]
}

/// # Safety
/// There are 8 x f32 at `at`.
#[inline(always)]
unsafe fn pair(at: *const u8) -> [v128; 2] {
    // SAFETY: the caller's.
    unsafe { [v128_load(at.cast()), v128_load(at.add(16).cast())] }
}

/// A term of each token, in all lanes.
///
/// # Safety
/// `terms` has 4 bytes for each token, 8 apart.
#[inline(always)]
unsafe fn starts<const T: usize>(terms: *const u8) -> Dots<T> {
    // SAFETY: the caller's.
    std::array::from_fn(|t| unsafe { [splat(terms.add(8 * t)); 2] })
}

/// Four bytes, in all lanes.
///
/// # Safety
/// There are 4 bytes at `at`.
#[inline(always)]
pub(super) unsafe fn splat(at: *const u8) -> v128 {
    // SAFETY: the caller's.
    unsafe { v128_load32_splat(at.cast()) }
}

/// 4 bytes as f32.
///
/// # Safety
/// There are 4 bytes at `at`.
#[inline(always)]
unsafe fn u8_to_f32(at: *const u8) -> v128 {
    // SAFETY: the caller's.
    let bytes = unsafe { v128_load32_zero(at.cast()) };
    f32x4_convert_i32x4(u32x4_extend_low_u16x8(u16x8_extend_low_u8x16(bytes)))
}
