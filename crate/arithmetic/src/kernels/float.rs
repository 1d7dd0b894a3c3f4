//! f32 arithmetic in lanes of 8, written once as plain loops over arrays, which the compiler turns into wasm simd128
//! and AVX2.
//!
//! No fused multiply-add and no reordering, so that every build gives the same bits.

use crate::dtype::Dtype;
use crate::layout::GROUP;

/// 1.5 * 2^23: adding it leaves the number, rounded to nearest with ties to even, in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// Defines `$name`, which runs `$body` compiled for AVX2 where the processor has it. `$body` must be
/// `#[inline(always)]`.
macro_rules! vectorized {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? { $body:expr }) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body
        }
    };
}
pub(crate) use vectorized;

/// 32 activations in 8 bits: `scale * quant`.
#[derive(Debug, Clone, Copy)]
pub struct Quantized {
    /// -127 to 127.
    pub quants: [i8; 32],
    /// NaN if an activation is not finite; then every product is NaN too.
    pub scale: f32,
    /// Sums of the first and the last 16 quants.
    pub sums: [i16; 2],
}

vectorized! {
    /// Quantizes a block, rounding to nearest, ties to even.
    pub fn quantize(x: &[f32; 32]) -> Quantized { quantize_lanes(x) }
}

vectorized! {
    /// Rounds `x` to 16-bit integers and returns their scale: `scale * int` is off by at most 1/65534 of the largest
    /// magnitude in `x`, or by 4e-34. The scale is NaN if a value is not finite.
    #[inline(never)]
    pub fn quantize_row(x: &[f32], ints: &mut [i16]) -> f32 { quantize_row_lanes(x, ints) }
}

#[inline(always)]
fn quantize_row_lanes(x: &[f32], ints: &mut [i16]) -> f32 {
    let max = largest(x);
    let inverse = inverse_step(max, 32767.0);
    for (int, x) in ints.iter_mut().zip(x) {
        *int = (x * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i16;
    }
    max / 32767.0
}

/// The largest magnitude; NaN if a value is not finite.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    // Magnitudes have the same order as their bits, with infinity and NaN above all numbers.
    let mut max = [0; 8];
    let (lanes, rest) = x.as_chunks::<8>();
    for x in lanes {
        for lane in 0..8 {
            max[lane] = max[lane].max(x[lane].abs().to_bits() as i32);
        }
    }
    let max = rest.iter().map(|x| x.abs().to_bits() as i32).chain(max).fold(0, i32::max);
    let max = f32::from_bits(max as u32);
    if max.is_finite() { max } else { f32::NAN }
}

/// Steps per unit if `max` is `n_steps` steps. Denormal values, whose inverse is infinite, count as zero.
#[inline(always)]
fn inverse_step(max: f32, n_steps: f32) -> f32 {
    if max > n_steps * f32::MIN_POSITIVE { n_steps / max } else { 0.0 }
}

#[inline(always)]
fn quantize_lanes(x: &[f32; 32]) -> Quantized {
    let max = largest(x);
    let inverse = inverse_step(max, 127.0);
    let wide: [i32; 32] =
        std::array::from_fn(|i| (x[i] * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32);
    let quants = wide.map(|quant| quant as i8);
    let sums =
        [0, 16].map(|first| wide[first..first + 16].iter().fold(0i32, |sum, quant| sum.wrapping_add(*quant)) as i16);
    Quantized { quants, scale: max / 127.0, sums }
}

/// e^x, within 2e-7 of its value; 0 to within 1.2e-38 below -87.3, capped at 2.3e38; NaN stays NaN.
///
/// 2^n times a polynomial on the rest (Cephes' `expf`), so that a loop over it becomes vectors.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = if x > 88.3 { 88.3 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    // ln 2 in two parts, the first with few bits, so that n times it is exact.
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23);
    let y = (p * r * r + r + 1.0) * power;
    // The clamps may lose a NaN: relaxed SIMD has minima and maxima that do so.
    if x.is_nan() { x } else { y }
}

/// The error function within 3e-7 of its value: two polynomials, after N. Juffa's `erff`.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let (t, s) = (x.abs(), x * x);
    let r = -1.728_534_7e-5 * t + 3.831_97e-4;
    let u = -3.883_964e-3 * t + 2.425_462_2e-2;
    let r = r * s + u;
    let r = r * t - 1.067_778_8e-1;
    let r = r * t - 6.348_467e-1;
    let r = r * t - 1.287_175_1e-1;
    let far = (1.0 - exp(r * t - t)).copysign(x);
    let r = -5.967_617e-4 * s + 4.991_194e-3;
    let r = r * s - 2.676_813_5e-2;
    let r = r * s + 1.128_199_25e-1;
    let r = r * s - 3.761_253_4e-1;
    let r = r * s + 1.283_791_7e-1;
    let near = r * x + x;
    if t > 0.927_734_4 { far } else { near }
}

/// The sum of `term` over `x`, in 16 lanes.
#[inline(always)]
pub fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += term(*x);
    }
    join(lanes)
}

/// The dot products of `y` with `R` vectors of its length, in 8 lanes each.
#[inline(always)]
pub fn dots<V: Value, const R: usize>(y: &[V], x: &[&[f32]; R]) -> [f32; R] {
    assert!(x.iter().all(|x| x.len() == y.len()));
    let mut sums = [Lanes::ZERO; R];
    let n_whole = y.len() / 8 * 8;
    for at in (0..n_whole).step_by(8) {
        // SAFETY: all are as long as `y`, which has 8 values starting at `at`.
        unsafe {
            let y = V::lanes(y.as_ptr().add(at));
            for r in 0..R {
                sums[r].add_products(y, f32::lanes(x[r].as_ptr().add(at)));
            }
        }
    }
    std::array::from_fn(|r| {
        let eight = sums[r].to_array();
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        let rest = y[n_whole..].iter().zip(&x[r][n_whole..]).fold(0.0, |sum, (&y, x)| sum + y.into() * x);
        (four[0] + four[2]) + (four[1] + four[3]) + rest
    })
}

#[inline(always)]
fn join(lanes: [f32; 16]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The products of 8 rows with `R` tokens: `[r][lane]` = sum over k of `x[r][k] * panel[k * stride + lane]`, in the order of k.
#[inline(always)]
pub fn panel_products<V: Value, const R: usize>(panel: &[V], stride: usize, x: &[&[f32]; R]) -> [[f32; 8]; R] {
    let n = x[0].len();
    assert!(x.iter().all(|x| x.len() == n) && (n == 0 || (n - 1) * stride + 8 <= panel.len()));
    let mut sums = [Lanes::ZERO; R];
    for k in 0..n {
        // SAFETY: `k` is below the length of every `x`, and `panel` reaches 8 beyond the start of the last row: both
        // are asserted above.
        unsafe {
            let weights = V::lanes(panel.as_ptr().add(k * stride));
            for r in 0..R {
                sums[r].add_product(weights, *x[r].as_ptr().add(k));
            }
        }
    }
    sums.map(Lanes::to_array)
}

/// A type that is read as f32, eight values at a time.
pub trait Value: Copy + Into<f32> {
    /// # Safety
    /// Eight values can be read at `from`.
    unsafe fn lanes(from: *const Self) -> Lanes;
}

impl Value for f32 {
    #[inline(always)]
    unsafe fn lanes(from: *const Self) -> Lanes {
        // SAFETY: guaranteed by the caller.
        unsafe { Lanes::load(from) }
    }
}

impl Value for i16 {
    #[inline(always)]
    unsafe fn lanes(from: *const Self) -> Lanes {
        // SAFETY: guaranteed by the caller.
        unsafe { Lanes::load_ints(from) }
    }
}

/// Eight f32 that are used together: two registers of wasm; elsewhere an array that the compiler keeps in registers.
#[derive(Clone, Copy)]
pub struct Lanes {
    #[cfg(target_arch = "wasm32")]
    halves: [std::arch::wasm32::v128; 2],
    #[cfg(not(target_arch = "wasm32"))]
    values: [f32; 8],
}

#[cfg(target_arch = "wasm32")]
impl Lanes {
    const ZERO: Self = Self { halves: [std::arch::wasm32::f32x4(0.0, 0.0, 0.0, 0.0); 2] };

    /// # Safety
    /// Eight values can be read at `from`.
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe {
            Self {
                halves: [
                    from.cast::<std::arch::wasm32::v128>().read_unaligned(),
                    from.add(4).cast::<std::arch::wasm32::v128>().read_unaligned(),
                ],
            }
        }
    }

    /// # Safety
    /// Eight values can be read at `from`.
    #[inline(always)]
    unsafe fn load_ints(from: *const i16) -> Self {
        use std::arch::wasm32::{f32x4_convert_i32x4, i32x4_load_extend_i16x4};
        // SAFETY: guaranteed by the caller.
        let halves = unsafe { [i32x4_load_extend_i16x4(from), i32x4_load_extend_i16x4(from.add(4))] };
        Self { halves: halves.map(|half| f32x4_convert_i32x4(half)) }
    }

    #[inline(always)]
    fn add_product(&mut self, weights: Self, x: f32) {
        use std::arch::wasm32::{f32x4_add, f32x4_mul, f32x4_splat};
        for (sum, weights) in self.halves.iter_mut().zip(weights.halves) {
            *sum = f32x4_add(*sum, f32x4_mul(weights, f32x4_splat(x)));
        }
    }

    #[inline(always)]
    fn add_products(&mut self, y: Self, x: Self) {
        use std::arch::wasm32::{f32x4_add, f32x4_mul};
        for half in 0..2 {
            self.halves[half] = f32x4_add(self.halves[half], f32x4_mul(y.halves[half], x.halves[half]));
        }
    }

    #[inline(always)]
    fn to_array(self) -> [f32; 8] {
        // SAFETY: both have 32 bytes, and every bit pattern is valid.
        unsafe { std::mem::transmute(self.halves) }
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Lanes {
    const ZERO: Self = Self { values: [0.0; 8] };

    /// # Safety
    /// Eight values can be read at `from`.
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: guaranteed by the caller.
        Self { values: unsafe { from.cast::<[f32; 8]>().read() } }
    }

    /// # Safety
    /// Eight values can be read at `from`.
    #[inline(always)]
    unsafe fn load_ints(from: *const i16) -> Self {
        // SAFETY: guaranteed by the caller.
        Self { values: unsafe { from.cast::<[i16; 8]>().read() }.map(f32::from) }
    }

    #[inline(always)]
    fn add_product(&mut self, weights: Self, x: f32) {
        for lane in 0..8 {
            self.values[lane] += weights.values[lane] * x;
        }
    }

    #[inline(always)]
    fn add_products(&mut self, y: Self, x: Self) {
        for lane in 0..8 {
            self.values[lane] += y.values[lane] * x.values[lane];
        }
    }

    #[inline(always)]
    fn to_array(self) -> [f32; 8] {
        self.values
    }
}

/// Decodes one stored f32, f16 or bf16, each exactly.
#[inline(always)]
pub fn decode(dtype: Dtype, bytes: &[u8]) -> f32 {
    match dtype {
        Dtype::F16 => decode_f16(u16::from_le_bytes([bytes[0], bytes[1]])),
        Dtype::Bf16 => f32::from_bits((u16::from_le_bytes([bytes[0], bytes[1]]) as u32) << 16),
        _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
}

#[inline(always)]
fn decode_f16(bits: u16) -> f32 {
    let magnitude = (bits & 0x7fff) as u32;
    let rebased = (magnitude << 13) + (112 << 23);
    // Subnormal: below the last bit of 0.5. (Arithmetic on subnormal f32 would be slow on some processors.)
    let subnormal = (f32::from_bits(magnitude | 0x3f00_0000) - 0.5).to_bits();
    let not_finite = rebased + (112 << 23);
    let value = if magnitude >= 0x7c00 { not_finite } else { rebased };
    let value = if magnitude < 0x0400 { subnormal } else { value };
    f32::from_bits(value | ((bits & 0x8000) as u32) << 16)
}

/// Columns whose products are summed before they are added to the result: shorter sums lose less precision, and the
/// decoded panel stays in the cache.
const COLUMNS: usize = 256;

/// Tokens multiplied with a panel at a time: as many as fit into the registers.
const TOKENS: usize = if cfg!(target_arch = "x86_64") { 8 } else { 4 };

/// Reorders `x` (n_tokens, n_cols) for [`matmul`]: (n_cols / COLUMNS, n_tokens, COLUMNS), so that values read together
/// are contiguous.
#[inline(never)]
pub fn load(x: &[f32], n_tokens: usize, to: &mut Vec<f32>) {
    to.clear();
    let n_cols = x.len() / n_tokens.max(1);
    for first in (0..n_cols).step_by(COLUMNS) {
        let n = COLUMNS.min(n_cols - first);
        (0..n_tokens).for_each(|token| to.extend_from_slice(&x[token * n_cols + first..][..n]));
    }
}

vectorized! {
    /// `out` (n_tokens, n_rows) = activations times the transposed matrix in `bytes`: panels of 8 rows, column by column.
    /// `x` comes from [`load`].
    #[inline(never)]
    pub fn matmul(dtype: Dtype, bytes: &[u8], n_rows: usize, x: &[f32], n_cols: usize, out: &mut [f32]) {
        matmul_lanes(dtype, bytes, n_rows, x, n_cols, out)
    }
}

#[inline(always)]
fn matmul_lanes(dtype: Dtype, bytes: &[u8], n_rows: usize, x: &[f32], n_cols: usize, out: &mut [f32]) {
    out.fill(0.0);
    if n_cols == 0 {
        return;
    }
    let (size, n_tokens) = (dtype.block_bytes(), x.len() / n_cols);
    let in_tiles = n_tokens / TOKENS * TOKENS;
    let mut panel = [[0.0; 8]; COLUMNS];
    let mut sums = vec![[0.0f32; 8]; n_tokens];
    for (idx, rows) in bytes.chunks(GROUP * n_cols * size).enumerate() {
        let (first_row, width) = (idx * GROUP, rows.len() / (n_cols * size));
        sums.fill([0.0; 8]);
        let mut first_col = 0;
        for columns in rows.chunks(COLUMNS * width * size) {
            let n = columns.len() / (width * size);
            let weights: &[f32] = if dtype == Dtype::F32 && width == GROUP {
                bytemuck::cast_slice(columns)
            } else {
                unpack(dtype, columns, width, &mut panel);
                panel[..n].as_flattened()
            };
            let x = &x[first_col * n_tokens..][..n * n_tokens];
            let row = |token: usize| &x[token * n..][..n];
            let mut add = |token: usize, products: &[f32; 8]| {
                sums[token].iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
            };
            for token in (0..in_tiles).step_by(TOKENS) {
                let tile: [&[f32]; TOKENS] = std::array::from_fn(|i| row(token + i));
                let products = panel_products(weights, 8, &tile);
                (0..TOKENS).for_each(|i| add(token + i, &products[i]));
            }
            (in_tiles..n_tokens).for_each(|token| add(token, &panel_products(weights, 8, &[row(token)])[0]));
            first_col += n;
        }
        for (out, sums) in out.chunks_exact_mut(n_rows).zip(&sums) {
            out[first_row..first_row + width].copy_from_slice(&sums[..width]);
        }
    }
}

vectorized! {
    /// Adds to each token's sums its products with a panel of 8 rows: `x` is (n_tokens, panel.len()).
    pub fn add_panel(panel: &[[f32; 8]], x: &[f32], sums: &mut [[f32; 8]]) { add_panel_lanes(panel, x, sums) }
}

#[inline(always)]
fn add_panel_lanes(panel: &[[f32; 8]], x: &[f32], sums: &mut [[f32; 8]]) {
    let mut add = |token: usize, products: &[f32; 8]| {
        sums[token].iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
    };
    let row = |token: usize| &x[token * panel.len()..][..panel.len()];
    let (n_tokens, weights) = (x.len() / panel.len(), panel.as_flattened());
    let in_fours = n_tokens / 4 * 4;
    for token in (0..in_fours).step_by(4) {
        let products = panel_products(weights, 8, &[row(token), row(token + 1), row(token + 2), row(token + 3)]);
        (0..4).for_each(|i| add(token + i, &products[i]));
    }
    (in_fours..n_tokens).for_each(|token| add(token, &panel_products(weights, 8, &[row(token)])[0]));
}

/// Decodes columns of `width` rows into lanes; lanes without a row keep their values.
#[inline(always)]
fn unpack(dtype: Dtype, columns: &[u8], width: usize, panel: &mut [[f32; 8]; COLUMNS]) {
    let size = dtype.block_bytes();
    if size == 2 && width == GROUP {
        let halves = bytemuck::cast_slice::<u8, u16>(columns).iter().zip(panel.as_flattened_mut());
        match dtype {
            Dtype::F16 => halves.for_each(|(bits, out)| *out = decode_f16(*bits)),
            _ => halves.for_each(|(bits, out)| *out = f32::from_bits((*bits as u32) << 16)),
        }
        return;
    }
    for (lanes, column) in panel.iter_mut().zip(columns.chunks_exact(width * size)) {
        for (lane, bytes) in lanes.iter_mut().zip(column.chunks_exact(size)) {
            *lane = decode(dtype, bytes);
        }
    }
}
