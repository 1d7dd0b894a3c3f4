//! A trained language model beside `tokenizers`, PyTorch and llama.cpp: on demand (`make test-real`), for it is downloaded. `REAL` names the folder that
//! `golden/real.py` has written: what is in it is described there. Besides, `REAL/f16` is its checkpoint converted with `--type f16`.

use llama3med::gguf::Gguf;
use llama3med::image::Picture;
use llama3med::model::{Listener, Stage};
use llama3med::ranks::block_on;
use llama3med::sampler::SamplerOptions;
use llama3med::session::{AskOptions, Chat};
use llama3med::tokenizer::Tokenizer;
use llama3med::watch::Watch;
use quantize::model_folder::{Files, Source, Stored};
use quantize::native::with_files;
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::PathBuf;

/// Error of logits, root mean square in units of that of the reference's. In f16 nothing is quantized, and sums in another order are all that differs.
const F16_BOUND: f32 = 1e-5;
/// With Q4_1 and Q8_0 both engines round activations to 8 bits a block, llama.cpp the blocks' scales to 16 bits besides; 30 layers carry that along.
const Q4_1_BOUND: f32 = 0.05;

fn real(name: &str) -> PathBuf {
    let folder = std::env::var_os("REAL").expect("REAL is not set: run `make test-real`");
    PathBuf::from(folder).join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(real(name)).unwrap()).unwrap()
}

/// The GGUF file as it is, without an encoder.
fn file() -> Files<Stored> {
    Source::Files(Files { decoder: real("smollm2.gguf"), encoder: None }).open().unwrap().1
}

/// The same weights in f16, with the random tower.
fn converted() -> Files<Stored> {
    Source::Folder(real("f16")).open().unwrap().1
}

struct Patient;

impl Listener for Patient {
    async fn progress(&mut self, _: Stage, _: usize, _: usize) -> bool {
        true
    }
    async fn token(&mut self, _: u32, _: &str) -> bool {
        true
    }
}

#[test]
#[ignore = "needs a language model that is downloaded: make test-real"]
fn ids_are_those_of_tokenizers() {
    let cases = json("ids.json");
    let header = |files: Files<Stored>| -> Gguf { files.decoder.header().unwrap().1 };
    for (name, gguf) in [("smollm2.gguf", header(file())), ("f16", header(converted()))] {
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let expected: Vec<u32> =
                case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(tokenizer.encode_text(text).unwrap(), expected, "{name}: {text:?}");
        }
    }
    println!("{} texts", cases.as_array().unwrap().len());
}

/// Reads every answer of the reference and compares prompt, logits and the greedy answer; `must_agree` says that no token may be another one.
fn compare(files: &Files<Stored>, reference: &str, bound: f32, must_agree: bool) {
    let bytes = std::fs::read(real(&format!("{reference}.safetensors"))).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: String| golden.tensor(&name).unwrap().data().as_chunks::<4>().0.to_vec();
    let picture = Picture::decode(&std::fs::read(real("picture.png")).unwrap()).unwrap();
    for n_ranks in [1, 2] {
        with_files(files.bytes(), n_ranks, None, None, |session| {
            let (mut worst, mut n_same, mut n_tokens) = (0f32, 0, 0);
            for (idx, case) in json("questions.json")[reference].as_array().unwrap().iter().enumerate() {
                let ids = |name: &str| -> Vec<u32> {
                    words(format!("{idx}.{name}")).into_iter().map(u32::from_le_bytes).collect()
                };
                let (prompt, answer) = (ids("prompt"), ids("answer"));
                let expected: Vec<f32> = words(format!("{idx}.logits")).into_iter().map(f32::from_le_bytes).collect();
                let question = case["question"].as_str().unwrap();
                let mut chat = Chat::default();
                if case["image"] == true {
                    chat.image = Some(block_on(session.look(&picture, &mut Patient))?.key);
                }
                let forced = block_on(session.force(&chat, question, &answer, Watch::default(), &mut Patient))?;
                assert_eq!(forced.items.len(), prompt.len() + answer.len(), "{question}");
                for (item, id) in forced.items.iter().zip(prompt.iter().chain(&answer)) {
                    use llama3med::model::Item::{Image, Token};
                    assert!(*item == Token(*id) || matches!(item, Image { .. }), "{question}: {item:?} is not {id}");
                }
                let vocab_size = session.model().config().vocab_size;
                let rows = forced.logits.chunks_exact(vocab_size).zip(expected.chunks_exact(vocab_size));
                assert_eq!(forced.logits.len(), expected.len());
                for (found, expected) in rows {
                    let error = rms(found.iter().zip(expected).map(|(a, b)| a - b)) / rms(expected.iter().copied());
                    (worst, n_tokens) = (worst.max(error), n_tokens + 1);
                    n_same += usize::from(best(found) == best(expected));
                }
                let options = AskOptions { max_tokens: 40, sampler: SamplerOptions::default() };
                block_on(session.ask(&mut chat, question, &options, &mut Patient))?;
                assert!(!must_agree || chat.turns[0].answer == answer, "{question}: another answer");
            }
            println!("{reference}, {n_ranks} ranks: error at most {worst:.1e}, {n_same} of {n_tokens} likeliest tokens the same");
            assert!(worst <= bound, "{worst:e} is above {bound:e}");
            Ok(())
        })
        .unwrap();
    }
}

fn rms(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let n = values.len() as f32;
    (values.map(|value| value * value).sum::<f32>() / n).sqrt()
}

fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

#[test]
#[ignore = "needs a language model that is downloaded: make test-real"]
fn f16_logits_and_answers_are_pytorchs() {
    compare(&converted(), "pytorch", F16_BOUND, true);
}

#[test]
#[ignore = "needs a language model that is downloaded: make test-real"]
fn q4_1_logits_are_llama_cpps() {
    compare(&file(), "llama_cpp", Q4_1_BOUND, false);
}
