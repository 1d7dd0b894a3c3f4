//! The whole pipeline, picture and question in, answer out, through the session that the tool and the page use.

use crate::golden::{Files, Golden, RANKS, VARIANTS, assert_close, folder};
use llama3med::device::ranks::block_on;
use llama3med::file::gguf::Dtype;
use llama3med::model::session::{AskOptions, Chat, Finish};
use llama3med::model::{Listener, Stage, Token};
use llama3med::picture::Picture;
use quantize::native::with_session;

/// The question of `golden/make.py`.
pub const QUESTION: &str = "What does the picture show, and where is the mass?";

/// Records what it hears.
#[derive(Default)]
pub struct Record {
    ids: Vec<u32>,
    text: String,
    pub logits: Vec<f32>,
    n_tiles: usize,
}

impl Listener for Record {
    async fn progress(&mut self, stage: Stage, done: usize, _: usize) -> bool {
        if stage == Stage::Encoding {
            self.n_tiles = done;
        }
        true
    }
    async fn token(&mut self, token: &Token) -> bool {
        self.ids.push(token.id);
        self.text.push_str(&token.text);
        true
    }
    async fn rest(&mut self, text: &str) {
        self.text.push_str(text);
    }
    fn logits(&mut self, logits: &[f32]) {
        self.logits.extend_from_slice(logits);
    }
}

pub fn greedy(max_tokens: usize) -> AskOptions {
    AskOptions { max_tokens, stop_repetition: false, ..AskOptions::default() }
}

pub fn picture(variant: &str) -> Picture {
    Picture::decode(&std::fs::read(folder(variant).join("picture.png")).unwrap()).unwrap()
}

#[test]
fn answers_are_those_of_pytorch_on_any_number_of_ranks() {
    for variant in VARIANTS {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, Dtype::F32));
        let answer: Vec<u32> = golden.i64("greedy_ids").into_iter().map(|id| id as u32).collect();
        for n_ranks in RANKS {
            let (features, ids, record) = with_session(&files.folder, n_ranks, None, |session| {
                let mut record = Record::default();
                let look = block_on(session.look(&picture(variant), &mut record)).unwrap();
                let mut chat = Chat::about(look.key);
                let asked = block_on(session.ask(&mut chat, QUESTION, &greedy(answer.len()), &mut record)).unwrap();
                assert_eq!((asked.finish, chat.answers()[0].len()), (Finish::Length, answer.len()));
                let n_image_tokens = golden.shape("image_tokens")[0];
                assert_eq!(asked.n_prompt, golden.i64("prompt_ids").len() - 1 + n_image_tokens);
                assert_eq!(asked.text, record.text.trim());
                Ok((look.features, chat.answers().remove(0), record))
            })
            .unwrap();
            let what = |stage: &str| format!("{variant} from picture to {stage}, {n_ranks} ranks");
            assert_eq!(record.n_tiles, golden.shape("tiles")[0]);
            assert_close(&what("features"), &features, &golden.f32("features"), 2e-5);
            assert_close(&what("logits"), &record.logits, &golden.f32("logits"), 1e-4);
            assert_eq!(ids, answer, "{}", what("answer"));
        }
    }
}

#[test]
fn a_prompt_without_a_picture_is_that_of_the_template() {
    for variant in VARIANTS {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, Dtype::F32));
        let [n_tokens, vocab_size] = golden.shape("text_logits")[..] else { panic!() };
        let logits = with_session(&files.folder, 1, None, |session| {
            let mut record = Record::default();
            let asked = block_on(session.ask(&mut Chat::default(), QUESTION, &greedy(1), &mut record)).unwrap();
            assert_eq!(asked.n_prompt, n_tokens);
            Ok(record.logits)
        })
        .unwrap();
        let expected = &golden.f32("text_logits")[(n_tokens - 1) * vocab_size..];
        assert_close(&format!("{variant} text prompt"), &logits, expected, 1e-4);
    }
}
