//! From image tokens and token ids to logits.

use crate::golden::{Files, Golden, RANKS, VARIANTS, assert_close, best, header, load, n_known, on_ranks};
use llama3med::device::ranks::{Threads, block_on};
use llama3med::device::shard::Shard;
use llama3med::file::gguf::Dtype;
use llama3med::model::decoder::{Decoder, Input, MAX_TOKENS};
use llama3med::spec::{DecoderSpec, wants};

const LOGITS_BOUND: f32 = 5e-5;

/// The same with keys and values in 16 bits. These random models have sharp attention: their logits change by this
/// much.
const ROUNDED_BOUND: f32 = 2e-3;

/// One rank's decoder.
pub fn decoder(files: &Files, shard: Shard) -> Decoder {
    decoder_with(files, shard, |_| {})
}

fn decoder_with(files: &Files, shard: Shard, change: impl Fn(&mut DecoderSpec)) -> Decoder {
    let gguf = header("decoder.gguf", &files.decoder);
    let mut spec = DecoderSpec::read(&gguf).unwrap();
    change(&mut spec);
    let mut tensors = load(&gguf, &files.decoder, &wants(&spec.tensors(), shard));
    Decoder::new(spec, shard, &mut tensors).unwrap()
}

/// Logits of the last `n` of `inputs`, read starting at `first_pos`.
pub fn logits(decoder: &mut Decoder, peers: &Threads, inputs: &[Input], first_pos: usize, n: usize) -> Vec<f32> {
    let (mut logits, mut n_read) = (Vec::new(), 0);
    for batch in inputs.chunks(MAX_TOKENS) {
        block_on(decoder.forward(peers, batch, first_pos + n_read)).unwrap();
        n_read += batch.len();
        let n_here = n.saturating_sub(inputs.len() - n_read).min(batch.len());
        block_on(decoder.logits(peers, n_here, &mut logits)).unwrap();
    }
    logits
}

/// The golden prompt with the golden image tokens in their place.
pub fn prompt<'a>(ids: &[i64], image_tokens: &'a [f32], dim: usize) -> Vec<Input<'a>> {
    let mut inputs = Vec::new();
    for &id in ids {
        match u32::try_from(id) {
            Ok(id) => inputs.push(Input::Token(id)),
            Err(_) => inputs.extend(image_tokens.chunks_exact(dim).map(Input::Embedding)),
        }
    }
    inputs
}

#[test]
fn logits_after_every_token_of_a_text_are_those_of_transformers() {
    for variant in VARIANTS {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, Dtype::F32));
        let inputs = prompt(&golden.i64("text_ids"), &[], 1);
        for n_ranks in RANKS {
            let results =
                on_ranks(n_ranks, |peers, shard| logits(&mut decoder(&files, shard), &peers, &inputs, 0, inputs.len()));
            let what = format!("{variant} text logits, {n_ranks} ranks");
            assert_close(&what, &results[0], &golden.f32("text_logits"), LOGITS_BOUND);
        }
    }
}

#[test]
fn keys_and_values_in_16_bits_change_logits_little() {
    for variant in VARIANTS {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, Dtype::F32));
        let inputs = prompt(&golden.i64("text_ids"), &[], 1);
        for n_ranks in [1, 2] {
            let results = on_ranks(n_ranks, |peers, shard| {
                let mut decoder = decoder_with(&files, shard, |spec| spec.exact_cache = false);
                logits(&mut decoder, &peers, &inputs, 0, inputs.len())
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
        let (image_tokens, dim) = (golden.f32("image_tokens"), golden.shape("image_tokens")[1]);
        let inputs = prompt(&golden.i64("prompt_ids"), &image_tokens, dim);
        let answer = golden.i64("greedy_ids");
        let n_known = n_known(variant);
        for n_ranks in RANKS {
            let results = on_ranks(n_ranks, |peers, shard| {
                let mut decoder = decoder(&files, shard);
                let mut all = logits(&mut decoder, &peers, &inputs, 0, 1);
                for (step, &id) in answer[..answer.len() - 1].iter().enumerate() {
                    let input = [Input::Token(id as u32)];
                    all.extend(logits(&mut decoder, &peers, &input, inputs.len() + step, 1));
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
