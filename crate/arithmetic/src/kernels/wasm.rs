//! What both wasm builds share: the loop over a tile, and the conversion of each form's integer sums.
//!
//! With many tokens, four are multiplied with a group at a time: each block is unpacked once into a short run of
//! [`Steps`]. A step's weights are in two registers while each of the four tokens supplies 4 bytes. So 8 integer sums
//! are in registers, and the f32 sums stay in memory. With a single token, weights are multiplied as they are unpacked,
//! without the run. Its time is mostly spent waiting for memory, so a group's bytes are fetched into the cache first.
//! The build decides how weights are unpacked and multiplied ([`Engine`]).
//!
//! The loops over steps must stay loops. Unrolled, they would become one nested expression per sum, which takes its
//! operands from a stack machine's stack: all activations would be read before the first product, and no engine has
//! registers for them. A non-constant loop count prevents unrolling.
//!
//! Products of integers below 2^24 are exact in f32, so scales may be multiplied in any order before the first
//! rounding: see each form.

use super::{Sums, TOKEN_BYTES, Tile, fetch};
use crate::layout::{Form, GROUP, Group, SUPER};
use std::arch::wasm32::*;
use std::hint::black_box;
use std::marker::PhantomData;

/// 32 bytes: rows 0 to 3 and rows 4 to 7 of a group.
pub(super) type Pair = [v128; 2];

/// A block of weights, unpacked. A step has the weights that are multiplied with 4 bytes of activations.
pub(super) type Steps = [Pair; 16];

/// Bytes of a step.
pub(super) const STEP_BYTES: usize = 32;

/// Sums of the rows of a group, for some tokens.
pub(super) type Dots<const T: usize> = [Pair; T];

/// Unpacks and multiplies. All weights are unsigned.
pub(super) trait Engine {
    /// Steps of 32 columns.
    const N_STEPS: usize;
    /// Whether bytes are unpacked into two planes of nibbles: the high nibbles in steps 0 to 7, the low nibbles in
    /// steps 8 to 15.
    const PLANES: bool;

    /// Unpacks the 32 bytes `j` (0..4) of a block of nibbles; `take` receives each step's index and weights.
    ///
    /// # Safety
    /// The engine's instructions must exist, as for everything here.
    unsafe fn nibbles(j: usize, packed: Pair, take: impl FnMut(usize, Pair));
    /// The same for the 32 bytes `j` (0..8) of values below 64.
    ///
    /// # Safety
    /// As [`Engine::nibbles`].
    unsafe fn sixes(j: usize, packed: Pair, take: impl FnMut(usize, Pair));
    /// The same for the 32 bytes `j` (0..8) of values below 256; `take` receives the plane before the index.
    ///
    /// # Safety
    /// As [`Engine::nibbles`].
    unsafe fn bytes(j: usize, packed: Pair, take: impl FnMut(usize, usize, Pair));

    /// `sum` + the products of a step of values below 64, for each of four rows.
    ///
    /// # Safety
    /// As [`Engine::nibbles`].
    unsafe fn dot(sum: v128, a: v128, weights: v128) -> v128;

    /// `start` + the sums over [`Engine::N_STEPS`] steps of values below 16; the number of steps is also passed as
    /// `n_steps`.
    ///
    /// # Safety
    /// There are that many steps, and `x` has the quants of `T` tokens of a block.
    unsafe fn dot_nibbles<const T: usize>(steps: *const u8, x: *const u8, start: Dots<T>, n_steps: usize) -> Dots<T>;
}

/// Sums of products of a block with `T` tokens, before their scales are applied.
trait Products<const T: usize> {
    /// `start` + the sums over the columns of values below 16.
    unsafe fn nibbles(&self, start: Dots<T>) -> Dots<T>;
    /// `start` + the sums over the first or last 16 columns of values below 64.
    unsafe fn sixes(&self, half: usize, start: Dots<T>) -> Dots<T>;
    /// 16 `start` + the sums over the columns of values below 256.
    unsafe fn bytes(&self, start: Dots<T>) -> Dots<T>;
}

/// A form: how its blocks are unpacked, and how the sums of products are converted.
trait Block<E: Engine> {
    const VALUE_BYTES: usize;

    /// Reads the scales.
    ///
    /// # Safety
    /// `group` is of this form and has the block.
    unsafe fn load(group: &Group, block: usize) -> Self;
    /// The steps of a block, in `steps` unless they are stored ready for use.
    ///
    /// # Safety
    /// `values` has the bytes of a block.
    unsafe fn unpack(values: *const u8, steps: &mut Steps) -> *const u8;
    /// The products before the tokens' scales are applied.
    ///
    /// # Safety
    /// `products` are of this form, `terms` has two terms for each token.
    unsafe fn meet<const T: usize>(&self, products: &impl Products<T>, terms: *const u8) -> Dots<T>;
}

/// Like [`super::reference::multiply`].
///
/// # Safety
/// The engine's instructions exist; `tile` has as many blocks as `group`.
#[inline]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
pub(super) unsafe fn multiply<E: Engine>(group: &Group, tile: &Tile, out: &mut Sums) {
    // SAFETY: guaranteed by the caller; the form is the group's.
    unsafe {
        match group.layout.form {
            Form::Q4 => rows::<E, Plain<false>>(group, tile, out),
            Form::Q8 => rows::<E, Plain<true>>(group, tile, out),
            Form::Q4K => rows::<E, Q4K>(group, tile, out),
            Form::Q6K => rows::<E, Q6K>(group, tile, out),
        }
    }
}

/// # Safety
/// `tile` has as many blocks as `group`, which is of form `B`.
#[inline]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
unsafe fn rows<E: Engine, B: Block<E>>(group: &Group, tile: &Tile, out: &mut Sums) {
    let n = tile.n_tokens;
    out[..n].fill([0.0; GROUP]);
    // SAFETY: guaranteed by the caller.
    unsafe {
        match n {
            1 => one_token::<E, B>(group, tile, out),
            _ => many_tokens::<E, B>(group, tile, out),
        }
    }
}

/// # Safety
/// As [`rows`].
#[inline(never)]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
unsafe fn one_token<E: Engine, B: Block<E>>(group: &Group, tile: &Tile, out: &mut Sums) {
    let n_rounds = black_box(4);
    [group.heads, group.scales, group.values].into_iter().for_each(fetch);
    for block in 0..tile.n_blocks {
        // SAFETY: guaranteed by the caller; `Tile` guarantees the length of a block.
        unsafe {
            let x = tile.bytes.as_ptr().add(block * TOKEN_BYTES);
            let values = group.values.as_ptr().add(block * B::VALUE_BYTES);
            let products = Packed::<E> { values, x, n_rounds, engine: PhantomData };
            finish::<E, B, 1>(&B::load(group, block), &products, x, 1, 0, out);
        }
    }
}

/// # Safety
/// As [`rows`].
#[inline(never)]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
unsafe fn many_tokens<E: Engine, B: Block<E>>(group: &Group, tile: &Tile, out: &mut Sums) {
    let n = tile.n_tokens;
    let n_steps = black_box(E::N_STEPS);
    let mut steps = [[u8x16_splat(0); 2]; 16];
    for block in 0..tile.n_blocks {
        // SAFETY: guaranteed by the caller; `Tile` guarantees the length of a block, and `out` has room for all tokens.
        unsafe {
            let x = tile.bytes.as_ptr().add(block * n * TOKEN_BYTES);
            let steps = B::unpack(group.values.as_ptr().add(block * B::VALUE_BYTES), &mut steps);
            let weights = B::load(group, block);
            let unpacked =
                |first| Unpacked::<E> { steps, x: x.add(first * (TOKEN_BYTES - 12)), n_steps, engine: PhantomData };
            let mut t = 0;
            while t + 4 <= n {
                finish::<E, B, 4>(&weights, &unpacked(t), x, n, t, out);
                t += 4;
            }
            match n - t {
                1 => finish::<E, B, 1>(&weights, &unpacked(t), x, n, t, out),
                2 => finish::<E, B, 2>(&weights, &unpacked(t), x, n, t, out),
                3 => finish::<E, B, 3>(&weights, &unpacked(t), x, n, t, out),
                _ => {}
            }
        }
    }
}

/// Adds the products with the tokens starting at `first` to their sums.
///
/// # Safety
/// `x` is a block of `n` tokens, with `T` tokens starting at `first`; otherwise as in [`Block::meet`].
#[inline]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
unsafe fn finish<E: Engine, B: Block<E>, const T: usize>(
    weights: &B,
    products: &impl Products<T>,
    x: *const u8,
    n: usize,
    first: usize,
    out: &mut Sums,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let scales = x.add(n * (TOKEN_BYTES - 12) + 4 * first);
        let terms = x.add(n * (TOKEN_BYTES - 8) + 8 * first);
        let products = weights.meet::<T>(products, terms);
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

/// Products of an unpacked block.
struct Unpacked<E> {
    steps: *const u8,
    /// The first token's quants; those of the others follow.
    x: *const u8,
    /// [`Engine::N_STEPS`].
    n_steps: usize,
    engine: PhantomData<E>,
}

impl<E: Engine, const T: usize> Products<T> for Unpacked<E> {
    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn nibbles(&self, start: Dots<T>) -> Dots<T> {
        // SAFETY: guaranteed by the caller.
        unsafe { E::dot_nibbles(self.steps, self.x, start, self.n_steps) }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn sixes(&self, half: usize, start: Dots<T>) -> Dots<T> {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let steps = self.steps.add(half * E::N_STEPS / 2 * STEP_BYTES);
            over_steps(steps, self.x.add(half * (TOKEN_BYTES - 12) / 2), start, self.n_steps / 2, |sum, a, weights| {
                E::dot(sum, a, weights)
            })
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn bytes(&self, start: Dots<T>) -> Dots<T> {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let high = if E::PLANES { self.nibbles(start) } else { start };
            let start = high.map(|pair| pair.map(|sum| i32x4_shl(sum, 4)));
            match E::PLANES {
                true => E::dot_nibbles(self.steps.add(8 * STEP_BYTES), self.x, start, self.n_steps),
                false => over_steps(self.steps, self.x, start, self.n_steps, |sum, a, weights| E::dot(sum, a, weights)),
            }
        }
    }
}

/// Products of a block with one token, unpacked on the fly.
struct Packed<E> {
    values: *const u8,
    x: *const u8,
    /// Times 32 bytes of nibbles.
    n_rounds: usize,
    engine: PhantomData<E>,
}

impl<E: Engine> Packed<E> {
    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn add(&self, sums: &mut Pair, step: usize, weights: Pair) {
        // SAFETY: guaranteed by the caller.
        let a = unsafe { splat(self.x.add(4 * step)) };
        *sums = each(|half| unsafe { E::dot(sums[half], a, weights[half]) });
    }
}

impl<E: Engine> Products<1> for Packed<E> {
    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn nibbles(&self, start: Dots<1>) -> Dots<1> {
        let [mut sums] = start;
        for j in 0..self.n_rounds {
            // SAFETY: guaranteed by the caller.
            unsafe { E::nibbles(j, pair(self.values.add(32 * j)), |step, weights| self.add(&mut sums, step, weights)) }
        }
        [sums]
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn sixes(&self, half: usize, start: Dots<1>) -> Dots<1> {
        let [mut sums] = start;
        for j in 4 * half..4 * half + self.n_rounds {
            // SAFETY: guaranteed by the caller.
            unsafe { E::sixes(j, pair(self.values.add(32 * j)), |step, weights| self.add(&mut sums, step, weights)) }
        }
        [sums]
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn bytes(&self, start: Dots<1>) -> Dots<1> {
        let mut high = start[0];
        let mut low = [i32x4_splat(0); 2];
        for j in 0..2 * self.n_rounds {
            // SAFETY: guaranteed by the caller.
            unsafe {
                E::bytes(j, pair(self.values.add(32 * j)), |plane, step, weights| {
                    self.add(if E::PLANES && plane == 0 { &mut high } else { &mut low }, step, weights)
                })
            }
        }
        [each(|half| i32x4_add(i32x4_shl(high[half], 4), low[half]))]
    }
}

/// A factor for each row: Q8 where `BYTES`, otherwise Q4.
struct Plain<const BYTES: bool> {
    factor: Pair,
}

impl<E: Engine, const BYTES: bool> Block<E> for Plain<BYTES> {
    const VALUE_BYTES: usize = if BYTES { 256 } else { 128 };

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn load(group: &Group, block: usize) -> Self {
        let scales = group.scales.as_ptr();
        // SAFETY: a block has 32 or 16 bytes of scales.
        Self {
            factor: unsafe { if BYTES { pair(scales.add(32 * block)) } else { f16_to_f32(scales.add(16 * block)) } },
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn unpack(values: *const u8, steps: &mut Steps) -> *const u8 {
        for j in 0..if BYTES { 8 } else { 4 } {
            // SAFETY: guaranteed by the caller.
            unsafe {
                let packed = pair(values.add(32 * j));
                match BYTES {
                    true => E::bytes(j, packed, |plane, step, weights| steps[8 * plane + step] = weights),
                    false => E::nibbles(j, packed, |step, weights| steps[step] = weights),
                }
            }
        }
        steps.as_ptr().cast()
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn meet<const T: usize>(&self, products: &impl Products<T>, terms: *const u8) -> Dots<T> {
        // SAFETY: guaranteed by the caller.
        let dots = unsafe {
            match BYTES {
                true => products.bytes(starts::<T>(terms)),
                false => products.nibbles(starts::<T>(terms)),
            }
        };
        dots.map(|dots| each(|half| f32x4_mul(self.factor[half], f32x4_convert_i32x4(dots[half]))))
    }
}

/// `scale` is factor * scale, which has 11 + 6 bits and is exact; `min` likewise. So each product is rounded only once,
/// as in the definition.
struct Q4K {
    scale: Pair,
    min: Pair,
}

impl<E: Engine> Block<E> for Q4K {
    const VALUE_BYTES: usize = 128;

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn load(group: &Group, block: usize) -> Self {
        // SAFETY: a block has 16 bytes of scales and a head of 64 bytes shared with its super-block.
        unsafe {
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 64);
            let (factor, min) = (pair(head), pair(head.add(32)));
            let scales = group.scales.as_ptr().add(16 * block);
            let scale = each(|half| f32x4_mul(factor[half], u8_to_f32(scales.add(4 * half))));
            Self { scale, min: each(|half| f32x4_mul(min[half], u8_to_f32(scales.add(8 + 4 * half)))) }
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn unpack(values: *const u8, steps: &mut Steps) -> *const u8 {
        // SAFETY: guaranteed by the caller; the values are stored like those of Q4.
        unsafe { <Plain<false> as Block<E>>::unpack(values, steps) }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn meet<const T: usize>(&self, products: &impl Products<T>, terms: *const u8) -> Dots<T> {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let mut dots = products.nibbles([[i32x4_splat(0); 2]; T]);
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
    /// For the first and for the last 16 columns.
    scales: [Pair; 2],
    factor: Pair,
}

impl<E: Engine> Block<E> for Q6K {
    const VALUE_BYTES: usize = 256;

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn load(group: &Group, block: usize) -> Self {
        // SAFETY: a block has 16 bytes of scales and a head of 32 bytes shared with its super-block.
        unsafe {
            let head = group.heads.as_ptr().add((group.layout.first_sub + block) / SUPER * 32);
            let scales = group.scales.as_ptr().add(16 * block);
            // Both scales of a row, side by side.
            let both: Pair = each(|half| i16x8_load_extend_i8x8(scales.add(8 * half).cast()));
            let first = each(|half| f32x4_convert_i32x4(i32x4_shr(i32x4_shl(both[half], 16), 16)));
            let second = each(|half| f32x4_convert_i32x4(i32x4_shr(both[half], 16)));
            Self { scales: [first, second], factor: pair(head) }
        }
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn unpack(values: *const u8, steps: &mut Steps) -> *const u8 {
        if E::N_STEPS == 8 {
            // The values are already stored as steps.
            return values;
        }
        for j in 0..8 {
            // SAFETY: guaranteed by the caller.
            unsafe { E::sixes(j, pair(values.add(32 * j)), |step, weights| steps[step] = weights) }
        }
        steps.as_ptr().cast()
    }

    #[inline]
    #[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
    unsafe fn meet<const T: usize>(&self, products: &impl Products<T>, terms: *const u8) -> Dots<T> {
        let weighted = |dots: Dots<T>, scales: &Pair| {
            dots.map(|dots| each(|half| f32x4_mul(scales[half], f32x4_convert_i32x4(dots[half]))))
        };
        // SAFETY: guaranteed by the caller.
        unsafe {
            let firsts = weighted(products.sixes(0, starts::<T>(terms)), &self.scales[0]);
            let mut sums = weighted(products.sixes(1, starts::<T>(terms.add(4))), &self.scales[1]);
            for (sums, firsts) in sums.iter_mut().zip(&firsts) {
                *sums = each(|half| f32x4_mul(self.factor[half], f32x4_add(firsts[half], sums[half])));
            }
            sums
        }
    }
}

/// `start` + the result of `add` for each of `n_steps` steps; `add` gets a sum, 4 bytes of activations in all lanes,
/// and the weights to multiply.
///
/// # Safety
/// There are that many steps, and `x` has the quants of `T` tokens of a block.
#[inline]
#[cfg_attr(feature = "relaxed-simd", target_feature(enable = "relaxed-simd"))]
pub(super) unsafe fn over_steps<const T: usize>(
    steps: *const u8,
    x: *const u8,
    start: Dots<T>,
    n_steps: usize,
    add: impl Fn(v128, v128, v128) -> v128,
) -> Dots<T> {
    let mut sums = start;
    for k in 0..n_steps {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let weights = pair(steps.add(STEP_BYTES * k));
            for t in 0..T {
                let a = splat(x.add((TOKEN_BYTES - 12) * t + 4 * k));
                sums[t] = each(|half| add(sums[t][half], a, weights[half]));
            }
        }
    }
    sums
}

/// Both halves of a group's rows.
#[inline(always)]
fn each(of_half: impl Fn(usize) -> v128) -> Pair {
    [of_half(0), of_half(1)]
}

/// # Safety
/// There are 32 bytes at `at`.
#[inline(always)]
unsafe fn pair(at: *const u8) -> Pair {
    // SAFETY: guaranteed by the caller.
    unsafe { [v128_load(at.cast()), v128_load(at.add(16).cast())] }
}

/// A term of each token, in all lanes.
///
/// # Safety
/// `terms` has 4 bytes for each token, 8 apart.
#[inline(always)]
unsafe fn starts<const T: usize>(terms: *const u8) -> Dots<T> {
    // SAFETY: guaranteed by the caller.
    std::array::from_fn(|t| unsafe { [splat(terms.add(8 * t)); 2] })
}

/// Four bytes, in all lanes.
///
/// # Safety
/// There are 4 bytes at `at`.
#[inline(always)]
unsafe fn splat(at: *const u8) -> v128 {
    // SAFETY: guaranteed by the caller.
    unsafe { v128_load32_splat(at.cast()) }
}

/// 8 x f16 as f32: the bits are moved to their positions in an f32, and the difference of the exponent biases is
/// multiplied in. Exact for all finite numbers, including subnormal ones.
///
/// # Safety
/// There are 16 bytes at `at`.
#[inline(always)]
unsafe fn f16_to_f32(at: *const u8) -> Pair {
    each(|half| {
        // SAFETY: guaranteed by the caller.
        let bits = i32x4_shl(unsafe { i32x4_load_extend_i16x4(at.add(8 * half).cast()) }, 13);
        f32x4_mul(v128_and(bits, u32x4_splat(0x8fff_e000)), f32x4_splat(f32::from_bits((127 + 112) << 23)))
    })
}

/// 4 bytes as f32.
///
/// # Safety
/// There are 4 bytes at `at`.
#[inline(always)]
unsafe fn u8_to_f32(at: *const u8) -> v128 {
    // SAFETY: guaranteed by the caller.
    let bytes = unsafe { v128_load32_zero(at.cast()) };
    f32x4_convert_i32x4(u32x4_extend_low_u16x8(u16x8_extend_low_u8x16(bytes)))
}
