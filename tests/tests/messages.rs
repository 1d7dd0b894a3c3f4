//! Conversations as messages: the part of a prompt that is known early, system texts, several pictures, tokens with
//! their probabilities, stop texts, continued answers.

use llama3med::device::cpu::Cpu;
use llama3med::device::ranks::{Threads, block_on};
use llama3med::model::sampler::SamplerOptions;
use llama3med::model::session::{AskOptions, Chat, Finish, Session};
use llama3med::model::{Listener, Stage, Token};
use llama3med::picture::Picture;
use llama3med::text::conversation::{Marks, Message, Part, Piece, Role, TEMPLATES, Template};
use llama3med::text::tokenizer::Tokenizer;
use llama3med::{Error, Result};
use quantize::checkpoint::sentencepiece::tokenizer_json;
use quantize::convert::random;
use quantize::native::with_session;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

fn golden(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(path)).unwrap()
}

/// A byte-level vocabulary with the control tokens of all templates, and one of SentencePiece's.
static TOKENIZERS: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| {
    let mut bytes: Value = serde_json::from_slice(&golden("clip-s2/checkpoint/tokenizer.json")).unwrap();
    for (n, token) in ["<s>", "</s>", "<|im_start|>", "<|im_end|>"].into_iter().enumerate() {
        let added = json!({ "id": 9000 + n, "content": token, "special": true });
        bytes["added_tokens"].as_array_mut().unwrap().push(added);
    }
    let pieces = tokenizer_json(&golden("llava-med/checkpoint/tokenizer.model"), &Default::default(), true).unwrap();
    [bytes.to_string(), pieces].map(|json| Tokenizer::from_json(json.as_bytes()).unwrap())
});

/// Every template with every vocabulary that has its tokens.
fn templates() -> impl Iterator<Item = (&'static str, Template, &'static Tokenizer)> {
    let named = TEMPLATES.into_iter().map(|name| (name, Template::named(name).unwrap()));
    let all = named.flat_map(|(name, template)| TOKENIZERS.iter().map(move |other| (name, template.clone(), other)));
    all.filter(|(_, template, tokenizer)| template.check("x", tokenizer, "x").is_ok())
}

fn question(parts: impl Into<Vec<Part>>) -> Message {
    Message::new(Role::User, parts)
}

fn text(text: &str) -> Part {
    Part::Text(text.into())
}

#[test]
fn what_is_known_is_what_all_questions_have_in_common() {
    let answer = || Message::new(Role::Assistant, [Part::Tokens((40..60).collect())]);
    let turn = |parts: Vec<Part>| vec![question(parts), answer()];
    let system = Message::new(Role::System, [text("Be brief.")]);
    let chats = [
        vec![],
        vec![question([Part::Image(1)])],
        vec![question([Part::Image(1), Part::Image(2)])],
        turn(vec![Part::Image(1), text("Where is it?")]),
        [turn(vec![text("Where?"), Part::Image(1)]), turn(vec![text("And?")]), vec![question([Part::Image(2)])]]
            .concat(),
        vec![system, question([Part::Image(1)])],
    ];
    let mut names = Vec::new();
    for (name, template, tokenizer) in templates() {
        names.push(name);
        for messages in &chats {
            let chat = Chat { messages: messages.clone() };
            let prompts = ["a", "Where is it?", "\n\n", " ", "7", "肺"]
                .map(|question| template.prompt(tokenizer, &chat.asked(question).messages).unwrap());
            let is_common = |n: usize| prompts.iter().all(|prompt| prompt.get(n) == prompts[0].get(n));
            let n_common = (0..).take_while(|&n| is_common(n)).count();
            let is_end = |piece: &Piece| match *piece {
                Piece::Image(_) => true,
                Piece::Token(id) => tokenizer.is_special(id),
            };
            let n_known = prompts[0][..n_common].iter().rposition(is_end).unwrap() + 1;
            let known = template.known(tokenizer, &chat.asked("").messages).unwrap();
            assert_eq!(known, prompts[0][..n_known], "{name}: {messages:?}");
        }
    }
    names.dedup();
    assert_eq!(names, TEMPLATES);
}

#[test]
fn a_system_text_stands_where_the_family_has_it() {
    let llama3 = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
        <|start_header_id|>user<|end_header_id|>\n\n";
    let no_llama3 = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n";
    let chat_ml = "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n";
    let expected = [
        ("llama3", llama3, no_llama3),
        ("llama3-med", llama3, no_llama3),
        ("vicuna", "<s>Be brief. USER: ", "<s>USER: "),
        ("mistral", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n", "<s>[INST] "),
        ("mistral-v3", "<s>[INST] Be brief.\n\n", "<s>[INST] "),
        ("mistral-v3-tekken", "<s>[INST]Be brief.\n\n", "<s>[INST]"),
        ("chatml", chat_ml, "<s><|im_start|>user\n"),
    ];
    let messages = |system: &str, parts: &[Part]| vec![Message::new(Role::System, [text(system)]), question(parts)];
    for (name, template, tokenizer) in templates() {
        let (_, with, without) = expected.into_iter().find(|(other, ..)| *other == name).unwrap();
        for parts in [&[text("Where?")][..], &[Part::Image(1), text("Where?")]] {
            for (system, first) in [("Be brief.", with), ("", without)] {
                let written = Template::Marks(Marks { first: first.into(), ..template.marks() });
                let expected = written.prompt(tokenizer, &[question(parts)]).unwrap();
                assert_eq!(
                    template.prompt(tokenizer, &messages(system, parts)).unwrap(),
                    expected,
                    "{name}: {system:?}"
                );
            }
        }
        let count = |system: &str| {
            let pieces = template.prompt(tokenizer, &messages(system, &[])).unwrap();
            let is_special = |piece: &&Piece| matches!(piece, Piece::Token(id) if tokenizer.is_special(*id));
            pieces.iter().filter(is_special).count()
        };
        assert_eq!(count("</s><|eot_id|><|im_end|>"), count("x"), "{name}: what is typed is text");
    }
    let strange = Template::Marks(Marks { first: "<s>### Human: ".into(), ..Marks::vicuna() });
    let error = strange.prompt(&TOKENIZERS[0], &messages("Be brief.", &[])).unwrap_err();
    assert!(matches!(&error, Error::Unsupported(what) if what.contains("no known place for a system text")), "{error}");
}

#[test]
fn messages_that_make_no_conversation_are_refused() {
    let says = |role| Message::new(role, [text("x")]);
    let cases = [
        (vec![says(Role::Assistant)], "found one of Assistant out of turn"),
        (vec![says(Role::User), says(Role::User)], "found one of User out of turn"),
        (vec![says(Role::User), says(Role::Assistant), says(Role::System)], "found one of System out of turn"),
        (vec![Message::new(Role::System, [Part::Image(1)])], "a system text holds text alone"),
        (vec![question([Part::Tokens(vec![5])])], "a question cannot hold tokens"),
        (vec![says(Role::User), Message::new(Role::Assistant, [Part::Image(1)])], "an answer cannot hold a picture"),
        (
            vec![says(Role::User), Message::new(Role::Assistant, [Part::Tokens(vec![5, u32::MAX])])],
            "id 4294967295 has no token",
        ),
    ];
    for (messages, expected) in cases {
        for write in [Template::prompt, Template::known] {
            let error = write(&Template::named("llama3").unwrap(), &TOKENIZERS[0], &messages).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }
}

// Sessions
// ---------------------------------------------------------------------------------------------------------------

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("messages-tiny");
    random::random(&random::Options::new("tiny", &folder)).unwrap();
    folder
});

/// Records everything.
#[derive(Default)]
struct Ear {
    n_read: usize,
    tokens: Vec<Token>,
    text: String,
    logits: Vec<Vec<f32>>,
    dropped: usize,
}

impl Listener for Ear {
    async fn progress(&mut self, stage: Stage, _: usize, total: usize) -> bool {
        self.n_read += if stage == Stage::Reading { total } else { 0 };
        true
    }
    async fn token(&mut self, token: &Token) -> bool {
        self.text.push_str(&token.text);
        self.tokens.push(token.clone());
        true
    }
    async fn rest(&mut self, text: &str) {
        self.text.push_str(text);
    }
    fn logits(&mut self, logits: &[f32]) {
        self.logits.push(logits.to_vec());
    }
    fn dropped(&mut self, n_turns: usize) {
        self.dropped = n_turns;
    }
}

fn on<T: Send>(context: usize, run: impl FnOnce(&mut Session<Cpu<Threads>>) -> Result<T> + Send) -> T {
    with_session(&FOLDER, 2, Some(context), run).unwrap()
}

fn options(max_tokens: usize) -> AskOptions {
    AskOptions { max_tokens, stop_repetition: false, ..AskOptions::default() }
}

fn look(session: &mut Session<Cpu<Threads>>, seed: usize) -> u64 {
    let (width, height) = (90, 70);
    let rgb = (0..width * height * 3).map(|i| ((i * (seed * 2 + 3)) % 251) as u8).collect();
    block_on(session.look(&Picture::new(width, height, rgb), &mut Ear::default())).unwrap().key
}

#[test]
fn tokens_carry_their_probabilities_and_the_likeliest_others() {
    let drawn = SamplerOptions { temperature: 1.5, repetition_penalty: 1.3, seed: 3, ..SamplerOptions::default() };
    for sampler in [SamplerOptions::default(), drawn] {
        on(1024, |session| {
            let (mut chat, mut ear) = (Chat::default(), Ear::default());
            let options = AskOptions { sampler, alternatives: 5, ..options(24) };
            block_on(session.ask(&mut chat, "Is it large?", &options, &mut ear))?;
            let ids: Vec<u32> = ear.tokens.iter().map(|token| token.id).collect();
            assert_eq!(ids, chat.answers()[0]);
            for (token, logits) in ear.tokens.iter().zip(&ear.logits) {
                let total = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
                let is_near = |id: u32, logprob: f32| {
                    let expected = f64::from(logits[id as usize]) - total;
                    assert!((f64::from(logprob) - expected).abs() < 1e-5, "{id}: {logprob} {expected}");
                };
                is_near(token.id, token.logprob);
                token.alternatives.iter().for_each(|other| is_near(other.id, other.logprob));
                let mut best: Vec<u32> =
                    (0..logits.len() as u32).filter(|&id| session.tokenizer().is_known(id)).collect();
                best.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
                assert_eq!(token.alternatives.iter().map(|other| other.id).collect::<Vec<_>>(), best[..5]);
            }
            let error = block_on(session.ask(&mut chat, "x", &AskOptions { alternatives: 101, ..options }, &mut ear));
            assert_eq!(error.unwrap_err().to_string(), "alternatives must be at most 100, found 101");
            Ok(())
        });
    }
}

#[test]
fn an_answer_gone_on_with_is_the_whole_one() {
    let drawn = SamplerOptions { temperature: 1.0, repetition_penalty: 1.2, seed: 9, ..SamplerOptions::default() };
    for sampler in [SamplerOptions::default(), drawn] {
        on(1024, |session| {
            let options = |max_tokens| AskOptions { sampler: sampler.clone(), ..options(max_tokens) };
            let mut whole = Chat::about(look(session, 1));
            let open = whole.asked("Is it large?");
            let answer = block_on(session.ask(&mut whole, "Is it large?", &options(20), &mut Ear::default()))?;
            let ids = whole.answers().remove(0);
            for n_begun in [1, 7, 19] {
                let (mut chat, mut ear) = (open.clone(), Ear::default());
                chat.add(Message::new(Role::Assistant, [Part::Tokens(ids[..n_begun].to_vec())]));
                let gone_on = block_on(session.answer(&mut chat, &options(20 - n_begun), &mut ear))?;
                assert_eq!((chat.answers().remove(0), &gone_on.text), (ids.clone(), &answer.text), "from {n_begun}");
                assert_eq!((ear.tokens.len(), gone_on.n_prompt), (20 - n_begun, answer.n_prompt + n_begun));
                assert_eq!(gone_on.n_reused, gone_on.n_prompt - 1);
            }
            let mut chat = open.clone();
            chat.add(Message::new(Role::Assistant, [text("Yes, the")]));
            let answer = block_on(session.answer(&mut chat, &options(5), &mut Ear::default()))?;
            assert!(answer.text.starts_with("Yes, the"), "{answer:?}");
            assert_eq!(chat.messages.len(), open.messages.len() + 1);
            // The next question reads the last token of the answer, which was never run, and itself.
            let next = block_on(session.ask(&mut chat, "Why?", &options(1), &mut Ear::default()))?;
            assert_eq!(next.n_reused, answer.n_prompt + 4);
            Ok(())
        });
    }
}

#[test]
fn an_answer_ends_before_a_stop_text() {
    on(1024, |session| {
        let (mut whole, mut ear) = (Chat::default(), Ear::default());
        block_on(session.ask(&mut whole, "Is it large?", &options(40), &mut ear))?;
        let spoken: String = ear.tokens.iter().map(|token| token.text.as_str()).collect();
        let ends: Vec<usize> =
            ear.tokens.iter().scan(0, |end, token| Some((*end += token.text.len(), *end).1)).collect();
        let at = ends.iter().position(|&end| end > 12 && spoken.is_char_boundary(end - 1)).unwrap();
        // From the last byte of one token to the end of the second after it.
        let (from, to) = (ends[at] - 1, ends[at + 2]);
        let stop = spoken[from..to].to_owned();
        assert_eq!(spoken.find(&stop), Some(from));
        let (mut chat, mut ear) = (Chat::default(), Ear::default());
        let stopping = AskOptions { stop: vec!["no such text".into(), stop.clone()], ..options(40) };
        let answer = block_on(session.ask(&mut chat, "Is it large?", &stopping, &mut ear))?;
        assert_eq!((answer.finish, answer.text.as_str()), (Finish::Stop, spoken[..from].trim()));
        assert_eq!(ear.text, spoken[..from]);
        assert_eq!(chat.answers()[0], whole.answers()[0][..at]);
        let Some(Message { role: Role::Assistant, parts }) = chat.messages.last() else { panic!("{chat:?}") };
        let last = &spoken[ends[at - 1]..from];
        assert_eq!(parts[1..], if last.is_empty() { vec![] } else { vec![text(last)] });
        block_on(session.ask(&mut chat, "Why?", &options(1), &mut Ear::default()))?;
        let empty = AskOptions { stop: vec![String::new()], ..options(1) };
        let error = block_on(session.ask(&mut chat, "Why?", &empty, &mut Ear::default())).unwrap_err();
        assert_eq!(error.to_string(), "a stop text must not be empty");
        Ok(())
    });
}

#[test]
fn several_pictures_are_read_once_in_whatever_turn_they_stand() {
    let ask = |session: &mut Session<Cpu<Threads>>, chat: &mut Chat, parts: Vec<Part>| {
        chat.add(question(parts));
        block_on(session.answer(chat, &options(6), &mut Ear::default()))
    };
    let (whole, answers) = on(2048, |session| {
        let n_image = session.model().vision().unwrap().n_image_tokens();
        let [a, b, c] = [1, 2, 3].map(|seed| look(session, seed));
        let mut chat = Chat::default();
        let first = ask(session, &mut chat, vec![Part::Image(a), Part::Image(b), text("Which is larger?")])?;
        assert!(first.n_prompt > 2 * n_image);
        let second = ask(session, &mut chat, vec![text("And this:\n"), Part::Image(c)])?;
        assert_eq!(second.n_reused, first.n_prompt + 5, "all but the last token of the answer");
        let third = ask(session, &mut chat, vec![text("Why?")])?;
        assert_eq!(third.n_reused, second.n_prompt + 5);
        let mut other = Chat::about(a);
        other.add(question([Part::Image(c)]));
        let other = ask(session, &mut other, vec![text("Which is larger?")])?;
        let is_shared = n_image..other.n_prompt - n_image;
        assert!(is_shared.contains(&other.n_reused), "the first picture alone is shared: {other:?}");
        // The conversation with three pictures is kept in addition to this one.
        let again = ask(session, &mut chat, vec![text("Why?")])?;
        assert_eq!(again.n_reused, third.n_prompt + 5);
        Ok((chat.messages.clone(), chat.answers()))
    });
    // The same prompt, read in one go in a fresh session.
    let last = on(2048, |session| {
        for seed in 1..=3 {
            look(session, seed);
        }
        let mut chat = Chat { messages: whole[..whole.len() - 1].to_vec() };
        let answer = block_on(session.answer(&mut chat, &options(6), &mut Ear::default()))?;
        assert_eq!(answer.n_reused, 0);
        Ok(chat.answers().pop().unwrap())
    });
    assert_eq!(Some(&last), answers.last());
}

#[test]
fn four_pictures_are_read_at_once_and_no_more() {
    on(2048, |session| {
        let keys = [1, 2, 3, 4, 5].map(|seed| look(session, seed));
        let ask = |session: &mut Session<Cpu<Threads>>, keys: &[u64]| {
            let parts: Vec<Part> = keys.iter().map(|&key| Part::Image(key)).chain([text("Which?")]).collect();
            let mut chat = Chat { messages: vec![question(parts)] };
            let result = block_on(session.answer(&mut chat, &options(1), &mut Ear::default()));
            assert_eq!(chat.messages.len(), 1 + result.is_ok() as usize);
            result
        };
        let error = ask(session, &keys).unwrap_err();
        assert_eq!(error.to_string(), "5 pictures would have to be read at once, at most 4 can be");
        // The first is no longer kept: all the needed ones must be encoded again.
        let Err(Error::NotKept { mut images }) = ask(session, &keys[..4]) else { panic!("the first was forgotten") };
        let mut needed = keys[..4].to_vec();
        images.sort();
        needed.sort();
        assert_eq!(images, needed);
        for seed in 1..=4 {
            look(session, seed);
        }
        ask(session, &keys[..4]).unwrap();
        // Pictures that have already been read need not be kept.
        look(session, 5);
        look(session, 6);
        assert_eq!(ask(session, &keys[..4])?.n_reused + 1, ask(session, &keys[..4])?.n_prompt);
        Ok(())
    });
}

#[test]
fn the_first_picture_outlives_its_turn_and_others_go_with_theirs() {
    on(512, |session| {
        let n_image = session.model().vision().unwrap().n_image_tokens();
        let keys = [1, 2].map(|seed| look(session, seed));
        let mut chat = Chat { messages: vec![Message::new(Role::System, [text("Be brief.")])] };
        chat.add(question(keys.map(Part::Image)));
        let (mut n_prompts, mut dropped) = (Vec::new(), 0);
        while dropped == 0 {
            let mut ear = Ear::default();
            let answer = block_on(session.ask(&mut chat, &"word ".repeat(30), &options(8), &mut ear))?;
            n_prompts.push(answer.n_prompt);
            dropped = ear.dropped;
        }
        assert_eq!(dropped, 1);
        let [_, before, last] = n_prompts[..] else { panic!("{n_prompts:?}") };
        // One turn was added and one dropped, and with it one of its pictures and the line break after it.
        assert_eq!(before - last, n_image + 1, "{n_prompts:?}");
        Ok(())
    });
}
