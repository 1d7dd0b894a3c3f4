//! LLaVA's families in their own layouts (`golden/families.py`): from picture and question to the greedy answer of PyTorch, and to the next turn's prompt.

use crate::golden::{Files, Golden, assert_close, folder, header};
use crate::whole::{QUESTION, Record, greedy, picture};
use llama3med::gguf::Dtype;
use llama3med::prompt::{Piece, Template};
use llama3med::ranks::block_on;
use llama3med::session::{Chat, Finish};
use llama3med::tokenizer::Tokenizer;
use quantize::checkpoint::Parts;
use quantize::native::with_session;
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;

const FAMILIES: [&str; 4] = ["llava-med", "llava-vicuna", "llava-s2", "llava-hf"];

/// LLaVA-1.5 leaves the tower where it came from.
fn parts(family: &str) -> Parts {
    let tower = folder(family).join("tower");
    Parts { encoder: tower.exists().then_some(tower), ..Parts::default() }
}

fn convert(family: &str) -> Files {
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
                let mut chat = Chat { image: Some(look.key), turns: Vec::new() };
                let asked = block_on(session.ask(&mut chat, QUESTION, &greedy(answer.len()), &mut record)).unwrap();
                assert_eq!(asked.finish, Finish::Length, "{family}");
                let n_image_tokens = golden.shape("image_tokens")[0];
                assert_eq!(asked.n_prompt, golden.i64("prompt_ids").len() - 1 + n_image_tokens, "{family}");
                Ok((look.features, chat.turns.remove(0).answer, record))
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
                Piece::Image => -200,
            };
            pieces.into_iter().map(id).collect()
        };
        let first = template.prompt(&tokenizer, &[], QUESTION, true).unwrap();
        let head = template.head(&tokenizer, true).unwrap();
        assert_eq!(first[..head.len()], head, "{family}");
        assert_eq!(ids(first), golden.i64("prompt_ids"), "{family}");
        let turns = template.prompt(&tokenizer, &[(QUESTION, &answer)], "Is it large?", true).unwrap();
        assert_eq!(ids(turns), golden.i64("turns_ids"), "{family}");
    }
}

/// The same tensors under the names of every generation: the files are the same, byte by byte.
#[test]
fn transformers_names_of_all_generations_mean_the_same() {
    let from = folder("llava-hf").join("checkpoint");
    let expected = convert("llava-hf");
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    type Rule<'a> = &'a [(&'a str, &'a str)];
    let bare: Rule = &[
        ("model.language_model.", "L."),
        ("language_model.model.", "L."),
        ("language_model.lm_head.", "H."),
        ("lm_head.", "H."),
        ("model.vision_tower.vision_model.", "V."),
        ("vision_tower.vision_model.", "V."),
        ("model.vision_tower.", "V."),
        ("vision_tower.", "V."),
        ("model.multi_modal_projector.", "P."),
        ("multi_modal_projector.", "P."),
    ];
    let generations: [(&str, Rule); 3] = [
        (
            "4.51",
            &[
                ("L.", "language_model.model."),
                ("H.", "language_model.lm_head."),
                ("V.", "vision_tower.vision_model."),
                ("P.", "multi_modal_projector."),
            ],
        ),
        (
            "4.52",
            &[
                ("L.", "model.language_model."),
                ("H.", "lm_head."),
                ("V.", "model.vision_tower.vision_model."),
                ("P.", "model.multi_modal_projector."),
            ],
        ),
        (
            "5.6",
            &[
                ("L.", "model.language_model."),
                ("H.", "lm_head."),
                ("V.", "model.vision_tower."),
                ("P.", "model.multi_modal_projector."),
            ],
        ),
    ];
    let replaced = |name: &str, rule: Rule| {
        let (prefix, other) =
            rule.iter().find(|(prefix, _)| name.starts_with(prefix)).unwrap_or_else(|| panic!("{name}"));
        format!("{other}{}", &name[prefix.len()..])
    };
    for (generation, rule) in generations {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("names-{generation}-{}/checkpoint", std::process::id()));
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(&from).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        let tensors = file.tensors().into_iter().map(|(name, tensor)| (replaced(&replaced(&name, bare), rule), tensor));
        fs::write(to.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
        let files = Files::convert_parts(to.clone(), Parts::default(), Dtype::F32);
        assert!(files.decoder == expected.decoder && files.encoder == expected.encoder, "{generation}");
        fs::remove_dir_all(to.parent().unwrap()).unwrap();
    }
}
