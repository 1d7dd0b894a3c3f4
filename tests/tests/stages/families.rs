//! LLaVA's families in their own layouts (`golden/families.py`): from picture and question to PyTorch's greedy answer,
//! and to the next turn's prompt.

use crate::golden::{Files, Golden, assert_close, folder, header};
use crate::whole::{QUESTION, Record, greedy, picture};
use llama3med::device::ranks::block_on;
use llama3med::file::gguf::Dtype;
use llama3med::model::session::{Chat, Finish};
use llama3med::text::conversation::{Piece, Template};
use llama3med::text::tokenizer::Tokenizer;
use quantize::checkpoint::Parts;
use quantize::native::with_session;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::fs;
use std::path::{Path, PathBuf};

const FAMILIES: [&str; 6] = ["llava-med", "llava-vicuna", "llava-s2", "llava-hf", "llava-siglip", "llava-qwen"];

/// LLaVA-1.5 does not include the tower.
fn parts(family: &str) -> Parts {
    let tower = folder(family).join("tower");
    Parts { encoder: tower.exists().then_some(tower), ..Parts::default() }
}

pub fn convert(family: &str) -> Files {
    Files::convert_parts(folder(family).join("checkpoint"), parts(family), Dtype::F32)
}

#[test]
fn every_family_answers_as_in_pytorch() {
    for family in FAMILIES {
        let (golden, files) = (Golden::read(family), convert(family));
        let answer: Vec<u32> = golden.i64("greedy_ids").into_iter().map(|id| id as u32).collect();
        for n_ranks in [1, 2] {
            let (features, ids, record) = with_session(&files.folder, n_ranks, None, |session| {
                let mut record = Record::default();
                let look = block_on(session.look(&picture(family), &mut record)).unwrap();
                let mut chat = Chat::about(look.key);
                let asked = block_on(session.ask(&mut chat, QUESTION, &greedy(answer.len()), &mut record)).unwrap();
                assert_eq!(asked.finish, Finish::Length, "{family}");
                let n_image_tokens = golden.shape("image_tokens")[0];
                assert_eq!(asked.n_prompt, golden.i64("prompt_ids").len() - 1 + n_image_tokens, "{family}");
                Ok((look.features, chat.answers().remove(0), record))
            })
            .unwrap();
            assert_close(&format!("{family} features, {n_ranks} ranks"), &features, &golden.f32("features"), 2e-5);
            assert_close(&format!("{family} logits, {n_ranks} ranks"), &record.logits, &golden.f32("logits"), 1e-4);
            assert_eq!(ids, answer, "{family}");
        }
    }
}

#[test]
fn every_family_writes_prompts_as_it_was_trained() {
    for family in FAMILIES {
        let (golden, files) = (Golden::read(family), convert(family));
        let gguf = header("decoder.gguf", &files.decoder);
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let template = Template::from_gguf(&gguf, &tokenizer).unwrap();
        let answer: Vec<u32> = golden.i64("greedy_ids").into_iter().map(|id| id as u32).collect();
        let ids = |pieces: Vec<Piece>| -> Vec<i64> {
            let id = |piece| match piece {
                Piece::Token(id) => i64::from(id),
                Piece::Image(_) => -200,
            };
            pieces.into_iter().map(id).collect()
        };
        let first = template.prompt(&tokenizer, &tests::messages(&[], QUESTION, true)).unwrap();
        let head = template.known(&tokenizer, &tests::messages(&[], "", true)).unwrap();
        assert_eq!(first[..head.len()], head, "{family}");
        assert_eq!(ids(first), golden.i64("prompt_ids"), "{family}");
        let turns =
            template.prompt(&tokenizer, &tests::messages(&[(QUESTION, &answer)], "Is it large?", true)).unwrap();
        assert_eq!(ids(turns), golden.i64("turns_ids"), "{family}");
    }
}

/// transformers' names for a LLaVA's parts: language model, its head, tower, connector. In each generation, the names
/// mean the same tensors.
const GENERATIONS: [(&str, [&str; 4]); 4] = [
    (
        "4.51",
        [
            "language_model.model.",
            "language_model.lm_head.",
            "vision_tower.vision_model.",
            "multi_modal_projector.linear_",
        ],
    ),
    (
        "4.52",
        [
            "model.language_model.",
            "lm_head.",
            "model.vision_tower.vision_model.",
            "model.multi_modal_projector.linear_",
        ],
    ),
    // What 5.6 and later save, and their names in memory.
    ("5.6", ["language_model.model.", "language_model.lm_head.", "vision_tower.", "multi_modal_projector.linear_"]),
    ("5.6-memory", ["model.language_model.", "lm_head.", "model.vision_tower.", "model.multi_modal_projector.linear_"]),
];

/// A checkpoint's tensors with the given prefixes for the four parts, and its other files, in a separate folder.
fn renamed(family: &str, label: &str, prefixes: [&str; 4]) -> PathBuf {
    let from = folder(family).join("checkpoint");
    let to = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("names-{family}-{label}-{}/checkpoint", std::process::id()));
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(&from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let rename = |name: &str| {
        // The longest matching prefix of all generations.
        let known = GENERATIONS.iter().flat_map(|(_, known)| known.iter().zip(prefixes));
        let fitting = known.filter(|(prefix, _)| name.starts_with(**prefix)).max_by_key(|(prefix, _)| prefix.len());
        let (prefix, other) = fitting.unwrap_or_else(|| panic!("{name}"));
        format!("{other}{}", &name[prefix.len()..])
    };
    let tensors = file.tensors().into_iter().map(|(name, tensor)| (rename(&name), tensor));
    fs::write(to.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    to
}

/// The same tensors under the names of every generation: the files are identical, byte for byte.
#[test]
fn transformers_names_of_all_generations_mean_the_same() {
    for family in ["llava-hf", "llava-siglip"] {
        let expected = convert(family);
        for (generation, prefixes) in GENERATIONS {
            let checkpoint = renamed(family, generation, prefixes);
            let files = Files::convert_parts(checkpoint.clone(), Parts::default(), Dtype::F32);
            assert!(files.decoder == expected.decoder && files.encoder == expected.encoder, "{family} {generation}");
            fs::remove_dir_all(checkpoint.parent().unwrap()).unwrap();
        }
    }
}

/// LLaVA's original layout with the same SigLIP tower, inside it and as a whole model outside: the encoder is
/// identical, byte for byte.
#[test]
fn a_siglip_tower_is_found_inside_and_outside() {
    let expected = convert("llava-siglip");
    let tower_names = "model.vision_tower.vision_tower.vision_model.";
    let checkpoint = renamed("llava-siglip", "original", ["model.", "lm_head.", tower_names, "model.mm_projector."]);
    let path = checkpoint.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    // LLaVA numbers the connector's layers including its activation.
    let tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let name = name.replace("mm_projector.1.", "mm_projector.0.");
            (name, tensor)
        })
        .collect();
    let config = fs::read(folder("llava-s2").join("checkpoint/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let vocab_size = file.tensor("lm_head.weight").unwrap().shape()[0];
    for (key, value) in [
        ("vocab_size", vocab_size.into()),
        ("s2", false.into()),
        ("mm_vision_tower", "google/siglip-so400m-patch14-384".into()),
    ] {
        config[key] = value;
    }
    fs::write(checkpoint.join("config.json"), config.to_string()).unwrap();
    let write = |path: &Path, tensors: Vec<(String, TensorView)>| {
        fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    };
    write(&path, tensors.clone());
    let inside = Files::convert_parts(checkpoint.clone(), Parts::default(), Dtype::F32);
    assert!(inside.encoder == expected.encoder, "inside");

    let (mut tower, rest): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(name, _)| name.starts_with(tower_names));
    for (name, _) in &mut tower {
        *name = name.replace(tower_names, "vision_model.");
    }
    let one = 1f32.to_le_bytes();
    for name in ["logit_scale", "logit_bias", "text_model.final_layer_norm.bias"] {
        tower.push((name.into(), TensorView::new(safetensors::Dtype::F32, vec![1], &one).unwrap()));
    }
    let beside = checkpoint.with_file_name("tower");
    fs::create_dir(&beside).unwrap();
    write(&path, rest);
    write(&beside.join("model.safetensors"), tower);
    let vision = config.as_object_mut().unwrap().remove("vision_config").unwrap();
    fs::write(checkpoint.join("config.json"), config.to_string()).unwrap();
    let whole = serde_json::json!({ "model_type": "siglip", "vision_config": vision });
    fs::write(beside.join("config.json"), whole.to_string()).unwrap();
    let parts = Parts { encoder: Some(beside), ..Parts::default() };
    let outside = Files::convert_parts(checkpoint.clone(), parts, Dtype::F32);
    assert!(outside.encoder == expected.encoder, "outside");
    assert!(outside.decoder == inside.decoder);
    fs::remove_dir_all(checkpoint.parent().unwrap()).unwrap();
}
