//! One binary for all parsers: the environment variable `PARSER` names the function of `tests/src/lib.rs` that gets the input.
//!
//! `PARSER=gguf cargo +nightly fuzz run parsers fuzz/corpus/gguf -- -max_total_time=300`; `make fuzz` runs all of them. What was found is kept in
//! `tests/malformed/` and run by every test.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static PARSER: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("PARSER").unwrap_or_default();
    let parser = tests::PARSERS.iter().find(|(parser, _)| *parser == name);
    parser.unwrap_or_else(|| panic!("set PARSER to one of {:?}", tests::PARSERS.map(|(name, _)| name))).1
});

fuzz_target!(|data: &[u8]| PARSER(data));
