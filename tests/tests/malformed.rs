//! Inputs that once broke a parser, or that were made to: each must be refused or read, never panic, hang or exhaust memory.

use std::path::Path;

#[test]
fn every_kept_input_is_handled() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("malformed");
    let mut n_inputs = 0;
    for (name, parse) in tests::PARSERS {
        let Ok(files) = std::fs::read_dir(folder.join(name)) else { continue };
        for file in files {
            parse(&std::fs::read(file.unwrap().path()).unwrap());
            n_inputs += 1;
        }
    }
    assert!(n_inputs > 0, "no inputs in {}", folder.display());
}
