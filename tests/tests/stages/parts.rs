//! The siglip golden, assembled from what torch and PEFT save (`golden/parts.py`): pickles in shards, a separate tower,
//! a projector, a LoRA adapter.

use crate::golden::{Files, Golden, assert_close, folder};
use crate::whole::{QUESTION, Record, greedy, picture};
use llama3med::device::ranks::block_on;
use llama3med::file::gguf::Dtype;
use llama3med::model::session::Chat;
use quantize::checkpoint::Parts;
use quantize::native::with_session;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder with the golden's configuration and tokenizer but no tensors; on request with the adapter's files, as a
/// training run leaves them.
fn bare(name: &str, with_adapter: bool) -> PathBuf {
    // The files contain the folder's name.
    let bare = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("parts-{name}-{}/checkpoint", std::process::id()));
    fs::create_dir_all(&bare).unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json"] {
        fs::copy(folder("siglip").join("checkpoint").join(file), bare.join(file)).unwrap();
    }
    if with_adapter {
        for file in fs::read_dir(folder("parts").join("adapter")).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), bare.join(file.file_name())).unwrap();
        }
    }
    bare
}

#[test]
fn a_model_of_parts_answers_as_the_whole_one() {
    let at = |part: &str| Some(folder("parts").join(part));
    let (decoder, encoder) = (at("decoder"), at("tower/checkpoint.pth"));
    let named = Parts {
        decoder: decoder.clone(),
        encoder: encoder.clone(),
        connector: at("projector"),
        adapter: at("adapter"),
        template: None,
    };
    // The projector is also among the adapter's other tensors.
    let in_the_folder = Parts { decoder, encoder, ..Parts::default() };
    let golden = Golden::read("siglip");
    let answer: Vec<u32> = golden.i64("greedy_ids").into_iter().map(|id| id as u32).collect();
    let whole = Files::convert("siglip", Dtype::F32);
    for (name, parts, with_adapter) in [("named", named, false), ("folder", in_the_folder, true)] {
        let bare = bare(name, with_adapter);
        let files = Files::convert_parts(bare.clone(), parts, Dtype::F32);
        assert!(files.encoder == whole.encoder, "{name}: the encoder has no adapter: every byte is the golden's");
        let (ids, record) = with_session(&files.folder, 2, None, |session| {
            let mut record = Record::default();
            let look = block_on(session.look(&picture("siglip"), &mut record)).unwrap();
            let mut chat = Chat::about(look.key);
            block_on(session.ask(&mut chat, QUESTION, &greedy(answer.len()), &mut record)).unwrap();
            Ok((chat.answers().remove(0), record))
        })
        .unwrap();
        assert_close(&format!("{name}: logits"), &record.logits, &golden.f32("logits"), 1e-4);
        assert_eq!(ids, answer, "{name}");
        fs::remove_dir_all(bare.parent().unwrap()).unwrap();
    }
}
