//! A trained language model compared with `tokenizers`, PyTorch and llama.cpp: on demand (`make test-real`), because it
//! is downloaded. `REAL` names the folder written by `golden/real.py`, which describes its contents. In addition,
//! `REAL/f16` is its checkpoint converted with `--type f16`.

use llama3med::device::ranks::block_on;
use llama3med::file::gguf::Gguf;
use llama3med::model::session::{AskOptions, Chat};
use llama3med::picture::Picture;
use llama3med::spec::watch::Watch;
use llama3med::text::tokenizer::Tokenizer;
use quantize::files::folder::{Files, Source, Stored};
use quantize::native::with_files;
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::PathBuf;

/// Error of logits: root mean square, relative to that of the reference's. In f16 nothing is quantized, and only the
/// order of sums differs.
const F16_BOUND: f32 = 1e-5;
/// With Q4_1 and Q8_0 both engines round activations to 8 bits per block, each in its own way, and 30 layers propagate
/// the differences: single logits move by up to a fifth in either engine. So both are compared with the same weights in
/// f32; this is the largest error allowed for ours, in units of llama.cpp's own error.
const Q4_1_BOUND: f32 = 1.1;

fn real(name: &str) -> PathBuf {
    let folder = std::env::var_os("REAL").expect("REAL is not set: run `make test-real`");
    PathBuf::from(folder).join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(real(name)).unwrap()).unwrap()
}

/// The GGUF file itself, without an encoder.
fn file() -> Files<Stored> {
    Source::Files(Files { decoder: real("smollm2.gguf"), encoder: None }).open().unwrap().1
}

/// The same weights in f16, with the random tower.
fn converted() -> Files<Stored> {
    Source::Folder(real("f16")).open().unwrap().1
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

/// Logits, row by row: found and expected.
#[derive(Default)]
struct Rows {
    /// Each row's error: root mean square, relative to that of the expected logits.
    errors: Vec<f32>,
    n_same: usize,
}

impl Rows {
    fn compare(&mut self, found: &[f32], expected: &[f32], vocab_size: usize) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.chunks_exact(vocab_size).zip(expected.chunks_exact(vocab_size)) {
            self.errors.push(rms(found.iter().zip(expected).map(|(a, b)| a - b)) / rms(expected.iter().copied()));
            self.n_same += usize::from(best(found) == best(expected));
        }
    }

    fn worst(&self) -> f32 {
        self.errors.iter().copied().fold(0.0, f32::max)
    }

    fn mean_square(&self) -> f32 {
        rms(self.errors.iter().copied())
    }

    fn print(&self, name: &str) {
        let (worst, mean_square, n) = (self.worst(), self.mean_square(), self.errors.len());
        println!(
            "{name}: error {mean_square:.2e}, at most {worst:.1e}; {} of {n} likeliest tokens the same",
            self.n_same
        );
    }
}

/// The answers of a reference, read again: `visit` gets the logits found, the case's number, and the tokens of our own
/// greedy answer.
fn reread(
    files: &Files<Stored>,
    reference: &Reference,
    n_ranks: usize,
    mut visit: impl FnMut(usize, &[f32], &[u32], usize),
) {
    let cases = with_files(files.bytes(), n_ranks, None, None, |session| {
        let picture = Picture::decode(&std::fs::read(real("picture.png")).unwrap()).unwrap();
        let mut cases = Vec::new();
        for (idx, case) in reference.questions.as_array().unwrap().iter().enumerate() {
            let (prompt, answer) = (reference.ids(idx, "prompt"), reference.ids(idx, "answer"));
            let question = case["question"].as_str().unwrap();
            let mut chat = Chat::default();
            if case["image"] == true {
                chat = Chat::about(block_on(session.look(&picture, &mut ()))?.key);
            }
            let forced = block_on(session.force(&chat, question, &answer, Watch::default(), &mut ()))?;
            assert_eq!(forced.items.len(), prompt.len() + answer.len(), "{question}");
            for (item, id) in forced.items.iter().zip(prompt.iter().chain(&answer)) {
                use llama3med::model::Item::{Image, Token};
                assert!(*item == Token(*id) || matches!(item, Image { .. }), "{question}: {item:?} is not {id}");
            }
            let options = AskOptions { max_tokens: 40, stop_repetition: false, ..AskOptions::default() };
            block_on(session.ask(&mut chat, question, &options, &mut ()))?;
            cases.push((forced.logits, chat.answers()[0].clone()));
        }
        Ok((cases, session.model().spec().vocab_size))
    });
    let (cases, vocab_size) = cases.unwrap();
    for (idx, (logits, answer)) in cases.iter().enumerate() {
        visit(idx, logits, answer, vocab_size);
    }
}

/// What `golden/real.py` wrote for one of the engines.
struct Reference {
    bytes: Vec<u8>,
    questions: Value,
}

impl Reference {
    fn new(name: &str) -> Self {
        let bytes = std::fs::read(real(&format!("{name}.safetensors"))).unwrap();
        Self { bytes, questions: json("questions.json")[name].clone() }
    }

    fn words(&self, idx: usize, name: &str) -> impl Iterator<Item = [u8; 4]> {
        let golden = SafeTensors::deserialize(&self.bytes).unwrap();
        golden.tensor(&format!("{idx}.{name}")).unwrap().data().as_chunks::<4>().0.iter().copied()
    }

    fn ids(&self, idx: usize, name: &str) -> Vec<u32> {
        self.words(idx, name).map(u32::from_le_bytes).collect()
    }

    fn logits(&self, idx: usize, name: &str) -> Vec<f32> {
        self.words(idx, name).map(f32::from_le_bytes).collect()
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
    let reference = Reference::new("pytorch");
    for n_ranks in [1, 2] {
        let mut rows = Rows::default();
        reread(&converted(), &reference, n_ranks, |idx, logits, answer, vocab_size| {
            rows.compare(logits, &reference.logits(idx, "logits"), vocab_size);
            assert_eq!(answer, reference.ids(idx, "answer"), "{}: another answer", reference.questions[idx]);
        });
        rows.print(&format!("f16 beside PyTorch, {n_ranks} ranks"));
        assert!(rows.worst() <= F16_BOUND);
    }
}

#[test]
#[ignore = "needs a language model that is downloaded: make test-real"]
fn q4_1_logits_are_as_near_to_the_exact_ones_as_llama_cpps() {
    let reference = Reference::new("llama_cpp");
    for n_ranks in [1, 2] {
        let (mut ours, mut theirs) = (Rows::default(), Rows::default());
        reread(&file(), &reference, n_ranks, |idx, logits, _, vocab_size| {
            let exact = reference.logits(idx, "exact");
            ours.compare(logits, &exact, vocab_size);
            theirs.compare(&reference.logits(idx, "logits"), &exact, vocab_size);
        });
        theirs.print("Q4_1 beside f32, llama.cpp");
        ours.print(&format!("Q4_1 beside f32, {n_ranks} ranks"));
        assert!(ours.mean_square() <= Q4_1_BOUND * theirs.mean_square());
        assert!(ours.n_same as f32 * Q4_1_BOUND >= theirs.n_same as f32);
    }
}
