//! The next token: greedy, or drawn from what temperature, top-k, min-p and top-p leave over.
//!
//! From the decoder's logits to one id. The order is Hugging Face's: repetition penalty, temperature, top-k, then the cuts by probability. The seeded
//! draw and top-p are candle's `LogitsProcessor`; it gets only the tokens that can still be drawn.

use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

/// Ids at the end of `recent` that the repetition penalty looks at.
pub const REPETITION_WINDOW: usize = 256;

// A token that is e^30 times less likely than the best one adds nothing to a sum of f32 probabilities.
const NEGLIGIBLE: f32 = -30.0;

/// How tokens are chosen. The default is greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; 0 takes the best token always.
    pub temperature: f32,
    /// Keeps the `top_k` best tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the best tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens with less than this part of the best one's probability; 0 drops none.
    pub min_p: f32,
    /// Makes tokens of the answer so far less likely; 1 does nothing.
    pub repetition_penalty: f32,
    /// Same seed, same answer.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplerOptions {
    /// Fails if an option is outside its range.
    pub fn check(&self) -> Result<()> {
        let (penalty, top_p) = (self.repetition_penalty, self.top_p);
        within("temperature", self.temperature, self.temperature >= 0.0, "0 or more")?;
        within("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "more than 0 and at most 1")?;
        within("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1")?;
        within("repetition_penalty", penalty, penalty > 0.0, "more than 0")
    }
}

fn within(option: &str, value: f32, is_within: bool, range: &str) -> Result<()> {
    match is_within && value.is_finite() {
        true => Ok(()),
        false => Err(Error::Invalid(format!("{option} must be {range}, found {value}"))),
    }
}

/// Chooses tokens, one after the other.
pub struct Sampler {
    options: SamplerOptions,
    processor: LogitsProcessor,
}

impl Sampler {
    /// A sampler at the beginning of its seed's sequence.
    pub fn new(options: &SamplerOptions) -> Result<Self> {
        options.check()?;
        // The temperature is applied before: over the few tokens that are left, candle's own would divide by zero near 0.
        let sampling = match options.top_p < 1.0 {
            true => Sampling::TopP { p: options.top_p as f64, temperature: 1.0 },
            false => Sampling::All { temperature: 1.0 },
        };
        Ok(Self { options: options.clone(), processor: LogitsProcessor::from_sampling(options.seed, sampling) })
    }

    /// The next id: never one that `allowed` refuses. `recent` are the ids that the repetition penalty looks at. Changes the logits.
    pub fn sample(&mut self, logits: &mut [f32], recent: &[u32], allowed: impl Fn(u32) -> bool) -> Result<u32> {
        if let Some(id) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            let problem = format!("expected finite numbers, found {} for id {id}", logits[id]);
            return Err(Error::corrupt("the decoder's output", "logits", problem));
        }
        penalize(logits, recent, self.options.repetition_penalty);
        let candidate = |(id, &logit): (usize, &f32)| (logit > f32::NEG_INFINITY).then_some((id as u32, logit));
        let candidates = logits.iter().enumerate().filter_map(candidate).filter(|&(id, _)| allowed(id));
        // The strict comparison keeps the lowest id among equals.
        let best = candidates.clone().reduce(|best, next| if next.1 > best.1 { next } else { best });
        let Some((best, best_logit)) = best else {
            return Err(Error::corrupt("the decoder's output", "logits", "no token is left to choose from"));
        };
        if self.options.temperature == 0.0 {
            return Ok(best);
        }
        let floor = self.options.min_p.ln().max(NEGLIGIBLE);
        let scale = |logit: f32| (logit - best_logit) / self.options.temperature;
        let mut left: Vec<(u32, f32)> =
            candidates.map(|(id, logit)| (id, scale(logit))).filter(|&(_, logit)| logit >= floor).collect();
        keep_best(&mut left, self.options.top_k);
        let scaled: Vec<f32> = left.iter().map(|&(_, logit)| logit).collect();
        let drawn = Tensor::from_vec(scaled, left.len(), &Device::Cpu)
            .and_then(|scaled| self.processor.sample(&scaled))
            .map_err(|error| Error::corrupt("the decoder's output", "logits", error.to_string()))?;
        Ok(left[drawn as usize].0)
    }
}

/// Divides positive and multiplies negative logits of the tokens that occurred, once however often they did (CTRL, arXiv 1909.05858).
fn penalize(logits: &mut [f32], recent: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut ids = recent[recent.len().saturating_sub(REPETITION_WINDOW)..].to_vec();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            // Finite also where the product is too large, so that a candidate stays one.
            let penalized = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            *logit = if *logit > f32::NEG_INFINITY { penalized.clamp(f32::MIN, f32::MAX) } else { *logit };
        }
    }
}

/// Keeps the `k` best in order of their ids; among equals the lowest ids. 0 keeps all.
fn keep_best(candidates: &mut Vec<(u32, f32)>, k: usize) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    candidates.select_nth_unstable_by(k - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    candidates.truncate(k);
    candidates.sort_unstable_by_key(|&(id, _)| id);
}

/// The `k` likeliest tokens with their probabilities (softmax of the logits as they are), the likeliest first.
pub fn top_probabilities(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| ((logit - best) as f64).exp()).sum();
    let mut top: Vec<(u32, f32)> = logits.iter().enumerate().map(|(id, &logit)| (id as u32, logit)).collect();
    if k == 0 {
        return Vec::new();
    }
    keep_best(&mut top, k);
    top.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    top.into_iter().map(|(id, logit)| (id, (((logit - best) as f64).exp() / sum) as f32)).collect()
}
