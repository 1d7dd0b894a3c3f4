//! One function per parser of outside bytes: run by the fuzz targets of `fuzz/` on made-up input, and by the tests on every input that ever mattered.

use llama3med::gguf::Gguf;
use llama3med::image::{Fit, Picture, Preprocess, preprocess};
use llama3med::manifest::{DECODER, ENCODER, Manifest};
use llama3med::model::ModelLoader;
use llama3med::prompt::Template;
use llama3med::shard::Shard;
use llama3med::tokenizer::Tokenizer;
use quantize::About;
use quantize::checkpoint::{Parts, chat, pickle, safetensors, sentencepiece, tensor::Tensor};
use quantize::convert::Understood;
use quantize::protocol::Protocol;
use quantize::questions::QuestionSet;
use quantize::score::{self, Scoring, score};
use std::path::{Path, PathBuf};

/// A GGUF header, with every array read, its vocabulary and template used if they can be read, and the prefix behaviour of the loader.
pub fn gguf(data: &[u8]) {
    if let Ok(Some(gguf)) = Gguf::parse("fuzz.gguf", data, data.len() as u64) {
        for key in gguf.metadata.keys() {
            let _ = (gguf.get_strings(key), gguf.get_ints(key), gguf.get_floats(key), gguf.get_usize(key));
        }
        if let Ok(vocabulary) = Tokenizer::from_gguf(&gguf) {
            let prompt = Template::from_gguf(&gguf, &vocabulary);
            let _ = prompt.and_then(|template| template.prompt(&vocabulary, &[], "Is there a mass? 肺🩻 </s>", true));
        }
        let _ = Gguf::join(&[gguf.clone(), gguf]);
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

/// A picture, made square if it can be read.
pub fn image(data: &[u8]) {
    if let Ok(picture) = Picture::decode(data) {
        assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
        for fit in [Fit::Crop, Fit::Pad, Fit::Stretch] {
            let pixels = preprocess(&picture, &Preprocess { size: 16, fit, mean: [0.5; 3], std: [0.25; 3] });
            assert!(pixels.values.iter().all(|value| value.is_finite()));
        }
    }
}

/// A model file from its header to its tensors, as either file of a folder.
pub fn model(data: &[u8]) {
    for file in [DECODER, ENCODER] {
        let mut loader = ModelLoader::new(Shard { rank: 1, n_ranks: 3 });
        if let Ok(ranges) = loader.header(file, data, data.len() as u64) {
            for range in ranges {
                let bytes = &data[range.start as usize..range.end as usize];
                loader.feed(file, range.start, bytes).expect("a loader takes what it asked for");
            }
        }
    }
}

/// A tokenizer.model, used if it can be read.
pub fn sentencepiece(data: &[u8]) {
    if let Ok(json) = sentencepiece::tokenizer_json(data, &Default::default(), true) {
        tokenizer(json.as_bytes());
    }
}

/// A Jinja template of conversations.
pub fn chat_template(data: &[u8]) {
    if let Ok(source) = std::str::from_utf8(data) {
        let _ = chat::marks(source, &chat::Ends { begin: "<s>".into(), is_added: true, end: "</s>".into() });
    }
}

/// A safetensors file.
pub fn safetensors(data: &[u8]) {
    let path = scratch("safetensors").join("model.safetensors");
    std::fs::write(&path, data).expect("the temporary folder can be written");
    safetensors::open(&path).iter().flat_map(|tensors| tensors.values()).for_each(read_some);
}

/// A file of torch.save: the zip archive, or else its pickle alone, as if it were in a good archive.
pub fn pickle(data: &[u8]) {
    let _ = pickle::tensors(data);
    let path = scratch("pickle").join("pytorch_model.bin");
    std::fs::write(&path, data).expect("the temporary folder can be written");
    pickle::open(&path).iter().flat_map(|tensors| tensors.values()).for_each(read_some);
}

fn read_some(tensor: &Tensor) {
    if tensor.check_dtype().is_ok() {
        let n_elements = tensor.shape.iter().product::<usize>();
        let _ = tensor.read(0..n_elements.min(64), &mut Vec::new());
    }
}

/// A config.json beside the weights of a good checkpoint.
pub fn config(data: &[u8]) {
    let folder = scratch("config");
    let good = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/siglip/checkpoint");
    for file in ["model.safetensors", "tokenizer.json"] {
        if !folder.join(file).exists() {
            std::fs::copy(good.join(file), folder.join(file)).expect("the golden checkpoint can be copied");
        }
    }
    std::fs::write(folder.join("config.json"), data).expect("the temporary folder can be written");
    let _ = Understood::read(&folder, &Parts::default(), None);
}

/// Questions of a VQA set, scored as if they were their own answers.
pub fn questions(data: &[u8]) {
    let path = scratch("questions").join("questions.json");
    std::fs::write(&path, data).expect("the temporary folder can be written");
    let _ = QuestionSet::read(&path);
    for protocol in [Protocol::Llama3Med, Protocol::LlavaMed, Protocol::LlavaMedPvqa, Protocol::MedTrinity] {
        let scoring = Scoring { protocol, candidates: None, json: true };
        let _ = score(&score::Options { answers: path.clone(), truth: path.clone(), scoring });
    }
}

/// What people are told about a model.
pub fn about(data: &[u8]) {
    let path = scratch("about").join("about.json");
    std::fs::write(&path, data).expect("the temporary folder can be written");
    if let Ok(about) = About::read(&path) {
        about.manifest();
    }
}

/// A folder of this thread's own.
fn scratch(purpose: &str) -> PathBuf {
    let name = format!("llama3med-{purpose}-{}-{:?}", std::process::id(), std::thread::current().id());
    let folder = std::env::temp_dir().join(name.replace(['(', ')'], ""));
    std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
    folder
}

/// A parser of outside bytes.
pub type Parser = fn(&[u8]);

/// Every parser by name.
pub const PARSERS: [(&str, Parser); 12] = [
    ("about", about),
    ("chat_template", chat_template),
    ("config", config),
    ("gguf", gguf),
    ("image", image),
    ("manifest", manifest),
    ("model", model),
    ("pickle", pickle),
    ("questions", questions),
    ("safetensors", safetensors),
    ("sentencepiece", sentencepiece),
    ("tokenizer", tokenizer),
];
