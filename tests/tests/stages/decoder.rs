//! From image tokens and token ids to logits.

use crate::golden::{Files, Golden, RANKS, VARIANTS, assert_close, best, header, load, n_known, on_ranks};
use llama3med::device::ranks::block_on;
use llama3med::device::{Device, Input};
use llama3med::file::gguf::{Dtype, Gguf};
use llama3med::model::decoder::{Decoder, MAX_TOKENS};
use llama3med::spec::DecoderSpec;
use std::fmt::Debug;

const LOGITS_BOUND: f32 = 5e-5;

/// The same with keys and values in 16 bits. These random models have sharp attention: their logits change by this
/// much.
const ROUNDED_BOUND: f32 = 2e-3;

/// One rank's decoder and its device.
pub struct Ready<D: Device> {
    device: D,
    decoder: Decoder<D>,
}

impl<D: Device> Ready<D> {
    pub fn new(device: D, files: &Files) -> Self {
        Self::with(device, files, |_| {})
    }

    fn with(device: D, files: &Files, change: impl Fn(&mut DecoderSpec)) -> Self {
        let gguf = header("decoder.gguf", &files.decoder);
        let mut spec = DecoderSpec::read(&gguf).unwrap();
        change(&mut spec);
        Self::of_spec(device, spec, &gguf, &files.decoder)
    }

    /// From a header that may have been modified.
    pub fn of(device: D, gguf: &Gguf, bytes: &[u8]) -> Self {
        Self::of_spec(device, DecoderSpec::read(gguf).unwrap(), gguf, bytes)
    }

    fn of_spec(mut device: D, spec: DecoderSpec, gguf: &Gguf, bytes: &[u8]) -> Self {
        let mut tensors = load(&mut device, gguf, bytes, &spec.tensors());
        let decoder = Decoder::new(spec, &mut tensors).unwrap();
        Self { device, decoder }
    }

    /// Logits of the last `n` of `inputs`, read starting at `first_pos`.
    pub fn logits(&mut self, inputs: &[Input<D::Buffer>], first_pos: usize, n: usize) -> Vec<f32> {
        logits(&mut self.decoder, &mut self.device, inputs, first_pos, n)
    }

    /// The image tokens of a golden.
    pub fn image(&mut self, golden: &Golden) -> D::Buffer {
        let mut image = D::Buffer::default();
        self.device.upload(golden.f32("image_tokens"), golden.shape("image_tokens")[0], &mut image);
        image
    }
}

/// Logits of the last `n` of `inputs`, read starting at `first_pos`.
pub fn logits<D: Device>(
    decoder: &mut Decoder<D>,
    device: &mut D,
    inputs: &[Input<D::Buffer>],
    first_pos: usize,
    n: usize,
) -> Vec<f32> {
    let (mut logits, mut n_read) = (Vec::new(), 0);
    for batch in inputs.chunks(MAX_TOKENS) {
        block_on(decoder.forward(device, batch, first_pos + n_read)).unwrap();
        n_read += batch.len();
        let n_here = n.saturating_sub(inputs.len() - n_read).min(batch.len());
        block_on(decoder.logits(device, n_here, &mut logits)).unwrap();
    }
    logits
}

/// Tokens of a text.
pub fn text<B>(ids: &[impl Copy + TryInto<u32, Error: Debug>]) -> Vec<Input<'static, B>> {
    ids.iter().map(|&id| Input::Token(id.try_into().unwrap())).collect()
}

/// The golden prompt with the golden image tokens in their place.
pub fn prompt<'a, B>(golden: &Golden, image: &'a B) -> Vec<Input<'a, B>> {
    let mut inputs = Vec::new();
    for id in golden.i64("prompt_ids") {
        match u32::try_from(id) {
            Ok(id) => inputs.push(Input::Token(id)),
            Err(_) => inputs.extend((0..golden.shape("image_tokens")[0]).map(|row| Input::Image(image, row))),
        }
    }
    inputs
}

#[test]
fn logits_after_every_token_of_a_text_are_those_of_transformers() {
    for variant in VARIANTS {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, Dtype::F32));
        let ids = golden.i64("text_ids");
        for n_ranks in RANKS {
            let results = on_ranks(n_ranks, |device| Ready::new(device, &files).logits(&text(&ids), 0, ids.len()));
            let what = format!("{variant} text logits, {n_ranks} ranks");
            assert_close(&what, &results[0], &golden.f32("text_logits"), LOGITS_BOUND);
        }
    }
}

#[test]
fn keys_and_values_in_16_bits_change_logits_little() {
    for variant in VARIANTS {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, Dtype::F32));
        let ids = golden.i64("text_ids");
        for n_ranks in [1, 2] {
            let results = on_ranks(n_ranks, |device| {
                let mut ready = Ready::with(device, &files, |spec| spec.exact_cache = false);
                ready.logits(&text(&ids), 0, ids.len())
            });
            let what = format!("{variant} text logits, keys and values in 16 bits, {n_ranks} ranks");
            assert_close(&what, &results[0], &golden.f32("text_logits"), ROUNDED_BOUND);
        }
    }
}

#[test]
fn logits_after_image_and_question_and_after_every_step_are_those_of_transformers() {
    for variant in VARIANTS {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, Dtype::F32));
        let answer = golden.i64("greedy_ids");
        let n_known = n_known(variant);
        for n_ranks in RANKS {
            let results = on_ranks(n_ranks, |device| {
                let mut ready = Ready::new(device, &files);
                let image = ready.image(&golden);
                let inputs = prompt(&golden, &image);
                let mut all = ready.logits(&inputs, 0, 1);
                for (step, id) in answer[..answer.len() - 1].iter().enumerate() {
                    all.extend(ready.logits(&text(&[*id]), inputs.len() + step, 1));
                }
                all
            });
            let (found, vocab_size) = (&results[0], golden.shape("logits")[1]);
            assert_close(
                &format!("{variant} step logits, {n_ranks} ranks"),
                found,
                &golden.f32("logits"),
                LOGITS_BOUND,
            );
            let greedy: Vec<i64> = found.chunks_exact(vocab_size).map(|logits| best(logits, n_known)).collect();
            assert_eq!(greedy, answer, "{variant}, {n_ranks} ranks");
        }
    }
}
