//! Inputs that once broke a parser, or that were made to: each must be refused or read, never panic, hang, exhaust memory or the browser's stack.

use std::path::Path;

#[test]
fn every_kept_input_is_handled() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("malformed");
    for (name, parse) in tests::PARSERS {
        let files =
            std::fs::read_dir(folder.join(name)).unwrap_or_else(|error| panic!("tests/malformed/{name}: {error}"));
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert!(!paths.is_empty(), "no inputs in tests/malformed/{name}");
        paths.sort();
        let parse_all = move || {
            for path in paths {
                // Where the stack ends there is no other word about which one it was.
                eprintln!("{}", path.display());
                parse(&std::fs::read(&path).unwrap());
            }
        };
        tests::on_small_stack(parse_all).join().unwrap_or_else(|_| panic!("{name}: see above for the input"));
    }
}
