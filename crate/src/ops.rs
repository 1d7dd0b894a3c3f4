//! Norms, activations and softmax: the arithmetic between the matrix products.
//!
//! Plain loops over rows; formulas as in PyTorch's documentation of the operation of the same name.

/// `x` (n, dim) / rms(x) * weight, per row. `eps` is added to the mean square.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let dim = weight.len();
    for (x, out) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
        let mean_square = x.iter().map(|x| x * x).sum::<f32>() / dim as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

/// (`x` - mean) / std * weight + bias, per row of `x` (n, dim). `eps` is added to the variance.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let dim = weight.len();
    for (x, out) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
        let mean = x.iter().sum::<f32>() / dim as f32;
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / dim as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = (x - mean) * scale * weight + bias;
        }
    }
}

/// Adds `bias` (dim) to every row of `x` (n, dim).
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len()) {
        for (x, bias) in row.iter_mut().zip(bias) {
            *x += bias;
        }
    }
}

/// `x` += `y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `gate` = silu(`gate`) * `up`: the gated MLP of Llama and of timm's `GluMlp`.
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
}

/// Activation functions of encoders and connectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x * Phi(x) with the exact error function: connectors, timm.
    Gelu,
    /// The tanh approximation: SigLIP.
    GeluTanh,
    /// x * sigmoid(1.702 x): CLIP.
    QuickGelu,
    /// x * sigmoid(x); in encoders always the gate of a gated MLP.
    Silu,
}

impl Activation {
    /// Applies the function in place.
    pub fn apply(self, x: &mut [f32]) {
        for x in x {
            *x = match self {
                Self::Gelu => 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2)),
                Self::GeluTanh => {
                    let inner = (2.0 / std::f32::consts::PI).sqrt() * (*x + 0.044715 * *x * *x * *x);
                    0.5 * *x * (1.0 + inner.tanh())
                }
                Self::QuickGelu => *x / (1.0 + (-1.702 * *x).exp()),
                Self::Silu => *x / (1.0 + (-*x).exp()),
            };
        }
    }
}

/// The error function; absolute error below 1.5e-7 (Abramowitz and Stegun 7.1.26).
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * x.abs() as f64);
    let poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let y = 1.0 - poly * (-(x as f64) * x as f64).exp();
    (y as f32).copysign(x)
}
