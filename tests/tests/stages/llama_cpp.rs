//! The same decoder file in llama.cpp and here: our files there (`golden/ask_llama_cpp.py`), and every type that its
//! quantizer writes here (`golden/types_llama_cpp.py`).

use crate::decoder::{Ready, text};
use crate::golden::{Files, best, folder, header, n_known, on_ranks};
use crate::quantized::{rms_error, widened};
use crate::whole::Record;
use llama3med::device::Builder;
use llama3med::device::cpu::matrix::MatrixBuilder;
use llama3med::device::quant::dequantize;
use llama3med::device::ranks::block_on;
use llama3med::file::gguf::{Dtype, Gguf};
use llama3med::model::session::{AskOptions, Chat};
use llama3med::text::conversation::{Piece, Template};
use llama3med::text::tokenizer::Tokenizer;
use quantize::native::with_session;
use safetensors::SafeTensors;
use serde_json::Value;

fn ids(case: &Value, key: &str) -> Vec<u32> {
    case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn document() -> Value {
    serde_json::from_slice(&std::fs::read(folder("llama_cpp.json")).unwrap()).unwrap()
}

fn cases(document: &Value) -> impl Iterator<Item = (&str, Dtype, &Value)> {
    document["cases"].as_array().unwrap().iter().map(|case| {
        let dtype = Dtype::ALL.into_iter().find(|dtype| case["type"] == dtype.name()).unwrap();
        (case["variant"].as_str().unwrap(), dtype, case)
    })
}

#[test]
fn a_text_question_is_answered_as_llama_cpp_does() {
    let document = document();
    for (variant, dtype, case) in cases(&document).filter(|(_, dtype, _)| matches!(dtype, Dtype::F32 | Dtype::F16)) {
        let files = Files::convert(variant, dtype);
        let (question, answer) = (document["question"].as_str().unwrap(), ids(case, "answer_ids"));
        let gguf = header("decoder.gguf", &files.decoder);
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let template = Template::from_gguf(&gguf, &tokenizer).unwrap();
        let prompt = template.prompt(&tokenizer, &tests::messages(&[], question, false)).unwrap();
        assert_eq!(prompt, ids(case, "prompt_ids").into_iter().map(Piece::Token).collect::<Vec<_>>());
        for n_ranks in [1, 3] {
            let options = AskOptions { max_tokens: answer.len(), stop_repetition: false, ..AskOptions::default() };
            let mut chat = Chat::default();
            let asked = with_session(&files.folder, n_ranks, None, |session| {
                block_on(session.ask(&mut chat, question, &options, &mut Record::default()))
            });
            assert_eq!(asked.unwrap().n_prompt, prompt.len());
            assert_eq!(chat.answers()[0], answer, "{variant} {}, {n_ranks} ranks", dtype.name());
        }
    }
}

/// The margin that a choice must have to be compared: llama.cpp rounds activations to f16 or to 8 bits per block before
/// a product, and the effect on these random weights (logits of size 1.7, far less certain than trained ones) stays
/// below this.
fn least_margin(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 0.0,
        Dtype::F16 => 0.005,
        _ => 0.2,
    }
}

#[test]
fn every_clear_choice_of_llama_cpp_is_ours_in_every_type() {
    let document = document();
    for (variant, dtype, case) in cases(&document) {
        let files = Files::convert(variant, dtype);
        let (prompt, answer) = (ids(case, "prompt_ids"), ids(case, "answer_ids"));
        let read = [&prompt[..], &answer[..answer.len() - 1]].concat();
        let logits = on_ranks(1, |device| Ready::new(device, &files).logits(&text(&read), 0, answer.len())).remove(0);
        let margins = case["margins"].as_array().unwrap().iter().map(|margin| margin.as_f64().unwrap());
        let steps = logits.chunks_exact(logits.len() / answer.len()).zip(&answer).zip(margins);
        let clear: Vec<_> = steps.filter(|(_, margin)| *margin > least_margin(dtype)).collect();
        let n_same = clear.iter().filter(|((logits, id), _)| best(logits, n_known(variant)) == i64::from(**id)).count();
        println!("{variant} {}: {n_same} of {} clear choices", dtype.name(), clear.len());
        assert!(clear.len() > answer.len() / 2, "{variant} {}: too few clear choices", dtype.name());
        assert_eq!(n_same, clear.len(), "{variant} {}", dtype.name());
    }
}

/// Tensors of a golden file in `types/` (`golden/types_llama_cpp.py`).
fn types(file: &str) -> Vec<u8> {
    std::fs::read(folder("types").join(file)).unwrap()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Every type's values, decoded from stored bytes and read back from kernel form, whole and cut as ranks cut them:
/// equal to those of ggml's own package, bit for bit.
#[test]
fn blocks_of_every_type_mean_what_ggml_says() {
    let bytes = types("blocks.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for dtype in Dtype::ALL.into_iter().filter(|dtype| dtype.block_len() > 1) {
        let stored = file.tensor(&format!("{}.bytes", dtype.name())).unwrap().data().to_vec();
        let values = f32s(file.tensor(&format!("{}.values", dtype.name())).unwrap().data());
        let mut decoded = vec![0.0; values.len()];
        dequantize(dtype, &stored, &mut decoded);
        assert_eq!(decoded, values, "{}", dtype.name());
        let n_cols = values.len() / 2;
        for cols in [0..n_cols, 0..n_cols / 4, n_cols / 4..n_cols / 2, 100..613, 32..33] {
            let mut builder = MatrixBuilder::new(dtype, 2, n_cols, cols.clone()).unwrap();
            builder.push(&stored);
            let (matrix, mut row) = (builder.finish("w").unwrap(), vec![0.0; cols.len()]);
            for (idx, values) in values.chunks_exact(n_cols).enumerate() {
                matrix.row(idx, &mut row);
                assert_eq!(row, values[cols.clone()], "{} {cols:?}", dtype.name());
            }
        }
    }
}

/// The largest difference between the logits here and llama.cpp's that rounding alone explains, as root mean square
/// relative to the logits'.
///
/// An activation is rounded by at most u: relative to its own size in f16 (2^-11) and bf16 (2^-8), relative to the
/// largest of its block in 8 bits (1/254). A rounding error is uniformly distributed, so its root mean square is u /
/// sqrt(3). llama.cpp rounds in blocks of 32, or of 256 for K types; here it is f32 or blocks of 32: the two are
/// independent. The largest of a block of normal values is about 2.3 (of 32) or 3 (of 256) times their root mean
/// square; if a type's activations have heavier tails, like those of the gated MLP, 4 covers it. In a sum over many
/// columns the relative error stays that of one activation, and errors of successive products add in squares: there are
/// eight in a row (q, k, v, output of attention, gate, up, down, output of the model).
fn logits_bound(mixture: &str) -> f32 {
    let n_products = 8f32;
    let (ours, theirs) = match mixture {
        "f16" => (0.0, 1.0 / 2048.0),
        "bf16" => (0.0, 1.0 / 256.0),
        _ => (4.0 / 254.0, 4.0 / 254.0),
    };
    (n_products / 3.0).sqrt() * f32::hypot(ours, theirs)
}

#[test]
fn logits_of_llama_cpps_own_mixtures_are_llama_cpps() {
    let bytes = types("logits.safetensors");
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let ids = golden.tensor("ids").unwrap();
    let ids: Vec<u8> = ids.data().chunks_exact(8).map(|id| id[0]).collect();
    for mixture in golden.names().into_iter().filter(|name| !["ids", "f32"].contains(name)) {
        let bytes = types(&format!("{mixture}.gguf"));
        let gguf = header("decoder.gguf", &bytes);
        let run = |gguf: &Gguf, bytes: &[u8], n_ranks| {
            let logits = on_ranks(n_ranks, |device| Ready::of(device, gguf, bytes).logits(&text(&ids), 0, ids.len()));
            logits.into_iter().next().unwrap()
        };
        let (ours, theirs) = (run(&gguf, &bytes, 1), f32s(golden.tensor(mixture).unwrap().data()));
        let (wide_gguf, wide) = widened(&gguf, &bytes);
        let exact = run(&wide_gguf, &wide, 1);
        let apart = rms_error(&ours, &theirs);
        let (our_error, their_error) = (rms_error(&ours, &exact), rms_error(&theirs, &exact));
        println!(
            "{mixture}: {apart:.4} apart; from exact products we are {our_error:.4}, llama.cpp is {their_error:.4}"
        );
        assert!(apart <= logits_bound(mixture), "{mixture}: {apart}");
        for n_ranks in [2, 4] {
            assert!(run(&gguf, &bytes, n_ranks) == ours, "{mixture}, {n_ranks} ranks: not bit for bit");
        }
    }
}
