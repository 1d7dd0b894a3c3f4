//! Which family a checkpoint belongs to, how each family's configuration is read, and which models are refused by name.

mod common;

use common::Checkpoint;
use llama3med::device::ops::Activation;
use llama3med::file::gguf::{Gguf, Header};
use llama3med::file::manifest::{DECODER, ENCODER};
use llama3med::picture::Fit;
use llama3med::spec::EncoderSpec;
use llama3med::text::conversation::{Marks, Template};
use llama3med::text::tokenizer::Tokenizer;
use quantize::checkpoint::Parts;
use quantize::commands::inspect;
use quantize::convert;
use quantize::convert::Understood;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn tower() -> Parts {
    let tower = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llava-vicuna/tower");
    Parts { encoder: Some(tower), ..Parts::default() }
}

#[track_caller]
fn refused(checkpoint: &Checkpoint, parts: &Parts, words: &[&str]) {
    let error = Understood::read(&checkpoint.folder, parts, None).err().expect("it is no family's").to_string();
    words.iter().for_each(|word| assert!(error.contains(word), "{word:?} is not in {error:?}"));
    assert!(!error.contains('\n'), "{error}");
}

fn encoder(understood: &Understood) -> &EncoderSpec {
    &understood.vision.as_ref().unwrap().encoder
}

#[test]
fn other_models_are_named() {
    let cases = [
        ("gemma3", "Gemma3ForConditionalGeneration", "MedGemma or Gemma 3"),
        ("mllama", "MllamaForConditionalGeneration", "cross attention"),
        ("llava_next", "LlavaNextForConditionalGeneration", "anyres"),
        ("llava_onevision", "LlavaOnevisionForConditionalGeneration", "LLaVA-OneVision"),
        ("smolvlm", "SmolVLMForConditionalGeneration", "SmolVLM"),
        ("idefics3", "Idefics3ForConditionalGeneration", "Idefics"),
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "Qwen-VL"),
        ("paligemma", "PaliGemmaForConditionalGeneration", "PaliGemma"),
        ("qwen2_moe", "Qwen2MoeForCausalLM", "Qwen"),
        ("", "Gemma3ForConditionalGeneration", "MedGemma"),
        ("gpt2", "GPT2LMHeadModel", "of no family"),
        ("clip", "CLIPModel", "no LLaVA"),
    ];
    for (i, (model_type, architecture, words)) in cases.into_iter().enumerate() {
        let checkpoint = Checkpoint::new("llava-hf", &format!("other_models_{i}"));
        checkpoint.edit_json("config.json", |config| {
            config["model_type"] = model_type.into();
            config["architectures"] = json!([architecture]);
            if words == "of no family" {
                config["text_config"] = Value::Null;
            }
        });
        refused(&checkpoint, &Parts::default(), &["config.json: model_type", words, "what works: Llama3-Med"]);
    }
}

#[test]
fn other_descendants_of_llava_are_named() {
    let cases = [
        ("image_aspect_ratio", json!("anyres"), "LLaVA-NeXT"),
        ("mm_patch_merge_type", json!("spatial_unpad"), "LLaVA-NeXT"),
        ("mm_projector_type", json!("mlp_downsample"), "VILA"),
        ("mm_use_im_start_end", json!(true), "deltas; LLaVA-Med v1.5 is whole"),
        ("mm_projector_type", json!("ldpnet"), "mm_projector_type"),
        ("mm_vision_select_feature", json!("cls"), "mm_vision_select_feature"),
        ("mm_vision_select_layer", json!(-9), "mm_vision_select_layer"),
        ("hidden_act", json!("gelu"), "hidden_act"),
    ];
    for (i, (key, value, words)) in cases.into_iter().enumerate() {
        let checkpoint = Checkpoint::new("llava-med", &format!("descendants_{i}"));
        checkpoint.edit_json("config.json", |config| config[key] = value);
        refused(&checkpoint, &Parts::default(), &["config.json", words]);
    }
}

#[test]
fn other_decoders_are_named() {
    let checkpoint = Checkpoint::new("llava-hf", "other_decoders");
    checkpoint.edit_json("config.json", |config| config["text_config"]["model_type"] = "phi".into());
    refused(&checkpoint, &Parts::default(), &["text_config.model_type", "llama or mistral", "phi"]);
}

#[test]
fn a_qwen2_without_its_biases_is_refused() {
    let checkpoint = Checkpoint::new("llava-hf", "qwen2_without_biases");
    checkpoint.edit_json("config.json", |config| config["text_config"]["model_type"] = "qwen2".into());
    refused(&checkpoint, &Parts::default(), &["layers.0.self_attn.q_proj.bias is missing"]);
}

#[test]
fn transformers_llava_may_have_a_qwen2() {
    let original = Checkpoint::new("llava-qwen", "qwen2_original");
    let checkpoint = Checkpoint::new("llava-qwen", "qwen2_transformers");
    checkpoint.edit_json("config.json", |config| {
        let mut text = config.take();
        let vision = text["vision_config"].take();
        text["model_type"] = "qwen2".into();
        text["architectures"] = json!(["Qwen2ForCausalLM"]);
        *config = json!({ "model_type": "llava", "text_config": text, "vision_config": vision });
    });
    let [one, other] = [original, checkpoint].map(|checkpoint| convert(&checkpoint.options()).unwrap());
    assert_eq!(one.file(DECODER), other.file(DECODER));
}

#[test]
fn missing_parts_are_asked_for() {
    let checkpoint = Checkpoint::new("llava-vicuna", "missing_parts");
    let words = ["the image tower (openai/clip-vit-large-patch14-336) is not in the checkpoint", "--encoder"];
    refused(&checkpoint, &Parts::default(), &words);
    let language_model = Checkpoint::new("siglip", "missing_parts_of_a_language_model");
    language_model.edit_json("config.json", |config| {
        config["model_type"] = "llama".into();
        config["text_config"] = Value::Null;
    });
    fs::remove_file(language_model.folder.join("model.safetensors")).unwrap();
    let decoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/parts/decoder");
    let parts = Parts { decoder: Some(decoder), ..Parts::default() };
    refused(&language_model, &parts, &["a language model without a tower and a connector", "--decoder"]);
}

/// Reduces transformers' LLaVA to its language model, as `LlamaForCausalLM` writes it.
fn language_model(test: &str) -> Checkpoint {
    let checkpoint = Checkpoint::new("llava-hf", test);
    checkpoint.edit_json("config.json", |config| {
        *config = config["text_config"].take();
        config["model_type"] = "llama".into();
        config["architectures"] = json!(["LlamaForCausalLM"]);
    });
    fs::remove_file(checkpoint.folder.join("preprocessor_config.json")).unwrap();
    let path = checkpoint.folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let kept = whole.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("language_model.")?, tensor)));
    fs::write(&path, safetensors::serialize(kept, None).unwrap()).unwrap();
    checkpoint
}

#[test]
fn a_language_model_alone_becomes_a_model_that_sees_no_pictures() {
    let checkpoint = language_model("language_model");
    let whole = Checkpoint::new("llava-hf", "language_model_whole");
    let [manifest, of_whole] = [&checkpoint, &whole].map(|checkpoint| convert(&checkpoint.options()).unwrap());
    assert!(manifest.file(ENCODER).is_none() && of_whole.file(ENCODER).is_some());
    // Identical to the decoder of the whole model, byte for byte.
    assert_eq!(manifest.file(DECODER), of_whole.file(DECODER));
    let report = inspect::inspect(checkpoint.output(), true).unwrap();
    assert!(report.encoder.is_none() && report.decoder.is_some() && report.files.len() == 1, "{report}");
    let described = inspect::inspect(&checkpoint.folder, false).unwrap();
    assert!(described.encoder.is_none(), "{described}");
    let error = Understood::read(&checkpoint.folder, &Parts::default(), Some(&[24])).err().unwrap().to_string();
    assert!(error.contains("sees no pictures"), "{error}");
    fs::remove_file(checkpoint.folder.join("chat_template.jinja")).unwrap();
    refused(&checkpoint, &Parts::default(), &["chat_template", "the form of conversations is not known"]);
}

#[test]
fn delta_weights_are_seen_by_their_norms() {
    let checkpoint = Checkpoint::new("siglip", "delta_weights");
    checkpoint.edit_bytes("model.safetensors", |bytes| {
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
        let offsets = &header["language_model.model.norm.weight"]["data_offsets"];
        let [start, end] = [0, 1].map(|i| data + offsets[i].as_u64().unwrap() as usize);
        for weight in bytes[start..end].chunks_exact_mut(4) {
            let difference = f32::from_le_bytes((&*weight).try_into().unwrap()) * 0.01;
            weight.copy_from_slice(&difference.to_le_bytes());
        }
    });
    refused(&checkpoint, &Parts::default(), &["language_model.model.norm.weight", "delta weights"]);
}

#[test]
fn numbers_come_from_where_each_family_keeps_them() {
    let read = |checkpoint: &Checkpoint, parts: &Parts| Understood::read(&checkpoint.folder, parts, None).unwrap();
    // Sparse: widths, layers and key/value heads come from the tensors, the vocabulary with its padding.
    let hf = read(&Checkpoint::new("llava-hf", "numbers_hf"), &Parts::default());
    let decoder =
        (hf.decoder.dim, hf.decoder.hidden_dim, hf.decoder.n_layers, hf.decoder.n_heads, hf.decoder.n_kv_heads);
    assert_eq!(decoder, (48, 80, 2, 4, 2));
    assert_eq!((hf.decoder.vocab_size, hf.vocabulary.n_tokens()), (394, 384));
    assert_eq!((encoder(&hf).fit, encoder(&hf).activation, encoder(&hf).n_drop), (Fit::Crop, Activation::QuickGelu, 1));
    let med = read(&Checkpoint::new("llava-med", "numbers_med"), &Parts::default());
    assert_eq!((encoder(&med).fit, encoder(&med).n_layers, med.decoder.rope_theta), (Fit::Pad, 2, 1e6));
    let s2 = read(&Checkpoint::new("llava-s2", "numbers_s2"), &Parts::default());
    assert_eq!(
        (encoder(&s2).n_layers, encoder(&s2).scales.as_slice()),
        (3, &[24, 48, 72][..]),
        "layer -1 is honoured with scales, too"
    );

    let checkpoint = Checkpoint::new("llava-med", "numbers_window");
    checkpoint.edit_json("config.json", |config| {
        config["sliding_window"] = json!(4096);
        config["mm_vision_select_feature"] = "cls_patch".into();
    });
    let window = read(&checkpoint, &Parts::default());
    assert_eq!((window.decoder.context_length, encoder(&window).n_drop), (4096, 0));

    let checkpoint = Checkpoint::new("llava-hf", "numbers_fit");
    checkpoint.edit_json("preprocessor_config.json", |config| config["do_pad"] = json!(true));
    checkpoint.edit_json("config.json", |config| {
        config["vision_feature_select_strategy"] = "full".into();
        config["vision_feature_layer"] = json!(-1);
    });
    let padded = read(&checkpoint, &Parts::default());
    assert_eq!((encoder(&padded).fit, encoder(&padded).n_drop, encoder(&padded).n_layers), (Fit::Pad, 0, 3));

    // transformers' LLaVA drops the first token even of a SigLIP tower, which has no class token.
    let checkpoint = Checkpoint::new("siglip", "numbers_siglip");
    checkpoint.edit_json("config.json", |config| {
        config["model_type"] = "llava".into();
        config["vision_feature_select_strategy"] = "default".into();
    });
    assert_eq!(encoder(&read(&checkpoint, &Parts::default())).n_drop, 1);
    checkpoint.edit_json("config.json", |config| config["vision_feature_select_strategy"] = "full".into());
    assert_eq!(encoder(&read(&checkpoint, &Parts::default())).n_drop, 0);

    // Without its own configuration, a tower is what its folder says.
    let vicuna = read(&Checkpoint::new("llava-vicuna", "numbers_vicuna"), &tower());
    assert_eq!((encoder(&vicuna).n_heads, encoder(&vicuna).image_size, vicuna.vocabulary.n_tokens()), (4, 24, 421));
}

#[test]
fn scales_of_the_published_shape_follow_from_the_connector() {
    // Three times the tower's width, 336 pixels: not stated in LLaVA-Tri's configuration.
    let checkpoint = Checkpoint::new("llava-s2", "scales");
    checkpoint.edit_json("config.json", |config| {
        let config = config.as_object_mut().unwrap();
        config.remove("s2");
        config.remove("s2_scales");
    });
    refused(&checkpoint, &Parts::default(), &["s2_scales", "3 scales of 24 pixels", "--scales"]);
    let understood = Understood::read(&checkpoint.folder, &Parts::default(), Some(&[24, 48, 72])).unwrap();
    assert_eq!(encoder(&understood).scales, [24, 48, 72]);
}

/// A checkpoint of Llama3-Med's code with renamed control tokens.
fn with_tokens(test: &str, names: [(&str, &str); 4]) -> Checkpoint {
    let checkpoint = Checkpoint::new("siglip", test);
    checkpoint.edit_json("tokenizer.json", |json| {
        json["post_processor"] = Value::Null;
        for token in json["added_tokens"].as_array_mut().unwrap() {
            let name = names.iter().find(|(from, _)| token["content"] == *from);
            token["content"] =
                name.map_or("<|unused|>".to_owned() + &token["id"].to_string(), |(_, to)| to.to_string()).into();
        }
    });
    checkpoint
}

#[test]
fn the_tokenizer_decides_where_the_configuration_says_too_little() {
    let marks = |checkpoint: &Checkpoint, parts: &Parts| {
        let understood = Understood::read(&checkpoint.folder, parts, None).unwrap();
        let mut header = Header::default();
        understood.vocabulary.keys(&mut header, 400);
        let bytes = header.to_bytes();
        let gguf = Gguf::parse("decoder.gguf", &bytes, bytes.len() as u64).unwrap().unwrap();
        assert_eq!(gguf.get_usize("tokenizer.ggml.eos_token_id").unwrap(), Some(383));
        Template::from_gguf(&gguf, &Tokenizer::from_gguf(&gguf).unwrap()).unwrap().marks()
    };
    let names = |end| {
        [
            ("<|begin_of_text|>", "<|endoftext|>"),
            ("<|end_of_text|>", "<|other|>"),
            ("<|start_header_id|>", "<|im_start|>"),
            ("<|eot_id|>", end),
        ]
    };
    let checkpoint = with_tokens("template_chatml", names("<|im_end|>"));
    let plain = Marks::chat_ml("").with_tokens("", "");
    assert_eq!(marks(&checkpoint, &Parts::default()), plain);
    // The tokenizer's own template takes precedence over the plain one, unless it cannot be used.
    let jinja = "{% for m in messages %}{% if loop.first %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}\
        {{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    for (source, expected) in [(jinja, Marks::chat_ml("Be brief.").with_tokens("", "")), ("<|im_start|>{{", plain)] {
        fs::write(checkpoint.folder.join("chat_template.jinja"), source).unwrap();
        assert_eq!(marks(&checkpoint, &Parts::default()), expected, "{source}");
    }
    let named = |name: &str| Parts { template: Some(name.into()), ..Parts::default() };
    let words = ["/tokenizer.json: ", "Vicuna's form", "because it was asked for", "no token </s>", "--template"];
    refused(&checkpoint, &named("vicuna"), &words);
    refused(&checkpoint, &named("alpaca"), &["template must be one of llama3"]);
    let ended = with_tokens("template_named", names("</s>"));
    assert_eq!(marks(&ended, &named("mistral-v3-tekken")).next, "</s>[INST]");
}

#[test]
fn a_tokenizer_that_does_not_fit_is_named_with_what_was_assumed_and_why() {
    let names = [("", ""); 4];
    let checkpoint = with_tokens("template_none", names);
    let why = "Vicuna's form of conversations was taken because config.json and the tokenizer are of Llama3-Med or TinyLLaVA without";
    refused(
        &checkpoint,
        &Parts::default(),
        &["/tokenizer.json: ", why, "the vocabulary has no token <s>", "--template"],
    );
    let some = with_tokens("template_some", [("<|eot_id|>", "<|eot_id|>"), ("", ""), ("", ""), ("", "")]);
    let why = "Llama-3's form of conversations was taken because config.json and the tokenizer are of Llama3-Med, but";
    refused(&some, &Parts::default(), &["/tokenizer.json: ", why, "no token <|begin_of_text|>"]);
    let checkpoint = Checkpoint::new("siglip", "template_broken");
    checkpoint.edit_json("tokenizer.json", |json| json["model"]["type"] = "WordPiece".into());
    refused(&checkpoint, &Parts::default(), &["/tokenizer.json: ", "model.type: expected BPE, found WordPiece"]);
    for family in ["llava-hf", "llava-s2"] {
        let checkpoint = Checkpoint::new(family, "template_none");
        let _ = fs::remove_file(checkpoint.folder.join("chat_template.jinja"));
        checkpoint.edit_json("tokenizer.json", |json| {
            for token in json["added_tokens"].as_array_mut().unwrap() {
                token["content"] = format!("<|unused{}|>", token["id"]).into();
            }
        });
        refused(
            &checkpoint,
            &Parts::default(),
            &["/tokenizer.json: ", "form of conversations was taken because", "no token <s>"],
        );
    }
}

#[test]
fn tokenizers_and_templates_that_cannot_be_used() {
    let spoil = |test: &str, file: &str, content: &[u8], words: &[&str]| {
        let checkpoint = Checkpoint::new("llava-hf", test);
        fs::write(checkpoint.folder.join(file), content).unwrap();
        refused(&checkpoint, &Parts::default(), words);
    };
    spoil("template_1", "chat_template.jinja", b"{% for", &["chat_template.jinja: chat_template", "line 1"]);
    spoil("template_2", "chat_template.jinja", b"\xff", &["chat_template.jinja: text"]);
    spoil("template_3", "chat_template.jinja", b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", &["chat_template"]);
    spoil("template_4", "chat_template.jinja", &vec![b' '; 1 << 20], &["chat_template.jinja"]);
    let checkpoint = Checkpoint::new("llava-med", "model_1");
    checkpoint.edit_bytes("tokenizer.model", |bytes| bytes.truncate(1000));
    refused(&checkpoint, &Parts::default(), &["tokenizer.model"]);
    let checkpoint = Checkpoint::new("llava-vicuna", "model_2");
    fs::write(checkpoint.folder.join("added_tokens.json"), "{\"<pad>\": \"x\"}").unwrap();
    refused(&checkpoint, &tower(), &["added_tokens.json", "ids by token"]);
    fs::write(checkpoint.folder.join("added_tokens.json"), "{\"<pad>\": 4000000000}").unwrap();
    refused(&checkpoint, &tower(), &["<pad>", "4000000000"]);
    fs::remove_file(checkpoint.folder.join("added_tokens.json")).unwrap();
    fs::remove_file(checkpoint.folder.join("tokenizer.model")).unwrap();
    refused(&checkpoint, &tower(), &["tokenizer.json", "cannot open"]);
}

/// A tokenizer is also looked for beside the decoder, where LoRA runs leave it.
#[test]
fn the_decoders_tokenizer_serves() {
    let checkpoint = Checkpoint::new("llava-med", "decoders_tokenizer");
    let elsewhere: PathBuf = checkpoint.folder.join("decoder");
    fs::create_dir(&elsewhere).unwrap();
    for entry in fs::read_dir(&checkpoint.folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("pytorch_model") {
            fs::copy(entry.path(), elsewhere.join(name)).unwrap();
        }
    }
    fs::rename(checkpoint.folder.join("tokenizer.model"), elsewhere.join("tokenizer.model")).unwrap();
    let parts = Parts { decoder: Some(elsewhere), ..Parts::default() };
    assert_eq!(Understood::read(&checkpoint.folder, &parts, None).unwrap().vocabulary.n_tokens(), 420);
}
