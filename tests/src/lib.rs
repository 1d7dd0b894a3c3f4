//! One function per parser of outside bytes: run by the fuzz targets of `fuzz/` on made-up input, and by the tests on every input that ever mattered.

use llama3med::gguf::Gguf;
use llama3med::manifest::Manifest;
use llama3med::tokenizer::Tokenizer;

/// A GGUF header, with every array read, and the prefix behaviour of the loader.
pub fn gguf(data: &[u8]) {
    if let Ok(Some(gguf)) = Gguf::parse("fuzz.gguf", data, data.len() as u64) {
        for key in gguf.metadata.keys() {
            let _ = (gguf.get_strings(key), gguf.get_ints(key), gguf.get_floats(key), gguf.get_usize(key));
        }
    }
    let _ = Gguf::parse("fuzz.gguf", data, u64::MAX - 1);
}

/// A manifest.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data) {
        let again = Manifest::parse(&serde_json::to_vec(&manifest).expect("a manifest is JSON"));
        assert_eq!(again.expect("what was accepted is accepted again"), manifest);
    }
}

/// A tokenizer.json, used if it can be read.
pub fn tokenizer(data: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_json(data) {
        let text = "Is there a mass? 肺🩻 <|eot_id|>\r\n\t 12345";
        if let Ok(ids) = tokenizer.encode_text(text) {
            assert!(ids.iter().all(|&id| tokenizer.is_known(id)));
            tokenizer.decode(&ids);
        }
        tokenizer.decode(&(0..400).chain([u32::MAX]).collect::<Vec<_>>());
    }
}

/// Every parser by name.
pub const PARSERS: [(&str, fn(&[u8])); 3] = [("gguf", gguf), ("manifest", manifest), ("tokenizer", tokenizer)];
