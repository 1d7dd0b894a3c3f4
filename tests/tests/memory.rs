//! Memory that runs short while a conversation is read: earlier conversations are given up on all ranks, whichever of them has none left.

use llama3med::Result;
use llama3med::image::Picture;
use llama3med::model::{Listener, Stage};
use llama3med::ranks::block_on;
use llama3med::session::{AskOptions, Chat};
use quantize::native::with_session;
use quantize::random;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many more times the memory that is to stay free beside keys and values is not there.
static N_REFUSALS: AtomicUsize = AtomicUsize::new(0);

/// That memory, as the engine asks for it; nothing else in this test asks for as many bytes without alignment.
const SPARE: (usize, usize) = (1 << 20, 1);

struct Refusing;

// SAFETY: the system's allocator does the work; refusing is allowed at any time.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let takes_one = |n: usize| n.checked_sub(1);
        if (layout.size(), layout.align()) == SPARE
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

struct Nobody;

impl Listener for Nobody {
    async fn progress(&mut self, _: Stage, _: usize, _: usize) -> bool {
        true
    }
    async fn token(&mut self, _: u32, _: &str) -> bool {
        true
    }
}

fn picture(seed: usize) -> Picture {
    let (width, height) = (90, 70);
    let rgb = (0..width * height * 3).map(|i| ((i * (seed * 2 + 3)) % 251) as u8).collect();
    Picture::new(width, height, rgb)
}

#[test]
fn earlier_conversations_are_given_up_where_memory_is_short() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("memory-tiny");
    random::random(&random::Options::new("tiny", &folder)).unwrap();
    // Two pictures are read before a long question about a third: how many conversations are kept then, and the answer.
    let answer = |n_ranks, n_refusals: usize| {
        let run = |session: &mut llama3med::session::Session<_>| -> Result<_> {
            let mut chat = Chat::default();
            for seed in 1..=3 {
                chat.image = Some(block_on(session.look(&picture(seed), &mut Nobody))?.key);
                block_on(session.prepare(&chat, &mut Nobody))?;
            }
            assert_eq!(session.model().n_kept(), 2);
            N_REFUSALS.store(n_refusals, Ordering::Relaxed);
            let options = AskOptions { max_tokens: 8, sampler: Default::default(), stop_repetition: false };
            block_on(session.ask(&mut chat, &"What? ".repeat(30), &options, &mut Nobody))?;
            assert_eq!(N_REFUSALS.load(Ordering::Relaxed), 0, "fewer pages were asked for than refused");
            Ok((session.model().n_kept(), chat.turns.remove(0).answer))
        };
        with_session(&folder, n_ranks, None, run).unwrap()
    };
    let (n_kept, expected) = answer(1, 0);
    assert_eq!(n_kept, 2);
    for n_ranks in [1, 2, 4] {
        // Fewer refusals than ranks: some have memory, and give up the same.
        assert_eq!(answer(n_ranks, 1), (1, expected.clone()), "{n_ranks} ranks");
    }
    // The present conversation goes on when nothing is left to be given up.
    assert_eq!(answer(1, 4), (0, expected));
}
