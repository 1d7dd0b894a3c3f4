//! One function per parser of outside bytes: the fuzz target in `fuzz/` runs them on generated input, the tests run
//! them on every input that once failed. Both run them on a stack as small as the browser's.

use llama3med::device::cpu::Cpu;
use llama3med::device::ranks::Threads;
use llama3med::file::gguf::{Gguf, Header};
use llama3med::file::manifest::{DECODER, ENCODER, Manifest};
use llama3med::file::pair::{Whole, members};
use llama3med::model::ModelLoader;
use llama3med::picture::{Fit, Picture, Preprocess, preprocess};
use llama3med::spec::file_of;
use llama3med::text::conversation::{Chat, Marks, Message, Part, Role, TEMPLATES, Template};
use llama3med::text::tokenizer::Tokenizer;
use llama3med::{Error, Result};
use quantize::About;
use quantize::checkpoint::{Parts, chat_template as chat, pickle, safetensors, sentencepiece, tensor::Tensor};
use quantize::convert::Understood;
use quantize::files::records;
use quantize::measure::protocol::Protocol;
use quantize::measure::questions::QuestionSet;
use quantize::measure::score::{self, Scoring, score};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A GGUF header: reads every array, uses its vocabulary and template if they can be read, and checks the loader's
/// behaviour on prefixes.
pub fn gguf(data: &[u8]) {
    if let Ok(Some(gguf)) = Gguf::parse("fuzz.gguf", data, data.len() as u64) {
        for key in gguf.metadata.keys() {
            let _ = (gguf.get_strings(key), gguf.get_ints(key), gguf.get_floats(key), gguf.get_usize(key));
        }
        if let Ok(vocabulary) = Tokenizer::from_gguf(&gguf) {
            let prompt = Template::from_gguf(&gguf, &vocabulary);
            let _ = prompt
                .and_then(|template| template.prompt(&vocabulary, &messages(&[], "Is there a mass? 肺🩻 </s>", true)));
        }
    }
    let _ = Gguf::parse("fuzz.gguf", data, u64::MAX - 1);
}

/// One part of a split GGUF file, with valid parts before and after it.
pub fn split(data: &[u8]) {
    static PARTS: LazyLock<[Vec<u8>; 3]> =
        LazyLock::new(|| [1, 2, 3].map(|part| golden(&format!("pair/split-0000{part}-of-00003.gguf"))));
    for place in 0..3 {
        let mut parts = PARTS.each_ref().map(Vec::as_slice);
        parts[place] = data;
        let parts = parts.map(|bytes| Gguf::parse("fuzz.gguf", bytes, bytes.len() as u64));
        let Ok(parts) = parts.into_iter().map(|part| part?.ok_or(Error::Cancelled)).collect::<Result<Vec<_>>>() else {
            continue;
        };
        if let Ok(Whole { header, size, .. }) = Whole::of(&parts) {
            // The last part may be truncated: opening the whole file detects that.
            let whole = Gguf::parse("whole.gguf", &header.expect("there are several parts"), size);
            assert!(!matches!(whole, Ok(None)), "the header is whole");
        }
        if let Ok(members) = members(parts, file_of) {
            assert_eq!((members[0].name, members[0].sources.len()), (DECODER, 3));
        }
    }
}

/// A vocabulary as in llama.cpp's files, used if it can be read. The first line is `model pre-tokenizer`; each other
/// line is a token after the digit of its type, or a merge after `+`.
pub fn vocabulary(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let kind = lines.next().unwrap_or_default();
    let (model, pre) = kind.split_once(' ').unwrap_or((kind, ""));
    let (merges, tokens): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with('+'));
    let merges: Vec<&str> = merges.into_iter().map(|line| &line[1..]).collect();
    let digit = |line: &&str| line.chars().next().and_then(|digit| digit.to_digit(10));
    let types: Vec<i32> = tokens.iter().map(|line| digit(line).unwrap_or(1) as i32).collect();
    let tokens: Vec<&str> =
        tokens.iter().map(|line| line.strip_prefix(|c: char| c.is_ascii_digit()).unwrap_or(line)).collect();
    let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let mut header = Header::default();
    header.string("tokenizer.ggml.model", model).string("tokenizer.ggml.pre", pre);
    header.strings("tokenizer.ggml.tokens", &tokens).i32s("tokenizer.ggml.token_type", &types);
    header.f32s("tokenizer.ggml.scores", &scores).strings("tokenizer.ggml.merges", &merges);
    gguf(&header.to_bytes());
}

/// Turns of question and answer, then an open question; if `has_image`, the first question begins with the image of key 0.
pub fn messages(turns: &[(&str, &[u32])], question: &str, has_image: bool) -> Vec<Message> {
    let mut chat = Chat::about(has_image.then_some(0));
    for (question, answer) in turns {
        chat = chat.asked(question);
        chat.add(Message::new(Role::Assistant, [Part::Tokens(answer.to_vec())]));
    }
    chat.asked(question).messages
}

/// A byte-level vocabulary, one of SentencePiece's, and one from a file of llama.cpp's.
static TOKENIZERS: LazyLock<[Tokenizer; 3]> = LazyLock::new(|| {
    let pieces =
        sentencepiece::tokenizer_json(&golden("llava-med/checkpoint/tokenizer.model"), &Default::default(), true);
    let pair = golden("pair/decoder.gguf");
    let pair = Gguf::parse("decoder.gguf", &pair, pair.len() as u64).unwrap().unwrap();
    [
        Tokenizer::from_json(&golden("clip-s2/checkpoint/tokenizer.json")).unwrap(),
        Tokenizer::from_json(pieces.unwrap().as_bytes()).unwrap(),
        Tokenizer::from_gguf(&pair).unwrap(),
    ]
});

/// The text a user types, preceded by the four texts of a template, one per line.
pub fn prompt(data: &[u8]) {
    // Long texts take longer and show nothing new.
    let text = String::from_utf8_lossy(data.get(..1 << 14).unwrap_or(data));
    let mut lines = text.splitn(5, '\n').map(String::from);
    let mut line = || lines.next().unwrap_or_default();
    let marks = Marks { first: line(), after_image: line(), reply: line(), next: line() };
    let (template, question) = (Template::Marks(marks), line());
    template.jinja();
    for (idx, tokenizer) in TOKENIZERS.iter().enumerate() {
        if let Ok(ids) = tokenizer.encode_text(&text) {
            assert!(ids.iter().all(|&id| tokenizer.is_known(id)));
            let _ = template.prompt(tokenizer, &messages(&[(&question, &ids)], &question, true));
            let decoded = tokenizer.decode(&ids);
            assert!(idx > 0 || decoded == text, "bytes lose nothing: {decoded:?} for {text:?}");
        }
    }
}

/// A conversation from JavaScript, written with every known template.
pub fn conversation(data: &[u8]) {
    let Ok(messages) = serde_json::from_slice::<Vec<Message>>(data) else { return };
    for name in TEMPLATES {
        let template = Template::named(name).expect("it is one of those");
        for tokenizer in TOKENIZERS.iter() {
            let (prompt, known) = (template.prompt(tokenizer, &messages), template.known(tokenizer, &messages));
            let prompts = prompt.ok().zip(known.ok());
            assert!(prompts.is_none_or(|(prompt, known)| prompt.starts_with(&known)));
        }
    }
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
            let options = Preprocess { size: 16, fit, mean: [0.5; 3], std: [0.25; 3] };
            let pixels = preprocess(&picture, &options).expect("memory for a small square");
            assert!(pixels.values.iter().all(|value| value.is_finite()));
        }
    }
}

/// A model file from its header to its tensors, as either file of a folder.
pub fn model(data: &[u8]) {
    for file in [DECODER, ENCODER] {
        let mut loader = ModelLoader::new(Cpu::new(Threads::connect(3).remove(1)));
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

/// A Jinja chat template.
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

/// A file from torch.save: the zip archive, or else only its pickle, as if in a valid archive.
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

/// A config.json beside the weights of a valid checkpoint.
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

/// The files beside a valid config.json; the input may be any of them.
pub fn companions(data: &[u8]) {
    let folder = scratch("companions");
    let good = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/llava-hf/checkpoint");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        if !folder.join(file).exists() {
            std::fs::copy(good.join(file), folder.join(file)).expect("the golden checkpoint can be copied");
        }
    }
    for file in ["generation_config.json", "preprocessor_config.json", "tokenizer_config.json", "processor_config.json"]
    {
        std::fs::write(folder.join(file), data).expect("the temporary folder can be written");
        let _ = Understood::read(&folder, &Parts::default(), None);
        std::fs::remove_file(folder.join(file)).expect("the temporary folder can be written");
    }
}

/// Answers to valid questions; a list of candidate answers.
pub fn answers(data: &[u8]) {
    let (path, truth) = (scratch("answers").join("answers.jsonl"), scratch("answers").join("truth.jsonl"));
    if !truth.exists() {
        let question = |id: usize| {
            let kind = ["OPEN", "CLOSED"][id % 2];
            format!("{{\"qid\":{id},\"question\":\"What?\",\"answer\":\"left lung\",\"answer_type\":\"{kind}\"}}\n")
        };
        std::fs::write(&truth, (0..3).map(question).collect::<String>()).expect("the temporary folder can be written");
    }
    std::fs::write(&path, data).expect("the temporary folder can be written");
    for (protocol, candidates) in [(Protocol::MedTrinity, None), (Protocol::LlavaMed, Some(path.clone()))] {
        let scoring = Scoring { protocol, candidates, json: true };
        let _ = score(&score::Options { answers: path.clone(), truth: truth.clone(), scoring });
    }
    let _ = records::read_value(&path).and_then(|value| score::parse_candidates("candidates.json", &value));
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

/// What users are told about a model.
pub fn about(data: &[u8]) {
    let path = scratch("about").join("about.json");
    std::fs::write(&path, data).expect("the temporary folder can be written");
    if let Ok(about) = About::read(&path) {
        about.manifest();
    }
}

/// A file of the goldens.
fn golden(file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A separate folder for this thread.
fn scratch(purpose: &str) -> PathBuf {
    let name = format!("llama3med-{purpose}-{}-{:?}", std::process::id(), std::thread::current().id());
    let folder = std::env::temp_dir().join(name.replace(['(', ')'], ""));
    std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
    folder
}

/// A parser of outside bytes.
pub type Parser = fn(&[u8]);

/// Every parser by name.
pub const PARSERS: [(&str, Parser); 18] = [
    ("about", about),
    ("answers", answers),
    ("chat_template", chat_template),
    ("companions", companions),
    ("config", config),
    ("conversation", conversation),
    ("gguf", gguf),
    ("image", image),
    ("manifest", manifest),
    ("model", model),
    ("pickle", pickle),
    ("prompt", prompt),
    ("questions", questions),
    ("safetensors", safetensors),
    ("sentencepiece", sentencepiece),
    ("split", split),
    ("tokenizer", tokenizer),
    ("vocabulary", vocabulary),
];

/// Half of what a browser provides: one MiB for Rust's own stack in WebAssembly, and about as much for the engine's.
/// Stack frames are larger here.
pub const STACK_BYTES: usize = 512 << 10;

/// Runs a function on a thread with [`STACK_BYTES`] of stack. A stack overflow ends the process.
pub fn on_small_stack(run: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(run).expect("a thread can be started")
}
