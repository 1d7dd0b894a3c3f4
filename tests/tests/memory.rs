//! Memory that runs out, on any rank: earlier conversations are dropped on all ranks; if that is not enough, only the
//! operation fails.

use llama3med::device::ranks::block_on;
use llama3med::model::session::{AskOptions, Chat};
use llama3med::picture::Picture;
use llama3med::{Error, Result};
use quantize::convert::random;
use quantize::native::with_session;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Which allocations are refused, and how many more times.
static REFUSED: AtomicUsize = AtomicUsize::new(0);
static N_REFUSALS: AtomicUsize = AtomicUsize::new(0);

/// The memory that must stay free besides what an operation reserves; nothing else in these tests allocates as many
/// bytes without alignment.
const SPARE: usize = 0;
/// A page of keys or values: nothing else consists of 16-bit integers.
const PAGES: usize = 1;
/// What the encoder needs for a picture: more than any one buffer.
const WORK: usize = 2;

fn is_refused(layout: Layout) -> bool {
    match REFUSED.load(Ordering::Relaxed) {
        SPARE => (layout.size(), layout.align()) == (1 << 20, 1),
        PAGES => layout.align() == 2,
        _ => layout.align() == 1 && layout.size() > 3 << 19,
    }
}

fn refuse(which: usize, n: usize) {
    REFUSED.store(which, Ordering::Relaxed);
    N_REFUSALS.store(n, Ordering::Relaxed);
}

struct Refusing;

// SAFETY: the system's allocator does the work; refusing is allowed at any time.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let takes_one = |n: usize| n.checked_sub(1);
        if N_REFUSALS.load(Ordering::Relaxed) > 0
            && is_refused(layout)
            && N_REFUSALS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, takes_one).is_ok()
        {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: every pointer comes from `System.alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Refusing = Refusing;

/// Refusals affect the whole process: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

fn picture(seed: usize) -> Picture {
    let (width, height) = (90, 70);
    let rgb = (0..width * height * 3).map(|i| ((i * (seed * 2 + 3)) % 251) as u8).collect();
    Picture::new(width, height, rgb)
}

fn model() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("memory-tiny");
    random::random(&random::Options::new("tiny", &folder)).unwrap();
    folder
}

#[test]
fn earlier_conversations_are_given_up_where_memory_is_short() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = model();
    // Two pictures are read before a long question about a third: how many conversations are then kept, and the answer.
    let answer = |n_ranks, n_refusals: usize| {
        let run = |session: &mut llama3med::model::session::Session<_>| -> Result<_> {
            let mut chat = Chat::default();
            for seed in 1..=3 {
                chat = Chat::about(block_on(session.look(&picture(seed), &mut ()))?.key);
                block_on(session.prepare(&chat, &mut ()))?;
            }
            assert_eq!(session.model().n_kept(), 2);
            refuse(SPARE, n_refusals);
            let options = AskOptions { max_tokens: 8, stop_repetition: false, ..AskOptions::default() };
            block_on(session.ask(&mut chat, &"What? ".repeat(30), &options, &mut ()))?;
            assert_eq!(N_REFUSALS.load(Ordering::Relaxed), 0, "fewer pages were asked for than refused");
            Ok((session.model().n_kept(), chat.answers().remove(0)))
        };
        with_session(&folder, n_ranks, None, run).unwrap()
    };
    let (n_kept, expected) = answer(1, 0);
    assert_eq!(n_kept, 2);
    for n_ranks in [1, 2, 4] {
        // Fewer refusals than ranks: some ranks have memory, and drop the same conversations.
        assert_eq!(answer(n_ranks, 1), (1, expected.clone()), "{n_ranks} ranks");
    }
    // The current conversation continues when nothing is left to drop.
    assert_eq!(answer(1, 4), (0, expected));
}

/// One of several ranks has no memory: the operation fails on rank 0, and the next ones give the same results as
/// without the failure.
#[test]
fn want_of_memory_on_one_rank_fails_the_operation_alone() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = model();
    let question = "What? ".repeat(30);
    let answers = |n_ranks: usize, fails: bool| {
        let run = |session: &mut llama3med::model::session::Session<_>| -> Result<_> {
            let options = AskOptions { max_tokens: 8, stop_repetition: false, ..AskOptions::default() };
            let mut answers = Vec::new();
            for refused in [WORK, PAGES] {
                if fails && refused == WORK {
                    refuse(WORK, 1);
                    let error = block_on(session.look(&picture(1), &mut ())).unwrap_err();
                    assert!(error.to_string().ends_with(&format!("for a picture on 1 of {n_ranks} ranks")), "{error}");
                    assert_eq!(N_REFUSALS.load(Ordering::Relaxed), 0);
                }
                let mut chat = Chat::about(block_on(session.look(&picture(1), &mut ()))?.key);
                block_on(session.prepare(&chat, &mut ()))?;
                if fails && refused == PAGES {
                    refuse(PAGES, 1);
                    let error = block_on(session.ask(&mut chat, &question, &options, &mut ())).unwrap_err();
                    let end = format!("for a longer conversation on 1 of {n_ranks} ranks");
                    assert!(matches!(error, Error::OutOfMemory { .. }) && error.to_string().ends_with(&end), "{error}");
                    assert_eq!((N_REFUSALS.load(Ordering::Relaxed), chat.answers().len()), (0, 0));
                }
                for question in [question.as_str(), "And?"] {
                    block_on(session.ask(&mut chat, question, &options, &mut ()))?;
                }
                answers.push(chat.messages);
            }
            Ok(answers)
        };
        with_session(&folder, n_ranks, None, run).unwrap()
    };
    for n_ranks in [1, 2, 3, 4] {
        assert_eq!(answers(n_ranks, true), answers(n_ranks, false), "{n_ranks} ranks");
    }
}
