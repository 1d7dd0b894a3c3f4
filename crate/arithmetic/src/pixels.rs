//! The inner loops over a picture's 8-bit pixels: sums with weights of [`PRECISION_BITS`] fractional bits, and means of blocks.

/// Fractional bits of a weight: 32, less 8 for the pixel and 2 for overshoot.
pub const PRECISION_BITS: u32 = 22;

/// Initial value of a sum, so that the result is rounded to nearest.
pub const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// Removes the fractional bits and clamps to a byte.
#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Expands pixels from three bytes to four, the last of which is 0, so that a pixel is one vector of four sums.
#[inline(never)]
pub fn spread(rgb: &[u8], pixels: &mut [[u8; 4]]) {
    for (to, &[red, green, blue]) in pixels.iter_mut().zip(rgb.as_chunks::<3>().0) {
        *to = [red, green, blue, 0];
    }
}

/// Weighted sums along a row: pixel `i` of `out` is computed from `spans[i].1` pixels starting at `spans[i].0`, with
/// the weights starting at `n_taps * i`.
#[inline(never)]
pub fn weigh_row(row: &[[u8; 4]], spans: &[(usize, usize)], weights: &[i32], n_taps: usize, out: &mut [[u8; 3]]) {
    for ((&(start, n), weights), out) in spans.iter().zip(weights.chunks_exact(n_taps)).zip(out) {
        let mut sums = [HALF; 4];
        for (&weight, pixel) in weights[..n].iter().zip(&row[start..]) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(value) * weight;
            }
        }
        *out = [to_byte(sums[0]), to_byte(sums[1]), to_byte(sums[2])];
    }
}

/// Adds a row, times its weight, to the sums of its bytes.
#[inline(never)]
pub fn add_weighted(sums: &mut [i32], row: &[u8], weight: i32) {
    for (sum, &value) in sums.iter_mut().zip(row) {
        *sum += i32::from(value) * weight;
    }
}

/// Converts such sums to bytes.
#[inline(never)]
pub fn round(sums: &[i32], out: &mut [u8]) {
    for (out, &sum) in out.iter_mut().zip(sums) {
        *out = to_byte(sum);
    }
}

/// Means of blocks of `factor` columns over all of `rows`, each `width` pixels of three bytes: one opaque pixel of four
/// bytes per block. The last block may be narrower.
#[inline(never)]
pub fn mean_of_blocks(rows: &[u8], width: usize, factor: usize, sums: &mut [[u32; 3]], rgba: &mut [[u8; 4]]) {
    sums.fill([0; 3]);
    let n_rows = rows.len() / (3 * width);
    for row in rows.chunks_exact(3 * width) {
        for (sum, block) in sums.iter_mut().zip(row.as_chunks::<3>().0.chunks(factor)) {
            for pixel in block {
                (0..3).for_each(|channel| sum[channel] += u32::from(pixel[channel]));
            }
        }
    }
    for (idx, (sum, out)) in sums.iter().zip(rgba).enumerate() {
        let n = (n_rows * factor.min(width - idx * factor)) as u32;
        let [red, green, blue] = sum.map(|sum| ((sum + n / 2) / n) as u8);
        *out = [red, green, blue, 255];
    }
}
