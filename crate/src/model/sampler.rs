//! The next token: greedy, or drawn from the tokens that temperature, top-k, top-p and min-p keep.
//!
//! From the decoder's logits to one id. The order is that of Hugging Face's warpers: repetition penalty, temperature,
//! top-k, top-p, min-p. Random numbers come from ChaCha8, which gives the same stream on every machine.

use crate::device::kernels::float::exp;
use crate::error::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::cmp::Ordering;

/// How many ids at the end of `recent` the repetition penalty considers.
pub const REPETITION_WINDOW: usize = 256;

// A token e^30 times less likely than the best one adds nothing to a sum of f32 probabilities.
const NEGLIGIBLE: f64 = -30.0;

/// How tokens are chosen. The default is greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; 0 always takes the best token.
    pub temperature: f32,
    /// Keeps the `top_k` best tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest best tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Then drops tokens with less than this fraction of the best one's probability; 0 drops none.
    pub min_p: f32,
    /// Makes tokens that already occur in the answer less likely; 1 does nothing.
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

/// What was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// Logarithm of its probability: log-softmax of the unchanged logits.
    pub logprob: f32,
    /// The most likely allowed tokens with their log-probabilities, the best first.
    pub best: Vec<(u32, f32)>,
}

/// Chooses tokens, one after the other.
pub struct Sampler {
    options: SamplerOptions,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    pub fn new(options: &SamplerOptions) -> Result<Self> {
        options.check()?;
        Ok(Self { options: options.clone(), rng: ChaCha8Rng::seed_from_u64(options.seed) })
    }

    /// Advances the seed's sequence as if `n` tokens had been chosen.
    pub fn skip(&mut self, n: usize) {
        for _ in 0..n {
            self.rng.next_u64();
        }
    }

    /// The next id, as [`Self::sample`] chooses it, its probability before the logits are changed, and the `n_best` most
    /// likely tokens.
    pub fn choose(
        &mut self,
        logits: &mut [f32],
        recent: &[u32],
        n_best: usize,
        allowed: impl Fn(u32) -> bool,
    ) -> Result<Choice> {
        let (total, best) = likeliest(logits, n_best, &allowed);
        let window = &recent[recent.len().saturating_sub(REPETITION_WINDOW)..];
        let raw: Vec<Option<f32>> = window.iter().map(|&id| logits.get(id as usize).copied()).collect();
        let id = self.sample(logits, recent, allowed)?;
        let before = window.iter().position(|&other| other == id).and_then(|place| raw[place]);
        let logprob = f64::from(before.unwrap_or(logits[id as usize])) - total;
        Ok(Choice { id, logprob: logprob as f32, best })
    }

    /// The next id, never one that `allowed` refuses. `recent` has the ids for the repetition penalty. Changes the
    /// logits.
    pub fn sample(&mut self, logits: &mut [f32], recent: &[u32], allowed: impl Fn(u32) -> bool) -> Result<u32> {
        let shares = self.shares(logits, recent, allowed)?;
        let [.., (last, _)] = shares[..] else { unreachable!("the best token is always kept") };
        // 53 random bits: uniform in [0, 1).
        let mut left = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        for (id, share) in shares {
            left -= share;
            if left < 0.0 {
                return Ok(id);
            }
        }
        // By rounding, the shares may add up to slightly less than 1.
        Ok(last)
    }

    /// The tokens that the next one is drawn from, with their probabilities: at least one token, and a total of 1. The
    /// arguments are those of [`Self::sample`].
    pub fn shares(&self, logits: &mut [f32], recent: &[u32], allowed: impl Fn(u32) -> bool) -> Result<Vec<(u32, f64)>> {
        if let Some(id) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            let problem = format!("expected finite numbers, found {} for id {id}", logits[id]);
            return Err(Error::corrupt("the decoder's output", "logits", problem));
        }
        let SamplerOptions { temperature, top_k, top_p, min_p, repetition_penalty, .. } = self.options;
        penalize(logits, recent, repetition_penalty);
        let candidate = |(id, &logit): (usize, &f32)| (logit > f32::NEG_INFINITY).then_some((id as u32, logit));
        let candidates = logits.iter().enumerate().filter_map(candidate).filter(|&(id, _)| allowed(id));
        // The strict comparison keeps the lowest id among equals.
        let best = candidates.clone().reduce(|best, next| if next.1 > best.1 { next } else { best });
        let Some((best, best_logit)) = best else {
            return Err(Error::corrupt("the decoder's output", "logits", "no token is left to choose from"));
        };
        if temperature == 0.0 {
            return Ok(vec![(best, 1.0)]);
        }
        let scaled = candidates.map(|(id, logit)| (id, f64::from((logit - best_logit) / temperature)));
        let mut weights: Vec<(u32, f64)> = scaled.filter(|&(_, logit)| logit >= NEGLIGIBLE).collect();
        keep_best(&mut weights, top_k);
        weights.iter_mut().for_each(|(_, logit)| *logit = logit.exp());
        keep_probable(&mut weights, top_p.into());
        // The best token has weight 1.
        weights.retain(|&(_, weight)| weight >= min_p.into());
        let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
        weights.iter_mut().for_each(|(_, weight)| *weight /= sum);
        Ok(weights)
    }
}

/// Divides positive logits and multiplies negative logits of tokens that occurred, once per token, however often it
/// occurred (CTRL, arXiv 1909.05858).
fn penalize(logits: &mut [f32], recent: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut ids = recent[recent.len().saturating_sub(REPETITION_WINDOW)..].to_vec();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            // Stays finite even if the product overflows, so that the token remains a candidate.
            let penalized = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            *logit = if *logit > f32::NEG_INFINITY { penalized.clamp(f32::MIN, f32::MAX) } else { *logit };
        }
    }
}

/// By value; among equals the lowest id ranks first.
fn best_first(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(lowest_id_first(a, b))
}

fn lowest_id_first(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    a.0.cmp(&b.0)
}

/// Keeps the `k` best, ordered by id; among equals the lowest ids. 0 keeps all.
fn keep_best(candidates: &mut Vec<(u32, f64)>, k: usize) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    candidates.select_nth_unstable_by(k - 1, best_first);
    candidates.truncate(k);
    candidates.sort_unstable_by(lowest_id_first);
}

/// Keeps the fewest best tokens that have at least the fraction `p` of the total weight, ordered by id; among equals
/// the lowest ids. 1 keeps all.
fn keep_probable(weights: &mut Vec<(u32, f64)>, p: f64) {
    if p >= 1.0 {
        return;
    }
    let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
    // Tokens so light that all of them together are in the dropped part: the tail of the vocabulary need not be sorted.
    let n = weights.len() as f64;
    weights.retain(|&(_, weight)| weight * n >= (1.0 - p) * sum);
    weights.sort_unstable_by(best_first);
    let mut before = 0.0;
    weights.retain(|&(_, weight)| {
        let is_needed = before < p * sum;
        before += weight;
        is_needed
    });
    weights.sort_unstable_by(lowest_id_first);
}

/// Logarithm of the sum of all exponentials, and the `n` most likely ids that `allowed` accepts, with their
/// log-probabilities, most likely first; of equals the lowest ids.
fn likeliest(logits: &[f32], n: usize, allowed: impl Fn(u32) -> bool) -> (f64, Vec<(u32, f32)>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // In f32 the many small terms of a large vocabulary would be lost.
    let sum = logits.chunks(64).map(|chunk| f64::from(chunk.iter().map(|logit| exp(logit - max)).sum::<f32>()));
    let total = f64::from(max) + sum.sum::<f64>().ln();
    let mut best: Vec<(u32, f32)> = Vec::new();
    for (id, &logit) in logits.iter().enumerate().filter(|_| n > 0) {
        let is_better = best.len() < n || best.last().is_some_and(|&(_, last)| logit > last);
        if is_better && allowed(id as u32) {
            best.truncate(n - 1);
            best.insert(best.partition_point(|&(_, other)| other >= logit), (id as u32, logit));
        }
    }
    best.iter_mut().for_each(|(_, logit)| *logit = (f64::from(*logit) - total) as f32);
    (total, best)
}

/// The `k` most likely tokens with their probabilities (softmax of the logits as given), most likely first.
pub fn top_probabilities(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let (_, best) = likeliest(logits, k, |_| true);
    best.into_iter().map(|(id, logprob)| (id, logprob.exp())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [0.0, 2.0, -1.0, 2.0, 1.0, -3.0];

    fn options(temperature: f32) -> SamplerOptions {
        SamplerOptions { temperature, seed: 7, ..SamplerOptions::default() }
    }

    /// Frequencies of the tokens over many draws.
    fn shares(options: &SamplerOptions, allowed: impl Fn(u32) -> bool) -> Vec<f64> {
        const N_DRAWS: usize = 40_000;
        let mut sampler = Sampler::new(options).unwrap();
        let mut shares = vec![0.0; LOGITS.len()];
        for _ in 0..N_DRAWS {
            let id = sampler.sample(&mut LOGITS.clone(), &[], &allowed).unwrap();
            shares[id as usize] += 1.0 / N_DRAWS as f64;
        }
        shares
    }

    /// Softmax of the logits over the tokens in `ids` only.
    fn expected(ids: &[usize], temperature: f64) -> Vec<f64> {
        let mut weights = vec![0.0; LOGITS.len()];
        ids.iter().for_each(|&id| weights[id] = ((LOGITS[id] as f64 - 2.0) / temperature).exp());
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }

    fn check(options: &SamplerOptions, ids: &[usize]) {
        let (found, expected) = (shares(options, |_| true), expected(ids, options.temperature as f64));
        for id in 0..LOGITS.len() {
            // Four standard deviations of a frequency over 40000 draws are at most 0.01; a token that was cut off is
            // never drawn.
            assert!((found[id] - expected[id]).abs() < 0.01, "{options:?}: {found:?}, expected {expected:?}");
            assert!(expected[id] > 0.0 || found[id] == 0.0, "{options:?}: {found:?}");
        }
    }

    #[test]
    fn greedy_takes_the_lowest_of_the_best() {
        let mut sampler = Sampler::new(&SamplerOptions::default()).unwrap();
        assert_eq!(sampler.sample(&mut LOGITS.clone(), &[], |_| true).unwrap(), 1);
        assert_eq!(sampler.sample(&mut LOGITS.clone(), &[], |id| id != 1).unwrap(), 3);
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, f32::MIN], &[], |_| true).unwrap(), 1);
    }

    #[test]
    fn draws_follow_the_distribution() {
        for temperature in [0.3, 1.0, 2.5] {
            check(&options(temperature), &[0, 1, 2, 3, 4, 5]);
        }
        check(&SamplerOptions { top_k: 3, ..options(1.0) }, &[1, 3, 4]);
        check(&SamplerOptions { top_k: 1, ..options(1.0) }, &[1]);
        check(&SamplerOptions { top_k: 100, ..options(1.0) }, &[0, 1, 2, 3, 4, 5]);
        // Probabilities: 0.393 0.393 0.145 0.053 0.020 0.003.
        check(&SamplerOptions { top_p: 0.75, ..options(1.0) }, &[1, 3]);
        check(&SamplerOptions { top_p: 0.8, ..options(1.0) }, &[1, 3, 4]);
        check(&SamplerOptions { top_p: 0.01, ..options(1.0) }, &[1]);
        check(&SamplerOptions { min_p: 0.3, ..options(1.0) }, &[1, 3, 4]);
        check(&SamplerOptions { min_p: 1.0, ..options(1.0) }, &[1, 3]);
        // After top-k the probabilities are 0.422 0.422 0.155, so two tokens reach 0.84; without it, three would be
        // needed.
        check(&SamplerOptions { top_k: 3, top_p: 0.84, ..options(1.0) }, &[1, 3]);
    }

    #[test]
    fn small_temperatures_are_greedy() {
        for temperature in [1e-3, 1e-30, f32::from_bits(1)] {
            check(&options(temperature), &[1, 3]);
        }
    }

    #[test]
    fn refused_ids_are_never_drawn() {
        for base in [options(1.0), SamplerOptions { top_k: 2, top_p: 0.9, min_p: 0.1, ..options(1.0) }] {
            let found = shares(&base, |id| id != 1 && id != 3);
            assert_eq!((found[1], found[3]), (0.0, 0.0));
        }
        let mut sampler = Sampler::new(&options(1.0)).unwrap();
        let error = sampler.sample(&mut LOGITS.clone(), &[], |_| false).unwrap_err().to_string();
        assert_eq!(error, "the decoder's output: logits: no token is left to choose from");
    }

    #[test]
    fn a_seed_fixes_the_answer() {
        let draw = |seed| {
            let mut sampler = Sampler::new(&SamplerOptions { seed, ..options(1.0) }).unwrap();
            let draws = (0..50).map(|_| sampler.sample(&mut LOGITS.clone(), &[], |_| true).unwrap());
            draws.collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        // The same on every machine and with every version.
        assert_eq!(draw(1)[..16], [1, 1, 3, 1, 1, 3, 2, 1, 4, 3, 3, 3, 1, 1, 2, 1]);
    }

    #[test]
    fn repetition_is_penalized_once_and_within_the_window() {
        let penalized = |recent: &[u32]| {
            let mut logits = LOGITS;
            penalize(&mut logits, recent, 2.0);
            logits
        };
        assert_eq!(penalized(&[1, 2, 1, 0, 77]), [0.0, 1.0, -2.0, 2.0, 1.0, -3.0]);
        let mut recent = vec![1; 10];
        recent.extend([4; REPETITION_WINDOW]);
        assert_eq!(penalized(&recent), [0.0, 2.0, -1.0, 2.0, 0.5, -3.0]);
        let mut sampler = Sampler::new(&SamplerOptions { repetition_penalty: 2.0, ..options(0.0) }).unwrap();
        assert_eq!(sampler.sample(&mut LOGITS.clone(), &[1], |_| true).unwrap(), 3);
    }

    #[test]
    fn wrong_options_and_logits_are_named() {
        let base = options(1.0);
        let cases = [
            (SamplerOptions { temperature: -0.1, ..base.clone() }, "temperature must be 0 or more, found -0.1"),
            (SamplerOptions { temperature: f32::NAN, ..base.clone() }, "temperature must be 0 or more, found NaN"),
            (SamplerOptions { temperature: f32::INFINITY, ..base.clone() }, "temperature must be 0 or more, found inf"),
            (SamplerOptions { top_p: 0.0, ..base.clone() }, "top_p must be more than 0 and at most 1, found 0"),
            (SamplerOptions { top_p: 1.5, ..base.clone() }, "top_p must be more than 0 and at most 1, found 1.5"),
            (SamplerOptions { min_p: f32::NAN, ..base.clone() }, "min_p must be from 0 to 1, found NaN"),
            (SamplerOptions { repetition_penalty: 0.0, ..base }, "repetition_penalty must be more than 0, found 0"),
        ];
        for (options, expected) in cases {
            assert_eq!(Sampler::new(&options).err().unwrap().to_string(), expected);
        }
        for bad in [f32::NAN, f32::INFINITY] {
            let error = Sampler::new(&options(1.0)).unwrap().sample(&mut [0.0, bad], &[], |_| true).unwrap_err();
            let expected = format!("the decoder's output: logits: expected finite numbers, found {bad} for id 1");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_whole_vocabulary_of_extremes_is_sampled() {
        let mut logits: Vec<f32> = (0..128_256).map(|id| ((id * 7919) % 1000) as f32 / 100.0).collect();
        (logits[5], logits[6], logits[7]) = (f32::MAX, f32::MIN, f32::NEG_INFINITY);
        for top_p in [0.5, 1.0] {
            let mut sampler = Sampler::new(&SamplerOptions { top_p, ..options(0.7) }).unwrap();
            assert_eq!(sampler.sample(&mut logits, &[], |_| true).unwrap(), 5);
            assert!(sampler.sample(&mut logits, &[], |id| id != 5).unwrap() != 7);
        }
    }

    #[test]
    fn top_probabilities_are_of_the_raw_distribution() {
        let expected = expected(&[0, 1, 2, 3, 4, 5], 1.0);
        let top = top_probabilities(&LOGITS, 3);
        assert_eq!(top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 3, 4]);
        top.iter().for_each(|&(id, p)| assert!((p as f64 - expected[id as usize]).abs() < 1e-6));
        assert_eq!(top_probabilities(&LOGITS, 100).len(), 6);
        assert_eq!(top_probabilities(&LOGITS, 0), []);
    }
}
