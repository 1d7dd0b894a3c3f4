//! Norms, activations and softmax: the arithmetic between the matrix products.
//!
//! Plain loops over rows, which the compiler vectorises; formulas as in PyTorch's documentation of the operations of
//! the same name.

use crate::kernels::float::{erf, exp, sum, vectorized};

vectorized! {
    /// `x` (n, dim) / rms(x) * weight, per row. `eps` is added to the mean square.
    #[inline(never)]
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) { rms_norm_rows(x, weight, eps, out) }
}

#[inline(always)]
fn rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let dim = weight.len();
    for (x, out) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
        let mean_square = sum(x, |x| x * x) / dim as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

vectorized! {
    /// (`x` - mean) / std * weight + bias, per row of `x` (n, dim). `eps` is added to the variance.
    #[inline(never)]
    pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        layer_norm_rows(x, weight, bias, eps, out)
    }
}

#[inline(always)]
fn layer_norm_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let dim = weight.len();
    for (x, out) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
        let mean = sum(x, |x| x) / dim as f32;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / dim as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = (x - mean) * scale * weight + bias;
        }
    }
}

/// Adds `bias` (dim) to every row of `x` (n, dim).
#[inline(never)]
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len()) {
        for (x, bias) in row.iter_mut().zip(bias) {
            *x += bias;
        }
    }
}

/// `x` += `y`.
#[inline(never)]
pub fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `x` += `y` * `scale`, per column: `x` and `y` (n, dim), `scale` (dim).
#[inline(never)]
pub fn add_scaled(x: &mut [f32], y: &[f32], scale: &[f32]) {
    for (x, y) in x.chunks_exact_mut(scale.len()).zip(y.chunks_exact(scale.len())) {
        for ((x, y), scale) in x.iter_mut().zip(y).zip(scale) {
            *x += y * scale;
        }
    }
}

vectorized! {
    /// `gate` = silu(`gate`) * `up`: the gated MLP of Llama and of timm's `GluMlp`.
    #[inline(never)]
    pub fn silu_mul(gate: &mut [f32], up: &[f32]) { silu_mul_values(gate, up) }
}

#[inline(always)]
fn silu_mul_values(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// Activation functions of encoders and connectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x * Phi(x) with the exact error function: connectors and timm.
    Gelu,
    /// The tanh approximation: SigLIP.
    GeluTanh,
    /// x * sigmoid(1.702 x): CLIP.
    QuickGelu,
    /// x * sigmoid(x); in encoders always as the gate of a gated MLP.
    Silu,
}

impl Activation {
    /// Applies the function in place.
    #[inline(never)]
    pub fn apply(self, x: &mut [f32]) {
        match self {
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_tanh(x),
            Self::QuickGelu => times_sigmoid(x, 1.702),
            Self::Silu => times_sigmoid(x, 1.0),
        }
    }
}

vectorized! {
    fn gelu(x: &mut [f32]) { x.iter_mut().for_each(|x| *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2))) }
}

vectorized! {
    // 0.5 (1 + tanh(u)) = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    fn gelu_tanh(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x /= 1.0 + exp(-1.595_769 * (*x + 0.044_715 * *x * *x * *x)))
    }
}

vectorized! {
    fn times_sigmoid(x: &mut [f32], factor: f32) { x.iter_mut().for_each(|x| *x /= 1.0 + exp(-factor * *x)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Testing every f32 of some ranges would be better; 200 001 evenly spaced ones are enough to reveal a wrong
    /// coefficient.
    fn sweep(low: f64, high: f64) -> impl Iterator<Item = f32> {
        (0..=200_000).map(move |i| (low + (high - low) * i as f64 / 200_000.0) as f32)
    }

    #[test]
    fn exp_is_within_its_stated_error() {
        for x in sweep(-87.2, 88.2) {
            let expected = (x as f64).exp();
            assert!((exp(x) as f64 - expected).abs() <= 2e-7 * expected, "{x}");
        }
        assert!(exp(-1e30) < 1.3e-38 && exp(f32::NEG_INFINITY) < 1.3e-38 && exp(1e30) > 2e38 && exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }

    /// erf by its Taylor series, which in f64 is precise enough up to 3.
    fn erf_series(x: f64) -> f64 {
        let mut term = x;
        let mut total = x;
        for n in 1..200 {
            term *= -x * x / n as f64;
            total += term / (2 * n + 1) as f64;
        }
        total * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn erf_is_within_its_stated_error() {
        for x in sweep(-3.0, 3.0) {
            let expected = erf_series(x as f64);
            assert!((erf(x) as f64 - expected).abs() <= 3e-7 * expected.abs(), "{x}");
        }
        assert_eq!((erf(5.0), erf(-100.0), erf(0.0)), (1.0, -1.0, 0.0));
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn activations_follow_their_formulas() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for x in sweep(-9.0, 9.0).step_by(10) {
            let y = x as f64;
            let u = (2.0 / std::f64::consts::PI).sqrt() * (y + 0.044715 * y * y * y);
            let phi = if y.abs() < 4.2 { 0.5 * (1.0 + erf_series(y / 2f64.sqrt())) } else { sigmoid(40.0 * y) };
            let cases = [
                (Activation::Gelu, y * phi, if y.abs() < 4.2 { 1e-6 } else { 2e-4 }),
                (Activation::GeluTanh, 0.5 * y * (1.0 + u.tanh()), 1e-6),
                (Activation::QuickGelu, y * sigmoid(1.702 * y), 1e-6),
                (Activation::Silu, y * sigmoid(y), 1e-6),
            ];
            for (activation, expected, tolerance) in cases {
                let mut out = [x; 9];
                activation.apply(&mut out);
                assert!(
                    out.iter().all(|out| (*out as f64 - expected).abs() <= tolerance * (1.0 + y.abs())),
                    "{activation:?} {x}"
                );
            }
        }
    }

    #[test]
    fn norms_follow_their_formulas_at_every_width() {
        for dim in 1..70 {
            let x: Vec<f32> = (0..2 * dim).map(|i| ((i * 37 % 101) as f32 - 50.0) / 20.0).collect();
            let weight: Vec<f32> = (0..dim).map(|i| 0.5 + i as f32 / 50.0).collect();
            let bias: Vec<f32> = (0..dim).map(|i| i as f32 / 30.0 - 1.0).collect();
            let (mut rms, mut layer) = (vec![0.0; 2 * dim], vec![0.0; 2 * dim]);
            rms_norm(&x, &weight, 1e-5, &mut rms);
            layer_norm(&x, &weight, &bias, 1e-5, &mut layer);
            for (row, x) in x.chunks_exact(dim).enumerate() {
                let n = dim as f64;
                let mean = x.iter().map(|x| *x as f64).sum::<f64>() / n;
                let square = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / n;
                let variance = x.iter().map(|x| (*x as f64 - mean).powi(2)).sum::<f64>() / n;
                for i in 0..dim {
                    let (x, weight, bias) = (x[i] as f64, weight[i] as f64, bias[i] as f64);
                    let at = row * dim + i;
                    assert!((rms[at] as f64 - x / (square + 1e-5).sqrt() * weight).abs() < 3e-6);
                    assert!((layer[at] as f64 - ((x - mean) / (variance + 1e-5).sqrt() * weight + bias)).abs() < 2e-5);
                }
            }
        }
    }
}
