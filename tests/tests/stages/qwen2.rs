//! Qwen2 (`golden/families.py`): biases of q, k and v, another rotary pairing, a tied head; as a checkpoint and as a
//! file that llama.cpp's library wrote.

use crate::decoder::{Ready, text};
use crate::golden::{Files, Golden, assert_close, folder, header, on_ranks};
use llama3med::device::cpu::Cpu;
use llama3med::device::ranks::Alone;
use llama3med::device::shard::{Loader, Shard};
use llama3med::file::gguf::{Dtype, Gguf, Value};
use llama3med::spec::{DecoderSpec, wants};
use llama3med::text::conversation::{Piece, Template};
use llama3med::text::tokenizer::Tokenizer;

const LOGITS_BOUND: f32 = 5e-5;

/// A file as llama.cpp writes it, with none of our keys, and its header.
fn of_llama_cpp() -> (Vec<u8>, Gguf) {
    let bytes = std::fs::read(folder("llava-qwen").join("decoder.gguf")).unwrap();
    let gguf = header("decoder.gguf", &bytes);
    (bytes, gguf)
}

fn converted(dtype: Dtype) -> (Vec<u8>, Gguf) {
    let bytes = Files::convert("llava-qwen", dtype).decoder.clone();
    let gguf = header("decoder.gguf", &bytes);
    (bytes, gguf)
}

/// Logits after every token of the golden text.
fn text_logits((bytes, gguf): &(Vec<u8>, Gguf), n_ranks: usize) -> Vec<f32> {
    let ids = Golden::read("llava-qwen").i64("text_ids");
    let results = on_ranks(n_ranks, |device| Ready::of(device, gguf, bytes).logits(&text(&ids), 0, ids.len()));
    results.into_iter().next().unwrap()
}

#[test]
fn logits_are_those_of_transformers_on_any_number_of_ranks() {
    let expected = Golden::read("llava-qwen").f32("text_logits");
    for (what, file) in [("converted", converted(Dtype::F32)), ("llama.cpp's", of_llama_cpp())] {
        for n_ranks in [1, 2, 4] {
            let found = text_logits(&file, n_ranks);
            assert_close(&format!("Qwen2 {what}, {n_ranks} ranks"), &found, &expected, LOGITS_BOUND);
        }
    }
    let quantized = converted(Dtype::Q8_0);
    let alone = text_logits(&quantized, 1);
    assert!([2, 4].iter().all(|&n_ranks| text_logits(&quantized, n_ranks) == alone), "not bit for bit");
}

#[test]
fn a_file_of_llama_cpp_tells_tokens_and_template() {
    let (_, gguf) = of_llama_cpp();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = Template::from_gguf(&gguf, &tokenizer).unwrap();
    let prompt = template.prompt(&tokenizer, &tests::messages(&[], crate::whole::QUESTION, true)).unwrap();
    let ids: Vec<i64> =
        prompt.iter().map(|piece| if let Piece::Token(id) = piece { (*id).into() } else { -200 }).collect();
    assert_eq!(ids, Golden::read("llava-qwen").i64("prompt_ids"));
}

#[test]
fn a_missing_bias_and_another_architecture_are_named() {
    let (_, gguf) = of_llama_cpp();
    let error = |gguf: &Gguf| {
        let loader = DecoderSpec::read(gguf).and_then(|spec| {
            Loader::new(&Cpu::new(Alone), gguf, &wants(&spec.tensors(), Shard { rank: 0, n_ranks: 1 }))
        });
        loader.err().unwrap().to_string()
    };
    let mut without = gguf.clone();
    without.tensors.remove("blk.1.attn_k.bias");
    assert_eq!(error(&without), "decoder.gguf: tensor blk.1.attn_k.bias is missing");
    let mut other = gguf;
    other.metadata.insert("general.architecture".into(), Value::String("gemma2".into()));
    let expected =
        "decoder.gguf: general.architecture is \"gemma2\"; this engine runs \"llama\" and \"qwen2\" decoders";
    assert!(error(&other).contains(expected), "{}", error(&other));
}
