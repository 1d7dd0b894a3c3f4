//! Groups whose values are stored in planes, unpacked for the kernels: once for all tokens, into memory that stays in
//! the processor's cache.

use super::float::vectorized;
use crate::layout::{GROUP, Group, Layout, Offsets};
use crate::quant::{IQ4_VALUES, has_codebook};

/// Room for one group at a time.
#[derive(Default)]
pub struct Unpacked {
    values: Vec<u8>,
    offsets: Vec<[f32; GROUP]>,
}

impl Unpacked {
    /// The group in `bytes`.
    pub fn group<'a>(&'a mut self, layout: &Layout, bytes: &'a [u8]) -> Group<'a> {
        let runs = layout.runs(bytes);
        let values = match layout.planes() {
            None => runs.values,
            Some(planes) => {
                self.values.resize(layout.n_blocks * layout.form.value_bytes(), 0);
                match has_codebook(layout.dtype) {
                    true => look_up(runs.values, &mut self.values),
                    false => unpack(planes, layout.bias(), runs.values, &mut self.values),
                }
                &self.values
            }
        };
        let offsets = match layout.offsets() {
            Offsets::None => &[],
            Offsets::Addend => bytemuck::cast_slice(runs.offsets),
            Offsets::Mins(n) => {
                self.offsets.resize(layout.n_blocks * n, [0.0; GROUP]);
                unpack_mins(layout.first_sub, runs.min_heads, runs.offsets, n, &mut self.offsets);
                &self.offsets
            }
        };
        Group { layout: *layout, heads: runs.heads, scales: runs.scales, values, offsets }
    }
}

vectorized! {
    fn unpack(planes: [usize; 2], bias: u8, values: &[u8], out: &mut [u8]) {
        match planes {
            [2, 0] => unpack_planes::<2, 0>(bias, values, out),
            [2, 1] => unpack_planes::<2, 1>(bias, values, out),
            [4, 1] => unpack_planes::<4, 1>(bias, values, out),
            _ => unreachable!("no type has planes of {planes:?} bits"),
        }
    }
}

/// `LOW` low bits, then `HIGH` high bits, of each value, eight values at a time. No byte overflows: a form's quants
/// have 8 bits.
#[inline(always)]
fn unpack_planes<const LOW: usize, const HIGH: usize>(bias: u8, values: &[u8], out: &mut [u8]) {
    const STEP: usize = 4; // words of eight values
    let bytes = |byte: u8| u64::from_ne_bytes([byte; 8]);
    let (low_bits, high_bit, bias) = (bytes((1 << LOW) - 1), bytes(1 << LOW), bytes(bias));
    let (values, out) = (values.as_chunks::<8>().0, out.as_chunks_mut::<8>().0);
    for (values, out) in values.chunks_exact(STEP * (LOW + HIGH)).zip(out.as_chunks_mut::<{ 8 * STEP }>().0) {
        let (low, high) = values.split_at(STEP * LOW);
        for step in 0..8 {
            for i in 0..STEP {
                let mut quants = u64::from_ne_bytes(low[step % LOW * STEP + i]) >> (LOW * (step / LOW)) & low_bits;
                if HIGH == 1 {
                    let high = u64::from_ne_bytes(high[i]);
                    quants |= if step < LOW { high << (LOW - step) } else { high >> (step - LOW) } & high_bit;
                }
                out[STEP * step + i] = (quants + bias).to_ne_bytes();
            }
        }
    }
}

vectorized! {
    fn unpack_mins(first_sub: usize, factors: &[u8], mins: &[u8], n: usize, out: &mut [[f32; GROUP]]) {
        unpack_mins_lanes(first_sub, factors, mins, n, out)
    }
}

#[inline(always)]
fn unpack_mins_lanes(first_sub: usize, factors: &[u8], mins: &[u8], n: usize, out: &mut [[f32; GROUP]]) {
    let factors: &[[f32; GROUP]] = bytemuck::cast_slice(factors);
    for (block, (mins, out)) in mins.as_chunks::<GROUP>().0.iter().zip(out.chunks_exact_mut(n)).enumerate() {
        let factors = &factors[(first_sub + block) / 8];
        match out {
            [first, second] => {
                for row in 0..GROUP {
                    first[row] = -(factors[row] * (mins[row] & 15) as f32);
                    second[row] = -(factors[row] * (mins[row] >> 4) as f32);
                }
            }
            _ => (0..GROUP).for_each(|row| out[0][row] = -(factors[row] * mins[row] as f32)),
        }
    }
}

/// The codebook as unsigned quants of the Q8 form.
const CODEBOOK: [u8; 16] = {
    let mut codebook = [0; 16];
    let mut code = 0;
    while code < 16 {
        codebook[code] = (IQ4_VALUES[code] as u8).wrapping_add(128);
        code += 1;
    }
    codebook
};

/// Nibbles that are indices into the codebook.
fn look_up(values: &[u8], out: &mut [u8]) {
    let blocks = values.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<256>().0);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return blocks.for_each(|(values, out)| unsafe { look_up_avx2(values, out) });
    }
    blocks.for_each(|(values, out)| look_up_block(values, out));
}

/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn look_up_avx2(values: &[u8; 128], out: &mut [u8; 256]) {
    use std::arch::x86_64::*;
    let (first, second) = out.split_at_mut(128);
    let mask = _mm256_set1_epi8(15);
    // SAFETY: each is 4 times 32 bytes long, the codebook 16.
    unsafe {
        let codebook = _mm256_broadcastsi128_si256(_mm_loadu_si128(CODEBOOK.as_ptr().cast()));
        for at in (0..128).step_by(32) {
            let packed = _mm256_loadu_si256(values.as_ptr().add(at).cast());
            let (low, high) = (_mm256_and_si256(packed, mask), _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask));
            _mm256_storeu_si256(first.as_mut_ptr().add(at).cast(), _mm256_shuffle_epi8(codebook, low));
            _mm256_storeu_si256(second.as_mut_ptr().add(at).cast(), _mm256_shuffle_epi8(codebook, high));
        }
    }
}

#[cfg(target_arch = "wasm32")]
fn look_up_block(values: &[u8; 128], out: &mut [u8; 256]) {
    use std::arch::wasm32::*;
    let (first, second) = out.split_at_mut(128);
    // SAFETY: each is 8 times 16 bytes long, the codebook 16.
    unsafe {
        let codebook = v128_load(CODEBOOK.as_ptr().cast());
        for at in (0..128).step_by(16) {
            let packed = v128_load(values.as_ptr().add(at).cast());
            let (low, high) = (v128_and(packed, u8x16_splat(15)), u8x16_shr(packed, 4));
            v128_store(first.as_mut_ptr().add(at).cast(), u8x16_swizzle(codebook, low));
            v128_store(second.as_mut_ptr().add(at).cast(), u8x16_swizzle(codebook, high));
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn look_up_block(values: &[u8; 128], out: &mut [u8; 256]) {
    let (first, second) = out.split_at_mut(128);
    for ((first, second), packed) in first.iter_mut().zip(second).zip(values) {
        *first = CODEBOOK[(packed & 15) as usize];
        *second = CODEBOOK[(packed >> 4) as usize];
    }
}
