//! Rotary position embedding (arXiv 2104.09864).
//!
//! There are two conventions, stated here once: [`Pairs::Neighbours`], as in llama.cpp's `llama` architecture, and
//! [`Pairs::Halves`], as in Hugging Face's checkpoints and GPT-NeoX. For the first, the converter permutes the rows of
//! wq and wk, so that both give the same products.

/// Which two values of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// (x[2i], x[2i + 1]).
    Neighbours,
    /// (x[i], x[i + head_dim / 2]).
    Halves,
}

/// The frequencies of a head's pairs.
pub struct Rope {
    /// (head_dim / 2): angle per position of each pair.
    freqs: Vec<f32>,
}

impl Rope {
    /// `factors` (head_dim / 2) divide the frequencies: Llama-3.1's scaling, stored as `rope_freqs.weight`.
    pub fn new(head_dim: usize, theta: f32, factors: Option<&[f32]>) -> Self {
        let half = head_dim / 2;
        let freq = |i: usize| {
            let freq = (1.0 / (theta as f64).powf(2.0 * i as f64 / head_dim as f64)) as f32;
            freq / factors.map_or(1.0, |factors| factors[i])
        };
        Self { freqs: (0..half).map(freq).collect() }
    }

    /// Cosines and sines for the positions `first..first + n`: (n, head_dim / 2, 2).
    #[inline(never)]
    pub fn angles(&self, first: usize, n: usize) -> Vec<f32> {
        let mut angles = Vec::with_capacity(2 * n * self.freqs.len());
        for pos in first..first + n {
            angles.extend(self.freqs.iter().flat_map(|freq| {
                let angle = (pos as f32 * freq) as f64;
                [angle.cos() as f32, angle.sin() as f32]
            }));
        }
        angles
    }
}

/// Rotates `x` (n_positions, n_heads, head_dim) in place by `angles` (n_positions, head_dim / 2, 2): [`Rope::angles`].
#[inline(never)]
pub fn rotate(pairs: Pairs, x: &mut [f32], angles: &[f32], head_dim: usize) {
    let n_positions = angles.len() / head_dim.max(1);
    if x.is_empty() || n_positions == 0 {
        return;
    }
    let rows = x.chunks_exact_mut(x.len() / n_positions).zip(angles.chunks_exact(head_dim));
    for (row, angles) in rows {
        let angles = angles.as_chunks().0;
        for head in row.chunks_exact_mut(head_dim) {
            match pairs {
                Pairs::Neighbours => {
                    for ([a, b], angle) in head.as_chunks_mut().0.iter_mut().zip(angles) {
                        (*a, *b) = rotated(*a, *b, *angle);
                    }
                }
                Pairs::Halves => {
                    let (left, right) = head.split_at_mut(head_dim / 2);
                    for ((a, b), angle) in left.iter_mut().zip(right).zip(angles) {
                        (*a, *b) = rotated(*a, *b, *angle);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn rotated(a: f32, b: f32, [cos, sin]: [f32; 2]) -> (f32, f32) {
    (a * cos - b * sin, a * sin + b * cos)
}

/// Llama-3.1's factors for `rope_freqs.weight`: long wavelengths are stretched by `factor`, short ones kept, and those
/// in between blended.
///
/// As `_compute_llama3_parameters` of transformers; `original` is the context length before scaling.
pub fn llama3_factors(head_dim: usize, theta: f32, factor: f32, low: f32, high: f32, original: f32) -> Vec<f32> {
    let blend = |i: usize| {
        let freq = 1.0 / (theta as f64).powf(2.0 * i as f64 / head_dim as f64);
        let wavelength = 2.0 * std::f64::consts::PI / freq;
        let (factor, low, high, original) = (factor as f64, low as f64, high as f64, original as f64);
        if wavelength < original / high {
            return 1.0;
        }
        if wavelength > original / low {
            return factor as f32;
        }
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    (0..head_dim / 2).map(blend).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_keeps_lengths_and_depends_on_distance_only() {
        let rope = Rope::new(8, 10_000.0, None);
        let q = [0.3, -1.0, 0.5, 2.0, -0.7, 0.1, 0.9, -0.4];
        let k = [1.1, 0.2, -0.6, 0.8, 0.4, -1.5, 0.0, 0.7];
        let at = |x: [f32; 8], pos| {
            let mut x = x;
            rotate(Pairs::Neighbours, &mut x, &rope.angles(pos, 1), 8);
            x
        };
        let dot = |a: [f32; 8], b: [f32; 8]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert_eq!(at(q, 0), q);
        let near = dot(at(q, 7), at(k, 4));
        let far = dot(at(q, 107), at(k, 104));
        assert!((near - far).abs() < 1e-4, "{near} {far}");
        assert!((near - dot(at(q, 7), at(k, 5))).abs() > 1e-2);
    }

    #[test]
    fn both_pairings_give_the_same_products() {
        let x: Vec<f32> = (0..16).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        let permuted: Vec<f32> = (0..16).map(|i| x[i / 8 * 8 + i % 8 / 2 + i % 2 * 4]).collect();
        let [halves, neighbours] = [(Pairs::Halves, x), (Pairs::Neighbours, permuted)].map(|(pairs, mut x)| {
            rotate(pairs, &mut x, &Rope::new(8, 10_000.0, None).angles(3, 1), 8);
            x
        });
        assert!((0..16).all(|i| neighbours[i] == halves[i / 8 * 8 + i % 8 / 2 + i % 2 * 4]));
    }

    #[test]
    fn llama3_factors_keep_short_and_stretch_long_wavelengths() {
        let factors = llama3_factors(128, 500_000.0, 8.0, 1.0, 4.0, 8192.0);
        assert_eq!((factors[0], factors[63]), (1.0, 8.0));
        assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(factors.iter().any(|&factor| factor > 1.5 && factor < 7.5));
    }
}
