//! A native session, end to end, on a small random model: prefix reuse, stopping, dropping turns, several pictures,
//! several ranks, lost ranks.

use llama3med::device::cpu::Cpu;
use llama3med::device::ranks::{Threads, block_on};
use llama3med::file::gguf::Dtype;
use llama3med::model::session::{Answer, AskOptions, Chat, Finish, Session};
use llama3med::model::{Item, Listener, Stage, Token};
use llama3med::picture::Picture;
use llama3med::spec::watch::{Part, Point, Watch};
use llama3med::text::conversation::{self, Message, Role};
use llama3med::{Error, Result};
use quantize::convert::random;
use quantize::native::with_session;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("session-tiny");
    random::random(&random::Options::new("tiny", &folder)).unwrap();
    folder
});

/// In f32 only the order of sums differs between numbers of ranks; with 4-bit weights, activations are rounded to 8
/// bits, where a difference in the last bit sometimes becomes a whole step.
static EXACT_FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("session-exact");
    let options = random::Options { types: Dtype::F32.into(), ..random::Options::new("tiny", &folder) };
    random::random(&options).unwrap();
    folder
});

/// Records everything; stops at a given point.
#[derive(Default)]
struct Ear {
    tiles: usize,
    n_read: usize,
    ids: Vec<u32>,
    text: String,
    dropped: usize,
    stop_at_token: Option<usize>,
    stop_at_tile: Option<usize>,
}

impl Listener for Ear {
    async fn progress(&mut self, stage: Stage, done: usize, total: usize) -> bool {
        match stage {
            Stage::Encoding => self.tiles = done,
            Stage::Reading => self.n_read = total,
        }
        stage != Stage::Encoding || self.stop_at_tile != Some(done)
    }
    async fn token(&mut self, token: &Token) -> bool {
        self.ids.push(token.id);
        self.text.push_str(&token.text);
        self.stop_at_token != Some(self.ids.len())
    }
    async fn rest(&mut self, text: &str) {
        self.text.push_str(text);
    }
    fn dropped(&mut self, n_turns: usize) {
        self.dropped = n_turns;
    }
}

fn picture(seed: usize) -> Picture {
    let (width, height) = (90, 70);
    let rgb = (0..width * height * 3).map(|i| ((i * (seed * 2 + 3)) % 251) as u8).collect();
    Picture::new(width, height, rgb)
}

fn options(max_tokens: usize) -> AskOptions {
    AskOptions { max_tokens, stop_repetition: false, ..AskOptions::default() }
}

fn on<T: Send>(
    n_ranks: usize,
    context: usize,
    run: impl FnOnce(&mut Session<Cpu<Threads>>) -> Result<T> + Send,
) -> Result<T> {
    with_session(&FOLDER, n_ranks, Some(context), run)
}

#[test]
fn two_turns_are_the_same_on_1_2_and_4_ranks_and_read_only_what_is_new() {
    let answers = |n_ranks| {
        on(n_ranks, 1024, |session| {
            let mut ear = Ear::default();
            let look = block_on(session.look(&picture(1), &mut ear))?;
            assert_eq!(ear.tiles, session.model().vision().unwrap().scales.n_tiles());
            let mut chat = Chat::about(look.key);
            block_on(session.prepare(&chat, &mut ear))?;
            let first = block_on(session.ask(&mut chat, "Is it large?", &options(12), &mut ear))?;
            assert!(first.n_reused >= session.model().vision().unwrap().n_image_tokens(), "{first:?}");
            let second = block_on(session.ask(&mut chat, "Where?", &options(12), &mut ear))?;
            // All of the first turn except its last token, which was never run, is in the cache.
            assert!(second.n_reused + 2 >= first.n_prompt + chat.answers()[0].len(), "{first:?} {second:?}");
            assert_eq!(ear.n_read, second.n_prompt - second.n_reused);
            assert_eq!(
                ear.text.len(),
                chat.answers().iter().map(|answer| session.tokenizer().decode(answer).len()).sum::<usize>()
            );
            Ok(chat.answers())
        })
        .unwrap()
    };
    let alone = answers(1);
    assert_eq!(alone.iter().map(Vec::len).sum::<usize>(), 24, "a random model does not stop by itself: {alone:?}");
    for n_ranks in [2, 4] {
        assert_eq!(answers(n_ranks), alone, "{n_ranks} ranks");
    }
}

#[test]
fn any_number_of_ranks_up_to_16_answers_as_one_does() {
    let answer = |n_ranks| {
        with_session(&EXACT_FOLDER, n_ranks, Some(1024), |session| {
            let key = block_on(session.look(&picture(1), &mut Ear::default()))?.key;
            let mut chat = Chat::about(key);
            block_on(session.ask(&mut chat, "Is it large?", &options(16), &mut Ear::default()))?;
            Ok(chat.answers().remove(0))
        })
        .unwrap()
    };
    let alone = answer(1);
    // Also more ranks than heads (6, with 2 key heads), and numbers that are not powers of two.
    for n_ranks in [3, 6, 8, 13, 16] {
        assert_eq!(answer(n_ranks), alone, "{n_ranks} ranks");
    }
}

#[test]
fn a_reused_prefix_gives_the_same_answer_as_a_fresh_start() {
    let answer = |warm: bool| {
        on(1, 1024, |session| {
            let key = block_on(session.look(&picture(2), &mut Ear::default()))?.key;
            if warm {
                let mut other = Chat::about(key);
                block_on(session.ask(&mut other, "Something else entirely?", &options(5), &mut Ear::default()))?;
            }
            let mut chat = Chat::about(key);
            block_on(session.ask(&mut chat, "Is it large?", &options(16), &mut Ear::default()))?;
            Ok(chat.answers().remove(0))
        })
        .unwrap()
    };
    assert_eq!(answer(true), answer(false));
}

/// The answers about pictures (and about text, 0) in turns, each in its own conversation, and how many tokens were
/// read before each question.
fn in_turns(n_ranks: usize, order: &[usize]) -> Vec<(Vec<u32>, usize)> {
    on(n_ranks, 1024, |session| {
        let answer_about = |&seed: &usize| {
            let (mut chat, mut ear) = (Chat::default(), Ear::default());
            if seed > 0 {
                chat = Chat::about(block_on(session.look(&picture(seed), &mut ear))?.key);
            }
            block_on(session.prepare(&chat, &mut ear))?;
            let n_before = ear.n_read;
            let answer = block_on(session.ask(&mut chat, "What is to be seen?", &options(12), &mut ear))?;
            assert_eq!(ear.n_read, answer.n_prompt - answer.n_reused);
            assert!(ear.n_read < 64, "the question alone: {answer:?}");
            Ok((chat.answers().remove(0), n_before))
        };
        order.iter().map(answer_about).collect()
    })
    .unwrap()
}

#[test]
fn whoever_goes_back_to_an_earlier_picture_finds_it_read() {
    let fresh: Vec<_> = (0..3).map(|seed| in_turns(1, &[seed]).remove(0).0).collect();
    for n_ranks in [1, 2] {
        let order = [1, 2, 1, 0, 2, 1];
        let (answers, n_before): (Vec<_>, Vec<_>) = in_turns(n_ranks, &order).into_iter().unzip();
        assert_eq!(answers, order.map(|seed| fresh[seed].clone()), "{n_ranks} ranks");
        assert!(n_before[0] > 100 && n_before[1] >= 64 && n_before[2..] == [0; 4], "{n_before:?}");
    }
}

#[test]
fn preparing_for_an_earlier_picture_reads_nothing() {
    on(2, 1024, |session| {
        let keys = [7, 8].map(|seed| block_on(session.look(&picture(seed), &mut Ear::default())).unwrap().key);
        let chats = keys.map(Chat::about);
        let n_read = [0, 1, 0, 1].map(|idx| {
            let mut ear = Ear::default();
            block_on(session.prepare(&chats[idx], &mut ear)).unwrap();
            ear.n_read
        });
        assert!(n_read[1] >= session.model().vision().unwrap().n_image_tokens() && n_read[1] < n_read[0], "{n_read:?}");
        assert_eq!(n_read[2..], [0, 0]);
        Ok(())
    })
    .unwrap();
}

#[test]
fn earlier_conversations_make_room_for_the_present_one() {
    // Each takes three pages of 64 positions, the long one takes four; the context has six.
    on(2, 384, |session| {
        let mut reused = |seed, question: &str| {
            let key = block_on(session.look(&picture(seed), &mut Ear::default()))?.key;
            let mut chat = Chat::about(key);
            let answer = block_on(session.ask(&mut chat, question, &options(2), &mut Ear::default()))?;
            Ok::<_, Error>((answer.n_reused, answer.n_prompt, session.model().n_kept()))
        };
        let (_, n_prompt, _) = reused(1, "a")?;
        assert!((129..=190).contains(&n_prompt), "{n_prompt}");
        assert_eq!(reused(2, "a")?.2, 1, "two fit");
        let (n_reused, _, n_kept) = reused(1, "a")?;
        assert_eq!((n_reused, n_kept), (n_prompt - 1, 1));
        let (_, n_long, n_kept) = reused(1, &"a ".repeat(80))?;
        assert!(n_long > 192 && n_kept == 0, "{n_long} {n_kept}");
        assert!(reused(2, "a")?.0 < n_prompt / 2, "it had to go");
        Ok(())
    })
    .unwrap();
}

#[test]
fn no_more_conversations_are_kept_than_pictures() {
    on(1, 2048, |session| {
        for seed in 1..=6 {
            let key = block_on(session.look(&picture(seed), &mut Ear::default()))?.key;
            let chat = Chat::about(key);
            block_on(session.prepare(&chat, &mut Ear::default()))?;
            assert_eq!(session.model().n_kept(), (seed - 1).min(3));
        }
        // The most recently used one stays longest, as a picture and as a conversation.
        for seed in [3, 7, 8, 3] {
            let mut ear = Ear::default();
            let key = block_on(session.look(&picture(seed), &mut ear))?.key;
            let chat = Chat::about(key);
            block_on(session.prepare(&chat, &mut ear))?;
            assert_eq!((ear.tiles, ear.n_read) == (0, 0), seed == 3, "picture {seed}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn stopping_keeps_what_was_said_and_the_next_turn_goes_on_from_there() {
    on(2, 1024, |session| {
        let key = block_on(session.look(&picture(3), &mut Ear::default()))?.key;
        let mut chat = Chat::about(key);
        let mut ear = Ear { stop_at_token: Some(3), ..Ear::default() };
        let answer = block_on(session.ask(&mut chat, "What?", &options(50), &mut ear))?;
        assert_eq!((answer.finish, chat.answers()[0].len()), (Finish::Cancelled, 3));
        let answer = block_on(session.ask(&mut chat, "And?", &options(4), &mut Ear::default()))?;
        assert_eq!((answer.finish, chat.answers().len()), (Finish::Length, 2));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_cancelled_look_leaves_the_session_usable() {
    on(2, 1024, |session| {
        let mut ear = Ear { stop_at_tile: Some(2), ..Ear::default() };
        assert_eq!(block_on(session.look(&picture(4), &mut ear)).err(), Some(Error::Cancelled));
        let key = block_on(session.look(&picture(5), &mut Ear::default()))?.key;
        let again = block_on(session.look(&picture(5), &mut Ear::default()))?;
        assert_eq!((again.key, again.features.len()), (key, 0), "the second look is free");
        let mut chat = Chat::about(key);
        block_on(session.ask(&mut chat, "What?", &options(2), &mut Ear::default())).map(|_| ())
    })
    .unwrap();
}

#[test]
fn a_full_context_drops_the_oldest_turns_and_never_the_question() {
    on(1, 256, |session| {
        let key = block_on(session.look(&picture(6), &mut Ear::default()))?.key;
        let mut chat = Chat::about(key);
        let mut n_dropped = 0;
        for _ in 0..8 {
            let mut ear = Ear::default();
            let answer = block_on(session.ask(&mut chat, "A question of some length?", &options(20), &mut ear))?;
            assert!(answer.n_prompt < 256 && !ear.ids.is_empty());
            assert!(ear.dropped >= n_dropped);
            n_dropped = ear.dropped;
        }
        assert!(n_dropped > 0 && chat.answers().len() == 8);
        let long = "word ".repeat(300);
        let error = block_on(session.ask(&mut chat, &long, &options(20), &mut Ear::default())).unwrap_err();
        assert!(matches!(error, Error::ContextFull { context: 256, .. }), "{error}");
        assert_eq!(chat.answers().len(), 8, "a question that was never read is not kept");
        Ok(())
    })
    .unwrap();
}

/// Asks in a context of this many tokens, without a picture: the result, the answer's tokens, and how many turns were
/// dropped.
fn ask_in(
    folder: &Path,
    context: usize,
    chat: &Chat,
    max_tokens: usize,
    stop_repetition: bool,
) -> Result<(Answer, Vec<u32>, usize)> {
    with_session(folder, 1, Some(context), |session| {
        let (mut chat, mut ear) = (chat.clone(), Ear::default());
        let options = AskOptions { max_tokens, stop_repetition, ..AskOptions::default() };
        let answer = block_on(session.ask(&mut chat, "Hello?", &options, &mut ear))?;
        Ok((answer, chat.answers().pop().unwrap(), ear.dropped))
    })
}

/// A copy of the model whose answers end with another token.
fn stopping_at(id: u32) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("session-stop");
    std::fs::create_dir_all(&folder).unwrap();
    for file in std::fs::read_dir(&*FOLDER).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let key = b"llama3med.stop_token_ids";
        if let Some(at) = bytes.windows(key.len()).position(|window| window == key) {
            // Type of the value, type of its elements, number of elements.
            let first = at + key.len() + 4 + 4 + 8;
            bytes[first..first + 4].copy_from_slice(&id.to_le_bytes());
        }
        std::fs::write(folder.join(path.file_name().unwrap()), bytes).unwrap();
    }
    folder
}

#[test]
fn an_answer_fills_the_context_to_its_last_place() {
    let ask = |folder: &Path, context, max_tokens| ask_in(folder, context, &Chat::default(), max_tokens, false);
    let (whole, ids, _) = ask(&FOLDER, 1024, 20).unwrap();
    let n_prompt = whole.n_prompt;
    // The last token is chosen at the last position, and itself needs none.
    for n_places in 1..6 {
        for (max_tokens, finish) in [
            (n_places, Finish::Length),
            (n_places + 1, Finish::Length),
            (n_places + 2, Finish::Context),
            (500, Finish::Context),
        ] {
            let (answer, found, _) = ask(&FOLDER, n_prompt + n_places, max_tokens).unwrap();
            let expected = &ids[..max_tokens.min(n_places + 1)];
            assert_eq!((answer.finish, found.as_slice()), (finish, expected), "{n_places} places, {max_tokens} tokens");
        }
    }
    let error = ask(&FOLDER, n_prompt, 1).unwrap_err();
    assert_eq!(error, Error::ContextFull { needed: n_prompt, context: n_prompt });
    // A model that ends its answer at the last position has ended it itself; with one position less, the answer was cut
    // off.
    let n = (2..ids.len()).find(|&n| !ids[..n].contains(&ids[n])).expect("a token that comes late");
    let folder = stopping_at(ids[n]);
    for (n_places, finish) in [(n + 1, Finish::Stop), (n, Finish::Stop), (n - 1, Finish::Context)] {
        let (answer, found, _) = ask(&folder, n_prompt + n_places, 500).unwrap();
        assert_eq!((answer.finish, found.as_slice()), (finish, &ids[..n]), "{n_places} places for {n} tokens");
    }
}

#[test]
fn a_turn_is_dropped_only_where_the_answer_would_have_no_room() {
    let chat = |turns: &[u32]| {
        turns.iter().fold(Chat::default(), |chat, n| {
            let mut chat = chat.asked(&format!("Question {n}?"));
            chat.add(Message::new(Role::Assistant, [conversation::Part::Tokens((40..50 + n).collect())]));
            chat
        })
    };
    let n_prompt = |turns: &[u32]| ask_in(&FOLDER, 1024, &chat(turns), 1, false).unwrap().0.n_prompt;
    let n_prompts = [n_prompt(&[1, 2]), n_prompt(&[2]), n_prompt(&[])];
    let in_context = |context, max_tokens| {
        let (answer, ids, n_dropped) = ask_in(&FOLDER, context, &chat(&[1, 2]), max_tokens, false).unwrap();
        assert_eq!(answer.n_prompt, n_prompts[n_dropped], "{context}");
        (n_dropped, ids.len())
    };
    for n_dropped in 0..2 {
        let n_prompt = n_prompts[n_dropped];
        // The room for a short answer is reserved in full; for a long one, a quarter of the context.
        assert_eq!(in_context(n_prompt + 5, 5), (n_dropped, 5));
        assert_eq!(in_context(n_prompt + 4, 5), (n_dropped + 1, 5));
        let context = (n_prompt..).find(|context| n_prompt + context / 4 <= *context).unwrap();
        assert_eq!(in_context(context, 500), (n_dropped, context - n_prompt + 1));
        assert_eq!(in_context(context - 1, 500).0, n_dropped + 1);
    }
    // The question alone needs room only for itself and one token.
    assert_eq!(in_context(n_prompts[2] + 1, 500), (2, 2));
    let error = ask_in(&FOLDER, n_prompts[2], &chat(&[1, 2]), 500, false).unwrap_err();
    assert_eq!(error, Error::ContextFull { needed: n_prompts[2], context: n_prompts[2] });
}

#[test]
fn an_answer_that_only_repeats_itself_is_ended() {
    // What small models eventually do if the most likely token is always taken.
    let (_, ids, _) = ask_in(&FOLDER, 2048, &Chat::default(), 1000, false).unwrap();
    let (answer, found, _) = ask_in(&FOLDER, 2048, &Chat::default(), 1000, true).unwrap();
    assert_eq!(answer.finish, Finish::Repetition);
    assert_eq!(found, ids[..found.len()]);
    assert!((96..900).contains(&found.len()), "{}", found.len());
    let tail = &found[found.len() - 96..];
    assert!((1..=32).any(|n| tail[n..] == tail[..96 - n]), "{tail:?}");
}

#[test]
fn a_given_answer_is_continued_as_it_was_made() {
    for n_ranks in [1, 2] {
        with_session(&EXACT_FOLDER, n_ranks, None, |session| {
            let image = Some(block_on(session.look(&picture(1), &mut Ear::default()))?.key);
            let (chat, question) = (Chat::about(image), "What is to be seen?");
            let mut asked = chat.clone();
            block_on(session.ask(&mut asked, question, &options(20), &mut Ear::default()))?;
            let answer = &asked.answers()[0];
            let seen = Rc::new(RefCell::new((0, 0)));
            let counts = seen.clone();
            let watch = Watch::new(move |place, n_tokens, value| {
                let mut counts = counts.borrow_mut();
                match (place.part, place.point) {
                    (Part::Decoder, Point::Residual) if place.layer == 5 => {
                        *counts = (counts.0 + n_tokens, value.len() / n_tokens)
                    }
                    (Part::Tower, _) => panic!("the picture was looked at before"),
                    _ => {}
                }
            });
            let forced = block_on(session.force(&chat, question, answer, watch, &mut Ear::default()))?;
            let rows: Vec<&[f32]> = forced.logits.chunks_exact(session.model().spec().vocab_size).collect();
            assert_eq!((rows.len(), *seen.borrow()), (answer.len() + 1, (answer.len() + 1, 192)));
            assert!(forced.items.ends_with(&answer.iter().map(|&id| Item::Token(id)).collect::<Vec<_>>()));
            for (row, &id) in rows.iter().zip(answer) {
                let known = |&other: &u32| session.tokenizer().is_known(other);
                let best =
                    (0..row.len() as u32).filter(known).max_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize]));
                assert_eq!(best, Some(id));
            }
            let long = vec![0; 5000];
            let error =
                block_on(session.force(&chat, question, &long, Watch::default(), &mut Ear::default())).unwrap_err();
            assert!(error.to_string().contains("the context holds 2048"), "{error}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn text_alone_works_and_a_forgotten_picture_is_an_error() {
    on(1, 1024, |session| {
        let mut chat = Chat::default();
        block_on(session.ask(&mut chat, "Hello?", &options(3), &mut Ear::default()))?;
        let keys: Vec<u64> =
            (10..16).map(|seed| block_on(session.look(&picture(seed), &mut Ear::default())).unwrap().key).collect();
        let mut chat = Chat::about(keys[0]);
        let error = block_on(session.ask(&mut chat, "What?", &options(3), &mut Ear::default())).unwrap_err();
        assert_eq!(error.to_string(), "image: the encoded image is no longer kept");
        let mut chat = Chat::about(keys[5]);
        block_on(session.ask(&mut chat, "What?", &options(3), &mut Ear::default())).map(|_| ())
    })
    .unwrap();
}
