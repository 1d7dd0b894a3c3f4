//! Copies of the golden checkpoints, for tests that damage them.
#![allow(dead_code)] // no single test file uses everything

use llama3med::file::gguf::Dtype;
use quantize::{Options, convert};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A golden checkpoint in a separate folder.
pub struct Checkpoint {
    /// The copy.
    pub folder: PathBuf,
    output: PathBuf,
}

impl Checkpoint {
    /// A copy of golden `golden` for test `test`.
    pub fn new(golden: &str, test: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
        let _ = fs::remove_dir_all(&root);
        let folder = root.join("checkpoint");
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(golden).join("checkpoint");
        copy(&from, &folder);
        Self { folder, output: root.join("model") }
    }

    pub fn output(&self) -> &Path {
        &self.output
    }

    pub fn options(&self) -> Options {
        Options { types: Dtype::Q4_0.into(), ..Options::new(&self.folder, &self.output) }
    }

    /// Changes a JSON file.
    pub fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let path = self.folder.join(file);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        fs::write(path, value.to_string()).unwrap();
    }

    /// Changes a file's bytes.
    pub fn edit_bytes(&self, file: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let path = self.folder.join(file);
        let mut bytes = fs::read(&path).unwrap();
        edit(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    /// Changes the header of a safetensors file and keeps its data.
    pub fn edit_header(&self, file: &str, edit: impl FnOnce(String) -> String) {
        self.edit_bytes(file, |bytes| {
            let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header = edit(String::from_utf8(bytes[8..end].to_vec()).unwrap());
            let data = bytes.split_off(end);
            *bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.into_bytes());
            bytes.extend(data);
        });
    }

    /// Changes the header of a safetensors file as JSON.
    pub fn edit_tensors(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        self.edit_header(file, |header| {
            let mut value = serde_json::from_str(&header).unwrap();
            edit(&mut value);
            value.to_string()
        });
    }

    /// Converts, and expects an error that contains these words and leaves nothing behind.
    pub fn refused(&self, words: &[&str]) {
        let error = convert(&self.options()).expect_err("the checkpoint is spoiled").to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
        assert!(!error.contains('\n'), "{error}");
        let left: Vec<_> =
            fs::read_dir(self.output.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["checkpoint"]);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
