//! Several images in a conversation, in any place (`golden/images.py`): the same ids and logits as PyTorch's, read at
//! once or turn by turn.

use crate::families;
use crate::golden::{Files, Golden, assert_close, header};
use crate::whole::{QUESTION, Record, greedy, picture};
use llama3med::device::ranks::block_on;
use llama3med::file::gguf::Dtype;
use llama3med::picture::Picture;
use llama3med::text::conversation::{Chat, Message, Part, Piece, Role, Template};
use llama3med::text::tokenizer::Tokenizer;
use quantize::native::with_session;

/// The conversations of the golden: one list of parts per turn, with the answer between turns.
fn cases([one, other]: [u64; 2]) -> [(&'static str, Vec<Vec<Part>>); 4] {
    let text = |text: &str| Part::Text(text.into());
    let (one, other) = (Part::Image(one), Part::Image(other));
    [
        ("two", vec![vec![one.clone(), other.clone(), text(QUESTION)]]),
        ("behind", vec![vec![text(QUESTION), text("\n"), one.clone()]]),
        ("second", vec![vec![one.clone(), text(QUESTION)], vec![other.clone(), text("Is it large?")]]),
        ("between", vec![vec![text("Where "), one, text(" is it large, and in "), other, text("?")]]),
    ]
}

fn chat(turns: &[Vec<Part>]) -> Chat {
    let answer = || Message::new(Role::Assistant, [Part::Text("Yes, the mass.".into())]);
    let question = |parts: &Vec<Part>| Message::new(Role::User, parts.clone());
    let mut messages: Vec<Message> = turns.iter().flat_map(|parts| [question(parts), answer()]).collect();
    messages.pop();
    Chat { messages }
}

/// The two pictures: the variant's own, and the same one upside down.
fn pictures(variant: &str) -> [Picture; 2] {
    let one = picture(variant);
    let rgb = one.rgb.chunks_exact(3).rev().flatten().copied().collect();
    let other = Picture::new(one.width, one.height, rgb);
    [one, other]
}

#[test]
fn images_stand_where_the_reference_has_them() {
    for variant in ["clip-s2", "llava-vicuna"] {
        let golden = Golden::open(variant, "images.safetensors");
        let files = if variant == "clip-s2" { Files::convert(variant, Dtype::F32) } else { families::convert(variant) };
        let gguf = header("decoder.gguf", &files.decoder);
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let template = Template::from_gguf(&gguf, &tokenizer).unwrap();
        for (case, turns) in cases([200, 201]) {
            let id = |piece| match piece {
                Piece::Token(id) => i64::from(id),
                Piece::Image(key) => -(key as i64),
            };
            let pieces = template.prompt(&tokenizer, &chat(&turns).messages).unwrap();
            let ids: Vec<i64> = pieces.into_iter().map(id).collect();
            assert_eq!(ids, golden.i64(&format!("{case}_ids")), "{variant}: {case}");
        }
        for n_ranks in [1, 2] {
            with_session(&files.folder, n_ranks, None, |session| {
                let keys = pictures(variant)
                    .map(|picture| block_on(session.look(&picture, &mut Record::default())).unwrap().key);
                for (name, key) in ["one", "other"].into_iter().zip(keys) {
                    let what = format!("{variant}: image tokens of {name}, {n_ranks} ranks");
                    assert_close(&what, &block_on(session.image(key))?.unwrap(), &golden.f32(name), 1e-4);
                }
                for (case, turns) in cases(keys) {
                    let mut record = Record::default();
                    let asked = block_on(session.answer(&mut chat(&turns), &greedy(1), &mut record))?;
                    let what = format!("{variant}: logits of {case}, {n_ranks} ranks");
                    assert_close(&what, &record.logits, &golden.f32(&format!("{case}_logits")), 1e-4);
                    // When it is asked again, everything is in the cache.
                    let again = block_on(session.answer(&mut chat(&turns), &greedy(1), &mut Record::default()))?;
                    assert_eq!(again.n_reused, asked.n_prompt - 1, "{variant}: {case}");
                }
                let (_, turns) = cases(keys).into_iter().find(|(case, _)| *case == "second").unwrap();
                block_on(session.answer(&mut chat(&turns[..1]), &greedy(1), &mut Record::default()))?;
                let mut record = Record::default();
                let asked = block_on(session.answer(&mut chat(&turns), &greedy(1), &mut record))?;
                assert!(asked.n_reused > session.model().vision().unwrap().n_image_tokens(), "{variant}: {asked:?}");
                let what = format!("{variant}: logits of second, turn by turn, {n_ranks} ranks");
                assert_close(&what, &record.logits, &golden.f32("second_logits"), 1e-4);
                Ok(())
            })
            .unwrap();
        }
    }
}
