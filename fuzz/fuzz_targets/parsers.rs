//! One binary for all parsers: the environment variable `PARSER` names the function of `tests/src/lib.rs` that gets the input.
//!
//! `make fuzz` runs all of them, `make fuzz PARSERS=gguf FUZZ_SECONDS=600` one for longer. What was found is kept in `tests/malformed/` and run by every
//! test. Parsers run on one thread with a stack as small as the browser's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{LazyLock, Mutex};

type Thread = Mutex<(SyncSender<Vec<u8>>, Receiver<()>)>;

static THREAD: LazyLock<Thread> = LazyLock::new(|| {
    let name = std::env::var("PARSER").unwrap_or_default();
    let parser = tests::PARSERS.iter().find(|(parser, _)| *parser == name);
    let (_, parse) = *parser.unwrap_or_else(|| panic!("set PARSER to one of {:?}", tests::PARSERS.map(|(name, _)| name)));
    let (inputs, to_parse) = sync_channel::<Vec<u8>>(0);
    let (parsed, is_parsed) = sync_channel(0);
    tests::on_small_stack(move || {
        for data in to_parse {
            parse(&data);
            let _ = parsed.send(());
        }
    });
    Mutex::new((inputs, is_parsed))
});

fuzz_target!(|data: &[u8]| {
    let (inputs, is_parsed) = &*THREAD.lock().unwrap();
    inputs.send(data.to_vec()).unwrap();
    // A panic of the thread has ended the process.
    is_parsed.recv().unwrap();
});
